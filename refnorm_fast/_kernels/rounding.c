/* Learned roundings, float32 and float64 from one body. */
#include "rounding.h"

#include <stdlib.h>

#include "parallel.h"
#include "vec_math.h"

/* Entries whose sums are taken together; fixed, so that sums do not depend on threads. */
#define BLOCK 4096
/* Rows whose columns are summed together. */
#define ROW_BLOCK 64

/* The rectified sigmoid is 1/2 + 3/5 tanh(v / 2), which reaches 0 and 1 at -+log(11) = -+2.398. Beyond this it is constant. */
#define FARTHEST_LOGIT 2.4

/* 3/5 tanh(v / 2) / v by powers of v^2, |v| <= FARTHEST_LOGIT: minimax for the relative error, 2^-27.5 and 2^-55.6. */
static const float bend_short[9] = {0x1.333334p-2f, -0x1.99996ap-6f, 0x1.47a6f6p-9f, -0x1.08d9f2p-12f, 0x1.a7afb6p-16f,
                                    -0x1.40c944p-19f, 0x1.9ce8c0p-23f, -0x1.760d94p-27f, 0x1.4f16d0p-32f};
static const double bend_long[18] = {
    0x1.3333333333333p-2, -0x1.99999999998eep-6, 0x1.47ae147adaf36p-9, -0x1.0943c76e2e5d3p-12,
    0x1.adf8bd0b776dbp-16, -0x1.5c8438e6620c5p-19, 0x1.1a7ebabb6ca1fp-22, -0x1.c9f0bc0930e6ap-26,
    0x1.730b4881138bap-29, -0x1.2c0e04c8647d5p-32, 0x1.e16df1fa1bac1p-36, -0x1.78bb9da28b886p-39,
    0x1.15bbf23eeaf92p-42, -0x1.6d0ff70b08f65p-46, 0x1.8d6e7b1e7eee8p-50, -0x1.4603c5f3aa116p-54,
    0x1.5e1d9f2bd9205p-59, -0x1.6b83d5ae113b8p-65};

/* The sum of c[i] square^i, even and odd powers apart: half the latency. */
#define DEFINE_POLYNOMIAL(V, name, coefficients, count)                                   \
    RN_INLINE V name(V square) {                                                          \
        V fourth = square * square, even = V##_set(coefficients[(count - 1) / 2 * 2]);    \
        V odd = V##_set(coefficients[count / 2 * 2 - 1]);                                 \
        _Pragma("GCC unroll 10") for (int i = (count - 1) / 2 * 2 - 2; i >= 0; i -= 2)    \
            even = V##_fma(even, fourth, V##_set(coefficients[i]));                       \
        _Pragma("GCC unroll 10") for (int i = count / 2 * 2 - 3; i >= 0; i -= 2)          \
            odd = V##_fma(odd, fourth, V##_set(coefficients[i]));                         \
        return V##_fma(odd, square, even);                                                \
    }
DEFINE_POLYNOMIAL(vf32, bend_f32, bend_short, 9)
DEFINE_POLYNOMIAL(vf64, bend_f64, bend_long, 18)

/* ---- powers -------------------------------------------------------------------------------------------------------- */

/* a b = product + the returned error, for factors far from overflow and underflow. */
RN_INLINE vf64 product_error(vf64 a, vf64 b, vf64 product) {
#if VEC_HAS_FMA
    return vf64_fma(a, b, -product);
#else
    /* Halves of 26 bits, whose products are exact. */
    vf64 a_high = (vf64)((vi64)a & (int64_t)0xfffffffff8000000LL), a_low = a - a_high;
    vf64 b_high = (vf64)((vi64)b & (int64_t)0xfffffffff8000000LL), b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
}

/* a - b c, rounded once or twice. Written out, because a compiler that fuses a - b c by itself would leave an error of b c
 * behind that is not there any more. */
RN_INLINE vf64 remainder_of(vf64 a, vf64 b, vf64 c) {
#if VEC_HAS_FMA
    return vf64_fma(-b, c, a);
#else
    vf64 product = b * c;
    return (a - product) - product_error(b, c, product);
#endif
}

/* 2 / 3 + 2 / 5 z + 2 / 7 z^2 + ...: 2 artanh(s) = 2 s + s z times this, z = s^2 <= 0.0295. */
static const double artanh_terms[10] = {2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                                        2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};

/* a^power for a >= 0 that is 0 or normal, power >= 0; infinity and NaN as C's pow. For float64 results (`long_form`) the
 * logarithm carries its rounding error, since an error of power log(a) is a relative error of the result. */
RN_INLINE vf64 power_of(vf64 a, vf64 power, const int long_form) {
    vi64 zero = a == 0;
    vf64 x = vf64_select(zero | (vi64)(a == INFINITY), vf64_set(1.0), a);
    vu64 bits = (vu64)x, steps = (vu64)((vi64)(bits - 0x3fe6a09e667f3bcdULL) >> 52);
    vf64 k = (vf64)(steps + 0x4338000000000000ULL) - 0x1.8p52;
    /* a = 2^k (1 + f), log(1 + f) = 2 artanh(s + s_low), s + s_low = f / (2 + f) */
    vf64 f = (vf64)(bits - (steps << 52)) - 1.0, bottom = 2.0 + f, inverse = 1.0 / bottom, s = f * inverse;
    vf64 z = s * s, series = vf64_set(artanh_terms[long_form ? 9 : 5]);
#pragma GCC unroll 9
    for (int i = long_form ? 8 : 4; i >= 0; i--) series = vf64_fma(z, series, vf64_set(artanh_terms[i]));
    /* k log(2) in two parts, the first of which is exact, then 2 s, then what is small. */
    vf64 whole = k * 0x1.62e42fee00000p-1, twice = s + s, high = whole + twice;
    vf64 low = vf64_fma(s * z, series, k * 0x1.a39ef35793c76p-33);
    if (long_form) {
        vf64 lost = f - (bottom - 2.0), s_low = (remainder_of(f, s, bottom) - s * lost) * inverse;
        low += vf64_select((vi64)(k == 0), (vf64){0}, twice - (high - whole)) + 2.0 * s_low;
    }
    vf64 log = high + low, y = power * log;
    vf64 bounded = vf64_min(vf64_set(711.0), vf64_max(vf64_set(-746.0), y));
    vf64 n = vf64_exp_exponent(bounded) - VEC_RINT_MAGIC_WIDE, t = vf64_exp_reduce(bounded, n);
    if (long_form) {
        vf64 y_low = product_error(power, log, y) + power * (low - (log - high));
        t += vf64_select((vi64)(y == bounded), y_low, (vf64){0});
    }
    vf64 result = vf64_ldexp(1.0 + vf64_expm1_core(t), n);
    result = vf64_select(zero, (vf64){0}, result);
    result = vf64_select((vi64)(a == INFINITY), a, result);
    result = vf64_select((vi64)(a != a), a, result);
    return vf64_select((vi64)(power == 0), vf64_set(1.0), result);
}

#define T float
#define VT vf32
#define VI vi32
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define WIDE 0
#include "rounding_body.h"
#undef T
#undef VT
#undef VI
#undef LANES
#undef V
#undef N
#undef WIDE

#define T double
#define VT vf64
#define VI vi64
#define LANES VF64
#define V(name) vf64_##name
#define N(name) name##_f64
#define WIDE 1
#include "rounding_body.h"

#define FUNCTIONS(suffix)                                                                                       \
    .rectify_##suffix = rectify_##suffix, .product_##suffix = product_##suffix,                                 \
    .regularise_##suffix = regularise_##suffix, .scaled_##suffix = scaled_##suffix,                             \
    .soft_quantize_##suffix = soft_quantize_##suffix, .soft_quantize_back_##suffix = soft_quantize_back_##suffix
RN_TABLE(rounding) = {FUNCTIONS(f32), FUNCTIONS(f64)};
