"""Optimizers for parameters that are points of the Poincaré ball.

grad  = gap^2/4 (gradient + weight_decay point)                    Riemannian gradient
point = exp_point(-learning_rate direction)                        direction: grad, its momentum, or Adam's ratio
state = transported from the old point to the new one
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Method, Tree
from refnorm.poincare._ball import clip
from refnorm.poincare._frame import Frame, Point, read_curvature
from refnorm.poincare._geodesics import carry, follow
from refnorm.poincare._numerics import Wide, dot
from refnorm.solvers._protocol import check_betas, update_leaves, zeros_like
from refnorm.tree import children, tree_leaves, tree_map

METHOD = Method(
    title="Riemannian optimizers on the Poincaré ball",
    authors="Bonnabel; Bécigneul, Ganea",
    year=2019,
    arxiv="1810.00760",
    functions=("RiemannianSGD", "RiemannianAdam"),
    chapter="poincare/optimizers",
    paper=False,
)


@dataclass(frozen=True)
class RiemannianSGDState:
    """State of :class:`RiemannianSGD`.

    Parameters
    ----------
    momentum
        Tree like the parameters: tangent vectors at the current points.
    """

    momentum: Tree


@dataclass(frozen=True)
class RiemannianSGD:
    """Stochastic gradient descent along geodesics, with transported momentum.

    Parameters
    ----------
    learning_rate : float > 0
        The step is the geodesic with this multiple of the negative direction as velocity.
    momentum : float in [0, 1)
        Weight of the transported momentum in the next one.
    dampening : float in [0, 1)
        The new gradient enters the momentum with weight ``1 - dampening``.
    nesterov : bool
        Whether the direction is ``grad + momentum * new momentum`` instead of the new momentum.
    weight_decay : float >= 0
        Multiple of the parameter that is added to its (Euclidean) gradient.
    curvature : float > 0, ``None``, or a tree of these like the parameters
        Minus the sectional curvature of the ball that the vectors along a parameter's last axis lie in;
        ``None`` for a Euclidean parameter.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is outside its range. ``step`` raises if a point is outside the ball.

    Notes
    -----
    The gradient is that of automatic or hand-derived differentiation, with respect to coordinates. The
    metric turns it into the direction of steepest ascent: it is divided by the squared conformal factor, so
    that points near the boundary do not jump. New points are projected as by ``project_ball``. With
    ``curvature=None`` throughout, this is plain SGD.

    References
    ----------
    Bonnabel (2013), Stochastic gradient descent on Riemannian manifolds, equation 2;
    Bécigneul, Ganea (2019), arXiv 1810.00760, section 2.

    Examples
    --------
    Half the squared distance from the origin has the gradient ``factor * distance`` outwards. Half a step
    halves the distance, from 2 artanh(3/5) to 2 artanh(1/3):

    >>> optimizer = RiemannianSGD(learning_rate=0.5)
    >>> point, grad = np.array([0.6, 0.0]), np.array([3.125 * np.log(4.0), 0.0])
    >>> optimizer.step(point, grad, optimizer.init(point))[0].round(6)
    array([0.333333, 0.      ])
    """

    learning_rate: float = 1e-2
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    curvature: Tree = 1.0

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        _checks.in_range(self.momentum, "momentum", 0.0, 1.0, closed="left")
        _checks.in_range(self.dampening, "dampening", 0.0, 1.0, closed="left")
        _checks.non_negative(self.weight_decay, "weight_decay")
        _check_curvature(self.curvature)

    def init(self, params: Tree) -> RiemannianSGDState:
        """Return the state before the first step: no momentum."""
        return RiemannianSGDState(momentum=zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: RiemannianSGDState) -> tuple[Tree, RiemannianSGDState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""

        def update(place: _Place, grad: Wide, buffer: AnyArray) -> tuple[AnyArray, ...]:
            ascent = place.ascent(grad)
            momentum = self.momentum * place.inside(buffer) + (1 - self.dampening) * ascent
            direction = ascent + self.momentum * momentum if self.nesterov else momentum
            following = place.follow(-self.learning_rate * direction)
            return following.param, place.carry(following, momentum)

        params, momentum = _update(self, update, params, grads, {"state.momentum": state.momentum})
        return params, RiemannianSGDState(momentum=momentum)


@dataclass(frozen=True)
class RiemannianAdamState:
    """State of :class:`RiemannianAdam`.

    Parameters
    ----------
    momentum
        Tree like the parameters: running average of the Riemannian gradients, tangent at the current points.
    square
        Tree like the parameters: running average of their squared lengths (one number a point, repeated), of
        their squared coordinates for a Euclidean parameter.
    largest_square
        Largest ``square`` so far with ``amsgrad``, else zeros.
    n_steps
        Steps taken.
    """

    momentum: Tree
    square: Tree
    largest_square: Tree
    n_steps: int


@dataclass(frozen=True)
class RiemannianAdam:
    """Adam along geodesics: one step size a point, because coordinates have no meaning of their own.

    Parameters
    ----------
    learning_rate : float > 0
    betas : two floats in [0, 1)
        Weights of the averages of gradients and of their squared lengths.
    eps : float > 0
        Added to the root of the averaged squared length.
    weight_decay : float >= 0
        Multiple of the parameter that is added to its (Euclidean) gradient.
    amsgrad : bool
        Whether the largest average so far replaces the averaged squared length.
    curvature : float > 0, ``None``, or a tree of these like the parameters
        As in :class:`RiemannianSGD`.

    Raises
    ------
    TypeError, ValueError
        If a hyper-parameter is outside its range. ``step`` raises if a point is outside the ball.

    Notes
    -----
    ``m = beta1 m + (1 - beta1) grad``, ``v = beta2 v + (1 - beta2) factor^2 |grad|^2``, both divided by
    ``1 - beta^t``, and the step ``exp(-learning_rate m / (sqrt(v) + eps))``; then m is transported. A step has
    a hyperbolic length of about the learning rate wherever the point is. With ``curvature=None``
    throughout, this is Adam.

    References
    ----------
    Bécigneul, Ganea (2019), arXiv 1810.00760, algorithm 1b (RAMSGrad and RAdam).

    Examples
    --------
    >>> optimizer = RiemannianAdam(learning_rate=0.1)
    >>> point = np.array([0.6, 0.0])
    >>> point, state = optimizer.step(point, np.array([1e6, 0.0]), optimizer.init(point))
    >>> point.round(4), state.n_steps
    (array([0.567, 0.   ]), 1)
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False
    curvature: Tree = 1.0

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        check_betas(self.betas, closed="left")
        _checks.positive(self.eps, "eps")
        _checks.non_negative(self.weight_decay, "weight_decay")
        _check_curvature(self.curvature)

    def init(self, params: Tree) -> RiemannianAdamState:
        """Return the state before the first step."""
        return RiemannianAdamState(zeros_like(params), zeros_like(params), zeros_like(params), 0)

    def step(self, params: Tree, grads: Tree, state: RiemannianAdamState) -> tuple[Tree, RiemannianAdamState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        n_steps, (beta1, beta2) = state.n_steps + 1, self.betas
        correction1, correction2 = 1 - beta1**n_steps, 1 - beta2**n_steps

        def update(
            place: _Place, grad: Wide, momentum: AnyArray, square: AnyArray, largest: AnyArray
        ) -> tuple[AnyArray, ...]:
            ascent = place.ascent(grad)
            mean = beta1 * place.inside(momentum) + (1 - beta1) * ascent
            square = beta2 * square + (1 - beta2) * place.squared_length(ascent)
            largest = np.maximum(largest, square) if self.amsgrad else largest
            denominator = np.sqrt((largest if self.amsgrad else square) / correction2) + self.eps
            following = place.follow(-self.learning_rate * mean / correction1 / denominator)
            dtype = place.param.dtype
            return following.param, place.carry(following, mean), square.astype(dtype), largest.astype(dtype)

        buffers = {
            "state.momentum": state.momentum,
            "state.square": state.square,
            "state.largest_square": state.largest_square,
        }
        params, *trees = _update(self, update, params, grads, buffers)
        return params, RiemannianAdamState(trees[0], trees[1], trees[2], n_steps)


@dataclass(frozen=True)
class _Place:
    """Where a parameter is: points of a ball, or, without frame and point, a Euclidean array.

    Vectors inside are float64, in the frame's units.
    """

    param: AnyArray
    frame: Frame | None = None
    point: Point | None = None

    @classmethod
    def of(cls, param: AnyArray, curvature: Any) -> _Place:
        if curvature is None:
            return cls(param)
        frame = Frame(curvature, -1, True, params=param)
        return cls(param, frame, frame.point(param, "params"))

    def inside(self, vector: AnyArray) -> Wide:
        wide: Wide = vector.astype(np.float64)
        return wide if self.frame is None else self.frame.vector(wide)

    def ascent(self, grad: Wide) -> Wide:
        """Return the Riemannian gradient of a function with the Euclidean gradient ``grad``."""
        if self.point is None or self.frame is None:
            return grad
        return self.point.gap**2 / 4 * self.frame.vector(grad)

    def squared_length(self, vector: Wide) -> Wide:
        """Return the squared length of each vector along the coordinates, or each coordinate's square."""
        if self.point is None or self.frame is None:
            return vector * vector
        length = 4 / self.point.gap**2 * dot(vector, vector) / self.frame.unit**2
        return np.broadcast_to(length, vector.shape)

    def follow(self, velocity: Wide) -> _Place:
        if self.point is None or self.frame is None:
            moved: AnyArray = (self.param + velocity).astype(self.param.dtype)
            return _Place(moved)
        end, _ = follow(self.point, velocity, self.frame.curvature)
        end, _ = clip(end, self.frame, True)
        param = self.frame.leave_inside(end)
        return _Place(param, self.frame, self.frame.point(param, "params"))

    def carry(self, following: _Place, vector: Wide) -> AnyArray:
        if self.point is None or self.frame is None or following.point is None:
            return vector.astype(self.param.dtype)
        carried, _ = carry(self.point, following.point, vector, self.frame.curvature)
        return self.frame.leave(carried)


def _check_curvature(curvature: Tree) -> None:
    for path, value in tree_leaves(curvature):
        if value is not None:
            read_curvature(value, f"curvature.{path}" if path else "curvature")


def _update(
    optimizer: RiemannianSGD | RiemannianAdam,
    update: Callable[..., tuple[AnyArray, ...]],
    params: Tree,
    grads: Tree,
    buffers: dict[str, Tree],
) -> tuple[Tree, ...]:
    """Apply ``update(place, gradient with decay, *buffers)`` to every parameter in its own geometry."""
    if children(optimizer.curvature) is None:
        curvatures = [optimizer.curvature for _ in tree_leaves(params)]
    else:
        tree_map(lambda *_: None, params, optimizer.curvature, path="curvature")
        curvatures = [value for _, value in tree_leaves(optimizer.curvature)]
    tree_map(lambda *_: None, params, grads, path="grads")
    moving = zip(tree_leaves(params), tree_leaves(grads), curvatures, strict=True)
    following = iter([c for (_, param), (_, grad), c in moving if param is not None and grad is not None])

    def one(param: AnyArray, grad: AnyArray, *rest: AnyArray) -> tuple[AnyArray, ...]:
        decayed = grad.astype(np.float64) + optimizer.weight_decay * param
        return update(_Place.of(param, next(following)), decayed, *rest)

    return update_leaves(one, params, grads, buffers)
