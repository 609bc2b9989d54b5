/* Part of softmax_body.h: StableMax, p = s(x) / sum(s(x)) with s(x) = 1 + x, or 1 / (1 - x) below 0.
 *
 * s is computed in float64 whatever T is, and rounded once. Sums may overflow, and a reciprocal may underflow, so a power of two
 * brings the largest term near 1. A row's sum leaves out the entries equal to the largest and counts them, as the log-sum-exp does, so that the logarithm
 * keeps its digits when the others are far below. */

#define NS_STABLE (WIDE ? 1.6 : 0.8)

/* 1 / (2^1000) is as far as terms as small as 2^-1024 can be scaled up without overflow. */
#define LEAST_EXPONENT (-1000)

#if WIDE
#define STABLE_MAP(x, FUNCTION) FUNCTION(x)
#else
#define STABLE_MAP(x, FUNCTION) vf32_from_vf64(FUNCTION(vf64_low(x)), FUNCTION(vf64_high(x)))
#endif

static void N(stable_s)(const T *x, T *y, size_t count) {
    int threads = rn_threads(count, NS_STABLE * (double)count);
    RN_PARALLEL(threads) {
        RN_SHARE(count, first, last);
        const T *from = x + first;
#define S_OF(entry) STABLE_MAP(entry, stable_wide)
#define WHOLE value = S_OF(V(load)(from + i))
#define PART(count) value = S_OF(V(load_part)(from + i, count, 0))
        ROW_LOOP(last - first, y + first, 0, WHOLE, PART);
#undef WHOLE
#undef PART
#undef S_OF
    }
}

RN_INLINE VT N(stable_slope)(VT x, VT g) {
    VT size = (T)1 + V(abs)(x);
    return V(select)((VI)(x >= 0), g, g / (size * size));
}
static void N(stable_s_backward)(const T *x, const T *g, T *dx, size_t count) {
    int threads = rn_threads(count, 0.5 * (double)count);
    RN_PARALLEL(threads) {
        RN_SHARE(count, first, last);
        const T *from = x + first, *up = g + first;
#define WHOLE value = N(stable_slope)(V(load)(from + i), V(load)(up + i))
#define PART(count) value = N(stable_slope)(V(load_part)(from + i, count, 0), V(load_part)(up + i, count, 0))
        ROW_LOOP(last - first, dx + first, 0, WHOLE, PART);
#undef WHOLE
#undef PART
    }
}

/* Sum of scale s(x) over entries other than the largest, which are counted; s(x) goes to `terms` unless NULL. */
static double N(stable_sum)(const T *x, size_t length, T largest, double scale, T *terms, double *count) {
    VT top = V(set)(largest);
    vf64 factor = vf64_set(scale);
    N(lane_sum) sum = {{0}, {0}};
    double equal = 0;
    for (size_t i = 0; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        VT entry = left == LANES ? V(load)(x + i) : V(load_part)(x + i, left, -INFINITY);
        VI same = (VI)(entry == top);
        if (vi32_any((vi32)same))
            for (size_t lane = 0; lane < LANES; lane++) equal -= (double)same[lane];
#if WIDE
        vf64 s = stable_wide(entry) * factor;
        VT rounded = s;
        N(lane_add)(&sum, (vf64)((vi64)s & ~same));
#else
        vf64 low = stable_wide(vf64_low(entry)) * factor, high = stable_wide(vf64_high(entry)) * factor;
        VT rounded = vf32_from_vf64(low, high);
        sum.low += vf64_select((vi64)(vf64_low(entry) == (double)largest), vf64_set(0), low);
        sum.high += vf64_select((vi64)(vf64_high(entry) == (double)largest), vf64_set(0), high);
#endif
        if (terms) left == LANES ? V(store)(terms + i, rounded) : V(store_part)(terms + i, left, rounded);
    }
    *count = equal;
    return vf64_sum(sum.low) + vf64_sum(sum.high);
}

static rn_stable_stats N(stable_row)(const T *x, size_t length, T *terms) {
    T largest = N(largest)(x, length);
    rn_stable_stats found = {NAN, NAN, NAN, NAN};
    if (!isfinite(largest)) return found;
    double top = stable_one((double)largest), count;
    int exponent;
    frexp(top, &exponent);
    double scale = ldexp(1.0, -(exponent > LEAST_EXPONENT ? exponent : LEAST_EXPONENT));
    double rest = N(stable_sum)(x, length, largest, scale, terms, &count);
    if (rest != rest) return found; /* a NaN that the largest entry does not show */
    found.largest = (double)largest;
    found.scale = scale;
    found.total = count * (top * scale) + rest;
    found.log_sum = log1p((count - 1) + rest / (top * scale));
    return found;
}

static void N(stablemax)(const T *x, size_t stride, T *y, size_t rows, size_t length) {
    int threads = rn_threads(rows, NS_STABLE * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            T *to = y + row * length;
            rn_stable_stats s = N(stable_row)(x + row * stride, length, to);
            if (s.total == s.total)
                N(scale_terms)(to, to, length, N(reciprocal)((N(total)){s.total, 0}), 0);
            else
                N(fill)(to, length, NAN);
        }
    }
}

/* y = softmax's backward over h, whose slope is 1 / (1 + |x|) on both sides of 0. */
static void N(stablemax_backward)(const T *x, size_t stride, const T *y, const T *g, T *dx, size_t rows,
                                  size_t length) {
    int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride, *p = y + row * length, *up = g + row * length;
            T *to = dx + row * length;
            T base = up[N(index_of)(p, length, N(largest)(p, length))];
            VT shift = V(set)(base), mean = V(set)((T)N(dot_from)(p, up, length, base));
#define SLOPE(x, p, g) (p) * (((g)-shift) - mean) / ((T)1 + V(abs)(x))
#define WHOLE value = SLOPE(V(load)(from + i), V(load)(p + i), V(load)(up + i))
#define PART(count) \
    value = SLOPE(V(load_part)(from + i, count, 0), V(load_part)(p + i, count, 0), V(load_part)(up + i, count, 0))
            ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
#undef SLOPE
        }
    }
}

static void N(log_stablemax)(const T *x, size_t stride, T *z, size_t rows, size_t length, rn_stable_stats *stats) {
    int threads = rn_threads(rows, (WIDE ? 4 : 2) * NS_STABLE * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride;
            T *to = z + row * length;
            rn_stable_stats s = N(stable_row)(from, length, NULL);
            if (stats) stats[row] = s;
            if (s.total != s.total) {
                N(fill)(to, length, NAN);
                continue;
            }
#if WIDE
            vf64 top = vf64_set(stable_log_one(s.largest)), sum = vf64_set(s.log_sum);
#define LOG_OF(entry) ((stable_log(entry) - top) - sum)
#else
            /* A result far from 0 bears float32's rounding of its parts. The largest entries' may be near 0: -log_sum it is. */
            double below = stable_log_one(s.largest) + s.log_sum, steps = rint(below / 0x1.62e42fefa39efp-1);
            vf32 K = vf32_set((float)steps), rest = vf32_set((float)(below - steps * 0x1.62e42fefa39efp-1));
            vf32 top = vf32_set(s.largest), log_of_top = vf32_set((float)-s.log_sum);
#define LOG_OF(entry) vf32_select((entry) == top, log_of_top, stable_log_less(entry, K, rest))
#endif
#define WHOLE value = LOG_OF(V(load)(from + i))
#define PART(count) value = LOG_OF(V(load_part)(from + i, count, 0))
            ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
#undef LOG_OF
        }
    }
}

/* (g - p weight) / (1 + |x|) in float64, p = scale s / total */
RN_INLINE vf64 N(stable_pull)(vf64 x, vf64 g, vf64 scale, vf64 factor) {
    vf64 size = 1.0 + vf64_abs(x), inverse = 1.0 / size;
    vf64 s = vf64_select((vi64)(x >= 0.0), size, inverse) * scale;
    return (g - s * factor) * inverse;
}
#if WIDE
#define PULL(x, g) N(stable_pull)(x, g, scale, factor)
#else
#define PULL(x, g)                                                                     \
    vf32_from_vf64(N(stable_pull)(vf64_low(x), vf64_low(g), scale, factor), \
                   N(stable_pull)(vf64_high(x), vf64_high(g), scale, factor))
#endif

static void N(log_stablemax_backward)(const T *x, size_t stride, const T *g, T *dx, size_t rows, size_t length,
                                      const rn_stable_stats *stats) {
    int threads = rn_threads(rows, 2 * NS_STABLE * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride, *up = g + row * length;
            T *to = dx + row * length;
            vf64 scale = vf64_set(stats[row].scale), factor = vf64_set(N(sum_of)(up, length) / stats[row].total);
#define WHOLE value = PULL(V(load)(from + i), V(load)(up + i))
#define PART(count) value = PULL(V(load_part)(from + i, count, 0), V(load_part)(up + i, count, 0))
            ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
        }
    }
}

/* ---- cross-entropy ---------------------------------------------------------------------------------------------- */

static void N(stable_cross_entropy)(const T *x, size_t stride, const int64_t *target, size_t rows, size_t length,
                                    double *loss, rn_stable_stats *stats) {
    int threads = rn_threads(rows, NS_STABLE * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride;
            stats[row] = N(stable_row)(from, length, NULL);
            /* no term is negative */
            double below = stable_log_one(stats[row].largest) - stable_log_one((double)from[target[row]]);
            loss[row] = below + stats[row].log_sum;
        }
    }
}

static void N(stable_cross_entropy_backward)(const T *x, size_t stride, const int64_t *target, T *dx, size_t rows,
                                             size_t length, const double *weight, const rn_stable_stats *stats) {
    int threads = rn_threads(rows, 2 * NS_STABLE * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride;
            T *to = dx + row * length;
            vf64 scale = vf64_set(stats[row].scale), factor = vf64_set(-weight[row] / stats[row].total);
            VT none = {0};
#define WHOLE value = PULL(V(load)(from + i), none)
#define PART(count) value = PULL(V(load_part)(from + i, count, 0), none)
            ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
            /* p - 1 as expm1 of the logarithm: a sure answer's slope keeps its digits */
            double at = (double)from[target[row]];
            double z = (stable_log_one(at) - stable_log_one(stats[row].largest)) - stats[row].log_sum;
            to[target[row]] = (T)(weight[row] * expm1(z) / (1 + fabs(at)));
        }
    }
}

#undef PULL
#undef STABLE_MAP
#undef NS_STABLE
#undef LEAST_EXPONENT
