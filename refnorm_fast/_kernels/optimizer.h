/* One step of an optimizer on one array: Lion, AdamP and SGDP.
 *
 * Each result may be the input of the same name itself (same address); otherwise results and inputs are apart.
 * Results do not depend on the number of threads, nor on whether a result is its input. */
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

#define RN_OPTIMIZER_FUNCTIONS(T, suffix)                                                                            \
    void (*lion_##suffix)(const T *p, const T *g, const T *m, T *p_out, T *m_out, size_t count, double shrink,      \
                          double rate, double beta1, double beta2, int form);                                       \
    /* rows: channels, 0 for an array that is never projected (columns: all its entries). v and v_out are NULL for  \
     * SGD. 0, or -1: no memory. */                                                                                 \
    int (*projected_step_##suffix)(const T *p, const T *g, const T *m, const T *v, T *p_out, T *m_out, T *v_out,    \
                                   size_t rows, size_t columns, const rn_projected_step *options);

typedef struct {
    RN_OPTIMIZER_FUNCTIONS(float, f32)
    RN_OPTIMIZER_FUNCTIONS(double, f64)
} rn_optimizer_table;

RN_EXPORT const rn_optimizer_table *rn_optimizer(void);

#endif
