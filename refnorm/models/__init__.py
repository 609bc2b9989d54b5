"""Whole models, written once against a namespace of operations."""

from refnorm.models import reference_ops
from refnorm.models._bert import bert_embed, bert_embed_vjp, bert_encode, bert_encode_vjp, bert_init
from refnorm.models._checkpoint import EncoderConfig, ModelError, default_directory
from refnorm.models._encoder import Encoder, load_encoder
from refnorm.models._ops import BACKENDS, Ops, ops_named

__all__ = [
    "BACKENDS",
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
    "ops_named",
    "reference_ops",
]
