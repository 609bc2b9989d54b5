/* Tiled softmax and sigmoid attention. */
#include "attention.h"

#include "parallel.h"
#include "transpose.h"
#include "vec_math.h"

/* Keys a block of the online softmax, rows a group at most, bytes of a group's scores, rows a chunk. */
enum { KEY_BLOCK = 512, GROUP_ROWS = 96, SCORE_BYTES = 24 << 10, CHUNK_ROWS = 192 };
/* Rows up to which keys and values are read where they are, and up to which their blocks may be dealt out to threads: what
 * a block then keeps is small beside its keys and values. */
enum { FEW_ROWS = 48, SPLIT_ROWS = 24 };
/* Keys a block of the backward pass: two panels of scores of that height fit the first-level cache. */
enum { BACKWARD_KEYS = 120 };

/* 2^y for y <= 0, relative error below 2e-7; 0 below 2^-126.5. The scale of the scores has log2(e) in it. The bound
 * makes n = -127 of anything smaller, whose power of two has the exponent field 0: it is the number 0. */
RN_INLINE vf32 exp2_f32(vf32 y) {
    vf32 bounded = vf32_max(vf32_set(-127.0f), y); /* NaN stays: it is the second argument */
    vf32 n = vf32_rint_small(bounded), t = bounded - n;
    vf32 p = vf32_fma(vf32_set(0x1.41d330p-13f), t, vf32_set(0x1.5f456ap-10f));
    p = vf32_fma(p, t, vf32_set(0x1.3b2dbcp-7f));
    p = vf32_fma(p, t, vf32_set(0x1.c6aed4p-5f));
    p = vf32_fma(p, t, vf32_set(0x1.ebfbdap-3f));
    p = vf32_fma(p, t, vf32_set(0x1.62e430p-1f));
    p = vf32_fma(p, t, vf32_set(1.0f));
    return p * vf32_pow2(n);
}

/* 1 / x for 1 <= x <= 2^125 within 2 units in the last place: an estimate and one step of Newton's iteration. */
RN_INLINE vf32 inverse_f32(vf32 x) {
#if VEC_AVX512
    vf32 near = (vf32)_mm512_rcp14_ps((__m512)x);
#elif VEC_AVX2
    vf32 near = (vf32)_mm256_rcp_ps((__m256)x);
#else
    return 1.0f / x;
#endif
#if VEC_AVX512 || VEC_AVX2
    return vf32_fma(near, vf32_fma(-x, near, vf32_set(1.0f)), near);
#endif
}
RN_INLINE vf64 inverse_f64(vf64 x) { return 1.0 / x; }

/* A score beyond which exp(-score) would leave the range: its weight is 0. */
#define FARTHEST_f32 125.0f
#define FARTHEST_f64 700.0

#define REAL float
#define TILE_TYPE f32
#define TILE_VEC vf32
#define ATTENTION_EXP exp2_f32
#define ATTENTION_UNIT 1.4426950408889634
#include "tile.h"
#include "attention_rows.h"
#include "attention_backward.h"
#undef REAL
#undef TILE_TYPE
#undef TILE_VEC
#undef ATTENTION_EXP
#undef ATTENTION_UNIT

#define REAL double
#define TILE_TYPE f64
#define TILE_VEC vf64
#define ATTENTION_EXP vf64_exp
#define ATTENTION_UNIT 1.0
#include "tile.h"
#include "attention_rows.h"
#include "attention_backward.h"

RN_TABLE(attention) = {
    .items_f32 = items_f32,
    .items_f64 = items_f64,
    .backward_f32 = backward_f32,
    .backward_f64 = backward_f64,
    .packed_f32 = packed_f32,
    .packed_f64 = packed_f64,
};
