"""Truth for target-based surrogates: hand calculations, rational arithmetic, PyTorch in float64."""

from fractions import Fraction

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_surrogate(prediction, anchor, gradient, step_size, loss):
    total, inverse = Fraction(loss), 1 / (2 * Fraction(step_size))
    for z, a, g in zip(*(map(float, v.ravel()) for v in (prediction, anchor, gradient)), strict=True):
        moved = Fraction(z) - Fraction(a)
        total += Fraction(g) * moved + moved * moved * inverse
    return np.array(float(total))


def torch_surrogate(prediction, anchor, gradient, step_size):
    tensors = [torch.tensor(a, requires_grad=True) for a in (prediction, anchor, gradient)]
    z, a, g = tensors
    value = (g * (z - a)).sum() + ((z - a) ** 2).sum() / (2 * step_size)
    value.backward(torch.tensor(0.7, dtype=torch.float64))
    return tuple(t.grad.numpy() for t in tensors)


def torch_theta(theta, x, anchor, gradient, step_size):
    parameters = torch.tensor(theta, requires_grad=True)
    moved = torch.tensor(x) @ parameters - torch.tensor(anchor)
    value = (torch.tensor(gradient) * moved).sum() + (moved**2).sum() / (2 * step_size)
    value.backward()
    return value.detach().numpy(), parameters.grad.numpy()


def torch_loss(function, prediction, cotangent):
    z = torch.tensor(prediction, requires_grad=True)
    value = function(z)
    value.backward(torch.tensor(cotangent, dtype=torch.float64))
    return value.detach().numpy(), z.grad.numpy()


def cases():
    rng = np.random.default_rng(20230206)
    one = np.array([0.0])
    found = [
        GoldenCase(
            function="solvers.target_surrogate",
            name="the minimum by hand",
            args=(np.array([3.0]), one, np.array([-3.0])),
            options={"step_size": 1.0, "loss": 4.5},
            expected=np.array(0.0),
            tolerance=Tolerance(1, "ulp"),
            source="by hand: 4.5 - 9 + 4.5",
        ),
        GoldenCase(
            function="solvers.target_surrogate_value_grad",
            name="half way, by hand",
            args=(np.array([0.75]), np.array([[2.0]]), one, np.array([-3.0])),
            options={"step_size": 1.0},
            expected=(np.array(-3.375), np.array([-3.0])),
            tolerance=Tolerance(1, "ulp"),
            source="by hand: -3 * 1.5 + 1.5^2 / 2 and 2 (-3 + 1.5)",
        ),
    ]
    for shape, step_size, loss in (((7,), 0.25, 1.5), ((5, 3), 800.0, 0.0), ((), 1.0, -2.0)):
        arrays = tuple(np.asarray(rng.standard_normal(shape)) for _ in range(3))
        found.append(
            GoldenCase(
                function="solvers.target_surrogate",
                name=f"shape {shape}",
                args=arrays,
                options={"step_size": step_size, "loss": loss},
                expected=exact_surrogate(*arrays, step_size, loss),
                tolerance=Tolerance(1e-14, "relative"),
                source="rational arithmetic",
            )
        )
        found.append(
            GoldenCase(
                function="solvers.target_surrogate",
                name=f"shape {shape}",
                args=arrays,
                options={"step_size": step_size, "loss": loss},
                cotangent=np.array(0.7),
                expected=torch_surrogate(*arrays, step_size),
                tolerance=Tolerance(1e-14, "relative_of_largest"),
                source=TORCH,
            )
        )
    for outputs in ((), (4,)):
        theta, x = rng.standard_normal((3, *outputs)), rng.standard_normal((6, 3))
        anchor, gradient = rng.standard_normal((2, 6, *outputs))
        found.append(
            GoldenCase(
                function="solvers.target_surrogate_value_grad",
                name=f"linear model with outputs {outputs}",
                args=(theta, x, anchor, gradient),
                options={"step_size": 0.3},
                expected=torch_theta(theta, x, anchor, gradient, 0.3),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source=TORCH,
            )
        )
    found += losses(rng)
    for loss, bound in (("squared", 1.0), ("logistic", 0.25), ("softmax", 0.5)):
        found.append(
            GoldenCase(
                function="solvers.target_smoothness",
                name=loss,
                args=(loss, 8),
                expected=np.array(bound / 8),
                source="by hand: 1, max p(1 - p), and 1/2 by Gershgorin's circles, over n",
            )
        )
    for schedule, expected in (
        ("constant", mpmath.mpf(3)),
        ("stochastic", 3 / mpmath.sqrt(7)),
        ("exponential", 3 * mpmath.mpf(50) ** (-mpmath.mpf(7) / 50)),
    ):
        found.append(
            GoldenCase(
                function="solvers.target_step_size",
                name=schedule,
                args=(7, 3.0),
                options={"schedule": schedule, "n_iter": 50},
                expected=np.array(float(expected)),
                tolerance=Tolerance(2, "ulp"),
                source="mpmath, 50 digits",
            )
        )
    return found


def losses(rng):
    found = []
    logits = np.concatenate([rng.standard_normal(6) * 3, [40.0, -40.0, 800.0, -800.0]])
    target = np.array([1, -1, 1, 1, -1, -1, 1, 1, 1, -1])
    sign = torch.tensor(target.astype(float))
    exact = mpmath.fsum(
        mpmath.log1p(mpmath.exp(-int(t) * mpmath.mpf(float(z)))) for z, t in zip(logits, target, strict=True)
    )
    _, slope = torch_loss(lambda z: torch.nn.functional.softplus(-sign * z, threshold=1e9).mean(), logits, 1.3)
    common = {"function": "solvers.logistic_target_loss", "name": "logits up to 800", "args": (logits, target)}
    found.append(
        GoldenCase(
            **common, expected=np.array(float(exact / 10)), tolerance=Tolerance(4, "ulp"), source="mpmath, 50 digits"
        )
    )
    found.append(
        GoldenCase(
            **common,
            cotangent=np.array(1.3),
            expected=slope,
            tolerance=Tolerance(1e-14, "relative_of_largest"),
            source=TORCH,
        )
    )
    prediction, wanted = rng.standard_normal((2, 5, 3))
    value, slope = torch_loss(lambda z: 0.5 * ((z - torch.tensor(wanted)) ** 2).sum() / 5, prediction, 0.6)
    common = {
        "function": "solvers.squared_target_loss",
        "name": "three outputs",
        "args": (prediction, wanted),
        "source": TORCH,
    }
    found.append(GoldenCase(**common, expected=value, tolerance=Tolerance(1e-14, "relative")))
    found.append(
        GoldenCase(
            **common,
            cotangent=np.array(0.6),
            expected=(slope, -slope),
            tolerance=Tolerance(1e-14, "relative_of_largest"),
        )
    )
    return found
