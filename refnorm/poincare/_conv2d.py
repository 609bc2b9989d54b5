"""Poincaré convolution: join the pixels of each patch into one point, then a Poincaré fully connected layer.

joined = exp0(concat_i beta(n/2) / beta(n_i/2) log0(x_i)),  n = sum n_i            beta(a) = B(a, 1/2)
y      = fully_connected(joined patch, weight, bias)                               at every window position
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn._conv2d import add_windows, two_whole, windows
from refnorm.poincare._ball import PROJECTION_MARGIN, clip, contract, expand
from refnorm.poincare._frame import Frame
from refnorm.poincare._linear import connect, init_identity, planes_of, turn_columns
from refnorm.poincare._numerics import Wide, dot, ratio, sech_square, tanh_bend, tanh_ratio

METHOD = Method(
    title="Poincaré convolution",
    authors="Shimizu, Mukuta, Harada; van Spengler, Berkhout, Mettes",
    year=2021,
    arxiv="2006.08210",
    functions=("beta_concat", "conv2d", "init_conv2d_identity"),
    chapter="poincare/conv2d",
    paper=False,
)

IDENTITIES = ("unfolded", "centre")

DIRECT_BETA = 256
"""Up to this many coordinates SciPy's B(n/2, 1/2) has all its digits; beyond, it goes through logarithms."""


def beta_scale(features: int, part: int) -> float:
    """Return B(features/2, 1/2) / B(part/2, 1/2), the factor on a part of ``part`` coordinates."""
    return _half_beta(features) / _half_beta(part)


def _half_beta(n: int) -> float:
    """Return B(n/2, 1/2), for large n by B((k + 2)/2, 1/2) = B(k/2, 1/2) k/(k + 1)."""
    start = min(n, DIRECT_BETA + n % 2)
    k = np.arange(start, n, 2.0)
    return float(scipy.special.beta(start / 2, 0.5) * np.prod(k / (k + 1)))


def beta_concat(
    xs: Sequence[Array[F]], curvature: float | Array[F], *, check: bool = True, project: bool = True
) -> Array[F]:
    """Join points of several balls into one point of a ball of more dimensions.

    Parameters
    ----------
    xs : sequence of arrays (..., n_i), at least one
        Points with ``curvature * |x|^2 < 1``, of equal shapes but for the last axis.
    curvature : float or 0-d array > 0
        Minus the sectional curvature of all balls; their radius is ``curvature ** -0.5``.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its row is meaningless.
    project : bool
        Whether the result is projected to a ball smaller by a margin (see ``project_ball``).

    Returns
    -------
    array (..., sum of n_i)

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, or the dtypes differ.
    ValueError
        If there is no array, shapes do not fit, the curvature is not finite and > 0, or a point is outside.

    Notes
    -----
    ``exp0`` of the concatenated ``B(n/2, 1/2) / B(n_i/2, 1/2) log0(x_i)`` with Euler's beta function. For a
    vector that is uniform on a sphere of radius r in n dimensions, the mean size of a coordinate is
    ``r B(n/2, 1/2) / pi``. The factors keep this size as it is for a typical vector: joining equal parts
    changes no expected length.

    References
    ----------
    Shimizu, Mukuta, Harada (2021), arXiv 2006.08210, section 3.3.

    Examples
    --------
    >>> beta_concat([np.array([0.5]), np.array([0.0])], 1.0).round(6)
    array([0.336109, 0.      ])
    """
    return beta_concat_vjp(xs, curvature, check=check, project=project)[0]


def beta_concat_vjp(
    xs: Sequence[Array[F]], curvature: float | Array[F], *, check: bool = True, project: bool = True
) -> tuple[Array[F], Pullback]:
    """Return :func:`beta_concat` and its pullback ``dy -> (dxs, dcurvature)``.

    Parameters, errors and references are those of :func:`beta_concat`.
    """
    if not isinstance(xs, (list, tuple)) or not xs:
        _checks.fail("xs", "a list or tuple of at least one array", type(xs).__name__ if xs else "none")
    frames = [Frame(curvature, -1, check, **{f"xs[{i}]": x}) for i, x in enumerate(xs)]
    lead = frames[0].shape[:-1]
    for i, (x, one) in enumerate(zip(xs, frames, strict=True)):
        _checks.same_dtype("xs[0]", xs[0], **{f"xs[{i}]": x})
        _checks.shape(x, f"xs[{i}]", (*lead, one.shape[-1]))
    features = sum(one.shape[-1] for one in frames)
    frame = frames[0].reshaped((*lead, features), len(lead))
    scales = [beta_scale(features, one.shape[-1]) for one in frames]
    parts = [
        contract(one.point(x, f"xs[{i}]"), frame.curvature) for i, (x, one) in enumerate(zip(xs, frames, strict=True))
    ]
    joined = np.concatenate([scale * tangent for scale, (tangent, _) in zip(scales, parts, strict=True)], axis=-1)
    y, back_exp = expand(joined, frame.curvature)
    y, back_projection = clip(y, frame, project)
    ends = np.cumsum([one.shape[-1] for one in frames])[:-1]

    def pullback(dy: Array[F]) -> tuple[Sequence[Array[F]], Array[F]]:
        u, dc_projection = back_projection(frame.cotangent(dy))
        u, dc = back_exp(u)
        total, dxs = dc + dc_projection, []
        for one, scale, (_, back_log), piece in zip(frames, scales, parts, np.split(u, ends, axis=-1), strict=True):
            dx, dc_log = back_log(scale * piece)
            total = total + dc_log
            dxs.append(one.leave_cotangent(dx))
        return (tuple(dxs) if isinstance(xs, tuple) else dxs), frame.leave_curvature(total)

    return frame.leave_inside(y), pullback


def conv2d(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    check: bool = True,
    project: bool = True,
) -> Array[F]:
    """Convolve an image whose pixels are points of the ball; the channels are a pixel's coordinates.

    Parameters
    ----------
    x : array (N, C, H, W)
        Images; ``curvature * |x|^2 < 1`` for every pixel.
    weight : array (C * rows * columns, O)
        Of the fully connected layer on patches; row ``(channel * rows + i) * columns + j`` belongs to place
        (i, j) of the window. See :func:`init_conv2d_identity` and ``init_baseline``.
    bias : array (O,)
        As for ``fully_connected``.
    curvature : float or 0-d array > 0
        Minus the sectional curvature of input and output; the ball's radius is ``curvature ** -0.5``.
    kernel : int or (int, int), >= 1
        Rows and columns of the window.
    stride : int or (int, int), >= 1
        Pixels from one window position to the next, down and across.
    padding : int or (int, int), >= 0
        Rows and columns of the origin put around the image on every side.
    check : bool
        Whether a point on or outside the boundary raises. Without the check its windows are meaningless.
    project : bool
        Whether joined patches and the result are projected to a ball smaller by a margin (see
        ``project_ball``).

    Returns
    -------
    array (N, O, H', W'), dtype of ``x``
        ``H' = (H + 2 padding - rows) // stride + 1``, likewise ``W'``.

    Raises
    ------
    TypeError
        If a dtype is not float32 or float64, the dtypes differ, or an option is no integer.
    ValueError
        If a shape does not fit, the padded image is smaller than the window, the curvature is not finite
        and > 0, ``2 sqrt(curvature) |bias|`` exceeds 500, or a point is outside (the message gives the
        largest ``curvature * |x|^2``).

    Notes
    -----
    ``fully_connected`` of the :func:`beta_concat` of the window's pixels. ``log0`` is taken once a pixel and
    not once a window. The pullback keeps the image and arrays of the output's size; windows are unfolded
    anew. NaN or infinity reaches the windows that hold it.

    References
    ----------
    Shimizu, Mukuta, Harada (2021), arXiv 2006.08210, section 3.4;
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.1.

    Examples
    --------
    A 1 x 1 kernel is the fully connected layer at every pixel:

    >>> x = np.full((1, 2, 1, 1), 0.3)
    >>> conv2d(x, np.eye(2) / 2, np.zeros(2), 1.0, kernel=1).ravel().round(12)
    array([0.3, 0.3])
    """
    return conv2d_vjp(
        x, weight, bias, curvature, kernel=kernel, stride=stride, padding=padding, check=check, project=project
    )[0]


def conv2d_vjp(
    x: Array[F],
    weight: Array[F],
    bias: Array[F],
    curvature: float | Array[F],
    *,
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    check: bool = True,
    project: bool = True,
) -> tuple[Array[F], Pullback]:
    """Return :func:`conv2d` and its pullback ``dy -> (dx, dweight, dbias, dcurvature)``.

    Parameters, errors and references are those of :func:`conv2d`.
    """
    x = _checks.float_array(x, "x", ndim=4)
    frame = Frame(curvature, 1, check, x=x)
    size, step, pad = two_whole(kernel, "kernel", 1), two_whole(stride, "stride", 1), two_whole(padding, "padding", 0)
    (channels, height, width), area = x.shape[1:], size[0] * size[1]
    planes = planes_of(weight, bias, frame, channels * area)
    c, scale = frame.curvature, beta_scale(channels * area, channels)
    tangent, back_log = contract(frame.point(x, "x"), c)
    # From here channels are the last axis.
    margin = ((0, 0), (pad[0], pad[0]), (pad[1], pad[1]), (0, 0))
    padded = np.pad(scale * tangent, margin)
    lengths = _patch_lengths(padded, size, step)
    joined = _join(lengths, c, PROJECTION_MARGIN[frame.dtype] if project else None)
    # The joined patch is a multiple of the unfolded one, so its inner products are multiples, too.
    inner = joined.stretch * (_unfold(padded, size, step) @ planes.unit.T).reshape(*lengths.shape[:3], len(planes.unit))
    y, back_layer = connect(inner, joined.gap, planes, c)
    y, back_projection = clip(y, frame, project)
    result = frame.reshaped((len(x), y.shape[3], *y.shape[1:3]), 1)

    def pullback(dy: Array[F]) -> tuple[AnyArray, ...]:
        g, dc_projection = back_projection(result.cotangent(dy))
        bar = back_layer(g)
        along, dc = _pull_join(joined, lengths, dot(bar.inner, inner), bar.gap, c)
        scaled = dataclasses.replace(bar, inner=joined.stretch * bar.inner)
        dweight = turn_columns(planes, _unfold(padded, size, step), scaled)
        # The patch's cotangent is stretch (dinner @ unit) + along patch. The second part needs no patches: a
        # pixel's share is the pixel itself times the sum of ``along`` over the windows that hold it.
        dpatches = (scaled.inner @ planes.unit).reshape(*along.shape[:3], channels, *size)
        dpadded = np.moveaxis(_fold(dpatches, padded.shape, step), 1, -1)
        spread = np.broadcast_to(along[..., None, None], (*along.shape, *size))
        dpadded = dpadded + np.moveaxis(_fold(spread, (*padded.shape[:3], 1), step), 1, -1) * padded
        dtangent = dpadded[:, pad[0] : pad[0] + height, pad[1] : pad[1] + width]
        dx, dc_log = back_log(scale * dtangent)
        terms = dc_projection.sum() + bar.curvature.sum() + dc.sum() + dc_log.sum()
        return (
            frame.leave_cotangent(dx),
            dweight.astype(frame.dtype),
            (bar.bias * frame.unit).astype(frame.dtype),
            frame.leave_curvature(terms),
        )

    return result.leave_inside(y), pullback


@dataclass(frozen=True)
class _Joined:
    """Joined patches exp0(v) as multiples ``stretch`` of v, with their squares, gaps, and d stretch/d log|v|."""

    stretch: Wide
    square: Wide
    gap: Wide
    bend: Wide


def _patch_lengths(padded: Wide, size: tuple[int, int], step: tuple[int, int]) -> Wide:
    """Return the length of every patch from the squares of its pixels, with a kept last axis."""
    squares = np.moveaxis(dot(padded, padded), -1, 1)
    length: Wide = np.sqrt(windows(squares, size, step).sum(axis=(1, 4, 5)))[..., None]
    return length


def _join(length: Wide, c: float, margin: float | None) -> _Joined:
    s = np.sqrt(c) * length
    stretch, gap, bend = tanh_ratio(s), sech_square(s), tanh_bend(s)
    reach = np.tanh(s)
    if margin is not None:
        # Projected points keep their direction only: the length (1 - margin)/sqrt(c) is that of s/s.
        beyond = reach > 1 - margin
        reach = np.where(beyond, 1 - margin, reach)
        stretch = np.where(beyond, (1 - margin) / np.where(beyond, s, 1.0), stretch)
        gap = np.where(beyond, margin * (2 - margin), gap)
        bend = np.where(beyond, -stretch, bend)
    return _Joined(stretch, reach * reach / c, gap, bend)


def _pull_join(joined: _Joined, length: Wide, inward: Wide, dgap: Wide, c: float) -> tuple[Wide, Wide]:
    """Return the factor of the patch in its own cotangent, and the curvature's terms.

    The joined point p = stretch v has the cotangent u = dinner @ unit - 2c dgap p, with <u,p> =
    ``inward`` - 2c dgap |p|^2. From dp = stretch dv + bend (<v,dv>/|v|^2 + dc/(2c)) v, with bend = s stretch'(s):
    the cotangent of v is stretch u + bend <u,v>/|v|^2 v.
    """
    along_v = (inward - 2 * c * dgap * joined.square) / joined.stretch
    # bend/|v|^2 has a limit at 0; the empty patch may take 0 instead, because <u,v> is 0, too.
    turn = ratio(ratio(joined.bend, length, 0.0) * along_v, length, 0.0)
    return turn - 2 * c * dgap * joined.stretch**2, joined.bend * along_v / (2 * c) - dgap * joined.square


def _unfold(padded: Wide, size: tuple[int, int], step: tuple[int, int]) -> Wide:
    """Return the matrix of patches (windows, C * rows * columns) of images with channels last."""
    view = windows(np.moveaxis(padded, -1, 1), size, step)
    images, channels, height, width = view.shape[:4]
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(images * height * width, channels * size[0] * size[1])


def _fold(patches: Wide, shape: tuple[int, ...], step: tuple[int, int]) -> Wide:
    """Add patches (N, H', W', C, rows, columns) up in images (N, C, H, W), the adjoint of :func:`_unfold`."""
    return add_windows(patches.transpose(0, 3, 1, 2, 4, 5), (shape[0], shape[3], *shape[1:3]), step)


def init_conv2d_identity(
    channels_in: int,
    channels_out: int,
    kernel: int | tuple[int, int],
    *,
    identity: str = "unfolded",
    keep_length: bool = False,
    dtype: Any = np.float64,
) -> tuple[AnyArray, AnyArray]:
    """Return weight and bias with which :func:`conv2d` copies coordinates of the joined patch.

    Parameters
    ----------
    channels_in, channels_out : int >= 1
    kernel : int or (int, int), >= 1
        Rows and columns of the window.
    identity : ``"unfolded"`` or ``"centre"``
        Output k copies entry k of the unfolded patch, which are all places of channel 0, then of channel
        1, and so on; or it copies the window's central pixel, channel k, and beyond the last channel the places
        next to the centre. Outputs beyond the number of entries start over from the first.
    keep_length : bool
        Whether the weight makes up for the factor with which pixels enter the joined patch: features near the
        origin then keep their length.
    dtype : numpy.float32 or numpy.float64

    Returns
    -------
    weight : array (channels_in * rows * columns, channels_out)
        One entry of 1/2 in every column; with ``keep_length`` it is
        ``B(channels_in/2, 1/2) / (2 B(channels_in * rows * columns / 2, 1/2))``.
    bias : array (channels_out,)
        Zeros.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer >= 1, or an option is another one.

    Notes
    -----
    No column is 0: such a column has the cotangent 0 and would never learn.

    References
    ----------
    van Spengler, Berkhout, Mettes (2023), arXiv 2303.14027, section 3.1.

    Examples
    --------
    >>> weight, bias = init_conv2d_identity(2, 2, 3, identity="centre")
    >>> weight.shape, weight.nonzero()[0]
    ((18, 2), array([ 4, 13]))
    """
    channels_in = _checks.whole(channels_in, "channels_in", low=1)
    channels_out = _checks.whole(channels_out, "channels_out", low=1)
    rows, columns = two_whole(kernel, "kernel", 1)
    _checks.one_of(identity, "identity", IDENTITIES)
    entries = channels_in * rows * columns
    order = np.arange(entries)
    if identity == "centre":
        i, j = np.divmod(np.arange(rows * columns), columns)
        from_centre = (i - (rows - 1) / 2) ** 2 + (j - (columns - 1) / 2) ** 2
        places = np.argsort(from_centre, kind="stable")
        order = (places[:, None] + rows * columns * np.arange(channels_in)).ravel()
    weight, bias = init_identity(entries, channels_out, dtype=dtype)
    weight = np.zeros_like(weight)
    entry = 0.5 / beta_scale(entries, channels_in) if keep_length else 0.5
    weight[order[np.arange(channels_out) % entries], np.arange(channels_out)] = entry
    return weight, bias
