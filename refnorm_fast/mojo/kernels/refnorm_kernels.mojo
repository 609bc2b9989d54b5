"""What the shared library exports: C functions on addresses and sizes."""

from int8 import int8_matmul
from lanes import place
from norm import layer_norm_rows
from poincare import fully_connected, gaps
from softmax import softmax_rows

comptime F32 = DType.float32
comptime F64 = DType.float64


@export
def rn_softmax_f32(x: Int, y: Int, rows: Int, length: Int) abi("C"):
    softmax_rows(place[F32](x), place[F32](y), rows, length)


@export
def rn_softmax_f64(x: Int, y: Int, rows: Int, length: Int) abi("C"):
    softmax_rows(place[F64](x), place[F64](y), rows, length)


@export
def rn_layer_norm_f32(x: Int, gain: Int, bias: Int, y: Int, rows: Int, length: Int, eps: Float64) abi("C"):
    layer_norm_rows(place[F32](x), place[F32](gain), place[F32](bias), place[F32](y), rows, length, eps)


@export
def rn_layer_norm_f64(x: Int, gain: Int, bias: Int, y: Int, rows: Int, length: Int, eps: Float64) abi("C"):
    layer_norm_rows(place[F64](x), place[F64](gain), place[F64](bias), place[F64](y), rows, length, eps)


@export
def rn_int8_matmul(a: Int, b: Int, c: Int, corrections: Int, rows: Int, width: Int, depth: Int) abi("C"):
    int8_matmul(
        place[DType.uint8](a), place[DType.int8](b), place[DType.int32](c), place[DType.int32](corrections), rows, width, depth
    )


@export
def rn_gaps_f32(x: Int, gap: Int, rows: Int, length: Int, unit: Float64, curvature: Float64) abi("C"):
    gaps(place[F32](x), place[F64](gap), rows, length, unit, curvature)


@export
def rn_gaps_f64(x: Int, gap: Int, rows: Int, length: Int, unit: Float64, curvature: Float64) abi("C"):
    gaps(place[F64](x), place[F64](gap), rows, length, unit, curvature)


@export
def rn_fully_connected_f32(
    x: Int, y: Int, room: Int, rows: Int, length: Int, width: Int,
    gap: Int, planes: Int, columns: Int, root: Float64, radius: Float64, unit: Float64,
) abi("C"):
    fully_connected(
        place[F32](x), place[F32](y), place[F64](room), rows, length, width,
        place[F64](gap), place[F64](planes), place[F64](columns), root, radius, unit,
    )


@export
def rn_fully_connected_f64(
    x: Int, y: Int, room: Int, rows: Int, length: Int, width: Int,
    gap: Int, planes: Int, columns: Int, root: Float64, radius: Float64, unit: Float64,
) abi("C"):
    fully_connected(
        place[F64](x), place[F64](y), place[F64](room), rows, length, width,
        place[F64](gap), place[F64](planes), place[F64](columns), root, radius, unit,
    )
