from collections.abc import Sequence

from refnorm._typing import Array, F, Pullback

def layer_norm(
    x: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float = 1e-5,
    axes: Sequence[int] = (-1,),
    out: Array[F] | None = None,
) -> Array[F]: ...
def layer_norm_vjp(
    x: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5, axes: Sequence[int] = (-1,)
) -> tuple[Array[F], Pullback]: ...
def add_layer_norm(
    x: Array[F],
    residual: Array[F],
    gain: Array[F],
    bias: Array[F],
    *,
    eps: float = 1e-5,
    out: Array[F] | None = None,
) -> Array[F]: ...
def add_layer_norm_vjp(
    x: Array[F], residual: Array[F], gain: Array[F], bias: Array[F], *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]: ...
def rms_norm(
    x: Array[F],
    gain: Array[F] | None = None,
    bias: Array[F] | None = None,
    *,
    eps: float = 1e-5,
    out: Array[F] | None = None,
) -> Array[F]: ...
def rms_norm_vjp(
    x: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]: ...
def add_rms_norm(
    x: Array[F],
    residual: Array[F],
    gain: Array[F] | None = None,
    bias: Array[F] | None = None,
    *,
    eps: float = 1e-5,
    out: Array[F] | None = None,
) -> Array[F]: ...
def add_rms_norm_vjp(
    x: Array[F], residual: Array[F], gain: Array[F] | None = None, bias: Array[F] | None = None, *, eps: float = 1e-5
) -> tuple[Array[F], Pullback]: ...
def compressed_rms_norm(x: Array[F], *, eps: float = 1e-5, out: Array[F] | None = None) -> Array[F]: ...
def compressed_rms_norm_vjp(x: Array[F], *, eps: float = 1e-5) -> tuple[Array[F], Pullback]: ...
