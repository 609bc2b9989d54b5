"""One optimizer step, on a matrix of parameters and on all arrays of a network, against the peers, all in place."""

from __future__ import annotations

import warnings

import numpy as np

import refnorm.solvers as reference

SHAPES = ((256, 256), (1024, 1024), (4096, 4096))
RATE, DECAY = 1e-4, 0.1

BYTES = {"lion": 20, "adamp": 28, "sgdp": 20, "adagrad": 20, "adagrad norm": 16}
"""For each float32 parameter: Lion and SGDP read three arrays and write two, AdamP reads four and writes three;
AdaGrad is like Lion, AdaGradNorm reads the gradient twice and the parameter once."""


NETWORKS = {
    "99 arrays, 9.1M": [
        *(8 * [shape for c in (64, 128, 256) for shape in ((c, c, 3, 3), (c,), (c,))]),
        *(6 * [(512, 512), (512,), (512, 256), (256,)]),
        *[(64, 3, 7, 7), (1000, 512), (1000,)],
    ],
    "100 arrays, 6400": 100 * [(64,)],
}
"""A convolutional network with a few linear layers, and one of which only the calls' overhead is seen."""


def races() -> list[dict]:
    import refnorm_fast.solvers as fast

    return [
        race(fast, kind, shape, invariant)
        for kind, invariant in (("lion", False), ("adamp", False), ("adamp", True), ("sgdp", True))
        for shape in SHAPES
    ] + [network_race(fast, kind, network) for kind in OPTIMIZERS for network in NETWORKS]


OPTIMIZERS = {
    "lion": ("Lion", {"learning_rate": RATE, "weight_decay": DECAY}),
    "adamp": ("AdamP", {"learning_rate": RATE, "weight_decay": DECAY}),
    "sgdp": ("SGDP", {"learning_rate": RATE, "momentum": 0.9}),
    "adagrad": ("AdaGrad", {"learning_rate": RATE}),
    "adagrad norm": ("AdaGradNorm", {"learning_rate": RATE}),
}


def network_step(module, kind, params, grads, place):
    """A step of the class on arrays of its own."""
    name, options = OPTIMIZERS[kind]
    optimizer, own = getattr(module, name)(**options), [param.copy() for param in params]
    state = optimizer.init(own)
    out = {"out": (own, state)} if place else {}
    return lambda: optimizer.step(own, grads, state, **out)


def network_peers(kind):
    """As ``peers``, of lists of tensors."""
    found = peers(kind)
    try:
        import torch
    except ImportError:
        return found
    if kind == "lion":
        found["torch AdamW, foreach"] = lambda ts: torch.optim.AdamW(ts, lr=RATE, weight_decay=DECAY, foreach=True)
    if kind == "adagrad":
        found["torch Adagrad, fused"] = lambda ts: torch.optim.Adagrad(ts, lr=RATE, fused=True)
        found["torch Adagrad, foreach"] = lambda ts: torch.optim.Adagrad(ts, lr=RATE, foreach=True)
    if kind == "adagrad norm":
        found["torch SGD, fused"] = lambda ts: torch.optim.SGD(ts, lr=RATE, fused=True)
    return found


def network_race(fast, kind, network):
    rng = np.random.default_rng(0)
    params, grads = ([rng.standard_normal(s).astype(np.float32) for s in NETWORKS[network]] for _ in range(2))
    makers = {
        "refnorm_fast": lambda: network_step(fast, kind, params, grads, place=True),
        "NumPy reference": lambda: network_step(reference, kind, params, grads, place=False),
    }
    for label, make in network_peers(kind).items():
        makers[label] = lambda make=make: torch_network_step(make, params, grads)
    candidates = {label: make() for label, make in makers.items()}

    def check():
        wide = ([array.astype(np.float64) for array in arrays] for arrays in (params, grads))
        exact = network_step(reference, kind, *wide, place=False)()[0]
        return {
            label: max(
                float(np.abs(one.astype(np.float64) - other).max() / np.spacing(np.abs(other).max().astype(np.float32)))
                for one, other in zip(make()()[0], exact, strict=True)
            )
            for label, make in makers.items()
            if not label.startswith("torch")
        }

    return {
        "method": {"lion": "solvers/lion", "adamp": "solvers/adamp", "sgdp": "solvers/adamp"}.get(
            kind, "solvers/adaptive_batch_adagrad"
        ),
        "name": f"{kind}, network",
        "shape": network,
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": BYTES[kind] * sum(param.size for param in params),
        "ops": None,
        "check": check,
        "check_unit": "ULP of the largest",
    }


def torch_network_step(make, params, grads):
    import torch

    tensors = [torch.tensor(param, requires_grad=True) for param in params]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.tensor(grad)
    optimizer = make(tensors)

    def step():
        optimizer.step()
        return ([tensor.detach().numpy() for tensor in tensors],)

    return step


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


def peers(kind):
    """Label and maker of each peer's optimizer; those whose package is missing are left out."""
    found = {}
    try:
        import torch

        if kind == "lion":
            found["torch AdamW, fused"] = lambda ts: torch.optim.AdamW(ts, lr=RATE, weight_decay=DECAY, fused=True)
        if kind == "adamp":
            found["torch AdamW, fused"] = lambda ts: torch.optim.AdamW(ts, lr=RATE, weight_decay=DECAY, fused=True)
        if kind == "sgdp":
            found["torch SGD, fused"] = lambda ts: torch.optim.SGD(ts, lr=RATE, momentum=0.9, fused=True)
    except ImportError:
        return found
    if kind.startswith("adagrad"):
        return found
    try:
        if kind == "lion":
            from lion_pytorch import Lion

            found["lion-pytorch"] = lambda ts: Lion(ts, lr=RATE, weight_decay=DECAY)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import adamp

            if kind == "adamp":
                found["adamp"] = lambda ts: adamp.AdamP(ts, lr=RATE, weight_decay=DECAY)
            else:
                found["adamp"] = lambda ts: adamp.SGDP(ts, lr=RATE, momentum=0.9, weight_decay=DECAY)
    except ImportError:
        pass
    return found


def first_array(result):
    """The parameter, of a result that is arrays or lists of arrays."""
    return result[0][0] if isinstance(result[0], list) else result[0]


def race(fast, kind, shape, invariant):
    param, grad = problem(shape, invariant)
    makers = {
        "refnorm_fast": lambda: ours(fast, kind, param, grad, place=True),
        "refnorm_fast, new arrays": lambda: ours(fast, kind, param, grad, place=False),
        "NumPy reference": lambda: ours(reference, kind, param, grad, place=False),
    }
    for label, make in peers(kind).items():
        makers[label] = lambda make=make: torch_network_step(make, [param], [grad])
    candidates = {label: make() for label, make in makers.items()}

    def check():
        # The first step from the same start, against the reference in float64.
        wide = ours(reference, kind, param.astype(np.float64), grad.astype(np.float64), place=False)()[0]
        unit = np.spacing(np.abs(wide).max().astype(np.float32))
        return {
            label: float(np.abs(first_array(make()()).astype(np.float64) - wide).max() / unit)
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
