"""Steps of Lion, AdamP and SGDP on a GPU, and the optimizers that take them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refnorm import _checks, solvers
from refnorm._typing import Tree
from refnorm.solvers import AdamPState, LionState, SGDPState
from refnorm.tree import tree_leaves, tree_map
from refnorm_fast.cuda._arrays import LARGE_TEAM, array, empty, empty_like, float_array, run, run_elements, run_rows

__all__ = ["SGDP", "AdamP", "Lion", "adamp_update", "lion_update", "sgdp_update", "sign_momentum"]

_FORMS = ("mul_add", "lerp")


def _arrays(param: Any, **others: Any) -> list[Any]:
    param = float_array(param, "param")
    result = [param]
    for name, other in others.items():
        other = float_array(other, name)
        _checks.same_dtype("param", param, **{name: other})
        _checks.shape(other, name, param.shape)
        result.append(other)
    return result


def lion_update(
    param: Any,
    grad: Any,
    momentum: Any,
    *,
    learning_rate: float = 1e-4,
    beta1: float = 0.9,
    beta2: float = 0.99,
    weight_decay: float = 0.0,
    form: str = "mul_add",
) -> tuple[Any, Any]:
    """Take one Lion step on an array on a GPU; see :func:`refnorm.solvers.lion_update`."""
    param, grad, momentum = _arrays(param, grad=grad, momentum=momentum)
    _checks.positive(learning_rate, "learning_rate")
    _checks.in_range(beta1, "beta1", 0.0, 1.0)
    _checks.in_range(beta2, "beta2", 0.0, 1.0)
    _checks.non_negative(weight_decay, "weight_decay")
    _checks.one_of(form, "form", _FORMS)
    results = empty_like(param), empty_like(param)
    run_elements(
        "solvers", "lion_step", param.dtype, param.size, param, grad, momentum, *results,
        float(learning_rate), float(1 - learning_rate * weight_decay), float(beta1), float(1 - beta1), float(beta2),
        float(1 - beta2), form == "lerp", param.size,
    )  # fmt: skip
    return results


def sign_momentum(
    param: Any, grad: Any, momentum: Any, *, learning_rate: float = 1e-4, beta: float = 0.9, weight_decay: float = 0.0
) -> tuple[Any, Any]:
    """Take one step of signSGD with momentum on a GPU; see :func:`refnorm.solvers.sign_momentum`."""
    _checks.in_range(beta, "beta", 0.0, 1.0)
    return lion_update(
        param, grad, momentum, learning_rate=learning_rate, beta1=beta, beta2=beta, weight_decay=weight_decay
    )


def adamp_update(
    param: Any,
    grad: Any,
    first_moment: Any,
    second_moment: Any,
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
) -> tuple[Any, Any, Any]:
    """Take one AdamP step on an array on a GPU; see :func:`refnorm.solvers.adamp_update`."""
    arrays = _arrays(param, grad=grad, first_moment=first_moment, second_moment=second_moment)
    step = _checks.whole(step, "step", low=1)
    solvers.AdamP(learning_rate, (beta1, beta2), eps, weight_decay, delta, weight_decay_ratio, nesterov)
    numbers = (
        True, bool(nesterov), float(beta1), float(1 - beta1), float(beta2), float(1 - beta2),
        math.sqrt(1 - beta2**step), float(eps),
    )  # fmt: skip
    shrink = 1 - learning_rate * weight_decay
    shrink_projected = 1 - learning_rate * weight_decay * weight_decay_ratio
    rates = (float(learning_rate / (1 - beta1**step)), float(shrink), float(shrink_projected))
    moved, first, second, _ = _projected_step(arrays, numbers, rates, delta, eps, False)
    return moved, first, second


def sgdp_update(
    param: Any,
    grad: Any,
    buffer: Any,
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
) -> tuple[Any, Any]:
    """Take one SGDP step on an array on a GPU; see :func:`refnorm.solvers.sgdp_update`."""
    arrays = [*_arrays(param, grad=grad, buffer=buffer), None]
    solvers.SGDP(
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
    numbers = (False, bool(nesterov), float(momentum), float(1 - dampening), 0.0, 0.0, 1.0, float(eps))
    decay = learning_rate * weight_decay / (1 - momentum) if weight_decay > 0 else 0.0
    projected = learning_rate * weight_decay * weight_decay_ratio / (1 - momentum) if weight_decay > 0 else 0.0
    rates = (float(learning_rate), float(1 - decay), float(1 - projected))
    keep = bool(project_buffer and not nesterov)
    moved, first, _, update = _projected_step(arrays, numbers, rates, delta, eps, keep)
    return moved, update if keep else first


def _projected_step(
    arrays: list[Any], numbers: tuple[Any, ...], rates: tuple[float, float, float], delta: float, eps: float, keep: bool
) -> tuple[Any, Any, Any, Any]:
    """Return the parameter and the state after a step, and the projected update if it is to be kept."""
    param, grad, first, second = arrays
    rows = int(param.shape[0]) if param.ndim >= 2 and param.size else 1
    length = param.size // rows
    first_out, moved = empty_like(param), empty_like(param)
    second_out = None if second is None else empty_like(param)
    update = empty_like(param) if keep else None
    if not param.size:
        return moved, first_out, second_out, update
    inner = empty((rows, 4), np.float64)
    run_rows(
        "solvers", "moments", param.dtype, rows, length,
        param, grad, first, second, first_out, second_out, inner, *numbers, rows, length, cached=False,
    )  # fmt: skip
    plan = None
    if param.ndim >= 2:
        plan = empty((1,), np.float64)
        run("solvers", "choose_view", param.dtype, 1, LARGE_TEAM, inner, plan, rows, length, float(delta), float(eps))
    run_elements(
        "solvers", "projected_step", param.dtype, param.size,
        param, grad, first_out, second_out, inner, plan, moved, update, *rates, *numbers, length, param.size,
    )  # fmt: skip
    return moved, first_out, second_out, update


def _zeros_like(params: Tree) -> Tree:
    def zeros(leaf: Any) -> Any:
        if leaf is None:
            return None
        checked = float_array(leaf, "params")
        return array(np.zeros(checked.shape, checked.dtype))

    return tree_map(zeros, params)


def _step(
    update: Callable[..., tuple[Any, ...]], params: Tree, grads: Tree, buffers: Mapping[str, Tree]
) -> tuple[Tree, ...]:
    """Apply ``update(param, grad, *buffers)`` to corresponding leaves; a gradient of ``None`` leaves them as they are."""
    trees = {"grads": grads, **buffers}
    for name, tree in trees.items():
        tree_map(lambda *_: None, params, tree, path=name)
    columns = [[leaf for _, leaf in tree_leaves(tree)] for tree in (params, *trees.values())]
    rows = [
        (leaves[0], *leaves[2:]) if leaves[0] is None or leaves[1] is None else update(*leaves)
        for leaves in zip(*columns, strict=True)
    ]

    def rebuilt(results: list[Any]) -> Tree:
        following = iter(results)
        return tree_map(lambda _: next(following), params)

    return tuple(rebuilt([row[i] for row in rows]) for i in range(1 + len(buffers)))


class Lion(solvers.Lion):
    """:class:`refnorm.solvers.Lion` for parameters on a GPU."""

    def init(self, params: Tree) -> LionState:
        """Return the state before the first step: no momentum."""
        return LionState(momentum=_zeros_like(params), initial_learning_rate=self.learning_rate)

    def step(self, params: Tree, grads: Tree, state: LionState) -> tuple[Tree, LionState]:
        """Return parameters and state after one step."""
        decay = self.weight_decay
        if self.decay_mode == "init_lr":
            decay = decay / state.initial_learning_rate

        def update(param: Any, grad: Any, momentum: Any) -> tuple[Any, ...]:
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

        params, momentum = _step(update, params, grads, {"state.momentum": state.momentum})
        return params, LionState(momentum=momentum, initial_learning_rate=state.initial_learning_rate)


class AdamP(solvers.AdamP):
    """:class:`refnorm.solvers.AdamP` for parameters on a GPU."""

    def init(self, params: Tree) -> AdamPState:
        """Return the state before the first step: step 0, both averages 0."""
        return AdamPState(step=0, first_moment=_zeros_like(params), second_moment=_zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: AdamPState) -> tuple[Tree, AdamPState]:
        """Return parameters and state after one step."""
        number = _checks.whole(state.step, "state.step", low=0) + 1

        def update(*leaves: Any) -> tuple[Any, ...]:
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
        params, first_moment, second_moment = _step(update, params, grads, moments)
        return params, AdamPState(step=number, first_moment=first_moment, second_moment=second_moment)


class SGDP(solvers.SGDP):
    """:class:`refnorm.solvers.SGDP` for parameters on a GPU."""

    def init(self, params: Tree) -> SGDPState:
        """Return the state before the first step: an empty buffer."""
        return SGDPState(buffer=_zeros_like(params))

    def step(self, params: Tree, grads: Tree, state: SGDPState) -> tuple[Tree, SGDPState]:
        """Return parameters and state after one step."""

        def update(*leaves: Any) -> tuple[Any, ...]:
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

        params, buffer = _step(update, params, grads, {"state.buffer": state.buffer})
        return params, SGDPState(buffer=buffer)
