"""The Poincare fully connected layer, in float64 inside whatever the points' dtype is (arXiv 2006.08210)."""

from std.math import copysign, fma, log1p, sqrt
from std.sys import simd_width_of

from lanes import Place, inverse_factorial, load, power_of_two, split_exp, store, within

comptime WIDE = DType.float64
comptime LANES = simd_width_of[WIDE]()
comptime Wide = SIMD[WIDE, LANES]
comptime ROWS = 4
comptime VECTORS = 2
comptime BLOCK = 64
"""Rows whose inner products are kept until they become points."""
comptime SINH_LIMIT = 300.0
"""Largest argument of sinh whose square can still be summed; beyond it a row has a common factor."""


@always_inline
def two_sum[width: Int](a: SIMD[WIDE, width], b: SIMD[WIDE, width]) -> Tuple[SIMD[WIDE, width], SIMD[WIDE, width]]:
    """The rounded sum and its rounding error."""
    var total = a + b
    var part = total - a
    return total, (a - (total - part)) + (b - part)


def gap_of_row[dtype: DType](x: Place[dtype], length: Int, unit: Float64, curvature: Float64) -> Float64:
    """1 - curvature * |x|**2, of which cancellation may leave little: squares and sums carry their errors along."""
    var high, low = Wide(0.0), Wide(0.0)
    for i in range(0, length, LANES):
        var entry = load[dtype, LANES](x, i, length, 0).cast[WIDE]() * unit
        var square = entry * entry
        var total, error = two_sum(high, square)
        high = total
        low += error + fma(entry, entry, -square)
    var sum, rest = Float64(0.0), low.reduce_add()
    comptime for lane in range(LANES):
        var total, error = two_sum[1](sum, high[lane])
        sum = total
        rest += error
    var scaled = sum * curvature
    var gap, error = two_sum[1](1.0, -scaled)
    return gap + (error - (fma(sum, curvature, -scaled) + curvature * rest))


def gaps[dtype: DType](x: Place[dtype], gap: Place[WIDE], rows: Int, length: Int, unit: Float64, curvature: Float64):
    for row in range(rows):
        gap.unsafe_store(row, gap_of_row(x.unsafe_offset(row * length), length, unit, curvature))


@always_inline
def product_tile[
    dtype: DType, rows: Int
](x: Place[dtype], length: Int, planes: Place[WIDE], y: Place[WIDE], width: Int, column: Int):
    """Inner products of `rows` points with the columns of `planes` (length, width) from `column` on."""
    var sums = Array[Wide, rows * VECTORS](fill=Wide(0.0))
    for k in range(length):
        comptime for v in range(VECTORS):
            var plane = load[WIDE, LANES](planes.unsafe_offset(k * width), column + v * LANES, width, 0)
            comptime for row in range(rows):
                var entry = Wide(x.unsafe_load(row * length + k).cast[WIDE]())
                sums[row * VECTORS + v] = fma(entry, plane, sums[row * VECTORS + v])
    comptime for row in range(rows):
        comptime for v in range(VECTORS):
            store(y.unsafe_offset(row * width), column + v * LANES, width, sums[row * VECTORS + v])


def products[
    dtype: DType
](x: Place[dtype], planes: Place[WIDE], y: Place[WIDE], rows: Int, length: Int, width: Int):
    for column in range(0, width, VECTORS * LANES):
        var row = 0
        while row + ROWS <= rows:
            product_tile[dtype, ROWS](
                x.unsafe_offset(row * length), length, planes, y.unsafe_offset(row * width), width, column
            )
            row += ROWS
        while row < rows:
            product_tile[dtype, 1](
                x.unsafe_offset(row * length), length, planes, y.unsafe_offset(row * width), width, column
            )
            row += 1


@always_inline
def asinh(x: Wide) -> Wide:
    var size = abs(x)
    var square = size * size
    # 1 + sqrt(1 + square) is all but sqrt(square) where the square overflows.
    var excess = (square.lt(Wide(1e300))).select(square / (1.0 + sqrt(1.0 + square)), size)
    return copysign(log1p(size + excess), x)


@always_inline
def exp_of_at_most_zero(x: Wide) -> Wide:
    var excess, exponent = split_exp(max(x, Wide(-800.0)))
    return (1.0 + excess) * power_of_two(exponent)


@always_inline
def sinh_over(a: Wide, shift: Float64) -> Wide:
    """sinh(a) * e**-shift for |a| of at most shift + SINH_LIMIT."""
    var size = abs(a)
    var excess, exponent = split_exp(min(size - shift, Wide(SINH_LIMIT)))
    # e**(size - shift) may be above 1: as the inverse of a power of at most 1.
    var up, down = max(exponent, Wide(0.0)), min(exponent, Wide(0.0))
    var grown = (1.0 + excess) / power_of_two(-up) * power_of_two(max(down, Wide(-1023.0)))
    var far = 0.5 * (grown - exp_of_at_most_zero(-size - shift))
    # Near 0 the difference would cancel; the Taylor series of sinh does not.
    var square = size * size
    var series = Wide(0.0)
    comptime for step in range(10):
        comptime coefficient = inverse_factorial(2 * (9 - step) + 1)
        series = fma(series, square, Wide(coefficient))
    var near = size * series * exp_of_at_most_zero(Wide(-shift))
    # Minima and maxima above have lost NaN. (a.ne(a) would not find it: it is false for NaN.)
    return a.eq(a).select(copysign(size.lt(Wide(1.0)).select(near, far), a), a)


def connect_row[
    dtype: DType
](
    inner: Place[WIDE],
    y: Place[dtype],
    width: Int,
    gap: Float64,
    columns: Place[WIDE],
    root: Float64,
    radius: Float64,
    unit: Float64,
):
    """From inner products to the layer's point, in place and then into y.

    `columns` holds, one row after the other, lengths of the planes' weights, cosh and sinh of their biases.
    `radius` is infinite if the result shall not be projected.
    """
    var largest = Wide(0.0)
    for i in range(0, width, LANES):
        var length = load[WIDE, LANES](columns, i, width, 0)
        var cosh = load[WIDE, LANES](columns.unsafe_offset(width), i, width, 0)
        var sinh = load[WIDE, LANES](columns.unsafe_offset(2 * width), i, width, 0)
        var product = load[WIDE, LANES](inner, i, width, 0) * unit
        # 1 + c|x|**2 is 2 - gap, exact where it matters.
        var side = (2.0 * root * product * cosh - (2.0 - gap) * sinh) / gap
        var a = 2.0 * length * asinh(side)
        largest = max(largest, abs(a))
        store(inner, i, width, a)
    var shift = max(largest.reduce_max() - SINH_LIMIT, 0.0)
    var one = exp_of_at_most_zero(Wide(-shift))[0]
    var squares = Wide(0.0)
    for i in range(0, width, LANES):
        var w = sinh_over(load[WIDE, LANES](inner, i, width, 0), shift)
        squares = fma(w, w, squares)
        store(inner, i, width, w)
    var square = squares.reduce_add()
    var factor = 1.0 / (root * (one + sqrt(one * one + square)))
    if sqrt(square) * factor > radius:
        factor = radius / sqrt(square)
    factor /= unit
    for i in range(0, width, LANES):
        store(y, i, width, (load[WIDE, LANES](inner, i, width, 0) * factor).cast[dtype]())


def fully_connected[
    dtype: DType
](
    x: Place[dtype],
    y: Place[dtype],
    room: Place[WIDE],
    rows: Int,
    length: Int,
    width: Int,
    gap: Place[WIDE],
    planes: Place[WIDE],
    columns: Place[WIDE],
    root: Float64,
    radius: Float64,
    unit: Float64,
):
    """`room` holds BLOCK rows of `width` numbers: inner products, which become the layer's sinh in place."""
    for first in range(0, rows, BLOCK):
        var count = min(BLOCK, rows - first)
        products(x.unsafe_offset(first * length), planes, room, count, length, width)
        for row in range(count):
            connect_row(
                room.unsafe_offset(row * width),
                y.unsafe_offset((first + row) * width),
                width,
                gap.unsafe_load(first + row),
                columns,
                root,
                radius,
                unit,
            )
