"""Truth for refined schedules: hand calculations, sums in mpmath, medians by sorting, PyTorch's autograd."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]} autograd, float64"


def wide(array):
    return [mpmath.mpf(float(v)) for v in array]


def narrow(values):
    return np.array([float(v) for v in values])


def exact_schedule(weights):
    total = mpmath.fsum(weights)
    return [w * mpmath.fsum(weights[t + 1 :]) / total for t, w in enumerate(weights)]


def exact_median(norms, width):
    """Running median by sorting: the start repeated, the end reflected."""
    n, half = len(norms), width // 2
    # Reflect without repeating the edge, again and again until the padding is there.
    period = list(range(n)) + list(range(n - 2, 0, -1))
    extended = [norms[period[i % len(period)]] for i in range(n + 2 * width)]
    padded = [norms[0]] * half + extended
    return np.array([sorted(padded[i : i + width])[half] for i in range(n)])


def exact_bound(schedule, norms, distance):
    rate, g, d = wide(schedule), wide(norms), mpmath.mpf(distance)
    n = len(rate)
    s = [mpmath.fsum(rate[k:]) for k in range(n)]
    q = [mpmath.fsum((r * v) ** 2 for r, v in zip(rate[k:], g[k:], strict=True)) for k in range(n)]
    total = (d**2 + q[0]) / (2 * s[0])
    return total + mpmath.fsum(rate[k] / s[k + 1] * q[k] / s[k] for k in range(n - 1)) / 2


def torch_bound(rate, g, d):
    s = torch.flip(torch.cumsum(torch.flip(rate, (0,)), 0), (0,))
    q = torch.flip(torch.cumsum(torch.flip((rate * g) ** 2, (0,)), 0), (0,))
    return (d**2 + q[0]) / (2 * s[0]) + 0.5 * (rate[:-1] / s[1:] * q[:-1] / s[:-1]).sum()


def cases():
    rng = np.random.default_rng(20231011)
    found = [
        GoldenCase(
            function="solvers.refine_schedule",
            name="three norms",
            args=(np.array([1.0, 2.0, 1.0]),),
            expected=np.array([1.0, 0.2, 0.0]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: weights 1, 1/4, 1",
        ),
        GoldenCase(
            function="solvers.refine_schedule",
            name="three norms, not normalized",
            args=(np.array([1.0, 2.0, 1.0]),),
            options={"normalize": False},
            expected=np.array([5 / 9, 1 / 9, 0.0]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: 1.25 / 2.25, 0.25 / 2.25, 0",
        ),
        GoldenCase(
            function="solvers.refine_schedule",
            name="three norms, distance 1",
            args=(np.array([1.0, 2.0, 1.0]),),
            options={"normalize": False, "distance": 1.0},
            expected=np.array([5 / 9, 1 / 9, 0.0]) / 1.5,
            tolerance=Tolerance(4, "ulp"),
            source="by hand: the same divided by sqrt(2.25)",
        ),
        GoldenCase(
            function="solvers.refine_schedule",
            name="constant norms",
            args=(np.full(4, 3.0),),
            expected=np.array([1, 2 / 3, 1 / 3, 0]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: linear decay",
        ),
        GoldenCase(
            function="solvers.refine_schedule",
            name="1-norms",
            args=(np.array([1.0, 2.0, 1.0]),),
            options={"kind": "adam"},
            expected=np.array([1.0, 1 / 3, 0.0]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: weights 1, 1/2, 1",
        ),
        GoldenCase(
            function="solvers.weight_bound",
            name="best weights of three norms",
            args=(np.array([1.0, 0.25, 1.0]) / 1.5, np.array([1.0, 2.0, 1.0]), 1.0),
            expected=np.array(2 / 3),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: 1 / sqrt(2.25)",
        ),
    ]
    for name, length, window, dtype in (
        ("short", 23, 0.3, np.float64),
        ("window of the whole run", 9, 1.0, np.float64),
        ("float32", 40, 0.1, np.float32),
    ):
        norms = np.exp(rng.standard_normal(length)).astype(dtype)
        width = 2 * (int(np.floor(window * length)) // 2) + 1
        found.append(
            GoldenCase(
                function="solvers.smooth_norms",
                name=name,
                args=(norms,),
                options={"window": window},
                expected=exact_median(norms, width),
                source="medians by sorting",
            )
        )
    for name, length in (("five weights", 5), ("sixty weights", 60)):
        weights, norms = np.exp(rng.standard_normal((2, length)))
        cotangent = rng.standard_normal(length)
        w = torch.tensor(weights, requires_grad=True)
        later = torch.flip(torch.cumsum(torch.flip(w, (0,)), 0), (0,)) - w
        (w * later / w.sum()).backward(torch.tensor(cotangent))
        found += [
            GoldenCase(
                function="solvers.schedule_from_weights",
                name=name,
                args=(weights,),
                expected=narrow(exact_schedule(wide(weights))),
                tolerance=Tolerance(4, "ulp_of_largest"),
                source="mpmath, 50 digits",
            ),
            GoldenCase(
                function="solvers.schedule_from_weights",
                name=f"cotangents, {name}",
                args=(weights,),
                cotangent=cotangent,
                expected=(w.grad.numpy(),),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source=TORCH,
            ),
        ]
        total = mpmath.fsum(wide(weights))
        square = mpmath.fsum((a * b) ** 2 for a, b in zip(wide(weights), wide(norms), strict=True))
        for function, value, formula in (
            ("weight_bound", (mpmath.mpf(2.5) ** 2 + square) / (2 * total), None),
            ("schedule_bound", exact_bound(weights, norms, 2.5), torch_bound),
        ):
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    name=name,
                    args=(weights, norms, 2.5),
                    expected=np.array(float(value)),
                    tolerance=Tolerance(1e-14, "relative"),
                    source="mpmath, 50 digits",
                )
            )
            tensors = [torch.tensor(a, requires_grad=True) for a in (weights, norms, np.array(2.5))]
            w, g, d = tensors
            bound = formula(w, g, d) if formula else (d**2 + ((w * g) ** 2).sum()) / (2 * w.sum())
            (1.5 * bound).backward()
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    name=f"cotangents, {name}",
                    args=(weights, norms, 2.5),
                    cotangent=np.array(1.5),
                    expected=tuple(t.grad.numpy() for t in tensors),
                    tolerance=Tolerance(1e-12, "relative_of_largest"),
                    source=TORCH,
                )
            )
    t = [mpmath.mpf(k) for k in range(1, 8)]
    for function, args, options, expected in (
        ("linear_decay", (7,), {}, [1 - k / 7 for k in t]),
        ("cosine_decay", (7,), {}, [(1 + mpmath.cos(mpmath.pi * k / 7)) / 2 for k in t]),
        ("inverse_power_decay", (7,), {}, [1 / mpmath.sqrt(k) for k in t]),
        ("inverse_power_decay", (7,), {"power": 1.5}, [k ** mpmath.mpf(-1.5) for k in t]),
        ("step_decay", (7,), {}, [1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]),
        (
            "warmup_polynomial",
            (7, 0.3, 1.7),
            {},
            [
                min(k / (mpmath.mpf(0.3) * 7), 1)
                * (1 - max(0, k - mpmath.mpf(0.3) * 7) / (7 - mpmath.mpf(0.3) * 7)) ** mpmath.mpf(1.7)
                for k in t
            ],
        ),
    ):
        found.append(
            GoldenCase(
                function=f"solvers.{function}",
                name=f"seven steps {options or ''}".strip(),
                args=args,
                options=options,
                expected=narrow(expected),
                tolerance=Tolerance(4, "ulp_of_largest"),
                source="mpmath, 50 digits",
            )
        )
    start, gradients = [rng.standard_normal(4), rng.standard_normal((2, 3))], []
    for _ in range(5):
        gradients.append([rng.standard_normal(a.shape) for a in start])
    params = [torch.tensor(a, requires_grad=True) for a in start]
    schedule = np.exp(rng.standard_normal(5))
    for rate, grads in zip(schedule, gradients, strict=True):
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        torch.optim.SGD(params, lr=0.5 * float(rate)).step()
    found.append(
        GoldenCase(
            function="solvers.ScheduledSGD",
            name="five steps",
            kind="optimizer",
            args=(start, gradients),
            options={"learning_rate": 0.5, "schedule": schedule},
            expected=[param.detach().numpy() for param in params],
            tolerance=Tolerance(8, "ulp_of_largest"),
            source=f"torch {torch.__version__.split('+')[0]}, torch.optim.SGD",
        )
    )
    return found
