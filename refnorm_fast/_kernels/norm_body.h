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

static N(line) N(line_of)(int kind, N(moments) m, size_t length, size_t ddof, double eps) {
    if (kind == RN_LAYER_NORM) return (N(line)){m.centre, m.low, 1 / sqrt(m.squares / (double)(length - ddof) + eps)};
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

/* Gain and bias: row r belongs to group r % groups, whose `channels` gains and biases serve `places` neighbouring entries
 * each. bias only with gain. */
typedef struct {
    const T *gain, *bias;
    size_t groups, channels, places;
} N(units);

static const T N(ramp)[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* The first `count` lanes of a, the others of b. */
RN_INLINE VT N(first_lanes)(size_t count, VT a, VT b) {
    return V(select)(V(load)(N(ramp)) < V(set)((T)count), a, b);
}

/* Entries `at`, ... of a row whose channels have at least LANES places: a vector lies in one channel or across the border of
 * two. `at` + length is at most the length of the row. */
RN_INLINE void N(channels_body)(const T *x, const T *gain, const T *bias, T *y, size_t at, size_t length, size_t places,
                                N(line) line, size_t ahead, int STREAM) {
    VT high = V(set)((T)line.centre), low = V(set)((T)(line.centre - (double)(T)line.centre + line.low));
    size_t channel = at / places, left = places - at % places; /* of this channel, from here on */
#define SCALE(c) V(set)((T)(line.inv_std * (double)gain[c]))
#define SHIFT(c) V(set)(bias ? bias[c] : 0)
    VT scale = SCALE(channel), shift = SHIFT(channel);
    size_t i = 0;
    /* `count` <= LANES entries from here on, `LOAD`ed and `STORE`d as told; goes on to the next channel if they reach it. */
#define BORDER(count, LOAD, STORE)                                       \
    do {                                                                 \
        VT s = scale, b = shift;                                         \
        if (left < (count)) {                                            \
            channel++;                                                   \
            scale = SCALE(channel), shift = SHIFT(channel);              \
            s = N(first_lanes)(left, s, scale), b = N(first_lanes)(left, b, shift); \
            left += places;                                              \
        }                                                                \
        VT value = V(fma)((LOAD - high) - low, s, b);                    \
        STORE;                                                           \
        i += (count), left -= (count);                                   \
    } while (0)
#define STORE_WHOLE(value)              \
    do {                                \
        if (STREAM)                     \
            V(stream)(y + i, value);    \
        else                            \
            V(store)(y + i, value);     \
    } while (0)
    size_t head = STREAM ? N(head)(y, length) : 0;
    if (head) BORDER(head, V(load_part)(x, head, 0), V(store_part)(y, head, value));
    while (i + LANES <= length) {
        size_t whole = (left < length - i ? left : length - i) / LANES * LANES;
        for (size_t end = i + whole; i < end; i += LANES) {
            __builtin_prefetch(x + i + ahead);
            VT value = V(fma)((V(load)(x + i) - high) - low, scale, shift);
            STORE_WHOLE(value);
        }
        left -= whole;
        if (i + LANES <= length) BORDER((size_t)LANES, V(load)(x + i), STORE_WHOLE(value));
    }
    size_t rest = length - i;
    if (rest) BORDER(rest, V(load_part)(x + i, rest, 0), V(store_part)(y + i, rest, value));
#undef STORE_WHOLE
#undef BORDER
#undef SCALE
#undef SHIFT
}

/* Where a scale could leave the range of T or a deviation's product with it could: x_hat first, in float64. */
static void N(channels_wide)(const T *x, const T *gain, const T *bias, T *y, size_t at, size_t length, size_t places,
                             N(line) line) {
    for (size_t i = 0; i < length; i++) {
        size_t channel = (at + i) / places;
        double value = ((double)x[i] - line.centre - line.low) * line.inv_std * (double)gain[channel];
        y[i] = (T)(bias ? value + (double)bias[channel] : value);
    }
}

static int N(scales_in_range)(const T *gain, size_t first, size_t last, double inv_std) {
    const double smallest = WIDE ? 1e-290 : 1e-30, largest = WIDE ? 1e290 : 1e36;
    int inside = inv_std > smallest && inv_std < largest;
    for (size_t c = first; c < last; c++) {
        double scale = fabs(inv_std * (double)gain[c]);
        inside &= (scale > smallest || gain[c] == 0) && scale < largest;
    }
    return inside;
}

/* y from entries `at`, ... of row `row`; x and y stand at the first of them. */
static void N(apply_units)(int kind, const T *x, const N(units) *units, size_t row, size_t at, T *y, size_t length,
                           N(line) line, size_t ahead, int stream) {
    size_t first = units->groups == 1 ? 0 : row % units->groups * units->channels;
    const T *gain = units->gain ? units->gain + first : NULL, *bias = units->bias ? units->bias + first : NULL;
    if (!gain || units->places == 1)
        N(apply)(kind, x, gain ? gain + at : NULL, bias ? bias + at : NULL, y, length, line, ahead, stream);
    else if (!N(scales_in_range)(gain, at / units->places, (at + length - 1) / units->places + 1, line.inv_std))
        N(channels_wide)(x, gain, bias, y, at, length, units->places, line);
    else if (stream)
        N(channels_body)(x, gain, bias, y, at, length, units->places, line, ahead, 1);
    else
        N(channels_body)(x, gain, bias, y, at, length, units->places, line, ahead, 0);
}

static void N(add)(const T *a, const T *b, T *sum, size_t length) {
    size_t i = 0;
    for (; i + LANES <= length; i += LANES) V(store)(sum + i, V(load)(a + i) + V(load)(b + i));
    for (; i < length; i++) sum[i] = a[i] + b[i];
}

/* What a forward pass reads and writes. A row has `length` entries; residual and y are contiguous. */
typedef struct {
    int kind;
    const T *x, *residual;
    size_t stride;
    N(units) units;
    T *y;
    size_t length, ddof;
    double eps, *centre, *inv_std;
    int stream;
} N(task);

/* Rows first, ..., last - 1, which pass through a cache: one after the other. */
#define GROUP 8
static int N(norm_rows)(const N(task) *task, size_t first, size_t last) {
    int kind = task->kind, stream = task->stream;
    const T *x = task->x, *residual = task->residual;
    size_t stride = task->stride, length = task->length;
    T *y = task->y, *scratch = NULL;
    if (residual && stream) {
        scratch = rn_scratch(0, length * sizeof(T));
        if (scratch == NULL) return -1;
    }
    if (!residual && length * sizeof(T) <= 2048) {
        /* Short rows in groups, stage by stage, so that they do not wait for each other's reductions. */
        for (; first < last; first += GROUP) {
            size_t count = last - first < GROUP ? last - first : GROUP;
            N(line) line[GROUP];
            N(moments) m[GROUP];
            for (size_t k = 0; k < count; k++) m[k] = N(block_moments)(kind, x + (first + k) * stride, length);
            for (size_t k = 0; k < count; k++) line[k] = N(line_of)(kind, m[k], length, task->ddof, task->eps);
            for (size_t k = 0; k < count; k++) {
                size_t row = first + k;
                N(apply_units)(kind, x + row * stride, &task->units, row, 0, y + row * length, length, line[k],
                               row + GROUP < last ? GROUP * stride : 0, stream);
                if (task->centre) task->centre[row] = line[k].centre, task->inv_std[row] = line[k].inv_std;
            }
        }
        return 0;
    }
    for (size_t row = first; row < last; row++) {
        const T *from = x + row * stride;
        T *to = y + row * length;
        if (residual) {
            T *sum = scratch ? scratch : to;
            N(add)(from, residual + row * length, sum, length);
            from = sum;
        }
        N(line) line = N(line_of)(kind, N(row_moments)(kind, from, length), length, task->ddof, task->eps);
        if (task->centre) task->centre[row] = line.centre, task->inv_std[row] = line.inv_std;
        N(apply_units)(kind, from, &task->units, row, 0, to, length, line, residual || row + 1 == last ? 0 : stride,
                       stream);
    }
    return 0;
}

/* Rows too large for a cache: the threads share every row, in blocks whose bounds depend on the length only. */
static int N(norm_shared)(const N(task) *task, size_t rows) {
    int kind = task->kind;
    size_t length = task->length, blocks = (length + BLOCK - 1) / BLOCK;
    N(moments) *moments = rn_scratch(0, 2 * blocks * sizeof(N(moments)));
    if (moments == NULL) return -1;
    int threads = rn_threads(blocks, 0.6 * (double)rows * (double)length);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        for (size_t row = 0; row < rows; row++) {
            const T *from = task->x + row * task->stride, *residual = task->residual;
            T *to = task->y + row * length;
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
            N(line) line = N(line_of)(kind, all, length, task->ddof, task->eps);
            if (task->centre && first == 0) task->centre[row] = line.centre, task->inv_std[row] = line.inv_std;
            const T *source = residual ? to : from;
            /* The block read last is the likeliest to be in cache. */
            for (size_t block = last; block-- > first;) {
                size_t at = block * BLOCK, size = length - at < BLOCK ? length - at : BLOCK;
                N(apply_units)(kind, source + at, &task->units, row, at, to + at, size, line, 0, task->stream);
            }
        }
        vec_fence();
    }
    return 0;
}

static int N(norm_all)(N(task) *task, size_t rows) {
    size_t length = task->length;
    task->stream = rows * length * sizeof(T) > rn_cache_bytes() / 2 && (const T *)task->y != task->x &&
                   (const T *)task->y != task->residual;
    if (length >= SHARED_BLOCKS * BLOCK) {
        task->stream &= !task->residual;
        return N(norm_shared)(task, rows);
    }
    int threads = rn_threads(rows, 0.3 * (double)rows * (double)length), failed = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        if (N(norm_rows)(task, first, last)) failed = 1;
        if (task->stream) vec_fence();
    }
    return failed ? -1 : 0;
}

static int N(norm)(int kind, const T *x, size_t stride, const T *residual, const T *gain, const T *bias, T *y,
                   size_t rows, size_t length, double eps, double *centre, double *inv_std) {
    N(task) task = {.kind = kind, .x = x, .residual = residual, .stride = stride, .units = {gain, bias, 1, length, 1},
                    .y = y, .length = length, .eps = eps, .centre = centre, .inv_std = inv_std};
    return N(norm_all)(&task, rows);
}

/* Gain and bias (or whatever belongs to a channel) once for every place: for channels shorter than a vector. */
static void N(spread)(const T *from, T *to, size_t channels, size_t places) {
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < places; i++) to[c * places + i] = from[c];
}

/* Puts gain and bias of such channels into scratch, as if every place were a channel. 0, or -1: no memory. */
static int N(spread_units)(N(units) *units) {
    if (!units->gain || units->places == 1 || units->places >= LANES) return 0;
    size_t all = units->groups * units->channels;
    T *spread = rn_scratch(2, 2 * all * units->places * sizeof(T));
    if (spread == NULL) return -1;
    N(spread)(units->gain, spread, all, units->places);
    units->gain = spread;
    if (units->bias) {
        N(spread)(units->bias, spread + all * units->places, all, units->places);
        units->bias = spread + all * units->places;
    }
    units->channels *= units->places;
    units->places = 1;
    return 0;
}

static int N(group_norm)(const rn_groups *shape, const T *x, const T *gain, const T *bias, T *y, double *centre,
                         double *inv_std) {
    size_t length = shape->channels * shape->places;
    N(task) task = {.kind = shape->kind, .x = x, .stride = length,
                    .units = {gain, bias, shape->groups, shape->channels, shape->places},
                    .y = y, .length = length, .ddof = shape->ddof, .eps = shape->eps, .centre = centre, .inv_std = inv_std};
    if (N(spread_units)(&task.units)) return -1;
    return N(norm_all)(&task, shape->examples * shape->groups);
}
