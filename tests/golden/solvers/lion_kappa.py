"""Truth for Lion-K: hand calculations, lion-pytorch, formulas in mpmath, PyTorch's autograd."""

import mpmath
import numpy as np
import torch
from lion_pytorch import Lion as TorchLion

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
WIDTH, THRESHOLD, POWER = mpmath.mpf(1), mpmath.mpf(0.1), mpmath.mpf(1.5)
NAMES = ("l1", "l2", "sq", "lp", "group", "huber", "softl1", "relu", "topk")


def wide(array):
    return [mpmath.mpf(float(v)) for v in np.ravel(array)]


def norm(values):
    return mpmath.sqrt(mpmath.fsum(v * v for v in values))


def kappa_gradient(name, z, columns):
    """Gradient at a flat list of numbers; groups are the rows of ``columns`` entries."""
    if name == "l2":
        return [v / norm(z) for v in z]
    if name == "group":
        rows = [z[i : i + columns] for i in range(0, len(z), columns)]
        return [v / norm(row) for row in rows for v in row]
    if name == "topk":
        first = max(range(len(z)), key=lambda i: abs(z[i]))
        return [mpmath.sign(v) if i == first else mpmath.mpf(0) for i, v in enumerate(z)]
    return [
        {
            "l1": mpmath.sign(v),
            "sq": v,
            "lp": mpmath.sign(v) * abs(v) ** (POWER - 1),
            "huber": max(min(v / WIDTH, 1), -1),
            "softl1": mpmath.sign(v) if abs(v) > THRESHOLD else mpmath.mpf(0),
            "relu": mpmath.mpf(v > 0),
        }[name]
        for v in z
    ]


def exact_update(param, grad, momentum, name, *, learning_rate, beta1, beta2, weight_decay, decay):
    rate, b1, b2, wd = (mpmath.mpf(v) for v in (learning_rate, beta1, beta2, weight_decay))
    p, g, m = wide(param), wide(grad), wide(momentum)
    step = kappa_gradient(name, [b1 * a - (1 - b1) * b for a, b in zip(m, g, strict=True)], param.shape[-1])
    if decay == "explicit":
        after = [a + rate * (s - wd * a) for a, s in zip(p, step, strict=True)]
    else:
        after = [(a + rate * s) / (1 + rate * wd) for a, s in zip(p, step, strict=True)]
    new_momentum = [b2 * a - (1 - b2) * b for a, b in zip(m, g, strict=True)]
    return tuple(np.array([float(v) for v in values]).reshape(param.shape) for values in (after, new_momentum))


def torch_step(name, z):
    """Differentiable gradients of the smooth functions."""
    return {
        "sq": lambda: z,
        "l2": lambda: z / z.norm(),
        "group": lambda: z / z.norm(dim=-1, keepdim=True),
        "huber": lambda: torch.clamp(z, -1, 1),
        "lp": lambda: torch.sign(z) * torch.abs(z) ** 0.5,
        "l1": lambda: torch.sign(z),
    }[name]()


def torch_run(start, gradients, *, learning_rate, betas, weight_decay):
    params = [torch.tensor(array, requires_grad=True) for array in start]
    optimizer = TorchLion(params, lr=learning_rate, betas=betas, weight_decay=weight_decay)
    for gradient in gradients:
        for param, grad in zip(params, gradient, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
    return [param.detach().numpy() for param in params]


def exact_lyapunov(x, m, loss, name, alpha, gamma, lam, eps):
    a, g, w, e = (mpmath.mpf(v) for v in (alpha, gamma, lam, eps))
    values, momentum = wide(x), wide(m)
    scaled = [w * v for v in values]
    kappa, conjugate = {
        "l1": (mpmath.fsum(abs(v) for v in momentum), mpmath.mpf(0)),
        "l2": (norm(momentum), mpmath.mpf(0)),
        "sq": (norm(momentum) ** 2 / 2, norm(scaled) ** 2 / 2),
        "lp": (
            mpmath.fsum(abs(v) ** POWER for v in momentum) / POWER,
            mpmath.fsum(abs(v) ** 3 for v in scaled) / 3,
        ),
        "huber": (
            mpmath.fsum(v * v / 2 if abs(v) <= 1 else abs(v) - mpmath.mpf(1) / 2 for v in momentum),
            norm(scaled) ** 2 / 2,
        ),
        "softl1": (
            mpmath.fsum(max(abs(v) - THRESHOLD, 0) for v in momentum),
            THRESHOLD * mpmath.fsum(abs(v) for v in scaled),
        ),
        "topk": (max(abs(v) for v in momentum), mpmath.mpf(0)),
    }[name]
    c = (1 - e * g) / (1 + e * w)
    gap = conjugate + kappa - w * mpmath.fsum(p * q for p, q in zip(momentum, values, strict=True))
    return np.array(float(a * mpmath.mpf(loss) + g / w * conjugate + c * gap))


def cases():
    rng = np.random.default_rng(20231009)
    found = [
        GoldenCase(
            function="solvers.LionK",
            name="two steps by hand",
            kind="optimizer",
            args=(np.array([1.0]), [np.array([2.0]), np.array([2.0])]),
            options={"learning_rate": 0.1},
            expected=np.array([0.62]),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: 1, 0.8, 0.62",
        ),
        GoldenCase(
            function="solvers.LionK",
            name="kink at 0",
            kind="optimizer",
            args=(np.array([2.0, -2.0]), [np.zeros(2)]),
            options={"learning_rate": 0.25, "kappa": "l2"},
            expected=np.array([1.5, -1.5]),
            source="by hand: decay alone",
        ),
    ]
    # blend = 1/4 - (1/2)(1 + 1/4) = -3/8; primal = (-3/8 - 1/4)(-3/8 - 1/4) = 25/64; times (1 + 1/2)/(1 + 1/4) = 6/5
    # gives 15/32; dual = (5/4)(1/4 + 3/8) = 25/32, times c = (1/2)/(5/4) = 2/5 gives 5/16.
    found.append(
        GoldenCase(
            function="solvers.lyapunov_rate",
            name="one coordinate by hand",
            args=(np.array([0.5]), np.array([0.25]), np.array([1.0]), "sq"),
            options={"weight_decay": 0.5, "lookahead": 0.5},
            expected=np.array(-15 / 32 - 5 / 16),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: blend -3/8, products 25/64 and 25/32, factors 6/5 and 2/5",
        )
    )
    for name, dtype, options in (
        ("defaults", np.float64, {"learning_rate": 0.01}),
        ("other constants", np.float64, {"learning_rate": 0.003, "weight_decay": 0.5, "betas": (0.95, 0.98)}),
        ("defaults", np.float32, {"learning_rate": 0.01}),
    ):
        start = [rng.standard_normal(shape).astype(dtype) for shape in ((5,), (3, 4))]
        gradients = [[rng.standard_normal(array.shape).astype(dtype) for array in start] for _ in range(12)]
        found.append(
            GoldenCase(
                function="solvers.LionK",
                name=f"Lion, {name}, {np.dtype(dtype).name}",
                kind="optimizer",
                args=(start, gradients),
                options=options,
                expected=torch_run(start, gradients, **({"betas": (0.9, 0.99), "weight_decay": 1.0} | options)),
                tolerance=Tolerance(16, "ulp_of_largest"),
                source="lion-pytorch 0.2.5",
            )
        )
    for name in NAMES:
        for decay in ("explicit", "implicit"):
            param, grad, momentum = rng.standard_normal((3, 3, 4))
            options = {"learning_rate": 0.25, "beta1": 0.7, "beta2": 0.9, "weight_decay": 0.5, "decay": decay}
            found.append(
                GoldenCase(
                    function="solvers.lion_kappa_update",
                    name=f"{name}, {decay}",
                    args=(param, grad, momentum),
                    options={**options, "kappa": name},
                    expected=exact_update(param, grad, momentum, name, **options),
                    tolerance=Tolerance(4, "ulp_of_largest"),
                    source="mpmath, 50 digits",
                )
            )
    for name in ("sq", "l2", "group", "huber", "lp", "l1"):
        for decay in ("explicit", "implicit"):
            arrays = list(rng.standard_normal((3, 2, 3)))
            cotangent = tuple(rng.standard_normal((2, 2, 3)))
            p, g, m = (torch.tensor(a, requires_grad=True) for a in arrays)
            step = torch_step(name, 0.7 * m - 0.3 * g)
            after = p + 0.25 * (step - 0.5 * p) if decay == "explicit" else (p + 0.25 * step) / 1.125
            total = (after * torch.tensor(cotangent[0])).sum() + (
                (0.9 * m - 0.1 * g) * torch.tensor(cotangent[1])
            ).sum()
            total.backward()
            found.append(
                GoldenCase(
                    function="solvers.lion_kappa_update",
                    name=f"cotangents, {name}, {decay}",
                    args=tuple(arrays),
                    options={
                        "learning_rate": 0.25,
                        "beta1": 0.7,
                        "beta2": 0.9,
                        "weight_decay": 0.5,
                        "decay": decay,
                        "kappa": name,
                    },
                    cotangent=cotangent,
                    expected=tuple(t.grad.numpy() for t in (p, g, m)),
                    tolerance=Tolerance(1e-13, "relative_of_largest"),
                    source=f"torch {torch.__version__.split('+')[0]} autograd, float64",
                )
            )
    for name in ("l1", "l2", "sq", "lp", "huber", "softl1", "topk"):
        x, momentum = 0.3 * rng.uniform(-1, 1, 4), rng.standard_normal(4)
        found.append(
            GoldenCase(
                function="solvers.lyapunov",
                name=name,
                args=(x, momentum, 1.75, name),
                options={"gradient_rate": 2.0, "momentum_rate": 0.5, "weight_decay": 0.75, "lookahead": 1.25},
                expected=exact_lyapunov(x, momentum, 1.75, name, 2.0, 0.5, 0.75, 1.25),
                tolerance=Tolerance(1e-14, "relative"),
                source="mpmath, 50 digits",
            )
        )
    found.append(
        GoldenCase(
            function="solvers.lyapunov",
            name="outside the domain",
            args=(np.array([2.0, 0.0]), np.array([1.0, 0.0]), 0.0, "l1"),
            expected=np.array(np.inf),
            source="by definition",
        )
    )
    return found
