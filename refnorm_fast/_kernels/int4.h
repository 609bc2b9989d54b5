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
} rn_int4_table;

RN_EXPORT const rn_int4_table *rn_int4(void);

#endif
