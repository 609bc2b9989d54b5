/* Scale and shift from maps, one of each for every entry: y = h (1 + gain) + bias, with h = (x - centre) * inv_std of the row.
 * norm_body.h is included before. */

/* A row's centre, as in apply_body, and scale; or x is h itself. */
typedef struct {
    VT high, low, scale;
    double centre, inv_std;
    int plain, wide;
} N(standard);

static N(standard) N(standard_of)(const double *centre, const double *inv_std, size_t row) {
    if (!centre) return (N(standard)){{0}, {0}, {0}, 0, 1, 1, 0};
    double high = (double)(T)centre[row], r = inv_std[row];
    return (N(standard)){V(set)((T)high), V(set)((T)(centre[row] - high)), V(set)((T)r), centre[row], r, 0,
                         !WIDE && !(r > 1e-36 && r < 1e36)};
}

RN_INLINE VT N(standard_entry)(const int PLAIN, VT x, const N(standard) *s) {
    return PLAIN ? x : ((x - s->high) - s->low) * s->scale;
}

RN_INLINE void N(modulate_body)(const int PLAIN, const int STREAM, const T *x, const T *gain, const T *bias, T *y,
                                size_t length, const N(standard) *s) {
    VT one = V(set)(1);
    size_t i = STREAM ? N(head)(y, length) : 0;
#define PART(at, count)                                                                                              \
    V(store_part)(y + (at), count,                                                                                   \
                  V(fma)(N(standard_entry)(PLAIN, V(load_part)(x + (at), count, 0), s),                              \
                         one + V(load_part)(gain + (at), count, 0), V(load_part)(bias + (at), count, 0)))
    if (i) PART(0, i);
    for (; i + LANES <= length; i += LANES) {
        VT value = V(fma)(N(standard_entry)(PLAIN, V(load)(x + i), s), one + V(load)(gain + i), V(load)(bias + i));
        if (STREAM)
            V(stream)(y + i, value);
        else
            V(store)(y + i, value);
    }
    size_t left = length - i;
    if (left) PART(i, left);
#undef PART
}

static void N(modulate_row)(const T *x, const T *gain, const T *bias, T *y, size_t length, const N(standard) *s, int stream) {
    if (s->wide)
        for (size_t i = 0; i < length; i++)
            y[i] = (T)(((double)x[i] - s->centre) * s->inv_std * (1 + (double)gain[i]) + (double)bias[i]);
    else if (s->plain)
        stream ? N(modulate_body)(1, 1, x, gain, bias, y, length, s) : N(modulate_body)(1, 0, x, gain, bias, y, length, s);
    else
        stream ? N(modulate_body)(0, 1, x, gain, bias, y, length, s) : N(modulate_body)(0, 0, x, gain, bias, y, length, s);
}

/* dh = dy (1 + gain) and dgain = dy h, of the entries first .. last - 1. */
static void N(modulate_back_each)(const T *x, const T *gain, const T *dy, T *dh, T *dgain, size_t first, size_t last,
                                  const N(standard) *s) {
    for (size_t i = first; i < last; i++) {
        double h = s->plain ? (double)x[i] : ((double)x[i] - s->centre) * s->inv_std;
        dh[i] = dy[i] * (1 + gain[i]);
        dgain[i] = (T)((double)dy[i] * h);
    }
}

/* The same of a row. STREAM: both results are as far from a vector's boundary. */
RN_INLINE void N(modulate_back_body)(const int STREAM, const T *x, const T *gain, const T *dy, T *dh, T *dgain, size_t length,
                                     const N(standard) *s) {
    size_t i = STREAM ? N(head)(dh, length) : 0;
    VT one = V(set)(1);
    N(modulate_back_each)(x, gain, dy, dh, dgain, 0, i, s);
    for (; i + LANES <= length; i += LANES) {
        VT up = V(load)(dy + i), h = N(standard_entry)(s->plain, V(load)(x + i), s), down = up * (one + V(load)(gain + i));
        if (STREAM) {
            V(stream)(dh + i, down);
            V(stream)(dgain + i, up * h);
        } else {
            V(store)(dh + i, down);
            V(store)(dgain + i, up * h);
        }
    }
    N(modulate_back_each)(x, gain, dy, dh, dgain, i, length, s);
}

static void N(modulate_back_row)(const T *x, const T *gain, const T *dy, T *dh, T *dgain, size_t length,
                                 const N(standard) *s, int stream) {
    if (s->wide)
        N(modulate_back_each)(x, gain, dy, dh, dgain, 0, length, s);
    else if (stream)
        N(modulate_back_body)(1, x, gain, dy, dh, dgain, length, s);
    else
        N(modulate_back_body)(0, x, gain, dy, dh, dgain, length, s);
}

/* Rows of up to MODULATED entries at a time: without statistics a row may be the whole array. */
#define MODULATED ((size_t)1 << 14)

static void N(modulate)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y, const double *centre,
                        const double *inv_std) {
    size_t rows = shape->examples * shape->groups, length = shape->channels * shape->places;
    size_t parts = (length + MODULATED - 1) / MODULATED;
    int stream = rows * length * sizeof(T) > rn_cache_bytes() / 2 && y != x && y != gain && y != bias;
    int threads = rn_threads(rows * parts, 0.4 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows * parts, first, last);
        for (size_t i = first; i < last; i++) {
            size_t start = i % parts * MODULATED, at = i / parts * length + start;
            N(standard) s = N(standard_of)(centre, inv_std, i / parts);
            N(modulate_row)(x + at, gain + at, bias + at, y + at, length - start < MODULATED ? length - start : MODULATED, &s,
                            stream);
        }
        vec_fence();
    }
}

static void N(modulate_backward)(const rn_groups *shape, const T *x, const T *gain, const T *dy, T *dh, T *dgain,
                                 const double *centre, const double *inv_std) {
    size_t rows = shape->examples * shape->groups, length = shape->channels * shape->places;
    size_t parts = (length + MODULATED - 1) / MODULATED;
    int stream = rows * length * sizeof(T) > rn_cache_bytes() / 2 && dh != x && dh != gain && dh != dy && dgain != x &&
                 dgain != gain && dgain != dy && ((uintptr_t)dh - (uintptr_t)dgain) % REFNORM_VECTOR_BYTES == 0;
    int threads = rn_threads(rows * parts, 0.6 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows * parts, first, last);
        for (size_t i = first; i < last; i++) {
            size_t start = i % parts * MODULATED, at = i / parts * length + start;
            N(standard) s = N(standard_of)(centre, inv_std, i / parts);
            N(modulate_back_row)(x + at, gain + at, dy + at, dh + at, dgain + at,
                                 length - start < MODULATED ? length - start : MODULATED, &s, stream);
        }
        vec_fence();
    }
}

/* Every row's statistics, and then the maps while the row is in cache. */
static void N(norm_modulate)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y, double *centre,
                            double *inv_std) {
    size_t rows = shape->examples * shape->groups, length = shape->channels * shape->places;
    int stream = rows * length * sizeof(T) > rn_cache_bytes() / 2;
    int threads = rn_threads(rows, 0.6 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            size_t at = row * length;
            N(line) line = N(line_of)(shape->kind, N(row_moments)(shape->kind, x + at, length), length, shape->ddof, shape->eps);
            centre[row] = line.centre, inv_std[row] = line.inv_std;
            N(standard) s = N(standard_of)(centre, inv_std, row);
            if (WIDE) s.low = V(set)((T)line.low);
            N(modulate_row)(x + at, gain + at, bias + at, y + at, length, &s, stream);
        }
        vec_fence();
    }
}
#undef MODULATED
