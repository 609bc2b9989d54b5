"""Pooling: the maximum or the mean of each window of an image."""

from __future__ import annotations

import numpy as np

from refnorm import _checks
from refnorm._typing import Array, F, Method, Pullback
from refnorm.nn._conv2d import add_windows, two_whole, windows

METHOD = Method(
    title="Average and max pooling",
    authors="LeCun, Boser, Denker, Henderson, Howard, Hubbard, Jackel",
    year=1989,
    arxiv=None,
    functions=("avg_pool2d", "max_pool2d"),
    chapter="nn/pooling",
    paper=False,
)


def max_pool2d(
    x: Array[F],
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Take the largest number of each window.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    size : int or (int, int), >= 1
        Rows and columns of a window.
    stride : int or (int, int), >= 1, optional
        Pixels from one window to the next; ``size`` by default.
    padding : int or (int, int), from 0 to half of ``size``
        Margin of minus infinity around the image. At most half a window, so that no window lies in the
        margin alone.

    Returns
    -------
    array (N, C, H', W'), dtype of ``x``
        ``H' = (H + 2 padding - size) // stride + 1``, likewise ``W'``.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, or an option is no integer.
    ValueError
        If the padded image is smaller than a window or the padding is too wide.

    Notes
    -----
    A window with a NaN gives NaN. Where several entries tie, the first one (row by row) gets the whole
    cotangent.

    References
    ----------
    Boureau, Ponce, LeCun (2010), A theoretical analysis of feature pooling in visual recognition.

    Examples
    --------
    >>> max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  7.],
             [13., 15.]]]])
    """
    return max_pool2d_vjp(x, size, stride=stride, padding=padding)[0]


def max_pool2d_vjp(
    x: Array[F],
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`max_pool2d` and its pullback ``dy -> (dx,)``."""
    window, step, pad = _options(size, stride, padding)
    padded = _padded(x, pad, -np.inf)
    view = windows(padded, window, step)
    flat = view.reshape(*view.shape[:4], window[0] * window[1])
    first = flat.argmax(axis=-1)[..., None]
    y: Array[F] = np.take_along_axis(flat, first, axis=-1)[..., 0]

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # Each window copies one entry, so its cotangent goes back to that entry; overlapping windows may
        # have copied the same one, and their cotangents add up.
        dflat = np.zeros(flat.shape, padded.dtype)
        np.put_along_axis(dflat, first, np.asarray(dy)[..., None], axis=-1)
        dpadded = add_windows(dflat.reshape(view.shape), padded.shape, step)
        return (_without_margin(dpadded, pad),)

    return y, pullback


def avg_pool2d(
    x: Array[F],
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Array[F]:
    """Take the mean of each window; the margin's zeros are counted.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images.
    size : int or (int, int), >= 1
        Rows and columns of a window.
    stride : int or (int, int), >= 1, optional
        Pixels from one window to the next; ``size`` by default.
    padding : int or (int, int), from 0 to half of ``size``
        Margin of zeros around the image.

    Returns
    -------
    array (N, C, H', W'), dtype of ``x``
        ``H' = (H + 2 padding - size) // stride + 1``, likewise ``W'``.

    Raises
    ------
    TypeError
        If ``x`` is not float32 or float64, or an option is no integer.
    ValueError
        If the padded image is smaller than a window or the padding is too wide.

    Notes
    -----
    A convolution of each channel with the constant filter ``1 / (rows columns)``. NaN reaches the windows
    that hold it.

    References
    ----------
    LeCun et al. (1989), Backpropagation applied to handwritten zip code recognition.

    Examples
    --------
    >>> avg_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]])
    """
    return avg_pool2d_vjp(x, size, stride=stride, padding=padding)[0]


def avg_pool2d_vjp(
    x: Array[F],
    size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> tuple[Array[F], Pullback]:
    """Return :func:`avg_pool2d` and its pullback ``dy -> (dx,)``."""
    window, step, pad = _options(size, stride, padding)
    padded = _padded(x, pad, 0.0)
    view = windows(padded, window, step)
    y: Array[F] = view.mean(axis=(-2, -1))

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        # Every entry of a window has the weight 1 / (rows columns) in its mean.
        share: Array[F] = np.divide(dy, window[0] * window[1])
        dview = np.broadcast_to(share[..., None, None], view.shape)
        return (_without_margin(add_windows(dview, padded.shape, step), pad),)

    return y, pullback


def _options(
    size: int | tuple[int, int], stride: int | tuple[int, int] | None, padding: int | tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    window = two_whole(size, "size", 1)
    step = window if stride is None else two_whole(stride, "stride", 1)
    pad = two_whole(padding, "padding", 0)
    if 2 * pad[0] > window[0] or 2 * pad[1] > window[1]:
        _checks.fail("padding", f"at most half of the window {window}", pad)
    return window, step, pad


def _padded(x: Array[F], pad: tuple[int, int], value: float) -> Array[F]:
    x = _checks.float_array(x, "x", ndim=4)
    return np.pad(x, ((0, 0), (0, 0), (pad[0], pad[0]), (pad[1], pad[1])), constant_values=value)


def _without_margin(dpadded: Array[F], pad: tuple[int, int]) -> Array[F]:
    height, width = dpadded.shape[2:]
    return dpadded[:, :, pad[0] : height - pad[0], pad[1] : width - pad[1]]
