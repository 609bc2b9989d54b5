"""Signed 8-bit codes and exact integer products: what every int8 matrix multiplication of the room shares.

Codes run from -127 to 127. A code ``q`` with the constant ``c`` (the largest magnitude) stands for ``q c / 127``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, IntArray

HIGHEST = 127
"""-128 is left out: the grid is symmetric, and two products of codes fit 16 bits (2 * 127^2 < 2^15)."""

MOST_TERMS = (2**31 - 1) // HIGHEST**2
"""Terms whose sum fits int32 whatever the codes: 133 144."""

LARGEST_OFFSET = 2.0**14
"""Ratio of magnitude to spread up to which a zero point is at most 254 * 2^14 + 127 < 2^22 + 2^8.

The three correction terms of a product of up to 133 144 terms then stay below 2^62.
"""


def absmax_quantize(x: Array[F], *, axis: int | Sequence[int] | None = None) -> tuple[IntArray, Array[F]]:
    """Quantize to 8 bits by the largest magnitude.

    Parameters
    ----------
    x : array
        Finite numbers.
    axis : int, ints or None
        Axes whose slices get a constant of their own, as in :func:`affine_qparams`: for a matrix, 0 means
        one constant a row. None: one constant for all of ``x``.

    Returns
    -------
    q : int8 array of the shape of ``x``
        Codes from -127 to 127; ``q * absmax / 127`` approximates ``x``.
    absmax : array of the dtype of ``x``
        Largest magnitudes; shape () for ``axis=None``, otherwise 1 everywhere but along ``axis``. 0 for a
        slice of zeros or without entries.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.
    ValueError
        If ``x`` holds NaN or infinity, or an axis does not exist.

    Notes
    -----
    ``q = round(x * (127 / absmax))``, ties to even, both operations rounded to the dtype of ``x``.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> absmax_quantize(np.array([[1.0, -2.0], [0.5, 0.25]]), axis=0)
    (array([[  64, -127], [ 127,   64]], dtype=int8), array([[2. ], [0.5]]))
    """
    x = _checks.float_array(x, "x")
    _checks.finite(x, "x")
    kept = () if axis is None else _checks.axes(axis, x.ndim)
    over = tuple(i for i in range(x.ndim) if i not in kept)
    absmax: Array[F] = np.abs(x).max(axis=over, keepdims=True, initial=0)
    q = codes(x, absmax)
    return q, absmax if kept else absmax.reshape(())


def codes(x: AnyArray, absmax: AnyArray) -> IntArray:
    """Return ``round(127 x / absmax)`` as int8; 0 where ``absmax`` is 0."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = (HIGHEST / absmax).astype(x.dtype)
        # 127 / absmax overflows for a tiny absmax, whose quotient x / absmax is still exact enough.
        scaled = np.where(np.isfinite(inverse), x * inverse, x / absmax * HIGHEST)
    # |127.00001| rounds to 127: no clip is needed.
    return np.where(absmax == 0, 0, np.rint(scaled)).astype(np.int8)


def zeropoint_quantize(x: Array[F]) -> tuple[IntArray, Array[F], IntArray]:
    """Quantize a whole tensor to 8 bits so that its smallest and largest number get codes -127 and 127.

    Parameters
    ----------
    x : array
        Finite numbers, at least one.

    Returns
    -------
    q : int8 array of the shape of ``x``
        Codes; ``(q - z) / n`` approximates ``x``.
    n : 0-d array of the dtype of ``x``
        Codes per unit of ``x``.
    z : 0-d int64 array
        The code of 0, which lies outside of -127 .. 127 where the data do not straddle 0.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.
    ValueError
        If ``x`` is empty or holds NaN or infinity.

    Notes
    -----
    ``n = 254 / (max - min)``, ``z = -round(n min) - 127``, ``q = clip(round(n x) + z, -127, 127)``. If the
    spread is below 2^-14 of the largest magnitude, as in a constant tensor, 0 is included in the range: the
    zero point would otherwise leave int32 and its products int64.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> q, n, z = zeropoint_quantize(np.array([0.0, 1.0, 2.0]))
    >>> q, float(n), int(z)
    (array([-127,    0,  127], dtype=int8), 127.0, -127)
    """
    x = _checks.float_array(x, "x")
    _checks.not_empty(x, "x", range(x.ndim))
    _checks.finite(x, "x")
    # Halved, because max - min may overflow.
    low, high = float(x.min()) / 2, float(x.max()) / 2
    if high - low < max(-low, high) / LARGEST_OFFSET:
        low, high = min(low, 0.0), max(high, 0.0)
    most = float(np.finfo(x.dtype).max)
    # Zeros, or a spread so small that codes per unit would overflow.
    n = np.asarray(min(HIGHEST / (high - low), most) if most * (high - low) > HIGHEST else most, dtype=x.dtype)
    if high == low:
        n = np.ones((), x.dtype)
    z = -int(np.rint(float(n) * 2 * low)) - HIGHEST
    wide = np.rint((n * x).astype(np.float64)) + z
    return np.clip(wide, -HIGHEST, HIGHEST).astype(np.int8), n, np.asarray(z, dtype=np.int64)


def int8_matmul(a: IntArray, b: IntArray) -> IntArray:
    """Multiply int8 matrices exactly: ``a @ b.T`` in int32.

    Parameters
    ----------
    a : int8 array (T, K)
        Codes from -127 to 127.
    b : int8 array (N, K)
        Codes from -127 to 127, one output a row.

    Returns
    -------
    int32 array (T, N)

    Raises
    ------
    TypeError
        If a matrix is not int8.
    ValueError
        If K differs, K > 133144, or a code is -128.

    Notes
    -----
    ``|sum| <= 127^2 K`` fits int32 up to K = 133144. The product is computed in float64, in which sums of
    integers up to 2^53 are exact in any order; float32 would be exact to K = 1040 only.

    Examples
    --------
    >>> int8_matmul(np.array([[64, -127]], dtype=np.int8), np.array([[127, 127]], dtype=np.int8))
    array([[-8001]], dtype=int32)
    """
    a, b = check_codes(a, b)
    product: AnyArray = a.astype(np.float64) @ b.astype(np.float64).T
    return product.astype(np.int32)


def check_terms(terms: int, name: str) -> None:
    """Raise if a sum of ``terms`` products of codes may leave int32."""
    if terms > MOST_TERMS:
        _checks.fail(name, f"at most {MOST_TERMS} terms, whose int32 sum is exact", terms)


def check_codes(a: IntArray, b: IntArray) -> tuple[IntArray, IntArray]:
    """Return int8 matrices that fit for ``a @ b.T`` with an exact int32 sum, or raise."""
    a, b = _int8_matrix(a, "a"), _int8_matrix(b, "b")
    if a.shape[1] != b.shape[1]:
        _checks.fail("b", f"shape (N, {a.shape[1]}) like a", b.shape)
    check_terms(a.shape[1], "a")
    return a, b


def _int8_matrix(array: IntArray, name: str) -> IntArray:
    matrix = _checks.integer_array(array, name, ndim=2, low=-HIGHEST)
    if matrix.dtype != np.int8:
        _checks.fail_type(name, "dtype int8", matrix.dtype)
    return matrix


def matmul_tensorwise(x: Array[F], weight: Array[F]) -> Array[F]:
    """Multiply in int8 with one constant for each matrix.

    Parameters
    ----------
    x : array (T, K)
    weight : array (K, N), dtype of ``x``

    Returns
    -------
    array (T, N), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If the dtypes or shapes do not fit, a number is not finite, or K > 133144.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> matmul_tensorwise(np.array([[1.0, -2.0]]), np.array([[0.5], [1.0]])).round(4)
    array([[-1.4921]])
    """
    x, weight = check_matrices(x, weight)
    return _absmax_product(x, weight, None, None)


def matmul_rowwise(x: Array[F], weight: Array[F]) -> Array[F]:
    """Multiply in int8 with one constant for each row of ``x`` and one for all of ``weight``.

    Parameters, result and errors are those of :func:`matmul_tensorwise`.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> matmul_rowwise(np.array([[1.0, -2.0], [0.0, 0.1]]), np.array([[0.5], [1.0]])).round(4)
    array([[-1.4921],
           [ 0.1   ]])
    """
    x, weight = check_matrices(x, weight)
    return _absmax_product(x, weight, 0, None)


def matmul_vectorwise(x: Array[F], weight: Array[F]) -> Array[F]:
    """Multiply in int8 with one constant for each row of ``x`` and each column of ``weight``.

    Parameters, result and errors are those of :func:`matmul_tensorwise`.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 3.1, equation 7.

    Examples
    --------
    >>> matmul_vectorwise(np.array([[1.0, -2.0]]), np.array([[0.5, 0.01], [1.0, 0.01]])).round(4)
    array([[-1.4921, -0.0099]])
    """
    x, weight = check_matrices(x, weight)
    return _absmax_product(x, weight, 0, 1)


def _absmax_product(x: Array[F], weight: Array[F], x_axis: int | None, weight_axis: int | None) -> Array[F]:
    x_codes, x_constants = absmax_quantize(x, axis=x_axis)
    weight_codes, weight_constants = absmax_quantize(weight, axis=weight_axis)
    accumulated = int8_matmul(x_codes, weight_codes.T)
    return rescale(accumulated, x_constants, weight_constants).astype(x.dtype)


def rescale(accumulated: IntArray, x_constants: AnyArray, weight_constants: AnyArray) -> AnyArray:
    """Return ``accumulated / 127^2 * x_constants * weight_constants`` in float64.

    The constants are multiplied in one after the other: the product of two of them could underflow or
    overflow where the result does not.
    """
    dequantized: AnyArray = accumulated / float(HIGHEST**2) * x_constants.astype(np.float64)
    return dequantized * weight_constants.astype(np.float64)


def matmul_zeropoint(x: Array[F], weight: Array[F]) -> Array[F]:
    """Multiply in int8 with a zero point for each matrix.

    Parameters, result and errors are those of :func:`matmul_tensorwise`; in addition neither matrix may be
    empty.

    Notes
    -----
    ``(q_x - z_x)(q_w - z_w) = q_x q_w - z_x 1 (1' q_w) - (q_x 1) z_w 1' + K z_x z_w``: the int8 product is
    corrected by the row sums of one factor and the column sums of the other, in int64.

    References
    ----------
    Dettmers et al. (2022), arXiv 2208.07339, section 2.1.

    Examples
    --------
    >>> matmul_zeropoint(np.array([[1.0, 2.0]]), np.array([[0.5], [1.0]]))
    array([[2.5]])
    """
    x, weight = check_matrices(x, weight)
    x_codes, x_n, x_z = zeropoint_quantize(x)
    weight_codes, weight_n, weight_z = zeropoint_quantize(weight)
    row_sums = x_codes.sum(axis=1, keepdims=True, dtype=np.int64)
    column_sums = weight_codes.sum(axis=0, keepdims=True, dtype=np.int64)
    corrected = int8_matmul(x_codes, weight_codes.T) - x_z * column_sums - row_sums * weight_z
    corrected = corrected + x.shape[1] * x_z * weight_z
    product: Array[F] = (corrected / float(x_n) / float(weight_n)).astype(x.dtype)
    return product


def check_matrices(x: Array[F], weight: Array[F]) -> tuple[Array[F], Array[F]]:
    """Return finite matrices of one dtype that fit for ``x @ weight`` with an exact int32 sum, or raise."""
    x = _checks.float_array(x, "x", ndim=2)
    weight = _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    if weight.shape[0] != x.shape[1]:
        _checks.fail("weight", f"shape ({x.shape[1]}, N)", weight.shape)
    check_terms(x.shape[1], "x")
    _checks.finite(x, "x")
    _checks.finite(weight, "weight")
    return x, weight
