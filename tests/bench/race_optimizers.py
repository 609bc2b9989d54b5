"""One optimizer step on a matrix of parameters: Lion, AdamP and SGDP against the peers, all in place."""

from __future__ import annotations

import warnings

import numpy as np

import refnorm.solvers as reference

SHAPES = ((256, 256), (1024, 1024), (4096, 4096))
RATE, DECAY = 1e-4, 0.1

BYTES = {"lion": 20, "adamp": 28, "sgdp": 20}
"""For each float32 parameter: Lion and SGDP read three arrays and write two, AdamP reads four and writes three."""


def races() -> list[dict]:
    import refnorm_fast.solvers as fast

    return [
        race(fast, kind, shape, invariant)
        for kind, invariant in (("lion", False), ("adamp", False), ("adamp", True), ("sgdp", True))
        for shape in SHAPES
    ]


def problem(shape, invariant):
    """Weights and a gradient: orthogonal to each row if the rows are to look scale-invariant."""
    rng = np.random.default_rng(0)
    param, grad = rng.standard_normal((2, *shape))
    if invariant:
        unit = param / np.linalg.norm(param, axis=1, keepdims=True)
        grad -= unit * (unit * grad).sum(axis=1, keepdims=True)
    return param.astype(np.float32), grad.astype(np.float32)


def ours(module, kind, param, grad, place):
    """A step with the module's update, on arrays of its own if ``place``."""
    state = [np.zeros_like(param), np.zeros_like(param)]
    updates = {
        "lion": lambda p, m, v, **out: module.lion_update(p, grad, m, learning_rate=RATE, weight_decay=DECAY, **out),
        "adamp": lambda p, m, v, **out: module.adamp_update(
            p, grad, m, v, step=1, learning_rate=RATE, weight_decay=DECAY, **out
        ),
        "sgdp": lambda p, m, v, **out: module.sgdp_update(
            p, grad, m, learning_rate=RATE, momentum=0.9, weight_decay=DECAY, **out
        ),
    }
    update = updates[kind]
    own = [param.copy(), *state]
    out = {"out": tuple(own[: 3 if kind == "adamp" else 2])} if place else {}
    return lambda: update(*own, **out)


def torch_step(make, param, grad):
    import torch

    tensor = torch.tensor(param, requires_grad=True)
    tensor.grad = torch.tensor(grad)
    optimizer = make(tensor)

    def step():
        optimizer.step()
        return (tensor.detach().numpy(),)

    return step


def peers(kind):
    """Label and maker of each peer's optimizer; those whose package is missing are left out."""
    found = {}
    try:
        import torch

        if kind == "lion":
            found["torch AdamW, fused"] = lambda t: torch.optim.AdamW([t], lr=RATE, weight_decay=DECAY, fused=True)
        if kind == "adamp":
            found["torch AdamW, fused"] = lambda t: torch.optim.AdamW([t], lr=RATE, weight_decay=DECAY, fused=True)
        if kind == "sgdp":
            found["torch SGD, fused"] = lambda t: torch.optim.SGD([t], lr=RATE, momentum=0.9, fused=True)
    except ImportError:
        return found
    try:
        if kind == "lion":
            from lion_pytorch import Lion

            found["lion-pytorch"] = lambda t: Lion([t], lr=RATE, weight_decay=DECAY)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import adamp

            if kind == "adamp":
                found["adamp"] = lambda t: adamp.AdamP([t], lr=RATE, weight_decay=DECAY)
            else:
                found["adamp"] = lambda t: adamp.SGDP([t], lr=RATE, momentum=0.9, weight_decay=DECAY)
    except ImportError:
        pass
    return found


def race(fast, kind, shape, invariant):
    param, grad = problem(shape, invariant)
    makers = {
        "refnorm_fast": lambda: ours(fast, kind, param, grad, place=True),
        "refnorm_fast, new arrays": lambda: ours(fast, kind, param, grad, place=False),
        "NumPy reference": lambda: ours(reference, kind, param, grad, place=False),
    }
    for label, make in peers(kind).items():
        makers[label] = lambda make=make: torch_step(make, param, grad)
    candidates = {label: make() for label, make in makers.items()}

    def check():
        # The first step from the same start, against the reference in float64.
        wide = ours(reference, kind, param.astype(np.float64), grad.astype(np.float64), place=False)()[0]
        unit = np.spacing(np.abs(wide).max().astype(np.float32))
        return {
            label: float(np.abs(make()()[0].astype(np.float64) - wide).max() / unit)
            for label, make in makers.items()
            # A fused AdamW or SGD is another method: a yardstick for the time alone.
            if not label.startswith("torch")
        }

    return {
        "method": f"solvers/{'lion' if kind == 'lion' else 'adamp'}",
        "name": kind + (", projected" if invariant else ""),
        "shape": "x".join(map(str, shape)),
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": BYTES[kind] * param.size,
        "ops": None,
        "check": check,
        "check_unit": "ULP of the largest",
    }
