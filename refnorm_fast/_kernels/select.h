/* Selection of the largest entries of each row, and softmax over them. Rows are not empty. */
#ifndef REFNORM_SELECT_H
#define REFNORM_SELECT_H

#include <stdint.h>

#include "dispatch.h"

#define RN_SELECT_FUNCTIONS(T, suffix)                                                                               \
    /* The top_k largest of each row, of equal ones the first, NaN last; a row of scores starts `stride` entries after \
     * the one before. bias: NULL, or added to the scores of the selected; with_bias: it counts in the selection too. \
     * weights: softmax over the selected, 0 elsewhere; NaN where a score or its sum with the bias is. mask: 1 where   \
     * selected. chosen, packed: both NULL, or rows * top_k entries for the backward, in an order of its own. 0, or -1. */ \
    int (*topk_softmax_##suffix)(const T *scores, size_t stride, const T *bias, T *weights, uint8_t *mask,           \
                                 int32_t *chosen, T *packed, size_t rows, size_t length, size_t top_k, int with_bias); \
    /* dscores, 0 off the selection; dbias: NULL, or takes `length` sums over the rows. 0, or -1: no memory. */      \
    int (*topk_softmax_backward_##suffix)(const T *dweights, const int32_t *chosen, const T *packed, T *dscores,     \
                                          T *dbias, size_t rows, size_t length, size_t top_k);

typedef struct {
    RN_SELECT_FUNCTIONS(float, f32)
    RN_SELECT_FUNCTIONS(double, f64)
} rn_select_table;

RN_EXPORT const rn_select_table *rn_select(void);

#endif
