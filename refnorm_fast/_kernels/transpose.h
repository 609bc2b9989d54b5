/* Transposition of small square matrices. */
#ifndef REFNORM_TRANSPOSE_H
#define REFNORM_TRANSPOSE_H

#include "vec.h"

#if VEC_AVX512
/* 16 rows of 16 lanes, `stride` bytes apart, become 16 vectors `to_stride` bytes apart. Pairs of lanes, then pairs of pairs,
 * change places within quarters of a vector, and at last the quarters do. */
RN_INLINE void transpose_words(const void *source, ptrdiff_t stride, void *target, size_t to_stride) {
    const char *from = source;
    char *to = target;
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    /* a[4 g + c]: column 4 quarter + c of rows 4 g to 4 g + 3. */
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512i low = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88), high = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        __m512i low2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88), high2 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        _mm512_storeu_si512(to + (size_t)c * to_stride, _mm512_shuffle_i32x4(low, low2, 0x88));
        _mm512_storeu_si512(to + (size_t)(8 + c) * to_stride, _mm512_shuffle_i32x4(low, low2, 0xdd));
        _mm512_storeu_si512(to + (size_t)(4 + c) * to_stride, _mm512_shuffle_i32x4(high, high2, 0x88));
        _mm512_storeu_si512(to + (size_t)(12 + c) * to_stride, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#endif

/* A matrix of as many rows as a vector has lanes; strides count entries. */
RN_INLINE void transpose_lanes_f32(const float *from, ptrdiff_t stride, float *to, size_t to_stride) {
#if VEC_AVX512
    transpose_words(from, stride * (ptrdiff_t)sizeof(float), to, to_stride * sizeof(float));
#elif VEC_AVX2
    __m256 a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(from + i * stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    /* a[4 g + c]: columns c and 4 + c of rows 4 g to 4 g + 3. */
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        _mm256_storeu_ps(to + (size_t)c * to_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
        _mm256_storeu_ps(to + (size_t)(4 + c) * to_stride, _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
    }
#elif VEC_SSE
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + stride), c = _mm_loadu_ps(from + 2 * stride);
    __m128 d = _mm_loadu_ps(from + 3 * stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + to_stride, b);
    _mm_storeu_ps(to + 2 * to_stride, c);
    _mm_storeu_ps(to + 3 * to_stride, d);
#else
    for (int i = 0; i < VF32; i++)
        for (int j = 0; j < VF32; j++) to[(size_t)j * to_stride + (size_t)i] = from[i * stride + j];
#endif
}
RN_INLINE void transpose_lanes_f64(const double *from, ptrdiff_t stride, double *to, size_t to_stride) {
#if VEC_AVX512
    __m512d a[8], b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) a[i] = _mm512_loadu_pd(from + i * stride);
    /* b[2 p + c]: columns c, 2 + c, 4 + c and 6 + c of rows 2 p and 2 p + 1. */
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm512_unpacklo_pd(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_pd(a[i], a[i + 1]);
    }
#pragma GCC unroll 2
    for (int c = 0; c < 2; c++) {
        __m512d low = _mm512_shuffle_f64x2(b[c], b[2 + c], 0x88), high = _mm512_shuffle_f64x2(b[c], b[2 + c], 0xdd);
        __m512d low2 = _mm512_shuffle_f64x2(b[4 + c], b[6 + c], 0x88), high2 = _mm512_shuffle_f64x2(b[4 + c], b[6 + c], 0xdd);
        _mm512_storeu_pd(to + (size_t)c * to_stride, _mm512_shuffle_f64x2(low, low2, 0x88));
        _mm512_storeu_pd(to + (size_t)(4 + c) * to_stride, _mm512_shuffle_f64x2(low, low2, 0xdd));
        _mm512_storeu_pd(to + (size_t)(2 + c) * to_stride, _mm512_shuffle_f64x2(high, high2, 0x88));
        _mm512_storeu_pd(to + (size_t)(6 + c) * to_stride, _mm512_shuffle_f64x2(high, high2, 0xdd));
    }
#elif VEC_AVX2
    __m256d a = _mm256_loadu_pd(from), b = _mm256_loadu_pd(from + stride), c = _mm256_loadu_pd(from + 2 * stride);
    __m256d d = _mm256_loadu_pd(from + 3 * stride);
    __m256d even = _mm256_unpacklo_pd(a, b), even2 = _mm256_unpacklo_pd(c, d);
    __m256d odd = _mm256_unpackhi_pd(a, b), odd2 = _mm256_unpackhi_pd(c, d);
    _mm256_storeu_pd(to, _mm256_permute2f128_pd(even, even2, 0x20));
    _mm256_storeu_pd(to + to_stride, _mm256_permute2f128_pd(odd, odd2, 0x20));
    _mm256_storeu_pd(to + 2 * to_stride, _mm256_permute2f128_pd(even, even2, 0x31));
    _mm256_storeu_pd(to + 3 * to_stride, _mm256_permute2f128_pd(odd, odd2, 0x31));
#elif VEC_SSE
    __m128d a = _mm_loadu_pd(from), b = _mm_loadu_pd(from + stride);
    _mm_storeu_pd(to, _mm_unpacklo_pd(a, b));
    _mm_storeu_pd(to + to_stride, _mm_unpackhi_pd(a, b));
#else
    for (int i = 0; i < VF64; i++)
        for (int j = 0; j < VF64; j++) to[(size_t)j * to_stride + (size_t)i] = from[i * stride + j];
#endif
}

#endif
