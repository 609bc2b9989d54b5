/* Attention of a few rows whose items are too few for the threads, for the type REAL; included by attention_rows.h.
 *
 * Blocks of keys are the jobs. What one block needs of the others is its row's largest score so far, so the blocks first
 * compute their scores, then, knowing the maxima of those before, exponentials and mixed values; last each item adds up its
 * blocks. Every number is the one that TILE(attend) computes, and the sums run in its order: a block keeps the chains of its
 * sums apart. */

#define BLOCK_CHAINS ((KEY_BLOCK + TILE_CHAIN - 1) / TILE_CHAIN)

typedef struct {
    const rn_attention_item *items;
    size_t count, blocks, rows, width; /* width: padded */
    size_t score_stride, block_entries;
    REAL *data; /* blocks of each item in order */
    size_t next[3];
    int failed;
} TILE(split);

/* What a block of keys has: the scores (rows, score_stride), sums of chains (chains, rows, width), and an entry a row of its
 * largest score, the sum of its exponentials and the factor for what lies before it. */
typedef struct {
    REAL *scores, *chains, *largest, *sum, *factor;
    size_t key, count; /* which keys; none at all beyond the last row's reach */
} TILE(key_block);

static TILE(key_block) TILE(block_of)(const TILE(split) * split, size_t item, size_t block) {
    TILE(key_block) b = {.scores = split->data + (item * split->blocks + block) * split->block_entries, .key = block * KEY_BLOCK};
    b.chains = b.scores + split->rows * split->score_stride;
    b.largest = b.chains + BLOCK_CHAINS * split->rows * split->width;
    b.sum = b.largest + split->rows;
    b.factor = b.sum + split->rows;
    size_t reach = TILE(causal_keys)(split->items + item, split->rows - 1);
    b.count = reach <= b.key ? 0 : reach - b.key < KEY_BLOCK ? reach - b.key : KEY_BLOCK;
    return b;
}

static int TILE(split_scores)(const TILE(split) * split, size_t item, size_t block) {
    const rn_attention_item *of = split->items + item;
    TILE(key_block) b = TILE(block_of)(split, item, block);
    if (b.count == 0) return 0;
    REAL *strip = rn_scratch(0, TILE(strip_entries)(of) * sizeof(REAL));
    REAL *queries = rn_scratch(2, split->rows * of->depth * sizeof(REAL));
    if (strip == NULL || queries == NULL) return -1;
    TILE(scaled_queries)(of, 0, split->rows, queries);
    TILE(score_in_place)(of, queries, split->rows, b.key, b.count, strip, b.scores, split->score_stride);
    for (size_t r = 0; r < split->rows; r++) {
        REAL *score = b.scores + r * split->score_stride;
        if (of->row_bias != NULL)
            TILE(logistic_row)(of, score, r, b.key, b.count);
        else
            b.largest[r] = TILE(largest_allowed)(of, score, r, b.key, b.count);
    }
    return 0;
}

static int TILE(split_values)(const TILE(split) * split, size_t item, size_t block) {
    const rn_attention_item *of = split->items + item;
    TILE(key_block) b = TILE(block_of)(split, item, block);
    if (b.count == 0) return 0;
    for (size_t r = 0; r < split->rows && of->row_bias == NULL; r++) {
        REAL before = (REAL)-INFINITY;
        for (size_t i = 0; i < block; i++) {
            REAL found = TILE(block_of)(split, item, i).largest[r];
            before = found > before ? found : before;
        }
        REAL now = b.largest[r] > before ? b.largest[r] : before;
        b.factor[r] = TILE(exponentials)(b.scores + r * split->score_stride, b.count, before, now, b.sum + r);
    }
    REAL *panel = rn_scratch(0, TILE(strip_entries)(of) * sizeof(REAL));
    if (panel == NULL) return -1;
    for (size_t k = 0; k < b.count; k += TILE_CHAIN) {
        size_t keys = b.count - k < TILE_CHAIN ? b.count - k : TILE_CHAIN;
        TILE(mix_in_place)(of, b.scores + k, split->score_stride, split->rows, b.key + k, keys, panel,
                           b.chains + k / TILE_CHAIN * split->rows * split->width, 0);
    }
    return 0;
}

/* Adds up the blocks of an item, in the place of the first one's first chain. */
static void TILE(split_sum)(const TILE(split) * split, size_t item) {
    const rn_attention_item *of = split->items + item;
    size_t width = split->width;
    for (size_t r = 0; r < split->rows; r++) {
        REAL largest = (REAL)-INFINITY, sum = of->row_bias == NULL ? 0 : 1;
        REAL *mixed = TILE(block_of)(split, item, 0).chains + r * width;
        for (size_t block = 0; block < split->blocks; block++) {
            TILE(key_block) b = TILE(block_of)(split, item, block);
            if (b.count == 0) break;
            if (of->row_bias == NULL) {
                largest = b.largest[r] > largest ? b.largest[r] : largest;
                sum = TILE(add_block)(sum, b.factor[r], b.sum[r]);
                if (block > 0) TILE(rescale)(mixed, width, b.factor[r]);
            }
            for (size_t k = 0; k * TILE_CHAIN < b.count; k++) {
                const REAL *chain = b.chains + (k * split->rows + r) * width;
                for (size_t n = 0; n < width && chain != mixed; n += TILE(LANES))
                    TILE_VECTOR(store)(mixed + n, TILE_VECTOR(load)(mixed + n) + TILE_VECTOR(load)(chain + n));
            }
        }
        TILE(finish_row)(of, r, largest, sum, mixed);
    }
}

/* Takes jobs of one stage until none is left. */
static void TILE(split_stage)(TILE(split) * split, int stage) {
    size_t jobs = stage == 2 ? split->count : split->count * split->blocks;
    for (;;) {
        size_t job = __atomic_fetch_add(&split->next[stage], 1, __ATOMIC_RELAXED);
        if (job >= jobs) return;
        int failed = 0;
        if (stage == 2)
            TILE(split_sum)(split, job);
        else
            failed = (stage == 0 ? TILE(split_scores) : TILE(split_values))(split, job / split->blocks, job % split->blocks);
        if (failed) __atomic_store_n(&split->failed, 1, __ATOMIC_RELAXED);
    }
}

static int TILE(attend_split)(const rn_attention_item *items, size_t count, int threads) {
    TILE(split) split = {.items = items, .count = count, .blocks = (items->keys + KEY_BLOCK - 1) / KEY_BLOCK};
    split.rows = items->length;
    split.width = TILE(padded)(items->width);
    split.score_stride = TILE(score_stride_of)(items);
    split.block_entries = split.rows * (split.score_stride + BLOCK_CHAINS * split.width + 3);
    split.block_entries = (split.block_entries + 15) / 16 * 16;
    split.data = rn_scratch(3, count * split.blocks * split.block_entries * sizeof(REAL));
    if (split.data == NULL) return -1;
    RN_PARALLEL(threads) {
        TILE(split_stage)(&split, 0);
        RN_BARRIER;
        TILE(split_stage)(&split, 1);
        RN_BARRIER;
        TILE(split_stage)(&split, 2);
    }
    return split.failed ? -1 : 0;
}
