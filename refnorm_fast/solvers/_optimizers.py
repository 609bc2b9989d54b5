"""The reference's optimizers with their updates as kernels.

All arrays of a network are stepped in one call of a kernel. Where one of them does not suit (a layout that needs a copy,
results that overlap), each is stepped by itself; that way also finds and names what is wrong with bad input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refnorm import _checks, solvers
from refnorm._typing import AnyArray, Tree
from refnorm.solvers import AdaGradNormState, AdaGradState, AdamPState, LionKState, LionState, SGDPState
from refnorm.solvers._protocol import update_leaves
from refnorm.tree import tree_map
from refnorm_fast.solvers._core import (
    adagrad_norm_trees,
    adagrad_trees,
    adamp_trees,
    adamp_update,
    lion_kappa_trees,
    lion_kappa_update,
    lion_trees,
    lion_update,
    sgdp_trees,
    sgdp_update,
)


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
        trees = None
        if not self.maximize:
            trees = lion_trees(
                params,
                grads,
                state.momentum,
                None if out is None else (out[0], out[1].momentum),
                learning_rate=self.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=decay,
                form=self.form,
            )
        if trees is not None:
            return trees[0], LionState(momentum=trees[1], initial_learning_rate=state.initial_learning_rate)

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
class LionK(solvers.LionK):
    """:class:`refnorm.solvers.LionK`, one pass over memory a step where kappa is a sum over coordinates, two for ``"l2"``.

    Hyper-parameters, ``init`` and results are the reference's. Kappas without a kernel are stepped by the reference.

    Examples
    --------
    >>> optimizer, params = LionK(learning_rate=0.25, weight_decay=0.0), {"weight": np.array([1.0, -2.0])}
    >>> state = optimizer.init(params)
    >>> optimizer.step(params, {"weight": np.array([0.3, -40.0])}, state)[0]
    {'weight': array([ 0.75, -1.75])}
    """

    def step(
        self, params: Tree, grads: Tree, state: LionKState, *, out: tuple[Tree, LionKState] | None = None
    ) -> tuple[Tree, LionKState]:
        """Return parameters and state after one step; ``out=(params, state)`` steps in place."""
        options: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "weight_decay": self.weight_decay,
            "kappa": self.kappa,
            "decay": self.decay,
        }
        places = None if out is None else (out[0], out[1].momentum)
        trees = lion_kappa_trees(params, grads, state.momentum, places, **options)
        if trees is not None:
            return trees[0], LionKState(momentum=trees[1])

        def update(
            param: AnyArray, grad: AnyArray, momentum: AnyArray, targets: tuple[AnyArray, ...] | None
        ) -> tuple[AnyArray, ...]:
            return lion_kappa_update(param, grad, momentum, out=targets, **options)

        into = None if out is None else {"out.params": out[0], "out.state.momentum": out[1].momentum}
        params, momentum = _update(update, params, grads, {"state.momentum": state.momentum}, into)
        return params, LionKState(momentum=momentum)


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
        trees = adamp_trees(
            params,
            grads,
            state.first_moment,
            state.second_moment,
            None if out is None else (out[0], out[1].first_moment, out[1].second_moment),
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
        if trees is not None:
            return trees[0], AdamPState(step=number, first_moment=trees[1], second_moment=trees[2])

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
        trees = sgdp_trees(
            params,
            grads,
            state.buffer,
            None if out is None else (out[0], out[1].buffer),
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
        if trees is not None:
            return trees[0], SGDPState(buffer=trees[1])

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


@dataclass(frozen=True)
class AdaGrad(solvers.AdaGrad):
    """:class:`refnorm.solvers.AdaGrad`, one pass over memory a step.

    Hyper-parameters and ``init`` are the reference's.

    Examples
    --------
    >>> optimizer, params = AdaGrad(learning_rate=0.5), np.zeros(2)
    >>> optimizer.step(params, np.array([3.0, -0.01]), optimizer.init(params))[0].round(6)
    array([-0.5,  0.5])
    """

    def step(
        self, params: Tree, grads: Tree, state: AdaGradState, *, out: tuple[Tree, AdaGradState] | None = None
    ) -> tuple[Tree, AdaGradState]:
        """Return parameters and state after one step; ``out=(params, state)`` steps in place."""
        trees = adagrad_trees(
            params,
            grads,
            state.accumulator,
            None if out is None else (out[0], out[1].accumulator),
            rate=self.learning_rate / (1 + state.step * self.learning_rate_decay),
            weight_decay=self.weight_decay,
            eps=self.eps,
        )
        if trees is not None:
            return trees[0], AdaGradState(accumulator=trees[1], step=state.step + 1)
        params, after = super().step(params, grads, state)
        if out is not None:
            params = _write("out.params", params, out[0])
            after = AdaGradState(_write("out.state.accumulator", after.accumulator, out[1].accumulator), after.step)
        return params, after


@dataclass(frozen=True)
class AdaGradNorm(solvers.AdaGradNorm):
    """:class:`refnorm.solvers.AdaGradNorm`, with the norm of all gradients in one sweep.

    Hyper-parameters and ``init`` are the reference's. The sum of squares is float64 and does not depend on the number
    of threads.

    Examples
    --------
    >>> optimizer, params = AdaGradNorm(learning_rate=5.0, initial_accumulator_value=0.0), np.zeros(2)
    >>> optimizer.step(params, np.array([3.0, 4.0]), optimizer.init(params))
    (array([-3., -4.]), AdaGradNormState(accumulator=25.0))
    """

    def step(
        self, params: Tree, grads: Tree, state: AdaGradNormState, *, out: tuple[Tree, AdaGradNormState] | None = None
    ) -> tuple[Tree, AdaGradNormState]:
        """Return parameters and state after one step; with ``out=(params, state)`` the arrays of ``params`` take the results.

        The accumulator is in the returned state alone.
        """
        into = None if out is None else (out[0],)
        result = adagrad_norm_trees(
            params, grads, into, learning_rate=self.learning_rate, accumulator=state.accumulator
        )
        if result is not None:
            return result[0], AdaGradNormState(accumulator=result[1])
        params, after = super().step(params, grads, state)
        return (params if out is None else _write("out.params", params, out[0])), after


def _write(name: str, results: Tree, out: Tree) -> Tree:
    """Write each result to its place in ``out``; a leaf without one (a gradient of ``None``) stays what it is."""

    def write(result: AnyArray | None, place: AnyArray | None) -> AnyArray | None:
        if result is None or place is None:
            return result
        if not isinstance(place, np.ndarray):
            _checks.fail_type(name, "an array", type(place).__name__)
        if place.dtype != result.dtype:
            _checks.fail_type(name, f"dtype {result.dtype}", f"dtype {place.dtype}")
        if place.shape != result.shape:
            _checks.fail(name, f"shape {result.shape}", f"{place.shape}")
        if not place.flags.writeable:
            _checks.fail(name, "a writable array", "a read-only one")
        place[...] = result
        return place

    return tree_map(write, results, out, path=name)


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
