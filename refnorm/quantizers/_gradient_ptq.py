"""Gradient-based post-training quantization: for each weight, learn whether to round down or up.

h = clip(1.2 sigmoid(v) - 0.1, 0, 1)        w = scale * clip(floor(weight / scale) + h, lowest, highest)
minimize  error of the layer's output + penalty * sum(1 - |2 h - 1|^exponent),  then round h
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.quantizers._affine import affine_qparams
from refnorm.quantizers._calibration import check_bits
from refnorm.quantizers._descent import Descent
from refnorm.softmax import softmax
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Gradient-Based Post-Training Quantization: Challenging the Status Quo",
    authors="Yvinec, Dapogny, Bailly",
    year=2023,
    arxiv="2308.07662",
    functions=(
        "rectified_sigmoid",
        "rectified_sigmoid_inverse",
        "rounding_regulariser",
        "soft_quantize",
        "RoundingResult",
        "fit_rounding",
        "search_power",
        "importance",
        "allocate_bits",
    ),
    chapter="quantizers/gradient_ptq",
)

STRETCHED_HIGH, STRETCHED_LOW = 1.1, -0.1
"""Ends of the stretched sigmoid (Nagel et al. 2020): 0 and 1 are reached at finite logits."""

VARIABLES = ("sigmoid", "direct", "ste")
LOSSES = ("mse", "l1", "cosine", "kl")
LEARNABLE = ("rounding", "bias", "scale")
SMALLEST_POWER = 0.3


def rectified_sigmoid(v: Array[F]) -> Array[F]:
    """Return ``clip(1.2 sigmoid(v) - 0.1, 0, 1)``.

    Parameters
    ----------
    v : array

    Returns
    -------
    array, shape and dtype of ``v``

    Raises
    ------
    TypeError
        If ``v`` is not float32 or float64.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662; Nagel et al. (2020), arXiv 2004.10568, equation 23.

    Examples
    --------
    >>> rectified_sigmoid(np.array([-9.0, 0.0, 9.0]))
    array([0. , 0.5, 1. ])
    """
    return rectified_sigmoid_vjp(v)[0]


def rectified_sigmoid_vjp(v: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`rectified_sigmoid` and its pullback ``dy -> (dv,)``."""
    v = _checks.float_array(v, "v")
    # exp of a negative number in either case: no overflow for large logits of either sign.
    small = np.exp(np.where(v.real < 0, v, -v))
    sigmoid = np.where(v.real < 0, small, 1) / (1 + small)
    stretched = sigmoid * (STRETCHED_HIGH - STRETCHED_LOW) + STRETCHED_LOW
    inside = (stretched.real > 0) & (stretched.real < 1)
    h: Array[F] = np.where(inside, stretched, (stretched.real >= 1).astype(v.dtype)).astype(v.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        slope = (STRETCHED_HIGH - STRETCHED_LOW) * sigmoid * (1 - sigmoid)
        return (np.where(inside, dy * slope, 0).astype(v.dtype),)

    return h, pullback


def rectified_sigmoid_inverse(h: Array[F]) -> Array[F]:
    """Return the logit at which :func:`rectified_sigmoid` is ``h``.

    Parameters
    ----------
    h : array
        Numbers from 0 to 1.

    Returns
    -------
    array, shape and dtype of ``h``
        Between -2.4 and 2.4.

    Raises
    ------
    TypeError, ValueError
        If ``h`` is not float or leaves [0, 1].

    Examples
    --------
    >>> rectified_sigmoid_inverse(np.array([0.3, 0.7])).round(6)
    array([-0.693147,  0.693147])
    """
    return rectified_sigmoid_inverse_vjp(h)[0]


def rectified_sigmoid_inverse_vjp(h: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`rectified_sigmoid_inverse` and its pullback ``dy -> (dh,)``."""
    h = _checks.float_array(h, "h")
    if not ((h.real >= 0) & (h.real <= 1)).all():
        _checks.fail("h", "numbers from 0 to 1", h)
    below, above = h - STRETCHED_LOW, STRETCHED_HIGH - h
    v: Array[F] = np.log(below) - np.log(above)
    return v.astype(h.dtype), lambda dy: ((dy * (1 / below + 1 / above)).astype(h.dtype),)


def rounding_regulariser(h: Array[F], *, exponent: float = 2.0) -> Array[F]:
    """Return ``sum(1 - |2 h - 1|^exponent)``: 0 if all roundings are decided, and one a weight if none is.

    Parameters
    ----------
    h : array
        Relaxed roundings from 0 to 1.
    exponent : float >= 1
        Large: only what is nearly decided is pushed.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If ``h`` is not float or ``exponent < 1``.

    References
    ----------
    Nagel et al. (2020), arXiv 2004.10568, equation 24.

    Examples
    --------
    >>> float(rounding_regulariser(np.array([0.0, 0.5, 1.0])))
    1.0
    """
    return rounding_regulariser_vjp(h, exponent=exponent)[0]


def rounding_regulariser_vjp(h: Array[F], *, exponent: float = 2.0) -> tuple[Array[F], Pullback]:
    """Return :func:`rounding_regulariser` and its pullback ``dy -> (dh,)``."""
    h = _checks.float_array(h, "h")
    if not (np.isfinite(exponent) and exponent >= 1):
        _checks.fail("exponent", "a finite number >= 1", exponent)
    away = np.abs(2 * h - 1)
    value: Array[F] = np.asarray((1 - away**exponent).sum(), h.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return ((-2 * exponent * dy * away ** (exponent - 1) * np.sign(2 * h - 1)).astype(h.dtype),)

    return value, pullback


def soft_quantize(
    weight: Array[F], scale: Array[F], v: Array[F], *, bits: int, variable: str = "sigmoid", power: float = 1.0
) -> Array[F]:
    """Quantize weights with a rounding that is a variable.

    Parameters
    ----------
    weight : array (K, N)
        Finite.
    scale : array () or (N,), > 0
        Of the grid, one for all or one for each column.
    v : array (K, N)
        The variable; its meaning is that of ``variable``.
    bits : int, 2 to 16
        Of the signed grid.
    variable : {"sigmoid", "direct", "ste"}
        ``floor(weight / scale) + h`` with ``h = rectified_sigmoid(v)`` or ``h = clip(v, 0, 1)``; or
        ``round(weight / scale + clip(v, -1, 1))``.
    power : float in [0.3, 1]
        ``sign(w) |w|^power`` is quantized in the place of w, and the result brought back: steps are finer near 0.

    Returns
    -------
    array (K, N), dtype of ``weight``

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit or an option is out of its range.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662, section on the optimized variable and on non-uniform grids.

    Examples
    --------
    >>> weight = np.array([[0.3, -1.2]])
    >>> soft_quantize(weight, np.array(0.5), np.array([[-9.0, 9.0]]), bits=4)
    array([[ 0., -1.]])
    """
    return soft_quantize_vjp(weight, scale, v, bits=bits, variable=variable, power=power)[0]


def soft_quantize_vjp(
    weight: Array[F], scale: Array[F], v: Array[F], *, bits: int, variable: str = "sigmoid", power: float = 1.0
) -> tuple[Array[F], Pullback]:
    """Return :func:`soft_quantize` and its pullback ``dy -> (dweight, dscale, dv)``.

    ``dweight`` is 0 and ``dscale`` holds the codes: the floor is constant. With ``"ste"`` the rounding is passed
    straight through to ``v``.
    """
    weight, v = _checks.float_array(weight, "weight", ndim=2), _checks.float_array(v, "v")
    scale = _checks.float_array(scale, "scale")
    _checks.same_dtype("weight", weight, scale=scale, v=v)
    _checks.shape(v, "v", weight.shape)
    if scale.shape:
        _checks.shape(scale, "scale", weight.shape[1:])
    if not (scale > 0).all():
        _checks.fail("scale", "numbers > 0", scale)
    _checks.finite(weight, "weight")
    _check_power(power)
    _checks.one_of(variable, "variable", VARIABLES)
    highest = 2 ** (check_bits(bits) - 1) - 1
    u = bend(weight, power) / scale
    if variable == "ste":
        code, pull_code = np.rint(u + np.clip(v, -1, 1)), _within(np.abs(v) <= 1)
    elif variable == "direct":
        code, pull_code = np.floor(u) + np.clip(v, 0, 1), _within((v > 0) & (v < 1))
    else:
        h, pull_code = rectified_sigmoid_vjp(v)
        code = np.floor(u) + h
    inside = (code >= -highest - 1) & (code <= highest)
    q = np.clip(code, -highest - 1, highest)
    bent = scale * q
    y: Array[F] = bend(bent, 1 / power)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # y = sign(s q) |s q|^(1 / power), whose slope |s q|^(1 / power - 1) / power is 0 at 0.
        dbent = dy if power == 1 else dy * np.abs(bent) ** (1 / power - 1) / power
        (dv,) = pull_code(np.where(inside, dbent * scale, 0))
        return np.zeros_like(weight), sum_to(dbent * q, scale.shape).astype(weight.dtype), dv.astype(weight.dtype)

    return y.astype(weight.dtype), pullback


def _within(mask: AnyArray) -> Pullback:
    return lambda dy: (np.where(mask, dy, 0),)


def bend(weight: Array[F], power: float) -> Array[F]:
    """Return ``sign(w) |w|^power``."""
    return weight if power == 1 else np.asarray(np.sign(weight) * np.abs(weight) ** power)


def _check_power(power: float) -> None:
    _checks.in_range(power, "power", SMALLEST_POWER, 1.0)


@dataclass(frozen=True, eq=False)
class RoundingResult:
    """A layer with learned rounding, made by :func:`fit_rounding`.

    Parameters
    ----------
    weight : array (K, N)
        On the grid.
    codes : int array (K, N)
        ``weight = scale * codes``, bent back if a power was used.
    scale : array (N,)
    bias : array (N,)
    h : array (K, N)
        Relaxed roundings before the last, hard one (with ``"ste"``, the offsets).
    n_iter : int
    history : dict of arrays
        ``loss``, without the penalty, before every step.
    """

    weight: AnyArray
    codes: IntArray
    scale: AnyArray
    bias: AnyArray
    h: AnyArray
    n_iter: int
    history: Mapping[str, AnyArray]


def fit_rounding(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    *,
    bits: int,
    loss: str = "mse",
    learn: Sequence[str] = ("rounding",),
    variable: str = "sigmoid",
    power: float = 1.0,
    method: str = "mse",
    optimizer: str = "adam",
    learning_rate: float = 1e-2,
    other_learning_rate: float = 1e-3,
    n_iter: int = 2000,
    penalty: float = 0.01,
    exponents: tuple[float, float] = (20.0, 2.0),
    warmup: float = 0.2,
    activation: str | None = None,
    x_quantized: Array[F] | None = None,
    batch_size: int | None = None,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> RoundingResult:
    """Learn the rounding of a layer's weights by the error of the layer's output.

    Parameters
    ----------
    x : array (T, K)
        Inputs of the layer in the float network.
    weight, bias : arrays (K, N), (N,)
    bits : int, 2 to 16
    loss : {"mse", "l1", "cosine", "kl"}
        Of quantized and float outputs, a mean over rows: the sum of squares or of magnitudes, 1 minus the cosine, or
        the divergence of their softmaxes.
    learn : sequence of {"rounding", "bias", "scale"}
        What moves besides the rounding, which has to be among them.
    variable, power
        As in :func:`soft_quantize`.
    method : {"absmax", "mse"}
        How a column's scale is chosen (:func:`affine_qparams`).
    optimizer : {"adam", "adamax", "sgd"}
    learning_rate, other_learning_rate : float > 0
        Of the rounding, and of bias and scale.
    n_iter : int >= 1
    penalty : float >= 0
        Weight of :func:`rounding_regulariser`.
    exponents : two floats >= 1
        Its exponent at the beginning and at the end, with a half cosine between.
    warmup : float in [0, 1)
        Share of the steps without penalty.
    activation : {None, "relu"}
        Applied to both outputs before they are compared.
    x_quantized : array (T, K), optional
        Inputs of the layer in the network whose earlier layers are quantized; ``x`` by default.
    batch_size : int >= 1, optional
        Rows drawn with ``rng`` for a step; all by default.
    rng : numpy.random.Generator
        Needed with ``batch_size``.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the fit.

    Returns
    -------
    RoundingResult

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an option does not fit.

    Notes
    -----
    The variable begins where the layer is the float layer. In the end ``h >= 1/2`` rounds up.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662; Nagel et al. (2020), arXiv 2004.10568, equation 21.

    Examples
    --------
    >>> x, weight = np.ones((4, 2)), np.array([[0.5], [0.5]])
    >>> found = fit_rounding(x + np.eye(4, 2) * 1e-3, weight, np.zeros(1), bits=2, n_iter=300)
    >>> bool(abs((x @ found.weight)[0, 0] - 1) < 0.2)
    True
    """
    return _fit_rounding(
        Operations(soft_quantize_vjp, rectified_sigmoid_vjp, rounding_regulariser_vjp),
        x,
        weight,
        bias,
        bits=bits,
        loss=loss,
        learn=learn,
        variable=variable,
        power=power,
        method=method,
        optimizer=optimizer,
        learning_rate=learning_rate,
        other_learning_rate=other_learning_rate,
        n_iter=n_iter,
        penalty=penalty,
        exponents=exponents,
        warmup=warmup,
        activation=activation,
        x_quantized=x_quantized,
        batch_size=batch_size,
        rng=rng,
        callback=callback,
    )


class Operations(NamedTuple):
    """What a fit spends its time in besides products: the functions of this module, or a kernel's."""

    soft_quantize_vjp: Callable[..., Any]
    rectified_sigmoid_vjp: Callable[..., Any]
    rounding_regulariser_vjp: Callable[..., Any]


def _fit_rounding(
    operations: Operations,
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    *,
    bits: int,
    loss: str,
    learn: Sequence[str],
    variable: str,
    power: float,
    method: str,
    optimizer: str,
    learning_rate: float,
    other_learning_rate: float,
    n_iter: int,
    penalty: float,
    exponents: tuple[float, float],
    warmup: float,
    activation: str | None,
    x_quantized: Array[F] | None,
    batch_size: int | None,
    rng: np.random.Generator | None,
    callback: Callback | None,
) -> RoundingResult:
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    bias = _checks.float_array(bias, "bias")
    inputs = x if x_quantized is None else _checks.float_array(x_quantized, "x_quantized")
    _checks.same_dtype("x", x, weight=weight, bias=bias, x_quantized=inputs)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(weight, "weight", (x.shape[1], weight.shape[1]))
    _checks.shape(bias, "bias", weight.shape[1:])
    _checks.shape(inputs, "x_quantized", x.shape)
    _checks.one_of(loss, "loss", LOSSES)
    _checks.one_of(method, "method", ("absmax", "mse"))
    _checks.one_of(activation, "activation", (None, "relu"))
    for name in learn:
        _checks.one_of(name, "learn", LEARNABLE)
    if "rounding" not in learn:
        _checks.fail("learn", "'rounding' among them", tuple(learn))
    _checks.whole(n_iter, "n_iter", low=1)
    _checks.non_negative(penalty, "penalty")
    _checks.in_range(warmup, "warmup", 0.0, 1.0, closed="left")
    _check_power(power)
    if batch_size is not None:
        _checks.whole(batch_size, "batch_size", low=1, high=len(x))
        rng = _checks.generator(rng)

    bent = bend(weight, power)
    scale = affine_qparams(bent, bits=bits, axis=1, method=method)[0][0]
    target = x @ weight + bias
    params = {"v": _start(bent / scale, variable), "bias": bias, "log_scale": np.zeros_like(scale)}
    rates = {"v": learning_rate}
    rates |= {name: other_learning_rate for name, of in (("bias", "bias"), ("log_scale", "scale")) if of in learn}
    descent = Descent(rates, kind=optimizer)
    monitor = Monitor("fit_rounding", callback=callback)
    compare = _COMPARED[loss]
    for i in range(n_iter):
        rows = slice(None) if batch_size is None or rng is None else rng.choice(len(x), batch_size, replace=False)
        soft, pull_weight = operations.soft_quantize_vjp(
            weight, scale, params["v"], bits=bits, variable=variable, power=power
        )
        # A learned scale multiplies the result: the codes are those of the first scale, or they would jump.
        factor = np.exp(params["log_scale"])
        w = factor * soft
        y = inputs[rows] @ w + params["bias"]
        value, dy = _activated(compare, y, target[rows], activation)
        if monitor.record(loss=value):
            break
        dw = inputs[rows].T @ dy
        _, _, dv = pull_weight(factor * dw)
        if variable != "ste" and i >= warmup * n_iter:
            progress = (i / n_iter - warmup) / (1 - warmup)
            exponent = exponents[1] + (exponents[0] - exponents[1]) * (1 + math.cos(math.pi * progress)) / 2
            dv = dv + _penalty_gradient(operations, params["v"], variable, exponent, penalty)
        grads = {"v": dv, "bias": dy.sum(axis=0), "log_scale": (dw * w).sum(axis=0)}
        params = descent.step(params, grads)
    return _rounded(weight, scale, params, bits, variable, power, monitor)


def _start(u: AnyArray, variable: str) -> AnyArray:
    """Return the variable with which nothing is rounded (``"ste"``: with which it is to the nearest)."""
    if variable == "ste":
        return np.zeros_like(u)
    fraction = np.clip(u - np.floor(u), 0, 1)
    return fraction if variable == "direct" else rectified_sigmoid_inverse(fraction)


def _penalty_gradient(operations: Operations, v: AnyArray, variable: str, exponent: float, penalty: float) -> AnyArray:
    if variable == "direct":
        h, pull = np.clip(v, 0, 1), _within((v > 0) & (v < 1))
    else:
        h, pull = operations.rectified_sigmoid_vjp(v)
    _, pull_penalty = operations.rounding_regulariser_vjp(h, exponent=exponent)
    (dh,) = pull_penalty(np.asarray(penalty, v.dtype))
    return np.asarray(pull(dh)[0])


def _rounded(
    weight: AnyArray,
    scale: AnyArray,
    params: Mapping[str, AnyArray],
    bits: int,
    variable: str,
    power: float,
    monitor: Monitor,
) -> RoundingResult:
    """Decide every rounding."""
    u, v = bend(weight, power) / scale, params["v"]
    if variable == "ste":
        h, code = np.clip(v, -1, 1), np.rint(u + np.clip(v, -1, 1))
    else:
        h = np.clip(v, 0, 1) if variable == "direct" else rectified_sigmoid(v)
        code = np.floor(u) + (h >= 0.5)
    highest = 2 ** (bits - 1) - 1
    codes = np.clip(code, -highest - 1, highest)
    # Bent back, this is a factor of exp(log_scale) on the weights.
    scale = scale * np.exp(power * params["log_scale"])
    quantized = bend(scale * codes, 1 / power).astype(weight.dtype)
    return RoundingResult(
        quantized, codes.astype(np.int32), scale, params["bias"], h, monitor.n_iter, monitor.history()
    )


def _activated(
    compare: Callable[[AnyArray, AnyArray], tuple[float, AnyArray]],
    y: AnyArray,
    target: AnyArray,
    activation: str | None,
) -> tuple[float, AnyArray]:
    """Return a loss and its gradient with respect to ``y``, through the activation."""
    if activation is None:
        return compare(y, target)
    value, dy = compare(np.maximum(y, 0), np.maximum(target, 0))
    return value, np.where(y > 0, dy, 0)


def _squares(y: AnyArray, target: AnyArray) -> tuple[float, AnyArray]:
    error = y - target
    return float((error * error).sum() / len(y)), 2 / len(y) * error


def _magnitudes(y: AnyArray, target: AnyArray) -> tuple[float, AnyArray]:
    error = y - target
    return float(np.abs(error).sum() / len(y)), np.sign(error) / len(y)


def _cosines(y: AnyArray, target: AnyArray) -> tuple[float, AnyArray]:
    """1 minus the cosine of the angle, 0 for a row of zeros on either side."""
    length, target_length = (np.linalg.norm(a, axis=1, keepdims=True) for a in (y, target))
    used = (length > 0) & (target_length > 0)
    both = np.where(used, length * target_length, 1)
    cosine = (y * target).sum(axis=1, keepdims=True) / both
    # d cos = (target - (y . target) y / |y|^2) / (|y| |target|): the part of the target across y.
    across = target / both - cosine * y / np.where(used, length, 1) ** 2
    return float(np.where(used, 1 - cosine, 0).mean()), np.where(used, -across / len(y), 0)


def _divergences(y: AnyArray, target: AnyArray) -> tuple[float, AnyArray]:
    """Kullback-Leibler divergence of the softmaxes."""
    p, q = softmax(target), softmax(y)
    tiny = np.finfo(y.dtype).tiny
    value = (p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny)))).sum() / len(y)
    return float(value), (q - p) / len(y)


_COMPARED = {"mse": _squares, "l1": _magnitudes, "cosine": _cosines, "kl": _divergences}


def search_power(weight: Array[F], *, bits: int, method: str = "absmax", n_grid: int = 15) -> float:
    """Return the power with which rounding to nearest changes the weights least.

    Parameters
    ----------
    weight : array (K, N)
        Finite.
    bits : int, 2 to 16
    method : {"absmax", "mse"}
        How a column's scale is chosen.
    n_grid : int >= 2
        Powers tried, evenly spaced from 0.3 to 1.

    Returns
    -------
    float
        The larger one of equals.

    Raises
    ------
    TypeError, ValueError
        If ``weight`` is no finite matrix or an option is out of its range.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662, section on non-uniform grids.

    Examples
    --------
    >>> search_power(np.random.default_rng(0).standard_normal((200, 4)) ** 3, bits=4) < 0.7
    True
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.not_empty(weight, "weight", (0, 1))
    _checks.whole(n_grid, "n_grid", low=2)
    best, best_error = 1.0, np.inf
    for power in np.linspace(1.0, SMALLEST_POWER, n_grid):
        bent = bend(weight, float(power))
        scale = affine_qparams(bent, bits=bits, axis=1, method=method)[0][0]
        error = np.square(soft_quantize(weight, scale, np.zeros_like(weight), bits=bits, variable="ste", power=power) - weight)  # fmt: skip
        if error.sum(dtype=np.float64) < best_error:
            best, best_error = float(power), error.sum(dtype=np.float64)
    return best


def importance(weights: Sequence[Array[F]], grads: Sequence[Array[F]], *, axis: int | None = None) -> Array[F]:
    """Return how much groups of weights matter: sums of ``|w dL/dw|``.

    Parameters
    ----------
    weights, grads : sequences of arrays
        Weights, and the gradient of a loss with respect to each.
    axis : int, optional
        Axis whose slices are groups (1: the outputs of matrices (K, N)); by default each array is one group.

    Returns
    -------
    array
        All groups, in order.

    Raises
    ------
    TypeError, ValueError
        If there is no array or shapes or dtypes differ.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662, section on mixed precision.

    Examples
    --------
    >>> importance([np.array([[1.0, -2.0]])], [np.array([[3.0, 1.0]])], axis=1)
    array([3., 2.])
    """
    if not len(weights) or len(weights) != len(grads):
        _checks.fail("grads", f"as many arrays as weights, at least one: {len(weights)}", len(grads))
    found = []
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        weight, grad = _checks.float_array(weight, f"weights[{i}]"), _checks.float_array(grad, f"grads[{i}]")
        _checks.same_dtype(f"weights[{i}]", weight, **{f"grads[{i}]": grad})
        _checks.shape(grad, f"grads[{i}]", weight.shape)
        kept = () if axis is None else _checks.axes(axis, weight.ndim)
        over = tuple(j for j in range(weight.ndim) if j not in kept)
        found.append(np.abs(weight * grad).sum(axis=over).reshape(-1))
    return np.concatenate(found)


def allocate_bits(
    importance: Array[F], sizes: IntArray, *, average_bits: float, choices: Sequence[int] = (2, 4, 8)
) -> IntArray:
    """Distribute bits so that important groups get more, within an average.

    Parameters
    ----------
    importance : array (G,), >= 0
        From :func:`importance`.
    sizes : int array (G,), >= 1
        Weights in each group.
    average_bits : float
        Bits a weight that may be spent; at least the smallest choice.
    choices : ints >= 1
        Widths that a group may have.

    Returns
    -------
    int array (G,)

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit or an argument is out of its range.

    Notes
    -----
    The damage at b bits is taken as ``importance 2^(-2 b)``. Starting from the fewest bits, the group with the largest
    reduction a bit is raised next, if the budget allows it. Each reduction is smaller than the one before it, so only
    the last steps may differ from the optimum.

    References
    ----------
    Yvinec et al. (2023), arXiv 2308.07662, section on mixed precision.

    Examples
    --------
    >>> allocate_bits(np.array([100.0, 1.0, 0.01]), np.array([10, 10, 10]), average_bits=4.7)
    array([8, 4, 2])
    """
    importance = _checks.float_array(importance, "importance", ndim=1)
    sizes = _checks.integer_array(sizes, "sizes", low=1)
    _checks.shape(sizes, "sizes", importance.shape)
    _checks.finite(importance, "importance")
    if (importance < 0).any():
        _checks.fail("importance", "numbers >= 0", importance.min())
    widths = sorted({_checks.whole(one, "choices", low=1) for one in choices})
    if not widths:
        _checks.fail("choices", "at least one", 0)
    if not (np.isfinite(average_bits) and average_bits >= widths[0]):
        _checks.fail("average_bits", f"a number of at least {widths[0]}", average_bits)
    level = np.zeros(len(sizes), int)
    bits = np.array(widths, float)
    left = average_bits * sizes.sum() - widths[0] * sizes.sum()
    damage = importance[:, None].astype(np.float64) * 4.0**-bits
    while len(widths) > 1:
        current = np.minimum(level, len(widths) - 2)
        rows = np.arange(len(sizes))
        price = sizes * (bits[current + 1] - bits[current])
        gain = (damage[rows, current] - damage[rows, current + 1]) / price
        possible = (level < len(widths) - 1) & (price <= left * (1 + 1e-12))
        if not possible.any():
            break
        chosen = int(np.where(possible, gain, -1).argmax())
        level[chosen] += 1
        left -= price[chosen]
    return np.array(widths)[level]
