/* Body of norm.c for one element type: T, its vector VT, LANES lanes, WIDE = 1 for float64.
 *
 * Statistics are float64. Out of cache a row is read twice and written once: the first pass finds mean and squares of one
 * block after the other while the block is in the first-level cache, and merges them; the second writes y. */

#define BLOCK ((size_t)16384 / sizeof(T))
#define SHARED_BLOCKS 64 /* a row of this many blocks is shared by all threads */

/* The two vf64 of a vf32, or the vf64 itself twice over half the width: `PARTS` pieces in float64. */
#if WIDE
#define PARTS 1
RN_INLINE void N(widen)(vf64 x, vf64 *part) { part[0] = x; }
RN_INLINE void N(widen_at)(const double *x, vf64 *part) { part[0] = vf64_load(x); }
#else
#define PARTS 2
RN_INLINE void N(widen)(vf32 x, vf64 *part) {
    part[0] = vf64_low(x);
    part[1] = vf64_high(x);
}
RN_INLINE void N(widen_at)(const float *x, vf64 *part) {
    part[0] = vf64_from_half(vf32h_load(x));
    part[1] = vf64_from_half(vf32h_load(x + VF64));
}
#endif

/* ---- statistics ------------------------------------------------------------------------------------------------ */

/* Of `count` entries: mean and sum of squared deviations (layer norm), or sum and sum of squares. The mean is
 * centre + low: beside a large common offset one double does not hold enough of it for float64 entries. */
typedef struct {
    double count, centre, low, squares;
} N(moments);

#define EACH_PART for (int part_ = 0; part_ < PARTS; part_++)

static double N(plain_sum)(const T *x, size_t length) {
    vf64 a[4] = {{0}, {0}, {0}, {0}}, piece[2];
    size_t i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES) {
        N(widen_at)(x + i, piece);
        EACH_PART a[part_] += piece[part_];
        N(widen_at)(x + i + LANES, piece);
        EACH_PART a[2 + part_] += piece[part_];
    }
    for (; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        N(widen)(V(load_part)(x + i, left, 0), piece);
        EACH_PART a[part_] += piece[part_];
    }
    return vf64_sum((a[0] + a[1]) + (a[2] + a[3]));
}

/* Sums of the deviations from `mean`, if SUM, and of their squares. */
RN_INLINE void N(deviations)(const T *x, size_t length, double mean, double *sum, double *squares, int SUM) {
    vf64 s[4] = {{0}, {0}, {0}, {0}}, q[4] = {{0}, {0}, {0}, {0}}, piece[2], centre = vf64_set(mean);
    size_t i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            N(widen_at)(x + i + (size_t)k * LANES, piece);
            EACH_PART {
                vf64 c = piece[part_] - centre;
                if (SUM) s[2 * k + part_] += c;
                q[2 * k + part_] = vf64_fma(c, c, q[2 * k + part_]);
            }
        }
    double more_sum = 0, more_squares = 0;
    for (; i < length; i++) {
        double c = (double)x[i] - mean;
        more_sum += c;
        more_squares += c * c;
    }
    *sum = vf64_sum((s[0] + s[1]) + (s[2] + s[3])) + more_sum;
    *squares = vf64_sum((q[0] + q[1]) + (q[2] + q[3])) + more_squares;
}

#if !WIDE
/* Mean and squared deviations in one pass and in float32, from deviations d = x - reference, where the reference is the
 * mean of the first few entries: x - reference is exact or rounded in its own last place, and partial sums of
 * CHAIN terms are added up in float64. What sum d^2 - (sum d)^2 / n loses is the ratio of the two; where the reference
 * turns out to be far from the mean, or a square may have left the range, the answer is 0 and the passes in float64
 * follow. */
#define CHAIN 8
#define LEAST_SHARE 0.25 /* of sum d^2 that must remain */
static int N(shifted_moments)(const float *x, size_t length, N(moments) *m) {
    if (length < LANES) return 0;
    float reference = (float)(vf32_sum_wide(vf32_load(x)) / LANES);
    vf32 shift = vf32_set(reference);
    vf64 sum[2] = {{0}, {0}}, squares[2] = {{0}, {0}};
    size_t i = 0;
    while (i < length) {
        size_t stop = length - i < 2 * CHAIN * LANES ? length : i + 2 * CHAIN * LANES;
        vf32 s[2] = {{0}, {0}}, q[2] = {{0}, {0}};
        for (; i + 2 * LANES <= stop; i += 2 * LANES)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                vf32 d = vf32_load(x + i + (size_t)k * LANES) - shift;
                s[k] += d;
                q[k] = vf32_fma(d, d, q[k]);
            }
        for (; i < stop; i += LANES) {
            size_t left = stop - i < LANES ? stop - i : LANES;
            vf32 d = vf32_load_part(x + i, left, reference) - shift;
            s[0] += d;
            q[0] = vf32_fma(d, d, q[0]);
        }
        vf32 both = s[0] + s[1], both_squares = q[0] + q[1];
        sum[0] += vf64_low(both);
        sum[1] += vf64_high(both);
        squares[0] += vf64_low(both_squares);
        squares[1] += vf64_high(both_squares);
    }
    double total = vf64_sum(sum[0] + sum[1]), all = vf64_sum(squares[0] + squares[1]), n = (double)length;
    double apart = total / n, rest = all - total * apart;
    if (!(rest >= LEAST_SHARE * all && all > 1e-28 * n && all < 1e36)) return 0;
    m->centre = (double)reference + apart;
    m->squares = rest;
    return 1;
}
#endif

static N(moments) N(block_moments)(int kind, const T *x, size_t length) {
    N(moments) m = {(double)length, 0, 0, 0};
#if !WIDE
    if (kind == RN_LAYER_NORM && N(shifted_moments)(x, length, &m)) return m;
#endif
    if (kind == RN_LAYER_NORM) {
        double mean = N(plain_sum)(x, length) / (double)length, residue;
        m.centre = mean;
#if WIDE
        /* The mean's own rounding, found in the second pass. */
        N(deviations)(x, length, mean, &residue, &m.squares, 1);
        m.low = residue / (double)length;
        m.squares -= residue * m.low;
#else
        N(deviations)(x, length, mean, &residue, &m.squares, 0);
#endif
    } else if (kind == RN_RMS_NORM) {
        N(deviations)(x, length, 0.0, &m.centre, &m.squares, 0);
        m.centre = 0;
    } else {
        N(deviations)(x, length, 0.0, &m.centre, &m.squares, 1);
    }
    return m;
}

static void N(merge)(int kind, N(moments) *all, N(moments) next) {
    if (kind == RN_LAYER_NORM) {
        double count = all->count + next.count, apart = (next.centre - all->centre) + (next.low - all->low);
        double step = apart * (next.count / count), centre = all->centre + step;
        /* |step| may exceed |centre|: the general two-sum. */
        double added = centre - all->centre;
        all->low += (all->centre - (centre - added)) + (step - added);
        all->centre = centre;
        all->squares += next.squares + apart * apart * (all->count * (next.count / count));
        all->count = count;
    } else {
        all->count += next.count;
        all->centre += next.centre;
        all->squares += next.squares;
    }
}

static N(moments) N(row_moments)(int kind, const T *x, size_t length) {
    N(moments) all = N(block_moments)(kind, x, length < BLOCK ? length : BLOCK);
    for (size_t at = BLOCK; at < length; at += BLOCK)
        N(merge)(kind, &all, N(block_moments)(kind, x + at, length - at < BLOCK ? length - at : BLOCK));
    return all;
}

/* y = gain * (x - centre) * inv_std + bias */
typedef struct {
    double centre, low, inv_std;
} N(line);

static N(line) N(line_of)(int kind, N(moments) m, size_t length, double eps) {
    if (kind == RN_LAYER_NORM) return (N(line)){m.centre, m.low, 1 / sqrt(m.squares / (double)length + eps)};
    if (kind == RN_RMS_NORM) return (N(line)){0, 0, 1 / sqrt(m.squares / (double)length + eps)};
    return (N(line)){m.centre, 0, 1 / sqrt((m.squares + m.centre * m.centre) / (double)(length + 1) + eps)};
}

/* ---- second pass ----------------------------------------------------------------------------------------------- */

RN_INLINE size_t N(head)(const T *y, size_t length) {
    size_t head = (size_t)(-(uintptr_t)y & (REFNORM_VECTOR_BYTES - 1)) / sizeof(T);
    return head < length ? head : length;
}

/* The centre is subtracted as high + low: x - high is exact when the entries are near their mean, which is where
 * digits would be lost. `ahead`: distance to the entries that are fetched for the next row. */
RN_INLINE void N(apply_body)(const T *x, const T *gain, const T *bias, T *y, size_t length, double centre,
                             double rest, double inv_std, size_t ahead, int CENTRE, int GAIN, int BIAS, int STREAM) {
    VT high = V(set)((T)centre), low = V(set)((T)(centre - (double)(T)centre + rest)), scale = V(set)((T)inv_std);
#define NORMAL(entry, g, b)                        \
    do {                                           \
        value = entry;                             \
        if (CENTRE) value = (value - high) - low;  \
        value *= scale;                            \
        if (BIAS)                                  \
            value = V(fma)(value, g, b);           \
        else if (GAIN)                             \
            value *= g;                            \
    } while (0)
    VT value, zero = {0};
    size_t i = STREAM ? N(head)(y, length) : 0;
    if (i) {
        NORMAL(V(load_part)(x, i, 0), GAIN ? V(load_part)(gain, i, 0) : zero, BIAS ? V(load_part)(bias, i, 0) : zero);
        V(store_part)(y, i, value);
    }
#if REFNORM_VECTOR_BYTES < 64
    for (; i + 64 / sizeof(T) <= length; i += 64 / sizeof(T)) {
        __builtin_prefetch(x + i + ahead);
        for (size_t k = 0; k < 64 / sizeof(T); k += LANES) {
            NORMAL(V(load)(x + i + k), GAIN ? V(load)(gain + i + k) : zero, BIAS ? V(load)(bias + i + k) : zero);
            if (STREAM)
                V(stream)(y + i + k, value);
            else
                V(store)(y + i + k, value);
        }
    }
#endif
    for (; i + LANES <= length; i += LANES) {
        __builtin_prefetch(x + i + ahead);
        NORMAL(V(load)(x + i), GAIN ? V(load)(gain + i) : zero, BIAS ? V(load)(bias + i) : zero);
        if (STREAM)
            V(stream)(y + i, value);
        else
            V(store)(y + i, value);
    }
    if (i < length) {
        size_t left = length - i;
        NORMAL(V(load_part)(x + i, left, 0), GAIN ? V(load_part)(gain + i, left, 0) : zero,
               BIAS ? V(load_part)(bias + i, left, 0) : zero);
        V(store_part)(y + i, left, value);
    }
#undef NORMAL
}

#if !WIDE
/* Where inv_std or a deviation could leave the range of T: in float64. */
static void N(apply_wide)(const T *x, const T *gain, const T *bias, T *y, size_t length, double centre,
                          double inv_std) {
    for (size_t i = 0; i < length; i++) {
        double value = ((double)x[i] - centre) * inv_std;
        if (gain) value *= (double)gain[i];
        if (bias) value += (double)bias[i];
        y[i] = (T)value;
    }
}
#endif

static void N(apply)(int kind, const T *x, const T *gain, const T *bias, T *y, size_t length, N(line) line,
                     size_t ahead, int stream) {
    double centre = kind == RN_LAYER_NORM ? line.centre : 0;
#if !WIDE
    if (!(line.inv_std > 1e-36 && line.inv_std < 1e36)) {
        N(apply_wide)(x, gain, bias, y, length, centre, line.inv_std);
        return;
    }
#endif
#define APPLY(CENTRE, GAIN, BIAS)                                                                                   \
    do {                                                                                                            \
        if (stream)                                                                                                 \
            N(apply_body)(x, gain, bias, y, length, centre, line.low, line.inv_std, ahead, CENTRE, GAIN, BIAS, 1);            \
        else                                                                                                        \
            N(apply_body)(x, gain, bias, y, length, centre, line.low, line.inv_std, ahead, CENTRE, GAIN, BIAS, 0);            \
    } while (0)
    if (kind == RN_LAYER_NORM) {
        if (bias)
            APPLY(1, 1, 1);
        else if (gain)
            APPLY(1, 1, 0);
        else
            APPLY(1, 0, 0);
    } else if (bias) {
        APPLY(0, 1, 1);
    } else if (gain) {
        APPLY(0, 1, 0);
    } else {
        APPLY(0, 0, 0);
    }
#undef APPLY
}

static void N(add)(const T *a, const T *b, T *sum, size_t length) {
    size_t i = 0;
    for (; i + LANES <= length; i += LANES) V(store)(sum + i, V(load)(a + i) + V(load)(b + i));
    for (; i < length; i++) sum[i] = a[i] + b[i];
}

/* Rows that pass through a cache: one after the other. */
#define GROUP 8
static int N(norm_rows)(int kind, const T *x, size_t stride, const T *residual, const T *gain, const T *bias, T *y,
                        size_t rows, size_t length, double eps, double *centre, double *inv_std, int stream) {
    T *scratch = NULL;
    if (residual && stream) {
        scratch = rn_scratch(0, length * sizeof(T));
        if (scratch == NULL) return -1;
    }
    if (!residual && length * sizeof(T) <= 2048) {
        /* Short rows in groups, stage by stage, so that they do not wait for each other's reductions. */
        for (size_t first = 0; first < rows; first += GROUP) {
            size_t count = rows - first < GROUP ? rows - first : GROUP;
            N(line) line[GROUP];
            N(moments) m[GROUP];
            for (size_t k = 0; k < count; k++) m[k] = N(block_moments)(kind, x + (first + k) * stride, length);
            for (size_t k = 0; k < count; k++) line[k] = N(line_of)(kind, m[k], length, eps);
            for (size_t k = 0; k < count; k++) {
                size_t row = first + k;
                N(apply)(kind, x + row * stride, gain, bias, y + row * length, length, line[k],
                         row + GROUP < rows ? GROUP * stride : 0, stream);
                if (centre) centre[row] = line[k].centre, inv_std[row] = line[k].inv_std;
            }
        }
        return 0;
    }
    for (size_t row = 0; row < rows; row++) {
        const T *from = x + row * stride;
        T *to = y + row * length;
        if (residual) {
            T *sum = scratch ? scratch : to;
            N(add)(from, residual + row * length, sum, length);
            from = sum;
        }
        N(line) line = N(line_of)(kind, N(row_moments)(kind, from, length), length, eps);
        if (centre) centre[row] = line.centre, inv_std[row] = line.inv_std;
        N(apply)(kind, from, gain, bias, to, length, line, residual || row + 1 == rows ? 0 : stride, stream);
    }
    return 0;
}

/* Rows too large for a cache: the threads share every row, in blocks whose bounds depend on the length only. */
static int N(norm_shared)(int kind, const T *x, size_t stride, const T *residual, const T *gain, const T *bias, T *y,
                          size_t rows, size_t length, double eps, double *centre, double *inv_std, int stream) {
    size_t blocks = (length + BLOCK - 1) / BLOCK;
    N(moments) *moments = rn_scratch(0, 2 * blocks * sizeof(N(moments)));
    if (moments == NULL) return -1;
    int threads = rn_threads(blocks, 0.6 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        for (size_t row = 0; row < rows; row++) {
            const T *from = x + row * stride;
            T *to = y + row * length;
            /* Two sets, so that a thread ahead does not overwrite what another still reads. */
            N(moments) *mine = moments + (row & 1) * blocks;
            for (size_t block = first; block < last; block++) {
                size_t at = block * BLOCK, size = length - at < BLOCK ? length - at : BLOCK;
                if (residual) N(add)(from + at, residual + row * length + at, to + at, size);
                mine[block] = N(block_moments)(kind, (residual ? to : from) + at, size);
            }
            RN_BARRIER;
            N(moments) all = mine[0];
            for (size_t block = 1; block < blocks; block++) N(merge)(kind, &all, mine[block]);
            N(line) line = N(line_of)(kind, all, length, eps);
            if (centre && first == 0) centre[row] = line.centre, inv_std[row] = line.inv_std;
            const T *source = residual ? to : from;
            /* The block read last is the likeliest to be in cache. */
            for (size_t block = last; block-- > first;) {
                size_t at = block * BLOCK, size = length - at < BLOCK ? length - at : BLOCK;
                N(apply)(kind, source + at, gain ? gain + at : NULL, bias ? bias + at : NULL, to + at, size, line, 0,
                         stream);
            }
        }
        vec_fence();
    }
    return 0;
}

static int N(norm)(int kind, const T *x, size_t stride, const T *residual, const T *gain, const T *bias, T *y,
                   size_t rows, size_t length, double eps, double *centre, double *inv_std) {
    int stream = rows * length * sizeof(T) > rn_cache_bytes() / 2 && (const T *)y != x && (const T *)y != residual;
    if (length >= SHARED_BLOCKS * BLOCK)
        return N(norm_shared)(kind, x, stride, residual, gain, bias, y, rows, length, eps, centre, inv_std,
                              stream && !residual);
    int threads = rn_threads(rows, 0.3 * (double)rows * (double)length), failed = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        if (N(norm_rows)(kind, x + first * stride, stride, residual ? residual + first * length : NULL, gain, bias,
                         y + first * length, last - first, length, eps, centre ? centre + first : NULL,
                         inv_std ? inv_std + first : NULL, stream))
            failed = 1;
        if (stream) vec_fence();
    }
    return failed ? -1 : 0;
}

/* ---- backward --------------------------------------------------------------------------------------------------
 *
 * With c = x - mean (layer norm) or x, g = dy * gain and r = inv_std, all three have the form
 *     dx = r ((g - level) - slope c)
 * layer norm:     slope = r^2 mean(g c),                    level = mean(g)
 * RMS:            slope = r^2 mean(g c),                    level = 0
 * compressed RMS: slope = r^2 sum(g x) / (length + 1),      level = slope sum(x)
 * The mean is subtracted before the multiplication by r: for one unit g - mean(g) is exactly 0. */
static void N(backward_row)(int kind, const T *x, const T *gain, const T *dy, T *dx, size_t length, double centre,
                            double inv_std, double *dgain, double *dbias) {
    double mean = kind == RN_LAYER_NORM ? centre : 0;
    VT high = V(set)((T)mean), low = V(set)((T)(mean - (double)(T)mean)), one = V(set)(1);
    vf64 sum[2] = {{0}, {0}}, product[2] = {{0}, {0}}, g_part[2], c_part[2];
    /* dx may be dy: everything that needs dy is read before it is overwritten. */
    size_t i;
    for (i = 0; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        VT g = V(load_part)(dy + i, left, 0);
        VT c = (left < LANES ? V(load_part)(x + i, left, (T)mean) : V(load)(x + i)) - high - low;
        if (gain) g *= left < LANES ? V(load_part)(gain + i, left, 0) : V(load)(gain + i);
        N(widen)(g, g_part);
        N(widen)(c, c_part);
        EACH_PART {
            sum[part_] += g_part[part_];
            product[part_] = vf64_fma(g_part[part_], c_part[part_], product[part_]);
        }
    }
    double g_sum = vf64_sum(sum[0] + sum[1]), g_c = vf64_sum(product[0] + product[1]);
    double slope = inv_std * inv_std * g_c / (double)(kind == RN_COMPRESSED_RMS_NORM ? length + 1 : length);
    double level = kind == RN_LAYER_NORM ? g_sum / (double)length
                                         : kind == RN_COMPRESSED_RMS_NORM ? slope * centre : 0;
    if (dbias) {
        for (i = 0; i + LANES <= length; i += LANES) {
            vf64 piece[2];
            N(widen)(V(load)(dy + i), piece);
            EACH_PART {
                size_t at = i + (size_t)part_ * VF64;
                vf64_store(dbias + at, vf64_load(dbias + at) + piece[part_]);
            }
        }
        for (; i < length; i++) dbias[i] += (double)dy[i];
    }
    if (dgain) {
        VT scale = V(set)((T)inv_std);
        for (i = 0; i + LANES <= length; i += LANES) {
            vf64 piece[2];
            N(widen)(V(load)(dy + i) * (((V(load)(x + i) - high) - low) * scale), piece);
            EACH_PART {
                size_t at = i + (size_t)part_ * VF64;
                vf64_store(dgain + at, vf64_load(dgain + at) + piece[part_]);
            }
        }
        for (; i < length; i++) dgain[i] += (double)dy[i] * (((double)x[i] - mean) * inv_std);
    }
    VT r = V(set)((T)inv_std), a = V(set)((T)-slope), b = V(set)((T)level);
    for (i = 0; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        int whole = left == LANES;
        VT c = ((whole ? V(load)(x + i) : V(load_part)(x + i, left, 0)) - high) - low;
        VT g = (whole ? V(load)(dy + i) : V(load_part)(dy + i, left, 0)) *
               (!gain ? one : whole ? V(load)(gain + i) : V(load_part)(gain + i, left, 0));
        VT value = V(fma)(c, a, g - b) * r;
        if (whole)
            V(store)(dx + i, value);
        else
            V(store_part)(dx + i, left, value);
    }
}

/* The sums over rows are formed in groups of rows that depend on the sizes only, then added up in order: the same for any
 * number of threads. */
static int N(norm_backward)(int kind, const T *x, size_t stride, const T *gain, const T *dy, T *dx, T *dgain, T *dbias,
                            size_t rows, size_t length, const double *centre, const double *inv_std) {
    size_t groups = rows / 16 < 1 ? 1 : rows / 16;
    size_t most = ((size_t)16 << 20) / (2 * length * sizeof(double));
    if (groups > 64) groups = 64;
    if (dgain && groups > most) groups = most < 1 ? 1 : most;
    if (!dgain) groups = rows < 1024 ? rows : 1024;
    if (groups < 1) groups = 1;
    double *sums = NULL;
    if (dgain) {
        sums = rn_scratch(1, 2 * groups * length * sizeof(double));
        if (sums == NULL) return -1;
    }
    int threads = rn_threads(groups, 0.8 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(groups, first_group, last_group);
        for (size_t group = first_group; group < last_group; group++) {
            size_t first, last;
            rn_range(rows, groups, group, &first, &last);
            double *gain_sums = sums ? sums + 2 * group * length : NULL;
            double *bias_sums = sums && dbias ? gain_sums + length : NULL;
            if (sums) memset(gain_sums, 0, 2 * length * sizeof(double));
            for (size_t row = first; row < last; row++)
                N(backward_row)(kind, x + row * stride, gain, dy + row * length, dx + row * length, length,
                                centre[row], inv_std[row], gain_sums, bias_sums);
        }
    }
    if (sums) {
        for (size_t group = 1; group < groups; group++)
            for (size_t i = 0; i < 2 * length; i++) sums[i] += sums[2 * group * length + i];
        for (size_t i = 0; i < length; i++) dgain[i] = (T)sums[i];
        for (size_t i = 0; dbias && i < length; i++) dbias[i] = (T)sums[length + i];
    }
    return 0;
}

#undef BLOCK
#undef SHARED_BLOCKS
#undef PARTS
#undef EACH_PART
#undef GROUP
