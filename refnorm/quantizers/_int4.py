"""Linear layers whose weights are 4-bit codes, with a scale and a zero point for each group of inputs.

w_hat[k, n] = scale[n, g] (q[n, k] - zero_point[n, g]),   g = k // group_size        y = x @ w_hat + bias

The activations ``x`` are floats, or rounded to 8 bits in the groups of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Pullback
from refnorm.quantizers._affine import affine_qparams, quantize
from refnorm.quantizers._int8 import HIGHEST
from refnorm.quantizers._int8 import codes as int8_codes

BITS = 4
RANGES = ("minmax", "mse")
ACTIVATIONS = ("float", "int8")


@dataclass(frozen=True, eq=False)
class Int4Weight:
    """The weights of a linear layer in 4 bits, made by :func:`quantize_weight_int4`.

    Parameters
    ----------
    q : uint8 array (N, ceil(K / 2))
        Codes from 0 to 15 of one output a row, two a byte: input ``2 i`` in the low half of byte ``i``, input
        ``2 i + 1`` in the high one.
    scale : float array (N, G), G = ceil(K / group_size)
        Distance of two grid points in each group of inputs.
    zero_point : uint8 array (N, G)
        The code of 0.
    inputs : int
        K.
    group_size : int
        Inputs of a group; the last one may have fewer.

    Examples
    --------
    >>> quantize_weight_int4(np.array([[0.0], [1.5], [3.0]])).q
    array([[128,  15]], dtype=uint8)
    """

    q: IntArray
    scale: AnyArray
    zero_point: IntArray
    inputs: int
    group_size: int


def quantize_weight_int4(weight: Array[F], *, group_size: int = 128, method: str = "minmax") -> Int4Weight:
    """Quantize a weight matrix to 4 bits, with a grid for each output and group of inputs.

    Parameters
    ----------
    weight : array (K, N)
        Finite; inputs by outputs, at least one input.
    group_size : int >= 1
        Consecutive inputs that share a grid.
    method : {"minmax", "mse"}
        How a grid's range is chosen, as in :func:`affine_qparams`.

    Returns
    -------
    Int4Weight
        ``scale`` has the dtype of ``weight``.

    Raises
    ------
    TypeError
        If ``weight`` is not float32 or float64.
    ValueError
        If it is not a matrix, has no input, holds NaN or infinity, or an option is out of its range.

    Notes
    -----
    A grid of 4 bits with 128 weights costs 4.3 bits a weight in float32 scales and 8-bit zero points, one of 32 weights
    5.25 bits.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544 (weights in 4 bits, in groups of 128).

    Examples
    --------
    >>> packed = quantize_weight_int4(np.array([[-1.0], [0.5], [2.0], [4.0], [0.0]]), group_size=3)
    >>> packed.scale.round(4), packed.zero_point
    (array([[0.2   , 0.2667]]), array([[5, 0]], dtype=uint8))
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.not_empty(weight, "weight", (0,))
    _checks.finite(weight, "weight")
    _checks.whole(group_size, "group_size", low=1)
    _checks.one_of(method, "method", RANGES)
    inputs, outputs = weight.shape
    groups = -(-inputs // group_size)
    # Ranges include 0, which every grid has a code for: zeros that fill the last group change nothing.
    filled = np.zeros((outputs, groups * group_size), weight.dtype)
    filled[:, :inputs] = weight.T
    grouped = filled.reshape(outputs, groups, group_size)
    scale, zero_point = affine_qparams(grouped, bits=BITS, signed=False, symmetric=False, axis=(0, 1), method=method)
    codes = quantize(grouped, scale, zero_point, bits=BITS, signed=False).reshape(filled.shape)[:, :inputs]
    return Int4Weight(
        _packed(codes),
        scale.reshape(outputs, groups),
        zero_point.reshape(outputs, groups).astype(np.uint8),
        inputs,
        group_size,
    )


def _packed(codes: IntArray) -> IntArray:
    """Two codes a byte, the first of them in the low half."""
    q: IntArray = codes[:, ::2].copy()
    q[:, : codes.shape[1] // 2] |= codes[:, 1::2] << BITS
    return q


def dequantize_weight_int4(weight: Int4Weight) -> Array[np.float64]:
    """Return the weights that the codes stand for.

    Parameters
    ----------
    weight : Int4Weight of (N, K)

    Returns
    -------
    float64 array (K, N)
        ``scale * (q - zero_point)``, in float64 whatever the dtype of the scales.

    Raises
    ------
    TypeError, ValueError
        If a part of ``weight`` has the wrong dtype or shape.

    Examples
    --------
    >>> dequantize_weight_int4(quantize_weight_int4(np.array([[0.0], [1.5], [3.0]]))).round(4).tolist()
    [[0.0], [1.6], [3.0]]
    """
    check_int4_weight(weight)
    outputs = len(weight.q)
    codes = np.stack([weight.q & 15, weight.q >> BITS], axis=2).reshape(outputs, 2 * weight.q.shape[1])[
        :, : weight.inputs
    ]
    group = np.arange(weight.inputs) // weight.group_size
    offsets = codes.astype(np.float64) - weight.zero_point[:, group]
    w_hat: Array[np.float64] = (offsets * weight.scale[:, group]).T
    return w_hat


def check_int4_weight(weight: Int4Weight) -> None:
    """Raise unless the parts of a weight fit together."""
    inputs = _checks.whole(weight.inputs, "weight.inputs", low=1)
    groups = -(-inputs // _checks.whole(weight.group_size, "weight.group_size", low=1))
    for name in ("q", "zero_point"):
        codes = np.asarray(getattr(weight, name))
        if codes.dtype != np.uint8 or codes.ndim != 2:
            _checks.fail_type(f"weight.{name}", "a uint8 matrix", f"dtype {codes.dtype}, shape {codes.shape}")
    scale = _checks.float_array(weight.scale, "weight.scale", ndim=2)
    outputs = len(weight.q)
    _checks.shape(weight.q, "weight.q", (outputs, (inputs + 1) // 2))
    _checks.shape(scale, "weight.scale", (outputs, groups))
    _checks.shape(weight.zero_point, "weight.zero_point", (outputs, groups))


def int4_linear(
    x: Array[F], weight: Int4Weight, bias: Array[F] | None = None, *, activations: str = "float"
) -> Array[F]:
    """Apply a linear layer whose weights have 4 bits.

    Parameters
    ----------
    x : array (..., K)
    weight : Int4Weight of (N, K)
    bias : array (N,) or None
    activations : {"float", "int8"}
        ``"float"``: ``x`` as it is. ``"int8"``: every row of ``x`` is rounded to 8 bits, by the largest magnitude of
        each group of ``weight.group_size`` entries; ``x`` is finite then.

    Returns
    -------
    array (..., N), dtype of ``x``

    Raises
    ------
    TypeError
        If a dtype differs from that of ``x``, which includes ``weight.scale``.
    ValueError
        If a shape does not fit, ``activations`` is unknown, or is ``"int8"`` and ``x`` holds NaN or infinity.

    Notes
    -----
    ``y = x @ w_hat + bias`` with the weights of :func:`dequantize_weight_int4`, in float64 and rounded once to the dtype
    of ``x``.

    With ``activations="int8"``, ``x`` is replaced by ``x_hat = c / 127 * round(127 x / c)``, ``c`` being the largest
    magnitude of the row's group. An entry moves by at most ``c / 254``, and ``y`` by at most the sum of ``c |w_hat| / 254``.

    References
    ----------
    Ma et al. (2024), arXiv 2403.12544 (weights in 4 bits, activations in float); Dettmers et al. (2022), arXiv
    2208.07339, section 2.1 (rounding to 8 bits by the largest magnitude).

    Examples
    --------
    >>> weight = quantize_weight_int4(np.array([[0.0], [1.5], [3.0]]))
    >>> int4_linear(np.array([[1.0, -2.0, 0.5]]), weight).round(4)
    array([[-1.7]])
    >>> int4_linear(np.array([[1.0, -2.0, 0.5]]), weight, activations="int8").round(4)
    array([[-1.6882]])
    """
    return int4_linear_vjp(x, weight, bias, activations=activations)[0]


def int4_linear_vjp(
    x: Array[F], weight: Int4Weight, bias: Array[F] | None = None, *, activations: str = "float"
) -> tuple[Array[F], Pullback]:
    """Return :func:`int4_linear` and its pullback ``dy -> (dx, dbias)``; the weights are frozen.

    With ``activations="int8"`` the gradient is straight-through: it passes as if ``x`` were not rounded. ``dbias`` is
    None without a bias. Parameters, errors and references are those of :func:`int4_linear`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    w_hat = dequantize_weight_int4(weight)
    _checks.same_dtype("x", x, **{"weight.scale": np.asarray(weight.scale)})
    inputs, outputs = w_hat.shape
    if x.shape[-1] != inputs:
        _checks.fail("x", f"shape (..., {inputs}) like weight", x.shape)
    if bias is not None:
        bias = _checks.float_array(bias, "bias")
        _checks.same_dtype("x", x, bias=bias)
        _checks.shape(bias, "bias", (outputs,))
    _checks.one_of(activations, "activations", ACTIVATIONS)
    rows = x.reshape(int(np.prod(x.shape[:-1])), inputs)
    if activations == "int8":
        _checks.finite(x, "x")
        rows = _in_8_bits(rows, min(weight.group_size, inputs))
    wide = rows.astype(np.result_type(x, np.float64)) @ w_hat
    dtype = x.dtype if bias is None else np.result_type(x, bias)
    y = (wide if bias is None else wide + bias).astype(dtype, copy=False).reshape(*x.shape[:-1], outputs)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F] | None]:
        g = np.asarray(dy).reshape(len(rows), outputs).astype(np.float64)
        dx: Array[F] = (g @ w_hat.T).astype(x.dtype).reshape(x.shape)
        return dx, None if bias is None else g.sum(axis=0).astype(x.dtype)

    return y, pullback


def _in_8_bits(rows: AnyArray, group_size: int) -> AnyArray:
    """What the 8-bit codes of each group of a row stand for, in float64."""
    count, inputs = rows.shape
    groups = -(-inputs // group_size)
    filled = np.zeros((count, groups * group_size), rows.dtype)
    filled[:, :inputs] = rows
    grouped = filled.reshape(count, groups, group_size)
    absmax = np.abs(grouped).max(axis=2, keepdims=True, initial=0)
    x_hat: AnyArray = int8_codes(grouped, absmax) * (absmax.astype(np.float64) / HIGHEST)
    return x_hat.reshape(filled.shape)[:, :inputs]
