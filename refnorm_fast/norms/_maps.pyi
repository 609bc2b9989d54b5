from refnorm._typing import Array, F, Pullback

def spade_modulate(
    x_hat: Array[F], gain_map: Array[F], bias_map: Array[F], *, out: Array[F] | None = None
) -> Array[F]: ...
def spade_modulate_vjp(x_hat: Array[F], gain_map: Array[F], bias_map: Array[F]) -> tuple[Array[F], Pullback]: ...
def spade(
    x: Array[F],
    condition: Array[F],
    hidden_weight: Array[F],
    hidden_bias: Array[F],
    gain_weight: Array[F],
    gain_bias: Array[F],
    bias_weight: Array[F],
    bias_bias: Array[F],
    *,
    norm: str = "group",
    groups: int = 32,
    activation: str = "silu",
    eps: float = 1e-5,
    resize: str | None = None,
) -> Array[F]: ...
def spade_vjp(
    x: Array[F],
    condition: Array[F],
    hidden_weight: Array[F],
    hidden_bias: Array[F],
    gain_weight: Array[F],
    gain_bias: Array[F],
    bias_weight: Array[F],
    bias_bias: Array[F],
    *,
    norm: str = "group",
    groups: int = 32,
    activation: str = "silu",
    eps: float = 1e-5,
    resize: str | None = None,
) -> tuple[Array[F], Pullback]: ...
