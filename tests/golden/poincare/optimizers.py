"""Truth for the Riemannian optimizers: geoopt, PyTorch for Euclidean parameters, a hand calculation."""

import geoopt
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

STEPS = 15


def geoopt_run(cls, start, gradients, curvature, **options):
    manifold = geoopt.PoincareBallExact(c=torch.tensor(curvature, dtype=torch.float64))
    points = geoopt.ManifoldParameter(torch.tensor(start), manifold=manifold)
    optimizer = cls([points], **options)
    for gradient in gradients:
        points.grad = torch.tensor(gradient)
        optimizer.step()
    return points.detach().numpy()


def torch_run(cls, start, gradients, **options):
    points = torch.nn.Parameter(torch.tensor(start))
    optimizer = cls([points], **options)
    for gradient in gradients:
        points.grad = torch.tensor(gradient)
        optimizer.step()
    return points.detach().numpy()


SGD = (
    ("plain", {}, {}),
    ("momentum", {"momentum": 0.9}, {"momentum": 0.9}),
    (
        "Nesterov and decay",
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    ),
    ("dampening", {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "dampening": 0.5}),
)
ADAM = (
    ("defaults", {}, {}),
    ("AMSGrad", {"amsgrad": True, "betas": (0.8, 0.7)}, {"amsgrad": True, "betas": (0.8, 0.7)}),
    ("decay", {"weight_decay": 0.3, "eps": 0.01}, {"weight_decay": 0.3, "eps": 0.01}),
)


def cases():
    rng = np.random.default_rng(20190506)
    found = []
    for curvature, shape in ((1.0, (4, 2)), (0.3, (3, 5))):
        start = 0.4 * rng.standard_normal(shape).clip(-1.2, 1.2) / np.sqrt(curvature * shape[-1])
        gradients = list(rng.standard_normal((STEPS, *shape)))
        # geoopt's momentum starts as the first Euclidean gradient; after a gradient of 0 it starts as ours.
        gradients[0] = np.zeros(shape)
        for kind, ours, peer, settings in (
            ("RiemannianSGD", {"learning_rate": 0.1}, (geoopt.optim.RiemannianSGD, {"lr": 0.1}), SGD),
            ("RiemannianAdam", {"learning_rate": 0.05}, (geoopt.optim.RiemannianAdam, {"lr": 0.05}), ADAM),
        ):
            for name, options, peer_options in settings:
                found.append(
                    GoldenCase(
                        function=f"poincare.{kind}",
                        name=f"{name}, curvature {curvature:g}",
                        kind="optimizer",
                        args=(start, gradients),
                        options={**ours, **options, "curvature": curvature},
                        expected=geoopt_run(peer[0], start, gradients, curvature, **peer[1], **peer_options),
                        # geoopt keeps softplus(a) for the curvature.
                        tolerance=Tolerance(1e-12, "relative_of_largest"),
                        source=f"geoopt {geoopt.__version__} (PoincareBallExact), float64",
                    )
                )
    start, gradients = rng.standard_normal((4, 3)), list(rng.standard_normal((STEPS, 4, 3)))
    version = f"torch {torch.__version__.split('+')[0]}"
    for kind, peer, options, peer_options in (
        (
            "RiemannianSGD",
            torch.optim.SGD,
            {"momentum": 0.9, "weight_decay": 0.1},
            {"momentum": 0.9, "weight_decay": 0.1},
        ),
        ("RiemannianAdam", torch.optim.Adam, {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ):
        found.append(
            GoldenCase(
                function=f"poincare.{kind}",
                name="a Euclidean parameter",
                kind="optimizer",
                args=(start, gradients),
                options={"learning_rate": 0.1, **options, "curvature": None},
                expected=torch_run(peer, start, gradients, lr=0.1, **peer_options),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source=version,
            )
        )
    return found + by_hand()


def by_hand():
    point, grad = np.array([0.6, 0.0]), np.array([3.125 * np.log(4.0), 0.0])
    return [
        GoldenCase(
            function="poincare.RiemannianSGD",
            name="half a step on half the squared distance halves the distance",
            kind="optimizer",
            args=(point, [grad]),
            options={"learning_rate": 0.5},
            expected=np.array([1 / 3, 0.0]),
            tolerance=Tolerance(4, "ulp"),
            source="by hand: factor 3.125, distance log(4), artanh(3/5) = 2 artanh(1/3)",
        ),
        GoldenCase(
            function="poincare.RiemannianAdam",
            name="the first step has the learning rate as length",
            kind="optimizer",
            args=(point, [1e-3 * grad]),
            options={"learning_rate": float(np.log(4.0) - np.log(2.0)), "eps": 1e-18},
            expected=np.array([1 / 3, 0.0]),
            tolerance=Tolerance(8, "ulp"),
            source="by hand: from distance log(4) to distance log(2)",
        ),
        GoldenCase(
            function="poincare.RiemannianSGD",
            name="a step of any length ends on the margin",
            kind="optimizer",
            args=(np.array([[0.0, 0.1]]), [np.array([[0.0, -1e9]])]),
            options={"learning_rate": 1.0},
            expected=np.array([[0.0, 1 - 1e-5]]),
            tolerance=Tolerance(2, "ulp"),
            source="by definition of the projection",
        ),
    ]
