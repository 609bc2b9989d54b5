/* Transposition of small matrices of 32-bit words. */
#ifndef REFNORM_TRANSPOSE_H
#define REFNORM_TRANSPOSE_H

#include "vec.h"

#if VEC_AVX512
/* 16 rows of 16 lanes, `stride` bytes apart, become 16 vectors `to_stride` bytes apart. Pairs of lanes, then pairs of pairs,
 * change places within quarters of a vector, and at last the quarters do. */
RN_INLINE void transpose_words(const void *source, size_t stride, void *target, size_t to_stride) {
    const char *from = source;
    char *to = target;
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + (size_t)i * stride);
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

#endif
