"""Lion: evolved sign momentum.

direction = sign(beta1 momentum + (1 - beta1) grad)
param     = (1 - learning_rate weight_decay) param - learning_rate direction
momentum  = beta2 momentum + (1 - beta2) grad
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray, Array, F, Method, Tree
from refnorm.solvers._protocol import check_betas, update_leaves, zeros_like

METHOD = Method(
    title="Symbolic Discovery of Optimization Algorithms (Lion)",
    authors="Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le",
    year=2023,
    arxiv="2302.06675",
    functions=("Lion", "lion_update", "sign_momentum", "lion_gradient_weights"),
    chapter="solvers/lion",
)

_FORMS = ("mul_add", "lerp")
_DECAY_MODES = ("scaled", "init_lr")


def lion_update(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    form: str = "mul_add",
) -> tuple[Array[F], Array[F]]:
    """Take one Lion step on one array.

    Parameters
    ----------
    param, grad, momentum : arrays of one shape and dtype
        Parameter, its gradient, and the running average of gradients (0 before the first step).
    learning_rate : float > 0
        Distance that every coordinate moves.
    beta1, beta2 : floats in [0, 1]
        Weight of the momentum in the direction, and in the momentum of the next step.
    weight_decay : float >= 0
        The parameter is multiplied by ``1 - learning_rate * weight_decay``.
    form : ``"mul_add"`` or ``"lerp"``
        ``beta m + (1 - beta) g``, or ``m + (1 - beta) (g - m)``: equal but for rounding.

    Returns
    -------
    param, momentum : arrays of the same shape and dtype

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes differ or a number is outside its range.

    Notes
    -----
    There is no bias correction and no epsilon. ``sign(0) = 0``; a NaN gradient gives NaN. A coordinate whose
    gradient has become 0 goes on at full speed while its momentum is not 0, and that may be for ever:
    among the smallest subnormal numbers ``beta2 m`` rounds back to ``m``.

    References
    ----------
    Chen et al. (2023), arXiv 2302.06675, program 1 and algorithm 2.

    Examples
    --------
    >>> param, momentum = lion_update(np.array([1.0]), np.array([-3.0]), np.array([0.1]), learning_rate=0.25)
    >>> param, momentum.round(3)
    (array([1.25]), array([0.069]))
    """
    param, grad, momentum = _same_arrays(param, grad, momentum)
    _checks.positive(learning_rate, "learning_rate")
    _checks.in_range(beta1, "beta1", 0.0, 1.0)
    _checks.in_range(beta2, "beta2", 0.0, 1.0)
    _checks.non_negative(weight_decay, "weight_decay")
    _checks.one_of(form, "form", _FORMS)
    # Decay commutes with the sign step: the direction does not look at the parameter.
    shrunk = param * (1 - learning_rate * weight_decay)
    direction = np.sign(_blend(momentum, grad, beta1, form))
    # The momentum that is stored forgets more slowly than the direction does, and is formed from the
    # same gradient and the same old momentum.
    return np.asarray(shrunk - learning_rate * direction), np.asarray(_blend(momentum, grad, beta2, form))


def sign_momentum(
    param: Array[F],
    grad: Array[F],
    momentum: Array[F],
    *,
    learning_rate: float = 1e-4,
    beta: float = 0.9,
    weight_decay: float = 0.0,
) -> tuple[Array[F], Array[F]]:
    """Take one step of signSGD with momentum: Lion with both betas equal.

    Parameters, errors and results are those of :func:`lion_update`, with ``beta`` for both betas.

    Notes
    -----
    ``momentum = beta momentum + (1 - beta) grad``, then ``param = param - learning_rate sign(momentum)``
    after decay.

    Examples
    --------
    >>> sign_momentum(np.array([1.0]), np.array([-2.0]), np.array([0.0]), learning_rate=0.5, beta=0.5)
    (array([1.5]), array([-1.]))
    """
    _checks.in_range(beta, "beta", 0.0, 1.0)
    return lion_update(
        param,
        grad,
        momentum,
        learning_rate=learning_rate,
        beta1=beta,
        beta2=beta,
        weight_decay=weight_decay,
    )


def lion_gradient_weights(k_max: int, betas: tuple[float, float] = (0.9, 0.99)) -> Array[np.float64]:
    """Return the weight of each past gradient in the vector whose sign Lion takes.

    Parameters
    ----------
    k_max : int >= 0
        Age of the oldest gradient, in steps.
    betas : two floats in [0, 1]
        As in :class:`Lion`.

    Returns
    -------
    float64 array (k_max + 1,)
        Entry ``k`` belongs to the gradient of ``k`` steps ago.

    Raises
    ------
    TypeError, ValueError
        If ``k_max`` is not an integer >= 0 or a beta is outside [0, 1].

    Notes
    -----
    ``1 - beta1`` for the current gradient and ``beta1 (1 - beta2) beta2^(k - 1)`` for ``k >= 1``. All
    weights up to infinity sum to 1 if ``beta2 < 1``.

    Examples
    --------
    >>> lion_gradient_weights(3).round(5)
    array([0.1    , 0.009  , 0.00891, 0.00882])
    """
    k_max = _checks.whole(k_max, "k_max", low=0)
    check_betas(betas, closed="both")
    beta1, beta2 = betas
    past = beta1 * (1 - beta2) * beta2 ** np.arange(k_max, dtype=np.float64)
    return np.concatenate([[1 - beta1], past])


@dataclass(frozen=True)
class LionState:
    """State of :class:`Lion`.

    Parameters
    ----------
    momentum
        Tree like the parameters: running average of the gradients.
    initial_learning_rate
        Learning rate with which the run began, the unit of ``decay_mode="init_lr"``.
    """

    momentum: Tree
    initial_learning_rate: float


@dataclass(frozen=True)
class Lion:
    """The Lion optimizer.

    Parameters
    ----------
    learning_rate : float > 0
        Distance that every coordinate moves in a step; 3 to 10 times below AdamW's.
    betas : two floats in [0, 1]
        Weight of the momentum in the direction, and in the momentum of the next step.
    weight_decay : float >= 0
        Decoupled decay; 3 to 10 times above AdamW's for the same product with the learning rate.
    decay_mode : ``"scaled"`` or ``"init_lr"``
        The factor on the parameter is ``1 - learning_rate * weight_decay``, or
        ``1 - (learning_rate / initial learning rate) * weight_decay``.
    maximize : bool
        Climb instead of descend.
    form : ``"mul_add"`` or ``"lerp"``
        See :func:`lion_update`.

    Raises
    ------
    ValueError
        If a hyper-parameter is outside its range.

    Notes
    -----
    The update is :func:`lion_update` for each array. The state is one buffer: half of Adam's.

    References
    ----------
    Chen et al. (2023), arXiv 2302.06675, algorithm 2.

    Examples
    --------
    >>> optimizer = Lion(learning_rate=0.1)
    >>> params = {"weight": np.array([1.0, -2.0])}
    >>> state = optimizer.init(params)
    >>> params, state = optimizer.step(params, {"weight": np.array([0.3, -40.0])}, state)
    >>> params
    {'weight': array([ 0.9, -1.9])}
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    decay_mode: str = "scaled"
    maximize: bool = False
    form: str = "mul_add"

    def __post_init__(self) -> None:
        _checks.positive(self.learning_rate, "learning_rate")
        check_betas(self.betas, closed="both")
        _checks.non_negative(self.weight_decay, "weight_decay")
        _checks.one_of(self.decay_mode, "decay_mode", _DECAY_MODES)
        _checks.one_of(self.form, "form", _FORMS)

    def init(self, params: Tree) -> LionState:
        """Return the state before the first step: no momentum."""
        return LionState(momentum=zeros_like(params), initial_learning_rate=self.learning_rate)

    def step(self, params: Tree, grads: Tree, state: LionState) -> tuple[Tree, LionState]:
        """Return parameters and state after one step; see :class:`refnorm.solvers.Optimizer`."""
        decay = self.weight_decay
        if self.decay_mode == "init_lr":
            decay = decay / state.initial_learning_rate

        def update(param: AnyArray, grad: AnyArray, momentum: AnyArray) -> tuple[AnyArray, ...]:
            return lion_update(
                param,
                -grad if self.maximize else grad,
                momentum,
                learning_rate=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=decay,
                form=self.form,
            )

        params, momentum = update_leaves(update, params, grads, {"state.momentum": state.momentum})
        return params, LionState(momentum=momentum, initial_learning_rate=state.initial_learning_rate)


def _same_arrays(param: AnyArray, grad: AnyArray, momentum: AnyArray) -> tuple[AnyArray, AnyArray, AnyArray]:
    param = _checks.float_array(param, "param")
    grad, momentum = _checks.float_array(grad, "grad"), _checks.float_array(momentum, "momentum")
    _checks.same_dtype("param", param, grad=grad, momentum=momentum)
    _checks.shape(grad, "grad", param.shape)
    _checks.shape(momentum, "momentum", param.shape)
    return param, grad, momentum


def _blend(momentum: AnyArray, grad: AnyArray, beta: float, form: str) -> AnyArray:
    # 1 - beta is rounded to the array's dtype once, from double: float32(0.1) is not 1 - float32(0.9).
    if form == "mul_add":
        return np.asarray(beta * momentum + (1 - beta) * grad)
    return np.asarray(momentum + (1 - beta) * (grad - momentum))
