"""Spatially adaptive normalization (SPADE): scale and shift of every pixel, computed from a semantic map.

hidden = silu(conv3x3(condition))
y      = x_hat * (1 + conv3x3(hidden; gain)) + conv3x3(hidden; bias)         (x_hat: group norm without affine)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import conv2d_vjp, linear_vjp, relu_vjp
from refnorm.norms._group_norm import standardize, standardize_groups_vjp

METHOD = Method(
    title="Enriching Information and Preserving Semantic Consistency in Expanding Curvilinear Object Segmentation "
    "Datasets",
    authors="Lei, Zhong, Dai",
    year=2024,
    arxiv="2407.08209",
    functions=(
        "SpadeBlockParams",
        "SpadeParams",
        "init_spade",
        "init_spade_block",
        "spade",
        "spade_modulate",
        "spade_resblock",
        "zero_conv_add",
    ),
    chapter="norms/spatially_adaptive_norm",
)

_NORMS = ("group", "batch", "instance")


class SpadeParams(NamedTuple):
    """Weights and biases of the three convolutions of :func:`spade`, in the order of its arguments.

    Parameters
    ----------
    hidden_weight, hidden_bias : arrays (M, S, A, B) and (M,)
        From the S channels of the condition to M hidden ones; odd filter sizes.
    gain_weight, gain_bias, bias_weight, bias_bias : arrays (C, M, A, B) and (C,)
        The two heads.
    """

    hidden_weight: AnyArray
    hidden_bias: AnyArray
    gain_weight: AnyArray
    gain_bias: AnyArray
    bias_weight: AnyArray
    bias_bias: AnyArray


class SpadeBlockParams(NamedTuple):
    """Parameters of :func:`spade_resblock`.

    Parameters
    ----------
    first, second : SpadeParams
        The two normalizations, of C and of O channels.
    first_weight, first_bias, second_weight, second_bias
        The two convolutions, (O, C, A, B) and (O, O, A, B).
    time_weight : array (T, O) or None
        From a time embedding to the channels.
    shortcut_weight, shortcut_bias : arrays (O, C, 1, 1) and (O,), or None
        Needed if C and O differ.
    """

    first: SpadeParams
    first_weight: AnyArray
    first_bias: AnyArray
    second: SpadeParams
    second_weight: AnyArray
    second_bias: AnyArray
    time_weight: AnyArray | None = None
    shortcut_weight: AnyArray | None = None
    shortcut_bias: AnyArray | None = None


def init_spade(
    channels: int,
    condition_channels: int,
    hidden: int,
    rng: np.random.Generator,
    *,
    zero_heads: bool = False,
    dtype: Any = np.float64,
) -> SpadeParams:
    """Return initial parameters of :func:`spade` with 3 x 3 filters.

    Parameters
    ----------
    channels, condition_channels, hidden : ints >= 1
        Channels of ``x``, of the condition and in between.
    rng : numpy.random.Generator
    zero_heads : bool
        Start both heads at zero: then the layer starts as the plain norm.
    dtype : float32 or float64

    Returns
    -------
    SpadeParams

    Raises
    ------
    TypeError
        If a number is not an integer or ``rng`` not a generator.
    ValueError
        If a number is below 1.

    Notes
    -----
    Weights and biases are uniform between ``-1 / sqrt(fan_in)`` and ``1 / sqrt(fan_in)``.

    References
    ----------
    Lei et al. (2024), arXiv 2407.08209, and the authors' code.

    Examples
    --------
    >>> params = init_spade(4, 2, 8, np.random.default_rng(0))
    >>> [p.shape for p in params]
    [(8, 2, 3, 3), (8,), (4, 8, 3, 3), (4,), (4, 8, 3, 3), (4,)]
    """
    rng = _checks.generator(rng)
    channels = _checks.whole(channels, "channels", low=1)
    condition_channels = _checks.whole(condition_channels, "condition_channels", low=1)
    hidden = _checks.whole(hidden, "hidden", low=1)
    first = _uniform_conv(rng, hidden, condition_channels, 3, dtype)
    heads = [_uniform_conv(rng, channels, hidden, 3, dtype) for _ in range(2)]
    if zero_heads:
        heads = [(np.zeros_like(weight), np.zeros_like(bias)) for weight, bias in heads]
    return SpadeParams(*first, *heads[0], *heads[1])


def init_spade_block(
    channels: int,
    outputs: int,
    condition_channels: int,
    hidden: int,
    rng: np.random.Generator,
    *,
    time_features: int = 0,
    zero_heads: bool = False,
    dtype: Any = np.float64,
) -> SpadeBlockParams:
    """Return initial parameters of :func:`spade_resblock`, with 3 x 3 filters.

    Parameters
    ----------
    channels, outputs : ints >= 1
        Channels before and after; a 1 x 1 shortcut is made if they differ.
    condition_channels, hidden : ints >= 1
        As in :func:`init_spade`.
    rng : numpy.random.Generator
    time_features : int >= 0
        Length of a time embedding; 0 for none.
    zero_heads : bool
        As in :func:`init_spade`.
    dtype : float32 or float64

    Returns
    -------
    SpadeBlockParams

    Raises
    ------
    TypeError, ValueError
        As :func:`init_spade`.

    Examples
    --------
    >>> params = init_spade_block(4, 6, 2, 8, np.random.default_rng(0))
    >>> params.second_weight.shape, params.shortcut_weight.shape, params.time_weight
    ((6, 6, 3, 3), (6, 4, 1, 1), None)
    """
    outputs = _checks.whole(outputs, "outputs", low=1)
    time_features = _checks.whole(time_features, "time_features", low=0)
    spades = [
        init_spade(size, condition_channels, hidden, rng, zero_heads=zero_heads, dtype=dtype)
        for size in (channels, outputs)
    ]
    first, second = (_uniform_conv(rng, outputs, size, 3, dtype) for size in (channels, outputs))
    bound = 1 / np.sqrt(max(time_features, 1))
    time_weight = rng.uniform(-bound, bound, (time_features, outputs)).astype(dtype) if time_features else None
    shortcut = _uniform_conv(rng, outputs, channels, 1, dtype) if channels != outputs else (None, None)
    return SpadeBlockParams(spades[0], *first, spades[1], *second, time_weight, *shortcut)


def _uniform_conv(
    rng: np.random.Generator, outputs: int, inputs: int, size: int, dtype: Any
) -> tuple[AnyArray, AnyArray]:
    bound = 1 / np.sqrt(inputs * size * size)
    weight = rng.uniform(-bound, bound, (outputs, inputs, size, size))
    return weight.astype(dtype), rng.uniform(-bound, bound, outputs).astype(dtype)


def spade_modulate(x_hat: Array[F], gain_map: Array[F], bias_map: Array[F]) -> Array[F]:
    """Scale and shift every entry by maps: ``x_hat (1 + gain_map) + bias_map``.

    Parameters
    ----------
    x_hat, gain_map, bias_map : arrays of one shape
        Normalized features and the maps; maps of zeros leave the features as they are.

    Returns
    -------
    array, shape and dtype of ``x_hat``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If the shapes differ.

    References
    ----------
    Lei et al. (2024), arXiv 2407.08209; Park et al. (2019), arXiv 1903.07291, equation 1.

    Examples
    --------
    >>> spade_modulate(np.array([-1.0, 1.0]), np.array([0.5, -0.5]), np.array([1.0, 2.0]))
    array([-0.5,  2.5])
    """
    return spade_modulate_vjp(x_hat, gain_map, bias_map)[0]


def spade_modulate_vjp(x_hat: Array[F], gain_map: Array[F], bias_map: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`spade_modulate` and its pullback ``dy -> (dx_hat, dgain_map, dbias_map)``."""
    x_hat = _checks.float_array(x_hat, "x_hat")
    for name, array in (("gain_map", gain_map), ("bias_map", bias_map)):
        _checks.same_dtype("x_hat", x_hat, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, x_hat.shape)
    y: Array[F] = np.asarray(x_hat * (1 + gain_map) + bias_map)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # A product and a sum; nothing is shared, so nothing is summed.
        return dy * (1 + gain_map), dy * x_hat, np.asarray(dy)

    return y, pullback


def spade(
    x: Array[F],
    condition: Array[F],
    hidden_weight: Array[F],
    hidden_bias: Array[F],
    gain_weight: Array[F],
    gain_bias: Array[F],
    bias_weight: Array[F],
    bias_bias: Array[F],
    *,
    norm: str = "group",
    groups: int = 32,
    activation: str = "silu",
    eps: float = 1e-5,
    resize: str | None = None,
) -> Array[F]:
    """Normalize features and put scale and shift from a semantic map at every pixel.

    Parameters
    ----------
    x : array (N, C, H, W)
        Features.
    condition : array (N, S, H, W)
        Semantic features or one-hot labels; another height and width with ``resize``.
    hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias
        Of three convolutions with odd filters and zero padding, as in :class:`SpadeParams`.
    norm : ``"group"``, ``"batch"`` or ``"instance"``
        What is normalized over, always without gain and bias.
    groups : int >= 1
        Number of groups for ``norm="group"``.
    activation : ``"silu"`` or ``"relu"``
        After the first convolution.
    eps : float > 0
        Added to the variance.
    resize : ``None`` or ``"nearest"``
        Whether to bring the condition to the size of ``x``; pixel ``i`` of ``n`` copies pixel ``floor(i m / n)``
        of ``m``.

    Returns
    -------
    array (N, C, H, W), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64 (integer labels must be one-hot first), or the dtypes differ.
    ValueError
        If ``groups`` does not divide C, sizes differ and ``resize`` is ``None``, a shape is wrong, a filter has an
        even size, or an option is unknown.

    Notes
    -----
    ``y = x_hat (1 + gain_map) + bias_map``. Where ``x`` is constant, ``x_hat`` is 0 and ``y`` is the bias map: what
    the map says cannot be normalized away.

    References
    ----------
    Lei et al. (2024), arXiv 2407.08209 (group norm, SiLU, no resizing); Park, Liu, Wang, Zhu (2019), arXiv
    1903.07291 (batch norm, ReLU, nearest neighbour).

    Examples
    --------
    >>> params = init_spade(4, 1, 8, np.random.default_rng(0))
    >>> mask = np.zeros((1, 1, 5, 5))
    >>> mask[..., 2, :] = 1
    >>> spade(np.ones((1, 4, 5, 5)), mask, *params, groups=2).shape
    (1, 4, 5, 5)
    """
    params = (hidden_weight, hidden_bias, gain_weight, gain_bias, bias_weight, bias_bias)
    options: dict[str, Any] = {"norm": norm, "groups": groups, "activation": activation, "eps": eps, "resize": resize}
    return spade_vjp(x, condition, *params, **options)[0]


def spade_vjp(
    x: Array[F],
    condition: Array[F],
    hidden_weight: Array[F],
    hidden_bias: Array[F],
    gain_weight: Array[F],
    gain_bias: Array[F],
    bias_weight: Array[F],
    bias_bias: Array[F],
    *,
    norm: str = "group",
    groups: int = 32,
    activation: str = "silu",
    eps: float = 1e-5,
    resize: str | None = None,
) -> tuple[Array[F], Pullback]:
    """Return :func:`spade` and its pullback.

    The pullback is ``dy -> (dx, dcondition, dhidden_weight, dhidden_bias, dgain_weight, dgain_bias, dbias_weight,
    dbias_bias)``.
    """
    x, condition = _checks.float_array(x, "x", ndim=4), _checks.float_array(condition, "condition", ndim=4)
    _checks.same_dtype("x", x, condition=condition)
    _checks.one_of(norm, "norm", _NORMS)
    _checks.one_of(activation, "activation", ("silu", "relu"))
    _checks.one_of(resize, "resize", (None, "nearest"))
    _checks.shape(gain_weight, "gain_weight", (x.shape[1], *np.shape(gain_weight)[1:]))
    _checks.shape(bias_weight, "bias_weight", (x.shape[1], *np.shape(bias_weight)[1:]))
    x_hat, back_norm = _normalize(x, norm, groups, eps)
    if resize is None:
        _checks.shape(condition, "condition", (len(x), condition.shape[1], *x.shape[2:]))
    resized, back_resize = _resize_nearest(condition, x.shape[2:])
    raw, back_hidden = _same_conv(resized, hidden_weight, hidden_bias, "hidden_weight")
    hidden, back_act = (_silu_vjp if activation == "silu" else relu_vjp)(raw)
    gain_map, back_gain = _same_conv(hidden, gain_weight, gain_bias, "gain_weight")
    bias_map, back_bias = _same_conv(hidden, bias_weight, bias_bias, "bias_weight")
    y, back_modulate = spade_modulate_vjp(x_hat, gain_map, bias_map)

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        dx_hat, dgain_map, dbias_map = back_modulate(dy)
        # Both heads read the same hidden features, whose cotangent is the sum of what the two owe.
        from_gain, *dgain = back_gain(dgain_map)
        from_bias, *dbias = back_bias(dbias_map)
        dresized, *dhidden = back_hidden(back_act(from_gain + from_bias)[0])
        return back_norm(dx_hat), back_resize(dresized), *dhidden, *dgain, *dbias

    return y, pullback


def _normalize(x: AnyArray, norm: str, groups: int, eps: float) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    if norm == "group":
        x_hat, back = standardize_groups_vjp(x, groups=groups, eps=eps)
        return x_hat, lambda dx_hat: back(dx_hat)[0]
    _checks.positive(eps, "eps")
    over = (0, 2, 3) if norm == "batch" else (2, 3)
    _checks.not_empty(x, "x", over)
    wide, back_wide = standardize(x, over, eps)
    return wide.astype(x.dtype), lambda dx_hat: back_wide(dx_hat).astype(x.dtype)


def _same_conv(x: AnyArray, weight: AnyArray, bias: AnyArray, name: str) -> tuple[AnyArray, Pullback]:
    """Convolve with a padding that keeps height and width."""
    weight = _checks.float_array(weight, name, ndim=4)
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        _checks.fail(name, "a filter with odd sizes", f"shape {weight.shape}")
    _checks.shape(weight, name, (len(weight), x.shape[1], *weight.shape[2:]))
    return conv2d_vjp(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))


def _silu_vjp(x: AnyArray) -> tuple[AnyArray, Pullback]:
    with np.errstate(over="ignore"):
        gate = 1 / (1 + np.exp(-x))

    def pullback(dy: AnyArray) -> tuple[AnyArray]:
        # (x s(x))' = s + x s (1 - s)
        return (dy * gate * (1 + x * (1 - gate)),)

    return x * gate, pullback


def _resize_nearest(condition: AnyArray, size: tuple[int, ...]) -> tuple[AnyArray, Callable[[AnyArray], AnyArray]]:
    """Copy pixels: a product with matrices of zeros and ones on both sides, whose adjoint is their transposes."""
    if condition.shape[2:] == size:
        return condition, lambda dresized: dresized
    down, across = (
        np.eye(m, dtype=condition.dtype)[np.arange(n) * m // n] for m, n in zip(condition.shape[2:], size, strict=True)
    )
    return down @ condition @ across.T, lambda dresized: down.T @ dresized @ across


def spade_resblock(
    x: Array[F],
    condition: Array[F],
    params: SpadeBlockParams,
    time_embedding: Array[F] | None = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> Array[F]:
    """Apply a residual block whose two norms are spatially adaptive.

    Parameters
    ----------
    x : array (N, C, H, W)
    condition : array (N, S, H, W)
        Semantic features.
    params : SpadeBlockParams
    time_embedding : array (N, T), optional
        Added to the features between the two halves, by ``params.time_weight``.
    groups : int >= 1
        Groups of both norms.
    eps : float > 0
        Added to the variances.

    Returns
    -------
    array (N, O, H, W), dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, the channels change without a shortcut, or only one of ``time_embedding`` and
        ``params.time_weight`` is given.

    Notes
    -----
    ``h = conv(silu(spade(x, condition))) + time``, ``y = shortcut(x) + conv(silu(spade(h, condition)))``.

    References
    ----------
    Lei et al. (2024), arXiv 2407.08209, and the authors' code.

    Examples
    --------
    >>> params = init_spade_block(4, 6, 1, 8, np.random.default_rng(0))
    >>> spade_resblock(np.ones((2, 4, 5, 5)), np.ones((2, 1, 5, 5)), params, groups=2).shape
    (2, 6, 5, 5)
    """
    return spade_resblock_vjp(x, condition, params, time_embedding, groups=groups, eps=eps)[0]


def spade_resblock_vjp(
    x: Array[F],
    condition: Array[F],
    params: SpadeBlockParams,
    time_embedding: Array[F] | None = None,
    *,
    groups: int = 32,
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]:
    """Return :func:`spade_resblock` and its pullback ``dy -> (dx, dcondition, dparams, dtime_embedding)``.

    ``dparams`` is a :class:`SpadeBlockParams`; the last entry is ``None`` without a time embedding.
    """
    if (time_embedding is None) != (params.time_weight is None):
        _checks.fail("time_embedding", "both of it and params.time_weight, or neither", "only one of them")
    outputs = len(params.first_weight)
    if params.shortcut_weight is None and outputs != np.shape(x)[1]:
        _checks.fail("params.shortcut_weight", "a 1 x 1 filter where the channels change", None)
    h, back_first = _half(
        x, condition, params.first, params.first_weight, params.first_bias, groups, eps, "params.first_weight"
    )
    back_time = None
    if time_embedding is not None and params.time_weight is not None:
        shift, back_time = linear_vjp(time_embedding, params.time_weight)
        h = h + shift[:, :, None, None]
    branch, back_second = _half(
        h, condition, params.second, params.second_weight, params.second_bias, groups, eps, "params.second_weight"
    )
    straight, back_shortcut = x, None
    if params.shortcut_weight is not None:
        straight, back_shortcut = conv2d_vjp(x, params.shortcut_weight, params.shortcut_bias)

    def pullback(dy: Array[F]) -> tuple[Any, ...]:
        # The sum hands dy to both branches; x and the condition are read twice and collect from both readers.
        dh, dcondition, *dsecond = back_second(dy)
        dtime = dtime_weight = None
        if back_time is not None:
            dtime, dtime_weight, _ = back_time(dh.sum(axis=(2, 3)))
        dx, dcondition_first, *dfirst = back_first(dh)
        dshortcut = (None, None)
        if back_shortcut is None:
            dx = dx + dy
        else:
            dstraight, *rest = back_shortcut(dy)
            dx, dshortcut = dx + dstraight, (rest[0], rest[1])
        rest_of_params = (*dfirst, *dsecond, dtime_weight, *dshortcut)
        dparams = SpadeBlockParams._make(rest_of_params)
        return dx, dcondition + dcondition_first, dparams, dtime

    return straight + branch, pullback


def _half(
    x: AnyArray,
    condition: AnyArray,
    params: SpadeParams,
    weight: AnyArray,
    bias: AnyArray,
    groups: int,
    eps: float,
    name: str,
) -> tuple[AnyArray, Callable[[AnyArray], tuple[Any, ...]]]:
    """Return ``conv(silu(spade(x)))`` and its pullback to (x, condition, SpadeParams, weight, bias)."""
    normal, back_spade = spade_vjp(x, condition, *params, groups=groups, eps=eps)
    active, back_act = _silu_vjp(normal)
    y, back_conv = _same_conv(active, weight, bias, name)

    def pullback(dy: AnyArray) -> tuple[Any, ...]:
        dactive, dweight, dbias = back_conv(dy)
        dx, dcondition, *rest = back_spade(back_act(dactive)[0])
        return dx, dcondition, SpadeParams(*rest), dweight, dbias

    return y, pullback


def zero_conv_add(backbone: Array[F], control: Array[F], weight: Array[F], bias: Array[F]) -> Array[F]:
    """Add a control branch to a backbone through a 1 x 1 convolution that starts at zero.

    Parameters
    ----------
    backbone : array (N, C, H, W)
        Features of the pretrained network.
    control : array (N, D, H, W)
        Features of the control branch.
    weight, bias : arrays (C, D, 1, 1) and (C,)
        Zero at initialization.

    Returns
    -------
    array (N, C, H, W), dtype of ``backbone``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong.

    Notes
    -----
    With zeros the backbone comes out unchanged, bit for bit, while the weight's own gradient is not zero. No
    gradient reaches the control branch before the first update.

    References
    ----------
    Zhang, Rao, Agrawala (2023), arXiv 2302.05543, section 3.1, used by Lei et al. (2024).

    Examples
    --------
    >>> backbone, control = np.full((1, 1, 1, 1), 3.0), np.full((1, 2, 1, 1), 5.0)
    >>> zero_conv_add(backbone, control, np.ones((1, 2, 1, 1)), np.zeros(1))
    array([[[[13.]]]])
    """
    return zero_conv_add_vjp(backbone, control, weight, bias)[0]


def zero_conv_add_vjp(
    backbone: Array[F], control: Array[F], weight: Array[F], bias: Array[F]
) -> tuple[Array[F], Pullback]:
    """Return :func:`zero_conv_add` and its pullback ``dy -> (dbackbone, dcontrol, dweight, dbias)``."""
    backbone = _checks.float_array(backbone, "backbone", ndim=4)
    control, weight = _checks.float_array(control, "control", ndim=4), _checks.float_array(weight, "weight", ndim=4)
    _checks.same_dtype("backbone", backbone, control=control)
    _checks.shape(control, "control", (len(backbone), control.shape[1], *backbone.shape[2:]))
    _checks.shape(weight, "weight", (backbone.shape[1], control.shape[1], 1, 1))
    added, back = conv2d_vjp(control, weight, bias)
    y: Array[F] = backbone + added

    def pullback(dy: Array[F]) -> tuple[Array[F], ...]:
        return np.asarray(dy), *back(dy)

    return y, pullback
