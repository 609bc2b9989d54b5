"""Softmax gates with a temperature, and why learning the temperature of a linear gate is hopeless.

weights = softmax((activation(gate_weight x) + gate_bias) / temperature)
p(y | x) = sum_i weights_i Normal(y; weight_i . x + bias_i, variance_i)

With the identity as activation, (gate_weight, gate_bias, temperature) times one number is the same gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import gelu_vjp
from refnorm.softmax._cross_entropy import log_softmax, logsumexp
from refnorm.softmax._topk_gating import VARIANCE_FLOOR, _start
from refnorm.softmax._two_pass import softmax_vjp

if TYPE_CHECKING:
    from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Is Temperature Sample Efficient for Softmax Gaussian Mixture of Experts?",
    authors="Nguyen, Akbarian, Ho",
    year=2024,
    arxiv="2401.13875",
    functions=(
        "TemperatureMoE",
        "TemperatureMoEFit",
        "fisher_information",
        "fit_moe",
        "moe_nll",
        "null_direction",
        "temperature_gate",
        "temperature_schedule",
    ),
    chapter="softmax/dense_to_sparse_gating",
)

BIAS_PLACES = ("outside", "inside")
_FIELDS = ("gate_weight", "gate_bias", "temperature", "weight", "bias", "variance")


@dataclass(frozen=True)
class TemperatureMoE:
    """Mixture of linear experts with Gaussian noise and a softmax gate with a temperature.

    Parameters
    ----------
    gate_weight : array (k, d)
    gate_bias : array (k,)
    temperature : float > 0
    weight : array (k, d)
    bias : array (k,)
        The expert's mean is ``weight[i] @ x + bias[i]``.
    variance : array (k,)
        Its noise, > 0.
    """

    gate_weight: AnyArray
    gate_bias: AnyArray
    temperature: Any
    weight: AnyArray
    bias: AnyArray
    variance: AnyArray


@dataclass(frozen=True)
class TemperatureMoEFit:
    """A fitted mixture.

    Parameters
    ----------
    params
        The parameters, with the gate of the last expert at 0.
    n_iter : int
    converged : bool
        Whether the optimizer met its tolerance on slope or value.
    history : dict
        ``"nll"``: mean negative log-likelihood, an entry an iteration.
    """

    params: TemperatureMoE
    n_iter: int
    converged: bool
    history: Mapping[str, AnyArray]


def temperature_gate(
    x: Array[F],
    gate_weight: Array[F],
    gate_bias: Array[F],
    temperature: float,
    *,
    activation: str = "identity",
    bias: str = "outside",
) -> Array[F]:
    """Weights of k experts: softmax of scores divided by a temperature.

    Parameters
    ----------
    x : array (n, d)
    gate_weight : array (k, d)
    gate_bias : array (k,)
    temperature : float > 0
        Large: all experts alike. Small: almost all weight on one.
    activation : {"identity", "sigmoid", "tanh", "gelu"}
        Applied to the linear score.
    bias : {"outside", "inside"}
        Whether the bias is added after the activation or before it.

    Returns
    -------
    array (n, k), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, the temperature is not > 0, or an option is unknown.

    Notes
    -----
    ``softmax((activation(gate_weight @ x) + gate_bias) / temperature)``, or with the bias inside,
    ``softmax(activation(gate_weight @ x + gate_bias) / temperature)``.

    References
    ----------
    Nguyen, Akbarian, Ho (2024), arXiv 2401.13875: the dense-to-sparse gate (identity) and the activated gate.

    Examples
    --------
    >>> x, gate_weight, gate_bias = np.ones((1, 1)), np.array([[1.0], [0.0]]), np.zeros(2)
    >>> temperature_gate(x, gate_weight, gate_bias, 0.5).round(4)
    array([[0.8808, 0.1192]])
    >>> temperature_gate(x, gate_weight, gate_bias, 0.5, activation="sigmoid").round(4)
    array([[0.6135, 0.3865]])
    """
    return temperature_gate_vjp(x, gate_weight, gate_bias, temperature, activation=activation, bias=bias)[0]


def temperature_gate_vjp(
    x: Array[F],
    gate_weight: Array[F],
    gate_bias: Array[F],
    temperature: float,
    *,
    activation: str = "identity",
    bias: str = "outside",
) -> tuple[Array[F], Pullback]:
    """Return :func:`temperature_gate` and its pullback.

    The pullback is ``dweights -> (dx, dgate_weight, dgate_bias, dtemperature)``. Parameters, errors and references
    are those of :func:`temperature_gate`.
    """
    x = _checks.float_array(x, "x", ndim=2)
    gate_weight = _checks.float_array(gate_weight, "gate_weight", ndim=2)
    gate_bias = _checks.float_array(gate_bias, "gate_bias")
    _checks.same_dtype("x", x, gate_weight=gate_weight, gate_bias=gate_bias)
    _check_gate(x, gate_weight, gate_bias, temperature, activation, bias)
    logits, to_scores = _logits(x, gate_weight, gate_bias, temperature, activation, bias)
    weights, to_logits = softmax_vjp(logits)

    def pullback(dweights: Array[F]) -> tuple[AnyArray, ...]:
        dscore, dbias, dtemperature = to_scores(to_logits(dweights)[0])
        return (
            (dscore @ gate_weight).astype(x.dtype),
            (dscore.T @ x).astype(x.dtype),
            dbias.sum(axis=0).astype(x.dtype),
            _like(dtemperature.sum(), temperature),
        )

    return _in_dtype_of(x, weights), pullback


def moe_nll(
    x: Array[F], y: Array[F], params: TemperatureMoE, *, activation: str = "identity", bias: str = "outside"
) -> Array[F]:
    """Negative log-likelihood of each point under a mixture with a temperature gate.

    Parameters
    ----------
    x : array (n, d)
    y : array (n,)
    params : TemperatureMoE
    activation, bias
        As in :func:`temperature_gate`.

    Returns
    -------
    array (n,), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, a variance or the temperature is not > 0, or an option is unknown.

    Notes
    -----
    ``-logsumexp(log weights_i + log Normal(y; mean_i, variance_i))``.

    References
    ----------
    Nguyen, Akbarian, Ho (2024), arXiv 2401.13875, the conditional density.

    Examples
    --------
    >>> params = TemperatureMoE(np.zeros((1, 1)), np.zeros(1), 1.0, np.ones((1, 1)), np.zeros(1), np.ones(1))
    >>> moe_nll(np.array([[2.0]]), np.array([2.0]), params).round(4)
    array([0.9189])
    """
    return moe_nll_vjp(x, y, params, activation=activation, bias=bias)[0]


def moe_nll_vjp(
    x: Array[F], y: Array[F], params: TemperatureMoE, *, activation: str = "identity", bias: str = "outside"
) -> tuple[Array[F], Pullback]:
    """Return :func:`moe_nll` and its pullback ``dnll -> (dx, dy, dparams)``.

    Parameters, errors and references are those of :func:`moe_nll`.
    """
    x, y, params = _check_model(x, y, params, activation, bias)
    nll, per_point = _nll_and_slopes(x, y, params, activation, bias)

    def pullback(dnll: Array[F]) -> tuple[Array[F], Array[F], TemperatureMoE]:
        dscore, dbias, dtemperature, dmean, dvariance = (
            slope * (dnll[:, None] if slope.ndim == 2 else dnll) for slope in per_point()
        )
        dparams = TemperatureMoE(
            gate_weight=(dscore.T @ x).astype(x.dtype),
            gate_bias=dbias.sum(axis=0).astype(x.dtype),
            temperature=_like(dtemperature.sum(), params.temperature),
            weight=(dmean.T @ x).astype(x.dtype),
            bias=dmean.sum(axis=0).astype(x.dtype),
            variance=dvariance.sum(axis=0).astype(x.dtype),
        )
        dx = dscore @ params.gate_weight + dmean @ params.weight
        return dx.astype(x.dtype), -dmean.sum(axis=1).astype(x.dtype), dparams

    return _in_dtype_of(x, nll), pullback


def fisher_information(
    params: TemperatureMoE, x: Array[F], y: Array[F], *, activation: str = "identity", bias: str = "outside"
) -> Array[np.float64]:
    """Mean outer product of the score over given points.

    Parameters
    ----------
    params : TemperatureMoE
        With the gate of the last expert at 0, which is held fixed.
    x, y : arrays (n, d) and (n,)
        Points, drawn from the model itself if the result is to be its information matrix.
    activation, bias
        As in :func:`temperature_gate`.

    Returns
    -------
    float64 array (p, p)
        In the order gate weights and gate biases of all experts but the last, temperature, weights, biases,
        variances.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        As :func:`moe_nll`, or if there is no point or the last gate is not 0.

    Notes
    -----
    Its null space holds the directions in which the likelihood is flat at these points. Scale it to a unit
    diagonal before judging its eigenvalues.

    References
    ----------
    Nguyen, Akbarian, Ho (2024), arXiv 2401.13875: the interaction between temperature and gate, as a matrix.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> params = TemperatureMoE(
    ...     np.array([[1.0], [0.0]]), np.zeros(2), 0.5, np.array([[1.0], [-1.0]]), np.zeros(2), np.ones(2)
    ... )
    >>> information = fisher_information(params, rng.standard_normal((500, 1)), rng.standard_normal(500))
    >>> direction = null_direction(params)
    >>> information.shape, bool(np.abs(information @ direction).max() < 1e-12)
    ((9, 9), True)
    """
    x, y, params = _check_model(x, y, params, activation, bias)
    _checks.not_empty(x, "x", (0,))
    _check_last_gate(params)
    n = len(x)
    dscore, dbias, dtemperature, dmean, dvariance = _nll_and_slopes(x, y, params, activation, bias)[1]()
    scores = np.concatenate(
        [
            (dscore[:, :-1, None] * x[:, None]).reshape(n, -1),
            dbias[:, :-1],
            dtemperature[:, None],
            (dmean[:, :, None] * x[:, None]).reshape(n, -1),
            dmean,
            dvariance,
        ],
        axis=1,
    ).astype(np.float64)
    return np.asarray(scores.T @ scores / n)


def null_direction(params: TemperatureMoE) -> Array[np.float64]:
    """Direction in which the likelihood of a linear gate does not change at all.

    Parameters
    ----------
    params : TemperatureMoE
        With the gate of the last expert at 0.

    Returns
    -------
    float64 array (p,)
        ``(gate_weight, gate_bias, temperature, 0, ..., 0)`` in the order of :func:`fisher_information`.

    Raises
    ------
    TypeError, ValueError
        If an array is not float, a shape is wrong, a number is not > 0 or the last gate is not 0.

    References
    ----------
    Nguyen, Akbarian, Ho (2024), arXiv 2401.13875: the partial differential equation of the gate.

    Examples
    --------
    >>> params = TemperatureMoE(
    ...     np.array([[3.0], [0.0]]), np.array([2.0, 0.0]), 0.5, np.ones((2, 1)), np.zeros(2), np.ones(2)
    ... )
    >>> null_direction(params)
    array([3. , 2. , 0.5, 0. , 0. , 0. , 0. , 0. , 0. ])
    """
    params = _check_params(params, None)
    _check_last_gate(params)
    k, d = params.weight.shape
    gate = [params.gate_weight[:-1].ravel(), params.gate_bias[:-1], [params.temperature]]
    return np.concatenate([*gate, np.zeros(k * d + 2 * k)]).astype(np.float64)


def temperature_schedule(t: float, *, total: float, start: float = 2.0, end: float = 0.1) -> float:
    """Temperature at time ``t`` of a geometric descent.

    Parameters
    ----------
    t : float in [0, total]
    total : float > 0
        Length of the descent.
    start, end : floats > 0
        Temperatures at ``t = 0`` (dense) and ``t = total`` (sparse).

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If a number is outside its range.

    Notes
    -----
    ``start (end / start)^(t / total)``.

    Examples
    --------
    >>> [round(temperature_schedule(t, total=10, start=4.0, end=0.25), 3) for t in (0, 5, 10)]
    [4.0, 1.0, 0.25]
    """
    _checks.positive(total, "total")
    _checks.in_range(t, "t", 0, total)
    _checks.positive(start, "start")
    _checks.positive(end, "end")
    return float(start * (end / start) ** (t / total))


def fit_moe(
    x: Array[F],
    y: Array[F],
    *,
    k: int,
    rng: np.random.Generator,
    activation: str = "identity",
    bias: str = "outside",
    init: TemperatureMoE | None = None,
    max_iter: int = 500,
    callback: Callback | None = None,
) -> TemperatureMoEFit:
    """Fit a mixture with a temperature gate by maximum likelihood.

    Parameters
    ----------
    x : array (n, d)
    y : array (n,)
        At least two points.
    k : int >= 1
        Number of experts.
    rng : numpy.random.Generator
        Draws the start if there is no ``init``.
    activation, bias
        As in :func:`temperature_gate`.
    init : TemperatureMoE, optional
        Where to begin, with the gate of the last expert at 0.
    max_iter : int >= 1
    callback : callable, optional
        Called with a ``refnorm.solvers.Progress`` after every iteration.

    Returns
    -------
    TemperatureMoEFit

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or a count is not an integer.
    ValueError
        If a shape is wrong, a value is not finite, or an option is unknown.
    refnorm.solvers.Diverged
        If the likelihood leaves the finite numbers.

    Notes
    -----
    L-BFGS in float64, with the logarithms of temperature and variances as variables and the last gate held at 0.

    References
    ----------
    Nguyen, Akbarian, Ho (2024), arXiv 2401.13875, section on experiments, for the setting.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.uniform(-2, 2, (300, 1))
    >>> y = np.where(x[:, 0] > 0, 2 * x[:, 0], -x[:, 0]) + 0.1 * rng.standard_normal(300)
    >>> fit = fit_moe(x, y, k=2, activation="sigmoid", rng=rng)
    >>> np.sort(fit.params.weight[:, 0]).round(1)
    array([-1.,  2.])
    """
    import scipy.optimize  # not at the top: the room should load fast

    from refnorm.solvers._monitor import Monitor  # nor this: other rooms' solvers use this room

    x, y = _checks.float_array(x, "x", ndim=2), _checks.float_array(y, "y", ndim=1)
    _checks.same_dtype("x", x, y=y)
    _checks.shape(y, "y", x.shape[:1])
    _checks.finite(x, "x")
    _checks.finite(y, "y")
    if len(y) < 2:
        _checks.fail("x", "at least 2 points", len(y))
    k = _checks.whole(k, "k", low=1)
    rng = _checks.generator(rng)
    max_iter = _checks.whole(max_iter, "max_iter", low=1)
    _check_options(activation, bias)
    if init is None:
        start = _start(x, y, k, rng, VARIANCE_FLOOR * float(y.var()) or 1.0)
        gate_weight, gate_bias = start.gate_weight - start.gate_weight[-1], start.gate_bias - start.gate_bias[-1]
        init = TemperatureMoE(gate_weight, gate_bias, 1.0, start.weight, start.bias, start.variance)
    init = _check_params(init, x, "init")
    if len(init.bias) != k:
        _checks.fail("init", f"{k} experts", len(init.bias))
    _check_last_gate(init, "init")

    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    monitor = Monitor("fit_moe", callback=callback, hint="use fewer experts or another start")

    def value_and_slope(free: AnyArray) -> tuple[float, AnyArray]:
        params = _from_free(free, k, x.shape[1])
        if not (np.isfinite(free).all() and params.temperature > 0 and (params.variance > 0).all()):
            monitor.record(nll=np.nan)
        nll, pullback = moe_nll_vjp(wide_x, wide_y, params, activation=activation, bias=bias)
        if not np.isfinite(nll).all():
            monitor.record(nll=np.nan)
        dparams = pullback(np.full(len(y), 1 / len(y)))[2]
        return float(nll.mean()), _slope_in_free(params, dparams)

    def each(intermediate_result: Any) -> None:
        if monitor.record(nll=float(intermediate_result.fun)):
            raise StopIteration

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found = scipy.optimize.minimize(
            value_and_slope, _to_free(init), jac=True, method="L-BFGS-B", callback=each, options={"maxiter": max_iter}
        )
    params = _from_free(found.x, k, x.shape[1])
    fields = {name: getattr(params, name) for name in _FIELDS}
    cast = {name: v if name == "temperature" else v.astype(x.dtype) for name, v in fields.items()}
    return TemperatureMoEFit(TemperatureMoE(**cast), monitor.n_iter, bool(found.status == 0), monitor.history())


def _to_free(params: TemperatureMoE) -> AnyArray:
    """The variables of the fit: the last gate is left out, temperature and variances are logarithms."""
    gate = [params.gate_weight[:-1].ravel(), params.gate_bias[:-1], [np.log(params.temperature)]]
    return np.concatenate([*gate, params.weight.ravel(), params.bias, np.log(params.variance)]).astype(np.float64)


def _from_free(free: AnyArray, k: int, d: int) -> TemperatureMoE:
    ends = np.cumsum([(k - 1) * d, k - 1, 1, k * d, k])
    gate_weight, gate_bias, log_temperature, weight, bias, log_variance = np.split(free, ends)
    return TemperatureMoE(
        gate_weight=np.concatenate([gate_weight.reshape(k - 1, d), np.zeros((1, d))]),
        gate_bias=np.append(gate_bias, 0.0),
        temperature=float(np.exp(log_temperature[0])),
        weight=weight.reshape(k, d),
        bias=bias,
        variance=np.exp(log_variance),
    )


def _slope_in_free(params: TemperatureMoE, dparams: TemperatureMoE) -> AnyArray:
    # t = exp(rho): drho = t dt.
    return np.concatenate(
        [
            dparams.gate_weight[:-1].ravel(),
            dparams.gate_bias[:-1],
            [params.temperature * dparams.temperature],
            dparams.weight.ravel(),
            dparams.bias,
            params.variance * dparams.variance,
        ]
    )


def _identity(s: AnyArray) -> tuple[AnyArray, AnyArray]:
    return s, np.ones_like(s)


def _sigmoid(s: AnyArray) -> tuple[AnyArray, AnyArray]:
    with np.errstate(over="ignore"):
        value, other = 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(s))
    return value, value * other


def _tanh(s: AnyArray) -> tuple[AnyArray, AnyArray]:
    value = np.tanh(s)
    return value, 1 - value * value


def _gelu(s: AnyArray) -> tuple[AnyArray, AnyArray]:
    value, pullback = gelu_vjp(s)
    return value, pullback(np.ones_like(s))[0]


ACTIVATIONS: dict[str, Callable[[AnyArray], tuple[AnyArray, AnyArray]]] = {
    "identity": _identity,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "gelu": _gelu,
}
"""Value and slope of each activation."""


def _logits(
    x: AnyArray, gate_weight: AnyArray, gate_bias: AnyArray, temperature: Any, activation: str, bias: str
) -> tuple[AnyArray, Callable[[AnyArray], tuple[AnyArray, AnyArray, AnyArray]]]:
    """Logits (n, k), and the map from their cotangents to those of linear scores, biases and temperature."""
    scores = x @ gate_weight.T
    value, slope = ACTIVATIONS[activation](scores + gate_bias if bias == "inside" else scores)
    logits = (value if bias == "inside" else value + gate_bias) / temperature

    def to_scores(dlogits: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
        draised = dlogits / temperature
        dscore = draised * slope
        # logits = raised / t, so dt = -<dlogits, logits> / t: one number a point.
        return dscore, dscore if bias == "inside" else draised, -(draised * logits).sum(axis=1)

    return logits, to_scores


def _nll_and_slopes(
    x: AnyArray, y: AnyArray, params: TemperatureMoE, activation: str, bias: str
) -> tuple[AnyArray, Callable[[], tuple[AnyArray, ...]]]:
    """Each point's loss, and its slopes in scores, gate biases, temperature, means and variances."""
    gate = (params.gate_weight, params.gate_bias, params.temperature)
    logits, to_scores = _logits(x, *gate, activation, bias)
    log_weight = log_softmax(logits)
    residual = y[:, None] - x @ params.weight.T - params.bias
    precision = 1 / params.variance
    joint = log_weight - 0.5 * (residual * residual * precision + np.log(2 * np.pi * params.variance))

    def slopes() -> tuple[AnyArray, ...]:
        # Responsibility r = softmax(joint). The gate's slope is weight - r: what it says minus what the point says.
        responsibility = np.exp(log_softmax(joint))
        dmean = -responsibility * residual * precision
        dvariance = 0.5 * responsibility * precision * (1 - residual * residual * precision)
        return (*to_scores(np.exp(log_weight) - responsibility), dmean, dvariance)

    return -logsumexp(joint), slopes


def _in_dtype_of(x: AnyArray, value: AnyArray) -> AnyArray:
    return value if np.iscomplexobj(value) else value.astype(x.dtype)


def _like(value: AnyArray, temperature: Any) -> AnyArray:
    """The cotangent of a temperature, in its own dtype (float64 for a Python number)."""
    return np.asarray(value, dtype=np.result_type(np.asarray(temperature).dtype, np.float32))


def _check_options(activation: str, bias: str) -> None:
    _checks.one_of(activation, "activation", tuple(ACTIVATIONS))
    _checks.one_of(bias, "bias", BIAS_PLACES)


def _check_gate(
    x: AnyArray, gate_weight: AnyArray, gate_bias: AnyArray, temperature: Any, activation: str, bias: str
) -> None:
    _checks.not_empty(gate_weight, "gate_weight", (0,))
    _checks.shape(gate_weight, "gate_weight", (len(gate_weight), x.shape[1]))
    _checks.shape(gate_bias, "gate_bias", (len(gate_weight),))
    _check_temperature(temperature, "temperature")
    _check_options(activation, bias)


def _check_temperature(temperature: Any, name: str) -> None:
    if np.ndim(temperature) != 0:
        _checks.fail(name, "one number", f"shape {np.shape(temperature)}")
    _checks.positive(np.real(temperature), name)


def _check_model(
    x: AnyArray, y: AnyArray, params: TemperatureMoE, activation: str, bias: str
) -> tuple[AnyArray, AnyArray, TemperatureMoE]:
    x, y = _checks.float_array(x, "x", ndim=2), _checks.float_array(y, "y", ndim=1)
    _checks.same_dtype("x", x, y=y)
    _checks.shape(y, "y", x.shape[:1])
    _check_options(activation, bias)
    return x, y, _check_params(params, x)


def _check_params(params: TemperatureMoE, x: AnyArray | None, name: str = "params") -> TemperatureMoE:
    weight = _checks.float_array(params.weight, f"{name}.weight", ndim=2)
    _checks.not_empty(weight, f"{name}.weight", (0,))
    k, d = weight.shape
    if x is not None and d != x.shape[1]:
        _checks.fail(f"{name}.weight", f"{x.shape[1]} columns like x", f"shape {weight.shape}")
    shapes = {"gate_weight": (k, d), "gate_bias": (k,), "weight": (k, d), "bias": (k,), "variance": (k,)}
    arrays = {field: _checks.float_array(getattr(params, field), f"{name}.{field}") for field in shapes}
    for field, shape in shapes.items():
        _checks.shape(arrays[field], f"{name}.{field}", shape)
        like = weight if x is None else x
        _checks.same_dtype(f"{name}.weight" if x is None else "x", like, **{f"{name}.{field}": arrays[field]})
    if not (arrays["variance"].real > 0).all():
        _checks.fail(f"{name}.variance", "numbers > 0", arrays["variance"].real.min())
    _check_temperature(params.temperature, f"{name}.temperature")
    return TemperatureMoE(temperature=params.temperature, **arrays)


def _check_last_gate(params: TemperatureMoE, name: str = "params") -> None:
    if (params.gate_weight[-1] != 0).any() or params.gate_bias[-1] != 0:
        _checks.fail(
            f"{name}.gate_weight", "the gate of the last expert at 0",
            f"{params.gate_weight[-1].tolist()} and the bias {params.gate_bias[-1]}",
        )  # fmt: skip
