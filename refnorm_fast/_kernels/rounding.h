/* Roundings that are variables: the rectified sigmoid, the regulariser that decides them, and weights quantized with them.
 *
 * Results do not depend on the number of threads. */
#ifndef REFNORM_ROUNDING_H
#define REFNORM_ROUNDING_H

#include "dispatch.h"

/* What the variable v means: floor(u) + rectified sigmoid, floor(u) + clip(v, 0, 1), or rint(u + clip(v, -1, 1)). */
enum { RN_ROUND_SIGMOID = 0, RN_ROUND_DIRECT = 1, RN_ROUND_STE = 2 };

/* y = scale clip(code of weight / scale and v). Row-major arrays; `scale` has one entry or, with per_column, one a column.
 * q (the clipped code) and slope (of the code by v, 0 where it is clipped) are NULL if no gradient is wanted. */
typedef struct {
    const void *weight, *v, *scale;
    void *y, *q, *slope;
    size_t rows, columns;
    int per_column, variable;
    double lowest, highest;
} rn_soft_quantization;

/* dv = slope (dy scale), 0 where the slope is 0; dscale = sum of dy q over what shares a scale. */
typedef struct {
    const void *dy, *q, *slope, *scale;
    void *dv, *dscale;
    size_t rows, columns;
    int per_column;
} rn_soft_quantization_back;

#define RN_ROUNDING_FUNCTIONS(T, suffix)                                                                          \
    /* h = clip(1.2 sigmoid(v) - 0.1, 0, 1), 0 at NaN, and its slope if that is not NULL. */                      \
    void (*rectify_##suffix)(const T *v, T *h, T *slope, size_t count);                                           \
    /* dx = slope dy, 0 where the slope is 0. */                                                                  \
    void (*product_##suffix)(const T *slope, const T *dy, T *dx, size_t count);                                   \
    /* *sum = sum of 1 - |2 h - 1|^exponent, and |2 h - 1|^(exponent - 1) sign(2 h - 1) if `slope` is not NULL.    \
     * 0, or -1: no memory. */                                                                                    \
    int (*regularise_##suffix)(const T *h, T *slope, size_t count, double exponent, double *sum);                 \
    /* y = factor x */                                                                                            \
    void (*scaled_##suffix)(const T *x, double factor, T *y, size_t count);                                       \
    /* 1 if every weight is finite, else 0. */                                                                    \
    int (*soft_quantize_##suffix)(const rn_soft_quantization *call);                                              \
    /* 0, or -1: no memory. */                                                                                    \
    int (*soft_quantize_back_##suffix)(const rn_soft_quantization_back *call);

typedef struct {
    RN_ROUNDING_FUNCTIONS(float, f32)
    RN_ROUNDING_FUNCTIONS(double, f64)
} rn_rounding_table;

RN_EXPORT const rn_rounding_table *rn_rounding(void);

#endif
