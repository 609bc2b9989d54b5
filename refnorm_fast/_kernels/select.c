/* Selection of the largest entries, float32 and float64 from one body. */
#include "select.h"

#include <math.h>

#include "parallel.h"
#include "softmax.h"
#include "vec.h"

/* One bit a lane of a mask. */
RN_INLINE uint32_t vi32_bits(vi32 mask) {
#if VEC_AVX512
    return (uint32_t)_mm512_movepi32_mask((__m512i)mask);
#elif VEC_AVX2
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif VEC_SSE
    return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < VF32; lane++) bits |= (uint32_t)(mask[lane] & 1) << lane;
    return bits;
#endif
}
RN_INLINE uint32_t vi64_bits(vi64 mask) {
#if VEC_AVX512
    return (uint32_t)_mm512_movepi64_mask((__m512i)mask);
#elif VEC_AVX2
    return (uint32_t)_mm256_movemask_pd((__m256d)mask);
#elif VEC_SSE
    return (uint32_t)_mm_movemask_pd((__m128d)mask);
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < VF64; lane++) bits |= (uint32_t)(mask[lane] & 1) << lane;
    return bits;
#endif
}

/* Rows whose selected entries stand side by side, entry after entry, so that the softmax runs down columns. The arrays kept for the
 * backward are in this order. */
#define CHUNK_ROWS ((size_t)64)
/* Rows of at most this many entries may be scanned once for each of the selected. */
#define SCAN_LENGTH 1024
/* Partial sums of the bias's cotangent: so many whatever the number of threads. */
#define BIAS_PARTS 32

#define T float
#define VT vf32
#define VI vi32
#define LANES VF32
#define V(name) vf32_##name
#define VM(name) vi32_##name
#define N(name) name##_f32
#include "select_body.h"
#undef T
#undef VT
#undef VI
#undef LANES
#undef V
#undef VM
#undef N

#define T double
#define VT vf64
#define VI vi64
#define LANES VF64
#define V(name) vf64_##name
#define VM(name) vi64_##name
#define N(name) name##_f64
#include "select_body.h"

#define TABLE_ENTRIES(s) \
    .topk_softmax_##s = topk_softmax_##s, .topk_softmax_backward_##s = topk_softmax_backward_##s

RN_TABLE(select) = {TABLE_ENTRIES(f32), TABLE_ENTRIES(f64)};
