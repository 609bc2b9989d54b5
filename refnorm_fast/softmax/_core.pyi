from refnorm._typing import AnyArray, Array, F, IntArray, Pullback

ALGORITHMS: tuple[str, ...]
REDUCTIONS: tuple[str, ...]

def softmax(
    x: Array[F],
    *,
    axis: int = -1,
    algorithm: str = "two_pass",
    where: AnyArray | None = None,
    temperature: float = 1.0,
    out: Array[F] | None = None,
) -> Array[F]: ...
def softmax_vjp(
    x: Array[F],
    *,
    axis: int = -1,
    algorithm: str = "two_pass",
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> tuple[Array[F], Pullback]: ...
def log_softmax(
    x: Array[F],
    *,
    axis: int = -1,
    where: AnyArray | None = None,
    temperature: float = 1.0,
    out: Array[F] | None = None,
) -> Array[F]: ...
def log_softmax_vjp(
    x: Array[F],
    *,
    axis: int = -1,
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> tuple[Array[F], Pullback]: ...
def logsumexp(
    x: Array[F],
    *,
    axis: int = -1,
    keepdims: bool = False,
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> Array[F]: ...
def logsumexp_vjp(
    x: Array[F],
    *,
    axis: int = -1,
    keepdims: bool = False,
    where: AnyArray | None = None,
    temperature: float = 1.0,
) -> tuple[Array[F], Pullback]: ...
def cross_entropy(
    logits: Array[F],
    target: IntArray,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array[F]: ...
def cross_entropy_vjp(
    logits: Array[F],
    target: IntArray,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> tuple[Array[F], Pullback]: ...
def soft_cross_entropy(logits: Array[F], target: Array[F], *, reduction: str = "mean") -> Array[F]: ...
def soft_cross_entropy_vjp(
    logits: Array[F], target: Array[F], *, reduction: str = "mean"
) -> tuple[Array[F], Pullback]: ...
def _scaled_minus(x: Array[F], scale: float, minus: AnyArray) -> Array[F]: ...
