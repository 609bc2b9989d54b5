/* Poincaré ball: sums in float64 with their errors, scalars of a row from libm, one combination per row.
 *
 * The formulas and their error bounds are those of the reference: sums of positive terms around an exact gap. */
#include "poincare.h"

#include "parallel.h"
#include "poincare_math.h"

#define T float
#define N(name) name##_f32
#define SINGLE 1
#include "poincare_body.h"
#undef T
#undef N
#undef SINGLE

#define T double
#define N(name) name##_f64
#define SINGLE 0
#include "poincare_body.h"

/* ---- the epilogue of a fully connected layer ---------------------------------------------------------------- */

/* Beyond this, sinh is carried with a factor e^-shift that cancels; its squares are below 10^34. */
#define SHIFT_FROM_SINGLE 39.0f
#define SHIFT_FROM 300.0

/* arsinh(p) for p >= 0, within 2 units in the last place: log(1 + v) with v = p + p^2/(1 + sqrt(1 + p^2)). */
RN_INLINE vf32 arsinh_lanes(vf32 p) {
    vf32 root = vf32_sqrt(1.0f + p * p);
    root = vf32_select((vi32)(p > 1e9f), p, root);
    vf32 v = p + p * (p / (1.0f + root));
    /* 1 + v = 2^k m with m from sqrt(1/2) to sqrt(2); a small v itself is m - 1, with all its digits. */
    vf32 one_more = 1.0f + v;
    vi32 bits = (vi32)one_more + (0x3f800000 - 0x3f3504f3);
    vf32 k = vf32_from_vi32((bits >> 23) - 127);
    vf32 f = (vf32)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    vi32 small = (vi32)(v < 0.41f);
    f = vf32_select(small, v, f);
    k = vf32_select(small, vf32_set(0.0f), k);
    /* log(1 + f) = 2 artanh(s) with s = f/(2 + f), |s| < 0.172: five terms leave 2^-28. It is f - s (f - r), the first
     * term exact. */
    vf32 s = f / (2.0f + f), z = s * s;
    vf32 r = vf32_fma(vf32_fma(vf32_fma(vf32_set(2.0f / 9), z, vf32_set(2.0f / 7)), z, vf32_set(2.0f / 5)), z,
                      vf32_set(2.0f / 3)) * z;
    vf32 log_f = f - s * (f - r);
    return vf32_fma(k, vf32_set(0x1.62e43p-1f), vf32_fma(k, vf32_set(-0x1.05c61p-29f), log_f));
}

/* sinh(t) for 0 <= t < 1: five terms of the series leave 2^-25 of it. */
RN_INLINE vf32 short_sinh_lanes(vf32 t) {
    vf32 z = t * t;
    vf32 odd = vf32_fma(vf32_fma(vf32_fma(vf32_set(1.0f / 362880), z, vf32_set(1.0f / 5040)), z, vf32_set(1.0f / 120)), z,
                        vf32_set(1.0f / 6));
    return vf32_fma(t * z, odd, t);
}
/* sinh(t) e^-shift for t >= 0 with one = e^-shift, one_square = e^-2shift; t - shift <= SHIFT_FROM_SINGLE. What is below
 * e^-80 counts as e^-80: the largest entry of the row is then above e^38. */
RN_INLINE vf32 sinh_lanes(vf32 t, vf32 shift, vf32 one, vf32 one_square) {
    vf32 bounded = vf32_max(vf32_set(-80.0f), t - shift); /* NaN passes: it is the second */
    vf32 n = vf32_exp_exponent(bounded) - VEC_RINT_MAGIC;
    vf32 e = (1.0f + vf32_expm1_core(vf32_exp_reduce(bounded, n))) * vf32_pow2(n);
    return vf32_select((vi32)(t < 1.0f), short_sinh_lanes(t) * one, 0.5f * (e - one_square / e));
}

/* sinh(x) e^-shift for x >= 0; shift is 0 unless x is too large for sinh. */
static double scaled_sinh(double x, double shift) {
    return shift == 0 ? sinh(x) : 0.5 * (exp(x - shift) - exp(-x - shift));
}

/* In place, power_k arsinh(p_k) with signs; the result is the largest size. */
static float angles_row_f32(float *y, size_t length, double gap, const float *slope, const float *offset,
                            const float *power) {
    vf32 inner_scale = vf32_set((float)(1 / gap)), offset_scale = vf32_set((float)((2 - gap) / gap));
    vf32 largest = {0};
    for (size_t k = 0; k < length; k += VF32) {
        size_t count = length - k;
        int whole = count >= VF32;
        vf32 inner = whole ? vf32_load(y + k) : vf32_load_part(y + k, count, 0);
        vf32 a = whole ? vf32_load(slope + k) : vf32_load_part(slope + k, count, 0);
        vf32 b = whole ? vf32_load(offset + k) : vf32_load_part(offset + k, count, 0);
        vf32 e = whole ? vf32_load(power + k) : vf32_load_part(power + k, count, 0);
        vf32 p = inner * a * inner_scale - b * offset_scale;
        vf32 t = e * arsinh_lanes(vf32_abs(p));
        largest = vf32_max(t, largest); /* skips NaN, which the sum of squares will carry */
        t = vf32_copysign(t, p);
        if (whole)
            vf32_store(y + k, t);
        else
            vf32_store_part(y + k, count, t);
    }
    return vf32_largest(largest);
}
static void linear_row_f32(float *y, size_t length, double gap, const float *slope, const float *offset,
                           const float *power, double curvature, double margin) {
    double root = sqrt(curvature);
    /* First the arguments of sinh with their signs ... */
    float top = angles_row_f32(y, length, gap, slope, offset, power);
    float shift = top > SHIFT_FROM_SINGLE ? top - SHIFT_FROM_SINGLE : 0.0f;
    /* ... then sinh and the sum of its squares ... */
    vf32 one_lanes = vf32_set((float)exp(-(double)shift)), square_lanes = vf32_set((float)exp(-2.0 * (double)shift));
    vf64 low_sum = {0}, high_sum = {0};
    for (size_t k = 0; k < length; k += VF32) {
        size_t count = length - k;
        int whole = count >= VF32;
        vf32 t = whole ? vf32_load(y + k) : vf32_load_part(y + k, count, 0), size = vf32_abs(t);
        vf32 w = top < 1.0f ? short_sinh_lanes(size) : sinh_lanes(size, vf32_set(shift), one_lanes, square_lanes);
        w = vf32_copysign(w, t);
        vf64 low = vf64_low(w), high = vf64_high(w);
        low_sum = vf64_fma(low, low, low_sum);
        high_sum = vf64_fma(high, high, high_sum);
        if (whole)
            vf32_store(y + k, w);
        else
            vf32_store_part(y + k, count, w);
    }
    /* ... then the common factor. */
    double one = exp(-(double)shift), square = vf64_sum(low_sum) + vf64_sum(high_sum);
    double term = sqrt(one * one + square), scale = 1 / (root * (one + term));
    double radius = sqrt(square) / (one + term);
    if (margin >= 0 && radius > 1 - margin) scale = (1 - margin) / (root * sqrt(square));
    vf32 factor = vf32_set((float)scale);
    for (size_t k = 0; k < length; k += VF32) {
        size_t count = length - k;
        if (count >= VF32)
            vf32_store(y + k, vf32_load(y + k) * factor);
        else
            vf32_store_part(y + k, count, vf32_load_part(y + k, count, 0) * factor);
    }
    if (!(radius < 1 - 1e-5)) inside_f32(y, length, curvature);
}

static double angles_row_f64(double *y, size_t length, double gap, const double *slope, const double *offset,
                             const double *power) {
    double top = 0;
    for (size_t k = 0; k < length; k++) {
        double p = (y[k] * slope[k] - (2 - gap) * offset[k]) / gap;
        y[k] = power[k] * asinh(p);
        if (fabs(y[k]) > top) top = fabs(y[k]);
    }
    return top;
}
static void linear_row_f64(double *y, size_t length, double gap, const double *slope, const double *offset,
                           const double *power, double curvature, double margin) {
    double root = sqrt(curvature), top = angles_row_f64(y, length, gap, slope, offset, power);
    double shift = top > SHIFT_FROM ? top - SHIFT_FROM : 0, square = 0;
    for (size_t k = 0; k < length; k++) {
        y[k] = copysign(scaled_sinh(fabs(y[k]), shift), y[k]);
        square += y[k] * y[k];
    }
    double one = exp(-shift), term = sqrt(one * one + square), scale = 1 / (root * (one + term));
    double radius = sqrt(square) / (one + term);
    if (margin >= 0 && radius > 1 - margin) scale = (1 - margin) / (root * sqrt(square));
    for (size_t k = 0; k < length; k++) y[k] *= scale;
    if (!(radius < 1 - 1e-10)) inside_f64(y, length, curvature);
}

/* Logits power_k arsinh(p_k): in place, as the first sweep above. */
static void logits_f32(float *y, size_t rows, size_t length, const double *gaps, const float *slope, const float *offset,
                       const float *power) {
    int threads = rn_threads(rows, 1.0 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++)
            angles_row_f32(y + row * length, length, gaps[row], slope, offset, power);
    }
}
static void logits_f64(double *y, size_t rows, size_t length, const double *gaps, const double *slope,
                       const double *offset, const double *power) {
    int threads = rn_threads(rows, 30.0 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++)
            angles_row_f64(y + row * length, length, gaps[row], slope, offset, power);
    }
}

static void linear_f32(float *y, size_t rows, size_t length, const double *gaps, const float *slope, const float *offset,
                       const float *power, double curvature, double margin) {
    int threads = rn_threads(rows, 2.0 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++)
            linear_row_f32(y + row * length, length, gaps[row], slope, offset, power, curvature, margin);
    }
}
static void linear_f64(double *y, size_t rows, size_t length, const double *gaps, const double *slope,
                       const double *offset, const double *power, double curvature, double margin) {
    int threads = rn_threads(rows, 60.0 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++)
            linear_row_f64(y + row * length, length, gaps[row], slope, offset, power, curvature, margin);
    }
}

RN_TABLE(poincare) = {.unary_f32 = unary_f32,
                      .binary_f32 = binary_f32,
                      .dist_f32 = dist_f32,
                      .gaps_f32 = gaps_f32,
                      .column_squares_f32 = column_squares_f32,
                      .linear_f32 = linear_f32,
                      .logits_f32 = logits_f32,
                      .unary_f64 = unary_f64,
                      .binary_f64 = binary_f64,
                      .dist_f64 = dist_f64,
                      .gaps_f64 = gaps_f64,
                      .column_squares_f64 = column_squares_f64,
                      .linear_f64 = linear_f64,
                      .logits_f64 = logits_f64};
