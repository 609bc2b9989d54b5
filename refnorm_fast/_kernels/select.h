/* Selection of the largest entries of each row, and softmax over them. Rows are not empty. */
#ifndef REFNORM_SELECT_H
#define REFNORM_SELECT_H

#include <stdint.h>

#include "dispatch.h"

enum { RN_GAUSSIAN = 0, RN_LINEAR = 1, RN_HARD = 2 };
typedef struct {
    int method;
    double iou_threshold, sigma;
} rn_decay;

#define RN_SELECT_FUNCTIONS(T, suffix)                                                                               \
    /* The top_k largest of each row, of equal ones the first, NaN last; a row of scores starts `stride` entries after \
     * the one before. bias: NULL, or added to the scores of the selected; with_bias: it counts in the selection too. \
     * weights: softmax over the selected, 0 elsewhere; NaN where a score or its sum with the bias is. mask: 1 where   \
     * selected. chosen, packed: both NULL, or rows * top_k entries for the backward, in an order of its own. 0, or -1. */ \
    int (*topk_softmax_##suffix)(const T *scores, size_t stride, const T *bias, T *weights, uint8_t *mask,           \
                                 int32_t *chosen, T *packed, size_t rows, size_t length, size_t top_k, int with_bias); \
    /* dscores, 0 off the selection; dbias: NULL, or takes `length` sums over the rows. 0, or -1: no memory. */      \
    int (*topk_softmax_backward_##suffix)(const T *dweights, const int32_t *chosen, const T *packed, T *dscores,     \
                                          T *dbias, size_t rows, size_t length, size_t top_k);                      \
    /* Intersections over unions of every box of a with every box of b: float64 corners (x1, y1, x2, y2), each sort side by \
     * side: 4 * n and 4 * m numbers. 0, or -1: no memory. */                                                        \
    int (*box_iou_##suffix)(const double *a, size_t n, const double *b, size_t m, double offset, T *iou);

typedef struct {
    RN_SELECT_FUNCTIONS(float, f32)
    RN_SELECT_FUNCTIONS(double, f64)
    /* Soft-NMS. corners: as above; scores: lowered in place; labels: NULL, or one a box. order takes the places of the kept
     * boxes, best first; returns how many, or -1: no memory. */
    ptrdiff_t (*soft_nms)(const double *corners, double *scores, const int64_t *labels, size_t n, const rn_decay *decay,
                          double score_threshold, double offset, int prune_overlap, int64_t *order);
} rn_select_table;

RN_EXPORT const rn_select_table *rn_select(void);

#endif
