"""Adversarial adaptive sampling: a density moves to where a differential equation's residual is large.

min over networks, max over densities p:  E_p[residual^2] - penalty |grad p|^2 + boundary_weight E[(u - g)^2]
u(x) = sum_j output_j tanh(weight_j x + bias_j) + offset,   residual = -Laplace u - source
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import scipy.special

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.softmax import softmax
from refnorm.solvers._adamp import AdamP
from refnorm.solvers._monitor import Callback, Monitor
from refnorm.tree import tree_leaves, tree_map

METHOD = Method(
    title="Adversarial Adaptive Sampling: Unify PINN and Optimal Transport for the Approximation of PDEs",
    authors="Tang, Zhai, Wan, Yang",
    year=2024,
    arxiv="2305.18702",
    functions=(
        "AdaptiveSamplingResult",
        "CouplingFlow",
        "FlowLayer",
        "GridDensity",
        "PoissonProblem",
        "Sampler",
        "TanhNet",
        "adversarial_adaptive_sampling",
        "best_response_1d",
        "flow_log_density",
        "grid_objective",
        "init_coupling_flow",
        "init_tanh_net",
        "poisson_residual",
        "tanh_net",
        "tanh_net_laplacian",
    ),
    chapter="solvers/adversarial_adaptive_sampling",
)

Affine: TypeAlias = tuple[AnyArray, AnyArray]

FACE = 1e-7
"""Points are kept this far from the faces of the cube, where the logit is infinite."""

STRETCH = 0.6
"""A coupling stretches by 1 - 0.6 to 1 + 0.6, so that it has an inverse."""

LARGEST_EXPONENT = 20.0
"""Ratios of densities are clipped to e^+-20: beyond, one point would decide alone."""

DIFFERENCE = 1e-3
"""Step of the differences that measure the flow's slope; the density varies over much longer distances."""

NO_PROJECTION = 5e-324
"""With this threshold AdamP never projects: it is Adam."""

WINDOW = 10
"""Epochs over which the objective must stand still."""

RESPONSES = ("ascent", "exact")


@dataclass(frozen=True)
class TanhNet:
    """One hidden layer of h units on d inputs.

    Parameters
    ----------
    weight : array (h, d)
    bias, output : arrays (h,)
    offset : array ()
    """

    weight: AnyArray
    bias: AnyArray
    output: AnyArray
    offset: AnyArray


def init_tanh_net(
    rng: np.random.Generator, dimension: int, *, hidden: int = 64, frequency: float = 10.0, dtype: Any = np.float64
) -> TanhNet:
    """Draw a network whose units bend at random places of the unit cube.

    Parameters
    ----------
    rng : numpy.random.Generator
    dimension, hidden : int >= 1
    frequency : float > 0
        Standard deviation of the weights: the inverse of the width of a unit's step.
    dtype : float32 or float64

    Returns
    -------
    TanhNet

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Examples
    --------
    >>> init_tanh_net(np.random.default_rng(0), 2).weight.shape
    (64, 2)
    """
    rng = _checks.generator(rng)
    dimension, hidden = _checks.whole(dimension, "dimension", low=1), _checks.whole(hidden, "hidden", low=1)
    _checks.positive(frequency, "frequency")
    reach = frequency * np.sqrt(dimension)
    arrays = (
        frequency * rng.standard_normal((hidden, dimension)),
        rng.uniform(-reach, reach, hidden),
        rng.standard_normal(hidden) / np.sqrt(hidden),
        np.zeros(()),
    )
    return TanhNet(*(np.asarray(array, dtype) for array in arrays))


def tanh_net(x: Array[F], net: TanhNet) -> Array[F]:
    """Value of the network.

    Parameters
    ----------
    x : array (m, d)
    net : TanhNet

    Returns
    -------
    array (m,), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong.

    Examples
    --------
    >>> net = TanhNet(np.ones((1, 1)), np.zeros(1), np.array([2.0]), np.array(1.0))
    >>> tanh_net(np.array([[0.0]]), net)
    array([1.])
    """
    return tanh_net_vjp(x, net)[0]


def tanh_net_vjp(x: Array[F], net: TanhNet) -> tuple[Array[F], Pullback]:
    """Return :func:`tanh_net` and its pullback ``du -> (dx, dnet)``."""
    t = np.tanh(_summed(x, net))
    u = np.asarray(t @ net.output + net.offset)

    def pullback(du: Array[F]) -> tuple[AnyArray, TanhNet]:
        slope = du[:, None] * net.output * (1 - t * t)
        return slope @ net.weight, TanhNet(slope.T @ x, slope.sum(axis=0), t.T @ du, np.asarray(du.sum()))

    return u, pullback


def tanh_net_laplacian(x: Array[F], net: TanhNet) -> Array[F]:
    """Sum of the network's second derivatives.

    Parameters
    ----------
    x : array (m, d)
    net : TanhNet

    Returns
    -------
    array (m,), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong.

    Notes
    -----
    ``sum_j output_j tanh''(z_j) |weight_j|^2`` with ``tanh'' = -2 tanh (1 - tanh^2)``.

    Examples
    --------
    >>> net = TanhNet(np.ones((1, 1)), np.zeros(1), np.ones(1), np.array(0.0))
    >>> tanh_net_laplacian(np.array([[0.5]]), net).round(6)
    array([-0.726862])
    """
    return tanh_net_laplacian_vjp(x, net)[0]


def tanh_net_laplacian_vjp(x: Array[F], net: TanhNet) -> tuple[Array[F], Pullback]:
    """Return :func:`tanh_net_laplacian` and its pullback ``dlaplacian -> (dx, dnet)``."""
    t = np.tanh(_summed(x, net))
    first = 1 - t * t
    second, third = -2 * t * first, first * (6 * t * t - 2)
    square = (net.weight * net.weight).sum(axis=1)
    value = np.asarray((second * square) @ net.output)

    def pullback(dlaplacian: Array[F]) -> tuple[AnyArray, TanhNet]:
        # In the summed input: output |w|^2 tanh'''. In w also through |w|^2, with slope 2 w.
        slope = dlaplacian[:, None] * third * (net.output * square)
        through_square = 2 * (dlaplacian @ second * net.output)[:, None] * net.weight
        dnet = TanhNet(
            slope.T @ x + through_square, slope.sum(axis=0), square * (dlaplacian @ second), np.zeros_like(net.offset)
        )
        return slope @ net.weight, dnet

    return value, pullback


def _summed(x: AnyArray, net: TanhNet) -> AnyArray:
    x = _checks.float_array(x, "x", ndim=2)
    for name, leaf in tree_leaves(net):
        _checks.same_dtype("x", x, **{f"net.{name}": _checks.float_array(leaf, f"net.{name}")})
    hidden = len(net.weight)
    for name, expected in (
        ("weight", (hidden, x.shape[1])),
        ("bias", (hidden,)),
        ("output", (hidden,)),
        ("offset", ()),
    ):
        _checks.shape(getattr(net, name), f"net.{name}", expected)
    return np.asarray(x @ net.weight.T + net.bias)


def poisson_residual(x: Array[F], net: TanhNet, source: Array[F]) -> Array[F]:
    """Residual ``-Laplace u - source`` of Poisson's equation.

    Parameters
    ----------
    x : array (m, d)
    net : TanhNet
    source : array (m,)
        Right-hand side at the points.

    Returns
    -------
    array (m,), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong.

    Examples
    --------
    >>> net = TanhNet(np.ones((1, 1)), np.zeros(1), np.ones(1), np.array(0.0))
    >>> poisson_residual(np.array([[0.0]]), net, np.array([3.0]))
    array([-3.])
    """
    return poisson_residual_vjp(x, net, source)[0]


def poisson_residual_vjp(x: Array[F], net: TanhNet, source: Array[F]) -> tuple[Array[F], Pullback]:
    """Return :func:`poisson_residual` and its pullback ``dr -> (dx, dnet, dsource)``."""
    laplacian, back = tanh_net_laplacian_vjp(x, net)
    source = _checks.float_array(source, "source")
    _checks.same_dtype("x", laplacian, source=source)
    _checks.shape(source, "source", laplacian.shape)
    return -laplacian - source, lambda dr: (*back(-dr), -dr)


@dataclass(frozen=True)
class PoissonProblem:
    """Poisson's equation ``-Laplace u = source`` on the unit cube, with ``u = boundary`` on its faces.

    Parameters
    ----------
    source, boundary : callables
        From points (m, d) to values (m,).
    boundary_points : array (k, d)
        Where the boundary condition is asked for.
    """

    source: Callable[[AnyArray], AnyArray]
    boundary: Callable[[AnyArray], AnyArray]
    boundary_points: AnyArray


def grid_objective(logits: Array[F], reward: Array[F], *, penalty: float) -> Array[F]:
    """Adversary's objective for a density that is constant on the cells of a grid.

    Parameters
    ----------
    logits : array (K,) or (K, K)
        Of the cells' masses ``softmax(logits)``.
    reward : array of the same shape
        Mean squared residual in each cell.
    penalty : float >= 0
        Of the density's squared slope.

    Returns
    -------
    array ()

    Raises
    ------
    TypeError, ValueError
        If a dtype, shape or the penalty is wrong.

    Notes
    -----
    ``sum reward q - penalty side^(d - 2) sum over inner faces (p - p')^2`` with the cells' side 1 / K and the
    density ``p = q / side^d``.

    References
    ----------
    Tang, Zhai, Wan, Yang (2024), arXiv 2305.18702, section 4.

    Examples
    --------
    >>> float(grid_objective(np.zeros(4), np.array([1.0, 2.0, 3.0, 4.0]), penalty=1.0))
    2.5
    """
    return grid_objective_vjp(logits, reward, penalty=penalty)[0]


def grid_objective_vjp(logits: Array[F], reward: Array[F], *, penalty: float) -> tuple[Array[F], Pullback]:
    """Return :func:`grid_objective` and its pullback ``dvalue -> (dlogits, dreward)``."""
    logits, reward = _grid(logits), _checks.float_array(reward, "reward")
    _checks.same_dtype("logits", logits, reward=reward)
    _checks.shape(reward, "reward", logits.shape)
    _checks.non_negative(penalty, "penalty")
    dimension, side = logits.ndim, 1 / logits.shape[0]
    q = softmax(logits.ravel()).reshape(logits.shape)
    density, scale = q / side**dimension, penalty * side ** (dimension - 2)
    steps = [np.diff(density, axis=axis) for axis in range(dimension)]
    value = np.asarray((reward * q).sum() - scale * sum((step * step).sum() for step in steps))

    def pullback(dvalue: Array[F]) -> tuple[AnyArray, AnyArray]:
        slope = np.zeros_like(density)
        for axis, step in enumerate(steps):
            # A face pulls on both its cells: the graph's Laplacian.
            ends: list[Any] = [(0, 0)] * dimension
            ends[axis] = (1, 1)
            slope -= np.diff(np.pad(step, ends), axis=axis)
        dq = reward - 2 * scale * slope / side**dimension
        return dvalue * q * (dq - (q * dq).sum()), dvalue * q

    return value, pullback


def _grid(logits: AnyArray) -> AnyArray:
    logits = _checks.float_array(logits, "logits", min_ndim=1)
    if logits.ndim > 2 or len(set(logits.shape)) != 1 or not logits.size:
        _checks.fail("logits", "shape (K,) or (K, K)", f"shape {logits.shape}")
    return logits


def best_response_1d(reward: Array[F], penalty: float, *, floor: float = 0.0) -> Array[F]:
    """Density that maximises :func:`grid_objective` in one dimension, for a given reward.

    Parameters
    ----------
    reward : array (K,)
        Mean squared residual in each cell.
    penalty : float > 0
    floor : float in [0, 1)
        Smallest density.

    Returns
    -------
    array (K,), dtype of ``reward``
        The density, with mean 1.

    Raises
    ------
    TypeError, ValueError
        If a shape or number is wrong.

    Notes
    -----
    Without the floor, ``-2 penalty p'' = reward - mean`` with zero slope at both ends: two cumulative sums. Where
    this falls below the floor it is lifted, and the rest is scaled towards the floor until the mean is 1; that is a
    density, but no longer the exact maximum.

    References
    ----------
    Tang, Zhai, Wan, Yang (2024), arXiv 2305.18702, section 3.

    Examples
    --------
    >>> best_response_1d(np.ones(4), 1.0)
    array([1., 1., 1., 1.])
    >>> best_response_1d(np.array([0.0, 0.0, 1.0, 1.0]), 0.25).round(4)
    array([0.875 , 0.9375, 1.0625, 1.125 ])
    """
    reward = _checks.float_array(reward, "reward", ndim=1)
    _checks.not_empty(reward, "reward", (0,))
    _checks.positive(penalty, "penalty")
    _checks.in_range(floor, "floor", 0, 1, closed="left")
    flux = -np.cumsum(reward - reward.mean())[:-1] / (2 * penalty * len(reward) ** 2)
    density = np.concatenate([np.zeros(1, reward.dtype), np.cumsum(flux)])
    density = density - density.mean() + 1
    if density.min() < floor:
        above = np.maximum(density - floor, 0)
        density = floor + above * ((1 - floor) / above.mean())
    return np.asarray(density, reward.dtype)


class Sampler(Protocol):
    """A density on the unit cube that can be sampled and improved."""

    @property
    def parameters(self) -> Tree:
        """What the adversary changes."""
        ...

    def with_parameters(self, parameters: Tree) -> Any:
        """The same sampler with other parameters."""
        ...

    def sample(self, rng: np.random.Generator, m: int) -> AnyArray:
        """Draw points (m, d)."""
        ...

    def log_density(self, x: AnyArray) -> AnyArray:
        """Logarithm of the density at points (m, d)."""
        ...

    def objective_vjp(
        self, x: AnyArray, reward: AnyArray, reference: AnyArray, penalty: float, rng: np.random.Generator
    ) -> tuple[float, Tree]:
        """Value and gradient of the adversary's objective, from points of log-density ``reference``."""
        ...


@dataclass(frozen=True)
class GridDensity:
    """Density that is constant on the cells of a grid, in one or two dimensions.

    Parameters
    ----------
    logits : array (K,) or (K, K)
        Of the cells' masses; zeros are the uniform density.

    Examples
    --------
    >>> density = GridDensity(np.log(np.array([3.0, 1.0])))
    >>> np.exp(density.log_density(np.array([[0.2], [0.7]]))).round(12)
    array([1.5, 0.5])
    """

    logits: AnyArray

    @property
    def parameters(self) -> Tree:
        return self.logits

    def with_parameters(self, parameters: Tree) -> GridDensity:
        return replace(self, logits=parameters)

    def masses(self) -> AnyArray:
        """Probability of each cell, of the shape of the logits."""
        logits = _grid(self.logits)
        return np.asarray(softmax(logits.ravel()).reshape(logits.shape))

    def cells(self, x: AnyArray) -> tuple[AnyArray, ...]:
        """Index of each point's cell, one array an axis."""
        logits = _grid(self.logits)
        x = _inside(x, logits.ndim)
        return tuple(np.minimum((x * len(logits)).astype(int), len(logits) - 1).T)

    def sample(self, rng: np.random.Generator, m: int) -> AnyArray:
        masses = self.masses()
        chosen = _checks.generator(rng).choice(masses.size, size=_checks.whole(m, "m", low=1), p=masses.ravel())
        corner = np.stack(np.unravel_index(chosen, masses.shape), axis=1)
        return np.asarray((corner + rng.random(corner.shape)) / len(masses))

    def log_density(self, x: AnyArray) -> AnyArray:
        masses = self.masses()
        return np.asarray(np.log(masses[self.cells(x)]) + np.log(masses.size))

    def objective_vjp(
        self, x: AnyArray, reward: AnyArray, reference: AnyArray, penalty: float, rng: np.random.Generator
    ) -> tuple[float, Tree]:
        means = np.zeros_like(self.logits)
        # mean of reward p / p_reference = sum of q times this estimate of each cell's mean reward
        np.add.at(means, self.cells(x), reward * np.exp(-reference) * (means.size / len(x)))
        value, pullback = grid_objective_vjp(self.logits, means, penalty=penalty)
        return float(value), pullback(np.ones(()))[0]


@dataclass(frozen=True)
class FlowLayer:
    """One coupling: the coordinates of one half are stretched and shifted depending on the other half.

    Parameters
    ----------
    scale, shift : pairs of (weight, bias)
        Networks with one hidden layer of tanh units, from the fixed to the moved coordinates.
    reach : array (moved coordinates,)
        Logarithm of the largest shift.
    """

    scale: tuple[Affine, Affine]
    shift: tuple[Affine, Affine]
    reach: AnyArray


@dataclass(frozen=True)
class CouplingFlow:
    """Density on the unit cube of at least two dimensions, as an invertible image of normal noise.

    Parameters
    ----------
    layers : tuple of FlowLayer
        The first moves the second half of the coordinates, the next the first half, and so on.

    Examples
    --------
    >>> flow = init_coupling_flow(np.random.default_rng(0), 2)
    >>> flow.sample(np.random.default_rng(1), 3).shape
    (3, 2)
    """

    layers: tuple[FlowLayer, ...]

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return int(self.layers[0].scale[0][0].shape[0] + len(self.layers[0].reach))

    @property
    def parameters(self) -> Tree:
        return self.layers

    def with_parameters(self, parameters: Tree) -> CouplingFlow:
        return replace(self, layers=parameters)

    def sample(self, rng: np.random.Generator, m: int) -> AnyArray:
        dimension = self.dimension
        y = _checks.generator(rng).standard_normal((_checks.whole(m, "m", low=1), dimension))
        for number, layer in reversed(list(enumerate(self.layers))):
            fixed, moved = _halves(number, dimension)
            stretch, shift = _coupling(y[:, fixed], layer)[:2]
            y[:, moved] = (y[:, moved] - shift) / stretch
        return np.asarray(np.clip(scipy.special.expit(y), FACE, 1 - FACE))

    def log_density(self, x: AnyArray) -> AnyArray:
        return flow_log_density(x, self.layers)

    def objective_vjp(
        self, x: AnyArray, reward: AnyArray, reference: AnyArray, penalty: float, rng: np.random.Generator
    ) -> tuple[float, Tree]:
        m, dimension = x.shape
        logs, back = flow_log_density_vjp(x, self.layers)
        ratio = np.exp(np.clip(logs - reference, -LARGEST_EXPONENT, LARGEST_EXPONENT))
        value = float((reward * ratio).mean())
        grads = back(reward * ratio / m)[1]
        if penalty == 0:
            return value, grads
        direction = rng.standard_normal(x.shape)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        ends = [np.clip(x + sign * DIFFERENCE * direction, FACE, 1 - FACE) for sign in (1, -1)]
        (above, back_above), (below, back_below) = (flow_log_density_vjp(end, self.layers) for end in ends)
        # The mean square of a random direction's slope is |grad p|^2 / d.
        slope = (np.exp(above) - np.exp(below)) / (2 * DIFFERENCE)
        weight = np.exp(-np.clip(reference, -LARGEST_EXPONENT, LARGEST_EXPONENT)) * (penalty * dimension / m)
        pull = weight * slope / DIFFERENCE
        grads = tree_map(
            lambda g, up, down: g - up + down,
            grads,
            back_above(pull * np.exp(above))[1],
            back_below(pull * np.exp(below))[1],
        )
        return value - float((weight * slope * slope).sum()), grads


def init_coupling_flow(
    rng: np.random.Generator, dimension: int, *, layers: int = 4, hidden: int = 16, dtype: Any = np.float64
) -> CouplingFlow:
    """Draw a flow close to the uniform density in its middle.

    Parameters
    ----------
    rng : numpy.random.Generator
    dimension : int >= 2
    layers, hidden : int >= 1
    dtype : float32 or float64

    Returns
    -------
    CouplingFlow

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.

    Examples
    --------
    >>> init_coupling_flow(np.random.default_rng(0), 3).dimension
    3
    """
    rng = _checks.generator(rng)
    dimension = _checks.whole(dimension, "dimension", low=2)
    layers, hidden = _checks.whole(layers, "layers", low=1), _checks.whole(hidden, "hidden", low=1)

    def network(inputs: int, outputs: int) -> tuple[Affine, Affine]:
        first = rng.standard_normal((inputs, hidden)) / np.sqrt(inputs)
        second = 0.1 * rng.standard_normal((hidden, outputs)) / np.sqrt(hidden)
        return (first.astype(dtype), np.zeros(hidden, dtype)), (second.astype(dtype), np.zeros(outputs, dtype))

    found = []
    for number in range(layers):
        fixed, moved = (len(range(*half.indices(dimension))) for half in _halves(number, dimension))
        found.append(FlowLayer(network(fixed, moved), network(fixed, moved), np.zeros(moved, dtype)))
    return CouplingFlow(tuple(found))


def flow_log_density(x: Array[F], layers: tuple[FlowLayer, ...]) -> Array[F]:
    """Logarithm of a coupling flow's density.

    Parameters
    ----------
    x : array (m, d)
        Points of the unit cube.
    layers : tuple of FlowLayer

    Returns
    -------
    array (m,), dtype of ``x``

    Raises
    ------
    TypeError, ValueError
        If a dtype or shape is wrong or a point lies outside.

    Notes
    -----
    ``y = logit(x)``; a layer maps the moved half to ``y (1 + 0.6 tanh s) + e^reach tanh t``; the last y is standard
    normal. Points closer than 1e-7 to a face are moved there.

    References
    ----------
    Tang, Zhai, Wan, Yang (2024), arXiv 2305.18702, section 4 (with KRnet in place of these couplings).

    Examples
    --------
    >>> flow_log_density(np.array([[0.5, 0.5]]), ()).round(6)  # 2 log 4 - log(2 pi)
    array([0.934712])
    """
    return flow_log_density_vjp(x, layers)[0]


def flow_log_density_vjp(x: Array[F], layers: tuple[FlowLayer, ...]) -> tuple[Array[F], Pullback]:
    """Return :func:`flow_log_density` and its pullback ``dlog -> (dx, dlayers)``."""
    x = _checks.float_array(x, "x", ndim=2)
    x = _inside(x, x.shape[1])
    clipped = np.clip(x, FACE, 1 - FACE)
    y = scipy.special.logit(clipped)
    logs = -(np.log(clipped) + np.log1p(-clipped)).sum(axis=1)
    steps: list[tuple[slice, slice, AnyArray, Any]] = []
    for number, layer in enumerate(layers):
        fixed, moved = _halves(number, x.shape[1])
        stretch, shift, back = _coupling(y[:, fixed], layer)
        steps.append((fixed, moved, y[:, moved], (stretch, back)))
        y = y.copy()
        y[:, moved] = y[:, moved] * stretch + shift
        logs = logs + np.log(stretch).sum(axis=1)
    value: Array[F] = np.asarray(logs - (y * y).sum(axis=1) / 2 - x.shape[1] / 2 * np.log(2 * np.pi)).astype(x.dtype)
    last = y

    def pullback(dlog: Array[F]) -> tuple[AnyArray, tuple[FlowLayer, ...]]:
        dy, found = -dlog[:, None] * last, []
        for fixed, moved, before, (stretch, back) in reversed(steps):
            dmoved = dy[:, moved]
            dstretch = dmoved * before + dlog[:, None] / stretch
            dfixed, dlayer = back(dstretch, dmoved)
            dy = dy.copy()
            dy[:, moved] = dmoved * stretch
            dy[:, fixed] += dfixed
            found.append(dlayer)
        # d logit = dx / (x (1 - x)), and -log x - log(1 - x) has the slope (2 x - 1) / (x (1 - x)).
        dx = (dy + dlog[:, None] * (2 * clipped - 1)) / (clipped * (1 - clipped))
        return np.where(clipped == x, dx, 0).astype(x.dtype), tuple(found[::-1])

    return value, pullback


def _halves(number: int, dimension: int) -> tuple[slice, slice]:
    """The fixed and the moved coordinates of a layer."""
    first, second = slice(0, dimension // 2), slice(dimension // 2, dimension)
    return (first, second) if number % 2 == 0 else (second, first)


def _coupling(fixed: AnyArray, layer: FlowLayer) -> tuple[AnyArray, AnyArray, Any]:
    """Stretch and shift of the moved half, and ``(dstretch, dshift) -> (dfixed, dlayer)``."""
    s, back_scale = _tanh_pair(fixed, layer.scale)
    t, back_shift = _tanh_pair(fixed, layer.shift)
    reach = np.exp(layer.reach)

    def back(dstretch: AnyArray, dshift: AnyArray) -> tuple[AnyArray, FlowLayer]:
        dfixed_scale, dscale = back_scale(STRETCH * dstretch)
        dfixed_shift, dshift_net = back_shift(reach * dshift)
        return dfixed_scale + dfixed_shift, FlowLayer(dscale, dshift_net, (reach * t * dshift).sum(axis=0))

    return 1 + STRETCH * s, reach * t, back


def _tanh_pair(x: AnyArray, pair: tuple[Affine, Affine]) -> tuple[AnyArray, Any]:
    """``tanh(affine(tanh(affine(x))))``."""
    (first, first_bias), (second, second_bias) = pair
    hidden = np.tanh(x @ first + first_bias)
    y = np.tanh(hidden @ second + second_bias)

    def back(dy: AnyArray) -> tuple[AnyArray, tuple[Affine, Affine]]:
        outer = dy * (1 - y * y)
        inner = (outer @ second.T) * (1 - hidden * hidden)
        dpair = ((x.T @ inner, inner.sum(axis=0)), (hidden.T @ outer, outer.sum(axis=0)))
        return inner @ first.T, dpair

    return y, back


def _inside(x: AnyArray, dimension: int) -> AnyArray:
    x = _checks.float_array(x, "x", ndim=2)
    _checks.shape(x, "x", (len(x), dimension))
    if not ((x >= 0) & (x <= 1)).all():
        _checks.fail("x", "points of the unit cube", f"{int((~((x >= 0) & (x <= 1))).any(axis=1).sum())} outside")
    return x


@dataclass(frozen=True)
class AdaptiveSamplingResult:
    """Outcome of :func:`adversarial_adaptive_sampling`.

    Parameters
    ----------
    net : TanhNet
    sampler : GridDensity, CouplingFlow or the like
    n_iter
        Epochs.
    converged
        Whether the objective stood still.
    history
        One entry an epoch: ``objective`` (the network's, on the epoch's points, after its steps), ``residual`` (mean
        square) and ``boundary`` its parts, ``variation`` (standard deviation of the squared residual over its mean),
        ``adversary`` (its objective, in units of the mean squared residual).
    """

    net: TanhNet
    sampler: Any
    n_iter: int
    converged: bool
    history: dict[str, Array[np.float64]]


def adversarial_adaptive_sampling(
    problem: PoissonProblem,
    net: TanhNet,
    sampler: Sampler,
    *,
    rng: np.random.Generator,
    epochs: int = 200,
    n_points: int = 500,
    net_steps: int = 10,
    sampler_steps: int = 5,
    learning_rate: float = 1e-3,
    sampler_rate: float = 1e-3,
    penalty: float = 1.0,
    boundary_weight: float = 100.0,
    response: str = "ascent",
    floor: float = 0.02,
    tol: float = 1e-4,
    callback: Callback | None = None,
) -> AdaptiveSamplingResult:
    """Solve a differential equation by a network while a density looks for its worst places.

    Parameters
    ----------
    problem : PoissonProblem
    net : TanhNet
        To begin with.
    sampler : GridDensity, CouplingFlow or the like
        To begin with; the first epoch's points are drawn from it as well.
    rng : numpy.random.Generator
    epochs, n_points, net_steps : int >= 1
        Epochs; points an epoch; Adam steps of the network an epoch.
    sampler_steps : int >= 0
        Adam steps of the sampler an epoch; with 0 it stays as it is.
    learning_rate, sampler_rate : float > 0
    penalty : float >= 0
        Of the density's squared slope, for squared residuals of mean 1.
    boundary_weight : float >= 0
        Of the boundary condition.
    response : {"ascent", "exact"}
        Adam steps, or :func:`best_response_1d` on the cells' centres (for a one-dimensional grid).
    floor : float in [0, 1)
        Smallest density of the exact response.
    tol : float >= 0
        The run ends when the objective changes by less than this part of it over 10 epochs.
    callback : callable, optional
        Called with a ``Progress`` after every epoch; a true result ends the run.

    Returns
    -------
    AdaptiveSamplingResult

    Raises
    ------
    TypeError, ValueError
        If an option is out of range.
    Diverged
        If the objective grows without bound.

    Notes
    -----
    The points follow the density, so the network's gradient needs no weights. Points are constants for both players.
    The squared residual is divided by its mean before the sampler's steps, so that ``penalty`` keeps its meaning
    while the residual shrinks.

    References
    ----------
    Tang, Zhai, Wan, Yang (2024), arXiv 2305.18702, algorithm 1.

    Examples
    --------
    >>> problem = PoissonProblem(lambda x: 0 * x[:, 0], lambda x: x[:, 0], np.array([[0.0], [1.0]]))
    >>> rng = np.random.default_rng(0)
    >>> net, sampler = init_tanh_net(rng, 1, hidden=8, frequency=1.0), GridDensity(np.zeros(16))
    >>> result = adversarial_adaptive_sampling(problem, net, sampler, rng=rng, epochs=20, learning_rate=1e-2)
    >>> bool(result.history["objective"][-1] < result.history["objective"][0])
    True
    """
    rng = _checks.generator(rng)
    counts = {"epochs": epochs, "n_points": n_points, "net_steps": net_steps}
    for name, count in counts.items():
        _checks.whole(count, name, low=1)
    _checks.whole(sampler_steps, "sampler_steps", low=0)
    for name, number in (("penalty", penalty), ("boundary_weight", boundary_weight), ("tol", tol)):
        _checks.non_negative(number, name)
    _checks.one_of(response, "response", RESPONSES)
    if response == "exact" and not (isinstance(sampler, GridDensity) and sampler.logits.ndim == 1):
        _checks.fail(
            "response", "'ascent' for this sampler (exact is for a one-dimensional GridDensity)", repr(response)
        )
    net_optimizer = AdamP(learning_rate=learning_rate, delta=NO_PROJECTION)
    sampler_optimizer = AdamP(learning_rate=sampler_rate, delta=NO_PROJECTION)
    net_state, sampler_state = net_optimizer.init(net), sampler_optimizer.init(sampler.parameters)
    edge = problem.boundary_points
    wanted = problem.boundary(edge)
    monitor = Monitor("adversarial_adaptive_sampling", callback=callback)
    objectives: list[float] = []
    converged = False
    for _ in range(epochs):
        x = sampler.sample(rng, n_points)
        reference, source = sampler.log_density(x), problem.source(x)
        for _ in range(net_steps):
            grads = _net_loss(x, source, edge, wanted, net, boundary_weight)[1]
            net, net_state = net_optimizer.step(net, grads, net_state)
        (residual, boundary), _ = _net_loss(x, source, edge, wanted, net, boundary_weight)
        square = poisson_residual(x, net, source) ** 2
        reward = square / max(float(square.mean()), np.finfo(np.float64).tiny)
        value = float(reward.mean())
        if response == "exact" and sampler_steps:
            sampler = _exact_response(problem, net, sampler, penalty, floor)
        for _ in range(sampler_steps if response == "ascent" else 0):
            value, rise = sampler.objective_vjp(x, reward, reference, penalty, rng)
            fall = tree_map(np.negative, rise)
            parameters, sampler_state = sampler_optimizer.step(sampler.parameters, fall, sampler_state)
            sampler = sampler.with_parameters(parameters)
        objectives.append(residual + boundary_weight * boundary)
        stop = monitor.record(
            objective=objectives[-1],
            residual=residual,
            boundary=boundary,
            variation=float(reward.std()),
            adversary=value,
        )
        before = objectives[-1 - WINDOW] if len(objectives) > WINDOW else np.inf
        converged = abs(objectives[-1] - before) < tol * abs(objectives[-1])
        if converged or stop:
            break
    return AdaptiveSamplingResult(net, sampler, monitor.n_iter, converged, monitor.history())


def _net_loss(
    x: AnyArray, source: AnyArray, edge: AnyArray, wanted: AnyArray, net: TanhNet, weight: float
) -> tuple[tuple[float, float], TanhNet]:
    """Mean squares of residual and boundary error, and the gradient of their weighted sum."""
    residual, back_residual = poisson_residual_vjp(x, net, source)
    u, back_edge = tanh_net_vjp(edge, net)
    missed = u - wanted
    inner = back_residual(2 * residual / len(x))[1]
    outer = back_edge(2 * weight * missed / len(edge))[1]
    grads: TanhNet = tree_map(lambda a, b: a + b, inner, outer)
    return (float((residual**2).mean()), float((missed**2).mean())), grads


def _exact_response(problem: PoissonProblem, net: TanhNet, sampler: Any, penalty: float, floor: float) -> GridDensity:
    cells = sampler.logits.size
    centres = ((np.arange(cells) + 0.5) / cells)[:, None]
    square = poisson_residual(centres, net, problem.source(centres)) ** 2
    density = best_response_1d(square / max(float(square.mean()), np.finfo(np.float64).tiny), penalty, floor=floor)
    return GridDensity(np.log(np.maximum(density, np.finfo(np.float64).tiny)))
