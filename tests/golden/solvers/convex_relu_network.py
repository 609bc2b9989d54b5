"""Truth for convex ReLU networks: PyTorch's derivatives of the formulas, corners of a box, hand calculations."""

import itertools

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance

# The order of sums, and with it the last bit, must not depend on the machine's cores.
torch.set_num_threads(1)
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"


def network(x, target, weight, output, *, penalty):
    loss = (torch.relu(x @ weight.T) @ output - target).square().sum() / 2
    return loss + penalty / 2 * (weight.square().sum() + output.square().sum())


def gated(x, target, patterns, v, w, *, penalty):
    prediction = sum(p * (x @ (a - b)) for p, a, b in zip(patterns, v, w, strict=True))
    norms = sum(torch.linalg.vector_norm(row) for row in (*v, *w))
    return (prediction - target).square().sum() / 2 + penalty * norms


def hinge(x, target, patterns, v, w, *, radius):
    losses = []
    for k in range(len(x)):
        q = sum(patterns[i, k] * (v[i] - w[i]) for i in range(len(v)))
        losses.append(torch.relu(1 - target[k] * (x[k] @ q) + radius * q.abs().sum()))
    return torch.stack(losses).mean()


def pair(function, formula, name, args, options, cotangent):
    tensors = [torch.tensor(a, requires_grad=a.dtype == np.float64) for a in args]
    value = formula(*tensors, **options)
    value.backward(torch.tensor(cotangent))
    common = {
        "function": f"solvers.{function}",
        "name": name,
        "args": args,
        "options": options,
        "tolerance": Tolerance(1e-13, "relative_of_largest"),
        "source": TORCH,
    }
    yield GoldenCase(**common, expected=value.detach().numpy())
    gradients = tuple(t.grad.numpy() for t in tensors if t.requires_grad)
    yield GoldenCase(**common, cotangent=np.array(cotangent), expected=gradients)


def worst_corner(x, labels, patterns, v, w, radius):
    """Search every corner of the box around every example."""
    losses = []
    for k, example in enumerate(x):
        worst = 0.0
        for signs in itertools.product((-1.0, 1.0), repeat=x.shape[1]):
            moved = example + radius * np.array(signs)
            output = sum(moved @ (v[i] - w[i]) for i in range(len(v)) if patterns[i, k])
            worst = max(worst, 1 - labels[k] * output)
        losses.append(worst)
    return np.array(np.mean(losses))


def worst_gate(x, patterns, v, w, radius):
    worst = 0.0
    for k, example in enumerate(x):
        for signs in itertools.product((-1.0, 1.0), repeat=x.shape[1]):
            moved = example + radius * np.array(signs)
            for i, pattern in enumerate(patterns[:, k]):
                for weights in (v[i], w[i]):
                    worst = max(worst, -(moved @ weights if pattern else -(moved @ weights)))
    return np.array(worst)


def cases():
    rng = np.random.default_rng(20220107)
    found = []
    for n, d, m in ((6, 3, 4), (1, 1, 1), (9, 2, 7)):
        x, target, weight, output = (rng.standard_normal(s) for s in ((n, d), (n,), (m, d), (m,)))
        v, w = rng.standard_normal((2, m, d))
        patterns, labels = rng.random((m, n)) < 0.6, np.sign(rng.standard_normal(n))
        shape = f"{n} examples of {d}, {m} neurons"
        found += pair("relu_objective", network, shape, (x, target, weight, output), {"penalty": 0.2}, 1.5)
        found += pair("gated_objective", gated, shape, (x, target, patterns, v, w), {"penalty": 0.2}, 1.5)
        found += pair("robust_hinge", hinge, shape, (x, labels, patterns, v, w), {"radius": 0.1}, 1.5)
        by_search = {
            "name": f"{shape}, worst corner",
            "options": {"radius": 0.3},
            "tolerance": Tolerance(1e-13, "relative"),
            "source": "the largest value over all corners of the box, one by one",
        }
        truth = worst_corner(x, labels, patterns, v, w, 0.3)
        found.append(
            GoldenCase(function="solvers.robust_hinge", args=(x, labels, patterns, v, w), expected=truth, **by_search)
        )
        truth = worst_gate(x, patterns, v, w, 0.3)
        found.append(
            GoldenCase(function="solvers.gate_violation", args=(x, patterns, v, w), expected=truth, **by_search)
        )
    found.append(
        GoldenCase(
            function="solvers.recover_relu",
            name="norms 25, 0, 4 and 1",
            args=(np.array([[15.0, 20.0], [0.0, 0.0]]), np.array([[0.0, -4.0], [1.0, 0.0]])),
            expected=(np.array([[3.0, 4.0], [0.0, -2.0], [1.0, 0.0]]), np.array([5.0, -2.0, -1.0])),
            tolerance=Tolerance(1, "ulp"),
            source="by hand: v / sqrt|v| and sqrt|v|",
        )
    )
    found.append(
        GoldenCase(
            function="solvers.gated_objective",
            name="one example at its optimum 1 - penalty",
            args=(np.ones((1, 1)), np.ones(1), np.array([[True]]), np.full((1, 1), 0.75), np.zeros((1, 1))),
            options={"penalty": 0.25},
            expected=np.array(0.25 - 0.25**2 / 2),
            tolerance=Tolerance(1, "ulp"),
            source="by hand: penalty - penalty^2 / 2",
        )
    )
    return found
