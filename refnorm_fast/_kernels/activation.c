/* ReLU, GELU, the logistic function with its relatives, and the error function.
 *
 * GELU is x Phi(x). With a = |x| and E = Phi(-a) it is x E for negative x and x - x E for the others, which loses no
 * digits anywhere. E = exp(-a^2 / 2) R(a), where R(a) (a + c) is smooth up to infinity as a function of
 * t = (a - c) / (a + c): a polynomial, fitted by interpolation at Chebyshev nodes for 0 <= a <= 40, beyond which E is
 * below the smallest float64. float32 that is subnormal, and all float32 without a fused multiply-add, is computed in
 * float64 and rounded once; other float32 stays in float32, with the rounding errors that matter carried along. Where a
 * register holds 16 numbers, two of them are a table of 32, and most float32 is a polynomial of its own interval.
 *
 * The way there for a way back computes value and slope in one pass, so that the way back is a product. */
#include "activation.h"

#include "parallel.h"
#include "vec_math.h"
#if VEC_AVX512
#include "gelu_tables.h"
#endif

#define FAR 40.0

/* R(a) (a + 4) to 2^-30 for float32 results, R(a) (a + 5) to 2^-60 for float64. */
static const double tail_short[12] = {
    0x1.82b4bb8ad3bb0p-1, -0x1.373e3a4b62309p-1, 0x1.8c6dbff995d83p-2, -0x1.7dff49a3504abp-3,
    0x1.eec4938465d2ep-5, -0x1.ee06d18c33bebp-8, -0x1.c80c80fb0d419p-9, 0x1.a992d2c379084p-10,
    0x1.16c00d09cf46bp-13, -0x1.c75f66569dcb4p-13, -0x1.7ce005e86586bp-20, 0x1.6dc7f88a804a1p-16};
static const double tail_long[25] = {
    0x1.89d3abe1f95aep-1, -0x1.54ad03f27ca18p-1, 0x1.fb31653876f88p-2, -0x1.410ed5f875952p-2,
    0x1.51f6329f01c04p-3, -0x1.1b1c254ca3c7bp-4, 0x1.54b4d4f4865f8p-6, -0x1.88590e98c7218p-9,
    -0x1.a2503771fafa8p-11, 0x1.1daf1af160dcfp-11, -0x1.f2149592ceac7p-15, -0x1.a1701a0954619p-15,
    0x1.17df295a42506p-16, 0x1.0b15bc0085fb3p-18, -0x1.73e25084db67dp-19, -0x1.676e2e8b85213p-22,
    0x1.d47f50fb2ba00p-22, 0x1.5b7e2fa46eec2p-25, -0x1.2d3282d5bc810p-24, -0x1.2f884249c7181p-27,
    0x1.70c591c71daf0p-27, 0x1.473bd59b8fd09p-29, -0x1.2e765a34b6ac3p-30, -0x1.cf731399e731ep-32,
    -0x1.5b7304334289bp-36};

/* times E, E = Phi(-a), for 0 <= a <= FAR; `long_form` for float64 results. The square's rounding error would be multiplied by
 * a^2 / 2 in the exponential, so it is carried along: a = high + low with high * high exact. In the short form a is a
 * float32 and its square is exact anyway. */
RN_INLINE vf64 lower_tail(vf64 a, vf64 times, const int long_form, vf64 *density) {
    const double centre = long_form ? 5.0 : 4.0;
    vf64 inverse = 1.0 / (a + centre), t = (a - centre) * inverse;
    vf64 r;
    if (long_form) {
        /* Even and odd powers apart: half the latency. */
        vf64 t2 = t * t, odd = vf64_set(tail_long[23]);
        r = vf64_set(tail_long[24]);
#pragma GCC unroll 12
        for (int i = 22; i >= 0; i -= 2) {
            r = vf64_fma(r, t2, vf64_set(tail_long[i]));
            if (i > 0) odd = vf64_fma(odd, t2, vf64_set(tail_long[i - 1]));
        }
        r = vf64_fma(odd, t, r);
    } else {
        vf64 t2 = t * t, odd = vf64_set(tail_short[11]);
        r = vf64_set(tail_short[10]);
#pragma GCC unroll 6
        for (int i = 8; i >= 0; i -= 2) {
            r = vf64_fma(r, t2, vf64_set(tail_short[i]));
            odd = vf64_fma(odd, t2, vf64_set(tail_short[i + 1]));
        }
        r = vf64_fma(odd, t, r);
    }
    vf64 square = a * a, e = vf64_exp(square * -0.5);
    if (long_form) {
        vf64 high = (vf64)((vi64)a & (int64_t)0xfffffffff8000000LL), low = a - high;
        vf64 rest = (high * high - square) + low * (high + a);
        e = vf64_fma(e, rest * -0.5, e);
    }
    *density = e * 0.39894228040143267794;
    return e * (times * r * inverse);
}

/* Phi(x), x above -FAR, and its derivative times x. */
RN_INLINE vf64 probability(vf64 x, const int long_form, vf64 *slope) {
    vf64 a = vf64_min(vf64_set(FAR), vf64_abs(x)), density;
    vf64 tail = lower_tail(a, vf64_set(1.0), long_form, &density);
    *slope = vf64_copysign(a, x) * density;
    return vf64_select(x < 0.0, tail, 1.0 - tail);
}

/* The logistic form: P = 1 / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3), P' = 2 P (1 - P) u'. 1 - P is
 * exp(-2u) P, without cancellation. */
RN_INLINE vf64 logistic(vf64 x, vf64 *slope) {
    vf64 near = vf64_min(vf64_set(FAR), x); /* NaN stays */
    vf64 square = near * near;
    vf64 e = vf64_exp(near * (-1.5957691216057307 - 0.07135481627260025 * square));
    vf64 p = 1.0 / (1.0 + e);
    /* e is infinite where p is 0. */
    vf64 other = vf64_select(e > 1e300, vf64_set(1.0), e * p);
    *slope = near * (p * other) * (1.5957691216057307 + 0.2140644488178007 * square);
    return p;
}

RN_INLINE vf64 gelu_wide(const int function, const int long_form, vf64 x) {
    vf64 slope, bounded = vf64_max(vf64_set(-FAR), x); /* -inf gives -40 * 0 */
    if (function == RN_GELU_TANH) return bounded * logistic(bounded, &slope);
    vf64 a = vf64_min(vf64_set(FAR), vf64_abs(bounded));
    vf64 tail = lower_tail(a, a, long_form, &slope);
    return vf64_select(bounded < 0.0, -tail, bounded - tail);
}

RN_INLINE vf64 gelu_slope(const int function, const int long_form, vf64 x) {
    vf64 slope, bounded = vf64_max(vf64_set(-FAR), x);
    vf64 p = function == RN_GELU_TANH ? logistic(bounded, &slope) : probability(bounded, long_form, &slope);
    return p + slope;
}

#if VEC_HAS_FMA
/* ---- GELU in float32 ---------------------------------------------------------------------------------------------- */

/* 1 / R(a) = 2 + SLOPE a + a N(a) / P(a) for 0 <= a <= 13, to 2^-27. The last term is at most a tenth of the sum, so that
 * its rounding errors hardly show, and those of the first two are computed exactly. Fitted for the least largest relative
 * error. */
#define MILLS_SLOPE 2.1875f
static const float mills_n[5] = {-0x1.516a22p-1f, -0x1.12dd50p-2f, -0x1.b5cccp-6f, 0x1.58ce04p-7f, 0x1.72334ap-9f};
static const float mills_p[5] = {0x1.1d1bbep+0f, 0x1.ef8dc4p-1f, 0x1.9b8a8cp-2f, 0x1.6a0d6cp-4f, 0x1.220b2ap-7f};
/* Below these the wide form takes over: results are subnormal soon, or x is NaN. */
#define NORMAL_FROM -13.0f
#define NORMAL_FROM_TANH -9.5f

/* 2^n for the n that vf32_exp_exponent packed, -126 <= n <= 127. */
RN_INLINE vf32 packed_pow2(vf32 packed) { return (vf32)(((vu32)packed << 23) + (127u << 23)); }
/* m 2^n with such an n. */
RN_INLINE vf32 scaled(vf32 m, vf32 packed) {
#if VEC_AVX512
    return vf32_ldexp(m, packed - VEC_RINT_MAGIC);
#else
    return m * packed_pow2(packed);
#endif
}

/* (top + top_error) / (bottom + bottom_error), the errors being small. */
RN_INLINE vf32 corrected_quotient(vf32 top, vf32 top_error, vf32 bottom, vf32 bottom_error) {
    vf32 inverse = 1.0f / bottom, quotient = top * inverse;
    vf32 rest = vf32_fma(-quotient, bottom, top) + top_error;
    return vf32_fma(vf32_fma(-quotient, bottom_error, rest), inverse, quotient);
}

/* x above NORMAL_FROM: max(x, 0) - a E with E = exp(-a^2 / 2) R(a). */
RN_INLINE vf32 gelu_vf32(vf32 x) {
    vf32 a = vf32_min(vf32_set(-NORMAL_FROM), vf32_abs(x));
    vf32 square = a * a, square_error = vf32_fma(a, a, -square), power = square * -0.5f;
    vf32 n = vf32_set(mills_n[4]), p = vf32_set(mills_p[4]);
#pragma GCC unroll 4
    for (int i = 3; i >= 0; i--) {
        n = vf32_fma(n, a, vf32_set(mills_n[i]));
        p = vf32_fma(p, a, vf32_set(mills_p[i]));
    }
    vf32 line = vf32_fma(a, vf32_set(MILLS_SLOPE), vf32_set(2.0f));
    vf32 bend = a * n / p + vf32_fma(a, vf32_set(MILLS_SLOPE), 2.0f - line);
    vf32 bottom = line + bend, bottom_error = line - bottom + bend;
    vf32 packed = vf32_exp_exponent(power);
    vf32 t = vf32_fma(square_error, vf32_set(-0.5f), vf32_exp_reduce(power, packed - VEC_RINT_MAGIC));
    vf32 c = vf32_expm1_core(t), mantissa = 1.0f + c, mantissa_error = c - (mantissa - 1.0f);
    vf32 top = a * mantissa, top_error = vf32_fma(a, mantissa_error, vf32_fma(a, mantissa, -top));
    vf32 tail = corrected_quotient(top, top_error, bottom, bottom_error);
    return vf32_fma(-tail, packed_pow2(packed), vf32_select(x < 0.0f, vf32_set(0), x));
}

/* x above NORMAL_FROM_TANH: x e / (1 + e) for negative x and x / (1 + e) for the others, e = exp(-|2u|). The exponential
 * would multiply the rounding errors of 2u by 2u: 2u = high + low. */
RN_INLINE vf32 gelu_tanh_vf32(vf32 x) {
    const double linear = 1.5957691216057308, cubic = 0.07135481627260025;
    const float linear_high = (float)linear, cubic_high = (float)cubic;
    vf32 a = vf32_min(vf32_set(-NORMAL_FROM_TANH), vf32_abs(x)), square = a * a;
    vf32 square_error = vf32_fma(a, a, -square);
    vf32 bent = square * cubic_high, bent_error = vf32_fma(square, vf32_set(cubic_high), -bent);
    /* The rounding error of a sum of two numbers of any order of size. */
    vf32 sum = bent + linear_high, other = sum - bent, sum_error = (bent - (sum - other)) + (linear_high - other);
    sum_error += bent_error + (float)(linear - (double)linear_high);
    sum_error = vf32_fma(square_error, vf32_set(cubic_high), sum_error);
    sum_error = vf32_fma(square, vf32_set((float)(cubic - (double)cubic_high)), sum_error);
    vf32 high = a * sum, low = vf32_fma(a, sum_error, vf32_fma(a, sum, -high));
    vf32 packed = vf32_exp_exponent(-high);
    vf32 t = vf32_exp_reduce(-high, packed - VEC_RINT_MAGIC) - low;
    vf32 c = vf32_expm1_core(t), mantissa = 1.0f + c, mantissa_error = c - (mantissa - 1.0f);
    vf32 scale = packed_pow2(packed), e = mantissa * scale, e_error = mantissa_error * scale;
    vf32 bottom = 1.0f + e, bottom_error = e - (bottom - 1.0f) + e_error;
    vi32 negative = (vi32)(x < 0.0f);
    vf32 factor = vf32_select(negative, mantissa, vf32_set(1.0f));
    vf32 top = x * factor, top_error = vf32_fma(x, factor, -top);
    top_error = vf32_select(negative, vf32_fma(x, mantissa_error, top_error), vf32_set(0));
    return corrected_quotient(top, top_error, bottom, bottom_error) * vf32_select(negative, scale, vf32_set(1.0f));
}
#endif

/* ---- the logistic function and its relatives -------------------------------------------------------------------- */

/* (atanh(s) / s - 1) / s^2 as a polynomial in s^2 <= 1/9, by interpolation at Chebyshev nodes: s^2 times its error is
 * below 2^-31, and below 2^-62 in float64. */
static const float atanh_short[5] = {
    0x1.555556p-2f, 0x1.9998d4p-3f, 0x1.24c926p-3f, 0x1.bc8cf8p-4f, 0x1.dba26p-4f};
static const double atanh_long[11] = {
    0x1.5555555555555p-2, 0x1.9999999999944p-3, 0x1.2492492499d46p-3, 0x1.c71c71bedea97p-4,
    0x1.745d19937b1fcp-4, 0x1.3b13515f6f9efp-4, 0x1.111abdc8abe16p-4, 0x1.e0a2d581ab68fp-5,
    0x1.bc37f0140c19ep-5, 0x1.32e0d25c9c761p-5, 0x1.401d3e65cdc48p-4};

/* float32: exp(-120) is below the smallest number even when multiplied by 120. */
#define VT vf32
#define VI vi32
#define V(name) vf32_##name
#define N(name) name##_vf32
#define FARTHEST 120.0f
#define RINT_MAGIC VEC_RINT_MAGIC
#define ATANH_TERMS 5
#define atanh_terms atanh_short
#include "logistic_body.h"
#undef VT
#undef VI
#undef V
#undef N
#undef FARTHEST
#undef RINT_MAGIC
#undef ATANH_TERMS
#undef atanh_terms

#define VT vf64
#define VI vi64
#define V(name) vf64_##name
#define N(name) name##_vf64
#define FARTHEST 780.0
#define RINT_MAGIC VEC_RINT_MAGIC_WIDE
#define ATANH_TERMS 11
#define atanh_terms atanh_long
#include "logistic_body.h"

/* ---- the error function ------------------------------------------------------------------------------------------ */

/* erf(x) = x + x Q(x^2) up to |x| = 3/4, Q to 2^-35 and 2^-73; above, 1 - erfc(|x|). */
static const float erf_short[7] = {
    0x1.06eba8p-3f, -0x1.812746p-2f, 0x1.ce2efep-4f, -0x1.b82706p-6f, 0x1.55e334p-8f, -0x1.b624cap-11f,
    0x1.8d385p-14f};
static const double erf_long[13] = {
    0x1.06eba8214db69p-3, -0x1.812746b0379e7p-2, 0x1.ce2f21a042be1p-4, -0x1.b82ce31288b15p-6,
    0x1.565bcd0e69235p-8, -0x1.c02db3ffcd5edp-11, 0x1.f9a326ddab89bp-14, -0x1.f4d257aadcd6fp-17,
    0x1.b9e646f15d720p-20, -0x1.5f6a1cb9cac3bp-23, 0x1.fbb883616d4a1p-27, -0x1.48b588d516d45p-30,
    0x1.3fda42ac13d26p-34};
/* -log erfc(a) for 3/4 <= a <= 4, to 2^-28 after the exponential; 1 - erfc(4) rounds to 1. */
static const float log_erfc[11] = {
    -0x1.23b5c2p-13f, 0x1.2119acp+0f, 0x1.449410p-1f, 0x1.b79544p-4f, -0x1.8b3484p-6f, 0x1.c81856p-9f,
    -0x1.e0d152p-14f, -0x1.3c8c20p-14f, 0x1.2de7ecp-16f, -0x1.ed3f2ap-20f, 0x1.455a74p-24f};

RN_INLINE vf32 erf_vf32(vf32 x) {
    vf32 a = vf32_abs(x), square = x * x, near = vf32_set(erf_short[6]);
#pragma GCC unroll 6
    for (int i = 5; i >= 0; i--) near = vf32_fma(near, square, vf32_set(erf_short[i]));
    near = vf32_fma(x, near, x);
    vf32 bounded = vf32_min(vf32_set(4.0f), a), power = vf32_set(log_erfc[10]); /* NaN stays */
#pragma GCC unroll 10
    for (int i = 9; i >= 0; i--) power = vf32_fma(power, bounded, vf32_set(log_erfc[i]));
    vf32 far = vf32_copysign(1.0f - vf32_exp(-power), x);
    return vf32_select(a < 0.75f, near, far);
}

RN_INLINE vf64 erf_vf64(vf64 x) {
    vf64 a = vf64_abs(x), square = x * x, near = vf64_set(erf_long[12]), density;
#pragma GCC unroll 12
    for (int i = 11; i >= 0; i--) near = vf64_fma(near, square, vf64_set(erf_long[i]));
    near = vf64_fma(x, near, x);
    /* erfc(a) = 2 Phi(-a sqrt 2) */
    vf64 bounded = vf64_min(vf64_set(FAR), a * 1.41421356237309504880);
    vf64 far = vf64_copysign(1.0 - lower_tail(bounded, vf64_set(2.0), 1, &density), x);
    return vf64_select(a < 0.75, near, far);
}

/* 2 / sqrt(pi) exp(-x^2), the square's rounding error carried along. */
RN_INLINE vf32 erf_slope_vf32(vf32 x) {
    vf32 near = vf32_min(vf32_set(20.0f), vf32_abs(x)), square = near * near;
    vf32 density = vf32_exp(-square) * 1.12837916709551257390f;
#if VEC_HAS_FMA
    density = vf32_fma(density, -vf32_fma(near, near, -square), density);
#endif
    return density;
}
RN_INLINE vf64 erf_slope_vf64(vf64 x) {
    vf64 near = vf64_min(vf64_set(FAR), vf64_abs(x)), square = near * near;
    vf64 density = vf64_exp(-square) * 1.12837916709551257390;
#if VEC_HAS_FMA
    density = vf64_fma(density, -vf64_fma(near, near, -square), density);
#endif
    return density;
}

/* ---- one vector of any of them ----------------------------------------------------------------------------------- */

RN_INLINE vf64 smooth_value_vf64(const int function, vf64 x) {
    if (function == RN_SIGMOID) return sigmoid_vf64(x);
    if (function == RN_SILU) return silu_vf64(x);
    if (function == RN_SOFTPLUS) return softplus_vf64(x);
    return erf_vf64(x);
}
RN_INLINE vf64 smooth_slope_vf64(const int function, vf64 x) {
    if (function == RN_SIGMOID) return sigmoid_slope_vf64(x);
    if (function == RN_SILU) return silu_slope_vf64(x);
    if (function == RN_SOFTPLUS) return sigmoid_vf64(x);
    return erf_slope_vf64(x);
}
RN_INLINE vf32 smooth_value_vf32(const int function, vf32 x) {
#if VEC_HAS_FMA
    if (function == RN_SIGMOID) return sigmoid_vf32(x);
    if (function == RN_SILU) return silu_vf32(x);
    if (function == RN_SOFTPLUS) return softplus_vf32(x);
    return erf_vf32(x);
#else
    /* Without the errors of the quotients the digits come from float64. */
    return vf32_from_vf64(smooth_value_vf64(function, vf64_low(x)), smooth_value_vf64(function, vf64_high(x)));
#endif
}
RN_INLINE vf32 smooth_slope_vf32(const int function, vf32 x) {
#if VEC_HAS_FMA
    if (function == RN_SIGMOID) return sigmoid_slope_vf32(x);
    if (function == RN_SILU) return silu_slope_vf32(x);
    if (function == RN_SOFTPLUS) return sigmoid_vf32(x);
    return erf_slope_vf32(x);
#else
    return vf32_from_vf64(smooth_slope_vf64(function, vf64_low(x)), smooth_slope_vf64(function, vf64_high(x)));
#endif
}

/* Any x: the careful forms. */
RN_INLINE vf32 value_vf32(const int function, vf32 x) {
    if (function == RN_RELU) return vf32_max(vf32_set(0), x); /* NaN stays: it is the second argument */
    if (function > RN_GELU_TANH) return smooth_value_vf32(function, x);
#if VEC_HAS_FMA
    /* Infinity less itself has no place in the corrections of the tanh form. */
    vi32 normal = function == RN_GELU_TANH ? (x > NORMAL_FROM_TANH) & (x < INFINITY) : x > NORMAL_FROM;
    vf32 y = function == RN_GELU_TANH ? gelu_tanh_vf32(x) : gelu_vf32(x);
    if (!vi32_any(~normal)) return y;
    vf32 wide = vf32_from_vf64(gelu_wide(function, 0, vf64_low(x)), gelu_wide(function, 0, vf64_high(x)));
    return vf32_select(normal, y, wide);
#else
    return vf32_from_vf64(gelu_wide(function, 0, vf64_low(x)), gelu_wide(function, 0, vf64_high(x)));
#endif
}
RN_INLINE vf64 value_vf64(const int function, vf64 x) {
    if (function == RN_RELU) return vf64_max(vf64_set(0), x);
    if (function > RN_GELU_TANH) return smooth_value_vf64(function, x);
    return gelu_wide(function, 1, x);
}
/* The derivative; that of ReLU is 1 at NaN, which lets the cotangent through. */
RN_INLINE vf32 slope_vf32(const int function, vf32 x) {
    if (function == RN_RELU) return vf32_select(x <= 0.0f, vf32_set(0), vf32_set(1));
    if (function > RN_GELU_TANH) return smooth_slope_vf32(function, x);
    return vf32_from_vf64(gelu_slope(function, 0, vf64_low(x)), gelu_slope(function, 0, vf64_high(x)));
}
RN_INLINE vf64 slope_vf64(const int function, vf64 x) {
    if (function == RN_RELU) return vf64_select(x <= 0.0, vf64_set(0), vf64_set(1));
    if (function > RN_GELU_TANH) return smooth_slope_vf64(function, x);
    return gelu_slope(function, 1, x);
}

/* ---- shorter forms of the usual arguments ------------------------------------------------------------------------ */

#if VEC_HAS_FMA
/* GROUP vectors at a time, step by step: each step's latency hides behind the others' work, of which a processor sees
 * only so much ahead. `count` is 1 or GROUP. */
enum { GROUP = VEC_AVX512 ? 4 : 2 };
#define EACH _Pragma("GCC unroll 4") for (int k = 0; k < count; k++)

/* The logistic function and its relatives for |x| < ORDINARY, where no result is subnormal: half of the careful form's
 * work, because e = exp(-|x|) may be off by a unit. A quotient q near e / (1 + e) is corrected by the rest e - q - q e,
 * whose first difference is exact, q being at least half of e. So 1 / (1 + e) is needed to a few digits only. */
#define ORDINARY 80.0f /* 80 exp(-80) and its correction are normal numbers */
RN_INLINE void usual_exp(const vf32 *x, vf32 *e, const int count) {
    vf32 packed[GROUP], t[GROUP], square[GROUP];
    EACH {
        vf32 minus = (vf32)((vi32)x[k] | (int32_t)0x80000000);
        packed[k] = vf32_exp_exponent(minus);
        t[k] = vf32_exp_reduce(minus, packed[k] - VEC_RINT_MAGIC);
    }
    EACH square[k] = t[k] * t[k];
    EACH e[k] = vf32_expm1_factor(t[k], square[k]);
    EACH e[k] = scaled(1.0f + vf32_fma(square[k], e[k], t[k]), packed[k]);
}
RN_INLINE void lower_logistic(const vf32 *x, vf32 *lower, const int count) { /* of -|x| */
    vf32 e[GROUP], inverse[GROUP];
    usual_exp(x, e, count);
    EACH inverse[k] = vf32_reciprocal_near(1.0f + e[k]);
    EACH lower[k] = e[k] * inverse[k];
    EACH lower[k] = vf32_fma(vf32_fma(-lower[k], e[k], e[k] - lower[k]), inverse[k], lower[k]);
}
RN_INLINE void usual_sigmoid(const vf32 *x, vf32 *y, const int count) {
    lower_logistic(x, y, count);
    EACH y[k] = vf32_select_sign(x[k], y[k], 1.0f - y[k]);
}
/* Here q stands for the product with x, so that it is rounded once. */
RN_INLINE void usual_silu(const vf32 *x, vf32 *y, const int count) {
    vf32 e[GROUP], inverse[GROUP], top[GROUP];
    usual_exp(x, e, count);
    EACH inverse[k] = vf32_reciprocal_near(1.0f + e[k]);
    EACH top[k] = vf32_select_sign(x[k], e[k], vf32_set(1.0f));
    EACH y[k] = x[k] * (top[k] * inverse[k]);
    EACH top[k] = vf32_fma(-y[k], e[k], vf32_fma(x[k], top[k], -y[k]));
    EACH y[k] = vf32_copysign(vf32_fma(top[k], inverse[k], y[k]), x[k]); /* the corrected -0 is 0 */
}
/* log(1 + e) = 2 atanh(q), q = e / (2 + e). */
RN_INLINE void usual_softplus(const vf32 *x, vf32 *y, const int count) {
    vf32 e[GROUP], inverse[GROUP], q[GROUP], square[GROUP];
    usual_exp(x, e, count);
    EACH inverse[k] = 1.0f / (2.0f + e[k]);
    EACH q[k] = e[k] * inverse[k];
    EACH e[k] = vf32_fma(-q[k], e[k], vf32_fma(vf32_set(-2.0f), q[k], e[k])) * inverse[k];
    EACH square[k] = q[k] * q[k];
    EACH y[k] = vf32_fma(square[k], vf32_set(atanh_short[4]), vf32_set(atanh_short[3]));
#pragma GCC unroll 3
    for (int i = 2; i >= 0; i--) EACH y[k] = vf32_fma(y[k], square[k], vf32_set(atanh_short[i]));
    EACH q[k] += vf32_fma(q[k] * square[k], y[k], e[k]);
    EACH y[k] = vf32_fma(q[k], vf32_set(2.0f), vf32_max(vf32_set(0.0f), x[k]));
}
RN_INLINE void usual_slope(const int function, const vf32 *x, vf32 *slope, const int count) {
    vf32 lower[GROUP];
    lower_logistic(x, lower, count);
    EACH slope[k] = vf32_fma(-lower[k], lower[k], lower[k]);
    if (function == RN_SIGMOID) return;
    EACH lower[k] = vf32_select_sign(x[k], lower[k], 1.0f - lower[k]);
    EACH slope[k] = function == RN_SILU ? vf32_fma(x[k], slope[k], lower[k]) : lower[k];
}

#if VEC_AVX512
/* The polynomial of a's interval, a = |x| held to the last one. */
RN_INLINE void of_interval(const float (*table)[GELU_INTERVALS], const vf32 *x, vf32 *y, const int count) {
    vi32 interval[GROUP];
    vf32 d[GROUP], square[GROUP], middle[GROUP], high[GROUP];
#define ROW(i) vf32_of_32(table[i], interval[k])
    EACH {
        vf32 a = vf32_min(vf32_set(GELU_LAST), vf32_abs(x[k]));
        interval[k] = (vi32)vf32_fma(a, vf32_set(1.0f / GELU_WIDTH), vf32_set(VEC_RINT_MAGIC));
        d[k] = a - ROW(0);
    }
    EACH square[k] = d[k] * d[k];
    EACH high[k] = vf32_fma(ROW(7), d[k], ROW(6));
    EACH high[k] = vf32_fma(ROW(8), square[k], high[k]);
    EACH middle[k] = vf32_fma(ROW(5), d[k], ROW(4));
    EACH y[k] = vf32_fma(ROW(3), d[k], ROW(2));
    EACH middle[k] = vf32_fma(high[k], square[k], middle[k]);
    EACH y[k] = vf32_fma(middle[k], square[k], y[k]);
    EACH y[k] = vf32_fma(y[k], d[k], ROW(1));
#undef ROW
}
#endif
#endif

/* Whether a function has a shorter form, and which lanes it serves. Each lane's result depends on that lane alone. */
RN_INLINE int shorter_vf32(const int function) {
    return VEC_HAS_FMA && function != RN_RELU && function != RN_ERF;
}
RN_INLINE int shorter_vf64(const int function) {
    (void)function;
    return 0;
}
#if VEC_HAS_FMA
RN_INLINE vi32 usual_vf32(const int function, vf32 x) {
#if VEC_AVX512
    if (function == RN_GELU) return x > -GELU_LAST;
#endif
    if (function == RN_GELU) return x > NORMAL_FROM;
    if (function == RN_GELU_TANH) return (x > NORMAL_FROM_TANH) & (x < INFINITY);
    return vf32_abs(x) < ORDINARY;
}
RN_INLINE int all_usual_vf32(const int function, vf32 x) {
#if VEC_AVX512
    if (function == RN_GELU) return vf32_all_less(vf32_set(-GELU_LAST), x);
#endif
    if (function == RN_GELU) return vf32_all_less(vf32_set(NORMAL_FROM), x);
    if (function == RN_GELU_TANH)
        return vf32_all_less(vf32_set(NORMAL_FROM_TANH), x) & vf32_all_less(x, vf32_set(INFINITY));
    return vf32_all_less(vf32_abs(x), vf32_set(ORDINARY));
}
RN_INLINE void usual_values_vf32(const int function, const vf32 *x, vf32 *y, const int count) {
#if VEC_AVX512
    if (function == RN_GELU) {
        of_interval(gelu_lower, x, y, count);
        EACH y[k] = vf32_max(vf32_set(0), x[k]) - y[k];
        return;
    }
#endif
    if (function == RN_SIGMOID)
        usual_sigmoid(x, y, count);
    else if (function == RN_SILU)
        usual_silu(x, y, count);
    else if (function == RN_SOFTPLUS)
        usual_softplus(x, y, count);
    else if (function == RN_GELU)
        EACH y[k] = gelu_vf32(x[k]);
    else if (function == RN_GELU_TANH)
        EACH y[k] = gelu_tanh_vf32(x[k]);
    else
        EACH y[k] = value_vf32(function, x[k]);
}
RN_INLINE void usual_slopes_vf32(const int function, const vf32 *x, vf32 *slope, const int count) {
#if VEC_AVX512
    if (function == RN_GELU) {
        of_interval(gelu_slope_lower, x, slope, count);
        /* Beyond the last interval the slope is 1, which is nearer than 1 - s at its end. */
        EACH slope[k] = vf32_select_sign(x[k], slope[k], vf32_select(x[k] < GELU_LAST, 1.0f - slope[k], vf32_set(1)));
        return;
    }
#endif
    if (function == RN_SIGMOID || function == RN_SILU || function == RN_SOFTPLUS)
        usual_slope(function, x, slope, count);
    else
        EACH slope[k] = slope_vf32(function, x[k]);
}
#else
enum { GROUP = 1 };
#define EACH for (int k = 0; k < count; k++)
RN_INLINE vi32 usual_vf32(const int function, vf32 x) { return (void)function, x == x; }
RN_INLINE int all_usual_vf32(const int function, vf32 x) { return (void)function, (void)x, 1; }
RN_INLINE void usual_values_vf32(const int function, const vf32 *x, vf32 *y, const int count) {
    EACH y[k] = value_vf32(function, x[k]);
}
RN_INLINE void usual_slopes_vf32(const int function, const vf32 *x, vf32 *slope, const int count) {
    EACH slope[k] = slope_vf32(function, x[k]);
}
#endif
RN_INLINE vi64 usual_vf64(const int function, vf64 x) { return (void)function, x == x; }
RN_INLINE int all_usual_vf64(const int function, vf64 x) { return (void)function, (void)x, 1; }
RN_INLINE void usual_values_vf64(const int function, const vf64 *x, vf64 *y, const int count) {
    EACH y[k] = value_vf64(function, x[k]);
}
RN_INLINE void usual_slopes_vf64(const int function, const vf64 *x, vf64 *slope, const int count) {
    EACH slope[k] = slope_vf64(function, x[k]);
}

/* A cotangent times the slope. ReLU stops whatever comes where its slope is 0, infinity and NaN too. */
RN_INLINE vf32 product_vf32(const int function, vf32 slope, vf32 dy) {
    return function == RN_RELU ? vf32_select(slope == 0.0f, vf32_set(0), dy) : slope * dy;
}
RN_INLINE vf64 product_vf64(const int function, vf64 slope, vf64 dy) {
    return function == RN_RELU ? vf64_select(slope == 0.0, vf64_set(0), dy) : slope * dy;
}

/* ---- loops -------------------------------------------------------------------------------------------------------- */

/* Estimated nanoseconds an entry, and the smallest share of a thread: whole cache lines. */
static double cost_of(int function, size_t count, double wide) {
    return (double)count * (function == RN_RELU ? 0.3 : function > RN_GELU_TANH ? 1.0 : 3.0) * wide;
}
enum { LINE = 64 };

/* `count` <= lanes entries of any kind: apart from the loops, whose constants would not all fit the registers beside
 * the careful forms' own. */
#define DEFINE_PARTS(type, suffix, vec, function, name)                                                           \
    RN_INLINE vec name##_of_any_##suffix(vec v, const int slope) {                                                \
        vec usual = {0};                                                                                          \
        if (shorter_##vec(function)) {                                                                            \
            slope ? usual_slopes_##vec(function, &v, &usual, 1) : usual_values_##vec(function, &v, &usual, 1);    \
            if (all_usual_##vec(function, v)) return usual;                                                       \
        }                                                                                                         \
        vec careful = slope ? slope_##vec(function, v) : value_##vec(function, v);                                \
        return shorter_##vec(function) ? vec##_select(usual_##vec(function, v), usual, careful) : careful;        \
    }                                                                                                             \
    static __attribute__((noinline)) void name##_value_part_##suffix(const type *x, type *y, size_t count) {      \
        vec##_store_part(y, count, name##_of_any_##suffix(vec##_load_part(x, count, 0), 0));                      \
    }                                                                                                             \
    static __attribute__((noinline)) void name##_slope_part_##suffix(const type *x, type *slope, size_t count) {  \
        vec##_store_part(slope, count, name##_of_any_##suffix(vec##_load_part(x, count, 0), 1));                  \
    }

/* Loops over this thread's entries, in groups of `group` vectors while all lanes are usual. Results that the caches
 * cannot hold are `stream`ed past them, from the first aligned address on. */
#define DEFINE_LOOPS(type, suffix, vec, lanes, group, function, name)                                             \
    DEFINE_PARTS(type, suffix, vec, function, name)                                                               \
    static size_t name##_values_##suffix(const type *x, type *y, size_t i, size_t last, int stream) {             \
        for (; i + group * lanes <= last; i += group * lanes) {                                                   \
            vec v[group], made[group];                                                                            \
            LOAD_GROUP(vec, lanes, group, function);                                                                        \
            if (shorter_##vec(function) && !usual) break;                                                         \
            usual_values_##vec(function, v, made, group);                                                         \
            for (int k = 0; k < group; k++) vec##_put(y + i + k * lanes, made[k], stream);                        \
        }                                                                                                         \
        return i;                                                                                                 \
    }                                                                                                             \
    static void name##_value_##suffix(const type *x, type *y, size_t first, size_t last, int stream) {            \
        size_t i = first, count = stream ? vec_to_alignment(y + first, sizeof(type), last - first) : 0;           \
        if (count) name##_value_part_##suffix(x + i, y + i, count);                                               \
        for (i += count; i < last; i += count) {                                                                  \
            i = name##_values_##suffix(x, y, i, last, stream);                                                    \
            count = last - i < lanes ? last - i : lanes;                                                          \
            if (count) name##_value_part_##suffix(x + i, y + i, count);                                           \
        }                                                                                                         \
    }                                                                                                             \
    static size_t name##_boths_##suffix(const type *x, type *y, type *slope, size_t i, size_t last, int stream) { \
        for (; i + group * lanes <= last; i += group * lanes) {                                                   \
            vec v[group], made[group];                                                                            \
            LOAD_GROUP(vec, lanes, group, function);                                                                        \
            if (shorter_##vec(function) && !usual) break;                                                         \
            usual_values_##vec(function, v, made, group);                                                         \
            for (int k = 0; k < group; k++) vec##_put(y + i + k * lanes, made[k], stream);                        \
            usual_slopes_##vec(function, v, made, group);                                                         \
            for (int k = 0; k < group; k++) vec##_put(slope + i + k * lanes, made[k], stream);                    \
        }                                                                                                         \
        return i;                                                                                                 \
    }                                                                                                             \
    static void name##_both_##suffix(const type *x, type *y, type *slope, size_t first, size_t last, int stream) { \
        for (size_t i = first, count; i < last; i += count) {                                                     \
            i = name##_boths_##suffix(x, y, slope, i, last, stream);                                              \
            count = last - i < lanes ? last - i : lanes;                                                          \
            if (count) name##_value_part_##suffix(x + i, y + i, count);                                           \
            if (count) name##_slope_part_##suffix(x + i, slope + i, count);                                       \
        }                                                                                                         \
    }
#define LOAD_GROUP(vec, lanes, group, function)                           \
    int usual = 1;                                                   \
    for (int k = 0; k < group; k++) v[k] = vec##_load(x + i + k * lanes); \
    for (int k = 0; k < group; k++) usual &= all_usual_##vec(function, v[k])
#define DEFINE_PRODUCTS(type, suffix, vec, lanes, function, name)                                                 \
    static void name##_##suffix(const type *slope, const type *dy, type *dx, size_t first, size_t last, int stream) { \
        size_t i = first;                                                                                         \
        for (; i + lanes <= last; i += lanes)                                                                     \
            vec##_put(dx + i, product_##vec(function, vec##_load(slope + i), vec##_load(dy + i)), stream);         \
        if (i < last)                                                                                             \
            vec##_store_part(dx + i, last - i,                                                                    \
                             product_##vec(function, vec##_load_part(slope + i, last - i, 0),                     \
                                           vec##_load_part(dy + i, last - i, 0)));                                \
    }
#define SHARE_LINES(count, first, last)            \
    RN_SHARE((count + LINE - 1) / LINE, first, last); \
    first *= LINE;                                 \
    last = last * LINE < count ? last * LINE : count

/* Whether results are worth streaming: what is read and written exceeds the last cache. */
RN_INLINE int too_large(size_t count, size_t bytes_each) { return count * bytes_each > rn_cache_bytes(); }
RN_INLINE int aligned(const void *y) { return ((uintptr_t)y & (REFNORM_VECTOR_BYTES - 1)) == 0; }

#define EACH_FUNCTION(DO)                              \
    do {                                               \
        if (function == RN_RELU) DO(relu);             \
        if (function == RN_GELU) DO(gelu);             \
        if (function == RN_GELU_TANH) DO(gelu_tanh);   \
        if (function == RN_SIGMOID) DO(sigmoid_whole); \
        if (function == RN_SILU) DO(silu_whole);       \
        if (function == RN_SOFTPLUS) DO(softplus_whole); \
        if (function == RN_ERF) DO(erf_whole);         \
    } while (0)

#define DEFINE_TYPE(type, suffix, vec, lanes, group, wide)                                                               \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_RELU, relu)                                                  \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_GELU, gelu)                                                  \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_GELU_TANH, gelu_tanh)                                        \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_SIGMOID, sigmoid_whole)                                      \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_SILU, silu_whole)                                            \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_SOFTPLUS, softplus_whole)                                    \
    DEFINE_LOOPS(type, suffix, vec, lanes, group, RN_ERF, erf_whole)                                              \
    DEFINE_PRODUCTS(type, suffix, vec, lanes, RN_RELU, relu_products)                                             \
    DEFINE_PRODUCTS(type, suffix, vec, lanes, RN_GELU, products)                                                  \
    static void value_##suffix(int function, const type *x, type *y, size_t count) {                              \
        int threads = rn_threads(count / LINE + 1, cost_of(function, count, wide));                               \
        int stream = y != x && too_large(count, 2 * sizeof(type));                                                \
        RN_PARALLEL(threads) {                                                                                    \
            SHARE_LINES(count, first, last);                                                                      \
            EACH_FUNCTION(VALUE_##suffix);                                                                        \
            if (stream) vec_fence();                                                                              \
        }                                                                                                         \
    }                                                                                                             \
    static void both_##suffix(int function, const type *x, type *y, type *slope, size_t count) {                  \
        int threads = rn_threads(count / LINE + 1, 2 * cost_of(function, count, wide));                           \
        int stream = aligned(y) && aligned(slope) && too_large(count, 3 * sizeof(type));                          \
        RN_PARALLEL(threads) {                                                                                    \
            SHARE_LINES(count, first, last);                                                                      \
            EACH_FUNCTION(BOTH_##suffix);                                                                         \
            if (stream) vec_fence();                                                                              \
        }                                                                                                         \
    }                                                                                                             \
    static void product_##suffix(int function, const type *slope, const type *dy, type *dx, size_t count) {       \
        int threads = rn_threads(count / LINE + 1, cost_of(RN_RELU, count, wide));                                \
        int stream = aligned(dx) && too_large(count, 3 * sizeof(type));                                           \
        RN_PARALLEL(threads) {                                                                                    \
            SHARE_LINES(count, first, last);                                                                      \
            if (function == RN_RELU)                                                                              \
                relu_products_##suffix(slope, dy, dx, first, last, stream);                                       \
            else                                                                                                  \
                products_##suffix(slope, dy, dx, first, last, stream);                                            \
            if (stream) vec_fence();                                                                              \
        }                                                                                                         \
    }

#define VALUE_f32(name) name##_value_f32(x, y, first, last, stream)
#define VALUE_f64(name) name##_value_f64(x, y, first, last, stream)
#define BOTH_f32(name) name##_both_f32(x, y, slope, first, last, stream)
#define BOTH_f64(name) name##_both_f64(x, y, slope, first, last, stream)
DEFINE_TYPE(float, f32, vf32, VF32, GROUP, 1.0)
DEFINE_TYPE(double, f64, vf64, VF64, 1, 2.0)

RN_TABLE(activation) = {
    .value_f32 = value_f32,
    .value_f64 = value_f64,
    .both_f32 = both_f32,
    .both_f64 = both_f64,
    .product_f32 = product_f32,
    .product_f64 = product_f64,
};
