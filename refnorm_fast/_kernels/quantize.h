/* Elementwise quantizers: uniform grids, 16-bit formats, and logarithmic grids as a search among thresholds.
 *
 * Arrays are contiguous. One with parameters is (outer, channels, inner), and entry [o, c, i] has the parameters of
 * channel c. Functions that return int return 1 if an entry is not finite (or negative, where the domain is from 0 on):
 * the results are then of no use and the caller says what is wrong. */
#ifndef REFNORM_QUANTIZE_H
#define REFNORM_QUANTIZE_H

#include <stdint.h>

#include "dispatch.h"

/* What an affine quantizer makes: codes of 8 or 32 bits, grid points, or grid points and slopes for the way back. */
enum { RN_TO_BYTES = 0, RN_TO_INT32 = 1, RN_TO_POINTS = 2, RN_TO_SLOPES = 3 };
enum { RN_ROUND_NEAREST = 0, RN_ROUND_FLOOR = 1, RN_ROUND_AWAY = 2 };
enum { RN_INT8 = 0, RN_UINT8 = 1, RN_INT32 = 2 };
enum { RN_FLOAT16 = 0, RN_BFLOAT16 = 1, RN_FLOAT32 = 2 };
/* Denominator of a logarithmic quantizer's slope: the entry itself, the searched number, or 1. */
enum { RN_SLOPE_ENTRY = 0, RN_SLOPE_SEARCHED = 1, RN_SLOPE_ONE = 2 };

typedef struct {
    size_t outer, channels, inner;
} rn_layout;

/* A search for the level of t = a / divisor + addend >= 0, the number of thresholds at or below it.
 *
 * By tables, which decide: entry (bits(t) >> shift) - base, held to the ends, has the only threshold with that prefix (or
 * NaN) and the number of thresholds before it. By logarithm, where that is sure: round(slope * log2(t) + start) within
 * 0 .. levels, unless the number before rounding is nearer than `margin` to a tie. */
typedef struct {
    const void *threshold; /* of the array's type */
    const int32_t *before;
    int shift, buckets;
    int64_t base;
    int levels;
    double slope, start, margin;
    int code_slope, code_start, code_most; /* code of a level: code_start + code_slope * level, within 0 .. code_most */
} rn_search;

#define RN_QUANTIZE_FUNCTIONS(T, suffix)                                                                              \
    /* r = clip(round(x / scale), lowest - offset, highest - offset); codes r + offset, points scale * r. */          \
    int (*affine_##suffix)(int target, int rounding, const T *x, const T *scale, const T *offset, int lowest,         \
                           int highest, rn_layout layout, void *y, T *slope);                                         \
    /* dx = dy inside; sums of slope * dy and, if not NULL, of dy outside, `channels` of each. -1: no memory. */      \
    int (*affine_backward_##suffix)(const T *slope, const T *dy, T *dx, rn_layout layout, double *slope_sums,         \
                                    double *outside_sums);                                                            \
    /* y = scale * (q - offset); the offset is an integer below 2^22. */                                              \
    void (*affine_points_##suffix)(int type, const void *q, const T *scale, const T *offset, rn_layout layout, T *y); \
    /* Smallest and largest entry of each channel, 0 included; -1: no memory. */                                      \
    int (*extremes_##suffix)(const T *x, rn_layout layout, T *low, T *high);                                          \
    /* Sums of the magnitudes of each channel times `factor`. -1: no memory. */                                       \
    int (*magnitudes_##suffix)(const T *x, rn_layout layout, double factor, double *sums);                            \
    /* Nearest number of a 16-bit format; NaN stays. */                                                               \
    void (*round_##suffix)(int format, const T *x, T *y, size_t count);                                               \
    /* Down, or up where `random`, from 0 to 1, says so. */                                                           \
    void (*round_stochastic_##suffix)(int format, const T *x, const double *random, T *y, size_t count);              \
    /* y = values[level], q = code of the level, mask = (level is 0). y, or q, or mask, may be NULL. `values` has 32     \
     * entries at least. */                                                                                           \
    int (*levels_##suffix)(rn_search search, const T *a, T divisor, T addend, size_t count, const T *values, T *y,    \
                           uint8_t *q, uint8_t *mask);                                                                \
    /* da = dy * slope with slope = values[level] / denominator, 0 for a value of 0, and dy held to 0 outside of the   \
     * levels first .. last. Sum of dy in the highest level, or (searched) of dy (slope - 1). -1: no memory. */       \
    int (*levels_backward_##suffix)(rn_search search, int denominator, const T *a, T divisor, T addend, size_t count, \
                                    const T *values, int first, int last, const T *dy, T *da, double *sum);           \
    /* y = values[q], 0 where the mask (or NULL) is set. */                                                           \
    void (*lookup_##suffix)(const uint8_t *q, const uint8_t *mask, const T *values, T *y, size_t count);              \
    /* Codes of 8 (`bytes`) or 16 bits of the entries begin .. end - 1: x / scale 2^shift, whose powers of 2 are those of    \
     * the channels, rounded to the nearest or, with `random` numbers of entry `begin` on, at random. x is finite. */        \
    void (*shift_codes_##suffix)(int bytes, const T *x, double scale, const double *powers, const double *random,      \
                                 int highest, rn_layout layout, size_t begin, size_t end, void *y);                   \
    /* y[r, j] = scales[r] * (books[0, codes[r, j, 0]] + books[1, codes[r, j, 1]] + ...), `width` entries each. Codes  \
     * have 1, 2, 4 or 8 bytes, signed or not. 1 if one is not within 0 .. words - 1. */                              \
    int (*codewords_##suffix)(const void *codes, int code_bytes, const T *books, const T *scales, size_t rows,        \
                              size_t groups, size_t count, size_t words, size_t width, T *y);

typedef struct {
    RN_QUANTIZE_FUNCTIONS(float, f32)
    RN_QUANTIZE_FUNCTIONS(double, f64)
} rn_quantize_table;

RN_EXPORT const rn_quantize_table *rn_quantize(void);

#endif
