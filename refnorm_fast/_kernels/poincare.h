/* The Poincaré ball, row by row: maps, addition, distance, and what follows the product of a fully connected layer.
 *
 * Rows are vectors of `length` entries; a row of x starts x_stride entries after the one before, results are
 * contiguous. gap = 1 - curvature |x|^2. Functions that take points return 1 if one lies outside the ball (its row
 * is then meaningless), else 0. A result may be written over an operand with stride == length.
 * `kept`, unless NULL, takes a contiguous copy of the points, for a pullback. */
#ifndef REFNORM_POINCARE_H
#define REFNORM_POINCARE_H

#include "dispatch.h"

enum { RN_EXP0 = 0, RN_LOG0 = 1, RN_PROJECT = 2 };
enum { RN_ADD = 0, RN_LOGMAP = 1, RN_EXPMAP = 2 };

#define RN_POINCARE_FUNCTIONS(T, suffix)                                                                              \
    /* margin: results are kept within 1 - margin of the radius, or only inside the ball if it is negative. */        \
    int (*unary_##suffix)(int op, const T *x, size_t x_stride, T *z, T *kept, size_t rows, size_t length,             \
                          double curvature, double margin);                                                           \
    int (*binary_##suffix)(int op, const T *x, size_t x_stride, const T *y, size_t y_stride, T *z, T *kept_x,         \
                           T *kept_y, size_t rows, size_t length, double curvature, double margin);                   \
    int (*dist_##suffix)(int squared, const T *x, size_t x_stride, const T *y, size_t y_stride, T *z, T *kept_x,      \
                         T *kept_y, size_t rows, size_t length, double curvature);                                    \
    int (*gaps_##suffix)(const T *x, size_t x_stride, double *gaps, size_t rows, size_t length, double curvature);    \
    /* Sums of squares of the columns of a contiguous (depth, width) matrix. */                                        \
    void (*column_squares_##suffix)(const T *weight, size_t depth, size_t width, double *squares);                    \
    /* In place: rows of inner products <x, z_k> to points. slope_k = 2 sqrt(c) cosh(b_k) / |z_k| (0 for a zero       \
     * column), offset_k = sinh(b_k), power_k = 2 |z_k|. */                                                           \
    void (*linear_##suffix)(T *y, size_t rows, size_t length, const double *gaps, const T *slope, const T *offset,    \
                            const T *power, double curvature, double margin);                                         \
    /* The same up to the signed distances, power_k arsinh(p_k). */                                                    \
    void (*logits_##suffix)(T *y, size_t rows, size_t length, const double *gaps, const T *slope, const T *offset,    \
                            const T *power);

typedef struct {
    RN_POINCARE_FUNCTIONS(float, f32)
    RN_POINCARE_FUNCTIONS(double, f64)
} rn_poincare_table;

RN_EXPORT const rn_poincare_table *rn_poincare(void);

#endif
