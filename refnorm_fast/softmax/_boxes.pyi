from refnorm._typing import Array, F, IntArray, Pullback
from refnorm.softmax import SoftNMSResult

def box_iou(a: Array[F], b: Array[F], *, offset: float = 0.0, out: Array[F] | None = None) -> Array[F]: ...
def box_iou_vjp(a: Array[F], b: Array[F], *, offset: float = 0.0) -> tuple[Array[F], Pullback]: ...
def soft_nms(
    boxes: Array[F],
    scores: Array[F],
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
    offset: float = 0.0,
    prune: str = "all",
    labels: IntArray | None = None,
) -> SoftNMSResult: ...
def soft_nms_vjp(
    boxes: Array[F],
    scores: Array[F],
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 1e-3,
    offset: float = 0.0,
    prune: str = "all",
    labels: IntArray | None = None,
) -> tuple[SoftNMSResult, Pullback]: ...
