"""Softmax in two passes, by sums of numbers that keep an exponent of their own (arXiv 2001.04438)."""

from std.math import fma
from std.sys import simd_width_of
from std.utils.numerics import inf, nan

from lanes import Place, load, power_of_two, split_exp, store

comptime CHAINS = 4
"""Independent sums: an addition of pairs takes several times longer than the next one has to wait for a port."""
comptime BLOCK = 4
"""Vectors that a chain adds in the row's own dtype before its sum goes into the float64 total: a float32 sum that one
entry dominates loses up to half a unit at every addition."""


struct PairSum[dtype: DType, width: Int](TrivialRegisterPassable):
    """Sums of (whole + excess) * 2**exponent, one in each lane.

    The mantissa has two parts, sums of ones and of what mantissas have beyond 1: neither is rounded to the other's size.
    """

    var whole: SIMD[Self.dtype, Self.width]
    var excess: SIMD[Self.dtype, Self.width]
    var exponent: SIMD[Self.dtype, Self.width]

    @always_inline
    def __init__(out self):
        self.whole = 0.0
        self.excess = 0.0
        self.exponent = Scalar[Self.dtype].MIN_FINITE

    @always_inline
    def add(
        mut self,
        whole: SIMD[Self.dtype, Self.width],
        excess: SIMD[Self.dtype, Self.width],
        exponent: SIMD[Self.dtype, Self.width],
    ):
        var top = max(self.exponent, exponent)
        var kept, added = power_of_two(self.exponent - top), power_of_two(exponent - top)
        self.whole = fma(self.whole, kept, whole * added)
        self.excess = fma(self.excess, kept, excess * added)
        self.exponent = top


@always_inline
def pairs_of[
    compute: DType, width: Int
](x: SIMD[compute, width]) -> Tuple[SIMD[compute, width], SIMD[compute, width], SIMD[compute, width]]:
    """exp(x) as (whole + excess) * 2**exponent; what is below the range, -inf above all, has 0 for both."""
    comptime Vector = SIMD[compute, width]
    comptime limit = range_of[compute]()
    var excess, exponent = split_exp(max(x, Vector(-limit)))
    var masked = x.lt(Vector(-limit))
    return masked.select(Vector(0.0), Vector(1.0)), masked.select(Vector(0.0), excess), exponent


def range_of[compute: DType]() -> Scalar[compute]:
    """Largest |x| that is reduced without loss: in float32, x / ln 2 has to be exact to far less than 1."""
    comptime if compute == DType.float32:
        return 1e4
    else:
        return Scalar[compute].MAX_FINITE


def softmax_row[compute: DType, dtype: DType](x: Place[dtype], y: Place[dtype], length: Int):
    comptime width = simd_width_of[dtype]()
    comptime limit = range_of[compute]()
    comptime Vector = SIMD[compute, width]
    comptime lowest = -inf[dtype]()

    var total = PairSum[DType.float64, width]()
    var outside = SIMD[DType.bool, width](fill=False)
    var at = 0
    while at < length:
        var sums = Array[PairSum[compute, width], CHAINS](fill=PairSum[compute, width]())
        var end = min(length, at + BLOCK * CHAINS * width)
        while at < end:
            comptime for chain in range(CHAINS):
                var value = load[dtype, width](x, at + chain * width, length, lowest).cast[compute]()
                # NaN is not at most the limit either.
                outside |= ~value.le(Vector(limit)) | (value.lt(Vector(-limit)) & value.ne(Vector(-inf[compute]())))
                var whole, excess, exponent = pairs_of(value)
                sums[chain].add(whole, excess, exponent)
            at += CHAINS * width
        comptime for chain in range(CHAINS):
            comptime wide = DType.float64
            var part = sums[chain]
            total.add(part.whole.cast[wide](), part.excess.cast[wide](), part.exponent.cast[wide]())

    if outside.reduce_or():
        comptime if compute == DType.float64:
            for i in range(0, length, width):
                store(y, i, length, SIMD[dtype, width](nan[dtype]()))
        else:
            softmax_row[DType.float64](x, y, length)
        return

    var top = total.exponent.reduce_max()
    var sum = ((total.whole + total.excess) * power_of_two(total.exponent - top)).reduce_add()
    # The reciprocal with what its rounding leaves, so that the one entry of a row is exactly 1.
    var high = (1.0 / sum).cast[compute]()
    var low = (fma(-sum, high.cast[DType.float64](), 1.0) / sum).cast[compute]()
    var largest = Vector(top.cast[compute]())
    # Two factors, so that results below the smallest normal number lose digits one by one.
    comptime first_step = Scalar[compute](-100 if compute == DType.float32 else -1000)
    for i in range(0, length, width):
        var whole, excess, exponent = pairs_of(load[dtype, width](x, i, length, lowest).cast[compute]())
        var drop = exponent - largest
        var part = max(drop, Vector(first_step))
        # Rounded once at its own size.
        var share = fma(whole, Vector(high), fma(excess, Vector(high), whole * low))
        var value = share * power_of_two(part) * power_of_two(drop - part)
        store(y, i, length, value.cast[dtype]())


def softmax_rows[dtype: DType](x: Place[dtype], y: Place[dtype], rows: Int, length: Int):
    for row in range(rows):
        softmax_row[dtype](x.unsafe_offset(row * length), y.unsafe_offset(row * length), length)
