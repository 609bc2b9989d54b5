"""The Poincaré layer against HypLL's and against the plain Euclidean layer; ball operations against geoopt, forward and with
their gradients by PyTorch's autograd."""

from __future__ import annotations

import numpy as np

LAYERS = ((1024, 512, 512), (256, 512, 512), (4096, 128, 128))
"""Rows, inputs and outputs."""

BATCHES = ((4096, 64), (65536, 16))
"""Rows and coordinates of the ball operations."""

SINGLE = (1, 16)
"""One vector: the overhead of a call."""

GRADIENT_BATCHES = ((64, 64), (65536, 64))
"""Small enough for the overhead of a call to show, and beyond the caches."""

CURVATURE = 0.1


def races() -> list[dict]:
    import refnorm_fast.poincare as fast

    return (
        [layer(fast, *shape) for shape in LAYERS]
        + [
            operation(fast, name, *shape)
            for name in ("mobius_add", "expmap", "logmap", "dist", "exp0", "log0")
            for shape in BATCHES
        ]
        + [operation(fast, name, *SINGLE) for name in ("dist", "exp0")]
        + [
            gradients(fast, name, *shape)
            for name in ("mobius_add", "expmap", "logmap", "dist", "exp0", "log0", "transport")
            for shape in GRADIENT_BATCHES
        ]
        + [layer_gradients(fast, name, 1024, 512, 512) for name in ("mlr", "fully_connected")]
        + [pairs(fast, 1024, 1024, 64)]
    )


def ball_points(rng, rows: int, length: int, radius: float) -> np.ndarray:
    directions = rng.standard_normal((rows, length))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return (directions * radius * rng.uniform(0.2, 1, (rows, 1)) / np.sqrt(CURVATURE)).astype(np.float32)


def layer(fast, rows: int, inputs: int, outputs: int) -> dict:
    from refnorm.poincare import fully_connected

    rng = np.random.default_rng(0)
    x = ball_points(rng, rows, inputs, 0.7)
    weight = (rng.standard_normal((inputs, outputs)) / (2 * np.sqrt(inputs))).astype(np.float32)
    bias = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
    out = np.empty((rows, outputs), np.float32)
    exact = fully_connected(
        x.astype(np.float64), weight.astype(np.float64), bias.astype(np.float64), CURVATURE, project=False
    )
    plain = x.astype(np.float64) @ weight.astype(np.float64) + bias
    candidates = {
        "refnorm_fast": lambda: fast.fully_connected(x, weight, bias, CURVATURE, project=False, out=out),
        "numpy, plain linear": lambda: np.add(np.matmul(x, weight, out=out), bias, out=out),
    }
    truth = {"numpy, plain linear": plain}
    try:
        import torch

        xt, wt, bt = (torch.from_numpy(a) for a in (x, weight, bias))
        transposed = wt.t().contiguous()
        candidates["torch, plain linear"] = lambda: torch.nn.functional.linear(xt, transposed, bt)
        truth["torch, plain linear"] = plain
        from hypll.manifolds.poincare_ball.math.linalg import poincare_fully_connected

        ct = torch.tensor(CURVATURE)
        candidates["hypll"] = lambda: poincare_fully_connected(xt, wt, bt, ct)
    except ImportError:
        pass

    def check():
        def error(label, result):
            expected = truth.get(label, exact)
            return float(
                np.abs(np.asarray(result) - expected).max() / np.abs(expected).max() / np.finfo(np.float32).eps
            )

        return {label: error(label, call()) for label, call in candidates.items()}

    return {
        "method": "poincare/linear",
        "name": "fully connected",
        "shape": f"{rows}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * (rows * inputs + inputs * outputs + rows * outputs),
        "ops": 2 * rows * inputs * outputs,
        "check": check,
        "check_unit": "units in the last place of the largest entry",
    }


def operation(fast, name: str, rows: int, length: int) -> dict:
    from refnorm import poincare

    rng = np.random.default_rng(1)
    binary = name in ("mobius_add", "expmap", "logmap", "dist")
    arrays = [ball_points(rng, rows, length, 0.9) for _ in range(1 + binary)]
    options = {"project": False} if name in ("expmap", "exp0") else {}
    out = np.empty(rows if name == "dist" else (rows, length), np.float32)
    exact = getattr(poincare, name)(*(a.astype(np.float64) for a in arrays), CURVATURE, **options)
    kernel = getattr(fast, name)
    candidates = {"refnorm_fast": lambda: kernel(*arrays, CURVATURE, out=out, **options)}
    try:
        import geoopt
        import torch

        ball = geoopt.PoincareBall(c=CURVATURE)
        tensors = [torch.from_numpy(a) for a in arrays]
        peer = getattr(ball, {"exp0": "expmap0", "log0": "logmap0"}.get(name, name))
        extra = {} if name in ("logmap", "dist", "log0") else {"project": False}
        candidates["geoopt"] = lambda: peer(*tensors, **extra).detach()
    except ImportError:
        pass

    def check():
        scale = np.abs(exact).max() * np.finfo(np.float32).eps
        return {label: float(np.abs(np.asarray(call()) - exact).max() / scale) for label, call in candidates.items()}

    return {
        "method": "poincare/geodesics" if name in ("expmap", "logmap", "dist") else "poincare/ball",
        "name": name,
        "shape": f"{rows}x{length}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": 4 * (rows * length * (len(arrays) + (name != "dist")) + rows * (name == "dist")),
        "ops": None,
        "check": check,
        "check_unit": "units in the last place of the largest entry",
    }


PEER_NAMES = {"exp0": "expmap0", "log0": "logmap0", "transport": "transp"}
GEODESICS = ("expmap", "logmap", "dist", "transport")


def errors(exact, candidates: dict) -> dict[str, float]:
    """The largest error of a tuple of results, in units in the last place of each result's largest entry."""
    eps = np.finfo(np.float32).eps

    def worst(results) -> float:
        return max(
            float(np.abs(np.asarray(a, dtype=np.float64) - b).max() / np.abs(b).max() / eps)
            for a, b in zip(results, exact, strict=False)
        )

    return {label: worst(call()) for label, call in candidates.items()}


def gradients(fast, name: str, rows: int, length: int) -> dict:
    """The result and the cotangents of all points, as a step of training takes them."""
    from refnorm import poincare

    rng = np.random.default_rng(2)
    count = {"exp0": 1, "log0": 1, "transport": 3}.get(name, 2)
    arrays = [ball_points(rng, rows, length, 0.9) for _ in range(count)]
    g = rng.standard_normal(rows if name == "dist" else (rows, length)).astype(np.float32)
    options = {"project": False} if name in ("expmap", "exp0") else {}
    z, pullback = getattr(poincare, f"{name}_vjp")(*(a.astype(np.float64) for a in arrays), CURVATURE, **options)
    exact = (z, *pullback(g.astype(np.float64))[:count])
    kernel = getattr(fast, f"{name}_vjp")

    def ours():
        result, back = kernel(*arrays, CURVATURE, **options)
        return (result, *back(g)[:count])

    candidates = {"refnorm_fast": ours}
    try:
        import geoopt
        import torch

        ball = geoopt.PoincareBall(c=CURVATURE)
        tensors = [torch.from_numpy(a).requires_grad_() for a in arrays]
        cotangent = torch.from_numpy(g)
        peer = getattr(ball, PEER_NAMES.get(name, name))
        extra = {} if name in ("logmap", "dist", "log0", "transport") else {"project": False}

        def theirs():
            result = peer(*tensors, **extra)
            return (result.detach(), *torch.autograd.grad(result, tensors, cotangent))

        candidates["geoopt"] = theirs
    except ImportError:
        pass
    scalar = name == "dist"
    vectors = 2 * (1 - scalar) + 4 * count
    return {
        "method": "poincare/geodesics" if name in GEODESICS else "poincare/ball",
        "name": f"{name} and its gradients",
        "shape": f"{rows}x{length}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        # Points, the copies of them that the pullback keeps and reads, result, cotangents.
        "bytes": 4 * (rows * length * vectors + 2 * rows * scalar),
        "ops": None,
        "check": lambda: errors(exact, candidates),
        "check_unit": "units in the last place of the largest entry",
    }


def layer_gradients(fast, name: str, rows: int, inputs: int, outputs: int) -> dict:
    from refnorm import poincare

    rng = np.random.default_rng(3)
    x = ball_points(rng, rows, inputs, 0.7)
    weight = (rng.standard_normal((inputs, outputs)) / (2 * np.sqrt(inputs))).astype(np.float32)
    bias = (0.1 * rng.standard_normal(outputs)).astype(np.float32)
    g = rng.standard_normal((rows, outputs)).astype(np.float32)
    options = {} if name == "mlr" else {"project": False}
    z, pullback = getattr(poincare, f"{name}_vjp")(
        x.astype(np.float64), weight.astype(np.float64), bias.astype(np.float64), CURVATURE, **options
    )
    exact = (z, *pullback(g.astype(np.float64))[:3])
    kernel = getattr(fast, f"{name}_vjp")

    def ours():
        result, back = kernel(x, weight, bias, CURVATURE, **options)
        return (result, *back(g)[:3])

    candidates = {"refnorm_fast": ours}
    try:
        import torch
        from hypll.manifolds.poincare_ball.math import linalg

        tensors = [torch.from_numpy(a).requires_grad_() for a in (x, weight, bias)]
        cotangent, curvature = torch.from_numpy(g), torch.tensor(CURVATURE)
        peer = linalg.poincare_hyperplane_dists if name == "mlr" else linalg.poincare_fully_connected

        def theirs():
            result = peer(*tensors, curvature)
            return (result.detach(), *torch.autograd.grad(result, tensors, cotangent))

        candidates["hypll"] = theirs
    except ImportError:
        pass
    return {
        "method": "poincare/linear",
        "name": f"{name} and its gradients",
        "shape": f"{rows}x{inputs}x{outputs}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": None,
        "ops": 6 * rows * inputs * outputs,
        "check": lambda: errors(exact, candidates),
        "check_unit": "units in the last place of the largest entry",
    }


def pairs(fast, n: int, m: int, length: int) -> dict:
    """All distances between two sets of points, one of which repeats points of the other."""
    from refnorm import poincare

    rng = np.random.default_rng(4)
    x, y = ball_points(rng, n, length, 0.9), ball_points(rng, m, length, 0.9)
    y[:16] = x[:16]
    shape = (n, m, length)
    left, right = np.broadcast_to(x[:, None], shape), np.broadcast_to(y, shape)
    out = np.empty((n, m), np.float32)
    exact = np.stack([poincare.dist(np.broadcast_to(a, y.shape).astype(float), y.astype(float), CURVATURE) for a in x])
    candidates = {"refnorm_fast": lambda: (fast.dist(left, right, CURVATURE, out=out),)}
    try:
        import geoopt
        import torch

        ball = geoopt.PoincareBall(c=CURVATURE)
        xt, yt = torch.from_numpy(x)[:, None], torch.from_numpy(y)
        candidates["geoopt"] = lambda: (ball.dist(xt, yt).detach(),)

        def by_product():
            """The form with a matrix product, which loses the distances of near points."""
            xx, yy = (xt[:, 0] ** 2).sum(-1)[:, None], (yt**2).sum(-1)
            square = (xx + yy - 2 * xt[:, 0] @ yt.T).clamp_min(0)
            return (
                2
                / CURVATURE**0.5
                * torch.asinh((CURVATURE * square / ((1 - CURVATURE * xx) * (1 - CURVATURE * yy))).sqrt()),
            )

        candidates["torch, by a product"] = by_product
    except ImportError:
        pass
    return {
        "method": "poincare/geodesics",
        "name": "all pairs of distances",
        "shape": f"{n}x{m}x{length}",
        "candidates": candidates,
        "ours": "refnorm_fast",
        "bytes": None,
        "ops": 3 * n * m * length,
        "check": lambda: errors((exact,), candidates),
        "check_unit": "units in the last place of the largest entry",
    }
