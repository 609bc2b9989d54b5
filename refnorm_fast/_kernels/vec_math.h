/* Elementary functions on vectors: exp, with its parts for kernels that scale by themselves. */
#ifndef REFNORM_VEC_MATH_H
#define REFNORM_VEC_MATH_H

#include "vec.h"

/* e^t - 1 for |t| <= ln2/2: t + t^2 Q(t), Q minimax for the relative error of e^t (0.05 units of 2^-24 in float32, 0.03 of
 * 2^-53 in float64). Adding the 1 last leaves the rounding of e^t as the only large error. */
RN_INLINE vf32 vf32_expm1_factor(vf32 t, vf32 t2) { /* Q, from t and t^2 */
    vf32 a = vf32_fma(vf32_set(0x1.555490p-3f), t, vf32_set(0x1.fffffcp-2f));
    vf32 b = vf32_fma(vf32_set(0x1.123b02p-7f), t, vf32_set(0x1.5558f8p-5f));
    return vf32_fma(vf32_fma(vf32_set(0x1.6a2256p-10f), t2, b), t2, a);
}
RN_INLINE vf64 vf64_expm1_factor(vf64 t, vf64 t2) {
    vf64 a = vf64_fma(vf64_set(0x1.55555555554f8p-3), t, vf64_set(0x1.000000000000ap-1));
    vf64 b = vf64_fma(vf64_set(0x1.1111111128170p-7), t, vf64_set(0x1.5555555550754p-5));
    vf64 c = vf64_fma(vf64_set(0x1.a01a0128fe193p-13), t, vf64_set(0x1.6c16c1846fc48p-10));
    vf64 d = vf64_fma(vf64_set(0x1.71df271f1c6f5p-19), t, vf64_set(0x1.a019994464757p-16));
    vf64 e = vf64_fma(vf64_set(0x1.ad7e8a5a21d4dp-26), t, vf64_set(0x1.28ae345df82a0p-22));
    vf64 high = vf64_fma(vf64_fma(e, t2, d), t2, c);
    return vf64_fma(vf64_fma(high, t2, b), t2, a);
}
RN_INLINE vf32 vf32_expm1_core(vf32 t) { return vf32_fma(t * t, vf32_expm1_factor(t, t * t), t); }
RN_INLINE vf64 vf64_expm1_core(vf64 t) { return vf64_fma(t * t, vf64_expm1_factor(t, t * t), t); }

/* n + 1.5 * 2^23 with n = rint(x / ln2), for |x| < 2^16: the low bits of the pattern hold n. */
#define VEC_RINT_MAGIC 0x1.8p23f
RN_INLINE vf32 vf32_exp_exponent(vf32 x) {
    return vf32_fma(x, vf32_set(0x1.715476p+0f), vf32_set(VEC_RINT_MAGIC));
}
#define VEC_RINT_MAGIC_WIDE 0x1.8p52
RN_INLINE vf64 vf64_exp_exponent(vf64 x) {
    return vf64_fma(x, vf64_set(0x1.71547652b82fep+0), vf64_set(VEC_RINT_MAGIC_WIDE));
}

/* t = x - n ln2 for |x| < 2^16, rounded about once. With FMA n * high is exact and the difference too (both are
 * multiples of 2^-25). Without, the reduction runs in float64, since n * high would need 24 + 17 bits. */
RN_INLINE vf32 vf32_exp_reduce(vf32 x, vf32 n) {
#if VEC_HAS_FMA
    vf32 t = vf32_fma(n, vf32_set(-0x1.62e43p-1f), x);
    return vf32_fma(n, vf32_set(0x1.05c61p-29f), t);
#else
    vf64 low = vf64_low(x) - vf64_low(n) * 0x1.62e42fefa39efp-1;
    vf64 high = vf64_high(x) - vf64_high(n) * 0x1.62e42fefa39efp-1;
    return vf32_from_vf64(low, high);
#endif
}
/* The high part has 21 trailing zeros (fdlibm's split), so n * high is exact without FMA too. */
RN_INLINE vf64 vf64_exp_reduce(vf64 x, vf64 n) {
    vf64 t = vf64_fma(n, vf64_set(-0x1.62e42fee00000p-1), x);
    return vf64_fma(n, vf64_set(-0x1.a39ef35793c76p-33), t);
}

/* The same as t + *low, where *low is the rounding error of t. */
RN_INLINE vf32 vf32_exp_reduce_pair(vf32 x, vf32 n, vf32 *low) {
#if VEC_HAS_FMA
    vf32 exact = vf32_fma(n, vf32_set(-0x1.62e43p-1f), x);
    vf32 t = vf32_fma(n, vf32_set(0x1.05c61p-29f), exact);
    *low = vf32_fma(n, vf32_set(0x1.05c61p-29f), exact - t);
    return t;
#else
    vf64 a = vf64_low(x) - vf64_low(n) * 0x1.62e42fefa39efp-1;
    vf64 b = vf64_high(x) - vf64_high(n) * 0x1.62e42fefa39efp-1;
    vf32 t = vf32_from_vf64(a, b);
    *low = vf32_from_vf64(a - vf64_low(t), b - vf64_high(t));
    return t;
#endif
}
RN_INLINE vf64 vf64_exp_reduce_pair(vf64 x, vf64 n, vf64 *low) {
    vf64 exact = vf64_fma(n, vf64_set(-0x1.62e42fee00000p-1), x);
    vf64 t = vf64_fma(n, vf64_set(-0x1.a39ef35793c76p-33), exact);
    *low = vf64_fma(n, vf64_set(-0x1.a39ef35793c76p-33), exact - t);
    return t;
}

/* e^x for any x, within 1 unit in the last place; overflows to infinity, underflows gradually, NaN stays NaN. */
RN_INLINE vf32 vf32_exp(vf32 x) {
    vf32 bounded = vf32_min(vf32_set(90.0f), vf32_max(vf32_set(-105.0f), x)); /* NaN passes: it is the second */
    vf32 n = vf32_exp_exponent(bounded) - VEC_RINT_MAGIC;
    return vf32_ldexp(1.0f + vf32_expm1_core(vf32_exp_reduce(bounded, n)), n);
}
RN_INLINE vf64 vf64_exp(vf64 x) {
    vf64 bounded = vf64_min(vf64_set(711.0), vf64_max(vf64_set(-746.0), x));
    vf64 n = vf64_exp_exponent(bounded) - VEC_RINT_MAGIC_WIDE;
    return vf64_ldexp(1.0 + vf64_expm1_core(vf64_exp_reduce(bounded, n)), n);
}

/* log(1 + x) for 0 <= x < 2^1000, within 1 unit in the last place; NaN stays NaN. 1 + x = 2^k (1 + f) (1 + lost / (1 + x)) with
 * 1 + f between sqrt(1/2) and sqrt(2), and log(1 + f) = 2 artanh(s), s = f / (2 + f), whose series ends at s^19. */
RN_INLINE vf64 vf64_log1p_positive(vf64 x) {
    vf64 whole = 1.0 + x;
    vf64 lost = vf64_select((vi64)(x > 1.0), 1.0 - (whole - x), x - (whole - 1.0)) / whole;
    vu64 bits = (vu64)whole, steps = (bits - 0x3fe6a09e667f3bcdULL) >> 52;
    vf64 k = (vf64)(steps + 0x4338000000000000ULL) - 0x1.8p52;
    vf64 f = (vf64)(bits - (steps << 52)) - 1.0;
    vf64 s = f / (2.0 + f), z = s * s, half = 0.5 * f * f;
    vf64 series = vf64_fma(z, vf64_set(2.0 / 19), vf64_set(2.0 / 17));
    series = vf64_fma(z, series, vf64_set(2.0 / 15));
    series = vf64_fma(z, series, vf64_set(2.0 / 13));
    series = vf64_fma(z, series, vf64_set(2.0 / 11));
    series = vf64_fma(z, series, vf64_set(2.0 / 9));
    series = vf64_fma(z, series, vf64_set(2.0 / 7));
    series = vf64_fma(z, series, vf64_set(2.0 / 5));
    series = vf64_fma(z, series, vf64_set(2.0 / 3));
    vf64 small = vf64_fma(k, vf64_set(0x1.a39ef35793c76p-33), lost);
    vf64 rest = half - vf64_fma(s, vf64_fma(z, series, half), small);
    vf64 log = vf64_fma(k, vf64_set(0x1.62e42fee00000p-1), f - rest);
    return vf64_select((vi64)(x == x), log, x);
}

#endif
