from typing import Any

import numpy as np

from refnorm._typing import Array, F

MOST_COUNTERS: int

def bases(seed: int, size: int, scale: float, start: int, stop: int) -> Array[np.float32]: ...
def combine(seed: int, size: int, scale: float, coefficients: Array[F]) -> Array[F]: ...
def project(seed: int, scale: float, cotangent: Array[F], count: int) -> Array[Any]: ...
