/* Softmax and its relatives, float32 and float64 from one body. */
#include "softmax.h"

#include <math.h>

#include "parallel.h"
#include "vec_math.h"

/* n ln2 - x without cancellation error for integers |n| < 2^20: n * high is exact. */
static double exponent_minus(double n, double x) {
    return (n * 0x1.62e42fee00000p-1 - x) + n * 0x1.a39ef35793c76p-33;
}

/* log(1 + x) for x >= 0 within 2^-26 of it, for results in float32: what 1 + x loses to rounding is left out. */
RN_INLINE vf64 log1p_near(vf64 x) {
    vf64 whole = 1.0 + x;
    vu64 bits = (vu64)whole, steps = (bits - 0x3fe6a09e667f3bcdULL) >> 52; /* as vf64_log1p_positive */
    vf64 k = (vf64)(steps + 0x4338000000000000ULL) - 0x1.8p52;
    vf64 f = (vf64)(bits - (steps << 52)) - 1.0;
    vf64 s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
    vf64 series = vf64_fma(z, vf64_set(2.0 / 9), vf64_set(2.0 / 7));
    series = vf64_fma(z, vf64_fma(z, series, vf64_set(2.0 / 5)), vf64_set(2.0 / 3));
    vf64 log = vf64_fma(k, vf64_set(0x1.62e42fefa39efp-1), f - (half - s * vf64_fma(z, series, half)));
    vi64 between = (vi64)(x >= 0x1p-26) & (vi64)(x < INFINITY);
    return vf64_select(between, log, x); /* NaN and infinity stay, and a small x is its own logarithm */
}
RN_INLINE vf64 log1p_of(vf64 x, int wide) { return wide ? vf64_log1p_positive(x) : log1p_near(x); }

/* log(count + rest) where `rest` is scaled by e^x / 2^n, n near x / ln2; count >= 1. For results in float64 if `wide`. */
RN_INLINE vf64 log_of_count_and_rest(vf64 count, vf64 rest, vf64 n, vf64 x, int wide) {
    vf64 exponent = (n * 0x1.62e42fee00000p-1 - x) + n * 0x1.a39ef35793c76p-33;
    return log1p_of((count - 1.0) + rest * (1.0 + vf64_expm1_core(exponent)), wide);
}

/* log(sum) >= 0, where sum is scaled like that; 0 for a sum of 0. */
RN_INLINE vf64 log_of_scaled_sum(vf64 sum, vf64 n, vf64 x) {
    vf64 exponent = (n * 0x1.62e42fee00000p-1 - x) + n * 0x1.a39ef35793c76p-33;
    vf64 others = sum * (1.0 + vf64_expm1_core(exponent)) - 1.0;
    return vf64_log1p_positive(vf64_max(others, vf64_set(0.0)));
}

/* weight e^(n ln2 - x - log_sum) */
RN_INLINE vf64 weighted_exp(vf64 weight, vf64 n, vf64 x, vf64 log_sum) {
    return weight * vf64_exp(((n * 0x1.62e42fee00000p-1 - x) + n * 0x1.a39ef35793c76p-33) - log_sum);
}

/* 2^n for n <= 0, 0 below the normal numbers. */
static double pow2_of(long n) {
    uint64_t bits = n < -1022 ? 0 : (uint64_t)(n + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* s(x) = 1 + x, or 1 / (1 - x) below 0, and h(x) = log s(x) = sign(x) log(1 + |x|), in float64. */
RN_INLINE vf64 stable_wide(vf64 x) {
    vf64 size = 1.0 + vf64_abs(x);
    return vf64_select((vi64)(x >= 0.0), size, 1.0 / size);
}
RN_INLINE vf64 stable_log(vf64 x) { return vf64_copysign(vf64_log1p_positive(vf64_abs(x)), x); }
/* h(x) - (K ln2 + rest) for float32 x, rounded to an absolute error below 2^-24 where it lies near 1, for whole K. h is taken
 * apart as k ln2 + log m, so that what is large cancels in k - K, exactly, before anything is rounded. */
RN_INLINE vf32 stable_log_less(vf32 x, vf32 K, vf32 rest) {
    vf32 a = vf32_abs(x), whole = 1.0f + a;
    vf32 lost = vf32_select(a > 1.0f, 1.0f - (whole - a), a - (whole - 1.0f)); /* what 1 + |x| lost to rounding */
    vu32 bits = (vu32)whole, steps = (bits - 0x3f3504f3u) >> 23;              /* m between sqrt(1/2) and sqrt(2) */
    vf32 f = (vf32)(bits - (steps << 23)) - 1.0f, half = 0.5f * f * f;
    vf32 s = f / (2.0f + f), z = s * s; /* log(1 + f) = 2 artanh(s), whose series ends at s^9 */
    vf32 series = vf32_fma(z, vf32_set(2.0f / 9), vf32_set(2.0f / 7));
    series = vf32_fma(z, series, vf32_set(2.0f / 5));
    series = z * vf32_fma(z, series, vf32_set(2.0f / 3));
    vf32 log = f - (half - vf32_fma(s, half + series, lost * vf32_reciprocal_near(whole)));
    vi32 sign = (vi32)x & (int32_t)0x80000000;
    vf32 k = (vf32)((vi32)vf32_from_vi32((vi32)steps) ^ sign) - K;
    vf32 near = vf32_fma(k, vf32_set(0x1.0bfbe8p-15f), (vf32)((vi32)log ^ sign) - rest);
    vf32 less = vf32_fma(k, vf32_set(0x1.62ep-1f), near); /* the product is exact: 12 bits times 9 */
    return vf32_select(a < INFINITY, less, x);
}
static double stable_one(double x) { return x >= 0 ? 1 + x : 1 / (1 - x); }
static double stable_log_one(double x) { return copysign(log1p(fabs(x)), x); }

/* Lanes whose byte is not 0. */
typedef uint8_t bytes_f32 __attribute__((vector_size(VF32)));
typedef uint8_t bytes_f64 __attribute__((vector_size(VF64)));
RN_INLINE vi32 mask_at_f32(const uint8_t *mask) {
#if VEC_AVX512
    return (vi32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)mask)) != 0;
#elif VEC_AVX2
    return (vi32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)mask)) != 0;
#else
    bytes_f32 bytes;
    memcpy(&bytes, mask, sizeof bytes);
    return __builtin_convertvector(bytes, vi32) != 0;
#endif
}
RN_INLINE vi64 mask_at_f64(const uint8_t *mask) {
#if VEC_AVX512
    return (vi64)_mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)mask)) != 0;
#elif VEC_AVX2
    int32_t bytes;
    memcpy(&bytes, mask, sizeof bytes);
    return (vi64)_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes)) != 0;
#else
    bytes_f64 bytes;
    memcpy(&bytes, mask, sizeof bytes);
    return __builtin_convertvector(bytes, vi64) != 0;
#endif
}
/* The same of `count` <= lanes bytes; the other lanes are left out. */
RN_INLINE vi32 mask_part_f32(const uint8_t *mask, size_t count) {
    uint8_t bytes[VF32] = {0};
    if (count == VF32) return mask_at_f32(mask);
    for (size_t i = 0; i < count; i++) bytes[i] = mask[i];
    return mask_at_f32(bytes);
}
RN_INLINE vi64 mask_part_f64(const uint8_t *mask, size_t count) {
    uint8_t bytes[VF64] = {0};
    if (count == VF64) return mask_at_f64(mask);
    for (size_t i = 0; i < count; i++) bytes[i] = mask[i];
    return mask_at_f64(bytes);
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
    .log_softmax_backward_columns_##s = log_softmax_backward_columns_##s,                                       \
    .softmax_where_##s = softmax_where_##s, .softmax_backward_where_##s = softmax_backward_where_##s,           \
    .log_softmax_where_##s = log_softmax_where_##s, .from_stats_where_##s = from_stats_where_##s,               \
    .stats_where_columns_##s = stats_where_columns_##s, .scaled_minus_##s = scaled_minus_##s,                   \
    .stable_s_##s = stable_s_##s, .stable_s_backward_##s = stable_s_backward_##s,                               \
    .stablemax_##s = stablemax_##s, .log_stablemax_##s = log_stablemax_##s,                                     \
    .stablemax_backward_##s = stablemax_backward_##s, .log_stablemax_backward_##s = log_stablemax_backward_##s, \
    .stable_cross_entropy_##s = stable_cross_entropy_##s,                                                       \
    .stable_cross_entropy_backward_##s = stable_cross_entropy_backward_##s

RN_TABLE(softmax) = {TABLE_ENTRIES(f32), TABLE_ENTRIES(f64)};
