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

/* A row of StableMax: p = scale s(x) / total, log p = (h(x) - h(largest)) - log_sum with h = log s. NaN where a row is. */
typedef struct {
    double largest, scale, total, log_sum;
} rn_stable_stats;

/* Which entries of a row take part, and what they are divided by. mask: NULL for all of them, or a byte an entry, 0: left
 * out; a row's bytes begin at mask + at[row], or at mask + row * length if at is NULL. 2^-60 <= temperature <= 2^60. */
typedef struct {
    const uint8_t *mask;
    const int64_t *at;
    double temperature;
} rn_where;

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
                                                 size_t inner, const double *largest, const double *log_sum);        \
    /* The same over the entries left in, of x / temperature: the results of entries left out are 0 (-inf for logarithms). \
     * log(sum(exp(x / temperature))) = largest / temperature + log_sum; z, largest and log_sum may be NULL. */      \
    int (*softmax_where_##suffix)(const T *x, size_t stride, const rn_where *where, T *y, size_t rows, size_t length); \
    void (*softmax_backward_where_##suffix)(const T *y, const T *g, const rn_where *where, T *dx, size_t rows,       \
                                            size_t length);                                                          \
    void (*log_softmax_where_##suffix)(const T *x, size_t stride, const rn_where *where, T *z, size_t rows,          \
                                       size_t length, double *largest, double *log_sum);                             \
    /* out = factor / temperature softmax, or, if g is not NULL, (g - softmax sum(g)) / temperature */               \
    void (*from_stats_where_##suffix)(const T *x, size_t stride, const T *g, const rn_where *where, T *out, size_t rows, \
                                      size_t length, const double *largest, const double *log_sum, const double *factor); \
    /* The stats along the middle axis of a C-contiguous array (outer, length, inner), without a mask. 0, or -1: no memory. */ \
    int (*stats_where_columns_##suffix)(const T *x, const rn_where *where, size_t outer, size_t length, size_t inner, \
                                        double *largest, double *log_sum);                                           \
    /* y = x scale - minus[column], in float64 until the end */                                                      \
    void (*scaled_minus_##suffix)(const T *x, double scale, const double *minus, T *y, size_t rows, size_t columns); \
    /* s(x) = 1 + x, or 1 / (1 - x) below 0, of `count` entries; dx = g s'(x) */                                     \
    void (*stable_s_##suffix)(const T *x, T *y, size_t count);                                                       \
    void (*stable_s_backward_##suffix)(const T *x, const T *g, T *dx, size_t count);                                 \
    /* y = s(x) / sum(s(x)), or its logarithm; stats: NULL, or one a row */                                          \
    void (*stablemax_##suffix)(const T *x, size_t stride, T *y, size_t rows, size_t length);                         \
    void (*log_stablemax_##suffix)(const T *x, size_t stride, T *z, size_t rows, size_t length, rn_stable_stats *stats); \
    /* dx from y, and from the stats */                                                                              \
    void (*stablemax_backward_##suffix)(const T *x, size_t stride, const T *y, const T *g, T *dx, size_t rows,       \
                                        size_t length);                                                              \
    void (*log_stablemax_backward_##suffix)(const T *x, size_t stride, const T *g, T *dx, size_t rows, size_t length, \
                                            const rn_stable_stats *stats);                                           \
    /* loss = -log stablemax(x)[target]; dx = weight[row] times its slope */                                         \
    void (*stable_cross_entropy_##suffix)(const T *x, size_t stride, const int64_t *target, size_t rows, size_t length, \
                                          double *loss, rn_stable_stats *stats);                                     \
    void (*stable_cross_entropy_backward_##suffix)(const T *x, size_t stride, const int64_t *target, T *dx, size_t rows, \
                                                   size_t length, const double *weight, const rn_stable_stats *stats);

typedef struct {
    RN_SOFTMAX_FUNCTIONS(float, f32)
    RN_SOFTMAX_FUNCTIONS(double, f64)
} rn_softmax_table;

RN_EXPORT const rn_softmax_table *rn_softmax(void);

#endif
