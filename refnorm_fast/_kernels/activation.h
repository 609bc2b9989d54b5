/* Activations of a contiguous array and their gradients. */
#ifndef REFNORM_ACTIVATION_H
#define REFNORM_ACTIVATION_H

#include "dispatch.h"

enum { RN_RELU = 0, RN_GELU, RN_GELU_TANH, RN_SIGMOID, RN_SILU, RN_SOFTPLUS, RN_ERF };

typedef struct {
    /* y = f(x); y may be x. */
    void (*value_f32)(int function, const float *x, float *y, size_t count);
    void (*value_f64)(int function, const double *x, double *y, size_t count);
    /* dx = dy f'(x); dx may be x or dy. */
    void (*gradient_f32)(int function, const float *x, const float *dy, float *dx, size_t count);
    void (*gradient_f64)(int function, const double *x, const double *dy, double *dx, size_t count);
} rn_activation_table;

RN_EXPORT const rn_activation_table *rn_activation(void);

#endif
