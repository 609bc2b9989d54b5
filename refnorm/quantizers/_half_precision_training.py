"""Training in 16 bits: rounding, products with 16-bit accumulators, and what has to be done about both.

y = rows(x) @ filters.T + bias      dfilters = dy.T @ rows(x)      dx = rows(spread dy) @ flipped filters
accumulator = fl(accumulator + fl(a_k b_k))                        (fl: round to the format, ties to even)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.nn._conv2d import add_windows, two_whole, windows
from refnorm.softmax._cross_entropy import soft_cross_entropy_vjp
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="Reduced Precision Floating-Point Optimization for Deep Neural Network On-Device Learning on MicroControllers",
    authors="Nadalini, Rusci, Benini, Conti",
    year=2023,
    arxiv="2305.19167",
    functions=(
        "round_float16",
        "round_bfloat16",
        "stochastic_round",
        "Precision",
        "im2row",
        "row2im",
        "matmul_lowp",
        "conv2d_lowp",
        "linear_lowp",
        "Bfloat16Weight",
        "round_weight_bfloat16",
        "bfloat16_linear",
        "softmax_cross_entropy_lowp",
        "LossScale",
        "LossScaler",
        "sgd_lowp_step",
        "dot_error_bound",
    ),
    chapter="quantizers/half_precision_training",
)

ORDERS = ("sequential", "lanes", "pairwise")
INPUT_GRADIENTS = ("full", "scatter")
ROUNDINGS = ("nearest", "stochastic")

SMALLEST_SCALE = 2.0**-24
"""Halving stops here: the smallest float16 above 0."""


@dataclass(frozen=True)
class _Format:
    """Binary digits of the significand, and the exponents of the smallest and largest normal number."""

    digits: int
    lowest: int
    highest: int


FORMATS = {
    "float16": _Format(11, -14, 15),
    "bfloat16": _Format(8, -126, 127),
    "float32": _Format(24, -126, 127),
    "float64": _Format(53, -1022, 1023),
}


@dataclass(frozen=True)
class Precision:
    """The formats of a matrix product: float16, bfloat16, float32 or float64 each.

    Parameters
    ----------
    storage : str
        Of the operands and of the result.
    product : str
        What a product of two numbers is rounded to.
    accumulate : str
        What a running sum is rounded to after each addition.
    """

    storage: str = "float16"
    product: str = "float16"
    accumulate: str = "float16"

    def __post_init__(self) -> None:
        for name in ("storage", "product", "accumulate"):
            _checks.one_of(getattr(self, name), name, tuple(FORMATS))


HALF = Precision()
"""float16 everywhere."""


def round_float16(x: Array[F]) -> Array[F]:
    """Round to IEEE binary16, ties to even.

    Parameters
    ----------
    x : array

    Returns
    -------
    array, shape and dtype of ``x``
        Numbers with 11 significant binary digits; from 65520 on infinity, below 2^-24 multiples of it. NaN
        stays NaN.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    ``|fl(x) - x| <= 2^-11 |x|`` between 2^-14 and 65504.

    References
    ----------
    IEEE 754-2019, section 4.3.1. Nadalini et al. (2023), arXiv 2305.19167 (training in this format).

    Examples
    --------
    >>> round_float16(np.array([0.1, 2049.0, 2051.0, 65519.0, 65520.0])).tolist()
    [0.0999755859375, 2048.0, 2052.0, 65504.0, inf]
    """
    return _rounded(_checks.float_array(x, "x"), "float16")


def round_bfloat16(x: Array[F]) -> Array[F]:
    """Round to bfloat16, ties to even: the exponents of float32 with 8 significant binary digits.

    Parameters
    ----------
    x : array

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64.

    Notes
    -----
    float64 input is rounded once. The way through float32 rounds twice, and can make a tie of what was none.

    References
    ----------
    Kalamkar et al. (2019), arXiv 1905.12322.

    Examples
    --------
    >>> round_bfloat16(np.array([1.01, 257.0, 3.4e38])).tolist()
    [1.0078125, 256.0, inf]
    """
    return _rounded(_checks.float_array(x, "x"), "bfloat16")


def stochastic_round(x: Array[F], storage: str = "float16", *, rng: np.random.Generator) -> Array[F]:
    """Round up or down at random, so that the expected value is ``x``.

    Parameters
    ----------
    x : array
    storage : {"float16", "bfloat16", "float32"}
    rng : numpy.random.Generator

    Returns
    -------
    array, shape and dtype of ``x``
        One of the two neighbours in the format; a number of the format stays. Infinity where the upper
        neighbour of the largest number is drawn.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, or ``rng`` is no generator.
    ValueError
        If ``storage`` is another format.

    References
    ----------
    Gupta et al. (2015), arXiv 1502.02551, section 3.1.

    Examples
    --------
    >>> y = stochastic_round(np.full(10000, 2049.0), rng=np.random.default_rng(0))
    >>> sorted(set(y.tolist())), bool(abs(y.mean() - 2049) < 0.05)
    ([2048.0, 2050.0], True)
    """
    x = _checks.float_array(x, "x")
    _checks.one_of(storage, "storage", ("float16", "bfloat16", "float32"))
    return _on_grid(x, FORMATS[storage], _checks.generator(rng))


def _wide(x: AnyArray) -> AnyArray:
    return np.asarray(x).astype(np.result_type(x, np.float64), copy=False)


def _rounded(x: AnyArray, name: str) -> AnyArray:
    """Round to the nearest number of a format, in the dtype of ``x``."""
    if name == "float64" or np.iscomplexobj(x):
        return x
    if name == "bfloat16":
        return _on_grid(x, FORMATS[name], None)
    with np.errstate(over="ignore"):
        return x.astype(name).astype(x.dtype)


def _on_grid(x: AnyArray, form: _Format, rng: np.random.Generator | None) -> AnyArray:
    """Round multiples of the distance between neighbours, which is a power of 2: scaling by it is exact."""
    wide = _wide(x)
    finite = np.isfinite(wide)
    wide = np.where(finite, wide, 0)
    # |x| = f 2^e with 1/2 <= f < 1; below the normal numbers the distance no longer shrinks.
    exponent = np.maximum(np.frexp(wide)[1] - 1, form.lowest) - (form.digits - 1)
    units = np.ldexp(wide, -exponent)
    units = np.rint(units) if rng is None else np.floor(units + rng.random(units.shape))
    y = np.ldexp(units, exponent)
    # Rounding up from the largest number reaches the next power of 2, the first number that is too large.
    y = np.where(np.abs(y) >= 2.0 ** (form.highest + 1), np.copysign(np.inf, y), y)
    rounded: AnyArray = np.where(finite, np.copysign(y, wide), x).astype(x.dtype)
    return rounded


def im2row(
    x: Array[F],
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Lay out the patches under a filter as rows, one an output pixel.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    kernel : int or (int, int), >= 1
        Height A and width B of the filter.
    stride : int or (int, int), >= 1
    padding : int or (int, int), >= 0
        Zeros on every side.

    Returns
    -------
    array (N H' W', C A B), dtype of ``x``
        Columns in the order of (C, A, B); ``H' = (H + 2 padding - A) // stride + 1``, likewise ``W'``.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array of 4 dimensions, an option is out of its range, or the padded images are
        smaller than the filter.

    References
    ----------
    Nadalini et al. (2023), arXiv 2305.19167 (training steps as matrix products).

    Examples
    --------
    >>> im2row(np.arange(6.0).reshape(1, 1, 2, 3), 2)
    array([[0., 1., 3., 4.],
           [1., 2., 4., 5.]])
    """
    return im2row_vjp(x, kernel, stride=stride, padding=padding)[0]


def im2row_vjp(
    x: Array[F],
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`im2row` and its pullback ``drows -> (dx,)``, which is :func:`row2im`."""
    x = _checks.float_array(x, "x", ndim=4)
    size, step, pad = _geometry(kernel, stride, padding)
    patches = windows(np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1]))), size, step)
    images, channels, height, width = patches.shape[:4]
    rows: Array[F] = patches.transpose(0, 2, 3, 1, 4, 5).reshape(images * height * width, channels * size[0] * size[1])

    def pullback(drows: Array[F]) -> tuple[Array[F]]:
        return (row2im(drows, x.shape, kernel, stride=stride, padding=padding),)

    return rows, pullback


def row2im(
    rows: Array[F],
    shape: tuple[int, ...],
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Add every patch back to where it came from: the adjoint of :func:`im2row`.

    Parameters
    ----------
    rows : array (N H' W', C A B)
    shape : (N, C, H, W)
        Of the images.
    kernel, stride, padding
        As in :func:`im2row`.

    Returns
    -------
    array (N, C, H, W), dtype of ``rows``

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or an option is out of its range.

    Notes
    -----
    ``<im2row(x), q> = <x, row2im(q)>`` for all x and q.

    Examples
    --------
    >>> row2im(np.ones((2, 4)), (1, 1, 2, 3), 2)
    array([[[[1., 2., 1.],
             [1., 2., 1.]]]])
    """
    return row2im_vjp(rows, shape, kernel, stride=stride, padding=padding)[0]


def row2im_vjp(
    rows: Array[F],
    shape: tuple[int, ...],
    kernel: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`row2im` and its pullback ``dx -> (drows,)``, which is :func:`im2row`."""
    rows = _checks.float_array(rows, "rows", ndim=2)
    size, step, pad = _geometry(kernel, stride, padding)
    if len(shape) != 4:
        _checks.fail("shape", "four sizes (N, C, H, W)", shape)
    images, channels, *image = (_checks.whole(n, "shape", low=0) for n in shape)
    padded = (images, channels, image[0] + 2 * pad[0], image[1] + 2 * pad[1])
    if padded[2] < size[0] or padded[3] < size[1]:
        _checks.fail("shape", f"padded images of at least {size[0]} x {size[1]} pixels", padded[2:])
    height, width = ((padded[2 + i] - size[i]) // step[i] + 1 for i in range(2))
    _checks.shape(rows, "rows", (images * height * width, channels * size[0] * size[1]))
    patches = rows.reshape(images, height, width, channels, *size).transpose(0, 3, 1, 2, 4, 5)
    total = add_windows(patches, padded, step)
    x: Array[F] = total[:, :, pad[0] : pad[0] + image[0], pad[1] : pad[1] + image[1]]

    def pullback(dx: Array[F]) -> tuple[Array[F]]:
        return (im2row(dx, kernel, stride=stride, padding=padding),)

    return x, pullback


def _geometry(
    kernel: int | tuple[int, int], stride: int | tuple[int, int], padding: int | tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    return two_whole(kernel, "kernel", 1), two_whole(stride, "stride", 1), two_whole(padding, "padding", 0)


def matmul_lowp(
    a: Array[F],
    b: Array[F],
    *,
    precision: Precision = HALF,
    order: str = "sequential",
    fused: bool = False,
) -> Array[F]:
    """Multiply matrices with every rounding of a low precision.

    Parameters
    ----------
    a : array (M, K)
    b : array (K, N)
    precision : Precision
    order : {"sequential", "lanes", "pairwise"}
        One running sum; two running sums over even and odd k, as in a processor with 2 lanes; a binary tree.
    fused : bool
        Add the exact product, and round the sum only (fused multiply and add).

    Returns
    -------
    array (M, N), dtype of ``a``
        Numbers of the format ``precision.storage``.

    Raises
    ------
    TypeError, ValueError
        If the matrices do not fit, or ``order`` is not known.

    Notes
    -----
    The operands are rounded to ``storage``; then ``s = fl(s + fl(a_k b_k))`` with the inner rounding to
    ``product`` and the outer one to ``accumulate``; the result is rounded to ``storage``. With two lanes and
    odd K, the last product is added to the sum of both. A product and a sum in float32 or float64 are one
    BLAS call, whose order of summation is its own. ``"pairwise"`` holds all M K N products at a time.

    References
    ----------
    Nadalini et al. (2023), arXiv 2305.19167 (products with two 16-bit lanes).

    Examples
    --------
    >>> ones = np.ones((1, 4096))
    >>> [float(matmul_lowp(ones, ones.T, order=order)[0, 0]) for order in ("sequential", "lanes", "pairwise")]
    [2048.0, 4096.0, 4096.0]
    """
    a, b = _checks.float_array(a, "a", ndim=2), _checks.float_array(b, "b", ndim=2)
    _checks.same_dtype("a", a, b=b)
    _checks.shape(b, "b", (a.shape[1], b.shape[1]))
    _checks.one_of(order, "order", ORDERS)
    with np.errstate(over="ignore", invalid="ignore"):
        left, right = (_rounded(_wide(matrix), precision.storage) for matrix in (a, b))
        exact = fused or FORMATS[precision.product].digits >= FORMATS[precision.accumulate].digits
        if precision.accumulate == "float64" and exact:
            total = left @ right
        elif precision.accumulate == "float32" and exact and not np.iscomplexobj(left):
            total = (left.astype(np.float32) @ right.astype(np.float32)).astype(np.float64)
        else:
            total = _accumulated(left, right, precision, order, fused)
        return _rounded(total, precision.storage).astype(np.result_type(a, b), copy=False)


def _accumulated(a: AnyArray, b: AnyArray, precision: Precision, order: str, fused: bool) -> AnyArray:
    """Sum products in the given order. float64 holds a sum of two numbers of 24 digits well enough to round it once."""

    def product(k: int) -> AnyArray:
        exact = a[:, k, None] * b[k]
        return exact if fused else _rounded(exact, precision.product)

    def add(left: AnyArray, right: AnyArray) -> AnyArray:
        return _rounded(left + right, precision.accumulate)

    def running(ks: Iterable[int]) -> AnyArray:
        total = np.zeros((len(a), b.shape[1]), np.result_type(a, b))
        for k in ks:
            total = add(total, product(k))
        return total

    terms = len(b)
    if order == "sequential":
        return running(range(terms))
    if order == "lanes":
        paired = terms - terms % 2
        total = add(running(range(0, paired, 2)), running(range(1, paired, 2)))
        return total if paired == terms else add(product(terms - 1), total)
    level = np.stack([product(k) for k in range(terms)]) if terms else running(())[None]
    while len(level) > 1:
        half = len(level) // 2
        pairs = add(level[0 : 2 * half : 2], level[1 : 2 * half : 2])
        level = np.concatenate([pairs, level[2 * half :]])
    return _rounded(level[0], precision.accumulate)


def linear_lowp(
    x: Array[F], weight: Array[F], bias: Array[F] | None = None, *, precision: Precision = HALF
) -> Array[F]:
    """Apply a linear layer in low precision.

    Parameters
    ----------
    x : array (N, I)
    weight : array (O, I)
        One output a row.
    bias : array (O,), optional
    precision : Precision

    Returns
    -------
    array (N, O), dtype of ``x``
        ``x @ weight.T + bias``, sums in two lanes; the bias is added in ``precision.storage``.

    Raises
    ------
    TypeError, ValueError
        If an array is not float32 or float64, the dtypes differ, or a shape does not fit.

    References
    ----------
    Nadalini et al. (2023), arXiv 2305.19167 (training steps as matrix products).

    Examples
    --------
    >>> linear_lowp(np.array([[2048.0, 1.0, 1.0, 1.0]]), np.ones((1, 4)))
    array([[2050.]])
    """
    return linear_lowp_vjp(x, weight, bias, precision=precision)[0]


def linear_lowp_vjp(
    x: Array[F], weight: Array[F], bias: Array[F] | None = None, *, precision: Precision = HALF
) -> tuple[Array[F], Pullback]:
    """Return :func:`linear_lowp` and its pullback ``dy -> (dx, dweight, dbias)``, in low precision too.

    It is the exact rule with all roundings taken as the identity, and then computed with roundings: two lanes
    for ``dx``, one running sum over the examples for ``dweight`` and ``dbias``.
    """
    x, weight = _checks.float_array(x, "x", ndim=2), _checks.float_array(weight, "weight", ndim=2)
    _checks.same_dtype("x", x, weight=weight)
    _checks.shape(x, "x", (len(x), weight.shape[1]))
    product = matmul_lowp(x, weight.T, precision=precision, order="lanes")
    y = _with_bias(product, bias, len(weight), precision)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        dx = matmul_lowp(dy, weight, precision=precision, order="lanes")
        dweight = matmul_lowp(dy.T, x, precision=precision, order="sequential")
        return dx, dweight, None if bias is None else _column_sums(dy, precision)

    return y, pullback


def _with_bias(y: AnyArray, bias: AnyArray | None, outputs: int, precision: Precision) -> AnyArray:
    if bias is None:
        return y
    bias = _checks.float_array(bias, "bias")
    _checks.same_dtype("x", y, bias=bias)
    _checks.shape(bias, "bias", (outputs,))
    with np.errstate(over="ignore", invalid="ignore"):
        wide = _wide(y) + _rounded(_wide(bias), precision.storage)
        return _rounded(wide, precision.storage).astype(np.result_type(y, bias), copy=False)


def _column_sums(dy: AnyArray, precision: Precision) -> AnyArray:
    sums: AnyArray = matmul_lowp(np.ones((1, len(dy)), dy.dtype), dy, precision=precision)[0]
    return sums


def conv2d_lowp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    precision: Precision = HALF,
) -> Array[F]:
    """Convolve images in low precision: patches as rows, times filters, sums in two lanes.

    Parameters
    ----------
    x : array (N, C, H, W)
    weight : array (O, C, A, B)
        Filters; they are not flipped.
    bias : array (O,), optional
        Added in ``precision.storage``.
    stride : int or (int, int), >= 1
    padding : int or (int, int), >= 0
    precision : Precision

    Returns
    -------
    array (N, O, H', W'), dtype of ``x``
        Sizes as in :func:`im2row`.

    Raises
    ------
    TypeError, ValueError
        If an array is not float32 or float64, the dtypes differ, or a shape or option does not fit.

    References
    ----------
    Nadalini et al. (2023), arXiv 2305.19167 (training steps as matrix products).

    Examples
    --------
    >>> conv2d_lowp(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.ones((1, 1, 2, 2)))
    array([[[[10.]]]])
    """
    return conv2d_lowp_vjp(x, weight, bias, stride=stride, padding=padding, precision=precision)[0]


def conv2d_lowp_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    precision: Precision = HALF,
    input_gradient: str = "full",
) -> tuple[Array[F], Pullback]:
    """Return :func:`conv2d_lowp` and its pullback ``dy -> (dx, dweight, dbias)``, in low precision too.

    Parameters, errors and references are those of :func:`conv2d_lowp`, and

    Parameters
    ----------
    input_gradient : {"full", "scatter"}
        ``full``: a convolution of the spread cotangent with flipped filters, one sum over outputs and places.
        ``scatter``: one sum over outputs for each row of patches; :func:`row2im` adds these up in float64,
        and the total is rounded.
    """
    x, weight = _checks.float_array(x, "x", ndim=4), _checks.float_array(weight, "weight", ndim=4)
    _checks.same_dtype("x", x, weight=weight)
    outputs, channels, *size = weight.shape
    _checks.shape(x, "x", (len(x), channels, *x.shape[2:]))
    _checks.one_of(input_gradient, "input_gradient", INPUT_GRADIENTS)
    kernel, step, pad = _geometry((size[0], size[1]), stride, padding)
    rows = im2row(x, kernel, stride=step, padding=pad)
    filters = weight.reshape(outputs, -1)
    product = matmul_lowp(rows, filters.T, precision=precision, order="lanes")
    height, width = ((x.shape[2 + i] + 2 * pad[i] - kernel[i]) // step[i] + 1 for i in range(2))
    y = _with_bias(product, bias, outputs, precision).reshape(len(x), height, width, outputs)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        flat = np.asarray(dy).transpose(0, 2, 3, 1).reshape(len(rows), outputs)
        # One running sum over all images and pixels: the longest sum of the three steps, in the worst order.
        dweight = matmul_lowp(flat.T, rows, precision=precision, order="sequential").reshape(weight.shape)
        if input_gradient == "full":
            dx = _full_input_gradient(dy, weight, x.shape, step, pad, precision)
        else:
            drows = _wide(matmul_lowp(flat, filters, precision=precision, order="lanes"))
            total = row2im(drows, x.shape, kernel, stride=step, padding=pad)
            dx = _rounded(total, precision.storage).astype(x.dtype, copy=False)
        return dx, dweight, None if bias is None else _column_sums(flat, precision)

    return np.ascontiguousarray(y.transpose(0, 3, 1, 2)), pullback


def _full_input_gradient(
    dy: AnyArray,
    weight: AnyArray,
    shape: tuple[int, ...],
    step: tuple[int, int],
    pad: tuple[int, int],
    precision: Precision,
) -> AnyArray:
    images, channels, *image = shape
    outputs, kernel = len(weight), weight.shape[2:]
    # Pixel r of the input meets place a of the filter in output i where i step + a - pad = r. With dy[i] at
    # i step + kernel - 1 - pad of a canvas, the window that begins at r holds these dy, in descending a.
    sizes = [image[i] + 2 * pad[i] + kernel[i] - 1 for i in range(2)]
    canvas = np.zeros((images, outputs, *sizes), dy.dtype)
    across = [slice(k - 1, k - 1 + s * (n - 1) + 1, s) for k, s, n in zip(kernel, step, dy.shape[2:], strict=True)]
    canvas[:, :, across[0], across[1]] = dy
    inner = [slice(p, p + n + k - 1) for p, n, k in zip(pad, image, kernel, strict=True)]
    rows = im2row(canvas[:, :, inner[0], inner[1]], (kernel[0], kernel[1]))
    flipped = weight[:, :, ::-1, ::-1].transpose(0, 2, 3, 1).reshape(-1, channels)
    dx = matmul_lowp(rows, flipped, precision=precision, order="lanes")
    return np.ascontiguousarray(dx.reshape(images, *image, channels).transpose(0, 3, 1, 2))


def softmax_cross_entropy_lowp(logits: Array[F], target: Array[F], storage: str = "float16") -> Array[F]:
    """Cross-entropy of 16-bit logits, evaluated in a wider format and rounded once.

    Parameters
    ----------
    logits : array (B, C)
    target : array (B, C)
        The weight of each class: usually 1 for one of them.
    storage : {"float16", "bfloat16", "float32", "float64"}
        Format of logits, targets, loss and gradient.

    Returns
    -------
    array (), dtype of ``logits``
        The mean over the rows of ``-sum_i target_i log_softmax(logits)_i``.

    Raises
    ------
    TypeError, ValueError
        If an array is not float32 or float64, the dtypes or shapes differ, or there is no row or class.

    Examples
    --------
    >>> float(softmax_cross_entropy_lowp(np.array([[0.0, 0.0]]), np.array([[0.0, 1.0]])))
    0.693359375
    """
    return softmax_cross_entropy_lowp_vjp(logits, target, storage)[0]


def softmax_cross_entropy_lowp_vjp(
    logits: Array[F], target: Array[F], storage: str = "float16"
) -> tuple[Array[F], Pullback]:
    """Return :func:`softmax_cross_entropy_lowp` and its pullback ``dloss -> (dlogits, dtarget)``.

    ``dloss`` multiplies before the gradient is rounded: this is where a loss scale has to enter.
    """
    logits, target = _checks.float_array(logits, "logits", ndim=2), _checks.float_array(target, "target")
    _checks.same_dtype("logits", logits, target=target)
    _checks.one_of(storage, "storage", tuple(FORMATS))
    wide = (_rounded(_wide(array), storage) for array in (logits, target))
    loss, back = soft_cross_entropy_vjp(*wide)

    def rounded(value: AnyArray) -> AnyArray:
        return np.asarray(_rounded(value, storage).astype(np.result_type(logits, target), copy=False))

    def pullback(dloss: Array[F]) -> tuple[Array[F], ...]:
        # d / dlogits = softmax sum_i target_i - target; the roundings count as the identity.
        return tuple(rounded(entry) for entry in back(_wide(dloss)))

    return rounded(loss), pullback


@dataclass(frozen=True)
class LossScale:
    """The state of a :class:`LossScaler`.

    Parameters
    ----------
    scale : float
        What the loss is multiplied by.
    good_steps : int
        Steps with finite gradients since the scale was changed.
    """

    scale: float
    good_steps: int = 0


@dataclass(frozen=True)
class LossScaler:
    """Multiply the loss, so that small gradients do not vanish in 16 bits, and divide the gradients.

    Parameters
    ----------
    initial : float > 0
        First scale; powers of 2 add no rounding.
    growth_interval : int >= 1
        Steps with finite gradients after which the scale doubles.
    largest : float > 0
        The scale never exceeds it.
    dynamic : bool
        False keeps the initial scale.

    References
    ----------
    Micikevicius et al. (2018), arXiv 1710.03740, section 3.2.

    Examples
    --------
    >>> scaler = LossScaler()
    >>> scaler.update(scaler.init(), False)
    LossScale(scale=16384.0, good_steps=0)
    """

    initial: float = 2.0**15
    growth_interval: int = 2000
    largest: float = 2.0**24
    dynamic: bool = field(default=True)

    def __post_init__(self) -> None:
        _checks.positive(self.initial, "initial")
        _checks.whole(self.growth_interval, "growth_interval", low=1)
        _checks.positive(self.largest, "largest")
        if self.initial > self.largest:
            _checks.fail("initial", f"a number <= largest = {self.largest}", self.initial)

    def init(self) -> LossScale:
        """Return the state before the first step."""
        return LossScale(float(self.initial))

    def scale(self, dloss: Array[F], state: LossScale) -> Array[F]:
        """Return the cotangent with which the backward pass begins: ``scale dloss``."""
        dloss = _checks.float_array(dloss, "dloss")
        return np.asarray(dloss * dloss.dtype.type(state.scale))

    def unscale(self, grads: Tree, state: LossScale) -> tuple[Tree, bool]:
        """Return gradients divided by the scale, and whether all of them are finite. If not, skip the step."""
        finite = all(bool(np.isfinite(leaf).all()) for _, leaf in tree_leaves(grads) if leaf is not None)
        return tree_map(lambda leaf: None if leaf is None else leaf / leaf.dtype.type(state.scale), grads), finite

    def update(self, state: LossScale, finite: bool) -> LossScale:
        """Return the state after a step: half the scale if a gradient was not finite."""
        if not self.dynamic:
            return state
        if not finite:
            return LossScale(max(state.scale / 2, SMALLEST_SCALE))
        if state.good_steps + 1 < self.growth_interval:
            return LossScale(state.scale, state.good_steps + 1)
        return LossScale(min(2 * state.scale, float(self.largest)))


def sgd_lowp_step(
    weight: Array[F],
    grad: Array[F],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    storage: str = "float16",
    master: Array[F] | None = None,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
) -> tuple[Array[F], Array[F] | None]:
    """Take one step of gradient descent with 16-bit weights.

    Parameters
    ----------
    weight, grad : arrays of one shape
    learning_rate : float > 0
    weight_decay : float >= 0
        Times the weight, added to the gradient.
    storage : {"float16", "bfloat16", "float32"}
    master : array of the shape and dtype of ``weight``, optional
        A copy of the weights in the dtype of the array. It is what is updated then, without other roundings.
    rounding : {"nearest", "stochastic"}
        Of the weights that are returned; all other roundings are to nearest.
    rng : numpy.random.Generator
        Needed by, and only used for, stochastic rounding.

    Returns
    -------
    weight : array
        For the next pass, in the format ``storage``.
    master : array or None
        The updated copy, if there was one.

    Raises
    ------
    TypeError, ValueError
        If arrays do not fit, an option is out of its range, or ``rng`` is missing.

    Notes
    -----
    ``g = fl(grad + fl(weight_decay weight))``, ``weight = fl(weight - fl(learning_rate g))``.

    References
    ----------
    Micikevicius et al. (2018), arXiv 1710.03740, section 3.1 (the copy of the weights).

    Examples
    --------
    >>> weight, grad = np.ones(1), np.full(1, 0.125)
    >>> sgd_lowp_step(weight, grad, learning_rate=0.001)
    (array([1.]), None)
    >>> sgd_lowp_step(weight, grad, learning_rate=0.001, master=weight)
    (array([1.]), array([0.999875]))
    """
    weight = _checks.float_array(weight, "weight")
    for name, array in (("grad", grad), ("master", master)):
        if array is not None:
            array = _checks.float_array(array, name)
            _checks.same_dtype("weight", weight, **{name: array})
            _checks.shape(array, name, weight.shape)
    _checks.positive(learning_rate, "learning_rate")
    _checks.non_negative(weight_decay, "weight_decay")
    _checks.one_of(storage, "storage", ("float16", "bfloat16", "float32"))
    _checks.one_of(rounding, "rounding", ROUNDINGS)
    if rounding == "stochastic":
        rng = _checks.generator(rng)
    form = "float64" if master is not None else storage
    current, g = (_rounded(_wide(array), form) for array in (weight if master is None else master, grad))
    with np.errstate(over="ignore", invalid="ignore"):
        if weight_decay:
            g = _rounded(g + _rounded(weight_decay * current, form), form)
        updated = current - _rounded(learning_rate * g, form)
        stored = updated if master is None else updated.astype(weight.dtype)
        low = (
            stochastic_round(stored, storage, rng=rng)
            if rng and rounding == "stochastic"
            else _rounded(stored, storage)
        )
    return low.astype(weight.dtype), None if master is None else stored


def dot_error_bound(terms: int, unit_roundoff: float, order: str = "sequential") -> float:
    """Bound the error of a rounded dot product, relative to the sum of the magnitudes of its terms.

    Parameters
    ----------
    terms : int >= 1
        K.
    unit_roundoff : float in (0, 1)
        2^-11 for float16, 2^-8 for bfloat16.
    order : {"sequential", "lanes", "pairwise"}
        As in :func:`matmul_lowp`.

    Returns
    -------
    float
        ``n u / (1 - n u)``.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range or ``n u >= 1``, where nothing is known.

    Notes
    -----
    ``|s_hat - s| <= bound sum_k |a_k b_k|``, n being the most roundings that a term goes through, that of
    its product included: K in sequence, ``ceil(K / 2) + 1`` in two lanes, ``ceil(log2 K) + 1`` in a tree.
    Operands are in the format, and no product is below its normal numbers.

    References
    ----------
    Higham (2002), Accuracy and Stability of Numerical Algorithms, sections 3.1 and 4.2.

    Examples
    --------
    >>> [round(dot_error_bound(1024, 2.0**-11, order), 4) for order in ("sequential", "lanes", "pairwise")]
    [1.0, 0.3342, 0.0054]
    """
    _checks.whole(terms, "terms", low=1)
    _checks.in_range(unit_roundoff, "unit_roundoff", 0, 1, closed="neither")
    _checks.one_of(order, "order", ORDERS)
    roundings = {
        "sequential": terms,
        "lanes": (terms + 1) // 2 + 1,
        "pairwise": math.ceil(math.log2(terms)) + 1,
    }[order]
    if roundings * unit_roundoff >= 1:
        _checks.fail("terms", f"fewer than 1 / unit_roundoff = {1 / unit_roundoff:g} roundings", roundings)
    return roundings * unit_roundoff / (1 - roundings * unit_roundoff)
