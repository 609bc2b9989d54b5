"""Truth for sharpDARTS: hand calculations, mpmath, PyTorch's cosine schedule and its automatic differentiation."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

mpmath.mp.dps = 50
VERSION = f"torch {torch.__version__.split('+')[0]}, float64"


def exact_schedule(epochs, order, high, low, warmup=0):
    """The rescaled powers of the cosine, minimum and maximum taken over the epochs."""
    order, high, low = (mpmath.mpf(v) for v in (order, high, low))
    shifted = [(1 + mpmath.cospi(mpmath.mpf(e - warmup) / (epochs - warmup))) / 2 for e in range(1, epochs + 1)]
    powers = [c if order == 1 else order ** (c + 1) for c in shifted]
    smallest = min(powers)
    largest = max(power - smallest for power in powers)
    fractions = [(power - smallest) / largest for power in powers]
    for e in range(1, warmup + 2):
        if warmup:
            fractions[e - 1] = mpmath.mpf(e) / (warmup + 1)
    return np.array([float(low + (high - low) * fraction) for fraction in fractions])


def torch_schedule(epochs, high, low):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs, eta_min=0.0)
    rates = []
    for _ in range(epochs):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    # Torch begins one epoch earlier: its first rate here is rescaled to the largest.
    return low + (high - low) * np.array(rates) / rates[0]


def torch_mix(outputs, logits, cotangent, weighting, stop):
    o, a = (torch.tensor(array, requires_grad=True) for array in (outputs, logits))
    weight = torch.softmax(a.reshape(-1), dim=0)
    if weighting == "max_w":
        largest = weight.max().detach() if stop else weight.max()
        weight = 1 - largest + weight
    y = (weight[:, None] * o.reshape(len(weight), -1)).sum(dim=0).reshape(cotangent.shape)
    y.backward(torch.tensor(cotangent))
    return y.detach().numpy(), (o.grad.numpy(), a.grad.numpy())


def cases():
    rng = np.random.default_rng(20190323)
    schedule = "solvers.cosine_power_annealing"
    found = [
        GoldenCase(
            function=schedule,
            name="four epochs by hand",
            args=(4,),
            options={"max_learning_rate": 1.0, "min_learning_rate": 0.0},
            expected=np.array([1.0, 0.352299, 0.065339, 0.0]),
            tolerance=Tolerance(1e-6, "relative_of_largest"),
            source="by hand, six digits",
        ),
        GoldenCase(
            function=schedule,
            name="warm-up by hand",
            args=(6,),
            options={"max_learning_rate": 1.0, "min_learning_rate": 0.0, "warmup_epochs": 2},
            expected=np.array([1 / 3, 2 / 3, 1.0, 0.240253, 0.044559, 0.0]),
            tolerance=Tolerance(1e-6, "relative_of_largest"),
            source="by hand, six digits",
        ),
        GoldenCase(
            function=schedule,
            name="order 1 is PyTorch's cosine",
            args=(40,),
            options={"exponent_order": 1.0},
            expected=torch_schedule(40, 0.1, 1e-4),
            tolerance=Tolerance(1e-13, "relative"),
            source=VERSION,
        ),
    ]
    for epochs, order, high, low, warmup in (
        (30, 10.0, 0.1, 1e-4, 0),
        (25, 2.0, 0.025, 7.5e-4, 5),
        (12, 1 + 2.0**-40, 1.0, 0.0, 0),
        (12, 1e300, 1.0, 0.0, 3),
        (9, 1.0, 0.5, 0.25, 1),
    ):
        found.append(
            GoldenCase(
                function=schedule,
                name=f"{epochs} epochs, order {order:g}, warm-up {warmup}",
                args=(epochs,),
                options={
                    "exponent_order": order,
                    "max_learning_rate": high,
                    "min_learning_rate": low,
                    "warmup_epochs": warmup,
                },
                expected=exact_schedule(epochs, order, high, low, warmup),
                tolerance=Tolerance(1e-12, "relative"),
                source="mpmath, 50 digits",
            )
        )
    outputs, logits = np.array([1.0, 2.0, 3.0]), np.log(np.array([0.5, 0.3, 0.2]))
    for name, options, value, doutputs, dlogits in (
        ("scalar", {}, 1.7, [0.5, 0.3, 0.2], [-0.35, 0.09, 0.26]),
        ("max-W", {"weighting": "max_w"}, 4.7, [1.0, 0.8, 0.7], [-1.85, 0.99, 0.86]),
        ("constant maximum", {"weighting": "max_w", "stop_gradient_max": True}, 4.7, [1.0, 0.8, 0.7], [-0.35, 0.09, 0.26]),
    ):  # fmt: skip
        common = {
            "function": "solvers.mixed_op",
            "name": f"three numbers by hand, {name}",
            "args": (outputs, logits),
            "options": options,
            "source": "by hand",
            "tolerance": Tolerance(16, "ulp_of_largest"),
        }
        found.append(GoldenCase(**common, expected=np.array(value)))
        found.append(GoldenCase(**common, cotangent=np.array(1.0), expected=(np.array(doutputs), np.array(dlogits))))
    for options in ((4,), (2, 3)):
        for weighting, stop in (("scalar", False), ("max_w", False), ("max_w", True)):
            outputs, logits = rng.standard_normal((*options, 3, 5)), 2 * rng.standard_normal(options)
            cotangent = rng.standard_normal((3, 5))
            value, grads = torch_mix(outputs, logits, cotangent, weighting, stop)
            common = {
                "function": "solvers.mixed_op",
                "name": f"options {options}, {weighting}{', constant maximum' if stop else ''}",
                "args": (outputs, logits),
                "options": {"weighting": weighting, "stop_gradient_max": stop},
                "tolerance": Tolerance(1e-13, "relative_of_largest"),
                "source": VERSION,
            }
            found.append(GoldenCase(**common, expected=value))
            found.append(GoldenCase(**common, cotangent=cotangent, expected=grads))
    logits = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 9.0], [1.0, 1.0, 1.0]])
    found += [
        GoldenCase("solvers.discretize", "strongest", (logits,), np.array([2, 2, 0]), "by hand"),
        GoldenCase("solvers.discretize", "without the last", (logits,), np.array([1, 0, 0]), "by hand", options={"excluded": (2,)}),
        GoldenCase(
            "solvers.strongest_edges", "two of three", (logits,), (np.array([0, 1]), np.array([2, 2])),
            "by hand: probabilities 0.84, 1.00, 0.33",
        ),
        GoldenCase(
            "solvers.strongest_edges", "without the last operation", (logits,), (np.array([0, 2]), np.array([1, 0])),
            "by hand: probabilities 0.11, 0.001, 0.33", options={"excluded": (2,)},
        ),
        GoldenCase(
            "solvers.hypercuboid_options", "two by two", (((3, 5), (1, 2)),), [(3, 1), (3, 2), (5, 1), (5, 2)], "by hand"
        ),
    ]  # fmt: skip
    return found
