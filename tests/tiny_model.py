"""A BERT directory of a few kilobytes with random weights, for tests of loading and of the command line."""

from __future__ import annotations

import json

import numpy as np

WORDS = [
    "a",
    "the",
    "cat",
    "dog",
    "sat",
    "mat",
    "on",
    "run",
    "fast",
    "slow",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "hello",
    "world",
    "gradient",
    "norm",
    "soft",
    "max",
    "river",
    "boat",
    "sun",
    "moon",
    "tree",
    "house",
    "is",
    "was",
    "not",
    "and",
    "or",
    "of",
    "to",
    "in",
    "it",
    "that",
    "this",
    "with",
    "for",
    "as",
    "by",
    "at",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PUNCTUATION = list(".,!?:;#-()")
LETTERS = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
VOCABULARY = SPECIAL + PUNCTUATION + LETTERS + [word for word in WORDS if word != "a"]

CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY),
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def tensors(config, seed=0, prefix=""):
    rng = np.random.default_rng(seed)
    size, inner = config["hidden_size"], config["intermediate_size"]

    def weight(*shape):
        return rng.standard_normal(shape).astype(np.float32) / np.float32(2)

    found = {
        "embeddings.word_embeddings.weight": weight(config["vocab_size"], size),
        "embeddings.position_embeddings.weight": weight(config["max_position_embeddings"], size),
        "embeddings.token_type_embeddings.weight": weight(config["type_vocab_size"], size),
        "embeddings.LayerNorm.weight": 1 + weight(size) / 4,
        "embeddings.LayerNorm.bias": weight(size),
    }
    for number in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{number}"
        for part, rows, columns in (
            ("attention.self.query", size, size),
            ("attention.self.key", size, size),
            ("attention.self.value", size, size),
            ("attention.output.dense", size, size),
            ("intermediate.dense", inner, size),
            ("output.dense", size, inner),
        ):
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = weight(rows, columns), weight(rows)
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            found[f"{name}.{part}.weight"], found[f"{name}.{part}.bias"] = 1 + weight(size) / 4, weight(size)
    return {prefix + name: array for name, array in found.items()}


def tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    made = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]", max_input_chars_per_word=50)
    )
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As in published files, which ask for padding and a cut that an encoder of packed texts must not apply.
    made.enable_padding(length=12)
    made.enable_truncation(6)
    return made


def write_model(directory, *, config=None, arrays=None, max_tokens=32, prefix="", files=None):
    """Write a model directory; ``config`` entries and whole ``files`` (name: text) override the defaults."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    whole = CONFIG | (config or {})
    (directory / "config.json").write_text(json.dumps(whole))
    save_file(tensors(whole, prefix=prefix) if arrays is None else arrays, directory / "model.safetensors")
    tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))
    for name, text in (files or {}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory
