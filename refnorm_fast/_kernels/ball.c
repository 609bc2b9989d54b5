/* Operations on points of the Poincaré ball. A derivative reads its rows once from memory: sweeps for the inner products
 * while they are in the first-level cache, the scalars of a block of rows together, and a sweep for the combination.
 *
 * The formulas, and how they avoid cancellation, are those of the reference. */
#include "ball.h"

#include "parallel.h"
#include "poincare_math.h"

/* Up to here x cosh x - x sinh x is summed from its series, up to 1/2 the bend of artanh; beyond, directly. */
#define SERIES_LIMIT 1.0
#define ARTANH_SERIES_LIMIT 0.25
/* From this relative radius on, the derivative of a scaling is a plain difference. */
#define DIRECT_BEND 0.5
/* Beyond this argument sinh is continued as sinh(300) e^(a - 300), so that its squares stay finite. */
#define SINH_LIMIT 300.0

/* x cosh(x) - sinh(x) = x^3 times a series in z = x^2: ten terms of (2k+2)/(2k+3)! serve up to 1. */
RN_INLINE vf64 cosh_excess_lanes(vf64 z) {
    static const double terms[10] = {2.0 / 6,          4.0 / 120,         6.0 / 5040,         8.0 / 362880,
                                     10.0 / 39916800,  12.0 / 6227020800, 14.0 / 1307674368000, 16.0 / 355687428096000,
                                     18.0 / 121645100408832000, 20.0 / 51090942171709440000.0};
    vf64 sum = vf64_set(terms[9]);
    for (int i = 8; i >= 0; i--) sum = vf64_fma(sum, z, vf64_set(terms[i]));
    return sum;
}
/* 1/cosh(s)^2 for s >= 0, without cosh itself, which overflows */
RN_INLINE vf64 sech_square_lanes(vf64 s) {
    vf64 decay = vf64_exp(-2.0 * vf64_min(vf64_set(SATURATED), s));
    return 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
}
/* sech(s)^2 - tanh(s)/s, from `ratio` = tanh(s)/s and `slope` = sech(s)^2: about -2 s^2/3 for small s */
RN_INLINE vf64 tanh_bend_lanes(vf64 s, vf64 ratio, vf64 slope) {
    vf64 z = s * s, near = z * (cosh_excess_lanes(z) * vf64_sqrt(slope) - ratio * ratio);
    return vf64_select((vi64)(s <= SERIES_LIMIT), near, slope - ratio);
}
/* 1/(1 - s^2) - artanh(s)/s, from `gap` = 1 - s^2 and `ratio` = artanh(s)/s: about 2 s^2/3 for small s */
RN_INLINE vf64 artanh_bend_lanes(vf64 s, vf64 gap, vf64 ratio) {
    vf64 z = s * s, sum = vf64_set(56.0 / 57);
    for (int i = 26; i >= 0; i--) sum = vf64_fma(sum, z, vf64_set((double)(2 * i + 2) / (double)(2 * i + 3)));
    return vf64_select((vi64)(z <= ARTANH_SERIES_LIMIT), z * sum, 1.0 / gap - ratio);
}
/* tanh(a) - a for a = arsinh(p) >= 0: about -a^3/3 for small a */
RN_INLINE vf64 tanh_excess_lanes(vf64 a, vf64 p) {
    vf64 cosh = vf64_select((vi64)(p > 1e100), p, vf64_sqrt(1.0 + p * p)), z = a * a;
    return vf64_select((vi64)(a <= SERIES_LIMIT), -(a * z) * cosh_excess_lanes(z) / cosh, p / cosh - a);
}
RN_INLINE vf64 tanh_excess_signed(vf64 a, vf64 p) { return vf64_copysign(tanh_excess_lanes(vf64_abs(a), vf64_abs(p)), -a); }
/* numerator / denominator, or `limit` where the denominator is 0 */
RN_INLINE vf64 ratio_lanes(vf64 numerator, vf64 denominator, vf64 limit) {
    vi64 zero = (vi64)(denominator == 0.0);
    return vf64_select(zero, limit, numerator / vf64_select(zero, vf64_set(1.0), denominator));
}

/* Division of a row by its length in two steps, so that no length leaves the range; by 1 if the length is 0. */
typedef struct {
    double first, size, inverse;
} unit;
RN_INLINE unit unit_of(double size) {
    if (size == 0) return (unit){1, 1, 1};
    int exponent;
    frexp(size, &exponent);
    double first = ldexp(1.0, exponent > 1000 ? -1000 : exponent < -1000 ? 1000 : 0);
    return (unit){first, size * first, 1 / (size * first)};
}
/* a / size, rounded once: an entry that is the whole vector gives exactly 1 or -1. */
RN_INLINE vf64 heading_lanes(vf64 a, unit by) {
    a *= by.first;
#if VEC_HAS_FMA
    vf64 quotient = a * by.inverse;
    return vf64_fma(vf64_fma(vf64_set(-by.size), quotient, a), vf64_set(by.inverse), quotient);
#else
    return a / by.size;
#endif
}

/* Statements over a block's scalars, VF64 at a time from i on. */
#define BLOCK_LANES for (int i = 0; i < BLOCK; i += VF64)
#define AT(array) vf64_load((array) + i)
#define SET(array, value) vf64_store((array) + i, (value))

#define T float
#define N(name) name##_f32
#define SINGLE 1
#include "poincare_rows.h"
#include "ball_body.h"
#include "ball_linear_body.h"
#include "poincare_rows_end.h"
#undef T
#undef N
#undef SINGLE

#define T double
#define N(name) name##_f64
#define SINGLE 0
#include "poincare_rows.h"
#include "ball_body.h"
#include "ball_linear_body.h"
#include "poincare_rows_end.h"

#define ENTRIES(suffix)                                                                                     \
    .ray_back_##suffix = ray_back_##suffix, .pair_back_##suffix = pair_back_##suffix,                       \
    .dist_back_##suffix = dist_back_##suffix, .scale_##suffix = scale_##suffix,                             \
    .factor_##suffix = factor_##suffix, .factor_back_##suffix = factor_back_##suffix,                       \
    .turn_##suffix = turn_##suffix, .turn_back_##suffix = turn_back_##suffix,                               \
    .linear_back_##suffix = linear_back_##suffix, .gaps_back_##suffix = gaps_back_##suffix,                 \
    .turn_columns_##suffix = turn_columns_##suffix

RN_TABLE(ball) = {ENTRIES(f32), ENTRIES(f64)};
