/* The backward pass of attention for the type REAL; included by attention.c after attention_rows.h.
 *
 * With S = scale q k^T, P = softmax(S), y = P v:
 *     dv = P^T dy      dP = dy v^T      dS = P (dP - rowsum(dy y))      dq = scale dS k      dk = scale dS^T q
 * No P is kept: blocks of S are computed again. They are held transposed, keys by a panel of queries, because then all
 * five products are tiles without another transposition: S^T and dP^T have the keys and values as left operands, P^T
 * and dS^T are themselves the left operands of dv and dk, and dS^T is the packed right operand of dq^T = k^T dS^T. A row
 * statistic is a vector along the panel.
 *
 * Sigmoid attention has P = sigmoid(S) and dS = P (1 - P) dP instead, without a row statistic; all else is the same.
 *
 * dq sums over the blocks of keys in ascending order, dk and dv over the panels of queries, whoever computes them: the
 * result does not depend on how an item is split. */

typedef struct {
    REAL *query, *dy;            /* panels of queries: (depth or width, COLUMNS) each; the query times the scale */
    REAL *query_rows, *dy_rows;  /* panels of columns of q and dy, as right operands of dk and dv */
    REAL *key_columns;           /* k^T, (depth, keys) */
    /* One entry a query: statistics and rowsum(dy y); of sigmoid attention the bias, nothing, and rowsum(dS). */
    REAL *shift, *inverse, *dot;
    REAL *dkey, *dvalue;         /* (keys, padded depth), (keys, padded width) */
    REAL *scores, *dscores;      /* (BACKWARD_KEYS, COLUMNS) */
    REAL *dquery;                /* (depth, COLUMNS) */
    REAL *result;                /* a panel of y, (width, COLUMNS) */
} TILE(workspace);

/* <dy, y> of the queries from n on, in the order in which a tile sums <dy, v>: for a query with one key, whose y is v, the
 * two cancel to exactly 0. */
static void TILE(row_dots)(const rn_attention_cotangents *c, TILE(workspace) * w, size_t n) {
    const rn_attention_item *item = &c->item;
    size_t rows = item->length - n < TILE(COLUMNS) ? item->length - n : TILE(COLUMNS);
    TILE(pack_transposed)((const REAL *)item->out + (ptrdiff_t)n * item->out_stride, item->out_stride, rows, item->width, 1,
                          w->result);
    const REAL *dy = w->dy + n * item->width;
    for (size_t half = 0; half < TILE(COLUMNS); half += TILE(LANES)) {
        TILE_VEC total = TILE_VECTOR(set)(0);
        for (size_t k = 0; k < item->width; k += TILE_CHAIN) {
            TILE_VEC sum = TILE_VECTOR(set)(0);
            for (size_t i = k; i < item->width && i < k + TILE_CHAIN; i++)
                sum = TILE_VECTOR(fma)(TILE_VECTOR(load)(w->result + i * TILE(COLUMNS) + half),
                                       TILE_VECTOR(load)(dy + i * TILE(COLUMNS) + half), sum);
            total = k > 0 ? total + sum : sum;
        }
        TILE_VECTOR(store)(w->dot + n + half, total);
    }
}

static int TILE(prepare)(const rn_attention_cotangents *c, TILE(workspace) * w) {
    const rn_attention_item *item = &c->item;
    size_t queries = TILE(padded)(item->length), deep = TILE(padded)(item->depth), wide = TILE(padded)(item->width);
    size_t sizes[14] = {queries * item->depth, queries * item->width, queries * deep, queries * wide,
                        item->depth * item->keys, queries, queries, queries, item->keys * deep, item->keys * wide,
                        BACKWARD_KEYS * TILE(COLUMNS), BACKWARD_KEYS * TILE(COLUMNS), item->depth * TILE(COLUMNS),
                        item->width * TILE(COLUMNS)};
    REAL **parts[14] = {&w->query, &w->dy, &w->query_rows, &w->dy_rows, &w->key_columns, &w->shift, &w->inverse,
                        &w->dot, &w->dkey, &w->dvalue, &w->scores, &w->dscores, &w->dquery, &w->result};
    size_t total = 0;
    for (int i = 0; i < 14; i++) {
        sizes[i] = (sizes[i] + 15) / 16 * 16;
        total += sizes[i];
    }
    REAL *next = rn_scratch(0, total * sizeof(REAL));
    if (next == NULL) return -1;
    for (int i = 0; i < 14; i++) {
        *parts[i] = next;
        next += sizes[i];
    }
    TILE(pack_transposed)(item->query, item->query_stride, item->length, item->depth, item->scale * ATTENTION_UNIT, w->query);
    TILE(pack_transposed)(c->dy, c->dy_stride, item->length, item->width, 1, w->dy);
    TILE(pack)(item->query, item->query_stride, item->length, queries, item->depth, w->query_rows);
    TILE(pack)(c->dy, c->dy_stride, item->length, queries, item->width, w->dy_rows);
    TILE(turn)(item->key, item->key_stride, item->keys, item->depth, item->keys, w->key_columns, item->keys);
    if (item->row_bias != NULL) {
        const REAL *bias = item->row_bias;
        for (size_t i = 0; i < queries; i++) {
            w->shift[i] = i < item->length ? (REAL)ATTENTION_UNIT * bias[(ptrdiff_t)i * item->row_bias_stride] : 0;
            w->dot[i] = 0;
        }
        return 0;
    }
    const REAL *statistics = item->statistics;
    for (size_t i = 0; i < queries; i++) {
        w->shift[i] = i < item->length ? statistics[2 * i] : 0;
        w->inverse[i] = i < item->length ? statistics[2 * i + 1] : 0;
    }
    for (size_t n = 0; n < item->length; n += TILE(COLUMNS)) TILE(row_dots)(c, w, n);
    return 0;
}

/* Where query n + lane may not attend to the key: 0. */
static void TILE(strike_out)(const rn_attention_item *item, size_t n, size_t key, size_t count, REAL *p, REAL *ds) {
    for (size_t lane = 0; lane < TILE(COLUMNS) && n + lane < item->length; lane++) {
        size_t row = n + lane, allowed = TILE(causal_keys)(item, row);
        const uint8_t *mask = item->mask == NULL ? NULL : item->mask + (ptrdiff_t)row * item->mask_row;
        for (size_t j = 0; j < count; j++)
            if (key + j >= allowed || (mask != NULL && !mask[(ptrdiff_t)(key + j) * item->mask_key]))
                p[j * TILE(COLUMNS) + lane] = ds[j * TILE(COLUMNS) + lane] = 0;
    }
}

/* Adds the bias of pairs to a block of transposed scores. */
static void TILE(add_pair_bias)(const rn_attention_item *item, size_t n, size_t key, size_t count, REAL *scores) {
    for (size_t lane = 0; lane < TILE(COLUMNS) && n + lane < item->length; lane++) {
        const REAL *bias = (const REAL *)item->pair_bias + (ptrdiff_t)(n + lane) * item->pair_bias_row +
                           (ptrdiff_t)key * item->pair_bias_key;
        for (size_t j = 0; j < count; j++)
            scores[j * TILE(COLUMNS) + lane] += (REAL)ATTENTION_UNIT * bias[(ptrdiff_t)j * item->pair_bias_key];
    }
}

/* From transposed scores and dP^T: P^T and dS^T of sigmoid attention. */
static void TILE(logistic_block)(const rn_attention_item *item, const TILE(workspace) * w, size_t n, size_t key, size_t count) {
    if (item->pair_bias != NULL) TILE(add_pair_bias)(item, n, key, count, w->scores);
    TILE_VEC bias[2] = {TILE_VECTOR(load)(w->shift + n), TILE_VECTOR(load)(w->shift + n + TILE(LANES))};
    for (size_t j = 0; j < count; j++) {
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            REAL *p = w->scores + j * TILE(COLUMNS) + half * TILE(LANES);
            REAL *ds = w->dscores + j * TILE(COLUMNS) + half * TILE(LANES);
            TILE_VEC rest, weight = TILE(logistic)(TILE_VECTOR(load)(p) + bias[half], &rest);
            TILE_VECTOR(store)(p, weight);
            TILE_VECTOR(store)(ds, TILE_VECTOR(load)(ds) * (weight * rest));
        }
    }
}

/* Hands on the cotangents of a block's scores to those of the biases. */
static void TILE(bias_cotangents)(const rn_attention_cotangents *c, const TILE(workspace) * w, size_t n, size_t key,
                                  size_t count) {
    for (size_t half = 0; half < TILE(COLUMNS) && c->drow_bias != NULL; half += TILE(LANES)) {
        TILE_VEC sum = TILE_VECTOR(set)(0);
        for (size_t j = 0; j < count; j++) sum += TILE_VECTOR(load)(w->dscores + j * TILE(COLUMNS) + half);
        TILE_VECTOR(store)(w->dot + n + half, TILE_VECTOR(load)(w->dot + n + half) + sum);
    }
    if (c->dpair_bias == NULL) return;
    for (size_t lane = 0; lane < TILE(COLUMNS) && n + lane < c->item.length; lane++) {
        REAL *to = (REAL *)c->dpair_bias + (n + lane) * c->item.keys + key;
        for (size_t j = 0; j < count; j++) to[j] = w->dscores[j * TILE(COLUMNS) + lane];
    }
}

/* From transposed scores and dP^T: P^T and dS^T of softmax attention. */
static void TILE(softmax_block)(const TILE(workspace) * w, size_t n, size_t count) {
    for (size_t half = 0; half < TILE(COLUMNS); half += TILE(LANES)) {
        TILE_VEC shift = TILE_VECTOR(load)(w->shift + n + half), inverse = TILE_VECTOR(load)(w->inverse + n + half);
        TILE_VEC dot = TILE_VECTOR(load)(w->dot + n + half);
        for (size_t j = 0; j < count; j++) {
            REAL *p = w->scores + j * TILE(COLUMNS) + half, *ds = w->dscores + j * TILE(COLUMNS) + half;
            TILE_VEC weight = ATTENTION_EXP(TILE_VECTOR(load)(p) - shift) * inverse;
            TILE_VECTOR(store)(p, weight);
            TILE_VECTOR(store)(ds, weight * (TILE_VECTOR(load)(ds) - dot));
        }
    }
}

/* P^T and dS^T of a block of keys and the panel of queries from n on. */
static void TILE(block_scores)(const rn_attention_item *item, const TILE(workspace) * w, size_t n, size_t key, size_t count) {
    TILE(rows_by_panel)(count, (const REAL *)item->key + (ptrdiff_t)key * item->key_stride, (size_t)item->key_stride,
                        w->query + n * item->depth, item->depth, w->scores, TILE(COLUMNS), 0);
    TILE(rows_by_panel)(count, (const REAL *)item->value + (ptrdiff_t)key * item->value_stride,
                        (size_t)item->value_stride, w->dy + n * item->width, item->width, w->dscores, TILE(COLUMNS), 0);
    if (item->row_bias != NULL)
        TILE(logistic_block)(item, w, n, key, count);
    else
        TILE(softmax_block)(w, n, count);
    int cut = item->causal && key + count > TILE(causal_keys)(item, n);
    if (cut || item->mask != NULL) TILE(strike_out)(item, n, key, count, w->scores, w->dscores);
}

/* Panels of queries [first_panel, last_panel) against keys [first_key, last_key), a multiple of BACKWARD_KEYS or the end. */
static void TILE(backward_part)(const rn_attention_cotangents *c, const TILE(workspace) * w, size_t first_panel,
                                size_t last_panel, size_t first_key, size_t last_key, int queries_wanted, int keys_wanted) {
    const rn_attention_item *item = &c->item;
    size_t deep = TILE(padded)(item->depth), wide = TILE(padded)(item->width), room = TILE(padded)(item->length);
    REAL scale = (REAL)item->scale;
    if (keys_wanted) {
        for (size_t i = first_key * deep; i < last_key * deep; i++) w->dkey[i] = 0;
        for (size_t i = first_key * wide; i < last_key * wide; i++) w->dvalue[i] = 0;
    }
    for (size_t panel = first_panel; panel < last_panel; panel++) {
        size_t n = panel * TILE(COLUMNS);
        size_t queries = item->length - n < TILE(COLUMNS) ? item->length - n : TILE(COLUMNS);
        size_t reach = TILE(causal_keys)(item, n + queries - 1);
        if (queries_wanted)
            for (size_t i = 0; i < item->depth * TILE(COLUMNS); i++) w->dquery[i] = 0;
        for (size_t key = first_key; key < last_key && key < reach; key += BACKWARD_KEYS) {
            size_t end = last_key < reach ? last_key : reach, count = end - key < BACKWARD_KEYS ? end - key : BACKWARD_KEYS;
            TILE(block_scores)(item, w, n, key, count);
            if (queries_wanted && item->row_bias != NULL) TILE(bias_cotangents)(c, w, n, key, count);
            if (queries_wanted)
                TILE(rows_by_panel)(item->depth, w->key_columns + key, item->keys, w->dscores, count, w->dquery,
                                    TILE(COLUMNS), 1);
            if (!keys_wanted) continue;
            for (size_t m = 0; m < item->width; m += TILE(COLUMNS))
                TILE(rows_by_panel)(count, w->scores, TILE(COLUMNS), w->dy_rows + m * room + n * TILE(COLUMNS),
                                    TILE(COLUMNS), w->dvalue + key * wide + m, wide, 1);
            for (size_t m = 0; m < item->depth; m += TILE(COLUMNS))
                TILE(rows_by_panel)(count, w->dscores, TILE(COLUMNS), w->query_rows + m * room + n * TILE(COLUMNS),
                                    TILE(COLUMNS), w->dkey + key * deep + m, deep, 1);
        }
        if (queries_wanted && c->drow_bias != NULL)
            for (size_t lane = 0; lane < queries; lane++) ((REAL *)c->drow_bias)[n + lane] = w->dot[n + lane];
        if (queries_wanted)
            for (size_t lane = 0; lane < queries; lane++)
                for (size_t k = 0; k < item->depth; k++)
                    ((REAL *)c->dquery)[(n + lane) * item->depth + k] = scale * w->dquery[k * TILE(COLUMNS) + lane];
    }
    if (!keys_wanted) return;
    for (size_t key = first_key; key < last_key; key++) {
        for (size_t k = 0; k < item->depth; k++) ((REAL *)c->dkey)[key * item->depth + k] = scale * w->dkey[key * deep + k];
        for (size_t k = 0; k < item->width; k++) ((REAL *)c->dvalue)[key * item->width + k] = w->dvalue[key * wide + k];
    }
}

/* Job `part` of `parts` of an item: one part does everything; of more, the even ones take queries, the odd ones keys. */
static int TILE(backward_job)(const rn_attention_cotangents *c, size_t part, size_t parts) {
    TILE(workspace) w;
    if (TILE(prepare)(c, &w) != 0) return -1;
    size_t panels = (c->item.length + TILE(COLUMNS) - 1) / TILE(COLUMNS);
    size_t blocks = (c->item.keys + BACKWARD_KEYS - 1) / BACKWARD_KEYS, first, last;
    if (parts == 1) {
        TILE(backward_part)(c, &w, 0, panels, 0, c->item.keys, 1, 1);
    } else if (part % 2 == 0) {
        rn_range(panels, parts / 2, part / 2, &first, &last);
        TILE(backward_part)(c, &w, first, last, 0, c->item.keys, 1, 0);
    } else {
        rn_range(blocks, parts / 2, part / 2, &first, &last);
        last *= BACKWARD_KEYS;
        TILE(backward_part)(c, &w, 0, panels, first * BACKWARD_KEYS, last < c->item.keys ? last : c->item.keys, 0, 1);
    }
    return 0;
}

static int TILE(backward)(const rn_attention_cotangents *items, size_t count) {
    if (count == 0) return 0;
    const rn_attention_item *item = &items->item;
    double cost = 2.5 * TILE(cost)(item->length, item->keys, item->depth, item->width);
    size_t panels = (item->length + TILE(COLUMNS) - 1) / TILE(COLUMNS);
    int threads = rn_threads(count * panels, (double)count * cost);
    /* Splitting an item computes its scores twice: only where there are too few items for the threads. */
    size_t parts = threads == 1 || count >= 2 * (size_t)threads ? 1 : 2 * (((size_t)threads + count - 1) / count), next = 0;
    int failed = 0;
    RN_PARALLEL(threads) {
        for (;;) {
            size_t job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            if (job >= count * parts) break;
            if (TILE(backward_job)(items + job / parts, job % parts, parts) != 0)
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        }
    }
    return failed ? -1 : 0;
}
