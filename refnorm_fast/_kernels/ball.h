/* Operations on points of the Poincaré ball: derivatives of the maps, addition and distance, rotations.
 *
 * All arrays are contiguous rows of `length` entries, gap = 1 - curvature |x|^2. A derivative takes the points, the
 * cotangents g of the results, and gives the cotangents of the points; `terms`, one number a row, sum up to the
 * curvature's. Functions that return an int return 1 if a point lies outside the ball, else 0. */
#ifndef REFNORM_BALL_H
#define REFNORM_BALL_H

#include "dispatch.h"

/* Maps along rays: of the origin's exponential, logarithm, projection, and scaling by a number. */
enum { RN_RAY_EXP0 = 0, RN_RAY_LOG0 = 1, RN_RAY_PROJECT = 2, RN_RAY_SCALE = 3 };
enum { RN_PAIR_ADD = 0, RN_PAIR_LOGMAP = 1, RN_PAIR_EXPMAP = 2 };

#define RN_BALL_FUNCTIONS(T, suffix)                                                                                  \
    /* margin as in poincare.h. Row i is scaled by factors[i * factor_step]; factor_terms gets its cotangent. */      \
    void (*ray_back_##suffix)(int op, const T *x, const T *g, T *dx, const double *factors, size_t factor_step,       \
                              double *factor_terms, double *terms, size_t rows, size_t length, double curvature,      \
                              double margin);                                                                         \
    void (*pair_back_##suffix)(int op, const T *x, const T *y, const T *g, T *dx, T *dy, double *terms, size_t rows,  \
                               size_t length, double curvature, double margin);                                       \
    /* g: one number a row */                                                                                         \
    void (*dist_back_##suffix)(int squared, const T *x, const T *y, const T *g, T *dx, T *dy, double *terms,          \
                               size_t rows, size_t length, double curvature);                                         \
    int (*scale_##suffix)(const T *x, const double *factors, size_t factor_step, T *z, size_t rows, size_t length,    \
                          double curvature);                                                                          \
    int (*factor_##suffix)(const T *x, size_t x_stride, T *z, T *kept, size_t rows, size_t length, double curvature); \
    void (*factor_back_##suffix)(const T *x, const T *g, T *dx, double *terms, size_t rows, size_t length,            \
                                 double curvature);                                                                   \
    /* gyr[u, v] w, or with `carry` the transport of w from v to u: gap_u/gap_v gyr[u, -v] w */                       \
    int (*turn_##suffix)(int carry, const T *u, const T *v, const T *w, T *z, size_t rows, size_t length,             \
                         double curvature);                                                                           \
    void (*turn_back_##suffix)(int carry, const T *u, const T *v, const T *w, const T *g, T *du, T *dv, T *dw,        \
                               double *terms, size_t rows, size_t length, double curvature);

typedef struct {
    RN_BALL_FUNCTIONS(float, f32)
    RN_BALL_FUNCTIONS(double, f64)
} rn_ball_table;

RN_EXPORT const rn_ball_table *rn_ball(void);

#endif
