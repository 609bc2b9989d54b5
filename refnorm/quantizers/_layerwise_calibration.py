"""AdaQuant: layer-wise calibration, bit-widths by an integer program, and repaired statistics.

minimize  mean((x @ weight + bias - (Q(x) @ Q(weight') + bias'))^2)  over weight', bias' and both quantizers' ranges
minimize  sum of the layers' damages  subject to a size  over one choice of bits a layer
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, IntArray, Method, Pullback
from refnorm.norms import batch_statistics
from refnorm.quantizers._calibration import check_bits, fake_quantize_range_vjp
from refnorm.quantizers._descent import Descent
from refnorm.solvers import Monitor
from refnorm.solvers._monitor import Callback

METHOD = Method(
    title="Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming",
    authors="Hubara, Nahshan, Hanani, Banner, Soudry",
    year=2020,
    arxiv="2006.10518",
    functions=(
        "range_fake_quantize",
        "AdaQuantResult",
        "adaquant",
        "adaquant_simplex",
        "allocate_bits_ip",
        "reestimate_bn",
        "para_normalize",
        "bias_correction",
    ),
    chapter="quantizers/layerwise_calibration",
)

NARROWEST, WIDEST = 1e-6, 1e5
"""Bounds of a learned range, as in the authors' code: a step of the optimizer can neither close nor lose it."""

PAPER_RATES = {"weight": 1e-5, "bias": 1e-3, "weight_range": 1e-3, "input_range": 1e-1}
"""Learning rates of the authors' code, for 8-bit layers of image networks."""

NEVER = 1e300
"""A simplex may try ranges with any error; that is no divergence."""

SCALED_RATE = 1e-2
"""``learning_rates="scaled"``: this share of the weights' standard deviation and of the inputs' range a step."""


def range_fake_quantize(x: Array[F], width: Array[F], minimum: Array[F], *, bits: int) -> Array[F]:
    """Quantize and dequantize on the grid of a range that is given by its width and its lower end.

    Parameters
    ----------
    x : array
    width, minimum : arrays of the dtype of ``x`` that broadcast to its shape
        ``width`` is cut to [1e-6, 1e5].
    bits : int, 2 to 16

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit or ``bits`` is out of its range.

    Notes
    -----
    ``scale = width / (2^bits - 1)``, ``zero = clip(round(lowest - minimum / scale), lowest, highest)`` and
    ``scale (clip(round(x / scale) + zero, lowest, highest) - zero)`` on the signed grid from
    ``lowest = -2^(bits - 1)``.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on AdaQuant.

    Examples
    --------
    >>> range_fake_quantize(np.array([-3.0, -0.4, 1.4]), np.array(3.0), np.array(-1.0), bits=2)
    array([-1.,  0.,  1.])
    """
    return range_fake_quantize_vjp(x, width, minimum, bits=bits)[0]


def range_fake_quantize_vjp(x: Array[F], width: Array[F], minimum: Array[F], *, bits: int) -> tuple[Array[F], Pullback]:
    """Return :func:`range_fake_quantize` and its straight-through pullback ``dy -> (dx, dwidth, dminimum)``.

    Parameters, errors and references are those of :func:`range_fake_quantize`.
    """
    x = _checks.float_array(x, "x")
    width, minimum = _checks.float_array(width, "width"), _checks.float_array(minimum, "minimum")
    _checks.same_dtype("x", x, width=width, minimum=minimum)
    for name, array in (("width", width), ("minimum", minimum)):
        if np.broadcast_shapes(array.shape, x.shape) != x.shape:
            _checks.fail(name, f"a shape that broadcasts to {x.shape}", array.shape)
    cut = np.clip(width, NARROWEST, WIDEST)
    # An unsigned grid has the same points; its codes are smaller by the signed grid's lowest one.
    y, pull = fake_quantize_range_vjp(x, minimum, minimum + cut, bits=bits, clip_zero=True)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # high = minimum + width.
        dx, dlow, dhigh = pull(dy)
        dwidth = sum_to(dhigh, width.shape) * (cut == width)
        return dx, dwidth.astype(x.dtype), dlow + sum_to(dhigh, minimum.shape)

    return y, pullback


@dataclass(frozen=True, eq=False)
class AdaQuantResult:
    """A calibrated linear layer.

    Parameters
    ----------
    weight, bias : arrays (K, N), (N,)
        In float, after calibration.
    weight_range : tuple of arrays (1, N)
        Width and minimum for each output.
    input_range : tuple of arrays ()
        Width and minimum for the inputs.
    quantized_weight : array (K, N)
        Grid points of ``weight``.
    n_iter : int
        Steps done.
    history : dict of arrays
        ``loss``: mean squared error on the rows held out (on all, if none are), before every step.
    """

    weight: AnyArray
    bias: AnyArray
    weight_range: tuple[AnyArray, AnyArray]
    input_range: tuple[AnyArray, AnyArray]
    quantized_weight: AnyArray
    n_iter: int
    history: Mapping[str, AnyArray]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer to calibrate, with rows for training and rows held out."""

    target: AnyArray
    inputs: AnyArray
    training: IntArray
    held_out: IntArray
    start: dict[str, AnyArray]
    weight_bits: int
    bits: int


def _layer(
    x: AnyArray,
    weight: AnyArray,
    bias: AnyArray,
    weight_bits: int,
    bits: int,
    x_quantized: AnyArray | None,
    holdout: float,
    rng: np.random.Generator | None,
) -> _Layer:
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    bias = _checks.float_array(bias, "bias")
    inputs = x if x_quantized is None else _checks.float_array(x_quantized, "x_quantized")
    _checks.same_dtype("x", x, weight=weight, bias=bias, x_quantized=inputs)
    _checks.not_empty(x, "x", (0, 1))
    _checks.shape(weight, "weight", (x.shape[1], weight.shape[1]))
    _checks.shape(bias, "bias", weight.shape[1:])
    _checks.shape(inputs, "x_quantized", x.shape)
    for name, array in (("x", x), ("weight", weight), ("bias", bias), ("x_quantized", inputs)):
        _checks.finite(array, name)
    check_bits(weight_bits, "weight_bits")
    check_bits(bits)
    _checks.in_range(holdout, "holdout", 0.0, 1.0, closed="left")
    count = int(len(x) * holdout)
    order = _checks.generator(rng).permutation(len(x)) if count else np.arange(len(x))
    low, high = np.minimum(weight.min(axis=0, keepdims=True), 0), np.maximum(weight.max(axis=0, keepdims=True), 0)
    input_low, input_high = np.minimum(inputs.min(), 0), np.maximum(inputs.max(), 0)
    start = {
        "weight": weight,
        "bias": bias,
        "weight_width": high - low,
        "weight_minimum": low,
        "input_width": np.asarray(input_high - input_low),
        "input_minimum": np.asarray(input_low),
    }
    held_out = order[:count] if count else order
    return _Layer(x @ weight + bias, inputs, order[count:], held_out, start, weight_bits, bits)


def _error_vjp(layer: _Layer, params: Mapping[str, AnyArray], rows: IntArray) -> tuple[float, Pullback]:
    """Return the mean squared error on some rows and the pullback to all parameters, a dict."""
    w, pull_weight = range_fake_quantize_vjp(
        params["weight"], params["weight_width"], params["weight_minimum"], bits=layer.weight_bits
    )
    x, pull_input = range_fake_quantize_vjp(
        layer.inputs[rows], params["input_width"], params["input_minimum"], bits=layer.bits
    )
    error = x @ w + params["bias"] - layer.target[rows]

    def pullback(dloss: float) -> tuple[dict[str, AnyArray]]:
        dy = 2 * dloss / error.size * error
        dweight, dweight_width, dweight_minimum = pull_weight(x.T @ dy)
        _, dinput_width, dinput_minimum = pull_input(dy @ w.T)
        return (
            {
                "weight": dweight,
                "bias": dy.sum(axis=0),
                "weight_width": dweight_width,
                "weight_minimum": dweight_minimum,
                "input_width": dinput_width,
                "input_minimum": dinput_minimum,
            },
        )

    return float(np.mean(error * error)), pullback


def _finished(layer: _Layer, params: Mapping[str, AnyArray], monitor: Monitor) -> AdaQuantResult:
    weight_range = params["weight_width"], params["weight_minimum"]
    quantized = range_fake_quantize(params["weight"], *weight_range, bits=layer.weight_bits)
    input_range = params["input_width"], params["input_minimum"]
    return AdaQuantResult(
        params["weight"], params["bias"], weight_range, input_range, quantized, monitor.n_iter, monitor.history()
    )


def adaquant(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    *,
    weight_bits: int,
    bits: int,
    n_iter: int = 100,
    batch_size: int | None = 50,
    learning_rates: str | Mapping[str, float] = "scaled",
    x_quantized: Array[F] | None = None,
    holdout: float = 0.2,
    rng: np.random.Generator | None = None,
    callback: Callback | None = None,
) -> AdaQuantResult:
    """Calibrate one linear layer: its weights, its bias and the ranges of both quantizers.

    Parameters
    ----------
    x : array (T, K)
        Inputs of the layer in the float network.
    weight : array (K, N), dtype of ``x``
    bias : array (N,)
    weight_bits, bits : int, 2 to 16
        Of weights (a range for each output) and inputs (one range).
    n_iter : int >= 1
        Steps of Adam.
    batch_size : int >= 1 or None
        Rows of a step, drawn with ``rng``; None takes all.
    learning_rates : {"scaled", "paper"} or mapping
        ``"paper"``: those of the authors' code. ``"scaled"``: 0.01 of the weights' standard deviation for weights
        and 0.01 of the inputs' range for the input range. Or numbers for ``weight``, ``bias``, ``weight_range`` and
        ``input_range``.
    x_quantized : array (T, K), optional
        Inputs of the layer in the network whose earlier layers are quantized; ``x`` by default.
    holdout : float in [0, 1)
        Share of the rows that are not trained on; the step with the least error on them is returned.
    rng : numpy.random.Generator
        Needed for batches and for rows held out.
    callback : function, optional
        See :class:`refnorm.solvers.Progress`; a true result ends the fit.

    Returns
    -------
    AdaQuantResult

    Raises
    ------
    TypeError, ValueError
        If a shape, a dtype or an option does not fit.

    Notes
    -----
    The weights move freely, by more than a step of the grid if that helps. Ranges begin at the extremes, 0
    included, which is also the first candidate for the result.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on AdaQuant, equation 2.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, weight = np.maximum(rng.standard_normal((200, 16)), 0), rng.standard_normal((16, 8))
    >>> found = adaquant(x, weight, np.zeros(8), weight_bits=4, bits=4, rng=rng)
    >>> bool(found.history["loss"].min() < found.history["loss"][0])
    True
    """
    layer = _layer(x, weight, bias, weight_bits, bits, x_quantized, holdout, rng)
    _checks.whole(n_iter, "n_iter", low=1)
    if batch_size is not None:
        _checks.whole(batch_size, "batch_size", low=1)
        rng = _checks.generator(rng)
    descent = Descent(_rates(learning_rates, layer))
    monitor = Monitor("adaquant", callback=callback, hint="use smaller learning_rates")
    params, best, best_loss = layer.start, layer.start, np.inf
    for _ in range(n_iter):
        loss, pull = _error_vjp(layer, params, layer.held_out)
        if loss < best_loss:
            best, best_loss = params, loss
        if monitor.record(loss=loss):
            break
        if len(layer.training) != len(layer.held_out) or batch_size is not None:
            rows = layer.training
            if batch_size is not None and rng is not None and batch_size < len(rows):
                rows = rng.choice(rows, batch_size, replace=False)
            _, pull = _error_vjp(layer, params, rows)
        params = descent.step(params, pull(1.0)[0])
    return _finished(layer, best, monitor)


def _rates(learning_rates: str | Mapping[str, float], layer: _Layer) -> dict[str, float]:
    """Return the learning rate of every parameter."""
    if learning_rates == "scaled":
        rates = dict(PAPER_RATES)
        spread, width = float(layer.start["weight"].std()), float(layer.start["input_width"])
        rates["weight"] = SCALED_RATE * spread if spread > 0 else PAPER_RATES["weight"]
        rates["input_range"] = SCALED_RATE * width if width > 0 else PAPER_RATES["input_range"]
    elif learning_rates == "paper":
        rates = dict(PAPER_RATES)
    elif isinstance(learning_rates, Mapping):
        if set(learning_rates) != set(PAPER_RATES):
            _checks.fail("learning_rates", f"the names {', '.join(PAPER_RATES)}", ", ".join(learning_rates))
        rates = dict(learning_rates)
    else:
        _checks.fail("learning_rates", "'scaled', 'paper' or a mapping", repr(learning_rates))
    ends = {f"{part}_{end}": rates[f"{part}_range"] for part in ("weight", "input") for end in ("width", "minimum")}
    return {"weight": rates["weight"], "bias": rates["bias"]} | ends


def adaquant_simplex(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    *,
    weight_bits: int,
    bits: int,
    max_iter: int = 100,
    x_quantized: Array[F] | None = None,
    callback: Callback | None = None,
) -> AdaQuantResult:
    """Calibrate only the ranges of a linear layer, without derivatives.

    Parameters
    ----------
    x, weight, bias, weight_bits, bits, x_quantized, callback
        As in :func:`adaquant`.
    max_iter : int >= 1
        Evaluations of the error.

    Returns
    -------
    AdaQuantResult
        Weights and bias are the given ones.

    Raises
    ------
    TypeError, ValueError
        As :func:`adaquant`.

    Notes
    -----
    The simplex method of Nelder and Mead on four numbers, from (1, 0, 1, 0): the weights' widths times the first,
    their minima plus the second, and the same for the inputs.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518; the authors' code.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, weight = rng.standard_normal((200, 16)), rng.standard_normal((16, 8))
    >>> found = adaquant_simplex(x, weight, np.zeros(8), weight_bits=3, bits=3)
    >>> bool(found.history["loss"].min() < 0.9 * found.history["loss"][0])
    True
    """
    layer = _layer(x, weight, bias, weight_bits, bits, x_quantized, 0.0, None)
    _checks.whole(max_iter, "max_iter", low=1)
    monitor = Monitor("adaquant_simplex", callback=callback, growth=NEVER)
    start, dtype = layer.start, layer.inputs.dtype
    best, best_loss = start, np.inf

    def error(p: AnyArray) -> float:
        nonlocal best, best_loss
        p = np.asarray(p).astype(dtype)
        params = start | {
            "weight_width": start["weight_width"] * p[0],
            "weight_minimum": start["weight_minimum"] + p[1],
            "input_width": start["input_width"] * p[2],
            "input_minimum": start["input_minimum"] + p[3],
        }
        loss, _ = _error_vjp(layer, params, layer.held_out)
        if loss < best_loss:
            best, best_loss = params, loss
        if monitor.record(loss=loss) or monitor.n_iter >= max_iter:
            raise StopIteration
        return loss

    with contextlib.suppress(StopIteration):
        scipy.optimize.minimize(error, np.array([1.0, 0.0, 1.0, 0.0]), method="Nelder-Mead")
    return _finished(layer, best, monitor)


def allocate_bits_ip(costs: Array[F], savings: Array[F], required: float) -> tuple[IntArray, float]:
    """Choose one configuration for each layer at the least total cost that saves enough.

    Parameters
    ----------
    costs : array (L, C)
        Damage done by quantizing only layer ``l`` in configuration ``c``; 0 for the configuration that changes
        nothing.
    savings : array (L, C)
        What it saves, for example ``sizes[:, None] * (base_bits - bits)``.
    required : float
        Least sum of savings.

    Returns
    -------
    choice : int array (L,)
        The configuration of each layer.
    objective : float
        Sum of the chosen costs.

    Raises
    ------
    TypeError, ValueError
        If a shape does not fit, a number is not finite, or no choice saves as much; the message says what can
        be reached.

    Notes
    -----
    A 0-1 linear program, solved exactly by branch and bound (``scipy.optimize.milp``).

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on integer programming, equation 3.

    Examples
    --------
    >>> allocate_bits_ip(np.array([[0.0, 0.1], [0.0, 0.5]]), np.array([[0.0, 40.0], [0.0, 120.0]]), 100.0)
    (array([0, 1]), 0.5)
    """
    costs, savings = _checks.float_array(costs, "costs", ndim=2), _checks.float_array(savings, "savings")
    _checks.shape(savings, "savings", costs.shape)
    _checks.not_empty(costs, "costs", (0, 1))
    _checks.finite(costs, "costs")
    _checks.finite(savings, "savings")
    reachable = float(savings.max(axis=1).sum())
    if not required <= reachable:
        _checks.fail("required", f"at most {reachable:g}, the largest saving", required)
    layers, choices = costs.shape
    one_each = np.kron(np.eye(layers), np.ones(choices))
    # A feasible sum of products may miss a bound that it meets exactly by rounding.
    slack = 1e-9 * max(1.0, abs(required))
    solution = scipy.optimize.milp(
        costs.ravel(),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1, 1),
            scipy.optimize.LinearConstraint(savings.ravel()[None], required - slack, np.inf),
        ],
        integrality=np.ones(costs.size),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    choice: IntArray = solution.x.reshape(costs.shape).argmax(axis=1)
    return choice, float(costs[np.arange(layers), choice].sum())


def reestimate_bn(
    layers: Sequence[tuple[Callable[[AnyArray], AnyArray], Callable[[AnyArray, AnyArray, AnyArray], AnyArray]]],
    x: Array[F],
) -> list[tuple[AnyArray, AnyArray]]:
    """Measure the statistics that batch norms should have in a quantized network, layer after layer.

    Parameters
    ----------
    layers : sequence of pairs of functions
        ``before(h)`` returns the input (T, C) of the layer's batch norm, and ``after(z, mean, variance)`` the input of
        the next layer, normalized with the statistics given.
    x : array
        Calibration data, the first layer's input.

    Returns
    -------
    list of (mean, variance) of shape (C,)
        Each is measured with the ones before it already in place. The variance is biased.

    Raises
    ------
    TypeError, ValueError
        If a function is missing or an input has no rows.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on batch-norm tuning.

    Examples
    --------
    >>> layers = [(lambda h: 2 * h, lambda z, mean, variance: z - mean), (lambda h: h + 1, lambda z, *_: z)]
    >>> [mean.tolist() for mean, _ in reestimate_bn(layers, np.array([[1.0], [3.0]]))]
    [[4.0], [1.0]]
    """
    found = []
    h: AnyArray = _checks.float_array(x, "x", min_ndim=2)
    for number, (before, after) in enumerate(layers):
        z = _checks.float_array(before(h), f"layers[{number}]", ndim=2)
        mean, variance = batch_statistics(z)
        found.append((mean, variance))
        h = after(z, mean, variance)
    return found


def para_normalize(
    y_float: Array[F], y_quantized: Array[F], weight: Array[F], bias: Array[F], *, eps: float = 1e-5
) -> tuple[Array[F], Array[F]]:
    """Give a quantized layer's outputs the mean and spread of the float layer's, and fold that into the layer.

    Parameters
    ----------
    y_float, y_quantized : arrays (T, N)
        Outputs of the layer for the same inputs.
    weight, bias : arrays (K, N), (N,)
        Of the quantized layer.
    eps : float > 0
        Added to the variance of ``y_quantized``.

    Returns
    -------
    weight, bias : arrays (K, N), (N,)

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit, there is no row, or ``eps`` is not positive.

    Notes
    -----
    ``y' = std_float (y_quantized - mean_quantized) / sqrt(variance_quantized + eps) + mean_float`` is a batch norm
    rebuilt behind a layer into which the network's own was folded.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on batch-norm tuning (para-normalization).

    Examples
    --------
    >>> para_normalize(np.array([[0.0], [4.0]]), np.array([[0.0], [2.0]]), np.ones((1, 1)), np.zeros(1), eps=1e-9)[0].round(6)
    array([[2.]])
    """
    y_float, y_quantized = _outputs(y_float, y_quantized, bias)
    weight, bias = _checks.float_array(weight, "weight", ndim=2), np.asarray(bias)
    _checks.same_dtype("y_float", y_float, weight=weight)
    _checks.shape(weight, "weight", (weight.shape[0], y_float.shape[1]))
    _checks.positive(eps, "eps")
    mean, variance = batch_statistics(y_float)
    quantized_mean, quantized_variance = batch_statistics(y_quantized)
    factor = (np.sqrt(variance) / np.sqrt(quantized_variance + eps)).astype(weight.dtype)
    shifted: Array[F] = ((bias - quantized_mean) * factor + mean).astype(weight.dtype)
    return weight * factor, shifted


def bias_correction(y_float: Array[F], y_quantized: Array[F], bias: Array[F]) -> Array[F]:
    """Add the mean error of a layer's outputs to its bias.

    Parameters
    ----------
    y_float, y_quantized : arrays (T, N)
        Outputs of the layer for the same inputs.
    bias : array (N,)

    Returns
    -------
    array (N,)
        Of all biases the one with the least squared error.

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit or there is no row.

    References
    ----------
    Hubara et al. (2020), arXiv 2006.10518, section on bias tuning.

    Examples
    --------
    >>> bias_correction(np.array([[1.0], [3.0]]), np.array([[0.5], [2.5]]), np.array([10.0]))
    array([10.5])
    """
    y_float, y_quantized = _outputs(y_float, y_quantized, bias)
    corrected: Array[F] = bias + (y_float - y_quantized).mean(axis=0)
    return corrected


def _outputs(y_float: AnyArray, y_quantized: AnyArray, bias: AnyArray) -> tuple[AnyArray, AnyArray]:
    y_float = _checks.float_array(y_float, "y_float", ndim=2)
    y_quantized, bias = _checks.float_array(y_quantized, "y_quantized"), _checks.float_array(bias, "bias")
    _checks.same_dtype("y_float", y_float, y_quantized=y_quantized, bias=bias)
    _checks.not_empty(y_float, "y_float", (0,))
    _checks.shape(y_quantized, "y_quantized", y_float.shape)
    _checks.shape(bias, "bias", y_float.shape[1:])
    return y_float, y_quantized
