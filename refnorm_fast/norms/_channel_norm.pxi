# What _kernels/channel_norm.h declares, and its kinds of norms. Include after `cimport numpy as np`.

cdef extern from "channel_norm.h":
    ctypedef struct rn_channel_shape:
        size_t outer, channels, inner, ghosts, ghost_outer

    ctypedef struct rn_channel:
        double mean, low, spread, sign, inverse

    ctypedef struct rn_channel_line:
        double mean, low, scale, level, slope

    ctypedef struct rn_batch_channel:
        size_t examples, channels, groups
        int own_statistics
        double places, eps
        const rn_channel *own
        const double *gain
        const double *bias
        const double *group_gain
        const double *group_bias
        double *mean
        double *var
        double *inverse
        double *apart
        double *alpha
        double *middle
        double *group_inverse

    ctypedef struct rn_batch_channel_sums:
        double *gain
        double *bias
        double *group_gain
        double *group_bias

    ctypedef struct rn_unmix:
        size_t examples, channels, components
        int between
        double places, eps
        const rn_channel *own
        const double *means
        const double *variances
        const double *share
        const double *gain
        double *mean
        double *inverse

    ctypedef struct rn_channel_norm_table:
        int (*norm_f32)(int, const float *, const float *, const float *, float *, rn_channel_shape, double, double, rn_channel *) nogil
        int (*norm_f64)(int, const double *, const double *, const double *, double *, rn_channel_shape, double, double, rn_channel *) nogil
        int (*backward_f32)(int, const float *, const float *, const float *, float *, rn_channel_shape, double, const rn_channel *, double *) nogil
        int (*backward_f64)(int, const double *, const double *, const double *, double *, rn_channel_shape, double, const rn_channel *, double *) nogil
        int (*sums_f32)(const float *, const float *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*sums_f64)(const double *, const double *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*combine_f32)(const float *, const float *, float *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*combine_f64)(const double *, const double *, double *, rn_channel_shape, const rn_channel_line *, double *) nogil
        int (*evonorm_b0_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, double, int, rn_channel *, rn_channel *) nogil
        int (*evonorm_b0_backward_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, double, int, const rn_channel *, const rn_channel *, double *) nogil
        int (*evonorm_s0_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, size_t, double, rn_channel *) nogil
        int (*evonorm_s0_backward_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, size_t, double, const rn_channel *, double *) nogil
        int (*evonorm_b0_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, double, int, rn_channel *, rn_channel *) nogil
        int (*evonorm_b0_backward_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, double, int, const rn_channel *, const rn_channel *, double *) nogil
        int (*evonorm_s0_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, size_t, double, rn_channel *) nogil
        int (*evonorm_s0_backward_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, size_t, double, const rn_channel *, double *) nogil
        int (*apply_f32)(const float *, float *, rn_channel_shape, const rn_channel_line *) nogil
        int (*apply_f64)(const double *, double *, rn_channel_shape, const rn_channel_line *) nogil
        void (*region_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, const double *, const double *, rn_channel *) nogil
        void (*region_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, const double *, const double *, rn_channel *) nogil
        void (*region_backward_f32)(const float *, const float *, const float *, const float *, float *, rn_channel_shape, const double *, const rn_channel *, double *) nogil
        void (*region_backward_f64)(const double *, const double *, const double *, const double *, double *, rn_channel_shape, const double *, const rn_channel *, double *) nogil
        void (*batch_channel_step)(const rn_batch_channel *, rn_channel_line *) nogil
        void (*batch_channel_pull)(const rn_batch_channel *, const double *, rn_channel_line *, rn_batch_channel_sums) nogil
        void (*unmix_step)(const rn_unmix *, const double *, rn_channel_line *) nogil
        void (*unmix_move)(const rn_unmix *, double, double *, double *) nogil
        void (*unmix_pull)(const rn_unmix *, const double *, rn_channel_line *, double *, double *) nogil
    const rn_channel_norm_table *rn_channel_norm() nogil

cdef enum Kind:
    BATCH = 0
    L1 = 1
    SQUARE = 2
    MEAN = 3
    GIVEN = 4

# Columns of an array of rn_channel.
MEAN_COLUMN, LOW_COLUMN, SPREAD_COLUMN, SIGN_COLUMN, INVERSE_COLUMN = range(5)
