/* Linear layers in float32 on packed weights, with what follows them fused in. */
#ifndef REFNORM_GEMM_H
#define REFNORM_GEMM_H

#include <stdint.h>

#include "dispatch.h"

/* One call: out = activation(x @ weight + bias), or with `gain`: out = layer_norm(x @ weight + bias + residual).
 * x is (rows, depth), the weight packed from (depth, width). Strides count floats between rows. out may be x or the
 * residual in the normalised form; in the other it overlaps neither. */
typedef struct {
    const float *x;
    size_t x_stride, rows;
    const float *packed, *bias; /* bias: from padded_width() entries on, or NULL */
    size_t depth, width;
    float *out;
    size_t out_stride;
    int activation; /* RN_ACTIVATION_* */
    const float *residual, *gain, *shift;
    size_t residual_stride;
    float eps;
} rn_linear_call;

typedef struct {
    /* Columns rounded up to whole panels. A packed weight has depth * padded_width entries, a bias padded_width. */
    size_t (*padded_width)(size_t width);
    /* Entry (k, n) stands at weight[k * depth_stride + n * width_stride]. */
    void (*pack)(const float *weight, ptrdiff_t depth_stride, ptrdiff_t width_stride, size_t depth, size_t width,
                 float *packed);
    /* 0, or -1 where scratch memory ran out. */
    int (*linear)(const rn_linear_call *call);
    /* Two layers, the second reading the first's output block by block from cache: first->out is not used, and
     * second->x neither. */
    int (*feed_forward)(const rn_linear_call *first, const rn_linear_call *second);
    /* out[row] = layer_norm(word[ids] + position[ids] + type[ids]). */
    void (*embed)(const int64_t *words, const int64_t *positions, const int64_t *types, size_t rows,
                  const float *word_table, const float *position_table, const float *type_table, size_t hidden,
                  const float *gain, const float *shift, float eps, float *out);
    /* out[i] = mean of x[offsets[i] : offsets[i + 1]], divided by its length (at least `floor`). */
    void (*mean_pool)(const float *x, size_t x_stride, const int64_t *offsets, size_t sequences, size_t hidden,
                      double floor, float *out);
} rn_gemm_table;

RN_EXPORT const rn_gemm_table *rn_gemm(void);

#endif
