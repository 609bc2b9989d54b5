"""Truth for top-K gating: hand calculations, SciPy, PyTorch autograd in float64, mpmath with 50 digits."""

import mpmath
import numpy as np
import scipy
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.softmax import GaussianMoE

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
SCIPY = f"scipy {scipy.__version__}"


def torch_gate(scores, bias, top_k, with_bias):
    raised = scores + bias
    chosen = torch.topk(raised if with_bias else scores, top_k, dim=-1).indices
    mask = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen, True)
    return torch.log_softmax(raised.masked_fill(~mask, -torch.inf), dim=-1), mask


def cases():
    rng = np.random.default_rng(2309)
    found = []

    def add(function, name, args, expected, tolerance, source, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    scores, bias = np.array([2.0, 1.0, 0.0]), np.array([0.0, 1.0, 5.0])
    add(
        "topk_softmax", "the bias does not select", (scores, bias), (np.array([0.5, 0.5, 0]), np.array([True, True, False])),
        Tolerance(1, "ulp"), "by hand", options={"top_k": 2},
    )  # fmt: skip
    tail = float(mpmath.exp(-3) / (1 + mpmath.exp(-3)))
    add(
        "topk_softmax", "the bias selects; the tie goes to the first", (scores, bias),
        (np.array([tail, 0, float(1 / (1 + mpmath.exp(-3)))]), np.array([True, False, True])), Tolerance(2, "ulp"),
        "by hand, digits from mpmath", options={"top_k": 2, "select_with_bias": True},
    )  # fmt: skip
    scores, bias = 2 * rng.standard_normal((4, 6)), rng.standard_normal(6)
    dense = scipy.special.softmax(scores + bias, axis=-1)
    add(
        "topk_softmax", "all experts", (scores, bias), (dense, np.ones((4, 6), bool)), Tolerance(1e-14, "relative"),
        SCIPY, options={"top_k": 6},
    )  # fmt: skip
    g = rng.standard_normal((4, 6))
    for top_k in (1, 3, 6):
        for with_bias in (False, True):
            ts, tb = (torch.tensor(v, requires_grad=True) for v in (scores, bias))
            log_weight, mask = torch_gate(ts, tb, top_k, with_bias)
            weight = torch.exp(log_weight)
            weight.backward(torch.tensor(g))
            options, name = {"top_k": top_k, "select_with_bias": with_bias}, f"{top_k} of 6, bias selects: {with_bias}"
            value = (weight.detach().numpy(), mask.numpy())
            add("topk_softmax", name, (scores, bias), value, Tolerance(1e-14, "relative"), TORCH, options=options)
            grads = (ts.grad.numpy(), tb.grad.numpy())
            if top_k == 1:  # constant weights; what PyTorch leaves there is rounding error
                grads = tuple(np.zeros_like(v) for v in grads)
            add(
                "topk_softmax", name, (scores, bias), grads, Tolerance(1e-13, "relative_of_largest"),
                TORCH if top_k > 1 else "by hand: a constant", options=options, cotangent=g,
            )  # fmt: skip

    n, k, d = 8, 4, 3
    arrays = [rng.standard_normal(s) for s in ((k, d), (k,), (k, d), (k,))] + [np.exp(0.5 * rng.standard_normal(k))]
    x, y, g = rng.standard_normal((n, d)), 2 * rng.standard_normal(n), rng.standard_normal(n)
    for top_k in (1, 2, 4):
        tensors = [torch.tensor(v, requires_grad=True) for v in (*arrays, x, y)]
        gate_weight, gate_bias, weight, bias, variance, tx, ty = tensors
        log_weight, _ = torch_gate(tx @ gate_weight.T, gate_bias, top_k, False)
        normal = torch.distributions.Normal(tx @ weight.T + bias, torch.sqrt(variance))
        value = torch.logsumexp(log_weight + normal.log_prob(ty[:, None]), dim=-1)
        value.backward(torch.tensor(g))
        grads = [v.grad.numpy() for v in tensors]
        expected = (GaussianMoE(*grads[:5]), *grads[5:])
        if top_k == 1:  # the gate's weight is the constant 1
            expected = (GaussianMoE(np.zeros((k, d)), np.zeros(k), *grads[2:5]), *grads[5:])
        common = {"options": {"top_k": top_k}}
        args = (GaussianMoE(*arrays), x, y)
        add(
            "moe_log_density",
            f"{top_k} of 4 experts",
            args,
            value.detach().numpy(),
            Tolerance(1e-13, "relative_of_largest"),
            TORCH,
            **common,
        )
        add(
            "moe_log_density",
            f"{top_k} of 4 experts",
            args,
            expected,
            Tolerance(1e-12, "relative_of_largest"),
            TORCH,
            cotangent=g,
            **common,
        )
    flat, zero, deviation = np.zeros((3, 1)), np.zeros(3), np.array([1.0, 2.0, 0.5])
    far = scipy.special.logsumexp(scipy.stats.norm.logpdf(30.0, zero, deviation) + np.log(1 / 3))
    add(
        "moe_log_density", "a point far out", (GaussianMoE(flat, zero, flat, zero, deviation**2), np.ones((1, 1)), np.array([30.0])),
        np.array([far]), Tolerance(1e-13, "relative"), SCIPY, options={"top_k": 3},
    )  # fmt: skip

    true = GaussianMoE(
        np.array([[1.0], [0.0]]),
        np.array([np.log(2.0), 0.0]),
        np.array([[2.0], [-2.0]]),
        np.array([0.0, 1.0]),
        np.ones(2),
    )
    near = GaussianMoE(
        np.array([[1.5], [0.0], [1.0]]), np.array([0.0, 0.0, np.log(2.0)]), np.array([[2.0], [-2.25], [2.25]]),
        np.array([0.0, 1.0, -0.5]), np.array([1.0, 1.25, 1.0]),
    )  # fmt: skip
    add(
        "voronoi_cells",
        "two estimates for one expert",
        (near, true),
        [np.array([0, 2]), np.array([1])],
        Tolerance(),
        "by hand",
    )
    # Cell 1: 1 * 0.5 + 2 * (0.25 + 0.5) + |1 + 2 - 2| = 3;  cell 2: 0.25 + 0.25 = 0.5.
    for top_k, expected in ((1, 3.0), (2, 3.5)):
        add(
            "voronoi_loss",
            f"{top_k} of two cells",
            (near, true),
            np.array(expected),
            Tolerance(4, "ulp"),
            "by hand",
            options={"top_k": top_k},
        )
    # Powers 4, 2, 4, 2 in the cell of two: 0.5^4 + 2 (0.25^2 + 0.5^4) + 1.
    add(
        "voronoi_loss", "over-specified", (near, true), np.array(1 / 16 + 2 * (1 / 16 + 1 / 16) + 1), Tolerance(4, "ulp"),
        "by hand", options={"top_k": 1, "over_specified": True},
    )  # fmt: skip
    cells = [np.array([0, 2]), np.array([1]), np.array([3, 4, 5]), np.array([], int)]
    for top_k, expected in ((1, 3), (2, 5), (4, 6)):
        add("required_selection", f"{top_k} of four cells", (cells, top_k), np.array(expected), Tolerance(), "by hand")
    return found
