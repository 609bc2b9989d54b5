/* Softmax and its relatives, float32 and float64 from one body. */
#include "softmax.h"

#include <math.h>

#include "parallel.h"
#include "vec_math.h"

/* n ln2 - x without cancellation error for integers |n| < 2^20: n * high is exact. */
static double exponent_minus(double n, double x) {
    return (n * 0x1.62e42fee00000p-1 - x) + n * 0x1.a39ef35793c76p-33;
}

/* log(count + rest) where `rest` is scaled by e^x / 2^n, n near x / ln2; count >= 1. */
RN_INLINE vf64 log_of_count_and_rest(vf64 count, vf64 rest, vf64 n, vf64 x) {
    vf64 exponent = (n * 0x1.62e42fee00000p-1 - x) + n * 0x1.a39ef35793c76p-33;
    return vf64_log1p_positive((count - 1.0) + rest * (1.0 + vf64_expm1_core(exponent)));
}

/* 2^n for n <= 0, 0 below the normal numbers. */
static double pow2_of(long n) {
    uint64_t bits = n < -1022 ? 0 : (uint64_t)(n + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Rows of at most this many bytes are held in cache between the passes: reloading their exponentials is cheaper than
 * computing them twice. */
#define RELOAD_BYTES ((size_t)160 << 10)

#define T float
#define VT vf32
#define VI vi32
#define INT int32_t
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define WIDE 0
#include "softmax_body.h"
#undef T
#undef VT
#undef VI
#undef INT
#undef LANES
#undef V
#undef N
#undef WIDE

#define T double
#define VT vf64
#define VI vi64
#define INT int64_t
#define LANES VF64
#define V(name) vf64_##name
#define N(name) name##_f64
#define WIDE 1
#include "softmax_body.h"

#define TABLE_ENTRIES(s)                                                                                        \
    .softmax_##s = softmax_##s, .row_stats_##s = row_stats_##s, .log_softmax_##s = log_softmax_##s,             \
    .softmax_from_stats_##s = softmax_from_stats_##s, .softmax_backward_##s = softmax_backward_##s,             \
    .log_softmax_backward_##s = log_softmax_backward_##s, .cross_entropy_##s = cross_entropy_##s,               \
    .cross_entropy_backward_##s = cross_entropy_backward_##s, .soft_cross_entropy_##s = soft_cross_entropy_##s, \
    .soft_cross_entropy_backward_##s = soft_cross_entropy_backward_##s,                                         \
    .softmax_columns_##s = softmax_columns_##s, .log_softmax_columns_##s = log_softmax_columns_##s,             \
    .softmax_from_stats_columns_##s = softmax_from_stats_columns_##s,                                           \
    .softmax_backward_columns_##s = softmax_backward_columns_##s,                                               \
    .log_softmax_backward_columns_##s = log_softmax_backward_columns_##s

RN_TABLE(softmax) = {TABLE_ENTRIES(f32), TABLE_ENTRIES(f64)};
