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
                           const R *power, T *out);

/* Points as pixels: x is (images, channels, area). */
typedef struct {
    size_t images, channels, area;
    double curvature;
} rn_poincare_pixels;

/* The midpoint of a set of points, its gap, and what the derivation of it needs. */
typedef struct {
    double *middle; /* channels entries, given by the caller */
    double gap;
    double variance; /* mean squared distance to the midpoint */
} rn_poincare_midpoint;

/* A batch normalization: from `middle` to `centre`, distances times `scale`. */
typedef struct {
    const double *middle, *centre; /* channels entries each */
    double middle_gap, centre_gap, scale, margin;
} rn_poincare_normalization;

#define RN_POINCARE_PIXELS(T, suffix)                                                                                   \
    /* Midpoint of all pixels of all images, with weights (images, area) or NULL: 1 each. With `variance` its mean squared \
     * distance, for equal weights. */                                                                                  \
    int (*midpoint_##suffix)(const rn_poincare_pixels *pixels, const T *x, const T *weights, int variance,              \
                             rn_poincare_midpoint *result);                                                             \
    int (*normalize_##suffix)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to, T *y); \
    /* relu of x, kept within the margin, or without margin x (+) y where y is not NULL. */                             \
    int (*point_wise_##suffix)(const rn_poincare_pixels *pixels, const T *x, const T *y, double margin, T *z);          \
    /* Windows of the call; its outputs, padding and share are not used. */                                             \
    int (*avg_pool2d_##suffix)(const rn_poincare_conv *call, const T *x, T *y);

typedef struct {
    RN_POINCARE_PIXELS(float, f32)
    RN_POINCARE_PIXELS(double, f64)
    RN_POINCARE_CONV(float, float, f32)
    RN_POINCARE_CONV(float, double, wide)
    RN_POINCARE_CONV(double, double, f64)
} rn_poincare_image_table;

RN_EXPORT const rn_poincare_image_table *rn_poincare_image(void);

#endif
