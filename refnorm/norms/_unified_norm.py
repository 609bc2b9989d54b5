"""Unified normalization: a quadratic mean smoothed over the last few batches, foldable into the next layer.

y           = gain * x / sqrt(used + eps) + bias         (used: geometric mean of the last batches' mean squares)
mean_square = momentum * mean_square + (1 - momentum) * used                                       (for inference)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.norms._power_norm import _checked, _mean_over, _wide

METHOD = Method(
    title="Unified Normalization for Accelerating and Stabilizing Transformers",
    authors="Yang, Zhang, Lan, Yang, Li, Tan, Xiao, Pu",
    year=2022,
    arxiv="2208.01313",
    functions=("UnifiedNormState", "fold_into_linear", "unified_norm"),
    chapter="norms/unified_norm",
)

SMALLEST_SQUARE = 1e-12
"""Mean squares are raised to this before their logarithm is taken: a channel that is 0 in one batch would make the
geometric mean 0. It is below eps by seven orders of magnitude, so it decides nothing else."""

RATIO_FROM, RATIO_LIMIT = 1000, 5.0
"""The gradient is rescaled for a change of scale after this many batches, and by no more than this factor."""


@dataclass(frozen=True)
class UnifiedNormState:
    """What unified norm carries from batch to batch.

    Parameters
    ----------
    forward_buffer, backward_buffer : arrays (W, C)
        Mean squares and gradient statistics of the last batches; 0 before the first.
    mean_square : array (C,)
        Running value for inference; 1 before the first batch.
    backward_mean : array (C,)
        Running gradient statistic; 0 before the first batch.
    iteration, skipped : ints
        Batches seen, and how many of them the filter took for outliers.

    Examples
    --------
    >>> state = UnifiedNormState.create(2)
    >>> state.forward_buffer.shape, state.mean_square
    ((4, 2), array([1., 1.]))
    """

    forward_buffer: AnyArray
    backward_buffer: AnyArray
    mean_square: AnyArray
    backward_mean: AnyArray
    iteration: int = 0
    skipped: int = 0

    @classmethod
    def create(
        cls, channels: int, window: int = 4, *, backward_window: int | None = None, dtype: Any = np.float64
    ) -> UnifiedNormState:
        """Return the state before the first batch; both windows are ``window`` unless given."""
        channels, window = _checks.whole(channels, "channels", low=1), _checks.whole(window, "window", low=1)
        backward = window if backward_window is None else _checks.whole(backward_window, "backward_window", low=1)
        return cls(
            np.zeros((window, channels), dtype),
            np.zeros((backward, channels), dtype),
            np.ones(channels, dtype),
            np.zeros(channels, dtype),
        )


def unified_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnifiedNormState,
    *,
    momentum: float = 0.9,
    warmup: int = 4000,
    outlier_filtration: bool = False,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
) -> tuple[Array[F], UnifiedNormState]:
    """Divide each channel by a root mean square that is smoothed over the last batches.

    Parameters
    ----------
    x : array (..., C)
        Tokens; all axes but the last are averaged over.
    gain, bias : arrays (C,)
        1 and 0 at initialization.
    state : UnifiedNormState
        Before this batch; its buffers have the lengths of the windows.
    momentum : float in (0, 1)
        Weight of the past in running values.
    warmup : int >= 0
        Number of first batches that are divided by their own root mean square.
    outlier_filtration : bool
        Whether a batch whose statistics stand out is divided by its own, too, and kept out of the buffer.
    eps : float > 0
        Added to mean squares.
    mask : boolean array (...), optional
        True for tokens that count in the statistics.
    training : bool
        False uses the running value and leaves the state.

    Returns
    -------
    y : array, shape and dtype of ``x``
    state : UnifiedNormState
        After this batch's forward pass; the backward statistics come from the pullback.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, the dtypes differ, or the mask is not boolean.
    ValueError
        If a shape is wrong, no token counts or an option is out of range.

    Notes
    -----
    The statistic is ``exp(mean(log(last mean squares)))``. A batch is an outlier if for any channel the arithmetic
    exceeds the geometric mean by more than the window's length times the variance of all recorded root mean
    squares.

    References
    ----------
    Yang et al. (2022), arXiv 2208.01313, sections 3.2 to 3.4, and the authors' code.

    Examples
    --------
    >>> x, one, zero = np.array([[3.0], [4.0]]), np.ones(1), np.zeros(1)
    >>> y, state = unified_norm(x, one, zero, UnifiedNormState.create(1), eps=1e-12)
    >>> y.ravel().round(6), state.mean_square.round(6)
    (array([0.848528, 1.131371]), array([2.15]))
    """
    options: dict[str, Any] = {
        "momentum": momentum,
        "warmup": warmup,
        "outlier_filtration": outlier_filtration,
        "eps": eps,
        "mask": mask,
        "training": training,
    }
    return unified_norm_vjp(x, gain, bias, state, **options)[0]


def unified_norm_vjp(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    state: UnifiedNormState,
    *,
    momentum: float = 0.9,
    warmup: int = 4000,
    outlier_filtration: bool = False,
    eps: float = 1e-5,
    mask: AnyArray | None = None,
    training: bool = True,
) -> tuple[tuple[Array[F], UnifiedNormState], Pullback]:
    """Return :func:`unified_norm` and its pullback ``dy -> ((dx, dgain, dbias), state)``.

    The gradient is approximate by design: earlier batches' statistics are constants, and the batch's own
    gradient statistic is smoothed like the forward one. It is exact in use, and with windows of one batch. The state
    that the pullback returns is complete and belongs into the next call.
    """
    x, counted = _checked(x, gain, bias, eps, mask)
    _check_state(state, x)
    _checks.in_range(momentum, "momentum", 0, 1, closed="neither")
    warmup = _checks.whole(warmup, "warmup", low=0)
    tokens = tuple(range(x.ndim - 1))
    wide = _wide(x)
    # Inference keeps to the running value, and so does the step that replaces an outlier's record.
    running = state.mean_square.astype(np.float64)
    used, ratio, after, alone = running, np.ones_like(running), state, True
    if training:
        square = _mean_over(wide * wide, counted)
        used, after, alone = _advance(state, square.real, warmup, outlier_filtration, momentum)
        if alone or _on_its_own(after, warmup, len(state.forward_buffer)):
            used = square
        if not alone and after.iteration > max(RATIO_FROM, warmup):
            ratio = np.sqrt((used.real + eps) / (running + eps)).clip(1 / RATIO_LIMIT, RATIO_LIMIT)
    inv = 1 / np.sqrt(used + eps)
    z = wide * inv
    y: Array[F] = (gain * z + bias).astype(np.result_type(x, gain, bias))

    def pullback(dy: Array[F]) -> tuple[tuple[Array[F], Array[F], Array[F]], UnifiedNormState]:
        dz, final = dy * gain * ratio, after
        if training:
            along = (dz * z).sum(axis=tokens) / counted.sum()
            part, final = _advance_backward(after, along, warmup, alone, momentum)
            dz = dz - np.where(counted, z, 0) * part
        dgain, dbias = (dy * z).sum(axis=tokens) * ratio, np.sum(dy, axis=tokens, dtype=np.float64)
        return ((inv * dz).astype(x.dtype), dgain.astype(x.dtype), dbias.astype(x.dtype)), final

    return (y, after), pullback


def _advance(
    state: UnifiedNormState, square: AnyArray, warmup: int, outlier_filtration: bool, momentum: float
) -> tuple[AnyArray, UnifiedNormState, bool]:
    """Record a batch's mean square; return what it is divided by, the state, and whether the batch stands alone."""
    window = len(state.forward_buffer)
    iteration, slot = state.iteration + 1, (state.iteration + 1) % window
    buffer = state.forward_buffer.astype(np.float64)
    spread = float(np.sqrt(buffer).var(ddof=1)) if buffer.size > 1 else 0.0
    buffer[slot] = square
    alone, skipped = window == 1, state.skipped
    geometric = np.exp(np.log(np.maximum(buffer, SMALLEST_SQUARE)).mean(axis=0))
    if outlier_filtration and iteration >= warmup and bool((buffer.mean(axis=0) - geometric > window * spread).any()):
        buffer[slot] = state.mean_square
        alone, skipped = True, skipped + 1
    used = square if alone or iteration <= window or iteration < warmup else geometric
    moved = momentum * state.mean_square + (1 - momentum) * used
    dtype = state.forward_buffer.dtype
    after = UnifiedNormState(
        buffer.astype(dtype), state.backward_buffer, moved.astype(dtype), state.backward_mean, iteration, skipped
    )
    return used, after, alone


def _on_its_own(state: UnifiedNormState, warmup: int, window: int) -> bool:
    """Whether the current batch comes too early to be averaged with others: the buffer is not full of batches."""
    return state.iteration <= window or state.iteration < warmup


def _advance_backward(
    state: UnifiedNormState, along: AnyArray, warmup: int, alone: bool, momentum: float
) -> tuple[AnyArray, UnifiedNormState]:
    """Record a batch's gradient statistic; return what the gradient uses of it, and the state."""
    window = len(state.backward_buffer)
    buffer = state.backward_buffer.astype(np.float64)
    buffer[state.iteration % window] = state.backward_mean if alone else along
    smooth = along if alone or _on_its_own(state, warmup, window) else buffer.mean(axis=0)
    moved = momentum * state.backward_mean + (1 - momentum) * smooth
    dtype = state.backward_buffer.dtype
    after = UnifiedNormState(
        state.forward_buffer,
        buffer.astype(dtype),
        state.mean_square,
        moved.astype(dtype),
        state.iteration,
        state.skipped,
    )
    return (smooth if alone else moved), after


def _check_state(state: UnifiedNormState, x: AnyArray) -> None:
    arrays = {
        "forward_buffer": state.forward_buffer,
        "backward_buffer": state.backward_buffer,
        "mean_square": state.mean_square,
        "backward_mean": state.backward_mean,
    }
    for name, array in arrays.items():
        array = _checks.float_array(array, f"state.{name}")
        _checks.same_dtype("x", x, **{f"state.{name}": array})
        _checks.shape(array, f"state.{name}", (*array.shape[:-1], x.shape[-1]))
    for name in ("forward_buffer", "mean_square"):
        if arrays[name].min() < 0:
            _checks.fail(f"state.{name}", "values >= 0", arrays[name].min())


def fold_into_linear(
    weight: Array[F],
    bias: Array[F],
    gain: Array[F],
    norm_bias: Array[F],
    mean_square: Array[F],
    *,
    eps: float = 1e-5,
) -> tuple[Array[F], Array[F]]:
    """Return the linear layer that does what a norm with fixed statistics and a linear layer do.

    Parameters
    ----------
    weight, bias : arrays (C, O) and (O,)
        Of the linear layer ``x @ weight + bias``.
    gain, norm_bias, mean_square : arrays (C,)
        Of the norm before it, ``gain x / sqrt(mean_square + eps) + norm_bias``.
    eps : float > 0

    Returns
    -------
    weight, bias : arrays (C, O) and (O,)

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, a mean square is negative or ``eps <= 0``.

    Notes
    -----
    ``weight' = diag(gain / sqrt(mean_square + eps)) weight`` and ``bias' = norm_bias weight + bias``, computed in
    float64 and rounded once. In use the norm then costs nothing.

    References
    ----------
    Yang et al. (2022), arXiv 2208.01313, section 3.1.

    Examples
    --------
    >>> weight, bias = np.array([[2.0]]), np.array([1.0])
    >>> fold_into_linear(weight, bias, np.array([3.0]), np.array([5.0]), np.array([4.0]), eps=1e-300)
    (array([[3.]]), array([11.]))
    """
    weight = _checks.float_array(weight, "weight", ndim=2)
    channels, outputs = weight.shape
    named = {"bias": bias, "gain": gain, "norm_bias": norm_bias, "mean_square": mean_square}
    for name, array in named.items():
        _checks.same_dtype("weight", weight, **{name: _checks.float_array(array, name)})
        _checks.shape(array, name, (outputs if name == "bias" else channels,))
    _checks.positive(eps, "eps")
    if channels and mean_square.min() < 0:
        _checks.fail("mean_square", "values >= 0", mean_square.min())
    wide = weight.astype(np.float64)
    scale = gain / np.sqrt(mean_square.astype(np.float64) + eps)
    return (scale[:, None] * wide).astype(weight.dtype), (norm_bias @ wide + bias).astype(weight.dtype)
