/* Included by optimizer.c once for float and once for double: Lion-K and running averages. */

/* keep a + take b, both products rounded: the bits of two steps. Lion-K's momentum subtracts, with take < 0, which is exact. */
RN_INLINE VT N(weighted)(VT a, VT b, VT keep, VT take) {
    VT kept = keep * a, taken = take * b;
    ROUNDED(kept);
    ROUNDED(taken);
    return kept + taken;
}

RN_INLINE VT N(load_some)(const T *from, size_t part, T fill) {
    return part >= LANES ? V(load)(from) : V(load_part)(from, part, fill);
}
RN_INLINE void N(put_some)(T *to, size_t part, VT value, int stream) {
    if (part >= LANES)
        V(put)(to, value, stream);
    else
        V(store_part)(to, part, value);
}

/* Whether a result may be written past the cache: its blocks begin at a vector's boundary, and its lines are not there yet. */
RN_INLINE int N(may_stream)(const T *to, const T *from) {
    return to != from && ((uintptr_t)to & (REFNORM_VECTOR_BYTES - 1)) == 0;
}

/* ---- running averages ------------------------------------------------------------------------------------------ */

typedef struct {
    T keep, take;
    int past_cache;
} N(average_options);

static void N(average_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *all_options) {
    const N(average_options) *o = all_options;
    const T *p = array->p, *g = array->g;
    T *p_out = array->p_out;
    VT keep = V(set)(o->keep), take = V(set)(o->take);
    int stream = o->past_cache && N(may_stream)(p_out, p);
    for (size_t i = begin; i < end; i += LANES) {
        VT a = N(load_some)(p + i, end - i, 0), b = N(load_some)(g + i, end - i, 0);
        N(put_some)(p_out + i, end - i, N(weighted)(a, b, keep, take), stream);
    }
    if (stream) vec_fence();
}

static void N(average)(const rn_optimizer_array *arrays, size_t count, const double *momentum) {
    size_t entries = all_entries(arrays, count);
    N(average_options) o = {(T)*momentum, (T)(1 - *momentum), 3 * entries * sizeof(T) > rn_cache_bytes()};
    sweep_all(arrays, count, 0.12 * (double)sizeof(T) * (double)entries, N(average_sweep), &o);
}

/* ---- Lion-K ---------------------------------------------------------------------------------------------------- */

/* The gradient of kappa at the blend c. `parameter`: huber's width, softl1's threshold, l2's norm of the whole array. */
RN_INLINE VT N(kappa_gradient)(const int kappa, VT c, VT parameter) {
    if (kappa == RN_KAPPA_SQ) return c;
    if (kappa == RN_KAPPA_L2) return V(select)(parameter == 0, (VT){0}, c / parameter);
    if (kappa == RN_KAPPA_HUBER) return V(min)(V(set)(1), V(max)(V(set)(-1), c / parameter)); /* NaN passes */
    VI none = kappa == RN_KAPPA_RELU ? c <= 0 : kappa == RN_KAPPA_SOFTL1 ? V(abs)(c) <= parameter : c == 0;
    VT sign = V(select)(none, (VT){0}, V(copysign)(V(set)(1), c));
    return V(select)(c != c, c, sign);
}

typedef struct {
    rn_lion_kappa_step step;
    int past_cache;
} N(kappa_options);

RN_INLINE void N(kappa_range)(const int kappa, const rn_optimizer_array *array, size_t begin, size_t end,
                              const N(kappa_options) *options) {
    const rn_lion_kappa_step *o = &options->step;
    const T *p = array->p, *g = array->g, *m = array->m;
    T *p_out = array->p_out, *m_out = array->m_out;
    VT keep1 = V(set)((T)o->beta1), take1 = V(set)((T) - (1 - o->beta1)), keep2 = V(set)((T)o->beta2);
    VT take2 = V(set)((T) - (1 - o->beta2)), shrink = V(set)((T)o->shrink), rate = V(set)((T)o->rate);
    VT parameter = V(set)(kappa == RN_KAPPA_L2 ? *(const T *)array->v : (T)o->parameter);
    int stream = options->past_cache && N(may_stream)(p_out, p) && N(may_stream)(m_out, m);
    for (size_t i = begin; i < end; i += LANES) {
        size_t part = end - i;
        VT s = N(load_some)(g + i, part, 0), a = N(load_some)(m + i, part, 0);
        VT step = N(kappa_gradient)(kappa, N(weighted)(a, s, keep1, take1), parameter);
        N(put_some)(p_out + i, part, N(weighted)(N(load_some)(p + i, part, 0), step, shrink, rate), stream);
        N(put_some)(m_out + i, part, N(weighted)(a, s, keep2, take2), stream);
    }
    if (stream) vec_fence();
}

static void N(kappa_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *all_options) {
    const N(kappa_options) *options = all_options;
#define CALL(KAPPA) case KAPPA: N(kappa_range)(KAPPA, array, begin, end, options); break
    switch (options->step.kappa) {
        CALL(RN_KAPPA_L1);
        CALL(RN_KAPPA_SQ);
        CALL(RN_KAPPA_HUBER);
        CALL(RN_KAPPA_SOFTL1);
        CALL(RN_KAPPA_RELU);
        default: N(kappa_range)(RN_KAPPA_L2, array, begin, end, options);
    }
#undef CALL
}

/* The blocks' sums of squares of the blend divided by `unit`, at array->v_out. */
RN_INLINE double N(blend_squares)(const rn_optimizer_array *array, size_t begin, size_t end, const rn_lion_kappa_step *o, T unit) {
    const T *g = array->g, *m = array->m;
    VT keep = V(set)((T)o->beta1), take = V(set)((T) - (1 - o->beta1));
    vf64 sum = {0}, other = {0};
    for (size_t i = begin; i < end; i += LANES) {
        VT c = N(weighted)(N(load_some)(m + i, end - i, 0), N(load_some)(g + i, end - i, 0), keep, take);
        if (unit != 1) c = c / unit;
#if WIDE
        sum = vf64_fma(c, c, sum);
#else
        sum = vf64_fma(vf64_low(c), vf64_low(c), sum);
        other = vf64_fma(vf64_high(c), vf64_high(c), other);
#endif
    }
    return vf64_sum(sum + other);
}

static void N(blend_squares_sweep)(const rn_optimizer_array *array, size_t begin, size_t end, const void *options) {
    double *parts = array->v_out;
    for (size_t at = begin; at < end; at += BLOCK)
        parts[at / BLOCK] = N(blend_squares)(array, at, end - at < BLOCK ? end : at + BLOCK, options, 1);
}

/* Where the squares leave the range of float64: the largest magnitude first. No entry is NaN. */
static T N(careful_norm)(const rn_optimizer_array *array, const rn_lion_kappa_step *o) {
    const T *g = array->g, *m = array->m;
    size_t entries = entries_of(array);
    VT keep = V(set)((T)o->beta1), take = V(set)((T) - (1 - o->beta1)), most = {0};
    for (size_t i = 0; i < entries; i += LANES)
        most = V(max)(most, V(abs)(N(weighted)(N(load_some)(m + i, entries - i, 0), N(load_some)(g + i, entries - i, 0), keep, take)));
    T largest = V(largest)(most);
    if (largest == 0 || largest == INFINITY) return largest;
    return largest * (T)sqrt(N(blend_squares)(array, 0, entries, o, largest));
}

/* Both norms and sums are per array: a copy of each description has places for them in what it does not use. */
static int N(lion_kappa)(const rn_optimizer_array *arrays, size_t count, const rn_lion_kappa_step *o) {
    size_t blocks = 0, entries = all_entries(arrays, count);
    N(kappa_options) options = {*o, 2 * entries * sizeof(T) > rn_cache_bytes()};
    double nanoseconds = 0.25 * (double)sizeof(T) * (double)entries;
    if (o->kappa != RN_KAPPA_L2) {
        sweep_all(arrays, count, nanoseconds, N(kappa_sweep), &options);
        return 0;
    }
    for (size_t i = 0; i < count; i++) blocks += blocks_of(entries_of(arrays + i));
    rn_optimizer_array *own = malloc(count * sizeof *own + (blocks + count) * sizeof(double));
    if (own == NULL) return -1;
    double *parts = (double *)(own + count);
    T *norms = (T *)(parts + blocks);
    for (size_t i = 0, at = 0; i < count; at += blocks_of(entries_of(arrays + i)), i++) {
        own[i] = arrays[i];
        own[i].v_out = parts + at;
        own[i].v = norms + i;
    }
    sweep_all(own, count, nanoseconds / 2, N(blend_squares_sweep), o);
    for (size_t i = 0; i < count; i++) {
        const double *of_array = own[i].v_out;
        double sum = 0;
        for (size_t block = 0; block < blocks_of(entries_of(arrays + i)); block++) sum += of_array[block];
        norms[i] = sum < 1e-270 || sum > 1e300 ? N(careful_norm)(arrays + i, o) : (T)sqrt(sum);
    }
    sweep_all(own, count, nanoseconds, N(kappa_sweep), &options);
    free(own);
    return 0;
}
