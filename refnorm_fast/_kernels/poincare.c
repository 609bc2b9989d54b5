/* Poincaré ball: sums in float64 with their errors, scalars of a row from libm, one combination per row.
 *
 * The formulas and their error bounds are those of the reference: sums of positive terms around an exact gap. */
#include "poincare.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "parallel.h"
#include "vec_math.h"

/* Keeps the compiler from contracting a product whose rounding error is taken apart. */
#if defined(__x86_64__)
#define OPAQUE(value) __asm__("" : "+x"(value))
#elif defined(__aarch64__)
#define OPAQUE(value) __asm__("" : "+w"(value))
#else
#define OPAQUE(value) ((void)0)
#endif
#if REFNORM_VECTOR_BYTES == 64 && !VEC_AVX512
#define OPAQUE_LANES(value) __asm__("" : "+m"(value))
#else
#define OPAQUE_LANES(value) OPAQUE(value)
#endif

/* As in the reference: below this gap, times length + 4, a doubled-precision sum has lost good bits. */
#define EXACT_GAP 0x1p-48
/* tanh is 1 and sech^2 is 0 in float64 from here on. */
#define SATURATED 400.0
/* From this relative radius on, radii are compared through their distances to the boundary. */
#define OUTER 0.5

RN_INLINE double two_sum(double a, double b, double *error) {
    double total = a + b;
    OPAQUE(total);
    double seen = total - a;
    *error = (a - (total - seen)) + (b - seen);
    return total;
}
RN_INLINE double two_product(double a, double b, double *error) {
    double product = a * b;
    OPAQUE(product);
#if VEC_HAS_FMA
    *error = __builtin_fma(a, b, -product);
#else
    double as = 0x1.0000002p27 * a, bs = 0x1.0000002p27 * b;
    double ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
    *error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
#endif
    return product;
}
RN_INLINE vf64 two_product_lanes(vf64 a, vf64 b, vf64 *error) {
    vf64 product = a * b;
    OPAQUE_LANES(product);
#if VEC_HAS_FMA
    *error = vf64_fma(a, b, -product);
#else
    vf64 as = 0x1.0000002p27 * a, bs = 0x1.0000002p27 * b;
    vf64 ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
    *error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
#endif
    return product;
}

/* An exact sum as non-overlapping parts in ascending magnitude (Shewchuk). */
typedef struct {
    double part[64];
    int count;
} exact_sum;

static void exact_add(exact_sum *sum, double x) {
    int kept = 0;
    for (int i = 0; i < sum->count; i++) {
        double error;
        x = two_sum(sum->part[i], x, &error);
        if (error != 0) sum->part[kept++] = error;
    }
    sum->count = kept;
    if (x != 0 && sum->count < 64) sum->part[sum->count++] = x;
}
static double exact_value(const exact_sum *sum) {
    double value = 0;
    for (int i = 0; i < sum->count; i++) value += sum->part[i];
    return value;
}
static void exact_add_square(exact_sum *sum, double x, double curvature) {
    double low, tail, high = two_product(x, x, &low);
    for (int piece = 0; piece < 2; piece++) {
        double product = two_product(piece ? low : high, curvature, &tail);
        exact_add(sum, -product);
        exact_add(sum, -tail);
    }
}

/* 1 - c (high + low), to the last bits of high. */
static double gap_from(double high, double low, double curvature) {
    double scaled_error, error, scaled = two_product(high, curvature, &scaled_error);
    double gap = two_sum(1.0, -scaled, &error);
    return gap + (error - (scaled_error + curvature * low));
}

/* sinh(x) e^-shift for x >= 0; shift is 0 unless x is too large for sinh. */
static double scaled_sinh(double x, double shift) {
    return shift == 0 ? sinh(x) : 0.5 * (exp(x - shift) - exp(-x - shift));
}

/* Rows whose scalars are computed together. */
#define BLOCK 64

/* Functions of a block of scalars >= 0, in place, for float32 results: relative error below 10^-11. */
RN_INLINE vf64 tanh_lanes(vf64 s) {
    vf64 z = s * s;
    vf64 near = vf64_fma(s * z, vf64_fma(vf64_fma(vf64_set(-17.0 / 315), z, vf64_set(2.0 / 15)), z, vf64_set(-1.0 / 3)), s);
    vf64 decay = vf64_exp(-2.0 * s);
    return vf64_select((vi64)(s < 0.01), near, (1.0 - decay) / (1.0 + decay));
}
RN_INLINE vf64 arsinh_lanes_wide(vf64 p) {
    vf64 root = vf64_sqrt(1.0 + p * p);
    root = vf64_select((vi64)(p > 1e100), p, root);
    vf64 v = p + p * (p / (1.0 + root));
    /* As in float32 below: 1 + v = 2^k m, the logarithm of m by the series of artanh, eight terms. */
    vf64 one_more = 1.0 + v;
    vi64 bits = (vi64)one_more + (0x3ff0000000000000LL - 0x3fe6a09e667f3bcdLL);
    /* The exponent is small: as an integer in the low bits of 1.5 * 2^52 it becomes a double. */
    vf64 k = (vf64)(((vu64)bits >> 52) + 0x4338000000000000ULL) - (0x1.8p52 + 1023.0);
    vf64 f = (vf64)((bits & 0x000fffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - 1.0;
    vi64 small = (vi64)(v < 0.41);
    f = vf64_select(small, v, f);
    k = vf64_select(small, vf64_set(0.0), k);
    vf64 s = f / (2.0 + f), z = s * s, r = vf64_set(2.0 / 17);
    r = vf64_fma(r, z, vf64_set(2.0 / 15));
    r = vf64_fma(r, z, vf64_set(2.0 / 13));
    r = vf64_fma(r, z, vf64_set(2.0 / 11));
    r = vf64_fma(r, z, vf64_set(2.0 / 9));
    r = vf64_fma(r, z, vf64_set(2.0 / 7));
    r = vf64_fma(r, z, vf64_set(2.0 / 5));
    r = vf64_fma(r, z, vf64_set(2.0 / 3)) * z;
    return vf64_fma(k, vf64_set(0x1.62e42fefa39efp-1), f - s * (f - r));
}
static void tanh_block(double *s, int wide) {
    if (wide)
        for (int i = 0; i < BLOCK; i++) s[i] = tanh(s[i]);
    else
        for (int i = 0; i < BLOCK; i += VF64) vf64_store(s + i, tanh_lanes(vf64_load(s + i)));
}
static void decay_block(double *t, int wide) {
    if (wide)
        for (int i = 0; i < BLOCK; i++) t[i] = exp(-2 * t[i]);
    else
        for (int i = 0; i < BLOCK; i += VF64) vf64_store(t + i, vf64_exp(-2.0 * vf64_load(t + i)));
}
static void arsinh_block(double *p, int wide) {
    if (wide)
        for (int i = 0; i < BLOCK; i++) p[i] = asinh(p[i]);
    else
        for (int i = 0; i < BLOCK; i += VF64) vf64_store(p + i, arsinh_lanes_wide(vf64_load(p + i)));
}

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

static void linear_row_f32(float *y, size_t length, double gap, const float *slope, const float *offset,
                           const float *power, double curvature, double margin) {
    double root = sqrt(curvature);
    vf32 inner_scale = vf32_set((float)(1 / gap)), offset_scale = vf32_set((float)((2 - gap) / gap));
    vf32 largest = {0};
    /* First the arguments of sinh with their signs ... */
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
    float top = vf32_largest(largest);
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

static void linear_row_f64(double *y, size_t length, double gap, const double *slope, const double *offset,
                           const double *power, double curvature, double margin) {
    double root = sqrt(curvature), top = 0;
    for (size_t k = 0; k < length; k++) {
        double p = (y[k] * slope[k] - (2 - gap) * offset[k]) / gap;
        y[k] = power[k] * asinh(p);
        if (fabs(y[k]) > top) top = fabs(y[k]);
    }
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
                      .unary_f64 = unary_f64,
                      .binary_f64 = binary_f64,
                      .dist_f64 = dist_f64,
                      .gaps_f64 = gaps_f64,
                      .column_squares_f64 = column_squares_f64,
                      .linear_f64 = linear_f64};
