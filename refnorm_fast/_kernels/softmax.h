/* Softmax, log-softmax, log-sum-exp and cross-entropy over the rows of a matrix.
 *
 * A row starts `stride` elements after the one before; results are contiguous. Every result may be the input itself
 * (same address, stride == length) but must not overlap it otherwise. Rows are not empty.
 *
 * A row's logarithm of the sum of exponentials is kept as a pair of doubles, largest + log_sum, where
 * log_sum = log(sum_j exp(x_j - largest)) >= 0 has full relative accuracy. So x_i - (largest + log_sum) is a sum
 * of two numbers of one sign and nothing cancels. A row with NaN or +inf, or of nothing but -inf, has NaN there. */
#ifndef REFNORM_SOFTMAX_H
#define REFNORM_SOFTMAX_H

#include <stdint.h>

#include "dispatch.h"

enum { RN_TWO_PASS = 0, RN_THREE_PASS_RECOMPUTE = 1, RN_THREE_PASS_RELOAD = 2, RN_ONLINE = 3, RN_TWO_PASS_ALWAYS = 4 };

#define RN_SOFTMAX_FUNCTIONS(T, suffix)                                                                              \
    /* y = softmax(x). RN_TWO_PASS takes the reload form for rows that stay in cache. 0, or -1: no memory. */       \
    int (*softmax_##suffix)(const T *x, size_t stride, T *y, size_t rows, size_t length, int algorithm);            \
    int (*row_stats_##suffix)(const T *x, size_t stride, size_t rows, size_t length, double *largest,               \
                              double *log_sum);                                                                     \
    /* z = x - largest - log_sum; computes the stats, and stores them unless the pointers are NULL. */              \
    int (*log_softmax_##suffix)(const T *x, size_t stride, T *z, size_t rows, size_t length, double *largest,       \
                                double *log_sum);                                                                   \
    /* out = factor[row] * softmax(x), from the stats */                                                            \
    void (*softmax_from_stats_##suffix)(const T *x, size_t stride, T *out, size_t rows, size_t length,              \
                                        const double *largest, const double *log_sum, const double *factor);        \
    /* dx = y * (g - <g, y>) */                                                                                     \
    void (*softmax_backward_##suffix)(const T *y, const T *g, T *dx, size_t rows, size_t length);                   \
    /* dx = g - softmax(x) * sum(g), from the stats */                                                              \
    void (*log_softmax_backward_##suffix)(const T *x, size_t stride, const T *g, T *dx, size_t rows, size_t length, \
                                          const double *largest, const double *log_sum);                            \
    /* loss[row] and the stats; a negative target leaves loss 0 */                                                  \
    int (*cross_entropy_##suffix)(const T *x, size_t stride, const int64_t *target, size_t rows, size_t length,     \
                                  double smoothing, double *loss, double *largest, double *log_sum);                \
    /* dx = weight[row] * (softmax(x) - q), q = (1 - smoothing) [i = target] + smoothing / length;                  \
     * rows with a negative target get 0 */                                                                         \
    void (*cross_entropy_backward_##suffix)(const T *x, size_t stride, const int64_t *target, T *dx, size_t rows,   \
                                            size_t length, double smoothing, const double *weight,                  \
                                            const double *largest, const double *log_sum);                          \
    /* loss = sum q (lse - x), q_sum = sum q */                                                                     \
    int (*soft_cross_entropy_##suffix)(const T *x, const T *q, size_t rows, size_t length, double *loss,            \
                                       double *q_sum, double *largest, double *log_sum);                            \
    /* dx = weight (softmax(x) q_sum - q), dq = weight (lse - x) */                                                 \
    void (*soft_cross_entropy_backward_##suffix)(const T *x, const T *q, T *dx, T *dq, size_t rows, size_t length,  \
                                                 const double *weight, const double *q_sum, const double *largest,  \
                                                 const double *log_sum);                                             \
    /* The same along the middle axis of C-contiguous arrays (outer, length, inner); the stats are (outer, inner). 0, or \
     * -1: no memory. */                                                                                             \
    int (*softmax_columns_##suffix)(const T *x, T *y, size_t outer, size_t length, size_t inner);                    \
    int (*log_softmax_columns_##suffix)(const T *x, T *z, size_t outer, size_t length, size_t inner, double *largest, \
                                        double *log_sum);                                                            \
    int (*softmax_from_stats_columns_##suffix)(const T *x, T *out, size_t outer, size_t length, size_t inner,        \
                                               const double *largest, const double *log_sum, const double *factor);  \
    int (*softmax_backward_columns_##suffix)(const T *y, const T *g, T *dx, size_t outer, size_t length, size_t inner); \
    int (*log_softmax_backward_columns_##suffix)(const T *x, const T *g, T *dx, size_t outer, size_t length,         \
                                                 size_t inner, const double *largest, const double *log_sum);

typedef struct {
    RN_SOFTMAX_FUNCTIONS(float, f32)
    RN_SOFTMAX_FUNCTIONS(double, f64)
} rn_softmax_table;

RN_EXPORT const rn_softmax_table *rn_softmax(void);

#endif
