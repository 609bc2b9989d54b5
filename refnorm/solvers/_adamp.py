"""AdamP and SGDP: momentum optimizers whose update has no radial component on scale-invariant weights.

update = update - unit <unit, update>,  unit = param / |param|
                      where |cos(param, grad)| < delta / sqrt(size)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Pullback, Tree
from refnorm.solvers._protocol import check_betas, update_leaves, zeros_like

METHOD = Method(
    title="AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    authors="Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha",
    year=2021,
    arxiv="2006.08217",
    functions=("AdamP", "SGDP", "adamp_update", "sgdp_update", "project_radial", "which_view"),
    chapter="solvers/adamp",
)


def which_view(param: Array[F], grad: Array[F], *, delta: float = 0.1, eps: float = 1e-8) -> str:
    """Return how a weight array looks scale-invariant: by output channel, as a whole, or not at all.

    Parameters
    ----------
    param, grad : arrays (C, ...) of one shape and dtype
        Weight and its current gradient.
    delta : float > 0
        Threshold in units of the chance level ``1 / sqrt(n)`` of ``|cos|`` in n dimensions.
    eps : float >= 0
        Lower bound of each norm.

    Returns
    -------
    ``"channel"``, ``"layer"`` or ``"none"``
        ``"none"`` for arrays of less than two dimensions and for empty ones.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    Notes
    -----
    A view has rows ``P`` and ``G`` of ``n`` columns: one row per channel, or one in all. It is taken if
    ``max |<G, P>| / (max(|G|, eps) max(|P|, eps)) < delta / sqrt(n)`` over its rows; the channel view is
    tried first. Inner products are summed in float64. A NaN takes no view.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, section 3 (the condition on the cosine, channel- and layer-wise).

    Examples
    --------
    >>> which_view(np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]]))
    'channel'
    >>> which_view(np.array([[3.0, 4.0]]), np.array([[1.0, 1.0]]))
    'none'
    """
    param, grad = _pair(param, grad)
    _check_projection(delta, eps)
    return _select(param, grad, delta, eps)


def project_radial(
    param: Array[F],
    grad: Array[F],
    update: Array[F],
    *,
    delta: float = 0.1,
    weight_decay_ratio: float = 0.1,
    eps: float = 1e-8,
) -> tuple[Array[F], float]:
    """Remove the radial component of an update where the weight looks scale-invariant.

    Parameters
    ----------
    param, grad, update : arrays (C, ...) of one shape and dtype
        Weight, its current gradient, and the step that the optimizer would take.
    delta, eps
        As in :func:`which_view`.
    weight_decay_ratio : float
        Second result where the update was projected.

    Returns
    -------
    update : array of the same shape and dtype
    ratio : float
        ``weight_decay_ratio`` if a view was taken, else 1.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    Notes
    -----
    Per row of the view, ``unit = P / (|P| + eps)`` and ``U - unit <unit, U>``. A zero row has unit 0: its
    update stays.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, section 3 (projection and selection of weights).

    Examples
    --------
    >>> update, ratio = project_radial(*(np.array([row]) for row in ([3.0, 4.0], [-0.8, 0.6], [-0.1, 0.1])))
    >>> update.round(6), ratio
    (array([[-0.112,  0.084]]), 0.1)
    """
    return project_radial_vjp(param, grad, update, delta=delta, weight_decay_ratio=weight_decay_ratio, eps=eps)[0]


def project_radial_vjp(
    param: Array[F],
    grad: Array[F],
    update: Array[F],
    *,
    delta: float = 0.1,
    weight_decay_ratio: float = 0.1,
    eps: float = 1e-8,
) -> tuple[tuple[Array[F], float], Pullback]:
    """Return :func:`project_radial` and its pullback ``(dupdate, dratio) -> (dparam, dgrad, dupdate)``.

    The choice of the view is a switch: no gradient passes through it, so ``grad`` has the cotangent 0
    and the ratio is constant. Parameters, errors and references are those of :func:`project_radial`.
    """
    param, grad = _pair(param, grad)
    update = _matching(update, "update", param)
    _check_projection(delta, eps)
    _checks.non_negative(weight_decay_ratio, "weight_decay_ratio")
    view = _select(param, grad, delta, eps)
    if view == "none":
        return (update.copy(), 1.0), lambda cotangent: (
            np.zeros_like(param),
            np.zeros_like(grad),
            np.asarray(cotangent[0], dtype=update.dtype),
        )

    rows = _rows(param, view)
    norm = np.sqrt(_dot(rows, rows))
    # Only eps = 0 with a zero row gives 0 here; its unit is 0 as well.
    length = np.where(norm + eps == 0, 1.0, norm + eps)
    unit = rows / length
    steps = _rows(update, view)
    radial = _dot(unit, steps)
    projected = (steps - unit * radial).astype(param.dtype).reshape(param.shape)

    def pullback(cotangent: tuple[AnyArray, object]) -> tuple[AnyArray, AnyArray, AnyArray]:
        dy = _rows(np.asarray(cotangent[0], dtype=np.float64), view)
        # I - unit unit^T is symmetric: the update's cotangent is projected by the same operator.
        along = _dot(unit, dy)
        dsteps = dy - unit * along
        dunit = -(radial * dy + along * steps)
        # unit = P / (|P| + eps), and |P| moves by <P, dP> / |P|; at P = 0 only the first term is left.
        inward = _dot(unit, dunit) / np.where(norm == 0, 1.0, norm)
        dparam = (dunit - rows * inward) / length
        return (
            dparam.astype(param.dtype).reshape(param.shape),
            np.zeros_like(grad),
            dsteps.astype(param.dtype).reshape(param.shape),
        )

    return (projected, float(weight_decay_ratio)), pullback


def adamp_update(
    param: Array[F],
    grad: Array[F],
    first_moment: Array[F],
    second_moment: Array[F],
    *,
    step: int,
    learning_rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    weight_decay_ratio: float = 0.1,
    nesterov: bool = False,
) -> tuple[Array[F], Array[F], Array[F]]:
    """Take one AdamP step on one array.

    Parameters
    ----------
    param, grad, first_moment, second_moment : arrays of one shape and dtype
        Weight, gradient, running averages of the gradient and of its square (0 before the first step).
    step : int >= 1
        Number of this step, for the bias correction.
    learning_rate, beta1, beta2, eps, weight_decay, delta, weight_decay_ratio, nesterov
        As in :class:`AdamP`.

    Returns
    -------
    param, first_moment, second_moment : arrays of the same shape and dtype

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, algorithm 2.

    Examples
    --------
    >>> start, slope, zero = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]]), np.zeros((1, 2))
    >>> adamp_update(start, slope, zero, zero, step=1, learning_rate=0.1, weight_decay=0.5)[0].round(6)
    array([[3.097, 3.896]])
    """
    param, grad = _pair(param, grad)
    first_moment = _matching(first_moment, "first_moment", param)
    second_moment = _matching(second_moment, "second_moment", param)
    step = _checks.whole(step, "step", low=1)
    AdamP(learning_rate, (beta1, beta2), eps, weight_decay, delta, weight_decay_ratio, nesterov)

    first_moment = np.asarray(beta1 * first_moment + (1 - beta1) * grad)
    second_moment = np.asarray(beta2 * second_moment + (1 - beta2) * (grad * grad))
    # eps joins after the bias correction, so its meaning does not depend on the step.
    scale = np.sqrt(second_moment) / math.sqrt(1 - beta2**step) + eps
    update = (beta1 * first_moment + (1 - beta1) * grad if nesterov else first_moment) / scale
    # The test looks at the weight before decay and at the raw gradient, not at the averages.
    update, ratio = project_radial(
        param, grad, np.asarray(update), delta=delta, weight_decay_ratio=weight_decay_ratio, eps=eps
    )
    shrunk = param * (1 - learning_rate * weight_decay * ratio)
    # The projection is linear: correcting the bias in the step size equals correcting it before.
    moved = shrunk - (learning_rate / (1 - beta1**step)) * update
    return np.asarray(moved), first_moment, second_moment


def sgdp_update(
    param: Array[F],
    grad: Array[F],
    buffer: Array[F],
    *,
    learning_rate: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    eps: float = 1e-8,
    delta: float = 0.1,
    weight_decay_ratio: float = 0.1,
    project_buffer: bool = False,
) -> tuple[Array[F], Array[F]]:
    """Take one SGDP step on one array.

    Parameters
    ----------
    param, grad, buffer : arrays of one shape and dtype
        Weight, gradient and momentum buffer (0 before the first step).
    learning_rate, momentum, dampening, weight_decay, nesterov, eps, delta, weight_decay_ratio, project_buffer
        As in :class:`SGDP`.

    Returns
    -------
    param, buffer : arrays of the same shape and dtype

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, algorithm 1.

    Examples
    --------
    >>> start, slope = np.array([[3.0, 4.0]]), np.array([[-0.8, 0.6]])
    >>> sgdp_update(start, slope, np.zeros((1, 2)), learning_rate=0.1, momentum=0.9)[0]
    array([[3.08, 3.94]])
    """
    param, grad = _pair(param, grad)
    buffer = _matching(buffer, "buffer", param)
    SGDP(
        learning_rate,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        eps,
        delta,
        weight_decay_ratio,
        project_buffer,
    )

    buffer = np.asarray(momentum * buffer + (1 - dampening) * grad)
    update, ratio = project_radial(
        param,
        grad,
        np.asarray(grad + momentum * buffer) if nesterov else buffer,
        delta=delta,
        weight_decay_ratio=weight_decay_ratio,
        eps=eps,
    )
    if project_buffer and not nesterov:
        buffer = update
    # Momentum multiplies a constant gradient by 1 / (1 - momentum); the decay keeps pace with it.
    decay = learning_rate * weight_decay * ratio / (1 - momentum) if weight_decay > 0 else 0.0
    return np.asarray(param * (1 - decay) - learning_rate * update), buffer


@dataclass(frozen=True)
class AdamPState:
    """State of :class:`AdamP`.

    Parameters
    ----------
    step
        Number of steps taken.
    first_moment, second_moment
        Trees like the parameters: running averages of the gradient and of its square.
    """

    step: int
    first_moment: Tree
    second_moment: Tree


@dataclass(frozen=True)
class AdamP:
    """Adam with decoupled weight decay and without radial updates of scale-invariant weights.

    Parameters
    ----------
    learning_rate : float >= 0
    betas : two floats in [0, 1)
        Decay of the running averages of the gradient and of its square.
    eps : float >= 0
        Added to the root of the second moment, and lower bound of the norms in the test.
    weight_decay : float >= 0
        The weight is multiplied by ``1 - learning_rate * weight_decay * ratio`` before the step.
    delta : float > 0
        Threshold of the test for scale invariance; see :func:`which_view`.
    weight_decay_ratio : float >= 0
        ``ratio`` of the weights whose update was projected; 1 for all others.
    nesterov : bool
        Look one step ahead: ``beta1 first_moment + (1 - beta1) grad`` in place of the first moment.

    Raises
    ------
    ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    ``update = first_moment / (sqrt(second_moment) / sqrt(1 - beta2^t) + eps)`` goes through
    :func:`project_radial` and is applied with ``learning_rate / (1 - beta1^t)``.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, algorithm 2.

    Examples
    --------
    >>> optimizer, params = AdamP(learning_rate=0.1, weight_decay=0.5), [np.array([[3.0, 4.0]])]
    >>> state = optimizer.init(params)
    >>> for _ in range(2):
    ...     params, state = optimizer.step(params, [np.array([[-0.8, 0.6]])], state)
    >>> params[0].round(6), state.step
    (array([[3.191505, 3.789087]]), 2)
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    delta: float = 0.1
    weight_decay_ratio: float = 0.1
    nesterov: bool = False

    def __post_init__(self) -> None:
        _checks.non_negative(self.learning_rate, "learning_rate")
        check_betas(self.betas, closed="left")
        _checks.non_negative(self.weight_decay, "weight_decay")
        _checks.non_negative(self.weight_decay_ratio, "weight_decay_ratio")
        _check_projection(self.delta, self.eps)

    def init(self, params: Tree) -> AdamPState:
        """Return the state before the first step: step 0, both averages 0."""
        return AdamPState(step=0, first_moment=zeros_like(params), second_moment=zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: AdamPState) -> tuple[Tree, AdamPState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        number = _checks.whole(state.step, "state.step", low=0) + 1

        def update(*leaves: AnyArray) -> tuple[AnyArray, ...]:
            return adamp_update(
                *leaves,
                step=number,
                learning_rate=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                weight_decay=self.weight_decay,
                delta=self.delta,
                weight_decay_ratio=self.weight_decay_ratio,
                nesterov=self.nesterov,
            )

        moments = {"state.first_moment": state.first_moment, "state.second_moment": state.second_moment}
        params, first_moment, second_moment = update_leaves(update, params, grads, moments)
        return params, AdamPState(step=number, first_moment=first_moment, second_moment=second_moment)


@dataclass(frozen=True)
class SGDPState:
    """State of :class:`SGDP`.

    Parameters
    ----------
    buffer
        Tree like the parameters: the momentum.
    """

    buffer: Tree


@dataclass(frozen=True)
class SGDP:
    """Stochastic gradient descent with momentum, without radial updates of scale-invariant weights.

    Parameters
    ----------
    learning_rate : float >= 0
    momentum : float >= 0, below 1 if there is weight decay
        Factor on the buffer in each step.
    dampening : float
        The gradient enters the buffer with ``1 - dampening``, in the first step as in all others.
    weight_decay : float >= 0
        The weight is multiplied by ``1 - learning_rate * weight_decay * ratio / (1 - momentum)``.
    nesterov : bool
        Apply ``grad + momentum * buffer`` in place of the buffer.
    eps, delta, weight_decay_ratio
        As in :class:`AdamP`.
    project_buffer : bool
        Store the projected buffer, as the authors' package does when ``nesterov`` is off; the paper
        projects the applied step alone.

    Raises
    ------
    ValueError
        If a hyper-parameter is outside its range.

    References
    ----------
    Heo et al. (2021), arXiv 2006.08217, algorithm 1.

    Examples
    --------
    >>> optimizer, params = SGDP(learning_rate=0.1, momentum=0.9), np.array([[3.0, 4.0]])
    >>> state = optimizer.init(params)
    >>> for _ in range(2):
    ...     params, state = optimizer.step(params, np.array([[-0.8, 0.6]]), state)
    >>> params.round(6)
    array([[3.22966 , 3.823007]])
    """

    learning_rate: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    eps: float = 1e-8
    delta: float = 0.1
    weight_decay_ratio: float = 0.1
    project_buffer: bool = False

    def __post_init__(self) -> None:
        _checks.non_negative(self.learning_rate, "learning_rate")
        _checks.non_negative(self.momentum, "momentum")
        _checks.non_negative(self.weight_decay, "weight_decay")
        if self.weight_decay > 0 and self.momentum >= 1:
            _checks.fail("momentum", "a number below 1 where there is weight decay", self.momentum)
        if not math.isfinite(self.dampening):
            _checks.fail("dampening", "a finite number", self.dampening)
        _checks.non_negative(self.weight_decay_ratio, "weight_decay_ratio")
        _check_projection(self.delta, self.eps)

    def init(self, params: Tree) -> SGDPState:
        """Return the state before the first step: an empty buffer."""
        return SGDPState(buffer=zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: SGDPState) -> tuple[Tree, SGDPState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""

        def update(*leaves: AnyArray) -> tuple[AnyArray, ...]:
            return sgdp_update(
                *leaves,
                learning_rate=self.learning_rate,
                momentum=self.momentum,
                dampening=self.dampening,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
                eps=self.eps,
                delta=self.delta,
                weight_decay_ratio=self.weight_decay_ratio,
                project_buffer=self.project_buffer,
            )

        params, buffer = update_leaves(update, params, grads, {"state.buffer": state.buffer})
        return params, SGDPState(buffer=buffer)


def _rows(array: AnyArray, view: str) -> AnyArray:
    return array.reshape(array.shape[0] if view == "channel" else 1, -1)


def _dot(a: AnyArray, b: AnyArray) -> AnyArray:
    """Inner product of each row, as a column, in float64."""
    products: AnyArray = np.einsum("rj,rj->r", a, b, dtype=np.float64)[:, None]
    return products


def _select(param: AnyArray, grad: AnyArray, delta: float, eps: float) -> str:
    if param.ndim < 2 or not param.size:
        return "none"
    for view in ("channel", "layer"):
        p, g = _rows(param, view), _rows(grad, view)
        norms = np.maximum(np.sqrt(_dot(p, p)), eps) * np.maximum(np.sqrt(_dot(g, g)), eps)
        # 0 / 0 can only come from eps = 0 with a zero row, which is orthogonal to everything.
        cosine = np.abs(_dot(p, g)) / np.where(norms == 0, 1.0, norms)
        if cosine.max() < delta / math.sqrt(p.shape[1]):
            return view
    return "none"


def _pair(param: AnyArray, grad: AnyArray) -> tuple[AnyArray, AnyArray]:
    param = _checks.float_array(param, "param")
    return param, _matching(grad, "grad", param)


def _matching(array: AnyArray, name: str, param: AnyArray) -> AnyArray:
    array = _checks.float_array(array, name)
    _checks.same_dtype("param", param, **{name: array})
    _checks.shape(array, name, param.shape)
    return array


def _check_projection(delta: float, eps: float) -> None:
    _checks.positive(delta, "delta")
    _checks.non_negative(eps, "eps")
