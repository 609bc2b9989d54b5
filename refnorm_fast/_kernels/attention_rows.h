/* Attention for the type REAL; included by attention.c after tile.h.
 *
 * Keys and values are packed once for an item (keys transposed and times the scale), then groups of query rows pass
 * over them: scores of a group against a block of keys, exponentials in place, product with the values. Scores of a
 * group fit the first-level cache. Across blocks of keys the softmax is the online one: with a larger maximum m', what
 * was summed so far is multiplied by exp(m - m'). */

enum { TILE(COLUMNS) = 2 * (int)(sizeof(TILE_VEC) / sizeof(REAL)), TILE(LANES) = (int)(sizeof(TILE_VEC) / sizeof(REAL)) };

static size_t TILE(padded)(size_t columns) {
    return (columns + TILE(COLUMNS) - 1) / TILE(COLUMNS) * TILE(COLUMNS);
}

/* Panels whose columns are the rows of a matrix (rows, depth), times a factor. */
static void TILE(pack_transposed)(const REAL *matrix, ptrdiff_t stride, size_t rows, size_t depth, double times,
                                  REAL *packed) {
    const REAL factor = (REAL)times;
    for (size_t n = 0; n < rows; n += TILE(COLUMNS)) {
        size_t columns = rows - n < TILE(COLUMNS) ? rows - n : TILE(COLUMNS);
        REAL *panel = packed + n * depth;
        for (size_t j = 0; j < columns; j++) {
            const REAL *from = matrix + (ptrdiff_t)(n + j) * stride;
            for (size_t k = 0; k < depth; k++) panel[k * TILE(COLUMNS) + j] = from[k] * factor;
        }
        for (size_t j = columns; j < TILE(COLUMNS); j++)
            for (size_t k = 0; k < depth; k++) panel[k * TILE(COLUMNS) + j] = 0;
    }
}

/* Panels whose columns are the columns of a matrix (rows, width); room for `room` rows a panel. */
static void TILE(pack)(const REAL *matrix, ptrdiff_t stride, size_t rows, size_t room, size_t width, REAL *packed) {
    for (size_t n = 0; n < width; n += TILE(COLUMNS)) {
        size_t columns = width - n < TILE(COLUMNS) ? width - n : TILE(COLUMNS);
        REAL *panel = packed + n * room;
        for (size_t k = 0; k < rows; k++) {
            const REAL *from = matrix + (ptrdiff_t)k * stride + n;
            REAL *to = panel + k * TILE(COLUMNS);
            if (columns == TILE(COLUMNS)) {
                TILE_VECTOR(store)(to, TILE_VECTOR(load)(from));
                TILE_VECTOR(store)(to + TILE(LANES), TILE_VECTOR(load)(from + TILE(LANES)));
            } else {
                for (size_t j = 0; j < TILE(COLUMNS); j++) to[j] = j < columns ? from[j] : 0;
            }
        }
        for (size_t j = rows * TILE(COLUMNS); j < room * TILE(COLUMNS); j++) panel[j] = 0;
    }
}

/* Number of keys, counted from the first, that row may attend to by the causal rule. */
static size_t TILE(causal_keys)(const rn_attention_item *item, size_t row) {
    if (!item->causal) return item->keys;
    ptrdiff_t last = (ptrdiff_t)row + item->causal_shift + 1;
    return last <= 0 ? 0 : (size_t)last < item->keys ? (size_t)last : item->keys;
}

/* Turns one row's scores of the keys from `first` on into exp(score - maximum). Returns the factor for what the row
 * has summed before. */
static REAL TILE(exponentials)(const rn_attention_item *item, REAL *score, size_t row, size_t first, size_t count,
                               REAL *largest, REAL *sum) {
    size_t allowed = TILE(causal_keys)(item, row);
    allowed = allowed <= first ? 0 : allowed - first < count ? allowed - first : count;
    for (size_t j = allowed; j < count; j++) score[j] = (REAL)-INFINITY;
    if (item->mask != NULL) {
        const uint8_t *mask = item->mask + (ptrdiff_t)row * item->mask_row + (ptrdiff_t)first * item->mask_key;
        for (size_t j = 0; j < allowed; j++)
            if (!mask[(ptrdiff_t)j * item->mask_key]) score[j] = (REAL)-INFINITY;
    }
    /* The buffer is wide enough for whole pairs of vectors. -inf beyond the keys adds nothing, and each score has its
     * lane of the sums whatever the number of keys after it. */
    size_t padded = TILE(padded)(count);
    for (size_t j = count; j < padded; j++) score[j] = (REAL)-INFINITY;
    TILE_VEC best[2] = {TILE_VECTOR(set)(*largest), TILE_VECTOR(set)(*largest)};
    for (size_t j = 0; j < padded; j += 2 * TILE(LANES)) {
        best[0] = TILE_VECTOR(max)(TILE_VECTOR(load)(score + j), best[0]);
        best[1] = TILE_VECTOR(max)(TILE_VECTOR(load)(score + j + TILE(LANES)), best[1]);
    }
    REAL now = (REAL)TILE_VECTOR(largest)(TILE_VECTOR(max)(best[0], best[1]));
    /* With nothing to attend to so far every score is -inf: any finite shift gives the zeros wanted. */
    REAL shift = now == (REAL)-INFINITY ? 0 : now;
    TILE_VEC total[2] = {TILE_VECTOR(set)(0), TILE_VECTOR(set)(0)};
    for (size_t j = 0; j < padded; j += 2 * TILE(LANES)) {
        TILE_VEC one = ATTENTION_EXP(TILE_VECTOR(load)(score + j) - shift);
        TILE_VEC two = ATTENTION_EXP(TILE_VECTOR(load)(score + j + TILE(LANES)) - shift);
        TILE_VECTOR(store)(score + j, one);
        TILE_VECTOR(store)(score + j + TILE(LANES), two);
        total[0] += one;
        total[1] += two;
    }
    TILE_VEC before = TILE_VECTOR(set)(*largest - shift); /* 0 after -inf */
    REAL factor = ATTENTION_EXP(before)[0];
    *sum = *sum * factor + (REAL)TILE_VECTOR(sum)(total[0] + total[1]);
    *largest = now;
    return factor;
}

/* The weight sigmoid(score) = 1 / (1 + e) and, in *rest, one less the weight: e / (1 + e); e = exp(-score). Neither is a
 * difference, so both keep their digits. */
RN_INLINE TILE_VEC TILE(logistic)(TILE_VEC score, TILE_VEC *rest) {
    const REAL farthest = TILE_PASTE(FARTHEST, TILE_TYPE);
    TILE_VEC e = ATTENTION_EXP(TILE_VECTOR(min)(TILE_VECTOR(set)(farthest), -score)); /* NaN stays */
    TILE_VEC weight = TILE_PASTE(inverse, TILE_TYPE)(1 + e);
    weight = TILE_VECTOR(select)(score < -farthest, TILE_VECTOR(set)(0), weight);
    *rest = e * weight;
    return weight;
}

/* Turns one row's scores of the keys from `first` on into weights. */
static void TILE(logistic_row)(const rn_attention_item *item, REAL *score, size_t row, size_t first, size_t count) {
    size_t allowed = TILE(causal_keys)(item, row);
    allowed = allowed <= first ? 0 : allowed - first < count ? allowed - first : count;
    if (item->pair_bias != NULL) {
        const REAL *bias = (const REAL *)item->pair_bias + (ptrdiff_t)row * item->pair_bias_row +
                           (ptrdiff_t)first * item->pair_bias_key;
        for (size_t j = 0; j < allowed; j++) score[j] += (REAL)ATTENTION_UNIT * bias[(ptrdiff_t)j * item->pair_bias_key];
    }
    REAL bias = (REAL)ATTENTION_UNIT * ((const REAL *)item->row_bias)[(ptrdiff_t)row * item->row_bias_stride];
    size_t padded = TILE(padded)(allowed);
    for (size_t j = 0; j < padded; j += 2 * TILE(LANES)) { /* two at a time hide each other's latency */
        TILE_VEC rest, one = TILE(logistic)(TILE_VECTOR(load)(score + j) + bias, &rest);
        TILE_VEC two = TILE(logistic)(TILE_VECTOR(load)(score + j + TILE(LANES)) + bias, &rest);
        TILE_VECTOR(store)(score + j, one);
        TILE_VECTOR(store)(score + j + TILE(LANES), two);
    }
    for (size_t j = allowed; j < count; j++) score[j] = 0;
    if (item->mask == NULL) return;
    const uint8_t *mask = item->mask + (ptrdiff_t)row * item->mask_row + (ptrdiff_t)first * item->mask_key;
    for (size_t j = 0; j < allowed; j++)
        if (!mask[(ptrdiff_t)j * item->mask_key]) score[j] = 0;
}

/* Rows from `first` to `last` of one item, against packed keys and values. */
static void TILE(attend)(const rn_attention_item *item, size_t first, size_t last, const REAL *keys,
                         const REAL *values, REAL *scores, size_t score_stride, size_t group, REAL *mixed) {
    size_t width = TILE(padded)(item->width);
    REAL largest[GROUP_ROWS], sum[GROUP_ROWS];
    for (size_t begin = first; begin < last; begin += group) {
        size_t rows = last - begin < group ? last - begin : group;
        /* Weights of sigmoid attention are what they are: nothing to divide by. */
        for (size_t r = 0; r < rows; r++) largest[r] = (REAL)-INFINITY, sum[r] = item->row_bias == NULL ? 0 : 1;
        size_t reach = TILE(causal_keys)(item, begin + rows - 1);
        for (size_t key = 0; key < reach; key += KEY_BLOCK) {
            size_t count = reach - key < KEY_BLOCK ? reach - key : KEY_BLOCK;
            for (size_t n = 0; n < count; n += TILE(COLUMNS))
                for (size_t r = 0; r < rows; r += TILE_ROWS)
                    TILE(tile)(rows - r < TILE_ROWS ? (int)(rows - r) : TILE_ROWS,
                               (const REAL *)item->query + (ptrdiff_t)(begin + r) * item->query_stride,
                               (size_t)item->query_stride, keys + (key + n) * item->depth, item->depth,
                               scores + r * score_stride + n, score_stride, NULL, 0);
            for (size_t r = 0; r < rows; r++) {
                if (item->row_bias != NULL) {
                    TILE(logistic_row)(item, scores + r * score_stride, begin + r, key, count);
                    continue;
                }
                REAL factor = TILE(exponentials)(item, scores + r * score_stride, begin + r, key, count, largest + r,
                                                 sum + r);
                if (key > 0 && factor != 1)
                    for (size_t n = 0; n < width; n++) mixed[r * width + n] *= factor;
            }
            for (size_t n = 0; n < width; n += TILE(COLUMNS))
                for (size_t r = 0; r < rows; r += TILE_ROWS)
                    TILE(tile)(rows - r < TILE_ROWS ? (int)(rows - r) : TILE_ROWS, scores + r * score_stride,
                               score_stride, values + n * item->keys + key * TILE(COLUMNS), count,
                               mixed + r * width + n, width, NULL, key > 0);
        }
        for (size_t r = 0; r < rows; r++) {
            REAL *to = (REAL *)item->out + (ptrdiff_t)(begin + r) * item->out_stride;
            REAL inverse = 1 / sum[r];
            if (item->statistics != NULL) {
                REAL *kept = (REAL *)item->statistics + 2 * (begin + r);
                kept[0] = sum[r] == 0 ? 0 : largest[r];
                kept[1] = sum[r] == 0 ? 0 : inverse;
            }
            if (sum[r] == 0)
                for (size_t n = 0; n < item->width; n++) to[n] = 0;
            else
                for (size_t n = 0; n < item->width; n++) to[n] = mixed[r * width + n] * inverse;
        }
    }
}

/* Part `chunk` of `chunks` of an item's rows. */
static int TILE(attend_chunk)(const rn_attention_item *item, size_t chunk, size_t chunks) {
    size_t first, last;
    rn_range((item->length + TILE_ROWS - 1) / TILE_ROWS, chunks, chunk, &first, &last);
    first *= TILE_ROWS;
    last = last * TILE_ROWS < item->length ? last * TILE_ROWS : item->length;
    if (first >= last || item->width == 0) return 0;
    size_t keys = TILE(padded)(item->keys), width = TILE(padded)(item->width);
    /* A cache line more than the keys: rows a power of two apart would compete for the same few sets. */
    size_t score_stride = (keys < KEY_BLOCK ? keys : KEY_BLOCK) + 64 / sizeof(REAL);
    size_t group = SCORE_BYTES / sizeof(REAL) / score_stride / TILE_ROWS * TILE_ROWS;
    if (group < TILE_ROWS) group = TILE_ROWS;
    if (group > GROUP_ROWS) group = GROUP_ROWS;
    REAL *packed_keys = rn_scratch(0, (keys * item->depth + 1) * sizeof(REAL));
    REAL *packed_values = rn_scratch(1, (item->keys * width + 1) * sizeof(REAL));
    REAL *scores = rn_scratch(2, (group * (score_stride + width) + 1) * sizeof(REAL));
    if (packed_keys == NULL || packed_values == NULL || scores == NULL) return -1;
    size_t reach = TILE(causal_keys)(item, last - 1);
    TILE(pack_transposed)(item->key, item->key_stride, reach, item->depth, item->scale * ATTENTION_UNIT, packed_keys);
    TILE(pack)(item->value, item->value_stride, reach, item->keys, item->width, packed_values);
    TILE(attend)(item, first, last, packed_keys, packed_values, scores, score_stride, group,
                 scores + group * score_stride);
    return 0;
}

/* Cost of an item on one thread in nanoseconds: two products and one exponential a score. */
static double TILE(cost)(size_t length, size_t keys, size_t depth, size_t width) {
    return (double)length * (double)keys * ((double)(depth + width) / 6 + 4) / TILE(LANES);
}

/* Chunks a head is cut into, when there are too few heads for the threads: as many for each thread, and few, because each
 * packs the keys and values again. With the causal rule chunks differ in cost, and smaller ones even that out. */
static size_t TILE(chunks_of)(size_t items, size_t length, int causal, int threads) {
    if (items >= 4 * (size_t)threads) return 1;
    size_t rows = causal ? CHUNK_ROWS : 2 * CHUNK_ROWS, chunks = (length + rows - 1) / rows;
    while (items * chunks % (size_t)threads != 0) chunks++;
    return chunks;
}

static int TILE(items)(const rn_attention_item *items, size_t count) {
    if (count == 0) return 0;
    double cost = TILE(cost)(items->length, items->keys, items->depth, items->width);
    int threads = rn_threads(count * ((items->length + CHUNK_ROWS - 1) / CHUNK_ROWS), (double)count * cost);
    size_t chunks = TILE(chunks_of)(count, items->length, items->causal, threads), next = 0;
    int failed = 0;
    if (threads == 1) chunks = 1;
    RN_PARALLEL(threads) {
        for (;;) {
            size_t job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (job >= count * chunks) break;
            /* The last rows of a causal item see the most keys: first. */
            if (TILE(attend_chunk)(items + job / chunks, chunks - 1 - job % chunks, chunks) != 0)
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        }
    }
    return failed ? -1 : 0;
}

static int TILE(packed)(const REAL *query, const REAL *key, const REAL *value, ptrdiff_t query_stride,
                        ptrdiff_t key_stride, ptrdiff_t value_stride, const int64_t *offsets, size_t sequences,
                        size_t heads, size_t depth, double scale, REAL *out, ptrdiff_t out_stride) {
    double cost = 0;
    size_t longest = 0, next = 0;
    for (size_t i = 0; i < sequences; i++) {
        size_t length = (size_t)(offsets[i + 1] - offsets[i]);
        longest = length > longest ? length : longest;
        cost += (double)heads * TILE(cost)(length, length, depth, depth);
    }
    int threads = rn_threads(sequences * heads * (longest / CHUNK_ROWS + 1), cost), failed = 0;
    size_t chunks = threads == 1 ? 1 : TILE(chunks_of)(sequences * heads, longest, 0, threads);
    size_t jobs = sequences * heads * chunks;
    RN_PARALLEL(threads) {
        for (;;) {
            /* In turn: where the longest come first, short ones fill the end. */
            size_t job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (job >= jobs) break;
            size_t chunk = job % chunks, head = job / chunks % heads, sequence = job / chunks / heads;
            ptrdiff_t first = (ptrdiff_t)offsets[sequence], column = (ptrdiff_t)(head * depth);
            rn_attention_item item = {
                .query = query + first * query_stride + column,
                .key = key + first * key_stride + column,
                .value = value + first * value_stride + column,
                .out = out + first * out_stride + column,
                .length = (size_t)(offsets[sequence + 1] - offsets[sequence]),
                .keys = (size_t)(offsets[sequence + 1] - offsets[sequence]),
                .depth = depth,
                .width = depth,
                .query_stride = query_stride,
                .key_stride = key_stride,
                .value_stride = value_stride,
                .out_stride = out_stride,
                .scale = scale,
            };
            if (TILE(attend_chunk)(&item, chunk, chunks) != 0) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        }
    }
    return failed ? -1 : 0;
}
