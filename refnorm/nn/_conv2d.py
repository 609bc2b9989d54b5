"""Two-dimensional convolution by im2col.

y[n, o, i, j] = bias[o] + sum_{c, a, b} weight[o, c, a, b] x_padded[n, c, i stride + a, j stride + b]
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refnorm import _checks
from refnorm._typing import Array, F, Method, Pullback

METHOD = Method(
    title="Convolutional layer",
    authors="LeCun, Boser, Denker, Henderson, Howard, Hubbard, Jackel",
    year=1989,
    arxiv=None,
    functions=("conv2d",),
    chapter="nn/conv2d",
    paper=False,
)


def conv2d(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Slide a bank of filters over images (cross-correlation: the kernel is not flipped).

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    weight : array (O, C, A, B)
        One filter of A x B pixels an output channel.
    bias : array (O,), optional
        Added to every pixel of a channel.
    stride : int or (int, int), >= 1
        Pixels from one filter position to the next, down and across.
    padding : int or (int, int), >= 0
        Rows and columns of zeros put around the image on every side.

    Returns
    -------
    array (N, O, H', W'), dtype of ``x``
        ``H' = (H + 2 padding - A) // stride + 1``, likewise ``W'``.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or an option is no integer.
    ValueError
        If a shape does not fit or the padded image is smaller than the filter.

    Notes
    -----
    Each filter position is one row of a matrix of patches (im2col), and the layer is that matrix times
    the filters. NaN reaches the positions whose patch holds it.

    References
    ----------
    LeCun et al. (1989), Backpropagation applied to handwritten zip code recognition. Chellapilla, Puri,
    Simard (2006), High performance convolutional neural networks for document processing, section 2
    (the unfolding).

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> conv2d(x, np.ones((1, 1, 2, 2)))
    array([[[[ 8., 12.],
             [20., 24.]]]])
    >>> conv2d(x, np.ones((1, 1, 3, 3)), stride=2, padding=1)
    array([[[[ 8., 12.],
             [20., 24.]]]])
    """
    return conv2d_vjp(x, weight, bias, stride=stride, padding=padding)[0]


def conv2d_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F] | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`conv2d` and its pullback ``dy -> (dx, dweight, dbias)``.

    The entry of a bias that was left out is ``None``. Parameters, errors and references are those of
    :func:`conv2d`.
    """
    x = _checks.float_array(x, "x", ndim=4)
    weight = _checks.float_array(weight, "weight", ndim=4)
    bias = None if bias is None else _checks.float_array(bias, "bias")
    _checks.same_dtype("x", x, weight=weight, bias=bias)
    outputs, channels, *size = weight.shape
    images = len(x)
    _checks.shape(x, "x", (images, channels, *x.shape[2:]))
    if bias is not None:
        _checks.shape(bias, "bias", (outputs,))
    step, pad = two_whole(stride, "stride", 1), two_whole(padding, "padding", 0)

    padded = np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])))
    patches = windows(padded, (size[0], size[1]), step)
    height, width = patches.shape[2:4]
    patch_size = channels * size[0] * size[1]
    rows = patches.transpose(0, 2, 3, 1, 4, 5).reshape(images * height * width, patch_size)
    filters = weight.reshape(outputs, patch_size)
    product: Array[F] = rows @ filters.T
    if bias is not None:
        product = product + bias
    y = np.ascontiguousarray(product.reshape(images, height, width, outputs).transpose(0, 3, 1, 2))

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        # A linear layer on the rows of patches ...
        flat = np.asarray(dy).transpose(0, 2, 3, 1).reshape(len(rows), outputs)
        dweight = (flat.T @ rows).reshape(weight.shape)
        drows = (flat @ filters).reshape(images, height, width, channels, *size)
        # ... after a gather of pixels into patches, whose adjoint adds every patch back to where it came
        # from, and after padding, whose adjoint drops the margin.
        dpadded = add_windows(drows.transpose(0, 3, 1, 2, 4, 5), padded.shape, step)
        dx = dpadded[:, :, pad[0] : pad[0] + x.shape[2], pad[1] : pad[1] + x.shape[3]]
        return dx, dweight, None if bias is None else flat.sum(axis=0)

    return y, pullback


def two_whole(value: int | tuple[int, int], name: str, low: int) -> tuple[int, int]:
    """Return an option given once or for both image axes as a pair of integers of at least ``low``."""
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2:
        _checks.fail(name, "an integer or a pair of them", value)
    return _checks.whole(pair[0], name, low=low), _checks.whole(pair[1], name, low=low)


def windows(padded: Array[F], size: tuple[int, int], step: tuple[int, int]) -> Array[F]:
    """Return the view (N, C, H', W', A, B) of all window positions of padded images (N, C, H, W)."""
    if padded.shape[2] < size[0] or padded.shape[3] < size[1]:
        _checks.fail("x", f"padded images of at least {size[0]} x {size[1]} pixels", f"{padded.shape[2:]}")
    view: Array[F] = sliding_window_view(padded, size, axis=(2, 3))
    return view[:, :, :: step[0], :: step[1]]


def add_windows(patches: Array[F], shape: tuple[int, ...], step: tuple[int, int]) -> Array[F]:
    """Add windows (N, C, H', W', A, B) to zeros (N, C, H, W): the adjoint of :func:`windows`."""
    total: Array[F] = np.zeros(shape, patches.dtype)
    height, width, rows, columns = patches.shape[2:]
    for a in range(rows):
        for b in range(columns):
            # Pixels under place (a, b) of the windows are distinct, so one strided addition is right.
            down = slice(a, a + step[0] * (height - 1) + 1, step[0])
            across = slice(b, b + step[1] * (width - 1) + 1, step[1])
            total[:, :, down, across] += patches[..., a, b]
    return total
