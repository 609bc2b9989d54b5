/* What follows a linear layer while its rows are in cache: GELU, residual + layer norm. */
#ifndef REFNORM_EPILOGUE_H
#define REFNORM_EPILOGUE_H

#include "vec_math.h"

enum { RN_ACTIVATION_NONE = 0, RN_ACTIVATION_GELU, RN_ACTIVATION_GELU_TANH, RN_ACTIVATION_RELU };

/* GELU for the inside of a network: max(x, 0) - a (1/2 - a P(a^2)) with a = min(|x|, 5.6) and
 * P(u) = erf(sqrt(u/2)) / (2 sqrt(u)), a minimax polynomial of degree 15 in t = 2u / 5.6^2 - 1. Its error is below
 * 6e-7 absolutely everywhere: 5.6 (1 - Phi(5.6)) = 6e-8 is what the bound on a leaves out, the rest is rounding. */
#define GELU_BOUND 5.6f
RN_INLINE vf32 vf32_gelu(vf32 x) {
    vf32 a = vf32_min(vf32_set(GELU_BOUND), vf32_abs(x)); /* NaN stays: it is the second argument */
    vf32 t = vf32_fma(a * a, vf32_set(2.0f / (GELU_BOUND * GELU_BOUND)), vf32_set(-1.0f));
    static const float p[16] = {0x1.029464p-3f,  -0x1.024216p-4f, 0x1.80ddf0p-5f,  -0x1.3a1ef4p-5f,
                                0x1.05e81ap-5f,  -0x1.af3d62p-6f, 0x1.56f5d2p-6f,  -0x1.014ad8p-6f,
                                0x1.690e66p-7f,  -0x1.f7a4c8p-8f, 0x1.594f88p-8f,  -0x1.5b454ep-9f,
                                0x1.c14c34p-11f, -0x1.9e5726p-11f, 0x1.b0b554p-11f, -0x1.286d40p-12f};
    /* Even and odd powers apart: two chains of half the length. */
    vf32 t2 = t * t, even = vf32_set(p[14]), odd = vf32_set(p[15]);
#pragma GCC unroll 8
    for (int i = 12; i >= 0; i -= 2) {
        even = vf32_fma(even, t2, vf32_set(p[i]));
        odd = vf32_fma(odd, t2, vf32_set(p[i + 1]));
    }
    vf32 tail = vf32_fma(-a, vf32_fma(odd, t, even), vf32_set(0.5f));
    return vf32_fma(-a, tail, vf32_max(vf32_set(0), x));
}

/* x (1 + tanh u) / 2 = x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3). The bound keeps the exponential
 * finite: x / inf is right for large -u, but -inf / inf is not. */
RN_INLINE vf32 vf32_gelu_tanh(vf32 x) {
    vf32 minus_2u = x * vf32_fma(x * x, vf32_set(-0.0713548162726f), vf32_set(-1.5957691216057f));
    return x / (1.0f + vf32_exp(vf32_min(vf32_set(88.0f), minus_2u)));
}

RN_INLINE vf32 vf32_relu(vf32 x) { return vf32_max(vf32_set(0), x); } /* NaN stays */

#define ACTIVATE_ROW(function)                                                              \
    for (; i + 2 * VF32 <= count; i += 2 * VF32) {                                          \
        vf32 first = function(vf32_load(x + i)), second = function(vf32_load(x + i + VF32)); \
        vf32_store(x + i, first);                                                           \
        vf32_store(x + i + VF32, second);                                                   \
    }                                                                                       \
    for (; i < count; i += VF32) {                                                          \
        size_t part = count - i < VF32 ? count - i : VF32;                                  \
        vf32_store_part(x + i, part, function(vf32_load_part(x + i, part, 0)));             \
    }

static __attribute__((unused)) void rn_activate_row(int activation, float *x, size_t count) {
    size_t i = 0;
    if (activation == RN_ACTIVATION_GELU) {
        ACTIVATE_ROW(vf32_gelu)
    } else if (activation == RN_ACTIVATION_GELU_TANH) {
        ACTIVATE_ROW(vf32_gelu_tanh)
    } else if (activation == RN_ACTIVATION_RELU) {
        ACTIVATE_ROW(vf32_relu)
    }
}

/* out = layer_norm(x + residual) of one row. x is overwritten by the sum; out may be x or residual. Deviations from
 * the mean are summed, not squares minus a square: no cancellation. */
static __attribute__((unused)) void rn_residual_norm_row(float *x, const float *residual, const float *gain, const float *shift, float eps,
                                 float *out, size_t count) {
    vf32 sum[4] = {{0}, {0}, {0}, {0}};
    size_t whole = count / (4 * VF32) * (4 * VF32), i = 0;
    for (; i < whole; i += 4 * VF32)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vf32 each = vf32_load(x + i + j * VF32) + vf32_load(residual + i + j * VF32);
            vf32_store(x + i + j * VF32, each);
            sum[j] += each;
        }
    for (; i < count; i += VF32) {
        size_t part = count - i < VF32 ? count - i : VF32;
        vf32 each = vf32_load_part(x + i, part, 0) + vf32_load_part(residual + i, part, 0);
        vf32_store_part(x + i, part, each);
        sum[0] += each;
    }
    float mean = (float)(vf32_sum_wide((sum[0] + sum[1]) + (sum[2] + sum[3])) / (double)count);
    for (int j = 0; j < 4; j++) sum[j] = vf32_set(0);
    for (i = 0; i < whole; i += 4 * VF32)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            vf32 each = vf32_load(x + i + j * VF32) - mean;
            sum[j] = vf32_fma(each, each, sum[j]);
        }
    for (; i < count; i += VF32) {
        size_t part = count - i < VF32 ? count - i : VF32;
        vf32 each = vf32_load_part(x + i, part, mean) - mean;
        sum[0] = vf32_fma(each, each, sum[0]);
    }
    double variance = vf32_sum_wide((sum[0] + sum[1]) + (sum[2] + sum[3])) / (double)count;
    float inv_std = (float)(1.0 / sqrt(variance + (double)eps));
    for (i = 0; i + VF32 <= count; i += VF32)
        vf32_store(out + i, vf32_fma((vf32_load(x + i) - mean) * inv_std, vf32_load(gain + i), vf32_load(shift + i)));
    if (i < count) {
        size_t part = count - i;
        vf32 each = (vf32_load_part(x + i, part, 0) - mean) * inv_std;
        vf32_store_part(out + i, part, vf32_fma(each, vf32_load_part(gain + i, part, 0), vf32_load_part(shift + i, part, 0)));
    }
}

#endif
