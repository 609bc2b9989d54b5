/* Activations of a contiguous array and their derivatives. */
#ifndef REFNORM_ACTIVATION_H
#define REFNORM_ACTIVATION_H

#include "dispatch.h"

enum { RN_RELU = 0, RN_GELU, RN_GELU_TANH, RN_SIGMOID, RN_SILU, RN_SOFTPLUS, RN_ERF };

typedef struct {
    /* y = f(x); y may be x. */
    void (*value_f32)(int function, const float *x, float *y, size_t count);
    void (*value_f64)(int function, const double *x, double *y, size_t count);
    /* y = f(x) and slope = f'(x). */
    void (*both_f32)(int function, const float *x, float *y, float *slope, size_t count);
    void (*both_f64)(int function, const double *x, double *y, double *slope, size_t count);
    /* dx = slope dy */
    void (*product_f32)(int function, const float *slope, const float *dy, float *dx, size_t count);
    void (*product_f64)(int function, const double *slope, const double *dy, double *dx, size_t count);
} rn_activation_table;

RN_EXPORT const rn_activation_table *rn_activation(void);

#endif
