"""Exact products of int8 matrices: a @ b.T, both row by row as they stand in memory."""

from std.sys import llvm_intrinsic, simd_width_of
from std.sys.info import CompilationTarget

from lanes import Place

comptime BYTES = simd_width_of[DType.int8]()
comptime LANES = BYTES // 4
comptime Sums = SIMD[DType.int32, LANES]
comptime TILE = 4
"""4 rows of a times 4 rows of b: 16 sums, 4 vectors of b and one of a fit the 32 registers of AVX-512."""


@always_inline
def dot4(sums: Sums, a: SIMD[DType.uint8, BYTES], b: SIMD[DType.int8, BYTES]) -> Sums:
    """Add a lane's four products to its sum; which four is all the same, since all lanes are added in the end."""
    comptime if CompilationTarget.has_vnni() and BYTES == 64:
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.512", Sums](sums, a, b)
    elif CompilationTarget.has_vnni() and BYTES == 32:
        return llvm_intrinsic["llvm.x86.avx512.vpdpbusd.256", Sums](sums, a, b)
    else:
        var products = a.cast[DType.int16]().cast[DType.int32]() * b.cast[DType.int16]().cast[DType.int32]()
        return sums + products.reduce_add[LANES]()


@always_inline
def tile[
    rows: Int, columns: Int
](a: Place[DType.uint8], b: Place[DType.int8], depth: Int, corrections: Place[DType.int32], c: Place[DType.int32], width: Int):
    """`rows` times `columns` outputs; a holds codes + 128, of which the columns' `corrections` are taken off again."""
    var sums = Array[Sums, rows * columns](fill=Sums(0))
    for k in range(0, depth, BYTES):
        var w = Array[SIMD[DType.int8, BYTES], columns](fill=SIMD[DType.int8, BYTES](0))
        comptime for j in range(columns):
            w[j] = b.unsafe_load[width=BYTES](j * depth + k)
        comptime for i in range(rows):
            var x = a.unsafe_load[width=BYTES](i * depth + k)
            comptime for j in range(columns):
                sums[i * columns + j] = dot4(sums[i * columns + j], x, w[j])
    comptime for i in range(rows):
        comptime for j in range(columns):
            c.unsafe_store(i * width + j, sums[i * columns + j].reduce_add() - corrections.unsafe_load(j))


def int8_matmul(
    a: Place[DType.uint8],
    b: Place[DType.int8],
    c: Place[DType.int32],
    corrections: Place[DType.int32],
    rows: Int,
    width: Int,
    depth: Int,
):
    """Write c (rows, width) from a (rows, depth), holding codes + 128, and b (width, depth); depth is whole vectors."""
    for j in range(width):
        var sums = Sums(0)
        for k in range(0, depth, BYTES):
            sums = dot4(sums, SIMD[DType.uint8, BYTES](128), b.unsafe_load[width=BYTES](j * depth + k))
        corrections.unsafe_store(j, sums.reduce_add())
    var j = 0
    while j < width:
        var columns = TILE if width - j >= TILE else 1
        var w, taken = b.unsafe_offset(j * depth), corrections.unsafe_offset(j)
        var i = 0
        while i < rows:
            var x, to = a.unsafe_offset(i * depth), c.unsafe_offset(i * width + j)
            var whole = rows - i >= TILE
            if columns == TILE:
                if whole:
                    tile[TILE, TILE](x, w, depth, taken, to, width)
                else:
                    tile[1, TILE](x, w, depth, taken, to, width)
            elif whole:
                tile[TILE, 1](x, w, depth, taken, to, width)
            else:
                tile[1, 1](x, w, depth, taken, to, width)
            i += TILE if whole else 1
        j += columns
