/* Norms with statistics per channel, float32 and float64 from one body. */
#include "channel_norm.h"

#include <math.h>

#include "parallel.h"
#include "vec_math.h"

/* Sums over a channel that a phase makes, of x and of dy:
 *     moments   sum(d), sum(d^2)           d = x - mean; the mean is a guess
 *     squares   -, sum(x^2)
 *     absolute  sum|c|, sum(sign c)
 *     products  sum(dy), sum(dy c)
 * `wide`: in float64 term by term, where float32 could leave its range or would lose digits. */
enum { MOMENTS = 0, SQUARES, ABSOLUTE, PRODUCTS };
/* What the mean of the moments is: a guess; zero, after entries or a guess that are not finite; final but for rounding. */
enum { GUESSED = 0, FROM_ZERO, CENTRED };
typedef struct {
    int sums, wide, mean;
} phase;

/* -1, 0 or 1; NaN stays. */
RN_INLINE vf32 vf32_sign(vf32 c) {
    return vf32_select((c == 0) | (c != c), c, vf32_copysign(vf32_set(1), c));
}
RN_INLINE vf64 vf64_sign(vf64 c) {
    return vf64_select((c == 0) | (c != c), c, vf64_copysign(vf64_set(1), c));
}

/* Ways in which an entry of the output comes about: forward, backward, backward of L1, backward that x plays no part in
 * (so that an infinite x leaves it alone). */
enum { FORWARD = 0, COMBINE, COMBINE_SIGNS, SCALE };

/* EvoNorm's sums: terms in T before a sum goes to float64; of B0: dgain, dbias, dslope, the cotangents of the batch's and
 * of the instance's deviation. */
enum { EVONORM_CHAIN = 8, B0_SUMS = 5 };

#define T float
#define VT vf32
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define WIDE 0
#include "channel_norm_body.h"
#include "evonorm_body.h"
#include "region_norm_body.h"
#undef T
#undef VT
#undef LANES
#undef V
#undef N
#undef WIDE

#define T double
#define VT vf64
#define LANES VF64
#define V(name) vf64_##name
#define N(name) name##_f64
#define WIDE 1
#include "channel_norm_body.h"
#include "evonorm_body.h"
#include "region_norm_body.h"

#include "plane_norms.h"

RN_TABLE(channel_norm) = {.norm_f32 = norm_f32,
                          .norm_f64 = norm_f64,
                          .backward_f32 = backward_f32,
                          .backward_f64 = backward_f64,
                          .sums_f32 = sums_f32,
                          .sums_f64 = sums_f64,
                          .apply_f32 = apply_f32,
                          .apply_f64 = apply_f64,
                          .region_f32 = region_forward_f32,
                          .region_f64 = region_forward_f64,
                          .region_backward_f32 = region_backward_f32,
                          .region_backward_f64 = region_backward_f64,
                          .batch_channel_step = batch_channel_step,
                          .batch_channel_pull = batch_channel_pull,
                          .unmix_step = unmix_step,
                          .unmix_move = unmix_move,
                          .unmix_pull = unmix_pull,
                          .combine_f32 = combine_f32,
                          .combine_f64 = combine_f64,
                          .evonorm_b0_f32 = evonorm_b0_f32,
                          .evonorm_b0_f64 = evonorm_b0_f64,
                          .evonorm_b0_backward_f32 = evonorm_b0_backward_f32,
                          .evonorm_b0_backward_f64 = evonorm_b0_backward_f64,
                          .evonorm_s0_f32 = evonorm_s0_f32,
                          .evonorm_s0_f64 = evonorm_s0_f64,
                          .evonorm_s0_backward_f32 = evonorm_s0_backward_f32,
                          .evonorm_s0_backward_f64 = evonorm_s0_backward_f64};
