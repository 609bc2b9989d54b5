/* Linear layers whose weights are 4-bit codes with a scale and a zero point for each output and group of inputs:
 *     weight[k, n] = scale[n, g] (code[n, k] - zero[n, g]),   g = k / group
 */
#ifndef REFNORM_INT4_H
#define REFNORM_INT4_H

#include <stdint.h>

#include "dispatch.h"

typedef struct {
    const uint8_t *codes; /* (width, (depth + 1) / 2): input 2 i in the low half of byte i, 2 i + 1 in the high one */
    const void *scale;    /* (width, groups) of float or double */
    const uint8_t *zero;  /* (width, groups) */
    size_t depth, width, group;
} rn_int4_weight;

typedef struct {
    /* out (rows, width) = x (rows, depth) @ weight + bias; bias may be NULL. 0, or -1 where scratch memory ran out. */
    int (*linear_f32)(const rn_int4_weight *weight, const float *x, size_t rows, const float *bias, float *out);
    int (*linear_f64)(const rn_int4_weight *weight, const double *x, size_t rows, const double *bias, double *out);
    /* to[n - first, k] = weight[k, n] for the outputs first <= n < last. */
    void (*dequantize_f32)(const rn_int4_weight *weight, size_t first, size_t last, float *to);
    void (*dequantize_f64)(const rn_int4_weight *weight, size_t first, size_t last, double *to);
    /* to = c / 127 rint(127 x / c), c being the largest magnitude of each `group` entries of a row: what 8-bit codes stand
     * for. 1 if x holds NaN or infinity; `to` is unfinished then. */
    int (*in_8_bits_f32)(const float *x, size_t rows, size_t depth, size_t group, float *to);
    int (*in_8_bits_f64)(const double *x, size_t rows, size_t depth, size_t group, double *to);
    /* Bytes of a weight whose codes are in the order of linear_bytes, 0 where there is no kernel for it; and packs them. */
    size_t (*packed_bytes)(const rn_int4_weight *weight);
    void (*pack)(const rn_int4_weight *weight, void *packed);
    /* linear_f32 of in_8_bits_f32 of x, by dot products of bytes; `packed` may be NULL. 0; 1 where there is no kernel for it; 2
     * if x holds NaN or infinity; -1 without memory. */
    int (*linear_bytes)(const rn_int4_weight *weight, const void *packed, const float *x, size_t rows, const float *bias,
                        float *out);
} rn_int4_table;

RN_EXPORT const rn_int4_table *rn_int4(void);

#endif
