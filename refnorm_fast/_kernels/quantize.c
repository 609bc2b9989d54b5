/* Elementwise quantizers, float32 and float64 from one body. */
#include "quantize.h"

#include "parallel.h"
#include "vec.h"

/* ---- codes of 8 bits ------------------------------------------------------------------------------------------- */

/* The low bytes of VF32 integers. */
RN_INLINE void store_bytes(uint8_t *to, vi32 codes) {
#if VEC_AVX512
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)codes));
#else
    int32_t lanes[VF32];
    vi32_store(lanes, codes);
    for (size_t i = 0; i < VF32; i++) to[i] = (uint8_t)lanes[i];
#endif
}

/* 4 VF32 integers from -128 to 127 plus `excess`, 0 or 128, as bytes: packed twice, which mixes the 16-byte parts, then
 * put in order. The excess flips the first bit. */
RN_INLINE void store_bytes_of_four(uint8_t *to, const vi32 *codes, int excess, int STREAM) {
    vi32 flip = vi32_set(excess ? (int32_t)0x80808080 : 0);
#if VEC_AVX512
    __m512i low = _mm512_packs_epi32((__m512i)codes[0], (__m512i)codes[1]);
    __m512i high = _mm512_packs_epi32((__m512i)codes[2], (__m512i)codes[3]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    vi32 bytes = flip ^ (vi32)_mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
#elif VEC_AVX2
    __m256i low = _mm256_packs_epi32((__m256i)codes[0], (__m256i)codes[1]);
    __m256i high = _mm256_packs_epi32((__m256i)codes[2], (__m256i)codes[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    vi32 bytes = flip ^ (vi32)_mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
#elif VEC_SSE
    __m128i low = _mm_packs_epi32((__m128i)codes[0], (__m128i)codes[1]);
    __m128i high = _mm_packs_epi32((__m128i)codes[2], (__m128i)codes[3]);
    vi32 bytes = flip ^ (vi32)_mm_packs_epi16(low, high);
#else
    vi32 bytes;
    uint8_t lanes[4 * VF32];
    for (size_t k = 0; k < 4; k++) store_bytes(lanes + k * VF32, codes[k]);
    memcpy(&bytes, lanes, sizeof bytes);
    bytes ^= flip;
#endif
    if (STREAM)
        vf32_stream((float *)to, (vf32)bytes);
    else
        memcpy(to, &bytes, sizeof bytes);
}

/* VF32 codes of 8 bits as floats. */
RN_INLINE vf32 load_codes(const void *q, int SIGNED) {
#if VEC_AVX512
    __m128i bytes = _mm_loadu_si128((const __m128i *)q);
    return (vf32)_mm512_cvtepi32_ps(SIGNED ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#elif VEC_AVX2
    __m128i bytes = _mm_loadl_epi64((const __m128i *)q);
    return (vf32)_mm256_cvtepi32_ps(SIGNED ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes));
#else
    vi32 codes;
    for (int i = 0; i < VF32; i++) codes[i] = SIGNED ? ((const int8_t *)q)[i] : ((const uint8_t *)q)[i];
    return vf32_from_vi32(codes);
#endif
}

/* ---- logarithms ------------------------------------------------------------------------------------------------- */

/* log2(t) for normal t > 0, within 2^-23 of it plus half a unit in the last place of the result: the fraction in
 * [sqrt(1/2), sqrt(2)), and a polynomial that is minimax for the absolute error. */
RN_INLINE vf32 log2_near(vf32 t) {
    const int32_t root = 0x3f3504f3; /* sqrt(1/2) */
    vi32 bits = (vi32)((vu32)t + (0x3f800000u - (uint32_t)root));
    vf32 whole = vf32_from_vi32((bits >> 23) - 127), z = (vf32)((bits & 0x7fffff) + root) - 1;
    vf32 z2 = z * z;
    vf32 a = vf32_fma(vf32_set(-0x1.7155c8p-1f), z, vf32_set(0x1.715472p+0f));
    vf32 b = vf32_fma(vf32_set(-0x1.70b4cap-2f), z, vf32_set(0x1.ec7986p-2f));
    vf32 c = vf32_fma(vf32_set(-0x1.008260p-2f), z, vf32_set(0x1.25c536p-2f));
    vf32 d = vf32_fma(vf32_set(-0x1.24e9acp-3f), z, vf32_set(0x1.e2bed4p-3f));
    vf32 z4 = z2 * z2, low = vf32_fma(b, z2, a), high = vf32_fma(d, z2, c);
    return vf32_fma(vf32_fma(high, z4, low), z, whole);
}

/* Levels of VF32 numbers by logarithm. *nearest falls to the least distance from a tie. */
RN_INLINE vi32 levels_near(vf32 t, const rn_search *search, vf32 *nearest) {
    vf32 v = vf32_fma(log2_near(t), vf32_set((float)search->slope), vf32_set((float)search->start));
    vi32 small = t < 0x1p-126f;
    v = vf32_max(vf32_min(v, vf32_set((float)search->levels)), (vf32){0});
    v = vf32_select(small, (vf32){0}, v);
    vf32 r = vf32_rint_small(v), from_tie = 0.5f - vf32_abs(v - r);
    /* The logarithm of a subnormal number is another one; that of 0 is below all levels. */
    from_tie = vf32_select(small & (t != 0), (vf32){0}, from_tie);
    *nearest = vf32_min(from_tie, *nearest);
    return vi32_from_vf32(r);
}

#define T float
#define VT vf32
#define VI vi32
#define VU vu32
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define ANY vi32_any
#define WIDE 0
#include "quantize_body.h"
#undef T
#undef VT
#undef VI
#undef VU
#undef LANES
#undef V
#undef N
#undef ANY
#undef WIDE
#undef SHIFT

#define T double
#define VT vf64
#define VI vi64
#define VU vu64
#define LANES VF64
#define V(name) vf64_##name
#define N(name) name##_f64
#define ANY vi64_any
#define WIDE 1
#include "quantize_body.h"

#define ENTRIES(suffix)                                                                                  \
    .affine_##suffix = affine_##suffix, .affine_backward_##suffix = affine_backward_##suffix,            \
    .affine_points_##suffix = affine_points_##suffix, .extremes_##suffix = extremes_##suffix,            \
    .magnitudes_##suffix = magnitudes_##suffix, .round_##suffix = round_##suffix,                        \
    .round_stochastic_##suffix = round_stochastic_##suffix, .levels_##suffix = levels_##suffix,          \
    .levels_backward_##suffix = levels_backward_##suffix, .lookup_##suffix = lookup_##suffix,      \
    .codewords_##suffix = codewords_##suffix, .shift_codes_##suffix = shift_codes_##suffix

RN_TABLE(quantize) = {ENTRIES(f32), ENTRIES(f64)};
