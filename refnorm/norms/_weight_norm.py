"""Weight normalization: length and direction of a unit's weights as separate parameters.

weight = gain * direction / |direction|                               (one length per output unit)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback

METHOD = Method(
    title="Weight Normalization",
    authors="Salimans, Kingma",
    year=2016,
    arxiv="1602.07868",
    functions=("init_weight_norm", "mean_only_batch_norm", "weight_norm"),
    chapter="norms/weight_norm",
    paper=False,
)


def weight_norm(direction: Array[F], gain: Array[F], *, axis: int = 0) -> Array[F]:
    """Form weights from a direction and a length for every output unit.

    Parameters
    ----------
    direction : array
        Weights of any length but 0; for convolutions (O, C, A, B) with ``axis=0``, for linear layers (I, O)
        with ``axis=1``.
    gain : array (O,)
        The lengths; a negative one turns the direction round.
    axis : axis of ``direction``
        That of the output units.

    Returns
    -------
    array, shape and dtype of ``direction``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape or axis is wrong, or the direction of a unit is the zero vector.

    Notes
    -----
    ``weight = gain direction / |direction|``, norms over all axes but ``axis``. They are taken after division
    by the largest entry, so that no square overflows or underflows. A NaN makes its unit NaN and no other.

    References
    ----------
    Salimans, Kingma (2016), arXiv 1602.07868, equation 2.

    Examples
    --------
    >>> weight_norm(np.array([[3.0, 4.0], [0.0, 5.0]]), np.array([10.0, 1.0]))
    array([[6., 8.],
           [0., 1.]])
    """
    return weight_norm_vjp(direction, gain, axis=axis)[0]


def weight_norm_vjp(direction: Array[F], gain: Array[F], *, axis: int = 0) -> tuple[Array[F], Pullback]:
    """Return :func:`weight_norm` and its pullback ``dweight -> (ddirection, dgain)``."""
    direction = _checks.float_array(direction, "direction", min_ndim=1)
    gain = _checks.float_array(gain, "gain")
    _checks.same_dtype("direction", direction, gain=gain)
    (unit_axis,) = _checks.axes(axis, direction.ndim, "axis")
    _checks.shape(gain, "gain", (direction.shape[unit_axis],))
    over = tuple(a for a in range(direction.ndim) if a != unit_axis)
    wide = direction.astype(np.result_type(direction, np.float64), copy=False)
    # max over real parts' sizes: a constant factor that cancels, so its own derivative does not matter.
    largest = np.abs(wide.real).max(axis=over, keepdims=True, initial=0)
    if (largest == 0).any():
        empty = int(np.argmax(largest.ravel() == 0))
        _checks.fail("direction", "a vector other than 0 for every unit", f"zeros for unit {empty}")
    reduced = wide / largest
    inv_norm = 1 / np.sqrt((reduced * reduced).sum(axis=over, keepdims=True))
    unit = reduced * inv_norm
    length = np.expand_dims(gain, over)
    weight: Array[F] = (length * unit).astype(np.result_type(direction, gain), copy=False)

    def pullback(dweight: Array[F]) -> tuple[Array[F], Array[F]]:
        # d unit = (d direction - unit <unit, d direction>) / |direction|: only the part across the direction
        # turns it. The map is symmetric, so the gradient is projected in the same way.
        along = (dweight * unit).sum(axis=over, keepdims=True)
        ddirection = length * (dweight - unit * along) * inv_norm / largest
        return ddirection.astype(direction.dtype), along.reshape(gain.shape).astype(gain.dtype)

    return weight, pullback


def init_weight_norm(
    outputs: Array[F], *, axes: Sequence[int] = (0,), min_std: float = 1e-8
) -> tuple[Array[F], Array[F]]:
    """Return the gain and bias after which a layer's first batch of outputs is standardized.

    Parameters
    ----------
    outputs : array
        What the layer gives for a batch with gain 1 and bias 0, for example (N, O) with ``axes=(0,)`` or
        (N, O, H, W) with ``axes=(0, 2, 3)``.
    axes : axes of ``outputs``
        Those of examples and places.
    min_std : float > 0
        Smallest standard deviation that is divided by, for units that the batch does not move.

    Returns
    -------
    gain, bias : arrays of the shape of ``outputs`` along the other axes
        ``1 / std`` and ``-mean / std``.

    Raises
    ------
    TypeError
        If ``outputs`` is neither float32 nor float64.
    ValueError
        If an axis does not exist or is given twice, there is nothing to average over, or ``min_std <= 0``.

    Notes
    -----
    ``gain outputs + bias`` has mean 0 and variance 1 for every unit on this batch. It is done once, layer by
    layer from the input, before training; no gradient flows through it.

    References
    ----------
    Salimans, Kingma (2016), arXiv 1602.07868, equations 5 and 6.

    Examples
    --------
    >>> init_weight_norm(np.array([[1.0], [5.0]]))
    (array([0.5]), array([-1.5]))
    """
    outputs = _checks.float_array(outputs, "outputs", min_ndim=1)
    over = _checks.axes(axes, outputs.ndim, "axes")
    _checks.not_empty(outputs, "outputs", over)
    _checks.positive(min_std, "min_std")
    wide = outputs.astype(np.float64)
    gain = 1 / np.maximum(wide.std(axis=over), min_std)
    return gain.astype(outputs.dtype), (-wide.mean(axis=over) * gain).astype(outputs.dtype)


def mean_only_batch_norm(
    x: Array[F], bias: Array[F], mean: Array[F] | None = None, *, axes: Sequence[int] = (0,)
) -> Array[F]:
    """Subtract each unit's mean over the batch, and leave its scale to the weights.

    Parameters
    ----------
    x : array
        For example (N, C) with ``axes=(0,)``, or images (N, C, H, W) with ``axes=(0, 2, 3)``.
    bias : array of the shape of ``x`` along the axes that are not in ``axes``
        Added after the mean is gone.
    mean : array of the same shape, optional
        Running mean, for inference; left out in training.
    axes : axes of ``x``
        Those that are averaged over.

    Returns
    -------
    array, shape and dtype of ``x``

    Raises
    ------
    TypeError
        If an argument is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape or axis is wrong, or in training there is nothing to average over.

    Notes
    -----
    ``y = x - mean(x) + bias``. Made for layers with weight normalization, whose outputs have a scale of their
    own. Means are float64 sums.

    References
    ----------
    Salimans, Kingma (2016), arXiv 1602.07868, equations 11 and 12.

    Examples
    --------
    >>> mean_only_batch_norm(np.array([[1.0], [5.0]]), np.array([10.0])).ravel()
    array([ 8., 12.])
    """
    return mean_only_batch_norm_vjp(x, bias, mean, axes=axes)[0]


def mean_only_batch_norm_vjp(
    x: Array[F], bias: Array[F], mean: Array[F] | None = None, *, axes: Sequence[int] = (0,)
) -> tuple[Array[F], Pullback]:
    """Return :func:`mean_only_batch_norm` and its pullback ``dy -> (dx, dbias, dmean)``.

    The last entry is ``None`` in training.
    """
    x = _checks.float_array(x, "x", min_ndim=1)
    over = _checks.axes(axes, x.ndim, "axes")
    units = tuple(size for axis, size in enumerate(x.shape) if axis not in over)
    for name, array in (("bias", bias), ("mean", mean)):
        if array is not None:
            array = _checks.float_array(array, name)
            _checks.same_dtype("x", x, **{name: array})
            _checks.shape(array, name, units)

    def centre(a: AnyArray) -> AnyArray:
        wide = a.astype(np.result_type(a, np.float64), copy=False)
        return np.asarray(wide - wide.mean(axis=over, keepdims=True))

    if mean is None:
        _checks.not_empty(x, "x", over)
        centred = centre(x)
    else:
        centred = x - np.expand_dims(mean, over)
    y: Array[F] = (centred + np.expand_dims(bias, over)).astype(
        np.result_type(x, bias, *([] if mean is None else [mean]))
    )

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F], Array[F] | None]:
        # Centring is a symmetric projection: its pullback centres the cotangent.
        dbias = np.sum(dy, axis=over, dtype=np.float64).astype(x.dtype)
        if mean is None:
            return centre(np.asarray(dy)).astype(x.dtype), dbias, None
        return np.asarray(dy, dtype=x.dtype), dbias, -dbias

    return y, pullback
