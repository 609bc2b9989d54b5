"""Calibration data: what a layer sees, gathered over batches, and the ranges that quantizers take from it.

Post-training quantization looks at a few hundred inputs of every layer. Here is what its methods share: a
sample of rows and statistics that stream (the result does not depend on how the data are cut into batches),
the choice of a range from them, and a quantizer whose range can be learned.

    scale = (high - low) / (2^bits - 1)       zero = round(-low / scale)
    y = scale * (clip(round(x / scale) + zero, 0, 2^bits - 1) - zero)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._arrays import sum_to
from refnorm._typing import AnyArray, Array, F, Pullback
from refnorm.quantizers._affine import FEWEST_BITS, MOST_BITS

RANGE_METHODS = ("minmax", "percentile", "best_percentile", "mse")

PERCENTILES = (0.999, 0.9999, 0.99999)
"""Candidates of ``"best_percentile"``."""

ENOUGH_ROWS = 1024
"""Rows of a layer's inputs that are kept by default."""


class RowReservoir:
    """A uniform sample of the rows of a stream, drawn without knowing its length.

    Every row draws a number; the ``limit`` rows with the smallest numbers are kept, in the order of the stream.

    Parameters
    ----------
    limit : int >= 1
        Rows to keep.
    seed : int
        Two reservoirs with one seed keep the same rows of two streams, a layer's inputs and outputs say.

    Examples
    --------
    >>> reservoir = RowReservoir(3)
    >>> for batch in np.arange(20.0).reshape(5, 4, 1):
    ...     reservoir.update(batch)
    >>> reservoir.rows.shape, reservoir.seen
    ((3, 1), 20)
    """

    def __init__(self, limit: int = ENOUGH_ROWS, *, seed: int = 0) -> None:
        self._limit = _checks.whole(limit, "limit", low=1)
        self._rng = np.random.default_rng(seed)
        self._rows: AnyArray | None = None
        self._keys = np.zeros(0)
        self.seen = 0

    def update(self, batch: Array[F]) -> None:
        """Take in rows (T, D), which are copied where they are kept."""
        batch = _checks.float_array(batch, "batch", ndim=2)
        _checks.finite(batch, "batch")
        if self._rows is not None:
            _checks.shape(batch, "batch", (len(batch), self._rows.shape[1]))
            _checks.same_dtype("the first batch", self._rows, batch=batch)
        self.seen += len(batch)
        keys = np.concatenate([self._keys, self._rng.random(len(batch))])
        rows = batch if self._rows is None else np.concatenate([self._rows, batch])
        if len(keys) > self._limit:
            kept = np.sort(np.argpartition(keys, self._limit - 1)[: self._limit])
            keys, rows = keys[kept], rows[kept]
        self._keys, self._rows = keys, np.array(rows)

    @property
    def rows(self) -> AnyArray:
        """The sample (up to ``limit``, D)."""
        if self._rows is None or not len(self._rows):
            _checks.fail("calibration data", "at least one row", 0)
        return self._rows


class RunningRange:
    """Extremes, mean and variance of a stream, for a whole tensor, each channel, or each group of channels.

    Parameters
    ----------
    group : int >= 1 or None
        Channels (entries of the last axis) that share statistics: 1 is per channel, None per tensor.

    Attributes
    ----------
    low, high, mean, variance : float64 arrays, () per tensor, otherwise (D / group,)
        The variance is biased.
    count : int
        Numbers behind each entry.

    Notes
    -----
    Batches are merged with the formula of Chan, Golub and LeVeque (1979), which subtracts means, not sums of
    squares.

    Examples
    --------
    >>> running = RunningRange(group=2)
    >>> running.update(np.array([[0.0, 1.0, 5.0, 6.0]]))
    >>> running.update(np.array([[-1.0, 0.0, 6.0, 7.0]]))
    >>> running.low, running.high, running.mean
    (array([-1.,  5.]), array([1., 7.]), array([0., 6.]))
    """

    def __init__(self, *, group: int | None = None) -> None:
        self._group = None if group is None else _checks.whole(group, "group", low=1)
        self.count = 0
        self.low = self.high = self.mean = self.variance = np.zeros(())

    def update(self, batch: Array[F]) -> None:
        """Take in numbers of shape (..., D)."""
        batch = _checks.float_array(batch, "batch", min_ndim=1)
        _checks.finite(batch, "batch")
        split = split_groups(batch, self._group).astype(np.float64)
        if not len(split):
            return
        if self.count:
            _checks.shape(split, "batch", (len(split), *self.mean.shape))
        low, high, mean, variance = (getattr(split, name)(axis=0) for name in ("min", "max", "mean", "var"))
        new = len(split)
        total = self.count + new
        if self.count:
            low, high = np.minimum(low, self.low), np.maximum(high, self.high)
            away = mean - self.mean
            # Sums of squares about the joint mean: those about each mean, and the distance of the means.
            variance = (self.variance * self.count + variance * new + away**2 * (self.count * new / total)) / total
            mean = self.mean + away * (new / total)
        self.low, self.high, self.mean, self.variance, self.count = low, high, mean, variance, total


def split_groups(x: Array[F], group: int | None) -> Array[F]:
    """Bring the entries that share a parameter to the front: (n,), or (n, D / group) with ``group`` channels each."""
    if group is None:
        return x.reshape(-1)
    channels = x.shape[-1]
    if channels % group:
        _checks.fail("group", f"a divisor of {channels} channels", group)
    return x.reshape(-1, channels // group, group).swapaxes(1, 2).reshape(-1, channels // group)


def spread_groups(parameter: Array[F], channels: int, group: int | None) -> Array[F]:
    """Repeat the parameters of groups for each of their channels: (channels,)."""
    if group is None:
        return np.broadcast_to(parameter, (channels,))
    return np.repeat(parameter, group)


def choose_range(
    x: Array[F],
    *,
    bits: int,
    group: int | None = None,
    method: str = "minmax",
    percentile: float = 0.999,
    percentiles: Sequence[float] = PERCENTILES,
    n_grid: int = 40,
    include_zero: bool = True,
) -> tuple[Array[F], Array[F]]:
    """Choose the range ``[low, high]`` of an asymmetric quantizer from data.

    Parameters
    ----------
    x : array (..., D)
        Finite, not empty.
    bits : int, 2 to 16
        Width of a code, for the methods that compare errors.
    group : int or None
        As in :class:`RunningRange`.
    method : {"minmax", "percentile", "best_percentile", "mse"}
        The extremes; the quantiles ``1 - percentile`` and ``percentile``; the pair of quantiles among
        ``percentiles`` with the least squared error; the same among ``i / n_grid`` times the extremes.
    include_zero : bool
        Widen the range so that 0 lies in it.

    Returns
    -------
    low, high : arrays of the dtype of ``x``, () per tensor, otherwise (D / group,)

    Examples
    --------
    >>> choose_range(np.array([[0.0, 2.0], [4.0, 3.0]]), bits=4, group=1, include_zero=False)
    (array([0., 2.]), array([4., 3.]))
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    _checks.not_empty(x, "x", range(x.ndim))
    _checks.finite(x, "x")
    check_bits(bits)
    _checks.one_of(method, "method", RANGE_METHODS)
    data = split_groups(x, group)

    def ends(low: AnyArray, high: AnyArray) -> tuple[AnyArray, AnyArray]:
        if include_zero:
            low, high = np.minimum(low, 0), np.maximum(high, 0)
        return low.astype(x.dtype), high.astype(x.dtype)

    extremes = data.min(axis=0), data.max(axis=0)
    if method == "minmax":
        return ends(*extremes)
    if method == "percentile":
        _checks.in_range(percentile, "percentile", 0.5, 1.0, closed="right")
        candidates = [tuple(np.quantile(data, [1 - percentile, percentile], axis=0))]
    elif method == "best_percentile":
        for one in percentiles:
            _checks.in_range(one, "percentiles", 0.5, 1.0, closed="right")
        candidates = [tuple(np.quantile(data, [1 - one, one], axis=0)) for one in percentiles]
    else:
        _checks.whole(n_grid, "n_grid", low=1)
        candidates = [(extremes[0] * (i / n_grid), extremes[1] * (i / n_grid)) for i in range(n_grid, 0, -1)]
    best, best_error = ends(*candidates[0]), np.full(data.shape[1:], np.inf)
    for candidate in candidates if len(candidates) > 1 else ():
        low, high = ends(*candidate)
        error = np.square((fake_quantize_range(data, low, high, bits=bits) - data).astype(np.float64)).sum(axis=0)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, low, best[0]), np.where(better, high, best[1])
    return best


def check_bits(bits: int, name: str = "bits") -> int:
    """Return ``bits`` if the room's grids have that width, or raise."""
    return _checks.whole(bits, name, low=FEWEST_BITS, high=MOST_BITS)


def grid_of_range(low: Array[F], high: Array[F], *, bits: int) -> tuple[Array[F], Array[F]]:
    """Return ``scale = (high - low) / (2^bits - 1)`` and ``zero = round(-low / scale)``, which is not clipped.

    An empty range gets scale 1, on whose grid the constant ``low`` need not lie.
    """
    scale = np.asarray((high - low) / (2**bits - 1))
    scale = np.where(scale > 0, np.maximum(scale, np.finfo(scale.dtype).tiny), 1).astype(scale.dtype)
    # Plus 0: a range that begins at 0 has the zero point 0, not -0.
    return scale, np.rint(-low / scale) + 0.0


def fake_quantize_range(x: Array[F], low: Array[F], high: Array[F], *, bits: int, clip_zero: bool = False) -> Array[F]:
    """Quantize and dequantize on the grid of a range.

    Parameters
    ----------
    x : array
    low, high : arrays of the dtype of ``x`` that broadcast to its shape
        ``low <= high``. A range that does not hold 0 has a zero point off the grid, which is no harm to a
        quantizer that subtracts it again.
    bits : int, 2 to 16
    clip_zero : bool
        Keep the zero point on the grid, as hardware with unsigned zero points needs.

    Returns
    -------
    array, shape and dtype of ``x``

    Examples
    --------
    >>> fake_quantize_range(np.array([-1.0, 1.4, 9.0]), np.array(-1.0), np.array(2.0), bits=2)
    array([-1.,  1.,  2.])
    """
    return fake_quantize_range_vjp(x, low, high, bits=bits, clip_zero=clip_zero)[0]


def fake_quantize_range_vjp(
    x: Array[F], low: Array[F], high: Array[F], *, bits: int, clip_zero: bool = False
) -> tuple[Array[F], Pullback]:
    """Return :func:`fake_quantize_range` and its straight-through pullback ``dy -> (dx, dlow, dhigh)``.

    Both roundings, that of the codes and that of the zero point, are differentiated as the identity.
    """
    highest = 2 ** check_bits(bits) - 1
    low, high = np.asarray(low, x.dtype), np.asarray(high, x.dtype)
    if (high < low).any():
        _checks.fail("high", "at least low", high)
    scale, unclipped = grid_of_range(low, high, bits=bits)
    zero = np.clip(unclipped, 0, highest) if clip_zero else unclipped
    on_grid = zero == unclipped
    with np.errstate(over="ignore"):
        u = x / scale
    r = np.rint(u)
    code = np.clip(r + zero, 0, highest)
    inside = code == r + zero
    y: Array[F] = scale * (code - zero)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F]]:
        # As in the affine quantizer: inside, d y / d scale is the rounding error and the zero point cancels;
        # outside, y = scale (end - zero).
        dscale = sum_to(dy * np.where(inside, r - u, code - zero), scale.shape)
        dzero = sum_to(np.where(inside, 0, -dy * scale), scale.shape) * on_grid
        # zero = -low / scale, and scale = (high - low) / highest; an empty range has a constant scale.
        dscale = (dscale + dzero * low / scale**2) * (high > low)
        dhigh = sum_to(dscale / highest, high.shape)
        dlow = sum_to(-dscale / highest - dzero / scale, low.shape)
        return np.where(inside, dy, 0).astype(x.dtype), dlow.astype(x.dtype), dhigh.astype(x.dtype)

    return y, pullback


def fake_quantize_grid_vjp(x: Array[F], scale: Array[F], zero: Array[F], *, bits: int) -> tuple[Array[F], Pullback]:
    """Return ``scale * (clip(round(x / scale) + zero, 0, 2^bits - 1) - zero)`` and its pullback ``dy -> (dx,)``.

    The grid is held, and rounding is passed straight through.
    """
    unclipped = np.rint(x / scale) + zero
    code = np.clip(unclipped, 0, 2 ** check_bits(bits) - 1)
    inside = code == unclipped
    y: Array[F] = (scale * (code - zero)).astype(x.dtype)
    return y, lambda dy: (np.where(inside, dy, 0).astype(x.dtype),)


@dataclass(frozen=True, eq=False)
class LayerSample:
    """The same rows of a layer's inputs and outputs."""

    x: AnyArray
    y: AnyArray | None


class LayerRecorder:
    """Collects samples and ranges of the inputs (and outputs) of named layers while a network runs.

    Parameters
    ----------
    limit : int >= 1
        Rows to keep for each layer.
    seed : int

    Examples
    --------
    >>> recorder = LayerRecorder(limit=4)
    >>> for batch in np.arange(12.0).reshape(3, 2, 2):
    ...     recorder.record("first", batch, 10 * batch)
    >>> sample = recorder.sample("first")
    >>> bool((sample.y == 10 * sample.x).all()), recorder.names
    (True, ['first'])
    """

    def __init__(self, limit: int = ENOUGH_ROWS, *, seed: int = 0) -> None:
        self._limit, self._seed = limit, seed
        self._inputs: dict[str, RowReservoir] = {}
        self._outputs: dict[str, RowReservoir] = {}

    @property
    def names(self) -> list[str]:
        """Layers that have been recorded, in the order of their first appearance."""
        return list(self._inputs)

    def record(self, name: str, x: Array[F], y: Array[F] | None = None) -> None:
        """Take in a batch of a layer's inputs (T, D), and of its outputs if they are wanted."""
        for found, rows in ((self._inputs, x), (self._outputs, y)):
            if rows is not None:
                if name not in found:
                    found[name] = RowReservoir(self._limit, seed=self._seed)
                found[name].update(rows.reshape(-1, rows.shape[-1]))

    def sample(self, name: str) -> LayerSample:
        """Return the rows that were kept of a layer."""
        if name not in self._inputs:
            _checks.fail("name", f"a recorded layer ({', '.join(self._inputs) or 'none so far'})", repr(name))
        outputs = self._outputs.get(name)
        return LayerSample(self._inputs[name].rows, None if outputs is None else outputs.rows)
