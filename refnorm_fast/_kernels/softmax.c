/* Softmax over rows. */
#include "softmax.h"

#include "parallel.h"
#include "vec_math.h"

static float row_largest(const float *x, size_t length) {
    vf32 best = vf32_set(-INFINITY);
    size_t i = 0;
    for (; i + VF32 <= length; i += VF32) best = vf32_max(vf32_load(x + i), best);
    if (i < length) best = vf32_max(vf32_load_part(x + i, length - i, -INFINITY), best);
    return vf32_largest(best);
}

static void softmax_row(const float *x, float *y, size_t length) {
    float largest = row_largest(x, length);
    if (!isfinite(largest)) {
        for (size_t i = 0; i < length; i++) y[i] = NAN;
        return;
    }
    vf64 sum = vf64_set(0);
    for (size_t i = 0; i < length; i += VF32) {
        size_t count = length - i < VF32 ? length - i : VF32;
        vf32 e = vf32_exp(vf32_load_part(x + i, count, -INFINITY) - largest);
        sum += vf64_low(e) + vf64_high(e);
        vf32_store_part(y + i, count, e);
    }
    float scale = (float)(1.0 / vf64_sum(sum));
    for (size_t i = 0; i < length; i++) y[i] *= scale;
}

static void softmax_f32(const float *x, float *y, size_t rows, size_t length) {
    int threads = rn_threads(rows, 0.5 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) softmax_row(x + row * length, y + row * length, length);
    }
}

RN_TABLE(softmax) = {.softmax_f32 = softmax_f32};
