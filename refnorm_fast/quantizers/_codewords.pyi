from refnorm._typing import Array, F, IntArray

def additive_dequantize(
    codes: IntArray, codebooks: Array[F], scales: Array[F], *, out: Array[F] | None = None
) -> Array[F]: ...
