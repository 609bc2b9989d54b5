import numpy as np

from refnorm._typing import Array, F, Pullback

def topk_softmax(
    scores: Array[F], bias: Array[F] | None = None, *, top_k: int, select_with_bias: bool = False
) -> tuple[Array[F], Array[np.bool_]]: ...
def topk_softmax_vjp(
    scores: Array[F], bias: Array[F] | None = None, *, top_k: int, select_with_bias: bool = False
) -> tuple[tuple[Array[F], Array[np.bool_]], Pullback]: ...
