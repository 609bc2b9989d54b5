"""Truth for private regression: mpmath in 50 digits, with integrals and roots of its own, and PyTorch's derivatives."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
# The order of sums, and with it the last bit, must not depend on the machine's cores.
torch.set_num_threads(1)
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_sigma(sensitivity, epsilon, delta):
    """The smallest deviation: bisection on the exact privacy curve."""
    epsilon, delta = mpmath.mpf(epsilon), mpmath.mpf(delta)

    def spent(s):
        return mpmath.ncdf(s / 2 - epsilon / s) - mpmath.exp(epsilon) * mpmath.ncdf(-s / 2 - epsilon / s)

    low, high = mpmath.mpf(10) ** -6, mpmath.mpf(100)
    for _ in range(160):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(middle) > delta else (middle, high)
    return float(mpmath.mpf(sensitivity) / low)


def exact_scale(d, epsilon, radius):
    """The inverse of the mean component along the input, from the integral over the sphere."""
    epsilon = mpmath.mpf(epsilon)
    if d == 1:
        along = mpmath.mpf(1)
    else:
        top = mpmath.quad(lambda t: mpmath.cos(t) * mpmath.sin(t) ** (d - 2), [0, mpmath.pi / 2])
        along = top / mpmath.quad(lambda t: mpmath.sin(t) ** (d - 2), [0, mpmath.pi / 2])
    return float(mpmath.mpf(radius) * (mpmath.exp(epsilon) + 1) / (mpmath.exp(epsilon) - 1) / along)


def cases():
    rng = np.random.default_rng(20231011)
    found = []

    def add(function, name, args, expected, source, limit, rule="relative", **more):
        found.append(
            GoldenCase(
                function=f"solvers.{function}", name=name, args=args, expected=np.asarray(expected), source=source,
                tolerance=Tolerance(limit, rule), **more,
            )
        )  # fmt: skip

    digits = "mpmath, 50 digits"
    for sensitivity, epsilon, delta in ((1.0, 1.0, 1e-5), (2.5, 0.1, 1e-3)):
        name = f"sensitivity {sensitivity:g}, epsilon {epsilon:g}, delta {delta:g}"
        classical = (
            mpmath.mpf(sensitivity)
            * mpmath.sqrt(2 * mpmath.log(mpmath.mpf(1.25) / mpmath.mpf(delta)))
            / mpmath.mpf(epsilon)
        )
        add("gaussian_sigma", name, (sensitivity, epsilon, delta), float(classical), digits, 1e-15)
    for sensitivity, epsilon, delta in ((1.0, 1.0, 1e-5), (2.5, 0.1, 1e-3), (1.0, 8.0, 1e-6), (1.0, 0.01, 0.3)):
        name = f"analytic, sensitivity {sensitivity:g}, epsilon {epsilon:g}, delta {delta:g}"
        truth = exact_sigma(sensitivity, epsilon, delta)
        source = f"{digits}: bisection on the exact condition"
        add("gaussian_sigma", name, (sensitivity, epsilon, delta), truth, source, 1e-9, options={"analytic": True})
    for d, epsilon, radius in ((1, 1.0, 1.0), (2, 1.0, 1.0), (3, 1.0, 1.0), (7, 0.01, 2.0), (40, 5.0, 0.5)):
        source = f"{digits}: integral over the sphere"
        add(
            "randomizer_scale",
            f"d = {d}, epsilon {epsilon:g}",
            (d, epsilon, radius),
            exact_scale(d, epsilon, radius),
            source,
            1e-12,
        )
    add("randomizer_scale", "in the plane", (2, 2 * np.arctanh(0.5), 1.0), np.pi, "by hand: 2 times pi / 2", 1e-14)

    x = rng.standard_normal((5, 3))
    lengths = [mpmath.sqrt(mpmath.fsum(mpmath.mpf(float(v)) ** 2 for v in row)) for row in x]
    clipped = [
        [float(mpmath.mpf(float(v)) * min(1, 1 / length)) for v in row] for row, length in zip(x, lengths, strict=True)
    ]
    add("clip_rows", "five rows to length 1", (x, 1.0), clipped, digits, 1e-15)

    for d, threshold in ((1, 0.2), (4, 0.05), (6, 0.3)):
        root = rng.standard_normal((d, d))
        covariance, moment = root @ root.T + np.eye(d), rng.standard_normal(d)
        cotangent = rng.standard_normal(d)
        tensors = [torch.tensor(a, requires_grad=True) for a in (covariance, moment, np.array(threshold))]
        z = torch.linalg.solve((tensors[0] + tensors[0].T) / 2, tensors[1])
        theta = torch.sign(z) * torch.relu(z.abs() - tensors[2])
        theta.backward(torch.tensor(cotangent))
        args = (covariance, moment, np.array(threshold))
        add("server_map", f"d = {d}", args, theta.detach().numpy(), TORCH, 1e-12, "relative_of_largest")
        found.append(
            GoldenCase(
                function="solvers.server_map", name=f"d = {d}", args=args, cotangent=cotangent,
                expected=tuple(t.grad.numpy() for t in tensors), source=TORCH,
                tolerance=Tolerance(1e-11, "relative_of_largest"),
            )
        )  # fmt: skip
    add("server_map", "identity", (np.eye(3), np.array([1.0, -0.2, -2.0]), 0.5), [0.5, 0.0, -1.5], "by hand", 1e-15)
    add("ldp_lower_bound", "numbers", (10000, 16, 4, 0.5), 0.16, "by hand: sqrt(64 / 10000) / 0.5", 1e-15)
    return found
