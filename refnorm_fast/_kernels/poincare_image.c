/* Poincaré layers on images: see poincare_image.h for the layout, poincare_pixels_body.h for what works pixel by pixel, and
 * poincare_conv_body.h for the convolution. */
#include "poincare_image.h"

#include <math.h>
#include <string.h>

#include "parallel.h"
#include "poincare.h"
#include "poincare_lanes.h"

/* Keeps the compiler from contracting a product whose rounding error is taken apart. */
#if REFNORM_VECTOR_BYTES == 64 && !VEC_AVX512
#define KEEP_LANES(value) __asm__("" : "+m"(value))
#elif defined(__x86_64__)
#define KEEP_LANES(value) __asm__("" : "+x"(value))
#elif defined(__aarch64__)
#define KEEP_LANES(value) __asm__("" : "+w"(value))
#else
#define KEEP_LANES(value) ((void)0)
#endif
RN_INLINE vf64 product_lanes(vf64 a, vf64 b, vf64 *error) {
    vf64 product = a * b;
    KEEP_LANES(product);
#if VEC_HAS_FMA
    *error = vf64_fma(a, b, -product);
#else
    vf64 as = 0x1.0000002p27 * a, bs = 0x1.0000002p27 * b;
    vf64 ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
    *error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
#endif
    return product;
}
RN_INLINE vf64 sum_lanes(vf64 a, vf64 b, vf64 *error) {
    vf64 total = a + b;
    KEEP_LANES(total);
    vf64 seen = total - a;
    *error = (a - (total - seen)) + (b - seen);
    return total;
}

/* As in the reference: below this gap, times length + 4, a doubled-precision sum has lost good bits. */
#define EXACT_GAP 0x1p-48
/* tanh is 1 and sech^2 is 0 in float64 from here on. */
#define SATURATED 400.0
/* Outputs whose sums are in registers at once, for two vectors of pixels. */
#if defined(__AVX512F__) || REFNORM_VECTOR_BYTES == 64 || defined(__aarch64__)
#define OUTPUTS_AT_ONCE 12
#else
#define OUTPUTS_AT_ONCE 6
#endif
/* Terms in one chain of additions; chains are then added up, so that rounding errors are those of short sums. */
#define CHAIN 96
/* Bytes of unfolded input that a thread works on: most of a second-level cache is left to the weight. */
#define TILE_BYTES ((size_t)192 << 10)

/* Pixels whose sums are added up before they meet other blocks': the order of additions is then the same for any number of
 * threads. */
#define BLOCK_PIXELS 512

/* Scratch up to this size stays with its thread. */
#define KEPT_BYTES ((size_t)1 << 20)

/* Where projected patches begin: their length, and sinh and cosh of twice that, from the margin without its rounded 1 - m. */
typedef struct {
    double length, sinh_twice, cosh_twice;
} longest_patch;

static longest_patch longest_of(double margin) {
    /* Without projection: where sinh and cosh are far from overflow, and tanh is 1. */
    if (margin <= 0) return (longest_patch){300.0, sinh(600.0), cosh(600.0)};
    double gap = margin * (2 - margin);
    return (longest_patch){0.5 * log((2 - margin) / margin), 2 * (1 - margin) / gap, (2 - gap) / gap};
}

/* The factors of inner products and of offsets: sinh(2s)/s and cosh(2s) for patches of lengths s, from s^2. */
RN_INLINE void stretch_lanes(vf64 square, longest_patch longest, vf64 *of_inner, vf64 *of_offset) {
    vf64 s = vf64_sqrt(square), twice = 2.0 * vf64_min(vf64_set(longest.length), s); /* NaN passes: it is the second */
    vf64 e = vf64_exp(twice), inverse = 1.0 / e;
    vf64 sinh_twice = vf64_select((vi64)(twice < 1.0), vf64_short_sinh(twice), 0.5 * (e - inverse));
    vi64 beyond = (vi64)(s > longest.length);
    sinh_twice = vf64_select(beyond, vf64_set(longest.sinh_twice), sinh_twice);
    *of_inner = vf64_select((vi64)(s == 0.0), vf64_set(2.0), sinh_twice / s);
    *of_offset = vf64_select(beyond, vf64_set(longest.cosh_twice), 0.5 * (e + inverse));
}

#define T float
#define N(name) name##_f32
#define SINGLE 1
#include "poincare_pixels_body.h"
#undef T
#undef N
#undef SINGLE

#define T double
#define N(name) name##_f64
#define SINGLE 0
#include "poincare_pixels_body.h"
#undef T
#undef N
#undef SINGLE

#define T float
#define R float
#define N(name) name##_f32
#define PIXELS(name) name##_f32
#define VEC(name) vf32_##name
#define V vf32
#define LANES VF32
#define SINH_REACH SINH_REACH_f32
#define SINGLE 1
#include "poincare_conv_body.h"

#define T float
#define R double
#define N(name) name##_wide
#define PIXELS(name) name##_f32
#define VEC(name) vf64_##name
#define V vf64
#define LANES VF64
#define SINH_REACH SINH_REACH_f64
#define SINGLE 1
#include "poincare_conv_body.h"

#define T double
#define R double
#define N(name) name##_f64
#define PIXELS(name) name##_f64
#define VEC(name) vf64_##name
#define V vf64
#define LANES VF64
#define SINH_REACH SINH_REACH_f64
#define SINGLE 0
#include "poincare_conv_body.h"

RN_TABLE(poincare_image) = {
    .conv2d_f32 = conv2d_f32,
    .conv2d_wide = conv2d_wide,
    .conv2d_f64 = conv2d_f64,
    .midpoint_f32 = midpoint_f32,
    .midpoint_f64 = midpoint_f64,
    .normalize_f32 = normalize_f32,
    .normalize_f64 = normalize_f64,
    .point_wise_f32 = point_wise_f32,
    .point_wise_f64 = point_wise_f64,
    .avg_pool2d_f32 = avg_pool2d_f32,
    .avg_pool2d_f64 = avg_pool2d_f64,
};
