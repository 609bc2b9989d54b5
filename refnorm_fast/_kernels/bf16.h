/* Matrix products in bfloat16: operands rounded to 8 significant bits, sums in float32, results rounded to bfloat16. */
#ifndef REFNORM_BF16_H
#define REFNORM_BF16_H

#include "dispatch.h"

/* out (rows, width) = a (rows, depth) @ b (depth, width) [+ bias]. Arrays are float, or double where `wide`; strides count
 * items. A bias (rounded too) is added to the rounded product, and the sum rounded again. */
typedef struct {
    const void *a, *b, *bias;
    ptrdiff_t a_row, a_depth, b_depth, b_column;
    size_t rows, depth, width;
    void *out; /* contiguous; overlaps no operand */
    int wide;
} rn_bf16_call;

typedef struct {
    /* 0, or -1 without memory. */
    int (*matmul)(const rn_bf16_call *call);
} rn_bf16_table;

RN_EXPORT const rn_bf16_table *rn_bf16(void);

#endif
