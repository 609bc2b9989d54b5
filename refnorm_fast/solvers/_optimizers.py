"""The reference's optimizers with their updates as kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from refnorm import _checks, solvers
from refnorm._typing import AnyArray, Tree
from refnorm.solvers import AdamPState, LionState, SGDPState
from refnorm.solvers._protocol import update_leaves
from refnorm_fast.solvers._core import adamp_update, lion_update, sgdp_update


@dataclass(frozen=True)
class Lion(solvers.Lion):
    """:class:`refnorm.solvers.Lion`, one pass over memory a step.

    Hyper-parameters, ``init`` and results are the reference's, to the last bit.

    Examples
    --------
    >>> optimizer, params = Lion(learning_rate=0.25), {"weight": np.array([1.0, -2.0])}
    >>> state = optimizer.init(params)
    >>> optimizer.step(params, {"weight": np.array([0.3, -40.0])}, state)[0]
    {'weight': array([ 0.75, -1.75])}
    """

    def step(
        self, params: Tree, grads: Tree, state: LionState, *, out: tuple[Tree, LionState] | None = None
    ) -> tuple[Tree, LionState]:
        """Return parameters and state after one step; ``out=(params, state)`` steps in place."""
        decay = self.weight_decay
        if self.decay_mode == "init_lr":
            decay = decay / state.initial_learning_rate

        def update(
            param: AnyArray, grad: AnyArray, momentum: AnyArray, targets: tuple[AnyArray, ...] | None
        ) -> tuple[AnyArray, ...]:
            return lion_update(
                param,
                -grad if self.maximize else grad,
                momentum,
                learning_rate=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=decay,
                form=self.form,
                out=targets,
            )

        into = None if out is None else {"out.params": out[0], "out.state.momentum": out[1].momentum}
        params, momentum = _update(update, params, grads, {"state.momentum": state.momentum}, into)
        return params, LionState(momentum=momentum, initial_learning_rate=state.initial_learning_rate)


@dataclass(frozen=True)
class AdamP(solvers.AdamP):
    """:class:`refnorm.solvers.AdamP`, with the projection fused into the step.

    Hyper-parameters and ``init`` are the reference's.

    Examples
    --------
    >>> optimizer, params = AdamP(learning_rate=0.1, weight_decay=0.5), [np.array([[3.0, 4.0]])]
    >>> params, state = optimizer.step(params, [np.array([[-0.8, 0.6]])], optimizer.init(params))
    >>> params[0].round(6), state.step
    (array([[3.097, 3.896]]), 1)
    """

    def step(
        self, params: Tree, grads: Tree, state: AdamPState, *, out: tuple[Tree, AdamPState] | None = None
    ) -> tuple[Tree, AdamPState]:
        """Return parameters and state after one step; ``out=(params, state)`` steps in place.

        The arrays of ``out`` take the results; the number of the step is in the returned state alone.
        """
        number = _checks.whole(state.step, "state.step", low=0) + 1

        def update(
            param: AnyArray,
            grad: AnyArray,
            first: AnyArray,
            second: AnyArray,
            targets: tuple[AnyArray, ...] | None,
        ) -> tuple[AnyArray, ...]:
            return adamp_update(
                param,
                grad,
                first,
                second,
                step=number,
                learning_rate=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                eps=self.eps,
                weight_decay=self.weight_decay,
                delta=self.delta,
                weight_decay_ratio=self.weight_decay_ratio,
                nesterov=self.nesterov,
                out=targets,
            )

        moments = {"state.first_moment": state.first_moment, "state.second_moment": state.second_moment}
        into = None
        if out is not None:
            into = {
                "out.params": out[0],
                "out.state.first_moment": out[1].first_moment,
                "out.state.second_moment": out[1].second_moment,
            }
        params, first_moment, second_moment = _update(update, params, grads, moments, into)
        return params, AdamPState(step=number, first_moment=first_moment, second_moment=second_moment)


@dataclass(frozen=True)
class SGDP(solvers.SGDP):
    """:class:`refnorm.solvers.SGDP`, with the projection fused into the step.

    Hyper-parameters and ``init`` are the reference's.

    Examples
    --------
    >>> optimizer, params = SGDP(learning_rate=0.1, momentum=0.9), np.array([[3.0, 4.0]])
    >>> optimizer.step(params, np.array([[-0.8, 0.6]]), optimizer.init(params))[0]
    array([[3.08, 3.94]])
    """

    def step(
        self, params: Tree, grads: Tree, state: SGDPState, *, out: tuple[Tree, SGDPState] | None = None
    ) -> tuple[Tree, SGDPState]:
        """Return parameters and state after one step; ``out=(params, state)`` steps in place."""

        def update(
            param: AnyArray, grad: AnyArray, buffer: AnyArray, targets: tuple[AnyArray, ...] | None
        ) -> tuple[AnyArray, ...]:
            return sgdp_update(
                param,
                grad,
                buffer,
                learning_rate=self.learning_rate,
                momentum=self.momentum,
                dampening=self.dampening,
                weight_decay=self.weight_decay,
                nesterov=self.nesterov,
                eps=self.eps,
                delta=self.delta,
                weight_decay_ratio=self.weight_decay_ratio,
                project_buffer=self.project_buffer,
                out=targets,
            )

        into = None if out is None else {"out.params": out[0], "out.state.buffer": out[1].buffer}
        params, buffer = _update(update, params, grads, {"state.buffer": state.buffer}, into)
        return params, SGDPState(buffer=buffer)


def _update(
    update: Callable[..., tuple[AnyArray, ...]],
    params: Tree,
    grads: Tree,
    buffers: Mapping[str, Tree],
    into: Mapping[str, Tree] | None,
) -> tuple[Tree, ...]:
    """``update_leaves`` whose updates also take the arrays to write to, ``None`` for fresh ones."""
    if into is None:
        return update_leaves(lambda *leaves: update(*leaves, None), params, grads, buffers)
    inputs = 2 + len(buffers)

    def with_targets(*leaves: AnyArray) -> tuple[AnyArray, ...]:
        targets = leaves[inputs:]
        return (*update(*leaves[:inputs], targets), *targets)

    return update_leaves(with_targets, params, grads, {**buffers, **into})[: 1 + len(buffers)]
