/* Layer norm, RMS norm, compressed RMS norm over the rows of a matrix, group norm, and their backward passes.
 *
 * A row of x starts `stride` elements after the one before; everything else is contiguous. y may be x or residual
 * themselves (with stride == length) but must not overlap them otherwise. */
#ifndef REFNORM_NORM_H
#define REFNORM_NORM_H

#include <stdint.h>

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

/* clip(rint(y / scale) + zero_point, lowest, lowest + 255) as one byte, int8 or uint8 */
typedef struct {
    float scale, zero_point, lowest;
} rn_code_grid;

#define RN_NORM_FUNCTIONS(T, suffix)                                                                                  \
    /* residual: NULL, or added to x first (contiguous); gain, bias: NULL, or `length` entries, bias only with gain.  \
     * centre and inv_std: NULL, or take each row's mean (compressed: sum) and 1 / sqrt(q + eps). 0, or -1: no memory. */ \
    int (*norm_##suffix)(int kind, const T *x, size_t stride, const T *residual, const T *gain, const T *bias, T *y,  \
                         size_t rows, size_t length, double eps, double *centre, double *inv_std);                    \
    /* Contiguous x; sum takes x + residual and overlaps nothing. */                                                  \
    int (*add_norm_##suffix)(int kind, const T *x, const T *residual, const T *gain, const T *bias, T *y, T *sum,     \
                             size_t rows, size_t length, double eps, double *centre, double *inv_std);                \
    /* dgain, dbias: NULL, or take `length` sums over the rows; dx may be dy. 0, or -1: no memory. */                 \
    int (*norm_backward_##suffix)(int kind, const T *x, size_t stride, const T *gain, const T *dy, T *dx, T *dgain,   \
                                  T *dbias, size_t rows, size_t length, const double *centre, const double *inv_std); \
    /* The same with gain, bias, dgain, dbias of (groups, channels). */                                               \
    int (*group_norm_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y,                \
                               double *centre, double *inv_std);                                                      \
    int (*group_norm_backward_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *dy, T *dx,        \
                                        T *dgain, T *dbias, const double *centre, const double *inv_std);              \
    /* y = h (1 + gain) + bias with gain and bias of every entry; h = (x - centre) inv_std, or x where centre is NULL. \
     * y may be x, gain or bias. */                                                                                   \
    void (*modulate_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y,                 \
                              const double *centre, const double *inv_std);                                           \
    /* dh = dy (1 + gain) and dgain = dy h. */                                                                        \
    void (*modulate_backward_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *dy, T *dh,         \
                                       T *dgain, const double *centre, const double *inv_std);                        \
    /* modulate with the statistics of x, which go to centre and inv_std. */                                          \
    void (*norm_modulate_##suffix)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y,            \
                                   double *centre, double *inv_std);

typedef struct {
    RN_NORM_FUNCTIONS(float, f32)
    RN_NORM_FUNCTIONS(double, f64)
    /* Codes of the normalized rows: by each row's largest magnitude, which goes to `largest`, or with NULL there on `grid`.
     * 0, or -1: no memory, or 1: a normalized entry is not finite. */
    int (*norm_codes)(int kind, const float *x, size_t stride, const float *gain, const float *bias, size_t rows,
                      size_t length, double eps, float *largest, const rn_code_grid *grid, uint8_t *q);
} rn_norm_table;

RN_EXPORT const rn_norm_table *rn_norm(void);

#endif
