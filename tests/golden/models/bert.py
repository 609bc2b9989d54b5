"""Truth for the sentence encoder: the same graph in PyTorch's functions, float64, one text at a time."""

import itertools

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.models import bert_init
from refnorm.tree import tree_map

IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])
OFFSETS = np.array([0, 5, 6, 11])
ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
}


def encode(params, heads, eps, activation, first_position):
    def one(ids):
        ids, positions = torch.tensor(ids), slice(first_position, first_position + len(ids))
        x = params["token_table"][ids] + params["position_table"][positions] + params["type_table"][0]
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], params["gain"], params["bias"], eps)
        for layer in params["layers"]:

            def norm(x, name, layer=layer):
                gain, bias = layer[f"{name}_gain"], layer[f"{name}_norm_bias"]
                return torch.nn.functional.layer_norm(x, x.shape[-1:], gain, bias, eps)

            query, key, value = (
                part.view(len(ids), heads, -1).transpose(0, 1)
                for part in (x @ layer["qkv_weight"] + layer["qkv_bias"]).chunk(3, dim=-1)
            )
            context = torch.nn.functional.scaled_dot_product_attention(query, key, value)
            context = context.transpose(0, 1).reshape(len(ids), -1)
            x = norm(x + context @ layer["attention_weight"] + layer["attention_bias"], "attention")
            inner = ACTIVATIONS[activation](x @ layer["inner_weight"] + layer["inner_bias"])
            x = norm(x + inner @ layer["outer_weight"] + layer["outer_bias"], "outer")
        return x

    return [one(IDS[a:b]) for a, b in itertools.pairwise(OFFSETS)]


SETTINGS = (
    ("bert_embed", np.float64, "gelu", 0, 2),
    ("bert_encode", np.float64, "relu", 2, 1),
    ("bert_embed", np.float32, "gelu_tanh", 0, 1),
)


def cases():
    rng = np.random.default_rng(20181011)
    found = []
    for function, dtype, activation, first_position, layers in SETTINGS:
        params = bert_init(rng, vocabulary=10, hidden=4, inner=6, layers=layers, positions=8)
        # Larger than at initialization, so that every part of the network matters.
        params = tree_map(lambda leaf: (leaf + 0.4 * rng.standard_normal(leaf.shape)).astype(dtype), params)  # noqa: B023
        tensors = tree_map(lambda leaf: torch.tensor(leaf.astype(np.float64), requires_grad=True), params)
        options = {"heads": 2, "eps": 1e-5, "activation": activation, "first_position": first_position}
        texts = encode(tensors, **options)
        if function == "bert_encode":
            value = torch.cat(texts)
        else:
            value = torch.nn.functional.normalize(torch.stack([text.mean(dim=0) for text in texts]))
        cotangent = rng.standard_normal(value.shape).astype(dtype)
        value.backward(torch.tensor(cotangent.astype(np.float64)))
        common = {
            "function": f"models.{function}",
            "name": f"{np.dtype(dtype)}, {activation}, positions from {first_position}",
            "args": (params, IDS, OFFSETS),
            "options": options,
            "tolerance": Tolerance(1e-12 if dtype is np.float64 else 2e-5, "relative_of_largest"),
            "source": f"torch {torch.__version__.split('+')[0]}, float64",
        }
        found.append(GoldenCase(**common, expected=value.detach().numpy()))
        found.append(
            GoldenCase(**common, cotangent=cotangent, expected=(tree_map(lambda leaf: leaf.grad.numpy(), tensors),))
        )
    return found
