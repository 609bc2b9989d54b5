"""Layer norm: three passes over a row, of which memory sees one, with all sums and differences in float64."""

from std.math import fma, sqrt
from std.sys import simd_width_of

from lanes import Place, load, store, within

comptime CHAINS = 2


def layer_norm_row[
    dtype: DType
](x: Place[dtype], gain: Place[dtype], bias: Place[dtype], y: Place[dtype], length: Int, eps: Float64):
    comptime width = simd_width_of[dtype]()
    comptime Wide = SIMD[DType.float64, width]

    var sums = Array[Wide, CHAINS](fill=Wide(0.0))
    for i in range(0, length, CHAINS * width):
        comptime for chain in range(CHAINS):
            sums[chain] += load[dtype, width](x, i + chain * width, length, 0).cast[DType.float64]()
    var mean = (sums[0] + sums[1]).reduce_add() / Float64(length)

    var squares = Array[Wide, CHAINS](fill=Wide(0.0))
    for i in range(0, length, CHAINS * width):
        comptime for chain in range(CHAINS):
            var at = i + chain * width
            var value = load[dtype, width](x, at, length, 0).cast[DType.float64]()
            var centred = within[width](at, length).select(value - mean, Wide(0.0))
            squares[chain] = fma(centred, centred, squares[chain])
    var inv_std = 1.0 / sqrt((squares[0] + squares[1]).reduce_add() / Float64(length) + eps)

    for i in range(0, length, width):
        var value = load[dtype, width](x, i, length, 0).cast[DType.float64]()
        var normal = ((value - mean) * inv_std).cast[dtype]()
        var scaled = fma(load[dtype, width](gain, i, length, 0), normal, load[dtype, width](bias, i, length, 0))
        store(y, i, length, scaled)


def layer_norm_rows[
    dtype: DType
](x: Place[dtype], gain: Place[dtype], bias: Place[dtype], y: Place[dtype], rows: Int, length: Int, eps: Float64):
    for row in range(rows):
        layer_norm_row(x.unsafe_offset(row * length), gain, bias, y.unsafe_offset(row * length), length, eps)
