from collections.abc import Callable

import numpy as np

from refnorm._typing import AnyArray, Array, F, IntArray, Pullback
from refnorm.quantizers import SulqParams

FEW: int

def steps_of(level_of: Callable[[AnyArray], AnyArray], count: int, dtype: np.dtype[F]) -> Array[F] | None: ...
def log_sqrt2_quantize(
    a: Array[F], scale: Array[F] | float, *, bits: int
) -> tuple[Array[np.uint8], Array[np.bool_]]: ...
def log_sqrt2_dequantize(
    q: IntArray, zero_mask: Array[np.bool_], scale: Array[F] | float, *, out: Array[F] | None = None
) -> Array[F]: ...
def log2_reparam_dequantize(
    q: IntArray, zero_mask: Array[np.bool_], scale: Array[F] | float, *, out: Array[F] | None = None
) -> Array[F]: ...
def log_sqrt2_fake_quantize(
    a: Array[F], scale: Array[F] | float, *, bits: int, out: Array[F] | None = None
) -> Array[F]: ...
def log_sqrt2_fake_quantize_vjp(
    a: Array[F], scale: Array[F] | float, *, bits: int, unit_gradient: bool = False
) -> tuple[Array[F], Pullback]: ...
def log2_fake_quantize(a: Array[F], scale: Array[F] | float, *, bits: int, out: Array[F] | None = None) -> Array[F]: ...
def log2_fake_quantize_vjp(a: Array[F], scale: Array[F] | float, *, bits: int) -> tuple[Array[F], Pullback]: ...
def sulq_encode(a: Array[F], params: SulqParams) -> IntArray: ...
def sulq_decode(
    q: IntArray, params: SulqParams, *, integer_exponent: bool = True, out: Array[np.float64] | None = None
) -> Array[np.float64]: ...
def sulq_fake_quantize(
    a: Array[F],
    shift: Array[F] | float,
    params: SulqParams,
    *,
    integer_exponent: bool = True,
    clamp: bool = False,
    out: Array[F] | None = None,
) -> Array[F]: ...
def sulq_fake_quantize_vjp(
    a: Array[F],
    shift: Array[F] | float,
    params: SulqParams,
    *,
    integer_exponent: bool = True,
    clamp: bool = False,
) -> tuple[Array[F], Pullback]: ...
