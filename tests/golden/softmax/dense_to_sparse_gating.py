"""Truth for temperature gates: SciPy, PyTorch autograd in float64, mpmath with 50 digits, hand calculations."""

import mpmath
import numpy as np
import scipy
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.softmax import TemperatureMoE

mpmath.mp.dps = 50
TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
SCIPY = f"scipy {scipy.__version__}"
ACTIVATIONS = {
    "identity": lambda s: s,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
}


def torch_log_gate(x, gate_weight, gate_bias, temperature, activation, bias):
    scores = x @ gate_weight.T
    phi = ACTIVATIONS[activation]
    raised = phi(scores + gate_bias) if bias == "inside" else phi(scores) + gate_bias
    return torch.log_softmax(raised / temperature, dim=1)


def cases():
    rng = np.random.default_rng(2401)
    found = []

    def add(function, name, args, expected, tolerance, source, **more):
        found.append(
            GoldenCase(
                function=f"softmax.{function}", name=name, args=args, expected=expected, tolerance=tolerance,
                source=source, **more,
            )
        )  # fmt: skip

    one = (np.ones((1, 1)), np.array([[1.0], [0.0]]), np.zeros(2))
    first = float(1 / (1 + mpmath.exp(-2)))
    add(
        "temperature_gate",
        "linear, logits 2 and 0",
        (*one, 0.5),
        np.array([[first, float(1 / (1 + mpmath.exp(2)))]]),
        Tolerance(2, "ulp"),
        "mpmath, 50 digits",
    )
    scaled = (one[0], 3 * one[1], one[2], 1.5)
    add(
        "temperature_gate",
        "linear, all times 3",
        scaled,
        np.array([[first, float(1 / (1 + mpmath.exp(2)))]]),
        Tolerance(2, "ulp"),
        "mpmath, 50 digits",
    )
    gap = 2 * (1 / (1 + mpmath.exp(-1)) - mpmath.mpf("0.5"))
    expected = np.array([[float(1 / (1 + mpmath.exp(-gap))), float(1 / (1 + mpmath.exp(gap)))]])
    add(
        "temperature_gate",
        "sigmoid",
        (*one, 0.5),
        expected,
        Tolerance(4, "ulp"),
        "mpmath, 50 digits",
        options={"activation": "sigmoid"},
    )

    n, k, d = 5, 3, 2
    x, y = rng.standard_normal((n, d)), 2 * rng.standard_normal(n)
    gate_weight, gate_bias, weight, bias = (rng.standard_normal(s) for s in ((k, d), (k,), (k, d), (k,)))
    variance = np.exp(0.3 * rng.standard_normal(k))
    g, dnll = rng.standard_normal((n, k)), rng.standard_normal(n)
    params = TemperatureMoE(gate_weight, gate_bias, 0.7, weight, bias, variance)
    for activation in ACTIVATIONS:
        for place in ("outside", "inside"):
            options, name = {"activation": activation, "bias": place}, f"{activation}, bias {place}"
            leaves = [torch.tensor(v, requires_grad=True) for v in (x, gate_weight, gate_bias, np.array(0.7))]
            value = torch.exp(torch_log_gate(*leaves, activation, place))
            value.backward(torch.tensor(g))
            args = (x, gate_weight, gate_bias, 0.7)
            add(
                "temperature_gate",
                name,
                args,
                value.detach().numpy(),
                Tolerance(1e-14, "relative"),
                TORCH,
                options=options,
            )
            add(
                "temperature_gate", name, args, tuple(v.grad.numpy() for v in leaves),
                Tolerance(1e-12, "relative_of_largest"), TORCH, options=options, cotangent=g,
            )  # fmt: skip
            leaves = [
                torch.tensor(v, requires_grad=True)
                for v in (x, y, gate_weight, gate_bias, np.array(0.7), weight, bias, variance)
            ]
            tx, ty, tgw, tgb, tt, tw, tb, tv = leaves
            normal = torch.distributions.Normal(tx @ tw.T + tb, torch.sqrt(tv)).log_prob(ty[:, None])
            nll = -torch.logsumexp(torch_log_gate(tx, tgw, tgb, tt, activation, place) + normal, dim=1)
            nll.backward(torch.tensor(dnll))
            grads = [v.grad.numpy() for v in leaves]
            add(
                "moe_nll",
                name,
                (x, y, params),
                nll.detach().numpy(),
                Tolerance(1e-13, "relative"),
                TORCH,
                options=options,
            )
            add(
                "moe_nll", name, (x, y, params), (grads[0], grads[1], TemperatureMoE(*grads[2:])),
                Tolerance(1e-12, "relative_of_largest"), TORCH, options=options, cotangent=dnll,
            )  # fmt: skip

    log_gate = scipy.special.log_softmax((x @ gate_weight.T + gate_bias) / 0.7, axis=1)
    normal = scipy.stats.norm.logpdf(y[:, None] + 40, x @ weight.T + bias, np.sqrt(variance))
    add(
        "moe_nll",
        "points far out",
        (x, y + 40, params),
        -scipy.special.logsumexp(log_gate + normal, axis=1),
        Tolerance(1e-13, "relative"),
        SCIPY,
    )

    last = np.array([1.0, 1.0, 0.0])
    zeroed = TemperatureMoE(gate_weight * last[:, None], gate_bias * last, 0.7, weight, bias, variance)
    for activation in ("identity", "sigmoid"):
        rows = []
        for i in range(n):
            fields = (zeroed.gate_weight, zeroed.gate_bias, np.array(0.7), weight, bias, variance)
            tgw, tgb, tt, tw, tb, tv = leaves = [torch.tensor(v, requires_grad=True) for v in fields]
            tx, ty = torch.tensor(x[i : i + 1]), torch.tensor(y[i : i + 1])
            normal = torch.distributions.Normal(tx @ tw.T + tb, torch.sqrt(tv)).log_prob(ty[:, None])
            torch.logsumexp(torch_log_gate(tx, tgw, tgb, tt, activation, "outside") + normal, dim=1).sum().backward()
            grads = [v.grad.numpy() for v in leaves]
            rows.append(
                np.concatenate([grads[0][:-1].ravel(), grads[1][:-1], [grads[2]], *(v.ravel() for v in grads[3:])])
            )
        information = np.mean([np.outer(row, row) for row in rows], axis=0)
        add(
            "fisher_information", activation, (zeroed, x, y), information, Tolerance(1e-12, "relative_of_largest"), TORCH,
            options={"activation": activation},
        )  # fmt: skip
    add(
        "null_direction", "gate and temperature, then zeros", (zeroed,),
        np.concatenate([gate_weight[:2].ravel(), gate_bias[:2], [0.7], np.zeros(12)]), Tolerance(), "by hand",
    )  # fmt: skip
    for t, expected in ((0.0, 4.0), (5.0, 1.0), (7.5, 0.5), (10.0, 0.25)):
        add(
            "temperature_schedule", f"at {t:g} of 10", (t,), np.array(expected), Tolerance(2, "ulp"), "by hand",
            options={"total": 10.0, "start": 4.0, "end": 0.25},
        )  # fmt: skip
    return found
