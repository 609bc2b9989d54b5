"""A Lion-K step and a running average, of a matrix and of all arrays of a network, against PyTorch's compositions, in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

import refnorm.solvers as reference
from tests.bench.race_optimizers import NETWORKS

SHAPES = ((256, 256), (1024, 1024), (4096, 4096))
OPTIONS = {"learning_rate": 1e-4, "weight_decay": 0.1}
BETAS, WIDTH, MOMENTUM = (0.9, 0.99), 1.0, 0.999
BYTES = {"l1": 20, "huber": 20, "l2": 28}
"""For each float32 parameter: three arrays read and two written; l2 reads gradient and momentum once more."""


def races() -> Iterator[dict]:
    for kappa in BYTES:
        for shape in SHAPES:
            yield step(kappa, "x".join(map(str, shape)), [shape])
    for network, shapes in NETWORKS.items():
        yield step("l1", network, shapes)
    for shape in SHAPES:
        yield average("x".join(map(str, shape)), [shape])
    for network, shapes in NETWORKS.items():
        yield average(network, shapes)


def normal(shapes: list[tuple[int, ...]], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def step(kappa: str, label: str, shapes: list[tuple[int, ...]]) -> dict:
    import refnorm_fast.solvers as fast

    grads = normal(shapes, 1)

    def ours(module, place: bool) -> Callable:
        optimizer, own = module.LionK(kappa=kappa, **OPTIONS), normal(shapes, 0)
        state = optimizer.init(own)
        out = {"out": (own, state)} if place else {}
        return lambda: optimizer.step(own, grads, state, **out)[0]

    makers = {"refnorm_fast": lambda: ours(fast, True), "NumPy reference": lambda: ours(reference, False)}
    makers["PyTorch, foreach"] = lambda: in_torch(kappa, normal(shapes, 0), grads)
    if kappa == "l1":
        makers["lion-pytorch"] = lambda: lion_pytorch(normal(shapes, 0), grads)
    candidates = {name: make() for name, make in makers.items()}

    def check() -> dict[str, float]:
        wide = [grad.astype(np.float64) for grad in grads], [p.astype(np.float64) for p in normal(shapes, 0)]
        optimizer = reference.LionK(kappa=kappa, **OPTIONS)
        exact = optimizer.step(wide[1], wide[0], optimizer.init(wide[1]))[0]
        return {name: worst(make()(), exact) for name, make in makers.items()}

    return race(f"lion-k, {kappa}", "solvers/lion_kappa", label, candidates, check, BYTES[kappa] * entries(shapes))


def average(label: str, shapes: list[tuple[int, ...]]) -> dict:
    import torch

    import refnorm_fast.solvers as fast

    target = normal(shapes, 1)

    def ours(module, place: bool) -> Callable:
        own = normal(shapes, 0)
        out = {"out": own} if place else {}
        return lambda: module.ema_update(own, target, momentum=MOMENTUM, **out)

    def foreach() -> Callable:
        own, goal = ([torch.from_numpy(a) for a in normal(shapes, seed)] for seed in (0, 1))

        def move() -> list[np.ndarray]:
            torch._foreach_lerp_(own, goal, 1 - MOMENTUM)
            return [tensor.numpy() for tensor in own]

        return move

    makers = {
        "refnorm_fast": lambda: ours(fast, True),
        "PyTorch, foreach": foreach,
        "NumPy reference": lambda: ours(reference, False),
    }
    candidates = {name: make() for name, make in makers.items()}

    def check() -> dict[str, float]:
        wide = [[a.astype(np.float64) for a in normal(shapes, seed)] for seed in (0, 1)]
        exact = reference.ema_update(*wide, momentum=MOMENTUM)
        return {name: worst(make()(), exact) for name, make in makers.items()}

    return race("running average", "solvers/momentum_auxiliary", label, candidates, check, 12 * entries(shapes))


def in_torch(kappa: str, params: list[np.ndarray], grads: list[np.ndarray]) -> Callable:
    """Lion-K of lists of tensors, every operation in place that can be."""
    import torch

    p, g = ([torch.from_numpy(a) for a in arrays] for arrays in (params, grads))
    m = [torch.zeros_like(a) for a in p]
    rate, shrink = OPTIONS["learning_rate"], 1 - OPTIONS["learning_rate"] * OPTIONS["weight_decay"]

    def move() -> list[np.ndarray]:
        blend = torch._foreach_mul(m, BETAS[0])
        torch._foreach_add_(blend, g, alpha=-(1 - BETAS[0]))
        if kappa == "l1":
            torch._foreach_sign_(blend)
        elif kappa == "l2":
            torch._foreach_div_(blend, torch._foreach_norm(blend))
        else:
            torch._foreach_mul_(blend, 1 / WIDTH)
            torch._foreach_clamp_min_(blend, -1.0)
            torch._foreach_clamp_max_(blend, 1.0)
        torch._foreach_mul_(p, shrink)
        torch._foreach_add_(p, blend, alpha=rate)
        torch._foreach_mul_(m, BETAS[1])
        torch._foreach_add_(m, g, alpha=-(1 - BETAS[1]))
        return [tensor.numpy() for tensor in p]

    return move


def lion_pytorch(params: list[np.ndarray], grads: list[np.ndarray]) -> Callable:
    import torch
    from lion_pytorch import Lion

    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad)
    optimizer = Lion(tensors, lr=OPTIONS["learning_rate"], betas=BETAS, weight_decay=OPTIONS["weight_decay"])

    def move() -> list[np.ndarray]:
        optimizer.step()
        return [tensor.detach().numpy() for tensor in tensors]

    return move


def entries(shapes: list[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def worst(found: list[np.ndarray], exact: list[np.ndarray]) -> float:
    return max(
        float(np.abs(one - other).max() / np.spacing(np.abs(other).max().astype(np.float32)))
        for one, other in zip(found, exact, strict=True)
    )


def race(name: str, method: str, shape: str, candidates: dict, check: Callable, bytes_moved: int) -> dict:
    return {
        "method": method,
        "name": name,
        "shape": shape,
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": bytes_moved,
        "check": check,
        "check_unit": "ULP of the largest",
    }
