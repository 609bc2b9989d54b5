/* Poincaré layers on images (N, C, H, W) whose pixels are points of the ball, C-contiguous.
 *
 * A vector register holds neighbouring pixels, and the channels run in the loop: no sum over a pixel's coordinates ever
 * crosses the lanes, and images are read and written as they lie. Functions return a set of RN_POINCARE_* bits. */
#ifndef REFNORM_POINCARE_IMAGE_H
#define REFNORM_POINCARE_IMAGE_H

#include "dispatch.h"

enum { RN_POINCARE_OUTSIDE = 1, RN_POINCARE_MEMORY = 2 };

typedef struct {
    size_t images, channels, height, width, outputs;
    size_t rows, columns; /* of the window */
    size_t down, across;  /* stride */
    size_t top, left;     /* padding */
    size_t out_height, out_width;
    double curvature;
    double share;  /* factor of a pixel's logarithm in the joined patch */
    double margin; /* as in poincare.h */
} rn_poincare_conv;

/* weight is the contiguous matrix (channels * rows * columns, outputs); slope_k = cosh(b_k)/|z_k| (0 for a zero column),
 * offset_k = sinh(b_k), power_k = 2 |z_k|. T is the type of the images, R that of the arithmetic. */
#define RN_POINCARE_CONV(T, R, suffix)                                                                                     \
    int (*conv2d_##suffix)(const rn_poincare_conv *call, const T *x, const R *weight, const R *slope, const R *offset,  \
                           const R *power, T *out);                                                                     \
    /* Its pullback, with cosh_bias_k = cosh(b_k): cotangents of the pixels, and sums over all windows:                 \
     * (channels * rows * columns, outputs) for the weight without what its columns' lengths add, outputs for these,    \
     * outputs for the biases over 2 sqrt(c), then <dx, x> and <dy, y>. */                                              \
    int (*conv2d_back_##suffix)(const rn_poincare_conv *call, const T *x, const R *weight, const R *slope,             \
                                const R *offset, const R *power, const R *cosh_bias, const T *dy, T *dx, double *sums);

/* Points as pixels: x is (images, channels, area), or with by_rows (images, area, channels). */
typedef struct {
    size_t images, channels, area;
    double curvature;
    int by_rows; /* for midpoints only */
} rn_poincare_pixels;

/* The midpoint of a set of points, its gap, and what its pullback needs; vectors of channels entries are given by the caller. */
typedef struct {
    double *middle;
    double gap;
    double variance;         /* mean squared distance to the midpoint */
    double *heaviest, *drift; /* their sum is the mean with weights w/gap */
    double mass, weights, scatter;
} rn_poincare_midpoint;

/* A batch normalization: from `middle` to `centre`, distances times `scale`. */
typedef struct {
    const double *middle, *centre; /* channels entries each */
    double middle_gap, centre_gap, scale, margin;
} rn_poincare_normalization;

#define RN_POINCARE_PIXELS(T, suffix)                                                                                   \
    /* Midpoint of all pixels of all images; with `variance` its mean squared distance, too. */                         \
    int (*midpoint_##suffix)(const rn_poincare_pixels *pixels, const T *x, int variance, rn_poincare_midpoint *result); \
    /* The same for many sets of one image by rows each, which lie end to end, with weights (sets, area) or NULL: 1 each. */ \
    int (*midpoints_##suffix)(const rn_poincare_pixels *pixels, size_t sets, const T *x, const T *weights,              \
                              double *middles, double *gaps);                                                          \
    /* Its pullback from the cotangents g of the midpoints: those of points and weights, and the curvature's terms. */  \
    int (*midpoints_back_##suffix)(const rn_poincare_pixels *pixels, size_t sets, const T *x, const T *weights,         \
                                   const double *g, T *dx, T *dweights, double *terms);                                \
    int (*normalize_##suffix)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to, T *y); \
    /* Its pullback from the cotangent g of y, in two passes. Sums: cotangents of middle and centre, the sum of A_i e_i over    \
     * pixels (a vector each), and the scale's cotangent; A_i is half the distance from the middle, times sqrt(c), and e_i \
     * the direction. The sum of A^2/2 over pixels has the cotangent -sqrt(c)/middle_gap sum A_i e_i by the middle. */     \
    int (*normalize_sums_##suffix)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to,   \
                                   const T *g, double *sums);                                                          \
    /* And dx, with by_distance times A_i more for the cotangent of A_i, and where the middle is the midpoint `of` the pixels \
     * its share from the cotangent dmiddle, else NULL; <dx, x> and <g, y> are put in products. */                      \
    int (*normalize_back_##suffix)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to,   \
                                   const T *g, const rn_poincare_midpoint *of, const double *dmiddle,                  \
                                   double by_distance, T *dx, double *products);                                       \
    /* relu of x, kept within the margin, or without margin x (+) y where y is not NULL. */                             \
    int (*point_wise_##suffix)(const rn_poincare_pixels *pixels, const T *x, const T *y, double margin, T *z);          \
    /* Windows of the call; its outputs, padding and share are not used. */                                             \
    int (*avg_pool2d_##suffix)(const rn_poincare_conv *call, const T *x, T *y);                                        \
    /* Its pullback, and <dx, x>, <dy, y> of every image. */                                                            \
    int (*avg_pool2d_back_##suffix)(const rn_poincare_conv *call, const T *x, const T *dy, T *dx, double *results);

typedef struct {
    RN_POINCARE_PIXELS(float, f32)
    RN_POINCARE_PIXELS(double, f64)
    RN_POINCARE_CONV(float, float, f32)
    RN_POINCARE_CONV(float, double, wide)
    RN_POINCARE_CONV(double, double, f64)
} rn_poincare_image_table;

RN_EXPORT const rn_poincare_image_table *rn_poincare_image(void);

#endif
