"""Products of int8 matrices in Mojo; see :mod:`refnorm.quantizers`."""

from __future__ import annotations

import numpy as np

from refnorm._typing import IntArray
from refnorm.quantizers._int8 import check_codes
from refnorm_fast.mojo._build import call, in_order

__all__ = ["int8_matmul"]

WHOLE = 64
"""Codes in the longest vector: rows are padded with zeros to a multiple of it."""


def int8_matmul(a: IntArray, b: IntArray) -> IntArray:
    """Multiply int8 matrices exactly, ``a @ b.T`` in int32; see :func:`refnorm.quantizers.int8_matmul`."""
    a, b = check_codes(a, b)
    (rows, depth), width = a.shape, b.shape[0]
    padded = -(-depth // WHOLE) * WHOLE
    # The instruction that adds four products takes one factor without sign: a + 128.
    shifted = np.full((rows, padded), 128, np.uint8)
    np.bitwise_xor(in_order(a).view(np.uint8), 128, out=shifted[:, :depth])
    if padded == depth:
        codes = in_order(b)
    else:
        codes = np.zeros((width, padded), np.int8)
        codes[:, :depth] = b
    c, corrections = np.empty((rows, width), np.int32), np.empty(width, np.int32)
    call("rn_int8_matmul", shifted, codes, c, corrections, rows, width, padded)
    return c
