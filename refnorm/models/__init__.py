"""Whole models, written once against a namespace of operations."""

import importlib
from typing import TYPE_CHECKING, Any

from refnorm.models import reference_ops
from refnorm.models._bert import bert_embed, bert_embed_vjp, bert_encode, bert_encode_vjp, bert_init
from refnorm.models._checkpoint import EncoderConfig, ModelError, default_directory
from refnorm.models._encoder import Encoder, load_encoder
from refnorm.models._ops import BACKENDS, Ops, ops_named

if TYPE_CHECKING:
    from refnorm.models._quantization import QUANTIZATIONS, matrix_bytes, quantize_encoder

__all__ = [
    "BACKENDS",
    "QUANTIZATIONS",
    "Encoder",
    "EncoderConfig",
    "ModelError",
    "Ops",
    "bert_embed",
    "bert_embed_vjp",
    "bert_encode",
    "bert_encode_vjp",
    "bert_init",
    "default_directory",
    "load_encoder",
    "matrix_bytes",
    "ops_named",
    "quantize_encoder",
    "reference_ops",
]


def __getattr__(name: str) -> Any:
    # The quantizers' room is large; it is loaded when a model is quantized.
    if name in ("QUANTIZATIONS", "matrix_bytes", "quantize_encoder"):
        return getattr(importlib.import_module("refnorm.models._quantization"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
