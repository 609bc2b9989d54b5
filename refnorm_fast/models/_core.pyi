from typing import Any

from refnorm._typing import AnyArray, IntArray

ACTIVATIONS: tuple[str, ...]
SMALLEST_LENGTH: float
BACKENDS: dict[str, type[EncoderOps]]

class Linear:
    depth: int
    width: int
    def __init__(self, weight: AnyArray, bias: AnyArray | None) -> None: ...

class Int8Linear:
    depth: int
    width: int
    nbytes: int
    def __init__(self, weight: AnyArray, bias: AnyArray | None) -> None: ...

class EncoderOps:
    name: str
    ACTIVATIONS: tuple[str, ...]
    def prepare_linear(self, weight: AnyArray, bias: AnyArray | None) -> Any: ...
    def linear(
        self, x: AnyArray, handle: Any, *, activation: str | None = None, out: AnyArray | None = None
    ) -> AnyArray: ...
    def linear_residual_norm(
        self,
        x: AnyArray,
        handle: Any,
        residual: AnyArray,
        gain: AnyArray,
        bias: AnyArray,
        *,
        eps: float,
        out: AnyArray | None = None,
    ) -> AnyArray: ...
    def feed_forward(
        self,
        x: AnyArray,
        first: Any,
        second: Any,
        gain: AnyArray,
        bias: AnyArray,
        *,
        eps: float,
        activation: str | None = "gelu",
        out: AnyArray | None = None,
    ) -> AnyArray: ...
    def embed(
        self,
        token_ids: IntArray,
        position_ids: IntArray,
        type_ids: IntArray,
        token_table: AnyArray,
        position_table: AnyArray,
        type_table: AnyArray,
        gain: AnyArray,
        bias: AnyArray,
        *,
        eps: float,
    ) -> AnyArray: ...
    def attention(
        self,
        query: AnyArray,
        key: AnyArray,
        value: AnyArray,
        offsets: IntArray,
        heads: int,
        *,
        scale: float | None = None,
        out: AnyArray | None = None,
    ) -> AnyArray: ...
    def mean_pool_normalize(self, x: AnyArray, offsets: IntArray) -> AnyArray: ...

class Int8EncoderOps(EncoderOps):
    threshold: float
    def __init__(self, *, threshold: float = 6.0) -> None: ...

def ops(backend: str = "fast") -> EncoderOps: ...
