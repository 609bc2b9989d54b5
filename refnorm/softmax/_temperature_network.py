"""TempNet: a temperature for each input, from a loss that is robust inside a KL ball.

loss(t) = t cross_entropy(logits / t) + (radius - log V) t
slope   = radius - KL(softmax(logits / t) || uniform)              (convex in t: the best t has KL = radius)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.nn import linear_vjp
from refnorm.softmax._cross_entropy import _reduce, cross_entropy_vjp, log_softmax
from refnorm.softmax._two_pass import softmax, softmax_vjp

if TYPE_CHECKING:
    from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="To Cool or not to Cool? Temperature Network Meets Large Foundation Models via DRO",
    authors="Qiu, Guo, Xu, Zhao, Zhang, Yang",
    year=2024,
    arxiv="2404.04575",
    functions=(
        "BimodalState",
        "PrototypeTempNetParams",
        "TempNetParams",
        "TemperatureSolution",
        "bimodal_temp_loss",
        "init_prototype_tempnet",
        "init_tempnet",
        "prototype_tempnet",
        "robust_temperature_loss",
        "solve_temperature",
        "tempnet",
    ),
    chapter="softmax/temperature_network",
)

LEAST_NORM = 1e-12
"""A row of logits or a prototype shorter than this is divided by it instead of by its length."""
MOST_ITERATIONS = 200
"""Bisection of [0.01, 5] to the last bit of float64 needs 60 iterations, of any interval fewer than 200."""

_REDUCTIONS = ("mean", "sum", "none")


def robust_temperature_loss(
    logits: Array[F],
    target: IntArray,
    temperature: Array[F],
    *,
    radius: float,
    reduction: str = "mean",
    mask: AnyArray | None = None,
) -> Array[F]:
    """Cross-entropy with a temperature for each row, and the price of that temperature.

    Parameters
    ----------
    logits : array (B, V)
    target : integer array (B,)
        Classes from 0 to V - 1.
    temperature : array (B,)
        All > 0.
    radius : float >= 0
        Radius of the KL ball around the uniform distribution.
    reduction : {"mean", "sum", "none"}
    mask : boolean array (B,), optional
        Rows that count; the others have loss and gradient 0 and are left out of the mean.

    Returns
    -------
    array, () or (B,), dtype of ``logits``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, targets are not integers or the mask is not boolean.
    ValueError
        If a shape is wrong, a target or a number is out of range, or no row counts for the mean.

    Notes
    -----
    ``t cross_entropy(logits / t, target) + (radius - log V) t``: the dual of maximising
    ``sum_y p_y (logits_y - logits_target)`` over distributions with ``KL(p || uniform) <= radius``, up to a constant.

    References
    ----------
    Qiu et al. (2024), arXiv 2404.04575, the robust loss and its dual.

    Examples
    --------
    >>> logits = np.array([[1.0, 0.0]])
    >>> float(robust_temperature_loss(logits, np.array([0]), np.array([1.0]), radius=0.1).round(6))
    -0.279885
    """
    options = {"radius": radius, "reduction": reduction, "mask": mask}
    return robust_temperature_loss_vjp(logits, target, temperature, **options)[0]  # type: ignore[arg-type]


def robust_temperature_loss_vjp(
    logits: Array[F],
    target: IntArray,
    temperature: Array[F],
    *,
    radius: float,
    reduction: str = "mean",
    mask: AnyArray | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`robust_temperature_loss` and its pullback ``dloss -> (dlogits, dtemperature)``.

    Parameters, errors and references are those of :func:`robust_temperature_loss`.
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    _checks.not_empty(logits, "logits", (1,))
    rows, classes = logits.shape
    target = _checks.integer_array(target, "target", ndim=1, low=0, high=classes - 1)
    _checks.shape(target, "target", (rows,))
    temperature = _checks.float_array(temperature, "temperature", ndim=1)
    _checks.same_dtype("logits", logits, temperature=temperature)
    _checks.shape(temperature, "temperature", (rows,))
    if not (temperature.real > 0).all():
        _checks.fail("temperature", "numbers > 0", temperature.real.min())
    _checks.non_negative(radius, "radius")
    _checks.one_of(reduction, "reduction", _REDUCTIONS)
    counted = _mask(mask, rows)

    cool, wide = _wide(temperature), _wide(logits)
    scaled = wide / cool[:, None]
    entropy_loss, to_scaled = cross_entropy_vjp(scaled, target, reduction="none")
    loss = cool * entropy_loss + (radius - np.log(classes)) * cool
    value, row_weights = _reduce(np.where(counted, loss, 0), counted, reduction)

    def pullback(dloss: Array[F]) -> tuple[Array[F], Array[F]]:
        # t and 1/t cancel: dlogits = p - e_target. The slope in t is radius - log V plus p's entropy,
        # radius - KL(p || uniform): the target does not occur in it.
        row = np.where(counted, row_weights(dloss), 0)
        (dlogits,) = to_scaled(row)
        dtemperature = row * (radius - _kl_and_variance(wide, cool)[0])
        return dlogits.astype(logits.dtype), dtemperature.astype(logits.dtype)

    return np.asarray(_in_dtype_of(logits, value)), pullback


@dataclass(frozen=True)
class TemperatureSolution:
    """Best temperatures of :func:`solve_temperature`.

    Parameters
    ----------
    temperature : array (B,)
    n_iter : int
    converged : bool
        Whether every row meets the tolerance or is at a bound where it belongs.
    history : dict
        ``"residual"``: largest ``|KL - radius|`` of the rows between the bounds, an entry an iteration.
    """

    temperature: AnyArray
    n_iter: int
    converged: bool
    history: Mapping[str, AnyArray]


def solve_temperature(
    logits: Array[F],
    *,
    radius: float,
    lowest: float = 0.01,
    highest: float = 5.0,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> TemperatureSolution:
    """Temperature of each row that minimises the robust loss.

    Parameters
    ----------
    logits : array (B, V)
        Finite.
    radius : float >= 0
        As in :func:`robust_temperature_loss`.
    lowest, highest : floats, 0 < lowest < highest
        Bounds of the temperature.
    tol : float > 0
        Largest ``|KL - radius|`` of a solution between the bounds.
    callback : callable, optional
        Called with a ``refnorm.solvers.Progress`` after every iteration.

    Returns
    -------
    TemperatureSolution

    Raises
    ------
    TypeError
        If ``logits`` is neither float32 nor float64.
    ValueError
        If a logit is not finite, there is no class, or a number is outside its range.

    Notes
    -----
    ``KL(softmax(logits / t) || uniform)`` falls from ``log(V / m)``, where m entries share the maximum, to 0 as t
    grows. The solution is where it equals the radius; ``lowest`` if it is below the radius everywhere, as for equal
    logits, and ``highest`` if it is above everywhere, as for radius 0. It does not depend on a target. Newton's
    steps, with bisection where they leave the bracket; float64 inside.

    References
    ----------
    Qiu et al. (2024), arXiv 2404.04575, the exact temperature of a sample.

    Examples
    --------
    >>> solve_temperature(np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), radius=0.1).temperature.round(4)
    array([1.0599, 3.1798, 0.01  ])
    """
    return solve_temperature_vjp(logits, radius=radius, lowest=lowest, highest=highest, tol=tol, callback=callback)[0]


def solve_temperature_vjp(
    logits: Array[F],
    *,
    radius: float,
    lowest: float = 0.01,
    highest: float = 5.0,
    tol: float = 1e-10,
    callback: Callback | None = None,
) -> tuple[TemperatureSolution, Pullback]:
    """Return :func:`solve_temperature` and its pullback ``dtemperature -> (dlogits,)``.

    Parameters, errors and references are those of :func:`solve_temperature`.
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    _checks.not_empty(logits, "logits", (1,))
    _checks.finite(logits, "logits")
    _checks.non_negative(radius, "radius")
    _check_bounds(lowest, highest)
    _checks.positive(tol, "tol")
    wide = _wide(logits)
    solution, inside = _solve(wide, radius, lowest, highest, tol, callback)
    temperature = solution.temperature

    def pullback(dtemperature: Array[F]) -> tuple[Array[F]]:
        # KL(h, t) = radius defines t(h). With c = h - <p, h>: dKL/dh = p c / t^2 and dKL/dt = -Var / t^3,
        # so dt/dh = p c t / Var. At a bound t does not move.
        p = softmax(wide / temperature[:, None])
        centred = wide - (p * wide).sum(axis=1, keepdims=True)
        variance = (p * centred * centred).sum(axis=1)
        scale = np.divide(dtemperature * temperature, variance, out=np.zeros(len(p)), where=inside & (variance > 0))
        return ((scale[:, None] * p * centred).astype(logits.dtype),)

    cast = TemperatureSolution(temperature.astype(logits.dtype), solution.n_iter, solution.converged, solution.history)
    return cast, pullback


def _solve(
    logits: AnyArray, radius: float, lowest: float, highest: float, tol: float, callback: Callback | None
) -> tuple[TemperatureSolution, AnyArray]:
    """The solution in float64, and which rows lie between the bounds."""
    from refnorm.solvers._monitor import Monitor  # not at the top: other rooms' solvers use this room

    rows = len(logits)
    low, high = np.full(rows, lowest), np.full(rows, highest)
    too_hot = _kl_and_variance(logits, low)[0] <= radius
    too_cold = _kl_and_variance(logits, high)[0] >= radius
    inside = ~too_hot & ~too_cold
    temperature = np.where(too_cold, highest, np.where(too_hot, lowest, np.clip(1.0, lowest, highest)))
    monitor = Monitor("solve_temperature", callback=callback, hint="check the logits")
    converged = False
    for _ in range(MOST_ITERATIONS):
        kl, variance = _kl_and_variance(logits, temperature)
        slope = radius - kl
        residual = float(np.abs(slope[inside]).max(initial=0.0))
        converged = residual <= tol
        if monitor.record(residual=residual) or converged:
            break
        high, low = np.where(slope >= 0, temperature, high), np.where(slope < 0, temperature, low)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = temperature - slope * temperature**3 / variance
        # A row that has arrived stands on one of its bounds and stays there.
        good = (newton > low) & (newton < high) | (newton == temperature)
        temperature = np.where(inside, np.where(good, newton, (low + high) / 2), temperature)
    return TemperatureSolution(temperature, monitor.n_iter, converged, monitor.history()), inside


def _kl_and_variance(logits: AnyArray, temperature: AnyArray) -> tuple[AnyArray, AnyArray]:
    """KL(p || uniform) and Var_p(logits) of each row, with p = softmax(logits / temperature)."""
    z = log_softmax(logits / temperature[:, None])
    p = np.exp(z)
    # 0 log 0 = 0: a masked class has z = -inf and no logit to average.
    seen = p.real > 0
    kl = np.log(logits.shape[1]) + (p * np.where(seen, z, 0)).sum(axis=1)
    values = np.where(seen, logits, 0)
    centred = values - (p * values).sum(axis=1, keepdims=True)
    return kl, (p * centred * centred).sum(axis=1)


@dataclass(frozen=True)
class TempNetParams:
    """Parameters of :func:`tempnet`, for V logits and M hidden units.

    Parameters
    ----------
    weight1, bias1 : arrays (V, M) and (M,)
    weight2, bias2 : arrays (M, M) and (M,)
    log_sharpening : array ()
        Logarithm of the temperature of the pooling softmax.
    pool_weight, pool_bias : arrays (M,) and ()
    """

    weight1: AnyArray
    bias1: AnyArray
    weight2: AnyArray
    bias2: AnyArray
    log_sharpening: AnyArray
    pool_weight: AnyArray
    pool_bias: AnyArray


@dataclass(frozen=True)
class PrototypeTempNetParams:
    """Parameters of :func:`prototype_tempnet`, for d features, H hidden units and M prototypes.

    Parameters
    ----------
    weight, bias : arrays (d, H) and (H,)
    prototypes : array (M, H)
        Normalized when used.
    log_sharpening : array ()
        Logarithm of the temperature of the pooling softmax.
    pool_weight, pool_bias : arrays (M,) and ()
    """

    weight: AnyArray
    bias: AnyArray
    prototypes: AnyArray
    log_sharpening: AnyArray
    pool_weight: AnyArray
    pool_bias: AnyArray


def init_tempnet(rng: np.random.Generator, *, feature_dim: int, hidden: int = 256) -> TempNetParams:
    """Draw the parameters of a temperature network for logits.

    Parameters
    ----------
    rng : numpy.random.Generator
    feature_dim : int >= 1
        Number of logits.
    hidden : int >= 1

    Returns
    -------
    TempNetParams
        float64; linear layers uniform within ``1 / sqrt(inputs)``, pooling weights 1, the rest 0.

    Raises
    ------
    TypeError, ValueError
        If ``rng`` is not a generator or a size is not an integer >= 1.

    Examples
    --------
    >>> init_tempnet(np.random.default_rng(0), feature_dim=5, hidden=3).weight1.shape
    (5, 3)
    """
    rng = _checks.generator(rng)
    feature_dim = _checks.whole(feature_dim, "feature_dim", low=1)
    hidden = _checks.whole(hidden, "hidden", low=1)
    return TempNetParams(
        *_uniform_linear(rng, feature_dim, hidden), *_uniform_linear(rng, hidden, hidden),
        log_sharpening=np.zeros(()), pool_weight=np.ones(hidden), pool_bias=np.zeros(()),
    )  # fmt: skip


def init_prototype_tempnet(
    rng: np.random.Generator, *, feature_dim: int, hidden: int = 256, prototypes: int = 256
) -> PrototypeTempNetParams:
    """Draw the parameters of a temperature network for features.

    Parameters
    ----------
    rng : numpy.random.Generator
    feature_dim, hidden, prototypes : ints >= 1

    Returns
    -------
    PrototypeTempNetParams
        float64; the linear layer uniform within ``1 / sqrt(inputs)``, standard normal prototypes, a pooling
        temperature of 0.01, pooling weights 1.

    Raises
    ------
    TypeError, ValueError
        If ``rng`` is not a generator or a size is not an integer >= 1.

    Examples
    --------
    >>> init_prototype_tempnet(np.random.default_rng(0), feature_dim=5, hidden=3, prototypes=7).prototypes.shape
    (7, 3)
    """
    rng = _checks.generator(rng)
    feature_dim = _checks.whole(feature_dim, "feature_dim", low=1)
    hidden = _checks.whole(hidden, "hidden", low=1)
    prototypes = _checks.whole(prototypes, "prototypes", low=1)
    return PrototypeTempNetParams(
        *_uniform_linear(rng, feature_dim, hidden), prototypes=rng.standard_normal((prototypes, hidden)),
        log_sharpening=np.asarray(np.log(0.01)), pool_weight=np.ones(prototypes), pool_bias=np.zeros(()),
    )  # fmt: skip


def tempnet(
    params: TempNetParams,
    logits: Array[F],
    *,
    lowest: float,
    highest: float,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Array[F]:
    """Predict a temperature for each row of logits.

    Parameters
    ----------
    params : TempNetParams
    logits : array (B, V)
    lowest, highest : floats, 0 < lowest < highest
        The temperature lies between them.
    dropout : float in [0, 1)
        Fraction of hidden units that are dropped, in training; 0.5 in the paper.
    rng : numpy.random.Generator
        Draws the dropped units; needed if ``dropout`` is not 0.

    Returns
    -------
    array (B,), dtype of ``logits``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ or ``rng`` is missing.
    ValueError
        If a shape is wrong or a number is outside its range.

    Notes
    -----
    The logits are divided by their length; two linear layers with a sigmoid between them give ``a``; with
    ``w = softmax(a / exp(log_sharpening))``, the score is ``<pool_weight, (w - 1/M) a> + pool_bias``, how much the
    peaks of ``a`` stand out; a sigmoid maps it between the bounds.

    References
    ----------
    Qiu et al. (2024), arXiv 2404.04575, the temperature network for language models.

    Examples
    --------
    >>> params = init_tempnet(np.random.default_rng(0), feature_dim=4, hidden=8)
    >>> tempnet(params, np.array([[2.0, 0.0, -1.0, 0.5]]), lowest=0.5, highest=1.5).shape
    (1,)
    """
    return tempnet_vjp(params, logits, lowest=lowest, highest=highest, dropout=dropout, rng=rng)[0]


def tempnet_vjp(
    params: TempNetParams,
    logits: Array[F],
    *,
    lowest: float,
    highest: float,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`tempnet` and its pullback ``dtemperature -> (dparams, dlogits)``.

    Parameters, errors and references are those of :func:`tempnet`.
    """
    logits = _checks.float_array(logits, "logits", ndim=2)
    hidden = np.shape(params.bias1)
    shapes = {
        "weight1": (logits.shape[1], *hidden), "bias1": hidden, "weight2": hidden * 2, "bias2": hidden,
        "log_sharpening": (), "pool_weight": hidden, "pool_bias": (),
    }  # fmt: skip
    fields = _check_fields(params, shapes, logits, "logits")
    _check_bounds(lowest, highest)
    z, to_logits = _unit_rows_vjp(logits)
    first, to_z = linear_vjp(z, fields["weight1"], fields["bias1"])
    active, to_first = _sigmoid_vjp(first)
    keep = _kept(active, dropout, rng)
    a, to_active = linear_vjp(active * keep, fields["weight2"], fields["bias2"])
    score, to_a = _pool_vjp(a, a, fields["log_sharpening"], fields["pool_weight"], fields["pool_bias"])
    temperature, to_score = _between_vjp(score, lowest, highest)

    def pullback(dtemperature: Array[F]) -> tuple[TempNetParams, Array[F]]:
        da_keys, da_values, dsharpening, dpool_weight, dpool_bias = to_a(to_score(dtemperature))
        dactive, dweight2, dbias2 = to_active(da_keys + da_values)
        dz, dweight1, dbias1 = to_z(to_first(dactive * keep))
        dparams = TempNetParams(dweight1, dbias1, dweight2, dbias2, dsharpening, dpool_weight, dpool_bias)
        return dparams, to_logits(dz)

    return temperature, pullback


def prototype_tempnet(
    params: PrototypeTempNetParams,
    x: Array[F],
    *,
    lowest: float = 0.005,
    highest: float = 0.05,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Array[F]:
    """Predict a temperature for each feature vector, by its resemblance to learned prototypes.

    Parameters
    ----------
    params : PrototypeTempNetParams
    x : array (B, d)
        Features, usually of length 1.
    lowest, highest, dropout, rng
        As in :func:`tempnet`.

    Returns
    -------
    array (B,), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        As :func:`tempnet`.

    Notes
    -----
    With ``f`` the sigmoid of a linear layer and ``s`` its products with the normalized prototypes, the score is
    ``<pool_weight, (softmax(s / exp(log_sharpening)) - 1/M) sigmoid(s)> + pool_bias``.

    References
    ----------
    Qiu et al. (2024), arXiv 2404.04575, the temperature network for contrastive learning.

    Examples
    --------
    >>> params = init_prototype_tempnet(np.random.default_rng(0), feature_dim=4, hidden=8, prototypes=6)
    >>> bool(prototype_tempnet(params, np.eye(4)).max() < 0.05)
    True
    """
    return prototype_tempnet_vjp(params, x, lowest=lowest, highest=highest, dropout=dropout, rng=rng)[0]


def prototype_tempnet_vjp(
    params: PrototypeTempNetParams,
    x: Array[F],
    *,
    lowest: float = 0.005,
    highest: float = 0.05,
    dropout: float = 0.0,
    rng: np.random.Generator | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`prototype_tempnet` and its pullback ``dtemperature -> (dparams, dx)``.

    Parameters, errors and references are those of :func:`prototype_tempnet`.
    """
    x = _checks.float_array(x, "x", ndim=2)
    hidden, count = np.shape(params.bias), np.shape(params.pool_weight)
    shapes = {
        "weight": (x.shape[1], *hidden), "bias": hidden, "prototypes": (*count, *hidden),
        "log_sharpening": (), "pool_weight": count, "pool_bias": (),
    }  # fmt: skip
    fields = _check_fields(params, shapes, x, "x")
    _check_bounds(lowest, highest)
    first, to_x = linear_vjp(x, fields["weight"], fields["bias"])
    active, to_first = _sigmoid_vjp(first)
    keep = _kept(active, dropout, rng)
    unit, to_prototypes = _unit_rows_vjp(fields["prototypes"])
    s, to_active = linear_vjp(active * keep, unit.T)
    values, to_values = _sigmoid_vjp(s)
    score, to_s = _pool_vjp(s, values, fields["log_sharpening"], fields["pool_weight"], fields["pool_bias"])
    temperature, to_score = _between_vjp(score, lowest, highest)

    def pullback(dtemperature: Array[F]) -> tuple[PrototypeTempNetParams, Array[F]]:
        ds, dvalues, dsharpening, dpool_weight, dpool_bias = to_s(to_score(dtemperature))
        dactive, dunit, _ = to_active(ds + to_values(dvalues))
        dx, dweight, dbias = to_x(to_first(dactive * keep))
        dprototypes = to_prototypes(dunit.T)
        return PrototypeTempNetParams(dweight, dbias, dprototypes, dsharpening, dpool_weight, dpool_bias), dx

    return temperature, pullback


@dataclass(frozen=True)
class BimodalState:
    """Running sums of :func:`bimodal_temp_loss` for the pairs of a batch.

    Parameters
    ----------
    image_sum, text_sum : arrays (B,)
        Moving averages of ``sum_j exp(delta_j / t - shift)``.
    image_shift, text_shift : arrays (B,)
        Largest exponent seen so far.
    """

    image_sum: AnyArray
    image_shift: AnyArray
    text_sum: AnyArray
    text_shift: AnyArray


def bimodal_temp_loss(
    image: Array[F],
    text: Array[F],
    image_temperature: Array[F],
    text_temperature: Array[F],
    state: BimodalState | None = None,
    *,
    radius: float,
    momentum: float = 0.8,
) -> tuple[Array[F], Array[F], BimodalState]:
    """Contrastive loss of pairs with a temperature for each item, and the loss that trains the temperatures.

    Parameters
    ----------
    image, text : arrays (B, d)
        Features of B >= 2 pairs.
    image_temperature, text_temperature : arrays (B,)
        All > 0.
    state : BimodalState, optional
        The running sums of these pairs; left out when they are seen for the first time.
    radius : float >= 0
    momentum : float in (0, 1]
        Weight of this batch in the running sums.

    Returns
    -------
    feature_loss, temperature_loss : arrays (), dtype of ``image``
    state : BimodalState
        float64, to be kept for the next time these pairs are drawn.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, a temperature is not > 0, or a number is outside its range.

    Notes
    -----
    Of an image i, ``delta_j = <image_i, text_j> - <image_i, text_i>`` and ``omega_j = exp(delta_j / t_i - shift) / sum``
    with the running sum. The feature loss is the mean of ``sum_j omega_j delta_j``, the temperature loss the mean of
    ``t_i (log(sum / (B - 1)) + shift + radius - sum_j omega_j delta_j / t_i)``, over images plus over texts. The
    weights omega and the parentheses count as constants in the pullback.

    References
    ----------
    Qiu et al. (2024), arXiv 2404.04575, bimodal contrastive learning with a temperature network.

    Examples
    --------
    >>> image, text, t = np.eye(3), np.eye(3), np.full(3, 0.5)
    >>> feature_loss, temperature_loss, state = bimodal_temp_loss(image, text, t, t, radius=0.5)
    >>> float(feature_loss), float(temperature_loss.round(3))
    (-2.0, 0.5)
    """
    return bimodal_temp_loss_vjp(
        image, text, image_temperature, text_temperature, state, radius=radius, momentum=momentum
    )[0]


def bimodal_temp_loss_vjp(
    image: Array[F],
    text: Array[F],
    image_temperature: Array[F],
    text_temperature: Array[F],
    state: BimodalState | None = None,
    *,
    radius: float,
    momentum: float = 0.8,
) -> tuple[tuple[Array[F], Array[F], BimodalState], Pullback]:
    """Return :func:`bimodal_temp_loss` and its pullback.

    The pullback is ``(dfeature_loss, dtemperature_loss) -> (dimage, dtext, dimage_temperature, dtext_temperature)``,
    with the stopped gradients that :func:`bimodal_temp_loss` names. Parameters, errors and references are those of
    :func:`bimodal_temp_loss`.
    """
    image, text = _checks.float_array(image, "image", ndim=2), _checks.float_array(text, "text")
    _checks.same_dtype("image", image, text=text)
    _checks.shape(text, "text", image.shape)
    rows = len(image)
    if rows < 2:
        _checks.fail("image", "at least 2 rows", rows)
    cool = []
    for name, given in (("image_temperature", image_temperature), ("text_temperature", text_temperature)):
        array = _checks.float_array(given, name)
        _checks.same_dtype("image", image, **{name: array})
        _checks.shape(array, name, (rows,))
        if not (array > 0).all():
            _checks.fail(name, "numbers > 0", array.min())
        cool.append(_wide(array))
    _checks.non_negative(radius, "radius")
    _checks.in_range(momentum, "momentum", 0, 1, closed="right")
    old = (None, None) if state is None else _check_state(state, rows)

    similarity = _wide(image) @ _wide(text).T
    image_side = _one_side(similarity, cool[0], old[0], radius, momentum)
    text_side = _one_side(similarity.T, cool[1], old[1], radius, momentum)
    feature_loss = (image_side[0].mean() + text_side[0].mean()).astype(image.dtype)
    slopes = image_side[2], text_side[2]
    temperature_loss = sum((t * slope).mean() for t, slope in zip(cool, slopes, strict=True))
    after = BimodalState(*image_side[3], *text_side[3])

    def pullback(cotangent: tuple[AnyArray, AnyArray]) -> tuple[Array[F], Array[F], Array[F], Array[F]]:
        dfeature, dtemperature = cotangent[0], cotangent[1]
        # delta_ij = S_ij - S_ii: what the weights of a row bring to its negatives, its positive pays.
        dsimilarity = dfeature / rows * (_relative(image_side[1]) + _relative(text_side[1]).T)
        dimage, dtext = dsimilarity @ _wide(text), dsimilarity.T @ _wide(image)
        dcool = [dtemperature / rows * slope for slope in slopes]
        dtype = image.dtype
        return dimage.astype(dtype), dtext.astype(dtype), dcool[0].astype(dtype), dcool[1].astype(dtype)

    return (feature_loss, np.asarray(temperature_loss, image.dtype), after), pullback


def _one_side(
    similarity: AnyArray, temperature: AnyArray, old: tuple[AnyArray, AnyArray] | None, radius: float, momentum: float
) -> tuple[AnyArray, AnyArray, AnyArray, tuple[AnyArray, AnyArray]]:
    """Each row's feature loss, its weights omega, its slope in the temperature, and its running sum and shift."""
    rows = len(similarity)
    delta = similarity - np.diag(similarity)[:, None]
    exponent = np.where(np.eye(rows, dtype=bool), -np.inf, delta / temperature[:, None])
    shift = exponent.max(axis=1)
    if old is not None:
        shift = np.maximum(shift, old[1])
    terms = np.exp(exponent - shift[:, None])
    total = terms.sum(axis=1)
    if old is not None:
        total = (1 - momentum) * old[0] * np.exp(old[1] - shift) + momentum * total
    omega = terms / total[:, None]
    feature = (omega * delta).sum(axis=1)
    slope = np.log(total / (rows - 1)) + shift + radius - feature / temperature
    return feature, omega, slope, (total, shift)


def _relative(omega: AnyArray) -> AnyArray:
    return omega - np.diag(omega.sum(axis=1))


def _pool_vjp(
    keys: AnyArray, values: AnyArray, log_sharpening: AnyArray, pool_weight: AnyArray, pool_bias: AnyArray
) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, ...]]]:
    """``<pool_weight, (softmax(keys / exp(log_sharpening)) - 1/M) values> + pool_bias``, row by row."""
    scale = np.exp(-log_sharpening)
    weights, to_scaled = softmax_vjp(keys * scale)
    excess = weights - 1 / keys.shape[1]
    score = (pool_weight * excess * values).sum(axis=1) + pool_bias

    def pullback(dscore: AnyArray) -> tuple[AnyArray, ...]:
        column = dscore[:, None]
        (dscaled,) = to_scaled(column * pool_weight * values)
        dvalues = column * pool_weight * excess
        # scaled = keys exp(-log_sharpening), so its slope in log_sharpening is -scaled.
        dsharpening = np.asarray(-(dscaled * keys * scale).sum())
        return dscaled * scale, dvalues, dsharpening, (column * excess * values).sum(axis=0), np.asarray(dscore.sum())

    return score, pullback


def _unit_rows_vjp(x: AnyArray) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    norm = np.sqrt((x * x).sum(axis=1, keepdims=True))
    short = norm.real < LEAST_NORM
    norm = np.where(short, x.dtype.type(LEAST_NORM), norm)
    unit = x / norm

    def pullback(dunit: AnyArray) -> AnyArray:
        # The length of a unit row cannot change; below LEAST_NORM the division is by a constant.
        along = np.where(short, 0, (unit * dunit).sum(axis=1, keepdims=True))
        return np.asarray((dunit - unit * along) / norm).astype(x.dtype)

    return unit, pullback


def _sigmoid_vjp(x: AnyArray) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    with np.errstate(over="ignore"):
        y = 1 / (1 + np.exp(-x))
        other = 1 / (1 + np.exp(x))
    return y, lambda dy: dy * y * other


def _between_vjp(score: AnyArray, lowest: float, highest: float) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    share, to_score = _sigmoid_vjp(score)
    return lowest + (highest - lowest) * share, lambda dt: to_score(dt * (highest - lowest))


def _kept(active: AnyArray, dropout: float, rng: np.random.Generator | None) -> AnyArray:
    """0 for a dropped unit, ``1 / (1 - dropout)`` for a kept one."""
    _checks.in_range(dropout, "dropout", 0, 1, closed="left")
    if dropout == 0:
        return np.ones((), active.real.dtype)
    kept = _checks.generator(rng).random(active.shape) >= dropout
    return np.asarray(kept / (1 - dropout)).astype(active.real.dtype)


def _uniform_linear(rng: np.random.Generator, inputs: int, outputs: int) -> tuple[AnyArray, AnyArray]:
    bound = 1 / np.sqrt(inputs)
    return rng.uniform(-bound, bound, (inputs, outputs)), rng.uniform(-bound, bound, outputs)


def _check_bounds(lowest: float, highest: float) -> None:
    _checks.positive(lowest, "lowest")
    _checks.positive(highest, "highest")
    if highest <= lowest:
        _checks.fail("highest", f"a number > lowest = {lowest}", highest)


def _check_fields(
    params: TempNetParams | PrototypeTempNetParams, shapes: Mapping[str, tuple[int, ...]], x: AnyArray, name: str
) -> dict[str, AnyArray]:
    arrays = {field: _checks.float_array(getattr(params, field), f"params.{field}") for field in shapes}
    for field, shape in shapes.items():
        _checks.shape(arrays[field], f"params.{field}", shape)
        _checks.same_dtype(name, x, **{f"params.{field}": arrays[field]})
    return arrays


def _check_state(state: BimodalState, rows: int) -> tuple[tuple[AnyArray, AnyArray], tuple[AnyArray, AnyArray]]:
    names = ("image_sum", "image_shift", "text_sum", "text_shift")
    arrays = [_wide(_checks.float_array(getattr(state, name), f"state.{name}")) for name in names]
    for name, array in zip(names, arrays, strict=True):
        _checks.shape(array, f"state.{name}", (rows,))
    return (arrays[0], arrays[1]), (arrays[2], arrays[3])


def _mask(mask: AnyArray | None, rows: int) -> AnyArray:
    if mask is None:
        return np.ones(rows, np.bool_)
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        _checks.fail_type("mask", "a boolean array", f"dtype {mask.dtype}")
    _checks.shape(mask, "mask", (rows,))
    return mask


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x.astype(np.result_type(x, np.float64), copy=False))


def _in_dtype_of(x: AnyArray, value: AnyArray) -> AnyArray:
    return value if np.iscomplexobj(value) else value.astype(x.dtype)
