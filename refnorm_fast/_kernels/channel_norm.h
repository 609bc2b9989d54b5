/* Norms with statistics per channel over the batch and its places: batch norm, L1 batch norm, quadratic means.
 *
 * An array is `outer` x `channels` x `inner`, contiguous: images with the channels first have inner > 1, with the channels
 * last inner = 1. It is cut into `ghosts` batches of `ghost_outer`, the last of which has the rest, with statistics of
 * their own: what is listed as one per channel is one per ghost batch and channel. y may be x itself; outputs do not
 * overlap inputs otherwise. All functions return 0, or -1: no memory. */
#ifndef REFNORM_CHANNEL_NORM_H
#define REFNORM_CHANNEL_NORM_H

#include "dispatch.h"

/* What a channel subtracts and divides by. n = outer * inner, c = x - mean.
 * batch: spread = mean(c^2), inverse = 1 / sqrt(spread + eps);
 * L1: spread = mean|c|, inverse = 1 / (factor * spread + eps), sign = mean(sign c);
 * square: mean = 0, spread = mean(x^2), inverse as batch; mean: inverse = 1, spread = mean(c^2);
 * given: mean and inverse are the caller's. */
enum { RN_BATCH_NORM = 0, RN_L1_NORM, RN_SQUARE_NORM, RN_MEAN_NORM, RN_GIVEN_NORM };

typedef struct {
    size_t outer, channels, inner, ghosts, ghost_outer;
} rn_channel_shape;

/* The mean is mean + low: beside a large common offset one double does not hold enough of it for float64 entries. */
typedef struct {
    double mean, low, spread, sign, inverse;
} rn_channel;

/* dx = scale * (dy - level) + slope * c */
typedef struct {
    double mean, low, scale, level, slope;
} rn_channel_line;

#define RN_CHANNEL_NORM_FUNCTIONS(T, suffix)                                                                          \
    /* y = gain * c * inverse + bias, and the statistics. gain, bias: NULL for 1 and 0. y: NULL for the statistics alone, \
     * of batch and L1 in float64 sums. */                                                                            \
    int (*norm_##suffix)(int kind, const T *x, const T *gain, const T *bias, T *y, rn_channel_shape shape, double eps, \
                         double factor, rn_channel *channels);                                                        \
    /* The pullback of norm; the statistics depend on x unless given. sums: for every channel sum(dy) and sum(dy c). */ \
    int (*backward_##suffix)(int kind, const T *x, const T *dy, const T *gain, T *dx, rn_channel_shape shape,         \
                             double factor, const rn_channel *channels, double *sums);                                \
    /* sum(dy) and sum(dy c) of every channel. */                                                                     \
    int (*sums_##suffix)(const T *x, const T *dy, rn_channel_shape shape, const rn_channel_line *lines, double *sums); \
    /* y = scale * c + level by the given lines. */                                                                   \
    int (*apply_##suffix)(const T *x, T *y, rn_channel_shape shape, const rn_channel_line *lines);                    \
    /* dx by the given lines; sums: NULL, or as above, from the same read. */                                         \
    int (*combine_##suffix)(const T *x, const T *dy, T *dx, rn_channel_shape shape, const rn_channel_line *lines,     \
                            double *sums);                                                                            \
    /* EvoNorm B0. channels: the batch's statistics, filled in training, else the spreads are the caller's.           \
     * instances: filled with those of every channel and example. */                                                  \
    int (*evonorm_b0_##suffix)(const T *x, const T *gain, const T *bias, const T *slope, T *y, rn_channel_shape shape, \
                               double eps, int training, rn_channel *channels, rn_channel *instances);                \
    /* sums: dgain, dbias and dslope of every channel. */                                                             \
    int (*evonorm_b0_backward_##suffix)(const T *x, const T *dy, const T *gain, const T *slope, T *dx,                \
                                        rn_channel_shape shape, double eps, int training, const rn_channel *channels, \
                                        const rn_channel *instances, double *sums);                                   \
    /* EvoNorm S0. found: filled with the statistics of every example and group. */                                   \
    int (*evonorm_s0_##suffix)(const T *x, const T *gain, const T *bias, const T *slope, T *y, rn_channel_shape shape, \
                               size_t groups, double eps, rn_channel *found);                                         \
    int (*evonorm_s0_backward_##suffix)(const T *x, const T *dy, const T *gain, const T *slope, T *dx,                \
                                        rn_channel_shape shape, size_t groups, double eps, const rn_channel *found,   \
                                        double *sums);                                                                \
    /* Region norm: a mask (outer, inner) of 1 and 0 sorts the entries of every channel into region 0 and region 1.    \
     * counts, eps: of every ghost batch and region; gain (added to 1), bias: (2, channels), or NULL;                  \
     * found, filled: (ghosts, channels, 2); sums: sum(dy) and sum(dy c) beside them. */                              \
    void (*region_##suffix)(const T *x, const T *mask, const T *gain, const T *bias, T *y, rn_channel_shape shape,    \
                            const double *counts, const double *eps, rn_channel *found);                              \
    void (*region_backward_##suffix)(const T *x, const T *mask, const T *dy, const T *gain, T *dx,                    \
                                     rn_channel_shape shape, const double *counts, const rn_channel *found, double *sums);

/* Batch norm, then group norm. Arrays of one number a plane, a channel or a group; own: the planes' moments. mean, var:
 * filled with the batch's if own_statistics, else the caller's. What follows them is filled by the step. */
typedef struct {
    size_t examples, channels, groups;
    int own_statistics;
    double places, eps;
    const rn_channel *own;
    const double *gain, *bias, *group_gain, *group_bias;
    double *mean, *var, *inverse;                     /* of every channel */
    double *apart, *alpha, *middle, *group_inverse; /* of every plane; of every group of every example */
} rn_batch_channel;

/* Cotangents, filled. */
typedef struct {
    double *gain, *bias, *group_gain, *group_bias;
} rn_batch_channel_sums;

/* A mixture of components, (components, channels); share (examples, components). mean, inverse: of every plane, filled by
 * the step. */
typedef struct {
    size_t examples, channels, components;
    int between;
    double places, eps;
    const rn_channel *own;
    const double *means, *variances, *share, *gain;
    double *mean, *inverse;
} rn_unmix;

typedef struct {
    RN_CHANNEL_NORM_FUNCTIONS(float, f32)
    RN_CHANNEL_NORM_FUNCTIONS(double, f64)
    /* Between the sweeps of norms over planes: see plane_norms.h. */
    void (*batch_channel_step)(const rn_batch_channel *of, rn_channel_line *lines);
    void (*batch_channel_pull)(const rn_batch_channel *of, const double *sums, rn_channel_line *lines,
                               rn_batch_channel_sums to);
    void (*unmix_step)(const rn_unmix *of, const double *bias, rn_channel_line *lines);
    void (*unmix_move)(const rn_unmix *of, double rate, double *means, double *variances);
    void (*unmix_pull)(const rn_unmix *of, const double *sums, rn_channel_line *lines, double *dgain, double *dbias);
} rn_channel_norm_table;

RN_EXPORT const rn_channel_norm_table *rn_channel_norm(void);

#endif
