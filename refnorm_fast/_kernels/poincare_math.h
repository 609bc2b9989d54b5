/* Scalars of a row in the Poincaré ball: exact sums, and hyperbolic functions of a block of rows. */
#ifndef REFNORM_POINCARE_MATH_H
#define REFNORM_POINCARE_MATH_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "poincare_sums.h"
#include "vec_math.h"

/* From this relative radius on, radii are compared through their distances to the boundary. */
#define OUTER 0.5

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

/* Rows whose scalars are computed together. */
#define BLOCK 64

/* Functions of a block of scalars >= 0, in place, for float32 results: relative error below 10^-11. */
RN_INLINE vf64 tanh_lanes(vf64 s) {
    vf64 z = s * s;
    vf64 near = vf64_fma(s * z, vf64_fma(vf64_fma(vf64_set(-17.0 / 315), z, vf64_set(2.0 / 15)), z, vf64_set(-1.0 / 3)), s);
    vf64 decay = vf64_exp(-2.0 * s);
    return vf64_select((vi64)(s < 0.01), near, (1.0 - decay) / (1.0 + decay));
}
RN_INLINE vf64 arsinh_lanes_terms(vf64 p, int terms) {
    vf64 root = vf64_sqrt(1.0 + p * p);
    root = vf64_select((vi64)(p > 1e100), p, root);
    vf64 v = p + p * (p / (1.0 + root));
    /* As in float32 below: 1 + v = 2^k m, the logarithm of m by the series of artanh. */
    vf64 one_more = 1.0 + v;
    /* Unsigned, as all arithmetic on patterns: NaN's carries past the sign. */
    vi64 bits = (vi64)((vu64)one_more + (0x3ff0000000000000ULL - 0x3fe6a09e667f3bcdULL));
    /* The exponent is small: as an integer in the low bits of 1.5 * 2^52 it becomes a double. */
    vf64 k = (vf64)(((vu64)bits >> 52) + 0x4338000000000000ULL) - (0x1.8p52 + 1023.0);
    vf64 f = (vf64)((bits & 0x000fffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - 1.0;
    vi64 small = (vi64)(v < 0.41);
    f = vf64_select(small, v, f);
    k = vf64_select(small, vf64_set(0.0), k);
    vf64 s = f / (2.0 + f), z = s * s, r = vf64_set(2.0 / (2 * terms + 1));
    for (int i = terms - 1; i > 0; i--) r = vf64_fma(r, z, vf64_set(2.0 / (2 * i + 1)));
    r *= z;
    return vf64_fma(k, vf64_set(0x1.62e42fefa39efp-1), f - s * (f - r));
}
RN_INLINE vf64 arsinh_lanes_wide(vf64 p) { return arsinh_lanes_terms(p, 8); }
/* Within a few units in the last place of float64. */
RN_INLINE vf64 arsinh_lanes_full(vf64 p) { return arsinh_lanes_terms(p, 13); }
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

#endif
