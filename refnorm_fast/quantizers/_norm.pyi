from refnorm._typing import Array, F, IntArray

def layer_norm_absmax_quantize(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5
) -> tuple[IntArray, Array[F]]: ...
def layer_norm_quantize(
    x: Array[F], gain: Array[F], bias: Array[F], scale: float, zero_point: int, *, eps: float = 1e-5, lowest: int = -128
) -> IntArray: ...
def rms_norm_absmax_quantize(
    x: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> tuple[IntArray, Array[F]]: ...
def rms_norm_quantize(
    x: Array[F],
    scale: float,
    zero_point: int,
    gain: Array[F] | None = None,
    bias: Array[F] | None = None,
    *,
    eps: float = 1e-5,
    lowest: int = -128,
) -> IntArray: ...
