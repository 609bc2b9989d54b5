"""The encoder's operations as kernels: what :mod:`refnorm.models` runs on with ``backend="fast"``."""

from refnorm_fast.models._core import EncoderOps, Int8EncoderOps, ops

__all__ = ["EncoderOps", "Int8EncoderOps", "ops"]
