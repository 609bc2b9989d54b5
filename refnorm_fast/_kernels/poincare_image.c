/* Poincaré layers on images: see poincare_image.h for the layout, poincare_pixels_body.h for what works pixel by pixel,
 * poincare_midpoint_body.h and poincare_normalize_body.h for the batch normalization, and poincare_conv_body.h for the
 * convolution. */
#include "poincare_image.h"

#include <math.h>
#include <string.h>

#include "parallel.h"
#include "poincare.h"
#include "poincare_lanes.h"
#include "poincare_sums.h"
#include "transpose.h"

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
/* Bytes of a block of points that come as rows, half of a first-level cache: it is transposed before anything else. */
#define ROW_BLOCK_BYTES ((size_t)24 << 10)

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

RN_INLINE vf64 load_sums(const double *from, size_t count) {
    if (count >= VF64) return vf64_load(from);
    vf64 lanes = {0};
    for (size_t i = 0; i < count; i++) lanes[i] = from[i];
    return lanes;
}
RN_INLINE void store_sums(double *to, size_t count, vf64 value) {
    for (size_t i = 0; i < VF64 && i < count; i++) to[i] = value[i];
}

/* Through v = unit log0(x): dx = unit (artanh(s)/s dv + bend x), whose factors these are, from <dv, x>. */
RN_INLINE vf64 log_back_lanes(vf64 square, vf64 gap, double curvature, vf64 product, vf64 *of_x) {
    vf64 s = vf64_sqrt(curvature * square), reach = vf64_arsinh(s / vf64_sqrt(gap));
    vf64 scale = vf64_select((vi64)(s == 0.0), vf64_set(1.0), reach / s);
    *of_x = vf64_select((vi64)(square == 0.0), vf64_set(0.0), (1.0 / gap - scale) / square * product);
    return scale;
}

/* What is the same for all points in the pullback of a midpoint m = 2S/E mean, from the cotangent g of m:
 *     E/2 <g,dm> = sum <g, d(a_i x_i)> - <g,m> dE/2;   the mean's own motion drops out of V. */
typedef struct {
    const double *g, *heaviest, *drift;
    double curvature, scale, bend, constant, of_weight;
    double term; /* of the curvature */
} midpoint_pull;
/* And of VF64 points: dx = of_g (g - bend offset) + of_point x. */
typedef struct {
    vf64 of_g, of_point, by_gap, by_weight;
} point_pull;

static midpoint_pull midpoint_pull_of(const rn_poincare_midpoint *at, const double *g, size_t channels, double curvature) {
    midpoint_pull pull = {.g = g, .heaviest = at->heaviest, .drift = at->drift, .curvature = curvature};
    double along = 0, on_mean = 0, root = sqrt(at->weights * at->weights + 4 * curvature * at->mass * at->scatter);
    double denominator = 2 * at->mass - at->weights + root;
    for (size_t k = 0; k < channels; k++) {
        along += g[k] * at->middle[k];
        on_mean += g[k] * (at->heaviest[k] + at->drift[k]);
    }
    /* x_i - m = (x_i - mean) + shift mean with shift = (root - W)/E. */
    double shift = 4 * curvature * at->mass * at->scatter / (root + at->weights) / denominator, bend = along * curvature / root;
    pull.scale = 2 / denominator;
    pull.bend = 2 * bend * at->mass;
    pull.constant = shift * on_mean - bend * at->scatter;
    pull.of_weight = along * shift / root;
    pull.term = -2 * along / denominator * at->mass * at->scatter / root;
    return pull;
}
/* along = <g, offset>, distance = |offset|^2. */
RN_INLINE point_pull point_pull_of(const midpoint_pull *pull, vf64 weight, vf64 gap, vf64 along, vf64 distance) {
    vf64 mass = weight / gap, by_mass = pull->scale * (along + pull->constant - 0.5 * pull->bend * distance);
    vf64 growth = by_mass * mass / gap;
    return (point_pull){pull->scale * mass, 2 * pull->curvature * growth, growth, by_mass / gap + pull->of_weight};
}

/* What a block of points tells: S, W, V and the largest mass, then the heaviest point and the mean's drift from it. */
enum { PART_MASS, PART_WEIGHTS, PART_SCATTER, PART_LARGEST, PART_HEAD };

/* What a block of a normalization's pullback leaves for every pixel: coefficients of g and w in the cotangents of m and b, and
 * of w in that of the squared distances. And in sums: what multiplies m and b there, and the scale's cotangent. */
enum { COEFFICIENTS = 5, TOTALS = 6 };

#include "poincare_passage.h"

#define T float
#define N(name) name##_f32
#define SINGLE 1
#include "poincare_pixels_body.h"
#include "poincare_midpoint_body.h"
#include "poincare_normalize_body.h"
#undef T
#undef N
#undef SINGLE

#define T double
#define N(name) name##_f64
#define SINGLE 0
#include "poincare_pixels_body.h"
#include "poincare_midpoint_body.h"
#include "poincare_normalize_body.h"
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
    .conv2d_back_f32 = conv2d_back_f32,
    .conv2d_back_wide = conv2d_back_wide,
    .conv2d_back_f64 = conv2d_back_f64,
    .midpoint_f32 = midpoint_f32,
    .midpoint_f64 = midpoint_f64,
    .midpoints_f32 = midpoints_f32,
    .midpoints_f64 = midpoints_f64,
    .midpoints_back_f32 = midpoints_back_f32,
    .midpoints_back_f64 = midpoints_back_f64,
    .normalize_f32 = normalize_f32,
    .normalize_f64 = normalize_f64,
    .normalize_sums_f32 = normalize_sums_f32,
    .normalize_sums_f64 = normalize_sums_f64,
    .normalize_back_f32 = normalize_back_f32,
    .normalize_back_f64 = normalize_back_f64,
    .point_wise_f32 = point_wise_f32,
    .point_wise_f64 = point_wise_f64,
    .avg_pool2d_f32 = avg_pool2d_f32,
    .avg_pool2d_f64 = avg_pool2d_f64,
    .avg_pool2d_back_f32 = avg_pool2d_back_f32,
    .avg_pool2d_back_f64 = avg_pool2d_back_f64,
};
