/* Attention for the type REAL; included by attention.c after tile.h.
 *
 * Keys and values are packed once for an item (keys transposed), then groups of query rows pass over them: scores of a
 * group against a block of keys, exponentials in place, product with the values. Scores of a group fit the first-level
 * cache. Across blocks of keys the softmax is the online one: with a larger maximum m', what was summed so far is
 * multiplied by exp(m - m').
 *
 * A few rows do not pay packing back: they read keys and values where they are (attention_in_place.h). The sums run in the
 * same order, so that a row's result does not depend on the rows beside it. */

enum { TILE(COLUMNS) = 2 * (int)(sizeof(TILE_VEC) / sizeof(REAL)), TILE(LANES) = (int)(sizeof(TILE_VEC) / sizeof(REAL)) };

static size_t TILE(padded)(size_t columns) {
    return (columns + TILE(COLUMNS) - 1) / TILE(COLUMNS) * TILE(COLUMNS);
}

/* Writes a matrix (rows, depth) transposed, `room` columns wide, zeros beyond the rows. Edges are covered by whole blocks
 * that overlap their neighbours. */
static void TILE(turn)(const REAL *matrix, ptrdiff_t stride, size_t rows, size_t depth, size_t room, REAL *to, size_t to_stride) {
    const size_t lanes = TILE(LANES);
    if (rows >= lanes && depth >= lanes) {
        for (size_t j = 0; j < rows; j += lanes) {
            size_t row = j + lanes <= rows ? j : rows - lanes;
            for (size_t k = 0; k < depth; k += lanes) {
                size_t column = k + lanes <= depth ? k : depth - lanes;
                TILE_PASTE(transpose_lanes, TILE_TYPE)(matrix + (ptrdiff_t)row * stride + column, stride,
                                                 to + column * to_stride + row, to_stride);
            }
        }
    } else {
        for (size_t j = 0; j < rows; j++)
            for (size_t k = 0; k < depth; k++) to[k * to_stride + j] = matrix[(ptrdiff_t)j * stride + (ptrdiff_t)k];
    }
    for (size_t k = 0; k < depth && rows < room; k++)
        for (size_t j = rows; j < room; j++) to[k * to_stride + j] = 0;
}

/* Panels whose columns are the rows of a matrix (rows, depth), times a factor. */
static void TILE(pack_transposed)(const REAL *matrix, ptrdiff_t stride, size_t rows, size_t depth, double times,
                                  REAL *packed) {
    for (size_t n = 0; n < rows; n += TILE(COLUMNS)) {
        size_t columns = rows - n < TILE(COLUMNS) ? rows - n : TILE(COLUMNS);
        TILE(turn)(matrix + (ptrdiff_t)n * stride, stride, columns, depth, TILE(COLUMNS), packed + n * depth, TILE(COLUMNS));
    }
    if (times == 1) return;
    const REAL factor = (REAL)times;
    for (size_t i = 0; i < TILE(padded)(rows) * depth; i++) packed[i] *= factor;
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

/* Product of `rows` left rows with one panel, in tiles. */
RN_INLINE void TILE(rows_by_panel)(size_t rows, const REAL *left, size_t left_stride, const REAL *panel, size_t depth,
                                   REAL *out, size_t out_stride, int add) {
    for (size_t r = 0; r < rows; r += TILE_ROWS)
        TILE(tile)(rows - r < TILE_ROWS ? (int)(rows - r) : TILE_ROWS, left + r * left_stride, left_stride, panel, depth,
                   out + r * out_stride, out_stride, NULL, add);
}

#include "attention_in_place.h"

/* Number of keys, counted from the first, that row may attend to by the causal rule. */
static size_t TILE(causal_keys)(const rn_attention_item *item, size_t row) {
    if (!item->causal) return item->keys;
    ptrdiff_t last = (ptrdiff_t)row + item->causal_shift + 1;
    return last <= 0 ? 0 : (size_t)last < item->keys ? (size_t)last : item->keys;
}

/* Takes the keys that the row may not attend to out of its scores of those from `first` on, and returns the largest. */
static REAL TILE(largest_allowed)(const rn_attention_item *item, REAL *score, size_t row, size_t first, size_t count) {
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
    TILE_VEC best[2] = {TILE_VECTOR(set)((REAL)-INFINITY), TILE_VECTOR(set)((REAL)-INFINITY)};
    for (size_t j = 0; j < padded; j += 2 * TILE(LANES)) {
        best[0] = TILE_VECTOR(max)(TILE_VECTOR(load)(score + j), best[0]);
        best[1] = TILE_VECTOR(max)(TILE_VECTOR(load)(score + j + TILE(LANES)), best[1]);
    }
    return (REAL)TILE_VECTOR(largest)(TILE_VECTOR(max)(best[0], best[1]));
}

/* Turns one row's scores into exp(score - now), where `now` is the largest score of this block of keys and of those
 * before it, and `before` of those alone. *sum becomes their sum; returns the factor for what the row has summed before. */
static REAL TILE(exponentials)(REAL *score, size_t count, REAL before, REAL now, REAL *sum) {
    /* With nothing to attend to so far every score is -inf: any finite shift gives the zeros wanted. */
    REAL shift = now == (REAL)-INFINITY ? 0 : now;
    TILE_VEC total[2] = {TILE_VECTOR(set)(0), TILE_VECTOR(set)(0)};
    for (size_t j = 0; j < TILE(padded)(count); j += 2 * TILE(LANES)) {
        TILE_VEC one = ATTENTION_EXP(TILE_VECTOR(load)(score + j) - shift);
        TILE_VEC two = ATTENTION_EXP(TILE_VECTOR(load)(score + j + TILE(LANES)) - shift);
        TILE_VECTOR(store)(score + j, one);
        TILE_VECTOR(store)(score + j + TILE(LANES), two);
        total[0] += one;
        total[1] += two;
    }
    *sum = (REAL)TILE_VECTOR(sum)(total[0] + total[1]);
    return ATTENTION_EXP(TILE_VECTOR(set)(before - shift))[0]; /* 0 after -inf */
}

/* What a row has summed before and the sum of a block of keys, as one. */
RN_INLINE REAL TILE(add_block)(REAL sum, REAL factor, REAL block) { return sum * factor + block; }
RN_INLINE void TILE(rescale)(REAL *mixed, size_t width, REAL factor) {
    if (factor != 1)
        for (size_t n = 0; n < width; n++) mixed[n] *= factor;
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

/* Where the keys and values of an item are: packed for all rows, or in place and packed a strip at a time. */
typedef struct {
    const REAL *keys, *values; /* packed, or NULL */
    REAL *strip;               /* room for a strip of keys, or for a panel of TILE_CHAIN values */
} TILE(operands);

/* Queries from `begin` on, times the scale of the scores. */
static void TILE(scaled_queries)(const rn_attention_item *item, size_t begin, size_t rows, REAL *to) {
    const REAL factor = (REAL)(item->scale * ATTENTION_UNIT);
    for (size_t r = 0; r < rows; r++) {
        const REAL *from = (const REAL *)item->query + (ptrdiff_t)(begin + r) * item->query_stride;
        for (size_t k = 0; k < item->depth; k++) to[r * item->depth + k] = from[k] * factor;
    }
}

/* Scores of `rows` scaled queries against `count` keys from `key` on. */
static void TILE(score_block)(const rn_attention_item *item, const TILE(operands) * from, const REAL *queries, size_t rows,
                              size_t key, size_t count, REAL *scores, size_t score_stride) {
    if (from->keys == NULL) {
        TILE(score_in_place)(item, queries, rows, key, count, from->strip, scores, score_stride);
        return;
    }
    for (size_t n = 0; n < count; n += TILE(COLUMNS))
        TILE(rows_by_panel)(rows, queries, item->depth, from->keys + (key + n) * item->depth, item->depth, scores + n,
                            score_stride, 0);
}

/* Adds to `mixed` (rows, padded width), or writes there, the values of `count` keys from `key` on, weighted. */
static void TILE(mix_block)(const rn_attention_item *item, const TILE(operands) * from, const REAL *weights,
                            size_t weight_stride, size_t rows, size_t key, size_t count, REAL *mixed, int add) {
    size_t width = TILE(padded)(item->width);
    if (from->values == NULL) {
        TILE(mix_in_place)(item, weights, weight_stride, rows, key, count, from->strip, mixed, add);
        return;
    }
    for (size_t n = 0; n < width; n += TILE(COLUMNS))
        TILE(rows_by_panel)(rows, weights, weight_stride, from->values + n * item->keys + key * TILE(COLUMNS), count,
                            mixed + n, width, add);
}

/* Divides what a row has mixed by the sum of its weights. */
static void TILE(finish_row)(const rn_attention_item *item, size_t row, REAL largest, REAL sum, const REAL *mixed) {
    REAL *to = (REAL *)item->out + (ptrdiff_t)row * item->out_stride;
    REAL inverse = 1 / sum;
    if (item->statistics != NULL) {
        REAL *kept = (REAL *)item->statistics + 2 * row;
        kept[0] = sum == 0 ? 0 : largest;
        kept[1] = sum == 0 ? 0 : inverse;
    }
    if (sum == 0)
        for (size_t n = 0; n < item->width; n++) to[n] = 0;
    else
        for (size_t n = 0; n < item->width; n++) to[n] = mixed[n] * inverse;
}

/* Rows from `first` to `last` of one item. `work` has room for a group's scaled queries, scores and results. */
static void TILE(attend)(const rn_attention_item *item, size_t first, size_t last, const TILE(operands) * from,
                         size_t score_stride, size_t group, REAL *work) {
    size_t width = TILE(padded)(item->width);
    REAL *scores = work, *mixed = scores + group * score_stride, *queries = mixed + group * width;
    REAL largest[GROUP_ROWS], sum[GROUP_ROWS];
    for (size_t begin = first; begin < last; begin += group) {
        size_t rows = last - begin < group ? last - begin : group;
        TILE(scaled_queries)(item, begin, rows, queries);
        /* Weights of sigmoid attention are what they are: nothing to divide by. */
        for (size_t r = 0; r < rows; r++) largest[r] = (REAL)-INFINITY, sum[r] = item->row_bias == NULL ? 0 : 1;
        size_t reach = TILE(causal_keys)(item, begin + rows - 1);
        for (size_t key = 0; key < reach; key += KEY_BLOCK) {
            size_t count = reach - key < KEY_BLOCK ? reach - key : KEY_BLOCK;
            TILE(score_block)(item, from, queries, rows, key, count, scores, score_stride);
            for (size_t r = 0; r < rows; r++) {
                REAL *score = scores + r * score_stride;
                if (item->row_bias != NULL) {
                    TILE(logistic_row)(item, score, begin + r, key, count);
                    continue;
                }
                REAL before = largest[r], found = TILE(largest_allowed)(item, score, begin + r, key, count), block;
                largest[r] = found > before ? found : before;
                REAL factor = TILE(exponentials)(score, count, before, largest[r], &block);
                sum[r] = TILE(add_block)(sum[r], factor, block);
                if (key > 0) TILE(rescale)(mixed + r * width, width, factor);
            }
            TILE(mix_block)(item, from, scores, score_stride, rows, key, count, mixed, key > 0);
        }
        for (size_t r = 0; r < rows; r++) TILE(finish_row)(item, begin + r, largest[r], sum[r], mixed + r * width);
    }
}

/* Entries between rows of scores. A cache line more than the keys: rows a power of two apart would compete for the same few
 * sets. */
static size_t TILE(score_stride_of)(const rn_attention_item *item) {
    size_t keys = TILE(padded)(item->keys);
    return (keys < KEY_BLOCK ? keys : KEY_BLOCK) + 64 / sizeof(REAL);
}

/* Part `chunk` of `chunks` of an item's rows. */
static int TILE(attend_chunk)(const rn_attention_item *item, size_t chunk, size_t chunks) {
    size_t first, last;
    rn_range((item->length + TILE_ROWS - 1) / TILE_ROWS, chunks, chunk, &first, &last);
    first *= TILE_ROWS;
    last = last * TILE_ROWS < item->length ? last * TILE_ROWS : item->length;
    if (first >= last || item->width == 0) return 0;
    size_t keys = TILE(padded)(item->keys), width = TILE(padded)(item->width), score_stride = TILE(score_stride_of)(item);
    size_t group = SCORE_BYTES / sizeof(REAL) / score_stride / TILE_ROWS * TILE_ROWS;
    if (group < TILE_ROWS) group = TILE_ROWS;
    if (group > GROUP_ROWS) group = GROUP_ROWS;
    if (last - first <= FEW_ROWS) {
        group = last - first;
        TILE(operands) in_place = {.strip = rn_scratch(0, TILE(strip_entries)(item) * sizeof(REAL))};
        REAL *work = rn_scratch(2, group * (score_stride + width + item->depth) * sizeof(REAL));
        if (in_place.strip == NULL || work == NULL) return -1;
        TILE(attend)(item, first, last, &in_place, score_stride, group, work);
        return 0;
    }
    REAL *packed_keys = rn_scratch(0, (keys * item->depth + 1) * sizeof(REAL));
    REAL *packed_values = rn_scratch(1, (item->keys * width + 1) * sizeof(REAL));
    REAL *work = rn_scratch(2, group * (score_stride + width + item->depth) * sizeof(REAL));
    if (packed_keys == NULL || packed_values == NULL || work == NULL) return -1;
    size_t reach = TILE(causal_keys)(item, last - 1);
    TILE(pack_transposed)(item->key, item->key_stride, reach, item->depth, 1, packed_keys);
    TILE(pack)(item->value, item->value_stride, reach, item->keys, item->width, packed_values);
    TILE(operands) packed = {packed_keys, packed_values, NULL};
    TILE(attend)(item, first, last, &packed, score_stride, group, work);
    return 0;
}

#include "attention_split.h"

/* Cost of an item on one thread in nanoseconds: two products and one exponential a score, and the way of keys and values
 * into the processor. */
static double TILE(cost)(size_t length, size_t keys, size_t depth, size_t width) {
    double pairs = (double)length * (double)keys, bytes = (double)keys * (double)(depth + width) * sizeof(REAL);
    return pairs * ((double)(depth + width) / 6 + 4) / TILE(LANES) + bytes / 40;
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
    int few = items->length <= SPLIT_ROWS && items->width > 0;
    size_t parts = few ? (items->keys + KEY_BLOCK - 1) / KEY_BLOCK : (items->length + CHUNK_ROWS - 1) / CHUNK_ROWS;
    int threads = rn_threads(count * parts, (double)count * cost);
    /* Whole items fill the threads well enough where there are many, or as many for each. */
    if (few && threads > 1 && parts > 1 && count < 8 * (size_t)threads && count % (size_t)threads != 0)
        return TILE(attend_split)(items, count, threads);
    size_t chunks = few ? 1 : TILE(chunks_of)(count, items->length, items->causal, threads), next = 0;
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
