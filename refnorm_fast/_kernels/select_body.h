/* Body of select.c for one element type: T, its vector VT, masks VI, LANES lanes.
 *
 * The k largest of a row. Where there are as many rows as lanes and k is small, a list of the k largest so far goes down all of
 * them at once, a row a lane; its last entry bounds the selection. Else short rows: the largest, then the largest below it, and so on, one scan of the row each, until enough
 * entries are at least as large as the last one found; the bits of that comparison are the selection. Long rows: a tournament. The row
 * is cut into blocks, each block's largest entry is known, and taking an entry out costs one look over the blocks and one
 * over its block. */

/* ---- selection -------------------------------------------------------------------------------------------------- */

RN_INLINE VT N(entries)(const T *x, size_t i, size_t length) {
    return length - i >= LANES ? V(load)(x + i) : V(load_part)(x + i, length - i, -INFINITY);
}

/* Largest entry below `bound` (NaN is skipped), -inf if there is none. */
static T N(largest_below)(const T *x, size_t length, T bound) {
    VT best = V(set)(-INFINITY), limit = V(set)(bound);
    for (size_t i = 0; i < length; i += LANES) {
        VT entry = N(entries)(x, i, length);
        best = V(max)(V(select)((VI)(entry < limit), entry, V(set)(-INFINITY)), best);
    }
    return V(largest)(best);
}

/* Largest entry (NaN is skipped), and whether any is NaN. */
static T N(largest_of)(const T *x, size_t length, int *nan) {
    VT best = V(set)(-INFINITY);
    VI odd = {0};
    for (size_t i = 0; i < length; i += LANES) {
        VT entry = N(entries)(x, i, length);
        odd |= (VI)(entry != entry);
        best = V(max)(entry, best);
    }
    *nan = VM(any)(odd);
    return V(largest)(best);
}

/* First index from `from` on with this value, `length` if there is none. */
static size_t N(find)(const T *x, size_t from, size_t length, T value) {
    VT wanted = V(set)(value);
    for (; from + LANES <= length; from += LANES) {
        uint32_t bits = VM(bits)((VI)(V(load)(x + from) == wanted));
        if (bits) return from + (size_t)__builtin_ctz(bits);
    }
    for (; from < length; from++)
        if (x[from] == value) return from;
    return length;
}

/* Writes the indices of the entries whose bit is set, in order; of those equal to the bound, where they are `too_many`, only the
 * first `spare`. */
RN_INLINE void N(choose)(const T *x, const uint32_t *bits, size_t vectors, T bound, int too_many, size_t spare, int32_t *chosen) {
    for (size_t v = 0; v < vectors; v++)
        for (uint32_t left = bits[v]; left; left &= left - 1) {
            size_t i = v * LANES + (size_t)__builtin_ctz(left);
            if (too_many && x[i] == bound) {
                if (spare == 0) continue;
                spare--;
            }
            *chosen++ = (int32_t)i;
        }
}

/* By scans; `first` is the largest entry. 0 if fewer than k entries are above -inf. */
static int N(select_by_scans)(const T *x, size_t length, size_t k, T first, int32_t *chosen) {
    uint32_t bits[SCAN_LENGTH / LANES];
    size_t before = 0, count = 0, vectors = (length + LANES - 1) / LANES;
    T bound = first;
    for (;;) {
        if (!(bound > -INFINITY)) return 0;
        VT limit = V(set)(bound), below = V(set)(-INFINITY);
        count = 0;
        for (size_t v = 0; v < vectors; v++) {
            VT entry = N(entries)(x, v * LANES, length);
            VI at_least = (VI)(entry >= limit);
            bits[v] = VM(bits)(at_least);
            count += (size_t)__builtin_popcount(bits[v]);
            below = V(max)(V(select)(at_least, V(set)(-INFINITY), entry), below);
        }
        if (count >= k) break;
        before = count;
        bound = V(largest)(below);
    }
    N(choose)(x, bits, vectors, bound, count > k, k - before, chosen);
    return 1;
}

/* The same where the k-th largest entry is known. */
static int N(select_from)(const T *x, size_t length, size_t k, T bound, int32_t *chosen) {
    if (!(bound > -INFINITY)) return 0;
    uint32_t bits[SCAN_LENGTH / LANES];
    size_t count = 0, above = 0, vectors = (length + LANES - 1) / LANES;
    VT limit = V(set)(bound);
    for (size_t v = 0; v < vectors; v++) {
        bits[v] = VM(bits)((VI)(N(entries)(x, v * LANES, length) >= limit));
        count += (size_t)__builtin_popcount(bits[v]);
    }
    for (size_t i = 0; count > k && i < length; i++) above += x[i] > bound;
    N(choose)(x, bits, vectors, bound, count > k, k - above, chosen);
    return 1;
}

/* The k-th largest entry of each of LANES rows, from a list of the `slots` >= k largest so far, a row a lane: an entry goes down
 * the list, and each place keeps the larger. NaN is skipped; *odd: lanes that hold one. `block`: room for two blocks. */
RN_INLINE VT N(kth_of)(const int slots, const T *x, size_t stride, const T *bias, size_t length, size_t k, T *block, VI *odd) {
    VT top[LIST_LENGTH], lowest = V(set)(-INFINITY);
#pragma GCC unroll 8
    for (int j = 0; j < slots; j++) top[j] = lowest;
    VI nan = {0};
    for (size_t i = 0; i < length; i += LANES) {
        const T *from = x + i;
        size_t step = stride;
        /* The rows that come next: the order in which this one's are read is none that a processor foresees. */
        for (size_t row = LANES; row < 2 * LANES; row++) __builtin_prefetch(from + row * stride);
        if (bias || length - i < LANES) {
            VT added = bias ? N(entries)(bias, i, length) : V(set)(0);
            T *copy = block + LANES * LANES;
            for (size_t row = 0; row < LANES; row++)
                V(store)(copy + row * LANES, N(entries)(from + row * stride, 0, length - i) + added);
            from = copy;
            step = LANES;
        }
        N(transpose_lanes)(from, (ptrdiff_t)step, block, LANES);
        for (size_t column = 0; column < LANES; column++) {
            VT entry = V(load)(block + column * LANES);
            nan |= (VI)(entry != entry);
            entry = V(max)(entry, lowest);
#pragma GCC unroll 8
            for (int j = 0; j < slots; j++) {
                VT larger = V(max)(entry, top[j]);
                entry = V(min)(entry, top[j]);
                top[j] = larger;
            }
        }
    }
    *odd = nan;
    VT found = top[0];
#pragma GCC unroll 8
    for (int j = 1; j < slots; j++)
        if ((size_t)j < k) found = top[j];
    return found;
}
/* Whether each row of LANES has an odd entry, and its k-th largest; k <= LIST_LENGTH. */
static void N(kth_largest)(const T *x, size_t stride, const T *bias, size_t length, size_t k, T *block, T *bounds, uint32_t *odd) {
    VI nan;
    VT found = k <= 2   ? N(kth_of)(2, x, stride, bias, length, k, block, &nan)
               : k <= 4 ? N(kth_of)(4, x, stride, bias, length, k, block, &nan)
                        : N(kth_of)(LIST_LENGTH, x, stride, bias, length, k, block, &nan);
    V(store)(bounds, found);
    *odd = VM(bits)(nan);
}

static size_t N(block_size)(size_t length) { return length <= 4096 ? 64 : length <= 65536 ? 256 : 1024; }

/* By a tournament; best and from: one a block. 0 if fewer than k entries are above -inf. */
static int N(select_by_tournament)(const T *x, size_t length, size_t k, int32_t *chosen, T *best, int32_t *from,
                                   int *nan) {
    size_t size = N(block_size)(length), blocks = (length + size - 1) / size;
    *nan = 0;
    for (size_t b = 0; b < blocks; b++) {
        int odd;
        best[b] = N(largest_of)(x + b * size, length - b * size < size ? length - b * size : size, &odd);
        from[b] = (int32_t)(b * size);
        *nan |= odd;
    }
    for (size_t taken = 0; taken < k; taken++) {
        int odd;
        T value = N(largest_of)(best, blocks, &odd);
        size_t b = N(find)(best, 0, blocks, value);
        if (!(value > -INFINITY)) return 0;
        size_t at = b * size, end = length - at < size ? length : at + size;
        size_t i = N(find)(x, (size_t)from[b], end, value);
        chosen[taken] = (int32_t)i;
        if (N(find)(x, i + 1, end, value) < end) {
            from[b] = (int32_t)i + 1;
        } else {
            best[b] = N(largest_below)(x + at, end - at, value);
            from[b] = (int32_t)at;
        }
    }
    return 1;
}

/* Entry by entry, for rows that have not k entries above -inf: -inf comes before NaN. */
static void N(select_the_rest)(const T *x, size_t length, size_t k, int32_t *chosen, uint8_t *taken) {
    memset(taken, 0, length);
    for (size_t n = 0; n < k; n++) {
        size_t best = length;
        for (size_t i = 0; i < length; i++)
            if (!taken[i] && (best == length || x[i] > x[best] || (x[best] != x[best] && x[i] == x[i]))) best = i;
        taken[best] = 1;
        chosen[n] = (int32_t)best;
    }
}

/* Indices of the k largest; returns whether the row holds NaN. `taken` is scratch of `length` bytes. */
static int N(select_row)(const T *x, size_t length, size_t k, int32_t *chosen, uint8_t *taken, T *best, int32_t *from) {
    int nan, done;
    if (k == length) {
        N(largest_of)(x, length, &nan);
        for (size_t i = 0; i < length; i++) chosen[i] = (int32_t)i;
        return nan;
    }
    if (length <= 128 || (k <= 4 && length <= SCAN_LENGTH)) {
        T first = N(largest_of)(x, length, &nan);
        done = N(select_by_scans)(x, length, k, first, chosen);
    } else {
        done = N(select_by_tournament)(x, length, k, chosen, best, from, &nan);
    }
    if (!done) N(select_the_rest)(x, length, k, chosen, taken);
    return nan;
}

/* ---- softmax over the selected ---------------------------------------------------------------------------------- */

static void N(fill_row)(T *y, size_t length, T value) {
    VT all = V(set)(value);
    size_t i = 0;
    for (; i + LANES <= length; i += LANES) V(store)(y + i, all);
    if (i < length) V(store_part)(y + i, length - i, all);
}

/* What a thread needs for a row. */
typedef struct {
    T *raised, *best, *block;
    int32_t *row, *from;
    T bounds[LANES]; /* of LANES rows the k-th largest entry each */
    uint32_t odd;    /* which of them hold NaN */
} N(selector);

static int N(selector_init)(N(selector) *s, size_t length, size_t top_k) {
    size_t blocks = length / N(block_size)(length) + 1;
    s->raised = rn_scratch(1, (length + blocks + LANES + 2 * LANES * LANES) * sizeof(T));
    s->row = rn_scratch(2, (top_k + blocks) * sizeof(int32_t));
    if (s->raised == NULL || s->row == NULL) return -1;
    s->best = s->raised + length;
    s->block = s->best + blocks + LANES;
    s->from = s->row + top_k;
    return 0;
}

/* Selected sums of one row to packed[0], packed[step], ...; all NaN if a sum anywhere in the row is. `bounded`: the row's place in
 * s->bounds, or -1. */
static void N(pack_row)(const N(selector) *s, const T *x, const T *bias, int odd_bias, int with_bias, int bounded, uint8_t *mask,
                        int32_t *chosen, T *packed, size_t step, size_t length, size_t top_k) {
    if (bias && (with_bias || odd_bias))
        for (size_t i = 0; i < length; i++) s->raised[i] = x[i] + bias[i];
    const T *judged = with_bias && bias ? s->raised : x;
    int nan;
    if (bounded >= 0) {
        nan = (int)(s->odd >> bounded & 1);
        if (!N(select_from)(judged, length, top_k, s->bounds[bounded], s->row))
            N(select_the_rest)(judged, length, top_k, s->row, mask);
    } else {
        nan = N(select_row)(judged, length, top_k, s->row, mask, s->best, s->from);
    }
    for (size_t i = 0; odd_bias && i < length; i++) nan |= s->raised[i] != s->raised[i];
    for (size_t j = 0; j < top_k; j++) {
        int32_t i = s->row[j];
        chosen[j * step] = i;
        packed[j * step] = nan ? NAN : bias ? x[i] + bias[i] : x[i];
    }
}

static void N(spread_row)(const int32_t *chosen, const T *packed, size_t step, T *weights, uint8_t *mask, size_t length,
                          size_t top_k) {
    int nan = packed[0] != packed[0];
    N(fill_row)(weights, length, nan ? NAN : 0);
    memset(mask, 0, length);
    for (size_t j = 0; j < top_k; j++) {
        mask[chosen[j * step]] = 1;
        weights[chosen[j * step]] = packed[j * step];
    }
}

static int N(topk_softmax)(const T *scores, size_t stride, const T *bias, T *weights, uint8_t *mask, int32_t *chosen,
                           T *packed, size_t rows, size_t length, size_t top_k, int with_bias) {
    int odd_bias = 0, failed = 0;
    for (size_t i = 0; bias && i < length; i++) odd_bias |= !isfinite(bias[i]);
    size_t most = chunk_rows(length), chunks = (rows + most - 1) / most;
    int threads = rn_threads(chunks, (double)rows * (15.0 + 0.3 * (double)length + 3.0 * (double)top_k));
    RN_PARALLEL(threads) {
        RN_SHARE(chunks, first, last);
        N(selector) s;
        size_t kept = most * top_k;
        char *own = chosen ? NULL : rn_scratch(3, kept * (sizeof(T) + sizeof(int32_t)));
        if (N(selector_init)(&s, length, top_k) || (!chosen && own == NULL)) failed = 1, last = first;
        for (size_t chunk = first; chunk < last; chunk++) {
            size_t begin = chunk * most, count = rows - begin < most ? rows - begin : most;
            T *values = chosen ? packed + begin * top_k : (T *)own;
            int32_t *where = chosen ? chosen + begin * top_k : (int32_t *)(own + kept * sizeof(T));
            size_t bounded = top_k <= LIST_LENGTH && top_k < length && length <= SCAN_LENGTH ? count / LANES * LANES : 0;
            for (size_t r = 0; r < count; r++) {
                const T *x = scores + (begin + r) * stride;
                if (r < bounded && r % LANES == 0)
                    N(kth_largest)(x, stride, with_bias ? bias : NULL, length, top_k, s.block, s.bounds, &s.odd);
                N(pack_row)(&s, x, bias, odd_bias, with_bias, r < bounded ? (int)(r % LANES) : -1,
                            mask + (begin + r) * length, where + r, values + r, count, length, top_k);
            }
            if (rn_softmax()->N(softmax_columns)(values, values, 1, top_k, count)) failed = 1;
            for (size_t r = 0; r < count; r++)
                N(spread_row)(where + r, values + r, count, weights + (begin + r) * length, mask + (begin + r) * length,
                              length, top_k);
        }
    }
    return failed ? -1 : 0;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* One row; sums: NULL, or its cotangents are added there. */
static void N(topk_backward_row)(const T *g, const int32_t *chosen, const T *y, size_t step, T *dx, double *sums,
                                 size_t length, size_t top_k) {
    if (y[0] != y[0]) {
        N(fill_row)(dx, length, NAN);
        for (size_t i = 0; sums && i < length; i++) sums[i] = NAN;
        return;
    }
    /* A number taken off all of g changes nothing; the one at the largest y leaves nothing to cancel. */
    size_t top = 0;
    for (size_t j = 1; j < top_k; j++)
        if (y[j * step] > y[top * step]) top = j;
    T base = g[chosen[top * step]];
    double mean = 0;
    for (size_t j = 0; j < top_k; j++) mean += (double)y[j * step] * ((double)g[chosen[j * step]] - (double)base);
    N(fill_row)(dx, length, 0);
    for (size_t j = 0; j < top_k; j++) {
        size_t i = (size_t)chosen[j * step];
        dx[i] = (T)((double)y[j * step] * (((double)g[i] - (double)base) - mean));
        if (sums) sums[i] += (double)dx[i];
    }
}

static int N(topk_softmax_backward)(const T *dweights, const int32_t *chosen, const T *packed, T *dscores, T *dbias,
                                    size_t rows, size_t length, size_t top_k) {
    size_t most = chunk_rows(length), chunks = (rows + most - 1) / most;
    size_t parts = chunks < BIAS_PARTS ? chunks : BIAS_PARTS;
    double *sums = dbias ? rn_block_alloc((parts + 1) * length * sizeof(double)) : NULL;
    if (dbias && sums == NULL) return -1;
    if (sums) memset(sums, 0, (parts + 1) * length * sizeof(double));
    int threads = rn_threads(parts, (double)rows * (10.0 + 0.2 * (double)length + 3.0 * (double)top_k));
    RN_PARALLEL(threads) {
        RN_SHARE(parts, begin, end);
        for (size_t part = begin; part < end; part++) {
            size_t first, last;
            rn_range(chunks, parts, part, &first, &last);
            last = last * most < rows ? last * most : rows;
            for (size_t row = first * most; row < last; row++) {
                size_t chunk = row / most * most, step = rows - chunk < most ? rows - chunk : most;
                size_t at = chunk * top_k + (row - chunk);
                N(topk_backward_row)(dweights + row * length, chosen + at, packed + at, step, dscores + row * length,
                                     sums ? sums + (part + 1) * length : NULL, length, top_k);
            }
        }
    }
    for (size_t part = 1; sums && part <= parts; part++)
        for (size_t i = 0; i < length; i++) sums[i] += sums[part * length + i];
    for (size_t i = 0; sums && i < length; i++) dbias[i] = (T)sums[i];
    rn_block_free(sums);
    return 0;
}

/* ---- boxes ------------------------------------------------------------------------------------------------------ */

static int N(box_iou)(const double *a, size_t n, const double *b, size_t m, double offset, T *iou) {
    int threads = rn_threads(n, 2.0 * (double)n * (double)m);
    double *areas = rn_block_alloc((m + 1) * sizeof(double));
    if (areas == NULL) return -1;
    box_areas(b, m, offset, areas);
    boxes others = {b, b + m, b + 2 * m, b + 3 * m, areas};
    RN_PARALLEL(threads) {
        RN_SHARE(n, first, last);
        for (size_t row = first; row < last; row++) {
            box one = {a[row], a[n + row], a[2 * n + row], a[3 * n + row], 0};
            one.area = ((one.x2 - one.x1) + offset) * ((one.y2 - one.y1) + offset);
            for (size_t i = 0; i < m; i += VF64) {
                size_t lanes = m - i < VF64 ? m - i : VF64;
                double found[VF64];
                vf64_store(found, overlaps(one, others, i, lanes, offset));
                for (size_t lane = 0; lane < lanes; lane++) iou[row * m + i + lane] = (T)found[lane];
            }
        }
    }
    rn_block_free(areas);
    return 0;
}
