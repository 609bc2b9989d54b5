from typing import Any

from refnorm._typing import Array, F

def softmax(x: Array[F], *, axis: int = -1, out: Array[F] | None = None) -> Array[F]: ...
