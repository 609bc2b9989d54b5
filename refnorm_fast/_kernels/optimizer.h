/* One step of an optimizer on the arrays of a network: Lion, Lion-K, AdamP, SGDP and AdaGrad; running averages.
 *
 * Each result may be the input of the same name itself (same address); otherwise results and inputs are apart, those of
 * one array and those of different ones. Results do not depend on the number of threads, nor on whether a result is its
 * input, nor on which other arrays are stepped in the same call. */
#ifndef REFNORM_OPTIMIZER_H
#define REFNORM_OPTIMIZER_H

#include "dispatch.h"

enum { RN_MUL_ADD = 0, RN_LERP = 1 };
enum { RN_ADAM = 0, RN_ADAM_NESTEROV = 1, RN_SGD = 2, RN_SGD_NESTEROV = 3 };

/* m = keep1 m + take1 g, v = keep2 v + take2 g^2 (Adam alone), and the step by `kind`:
 * Adam m / (sqrt(v) inv_root + eps), Nesterov (keep1 m + take1 g) / (...), SGD m, Nesterov g + keep1 m.
 * Then p = shrink p - rate step, or, where the array looks scale-invariant, p = shrink_projected p - rate
 * (step without its radial part). */
typedef struct {
    int kind;
    int project_buffer; /* SGD: m itself loses its radial part */
    double keep1, take1, keep2, take2, inv_root, eps, rate, shrink, shrink_projected, delta;
} rn_projected_step;

/* Lion: p = shrink p - rate sign(blend of m and g by beta1), m = blend by beta2. */
typedef struct {
    double shrink, rate, beta1, beta2;
    int form;
} rn_lion_step;

/* Lion-K: with blend = beta1 m - (1 - beta1) g, p = shrink p + rate (gradient of kappa at the blend) and
 * m = beta2 m - (1 - beta2) g. `parameter`: the width of huber, the threshold of softl1. */
enum { RN_KAPPA_L1 = 0, RN_KAPPA_SQ, RN_KAPPA_HUBER, RN_KAPPA_SOFTL1, RN_KAPPA_RELU, RN_KAPPA_L2 };
typedef struct {
    int kappa;
    double shrink, rate, beta1, beta2, parameter;
} rn_lion_kappa_step;

/* AdaGrad: with s = g + decay p, m += s^2 and p -= rate s / (sqrt(m) + eps). */
typedef struct {
    double rate, decay, eps;
} rn_adagrad_step;

/* One array. m and m_out, v and v_out are NULL where the optimizer has no such state. */
typedef struct {
    const void *p, *g, *m, *v;
    void *p_out, *m_out, *v_out;
    size_t rows, columns; /* rows: channels, 0 for an array that is never projected (columns: all its entries) */
} rn_optimizer_array;

#define RN_OPTIMIZER_FUNCTIONS(suffix)                                                                                 \
    void (*lion_##suffix)(const rn_optimizer_array *arrays, size_t count, const rn_lion_step *options);              \
    /* 0, or -1: no memory. */                                                                                       \
    int (*lion_kappa_##suffix)(const rn_optimizer_array *arrays, size_t count, const rn_lion_kappa_step *options);    \
    /* momentum p + (1 - momentum) g */                                                                              \
    void (*average_##suffix)(const rn_optimizer_array *arrays, size_t count, const double *momentum);                \
    void (*adagrad_##suffix)(const rn_optimizer_array *arrays, size_t count, const rn_adagrad_step *options);        \
    /* p - rate g */                                                                                                 \
    void (*descend_##suffix)(const rn_optimizer_array *arrays, size_t count, const double *rate);                    \
    /* The sum of the squares of all g goes to *sum. 0, or -1: no memory. */                                         \
    int (*squares_##suffix)(const rn_optimizer_array *arrays, size_t count, double *sum);                            \
    /* 0, or -1: no memory. */                                                                                       \
    int (*projected_step_##suffix)(const rn_optimizer_array *arrays, size_t count, const rn_projected_step *options);

typedef struct {
    RN_OPTIMIZER_FUNCTIONS(f32)
    RN_OPTIMIZER_FUNCTIONS(f64)
} rn_optimizer_table;

RN_EXPORT const rn_optimizer_table *rn_optimizer(void);

#endif
