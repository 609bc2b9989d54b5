"""Truth for the pre-norm transformer: its equations in PyTorch, float64, differentiated by autograd.

Converted parameters are made here as well, from the matrices of the paper: centring is a product with
I - 1/d and decompression one with the identity above a row of -1.
"""

import dataclasses

import numpy as np
import torch

from refnorm.conformance import GoldenCase, Tolerance
from refnorm.norms import PreNormParams, init_pre_norm
from refnorm.tree import tree_leaves, tree_map

SOURCE = f"torch {torch.__version__.split('+')[0]}, float64, equations written out and differentiated by autograd"
EPS = 1e-3
READERS = ("query", "value", "hidden")
WRITERS = ("output", "result")


def forward(p, tokens, kind):
    def norm(x, gain, bias):
        if kind == "ln":
            return torch.nn.functional.layer_norm(x, x.shape[-1:], gain, bias, eps=EPS)
        if kind == "crms":
            full = torch.cat((x, -x.sum(-1, keepdim=True)), dim=-1)
            return torch.nn.functional.rms_norm(full, full.shape[-1:], eps=EPS)[..., :-1]
        y = torch.nn.functional.rms_norm(x, x.shape[-1:], gain, eps=EPS)
        return y if bias is None else y + bias

    x = p.embedding[torch.tensor(tokens)] + p.position[: tokens.shape[1]]
    for b in p.blocks:
        n = norm(x, b.attention_gain, b.attention_bias)
        q, k, v = (n[:, None] @ weight for weight in (b.query_weight, b.key_weight, b.value_weight))
        q, v = q + b.query_bias[:, None], v + b.value_bias[:, None]
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + (mixed @ b.output_weight).sum(dim=1) + b.output_bias
        n = norm(x, b.network_gain, b.network_bias)
        x = x + torch.relu(n @ b.hidden_weight + b.hidden_bias) @ b.result_weight + b.result_bias
    return norm(x, p.final_gain, p.final_bias) @ p.head_weight + p.head_bias


def converted(p, compressed):
    d = p.embedding.shape[-1]
    centre = np.eye(d) - 1 / d
    write = centre[:, :-1] if compressed else centre
    read = np.vstack((np.eye(d - 1), -np.ones(d - 1))).T if compressed else np.eye(d)

    def reading(gain, shift, weight, bias):
        return read @ (gain[:, None] * weight), shift @ weight + bias

    blocks = []
    for b in p.blocks:
        values = dict.fromkeys(("attention_gain", "attention_bias", "network_gain", "network_bias"))
        for name in READERS:
            gain, shift = (b.network_gain, b.network_bias) if name == "hidden" else (b.attention_gain, b.attention_bias)
            values[f"{name}_weight"], values[f"{name}_bias"] = reading(
                gain, shift, getattr(b, f"{name}_weight"), getattr(b, f"{name}_bias")
            )
        values["key_weight"] = read @ (b.attention_gain[:, None] * b.key_weight)
        for name in WRITERS:
            for part in ("weight", "bias"):
                values[f"{name}_{part}"] = getattr(b, f"{name}_{part}") @ write
        blocks.append(dataclasses.replace(b, **values))
    head = reading(p.final_gain, p.final_bias, p.head_weight, p.head_bias)
    return PreNormParams(p.embedding @ write, p.position @ write, tuple(blocks), None, None, *head)


def flat(tree):
    """The arrays of a record in the order of its fields, as golden files hold results."""
    return tuple(leaf for _, leaf in tree_leaves(tree) if leaf is not None)


def cases():
    rng = np.random.default_rng(20230514)
    params = init_pre_norm(rng, 5, 4, 4, 2, 1, 3)
    tokens = np.array([[1, 4, 4], [0, 2, 3]])
    rms, crms = converted(params, compressed=False), converted(params, compressed=True)
    found = [
        GoldenCase(
            function=f"norms.{function}",
            name="one block",
            args=(params,),
            expected=flat(expected),
            tolerance=Tolerance(1e-13, "relative_of_largest"),
            source="the paper's matrices, multiplied out",
        )
        for function, expected in (("to_pre_rms", rms), ("to_pre_crms", crms))
    ]
    # The logits of all three are the ones of layer norm, whatever the conversion did.
    truth = forward(tree_map(torch.tensor, params), tokens, "ln").numpy()
    for kind, p in (("ln", params), ("rms", rms), ("crms", crms)):
        tensors = tree_map(lambda leaf: None if leaf is None else torch.tensor(leaf, requires_grad=True), p)
        g = rng.standard_normal(truth.shape)
        forward(tensors, tokens, kind).backward(torch.tensor(g))
        gradient = tree_map(lambda tensor: None if tensor is None else tensor.grad.numpy(), tensors)
        for dtype, limit in ((np.float64, 1e-12), (np.float32, 2e-5)):
            found.append(
                GoldenCase(
                    function="norms.pre_norm_forward",
                    name=f"{np.dtype(dtype).name}, {kind}",
                    args=(tree_map(lambda leaf, dtype=dtype: None if leaf is None else leaf.astype(dtype), p), tokens),
                    options={"kind": kind, "eps": EPS},
                    expected=truth,
                    tolerance=Tolerance(limit, "relative_of_largest"),
                    source=f"{SOURCE}, with layer norm",
                )
            )
        found.append(
            GoldenCase(
                function="norms.pre_norm_forward",
                name=f"float64, {kind}",
                args=(p, tokens),
                options={"kind": kind, "eps": EPS},
                cotangent=g,
                expected=flat(gradient),
                tolerance=Tolerance(1e-11, "relative_of_largest"),
                source=SOURCE,
            )
        )
    return found
