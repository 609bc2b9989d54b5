/* Part of softmax_body.h: softmax and its relatives along an axis that is not the last.
 *
 * Arrays are (outer, length, inner), C-contiguous. A lane of a vector is one column of `length` entries, so nothing is summed
 * across lanes. Columns are taken in strips; every pass over a strip goes row by row, so that memory is read and written in runs of
 * a strip's width, and what a column has come to is kept in a table of the strip's vectors. Rows of a strip are `inner` entries
 * apart, often a power of two, so that they meet in the same sets of a cache and drive each other out: a strip that fits is copied to
 * scratch by its first pass, and the other passes read the copy. */

/* Bytes of a strip's row at most: the table of its columns stays in the first-level cache. */
#define STRIP_ROW_BYTES 1024
#define STRIP_VECTORS (STRIP_ROW_BYTES / REFNORM_VECTOR_BYTES)
/* A strip's copy stays in the second-level cache. A strip that would have to be narrower than LEAST_ROW_BYTES for that
 * is read from memory in every pass: narrow runs cost more. */
#define STRIP_BYTES ((size_t)384 << 10)
#define LEAST_ROW_BYTES 256
/* Rows that a strip's first pass fetches ahead: the processor does not by itself follow steps of a page and more. */
#define ROWS_AHEAD 8

typedef struct {
    const T *x, *g;
    T *y;
    double *largest, *log_sum; /* one a column */
    const double *factor;
    const void *plan; /* NULL, or the temperature's */
    size_t length, inner, width, step; /* columns of a strip, and entries from row to row of its copy */
    int copied, stream;
} N(columns);

/* A strip's entries as the passes after the first read them. */
typedef struct {
    const T *data;
    size_t stride;
} N(strip);

RN_INLINE VT N(lanes_at)(const T *x, size_t lanes, int PART) { return PART ? V(load_part)(x, lanes, 0) : V(load)(x); }

/* Runs STATEMENT(lanes, PART) for each vector v of a row of `count` columns. */
#define EACH_VECTOR(count, STATEMENT)                                      \
    do {                                                                   \
        size_t v = 0;                                                      \
        for (; (v + 1) * LANES <= (count); v++) STATEMENT(LANES, 0);       \
        if (v * LANES < (count)) STATEMENT((count) - v * LANES, 1);        \
    } while (0)
/* Runs STATEMENT(lanes, PART) for each vector v of `rows_` rows from `row` on: WAYS at a time, and the rest one by one. */
#define EACH_ROWS(length, count, STATEMENT)                                \
    do {                                                                   \
        size_t row = 0;                                                    \
        for (; row + WAYS <= (length); row += WAYS) {                      \
            const int rows_ = WAYS;                                        \
            EACH_VECTOR(count, STATEMENT);                                 \
        }                                                                  \
        for (; row < (length); row++) {                                    \
            const int rows_ = 1;                                           \
            EACH_VECTOR(count, STATEMENT);                                 \
        }                                                                  \
    } while (0)

/* First pass over `count` columns from x: their largest entries (NaN is skipped), and the copy to `scratch` if the plan has one. */
static N(strip) N(read_strip)(const N(columns) *c, const T *x, size_t count, T *scratch, VT *largest) {
    for (size_t v = 0; v * LANES < count; v++) largest[v] = V(set)(-INFINITY);
    for (size_t row = 0; row < c->length; row++) {
        const T *from = x + row * c->inner;
        T *copy = scratch + row * c->step;
#define ONE(lanes, PART)                                                   \
    do {                                                                   \
        __builtin_prefetch(from + ROWS_AHEAD * c->inner + v * LANES);      \
        VT value = N(lanes_at)(from + v * LANES, lanes, PART);             \
        largest[v] = V(max)(value, largest[v]);                            \
        if (c->copied) V(store)(copy + v * LANES, value);                  \
    } while (0)
        EACH_VECTOR(count, ONE);
#undef ONE
    }
    return c->copied ? (N(strip)){scratch, c->step} : (N(strip)){x, c->inner};
}

typedef void N(strip_function)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch);

/* Calls `function` for every strip: `at` is the index of its first entry, `column` that of its first column. `copies`: how many strips
 * it keeps in scratch. 0, or -1: no memory. */
static int N(each_strip)(N(columns) c, size_t outer, size_t copies, double nanoseconds, N(strip_function) *function) {
    size_t vectors = STRIP_VECTORS, needed = (c.inner + LANES - 1) / LANES, line = 64 / sizeof(T);
    int threads = rn_threads(outer * needed, nanoseconds * (double)(outer * c.length * c.inner)), failed = 0;
    if (vectors > needed) vectors = needed;
    /* enough strips for the threads; a column's result does not depend on its strip */
    while (vectors * REFNORM_VECTOR_BYTES > 2 * LEAST_ROW_BYTES && outer * ((needed + vectors - 1) / vectors) < 4 * (size_t)threads)
        vectors = (vectors + 1) / 2;
    size_t most = STRIP_BYTES / ((copies ? copies : 1) * c.length * REFNORM_VECTOR_BYTES);
    c.copied = copies > 0 && vectors < needed && most * REFNORM_VECTOR_BYTES >= LEAST_ROW_BYTES;
    if (c.copied && vectors > most) vectors = most;
    c.width = vectors * LANES;
    c.step = (c.width + line - 1) / line * line + line; /* an odd number of lines spreads the rows over the cache's sets */
    if (c.step / line % 2 == 0) c.step += line;
    size_t bytes = copies * c.length * c.step * sizeof(T);
    c.stream = c.y != NULL && c.y != c.x && c.inner % LANES == 0 && (uintptr_t)c.y % REFNORM_VECTOR_BYTES == 0 &&
               outer * c.length * c.inner * sizeof(T) > rn_cache_bytes() / 2;
    size_t strips = (c.inner + c.width - 1) / c.width;
    RN_PARALLEL(threads) {
        RN_SHARE(outer * strips, first, last);
        T *scratch = c.copied ? rn_scratch(0, bytes) : NULL;
        if (c.copied && scratch == NULL) failed = 1, last = first;
        for (size_t strip = first; strip < last; strip++) {
            size_t out = strip / strips, begin = strip % strips * c.width;
            size_t count = c.inner - begin < c.width ? c.inner - begin : c.width;
            function(&c, out * c.length * c.inner + begin, out * c.inner + begin, count, scratch);
        }
        vec_fence();
    }
    return failed ? -1 : 0;
}

/* Writes one vector of a row. */
RN_INLINE void N(put_lanes)(T *y, size_t lanes, VT value, int STREAM, int PART) {
    if (PART)
        V(store_part)(y, lanes, value);
    else if (STREAM)
        V(stream)(y, value);
    else
        V(store)(y, value);
}

/* ---- scaling and sums, lane by lane ----------------------------------------------------------------------------- */

/* As `scaling`, one a lane. Lanes without a finite largest entry count it as 0. */
typedef struct {
    VT largest, shift, floor, n_ref;
    VI offset, finite;
} N(lane_scaling);

RN_INLINE N(lane_scaling) N(lane_scaling_for)(VT largest) {
    N(lane_scaling) s;
    s.finite = (VI)(V(abs)(largest) < V(set)(INFINITY));
    s.largest = V(select)(s.finite, largest, V(set)(0));
    VI raw = (VI)(V(abs)(s.largest) < V(set)(RAW_LIMIT));
    s.shift = V(select)(raw, V(set)(0), s.largest);
    VT top = s.largest - s.shift;
    s.floor = top - DEPTH;
    VT exponent = V(exp_exponent)(top);
    s.n_ref = exponent - MAGIC;
    s.offset = ((VI){0} + (EXPONENT_BIAS + BIAS)) - ((VI)exponent - (VI)V(set)(MAGIC));
    return s;
}

/* Sums in twice the digits of T. */
typedef struct {
    vf64 low, high; /* float32: of the lower and the upper half of the lanes; float64: sum, error */
} N(lane_sum);

RN_INLINE void N(lane_add)(N(lane_sum) *sum, VT term) {
#if WIDE
    vf64 total = sum->low + term, shifted = total - sum->low;
    sum->high += (sum->low - (total - shifted)) + (term - shifted);
    sum->low = total;
#else
    sum->low += vf64_low(term);
    sum->high += vf64_high(term);
#endif
}
/* Adds (1 + p) power; float32 does not round it before. */
RN_INLINE void N(lane_add_product)(N(lane_sum) *sum, VT power, VT p) {
#if WIDE
    N(lane_add)(sum, power);
    N(lane_add)(sum, power * p);
#else
    vf64 low = vf64_low(power), high = vf64_high(power);
    sum->low = vf64_fma(low, vf64_low(p), sum->low + low);
    sum->high = vf64_fma(high, vf64_high(p), sum->high + high);
#endif
}
/* Adds the exponentials of ROWS entries of each column. EXCLUDE: without the entries equal to the largest, which are counted
 * (negatively) in *equal. `base`: NULL, or the temperature. */
RN_INLINE void N(add_exponentials)(const T *x, size_t stride, size_t lanes, const N(lane_scaling) *s, N(lane_sum) *sum,
                                   VI *equal, const N(tempered) *base, int ROWS, int EXCLUDE, int PART) {
    VT raw[WAYS], entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
    for (int k = 0; k < ROWS; k++) raw[k] = N(lanes_at)(x + (size_t)k * stride, lanes, PART);
    for (int k = 0; k < ROWS; k++) entry[k] = raw[k] - s->shift;
    N(exp_parts_of)(entry, s->floor, s->offset, base, p, rest, power, ROWS, 0);
    for (int k = 0; EXCLUDE && k < ROWS; k++) {
        VI same = (VI)(raw[k] == s->largest);
        power[k] = (VT)((VI)power[k] & ~same);
        *equal += same;
    }
    N(lane_sum) all = *sum;
    for (int k = 0; k < ROWS; k++) N(lane_add_product)(&all, power[k], p[k]);
    *sum = all;
}
/* The same for all rows of a strip; the sums start at 0. `equal`: NULL, or with EXCLUDE one a vector. */
RN_INLINE void N(sum_strip)(N(strip) x, size_t length, size_t count, const N(lane_scaling) *s, N(lane_sum) *sum, VI *equal,
                            const N(tempered) *base, int EXCLUDE) {
    for (size_t v = 0; v * LANES < count; v++) {
        sum[v] = (N(lane_sum)){{0}, {0}};
        if (EXCLUDE) equal[v] = (VI){0};
    }
#define ONE(lanes, PART)                                                                                          \
    N(add_exponentials)(x.data + row * x.stride + v * LANES, x.stride, lanes, s + v, sum + v, EXCLUDE ? equal + v : NULL, base, \
                        rows_, EXCLUDE, PART)
    EACH_ROWS(length, count, ONE);
#undef ONE
}

typedef struct {
    VT high, low;
} N(lane_factor);

RN_INLINE void N(store_sums)(const N(lane_sum) *sum, double *to) {
#if WIDE
    vf64_store(to, sum->low + sum->high);
#else
    vf64_store(to, sum->low);
    vf64_store(to + VF64, sum->high);
#endif
}

/* The sums as T. */
RN_INLINE VT N(lane_round)(const N(lane_sum) *sum) {
#if WIDE
    return sum->low + sum->high;
#else
    return vf32_from_vf64(sum->low, sum->high);
#endif
}

static N(lane_factor) N(lane_reciprocal)(const N(lane_sum) *sum, const N(lane_scaling) *s) {
    N(lane_factor) f;
#if WIDE
    double high[LANES], low[LANES];
    vf64_store(high, sum->low);
    vf64_store(low, sum->high);
    for (size_t lane = 0; lane < LANES; lane++) {
        N(factor) one = N(reciprocal)((N(total)){high[lane], low[lane]});
        high[lane] = one.high, low[lane] = one.low;
    }
    f.high = vf64_load(high), f.low = vf64_load(low);
#else
    vf64 low = 1.0 / sum->low, high = 1.0 / sum->high;
    f.high = vf32_from_vf64(low, high);
    f.low = vf32_from_vf64(low - vf64_low(f.high), high - vf64_high(f.high));
#endif
    f.high = V(select)(s->finite, f.high, V(set)(NAN));
    return f;
}

/* y = softmax * factor of ROWS entries of each column; if g is not NULL, g minus that */
RN_INLINE void N(scale_entries)(const T *x, size_t stride, const T *g, size_t g_stride, T *y, size_t inner, size_t lanes,
                                const N(lane_scaling) *s, const N(lane_factor) *f, int ROWS, int PART) {
    VT entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
    for (int k = 0; k < ROWS; k++) entry[k] = N(lanes_at)(x + (size_t)k * stride, lanes, PART) - s->shift;
    N(exp_parts)(entry, s->floor, s->offset, p, rest, power, ROWS, 0);
    for (int k = 0; k < ROWS; k++) {
        VT value = power[k] * (f->high + V(fma)(p[k], f->high, f->low));
        if (g) value = N(lanes_at)(g + (size_t)k * g_stride, lanes, PART) - value;
        N(put_lanes)(y + (size_t)k * inner, lanes, value, 0, PART);
    }
}
/* The same of `count` whole vectors of one row, side by side, past the caches: written row by row, since stores of several rows at a
 * time open as many pages of memory. */
RN_INLINE void N(stream_entries)(const T *x, const T *g, T *y, const N(lane_scaling) *s, const N(lane_factor) *f, int VECTORS) {
    VT entry[WAYS], floor[WAYS], p[WAYS], rest[WAYS], power[WAYS];
    VI offset[WAYS];
    for (int k = 0; k < VECTORS; k++) entry[k] = V(load)(x + (size_t)k * LANES) - s[k].shift;
    for (int k = 0; k < VECTORS; k++) floor[k] = s[k].floor, offset[k] = s[k].offset;
    N(exp_parts_each)(entry, floor, offset, NULL, p, rest, power, VECTORS, 0);
    for (int k = 0; k < VECTORS; k++) {
        VT value = power[k] * (f[k].high + V(fma)(p[k], f[k].high, f[k].low));
        if (g) value = V(load)(g + (size_t)k * LANES) - value;
        V(stream)(y + (size_t)k * LANES, value);
    }
}
RN_INLINE void N(stream_strip)(N(strip) x, N(strip) g, T *y, size_t inner, size_t length, size_t count,
                               const N(lane_scaling) *s, const N(lane_factor) *f, int MINUS) {
    size_t vectors = count / LANES;
    for (size_t row = 0; row < length; row++) {
        const T *from = x.data + row * x.stride, *up = MINUS ? g.data + row * g.stride : NULL;
        T *to = y + row * inner;
        size_t v = 0;
        for (; v + WAYS <= vectors; v += WAYS)
            N(stream_entries)(from + v * LANES, MINUS ? up + v * LANES : NULL, to + v * LANES, s + v, f + v, WAYS);
        for (; v < vectors; v++)
            N(stream_entries)(from + v * LANES, MINUS ? up + v * LANES : NULL, to + v * LANES, s + v, f + v, 1);
    }
}
RN_INLINE void N(scale_strip_in)(N(strip) x, N(strip) g, T *y, size_t inner, size_t length, size_t count,
                                 const N(lane_scaling) *s, const N(lane_factor) *f, int MINUS) {
#define ONE(lanes, PART)                                                                                               \
    N(scale_entries)(x.data + row * x.stride + v * LANES, x.stride, MINUS ? g.data + row * g.stride + v * LANES : NULL, \
                     g.stride, y + row * inner + v * LANES, inner, lanes, s + v, f + v, rows_, PART)
    EACH_ROWS(length, count, ONE);
#undef ONE
}
static void N(scale_strip)(const N(columns) *c, N(strip) x, size_t at, size_t count, const N(lane_scaling) *s,
                           const N(lane_factor) *f) {
    N(strip) none = {NULL, 0};
    if (c->stream)
        N(stream_strip)(x, none, c->y + at, c->inner, c->length, count, s, f, 0);
    else
        N(scale_strip_in)(x, none, c->y + at, c->inner, c->length, count, s, f, 0);
}

/* What a strip's columns have come to, one entry a vector. */
typedef struct {
    VT top[STRIP_VECTORS];
    N(lane_scaling) scaling[STRIP_VECTORS];
    N(lane_sum) sum[STRIP_VECTORS];
    N(lane_factor) factor[STRIP_VECTORS];
} N(strip_table);

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void N(softmax_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    (void)column;
    N(strip_table) t;
    N(strip) strip = N(read_strip)(c, c->x + at, count, scratch, t.top);
    for (size_t v = 0; v * LANES < count; v++) t.scaling[v] = N(lane_scaling_for)(t.top[v]);
    N(sum_strip)(strip, c->length, count, t.scaling, t.sum, NULL, NULL, 0);
    for (size_t v = 0; v * LANES < count; v++) t.factor[v] = N(lane_reciprocal)(&t.sum[v], &t.scaling[v]);
    N(scale_strip)(c, strip, at, count, t.scaling, t.factor);
}

static int N(softmax_columns)(const T *x, T *y, size_t outer, size_t length, size_t inner) {
    if (length == 1) return N(softmax)(x, 1, y, outer * inner, 1, RN_TWO_PASS);
    N(columns) c = {.x = x, .y = y, .length = length, .inner = inner};
    return N(each_strip)(c, outer, 1, 2 * NS_EXP, N(softmax_strip));
}

/* Each lane's largest + log_sum, NaN as in rows. */
static void N(lane_stats)(const N(lane_sum) *rest, VI equal, const N(lane_scaling) *s, double *largest,
                          double *log_sum) {
    VT raw_top = (VT)((VI)s->largest & (VI)(s->shift == 0));
    VT top = V(select)(s->finite, s->largest, V(set)(NAN));
    const vf64 unit = vf64_set(WIDE ? 0x1p-512 : 0x1p-64); /* 2^-BIAS */
#if WIDE
    vf64 count = -((vf64)(equal + (vi64)vf64_set(MAGIC)) - MAGIC), sums = (rest->low + rest->high) * unit;
    vf64_store(largest, top);
    vf64_store(log_sum, vf64_select(s->finite, log_of_count_and_rest(count, sums, s->n_ref, raw_top, WIDE), top));
#else
    vf32 count = -vf32_from_vi32(equal);
    vf64 low = log_of_count_and_rest(vf64_low(count), rest->low * unit, vf64_low(s->n_ref), vf64_low(raw_top), WIDE);
    vf64 high = log_of_count_and_rest(vf64_high(count), rest->high * unit, vf64_high(s->n_ref), vf64_high(raw_top), WIDE);
    /* NaN in `top` marks the lanes without a logarithm. */
    vf64_store(largest, vf64_low(top));
    vf64_store(largest + VF64, vf64_high(top));
    vf64_store(log_sum, low + 0.0 * vf64_low(top));
    vf64_store(log_sum + VF64, high + 0.0 * vf64_high(top));
#endif
}

/* z = (x - largest) - log_sum */
RN_INLINE void N(subtract_strip)(const N(columns) *c, N(strip) x, size_t at, size_t count, const VT *top, const VT *log,
                                 int STREAM) {
    for (size_t row = 0; row < c->length; row++) {
#define ONE(lanes, PART)                                                                                              \
    N(put_lanes)(c->y + at + row * c->inner + v * LANES, lanes,                                                       \
                 (N(lanes_at)(x.data + row * x.stride + v * LANES, lanes, PART) - top[v]) - log[v], STREAM, PART)
        EACH_VECTOR(count, ONE);
#undef ONE
    }
}
static void N(log_softmax_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    double largest[STRIP_VECTORS * LANES], log_sum[STRIP_VECTORS * LANES];
    N(strip_table) t;
    VI equal[STRIP_VECTORS];
    N(strip) strip = N(read_strip)(c, c->x + at, count, scratch, t.top);
    for (size_t v = 0; v * LANES < count; v++) t.scaling[v] = N(lane_scaling_for)(t.top[v]);
    N(sum_strip)(strip, c->length, count, t.scaling, t.sum, equal, NULL, 1);
    for (size_t v = 0; v * LANES < count; v++)
        N(lane_stats)(&t.sum[v], equal[v], &t.scaling[v], largest + v * LANES, log_sum + v * LANES);
    if (c->largest) {
        memcpy(c->largest + column, largest, count * sizeof(double));
        memcpy(c->log_sum + column, log_sum, count * sizeof(double));
    }
    if (c->y == NULL) return;
    VT log[STRIP_VECTORS];
    for (size_t v = 0; v * LANES < count; v++) {
        T narrow[LANES];
        for (size_t lane = 0; lane < LANES; lane++) narrow[lane] = (T)log_sum[v * LANES + lane];
        log[v] = V(load)(narrow);
        t.top[v] = t.scaling[v].largest;
    }
    c->stream ? N(subtract_strip)(c, strip, at, count, t.top, log, 1) : N(subtract_strip)(c, strip, at, count, t.top, log, 0);
}

static int N(log_softmax_columns)(const T *x, T *z, size_t outer, size_t length, size_t inner, double *largest,
                                  double *log_sum) {
    N(columns) c = {.x = x, .y = z, .length = length, .inner = inner, .largest = largest, .log_sum = log_sum};
    return N(each_strip)(c, outer, 1, 2 * NS_EXP, N(log_softmax_strip));
}

/* ---- from the stats, and backward ------------------------------------------------------------------------------- */

/* Scaling and factors with which the terms of `lanes` columns become weight * softmax. */
static N(lane_factor) N(lane_stats_factor)(const double *largest, const double *log_sum, const double *weight,
                                           size_t lanes, N(lane_scaling) *s) {
    double tops[LANES] = {0}, logs[LANES] = {0}, weights[LANES] = {0};
    T narrow[LANES];
    for (size_t lane = 0; lane < lanes; lane++)
        tops[lane] = largest[lane], logs[lane] = log_sum[lane], weights[lane] = weight[lane];
    for (size_t lane = 0; lane < LANES; lane++) narrow[lane] = (T)tops[lane];
    *s = N(lane_scaling_for)(V(load)(narrow));
    VT raw_top = (VT)((VI)s->largest & (VI)(s->shift == 0));
    const vf64 unit = vf64_set(WIDE ? 0x1p-512 : 0x1p-64); /* 2^-BIAS */
    N(lane_factor) f;
#if WIDE
    f.high = weighted_exp(vf64_load(weights) * unit, s->n_ref, raw_top, vf64_load(logs));
    f.low = vf64_set(0);
#else
    vf64 low = weighted_exp(vf64_load(weights) * unit, vf64_low(s->n_ref), vf64_low(raw_top), vf64_load(logs));
    vf64 high = weighted_exp(vf64_load(weights + VF64) * unit, vf64_high(s->n_ref), vf64_high(raw_top),
                             vf64_load(logs + VF64));
    f.high = vf32_from_vf64(low, high);
    f.low = vf32_from_vf64(low - vf64_low(f.high), high - vf64_high(f.high));
#endif
    f.high = V(select)(s->finite, f.high, V(set)(NAN));
    return f;
}

static void N(stats_table)(const N(columns) *c, size_t column, size_t count, const double *weight, N(strip_table) *t) {
    for (size_t v = 0; v * LANES < count; v++) {
        size_t first = v * LANES, lanes = count - first < LANES ? count - first : LANES;
        t->factor[v] = N(lane_stats_factor)(c->largest + column + first, c->log_sum + column + first, weight + first,
                                            lanes, &t->scaling[v]);
    }
}
static void N(from_stats_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    (void)scratch;
    N(strip_table) t;
    N(stats_table)(c, column, count, c->factor + column, &t);
    N(scale_strip)(c, (N(strip)){c->x + at, c->inner}, at, count, t.scaling, t.factor);
}
static int N(softmax_from_stats_columns)(const T *x, T *out, size_t outer, size_t length, size_t inner,
                                         const double *largest, const double *log_sum, const double *factor) {
    N(columns) c = {.x = x, .y = out, .length = length, .inner = inner, .factor = factor};
    c.largest = (double *)largest, c.log_sum = (double *)log_sum; /* only read */
    return N(each_strip)(c, outer, 0, NS_EXP, N(from_stats_strip));
}

/* ROWS entries of each column: y and g to `copy`, and the cotangent at the largest y so far. */
RN_INLINE void N(read_pair)(const N(columns) *c, size_t i, T *copy, size_t lanes, VT *largest, VT *base, int ROWS, int PART) {
    VT top = *largest, at_top = *base;
    for (int k = 0; k < ROWS; k++, i += c->inner, copy += c->step) {
        __builtin_prefetch(c->x + i + ROWS_AHEAD * c->inner);
        __builtin_prefetch(c->g + i + ROWS_AHEAD * c->inner);
        VT y = N(lanes_at)(c->x + i, lanes, PART), g = N(lanes_at)(c->g + i, lanes, PART);
        at_top = V(select)((VI)(y > top), g, at_top);
        top = V(max)(y, top);
        if (c->copied) {
            V(store)(copy, y);
            V(store)(copy + c->length * c->step, g);
        }
    }
    *largest = top, *base = at_top;
}
/* First pass of the softmax's backward: each column's cotangent at its largest y. Both strips are copied, g behind y. */
static void N(read_pairs)(const N(columns) *c, size_t at, size_t count, T *scratch, VT *largest, VT *base) {
    for (size_t v = 0; v * LANES < count; v++) largest[v] = V(set)(-INFINITY), base[v] = V(set)(0);
#define ONE(lanes, PART)                                                                                       \
    N(read_pair)(c, at + row * c->inner + v * LANES, scratch + row * c->step + v * LANES, lanes, largest + v, base + v, rows_, PART)
    EACH_ROWS(c->length, count, ONE);
#undef ONE
}
/* sum y (g - base) */
static void N(dot_strips)(N(strip) y, N(strip) g, size_t length, size_t count, const VT *base, N(lane_sum) *sum) {
    for (size_t v = 0; v * LANES < count; v++) sum[v] = (N(lane_sum)){{0}, {0}};
#define ONE(lanes, PART)                                                                                       \
    do {                                                                                                       \
        const T *from = y.data + row * y.stride + v * LANES, *up = g.data + row * g.stride + v * LANES;        \
        N(lane_sum) all = sum[v];                                                                              \
        for (int k = 0; k < rows_; k++, from += y.stride, up += g.stride)                                      \
            N(lane_add)(&all, N(lanes_at)(from, lanes, PART) * (N(lanes_at)(up, lanes, PART) - base[v]));      \
        sum[v] = all;                                                                                          \
    } while (0)
    EACH_ROWS(length, count, ONE);
#undef ONE
}
RN_INLINE void N(softmax_backward_rows)(const N(columns) *c, N(strip) y, N(strip) g, T *dx, size_t count, const VT *base,
                                        const VT *mean, int STREAM) {
    for (size_t row = 0; row < c->length; row++) {
#define ONE(lanes, PART)                                                                                        \
    N(put_lanes)(dx + row * c->inner + v * LANES, lanes,                                                        \
                 N(lanes_at)(y.data + row * y.stride + v * LANES, lanes, PART) *                                \
                     ((N(lanes_at)(g.data + row * g.stride + v * LANES, lanes, PART) - base[v]) - mean[v]),     \
                 STREAM, PART)
        EACH_VECTOR(count, ONE);
#undef ONE
    }
}
static void N(softmax_backward_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    (void)column;
    VT largest[STRIP_VECTORS], base[STRIP_VECTORS], mean[STRIP_VECTORS];
    N(lane_sum) sum[STRIP_VECTORS];
    N(read_pairs)(c, at, count, scratch, largest, base);
    N(strip) y = {c->x + at, c->inner}, g = {c->g + at, c->inner};
    if (c->copied) y = (N(strip)){scratch, c->step}, g = (N(strip)){scratch + c->length * c->step, c->step};
    N(dot_strips)(y, g, c->length, count, base, sum);
    for (size_t v = 0; v * LANES < count; v++) mean[v] = N(lane_round)(&sum[v]);
    if (c->stream)
        N(softmax_backward_rows)(c, y, g, c->y + at, count, base, mean, 1);
    else
        N(softmax_backward_rows)(c, y, g, c->y + at, count, base, mean, 0);
}
static int N(softmax_backward_columns)(const T *y, const T *g, T *dx, size_t outer, size_t length, size_t inner) {
    N(columns) c = {.x = y, .g = g, .y = dx, .length = length, .inner = inner};
    return N(each_strip)(c, outer, 2, NS_EXP, N(softmax_backward_strip));
}

/* dx = g - softmax(x) sum(g), from the stats; the strip's copy is of g. */
static void N(log_softmax_backward_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    N(strip_table) t;
    double weight[STRIP_VECTORS * LANES];
    for (size_t v = 0; v * LANES < count; v++) t.sum[v] = (N(lane_sum)){{0}, {0}};
#define ONE(lanes, PART)                                                                                    \
    do {                                                                                                    \
        const T *up = c->g + at + row * c->inner + v * LANES;                                               \
        T *copy = scratch + row * c->step + v * LANES;                                                      \
        N(lane_sum) all = t.sum[v];                                                                         \
        for (int k = 0; k < rows_; k++, up += c->inner, copy += c->step) {                                  \
            __builtin_prefetch(up + ROWS_AHEAD * c->inner);                                                 \
            VT value = N(lanes_at)(up, lanes, PART);                                                        \
            N(lane_add)(&all, value);                                                                       \
            if (c->copied) V(store)(copy, value);                                                           \
        }                                                                                                   \
        t.sum[v] = all;                                                                                     \
    } while (0)
    EACH_ROWS(c->length, count, ONE);
#undef ONE
    for (size_t v = 0; v * LANES < count; v++) N(store_sums)(&t.sum[v], weight + v * LANES);
    N(stats_table)(c, column, count, weight, &t);
    N(strip) x = {c->x + at, c->inner}, g = {c->g + at, c->inner};
    if (c->copied) g = (N(strip)){scratch, c->step};
    if (c->stream)
        N(stream_strip)(x, g, c->y + at, c->inner, c->length, count, t.scaling, t.factor, 1);
    else
        N(scale_strip_in)(x, g, c->y + at, c->inner, c->length, count, t.scaling, t.factor, 1);
}
static int N(log_softmax_backward_columns)(const T *x, const T *g, T *dx, size_t outer, size_t length, size_t inner,
                                           const double *largest, const double *log_sum) {
    N(columns) c = {.x = x, .g = g, .y = dx, .length = length, .inner = inner};
    c.largest = (double *)largest, c.log_sum = (double *)log_sum; /* only read */
    return N(each_strip)(c, outer, 1, 2 * NS_EXP, N(log_softmax_backward_strip));
}

#undef STRIP_ROW_BYTES
#undef STRIP_VECTORS
#undef STRIP_BYTES
#undef LEAST_ROW_BYTES
#undef ROWS_AHEAD
#undef EACH_VECTOR
#undef EACH_ROWS
