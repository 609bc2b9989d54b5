/* Softmax, log-softmax, log-sum-exp, cross-entropy over the rows of a matrix. */
#ifndef REFNORM_SOFTMAX_H
#define REFNORM_SOFTMAX_H

#include "dispatch.h"

typedef struct {
    /* y[row, :] = softmax(x[row, :]) for `rows` contiguous rows of `length` entries. y may be x. */
    void (*softmax_f32)(const float *x, float *y, size_t rows, size_t length);
} rn_softmax_table;

RN_EXPORT const rn_softmax_table *rn_softmax(void);

#endif
