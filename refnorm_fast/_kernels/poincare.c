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

#include "poincare_lanes.h"

/* Beyond this, sinh is carried with a factor e^-shift that cancels; its squares are below 10^34. */
#define SHIFT_FROM_SINGLE SINH_REACH_f32
#define SHIFT_FROM SINH_REACH_f64

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
        vf32 t = e * vf32_arsinh(vf32_abs(p));
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
        vf32 w = top < 1.0f ? vf32_short_sinh(size) : vf32_scaled_sinh(size, vf32_set(shift), one_lanes, square_lanes);
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
