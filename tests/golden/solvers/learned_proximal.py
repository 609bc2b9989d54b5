"""Truth for learned proximal networks: hand calculations, mpmath, PyTorch's second derivatives in float64."""

import mpmath
import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.solvers import LPNParams

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def random_params(rng, n, hidden, layers):
    return LPNParams(
        tuple(rng.standard_normal((hidden, n)) for _ in range(layers + 1)),
        tuple(np.abs(rng.standard_normal((hidden, hidden))) / hidden for _ in range(layers)),
        tuple(rng.standard_normal(hidden) for _ in range(layers)),
        np.abs(rng.standard_normal(hidden)),
        rng.standard_normal(n),
        np.asarray(rng.standard_normal()),
    )


def tensors_of(params):
    def tensor(array):
        return torch.tensor(array, requires_grad=True)

    return (
        [tensor(w) for w in params.input_weights],
        [tensor(w) for w in params.hidden_weights],
        [tensor(b) for b in params.biases],
        tensor(params.output_weight),
        tensor(params.output_linear),
        tensor(params.output_bias),
    )


def torch_potential(x, tensors, sharpness, convexity):
    inputs, hiddens, biases, weight, linear, bias = tensors

    def softplus(t):
        return torch.nn.functional.softplus(t, beta=sharpness, threshold=1e9)

    z = softplus(x @ inputs[0].T)
    for w, h, c in zip(hiddens, inputs[1:], biases, strict=True):
        z = softplus(z @ w.T + x @ h.T + c)
    return z @ weight + x @ linear + bias + convexity / 2 * (x * x).sum(-1)


def torch_run(x, params, cotangent, options, second: bool):
    """Value, and cotangents of (x, params) in the order of the pullback's leaves."""
    tensors, point = tensors_of(params), torch.tensor(x, requires_grad=True)
    value = torch_potential(point, tensors, **options)
    if second:
        value = torch.autograd.grad(value.sum(), point, create_graph=True)[0]
    leaves = [point, *tensors[0], *tensors[1], *tensors[2], *tensors[3:]]
    grads = torch.autograd.grad(value, leaves, torch.tensor(cotangent), allow_unused=True)
    arrays = [np.zeros(leaf.shape) if g is None else g.numpy() for g, leaf in zip(grads, leaves, strict=True)]
    return value.detach().numpy(), tuple(arrays)


def exact_potential(row, params, sharpness, convexity):
    def mp(array):
        return mpmath.matrix(np.asarray(array, float).tolist())

    def softplus(column):
        return mpmath.matrix([mpmath.log1p(mpmath.exp(sharpness * t)) / sharpness for t in column])

    x = mp(row)
    z = softplus(mp(params.input_weights[0]) * x)
    for w, h, c in zip(params.hidden_weights, params.input_weights[1:], params.biases, strict=True):
        z = softplus(mp(w) * z + mp(h) * x + mp(c))
    square = mpmath.fsum(t * t for t in x)
    linear = (mp(params.output_weight).T * z)[0] + (mp(params.output_linear).T * x)[0]
    return float(linear + mpmath.mpf(float(params.output_bias)) + mpmath.mpf(convexity) / 2 * square)


def cases():
    rng = np.random.default_rng(20231022)
    unit = LPNParams((np.ones((1, 1)),), (), (), np.ones(1), np.zeros(1), np.zeros(()))
    points = np.array([[-30.0], [0.0], [1.5]])
    logistic = [1 / (1 + mpmath.exp(-mpmath.mpf(float(t)))) for t in points[:, 0]]
    found = [
        GoldenCase(
            function="solvers.lpn_prox",
            name="one unit: the logistic function",
            args=(points, unit),
            options={"sharpness": 1.0},
            expected=np.array([[float(p)] for p in logistic]),
            tolerance=Tolerance(4, "ulp"),
            source="mpmath, 50 digits",
        ),
        GoldenCase(
            function="solvers.lpn_prox",
            name="one unit at 0 by hand",
            args=(np.array([[0.0]]), unit),
            options={"sharpness": 1.0},
            cotangent=np.array([[2.0]]),
            # H enters as slope and as argument: 2 (1/2 + 0); w: the gate times v.
            expected=(np.array([[0.5]]), np.array([[1.0]]), np.array([1.0]), np.array([2.0]), np.array(0.0)),
            tolerance=Tolerance(2, "ulp"),
            source="by hand: gate 1/2, its slope 1/4",
        ),
    ]
    u = np.array([[0.03], [0.5], [0.9]])
    entropy = [
        t * mpmath.log(t) + (1 - t) * mpmath.log(1 - t) - t * t / 2 for t in map(mpmath.mpf, map(float, u[:, 0]))
    ]
    slope = [mpmath.log(t / (1 - t)) - t for t in map(mpmath.mpf, map(float, u[:, 0]))]
    found.append(
        GoldenCase(
            function="solvers.lpn_prior",
            name="one unit: negative entropy less a square",
            args=(u, unit),
            options={"sharpness": 1.0, "tol": 1e-10},
            expected=np.array([float(e) for e in entropy]),
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="closed form in mpmath: u log u + (1 - u) log(1 - u) - u^2 / 2",
        )
    )
    cotangent = np.array([1.0, -2.0, 0.5])
    inverse = np.array([float(s + mpmath.mpf(float(t))) for s, t in zip(slope, u[:, 0], strict=True)])[:, None]
    _, (_, *dparams) = torch_run(inverse, unit, -cotangent, {"sharpness": 1.0, "convexity": 0.0}, second=False)
    found.append(
        GoldenCase(
            function="solvers.lpn_prior",
            name="one unit: negative entropy less a square",
            args=(u, unit),
            options={"sharpness": 1.0, "tol": 1e-10},
            cotangent=cotangent,
            expected=(cotangent[:, None] * np.array([float(s) for s in slope])[:, None], *dparams),
            tolerance=Tolerance(1e-8, "relative_of_largest"),
            source=f"closed form in mpmath: logit(u) - u; weights by the envelope theorem at logit(u), {TORCH}",
        )
    )
    for n, hidden, layers, options in (
        (3, 5, 2, {"sharpness": 2.0, "convexity": 0.3}),
        (2, 4, 0, {"sharpness": 1.0, "convexity": 0.0}),
        (4, 6, 3, {"sharpness": 10.0, "convexity": 1.5}),
    ):
        params, x = random_params(rng, n, hidden, layers), rng.standard_normal((5, n))
        common = {"name": f"{layers} hidden-to-hidden layers", "args": (x, params), "options": options}
        found.append(
            GoldenCase(
                function="solvers.lpn_potential",
                **common,
                expected=np.array([exact_potential(row, params, **options) for row in x]),
                tolerance=Tolerance(1e-14, "relative_of_largest"),
                source="mpmath, 50 digits",
            )
        )
        for function, second, shape in (("lpn_potential", False, (5,)), ("lpn_prox", True, (5, n))):
            weights = rng.standard_normal(shape)
            value, grads = torch_run(x, params, weights, options, second)
            if second:
                found.append(
                    GoldenCase(
                        function="solvers.lpn_prox",
                        **common,
                        expected=value,
                        tolerance=Tolerance(1e-13, "relative_of_largest"),
                        source=TORCH,
                    )
                )
            found.append(
                GoldenCase(
                    function=f"solvers.{function}",
                    **common,
                    cotangent=weights,
                    expected=grads,
                    tolerance=Tolerance(1e-12, "relative_of_largest"),
                    source=TORCH,
                )
            )
    found += matching(rng)
    return found


def matching(rng):
    found = []
    prediction, target = rng.standard_normal((2, 4, 3))
    for width in (0.3, 1.0, 1e5):
        rows = []
        for p, t in zip(prediction, target, strict=True):
            square = mpmath.fsum((mpmath.mpf(float(a)) - mpmath.mpf(float(b))) ** 2 for a, b in zip(p, t, strict=True))
            rows.append(-mpmath.expm1(-square / (3 * mpmath.mpf(width) ** 2)))
        common = {
            "function": "solvers.proximal_matching_loss",
            "name": f"width {width:g}",
            "args": (prediction, target),
            "options": {"width": width},
        }
        found.append(
            GoldenCase(
                **common,
                expected=np.array(float(mpmath.fsum(rows) / 4)),
                tolerance=Tolerance(1e-14, "relative"),
                source="mpmath, 50 digits",
            )
        )
        point = torch.tensor(prediction, requires_grad=True)
        value = (1 - torch.exp(-((point - torch.tensor(target)) ** 2).sum(1) / (3 * width**2))).mean()
        value.backward()
        slope = point.grad.numpy()
        found.append(
            GoldenCase(
                **common,
                cotangent=np.array(1.0),
                expected=(slope, -slope),
                tolerance=Tolerance(1e-13, "relative_of_largest"),
                source=TORCH,
            )
        )
    return found
