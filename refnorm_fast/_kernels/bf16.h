/* Matrix products in bfloat16: operands rounded to 8 significant bits, sums in float32, results rounded to bfloat16. */
#ifndef REFNORM_BF16_H
#define REFNORM_BF16_H

#include <stdint.h>

#include "dispatch.h"

/* out (rows, width) = a (rows, depth) @ b (depth, width) [+ bias]. Arrays are float, or double where `wide`; strides count
 * items. A bias (rounded too) is added to the rounded product, and the sum rounded again. */
typedef struct {
    const void *a, *b, *bias;
    const void *packed; /* NULL, or what pack made of b, which is not read then */
    ptrdiff_t a_row, a_depth, b_depth, b_column;
    size_t rows, depth, width;
    void *out; /* contiguous; overlaps no operand */
    int wide;
} rn_bf16_call;

typedef struct {
    /* 0, or -1 without memory; 1 if a packed product needs `b` itself, since an operand holds a subnormal number. */
    int (*matmul)(const rn_bf16_call *call);
    /* Bits of bfloat16 (width, depth) in the order of the products. pack: 1 if there is a subnormal number among them, which
     * these products would take for a zero. */
    size_t (*packed_bytes)(size_t depth, size_t width);
    int (*pack)(const uint16_t *bits, size_t depth, size_t width, void *packed);
} rn_bf16_table;

RN_EXPORT const rn_bf16_table *rn_bf16(void);

#endif
