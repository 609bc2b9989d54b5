"""Linear layers whose weights are stored in bfloat16: rounded once, not at every product.

y = bf16(bf16(bf16(x) @ w) + bf16(bias)),    sums in float32
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray, Pullback
from refnorm.quantizers._half_precision_training import Precision, linear_lowp_vjp, matmul_lowp, round_bfloat16

BFLOAT16 = Precision("bfloat16", "float32", "float32")


@dataclass(frozen=True, eq=False)
class Bfloat16Weight:
    """The weights of a linear layer in bfloat16, made by :func:`round_weight_bfloat16`.

    Parameters
    ----------
    bits : uint16 array (N, K)
        The upper halves of the float32 numbers, one output a row: the transpose of the float weight.

    Examples
    --------
    >>> [hex(bits) for bits in round_weight_bfloat16(np.array([[1.0], [-2.0]])).bits[0]]
    ['0x3f80', '0xc000']
    """

    bits: IntArray


def round_weight_bfloat16(weight: Array[F]) -> Bfloat16Weight:
    """Round a weight matrix to bfloat16 once.

    Parameters
    ----------
    weight : array (K, N)
        Inputs by outputs.

    Returns
    -------
    Bfloat16Weight

    Raises
    ------
    TypeError
        If ``weight`` is not float32 or float64.
    ValueError
        If it is not a matrix.

    Examples
    --------
    >>> round_weight_bfloat16(np.array([[1.0, 257.0]])).bits.shape
    (2, 1)
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    rounded = np.array(round_bfloat16(weight).T, dtype=np.float32, order="C")
    return Bfloat16Weight((rounded.view(np.uint32) >> 16).astype(np.uint16))


def bfloat16_linear(x: Array[F], weight: Bfloat16Weight, bias: Array[F] | None = None) -> Array[F]:
    """Apply a linear layer in bfloat16 whose weights are stored in that format.

    Parameters
    ----------
    x : array (..., K)
    weight : Bfloat16Weight of (N, K)
    bias : array (N,) or None

    Returns
    -------
    array (..., N), dtype of ``x``
        Numbers of bfloat16.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or ``weight.bits`` is not a uint16 matrix.
    ValueError
        If a shape does not fit.

    Notes
    -----
    :func:`linear_lowp` with ``Precision("bfloat16", "float32", "float32")`` and the same weights.

    References
    ----------
    Nadalini et al. (2023), arXiv 2305.19167 (the format).

    Examples
    --------
    >>> bfloat16_linear(np.array([[1.0, 257.0]]), round_weight_bfloat16(np.ones((2, 1))))
    array([[256.]])
    """
    return bfloat16_linear_vjp(x, weight, bias)[0]


def bfloat16_linear_vjp(x: Array[F], weight: Bfloat16Weight, bias: Array[F] | None = None) -> tuple[Array[F], Pullback]:
    """Return :func:`bfloat16_linear` and its pullback ``dy -> (dx, dbias)``, in bfloat16 too; the weights are frozen.

    All roundings count as the identity, as in :func:`linear_lowp_vjp`. ``dbias`` is None without a bias. Parameters,
    errors and references are those of :func:`bfloat16_linear`.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    floats = bfloat16_floats(weight).astype(x.dtype)
    outputs, inputs = floats.shape
    if x.shape[-1] != inputs:
        _checks.fail("x", f"shape (..., {inputs}) like weight", x.shape)
    rows = x.reshape(int(np.prod(x.shape[:-1])), inputs)
    y = linear_lowp_vjp(rows, floats, bias, precision=BFLOAT16)[0]

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F] | None]:
        g = np.asarray(dy).reshape(len(rows), outputs)
        dx = matmul_lowp(g, floats, precision=BFLOAT16).reshape(x.shape)
        ones = np.ones((1, len(g)), g.dtype)
        return dx, None if bias is None else matmul_lowp(ones, g, precision=BFLOAT16)[0]

    return y.reshape(*x.shape[:-1], outputs), pullback


def bfloat16_floats(weight: Bfloat16Weight) -> AnyArray:
    """Return the numbers of a weight in float32, or raise if its bits are no uint16 matrix."""
    bits = np.asarray(weight.bits)
    if bits.dtype != np.uint16 or bits.ndim != 2:
        _checks.fail_type("weight.bits", "a uint16 matrix", f"dtype {bits.dtype}, shape {bits.shape}")
    floats: AnyArray = (bits.astype(np.uint32) << 16).view(np.float32)
    return floats
