/* Included by optimizer.c once for float and once for double. */

/* ---- Lion ---------------------------------------------------------------------------------------------------- */

RN_INLINE VT N(blend)(VT m, VT g, T keep, T take, int form) {
    if (form == RN_LERP) {
        VT moved = take * (g - m);
        ROUNDED(moved);
        return m + moved;
    }
    VT kept = keep * m, taken = take * g;
    ROUNDED(kept);
    ROUNDED(taken);
    return kept + taken;
}

RN_INLINE void N(lion_vector)(VT p, VT g, VT m, VT *p_out, VT *m_out, T shrink, T rate, T keep1, T take1, T keep2,
                              T take2, int form) {
    VT c = N(blend)(m, g, keep1, take1, form);
    /* rate sign(c): 0 at 0, NaN at NaN */
    VT step = V(copysign)(V(set)(rate), c);
    step = V(select)(c == 0, V(set)(0), step);
    step = V(select)(c != c, c, step);
    VT shrunk = shrink * p;
    ROUNDED(shrunk);
    *p_out = shrunk - step;
    *m_out = N(blend)(m, g, keep2, take2, form);
}

RN_INLINE void N(lion_range)(const T *p, const T *g, const T *m, T *p_out, T *m_out, size_t count, int past_cache,
                             T shrink, T rate, T keep1, T take1, T keep2, T take2, int form) {
    VT a, b;
    size_t i = 0;
    /* Non-temporal stores want aligned addresses, and both results to be misaligned alike. */
    size_t head = past_cache ? (size_t)(-((intptr_t)p_out / (intptr_t)sizeof(T)) & (LANES - 1)) : 0;
    if (head > count) head = count;
    if (head) {
        N(lion_vector)(V(load_part)(p, head, 0), V(load_part)(g, head, 0), V(load_part)(m, head, 0), &a, &b, shrink,
                       rate, keep1, take1, keep2, take2, form);
        V(store_part)(p_out, head, a);
        V(store_part)(m_out, head, b);
        i = head;
    }
    for (; i + LANES <= count; i += LANES) {
        N(lion_vector)(V(load)(p + i), V(load)(g + i), V(load)(m + i), &a, &b, shrink, rate, keep1, take1, keep2,
                       take2, form);
        if (past_cache) {
            V(stream)(p_out + i, a);
            V(stream)(m_out + i, b);
        } else {
            V(store)(p_out + i, a);
            V(store)(m_out + i, b);
        }
    }
    if (i < count) {
        N(lion_vector)(V(load_part)(p + i, count - i, 0), V(load_part)(g + i, count - i, 0),
                       V(load_part)(m + i, count - i, 0), &a, &b, shrink, rate, keep1, take1, keep2, take2, form);
        V(store_part)(p_out + i, count - i, a);
        V(store_part)(m_out + i, count - i, b);
    }
    if (past_cache) vec_fence();
}

typedef struct {
    rn_lion_step step;
    int past_cache; /* the results of all arrays together do not fit the cache */
} N(lion_options);

static void N(lion_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *all_options) {
    const N(lion_options) *options = all_options;
    const rn_lion_step *o = &options->step;
    const T *p = array->p, *g = array->g, *m = array->m;
    T *p_out = array->p_out, *m_out = array->m_out;
    /* In place the line is in cache already, and writing past it would only throw it out. */
    int past_cache = options->past_cache && p_out != p && m_out != m && (intptr_t)p_out % (intptr_t)sizeof(T) == 0 &&
                     ((intptr_t)p_out - (intptr_t)m_out) % REFNORM_VECTOR_BYTES == 0;
#define RANGE(FORM, PAST)                                                                                          \
    N(lion_range)(p + begin, g + begin, m + begin, p_out + begin, m_out + begin, end - begin, PAST, (T)o->shrink,   \
                  (T)o->rate, (T)o->beta1, (T)(1 - o->beta1), (T)o->beta2, (T)(1 - o->beta2), FORM)
    if (o->form == RN_LERP) {
        if (past_cache) RANGE(RN_LERP, 1);
        else RANGE(RN_LERP, 0);
    } else {
        if (past_cache) RANGE(RN_MUL_ADD, 1);
        else RANGE(RN_MUL_ADD, 0);
    }
#undef RANGE
}

static void N(lion)(const rn_optimizer_array *arrays, size_t count, const rn_lion_step *o) {
    size_t entries = all_entries(arrays, count);
    N(lion_options) options = {*o, 2 * entries * sizeof(T) > rn_cache_bytes()};
    sweep_all(arrays, count, 0.25 * (double)sizeof(T) * (double)entries, N(lion_sweep), &options);
}

/* ---- AdaGrad --------------------------------------------------------------------------------------------------- */

static void N(adagrad_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *options) {
    const rn_adagrad_step *o = options;
    const T *p = array->p, *g = array->g, *m = array->m;
    T *p_out = array->p_out, *m_out = array->m_out;
    VT rate = V(set)((T)o->rate), decay = V(set)((T)o->decay), eps = V(set)((T)o->eps);
    const int decays = o->decay != 0; /* 0 times infinity would be NaN */
    for (size_t i = begin; i < end; i += LANES) {
        size_t part = end - i;
        if (part >= LANES) {
            VT w = V(load)(p + i), s = V(load)(g + i);
            if (decays) s = V(fma)(decay, w, s);
            VT sum = V(fma)(s, s, V(load)(m + i));
            V(store)(p_out + i, w - rate * s / (V(sqrt)(sum) + eps));
            V(store)(m_out + i, sum);
        } else {
            VT w = V(load_part)(p + i, part, 0), s = V(load_part)(g + i, part, 0);
            if (decays) s = V(fma)(decay, w, s);
            VT sum = V(fma)(s, s, V(load_part)(m + i, part, 1));
            V(store_part)(p_out + i, part, w - rate * s / (V(sqrt)(sum) + eps));
            V(store_part)(m_out + i, part, sum);
        }
    }
}

static void N(adagrad)(const rn_optimizer_array *arrays, size_t count, const rn_adagrad_step *options) {
    sweep_all(arrays, count, 0.3 * (double)sizeof(T) * (double)all_entries(arrays, count), N(adagrad_sweep), options);
}

static void N(descend_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *options) {
    const T *p = array->p, *g = array->g;
    T *p_out = array->p_out;
    VT rate = V(set)((T) * (const double *)options);
    for (size_t i = begin; i < end; i += LANES) {
        size_t part = end - i;
        if (part >= LANES)
            V(store)(p_out + i, V(load)(p + i) - rate * V(load)(g + i));
        else
            V(store_part)(p_out + i, part, V(load_part)(p + i, part, 0) - rate * V(load_part)(g + i, part, 0));
    }
}

static void N(descend)(const rn_optimizer_array *arrays, size_t count, const double *rate) {
    sweep_all(arrays, count, 0.15 * (double)sizeof(T) * (double)all_entries(arrays, count), N(descend_sweep), rate);
}

/* ---- AdamP, SGDP --------------------------------------------------------------------------------------------- */

typedef struct {
    VT keep1, take1, keep2, take2, inv_root, eps, rate;
} N(constants);

/* The step from the state after it was moved. Explicit fused operations: the same bits wherever it is inlined. */
RN_INLINE VT N(step_of)(int kind, const N(constants) *c, VT g, VT m, VT v) {
    if (kind == RN_SGD) return m;
    if (kind == RN_SGD_NESTEROV) return V(fma)(c->keep1, m, g);
    VT ahead = kind == RN_ADAM_NESTEROV ? V(fma)(c->keep1, m, c->take1 * g) : m;
    return ahead / V(fma)(V(sqrt)(v), c->inv_root, c->eps);
}

RN_INLINE void N(move)(int kind, const N(constants) *c, VT g, VT *m, VT *v) {
    *m = V(fma)(c->keep1, *m, c->take1 * g);
    if (kind <= RN_ADAM_NESTEROV) *v = V(fma)(c->keep2, *v, c->take2 * (g * g));
}

/* shrink p - rate (step - k p) */
RN_INLINE VT N(applied)(const N(constants) *c, VT p, VT step, VT shrink, VT k) {
    return V(fma)(p, shrink, -(c->rate * V(fma)(-k, p, step)));
}

#if WIDE
#define SUMS(name) vf64 name = {0}
#define ADD_PRODUCT(name, a, b) name = vf64_fma(a, b, name)
#define TOTAL(name) vf64_sum(name)
#else
#define SUMS(name) vf64 name##_low = {0}, name##_high = {0}
#define ADD_PRODUCT(name, a, b)                                     \
    (name##_low = vf64_fma(vf64_low(a), vf64_low(b), name##_low),   \
     name##_high = vf64_fma(vf64_high(a), vf64_high(b), name##_high))
#define TOTAL(name) vf64_sum(name##_low + name##_high)
#endif

/* The blocks' sums of squares of g, at their places in the row of all blocks, whose start is array->p_out. */
static void N(squares_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *options) {
    (void)options;
    const T *g = array->g;
    double *parts = array->p_out;
    for (size_t at = begin; at < end; at += BLOCK) {
        size_t count = end - at < BLOCK ? end - at : BLOCK;
        SUMS(gg);
        for (size_t i = 0; i < count; i += LANES) {
            size_t part = count - i;
            VT s = part >= LANES ? V(load)(g + at + i) : V(load_part)(g + at + i, part, 0);
            ADD_PRODUCT(gg, s, s);
        }
        parts[at / BLOCK] = TOTAL(gg);
    }
}

static int N(squares)(const rn_optimizer_array *arrays, size_t count, double *sum) {
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) blocks += blocks_of(entries_of(arrays + i));
    rn_optimizer_array *with_parts = malloc(count * sizeof *with_parts + blocks * sizeof(double));
    if (with_parts == NULL) return -1;
    double *parts = (double *)(with_parts + count), *next = parts;
    for (size_t i = 0; i < count; i++) {
        with_parts[i] = arrays[i];
        with_parts[i].p_out = next;
        next += blocks_of(entries_of(arrays + i));
    }
    sweep_all(with_parts, count, 0.1 * (double)sizeof(T) * (double)all_entries(arrays, count), N(squares_sweep), NULL);
    *sum = 0;
    for (size_t i = 0; i < blocks; i++) *sum += parts[i];
    free(with_parts);
    return 0;
}

/* At most BLOCK entries: moves the state and returns the block's sums, or without `test` <P, step> alone. */
RN_INLINE row_sums N(move_block)(int kind, int test, const N(constants) *c, const T *p, const T *g, const T *m, const T *v,
                                 T *m_out, T *v_out, size_t count) {
    const int adam = kind <= RN_ADAM_NESTEROV;
    SUMS(pp);
    SUMS(gg);
    SUMS(gp);
    SUMS(pu);
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i < LANES ? count - i : LANES;
        VT w, s, a, b = {0};
        if (part == LANES) {
            w = V(load)(p + i), s = V(load)(g + i), a = V(load)(m + i);
            if (adam) b = V(load)(v + i);
        } else {
            /* v is filled with 1: the step of a missing entry is 0 and not 0 / 0. */
            w = V(load_part)(p + i, part, 0), s = V(load_part)(g + i, part, 0), a = V(load_part)(m + i, part, 0);
            if (adam) b = V(load_part)(v + i, part, 1);
        }
        N(move)(kind, c, s, &a, &b);
        if (part == LANES) {
            V(store)(m_out + i, a);
            if (adam) V(store)(v_out + i, b);
        } else {
            V(store_part)(m_out + i, part, a);
            if (adam) V(store_part)(v_out + i, part, b);
        }
        VT step = N(step_of)(kind, c, s, a, b);
        if (test) {
            ADD_PRODUCT(pp, w, w);
            ADD_PRODUCT(gg, s, s);
            ADD_PRODUCT(gp, s, w);
        }
        ADD_PRODUCT(pu, w, step);
    }
    return (row_sums){TOTAL(pp), TOTAL(gg), TOTAL(gp), TOTAL(pu)};
}

/* From the moved state: p_out, and the projected buffer if `buffer` is not NULL. */
RN_INLINE void N(apply_block)(int kind, const N(constants) *c, const T *p, const T *g, const T *m, const T *v,
                              T *p_out, T *buffer, size_t count, T shrink, T factor) {
    const int adam = kind <= RN_ADAM_NESTEROV, look = kind == RN_ADAM_NESTEROV || kind == RN_SGD_NESTEROV;
    VT k = V(set)(factor), keep = V(set)(shrink);
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i < LANES ? count - i : LANES;
        VT w, s = {0}, a, b = {0};
        if (part == LANES) {
            w = V(load)(p + i), a = V(load)(m + i);
            if (look) s = V(load)(g + i);
            if (adam) b = V(load)(v + i);
        } else {
            w = V(load_part)(p + i, part, 0), a = V(load_part)(m + i, part, 0);
            if (look) s = V(load_part)(g + i, part, 0);
            if (adam) b = V(load_part)(v + i, part, 1);
        }
        VT step = N(step_of)(kind, c, s, a, b);
        VT moved = N(applied)(c, w, step, keep, k);
        if (part == LANES) {
            V(store)(p_out + i, moved);
            if (buffer) V(store)(buffer + i, V(fma)(-k, w, step));
        } else {
            V(store_part)(p_out + i, part, moved);
            if (buffer) V(store_part)(buffer + i, part, V(fma)(-k, w, step));
        }
    }
}

/* Both at once, without a projection. */
RN_INLINE void N(plain_block)(int kind, const N(constants) *c, const T *p, const T *g, const T *m, const T *v,
                              T *p_out, T *m_out, T *v_out, size_t count, T shrink) {
    const int adam = kind <= RN_ADAM_NESTEROV;
    VT keep = V(set)(shrink), none = {0};
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i < LANES ? count - i : LANES;
        VT w, s, a, b = {0};
        if (part == LANES) {
            w = V(load)(p + i), s = V(load)(g + i), a = V(load)(m + i);
            if (adam) b = V(load)(v + i);
        } else {
            w = V(load_part)(p + i, part, 0), s = V(load_part)(g + i, part, 0), a = V(load_part)(m + i, part, 0);
            if (adam) b = V(load_part)(v + i, part, 1);
        }
        N(move)(kind, c, s, &a, &b);
        VT moved = N(applied)(c, w, N(step_of)(kind, c, s, a, b), keep, none);
        if (part == LANES) {
            V(store)(p_out + i, moved);
            V(store)(m_out + i, a);
            if (adam) V(store)(v_out + i, b);
        } else {
            V(store_part)(p_out + i, part, moved);
            V(store_part)(m_out + i, part, a);
            if (adam) V(store_part)(v_out + i, part, b);
        }
    }
}

/* The sums that the test needs, of at most BLOCK entries: the same bits as those of move_block. */
static row_sums N(test_block)(const T *p, const T *g, size_t count) {
    SUMS(pp);
    SUMS(gg);
    SUMS(gp);
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i < LANES ? count - i : LANES;
        VT w = part == LANES ? V(load)(p + i) : V(load_part)(p + i, part, 0);
        VT s = part == LANES ? V(load)(g + i) : V(load_part)(g + i, part, 0);
        ADD_PRODUCT(pp, w, w);
        ADD_PRODUCT(gg, s, s);
        ADD_PRODUCT(gp, s, w);
    }
    return (row_sums){TOTAL(pp), TOTAL(gg), TOTAL(gp), 0};
}

#define BY_KIND(kind, CALL)                                   \
    switch (kind) {                                           \
        case RN_ADAM: CALL(RN_ADAM); break;                   \
        case RN_ADAM_NESTEROV: CALL(RN_ADAM_NESTEROV); break; \
        case RN_SGD: CALL(RN_SGD); break;                     \
        default: CALL(RN_SGD_NESTEROV); break;                \
    }

typedef struct {
    const T *p, *g, *m, *v;
    T *p_out, *m_out, *v_out;
    size_t columns;
    const rn_projected_step *options;
    N(constants) c;
} N(task);

#define AT(pointer, offset) ((pointer) ? (pointer) + (offset) : NULL)

static row_sums N(move_entries)(const N(task) *t, size_t at, size_t count, int test) {
    row_sums sums = {0, 0, 0, 0};
#define CALL(KIND)                                                                                                \
    sums = test ? N(move_block)(KIND, 1, &t->c, t->p + at, t->g + at, t->m + at, AT(t->v, at), t->m_out + at,      \
                                AT(t->v_out, at), count)                                                          \
                : N(move_block)(KIND, 0, &t->c, t->p + at, t->g + at, t->m + at, AT(t->v, at), t->m_out + at,      \
                                AT(t->v_out, at), count)
    BY_KIND(t->options->kind, CALL)
#undef CALL
    return sums;
}

static row_sums N(move_row)(const N(task) *t, size_t row, int test) {
    row_sums sums = {0, 0, 0, 0};
    for (size_t i = 0; i < t->columns; i += BLOCK) {
        size_t count = t->columns - i < BLOCK ? t->columns - i : BLOCK;
        sums = add(sums, N(move_entries)(t, row * t->columns + i, count, test));
    }
    return sums;
}

static void N(apply_entries)(const N(task) *t, size_t at, size_t count, int where, double k) {
    const rn_projected_step *o = t->options;
    T shrink = (T)(where == WHERE_NONE ? o->shrink : o->shrink_projected);
    T *buffer = o->project_buffer && where != WHERE_NONE ? t->m_out + at : NULL;
    T factor = (T)(where == WHERE_NONE ? 0.0 : k);
#define CALL(KIND)                                                                                              \
    N(apply_block)(KIND, &t->c, t->p + at, t->g + at, t->m_out + at, AT(t->v_out, at), t->p_out + at, buffer, count, \
                   shrink, factor)
    BY_KIND(o->kind, CALL)
#undef CALL
}

static void N(plain)(const N(task) *t, size_t count, T shrink) {
    size_t blocks = (count + BLOCK - 1) / BLOCK;
    int threads = rn_threads(blocks, 0.4 * (double)sizeof(T) * (double)count);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        for (size_t block = first; block < last; block++) {
            size_t at = block * BLOCK, part = count - at < BLOCK ? count - at : BLOCK;
#define CALL(KIND)                                                                                                \
    N(plain_block)(KIND, &t->c, t->p + at, t->g + at, t->m + at, AT(t->v, at), t->p_out + at, t->m_out + at,       \
                   AT(t->v_out, at), part, shrink)
            BY_KIND(t->options->kind, CALL)
#undef CALL
        }
    }
}

static void N(apply_row)(const N(task) *t, size_t row, int where, double k) {
    for (size_t i = 0; i < t->columns; i += BLOCK)
        N(apply_entries)(t, row * t->columns + i, t->columns - i < BLOCK ? t->columns - i : BLOCK, where, k);
}

/* How the array looks, from the sums of its rows; `layer` takes their sum. */
static int N(view_of)(const N(task) *t, size_t rows, const row_sums *sums, row_sums *layer) {
    const rn_projected_step *o = t->options;
    int channel = 1;
    *layer = (row_sums){0, 0, 0, 0};
    for (size_t row = 0; row < rows; row++) {
        channel &= orthogonal(sums[row], o->eps, t->columns, o->delta);
        *layer = add(*layer, sums[row]);
    }
    if (channel) return WHERE_CHANNEL;
    return orthogonal(*layer, o->eps, rows * t->columns, o->delta) ? WHERE_LAYER : WHERE_NONE;
}

/* Sums of all rows, by blocks: of the test alone, or of a move of the state. */
static void N(sum_rows)(const N(task) *t, size_t rows, int move, row_sums *sums, row_sums *parts, int threads) {
    size_t columns = t->columns, blocks = (columns + BLOCK - 1) / BLOCK;
    RN_PARALLEL(threads) {
        RN_SHARE(rows * blocks, first, last);
        for (size_t unit = first; unit < last; unit++) {
            size_t i = unit % blocks * BLOCK, at = unit / blocks * columns + i;
            size_t count = columns - i < BLOCK ? columns - i : BLOCK;
            parts[unit] = move ? N(move_entries)(t, at, count, 1) : N(test_block)(t->p + at, t->g + at, count);
        }
    }
    for (size_t row = 0; row < rows; row++) {
        row_sums whole = {0, 0, 0, 0};
        for (size_t block = 0; block < blocks; block++) whole = add(whole, parts[row * blocks + block]);
        sums[row] = whole;
    }
}

/* Whether rows are projected is known only when all have been seen. Three ways to go, with the same results:
 *
 * guess   A row is moved, summed and applied while it is in cache, on the guess that the array ends up like the rows
 *         before it; rows that were guessed wrong are applied again. It needs the old parameter until the end.
 * test    The test's sums first (parameter and gradient are read once more), then rows as above, without a guess.
 *         For a parameter or a buffer that is overwritten.
 * sweeps  All rows are moved, then all are applied: for the layer view, and for few long rows. */
static int N(projected_step)(const rn_optimizer_array *array, const rn_projected_step *o) {
    const T *p = array->p, *g = array->g;
    T *p_out = array->p_out;
    size_t rows = array->rows, columns = array->columns;
    N(task) task = {p, g, array->m, array->v, p_out, array->m_out, array->v_out, columns, o,
                    {V(set)((T)o->keep1), V(set)((T)o->take1), V(set)((T)o->keep2), V(set)((T)o->take2),
                     V(set)((T)o->inv_root), V(set)((T)o->eps), V(set)((T)o->rate)}};
    const N(task) *t = &task;
    if (rows == 0) {
        N(plain)(t, columns, (T)o->shrink);
        return 0;
    }
    size_t blocks = (columns + BLOCK - 1) / BLOCK;
    int threads = rn_threads(rows * blocks, 0.6 * (double)sizeof(T) * (double)rows * (double)columns);
    int by_row = rows >= 4 * (size_t)threads || blocks == 1;
    int guess = by_row && p_out != p && !o->project_buffer;
    row_sums *sums = malloc(rows * (1 + blocks) * sizeof *sums), *parts = sums + rows, layer;
    unsigned char *done = malloc(rows);
    if (sums == NULL || done == NULL) {
        free(sums);
        free(done);
        return -1;
    }
    int where, left = 0;
    memset(done, NOT_YET, rows);
    if (guess) {
        RN_PARALLEL(threads) {
            RN_SHARE(rows, first, last);
            int channel = 1;
            for (size_t row = first; row < last; row++) {
                sums[row] = N(move_row)(t, row, 1);
                channel &= orthogonal(sums[row], o->eps, columns, o->delta);
                done[row] = channel ? WHERE_CHANNEL : WHERE_NONE;
                N(apply_row)(t, row, done[row], radial(sums[row], o->eps));
            }
        }
        where = N(view_of)(t, rows, sums, &layer);
    } else {
        N(sum_rows)(t, rows, 0, sums, parts, threads);
        where = N(view_of)(t, rows, sums, &layer);
        if (where == WHERE_NONE) {
            N(plain)(t, rows * columns, (T)o->shrink);
            memset(done, where, rows);
        } else if (where == WHERE_CHANNEL && by_row) {
            RN_PARALLEL(threads) {
                RN_SHARE(rows, first, last);
                for (size_t row = first; row < last; row++) {
                    sums[row].pu = N(move_row)(t, row, 0).pu;
                    N(apply_row)(t, row, WHERE_CHANNEL, radial(sums[row], o->eps));
                }
            }
            memset(done, where, rows);
        } else {
            N(sum_rows)(t, rows, 1, sums, parts, threads);
            N(view_of)(t, rows, sums, &layer);
        }
    }
    for (size_t row = 0; row < rows; row++) left |= done[row] != where;
    if (left) {
        double k = radial(layer, o->eps);
        RN_PARALLEL(threads) {
            RN_SHARE(rows * blocks, first, last);
            for (size_t unit = first; unit < last; unit++) {
                size_t row = unit / blocks, i = unit % blocks * BLOCK;
                if (done[row] == where) continue;
                N(apply_entries)(t, row * columns + i, columns - i < BLOCK ? columns - i : BLOCK, where,
                                 where == WHERE_LAYER ? k : radial(sums[row], o->eps));
            }
        }
    }
    free(sums);
    free(done);
    return 0;
}

/* Large arrays one after the other, each by all threads; all others in one region, where a thread takes one whole. */
static int N(projected_steps)(const rn_optimizer_array *arrays, size_t count, const rn_projected_step *o) {
    size_t small = 0, entries = 0;
    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        size_t own = entries_of(arrays + i);
        if (own > SHARED_ENTRIES || count == 1) failed |= N(projected_step)(arrays + i, o);
        else small++, entries += own;
    }
    if (small == 0) return failed;
    int threads = rn_threads(small, 0.6 * (double)sizeof(T) * (double)entries);
    rn_shares shares = rn_share_out(count, 1, threads);
    RN_PARALLEL(threads) {
        size_t taken;
        for (size_t i = rn_take(&shares, 1, &taken); taken; i = rn_take(&shares, 1, &taken))
            if (entries_of(arrays + i) <= SHARED_ENTRIES && N(projected_step)(arrays + i, o) != 0)
                __atomic_store_n(&failed, -1, __ATOMIC_RELAXED);
    }
    return failed;
}

#undef SUMS
#undef ADD_PRODUCT
#undef TOTAL
#undef BY_KIND
#undef AT
