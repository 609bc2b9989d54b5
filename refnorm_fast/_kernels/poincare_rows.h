/* What the ball's kernels share on rows of one dtype: T the entries, N(name) the names, SINGLE whether T is float. Included
 * once for each dtype, before the body that uses it; poincare_rows_end.h takes the macros back. */

#if SINGLE
#define LOAD(from) vf64_from_half(vf32h_load(from))
#define STORE(to, value) vf32h_store((to), vf64_to_half(value))
#else
#define LOAD(from) vf64_load(from)
#define STORE(to, value) vf64_store((to), (value))
#endif

/* `count` < VF64 entries in the first lanes, zeros in the others. */
RN_INLINE vf64 N(load_part)(const T *from, size_t count) {
    vf64 lanes = {0};
    for (size_t i = 0; i < count; i++) lanes[i] = (double)from[i];
    return lanes;
}
RN_INLINE void N(store_part)(T *to, size_t count, vf64 value) {
    for (size_t i = 0; i < count; i++) to[i] = (T)value[i];
}

/* Runs the statements with `vf64 a` (and b) holding the entries from k on; lanes past the end are zeros. Inside, `k` is
 * the loop's. */
#define EACH(x, a, ...)                                  \
    do {                                                 \
        size_t k = 0;                                    \
        for (; k + VF64 <= length; k += VF64) {          \
            vf64 a = LOAD((x) + k);                      \
            __VA_ARGS__                                  \
        }                                                \
        if (k < length) {                                \
            vf64 a = N(load_part)((x) + k, length - k);  \
            __VA_ARGS__                                  \
        }                                                \
    } while (0)
#define EACH_PAIR(x, y, a, b, ...)                       \
    do {                                                 \
        size_t k = 0;                                    \
        for (; k + VF64 <= length; k += VF64) {          \
            vf64 a = LOAD((x) + k), b = LOAD((y) + k);   \
            __VA_ARGS__                                  \
        }                                                \
        if (k < length) {                                \
            vf64 a = N(load_part)((x) + k, length - k);  \
            vf64 b = N(load_part)((y) + k, length - k);  \
            __VA_ARGS__                                  \
        }                                                \
    } while (0)
#define EACH_THREE(x, y, g, a, b, u, ...)                \
    EACH_PAIR(x, y, a, b, {                              \
        vf64 u = GET(g);                                 \
        __VA_ARGS__                                      \
    })
/* Inside of these: the entries of one more row, and the place of a result. */
#define GET(x) (k + VF64 <= length ? LOAD((x) + k) : N(load_part)((x) + k, length - k))
#define PUT(z, value)                                        \
    do {                                                     \
        if (k + VF64 <= length)                              \
            STORE((z) + k, (value));                         \
        else                                                 \
            N(store_part)((z) + k, length - k, (value));     \
    } while (0)

/* |s x|^2 for a power of two s */
static double N(square)(const T *x, size_t length, double s) {
    vf64 sum = {0};
    EACH(x, a, {
        a *= s;
        sum = vf64_fma(a, a, sum);
    });
    return vf64_sum(sum);
}
static double N(square_of_sum)(const T *x, const T *y, double sign, size_t length, double s) {
    vf64 sum = {0};
    EACH_PAIR(x, y, a, b, {
        vf64 total = (a + sign * b) * s;
        sum = vf64_fma(total, total, sum);
    });
    return vf64_sum(sum);
}

/* |x|, or |x + sign y| where y is given: where the square leaves the range, once more in other units. */
static double N(length_of)(const T *x, const T *y, double sign, size_t length) {
    double square = y ? N(square_of_sum)(x, y, sign, length, 1.0) : N(square)(x, length, 1.0);
    if (square > 1e-280 && square < 1e300) return sqrt(square);
    double largest = 0;
    for (size_t i = 0; i < length; i++) {
        double entry = fabs((double)x[i] + (y ? sign * (double)y[i] : 0.0));
        if (!(entry <= largest)) largest = entry;
    }
    if (largest == 0 || !(largest < INFINITY)) return largest;
    int exponent;
    frexp(largest, &exponent);
    if (exponent < -1020) exponent = -1020; /* 2^-exponent stays finite */
    double s = ldexp(1.0, -exponent);
    square = y ? N(square_of_sum)(x, y, sign, length, s) : N(square)(x, length, s);
    return ldexp(sqrt(square), exponent);
}

/* 1 - c |x|^2 to 2 units roundoff (float64), or far below the rounding of float32; `square` gets |x|^2. */
static double N(gap_of)(const T *x, size_t length, double curvature, double *square) {
#if SINGLE
    *square = N(square)(x, length, 1.0);
    double plain = 1 - curvature * *square;
    if (plain > (double)(length + 8) * 0x1p-20) return plain;
#endif
    vf64 high = {0}, low = {0};
    EACH(x, a, {
        vf64 error, lost, product;
#if SINGLE
        product = a * a; /* exact: 24 + 24 bits */
        OPAQUE_LANES(product);
        error = (vf64){0};
#else
        product = two_product_lanes(a, a, &error);
#endif
        high = two_sum_lanes(high, product, &lost);
        low += lost + error;
    });
    double sum = 0, rest = 0, error;
    for (int i = 0; i < VF64; i++) {
        sum = two_sum(sum, high[i], &error);
        rest += error + low[i];
    }
    *square = sum;
    double gap = gap_from(sum, rest, curvature);
    if (fabs(gap) < (double)(length + 4) * EXACT_GAP) {
        exact_sum exact = {{1.0}, 1};
        for (size_t i = 0; i < length; i++) exact_add_square(&exact, (double)x[i], curvature);
        gap = exact_value(&exact);
    }
    return gap;
}

/* Rounds a point towards the interior until it lies inside. */
static void N(inside)(T *z, size_t length, double curvature) {
    double square;
    for (double step = SINGLE ? FLT_EPSILON : DBL_EPSILON; step < 1; step *= 2) {
        if (!(N(gap_of)(z, length, curvature, &square) <= 0)) return;
        T shrink = (T)(1 - step);
        for (size_t i = 0; i < length; i++) z[i] *= shrink;
    }
}
/* A gap from which rounding to T cannot lead onto the boundary. */
#define SAFE_GAP ((double)(length + 8) * (SINGLE ? 0x1p-20 : 0x1p-46))

/* Copies of rows that a pullback keeps: what the caller writes to x afterwards does not reach them. */
RN_INLINE void N(keep_rows)(T *kept, const T *x, size_t stride, size_t rows, size_t length) {
    if (kept == NULL) return;
    for (size_t i = 0; i < rows; i++) memcpy(kept + i * length, x + i * stride, length * sizeof(T));
}
