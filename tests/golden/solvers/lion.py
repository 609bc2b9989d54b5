"""Truth for Lion: a hand calculation, the package lion-pytorch, and exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import torch
from lion_pytorch import Lion as TorchLion

from refnorm.conformance import GoldenCase, Tolerance


def torch_run(start, gradients, *, learning_rate=1e-4, betas=(0.9, 0.99), weight_decay=0.0, scaled_by_first=False):
    params = [torch.tensor(array, requires_grad=True) for array in start]
    optimizer = TorchLion(
        params, lr=learning_rate, betas=betas, weight_decay=weight_decay, decoupled_weight_decay=scaled_by_first
    )
    for gradient in gradients:
        for param, grad in zip(params, gradient, strict=True):
            param.grad = torch.tensor(grad)
        optimizer.step()
    return [param.detach().numpy() for param in params]


def exact_update(param, grad, momentum, *, learning_rate, beta1, beta2, weight_decay):
    """The update in rationals, from the binary values of all its numbers."""
    lr, b1, b2, wd = (Fraction(v) for v in (learning_rate, beta1, beta2, weight_decay))
    new_param, new_momentum = [], []
    for p, g, m in zip(*(map(float, a.ravel()) for a in (param, grad, momentum)), strict=True):
        p, g, m = Fraction(p), Fraction(g), Fraction(m)
        direction = b1 * m + (1 - b1) * g
        new_param.append(float(p * (1 - lr * wd) - lr * ((direction > 0) - (direction < 0))))
        new_momentum.append(float(b2 * m + (1 - b2) * g))
    return tuple(np.array(values).reshape(param.shape) for values in (new_param, new_momentum))


def cases():
    rng = np.random.default_rng(20230213)
    found = [
        GoldenCase(
            function="solvers.Lion",
            name="three steps by hand",
            kind="optimizer",
            args=(np.array([1.0]), [np.array([g]) for g in (1.0, -3.0, 0.2)]),
            options={"learning_rate": 0.1, "weight_decay": 0.5},
            expected=np.array([0.762125]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: 1, 0.85, 0.9075, 0.762125",
        ),
        GoldenCase(
            function="solvers.lion_gradient_weights",
            name="weights by hand",
            args=(3,),
            options={"betas": (0.9, 0.99)},
            expected=np.array([0.1, 0.009, 0.00891, 0.0088209]),
            tolerance=Tolerance(1e-14, "relative"),
            source="by hand: 0.1, then 0.9 * 0.01 * 0.99^(k - 1)",
        ),
    ]
    version = "lion-pytorch 0.2.5"
    for name, options in (
        ("defaults", {"learning_rate": 0.01}),
        ("decay", {"learning_rate": 0.003, "weight_decay": 0.5, "betas": (0.95, 0.98)}),
        ("decay by the initial rate", {"learning_rate": 0.01, "weight_decay": 0.002, "decay_mode": "init_lr"}),
    ):
        for dtype, steps in ((np.float64, 12), (np.float32, 12)):
            start = [rng.standard_normal(shape).astype(dtype) for shape in ((), (5,), (3, 4))]
            start[0] = np.asarray(start[0], dtype)
            gradients = [[np.asarray(rng.standard_normal(array.shape), dtype) for array in start] for _ in range(steps)]
            peer = {key: value for key, value in options.items() if key != "decay_mode"}
            found.append(
                GoldenCase(
                    function="solvers.Lion",
                    name=f"{name}, {steps} steps, {np.dtype(dtype).name}",
                    kind="optimizer",
                    args=(start, gradients),
                    options=options,
                    expected=torch_run(start, gradients, **peer, scaled_by_first="decay_mode" in options),
                    # Kernels may fuse p (1 - a) - b into one rounding; each step then moves p by half an ULP.
                    tolerance=Tolerance(steps, "ulp_of_largest"),
                    source=version,
                )
            )
    start, gradients = rng.standard_normal((3, 4)), list(rng.standard_normal((100, 3, 4)))
    found.append(
        GoldenCase(
            function="solvers.Lion",
            name="a hundred steps",
            kind="optimizer",
            args=(start, gradients),
            options={"learning_rate": 0.01, "weight_decay": 0.1},
            expected=torch_run([start], [[g] for g in gradients], learning_rate=0.01, weight_decay=0.1)[0],
            tolerance=Tolerance(100, "ulp_of_largest"),
            source=version,
        )
    )
    for dtype in (np.float32, np.float64):
        param, grad, momentum = rng.standard_normal((3, 7, 11)).astype(dtype)
        grad[0, :3] = momentum[0, :3] = 0
        options = {"learning_rate": 0.0625, "beta1": 0.875, "beta2": 0.984375, "weight_decay": 0.5}
        found.append(
            GoldenCase(
                function="solvers.lion_update",
                name=f"one update, {np.dtype(dtype).name}",
                args=(param, grad, momentum),
                options=options,
                expected=exact_update(param, grad, momentum, **options),
                tolerance=Tolerance(2, "ulp_of_largest"),
                source="rational arithmetic",
            )
        )
    param, grad, momentum = rng.standard_normal((3, 9))
    found.append(
        GoldenCase(
            function="solvers.sign_momentum",
            name="one update",
            args=(param, grad, momentum),
            options={"learning_rate": 0.0625, "beta": 0.875, "weight_decay": 0.5},
            expected=exact_update(
                param, grad, momentum, learning_rate=0.0625, beta1=0.875, beta2=0.875, weight_decay=0.5
            ),
            tolerance=Tolerance(2, "ulp_of_largest"),
            source="rational arithmetic",
        )
    )
    return found
