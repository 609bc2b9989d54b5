import numpy as np

from refnorm._typing import AnyArray, Array, F, IntArray, Pullback
from refnorm.quantizers import ShiftQuantized

DRAWN: int

def shift_quantize(
    g: Array[F],
    *,
    bits: int = 4,
    n_groups: int = 4,
    axis: int = -1,
    rounding: str = "stochastic",
    rng: np.random.Generator | None = None,
) -> ShiftQuantized: ...
def shift_matmul(
    g: ShiftQuantized, weight: IntArray, weight_scale: AnyArray | float, *, out: AnyArray | None = None
) -> AnyArray: ...
def shift_linear(x: Array[F], weight: Array[F], *, forward_bits: int = 4, out: Array[F] | None = None) -> Array[F]: ...
def shift_linear_vjp(
    x: Array[F],
    weight: Array[F],
    *,
    forward_bits: int = 4,
    grad_bits: int | None = 4,
    n_groups: int = 4,
    rng: np.random.Generator | None = None,
) -> tuple[Array[F], Pullback]: ...
