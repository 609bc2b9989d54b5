/* Vectors of REFNORM_VECTOR_BYTES on GCC/Clang vector extensions.
 *
 * vf32, vf64: floats; vi32, vi64: integers, also the masks that comparisons give (all ones / all zeros a lane);
 * vf32h: half a vf32, as many lanes as a vf64. Operators + - * / < <= == & | ^ ~ << >> work on them directly.
 * Intrinsics stand only where the compiler does not find the instruction by itself. The 64-byte types compile
 * without AVX-512 too (the compiler splits them), which is how that code is tested on other machines. */
#ifndef REFNORM_VEC_H
#define REFNORM_VEC_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "names.h"

#ifndef REFNORM_VECTOR_BYTES
#error "REFNORM_VECTOR_BYTES is set by CMakeLists.txt"
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define VF32 (REFNORM_VECTOR_BYTES / 4) /* lanes of a vf32 */
#define VF64 (REFNORM_VECTOR_BYTES / 8) /* lanes of a vf64 */

typedef float vf32 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
typedef double vf64 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
typedef int32_t vi32 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
typedef uint32_t vu32 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
typedef int64_t vi64 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
typedef uint64_t vu64 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
typedef float vf32h __attribute__((vector_size(REFNORM_VECTOR_BYTES / 2)));
typedef int32_t vi32h __attribute__((vector_size(REFNORM_VECTOR_BYTES / 2)));

typedef float vf32_at __attribute__((vector_size(REFNORM_VECTOR_BYTES), aligned(4), may_alias));
typedef double vf64_at __attribute__((vector_size(REFNORM_VECTOR_BYTES), aligned(8), may_alias));
typedef int32_t vi32_at __attribute__((vector_size(REFNORM_VECTOR_BYTES), aligned(4), may_alias));
typedef int32_t vi32_at_byte __attribute__((vector_size(REFNORM_VECTOR_BYTES), aligned(1), may_alias));
typedef float vf32h_at __attribute__((vector_size(REFNORM_VECTOR_BYTES / 2), aligned(4), may_alias));

/* Whether vf32_fma and vf64_fma round once. The baseline x86-64 has no such instruction. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#define VEC_HAS_FMA 1
#else
#define VEC_HAS_FMA 0
#endif
/* At most one of these is 1: which intrinsics fit the vector's size. */
#define VEC_SSE 0
#define VEC_AVX2 0
#define VEC_AVX512 0
#define VEC_NEON 0
#if REFNORM_VECTOR_BYTES == 16 && defined(__SSE2__)
#undef VEC_SSE
#define VEC_SSE 1
#elif REFNORM_VECTOR_BYTES == 32 && defined(__AVX2__)
#undef VEC_AVX2
#define VEC_AVX2 1
#elif REFNORM_VECTOR_BYTES == 64 && defined(__AVX512F__) && defined(__AVX512DQ__)
#undef VEC_AVX512
#define VEC_AVX512 1
#elif REFNORM_VECTOR_BYTES == 16 && defined(__aarch64__)
#undef VEC_NEON
#define VEC_NEON 1
#endif

/* ---- load, store, constants ---------------------------------------------------------------------------------- */

RN_INLINE vf32 vf32_set(float value) { return value - (vf32){0}; }
RN_INLINE vf64 vf64_set(double value) { return value - (vf64){0}; }
RN_INLINE vi32 vi32_set(int32_t value) { return value - (vi32){0}; }
RN_INLINE vi64 vi64_set(int64_t value) { return value - (vi64){0}; }
RN_INLINE vf32 vf32_load(const float *from) { return *(const vf32_at *)from; }
RN_INLINE vf64 vf64_load(const double *from) { return *(const vf64_at *)from; }
RN_INLINE vi32 vi32_load(const int32_t *from) { return *(const vi32_at *)from; }
RN_INLINE vi32 vi32_load_bytes(const void *from) { return *(const vi32_at_byte *)from; }
RN_INLINE vf32h vf32h_load(const float *from) { return *(const vf32h_at *)from; }
RN_INLINE void vf32_store(float *to, vf32 value) { *(vf32_at *)to = value; }
RN_INLINE void vf64_store(double *to, vf64 value) { *(vf64_at *)to = value; }
RN_INLINE void vi32_store(int32_t *to, vi32 value) { *(vi32_at *)to = value; }
RN_INLINE void vf32h_store(float *to, vf32h value) { *(vf32h_at *)to = value; }

/* The first `count` <= lanes entries; the other lanes get `fill`, and their memory is not touched. */
#if VEC_AVX2
static const int32_t vec_part_masks[16] __attribute__((aligned(64), unused)) = {-1, -1, -1, -1, -1, -1, -1, -1};
#endif
RN_INLINE vf32 vf32_load_part(const float *from, size_t count, float fill) {
#if VEC_AVX512
    return (vf32)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << count) - 1), from);
#elif VEC_AVX2
    __m256i mask = _mm256_loadu_si256((const __m256i *)(vec_part_masks + 8 - count));
    return (vf32)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(from, mask), _mm256_castsi256_ps(mask));
#else
    float lanes[VF32];
    for (size_t i = 0; i < VF32; i++) lanes[i] = fill;
    for (size_t i = 0; i < count; i++) lanes[i] = from[i];
    return vf32_load(lanes);
#endif
}
RN_INLINE vf64 vf64_load_part(const double *from, size_t count, double fill) {
#if VEC_AVX512
    return (vf64)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)((1u << count) - 1), from);
#elif VEC_AVX2
    __m256i mask = _mm256_loadu_si256((const __m256i *)(vec_part_masks + 8 - 2 * count));
    return (vf64)_mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(from, mask), _mm256_castsi256_pd(mask));
#else
    double lanes[VF64];
    for (size_t i = 0; i < VF64; i++) lanes[i] = fill;
    for (size_t i = 0; i < count; i++) lanes[i] = from[i];
    return vf64_load(lanes);
#endif
}
RN_INLINE void vf32_store_part(float *to, size_t count, vf32 value) {
#if VEC_AVX512
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)value);
#elif VEC_AVX2
    _mm256_maskstore_ps(to, _mm256_loadu_si256((const __m256i *)(vec_part_masks + 8 - count)), (__m256)value);
#else
    for (size_t i = 0; i < count; i++) to[i] = value[i];
#endif
}
RN_INLINE void vf64_store_part(double *to, size_t count, vf64 value) {
#if VEC_AVX512
    _mm512_mask_storeu_pd(to, (__mmask8)((1u << count) - 1), (__m512d)value);
#elif VEC_AVX2
    _mm256_maskstore_pd(to, _mm256_loadu_si256((const __m256i *)(vec_part_masks + 8 - 2 * count)), (__m256d)value);
#else
    for (size_t i = 0; i < count; i++) to[i] = value[i];
#endif
}

/* Non-temporal store: `to` is aligned to REFNORM_VECTOR_BYTES. vec_fence() ends a run of them. */
RN_INLINE void vf32_stream(float *to, vf32 value) {
#if VEC_AVX512
    _mm512_stream_ps(to, (__m512)value);
#elif VEC_AVX2
    _mm256_stream_ps(to, (__m256)value);
#elif VEC_SSE
    _mm_stream_ps(to, (__m128)value);
#else
    vf32_store(to, value);
#endif
}
RN_INLINE void vf64_stream(double *to, vf64 value) { vf32_stream((float *)to, (vf32)value); }
RN_INLINE void vec_fence(void) {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}
/* A store that is non-temporal if `stream`. */
RN_INLINE void vf32_put(float *to, vf32 value, int stream) {
    if (stream)
        vf32_stream(to, value);
    else
        vf32_store(to, value);
}
RN_INLINE void vf64_put(double *to, vf64 value, int stream) {
    if (stream)
        vf64_stream(to, value);
    else
        vf64_store(to, value);
}
/* Items of a run of `length` that lie before the first vector's boundary. */
RN_INLINE size_t vec_to_alignment(const void *to, size_t item, size_t length) {
    size_t head = (size_t)(-(uintptr_t)to & (REFNORM_VECTOR_BYTES - 1)) / item;
    return head < length ? head : length;
}

/* ---- arithmetic ---------------------------------------------------------------------------------------------- */

/* a * b + c, rounded once where VEC_HAS_FMA. */
RN_INLINE vf32 vf32_fma(vf32 a, vf32 b, vf32 c) {
#if VEC_AVX512
    return (vf32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VEC_AVX2 && VEC_HAS_FMA
    return (vf32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif VEC_NEON
    return (vf32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}
RN_INLINE vf64 vf64_fma(vf64 a, vf64 b, vf64 c) {
#if VEC_AVX512
    return (vf64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif VEC_AVX2 && VEC_HAS_FMA
    return (vf64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif VEC_NEON
    return (vf64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

/* mask ? a : b, lane by lane; every lane of the mask is all ones or all zeros. */
RN_INLINE vf32 vf32_select(vi32 mask, vf32 a, vf32 b) {
#if VEC_AVX512
    return (vf32)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)b, (__m512)a);
#elif VEC_AVX2
    return (vf32)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)mask);
#else
    return (vf32)((mask & (vi32)a) | (~mask & (vi32)b));
#endif
}
RN_INLINE vf64 vf64_select(vi64 mask, vf64 a, vf64 b) {
#if VEC_AVX512
    return (vf64)_mm512_mask_blend_pd(_mm512_movepi64_mask((__m512i)mask), (__m512d)b, (__m512d)a);
#elif VEC_AVX2
    return (vf64)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)mask);
#else
    return (vf64)((mask & (vi64)a) | (~mask & (vi64)b));
#endif
}
RN_INLINE vi32 vi32_select(vi32 mask, vi32 a, vi32 b) { return (vi32)vf32_select(mask, (vf32)a, (vf32)b); }

/* The lanes of `a` where the sign bit of `x` is set, else those of `b`. */
RN_INLINE vf32 vf32_select_sign(vf32 x, vf32 a, vf32 b) {
#if VEC_AVX512 || VEC_AVX2
    return vf32_select((vi32)x, a, b);
#else
    return vf32_select((vi32)x >> 31, a, b);
#endif
}

/* a > b ? a : b: b where either is NaN. So max(x, accumulator) skips NaN and max(accumulator, x) takes it. */
RN_INLINE vf32 vf32_max(vf32 a, vf32 b) {
#if VEC_AVX512
    return (vf32)_mm512_max_ps((__m512)a, (__m512)b);
#elif VEC_AVX2
    return (vf32)_mm256_max_ps((__m256)a, (__m256)b);
#elif VEC_SSE
    return (vf32)_mm_max_ps((__m128)a, (__m128)b);
#else
    return vf32_select(a > b, a, b);
#endif
}
RN_INLINE vf32 vf32_min(vf32 a, vf32 b) {
#if VEC_AVX512
    return (vf32)_mm512_min_ps((__m512)a, (__m512)b);
#elif VEC_AVX2
    return (vf32)_mm256_min_ps((__m256)a, (__m256)b);
#elif VEC_SSE
    return (vf32)_mm_min_ps((__m128)a, (__m128)b);
#else
    return vf32_select(a < b, a, b);
#endif
}
RN_INLINE vf64 vf64_max(vf64 a, vf64 b) {
#if VEC_AVX512
    return (vf64)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif VEC_AVX2
    return (vf64)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif VEC_SSE
    return (vf64)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    return vf64_select(a > b, a, b);
#endif
}
RN_INLINE vf64 vf64_min(vf64 a, vf64 b) {
#if VEC_AVX512
    return (vf64)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif VEC_AVX2
    return (vf64)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif VEC_SSE
    return (vf64)_mm_min_pd((__m128d)a, (__m128d)b);
#else
    return vf64_select(a < b, a, b);
#endif
}

RN_INLINE vf32 vf32_abs(vf32 x) { return (vf32)((vi32)x & 0x7fffffff); }
RN_INLINE vf64 vf64_abs(vf64 x) { return (vf64)((vi64)x & 0x7fffffffffffffffLL); }
/* magnitude of `x` with the sign of `sign` */
RN_INLINE vf32 vf32_copysign(vf32 x, vf32 sign) {
    return (vf32)(((vi32)x & 0x7fffffff) | ((vi32)sign & (int32_t)0x80000000));
}
RN_INLINE vf64 vf64_copysign(vf64 x, vf64 sign) {
    return (vf64)(((vi64)x & 0x7fffffffffffffffLL) | ((vi64)sign & (int64_t)0x8000000000000000LL));
}
RN_INLINE vf32 vf32_sqrt(vf32 x) {
#if VEC_AVX512
    return (vf32)_mm512_sqrt_ps((__m512)x);
#elif VEC_AVX2
    return (vf32)_mm256_sqrt_ps((__m256)x);
#elif VEC_SSE
    return (vf32)_mm_sqrt_ps((__m128)x);
#else
    for (int i = 0; i < VF32; i++) x[i] = sqrtf(x[i]);
    return x;
#endif
}
RN_INLINE vf64 vf64_sqrt(vf64 x) {
#if VEC_AVX512
    return (vf64)_mm512_sqrt_pd((__m512d)x);
#elif VEC_AVX2
    return (vf64)_mm256_sqrt_pd((__m256d)x);
#elif VEC_SSE
    return (vf64)_mm_sqrt_pd((__m128d)x);
#else
    for (int i = 0; i < VF64; i++) x[i] = sqrt(x[i]);
    return x;
#endif
}

/* Nearest integer, ties to even, for |x| < 2^22 (float32) or 2^51 (float64): adding 1.5 * 2^23 (2^52) leaves no
 * room for a fraction. Must not be reassociated, so it depends on the absence of fast-math. */
RN_INLINE vf32 vf32_rint_small(vf32 x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
RN_INLINE vf64 vf64_rint_small(vf64 x) { return (x + 0x1.8p52) - 0x1.8p52; }

/* Whether any lane of the mask is set. */
RN_INLINE int vi32_any(vi32 mask) {
#if VEC_AVX512
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif VEC_AVX2
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif VEC_SSE
    return _mm_movemask_ps((__m128)mask) != 0;
#elif VEC_NEON
    return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
    int any = 0;
    for (int i = 0; i < VF32; i++) any |= mask[i];
    return any != 0;
#endif
}
RN_INLINE int vi64_any(vi64 mask) { return vi32_any((vi32)mask); }
/* Whether a < b in every lane. GCC 12 takes a comparison that ends as a bit a lane through a vector of masks. */
RN_INLINE int vf32_all_less(vf32 a, vf32 b) {
#if VEC_AVX512
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) == 0xffff;
#else
    return !vi32_any(~(a < b));
#endif
}

/* ---- conversions --------------------------------------------------------------------------------------------- */

/* Intrinsics, because GCC 12 takes __builtin_convertvector between sizes apart and through memory. */
RN_INLINE vf64 vf64_from_half(vf32h x) {
#if VEC_AVX512
    return (vf64)_mm512_cvtps_pd((__m256)x);
#elif VEC_AVX2
    return (vf64)_mm256_cvtps_pd((__m128)x);
#elif VEC_SSE
    return (vf64)_mm_cvtps_pd(_mm_castpd_ps(_mm_set_sd(((union { vf32h from; double to; }){x}).to)));
#else
    return __builtin_convertvector(x, vf64);
#endif
}
RN_INLINE vf64 vf64_from_vi32h(vi32h x) {
#if VEC_AVX512
    return (vf64)_mm512_cvtepi32_pd((__m256i)x);
#elif VEC_AVX2
    return (vf64)_mm256_cvtepi32_pd((__m128i)x);
#else
    return __builtin_convertvector(x, vf64);
#endif
}
RN_INLINE vf32h vf64_to_half(vf64 x) {
#if VEC_AVX512
    return (vf32h)_mm512_cvtpd_ps((__m512d)x);
#elif VEC_AVX2
    return (vf32h)_mm256_cvtpd_ps((__m256d)x);
#else
    return __builtin_convertvector(x, vf32h);
#endif
}
RN_INLINE vf32h vf32_low(vf32 x) {
#if VEC_AVX512
    return (vf32h)_mm512_castps512_ps256((__m512)x);
#elif VEC_AVX2
    return (vf32h)_mm256_castps256_ps128((__m256)x);
#else
    vf32h half;
    memcpy(&half, &x, sizeof half);
    return half;
#endif
}
RN_INLINE vf32h vf32_high(vf32 x) {
#if VEC_AVX512
    return (vf32h)_mm512_extractf32x8_ps((__m512)x, 1);
#elif VEC_AVX2
    return (vf32h)_mm256_extractf128_ps((__m256)x, 1);
#else
    vf32h half;
    memcpy(&half, (const char *)&x + sizeof half, sizeof half);
    return half;
#endif
}
RN_INLINE vf32 vf32_join(vf32h low, vf32h high) {
#if VEC_AVX512
    return (vf32)_mm512_insertf32x8(_mm512_castps256_ps512((__m256)low), (__m256)high, 1);
#elif VEC_AVX2
    return (vf32)_mm256_set_m128((__m128)high, (__m128)low);
#else
    vf32 whole;
    memcpy(&whole, &low, sizeof low);
    memcpy((char *)&whole + sizeof low, &high, sizeof high);
    return whole;
#endif
}
#if VEC_SSE
RN_INLINE vf64 vf64_low(vf32 x) { return (vf64)_mm_cvtps_pd((__m128)x); }
RN_INLINE vf64 vf64_high(vf32 x) { return (vf64)_mm_cvtps_pd(_mm_movehl_ps((__m128)x, (__m128)x)); }
RN_INLINE vf32 vf32_from_vf64(vf64 low, vf64 high) {
    return (vf32)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
}
#else
RN_INLINE vf64 vf64_low(vf32 x) { return vf64_from_half(vf32_low(x)); }
RN_INLINE vf64 vf64_high(vf32 x) { return vf64_from_half(vf32_high(x)); }
RN_INLINE vf32 vf32_from_vf64(vf64 low, vf64 high) { return vf32_join(vf64_to_half(low), vf64_to_half(high)); }
#endif
RN_INLINE vi32 vi32_from_vf32(vf32 x) { return __builtin_convertvector(x, vi32); } /* toward zero */
RN_INLINE vf32 vf32_from_vi32(vi32 x) { return __builtin_convertvector(x, vf32); }

/* ---- reductions: pairwise trees over the lanes ----------------------------------------------------------------- */

RN_INLINE float vf32_sum(vf32 x) {
#if VEC_AVX512 || VEC_AVX2 || VEC_SSE
#if VEC_AVX512
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif VEC_AVX2
    __m128 q = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
#else
    __m128 q = (__m128)x;
#endif
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_shuffle_ps(q, q, 1)));
#else
    float lane[VF32];
    vf32_store(lane, x);
    for (int width = VF32 / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
#endif
}
RN_INLINE double vf64_sum(vf64 x) {
#if VEC_AVX512 || VEC_AVX2 || VEC_SSE
#if VEC_AVX512
    __m256d h = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)x), _mm512_extractf64x4_pd((__m512d)x, 1));
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
#elif VEC_AVX2
    __m128d q = _mm_add_pd(_mm256_castpd256_pd128((__m256d)x), _mm256_extractf128_pd((__m256d)x, 1));
#else
    __m128d q = (__m128d)x;
#endif
    return _mm_cvtsd_f64(_mm_add_sd(q, _mm_unpackhi_pd(q, q)));
#else
    double lane[VF64];
    vf64_store(lane, x);
    for (int width = VF64 / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
#endif
}
/* The lanes' sum in float64. */
RN_INLINE double vf32_sum_wide(vf32 x) { return vf64_sum(vf64_low(x) + vf64_high(x)); }
/* Largest and smallest lane; no lane may be NaN. */
RN_INLINE float vf32_largest(vf32 x) {
#if VEC_AVX512 || VEC_AVX2 || VEC_SSE
#if VEC_AVX512
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
#elif VEC_AVX2
    __m128 q = _mm_max_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
#else
    __m128 q = (__m128)x;
#endif
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_shuffle_ps(q, q, 1)));
#else
    float best = x[0];
    for (int i = 1; i < VF32; i++) best = x[i] > best ? x[i] : best;
    return best;
#endif
}
RN_INLINE float vf32_smallest(vf32 x) { return -vf32_largest(-x); }
RN_INLINE double vf64_largest(vf64 x) {
#if VEC_AVX512 || VEC_AVX2 || VEC_SSE
#if VEC_AVX512
    __m256d h = _mm256_max_pd(_mm512_castpd512_pd256((__m512d)x), _mm512_extractf64x4_pd((__m512d)x, 1));
    __m128d q = _mm_max_pd(_mm256_castpd256_pd128(h), _mm256_extractf128_pd(h, 1));
#elif VEC_AVX2
    __m128d q = _mm_max_pd(_mm256_castpd256_pd128((__m256d)x), _mm256_extractf128_pd((__m256d)x, 1));
#else
    __m128d q = (__m128d)x;
#endif
    return _mm_cvtsd_f64(_mm_max_sd(q, _mm_unpackhi_pd(q, q)));
#else
    double best = x[0];
    for (int i = 1; i < VF64; i++) best = x[i] > best ? x[i] : best;
    return best;
#endif
}

#if VEC_AVX512
/* values[i] for the lowest five bits of each lane of i: two registers are a table of 32. */
RN_INLINE vf32 vf32_of_32(const float *values, vi32 i) {
    return (vf32)_mm512_permutex2var_ps(_mm512_loadu_ps(values), (__m512i)i, _mm512_loadu_ps(values + 16));
}
#endif
/* 1 / x within 2^-14 of it, for what a correction mends: x and its reciprocal are normal. */
RN_INLINE vf32 vf32_reciprocal_near(vf32 x) {
#if VEC_AVX512
    return (vf32)_mm512_rcp14_ps((__m512)x);
#else
    return 1.0f / x;
#endif
}

/* ---- powers of two ------------------------------------------------------------------------------------------- */

/* 2^n for integer-valued n from -126 to 127 (-1022 to 1023), by building the exponent field. */
RN_INLINE vf32 vf32_pow2(vf32 n) { return (vf32)(((vi32)(n + (0x1.8p23f + 127.0f))) << 23); }
RN_INLINE vf64 vf64_pow2(vf64 n) { return (vf64)(((vi64)(n + (0x1.8p52 + 1023.0))) << 52); }

/* m * 2^n for integer-valued n, with gradual underflow and overflow to infinity, rounded once; |m| in [0.5, 2]. */
RN_INLINE vf32 vf32_ldexp(vf32 m, vf32 n) {
#if VEC_AVX512
    return (vf32)_mm512_scalef_ps((__m512)m, (__m512)n);
#else
    /* In two steps, because 2^n itself may be no normal number. The first stays clear of the subnormals, so only
     * the second rounds. */
    vf32 first = vf32_min(vf32_max(n, vf32_set(-100.0f)), vf32_set(126.0f));
    vf32 rest = vf32_min(vf32_max(n - first, vf32_set(-126.0f)), vf32_set(127.0f));
    return (m * vf32_pow2(first)) * vf32_pow2(rest);
#endif
}
RN_INLINE vf64 vf64_ldexp(vf64 m, vf64 n) {
#if VEC_AVX512
    return (vf64)_mm512_scalef_pd((__m512d)m, (__m512d)n);
#else
    vf64 first = vf64_min(vf64_max(n, vf64_set(-900.0)), vf64_set(1022.0));
    vf64 rest = vf64_min(vf64_max(n - first, vf64_set(-1022.0)), vf64_set(1023.0));
    return (m * vf64_pow2(first)) * vf64_pow2(rest);
#endif
}

#endif
