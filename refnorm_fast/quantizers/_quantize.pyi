from collections.abc import Sequence

import numpy as np

from refnorm._typing import AnyArray, Array, F, IntArray, Pullback

def affine_qparams(
    x: Array[F],
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    symmetric: bool = True,
    axis: int | Sequence[int] | None = None,
    method: str = "minmax",
    percentile: float = 0.999,
    n_grid: int = 100,
) -> tuple[Array[F], IntArray]: ...
def quantize(
    x: Array[F],
    scale: Array[F] | float,
    zero_point: IntArray | int,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    out: IntArray | None = None,
) -> IntArray: ...
def dequantize(
    q: IntArray, scale: Array[F] | float, zero_point: IntArray | int, *, out: Array[F] | None = None
) -> Array[F]: ...
def fake_quantize(
    x: Array[F],
    scale: Array[F] | float,
    zero_point: AnyArray | int,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    out: Array[F] | None = None,
) -> Array[F]: ...
def fake_quantize_vjp(
    x: Array[F],
    scale: Array[F] | float,
    zero_point: AnyArray | int,
    *,
    bits: int = 8,
    signed: bool = True,
    narrow: bool = False,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    lsq_grad_scale: bool = False,
) -> tuple[Array[F], Pullback]: ...
def lsq_scale(
    x: Array[F], *, bits: int = 8, signed: bool = True, axis: int | Sequence[int] | None = None
) -> Array[F]: ...
def range_fake_quantize(
    x: Array[F], width: Array[F], minimum: Array[F], *, bits: int, out: Array[F] | None = None
) -> Array[F]: ...
def range_fake_quantize_vjp(
    x: Array[F], width: Array[F], minimum: Array[F], *, bits: int
) -> tuple[Array[F], Pullback]: ...
