/* Keys and values read where they are, for the type REAL; included by attention_rows.h. */

/* Rows that a tile of TILE_VECTORS vectors has registers for. */
#define WIDE_ROWS (TILE_ROWS / 3)
enum { TILE(STRIP) = TILE_VECTORS * TILE(LANES) }; /* keys that are transposed at a time */

/* Entries of scratch memory that the two products need. */
static size_t TILE(strip_entries)(const rn_attention_item *item) {
    size_t keys = TILE(STRIP) * item->depth, values = TILE_CHAIN * TILE(COLUMNS);
    return keys > values ? keys : values;
}

/* The product of `rows` left rows with TILE_VECTORS vectors of columns. Few rows have independent sums enough only with all
 * of them at once. */
static __attribute__((noinline)) void TILE(wide_tile)(size_t rows, const REAL *left, size_t left_stride, const REAL *right,
                                                      ptrdiff_t right_stride, size_t depth, REAL *out, size_t out_stride,
                                                      int add) {
#define WIDE_CASE(n)                                                                                                     \
    case n:                                                                                                              \
        TILE(tile_of)(n, TILE_VECTORS, left, left_stride, right, right_stride, depth, out, out_stride, NULL, add);       \
        break;
    switch (rows) {
        WIDE_CASE(1)
        WIDE_CASE(2)
#if TILE_ROWS == 12
        WIDE_CASE(3)
        WIDE_CASE(4)
#endif
    }
#undef WIDE_CASE
}

/* The product of `rows` left rows with `columns` columns of the right operand, whole vectors: a multiple of COLUMNS. */
static void TILE(rows_by_columns)(size_t rows, const REAL *left, size_t left_stride, const REAL *right, ptrdiff_t right_stride,
                                  size_t columns, size_t depth, REAL *out, size_t out_stride, int add) {
    size_t n = 0;
    if (rows <= WIDE_ROWS)
        for (; n + TILE(STRIP) <= columns; n += TILE(STRIP))
            TILE(wide_tile)(rows, left, left_stride, right + n, right_stride, depth, out + n, out_stride, add);
    for (; n < columns; n += TILE(COLUMNS))
        for (size_t r = 0; r < rows; r += TILE_ROWS)
            TILE(tile_at)(rows - r < TILE_ROWS ? (int)(rows - r) : TILE_ROWS, left + r * left_stride, left_stride, right + n,
                          right_stride, depth, out + r * out_stride + n, out_stride, NULL, add);
}

/* Scores of `rows` queries against `count` keys from `key` on: strips of keys are transposed into the first-level cache. */
static void TILE(score_in_place)(const rn_attention_item *item, const REAL *queries, size_t rows, size_t key, size_t count,
                                 REAL *strip, REAL *scores, size_t score_stride) {
    for (size_t n = 0; n < count; n += TILE(STRIP)) {
        size_t keys = count - n < TILE(STRIP) ? count - n : TILE(STRIP), columns = TILE(padded)(keys);
        const REAL *from = (const REAL *)item->key + (ptrdiff_t)(key + n) * item->key_stride;
        TILE(turn)(from, item->key_stride, keys, item->depth, columns, strip, TILE(STRIP));
        TILE(rows_by_columns)(rows, queries, item->depth, strip, TILE(STRIP), columns, item->depth, scores + n, score_stride, 0);
    }
}

/* Adds to `mixed` (rows, padded width), or writes there, the values of `count` keys from `key` on, weighted. */
static void TILE(mix_in_place)(const rn_attention_item *item, const REAL *weights, size_t weight_stride, size_t rows, size_t key,
                               size_t count, REAL *panel, REAL *mixed, int add) {
    size_t width = TILE(padded)(item->width), whole = item->width / TILE(COLUMNS) * TILE(COLUMNS);
    const REAL *from = (const REAL *)item->value + (ptrdiff_t)key * item->value_stride;
    TILE(rows_by_columns)(rows, weights, weight_stride, from, item->value_stride, whole, count, mixed, width, add);
    if (whole == item->width) return;
    /* Columns beyond the last whole tile go through a panel, as many rows as one chain of a sum has. */
    for (size_t k = 0; k < count; k += TILE_CHAIN) {
        size_t keys = count - k < TILE_CHAIN ? count - k : TILE_CHAIN;
        TILE(pack)(from + (ptrdiff_t)k * item->value_stride + whole, item->value_stride, keys, keys, item->width - whole, panel);
        TILE(rows_by_panel)(rows, weights + k, weight_stride, panel, keys, mixed + whole, width, add || k > 0);
    }
}
