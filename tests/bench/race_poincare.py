"""The Poincaré layer against HypLL's and against the plain Euclidean layer; ball operations against geoopt."""

from __future__ import annotations

import numpy as np

LAYERS = ((1024, 512, 512), (256, 512, 512), (4096, 128, 128))
"""Rows, inputs and outputs."""

BATCHES = ((4096, 64), (65536, 16))
"""Rows and coordinates of the ball operations."""

CURVATURE = 0.1


def races() -> list[dict]:
    import refnorm_fast.poincare as fast

    return [layer(fast, *shape) for shape in LAYERS] + [
        operation(fast, name, *shape)
        for name in ("mobius_add", "expmap", "logmap", "dist", "exp0", "log0")
        for shape in BATCHES
    ]


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
