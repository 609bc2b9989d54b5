/* Integer matrix products: exact int8 x int8 -> int32, LLM.int8() linear layers, and the encoder's quantized layers. */
#ifndef REFNORM_INT8_H
#define REFNORM_INT8_H

#include <stdint.h>

#include "dispatch.h"

/* A quantized layer of the encoder. Depth is cut into groups of `group` entries; a row of x has a scale and a smallest
 * value for each group, a column of the weight a scale for each group:
 *     y[t, n] = bias[n] + sum_g row_scale[t, g] * scale[g, n] * dot(a, w) + low[t, g] * offset[g, n]
 * where x ~ low + row_scale * a, weight ~ scale * w, and offset = scale * (sum of w over the group). */
typedef struct {
    const int8_t *packed;
    const float *scale, *offset, *bias; /* (groups, padded_width) twice, (padded_width) */
    size_t depth, width;
} rn_int8_layer;

typedef struct {
    const rn_int8_layer *layer;
    const float *x;
    size_t x_stride, rows;
    float *out;
    size_t out_stride;
    int activation;
    const float *residual, *gain, *shift; /* gain NULL: no norm */
    size_t residual_stride;
    float eps;
    float threshold; /* entries at least this large are added in float; 0: none are */
} rn_int8_call;

typedef struct {
    /* ---- exact products ---- */
    size_t (*padded_width)(size_t width);
    size_t (*packed_bytes)(size_t depth, size_t width);
    /* q (width, depth), rows `q_stride` bytes apart. `sums`: padded_width column sums, from 0 on. */
    void (*pack)(const int8_t *q, size_t q_stride, size_t depth, size_t width, int8_t *packed, int32_t *sums);
    /* The same of the transpose: q (depth, width). */
    void (*pack_columns)(const int8_t *q, size_t q_stride, size_t depth, size_t width, int8_t *packed, int32_t *sums);
    /* to (columns, rows) = from (rows, columns) with its axes exchanged; both contiguous. */
    void (*transpose)(const int8_t *from, size_t rows, size_t columns, int8_t *to);
    /* c[t, n] = sum_k a[t, k] q[n, k]; q holds no -128. 0, or -1 without memory. */
    int (*matmul)(const int8_t *a, size_t a_stride, size_t rows, size_t depth, const int8_t *packed,
                  const int32_t *sums, size_t width, int32_t *c, size_t c_stride);
    /* y[t, n] = (sum_k a[t, k] times[k] q[n, k]) power scale in float64, rounded to float, or to double if `wide`. The
     * products a times fit 8 bits; `times` NULL: they are 1. a and y are contiguous. 0, or -1 without memory. */
    int (*scaled)(int wide, const int8_t *a, const int8_t *times, size_t rows, size_t depth, const int8_t *packed,
                  const int32_t *sums, size_t width, double power, double scale, void *y);
    /* The same as matmul for few rows, q (width, depth) not packed; a and c are contiguous. 1 if q holds -128: c is then unfinished. */
    int (*matmul_rows)(const int8_t *a, size_t rows, size_t depth, const int8_t *q, size_t width, int32_t *c);
    /* One pass over x: largest |x| of each row, over entries below the threshold (0: over all), and outlier[k] = 1
     * where a column reaches it. Returns 1 if x holds NaN or infinity. `outlier` starts as zeros. */
    int (*row_constants)(const float *x, size_t x_stride, size_t rows, size_t depth, float threshold, float *largest,
                         uint8_t *outlier);
    /* q = rint(127 x / largest), 0 in outlier columns and rows without an entry. */
    void (*quantize)(const float *x, size_t x_stride, size_t rows, size_t depth, const float *largest,
                     const uint8_t *outlier, int8_t *q);
    /* weights[i, n] = code of the packed weight at (columns[i], n) * scale[n] / 127, up to padded_width columns. */
    void (*outlier_weights)(const int8_t *packed, size_t depth, size_t width, const float *scale, const int64_t *columns,
                            size_t count, float *weights);
    /* out = activation((q @ packed) * (largest * scale) / 127^2 + bias + large @ weights) + residual. `large` is
     * (rows, count), the entries of the outlier columns, weights (count, padded_width). `activation` is one of
     * epilogue.h; `residual` has rows at the stride of out, may be out itself, or NULL. 0, or -1 without memory. */
    int (*dequantized)(const int8_t *q, const float *largest, size_t rows, size_t depth, const int8_t *packed,
                       const int32_t *sums, const float *scale, const float *bias, size_t width, const float *large,
                       size_t count, const float *weights, int activation, const float *residual, float *out,
                       size_t out_stride);

    /* ---- the encoder's layers ---- */
    size_t group;           /* depth of a group */
    int weight_top, row_top; /* largest |w|, largest a */
    size_t (*group_bytes)(size_t depth, size_t width);
    /* weight (depth, width), entry (k, n) at weight[k * depth_stride + n * width_stride]. */
    void (*pack_groups)(const float *weight, ptrdiff_t depth_stride, ptrdiff_t width_stride, size_t depth,
                        size_t width, int8_t *packed, float *scale, float *offset);
    int (*linear)(const rn_int8_call *call);
    int (*feed_forward)(const rn_int8_call *first, const rn_int8_call *second);
} rn_int8_table;

RN_EXPORT const rn_int8_table *rn_int8(void);

#endif
