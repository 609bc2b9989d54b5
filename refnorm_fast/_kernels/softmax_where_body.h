/* Part of softmax_body.h: softmax and its relatives of x / temperature over the entries of a row that a mask leaves in.
 *
 * Neither the mask nor the division makes a copy: an entry left out is taken as -inf where it is loaded, and the temperature goes into
 * the reduction of the exponential's argument. What is left out is 0 (its logarithm -inf) also in rows of NaN, and in rows where
 * nothing is left in. */

/* Which entries take part, and the temperature. */
typedef struct {
    const rn_where *where;
    N(tempered) base;
    T reach; /* DEPTH in units of x */
    size_t length;
} N(plan);

static N(plan) N(plan_for)(const rn_where *where, size_t length) {
    N(plan) plan = {where, N(tempered_for)(where->temperature), (T)(DEPTH * where->temperature), length};
    return plan;
}
RN_INLINE const uint8_t *N(mask_of)(const N(plan) *plan, size_t row) {
    const rn_where *w = plan->where;
    return w->mask == NULL ? NULL : w->at ? w->mask + w->at[row] : w->mask + row * plan->length;
}

static T N(largest_where)(const T *x, const uint8_t *mask, size_t length) {
    if (mask == NULL) return N(largest)(x, length);
    VT a = V(set)(-INFINITY), b = a;
    size_t i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES) {
        a = V(max)(N(entry)(x, mask, i, 1), a);
        b = V(max)(N(entry)(x, mask, i + LANES, 1), b);
    }
    for (; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        a = V(max)(N(entry_part)(x, mask, i, left, -INFINITY, 1), a);
    }
    return V(largest)(V(max)(a, b));
}

static N(scaling) N(scaling_where)(T largest, const N(plan) *plan) {
    N(scaling) s;
    double raw = (double)largest / plan->where->temperature;
    s.shift = raw > -RAW_LIMIT && raw < RAW_LIMIT ? 0 : largest;
    T top = largest - s.shift;
    s.floor = top - plan->reach;
    s.n_ref = lrint((double)top / plan->where->temperature * 0x1.71547652b82fep+0);
    s.offset = (INT)(EXPONENT_BIAS + BIAS - s.n_ref);
    return s;
}

/* n_ref ln2 - (largest - shift) / temperature, to the last digits of float64: the difference of two large numbers */
static double N(exponent_where)(T largest, const N(scaling) *s, const N(plan) *plan) {
    double n = (double)s->n_ref, top = (double)largest - (double)s->shift;
#if WIDE
    return fma(n, plan->base.low, fma(n, plan->base.high, -top)) / plan->where->temperature;
#else
    return (n * plan->base.step - top) / plan->where->temperature;
#endif
}

/* `inside` for the entries that take part, `outside` for the others */
static void N(fill_where)(T *y, const uint8_t *mask, size_t length, T inside, T outside) {
    for (size_t i = 0; i < length; i++) y[i] = mask == NULL || mask[i] ? inside : outside;
}

/* y = exp(x / temperature) * factor; g: NULL, or y = g / temperature minus that. 0 for entries left out. */
RN_INLINE void N(scale_where)(const T *x, const uint8_t *mask, const T *g, T *y, const N(plan) *plan, N(scaling) s, N(factor) f,
                              int MASK, int MINUS, int STREAM) {
    VT floor = V(set)(s.floor), shift = V(set)(s.shift), high = V(set)(f.high), low = V(set)(f.low);
    VT inverse = V(set)(plan->base.inverse), none = {0};
    VI offset = (VI){0} + s.offset;
    size_t length = plan->length, i = STREAM ? N(head)(y, length) : 0;
#define REST(count)                                                                                                   \
    do {                                                                                                              \
        VT entry = N(entry_part)(x, mask, i, count, 0, MASK) - shift;                                                 \
        VT value = N(softmax_of)(entry, floor, offset, &plan->base, high, low);                                       \
        if (MINUS) value = V(fma)(V(load_part)(g + i, count, 0), inverse, -value);                                    \
        if (MASK) value = V(select)(N(mask_part)(mask + i, count), value, none);                                      \
        V(store_part)(y + i, count, value);                                                                           \
    } while (0)
    if (i) {
        size_t head = i;
        i = 0;
        REST(head);
        i = head;
    }
    for (; i + WAYS * LANES <= length; i += WAYS * LANES) {
        VT entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
        for (int k = 0; k < WAYS; k++) entry[k] = N(entry)(x, mask, i + (size_t)k * LANES, MASK) - shift;
        N(exp_parts_of)(entry, floor, offset, &plan->base, p, rest, power, WAYS, 0);
        for (int k = 0; k < WAYS; k++) p[k] = V(fma)(p[k], high, low);
        for (int k = 0; k < WAYS; k++) {
            size_t at = i + (size_t)k * LANES;
            VT value = power[k] * (high + p[k]);
            if (MINUS) value = V(fma)(V(load)(g + at), inverse, -value);
            if (MASK) value = V(select)(N(mask_at)(mask + at), value, none);
            if (STREAM)
                V(stream)(y + at, value);
            else
                V(store)(y + at, value);
        }
    }
    for (; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        REST(left);
    }
#undef REST
}

/* ---- softmax ---------------------------------------------------------------------------------------------------- */

/* terms: scratch for the row's exponentials, or y; NULL for rows that no cache holds, which take them twice */
RN_INLINE void N(softmax_where_row)(const T *x, const uint8_t *mask, T *y, T *terms, const N(plan) *plan, int MASK, int STREAM) {
    size_t length = plan->length;
    T largest = N(largest_where)(x, mask, length);
    if (!isfinite(largest)) {
        N(fill_where)(y, mask, length, NAN, 0);
        return;
    }
    N(scaling) s = N(scaling_where)(largest, plan);
    N(total) sum = terms ? N(exp_sum_in)(N(EXACT), x, terms, length, s, 0, NULL, 1, 1, 0, 0, mask, MASK, &plan->base)
                         : N(exp_sum_in)(N(EXACT), x, NULL, length, s, 0, NULL, 0, 1, 0, 0, mask, MASK, &plan->base);
    if (sum.high != sum.high) /* a NaN that the largest entry does not show */
        N(fill_where)(y, mask, length, NAN, 0);
    else if (terms)
        N(scale_terms)(terms, y, length, N(reciprocal)(sum), STREAM);
    else
        N(scale_where)(x, mask, NULL, y, plan, s, N(reciprocal)(sum), MASK, 0, STREAM);
}
static int N(softmax_where)(const T *x, size_t stride, const rn_where *where, T *y, size_t rows, size_t length) {
    N(plan) plan = N(plan_for)(where, length);
    size_t row_bytes = length * sizeof(T);
    int stream = rows * row_bytes > rn_cache_bytes() / 2 && (const T *)y != x, reload = row_bytes <= RELOAD_BYTES;
    int threads = rn_threads(rows, 1.5 * NS_EXP * (double)rows * (double)length), failed = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        T *scratch = stream && reload ? rn_scratch(0, row_bytes) : NULL;
        if (stream && reload && scratch == NULL) failed = 1, last = first;
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride;
            const uint8_t *mask = N(mask_of)(&plan, row);
            T *to = y + row * length, *terms = !reload ? NULL : stream ? scratch : to;
            if (mask)
                stream ? N(softmax_where_row)(from, mask, to, terms, &plan, 1, 1)
                       : N(softmax_where_row)(from, mask, to, terms, &plan, 1, 0);
            else
                stream ? N(softmax_where_row)(from, NULL, to, terms, &plan, 0, 1)
                       : N(softmax_where_row)(from, NULL, to, terms, &plan, 0, 0);
        }
        vec_fence();
    }
    return failed ? -1 : 0;
}

/* sum y (g - base) over the entries left in */
static double N(dot_where)(const T *y, const T *g, const uint8_t *mask, size_t length, T base) {
    N(wide) sum = {0};
    VT from = V(set)(base);
    for (size_t i = 0; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        VT term = V(load_part)(y + i, left, 0) * (V(load_part)(g + i, left, 0) - from);
        N(wide_add)(&sum, V(select)(N(mask_part)(mask + i, left), term, V(set)(0)));
    }
    N(total) all = N(wide_total)(sum);
    return all.high + all.low;
}
RN_INLINE void N(softmax_backward_where_row)(const T *y, const T *g, const uint8_t *mask, T *dx, const N(plan) *plan, int MASK) {
    size_t length = plan->length;
    T base = g[N(index_of)(y, length, N(largest)(y, length))];
    double dot = MASK ? N(dot_where)(y, g, mask, length, base) : N(dot_from)(y, g, length, base);
    VT from = V(set)(base), mean = V(set)((T)dot), inverse = V(set)(plan->base.inverse), none = {0};
#define VALUE(y, g) ((y) * inverse) * (((g)-from) - mean)
#define WHOLE                                                                 \
    value = VALUE(V(load)(y + i), V(load)(g + i));                            \
    if (MASK) value = V(select)(N(mask_at)(mask + i), value, none)
#define PART(count)                                                           \
    value = VALUE(V(load_part)(y + i, count, 0), V(load_part)(g + i, count, 0)); \
    if (MASK) value = V(select)(N(mask_part)(mask + i, count), value, none)
    ROW_LOOP(length, dx, 0, WHOLE, PART);
#undef WHOLE
#undef PART
#undef VALUE
}
static void N(softmax_backward_where)(const T *y, const T *g, const rn_where *where, T *dx, size_t rows, size_t length) {
    N(plan) plan = N(plan_for)(where, length);
    int threads = rn_threads(rows, 0.5 * NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const uint8_t *mask = N(mask_of)(&plan, row);
            size_t at = row * length;
            mask ? N(softmax_backward_where_row)(y + at, g + at, mask, dx + at, &plan, 1)
                 : N(softmax_backward_where_row)(y + at, g + at, NULL, dx + at, &plan, 0);
        }
    }
}

/* ---- logarithms ------------------------------------------------------------------------------------------------- */

/* log(sum(exp(x / temperature))) = largest / temperature + log_sum; NaN in both where there is none. */
RN_INLINE void N(stats_where)(const T *x, const uint8_t *mask, const N(plan) *plan, double *largest, double *log_sum, int MASK) {
    T top = N(largest_where)(x, mask, plan->length);
    *largest = *log_sum = NAN;
    if (!isfinite(top)) return;
    N(scaling) s = N(scaling_where)(top, plan);
    double count;
    N(total) rest = N(exp_sum_in)(N(MINUTE), x, NULL, plan->length, s, top, &count, 0, 1, 1, 0, mask, MASK, &plan->base);
    double others = (rest.high + rest.low) * pow2_of(-BIAS) * exp(N(exponent_where)(top, &s, plan));
    if (others != others) return; /* a NaN that the largest entry does not show */
    *largest = (double)top;
    *log_sum = log1p((count - 1) + others);
}

/* z = (x - largest) / temperature - log_sum */
RN_INLINE void N(subtract_where)(const T *x, const uint8_t *mask, T *z, const N(plan) *plan, double largest, double log_sum,
                                 int MASK, int STREAM) {
    VT top = V(set)((T)largest), minus = V(set)((T)-log_sum);
    VT inverse = V(set)(plan->base.inverse), inverse_low = V(set)(plan->base.inverse_low);
    /* -inf times a low part of 0 would be NaN */
#define BELOW(d) V(select)((VI)((d) == V(set)(-INFINITY)), d, V(fma)(d, inverse, V(fma)(d, inverse_low, minus)))
#define WHOLE                                          \
    VT d = N(entry)(x, mask, i, MASK) - top;           \
    value = BELOW(d)
#define PART(count)                                    \
    VT d = N(entry_part)(x, mask, i, count, 0, MASK) - top; \
    value = BELOW(d)
    ROW_LOOP(plan->length, z, STREAM, WHOLE, PART);
#undef WHOLE
#undef PART
#undef BELOW
}

/* Stats and, unless z is NULL, the log-softmax. */
RN_INLINE void N(log_softmax_where_row)(const T *x, const uint8_t *mask, T *z, const N(plan) *plan, double *largest,
                                        double *log_sum, int stream, int MASK) {
    N(stats_where)(x, mask, plan, largest, log_sum, MASK);
    if (z == NULL) return;
    if (*largest != *largest)
        N(fill_where)(z, mask, plan->length, NAN, -INFINITY);
    else if (stream)
        N(subtract_where)(x, mask, z, plan, *largest, *log_sum, MASK, 1);
    else
        N(subtract_where)(x, mask, z, plan, *largest, *log_sum, MASK, 0);
}
static void N(log_softmax_where)(const T *x, size_t stride, const rn_where *where, T *z, size_t rows, size_t length,
                                 double *largest, double *log_sum) {
    N(plan) plan = N(plan_for)(where, length);
    int stream = z != NULL && z != x && rows * length * sizeof(T) > rn_cache_bytes() / 2;
    int threads = rn_threads(rows, 1.5 * NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride;
            const uint8_t *mask = N(mask_of)(&plan, row);
            T *to = z ? z + row * length : NULL;
            double top, log;
            if (mask)
                N(log_softmax_where_row)(from, mask, to, &plan, &top, &log, stream, 1);
            else
                N(log_softmax_where_row)(from, NULL, to, &plan, &top, &log, stream, 0);
            if (largest) largest[row] = top, log_sum[row] = log;
        }
        vec_fence();
    }
}

/* Sum over the entries left in. */
static double N(sum_where)(const T *g, const uint8_t *mask, size_t length) {
    if (mask == NULL) return N(sum_of)(g, length);
    N(wide) sum = {0};
    for (size_t i = 0; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        N(wide_add)(&sum, V(select)(N(mask_part)(mask + i, left), V(load_part)(g + i, left, 0), V(set)(0)));
    }
    N(total) all = N(wide_total)(sum);
    return all.high + all.low;
}

/* out = factor / temperature softmax, with the factor of the row or, if g is not NULL, g's sum: then g / temperature minus that. */
static void N(from_stats_where)(const T *x, size_t stride, const T *g, const rn_where *where, T *out, size_t rows,
                                size_t length, const double *largest, const double *log_sum, const double *factor) {
    N(plan) plan = N(plan_for)(where, length);
    int threads = rn_threads(rows, 1.2 * NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride, *up = g ? g + row * length : NULL;
            const uint8_t *mask = N(mask_of)(&plan, row);
            T *to = out + row * length;
            double weight = (g ? N(sum_where)(up, mask, length) : factor[row]) / where->temperature;
            T top = isfinite(largest[row]) ? (T)largest[row] : 0;
            N(scaling) s = N(scaling_where)(top, &plan);
            double value = weight * pow2_of(-BIAS) * exp(N(exponent_where)(top, &s, &plan) - log_sum[row]);
            N(factor) f = N(factor_of)(largest[row] != largest[row] ? NAN : value);
            if (mask)
                g ? N(scale_where)(from, mask, up, to, &plan, s, f, 1, 1, 0)
                  : N(scale_where)(from, mask, NULL, to, &plan, s, f, 1, 0, 0);
            else
                g ? N(scale_where)(from, NULL, up, to, &plan, s, f, 0, 1, 0)
                  : N(scale_where)(from, NULL, NULL, to, &plan, s, f, 0, 0, 0);
        }
    }
}

/* ---- logarithms down the columns, without a mask ------------------------------------------------------------------ */

/* The scaling of each lane; lanes without a finite largest entry count it as 0. */
static N(lane_scaling) N(lane_scaling_where)(VT top, const N(plan) *plan) {
    N(lane_scaling) s;
    T largest[LANES], shift[LANES], floor[LANES];
    INT offset[LANES];
    s.finite = (VI)(V(abs)(top) < V(set)(INFINITY));
    s.largest = V(select)(s.finite, top, V(set)(0));
    V(store)(largest, s.largest);
    for (size_t lane = 0; lane < LANES; lane++) {
        N(scaling) one = N(scaling_where)(largest[lane], plan);
        shift[lane] = one.shift, floor[lane] = one.floor, offset[lane] = one.offset;
    }
    s.shift = V(load)(shift), s.floor = V(load)(floor), s.n_ref = V(set)(0);
    memcpy(&s.offset, offset, sizeof offset);
    return s;
}

/* As stats_where, of `lanes` columns. */
static void N(lane_stats_where)(const N(lane_sum) *rest, VI equal, VT top, const N(plan) *plan, size_t lanes,
                                double *largest, double *log_sum) {
    T tops[LANES];
    INT counts[LANES];
    double sums[LANES];
    V(store)(tops, top);
    N(store_sums)(rest, sums);
    memcpy(counts, &equal, sizeof counts);
    for (size_t lane = 0; lane < lanes; lane++) {
        largest[lane] = log_sum[lane] = NAN;
        if (!isfinite(tops[lane])) continue;
        N(scaling) s = N(scaling_where)(tops[lane], plan);
        double others = sums[lane] * pow2_of(-BIAS) * exp(N(exponent_where)(tops[lane], &s, plan));
        if (others != others) continue; /* a NaN that the largest entry does not show */
        largest[lane] = (double)tops[lane];
        log_sum[lane] = log1p(((double)-counts[lane] - 1) + others);
    }
}

static void N(stats_where_strip)(const N(columns) *c, size_t at, size_t column, size_t count, T *scratch) {
    const N(plan) *plan = c->plan;
    N(strip_table) t;
    VI equal[sizeof t.top / sizeof *t.top];
    N(strip) strip = N(read_strip)(c, c->x + at, count, scratch, t.top);
    for (size_t v = 0; v * LANES < count; v++) t.scaling[v] = N(lane_scaling_where)(t.top[v], plan);
    N(sum_strip)(strip, c->length, count, t.scaling, t.sum, equal, &plan->base, 1);
    for (size_t v = 0; v * LANES < count; v++) {
        size_t first = v * LANES, lanes = count - first < LANES ? count - first : LANES;
        N(lane_stats_where)(&t.sum[v], equal[v], t.top[v], plan, lanes, c->largest + column + first,
                            c->log_sum + column + first);
    }
}

static int N(stats_where_columns)(const T *x, const rn_where *where, size_t outer, size_t length, size_t inner,
                                  double *largest, double *log_sum) {
    N(plan) plan = N(plan_for)(where, length);
    N(columns) c = {.x = x, .length = length, .inner = inner, .largest = largest, .log_sum = log_sum, .plan = &plan};
    return N(each_strip)(c, outer, 1, 2 * NS_EXP, N(stats_where_strip));
}

/* y = x scale - minus[column], in float64 until the end. */
static void N(scaled_minus)(const T *x, double scale, const double *minus, T *y, size_t rows, size_t columns) {
    int threads = rn_threads(rows, 0.3 * (double)rows * (double)columns);
    vf64 factor = vf64_set(scale);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * columns;
            T *to = y + row * columns;
            size_t i = 0;
            for (; i + LANES <= columns; i += LANES) {
                VT value = V(load)(from + i);
#if WIDE
                V(store)(to + i, value * factor - vf64_load(minus + i));
#else
                V(store)(to + i, vf32_from_vf64(vf64_low(value) * factor - vf64_load(minus + i),
                                                vf64_high(value) * factor - vf64_load(minus + i + VF64)));
#endif
            }
            for (; i < columns; i++) to[i] = (T)((double)from[i] * scale - minus[i]);
        }
    }
}
