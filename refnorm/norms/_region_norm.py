"""Region normalization: known pixels and hole pixels of an image are standardized apart.

x_hat = (x - mean_k) / sqrt(var_k + eps)                         (on region k: the mask, and the rest)
y     = x_hat * (1 + gain_k) + bias_k
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import conv2d_vjp

METHOD = Method(
    title="Region Normalization for Image Inpainting",
    authors="Yu, Guo, Jin, Wu, Chen, Li, Zhang, Liu",
    year=2019,
    arxiv="1911.10375",
    functions=("region_norm_basic", "region_norm_learnable", "region_normalize", "resize_mask_nearest"),
    chapter="norms/region_norm",
)


def resize_mask_nearest(mask: AnyArray, size: tuple[int, int]) -> AnyArray:
    """Bring a mask to another height and width by copying the nearest pixel.

    Parameters
    ----------
    mask : array (N, 1, H, W)
        Of any dtype.
    size : (int, int)
        Height and width that are wanted, each at least 1.

    Returns
    -------
    array (N, 1, *size), dtype of ``mask``

    Raises
    ------
    TypeError
        If a size is not an integer.
    ValueError
        If ``mask`` has not four dimensions or no pixels, or a size is below 1.

    Notes
    -----
    Pixel ``i`` of ``n`` copies pixel ``floor(i m / n)`` of ``m``.

    References
    ----------
    Yu et al. (2019), arXiv 1911.10375, and the authors' code.

    Examples
    --------
    >>> resize_mask_nearest(np.array([[[[0, 1]]]]), (2, 4))
    array([[[[0, 0, 1, 1],
             [0, 0, 1, 1]]]])
    """
    mask = np.asarray(mask)
    if mask.ndim != 4:
        _checks.fail("mask", "4 dimensions", f"shape {mask.shape}")
    _checks.not_empty(mask, "mask", (2, 3))
    rows, columns = (
        np.arange(_checks.whole(wanted, "size", low=1)) * old // wanted
        for wanted, old in zip(size, mask.shape[2:], strict=True)
    )
    return np.asarray(mask[:, :, rows][:, :, :, columns])


def region_normalize(
    x: Array[F],
    mask: AnyArray,
    *,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
) -> Array[F]:
    """Standardize the pixels inside and outside of a mask apart.

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    mask : array (N, 1, H, W) of zeros and ones, or booleans
        One region; the pixels outside are the other.
    stats : ``"batch"`` or ``"instance"``
        Whether a region's statistics are taken over all images, or for each image.
    eps : float > 0
        Added to variances.
    eps_mode : ``"scaled"`` or ``"plain"``
        ``"scaled"`` adds ``eps T / S`` for a region of S of the T pixels, as the authors' code does in effect;
        ``"plain"`` adds ``eps``.

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64.
    ValueError
        If a shape is wrong, the mask holds other values than 0 and 1, or an option is unknown.

    Notes
    -----
    An empty region contributes nothing; a region of one pixel gives 0 there. No value of one region enters the
    result in the other, NaN included. There is no gradient for the mask.

    References
    ----------
    Yu et al. (2019), arXiv 1911.10375, equations 1 to 4.

    Examples
    --------
    >>> x, mask = np.array([[[[1.0, 3.0, 10.0, 14.0]]]]), np.array([[[[1, 1, 0, 0]]]])
    >>> region_normalize(x, mask, eps=1e-12).round(6)
    array([[[[-1.,  1., -1.,  1.]]]])
    """
    return region_normalize_vjp(x, mask, stats=stats, eps=eps, eps_mode=eps_mode)[0]


def region_normalize_vjp(
    x: Array[F],
    mask: AnyArray,
    *,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
) -> tuple[Array[F], Pullback]:
    """Return :func:`region_normalize` and its pullback ``dy -> (dx,)``; the mask has no entry."""
    x = _checks.float_array(x, "x", ndim=4)
    inside = _binary(mask, (len(x), 1, *x.shape[2:]), binarize=False)
    wide, back = _standardize_regions(x, inside, stats, eps, eps_mode)
    y: Array[F] = wide.astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        return (back(np.asarray(dy)).astype(x.dtype),)

    return y, pullback


def _standardize_regions(
    x: AnyArray, inside: AnyArray, stats: str, eps: float, eps_mode: str
) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    """Return ``x_hat`` in float64 and its pullback."""
    _checks.one_of(stats, "stats", ("batch", "instance"))
    _checks.one_of(eps_mode, "eps_mode", ("scaled", "plain"))
    _checks.positive(eps, "eps")
    over = (0, 2, 3) if stats == "batch" else (2, 3)
    wide = x.astype(np.result_type(x, np.float64), copy=False)
    x_hat, parts = np.zeros_like(wide), []
    for region in (inside, ~inside):
        # where, not a product with the mask: 0 times NaN would carry a hole's NaN into the known pixels.
        size = np.maximum(region.sum(axis=over, keepdims=True), 1)
        pixels = region[:, 0].size if stats == "batch" else region[0, 0].size
        mean = np.where(region, wide, 0).sum(axis=over, keepdims=True) / size
        with np.errstate(invalid="ignore"):
            centred = np.where(region, wide - mean, 0)
        var = (centred * centred).sum(axis=over, keepdims=True) / size
        inv_std = 1 / np.sqrt(var + (eps * pixels / size if eps_mode == "scaled" else eps))
        x_hat = np.where(region, centred * inv_std, x_hat)
        parts.append((region, size, inv_std))

    def pullback(dx_hat: AnyArray) -> AnyArray:
        # Batch norm's pullback on each region, with means over that region.
        dx: AnyArray = np.zeros(np.broadcast_shapes(x_hat.shape, dx_hat.shape), x_hat.dtype)
        for region, size, inv_std in parts:
            own, hat = np.where(region, dx_hat, 0), np.where(region, x_hat, 0)
            mean = own.sum(axis=over, keepdims=True) / size
            along = (own * hat).sum(axis=over, keepdims=True) / size
            dx = np.where(region, inv_std * (own - mean - hat * along), dx)
        return dx

    return x_hat, pullback


def region_norm_basic(
    x: Array[F],
    mask: AnyArray,
    foreground_gain: Array[F],
    foreground_bias: Array[F],
    background_gain: Array[F],
    background_bias: Array[F],
    *,
    shared_bias: bool = False,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
    binarize: bool = False,
) -> Array[F]:
    """Standardize the regions of a given mask, each with a gain and a bias of its own (RN-B).

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    mask : array (N, 1, A, B) of zeros and ones, or booleans
        1 is the foreground; another height and width are brought to those of ``x`` by nearest neighbours.
    foreground_gain, foreground_bias, background_gain, background_bias : arrays (C,)
        0 at initialization; a gain is added to 1.
    shared_bias : bool
        Add both biases at every pixel, as the authors' code does.
    stats, eps, eps_mode
        As in :func:`region_normalize`.
    binarize : bool
        Take values of at least 1/2 as foreground, instead of refusing values other than 0 and 1.

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        As :func:`region_normalize`.

    Notes
    -----
    ``y = x_hat (1 + gain_k) + bias_k`` on region k. There are no running statistics: training and use are the same.

    References
    ----------
    Yu et al. (2019), arXiv 1911.10375, section 3.2.

    Examples
    --------
    >>> x, mask, zero = np.array([[[[1.0, 3.0, 10.0, 14.0]]]]), np.array([[[[1, 1, 0, 0]]]]), np.zeros(1)
    >>> region_norm_basic(x, mask, np.array([1.0]), zero, zero, np.array([5.0]), eps=1e-12).round(6)
    array([[[[-2.,  2.,  4.,  6.]]]])
    """
    params = (foreground_gain, foreground_bias, background_gain, background_bias)
    options: dict[str, Any] = {
        "shared_bias": shared_bias,
        "stats": stats,
        "eps": eps,
        "eps_mode": eps_mode,
        "binarize": binarize,
    }
    return region_norm_basic_vjp(x, mask, *params, **options)[0]


def region_norm_basic_vjp(
    x: Array[F],
    mask: AnyArray,
    foreground_gain: Array[F],
    foreground_bias: Array[F],
    background_gain: Array[F],
    background_bias: Array[F],
    *,
    shared_bias: bool = False,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
    binarize: bool = False,
) -> tuple[Array[F], Pullback]:
    """Return :func:`region_norm_basic` and its pullback.

    The pullback is ``dy -> (dx, dforeground_gain, dforeground_bias, dbackground_gain, dbackground_bias)``.
    """
    x = _checks.float_array(x, "x", ndim=4)
    named = {
        "foreground_gain": foreground_gain,
        "foreground_bias": foreground_bias,
        "background_gain": background_gain,
        "background_bias": background_bias,
    }
    for name, array in named.items():
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (x.shape[1],))
    inside = _binary(resize_mask_nearest(mask, x.shape[2:]), (len(x), 1, *x.shape[2:]), binarize)
    x_hat, back = _standardize_regions(x, inside, stats, eps, eps_mode)
    gain_1, bias_1, gain_0, bias_0 = (np.reshape(array, (1, -1, 1, 1)) for array in named.values())
    scale = 1 + np.where(inside, gain_1, gain_0)
    shift = bias_1 + bias_0 if shared_bias else np.where(inside, bias_1, bias_0)
    y: Array[F] = (x_hat * scale + shift).astype(np.result_type(x, *named.values()))

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        def sums(values: AnyArray, region: AnyArray) -> AnyArray:
            return np.asarray(np.where(region, values, 0).sum(axis=(0, 2, 3), dtype=np.float64), dtype=x.dtype)

        everywhere = np.ones_like(inside)
        dbias_1, dbias_0 = (sums(dy, everywhere if shared_bias else region) for region in (inside, ~inside))
        dgain = dy * x_hat
        return back(dy * scale).astype(x.dtype), sums(dgain, inside), dbias_1, sums(dgain, ~inside), dbias_0

    return y, pullback


def region_norm_learnable(
    x: Array[F],
    map_weight: Array[F],
    gain_weight: Array[F],
    gain_bias: Array[F],
    bias_weight: Array[F],
    bias_bias: Array[F],
    *,
    threshold: float = 0.8,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
) -> Array[F]:
    """Standardize regions that are predicted from the features, with scale and shift at every pixel (RN-L).

    Parameters
    ----------
    x : array (N, C, H, W)
        Feature maps.
    map_weight : array (1, 2, A, B)
        From mean and maximum over the channels to one map; 7 x 7 in the paper, odd sizes, no bias.
    gain_weight, gain_bias, bias_weight, bias_bias : arrays (1, 1, A, B) and (1,)
        From that map, after a sigmoid, to gain and bias of every pixel.
    threshold : float in (0, 1)
        Pixels whose map is at least this are the foreground.
    stats, eps, eps_mode
        As in :func:`region_normalize`.

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong or an option out of range.

    Notes
    -----
    ``s = sigmoid(conv([mean_c x; max_c x]))``, ``mask = (s >= threshold)``, and
    ``y = x_hat (1 + conv(s)) + conv(s)``. The threshold has no gradient; the map learns through gain and bias.

    References
    ----------
    Yu et al. (2019), arXiv 1911.10375, section 3.3.

    Examples
    --------
    >>> x = np.random.default_rng(0).standard_normal((1, 3, 8, 8))
    >>> flat, zero = np.zeros((1, 1, 7, 7)), np.zeros(1)
    >>> y = region_norm_learnable(x, np.ones((1, 2, 7, 7)), flat, zero, flat, np.array([5.0]))
    >>> round(float(y.mean()), 6)
    5.0
    """
    params = (map_weight, gain_weight, gain_bias, bias_weight, bias_bias)
    options: dict[str, Any] = {"threshold": threshold, "stats": stats, "eps": eps, "eps_mode": eps_mode}
    return region_norm_learnable_vjp(x, *params, **options)[0]


def region_norm_learnable_vjp(
    x: Array[F],
    map_weight: Array[F],
    gain_weight: Array[F],
    gain_bias: Array[F],
    bias_weight: Array[F],
    bias_bias: Array[F],
    *,
    threshold: float = 0.8,
    stats: str = "batch",
    eps: float = 1e-5,
    eps_mode: str = "scaled",
) -> tuple[Array[F], Pullback]:
    """Return :func:`region_norm_learnable` and its pullback.

    The pullback is ``dy -> (dx, dmap_weight, dgain_weight, dgain_bias, dbias_weight, dbias_bias)``.
    """
    x = _checks.float_array(x, "x", ndim=4)
    _checks.not_empty(x, "x", range(4))
    _checks.in_range(threshold, "threshold", 0, 1, closed="neither")
    _check_filter(map_weight, "map_weight", 2)
    _check_filter(gain_weight, "gain_weight", 1)
    _check_filter(bias_weight, "bias_weight", 1)
    # The first of equal channels is the maximum.
    largest = x.real.argmax(axis=1)[:, None]
    pooled = np.concatenate([x.mean(axis=1, keepdims=True), np.take_along_axis(x, largest, axis=1)], axis=1)
    logit, back_map = _same_conv(pooled, map_weight, None)
    with np.errstate(over="ignore"):
        soft = 1 / (1 + np.exp(-logit))
    x_hat, back = _standardize_regions(x, soft.real >= threshold, stats, eps, eps_mode)
    gain_map, back_gain = _same_conv(soft, gain_weight, gain_bias)
    bias_map, back_bias = _same_conv(soft, bias_weight, bias_bias)
    y: Array[F] = (x_hat * (1 + gain_map) + bias_map).astype(np.result_type(x, gain_map, bias_map))

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        # Both maps are shared by all channels, so what they owe is summed over the channels.
        dgain_map = (dy * x_hat).sum(axis=1, keepdims=True).astype(x.dtype)
        dsoft, *dgain = back_gain(dgain_map)
        from_bias, *dbias = back_bias(np.sum(dy, axis=1, keepdims=True))
        dpooled, dmap_weight, _ = back_map((dsoft + from_bias) * soft * (1 - soft))
        dx = back(dy * (1 + gain_map)) + dpooled[:, :1] / x.shape[1]
        picked = np.take_along_axis(dx, largest, axis=1) + dpooled[:, 1:]
        np.put_along_axis(dx, largest, picked, axis=1)
        return dx.astype(x.dtype), dmap_weight, *dgain, *dbias

    return y, pullback


def _same_conv(x: AnyArray, weight: AnyArray, bias: AnyArray | None) -> tuple[AnyArray, Pullback]:
    return conv2d_vjp(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def _check_filter(weight: AnyArray, name: str, inputs: int) -> None:
    array = _checks.float_array(weight, name, ndim=4)
    if array.shape[:2] != (1, inputs) or array.shape[2] % 2 == 0 or array.shape[3] % 2 == 0:
        _checks.fail(name, f"shape (1, {inputs}, A, B) with odd A and B", f"shape {array.shape}")


def _binary(mask: AnyArray, shape: tuple[int, ...], binarize: bool) -> AnyArray:
    mask = np.asarray(mask)
    _checks.shape(mask, "mask", shape)
    if binarize:
        return np.asarray(mask >= 0.5)
    other = (mask != 0) & (mask != 1)
    if other.any():
        _checks.fail("mask", "zeros and ones (or binarize=True)", mask[other].ravel()[0])
    return np.asarray(mask != 0)
