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

/* The hyperplanes of a layer, one entry a column z, `padded` with zeros to whole vectors: with the angle b = 2 sqrt(c) bias,
 * slope = 2 sqrt(c) cosh(b)/|z|, excess = (b cosh(b) - sinh(b))/c. A column of zeros has slope and inverse_length 0. */
typedef struct {
    const double *slope, *length, *inverse_length, *cosh, *sinh, *bias, *excess;
    size_t padded;
} rn_planes;
/* Rows over which linear_back sums at a time. */
enum { RN_BALL_BLOCK = 64 };

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
                               double *terms, size_t rows, size_t length, double curvature);                          \
    /* A fully connected layer, or its logits without `layer`: from inner products <x, z_k>, gaps and g to the         \
     * cotangents of the inner products over |z|, of the gaps, and sums for the lengths |z| and the biases, `padded`   \
     * numbers for every RN_BALL_BLOCK rows. 1 if there is no memory. */                                               \
    int (*linear_back_##suffix)(int layer, const T *inner, const T *g, const double *gaps, const rn_planes *planes,   \
                                T *m, double *dgaps, double *terms, double *length_sums, double *bias_sums,           \
                                size_t rows, size_t length, double curvature, double margin);                         \
    void (*gaps_back_##suffix)(const T *x, const double *dgaps, T *dx, double *terms, size_t rows, size_t length,     \
                               double curvature);                                                                     \
    void (*turn_columns_##suffix)(T *d, const T *weight, const double *lengths, const double *dlengths,               \
                                  double *along, size_t depth, size_t width);

typedef struct {
    RN_BALL_FUNCTIONS(float, f32)
    RN_BALL_FUNCTIONS(double, f64)
} rn_ball_table;

RN_EXPORT const rn_ball_table *rn_ball(void);

#endif
