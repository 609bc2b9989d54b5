/* Hyperbolic functions lane by lane, of arguments >= 0: sinh, its inverse and tanh, within about 2 units in the last place. */
#ifndef REFNORM_POINCARE_LANES_H
#define REFNORM_POINCARE_LANES_H

#include "vec_math.h"

/* arsinh(p): log(1 + v) with v = p + p^2/(1 + sqrt(1 + p^2)). */
RN_INLINE vf32 vf32_arsinh(vf32 p) {
    vf32 root = vf32_sqrt(1.0f + p * p);
    root = vf32_select((vi32)(p > 1e9f), p, root);
    vf32 v = p + p * (p / (1.0f + root));
    /* 1 + v = 2^k m with m from sqrt(1/2) to sqrt(2); a small v itself is m - 1, with all its digits. */
    vf32 one_more = 1.0f + v;
    vi32 bits = (vi32)((vu32)one_more + (0x3f800000u - 0x3f3504f3u)); /* unsigned: NaN carries past the sign */
    vf32 k = vf32_from_vi32((bits >> 23) - 127);
    vf32 f = (vf32)((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    vi32 small = ~(vi32)(v >= 0.41f); /* NaN too, which f then carries */
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
/* The same in float64: eleven terms leave 2^-60, and what 1 + v has lost by rounding is added as lost/(1 + v). */
RN_INLINE vf64 vf64_arsinh(vf64 p) {
    vf64 root = vf64_sqrt(1.0 + p * p);
    root = vf64_select((vi64)(p > 1e100), p, root);
    vf64 v = p + p * (p / (1.0 + root));
    vf64 one_more = 1.0 + v;
    vf64 lost = vf64_select((vi64)(v > 1.0), 1.0 - (one_more - v), v - (one_more - 1.0));
    /* Unsigned, as all arithmetic on patterns: NaN's carries past the sign. */
    vi64 bits = (vi64)((vu64)one_more + (0x3ff0000000000000ULL - 0x3fe6a09e667f3bcdULL));
    /* The exponent is small: as an integer in the low bits of 1.5 * 2^52 it becomes a double. */
    vf64 k = (vf64)(((vu64)bits >> 52) + 0x4338000000000000ULL) - (0x1.8p52 + 1023.0);
    vf64 f = (vf64)((bits & 0x000fffffffffffffLL) + 0x3fe6a09e667f3bcdLL) - 1.0;
    vi64 small = ~(vi64)(v >= 0.41);
    /* 1/(1 + f) to a few percent is enough for a correction. */
    vf64 correction = lost * vf64_pow2(-k) * (1.0 - f + f * f);
    f = vf64_select(small, v, f);
    k = vf64_select(small, vf64_set(0.0), k);
    correction = vf64_select((vi64)(small | (vi64)(one_more > 0x1p60)), vf64_set(0.0), correction);
    vf64 s = f / (2.0 + f), z = s * s, r = vf64_set(2.0 / 23);
    r = vf64_fma(r, z, vf64_set(2.0 / 21));
    r = vf64_fma(r, z, vf64_set(2.0 / 19));
    r = vf64_fma(r, z, vf64_set(2.0 / 17));
    r = vf64_fma(r, z, vf64_set(2.0 / 15));
    r = vf64_fma(r, z, vf64_set(2.0 / 13));
    r = vf64_fma(r, z, vf64_set(2.0 / 11));
    r = vf64_fma(r, z, vf64_set(2.0 / 9));
    r = vf64_fma(r, z, vf64_set(2.0 / 7));
    r = vf64_fma(r, z, vf64_set(2.0 / 5));
    r = vf64_fma(r, z, vf64_set(2.0 / 3)) * z;
    vf64 low = vf64_fma(k, vf64_set(0x1.a39ef35793c76p-33), correction);
    return vf64_fma(k, vf64_set(0x1.62e42fee00000p-1), f - (s * (f - r) - low));
}

/* sinh(t) for t < 1 by its series: five terms leave 2^-25 of it, nine 2^-56. */
RN_INLINE vf32 vf32_short_sinh(vf32 t) {
    vf32 z = t * t;
    vf32 odd = vf32_fma(vf32_fma(vf32_fma(vf32_set(1.0f / 362880), z, vf32_set(1.0f / 5040)), z, vf32_set(1.0f / 120)), z,
                        vf32_set(1.0f / 6));
    return vf32_fma(t * z, odd, t);
}
RN_INLINE vf64 vf64_short_sinh(vf64 t) {
    vf64 z = t * t, odd = vf64_set(1.0 / 355687428096000.0);
    odd = vf64_fma(odd, z, vf64_set(1.0 / 1307674368000.0));
    odd = vf64_fma(odd, z, vf64_set(1.0 / 6227020800.0));
    odd = vf64_fma(odd, z, vf64_set(1.0 / 39916800.0));
    odd = vf64_fma(odd, z, vf64_set(1.0 / 362880));
    odd = vf64_fma(odd, z, vf64_set(1.0 / 5040));
    odd = vf64_fma(odd, z, vf64_set(1.0 / 120));
    odd = vf64_fma(odd, z, vf64_set(1.0 / 6));
    return vf64_fma(t * z, odd, t);
}

/* tanh(t), and *decay = e^-2t: from sinh(2t)/(1 + cosh(2t)) where t is small. */
RN_INLINE vf64 vf64_tanh(vf64 t, vf64 *decay) {
    vf64 d = vf64_exp(-2.0 * t), below = 1.0 + d;
    *decay = d;
    return vf64_select((vi64)(t < 0.5), 2.0 * d * vf64_short_sinh(2.0 * t) / (below * below), (1.0 - d) / below);
}

/* sinh(t) e^-shift with one = e^-shift, one_square = e^-2shift; t - shift at most SINH_REACH. What is below e^-80 (e^-600)
 * counts as that: the largest entry of its row is then above e^38 (e^299). */
#define SINH_REACH_f32 39.0f
#define SINH_REACH_f64 300.0
RN_INLINE vf32 vf32_scaled_sinh(vf32 t, vf32 shift, vf32 one, vf32 one_square) {
    vf32 bounded = vf32_max(vf32_set(-80.0f), t - shift); /* NaN passes: it is the second */
    vf32 n = vf32_exp_exponent(bounded) - VEC_RINT_MAGIC;
    vf32 e = (1.0f + vf32_expm1_core(vf32_exp_reduce(bounded, n))) * vf32_pow2(n);
    return vf32_select((vi32)(t < 1.0f), vf32_short_sinh(t) * one, 0.5f * (e - one_square / e));
}
RN_INLINE vf64 vf64_scaled_sinh(vf64 t, vf64 shift, vf64 one, vf64 one_square) {
    vf64 bounded = vf64_max(vf64_set(-600.0), t - shift);
    vf64 n = vf64_exp_exponent(bounded) - VEC_RINT_MAGIC_WIDE;
    vf64 e = (1.0 + vf64_expm1_core(vf64_exp_reduce(bounded, n))) * vf64_pow2(n);
    return vf64_select((vi64)(t < 1.0), vf64_short_sinh(t) * one, 0.5 * (e - one_square / e));
}

#endif
