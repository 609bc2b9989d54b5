"""Coordinate-aware modulation: hidden features of a neural field, scaled and shifted by a grid.

(scale, shift) = grid at the point, by linear interpolation
h' = relu(scale * standardize(h @ weight + bias) + shift)              (each point over its features)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback
from refnorm.nn import linear_vjp
from refnorm.norms._group_norm import standardize

METHOD = Method(
    title="Coordinate-Aware Modulation for Neural Fields",
    authors="Lee, Rho, Nam, Ko, Park",
    year=2023,
    arxiv="2311.14993",
    functions=("CAMField", "CAMLayer", "CAMParams", "cam_layer", "grid_interpolate", "psnr", "random_fourier_features"),
    chapter="norms/coordinate_aware_modulation",
)

SCALE, SHIFT = 0, 1
"""The two channels of a modulation grid."""


def grid_interpolate(grid: Array[F], x: Array[F]) -> Array[F]:
    """Read a grid over the unit interval or square at given points, linearly between its nodes.

    Parameters
    ----------
    grid : array (K, R) or (K, R1, R2)
        K values at each node; the first and last node of an axis lie at 0 and 1, at least two nodes an axis.
    x : array (n, D)
        Points, D = 1 or 2; the first coordinate runs along the grid's first axis of nodes. Coordinates outside
        [0, 1] are moved to the border.

    Returns
    -------
    array (n, K), dtype of ``grid``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If the dimensions do not match, an axis has less than two nodes, or a coordinate is NaN or infinite.

    Notes
    -----
    With ``u = x (R - 1)``, ``i = min(floor(u), R - 2)`` and ``f = u - i`` the value is
    ``(1 - f) grid[i] + f grid[i + 1]``, and the product of such weights in two dimensions. The slope at an inner
    node is that of the cell to its right; outside [0, 1] it is 0.

    References
    ----------
    Lee et al. (2023), arXiv 2311.14993, the section on coordinate-aware modulation.

    Examples
    --------
    >>> grid_interpolate(np.array([[0.0, 10.0, 40.0]]), np.array([[0.25], [0.75], [2.0]])).ravel()
    array([ 5., 25., 40.])
    """
    return grid_interpolate_vjp(grid, x)[0]


def grid_interpolate_vjp(grid: Array[F], x: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`grid_interpolate` and its pullback ``dy -> (dgrid, dx)``."""
    grid, x = _checks.float_array(grid, "grid", min_ndim=2), _checks.float_array(x, "x", ndim=2)
    _checks.same_dtype("grid", grid, x=x)
    nodes = grid.shape[1:]
    if len(nodes) > 2:
        _checks.fail("grid", "2 or 3 dimensions", f"shape {grid.shape}")
    if min(nodes) < 2:
        _checks.fail("grid", "at least two nodes an axis", f"shape {grid.shape}")
    _checks.shape(x, "x", (len(x), len(nodes)))
    _checks.finite(x, "x")

    # float64: in float32, a coordinate times R - 1 = 10^4 leaves three digits for the place inside the cell.
    inside = (x.real >= 0) & (x.real <= 1)
    u = np.where(inside, x, np.clip(x.real, 0, 1)) * (np.array(nodes, np.float64) - 1)
    cell = np.minimum(np.floor(u.real).astype(np.intp), np.array(nodes) - 2)
    right = u - cell
    weights = np.stack([1 - right, right])  # (side, point, axis)
    corners = list(itertools.product((0, 1), repeat=len(nodes)))
    places = [(slice(None), *(cell + np.array(corner)).T) for corner in corners]

    def weight_of(corner: tuple[int, ...], but: int | None = None) -> AnyArray:
        """Product of the corner's weights over the axes, one of which may be left out."""
        factors = [weights[side, :, axis] for axis, side in enumerate(corner) if axis != but]
        return np.asarray(np.prod(factors, axis=0)) if factors else np.ones(len(x))

    y = sum(weight_of(corner) * grid[place] for corner, place in zip(corners, places, strict=True))
    dtype = np.result_type(grid, x)

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        # The value is linear in the grid: each corner gets back dy times the weight with which it was read. Points
        # share corners, so the sum is collected with add.at, which counts repeated places.
        # A coordinate moves weight from the left side of its axis to the right one, R - 1 per unit.
        dgrid, du = np.zeros(grid.shape), np.zeros(x.shape)
        for corner, place in zip(corners, places, strict=True):
            np.add.at(dgrid, place, weight_of(corner) * dy.T)
            along = (grid[place] * dy.T).sum(axis=0)
            for axis, side in enumerate(corner):
                du[:, axis] += (1 if side else -1) * weight_of(corner, but=axis) * along
        dx = np.where(inside, du * (np.array(nodes) - 1), 0)
        return dgrid.astype(grid.dtype), dx.astype(x.dtype)

    return np.asarray(y).T.astype(dtype), pullback


def cam_layer(
    h: Array[F],
    weight: Array[F],
    bias: Array[F],
    grid: Array[F] | None = None,
    x: Array[F] | None = None,
    *,
    normalize: bool = True,
    activation: str = "relu",
    eps: float = 1e-5,
) -> Array[F]:
    """Apply a linear layer whose features are standardized and then modulated by the point's place.

    Parameters
    ----------
    h : array (n, I)
        Features of ``n`` points.
    weight, bias : arrays (I, O) and (O,)
        Linear layer.
    grid : array (2, R) or (2, R1, R2), optional
        Scale (first channel, 1 at initialization) and shift (second, 0). Without it there is no modulation.
    x : array (n, D), optional
        Coordinates of the points in [0, 1]; with ``grid`` or not at all.
    normalize : bool
        Standardize every point over its O features.
    activation : {"relu", "none"}
    eps : float > 0
        Added to the variance.

    Returns
    -------
    array (n, O), dtype of ``h``

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, only one of ``grid`` and ``x`` is given, a single feature is to be standardized, a
        coordinate is not finite, or an option is out of range.

    Notes
    -----
    ``activation(scale(x) a_hat + shift(x))`` with ``a = h weight + bias`` and ``a_hat = (a - mean) / sqrt(var + eps)``
    over the features, biased variance. Scale and shift are one number a point, shared by all features.

    References
    ----------
    Lee et al. (2023), arXiv 2311.14993, the section on coordinate-aware modulation, and the authors' image model.

    Examples
    --------
    >>> h, weight, bias = np.array([[1.0, 3.0], [1.0, 3.0]]), np.eye(2), np.zeros(2)
    >>> grid = np.array([[1.0, 5.0], [0.0, 2.0]])
    >>> cam_layer(h, weight, bias, grid, np.array([[0.0], [1.0]])).round(3)
    array([[0., 1.],
           [0., 7.]])
    """
    return cam_layer_vjp(h, weight, bias, grid, x, normalize=normalize, activation=activation, eps=eps)[0]


def cam_layer_vjp(
    h: Array[F],
    weight: Array[F],
    bias: Array[F],
    grid: Array[F] | None = None,
    x: Array[F] | None = None,
    *,
    normalize: bool = True,
    activation: str = "relu",
    eps: float = 1e-5,
) -> tuple[Array[F], Pullback]:
    """Return :func:`cam_layer` and its pullback ``dy -> (dh, dweight, dbias, dgrid, dx)``.

    The last two entries are ``None`` without a grid.
    """
    h = _checks.float_array(h, "h", ndim=2)
    _checks.one_of(activation, "activation", ("relu", "none"))
    _checks.positive(eps, "eps")
    if (grid is None) != (x is None):
        _checks.fail("grid, x", "both for modulation or neither without", "only one of them")
    a, back_linear = linear_vjp(h, weight, bias)
    if normalize and a.shape[1] < 2:
        _checks.fail("weight", "at least two features to standardize", f"shape {np.shape(weight)}")
    a_hat, back_norm = standardize(a, (1,), eps) if normalize else (a, _unchanged)
    scale: Any = 1.0
    shift: Any = 0.0
    back_grid: Pullback | None = None
    if grid is not None and x is not None:
        _checks.same_dtype("h", h, grid=_checks.float_array(grid, "grid", min_ndim=2))
        _checks.shape(grid, "grid", (2, *grid.shape[1:]))
        _checks.shape(_checks.float_array(x, "x", ndim=2), "x", (len(h), grid.ndim - 1))
        modulation, back_grid = grid_interpolate_vjp(grid, x)
        scale, shift = modulation[:, SCALE, None], modulation[:, SHIFT, None]
    before = scale * a_hat + shift
    active = before.real > 0 if activation == "relu" else np.ones(before.shape, bool)
    dtype = np.result_type(a, grid if grid is not None else a, x if x is not None else a)

    def pullback(dy: Array[F]) -> tuple[Array[F] | None, ...]:
        dbefore = np.where(active, dy, 0)
        dgrid = dx = None
        if back_grid is not None:
            # One scale and one shift a point: their cotangents are sums over its features.
            dscale, dshift = (dbefore * a_hat).sum(axis=1), dbefore.sum(axis=1)
            dgrid, dx = back_grid(np.stack([dscale, dshift], axis=1))
        da = back_norm(scale * dbefore).astype(h.dtype)
        return *back_linear(da), dgrid, dx

    return np.where(active, before, 0).astype(dtype), pullback


def _unchanged(dy: AnyArray) -> AnyArray:
    return dy


def random_fourier_features(
    x: Array[F], projection: Array[F], *, bandwidth: float = 10.0, scale: float | None = None
) -> Array[F]:
    """Encode points by sines and cosines of random frequencies.

    Parameters
    ----------
    x : array (n, D)
        Points.
    projection : array (D, P)
        Standard normal numbers, drawn once and kept.
    bandwidth : float > 0
        Standard deviation of the frequencies, in periods per unit of length.
    scale : float > 0, optional
        Multiply the features by ``scale / sqrt(P)``.

    Returns
    -------
    array (n, 2 P), dtype of ``x``
        All sines, then all cosines.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If a shape is wrong, there is no frequency, or an option is not positive.

    Notes
    -----
    ``[sin(2 pi bandwidth x projection), cos(2 pi bandwidth x projection)]``. NaN or infinity in a point makes its
    features NaN.

    References
    ----------
    Lee et al. (2023), arXiv 2311.14993, the image experiments; Tancik et al. (2020), arXiv 2006.10739.

    Examples
    --------
    >>> random_fourier_features(np.array([[0.25]]), np.array([[1.0]]), bandwidth=1.0).round(6)
    array([[1., 0.]])
    """
    return random_fourier_features_vjp(x, projection, bandwidth=bandwidth, scale=scale)[0]


def random_fourier_features_vjp(
    x: Array[F], projection: Array[F], *, bandwidth: float = 10.0, scale: float | None = None
) -> tuple[Array[F], Pullback]:
    """Return :func:`random_fourier_features` and its pullback ``dy -> (dx, dprojection)``."""
    x, projection = _checks.float_array(x, "x", ndim=2), _checks.float_array(projection, "projection", ndim=2)
    _checks.same_dtype("x", x, projection=projection)
    _checks.shape(projection, "projection", (x.shape[1], projection.shape[1]))
    _checks.not_empty(projection, "projection", (1,))
    _checks.positive(bandwidth, "bandwidth")
    if scale is not None:
        _checks.positive(scale, "scale")
    frequencies = projection.shape[1]
    size = 1.0 if scale is None else scale / np.sqrt(frequencies)
    turn = 2 * np.pi * bandwidth
    # float64 phases: a float32 phase of 100 turns has lost three of its digits.
    with np.errstate(invalid="ignore"):
        phase = turn * (x.astype(np.result_type(x, np.float64)) @ projection)
        sin, cos = size * np.sin(phase), size * np.cos(phase)
    y: Array[F] = np.concatenate([sin, cos], axis=1).astype(np.result_type(x, projection))

    def pullback(dy: Array[F]) -> tuple[Array[F], Array[F]]:
        dphase = turn * (dy[:, :frequencies] * cos - dy[:, frequencies:] * sin)
        return (dphase @ projection.T).astype(x.dtype), (x.T @ dphase).astype(x.dtype)

    return y, pullback


@dataclass(frozen=True)
class CAMLayer:
    """Parameters of one :func:`cam_layer`: weight (I, O), bias (O,), and grid (2, R, ...) or ``None``."""

    weight: AnyArray
    bias: AnyArray
    grid: AnyArray | None


@dataclass(frozen=True)
class CAMParams:
    """Parameters of a :class:`CAMField`.

    Parameters
    ----------
    projection : array (D, features) or None
        Random frequencies. They have a gradient like all else but are meant to stay as drawn.
    layers : tuple of CAMLayer
        Hidden layers.
    weight, bias : arrays (width, outputs) and (outputs,)
        Last, linear layer.
    """

    projection: AnyArray | None
    layers: tuple[CAMLayer, ...]
    weight: AnyArray
    bias: AnyArray


@dataclass(frozen=True, kw_only=True)
class CAMField:
    """A neural field: coordinates in, values out, with modulated hidden layers.

    Parameters
    ----------
    dimensions : {1, 2}
        Number of coordinates.
    outputs : int >= 1
        Number of values at a point, 3 for colours.
    width, depth : int >= 1
        Features and number of hidden layers.
    resolution : int >= 2
        Nodes of each layer's grid along each axis.
    features : int >= 0
        Number of random frequencies; 0 feeds the coordinates themselves.
    bandwidth : float > 0
        Of the random frequencies.
    modulate, normalize : bool
        Whether there are grids, and whether features are standardized.
    activation : {"relu", "none"}
        Of the hidden layers.
    squash : bool
        Apply the logistic function to the outputs.

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    References
    ----------
    Lee et al. (2023), arXiv 2311.14993, and the authors' image and one-dimensional models.

    Examples
    --------
    >>> field = CAMField(dimensions=2, outputs=3, width=8, depth=2, resolution=4, features=5)
    >>> field.apply(field.init(np.random.default_rng(0)), np.array([[0.2, 0.9]])).shape
    (1, 3)
    """

    dimensions: int = 2
    outputs: int = 3
    width: int = 256
    depth: int = 3
    resolution: int = 32
    features: int = 256
    bandwidth: float = 10.0
    modulate: bool = True
    normalize: bool = True
    activation: str = "relu"
    squash: bool = True

    def __post_init__(self) -> None:
        _checks.whole(self.dimensions, "dimensions", low=1, high=2)
        for name, low in (("outputs", 1), ("width", 1), ("depth", 1), ("resolution", 2), ("features", 0)):
            _checks.whole(getattr(self, name), name, low=low)
        _checks.positive(self.bandwidth, "bandwidth")
        _checks.one_of(self.activation, "activation", ("relu", "none"))

    def init(self, rng: np.random.Generator, dtype: Any = np.float64) -> CAMParams:
        """Draw parameters: linear layers uniform in ``+- 1 / sqrt(inputs)``, scale grids 1, shift grids 0."""
        rng = _checks.generator(rng)
        projection = rng.standard_normal((self.dimensions, self.features)).astype(dtype) if self.features else None
        inputs = 2 * self.features if self.features else self.dimensions
        layers = []
        for before in (inputs, *[self.width] * (self.depth - 1)):
            weight, bias = _uniform_linear(rng, before, self.width, dtype)
            grid = np.zeros((2, *[self.resolution] * self.dimensions), dtype)
            grid[SCALE] = 1
            layers.append(CAMLayer(weight, bias, grid if self.modulate else None))
        return CAMParams(projection, tuple(layers), *_uniform_linear(rng, self.width, self.outputs, dtype))

    def apply(self, params: CAMParams, x: Array[F]) -> Array[F]:
        """Return the field's values (n, outputs) at the points ``x`` (n, dimensions) of the unit interval or square."""
        return self.apply_vjp(params, x)[0]

    def apply_vjp(self, params: CAMParams, x: Array[F]) -> tuple[Array[F], Pullback]:
        """Return :meth:`apply` and its pullback ``dy -> (dparams, dx)``."""
        x = _checks.float_array(x, "x", ndim=2)
        h, back_features = x, None
        if params.projection is not None:
            h, back_features = random_fourier_features_vjp(x, params.projection, bandwidth=self.bandwidth)
        backs: list[Callable[..., tuple[Any, ...]]] = []
        for layer in params.layers:
            grid, at = (layer.grid, x) if layer.grid is not None else (None, None)
            h, back = cam_layer_vjp(
                h, layer.weight, layer.bias, grid, at, normalize=self.normalize, activation=self.activation
            )
            backs.append(back)
        z, back_last = linear_vjp(h, params.weight, params.bias)
        with np.errstate(over="ignore"):
            y = 1 / (1 + np.exp(-z)) if self.squash else z

        def pullback(dy: Array[F]) -> tuple[CAMParams, Array[F]]:
            dz = dy * y * (1 - y) if self.squash else dy
            dh, dweight, dbias = back_last(dz)
            dx, dlayers = np.zeros_like(x), []
            for back in reversed(backs):
                # Every layer reads the coordinates again, and they collect from all of them.
                dh, dw, db, dgrid, dplace = back(dh)
                dlayers.append(CAMLayer(dw, db, dgrid))
                dx = dx + dplace if dplace is not None else dx
            dprojection = None
            if back_features is not None:
                dh, dprojection = back_features(dh)
            return CAMParams(dprojection, tuple(dlayers[::-1]), dweight, dbias), dx + dh

        return y, pullback


def _uniform_linear(rng: np.random.Generator, inputs: int, outputs: int, dtype: Any) -> tuple[AnyArray, AnyArray]:
    limit = 1 / np.sqrt(inputs)
    return rng.uniform(-limit, limit, (inputs, outputs)).astype(dtype), rng.uniform(-limit, limit, outputs).astype(
        dtype
    )


def psnr(prediction: Array[F], target: Array[F], *, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio of a picture, in decibels.

    Parameters
    ----------
    prediction, target : arrays of one shape
    peak : float > 0
        Largest possible value.

    Returns
    -------
    float
        ``inf`` for equal arrays.

    Raises
    ------
    TypeError
        If an array is not float32 or float64, or the dtypes differ.
    ValueError
        If the shapes differ, the arrays are empty or ``peak <= 0``.

    Notes
    -----
    ``-10 log10(mean((prediction - target)^2) / peak^2)``. NaN in the data gives NaN.

    References
    ----------
    Lee et al. (2023), arXiv 2311.14993, the experiments on images.

    Examples
    --------
    >>> psnr(np.array([0.5, 0.6]), np.array([0.4, 0.7]))
    20.0
    """
    prediction, target = _checks.float_array(prediction, "prediction"), _checks.float_array(target, "target")
    _checks.same_dtype("prediction", prediction, target=target)
    _checks.shape(target, "target", prediction.shape)
    if not prediction.size:
        _checks.fail("prediction", "at least one entry", f"shape {prediction.shape}")
    _checks.positive(peak, "peak")
    error = float(np.mean((prediction.astype(np.float64) - target) ** 2))
    return float("inf") if error == 0 else float(-10 * np.log10(error / peak**2))
