"""Power normalization: a running quadratic mean in the place of mean and deviation.

y           = gain * x / sqrt(mean_square + eps) + bias               (mean_square: of earlier batches)
mean_square = decay * mean_square + (1 - decay) * mean(x^2)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="PowerNorm: Rethinking Batch Normalization in Transformers",
    authors="Shen, Yao, Gholami, Mahoney, Keutzer",
    year=2020,
    arxiv="2003.07845",
    functions=("PowerNormState", "group_scale", "power_norm", "power_norm_v"),
    chapter="norms/power_norm",
)


@dataclass(frozen=True)
class PowerNormState:
    """What power norm carries from batch to batch.

    Parameters
    ----------
    mean_square : array (C,)
        Running mean of squares; 1 before the first batch.
    backward_mean : array (C,)
        Running estimate of the backward statistic; 0 before the first batch.
    iteration : int
        Number of batches seen.

    Examples
    --------
    >>> PowerNormState.create(1)
    PowerNormState(mean_square=array([1.]), backward_mean=array([0.]), iteration=0)
    """

    mean_square: AnyArray
    backward_mean: AnyArray
    iteration: int = 0

    @classmethod
    def create(cls, channels: int, dtype: Any = np.float64) -> PowerNormState:
        """Return the state before the first batch."""
        channels = _checks.whole(channels, "channels", low=1)
        return cls(np.ones(channels, dtype), np.zeros(channels, dtype))


def power_norm_v(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, mask: AnyArray | None = None
) -> Array[F]:
    """Divide each channel by its root mean square over the batch's tokens.

    Parameters
    ----------
    x : array (..., C)
        Tokens; all axes but the last are averaged over.
    gain, bias : arrays (C,)
        1 and 0 at initialization.
    eps : float > 0
        Added to the mean square.
    mask : boolean array (...), optional
        True for tokens that count; padding is normalized along but not averaged.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or the mask is not boolean.
    ValueError
        If a shape is wrong, no token counts or ``eps <= 0``.

    Notes
    -----
    ``y = gain x / sqrt(mean(x^2) + eps) + bias``: nothing is subtracted. This is the form with batch statistics,
    whose gradient is exact.

    References
    ----------
    Shen et al. (2020), arXiv 2003.07845, section 3.2 (PN-V).

    Examples
    --------
    >>> power_norm_v(np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1)).round(6)
    array([[0.848528],
           [1.13137 ]])
    """
    return power_norm_v_vjp(x, gain, bias, eps=eps, mask=mask)[0]


def power_norm_v_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, mask: AnyArray | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`power_norm_v` and its pullback ``dy -> (dx, dgain, dbias)``."""
    x, counted = _checked(x, gain, bias, eps, mask)
    tokens = tuple(range(x.ndim - 1))
    wide = _wide(x)
    inv = 1 / np.sqrt(_mean_over(wide * wide, counted) + eps)
    z = wide * inv
    y: Array[F] = (gain * z + bias).astype(np.result_type(x, gain, bias))

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # dz = inv (dx - z mean(z dx)), the mean over counted tokens. Transposed: every token's cotangent enters
        # the sum, and only counted tokens pay for it.
        dz = dy * gain
        along = (dz * z).sum(axis=tokens) / counted.sum()
        dx = inv * (dz - np.where(counted, z, 0) * along)
        dgain, dbias = (dy * z).sum(axis=tokens), np.sum(dy, axis=tokens, dtype=np.float64)
        return dx.astype(x.dtype), dgain.astype(x.dtype), dbias.astype(x.dtype)

    return y, pullback


def group_scale(x: Array[F], *, groups: int = 1, eps: float = 1e-5) -> Array[F]:
    """Divide each token by its root mean square over groups of channels.

    Parameters
    ----------
    x : array (..., C)
    groups : int >= 1
        Number of groups; it divides C.
    eps : float > 0
        Added to the mean square.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64, or ``groups`` is not an integer.
    ValueError
        If ``groups`` does not divide C, there are no channels or ``eps <= 0``.

    Notes
    -----
    ``x / sqrt(mean_of_group(x^2) + eps)``, root mean square norm without a gain.

    References
    ----------
    Shen et al. (2020), arXiv 2003.07845, and the authors' code.

    Examples
    --------
    >>> group_scale(np.array([[3.0, 4.0, 10.0, 10.0]]), groups=2).round(6)
    array([[0.848528, 1.13137 , 1.      , 1.      ]])
    """
    return group_scale_vjp(x, groups=groups, eps=eps)[0]


def group_scale_vjp(x: Array[F], *, groups: int = 1, eps: float = 1e-5) -> tuple[Array[F], Pullback]:
    """Return :func:`group_scale` and its pullback ``dy -> (dx,)``."""
    x = _checks.float_array(x, "x", min_ndim=1)
    groups = _checks.whole(groups, "groups", low=1)
    channels = x.shape[-1]
    if channels % groups or not channels:
        _checks.fail("groups", f"a divisor of the {channels} channels", groups)
    _checks.positive(eps, "eps")
    blocks = (*x.shape[:-1], groups, channels // groups)
    wide = _wide(x).reshape(blocks)
    inv = 1 / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + eps)
    scaled = wide * inv
    y: Array[F] = scaled.reshape(x.shape).astype(x.dtype)

    def pullback(dy: Array[F]) -> tuple[Array[F]]:
        dblocks = np.reshape(dy, blocks)
        dx = inv * (dblocks - scaled * (dblocks * scaled).mean(axis=-1, keepdims=True))
        return (dx.reshape(x.shape).astype(x.dtype),)

    return y, pullback


def power_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: PowerNormState,
    *,
    decay_forward: float = 0.9,
    decay_backward: float = 0.9,
    warmup: int = 10000,
    groups: int | None = 1,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
    backward_scale: str = "running",
) -> tuple[Array[F], PowerNormState]:
    """Scale tokens by groups, then divide each channel by the running root mean square.

    Parameters
    ----------
    x : array (..., C)
        Tokens.
    gain, bias : arrays (C,)
        1 and 0 at initialization.
    state : PowerNormState
        Before this batch.
    decay_forward, decay_backward : floats in [0, 1)
        Weight of the past in the running mean square and in the backward statistic.
    warmup : int >= 0
        Number of first batches that are divided by their own mean square.
    groups : int >= 1 or ``None``
        For :func:`group_scale`, which comes first; ``None`` leaves it out.
    eps : float > 0
        Added to mean squares.
    mask : boolean array (...), optional
        True for tokens that count in the statistics.
    training : bool
        False uses the running mean square and leaves the state.
    backward_scale : ``"running"`` or ``"batch"``
        What the pullback divides by: what the forward pass divided by, or this batch's root mean square, as the
        authors' code does after warm-up, too.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : PowerNormState
        Mean square and iteration after this batch; the backward statistic comes from the pullback.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or the mask is not boolean.
    ValueError
        If a shape is wrong, no token counts or an option is out of range.

    Notes
    -----
    After warm-up, batch t is divided by the mean square of batches before it: nothing about it depends on its own
    statistics. During warm-up the running value is first moved to the plain average of all batches so far.

    References
    ----------
    Shen et al. (2020), arXiv 2003.07845, algorithm 2.

    Examples
    --------
    >>> x, one, zero = np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> y, state = power_norm(x, one, zero, PowerNormState.create(1), warmup=0, groups=None, eps=1e-12)
    >>> y.ravel().round(6), state.mean_square.round(6)
    (array([3., 4.]), array([2.15]))
    """
    options: dict[str, Any] = {
        "decay_forward": decay_forward,
        "decay_backward": decay_backward,
        "warmup": warmup,
        "groups": groups,
        "eps": eps,
        "mask": mask,
        "training": training,
        "backward_scale": backward_scale,
    }
    return power_norm_vjp(x, gain, bias, state, **options)[0]


def power_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: PowerNormState,
    *,
    decay_forward: float = 0.9,
    decay_backward: float = 0.9,
    warmup: int = 10000,
    groups: int | None = 1,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
    backward_scale: str = "running",
) -> tuple[tuple[Array[F], PowerNormState], Pullback]:
    """Return :func:`power_norm` and its pullback ``dy -> ((dx, dgain, dbias), state)``.

    The gradient of ``x`` is approximate by design: the batch's part of it is estimated from earlier batches. The
    state that the pullback returns is complete and belongs into the next call.
    """
    x, counted = _checked(x, gain, bias, eps, mask)
    mean_square, backward_mean = _checked_state(state, x)
    _checks.in_range(decay_forward, "decay_forward", 0, 1, closed="left")
    _checks.in_range(decay_backward, "decay_backward", 0, 1, closed="left")
    warmup = _checks.whole(warmup, "warmup", low=0)
    _checks.one_of(backward_scale, "backward_scale", ("running", "batch"))
    tokens = tuple(range(x.ndim - 1))
    scaled, back_groups = (x, None) if groups is None else group_scale_vjp(x, groups=groups, eps=eps)

    wide = _wide(scaled)
    batch_square = _mean_over(wide * wide, counted).real
    iteration = state.iteration + 1
    used, after = mean_square, state
    if training:
        moved = mean_square
        if iteration <= warmup:
            used = batch_square
            moved = moved * ((iteration - 1) / iteration) + batch_square / iteration
        moved = decay_forward * moved + (1 - decay_forward) * batch_square
        after = PowerNormState(moved.astype(state.mean_square.dtype), state.backward_mean, iteration)
    z = wide / np.sqrt(used + eps)
    y: Array[F] = (gain * z + bias).astype(np.result_type(x, gain, bias))

    def pullback(dy: Array[F]) -> tuple[tuple[Array[F], Array[F], Array[F]], PowerNormState]:
        dz, final = dy * gain, after
        if training:
            # The exact term would be z mean(dz z) if z were scaled by its own batch. Its running estimate takes
            # the place, and moves to where its own effect, backward_mean mean(z^2), balances mean(dz z).
            count = counted.sum()
            power = (np.where(counted, z, 0) ** 2).sum(axis=tokens) / count
            along = (dz * z).sum(axis=tokens) / count
            dz = dz - np.where(counted, z, 0) * backward_mean
            moved = backward_mean * (1 - (1 - decay_backward) * power) + (1 - decay_backward) * along
            final = replace(after, backward_mean=moved.astype(state.backward_mean.dtype))
        divisor = batch_square if training and backward_scale == "batch" else used
        dx = (dz / np.sqrt(divisor + eps)).astype(x.dtype)
        if back_groups is not None:
            (dx,) = back_groups(dx)
        dgain, dbias = (dy * z).sum(axis=tokens), np.sum(dy, axis=tokens, dtype=np.float64)
        return (dx, dgain.astype(x.dtype), dbias.astype(x.dtype)), final

    return (y, after), pullback


def _wide(x: AnyArray) -> AnyArray:
    return x.astype(np.result_type(x, np.float64), copy=False)


def _mean_over(values: AnyArray, counted: AnyArray) -> AnyArray:
    """Mean over the counted tokens, one number a channel."""
    total = np.where(counted, values, 0).sum(axis=tuple(range(values.ndim - 1)))
    return np.asarray(total / counted.sum())


def _checked(
    x: AnyArray, gain: AnyArray, bias: AnyArray, eps: float, mask: AnyArray | None
) -> tuple[AnyArray, AnyArray]:
    """Return ``x``, and which tokens count, with a last axis of one."""
    x = _checks.float_array(x, "x", min_ndim=2)
    for name, array in (("gain", gain), ("bias", bias)):
        _checks.same_dtype("x", x, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, x.shape[-1:])
    _checks.positive(eps, "eps")
    counted = np.ones(x.shape[:-1], bool) if mask is None else np.asarray(mask)
    if counted.dtype != bool:
        _checks.fail_type("mask", "a boolean array", f"dtype {counted.dtype}")
    _checks.shape(counted, "mask", x.shape[:-1])
    if not counted.any():
        _checks.fail("mask" if mask is not None else "x", "at least one token that counts", f"shape {x.shape}")
    return x, counted[..., None]


def _checked_state(state: PowerNormState, x: AnyArray) -> tuple[AnyArray, AnyArray]:
    arrays = []
    for name, array in (("mean_square", state.mean_square), ("backward_mean", state.backward_mean)):
        array = _checks.float_array(array, f"state.{name}")
        _checks.same_dtype("x", x, **{f"state.{name}": array})
        _checks.shape(array, f"state.{name}", x.shape[-1:])
        arrays.append(array.astype(np.float64))
    if arrays[0].min() < 0:
        _checks.fail("state.mean_square", "values >= 0", arrays[0].min())
    return arrays[0], arrays[1]
