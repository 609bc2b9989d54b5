"""Truth for the recurrent cells: the paper's equations in PyTorch, float64, differentiated by autograd."""

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import init_layer_norm_gru, init_layer_norm_lstm
from refnorm.tree import tree_leaves, tree_map

SOURCE = f"torch {torch.__version__.split('+')[0]}, float64, equations written out and differentiated by autograd"
EPS = 1e-3


def norm(total, gain, bias):
    return torch.nn.functional.layer_norm(total, total.shape[-1:], gain, bias, eps=EPS)


def by_record(total, record):
    return norm(total, record.gain, record.bias)


def rnn(x, h, input_weight, recurrent_weight, gain, bias):
    states = []
    for x_t in x:
        h = torch.tanh(norm(h @ recurrent_weight + x_t @ input_weight, gain, bias))
        states.append(h)
    return torch.stack(states)


def lstm(x, h, c, p, double_bias):
    states, cells = [], []
    for x_t in x:
        inside = x_t @ p.input_weight + (p.bias if double_bias else 0)
        gates = by_record(h @ p.recurrent_weight, p.recurrent_norm) + by_record(inside, p.input_norm) + p.bias
        i, f, o, g = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(by_record(c, p.cell_norm))
        states.append(h)
        cells.append(c)
    return torch.stack(states), torch.stack(cells)


def gru(x, h, p):
    states = []
    for x_t in x:
        gates = by_record(h @ p.gate_recurrent_weight, p.gate_recurrent_norm) + by_record(
            x_t @ p.gate_input_weight + p.gate_bias, p.gate_input_norm
        )
        r, u = torch.sigmoid(gates).chunk(2, dim=-1)
        candidate = torch.tanh(
            r * by_record(h @ p.recurrent_weight, p.recurrent_norm)
            + by_record(x_t @ p.input_weight + p.bias, p.input_norm)
        )
        h = u * h + (1 - u) * candidate
        states.append(h)
    return torch.stack(states)


def cases():
    rng = np.random.default_rng(160706450)
    steps, batch, inputs, units = 3, 2, 3, 4
    x, h, c = (rng.standard_normal(s) for s in ((steps, batch, inputs), (batch, units), (batch, units)))
    weights = tuple(rng.standard_normal(s) for s in ((inputs, units), (units, units), units, units))

    def moved(params):
        return tree_map(lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape), params)

    runs = [
        ("layer_norm_rnn", rnn, (x, h, *weights), {}),
        *(
            (
                "layer_norm_lstm",
                lstm,
                (x, h, c, moved(init_layer_norm_lstm(rng, inputs, units))),
                {"double_bias": double},
            )
            for double in (False, True)
        ),
        ("layer_norm_gru", gru, (x, h, moved(init_layer_norm_gru(rng, inputs, units))), {}),
    ]
    found = []
    for function, truth, args, options in runs:
        # Numbers that float32 holds exactly, so that both dtypes have the same truth.
        args = tree_map(lambda leaf: leaf.astype(np.float32).astype(np.float64), args)
        tensors = tree_map(lambda leaf: torch.tensor(leaf, requires_grad=True), args)
        value = truth(*tensors, *options.values())
        several = isinstance(value, tuple)
        outputs = value if several else (value,)
        cotangents = tuple(rng.standard_normal(v.shape).astype(np.float32).astype(np.float64) for v in outputs)
        torch.autograd.backward(outputs, [torch.tensor(g) for g in cotangents])
        expected = tuple(v.detach().numpy() for v in outputs)
        # Golden files hold results as arrays in the order of a record's fields.
        gradients = tuple(tensor.grad.numpy() for _, tensor in tree_leaves(tensors))
        for dtype, value_limit, gradient_limit in ((np.float64, 1e-13, 1e-12), (np.float32, 2e-5, 1e-4)):

            def cast(tree, dtype=dtype):
                return tree_map(lambda leaf: leaf.astype(dtype), tree)

            common = {
                "function": f"norms.{function}",
                "name": ", ".join([np.dtype(dtype).name, *(f"{k} {v}" for k, v in options.items())]),
                "args": cast(args),
                "options": {"eps": EPS, **options},
                "source": SOURCE,
            }
            found.append(
                GoldenCase(
                    **common,
                    expected=expected if several else expected[0],
                    tolerance=Tolerance(value_limit, "relative_of_largest"),
                )
            )
            found.append(
                GoldenCase(
                    **common,
                    cotangent=cast(cotangents if several else cotangents[0]),
                    expected=gradients,
                    tolerance=Tolerance(gradient_limit, "relative_of_largest"),
                )
            )
    return found
