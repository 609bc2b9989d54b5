"""Hypernetworks whose predicted weights do not grow with their input.

theta = base + network(encode(x)),   encode(x) = [cos(pi x / 2), sin(pi x / 2)]     (a vector of constant norm)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import linear_vjp

METHOD = Method(
    title="Magnitude Invariant Parametrizations Improve Hypernetwork Learning",
    authors="Gonzalez Ortiz, Guttag, Dalca",
    year=2023,
    arxiv="2304.07645",
    functions=(
        "HypernetParams",
        "encode_complement",
        "encode_cos_sin",
        "hypernet",
        "init_hypernet",
        "magnitude_profile",
        "unflatten",
    ),
    chapter="norms/magnitude_invariant_hypernet",
)

LARGEST_LAYER = 10**8
"""Most entries of the last layer: one number per pair of last feature and primary weight, 0.8 GB in float64."""

ENCODINGS = ("cos_sin", "complement", "none")


def encode_cos_sin(x: Array[F], *, clip: bool = False) -> Array[F]:
    """Put each number of [0, 1] on a quarter of the unit circle.

    Parameters
    ----------
    x : array (..., d)
        Inputs in [0, 1].
    clip : bool
        Move inputs outside [0, 1] to its ends instead of raising an error.

    Returns
    -------
    array (..., 2 d), dtype of ``x``
        All cosines, then all sines; the Euclidean norm is ``sqrt(d)`` for every input.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.
    ValueError
        If ``x`` has no axis, or a number lies outside [0, 1] and ``clip`` is false.

    Notes
    -----
    ``[cos(pi x / 2), sin(pi x / 2)]``. Further out the circle folds and different inputs share a code. NaN gives NaN.

    References
    ----------
    Gonzalez Ortiz, Guttag, Dalca (2023), arXiv 2304.07645, the section on input encoding.

    Examples
    --------
    >>> encode_cos_sin(np.array([0.0, 1.0, 1 / 3])).round(4)
    array([1.   , 0.   , 0.866, 0.   , 1.   , 0.5  ])
    """
    return encode_cos_sin_vjp(x, clip=clip)[0]


def encode_cos_sin_vjp(x: Array[F], *, clip: bool = False) -> tuple[Array[F], Pullback]:
    """Return :func:`encode_cos_sin` and its pullback ``dy -> (dx,)``; clipped entries have the gradient 0."""
    x, inside, clipped = _unit_interval(x, clip)
    angle = np.pi / 2 * clipped
    cos, sin = np.cos(angle), np.sin(angle)
    d = x.shape[-1]

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # Moving along the circle: the velocity is at right angles to the code, pi / 2 long.
        dx = np.pi / 2 * (cos * dy[..., d:] - sin * dy[..., :d])
        return (np.where(inside, dx, 0).astype(x.dtype),)

    return np.concatenate([cos, sin], axis=-1).astype(x.dtype), pullback


def encode_complement(x: Array[F], *, clip: bool = False) -> Array[F]:
    """Write each number of [0, 1] beside what it lacks to 1.

    Parameters
    ----------
    x : array (..., d)
        Inputs in [0, 1].
    clip : bool
        Move inputs outside [0, 1] to its ends instead of raising an error.

    Returns
    -------
    array (..., 2 d), dtype of ``x``
        The inputs, then their complements; the sum of absolute values is ``d`` for every input.

    Raises
    ------
    TypeError, ValueError
        As :func:`encode_cos_sin`.

    Notes
    -----
    ``[x, 1 - x]``. The Euclidean norm still varies, between ``sqrt(d / 2)`` and ``sqrt(d)``.

    References
    ----------
    Gonzalez Ortiz, Guttag, Dalca (2023), arXiv 2304.07645, and the authors' package.

    Examples
    --------
    >>> encode_complement(np.array([0.25, 1.0]))
    array([0.25, 1.  , 0.75, 0.  ])
    """
    return encode_complement_vjp(x, clip=clip)[0]


def encode_complement_vjp(x: Array[F], *, clip: bool = False) -> tuple[Array[F], Pullback]:
    """Return :func:`encode_complement` and its pullback ``dy -> (dx,)``; clipped entries have the gradient 0."""
    x, inside, clipped = _unit_interval(x, clip)
    d = x.shape[-1]

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return (np.where(inside, dy[..., :d] - dy[..., d:], 0).astype(x.dtype),)

    return np.concatenate([clipped, 1 - clipped], axis=-1).astype(x.dtype), pullback


def _unit_interval(x: Array[F], clip: bool) -> tuple[Array[F], AnyArray, AnyArray]:
    """Return ``x``, where it lies inside [0, 1], and its clipped value in float64."""
    x = _checks.float_array(x, "x", min_ndim=1)
    outside = (x.real < 0) | (x.real > 1)
    if outside.any() and not clip:
        first = tuple(int(i) for i in np.argwhere(outside)[0])
        _checks.fail("x", "numbers in [0, 1], or clip=True", f"{x.real[first]} at index {first}")
    wide = x.astype(np.result_type(x, np.float64), copy=False)
    return x, ~outside, np.where(outside, np.clip(wide.real, 0, 1), wide)


@dataclass(frozen=True)
class HypernetParams:
    """Parameters of a hypernetwork.

    Parameters
    ----------
    weights : tuple of arrays (inputs, outputs)
        All layers; the last one has as many outputs as the primary network has weights.
    biases : tuple of arrays (outputs,)
        Hidden layers only.
    base : array (P,)
        Primary weights that are learned as such, independent of the input.
    """

    weights: tuple[AnyArray, ...]
    biases: tuple[AnyArray, ...]
    base: AnyArray


def init_hypernet(
    sizes: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    rng: np.random.Generator,
    *,
    primary_init: Callable[[str, tuple[int, ...], np.random.Generator], AnyArray] | None = None,
    slope: float = 0.01,
) -> HypernetParams:
    """Draw the parameters of a hypernetwork.

    Parameters
    ----------
    sizes : sequence of int >= 1
        Number of encoded inputs, then the widths of the hidden layers.
    shapes : mapping
        Names and shapes of the primary network's arrays, in the order in which they are predicted.
    rng : numpy.random.Generator
    primary_init : function, optional
        ``primary_init(name, shape, rng)`` gives the base of one array. By default weights (inputs, ...) are
        normal with variance ``2 / inputs``, and arrays of one dimension are 0.
    slope : float >= 0
        Of the activation for negative numbers; it enters the variance.

    Returns
    -------
    HypernetParams

    Raises
    ------
    TypeError
        If ``rng`` is not a generator or a size is not an integer.
    ValueError
        If there is no size or shape, a size is below 1, ``primary_init`` returns a wrong shape, or the last layer
        would have more than 10^8 entries.

    Notes
    -----
    Kaiming initialization by fan-out: variance ``2 / (1 + slope^2) / outputs`` in hidden layers and
    ``1 / outputs`` in the last; biases 0.

    References
    ----------
    Gonzalez Ortiz, Guttag, Dalca (2023), arXiv 2304.07645, and the authors' package.

    Examples
    --------
    >>> params = init_hypernet((2, 16), {"weight": (8, 3), "bias": (3,)}, np.random.default_rng(0))
    >>> [weight.shape for weight in params.weights], params.base.shape
    ([(2, 16), (16, 27)], (27,))
    """
    rng = _checks.generator(rng)
    widths = [_checks.whole(size, "sizes", low=1) for size in sizes]
    if not widths:
        _checks.fail("sizes", "at least one", tuple(sizes))
    total = _total(shapes)
    if total * widths[-1] > LARGEST_LAYER:
        _checks.fail("shapes", f"at most {LARGEST_LAYER} entries in the last layer", total * widths[-1])
    _checks.non_negative(slope, "slope")
    make = primary_init or _kaiming
    base = []
    for name, shape in shapes.items():
        values = np.asarray(make(name, tuple(shape), rng), dtype=np.float64)
        _checks.shape(values, f"primary_init({name!r})", tuple(shape))
        base.append(values.ravel())
    weights = _backbone([*widths, total], rng, slope)
    return HypernetParams(weights, tuple(np.zeros(width) for width in widths[1:]), np.concatenate(base))


def _kaiming(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> AnyArray:
    return rng.standard_normal(shape) * np.sqrt(2 / shape[0]) if len(shape) > 1 else np.zeros(shape)


def _backbone(sizes: Sequence[int], rng: np.random.Generator, slope: float) -> tuple[AnyArray, ...]:
    gains = [np.sqrt(2 / (1 + slope**2))] * (len(sizes) - 2) + [1.0]
    pairs = itertools.pairwise(sizes)
    return tuple(rng.standard_normal((a, b)) * gain / np.sqrt(b) for (a, b), gain in zip(pairs, gains, strict=True))


def _total(shapes: Mapping[str, Sequence[int]]) -> int:
    if not shapes:
        _checks.fail("shapes", "at least one array", "none")
    return sum(int(np.prod([_checks.whole(s, f"shapes[{name!r}]", low=1) for s in shape])) for name, shape in shapes.items())  # fmt: skip


def hypernet(
    x: Array[F],
    params: HypernetParams,
    *,
    encoding: str = "cos_sin",
    residual: bool = True,
    slope: float = 0.01,
    clip: bool = False,
) -> Array[F]:
    """Predict the weights of a primary network from the hypernetwork's input.

    Parameters
    ----------
    x : array (B, d)
        One input, such as a regularization strength, per primary network; in [0, 1] if it is encoded.
    params : HypernetParams
        Its first weight has 2 d inputs, or d without an encoding.
    encoding : {"cos_sin", "complement", "none"}
        ``"none"`` feeds ``x`` itself.
    residual : bool
        Add ``params.base``. With ``encoding="none"`` and ``residual=False`` this is the usual hypernetwork.
    slope : float >= 0
        Slope of the activation for negative numbers, also at 0.
    clip : bool
        As in :func:`encode_cos_sin`.

    Returns
    -------
    array (B, P), dtype of ``x``
        Primary weights in one row an input; :func:`unflatten` gives them their shapes.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, an encoded input lies outside [0, 1] or an option is out of range.

    Notes
    -----
    ``u = encode(x)``, ``u = leaky_relu(u weight + bias)`` for every hidden layer, and
    ``theta = base + u last_weight``. With zero biases and no encoding, ``theta - base`` is proportional to ``x > 0``.

    References
    ----------
    Gonzalez Ortiz, Guttag, Dalca (2023), arXiv 2304.07645, the section on magnitude invariant parametrizations.

    Examples
    --------
    >>> params = HypernetParams((np.array([[2.0], [3.0]]),), (), np.array([1.0]))
    >>> hypernet(np.array([[1 / 3]]), params).round(6)
    array([[4.232051]])
    """
    return hypernet_vjp(x, params, encoding=encoding, residual=residual, slope=slope, clip=clip)[0]


def hypernet_vjp(
    x: Array[F],
    params: HypernetParams,
    *,
    encoding: str = "cos_sin",
    residual: bool = True,
    slope: float = 0.01,
    clip: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`hypernet` and its pullback ``dtheta -> (dx, dparams)``.

    ``dparams`` is a :class:`HypernetParams`; its base is 0 without the residual.
    """
    x = _checks.float_array(x, "x", ndim=2)
    _checks.one_of(encoding, "encoding", ENCODINGS)
    _checks.non_negative(slope, "slope")
    if not params.weights or len(params.biases) != len(params.weights) - 1:
        _checks.fail("params.biases", "one for every weight but the last", f"{len(params.biases)}")
    u, back_encode = _encode_vjp(x, encoding, clip)
    layers = []
    for weight, bias in zip(params.weights[:-1], params.biases, strict=True):
        a, back = linear_vjp(u, weight, bias)
        factor = np.where(a.real > 0, 1, slope).astype(x.dtype)
        u = factor * a
        layers.append((back, factor))
    delta, back_last = linear_vjp(u, params.weights[-1])
    base = _checks.float_array(params.base, "params.base")
    _checks.same_dtype("x", x, **{"params.base": base})
    _checks.shape(base, "params.base", delta.shape[1:])
    theta: Array[F] = base + delta if residual else delta

    def pullback(dtheta: Array[F]) -> tuple[Array[F], HypernetParams]:
        # The base is shared by all rows. The first weight's cotangent is encode(x)^T da: without an encoding it
        # is proportional to x, and small inputs hardly teach it anything.
        du, dlast, _ = back_last(dtheta)
        dweights, dbiases = [dlast], []
        for back, factor in reversed(layers):
            du, dweight, dbias = back(factor * du)
            dweights.append(dweight)
            dbiases.append(dbias)
        dbase = np.sum(dtheta, axis=0) if residual else np.zeros_like(params.base)
        return back_encode(du)[0], HypernetParams(tuple(dweights[::-1]), tuple(dbiases[::-1]), dbase)

    return theta, pullback


def _encode_vjp(x: Array[F], encoding: str, clip: bool) -> tuple[Array[F], Pullback]:
    if encoding == "cos_sin":
        return encode_cos_sin_vjp(x, clip=clip)
    if encoding == "complement":
        return encode_complement_vjp(x, clip=clip)
    return x, lambda dy: (dy,)


def unflatten(theta: Array[F], shapes: Mapping[str, Sequence[int]]) -> dict[str, Array[F]]:
    """Cut predicted weights into the primary network's arrays.

    Parameters
    ----------
    theta : array (..., P)
        Weights in one row; leading axes are kept.
    shapes : mapping
        Names and shapes in order, with P entries in all.

    Returns
    -------
    dict of arrays (..., *shape)

    Raises
    ------
    TypeError
        If ``theta`` is not float32 or float64, or a size is not an integer.
    ValueError
        If the sizes do not add up to P.

    Notes
    -----
    The arrays are views of ``theta`` where NumPy can make them.

    References
    ----------
    Gonzalez Ortiz, Guttag, Dalca (2023), arXiv 2304.07645.

    Examples
    --------
    >>> parts = unflatten(np.arange(5.0), {"weight": (2, 2), "bias": (1,)})
    >>> parts["weight"].tolist(), parts["bias"].tolist()
    ([[0.0, 1.0], [2.0, 3.0]], [4.0])
    """
    return unflatten_vjp(theta, shapes)[0]


def unflatten_vjp(theta: Array[F], shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, Array[F]], Pullback]:
    """Return :func:`unflatten` and its pullback ``dict of cotangents -> (dtheta,)``."""
    theta = _checks.float_array(theta, "theta", min_ndim=1)
    lead = theta.shape[:-1]
    _checks.shape(theta, "theta", (*lead, _total(shapes)))
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    pieces = np.split(theta, ends[:-1], axis=-1)
    parts = {n: piece.reshape(*lead, *shapes[n]) for n, piece in zip(shapes, pieces, strict=True)}

    def pullback(dparts: Mapping[str, Array[F]]) -> tuple[Array[F]]:
        return (np.concatenate([np.reshape(dparts[n], (*lead, -1)) for n in shapes], axis=-1),)

    return parts, pullback


def magnitude_profile(
    x: Array[F], sizes: Sequence[int], rng: np.random.Generator, *, n_draws: int = 200, encoding: str = "cos_sin", slope: float = 0.01
) -> Array[F]:  # fmt: skip
    """Measure how large the predicted weights are at each input, over random hypernetworks.

    Parameters
    ----------
    x : array (m, d)
        Inputs.
    sizes : sequence of int >= 1
        Number of encoded inputs, widths of the hidden layers, and number of outputs.
    rng : numpy.random.Generator
    n_draws : int >= 1
        Number of hypernetworks, each seen by all inputs.
    encoding : {"cos_sin", "complement", "none"}
    slope : float >= 0
        Slope of the activation for negative numbers.

    Returns
    -------
    array (m,), dtype of ``x``
        Root mean square of the outputs, without a base.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, ``rng`` is not a generator or a number is not an integer.
    ValueError
        If a shape or option is wrong or an encoded input lies outside [0, 1].

    Notes
    -----
    Proportional to the norm of the encoded input, up to the sampling of the draws: a random linear map with normal
    weights makes of every vector a normal one whose scale is the vector's norm, and so on through the layers.

    References
    ----------
    Gonzalez Ortiz, Guttag, Dalca (2023), arXiv 2304.07645, the section on input and output proportionality.

    Examples
    --------
    >>> raw = magnitude_profile(np.array([[0.1], [1.0]]), (1, 8, 50), np.random.default_rng(0), encoding="none")
    >>> float((raw[1] / raw[0]).round(6))
    10.0
    """
    rng = _checks.generator(rng)
    n_draws = _checks.whole(n_draws, "n_draws", low=1)
    widths = [_checks.whole(size, "sizes", low=1) for size in sizes]
    if len(widths) < 2:
        _checks.fail("sizes", "at least inputs and outputs", tuple(sizes))
    x = _checks.float_array(x, "x", ndim=2)
    square = np.zeros(len(x))
    for _ in range(n_draws):
        weights = tuple(weight.astype(x.dtype) for weight in _backbone(widths, rng, slope))
        biases = tuple(np.zeros(width, x.dtype) for width in widths[1:-1])
        drawn = HypernetParams(weights, biases, np.zeros(widths[-1], x.dtype))
        theta = hypernet(x, drawn, encoding=encoding, residual=False, slope=slope)
        square += np.mean(theta.astype(np.float64) ** 2, axis=1)
    return np.sqrt(square / n_draws).astype(x.dtype)
