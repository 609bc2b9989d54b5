/* Packed float32 matrix products with fused epilogues, and the encoder's first and last step.
 *
 * Rows go in blocks of ROW_BLOCK (their part of x and their results stay in the second-level cache), the depth in
 * blocks of DEPTH_BLOCK (a panel of that depth is 24 KB, which a first-level cache of 32 KB holds), and the panels of
 * the weight pass over them; threads share the rows. Where there are too few rows, they share the panels. */
#include "gemm.h"

#include "epilogue.h"
#include "parallel.h"
#include "vec.h"

#define REAL float
#define TILE_TYPE f32
#define TILE_VEC vf32
#include "tile.h"

enum { TILE_COLUMNS = 2 * VF32, ROW_BLOCK = 96, FEED_BLOCK = 48, DEPTH_BLOCK = 6144 / TILE_COLUMNS };

/* Single-threaded cost, for the choice of the number of threads: two vector multiply-adds a cycle at 3 GHz. */
#define NS_PER_MULTIPLY_ADD (1.0 / (6.0 * VF32))
/* and what a core waits for a byte of the weight that comes from the second or third cache. */
#define NS_PER_WEIGHT_BYTE 0.0125

static size_t padded_width(size_t width) { return (width + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS; }

static void pack(const float *weight, ptrdiff_t depth_stride, ptrdiff_t width_stride, size_t depth, size_t width,
                 float *packed) {
    for (size_t n = 0; n < width; n += TILE_COLUMNS) {
        size_t columns = width - n < TILE_COLUMNS ? width - n : TILE_COLUMNS;
        float *panel = packed + n * depth;
        const float *from = weight + (ptrdiff_t)n * width_stride;
        if (width_stride == 1 && columns == TILE_COLUMNS) {
            for (size_t k = 0; k < depth; k++)
                memcpy(panel + k * TILE_COLUMNS, from + (ptrdiff_t)k * depth_stride, TILE_COLUMNS * sizeof(float));
            continue;
        }
        for (size_t j = 0; j < TILE_COLUMNS; j++)
            for (size_t k = 0; k < depth; k++)
                panel[k * TILE_COLUMNS + j] =
                    j < columns ? from[(ptrdiff_t)k * depth_stride + (ptrdiff_t)j * width_stride] : 0.0f;
    }
}

/* c = x @ weight[:, first : last] + bias, then the activation, for a block of rows; the columns are counted from 0 in
 * c too. `first` begins a panel. */
static void product(const rn_linear_call *call, const float *x, size_t x_stride, size_t rows, size_t first, size_t last,
                    float *c, size_t c_stride) {
    size_t depth = call->depth, blocks = (depth + DEPTH_BLOCK - 1) / DEPTH_BLOCK;
    if (blocks == 0) blocks = 1; /* depth 0: the bias alone */
    /* Equal depth blocks, not a full one and a rest. */
    size_t each = (depth + blocks - 1) / blocks;
    float edge[TILE_ROWS * TILE_COLUMNS] __attribute__((aligned(64)));
    for (size_t block = 0; block < blocks; block++) {
        size_t from = block * each, count = depth - from < each ? depth - from : each;
        int final = block + 1 == blocks;
        for (size_t n = first; n < last; n += TILE_COLUMNS) {
            size_t columns = last - n < TILE_COLUMNS ? last - n : TILE_COLUMNS;
            const float *panel = call->packed + n * depth + from * TILE_COLUMNS;
            const float *bias = call->bias == NULL ? NULL : call->bias + n;
            for (size_t row = 0; row < rows; row += TILE_ROWS) {
                int height = rows - row < TILE_ROWS ? (int)(rows - row) : TILE_ROWS;
                const float *a = x + row * x_stride + from;
                float *target = c + row * c_stride + n;
                if (columns == TILE_COLUMNS) {
                    tile_f32(height, a, x_stride, panel, count, target, c_stride, bias, block > 0);
                    if (final && call->activation)
                        for (int r = 0; r < height; r++)
                            rn_activate_row(call->activation, target + (size_t)r * c_stride, TILE_COLUMNS);
                    continue;
                }
                if (block > 0)
                    for (int r = 0; r < height; r++)
                        memcpy(edge + r * TILE_COLUMNS, target + (size_t)r * c_stride, columns * sizeof(float));
                tile_f32(height, a, x_stride, panel, count, edge, TILE_COLUMNS, bias, block > 0);
                for (int r = 0; r < height; r++) {
                    memcpy(target + (size_t)r * c_stride, edge + r * TILE_COLUMNS, columns * sizeof(float));
                    if (final && call->activation) rn_activate_row(call->activation, target + (size_t)r * c_stride, columns);
                }
            }
        }
    }
}

static void normalise(const rn_linear_call *call, size_t first, size_t rows, float *sums, size_t stride) {
    for (size_t row = 0; row < rows; row++)
        rn_residual_norm_row(sums + row * stride, call->residual + (first + row) * call->residual_stride, call->gain,
                             call->shift, call->eps, call->out + (first + row) * call->out_stride, call->width);
}

/* Blocks of nearly equal height for every thread, a multiple of TILE_ROWS but for the last. */
static size_t block_height(size_t rows, int threads, size_t limit) {
    rows = (rows + (size_t)threads - 1) / (size_t)threads;
    size_t blocks = (rows + limit - 1) / limit;
    size_t height = blocks == 0 ? limit : (rows + blocks - 1) / blocks;
    return (height + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

static int linear_by_columns(const rn_linear_call *call, int threads) {
    float *sums = NULL;
    if (call->gain != NULL) {
        sums = rn_scratch(0, call->rows * call->width * sizeof(float));
        if (sums == NULL) return -1;
    }
    size_t panels = padded_width(call->width) / TILE_COLUMNS;
    RN_PARALLEL(threads) {
        RN_SHARE(panels, first, last);
        size_t end = last * TILE_COLUMNS < call->width ? last * TILE_COLUMNS : call->width;
        if (first < last)
            product(call, call->x, call->x_stride, call->rows, first * TILE_COLUMNS, end, sums ? sums : call->out,
                    sums ? call->width : call->out_stride);
    }
    if (sums != NULL) normalise(call, 0, call->rows, sums, call->width);
    return 0;
}

static int linear(const rn_linear_call *call) {
    size_t rows = call->rows, strips = (rows + TILE_ROWS - 1) / TILE_ROWS;
    if (rows == 0 || call->width == 0) return 0;
    double size = (double)call->depth * (double)call->width, cost = NS_PER_MULTIPLY_ADD * (double)rows * size;
    if (cost < 4 * size * NS_PER_WEIGHT_BYTE) cost = 4 * size * NS_PER_WEIGHT_BYTE;
    int threads = rn_threads(padded_width(call->width) / TILE_COLUMNS, cost);
    if (strips < 2 * (size_t)threads) return linear_by_columns(call, threads);
    threads = rn_threads(strips, cost);
    int failed = 0;
    size_t height = block_height(rows, threads, ROW_BLOCK);
    rn_shares shares = rn_share_out(rows, TILE_ROWS, threads);
    RN_PARALLEL(threads) {
        float *sums = NULL;
        if (call->gain != NULL) sums = rn_scratch(0, height * call->width * sizeof(float));
        if (call->gain != NULL && sums == NULL)
            failed = 1;
        else
            for (size_t count, row; row = rn_take(&shares, height, &count), count > 0;) {
                const float *x = call->x + row * call->x_stride;
                if (sums == NULL) {
                    product(call, x, call->x_stride, count, 0, call->width, call->out + row * call->out_stride,
                            call->out_stride);
                } else {
                    product(call, x, call->x_stride, count, 0, call->width, sums, call->width);
                    normalise(call, row, count, sums, call->width);
                }
            }
    }
    return failed ? -1 : 0;
}

static int feed_forward(const rn_linear_call *first_layer, const rn_linear_call *second_layer) {
    size_t rows = first_layer->rows, strips = (rows + TILE_ROWS - 1) / TILE_ROWS;
    if (rows == 0) return 0;
    double cost = NS_PER_MULTIPLY_ADD * (double)rows * (double)first_layer->width *
                  (double)(first_layer->depth + second_layer->width);
    int threads = rn_threads(strips, cost), failed = 0;
    if (strips < 2 * (size_t)threads) {
        /* Few rows: both layers by columns, the hidden rows are few too. */
        float *hidden = rn_scratch(1, rows * first_layer->width * sizeof(float));
        if (hidden == NULL) return -1;
        rn_linear_call one = *first_layer, two = *second_layer;
        one.out = hidden;
        one.out_stride = one.width;
        two.x = hidden;
        two.x_stride = one.width;
        return linear(&one) || linear(&two) ? -1 : 0;
    }
    size_t height = block_height(rows, threads, FEED_BLOCK);
    rn_shares shares = rn_share_out(rows, TILE_ROWS, threads);
    RN_PARALLEL(threads) {
        size_t middle = first_layer->width, width = second_layer->width;
        float *hidden = rn_scratch(1, height * middle * sizeof(float));
        float *sums = rn_scratch(0, height * width * sizeof(float));
        if (hidden == NULL || sums == NULL)
            failed = 1;
        else
            for (size_t count, row; row = rn_take(&shares, height, &count), count > 0;) {
                product(first_layer, first_layer->x + row * first_layer->x_stride, first_layer->x_stride, count, 0,
                        middle, hidden, middle);
                if (second_layer->gain != NULL) {
                    product(second_layer, hidden, middle, count, 0, width, sums, width);
                    normalise(second_layer, row, count, sums, width);
                } else {
                    product(second_layer, hidden, middle, count, 0, width,
                            second_layer->out + row * second_layer->out_stride, second_layer->out_stride);
                }
            }
    }
    return failed ? -1 : 0;
}

static void embed(const int64_t *words, const int64_t *positions, const int64_t *types, size_t rows,
                  const float *word_table, const float *position_table, const float *type_table, size_t hidden,
                  const float *gain, const float *shift, float eps, float *out) {
    int threads = rn_threads(rows, 0.5 * (double)rows * (double)hidden);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const float *word = word_table + (size_t)words[row] * hidden;
            const float *position = position_table + (size_t)positions[row] * hidden;
            const float *type = type_table + (size_t)types[row] * hidden;
            float *target = out + row * hidden;
            for (size_t i = 0; i < hidden; i++) target[i] = word[i] + type[i];
            rn_residual_norm_row(target, position, gain, shift, eps, target, hidden);
        }
    }
}

static void mean_pool(const float *x, size_t x_stride, const int64_t *offsets, size_t sequences, size_t hidden,
                      double floor, float *out) {
    size_t tokens = sequences ? (size_t)(offsets[sequences] - offsets[0]) : 0;
    int threads = rn_threads(sequences, 0.1 * (double)tokens * (double)hidden);
    RN_PARALLEL(threads) {
        RN_SHARE(sequences, first, last);
        for (size_t i = first; i < last; i++) {
            float *target = out + i * hidden;
            size_t begin = (size_t)offsets[i], end = (size_t)offsets[i + 1];
            for (size_t j = 0; j < hidden; j++) target[j] = 0;
            for (size_t row = begin; row < end; row++)
                for (size_t j = 0; j < hidden; j++) target[j] += x[row * x_stride + j];
            /* The mean's length and the mean at once: normalising divides the count out, but the floor is on the mean. */
            double squares = 0, count = end > begin ? (double)(end - begin) : 1;
            for (size_t j = 0; j < hidden; j++) squares += (double)target[j] * (double)target[j];
            double length = sqrt(squares) / count;
            float scale = (float)(1.0 / (count * (length > floor ? length : floor)));
            for (size_t j = 0; j < hidden; j++) target[j] *= scale;
        }
    }
}

RN_TABLE(gemm) = {
    .padded_width = padded_width,
    .pack = pack,
    .linear = linear,
    .feed_forward = feed_forward,
    .embed = embed,
    .mean_pool = mean_pool,
};
