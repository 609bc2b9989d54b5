/* Scaled dot-product attention by tiles, without a matrix of scores in memory.
 *
 * A block of 8 warps has a tile of 16 rows and walks over tiles of 32 others; each warp has two rows, each lane one of the
 * 32 others. Rows are queries and the others keys; for the cotangents of keys and values it is the other way round. A block
 * computes 128 columns of the result; blockIdx.y counts the columns' parts, blockIdx.x batches and rows.
 *
 * `table` gives for each batch of the result which batch of query, key and value belongs to it, and where its mask begins;
 * without it all have the same batches. */

#define ROWS 16
#define ROWS_OF_WARP 2
#define OTHERS 32
#define COLUMNS 128
#define PITCH (OTHERS + 1) /* no two lanes in one bank of shared memory */
#define BLOCK_WARPS 8


struct Mask { /* entries are not 0 where a query may attend to a key */
    const unsigned char *allowed;
    index_t row_stride, column_stride;
    int causal;

    __device__ __forceinline__ bool allows(index_t query, index_t key) const {
        if (causal && key > query) return false;
        return !allowed || allowed[query * row_stride + key * column_stride];
    }
};

struct Tiles { /* in shared memory; the second operand of `accumulate` takes the place of both operands of `products` */
    real *rows, *others, *matrix, *weights;
};

INLINE Tiles tiles_at(real *shared) {
    Tiles t;
    t.rows = shared;
    t.others = shared + ROWS * PITCH;
    t.matrix = shared;
    t.weights = shared + OTHERS * COLUMNS;
    return t;
}

INLINE real entry(const real *matrix, index_t row, index_t rows, index_t column, index_t columns) {
    return row < rows && column < columns ? matrix[row * columns + column] : (real) 0;
}

/* Inner products of the thread's two rows of `a` with its row of `b`. */
INLINE void products(const real *a, index_t a_first, index_t a_rows, const real *b, index_t b_first, index_t b_rows, index_t depth,
                     Tiles t, real *result) {
    unsigned lane = threadIdx.x, warp = threadIdx.y;
    for (int k = 0; k < ROWS_OF_WARP; k++) result[k] = 0;
    for (index_t from = 0; from < depth; from += OTHERS) {
        __syncthreads(); /* everybody has read what was here */
        for (unsigned row = warp; row < ROWS; row += BLOCK_WARPS)
            t.rows[row * PITCH + lane] = entry(a, a_first + row, a_rows, from + lane, depth);
        for (unsigned row = warp; row < OTHERS; row += BLOCK_WARPS)
            t.others[row * PITCH + lane] = entry(b, b_first + row, b_rows, from + lane, depth);
        __syncthreads();
        for (int e = 0; e < OTHERS; e++)
            for (int k = 0; k < ROWS_OF_WARP; k++)
                result[k] = multiply_add(t.rows[(warp * ROWS_OF_WARP + k) * PITCH + e], t.others[lane * PITCH + e], result[k]);
    }
}

/* sums[row] += weights[row] times the tile of `matrix`, for the thread's two rows and four columns. */
INLINE void accumulate(const real *matrix, index_t first, index_t rows, index_t column, index_t columns, Tiles t,
                       real (*sums)[COLUMNS / WARP]) {
    unsigned lane = threadIdx.x, warp = threadIdx.y;
    __syncthreads(); /* the weights are written, and everybody has read what was in the tile */
    for (unsigned row = warp; row < OTHERS; row += BLOCK_WARPS)
        for (unsigned c = lane; c < COLUMNS; c += WARP) t.matrix[row * COLUMNS + c] = entry(matrix, first + row, rows, column + c, columns);
    __syncthreads();
    for (int row = 0; row < OTHERS; row++)
        for (int k = 0; k < ROWS_OF_WARP; k++) {
            real weight = t.weights[(warp * ROWS_OF_WARP + k) * OTHERS + row];
            for (int j = 0; j < COLUMNS / WARP; j++)
                sums[k][j] = multiply_add(weight, t.matrix[row * COLUMNS + lane + WARP * j], sums[k][j]);
        }
}

INLINE void store(const real (*sums)[COLUMNS / WARP], real *result, index_t first, index_t rows, index_t column, index_t columns) {
    for (int k = 0; k < ROWS_OF_WARP; k++) {
        index_t row = first + threadIdx.y * ROWS_OF_WARP + k;
        for (int j = 0; j < COLUMNS / WARP; j++) {
            index_t c = column + threadIdx.x + WARP * j;
            if (row < rows && c < columns) result[row * columns + c] = sums[k][j];
        }
    }
}

struct Batch { /* what a block works on */
    index_t result, query, key, value, mask, first, column;
};

INLINE Batch batch_of(const index_t *table, index_t batches, index_t rows) {
    Batch b;
    index_t tiles = (rows + ROWS - 1) / ROWS;
    b.result = blockIdx.x / tiles;
    b.first = blockIdx.x % tiles * ROWS;
    b.column = (index_t) blockIdx.y * COLUMNS;
    b.query = table ? table[b.result] : b.result;
    b.key = table ? table[batches + b.result] : b.result;
    b.value = table ? table[2 * batches + b.result] : b.result;
    b.mask = table ? table[3 * batches + b.result] : 0;
    return b;
}

#define ATTENTION_ARGUMENTS                                                                                             \
    const index_t *table, const unsigned char *allowed, index_t mask_row, index_t mask_column, int causal, double scale, \
        index_t batches, index_t queries, index_t keys, index_t depth, index_t width

/* What weights of 0 make of values that the loop over keys does not reach: for each of their tiles and each column the sum of 0
 * times the values from that tile on, which is 0, or NaN if one of them is NaN or infinite. One thread a column. */
KERNEL value_residue(const real *value, real *residue, index_t count, index_t keys, index_t width) {
    index_t tiles = (keys + OTHERS - 1) / OTHERS;
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x) {
        index_t batch = i / width, column = i % width;
        real sum = 0;
        for (index_t key = keys - 1; key >= 0; key--) {
            sum += 0 * value[(batch * keys + key) * width + column];
            if (key % OTHERS == 0) residue[(batch * tiles + key / OTHERS) * width + column] = sum;
        }
    }
}

/* y = softmax(scale q k') v. The sums run under the largest score so far and shrink when a larger one comes. `stats` takes
 * each query's largest score and its sum. `residue` is given if the mask is causal. */
KERNEL attention_forward(const real *query, const real *key, const real *value, const real *residue, real *y, real *stats,
                         ATTENTION_ARGUMENTS) {
    DYNAMIC_SHARED(shared);
    Tiles t = tiles_at(shared);
    Batch b = batch_of(table, batches, queries);
    Mask mask = {allowed ? allowed + b.mask : 0, mask_row, mask_column, causal};
    const real *q = query + b.query * queries * depth, *k = key + b.key * keys * depth, *v = value + b.value * keys * width;
    real largest[ROWS_OF_WARP], total[ROWS_OF_WARP], sums[ROWS_OF_WARP][COLUMNS / WARP];
    bool seen[ROWS_OF_WARP];
    index_t tiles = (keys + OTHERS - 1) / OTHERS, reached = causal ? (b.first + ROWS + OTHERS - 1) / OTHERS : tiles;
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        largest[r] = (real) -infinity();
        total[r] = 0;
        seen[r] = false;
        for (int j = 0; j < COLUMNS / WARP; j++) {
            index_t c = b.column + threadIdx.x + WARP * j;
            sums[r][j] = reached < tiles && c < width ? residue[(b.value * tiles + reached) * width + c] : (real) 0;
        }
    }
    for (index_t first = 0; first < keys && first < reached * OTHERS; first += OTHERS) {
        real scores[ROWS_OF_WARP];
        products(q, b.first, queries, k, first, keys, depth, t, scores);
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            index_t row = b.first + threadIdx.y * ROWS_OF_WARP + r, at = first + threadIdx.x;
            bool may = row < queries && at < keys && mask.allows(row, at);
            real score = may ? (real) scale * scores[r] : (real) -infinity();
            real next = Maximum::join(largest[r], warp_reduce<Maximum>(score));
            /* Nothing but -infinity so far: no weight yet, and NaN in the end if one of them was allowed. */
            real weight = may && next != (real) -infinity() ? exp_of_negative(score - next) : (real) 0;
            real shrink = largest[r] == next ? (real) 1 : exp_of_negative(largest[r] - next);
            real sum = weight;
            for (int lanes = WARP / 2; lanes > 0; lanes /= 2) sum += shuffle(sum, lanes);
            total[r] = multiply_add(total[r], shrink, sum);
            for (int j = 0; j < COLUMNS / WARP; j++) sums[r][j] *= shrink;
            largest[r] = next;
            seen[r] |= may;
            t.weights[(threadIdx.y * ROWS_OF_WARP + r) * OTHERS + threadIdx.x] = weight;
        }
        accumulate(v, first, keys, b.column, width, t, sums);
    }
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        index_t row = b.first + threadIdx.y * ROWS_OF_WARP + r;
        double lanes_seen = warp_reduce<Add>(seen[r] ? 1.0 : 0.0);
        for (int j = 0; j < COLUMNS / WARP; j++)
            if (total[r] != 0 || lanes_seen > 0) sums[r][j] /= total[r];
        if (stats && blockIdx.y == 0 && threadIdx.x == 0 && row < queries) {
            stats[2 * (b.result * queries + row)] = largest[r];
            stats[2 * (b.result * queries + row) + 1] = total[r];
        }
    }
    store(sums, y + b.result * queries * width, b.first, queries, b.column, width);
}

/* <dy, y> of each query: the mean of <dy, value> under its weights. One thread a query and the order of `products`: where one
 * weight is 1, its inner product minus this mean is exactly 0. */
KERNEL attention_means(const real *y, const real *dy, real *means, index_t rows, index_t width) {
    for (index_t r = (index_t) blockIdx.x * blockDim.x + threadIdx.x; r < rows; r += (index_t) gridDim.x * blockDim.x) {
        real sum = 0;
        for (index_t i = 0; i < width; i++) sum = multiply_add(y[r * width + i], dy[r * width + i], sum);
        means[r] = sum;
    }
}

struct Weight { /* of a key for a query, and the cotangent of its score */
    real weight, dscore;
};

INLINE Weight weight_of(bool may, real score, real dweight, const real *stats, const real *means, index_t query, real scale) {
    Weight w = {0, 0};
    if (may) {
        w.weight = exp_of_negative(scale * score - stats[2 * query]) / stats[2 * query + 1];
        w.dscore = scale * (w.weight * (dweight - means[query]));
    }
    return w;
}

KERNEL attention_dquery(const real *query, const real *key, const real *value, const real *dy, const real *stats, const real *means,
                        real *dquery, ATTENTION_ARGUMENTS) {
    DYNAMIC_SHARED(shared);
    Tiles t = tiles_at(shared);
    Batch b = batch_of(table, batches, queries);
    Mask mask = {allowed ? allowed + b.mask : 0, mask_row, mask_column, causal};
    const real *q = query + b.query * queries * depth, *k = key + b.key * keys * depth, *v = value + b.value * keys * width;
    const real *g = dy + b.result * queries * width;
    real sums[ROWS_OF_WARP][COLUMNS / WARP] = {};
    for (index_t first = 0; first < keys && !(causal && first >= b.first + ROWS); first += OTHERS) {
        real scores[ROWS_OF_WARP], dweights[ROWS_OF_WARP];
        products(q, b.first, queries, k, first, keys, depth, t, scores);
        products(g, b.first, queries, v, first, keys, width, t, dweights);
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            index_t row = b.first + threadIdx.y * ROWS_OF_WARP + r, at = first + threadIdx.x;
            bool may = row < queries && at < keys && mask.allows(row, at);
            t.weights[(threadIdx.y * ROWS_OF_WARP + r) * OTHERS + threadIdx.x] =
                weight_of(may, scores[r], dweights[r], stats, means, b.result * queries + row, (real) scale).dscore;
        }
        accumulate(k, first, keys, b.column, depth, t, sums);
    }
    store(sums, dquery + b.result * queries * depth, b.first, queries, b.column, depth);
}

/* The cotangent of the values (`of_value`) or of the keys, one for each batch of the result. */
KERNEL attention_dkey(const real *query, const real *key, const real *value, const real *dy, const real *stats, const real *means,
                      real *result, int of_value, ATTENTION_ARGUMENTS) {
    DYNAMIC_SHARED(shared);
    Tiles t = tiles_at(shared);
    Batch b = batch_of(table, batches, keys);
    Mask mask = {allowed ? allowed + b.mask : 0, mask_row, mask_column, causal};
    const real *q = query + b.query * queries * depth, *k = key + b.key * keys * depth, *v = value + b.value * keys * width;
    const real *g = dy + b.result * queries * width;
    real sums[ROWS_OF_WARP][COLUMNS / WARP] = {};
    index_t start = causal ? b.first / OTHERS * OTHERS : 0; /* no query before the first key attends to one of these */
    for (index_t first = start; first < queries; first += OTHERS) {
        real scores[ROWS_OF_WARP], dweights[ROWS_OF_WARP] = {};
        products(k, b.first, keys, q, first, queries, depth, t, scores);
        if (!of_value) products(v, b.first, keys, g, first, queries, width, t, dweights);
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            index_t row = b.first + threadIdx.y * ROWS_OF_WARP + r, at = first + threadIdx.x;
            bool may = row < keys && at < queries && mask.allows(at, row);
            Weight w = weight_of(may, scores[r], dweights[r], stats, means, b.result * queries + at, (real) scale);
            t.weights[(threadIdx.y * ROWS_OF_WARP + r) * OTHERS + threadIdx.x] = of_value ? w.weight : w.dscore;
        }
        if (of_value)
            accumulate(g, first, queries, b.column, width, t, sums);
        else
            accumulate(q, first, queries, b.column, depth, t, sums);
    }
    index_t columns = of_value ? width : depth;
    store(sums, result + b.result * keys * columns, b.first, keys, b.column, columns);
}

/* Sums the batches order[starts[t]] .. order[starts[t + 1] - 1] to batch t, `inner` entries each. */
KERNEL sum_batches(const real *x, real *y, const index_t *order, const index_t *starts, index_t targets, index_t inner) {
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < targets * inner; i += (index_t) gridDim.x * blockDim.x) {
        double sum = 0;
        for (index_t k = starts[i / inner]; k < starts[i / inner + 1]; k++) sum += (double) x[order[k] * inner + i % inner];
        y[i] = (real) sum;
    }
}
