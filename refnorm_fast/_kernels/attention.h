/* Softmax and sigmoid attention that keep no score matrix in memory. */
#ifndef REFNORM_ATTENTION_H
#define REFNORM_ATTENTION_H

#include <stdint.h>

#include "dispatch.h"

/* `items` independent attentions (of one batch entry and head each), all of one shape:
 *     out = softmax(scale * query @ key^T, over the keys that may be attended to) @ value
 * query (length, depth), key (keys, depth), value (keys, width), out (length, width); strides count elements between
 * rows, entries of a row are adjacent. A row that may attend to nothing gives zeros.
 * Where `row_bias` is given, it is sigmoid attention instead:
 *     out = sigmoid(scale * query @ key^T + row_bias + pair_bias) @ value, weights of excluded pairs 0 */
typedef struct {
    const void *query, *key, *value;
    void *out;
    size_t length, keys, depth, width;
    ptrdiff_t query_stride, key_stride, value_stride, out_stride;
    double scale;
    const uint8_t *mask; /* NULL, or mask[row * mask_row + key * mask_key] != 0 where row may attend to key */
    ptrdiff_t mask_row, mask_key;
    int causal; /* row i attends to keys up to i + causal_shift */
    ptrdiff_t causal_shift;
    /* NULL, or takes two entries a row for the backward pass: the shift m of its scores (in units of the kernel's
     * exponential) and 1 / sum exp(score - m), 0 for a row that may attend to nothing. Sigmoid attention has none. */
    void *statistics;
    const void *row_bias; /* NULL, or row_bias[row * row_bias_stride] */
    ptrdiff_t row_bias_stride;
    const void *pair_bias; /* NULL, or pair_bias[row * pair_bias_row + key * pair_bias_key] */
    ptrdiff_t pair_bias_row, pair_bias_key;
} rn_attention_item;

/* The cotangents of one item. `item.out` is the result (length, width), `item.statistics` what the forward pass left;
 * the three results are contiguous. */
typedef struct {
    rn_attention_item item;
    const void *dy;
    ptrdiff_t dy_stride;
    void *dquery, *dkey, *dvalue;
    /* Of sigmoid attention, each NULL or wanted: cotangents of the scores, summed over the keys (length) and as they are
     * (length, keys); the latter is zero beforehand. */
    void *drow_bias, *dpair_bias;
} rn_attention_cotangents;

typedef struct {
    /* 0, or -1 where scratch memory ran out. */
    int (*items_f32)(const rn_attention_item *items, size_t count);
    int (*items_f64)(const rn_attention_item *items, size_t count);
    int (*backward_f32)(const rn_attention_cotangents *items, size_t count);
    int (*backward_f64)(const rn_attention_cotangents *items, size_t count);
    /* Packed sequences: rows offsets[i] to offsets[i + 1] attend to each other, for each of `heads` column ranges of
     * `depth` columns. */
    int (*packed_f32)(const float *query, const float *key, const float *value, ptrdiff_t query_stride,
                      ptrdiff_t key_stride, ptrdiff_t value_stride, const int64_t *offsets, size_t sequences,
                      size_t heads, size_t depth, double scale, float *out, ptrdiff_t out_stride);
    int (*packed_f64)(const double *query, const double *key, const double *value, ptrdiff_t query_stride,
                      ptrdiff_t key_stride, ptrdiff_t value_stride, const int64_t *offsets, size_t sequences,
                      size_t heads, size_t depth, double scale, double *out, ptrdiff_t out_stride);
} rn_attention_table;

RN_EXPORT const rn_attention_table *rn_attention(void);

#endif
