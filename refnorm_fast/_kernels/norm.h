/* Layer norm, RMS norm, compressed RMS norm over the rows of a matrix, group norm, and their backward passes.
 *
 * A row of x starts `stride` elements after the one before; everything else is contiguous. y may be x or residual
 * themselves (with stride == length) but must not overlap them otherwise. */
#ifndef REFNORM_NORM_H
#define REFNORM_NORM_H

#include "dispatch.h"

/* centre: c = x - mean(x), q = mean(c^2); RMS: c = x, q = mean(x^2);
 * compressed RMS: c = x, q = (sum(x^2) + sum(x)^2) / (length + 1). y = gain * c / sqrt(q + eps) + bias. */
enum { RN_LAYER_NORM = 0, RN_RMS_NORM = 1, RN_COMPRESSED_RMS_NORM = 2 };

/* x is (examples, groups, channels, places), contiguous; a row is one group of one example. kind is layer norm, whose
 * squares are divided by the row's entries less `ddof`, or RMS norm. */
typedef struct {
    int kind;
    size_t examples, groups, channels, places, ddof;
    double eps;
} rn_groups;

#define RN_NORM_FUNCTIONS(T, suffix)                                                                                  \
    /* residual: NULL, or added to x first (contiguous); gain, bias: NULL, or `length` entries, bias only with gain.  \
     * centre and inv_std: NULL, or take each row's mean (compressed: sum) and 1 / sqrt(q + eps). 0, or -1: no memory. */ \
    int (*norm_##suffix)(int kind, const T *x, size_t stride, const T *residual, const T *gain, const T *bias, T *y,  \
                         size_t rows, size_t length, double eps, double *centre, double *inv_std);                    \
    /* dgain, dbias: NULL, or take `length` sums over the rows; dx may be dy. 0, or -1: no memory. */                 \
    int (*norm_backward_##suffix)(int kind, const T *x, size_t stride, const T *gain, const T *dy, T *dx, T *dgain,   \
                                  T *dbias, size_t rows, size_t length, const double *centre, const double *inv_std); \
    /* The same with gain, bias, dgain, dbias of (groups, channels). */                                               \
    int (*group_norm_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y,                \
                               double *centre, double *inv_std);                                                      \
    int (*group_norm_backward_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *dy, T *dx,        \
                                        T *dgain, T *dbias, const double *centre, const double *inv_std);

typedef struct {
    RN_NORM_FUNCTIONS(float, f32)
    RN_NORM_FUNCTIONS(double, f64)
} rn_norm_table;

RN_EXPORT const rn_norm_table *rn_norm(void);

#endif
