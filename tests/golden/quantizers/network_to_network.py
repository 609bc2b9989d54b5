"""Truth for N2N learning: torch's LSTM, softmax and autograd in float64, exact fractions, hand calculations."""

from fractions import Fraction

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.quantizers import LSTMParams, RemovalParams, ShrinkParams

TORCH = f"torch {torch.__version__.split('+')[0]}, float64"
CLOSE = Tolerance(1e-12, "relative_of_largest")


def cases():
    rng = np.random.default_rng(20180430)
    return [*rewards(), *sizes(), *recurrent(rng), *bidirectional(rng), *removal(rng), *shrinkage(rng)]


def rewards():
    found = []
    for name, args, options, expected in (
        ("a tenth of the size", (0.92, 100, 0.95, 1000), {}, Fraction(99, 100) * Fraction(92, 95)),
        ("as large as the teacher", (0.92, 1000, 0.95, 1000), {}, Fraction(0)),
        ("nothing left", (0.5, 0, 0.8, 7), {}, Fraction(5, 8)),
        # C = 1/2, C (2 - C) = 3/4 and 2/3 of the accuracy: 1/2.
        ("broken limit, epoch 5", (0.6, 500, 0.9, 1000), {"size_limit": 400, "epoch": 5},
         Fraction(16, 81) - 1 + Fraction(16, 81) / 2),
        ("broken limit, epoch 0", (0.6, 500, 0.9, 1000), {"accuracy_limit": 0.7, "epoch": 0}, Fraction(1, 2)),
        ("broken limit, epoch 40", (0.6, 500, 0.9, 1000), {"accuracy_limit": 0.7, "epoch": 40}, Fraction(-1)),
        ("limits met", (0.6, 500, 0.9, 1000), {"size_limit": 500, "accuracy_limit": 0.6, "epoch": 5}, Fraction(1, 2)),
    ):  # fmt: skip
        found.append(
            GoldenCase(
                function="quantizers.compression_reward", name=name, args=args, options=options,
                expected=np.array(float(expected)), tolerance=Tolerance(1e-14, "relative"),
                source="by hand, exact fractions",
            )
        )  # fmt: skip
    for name, earlier, expected in (
        ("first iteration", [], 0.0), ("second", [0.4], 0.2), ("third", [0.4, 0.6], 1 / 3),
        ("fourth", [0.4, 0.6, 0.5], 0.375),
    ):  # fmt: skip
        found.append(
            GoldenCase(
                function="quantizers.reward_baseline", name=name, args=(np.array(earlier),),
                expected=np.array(expected), tolerance=Tolerance(2, "ulp"), source="by hand",
            )
        )  # fmt: skip
    return found


def sizes():
    def case(function, name, args, expected, **options):
        return GoldenCase(
            function=f"quantizers.{function}", name=name, args=args, options=options, expected=expected,
            source="by hand",
        )  # fmt: skip

    layers = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in ((64, 128), (128, 128), (128, 10))))
    return [
        GoldenCase(
            function="quantizers.count_params", name="three layers", args=((64, 128, 128, 10),),
            expected=np.array(sum(p.numel() for p in layers.parameters())), source=f"{TORCH}: parameters counted",
        ),
        case("apply_removal", "the middle one of three", ((64, 8, 9, 7, 10), np.array([1, 0, 1])), (64, 8, 7, 10)),
        case("apply_shrink", "truncated, and held at 10", ((64, 64, 16, 10), np.array([0.7, 0.25])), (64, 44, 10, 10)),
        case("apply_shrink", "smallest width 4", ((64, 16, 3, 10), np.array([0.25, 0.5])), (64, 4, 3, 10), min_width=4),
        case("encode_layers", "two layers", ((4, 8, 2),), np.array([[1, 0.5, 1, 0.5], [1, 1, 0.25, 1]])),
    ]  # fmt: skip


def gates(array, units):
    """Exchange the last two gates: i, f, o, g here, i, f, g, o in torch. It is its own inverse."""
    i, f, o, g = np.split(array, 4, axis=-1)
    assert i.shape[-1] == units
    return np.concatenate([i, f, g, o], axis=-1)


def random_lstm(rng, features, units):
    shapes = ((features, 4 * units), (units, 4 * units), (4 * units,))
    return [rng.standard_normal(shape) / np.sqrt(units) for shape in shapes]


def load(module, arrays, units, suffix=""):
    """Put our arrays into a torch LSTM; return its tensors in our order."""
    weights = [getattr(module, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih")]
    with torch.no_grad():
        for weight, array in zip(weights, arrays, strict=True):
            weight.copy_(torch.tensor(gates(array, units).T))
        getattr(module, f"bias_hh_l0{suffix}").zero_()
    return weights


def grads(weights, units):
    return [gates(weight.grad.numpy().T, units) for weight in weights]


def recurrent(rng):
    found = []
    for name, shape, units in (("one sequence", (7, 3), 4), ("a batch", (4, 3, 5), 2), ("one step", (1, 2), 3)):
        x, arrays = rng.standard_normal(shape), random_lstm(rng, shape[-1], units)
        module = torch.nn.LSTM(shape[-1], units, dtype=torch.float64)
        weights, tensor = load(module, arrays, units), torch.tensor(x, requires_grad=True)
        value, _ = module(tensor)
        cotangent = rng.standard_normal(tuple(value.shape))
        value.backward(torch.tensor(cotangent))
        common = {
            "function": "quantizers.lstm", "name": name, "args": (x, *arrays), "tolerance": CLOSE,
            "source": f"{TORCH}: nn.LSTM",
        }  # fmt: skip
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        expected = (tensor.grad.numpy(), *grads(weights, units))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=expected))
    return found


def bidirectional(rng):
    x, there, back = rng.standard_normal((6, 3)), random_lstm(rng, 3, 4), random_lstm(rng, 3, 4)
    module = torch.nn.LSTM(3, 4, bidirectional=True, dtype=torch.float64)
    weights = load(module, there, 4) + load(module, back, 4, "_reverse")
    tensor = torch.tensor(x, requires_grad=True)
    value, _ = module(tensor)
    cotangent = rng.standard_normal(tuple(value.shape))
    value.backward(torch.tensor(cotangent))
    common = {
        "function": "quantizers.bilstm", "name": "six steps", "args": (x, LSTMParams(*there), LSTMParams(*back)),
        "tolerance": CLOSE, "source": f"{TORCH}: nn.LSTM",
    }  # fmt: skip
    expected = (tensor.grad.numpy(), *grads(weights[:3], 4), *grads(weights[3:], 4))
    return [
        GoldenCase(**common, expected=value.detach().numpy()),
        GoldenCase(**common, cotangent=cotangent, expected=expected),
    ]


def removal(rng):
    x, there, back = rng.standard_normal((5, 4)), random_lstm(rng, 4, 3), random_lstm(rng, 4, 3)
    weight, bias, actions = rng.standard_normal((6, 2)), rng.standard_normal(2), rng.integers(0, 2, (4, 5))
    found = []
    for name, free in (("all layers", None), ("three layers free", np.array([False, True, True, True, False]))):
        module = torch.nn.LSTM(4, 3, bidirectional=True, dtype=torch.float64)
        weights = load(module, there, 3) + load(module, back, 3, "_reverse")
        tensor, head_weight, head_bias = (torch.tensor(a, requires_grad=True) for a in (x, weight, bias))
        policy = torch.distributions.Categorical(logits=module(tensor)[0] @ head_weight + head_bias)
        counted = torch.ones(5, dtype=torch.float64) if free is None else torch.tensor(free, dtype=torch.float64)
        value = (policy.log_prob(torch.tensor(actions)) * counted).sum(dim=1)
        cotangent = rng.standard_normal(4)
        value.backward(torch.tensor(cotangent))
        common = {
            "function": "quantizers.removal_log_prob", "name": name, "tolerance": CLOSE, "options": {"free": free},
            "args": (RemovalParams(LSTMParams(*there), LSTMParams(*back), weight, bias), x, actions),
            "source": f"{TORCH}: nn.LSTM and Categorical",
        }  # fmt: skip
        expected = (
            *grads(weights[:3], 3), *grads(weights[3:], 3),
            head_weight.grad.numpy(), head_bias.grad.numpy(), tensor.grad.numpy(),
        )  # fmt: skip
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=expected))
    return found


def shrinkage(rng):
    factors, found = (0.25, 0.5, 0.5, 0.75, 1.0), []
    for name, decided in (("one entry", (2,)), ("three entries, in their own order", (3, 1, 2))):
        x, arrays = rng.standard_normal((3, 4)), random_lstm(rng, 4, 3)
        weight, bias = rng.standard_normal((3, 5)), rng.standard_normal(5)
        actions = rng.integers(0, 5, (4, 3, len(decided)))
        cell = torch.nn.LSTM(4, 3, dtype=torch.float64)
        weights = load(cell, arrays, 3)
        tensor, head_weight, head_bias = (torch.tensor(a, requires_grad=True) for a in (x, weight, bias))
        values = []
        for rollout in actions:
            state, total = None, torch.zeros((), dtype=torch.float64)
            for t, layer in enumerate(rollout):
                entries = list(tensor[t])
                for entry, action in zip(decided, layer, strict=True):
                    h, state = cell(torch.stack(entries)[None], state)
                    total = total + torch.log_softmax(h[0] @ head_weight + head_bias, dim=0)[int(action)]
                    entries[entry] = entries[entry] * factors[action]
            values.append(total)
        value, cotangent = torch.stack(values), rng.standard_normal(4)
        value.backward(torch.tensor(cotangent))
        common = {
            "function": "quantizers.shrink_log_prob", "name": name, "tolerance": CLOSE,
            "args": (ShrinkParams(LSTMParams(*arrays), weight, bias), x, actions),
            "options": {"factors": factors, "decided": decided}, "source": f"{TORCH}: nn.LSTM step by step",
        }  # fmt: skip
        expected = (*grads(weights, 3), head_weight.grad.numpy(), head_bias.grad.numpy(), tensor.grad.numpy())
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(GoldenCase(**common, cotangent=cotangent, expected=expected))
    return found
