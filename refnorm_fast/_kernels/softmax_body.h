/* Body of softmax.c for one element type: T, its vector VT, masks VI, LANES lanes, WIDE = 1 for float64.
 *
 * An exponential is e^x = m 2^n with n = rint(x / ln2) and m = e^t, t = x - n ln2: x itself is reduced, not the rounded
 * difference x - largest, so m is as accurate for x near 1000 as for x near 0. A block shares one reference exponent
 * n_ref = rint(largest / ln2): its terms m 2^(n - n_ref + BIAS) are plain floating-point numbers, and blocks merge by
 * shifting to the larger exponent. BIAS keeps terms far below the largest normal numbers until the last multiplication,
 * which then rounds them once, into the subnormals too. */

#if WIDE
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define MAGIC VEC_RINT_MAGIC_WIDE
#define BIAS 512
#define DEPTH 800.0 /* e^-800 2^BIAS is normal, e^-800 below the smallest subnormal */
#define NS_EXP 1.6
#else
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define MAGIC VEC_RINT_MAGIC
#define BIAS 64
#define DEPTH 125.0f /* e^-125 2^BIAS is normal, e^-125 below the smallest subnormal */
#define NS_EXP 0.5
#endif
#define RAW_LIMIT ((T)65536) /* |x| below which the range reduction is exact */
#define BLOCK ((size_t)16384 / sizeof(T))
/* A row of this many blocks is shared by all threads. */
#define SHARED_BLOCKS 64

/* ---- sums ---------------------------------------------------------------------------------------------------- */

/* A sum that keeps more digits than T: float32 terms add up in float64, float64 terms in pairs (sum, error). */
typedef struct {
    vf64 high;
#if WIDE
    vf64 low;
#endif
} N(wide);

RN_INLINE void N(wide_add)(N(wide) *sum, VT term) {
#if WIDE
    vf64 total = sum->high + term;
    vf64 shifted = total - sum->high;
    sum->low += (sum->high - (total - shifted)) + (term - shifted);
    sum->high = total;
#else
    sum->high += vf64_low(term) + vf64_high(term);
#endif
}
RN_INLINE void N(wide_add4)(N(wide) *sum, VT a, VT b, VT c, VT d) {
#if WIDE
    N(wide_add)(sum, a);
    N(wide_add)(sum, b);
    N(wide_add)(sum, c);
    N(wide_add)(sum, d);
#else
    sum->high += ((vf64_low(a) + vf64_high(a)) + (vf64_low(b) + vf64_high(b))) +
                 ((vf64_low(c) + vf64_high(c)) + (vf64_low(d) + vf64_high(d)));
#endif
}
typedef struct {
    double high, low;
} N(total);
RN_INLINE N(total) N(wide_total)(N(wide) sum) {
#if WIDE
    double high = 0, low = vf64_sum(sum.low);
    for (int i = 0; i < VF64; i++) {
        double next = high + sum.high[i], shifted = next - high;
        low += (high - (next - shifted)) + (sum.high[i] - shifted);
        high = next;
    }
    return (N(total)){high, low};
#else
    return (N(total)){vf64_sum(sum.high), 0};
#endif
}

/* ---- rows and blocks ----------------------------------------------------------------------------------------- */

/* Largest entry; NaN is skipped, -inf if there is nothing else. */
static T N(largest)(const T *x, size_t length) {
    VT a = V(set)(-INFINITY), b = a, c = a, d = a;
    size_t i = 0;
    for (; i + 4 * LANES <= length; i += 4 * LANES) {
        a = V(max)(V(load)(x + i), a);
        b = V(max)(V(load)(x + i + LANES), b);
        c = V(max)(V(load)(x + i + 2 * LANES), c);
        d = V(max)(V(load)(x + i + 3 * LANES), d);
    }
    for (; i + LANES <= length; i += LANES) a = V(max)(V(load)(x + i), a);
    if (i < length) b = V(max)(V(load_part)(x + i, length - i, -INFINITY), b);
    return V(largest)(V(max)(V(max)(a, b), V(max)(c, d)));
}

static int N(has_nan)(const T *x, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (x[i] != x[i]) return 1;
    return 0;
}

/* How a block's exponentials are scaled: m 2^(n + offset) of x - shift, where x - shift < floor counts as floor. */
typedef struct {
    T shift; /* 0, or the largest entry where raw entries are too large to be reduced exactly */
    T floor;
    INT offset;
    long n_ref;
} N(scaling);

static N(scaling) N(scaling_for)(T largest, int subtract) {
    N(scaling) s;
    s.shift = subtract || !(largest > -RAW_LIMIT && largest < RAW_LIMIT) ? largest : 0;
    T top = largest - s.shift;
    s.floor = top - DEPTH;
    s.n_ref = lrint((double)top * 0x1.71547652b82fep+0);
    s.offset = (INT)(EXPONENT_BIAS + BIAS - s.n_ref);
    return s;
}

/* e^(x / temperature): x is reduced by multiples of temperature ln2, which is as exact as by ln2, and only the remainder is
 * divided. The division of x itself would round off what a large x / temperature has behind its binary point. */
typedef struct {
    T per; /* log2(e) / temperature */
    T high, low; /* temperature ln2 */
    T inverse, inverse_low; /* 1 / temperature */
    double step, over; /* the same in float64, for float32 without FMA */
} N(tempered);

static N(tempered) N(tempered_for)(double temperature) {
    N(tempered) b;
    b.step = temperature * 0x1.62e42fefa39efp-1, b.over = 1.0 / temperature;
    b.per = (T)(0x1.71547652b82fep+0 / temperature);
    b.inverse = (T)b.over;
#if WIDE
    /* as in vf64_exp_reduce the high part has 21 trailing zeros */
    double rest = fma(temperature, 0x1.62e42fefa39efp-1, -b.step) + temperature * 0x1.abc9e3b39803fp-56;
    uint64_t bits;
    memcpy(&bits, &b.step, sizeof bits);
    bits &= ~(uint64_t)0x1fffff;
    memcpy(&b.high, &bits, sizeof bits);
    b.low = (b.step - b.high) + rest;
    b.inverse_low = fma(-b.inverse, temperature, 1.0) * b.over;
#else
    b.high = (T)b.step;
    b.low = (T)(b.step - (double)b.high);
    b.inverse_low = (T)(b.over - (double)b.inverse);
#endif
    return b;
}

/* t = x / temperature - n ln2; EXACT: t + *low */
RN_INLINE VT N(reduce_tempered)(VT x, VT n, const N(tempered) *b, VT *low, int EXACT) {
#if !VEC_HAS_FMA && !WIDE
    vf64 first = (vf64_low(x) - vf64_low(n) * b->step) * b->over, second = (vf64_high(x) - vf64_high(n) * b->step) * b->over;
    vf32 t = vf32_from_vf64(first, second);
    if (EXACT) *low = vf32_from_vf64(first - vf64_low(t), second - vf64_high(t));
    return t;
#else
    VT inverse = V(set)(b->inverse), inverse_low = V(set)(b->inverse_low);
    VT exact = V(fma)(n, V(set)(-b->high), x), r = V(fma)(n, V(set)(-b->low), exact);
    VT t = V(fma)(r, inverse, r * inverse_low);
    if (EXACT) {
        VT lost = V(fma)(n, V(set)(-b->low), exact - r);
        *low = V(fma)(r, inverse, -t) + V(fma)(r, inverse_low, lost * inverse);
    }
    return t;
#endif
}

/* e^x scaled = (1 + p) * power, for WAYS vectors at once: one stage of all of them after the other, since a processor's
 * scheduler does not look far enough ahead to overlap whole chains. 1 + p is left to the caller to add up, because
 * rounding it is the largest error of all. What remains is the rounding of p and that of t, each a quarter of the unit 2^-24
 * (2^-53). EXACT leaves p as an unevaluated sum *p + *rest with neither. `base`: NULL, or e^(x / temperature) instead. */
#define WAYS 4
RN_INLINE void N(exp_parts_each)(const VT *entries, const VT *floor, const VI *offset, const N(tempered) *base, VT *p,
                                 VT *rest, VT *power, int count, int EXACT) {
    VT x[WAYS], n[WAYS], t[WAYS], low[WAYS], t2[WAYS];
    for (int k = 0; k < count; k++) x[k] = V(max)(floor[k], entries[k]); /* NaN passes: it is the second */
    for (int k = 0; k < count; k++)
        n[k] = base ? V(fma)(x[k], V(set)(base->per), V(set)(MAGIC)) : V(exp_exponent)(x[k]);
    for (int k = 0; k < count; k++) power[k] = (VT)((((VI)n[k]) + offset[k]) << MANTISSA_BITS);
    for (int k = 0; k < count; k++) n[k] -= MAGIC;
    for (int k = 0; k < count; k++)
        t[k] = base    ? N(reduce_tempered)(x[k], n[k], base, &low[k], EXACT)
               : EXACT ? V(exp_reduce_pair)(x[k], n[k], &low[k])
                       : V(exp_reduce)(x[k], n[k]);
    for (int k = 0; k < count; k++) t2[k] = t[k] * t[k];
    for (int k = 0; k < count; k++) p[k] = V(expm1_factor)(t[k], t2[k]);
    for (int k = 0; k < count; k++) {
        if (EXACT) {
            rest[k] = V(fma)(t2[k], p[k], low[k]);
            p[k] = t[k];
        } else {
            p[k] = V(fma)(t2[k], p[k], t[k]);
        }
    }
}
/* The same with one scaling for all of them. */
RN_INLINE void N(exp_parts_of)(const VT *entries, VT floor, VI offset, const N(tempered) *base, VT *p, VT *rest, VT *power,
                               int count, int EXACT) {
    VT floors[WAYS];
    VI offsets[WAYS];
    for (int k = 0; k < count; k++) floors[k] = floor, offsets[k] = offset;
    N(exp_parts_each)(entries, floors, offsets, base, p, rest, power, count, EXACT);
}
RN_INLINE void N(exp_parts)(const VT *entries, VT floor, VI offset, VT *p, VT *rest, VT *power, int count, int EXACT) {
    N(exp_parts_of)(entries, floor, offset, NULL, p, rest, power, count, EXACT);
}

/* Entries of a row that a mask leaves out count as -inf. MASK 0: there is no mask. */
RN_INLINE VT N(entry)(const T *x, const uint8_t *mask, size_t i, int MASK) {
    VT value = V(load)(x + i);
    return MASK ? V(select)(N(mask_at)(mask + i), value, V(set)(-INFINITY)) : value;
}
RN_INLINE VT N(entry_part)(const T *x, const uint8_t *mask, size_t i, size_t left, T fill, int MASK) {
    VT value = V(load_part)(x + i, left, fill);
    return MASK ? V(select)(N(mask_part)(mask + i, left), value, V(set)(-INFINITY)) : value;
}

/* Adds the term (1 + p) power to *sum + *lost, and returns it rounded.
 *
 * PLAIN: *sum adds up the powers and *lost the power * p. EXACT: (1 + p + rest) power, and nothing is lost, because *lost
 * collects what rounding the term and each addition lost: where one term dominates, a lost half unit would be the whole
 * error of the row. *sum starts at START_SUM, not at 0; no term is larger, so what an addition lost is found in two
 * operations (fast two-sum). MINUTE: as EXACT, for terms that may all be far below 1. *sum starts at 0 and the general
 * two-sum takes five operations. SPLIT: as EXACT in fewer operations with FMA, if the term itself is not wanted. */
enum { N(PLAIN), N(EXACT), N(SPLIT), N(MINUTE) };
#define START_SUM ((T)(WIDE ? 0x1p513 : 0x1p65)) /* 2^(BIAS + 1) */
RN_INLINE VT N(add_term)(VT *sum, VT *lost, VT power, VT p, VT rest, int FORM) {
    if (FORM == N(PLAIN)) {
        *sum += power;
        *lost = V(fma)(power, p, *lost);
        return power;
    }
    if (FORM == N(SPLIT)) {
        VT term = V(fma)(power, p, power), beyond = V(fma)(power, rest, V(fma)(power, p, power - term)), next = *sum + term;
        *lost += beyond + (term - (next - *sum));
        *sum = next;
        return term;
    }
    VT one = (T)1 + p, small = (p - (one - (T)1)) + rest, m = one + small;
    VT term = power * m, next = *sum + term;
    VT added = next - *sum, missed = term - added;
    if (FORM == N(MINUTE)) missed += *sum - (next - added);
    *lost = V(fma)(power, small - (m - one), *lost) + missed;
    *sum = next;
    return term;
}

/* Sum of the terms; STORE keeps them in `terms`. With `ahead`, entries that far on are fetched meanwhile: the next row, or
 * the next block of a row that is not in cache, whose way from memory the arithmetic hides. A result has up to 1.7 units of
 * error of its own, so its sum has to be EXACT or SPLIT; the logarithm of a sum can do with PLAIN. EXCLUDE leaves out those of
 * the entries equal to `largest` and counts them instead, so that the remainder keeps its relative accuracy however small
 * it is. Entries that the mask leaves out count as -inf (MASK 0: no mask); `base`: NULL, or the temperature. */
RN_INLINE N(total) N(exp_sum_in)(int FORM, const T *x, T *terms, size_t length, N(scaling) s, T largest, double *count,
                                 int STORE, int SHIFT, int EXCLUDE, size_t ahead, const uint8_t *mask, int MASK,
                                 const N(tempered) *base) {
    const T start = FORM == N(EXACT) || FORM == N(SPLIT) ? START_SUM : 0;
    VT floor = V(set)(s.floor), shift = V(set)(s.shift), top = V(set)(largest);
    VI offset = (VI){0} + s.offset;
    N(wide) sum = {0};
    VI equal = {0};
    size_t i = 0;
    while (i + WAYS * LANES <= length) {
        /* Few terms in a partial sum that loses digits. */
        size_t most = (FORM == N(PLAIN) ? 8 : FORM == N(SPLIT) ? 32 : 64) * LANES, stop = length - i < most ? length : i + most;
        VT a = V(set)(start), b = a, c = {0}, d = {0};
        for (; i + WAYS * LANES <= stop; i += WAYS * LANES) {
            VT entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
            for (int k = 0; k < WAYS; k++) entry[k] = N(entry)(x, mask, i + (size_t)k * LANES, MASK);
            if (ahead)
                for (int line = 0; line < WAYS * REFNORM_VECTOR_BYTES; line += 64)
                    __builtin_prefetch((const char *)(x + i + ahead) + line);
            if (SHIFT)
                for (int k = 0; k < WAYS; k++) entry[k] -= shift;
            N(exp_parts_of)(entry, floor, offset, base, p, rest, power, WAYS, FORM != N(PLAIN));
            if (EXCLUDE)
                for (int k = 0; k < WAYS; k++) {
                    VI same = (VI)(N(entry)(x, mask, i + (size_t)k * LANES, MASK) == top);
                    power[k] = (VT)((VI)power[k] & ~same);
                    equal += same;
                }
            for (int k = 0; k < WAYS; k += 2) {
                VT e = N(add_term)(&a, &c, power[k], p[k], rest[k], FORM);
                VT f = N(add_term)(&b, &d, power[k + 1], p[k + 1], rest[k + 1], FORM);
                if (STORE) {
                    V(store)(terms + i + (size_t)k * LANES, e);
                    V(store)(terms + i + (size_t)(k + 1) * LANES, f);
                }
            }
        }
        if (start != 0) a -= start, b -= start;
        N(wide_add4)(&sum, a, b, c, d);
    }
    VT a = V(set)(start), b = {0};
    for (; i < length; i += LANES) {
        VT raw, entry, p, rest = {0}, power;
        size_t left = length - i;
        raw = left >= LANES ? N(entry)(x, mask, i, MASK) : N(entry_part)(x, mask, i, left, -INFINITY, MASK);
        entry = SHIFT ? raw - shift : raw;
        N(exp_parts_of)(&entry, floor, offset, base, &p, &rest, &power, 1, FORM != N(PLAIN));
        if (EXCLUDE) {
            VI same = (VI)(raw == top);
            power = (VT)((VI)power & ~same);
            equal += same;
        }
        VT e = N(add_term)(&a, &b, power, p, rest, FORM);
        if (STORE) {
            if (left >= LANES)
                V(store)(terms + i, e);
            else
                V(store_part)(terms + i, left, e);
        }
    }
    if (start != 0) a -= start;
    N(wide_add)(&sum, a);
    N(wide_add)(&sum, b);
    if (EXCLUDE) {
        int64_t found = 0;
        for (int lane = 0; lane < LANES; lane++) found -= equal[lane];
        *count = (double)found;
    }
    return N(wide_total)(sum);
}

RN_INLINE N(total) N(exp_sum)(const T *x, T *terms, size_t length, N(scaling) s, T largest, double *count,
                              int STORE, int SHIFT, int EXCLUDE, size_t ahead) {
    return N(exp_sum_in)(EXCLUDE ? N(MINUTE) : STORE || !VEC_HAS_FMA ? N(EXACT) : N(SPLIT), x, terms, length, s, largest, count, STORE, SHIFT, EXCLUDE, ahead, NULL, 0, NULL);
}

/* A factor of twice the precision, by which the terms are multiplied with one rounding. */
typedef struct {
    T high, low;
} N(factor);

static N(factor) N(factor_of)(double value) {
    N(factor) f;
    f.high = (T)value;
    f.low = (T)(value - (double)f.high);
    return f;
}
static N(factor) N(reciprocal)(N(total) sum) {
    /* low must be below the last digit of high: what it is multiplied by is taken as 1. */
    double whole = sum.high + sum.low, rest = (sum.high - whole) + sum.low, high = 1.0 / whole;
#if WIDE
    N(factor) f = {high, (fma(-whole, high, 1.0) - rest * high) * high};
    return f;
#else
    (void)rest;
    return N(factor_of)(high);
#endif
}

/* e * (high + low), rounded once; in float64 without FMA twice. */
RN_INLINE VT N(scale)(VT e, VT high, VT low) {
#if !VEC_HAS_FMA && !WIDE
    vf64 first = vf64_low(e) * (vf64_low(high) + vf64_low(low));
    return vf32_from_vf64(first, vf64_high(e) * (vf64_low(high) + vf64_low(low)));
#else
    return V(fma)(e, high, e * low);
#endif
}

/* softmax at x: the scaled e^x times (high + low). 1 + p is never rounded, and the power of two is exact but for results
 * below the normal numbers. */
RN_INLINE VT N(softmax_of)(VT x, VT floor, VI offset, const N(tempered) *base, VT high, VT low) {
    VT p, rest, power;
    N(exp_parts_of)(&x, floor, offset, base, &p, &rest, &power, 1, 0);
    return power * (high + V(fma)(p, high, low));
}
RN_INLINE VT N(softmax_at)(VT x, VT floor, VI offset, VT high, VT low) {
    return N(softmax_of)(x, floor, offset, NULL, high, low);
}

/* Number of entries before the first aligned vector of y, for non-temporal stores. */
RN_INLINE size_t N(head)(const T *y, size_t length) {
    size_t head = (size_t)(-(uintptr_t)y & (REFNORM_VECTOR_BYTES - 1)) / sizeof(T);
    return head < length ? head : length;
}

/* Runs BODY(load, store) over the entries of a row: aligned stores if STREAM. `value` is assigned by BODY from i. */
#define ROW_LOOP(length, y, STREAM, EXPRESSION, EXPRESSION_PART)               \
    do {                                                                       \
        size_t i = 0, left_;                                                   \
        VT value;                                                              \
        if (STREAM) {                                                          \
            left_ = N(head)(y, length);                                        \
            if (left_) {                                                       \
                EXPRESSION_PART(left_);                                        \
                V(store_part)(y, left_, value);                                \
                i = left_;                                                     \
            }                                                                  \
            for (; i + LANES <= (length); i += LANES) {                        \
                EXPRESSION;                                                    \
                V(stream)((y) + i, value);                                     \
            }                                                                  \
        } else {                                                               \
            for (; i + LANES <= (length); i += LANES) {                        \
                EXPRESSION;                                                    \
                V(store)((y) + i, value);                                      \
            }                                                                  \
        }                                                                      \
        left_ = (length) - i;                                                  \
        if (left_) {                                                           \
            EXPRESSION_PART(left_);                                            \
            V(store_part)((y) + i, left_, value);                              \
        }                                                                      \
    } while (0)

/* y = terms * factor */
RN_INLINE void N(scale_terms)(const T *terms, T *y, size_t length, N(factor) f, int STREAM) {
    VT high = V(set)(f.high), low = V(set)(f.low);
#define WHOLE value = N(scale)(V(load)(terms + i), high, low)
#define PART(count) value = N(scale)(V(load_part)(terms + i, count, 0), high, low)
    ROW_LOOP(length, y, STREAM, WHOLE, PART);
#undef WHOLE
#undef PART
}

/* y = exp(x) * factor, exponentials computed anew */
RN_INLINE void N(scale_exp_body)(const T *x, T *y, size_t length, N(scaling) s, N(factor) f, int STREAM, int SHIFT) {
    VT floor = V(set)(s.floor), shift = V(set)(s.shift), high = V(set)(f.high), low = V(set)(f.low);
    VI offset = (VI){0} + s.offset;
    size_t i = STREAM ? N(head)(y, length) : 0;
    if (i) {
        VT entry = V(load_part)(x, i, 0);
        V(store_part)(y, i, N(softmax_at)(SHIFT ? entry - shift : entry, floor, offset, high, low));
    }
    for (; i + WAYS * LANES <= length; i += WAYS * LANES) {
        VT entry[WAYS], p[WAYS], rest[WAYS], power[WAYS];
        for (int k = 0; k < WAYS; k++) entry[k] = V(load)(x + i + (size_t)k * LANES);
        if (SHIFT)
            for (int k = 0; k < WAYS; k++) entry[k] -= shift;
        N(exp_parts)(entry, floor, offset, p, rest, power, WAYS, 0);
        for (int k = 0; k < WAYS; k++) p[k] = V(fma)(p[k], high, low);
        for (int k = 0; k < WAYS; k++) p[k] = high + p[k];
        for (int k = 0; k < WAYS; k++) {
            VT value = power[k] * p[k];
            if (STREAM)
                V(stream)(y + i + (size_t)k * LANES, value);
            else
                V(store)(y + i + (size_t)k * LANES, value);
        }
    }
    for (; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        VT entry = V(load_part)(x + i, left, 0);
        V(store_part)(y + i, left, N(softmax_at)(SHIFT ? entry - shift : entry, floor, offset, high, low));
    }
}
static void N(scale_exp)(const T *x, T *y, size_t length, N(scaling) s, N(factor) f, int stream) {
    if (s.shift != 0)
        stream ? N(scale_exp_body)(x, y, length, s, f, 1, 1) : N(scale_exp_body)(x, y, length, s, f, 0, 1);
    else
        stream ? N(scale_exp_body)(x, y, length, s, f, 1, 0) : N(scale_exp_body)(x, y, length, s, f, 0, 0);
}

static void N(fill)(T *y, size_t length, T value) {
    for (size_t i = 0; i < length; i++) y[i] = value;
}

/* ---- softmax of rows in cache ---------------------------------------------------------------------------------- */

/* Rows of one group go through each stage together, so that short rows do not wait for each other's reductions. */
#define GROUP 8
#define GROUP_BYTES ((size_t)8192)

/* terms: scratch for a group's entries, or y itself; more: whether a row follows the group */
RN_INLINE void N(softmax_group)(const T *x, size_t stride, T *y, size_t rows, size_t length, T *terms, int more,
                                int STREAM) {
    T largest[GROUP];
    N(scaling) s[GROUP];
    N(total) sum[GROUP];
    for (size_t row = 0; row < rows; row++) largest[row] = N(largest)(x + row * stride, length);
    for (size_t row = 0; row < rows; row++)
        if (isfinite(largest[row])) s[row] = N(scaling_for)(largest[row], 0);
    for (size_t row = 0; row < rows; row++) {
        const T *from = x + row * stride;
        size_t ahead = more || row + 1 < rows ? rows * stride : 0;
        if (!isfinite(largest[row])) continue;
        sum[row] = s[row].shift != 0 ? N(exp_sum)(from, terms + row * length, length, s[row], 0, NULL, 1, 1, 0, ahead)
                                     : N(exp_sum)(from, terms + row * length, length, s[row], 0, NULL, 1, 0, 0, ahead);
    }
    for (size_t row = 0; row < rows; row++) {
        if (isfinite(largest[row]))
            N(scale_terms)(terms + row * length, y + row * length, length, N(reciprocal)(sum[row]), STREAM);
        else
            N(fill)(y + row * length, length, NAN);
    }
}
static size_t N(group)(size_t length) {
    size_t fit = GROUP_BYTES / (length * sizeof(T));
    return fit < 1 ? 1 : fit > GROUP ? GROUP : fit;
}
static void N(softmax_rows)(const T *x, size_t stride, T *y, size_t rows, size_t length, T *scratch) {
    size_t group = N(group)(length);
    for (size_t row = 0; row < rows; row += group) {
        size_t count = rows - row < group ? rows - row : group;
        const T *from = x + row * stride;
        T *to = y + row * length;
        if (scratch)
            N(softmax_group)(from, stride, to, count, length, scratch, row + count < rows, 1);
        else
            N(softmax_group)(from, stride, to, count, length, to, row + count < rows, 0);
    }
    if (scratch) vec_fence();
}

/* ---- one row out of cache: sums of blocks ---------------------------------------------------------------------- */

typedef struct {
    double high, low; /* sum of m 2^(n - n_ref + BIAS) */
    long n_ref;
    T largest;
    int raw; /* the entries could be reduced without subtracting the largest */
} N(pair);

RN_INLINE N(pair) N(block_pair_in)(int FORM, const T *x, size_t length, size_t ahead) {
    N(pair) pair = {0, 0, 0, N(largest)(x, length), 1};
    if (!isfinite(pair.largest)) {
        if (pair.largest > 0 || N(has_nan)(x, length)) pair.high = NAN;
        return pair;
    }
    N(scaling) s = N(scaling_for)(pair.largest, 0);
    if (s.shift != 0) {
        pair.raw = 0;
        return pair;
    }
    N(total) sum = N(exp_sum_in)(FORM, x, NULL, length, s, pair.largest, NULL, 0, 0, 0, ahead, NULL, 0, NULL);
    pair.high = sum.high;
    pair.low = sum.low;
    pair.n_ref = s.n_ref;
    return pair;
}
static N(pair) N(block_pair)(const T *x, size_t length, size_t ahead) {
    return N(block_pair_in)(VEC_HAS_FMA ? N(SPLIT) : N(EXACT), x, length, ahead);
}
static N(pair) N(block_pair_of_log)(const T *x, size_t length, size_t ahead) {
    return N(block_pair_in)(!VEC_HAS_FMA ? N(EXACT) : WIDE ? N(SPLIT) : N(PLAIN), x, length, ahead);
}

/* The whole row's pair: shifts the blocks' sums to the largest exponent, in block order. */
static N(pair) N(merge_pairs)(const N(pair) *pairs, size_t count) {
    N(pair) all = {0, 0, 0, -INFINITY, 1};
    int any = 0;
    for (size_t i = 0; i < count; i++) {
        if (pairs[i].largest > all.largest) all.largest = pairs[i].largest;
        all.raw &= pairs[i].raw;
        if (pairs[i].high > 0 && (!any || pairs[i].n_ref > all.n_ref)) all.n_ref = pairs[i].n_ref, any = 1;
    }
    for (size_t i = 0; i < count; i++) {
        if (pairs[i].high != pairs[i].high) all.high = NAN;
        if (!(pairs[i].high > 0)) continue;
        double factor = pow2_of(pairs[i].n_ref - all.n_ref);
        double term = pairs[i].high * factor, total = all.high + term, shifted = total - all.high;
        all.low += (all.high - (total - shifted)) + (term - shifted) + pairs[i].low * factor;
        all.high = total;
    }
    if (!any && all.raw) all.high = NAN; /* nothing but -inf */
    return all;
}

/* Sum of exp(x - largest) 2^BIAS over one row with a known largest entry, block by block. */
static N(total) N(shifted_sum)(const T *x, size_t length, N(scaling) s) {
    N(total) all = {0, 0};
    for (size_t at = 0; at < length; at += BLOCK) {
        size_t size = length - at < BLOCK ? length - at : BLOCK;
        N(total) part = N(exp_sum)(x + at, NULL, size, s, 0, NULL, 0, 1, 0, 0);
        double total = all.high + part.high, shifted = total - all.high;
        all.low += (all.high - (total - shifted)) + (part.high - shifted) + part.low;
        all.high = total;
    }
    return all;
}

/* The baselines of the paper, in their own arithmetic (x - largest is rounded): one thread a row. */
static void N(baseline_row)(const T *x, T *y, size_t length, int algorithm, int stream) {
    if (algorithm == RN_ONLINE) {
        T largest = -INFINITY;
        double sum = 0;
        for (size_t at = 0; at < length; at += BLOCK) {
            size_t size = length - at < BLOCK ? length - at : BLOCK;
            T block = N(largest)(x + at, size);
            if (!isfinite(block)) {
                if (block > 0 || N(has_nan)(x + at, size)) sum = NAN;
                continue;
            }
            if (block > largest) {
                if (sum != 0) sum *= exp((double)largest - (double)block);
                largest = block;
            }
            sum += N(exp_sum)(x + at, NULL, size, N(scaling_for)(largest, 1), 0, NULL, 0, 1, 0,
                              length - at > BLOCK ? BLOCK : 0).high;
        }
        if (sum == 0) sum = NAN;
        N(total) all = {sum, 0};
        N(scaling) s = N(scaling_for)(isfinite(largest) ? largest : 0, 1);
        N(scale_exp)(x, y, length, s, N(reciprocal)(all), stream);
        return;
    }
    T largest = N(largest)(x, length);
    if (!isfinite(largest)) {
        N(fill)(y, length, NAN);
        return;
    }
    N(scaling) s = N(scaling_for)(largest, 1);
    if (algorithm == RN_THREE_PASS_RECOMPUTE) {
        N(scale_exp)(x, y, length, s, N(reciprocal)(N(shifted_sum)(x, length, s)), stream);
    } else {
        N(total) sum = N(exp_sum)(x, y, length, s, largest, NULL, 1, 1, 0, 0);
        N(scale_terms)(y, y, length, N(reciprocal)(sum), 0);
    }
}

/* Second pass over a range of blocks. It runs forward like the first: read backwards, the last blocks would still be in
 * cache, but the processor fetches ahead in one direction only, and the pass takes twice as long. */
static void N(two_pass_output)(const T *x, T *y, size_t length, size_t first, size_t last, const N(pair) *all,
                               int stream) {
    N(scaling) s = N(scaling_for)(isfinite(all->largest) ? all->largest : 0, 0);
    N(factor) f = N(reciprocal)((N(total)){all->high, all->low});
    size_t at = first * BLOCK, end = last * BLOCK < length ? last * BLOCK : length;
    if (at < end) N(scale_exp)(x + at, y + at, end - at, s, f, stream);
}

/* Rows too large for the caches, two passes over each; the threads share every row, in blocks whose bounds depend on
 * the length only. */
static int N(two_pass_rows)(const T *x, size_t stride, T *y, size_t rows, size_t length, int stream) {
    size_t blocks = (length + BLOCK - 1) / BLOCK;
    N(pair) *pairs = rn_scratch(0, 2 * blocks * sizeof(N(pair)));
    if (pairs == NULL) return -1;
    int share = blocks >= SHARED_BLOCKS;
    int threads = rn_threads(share ? blocks : 1, 2 * NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        for (size_t row = 0; row < rows; row++) {
            const T *from = x + row * stride;
            T *to = y + row * length;
            /* Two sets, so that a thread ahead does not overwrite what another still reads. */
            N(pair) *mine = pairs + (row & 1) * blocks;
            for (size_t block = first; block < last; block++) {
                size_t at = block * BLOCK;
                mine[block] = N(block_pair)(from + at, length - at < BLOCK ? length - at : BLOCK,
                                            block + 1 < last ? BLOCK : 0);
            }
            RN_BARRIER;
            N(pair) all = N(merge_pairs)(mine, blocks);
            if (all.raw) {
                N(two_pass_output)(from, to, length, first, last, &all, stream);
            } else {
                /* Entries of 65536 and more: there x - largest is exact wherever it is not far below -DEPTH. */
                if (first == 0) N(baseline_row)(from, to, length, RN_THREE_PASS_RECOMPUTE, stream);
                RN_BARRIER;
            }
        }
        if (stream) vec_fence();
    }
    return 0;
}

static int N(softmax)(const T *x, size_t stride, T *y, size_t rows, size_t length, int algorithm) {
    if (length == 1) {
        /* Exactly 1 for any finite entry, NaN otherwise; x may be y. */
        for (size_t row = 0; row < rows; row++) y[row] = x[row * stride] * 0 + 1;
        return 0;
    }
    size_t row_bytes = length * sizeof(T);
    int stream = rows * row_bytes > rn_cache_bytes() / 2 && (const T *)y != x && (uintptr_t)y % sizeof(T) == 0;
    if (algorithm == RN_TWO_PASS_ALWAYS || (algorithm == RN_TWO_PASS && row_bytes > RELOAD_BYTES)) {
        if (length >= SHARED_BLOCKS * BLOCK || rows == 1)
            return N(two_pass_rows)(x, stride, y, rows, length, stream);
        int threads = rn_threads(rows, 2 * NS_EXP * (double)rows * (double)length), failed = 0;
        RN_PARALLEL(threads) {
            RN_SHARE(rows, first, last);
            if (N(two_pass_rows)(x + first * stride, stride, y + first * length, last - first, length, stream))
                failed = 1;
        }
        return failed ? -1 : 0;
    }
    int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length), failed = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        const T *from = x + first * stride;
        T *to = y + first * length;
        if (algorithm != RN_TWO_PASS) {
            for (size_t row = first; row < last; row++, from += stride, to += length)
                N(baseline_row)(from, to, length, algorithm, stream);
            vec_fence();
        } else {
            T *terms = stream ? rn_scratch(0, N(group)(length) * row_bytes) : NULL;
            if (stream && terms == NULL)
                failed = 1;
            else
                N(softmax_rows)(from, stride, to, last - first, length, terms);
        }
    }
    return failed ? -1 : 0;
}

/* ---- log-sum-exp of a row: (largest, how many times, rest) ------------------------------------------------------ */

/* Over the entries seen: sum exp(x - largest) = count + rest. */
typedef struct {
    double largest, count, rest;
} N(lse);

static N(lse) N(block_lse)(const T *x, size_t length) {
    T largest = N(largest)(x, length);
    if (!isfinite(largest)) {
        double rest = largest > 0 || N(has_nan)(x, length) ? NAN : 0;
        return (N(lse)){-INFINITY, 0, rest};
    }
    N(scaling) s = N(scaling_for)(largest, 0);
    N(lse) found = {(double)largest, 0, 0};
    double top = s.shift != 0 ? 0.0 : (double)largest;
    N(total) rest = s.shift != 0 ? N(exp_sum)(x, NULL, length, s, largest, &found.count, 0, 1, 1, 0)
                                 : N(exp_sum)(x, NULL, length, s, largest, &found.count, 0, 0, 1, 0);
    found.rest = (rest.high + rest.low) * pow2_of(-BIAS) * exp(exponent_minus((double)s.n_ref, top));
    return found;
}
static void N(lse_merge)(N(lse) *all, N(lse) next) {
    if (next.count == 0) {
        all->rest += next.rest; /* NaN or 0 */
    } else if (next.largest > all->largest) {
        double kept = all->count + all->rest;
        /* exp(-inf - finite) is 0, and kept may be NaN */
        all->rest = next.rest + kept * exp(all->largest - next.largest);
        all->largest = next.largest;
        all->count = next.count;
    } else if (next.largest == all->largest) {
        all->count += next.count;
        all->rest += next.rest;
    } else {
        all->rest += (next.count + next.rest) * exp(next.largest - all->largest);
    }
}
static void N(lse_store)(N(lse) all, double *largest, double *log_sum) {
    int none = all.count == 0 || all.rest != all.rest;
    *largest = none ? NAN : all.largest;
    *log_sum = none ? NAN : log1p((all.count - 1) + all.rest);
}

/* log sum exp(x - largest) from the sum with the largest entry in it, if nothing is lost that way: the sum is right to
 * about 2^-24, its logarithm as much absolutely, which is a quarter of a unit of numbers above 2. One pass without
 * comparisons, one logarithm. In float64 the terms have no digits to spare. */
#define PLAIN_LOG_LEAST 2.0
static int N(log_of_pair)(N(pair) all, double *largest, double *log_sum) {
    if (WIDE || !all.raw || !(all.high > 0)) return 0;
    double found = log((all.high + all.low) * pow2_of(-BIAS)) + exponent_minus((double)all.n_ref, (double)all.largest);
    if (!(found > PLAIN_LOG_LEAST)) return 0;
    *largest = (double)all.largest;
    *log_sum = found;
    return 1;
}

/* Blocks of a row shorter than SHARED_BLOCKS blocks. */
static int N(plain_row_lse)(const T *x, size_t length, double *largest, double *log_sum) {
    N(pair) pairs[SHARED_BLOCKS];
    size_t blocks = 0;
    for (size_t at = 0; at < length; at += BLOCK, blocks++)
        pairs[blocks] = N(block_pair_of_log)(x + at, length - at < BLOCK ? length - at : BLOCK, length - at > BLOCK ? BLOCK : 0);
    return N(log_of_pair)(blocks == 1 ? pairs[0] : N(merge_pairs)(pairs, blocks), largest, log_sum);
}

static void N(row_lse)(const T *x, size_t length, double *largest, double *log_sum) {
    if (!WIDE && N(plain_row_lse)(x, length, largest, log_sum)) return;
    N(lse) all = {-INFINITY, 0, 0};
    for (size_t at = 0; at < length; at += BLOCK)
        N(lse_merge)(&all, N(block_lse)(x + at, length - at < BLOCK ? length - at : BLOCK));
    N(lse_store)(all, largest, log_sum);
}

/* Stats of up to LOG_ROWS rows. Rows of one block in float32 take their logarithms together, as log_of_pair would each. */
#define LOG_ROWS ((size_t)16)
static void N(rows_lse)(const T *x, size_t stride, size_t rows, size_t length, double *largest, double *log_sum) {
    double sum[LOG_ROWS], n_ref[LOG_ROWS], top[LOG_ROWS], found[LOG_ROWS];
    if (WIDE || length > BLOCK) {
        for (size_t row = 0; row < rows; row++) N(row_lse)(x + row * stride, length, largest + row, log_sum + row);
        return;
    }
    for (size_t row = 0; row < LOG_ROWS; row++) {
        sum[row] = 0, n_ref[row] = 0, top[row] = 0;
        if (row >= rows) continue;
        N(pair) pair = N(block_pair_of_log)(x + row * stride, length, 0);
        if (!pair.raw || !(pair.high > 0)) continue;
        sum[row] = (pair.high + pair.low) * pow2_of(-BIAS);
        n_ref[row] = (double)pair.n_ref, top[row] = (double)pair.largest;
    }
    for (size_t row = 0; row < rows; row += VF64) {
        vf64 log = log_of_scaled_sum(vf64_load(sum + row), vf64_load(n_ref + row), vf64_load(top + row));
        vf64_store(found + row, log);
    }
    for (size_t row = 0; row < rows; row++) {
        largest[row] = top[row], log_sum[row] = found[row];
        if (!(found[row] > PLAIN_LOG_LEAST)) N(row_lse)(x + row * stride, length, largest + row, log_sum + row);
    }
}

/* z = (x - largest) - log_sum: two roundings at the size of z or below */
RN_INLINE void N(subtract_body)(const T *x, T *z, size_t length, double largest, double log_sum, int STREAM) {
    VT top = V(set)((T)largest), sum = V(set)((T)log_sum);
#define WHOLE value = (V(load)(x + i) - top) - sum
#define PART(count) value = (V(load_part)(x + i, count, 0) - top) - sum
    ROW_LOOP(length, z, STREAM, WHOLE, PART);
#undef WHOLE
#undef PART
}

/* Runs over rows, or over the blocks of one row after another when the rows are few and long. z may be NULL. */
static int N(log_softmax)(const T *x, size_t stride, T *z, size_t rows, size_t length, double *largest,
                          double *log_sum) {
    size_t blocks = (length + BLOCK - 1) / BLOCK;
    int stream = z != NULL && z != x && rows * length * sizeof(T) > rn_cache_bytes() / 2;
    if (blocks < SHARED_BLOCKS) {
        int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length);
        RN_PARALLEL(threads) {
            RN_SHARE(rows, first, last);
            size_t group = length > BLOCK / LOG_ROWS ? 1 : LOG_ROWS; /* rows that stay in the first-level cache */
            for (size_t row = first; row < last; row += group) {
                double top[LOG_ROWS], sum[LOG_ROWS];
                size_t count = last - row < group ? last - row : group;
                N(rows_lse)(x + row * stride, stride, count, length, top, sum);
                for (size_t i = 0; i < count; i++) {
                    const T *from = x + (row + i) * stride;
                    T *to = z ? z + (row + i) * length : NULL;
                    if (largest) largest[row + i] = top[i], log_sum[row + i] = sum[i];
                    if (z && stream) N(subtract_body)(from, to, length, top[i], sum[i], 1);
                    if (z && !stream) N(subtract_body)(from, to, length, top[i], sum[i], 0);
                }
            }
            vec_fence();
        }
        return 0;
    }
    /* Two sets of each, so that a thread ahead does not overwrite what another still reads. */
    N(lse) *parts = rn_scratch(0, 2 * blocks * sizeof(N(lse)));
    N(pair) *pairs = rn_scratch(1, 2 * blocks * sizeof(N(pair)));
    if (parts == NULL || pairs == NULL) return -1;
    int threads = rn_threads(blocks, NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        size_t begin = first * BLOCK, end = last * BLOCK < length ? last * BLOCK : length;
        for (size_t row = 0; row < rows; row++) {
            const T *from = x + row * stride;
            double top, sum;
            int done = 0;
            if (!WIDE) {
                N(pair) *mine = pairs + (row & 1) * blocks;
                for (size_t block = first; block < last; block++) {
                    size_t at = block * BLOCK;
                    mine[block] = N(block_pair_of_log)(from + at, length - at < BLOCK ? length - at : BLOCK,
                                                block + 1 < last ? BLOCK : 0);
                }
                RN_BARRIER;
                done = N(log_of_pair)(N(merge_pairs)(mine, blocks), &top, &sum); /* the same in every thread */
            }
            if (!done) {
                N(lse) *mine = parts + (row & 1) * blocks;
                for (size_t block = first; block < last; block++) {
                    size_t at = block * BLOCK;
                    mine[block] = N(block_lse)(from + at, length - at < BLOCK ? length - at : BLOCK);
                }
                RN_BARRIER;
                N(lse) all = {-INFINITY, 0, 0};
                for (size_t block = 0; block < blocks; block++) N(lse_merge)(&all, mine[block]);
                N(lse_store)(all, &top, &sum);
            }
            if (largest && first == 0) largest[row] = top, log_sum[row] = sum;
            if (z && begin < end)
                stream ? N(subtract_body)(from + begin, z + row * length + begin, end - begin, top, sum, 1)
                       : N(subtract_body)(from + begin, z + row * length + begin, end - begin, top, sum, 0);
        }
        vec_fence();
    }
    return 0;
}

static int N(row_stats)(const T *x, size_t stride, size_t rows, size_t length, double *largest, double *log_sum) {
    return N(log_softmax)(x, stride, NULL, rows, length, largest, log_sum);
}

/* ---- from the stats -------------------------------------------------------------------------------------------- */

/* Scaling and factor with which a row's terms become weight * softmax. */
static N(factor) N(stats_factor)(double largest, double log_sum, double weight, N(scaling) *s) {
    *s = N(scaling_for)(isfinite(largest) ? (T)largest : 0, 0);
    double top = s->shift != 0 ? 0.0 : largest;
    double value = weight * pow2_of(-BIAS) * exp(exponent_minus((double)s->n_ref, top) - log_sum);
    if (largest != largest) value = NAN;
    return N(factor_of)(value);
}

static void N(softmax_from_stats)(const T *x, size_t stride, T *out, size_t rows, size_t length,
                                  const double *largest, const double *log_sum, const double *factor) {
    int stream = out != x && rows * length * sizeof(T) > rn_cache_bytes() / 2;
    int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            N(scaling) s;
            N(factor) f = N(stats_factor)(largest[row], log_sum[row], factor[row], &s);
            N(scale_exp)(x + row * stride, out + row * length, length, s, f, stream);
        }
        vec_fence();
    }
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

static double N(sum_of)(const T *a, size_t length) {
    N(wide) sum = {0};
    size_t i = 0;
    while (i + 4 * LANES <= length) {
        size_t stop = length - i < 32 * LANES ? length : i + 32 * LANES;
        VT p = {0}, q = {0}, r = {0}, s = {0};
        for (; i + 4 * LANES <= stop; i += 4 * LANES) {
            p += V(load)(a + i);
            q += V(load)(a + i + LANES);
            r += V(load)(a + i + 2 * LANES);
            s += V(load)(a + i + 3 * LANES);
        }
        N(wide_add4)(&sum, p, q, r, s);
    }
    for (; i + LANES <= length; i += LANES) N(wide_add)(&sum, V(load)(a + i));
    if (i < length) N(wide_add)(&sum, V(load_part)(a + i, length - i, 0));
    N(total) all = N(wide_total)(sum);
    return all.high + all.low;
}

/* Index of the first entry equal to `value`, 0 if there is none. */
static size_t N(index_of)(const T *x, size_t length, T value) {
    VT wanted = V(set)(value);
    size_t i = 0;
    for (; i + LANES <= length; i += LANES)
        if (vi32_any((vi32)(V(load)(x + i) == wanted))) break;
    for (; i < length; i++)
        if (x[i] == value) return i;
    return 0;
}

/* sum y (g - base) */
static double N(dot_from)(const T *y, const T *g, size_t length, T base) {
    N(wide) sum = {0};
    VT from = V(set)(base);
    size_t i = 0;
    while (i + 2 * LANES <= length) {
        size_t stop = length - i < 16 * LANES ? length : i + 16 * LANES;
        VT p = {0}, q = {0};
        for (; i + 2 * LANES <= stop; i += 2 * LANES) {
            p = V(fma)(V(load)(y + i), V(load)(g + i) - from, p);
            q = V(fma)(V(load)(y + i + LANES), V(load)(g + i + LANES) - from, q);
        }
        N(wide_add)(&sum, p);
        N(wide_add)(&sum, q);
    }
    for (; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        N(wide_add)(&sum, V(load_part)(y + i, left, 0) * (V(load_part)(g + i, left, 0) - from));
    }
    N(total) all = N(wide_total)(sum);
    return all.high + all.low;
}

/* A number taken off all of g changes nothing. The one at the largest y makes the term exactly 0 that would cancel where
 * that y is nearly 1. */
RN_INLINE void N(softmax_backward_row)(const T *y, const T *g, T *dx, size_t length, int STREAM) {
    T base = g[N(index_of)(y, length, N(largest)(y, length))];
    VT from = V(set)(base), mean = V(set)((T)N(dot_from)(y, g, length, base));
#define WHOLE value = V(load)(y + i) * ((V(load)(g + i) - from) - mean)
#define PART(count) value = V(load_part)(y + i, count, 0) * ((V(load_part)(g + i, count, 0) - from) - mean)
    ROW_LOOP(length, dx, STREAM, WHOLE, PART);
#undef WHOLE
#undef PART
}
static void N(softmax_backward)(const T *y, const T *g, T *dx, size_t rows, size_t length) {
    int stream = rows * length * sizeof(T) > rn_cache_bytes() / 2;
    int threads = rn_threads(rows, 0.3 * NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t at = first * length; at < last * length; at += length)
            stream ? N(softmax_backward_row)(y + at, g + at, dx + at, length, 1)
                   : N(softmax_backward_row)(y + at, g + at, dx + at, length, 0);
        vec_fence();
    }
}

#define STATS_CONSTANTS(s, f)                                                                       \
    VT floor = V(set)(s.floor), shift = V(set)(s.shift), high = V(set)(f.high), low = V(set)(f.low); \
    VI offset = (VI){0} + s.offset
#define SOFTMAX_AT(entry) N(softmax_at)((entry) - shift, floor, offset, high, low)

static void N(log_softmax_backward)(const T *x, size_t stride, const T *g, T *dx, size_t rows, size_t length,
                                    const double *largest, const double *log_sum) {
    int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride, *up = g + row * length;
            T *to = dx + row * length;
            N(scaling) s;
            N(factor) f = N(stats_factor)(largest[row], log_sum[row], N(sum_of)(up, length), &s);
            STATS_CONSTANTS(s, f);
#define WHOLE value = V(load)(up + i) - SOFTMAX_AT(V(load)(from + i))
#define PART(count) value = V(load_part)(up + i, count, 0) - SOFTMAX_AT(V(load_part)(from + i, count, 0))
            ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
        }
    }
}

/* ---- cross-entropy --------------------------------------------------------------------------------------------- */

static int N(cross_entropy)(const T *x, size_t stride, const int64_t *target, size_t rows, size_t length,
                            double smoothing, double *loss, double *largest, double *log_sum) {
    if (N(row_stats)(x, stride, rows, length, largest, log_sum)) return -1;
    for (size_t row = 0; row < rows; row++) {
        loss[row] = 0;
        if (target[row] < 0) continue;
        const T *from = x + row * stride;
        /* log_sum + (1 - smoothing) (largest - x_k) + smoothing (largest - mean x): no term is negative */
        loss[row] = log_sum[row] + (1 - smoothing) * (largest[row] - (double)from[target[row]]);
        if (smoothing > 0) loss[row] += smoothing * (largest[row] - N(sum_of)(from, length) / (double)length);
    }
    return 0;
}

static void N(cross_entropy_backward)(const T *x, size_t stride, const int64_t *target, T *dx, size_t rows,
                                      size_t length, double smoothing, const double *weight, const double *largest,
                                      const double *log_sum) {
    int stream = dx != x && rows * length * sizeof(T) > rn_cache_bytes() / 2;
    int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * stride;
            T *to = dx + row * length;
            if (target[row] < 0) {
                N(fill)(to, length, 0);
                continue;
            }
            N(scaling) s;
            N(factor) f = N(stats_factor)(largest[row], log_sum[row], weight[row], &s);
            STATS_CONSTANTS(s, f);
            double even = weight[row] * smoothing / (double)length;
            VT spread = V(set)((T)even);
            /* The target's entry is the difference of two near numbers when the prediction is sure: softmax - 1 as
             * expm1 of the log-softmax. */
            double z = ((double)from[target[row]] - largest[row]) - log_sum[row];
            T at_target = (T)(weight[row] * (expm1(z) + smoothing) - even);
#define WHOLE value = SOFTMAX_AT(V(load)(from + i)) - spread
#define PART(count) value = SOFTMAX_AT(V(load_part)(from + i, count, 0)) - spread
            if (stream)
                ROW_LOOP(length, to, 1, WHOLE, PART);
            else
                ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
            to[target[row]] = at_target;
        }
        vec_fence();
    }
}

static int N(soft_cross_entropy)(const T *x, const T *q, size_t rows, size_t length, double *loss, double *q_sum,
                                 double *largest, double *log_sum) {
    if (N(row_stats)(x, length, rows, length, largest, log_sum)) return -1;
    int threads = rn_threads(rows, 0.3 * NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * length, *weight = q + row * length;
            /* sum q (largest - x) + log_sum sum q */
            VT top = V(set)((T)largest[row]);
            N(wide) sum = {0};
            for (size_t i = 0; i < length; i += LANES) {
                size_t left = length - i < LANES ? length - i : LANES;
                VT d = top - V(load_part)(from + i, left, 0);
                VT p = V(load_part)(weight + i, left, 0);
                /* a weight of 0 counts as 0 beside an infinite d */
                N(wide_add)(&sum, (VT)((VI)(p * d) & (VI)(p != 0)));
            }
            N(total) all = N(wide_total)(sum);
            q_sum[row] = N(sum_of)(weight, length);
            loss[row] = (all.high + all.low) + log_sum[row] * q_sum[row];
        }
    }
    return 0;
}

static void N(soft_cross_entropy_backward)(const T *x, const T *q, T *dx, T *dq, size_t rows, size_t length,
                                           const double *weight, const double *q_sum, const double *largest,
                                           const double *log_sum) {
    int threads = rn_threads(rows, NS_EXP * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * length, *given = q + row * length;
            T *to = dx + row * length, *to_q = dq + row * length;
            N(scaling) s;
            N(factor) f = N(stats_factor)(largest[row], log_sum[row], weight[row] * q_sum[row], &s);
            STATS_CONSTANTS(s, f);
            VT w = V(set)((T)weight[row]), top = V(set)((T)largest[row]), sum = V(set)((T)log_sum[row]);
#define WHOLE value = SOFTMAX_AT(V(load)(from + i)) - w * V(load)(given + i)
#define PART(count) value = SOFTMAX_AT(V(load_part)(from + i, count, 0)) - w * V(load_part)(given + i, count, 0)
            ROW_LOOP(length, to, 0, WHOLE, PART);
#undef WHOLE
#undef PART
#define WHOLE value = w * ((top - V(load)(from + i)) + sum)
#define PART(count) value = w * ((top - V(load_part)(from + i, count, 0)) + sum)
            ROW_LOOP(length, to_q, 0, WHOLE, PART);
#undef WHOLE
#undef PART
        }
    }
}

#include "softmax_columns_body.h"
#include "softmax_where_body.h"
#include "softmax_stable_body.h"

#undef STATS_CONSTANTS
#undef SOFTMAX_AT
#undef ROW_LOOP
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef MAGIC
#undef BIAS
#undef DEPTH
#undef NS_EXP
#undef RAW_LIMIT
#undef BLOCK
#undef START_SUM
#undef GROUP
#undef GROUP_BYTES
#undef WAYS
#undef SHARED_BLOCKS
#undef LOG_ROWS
