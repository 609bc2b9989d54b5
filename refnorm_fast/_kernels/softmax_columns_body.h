/* Part of softmax_body.h: softmax and its relatives along an axis that is not the last.
 *
 * Arrays are (outer, length, inner), C-contiguous. A lane of a vector is one column of `length` entries, so nothing is summed
 * across lanes; columns are taken in strips of a few vectors. Rows of a strip are `inner` entries apart, often a power of two, so that
 * they meet in the same sets of a cache and drive each other out: a strip is copied to scratch while its largest entries
 * are looked for, and the other passes read the copy. */

#define STRIP_VECTORS 4
/* A strip's copy stays in the second-level cache. */
#define STRIP_BYTES ((size_t)256 << 10)
/* Rows that a strip's first pass fetches ahead: the processor does not by itself follow steps of a page and more. */
#define ROWS_AHEAD 8

typedef struct {
    const T *x, *g;
    T *y;
    double *largest, *log_sum; /* one a column */
    const double *factor;
    size_t length, inner, width; /* width: columns of a strip */
    int copied, stream;
} N(columns);

/* A strip's entries as the passes after the first read them. */
typedef struct {
    const T *data;
    size_t stride;
} N(strip);

RN_INLINE VT N(lanes_at)(const T *x, size_t lanes, int PART) { return PART ? V(load_part)(x, lanes, 0) : V(load)(x); }

RN_INLINE void N(read_rows)(const T *x, size_t inner, size_t length, size_t vectors, size_t last_lanes, T *copy,
                            size_t width, VT *largest, int PART) {
    for (size_t row = 0; row < length; row++) {
        const T *from = x + row * inner;
        for (size_t v = 0; v < vectors; v++) {
            __builtin_prefetch(from + ROWS_AHEAD * inner + v * LANES);
            VT value = N(lanes_at)(from + v * LANES, last_lanes, PART && v + 1 == vectors);
            largest[v] = V(max)(value, largest[v]);
            if (copy) V(store)(copy + row * width + v * LANES, value);
        }
    }
}

/* First pass over `count` columns from x: their largest entries (NaN is skipped), and the copy to `scratch` if the plan has one. */
static N(strip) N(read_strip)(const N(columns) *c, const T *x, size_t count, T *scratch, VT *largest) {
    VT found[STRIP_VECTORS];
    T *copy = c->copied ? scratch : NULL;
    size_t vectors = (count + LANES - 1) / LANES, last = count - (vectors - 1) * LANES;
    for (size_t v = 0; v < STRIP_VECTORS; v++) found[v] = V(set)(-INFINITY);
    if (count == STRIP_VECTORS * LANES)
        N(read_rows)(x, c->inner, c->length, STRIP_VECTORS, LANES, copy, c->width, found, 0);
    else
        N(read_rows)(x, c->inner, c->length, vectors, last, copy, c->width, found, 1);
    for (size_t v = 0; v < vectors; v++) largest[v] = found[v];
    return copy ? (N(strip)){copy, c->width} : (N(strip)){x, c->inner};
}

typedef void N(strip_function)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch);

/* Calls `function` for every strip: `at` is the index of its first entry, `column` that of its first column. `copies`: how many strips
 * it keeps in scratch. 0, or -1: no memory. */
static int N(each_strip)(N(columns) c, size_t outer, size_t copies, double nanoseconds, N(strip_function) *function) {
    size_t vectors = STRIP_VECTORS;
    while (vectors > 1 && copies * c.length * vectors * REFNORM_VECTOR_BYTES > STRIP_BYTES) vectors /= 2;
    size_t bytes = copies * c.length * vectors * REFNORM_VECTOR_BYTES;
    c.width = vectors * LANES;
    c.copied = c.inner > c.width && bytes <= 2 * STRIP_BYTES;
    c.stream = c.y != NULL && c.y != c.x && c.inner % LANES == 0 && (uintptr_t)c.y % REFNORM_VECTOR_BYTES == 0 &&
               outer * c.length * c.inner * sizeof(T) > rn_cache_bytes() / 2;
    size_t strips = (c.inner + c.width - 1) / c.width;
    int threads = rn_threads(outer * strips, nanoseconds * (double)(outer * c.length * c.inner)), failed = 0;
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

/* Runs STATEMENT(lanes, PART) for each vector v of a strip of `count` columns. */
#define EACH_VECTOR(count, STATEMENT)                                              \
    for (size_t v = 0; v * LANES < (count); v++) {                                 \
        size_t lanes_ = (count) - v * LANES < LANES ? (count) - v * LANES : LANES; \
        if (lanes_ == LANES)                                                       \
            STATEMENT(LANES, 0);                                                   \
        else                                                                       \
            STATEMENT(lanes_, 1);                                                  \
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
static void N(lane_totals)(const N(lane_sum) *sum, N(total) *totals) {
    double low[VF64], high[VF64];
    vf64_store(low, sum->low);
    vf64_store(high, sum->high);
    for (size_t lane = 0; lane < LANES; lane++)
        totals[lane] = WIDE ? (N(total)){low[lane % VF64], high[lane % VF64]}
                            : (N(total)){lane < VF64 ? low[lane] : high[lane % VF64], 0};
}

/* Sum of the column's exponentials. EXCLUDE: without the entries equal to the largest, which are counted (negatively) in *equal. */
RN_INLINE N(lane_sum) N(column_sum)(const T *x, size_t stride, size_t length, size_t lanes, const N(lane_scaling) *s,
                                    VI *equal, int EXCLUDE, int PART) {
    N(lane_sum) sum = {{0}, {0}};
    VI found = {0};
    VT raw[WAYS], entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
    size_t row = 0;
    while (row < length) {
        const int whole = length - row >= WAYS;
        const int ways = whole ? WAYS : 1;
        for (int k = 0; k < ways; k++) raw[k] = N(lanes_at)(x + (row + (size_t)k) * stride, lanes, PART);
        for (int k = 0; k < ways; k++) entry[k] = raw[k] - s->shift;
        if (whole)
            N(exp_parts)(entry, s->floor, s->offset, p, rest, power, WAYS, 0);
        else
            N(exp_parts)(entry, s->floor, s->offset, p, rest, power, 1, 0);
        for (int k = 0; EXCLUDE && k < ways; k++) {
            VI same = (VI)(raw[k] == s->largest);
            power[k] = (VT)((VI)power[k] & ~same);
            found += same;
        }
        for (int k = 0; k < ways; k++) N(lane_add_product)(&sum, power[k], p[k]);
        row += (size_t)ways;
    }
    if (EXCLUDE) *equal = found;
    return sum;
}

typedef struct {
    VT high, low;
} N(lane_factor);

static N(lane_factor) N(lane_reciprocal)(const N(lane_sum) *sum, const N(lane_scaling) *s) {
    N(total) totals[LANES];
    T high[LANES], low[LANES];
    N(lane_totals)(sum, totals);
    for (size_t lane = 0; lane < LANES; lane++) {
        N(factor) f = N(reciprocal)(totals[lane]);
        high[lane] = f.high, low[lane] = f.low;
    }
    return (N(lane_factor)){V(select)(s->finite, V(load)(high), V(set)(NAN)), V(load)(low)};
}

/* y = softmax * factor for one vector of columns, minus which `g - ` is taken if g is not NULL */
RN_INLINE void N(column_scale)(N(strip) x, const T *g, size_t g_stride, T *y, size_t inner, size_t length, size_t lanes,
                               const N(lane_scaling) *s, N(lane_factor) f, int STREAM, int PART) {
    VT entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
    size_t row = 0;
    while (row < length) {
        const int whole = length - row >= WAYS;
        const int ways = whole ? WAYS : 1;
        for (int k = 0; k < ways; k++)
            entry[k] = N(lanes_at)(x.data + (row + (size_t)k) * x.stride, lanes, PART) - s->shift;
        if (whole)
            N(exp_parts)(entry, s->floor, s->offset, p, rest, power, WAYS, 0);
        else
            N(exp_parts)(entry, s->floor, s->offset, p, rest, power, 1, 0);
        for (int k = 0; k < ways; k++) {
            VT value = power[k] * (f.high + V(fma)(p[k], f.high, f.low));
            if (g) value = N(lanes_at)(g + (row + (size_t)k) * g_stride, lanes, PART) - value;
            N(put_lanes)(y + (row + (size_t)k) * inner, lanes, value, STREAM, PART);
        }
        row += (size_t)ways;
    }
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static void N(softmax_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    (void)column;
    VT largest[STRIP_VECTORS];
    N(strip) strip = N(read_strip)(c, c->x + at, count, scratch, largest);
#define ONE(lanes, PART)                                                                                             \
    do {                                                                                                             \
        N(strip) from = {strip.data + v * LANES, strip.stride};                                                      \
        T *to = c->y + at + v * LANES;                                                                               \
        N(lane_scaling) s = N(lane_scaling_for)(largest[v]);                                                         \
        N(lane_sum) sum = N(column_sum)(from.data, from.stride, c->length, lanes, &s, NULL, 0, PART);                \
        N(lane_factor) f = N(lane_reciprocal)(&sum, &s);                                                             \
        if (c->stream)                                                                                               \
            N(column_scale)(from, NULL, 0, to, c->inner, c->length, lanes, &s, f, 1, PART);                          \
        else                                                                                                         \
            N(column_scale)(from, NULL, 0, to, c->inner, c->length, lanes, &s, f, 0, PART);                          \
    } while (0)
    EACH_VECTOR(count, ONE)
#undef ONE
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
    vf64_store(log_sum, vf64_select(s->finite, log_of_count_and_rest(count, sums, s->n_ref, raw_top), top));
#else
    vf32 count = -vf32_from_vi32(equal);
    vf64 low = log_of_count_and_rest(vf64_low(count), rest->low * unit, vf64_low(s->n_ref), vf64_low(raw_top));
    vf64 high = log_of_count_and_rest(vf64_high(count), rest->high * unit, vf64_high(s->n_ref), vf64_high(raw_top));
    /* NaN in `top` marks the lanes without a logarithm. */
    vf64_store(largest, vf64_low(top));
    vf64_store(largest + VF64, vf64_high(top));
    vf64_store(log_sum, low + 0.0 * vf64_low(top));
    vf64_store(log_sum + VF64, high + 0.0 * vf64_high(top));
#endif
}

static void N(log_softmax_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    VT tops[STRIP_VECTORS];
    double largest[STRIP_VECTORS * LANES], log_sum[STRIP_VECTORS * LANES];
    N(strip) strip = N(read_strip)(c, c->x + at, count, scratch, tops);
#define SUBTRACT(lanes, STREAM, PART)                                                                     \
    for (size_t row = 0; row < c->length; row++) {                                                        \
        VT value = (N(lanes_at)(from + row * strip.stride, lanes, PART) - top) - sum_log;                 \
        N(put_lanes)(c->y + at + row * c->inner + v * LANES, lanes, value, STREAM, PART);                 \
    }
#define ONE(lanes, PART)                                                                                  \
    do {                                                                                                  \
        const T *from = strip.data + v * LANES;                                                           \
        N(lane_scaling) s = N(lane_scaling_for)(tops[v]);                                                 \
        VI equal;                                                                                         \
        N(lane_sum) rest = N(column_sum)(from, strip.stride, c->length, lanes, &s, &equal, 1, PART);      \
        N(lane_stats)(&rest, equal, &s, largest + v * LANES, log_sum + v * LANES);                        \
        if (c->y) {                                                                                       \
            T narrow[LANES];                                                                              \
            for (size_t lane = 0; lane < LANES; lane++) narrow[lane] = (T)log_sum[v * LANES + lane];      \
            VT top = s.largest, sum_log = V(load)(narrow);                                                \
            if (c->stream)                                                                                \
                SUBTRACT(lanes, 1, PART)                                                                  \
            else                                                                                          \
                SUBTRACT(lanes, 0, PART)                                                                  \
        }                                                                                                 \
    } while (0)
    EACH_VECTOR(count, ONE)
#undef ONE
#undef SUBTRACT
    if (c->largest) {
        memcpy(c->largest + column, largest, count * sizeof(double));
        memcpy(c->log_sum + column, log_sum, count * sizeof(double));
    }
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
    T tops[LANES] = {0}, high[LANES] = {0}, low[LANES] = {0};
    for (size_t lane = 0; lane < lanes; lane++) {
        N(scaling) one;
        N(factor) f = N(stats_factor)(largest[lane], log_sum[lane], weight[lane], &one);
        tops[lane] = isfinite(largest[lane]) ? (T)largest[lane] : 0;
        high[lane] = f.high, low[lane] = f.low;
    }
    *s = N(lane_scaling_for)(V(load)(tops));
    return (N(lane_factor)){V(load)(high), V(load)(low)};
}

static void N(from_stats_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    (void)scratch;
#define ONE(lanes, PART)                                                                                             \
    do {                                                                                                             \
        N(strip) from = {c->x + at + v * LANES, c->inner};                                                           \
        size_t first = column + v * LANES;                                                                           \
        N(lane_scaling) s;                                                                                           \
        N(lane_factor) f =                                                                                           \
            N(lane_stats_factor)(c->largest + first, c->log_sum + first, c->factor + first, lanes, &s);              \
        N(column_scale)(from, NULL, 0, c->y + at + v * LANES, c->inner, c->length, lanes, &s, f, 0, PART);           \
    } while (0)
    EACH_VECTOR(count, ONE)
#undef ONE
}
static int N(softmax_from_stats_columns)(const T *x, T *out, size_t outer, size_t length, size_t inner,
                                         const double *largest, const double *log_sum, const double *factor) {
    N(columns) c = {.x = x, .y = out, .length = length, .inner = inner, .factor = factor};
    c.largest = (double *)largest, c.log_sum = (double *)log_sum; /* only read */
    return N(each_strip)(c, outer, 0, NS_EXP, N(from_stats_strip));
}

/* First pass of the softmax's backward: each column's cotangent at its largest y. Both strips are copied, g behind y. */
RN_INLINE void N(read_pairs)(const N(columns) *c, size_t at, size_t lanes, size_t v, T *scratch, VT *base, int PART) {
    VT largest = V(set)(-INFINITY), found = {0};
    for (size_t row = 0; row < c->length; row++) {
        size_t i = at + row * c->inner + v * LANES;
        __builtin_prefetch(c->x + i + ROWS_AHEAD * c->inner);
        __builtin_prefetch(c->g + i + ROWS_AHEAD * c->inner);
        VT y = N(lanes_at)(c->x + i, lanes, PART), g = N(lanes_at)(c->g + i, lanes, PART);
        found = V(select)((VI)(y > largest), g, found);
        largest = V(max)(y, largest);
        if (c->copied) {
            V(store)(scratch + row * c->width + v * LANES, y);
            V(store)(scratch + (c->length + row) * c->width + v * LANES, g);
        }
    }
    *base = found;
}
RN_INLINE void N(softmax_backward_vector)(const N(columns) *c, N(strip) y, N(strip) g, T *dx, size_t lanes, VT base,
                                          int PART) {
    N(lane_sum) sum = {{0}, {0}};
    for (size_t row = 0; row < c->length; row++)
        N(lane_add)(&sum, N(lanes_at)(y.data + row * y.stride, lanes, PART) *
                              (N(lanes_at)(g.data + row * g.stride, lanes, PART) - base));
    N(total) totals[LANES];
    T means[LANES];
    N(lane_totals)(&sum, totals);
    for (size_t lane = 0; lane < LANES; lane++) means[lane] = (T)(totals[lane].high + totals[lane].low);
    VT mean = V(load)(means);
    for (size_t row = 0; row < c->length; row++) {
        VT value = N(lanes_at)(y.data + row * y.stride, lanes, PART) *
                   ((N(lanes_at)(g.data + row * g.stride, lanes, PART) - base) - mean);
        N(put_lanes)(dx + row * c->inner, lanes, value, 0, PART);
    }
}
static void N(softmax_backward_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    (void)column;
    VT base[STRIP_VECTORS];
#define READ(lanes, PART) N(read_pairs)(c, at, lanes, v, scratch, &base[v], PART)
    EACH_VECTOR(count, READ)
#undef READ
    N(strip) y = {c->x + at, c->inner}, g = {c->g + at, c->inner};
    if (c->copied) y = (N(strip)){scratch, c->width}, g = (N(strip)){scratch + c->length * c->width, c->width};
#define ONE(lanes, PART)                                                                                             \
    N(softmax_backward_vector)(c, (N(strip)){y.data + v * LANES, y.stride}, (N(strip)){g.data + v * LANES, g.stride}, \
                               c->y + at + v * LANES, lanes, base[v], PART)
    EACH_VECTOR(count, ONE)
#undef ONE
}
static int N(softmax_backward_columns)(const T *y, const T *g, T *dx, size_t outer, size_t length, size_t inner) {
    N(columns) c = {.x = y, .g = g, .y = dx, .length = length, .inner = inner};
    return N(each_strip)(c, outer, 2, NS_EXP, N(softmax_backward_strip));
}

/* dx = g - softmax(x) sum(g), from the stats; the strip's copy is of g. */
static void N(log_softmax_backward_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
#define ONE(lanes, PART)                                                                                             \
    do {                                                                                                             \
        const T *g = c->g + at + v * LANES;                                                                          \
        T *copy = c->copied ? scratch + v * LANES : NULL;                                                            \
        N(lane_sum) sum = {{0}, {0}};                                                                                \
        for (size_t row = 0; row < c->length; row++) {                                                               \
            VT value = N(lanes_at)(g + row * c->inner, lanes, PART);                                                 \
            __builtin_prefetch(g + (row + ROWS_AHEAD) * c->inner);                                                   \
            N(lane_add)(&sum, value);                                                                                \
            if (copy) V(store)(copy + row * c->width, value);                                                        \
        }                                                                                                            \
        N(total) totals[LANES];                                                                                      \
        double weight[LANES];                                                                                        \
        N(lane_totals)(&sum, totals);                                                                                \
        for (size_t lane = 0; lane < LANES; lane++) weight[lane] = totals[lane].high + totals[lane].low;             \
        size_t first = column + v * LANES;                                                                           \
        N(lane_scaling) s;                                                                                           \
        N(lane_factor) f = N(lane_stats_factor)(c->largest + first, c->log_sum + first, weight, lanes, &s);          \
        N(strip) from = {c->x + at + v * LANES, c->inner};                                                           \
        N(column_scale)(from, copy ? copy : g, copy ? c->width : c->inner, c->y + at + v * LANES, c->inner,          \
                        c->length, lanes, &s, f, 0, PART);                                                           \
    } while (0)
    EACH_VECTOR(count, ONE)
#undef ONE
}
static int N(log_softmax_backward_columns)(const T *x, const T *g, T *dx, size_t outer, size_t length, size_t inner,
                                           const double *largest, const double *log_sum) {
    N(columns) c = {.x = x, .g = g, .y = dx, .length = length, .inner = inner};
    c.largest = (double *)largest, c.log_sum = (double *)log_sum; /* only read */
    return N(each_strip)(c, outer, 1, 2 * NS_EXP, N(log_softmax_backward_strip));
}

#undef STRIP_VECTORS
#undef STRIP_BYTES
#undef ROWS_AHEAD
#undef EACH_VECTOR
