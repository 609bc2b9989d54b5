/* Body of channel_norm.c for one element type: T, its vector VT, LANES lanes, WIDE = 1 for float64.
 *
 * Every function is a job: phases of sums over each channel, after each of which finish() says what comes next, and then
 * one sweep that writes the output. Two schedules:
 * - channels first (inner long): a thread makes all phases of one channel and then writes it, so that what fits its cache
 *   is read from memory once; where channels are fewer than threads, the threads share the pieces of all channels.
 * - channels last (inner short): rows of channels * inner columns. The sums of all columns run side by side.
 * Sums are formed in pieces whose bounds depend on the shape only and added up in order: the same for any number of threads.
 */

#define CHAIN 8              /* terms of a sum in T before it goes to float64 */
#define PIECE ((size_t)4096) /* entries of a channel that are summed at a time */
#define SHORTEST_RUN 32      /* inner from which on a channel's entries are read as runs */
#define SHORT_RUN 512        /* entries below which runs are fetched ahead */
#define TILE 16              /* rows that are summed at a time with the channels last */
#define GROUP_ENTRIES ((size_t)1 << 15)
#define MOST_GROUPS 64
/* Of sum(d^2), what must remain after the guess at the mean is corrected: in sums in T, in float64 sums of float32. */
#define LEAST_SHARE 0.125
#define LEAST_SHARE_WIDE 1e-4

/* What a channel's sweeps need. forward: y = scale * c + level, backward: dx = scale * (dy - level) + slope * c. */
typedef struct {
    double high, low, level, scale, slope;
    phase next;
    int done, wide;
} N(line);

typedef struct {
    int kind, write, fused; /* write: FORWARD...; fused: the output does not depend on the sums */
    phase first;
    const T *x, *dy, *gain, *bias;
    T *y;
    rn_channel_shape shape;
    double eps, factor;
    rn_channel *channels;
    const rn_channel_line *lines;
    double *sums;
    int stream;
} N(job);

/* ---- what follows a phase -------------------------------------------------------------------------------------- */

static int N(outside)(double value, double low, double high) {
    double size = fabs(value);
    return !WIDE && (size > high || (size < low && size != 0));
}

static void N(set_mean)(N(line) *line, double mean, double low) {
    double high = (double)(T)(mean + low);
    if (!(fabs(high) < HUGE_VAL)) {
        line->high = mean + low, line->low = 0;
        return;
    }
    line->high = high;
    line->low = (mean - high) + low;
}

static void N(go_to)(N(line) *line, int sums, int wide, int mean) { line->next = (phase){sums, wide, mean}; }

/* The statistics are known: the line of y = gain * c * inverse + bias. */
static void N(finish_forward)(const N(job) *job, size_t channel, N(line) *line) {
    const rn_channel *found = job->channels + channel;
    N(set_mean)(line, found->mean, found->low);
    line->scale = (job->gain ? (double)job->gain[channel] : 1) * found->inverse;
    line->level = job->bias ? (double)job->bias[channel] : 0;
    line->wide = N(outside)(line->scale, 1e-36, 1e36) || N(outside)(found->inverse, 1e-30, 1e30) ||
                 N(outside)(found->mean, 0, 1e37);
    line->done = 1;
}

/* Whether the mean is known well enough; if not, what is to be done next. */
static int N(mean_is_final)(const N(job) *job, N(line) *line, double n, double squares, double apart, double rest) {
    phase now = line->next;
    if (now.mean == CENTRED) return 1;
    if (!now.wide) {
        if (squares <= 1e-28 * n && job->eps >= 1e-18) return 1; /* lost squares would not show beside eps */
        int in_range = WIDE ? squares > 1e-280 * n && squares < 1e290 : squares > 1e-28 * n && squares < 1e36;
        if (in_range && rest >= LEAST_SHARE * squares) return 1;
        if (!in_range) {
            N(go_to)(line, MOMENTS, 1, GUESSED);
            return 0;
        }
    } else {
        if (!WIDE && rest >= LEAST_SHARE_WIDE * squares) return 1;
        if (now.mean == GUESSED && !(fabs(apart) < HUGE_VAL)) {
            line->high = 0;
            N(go_to)(line, MOMENTS, 1, FROM_ZERO);
            return 0;
        }
    }
    line->high += apart;
    N(go_to)(line, MOMENTS, 1, CENTRED);
    return 0;
}

static void N(finish_moments)(const N(job) *job, size_t channel, N(line) *line, double n, double sum, double squares) {
    rn_channel *found = job->channels + channel;
    double apart = sum / n, rest = squares - sum * apart;
    if (!N(mean_is_final)(job, line, n, squares, apart, rest)) return;
    found->mean = line->high;
    found->low = fabs(apart) < HUGE_VAL ? apart : 0;
    found->spread = rest < 0 ? 0 : rest / n;
    if (job->kind == RN_L1_NORM) {
        N(set_mean)(line, found->mean, found->low);
        N(go_to)(line, ABSOLUTE, line->next.wide, CENTRED);
        return;
    }
    found->inverse = job->kind == RN_MEAN_NORM ? 1 : 1 / sqrt(found->spread + job->eps);
    N(finish_forward)(job, channel, line);
}

static void N(finish_products)(const N(job) *job, size_t channel, N(line) *line, double n, double sum, double product) {
    if (job->sums) {
        job->sums[2 * channel] = sum;
        job->sums[2 * channel + 1] = product;
    }
    line->done = 1;
    if (job->lines || job->kind == RN_GIVEN_NORM) return;
    const rn_channel *found = job->channels + channel;
    double r = found->inverse;
    line->level = job->kind == RN_SQUARE_NORM ? 0 : sum / n;
    double ratio = -r * product / n * (job->kind == RN_L1_NORM ? job->factor : r);
    if (job->kind == RN_MEAN_NORM) ratio = 0;
    if (job->kind == RN_L1_NORM) line->level += found->sign * ratio;
    line->slope = line->scale * ratio;
    line->wide |= N(outside)(line->slope, 0, 1e36);
}

static void N(finish)(const N(job) *job, size_t channel, N(line) *line, const double sum[2]) {
    double n = (double)job->shape.outer * (double)job->shape.inner;
    rn_channel *found = job->channels + channel;
    switch (line->next.sums) {
        case MOMENTS:
            N(finish_moments)(job, channel, line, n, sum[0], sum[1]);
            break;
        case SQUARES:
            if (!WIDE && !line->next.wide && !(sum[1] > 1e-28 * n && sum[1] < 1e36) &&
                !(sum[1] <= 1e-28 * n && job->eps >= 1e-18)) {
                N(go_to)(line, SQUARES, 1, 0);
                break;
            }
            *found = (rn_channel){0, 0, sum[1] / n, 0, 1 / sqrt(sum[1] / n + job->eps)};
            N(finish_forward)(job, channel, line);
            break;
        case ABSOLUTE:
            found->spread = sum[0] / n;
            found->sign = sum[1] / n;
            found->inverse = 1 / (job->factor * found->spread + job->eps);
            N(finish_forward)(job, channel, line);
            break;
        default:
            N(finish_products)(job, channel, line, n, sum[0], sum[1]);
    }
}

/* A guess at a channel's mean: the average of a few entries here and there. */
static double N(guess)(const N(job) *job, size_t channel) {
    rn_channel_shape s = job->shape;
    size_t rows = s.outer < 8 ? s.outer : 8, count = s.inner < LANES ? s.inner : LANES;
    double sum = 0;
    for (size_t k = 0; k < rows; k++) {
        size_t n = k * s.outer / rows, at = (s.inner - count) * k / rows;
        const T *from = job->x + (n * s.channels + channel) * s.inner + at;
        for (size_t i = 0; i < count; i++) sum += (double)from[i];
    }
    return (double)(T)(sum / (double)(rows * count));
}

static void N(begin)(const N(job) *job, size_t channel, N(line) *line) {
    *line = (N(line)){0, 0, 0, 1, 0, job->first, 0, 0};
    if (job->lines) {
        const rn_channel_line *given = job->lines + channel;
        N(set_mean)(line, given->mean, given->low);
        line->level = given->level, line->scale = given->scale, line->slope = given->slope;
        line->wide = N(outside)(line->scale, 1e-36, 1e36) || N(outside)(line->slope, 0, 1e36) ||
                     N(outside)(given->mean, 0, 1e37);
        line->next.wide = N(outside)(given->mean, 0, 1e37);
        line->done = job->sums == NULL;
    } else if (job->write != FORWARD) {
        const rn_channel *found = job->channels + channel;
        N(set_mean)(line, found->mean, found->low);
        line->scale = (job->gain ? (double)job->gain[channel] : 1) * found->inverse;
        line->next.wide = N(outside)(found->inverse, 1e-12, 1e12) || N(outside)(found->mean, 0, 1e37);
        line->wide = line->next.wide || N(outside)(line->scale, 1e-36, 1e36);
    } else if (job->kind == RN_GIVEN_NORM) {
        N(finish_forward)(job, channel, line);
    } else if (job->first.sums == MOMENTS) {
        line->high = N(guess)(job, channel);
    }
}

/* ---- one entry --------------------------------------------------------------------------------------------------- */

RN_INLINE void N(term)(int SUMS, VT x, VT dy, VT high, VT low, VT *sum, VT *other) {
    VT c = x - high;
    if (SUMS == MOMENTS) {
        *sum += c;
        *other = V(fma)(c, c, *other);
    } else if (SUMS == SQUARES) {
        *other = V(fma)(x, x, *other);
    } else if (SUMS == ABSOLUTE) {
        c -= low;
        *sum += V(abs)(c);
        *other += V(sign)(c);
    } else {
        *sum += dy;
        *other = V(fma)(dy, c - low, *other);
    }
}

RN_INLINE void N(term_wide)(int sums, vf64 x, vf64 dy, vf64 mean, vf64 low, vf64 *sum, vf64 *other) {
    vf64 c = (x - mean) - low;
    if (sums == MOMENTS) {
        *sum += c;
        *other = vf64_fma(c, c, *other);
    } else if (sums == SQUARES) {
        *other = vf64_fma(x, x, *other);
    } else if (sums == ABSOLUTE) {
        *sum += vf64_abs(c);
        *other += vf64_sign(c);
    } else {
        *sum += dy;
        *other = vf64_fma(dy, c, *other);
    }
}

RN_INLINE VT N(entry)(int WRITE, VT x, VT dy, VT high, VT low, VT level, VT scale, VT slope) {
    VT c = (x - high) - low;
    if (WRITE == FORWARD) return V(fma)(c, scale, level);
    if (WRITE == SCALE) return (dy - level) * scale;
    if (WRITE == COMBINE_SIGNS) c = V(sign)(c);
    return V(fma)(c, slope, (dy - level) * scale);
}

static T N(entry_wide)(int write, double x, double dy, const N(line) *line) {
    double c = (x - line->high) - line->low;
    if (write == FORWARD) return (T)(c * line->scale + line->level);
    if (write == SCALE) return (T)((dy - line->level) * line->scale);
    if (write == COMBINE_SIGNS) c = c > 0 ? 1 : c < 0 ? -1 : c;
    return (T)((dy - line->level) * line->scale + c * line->slope);
}

/* The lanes of x in PARTS vf64. */
#if WIDE
#define PARTS 1
RN_INLINE void N(widen)(vf64 x, vf64 *part) { part[0] = x; }
#else
#define PARTS 2
RN_INLINE void N(widen)(vf32 x, vf64 *part) {
    part[0] = vf64_low(x);
    part[1] = vf64_high(x);
}
#endif
RN_INLINE void N(add_wide)(VT x, vf64 *total) {
    vf64 part[PARTS];
    N(widen)(x, part);
    for (int k = 0; k < PARTS; k++) total[k] += part[k];
}

/* ---- channels first: runs of `length` entries, `stride` apart ------------------------------------------------------ */

typedef struct {
    const T *x, *dy;
    T *y;
    size_t rows, stride, length;
} N(runs);

RN_INLINE void N(runs_sums_of)(const int SUMS, N(runs) r, double mean, double rest, double out[2]) {
    VT high = V(set)((T)mean), low = V(set)((T)rest), zero = V(set)(0);
    T lows[LANES];
    V(store)(lows, low);
    size_t tail = r.length % LANES, whole = r.length - tail, filled = 0;
    VT low_tail = V(load_part)(lows, tail, 0); /* so that c is 0 beyond the end */
    VT sum[4] = {zero, zero, zero, zero}, other[4] = {zero, zero, zero, zero};
    vf64 sums[2] = {{0}, {0}}, others[2] = {{0}, {0}};
#define FLUSH                                                     \
    do {                                                          \
        N(add_wide)((sum[0] + sum[1]) + (sum[2] + sum[3]), sums); \
        N(add_wide)((other[0] + other[1]) + (other[2] + other[3]), others); \
        for (int k_ = 0; k_ < 4; k_++) sum[k_] = other[k_] = zero; \
        filled = 0;                                               \
    } while (0)
    for (size_t row = 0; row < r.rows; row++) {
        const T *x = r.x + row * r.stride, *dy = SUMS == PRODUCTS ? r.dy + row * r.stride : NULL;
        size_t i = 0;
        if (r.length < SHORT_RUN) /* the next channel's run follows, which no stream in this one announces */
            for (size_t next = r.length; next < 2 * r.length; next += 64 / sizeof(T)) {
                __builtin_prefetch(x + next);
                if (SUMS == PRODUCTS) __builtin_prefetch(dy + next);
            }
        while (i + 4 * LANES <= whole) {
            size_t stop = i + (CHAIN - filled) * 4 * LANES;
            if (stop > whole) stop = whole;
            for (; i + 4 * LANES <= stop; i += 4 * LANES, filled++)
#pragma GCC unroll 4
                for (size_t k = 0; k < 4; k++)
                    N(term)(SUMS, V(load)(x + i + k * LANES), SUMS == PRODUCTS ? V(load)(dy + i + k * LANES) : zero, high,
                            low, sum + k, other + k);
            if (filled == CHAIN) FLUSH;
        }
#pragma GCC unroll 3
        for (size_t k = 0; k < 3; k++)
            if (i + LANES <= whole) {
                N(term)(SUMS, V(load)(x + i), SUMS == PRODUCTS ? V(load)(dy + i) : zero, high, low, sum + k, other + k);
                i += LANES;
            }
        if (tail)
            N(term)(SUMS, V(load_part)(x + i, tail, SUMS == SQUARES ? 0 : (T)mean),
                    SUMS == PRODUCTS ? V(load_part)(dy + i, tail, 0) : zero, high, low_tail, sum + 3, other + 3);
        if (++filled >= CHAIN) FLUSH;
    }
    FLUSH;
#undef FLUSH
    out[0] = vf64_sum(sums[0] + sums[1]);
    out[1] = vf64_sum(others[0] + others[1]);
}

RN_INLINE void N(runs_sums_wide_of)(const int SUMS, N(runs) r, double mean, double rest, double out[2]) {
    vf64 high = vf64_set(mean), low = vf64_set(rest), sum[4] = {{0}, {0}, {0}, {0}}, other[4] = {{0}, {0}, {0}, {0}};
    vf64 part[PARTS], dy_part[PARTS];
    vf64 end_sum = {0}, end_other = {0};
    for (size_t row = 0; row < r.rows; row++) {
        const T *x = r.x + row * r.stride, *dy = r.dy + (SUMS == PRODUCTS ? row * r.stride : 0);
        size_t i = 0;
        for (; i + 2 * LANES <= r.length; i += 2 * LANES)
#pragma GCC unroll 2
            for (size_t k = 0; k < 2; k++) {
                N(widen)(V(load)(x + i + k * LANES), part);
                N(widen)(SUMS == PRODUCTS ? V(load)(dy + i + k * LANES) : V(set)(0), dy_part);
                for (size_t j = 0; j < PARTS; j++)
                    N(term_wide)(SUMS, part[j], dy_part[j], high, low, sum + 2 * k + j, other + 2 * k + j);
            }
        for (; i < r.length; i++) { /* the first lane counts */
            vf64 one = vf64_set((double)x[i]), dy_one = vf64_set(SUMS == PRODUCTS ? (double)dy[i] : 0);
            N(term_wide)(SUMS, one, dy_one, high, low, &end_sum, &end_other);
        }
    }
    out[0] = vf64_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + end_sum[0];
    out[1] = vf64_sum((other[0] + other[1]) + (other[2] + other[3])) + end_other[0];
}

/* `call` with the constant kind of sums, so that each has a loop of its own. */
#define EACH_KIND_OF_SUMS(kind, call) \
    do {                              \
        if (kind == MOMENTS) {        \
            call(MOMENTS);            \
        } else if (kind == SQUARES) { \
            call(SQUARES);            \
        } else if (kind == ABSOLUTE) { \
            call(ABSOLUTE);           \
        } else {                      \
            call(PRODUCTS);           \
        }                             \
    } while (0)

static void N(runs_sums)(phase now, N(runs) r, const N(line) *line, double out[2]) {
#define NARROW_SUMS(KIND) N(runs_sums_of)(KIND, r, line->high, line->low, out)
#define WIDE_SUMS(KIND) N(runs_sums_wide_of)(KIND, r, line->high, line->low, out)
    if (now.wide)
        EACH_KIND_OF_SUMS(now.sums, WIDE_SUMS);
    else
        EACH_KIND_OF_SUMS(now.sums, NARROW_SUMS);
#undef NARROW_SUMS
#undef WIDE_SUMS
}

RN_INLINE void N(runs_write_of)(const int WRITE, const int STREAM, N(runs) r, const N(line) *line) {
    VT high = V(set)((T)line->high), low = V(set)((T)line->low), level = V(set)((T)line->level);
    VT scale = V(set)((T)line->scale), slope = V(set)((T)line->slope), zero = V(set)(0);
#define DY(load) (WRITE == FORWARD ? zero : load)
    for (size_t row = 0; row < r.rows; row++) {
        const T *x = r.x + row * r.stride, *dy = WRITE == FORWARD ? NULL : r.dy + row * r.stride;
        T *y = r.y + row * r.stride;
        size_t i = 0;
        if (STREAM) {
            i = (size_t)(-(uintptr_t)y & (REFNORM_VECTOR_BYTES - 1)) / sizeof(T);
            if (i > r.length) i = r.length;
            if (i)
                V(store_part)(y, i, N(entry)(WRITE, V(load_part)(x, i, 0), DY(V(load_part)(dy, i, 0)), high, low, level,
                                             scale, slope));
        }
#pragma GCC unroll 2
        for (; i + LANES <= r.length; i += LANES) {
            VT value = N(entry)(WRITE, V(load)(x + i), DY(V(load)(dy + i)), high, low, level, scale, slope);
            if (STREAM)
                V(stream)(y + i, value);
            else
                V(store)(y + i, value);
        }
        if (i < r.length) {
            size_t left = r.length - i;
            V(store_part)(y + i, left, N(entry)(WRITE, V(load_part)(x + i, left, 0), DY(V(load_part)(dy + i, left, 0)),
                                                high, low, level, scale, slope));
        }
    }
#undef DY
}

/* `call` with the constant way to write, and whether past the caches. */
#define EACH_WAY_TO_WRITE(way, stream, call) \
    do {                                     \
        if (stream)                          \
            EACH_WAY(way, call, 1);          \
        else                                 \
            EACH_WAY(way, call, 0);          \
    } while (0)
#define EACH_WAY(way, call, stream)       \
    do {                                  \
        if (way == FORWARD) {             \
            call(FORWARD, stream);        \
        } else if (way == COMBINE) {      \
            call(COMBINE, stream);        \
        } else if (way == SCALE) {        \
            call(SCALE, stream);          \
        } else {                          \
            call(COMBINE_SIGNS, stream);  \
        }                                 \
    } while (0)

static void N(runs_write)(int write, int stream, N(runs) r, const N(line) *line) {
    if (line->wide) {
        for (size_t row = 0; row < r.rows; row++)
            for (size_t i = 0; i < r.length; i++) {
                size_t at = row * r.stride + i;
                r.y[at] = N(entry_wide)(write, (double)r.x[at], r.dy ? (double)r.dy[at] : 0, line);
            }
        return;
    }
#define WRITE_RUNS(WRITE, STREAM) N(runs_write_of)(WRITE, STREAM, r, line)
    EACH_WAY_TO_WRITE(write, stream, WRITE_RUNS);
#undef WRITE_RUNS
}

/* Pieces of a channel: several whole runs, or a part of one. */
typedef struct {
    size_t per_run, runs, count; /* pieces of a run; runs of a piece; pieces of a channel */
} N(cut);

static N(cut) N(cut_of)(rn_channel_shape s) {
    N(cut) cut = {1, 1, 0};
    if (s.inner > PIECE)
        cut.per_run = (s.inner + PIECE - 1) / PIECE;
    else
        cut.runs = PIECE / s.inner;
    cut.count = (s.outer + cut.runs - 1) / cut.runs * cut.per_run;
    return cut;
}

static N(runs) N(piece_of)(const N(job) *job, N(cut) cut, size_t channel, size_t piece) {
    rn_channel_shape s = job->shape;
    size_t first = piece / cut.per_run * cut.runs, start = piece % cut.per_run * PIECE;
    size_t at = (first * s.channels + channel) * s.inner + start;
    return (N(runs)){job->x + at,
                     job->dy ? job->dy + at : NULL,
                     job->y ? job->y + at : NULL,
                     s.outer - first < cut.runs ? s.outer - first : cut.runs,
                     s.channels * s.inner,
                     s.inner - start < PIECE ? s.inner - start : PIECE};
}

/* All of one channel by one thread. The last piece read is the likeliest to be in cache, so it is written first. */
static void N(whole_channel)(const N(job) *job, N(cut) cut, size_t channel) {
    N(line) line;
    N(begin)(job, channel, &line);
    while (!line.done) {
        double sum[2] = {0, 0}, part[2];
        for (size_t piece = 0; piece < cut.count; piece++) {
            N(runs) runs = N(piece_of)(job, cut, channel, piece);
            N(runs_sums)(line.next, runs, &line, part);
            if (job->fused) N(runs_write)(job->write, job->stream, runs, &line);
            sum[0] += part[0];
            sum[1] += part[1];
        }
        N(finish)(job, channel, &line, sum);
        if (job->fused) return;
    }
    for (size_t piece = job->y ? cut.count : 0; piece-- > 0;)
        N(runs_write)(job->write, job->stream, N(piece_of)(job, cut, channel, piece), &line);
}

/* The pieces of all channels by all threads. */
static int N(shared_channels)(const N(job) *job, N(cut) cut, int threads) {
    size_t channels = job->shape.channels, total = channels * cut.count, open = 0;
    N(line) *lines = rn_scratch(0, channels * sizeof *lines);
    double *parts = rn_scratch(1, total * 2 * sizeof(double));
    if (lines == NULL || parts == NULL) return -1;
    for (size_t channel = 0; channel < channels; channel++) {
        N(begin)(job, channel, lines + channel);
        open += !lines[channel].done;
    }
    RN_PARALLEL(threads) {
        RN_SHARE(total, first, last);
        while (open) {
            for (size_t i = first; i < last; i++) {
                N(line) *line = lines + i / cut.count;
                if (line->done) continue;
                N(runs) runs = N(piece_of)(job, cut, i / cut.count, i % cut.count);
                N(runs_sums)(line->next, runs, line, parts + 2 * i);
                if (job->fused) N(runs_write)(job->write, job->stream, runs, line);
            }
            RN_BARRIER;
            if (RN_THREAD == 0) {
                open = 0;
                for (size_t channel = 0; channel < channels; channel++) {
                    if (lines[channel].done) continue;
                    double sum[2] = {0, 0};
                    for (size_t i = channel * cut.count; i < (channel + 1) * cut.count; i++) {
                        sum[0] += parts[2 * i];
                        sum[1] += parts[2 * i + 1];
                    }
                    N(finish)(job, channel, lines + channel, sum);
                    open += !lines[channel].done;
                }
            }
            RN_BARRIER;
        }
        for (size_t i = job->y && !job->fused ? last : first; i-- > first;)
            N(runs_write)(job->write, job->stream, N(piece_of)(job, cut, i / cut.count, i % cut.count),
                          lines + i / cut.count);
        vec_fence();
    }
    return 0;
}

/* ---- short runs with given lines: in the order of memory ----------------------------------------------------------- */

/* A line as the vectors take it. */
typedef struct {
    T high, low, level, scale, slope;
} N(coefficients);

/* `count` runs of at least LANES entries from run `first` on. A run's last vector ends with the run and covers a part of the
 * one before it; it is read before that one is written, because x, dy and y may be the same. */
RN_INLINE void N(short_runs_of)(const int WRITE, const N(job) *job, const N(coefficients) *lines, size_t first, size_t count) {
    size_t channels = job->shape.channels, length = job->shape.inner, channel = first % channels, last = length - LANES;
    const T *x = job->x + first * length, *dy = WRITE == FORWARD ? NULL : job->dy + first * length;
    T *y = job->y + first * length;
    VT zero = V(set)(0);
#define ENTRY_AT(i) \
    N(entry)(WRITE, V(load)(x + (i)), WRITE == FORWARD ? zero : V(load)(dy + (i)), high, low, level, scale, slope)
    for (size_t run = 0; run < count; run++) {
        const N(coefficients) *of = lines + channel;
        VT high = V(set)(of->high), low = V(set)(of->low), level = V(set)(of->level), scale = V(set)(of->scale);
        VT slope = V(set)(of->slope), end = ENTRY_AT(last);
        for (size_t i = 0; i < last; i += LANES) V(store)(y + i, ENTRY_AT(i));
        V(store)(y + last, end);
        x += length, y += length;
        if (WRITE != FORWARD) dy += length;
        channel = channel + 1 < channels ? channel + 1 : 0;
    }
#undef ENTRY_AT
}

static void N(short_runs)(const N(job) *job, const N(coefficients) *lines, size_t first, size_t count) {
#define SHORT_RUNS(WRITE, STREAM) N(short_runs_of)(WRITE, job, lines, first, count)
    EACH_WAY(job->write, SHORT_RUNS, 0);
#undef SHORT_RUNS
}

/* The channels' coefficients in scratch slot 1, or NULL: where a run is no shorter than a vector, all are in range and
 * nothing is written past the caches. */
static const N(coefficients) *N(short_lines)(const N(job) *job, const N(line) *lines) {
    if (job->stream || job->shape.inner < LANES || job->shape.inner >= SHORT_RUN) return NULL;
    N(coefficients) *to = rn_scratch(1, job->shape.channels * sizeof *to);
    for (size_t channel = 0; to != NULL && channel < job->shape.channels; channel++) {
        const N(line) *line = lines + channel;
        if (line->wide) return NULL;
        to[channel] =
            (N(coefficients)){(T)line->high, (T)line->low, (T)line->level, (T)line->scale, (T)line->slope};
    }
    return to;
}

/* Where the lines are given: in the order of memory, run after run. */
static int N(runs_in_order)(const N(job) *job, double nanoseconds) {
    rn_channel_shape s = job->shape;
    size_t total = s.outer * s.channels;
    N(line) *lines = rn_scratch(0, s.channels * sizeof *lines);
    if (lines == NULL) return -1;
    for (size_t channel = 0; channel < s.channels; channel++) N(begin)(job, channel, lines + channel);
    int threads = rn_threads(total, nanoseconds);
    const N(coefficients) *coefficients = N(short_lines)(job, lines);
    size_t some = total / (16 * (size_t)threads) + 1;
    rn_shares shares = rn_share_out(total, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t first = rn_take(&shares, some, &count); count; first = rn_take(&shares, some, &count)) {
            if (coefficients != NULL) {
                N(short_runs)(job, coefficients, first, count);
                continue;
            }
            for (size_t i = first; i < first + count; i++) {
                size_t at = i * s.inner;
                N(runs) run = {job->x + at, job->dy ? job->dy + at : NULL, job->y + at, 1, 0, s.inner};
                N(runs_write)(job->write, job->stream, run, lines + i % s.channels);
            }
        }
        vec_fence();
    }
    return 0;
}

static int N(channels_first)(N(job) *job, double nanoseconds) {
    int given = job->write == FORWARD ? job->kind == RN_GIVEN_NORM : job->lines != NULL && job->sums == NULL;
    if (given && job->shape.outer * job->shape.channels >= 16) return N(runs_in_order)(job, nanoseconds);
    N(cut) cut = N(cut_of)(job->shape);
    int threads = rn_threads(job->shape.channels * cut.count, nanoseconds);
    if (threads > 1 && job->shape.channels < 2 * (size_t)threads) return N(shared_channels)(job, cut, threads);
    rn_shares shares = rn_share_out(job->shape.channels, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t channel = rn_take(&shares, 1, &count); count; channel = rn_take(&shares, 1, &count))
            N(whole_channel)(job, cut, channel);
        vec_fence();
    }
    return 0;
}

/* ---- channels last: rows of `columns` entries ---------------------------------------------------------------------- */

/* The lines, spread over the columns: arrays of `padded` + LANES entries, the first of which is column `turn`'s. Beyond the
 * last column they begin again, so that a vector may reach from the end of a row into the next one. */
typedef struct {
    T *high, *low, *level, *scale, *slope;
    double *wide_high, *wide_low;
    size_t columns, padded, turn;
} N(columns);

static size_t N(columns_bytes)(size_t padded) { return (padded + LANES) * (2 * sizeof(double) + 5 * sizeof(T)); }

/* The arrays in `room`, whose vectors are aligned as room is. */
static N(columns) N(columns_in)(void *room, size_t columns, size_t padded, size_t turn) {
    N(columns) of = {.columns = columns, .padded = padded, .turn = turn % columns};
    size_t entries = padded + LANES;
    memset(room, 0, N(columns_bytes)(padded));
    of.wide_high = room, of.wide_low = of.wide_high + entries;
    of.high = (T *)(of.wide_low + entries), of.low = of.high + entries, of.level = of.low + entries;
    of.scale = of.level + entries, of.slope = of.scale + entries;
    return of;
}

static void N(spread_lines)(const N(line) *lines, rn_channel_shape s, N(columns) *to) {
    size_t i = to->turn ? to->columns - to->turn : 0;
    for (size_t channel = 0; channel < s.channels; channel++)
        for (size_t k = 0; k < s.inner; k++) {
            to->high[i] = (T)lines[channel].high;
            to->low[i] = (T)lines[channel].low;
            to->level[i] = (T)lines[channel].level;
            to->scale[i] = (T)lines[channel].scale;
            to->slope[i] = (T)lines[channel].slope;
            to->wide_high[i] = lines[channel].high;
            to->wide_low[i] = lines[channel].low;
            if (++i == to->columns) i = 0;
        }
    T *const arrays[] = {to->high, to->low, to->level, to->scale, to->slope};
    for (size_t k = 0; k < sizeof arrays / sizeof *arrays; k++)
        for (i = 0; i < LANES; i++) arrays[k][to->columns + i] = arrays[k][i % to->columns];
}

/* Adds the sums of up to TILE rows, in chains of CHAIN terms, to the columns' sums. */
RN_INLINE void N(tile_sums_of)(const int SUMS, const T *x, const T *dy, size_t rows, const N(columns) *of, double *sums,
                               double *others) {
    size_t columns = of->columns;
    VT zero = V(set)(0);
    for (size_t j = 0; j < columns; j += LANES) {
        size_t left = columns - j < LANES ? columns - j : LANES;
        VT high = V(load)(of->high + j), low = V(load)(of->low + j);
        VT sum[2] = {zero, zero}, other[2] = {zero, zero};
#define ROW(k, row, load, ...)                                                                          \
    N(term)(SUMS, load(x + (row) * columns + j, ##__VA_ARGS__),                                         \
            SUMS == PRODUCTS ? load(dy + (row) * columns + j, ##__VA_ARGS__) : zero, high, low, sum + k, other + k)
        size_t row = 0;
        if (left == LANES) {
            for (; row + 2 <= rows; row += 2) {
                const size_t next = (row + TILE) * columns + j; /* of the next tile */
                __builtin_prefetch(x + next);
                __builtin_prefetch(x + next + columns);
                if (SUMS == PRODUCTS) {
                    __builtin_prefetch(dy + next);
                    __builtin_prefetch(dy + next + columns);
                }
                ROW(0, row, V(load));
                ROW(1, row + 1, V(load));
            }
            if (row < rows) ROW(0, row, V(load));
        } else {
            for (; row < rows; row++) ROW(0, row, V(load_part), left, 0);
        }
#undef ROW
        vf64 total[2] = {{0}, {0}}, more[2] = {{0}, {0}};
        N(add_wide)(sum[0] + sum[1], total);
        N(add_wide)(other[0] + other[1], more);
        for (size_t part = 0; part < LANES / VF64; part++) {
            size_t at = j + part * VF64;
            vf64_store(sums + at, vf64_load(sums + at) + total[part]);
            vf64_store(others + at, vf64_load(others + at) + more[part]);
        }
    }
}

RN_INLINE void N(tile_sums_wide_of)(const int SUMS, const T *x, const T *dy, size_t rows, const N(columns) *of,
                                    double *sums, double *others) {
    size_t columns = of->columns;
    for (size_t j = 0; j < columns; j += LANES) {
        size_t left = columns - j < LANES ? columns - j : LANES;
        vf64 sum[PARTS], other[PARTS], high[PARTS], low[PARTS], part[PARTS], dy_part[PARTS];
        for (size_t k = 0; k < PARTS; k++) {
            size_t from = j + k * VF64;
            sum[k] = vf64_load(sums + from), other[k] = vf64_load(others + from);
            high[k] = vf64_load(of->wide_high + from), low[k] = vf64_load(of->wide_low + from);
        }
        for (size_t row = 0; row < rows; row++) {
            size_t at = row * columns + j;
            __builtin_prefetch(x + at + TILE * columns);
            N(widen)(left == LANES ? V(load)(x + at) : V(load_part)(x + at, left, 0), part);
            N(widen)(SUMS == PRODUCTS ? V(load_part)(dy + at, left, 0) : V(set)(0), dy_part);
            for (size_t k = 0; k < PARTS; k++)
                N(term_wide)(SUMS, part[k], dy_part[k], high[k], low[k], sum + k, other + k);
        }
        for (size_t k = 0; k < PARTS; k++) {
            vf64_store(sums + j + k * VF64, sum[k]);
            vf64_store(others + j + k * VF64, other[k]);
        }
    }
}

static void N(tile_sums)(phase now, const T *x, const T *dy, size_t rows, const N(columns) *of, double *sums,
                         double *others) {
#define NARROW_SUMS(KIND) N(tile_sums_of)(KIND, x, dy, rows, of, sums, others)
#define WIDE_SUMS(KIND) N(tile_sums_wide_of)(KIND, x, dy, rows, of, sums, others)
    if (now.wide)
        EACH_KIND_OF_SUMS(now.sums, WIDE_SUMS);
    else
        EACH_KIND_OF_SUMS(now.sums, NARROW_SUMS);
#undef NARROW_SUMS
#undef WIDE_SUMS
}

#define LINE(j)                                                                                                      \
    VT high = V(load)(of->high + (j)), low = V(load)(of->low + (j)), level = V(load)(of->level + (j));               \
    VT scale = V(load)(of->scale + (j)), slope = WRITE == FORWARD ? (VT){0} : V(load)(of->slope + (j))
#define WHOLE_ENTRY(at)                                                                                              \
    N(entry)(WRITE, V(load)(x + (at)), WRITE == FORWARD ? (VT){0} : V(load)(dy + (at)), high, low, level, scale, slope)
#define STORE_PART(at, count)                                                                                        \
    V(store_part)(y + (at), count,                                                                                   \
                  N(entry)(WRITE, V(load_part)(x + (at), count, 0),                                                  \
                           WRITE == FORWARD ? (VT){0} : V(load_part)(dy + (at), count, 0), high, low, level, scale, slope))

/* Several rows at a time share the loads of the columns' lines. */
RN_INLINE void N(tile_write_of)(const int WRITE, const int ROWS, const T *x, const T *dy, T *y, const N(columns) *of) {
    size_t columns = of->columns, j = 0;
    for (; j + LANES <= columns; j += LANES) {
        LINE(j);
#pragma GCC unroll 4
        for (size_t row = 0; row < (size_t)ROWS; row++) V(store)(y + row * columns + j, WHOLE_ENTRY(row * columns + j));
    }
    if (j < columns) {
        LINE(j);
        for (size_t row = 0; row < (size_t)ROWS; row++) STORE_PART(row * columns + j, columns - j);
    }
}

/* `count` entries from the start of a row on, past the caches: in the order of memory, whole vectors where they are aligned,
 * wherever in a row that is. The lines are turned so that theirs are aligned as well, in every row if vectors fill the rows. */
RN_INLINE void N(stream_rows_of)(const int WRITE, const T *x, const T *dy, T *y, size_t count, const N(columns) *of) {
    size_t at = vec_to_alignment(y, sizeof(T), count), j = of->turn ? of->columns - of->turn : 0;
    if (at) {
        LINE(j);
        STORE_PART(0, at);
    }
    for (j = (j + at) % of->columns; at + LANES <= count; at += LANES) {
        LINE(j);
        V(stream)(y + at, WHOLE_ENTRY(at));
        for (j += LANES; j >= of->columns;) j -= of->columns;
    }
    if (at < count) {
        LINE(j);
        STORE_PART(at, count - at);
    }
}
#undef LINE
#undef WHOLE_ENTRY
#undef STORE_PART

/* Four rows at a time where caches hold them; what goes past the caches is read and written in the order of memory, which
 * is worth more than the loads. */
RN_INLINE void N(tile_write_rows)(const int WRITE, const int STREAM, const T *x, const T *dy, T *y, size_t rows,
                                  const N(columns) *of) {
    size_t row = 0, columns = of->columns;
    if (STREAM) {
        N(stream_rows_of)(WRITE, x, dy, y, rows * columns, of);
        return;
    }
    for (; row + 4 <= rows; row += 4)
        N(tile_write_of)(WRITE, 4, x + row * columns, dy ? dy + row * columns : NULL, y + row * columns, of);
    for (; row < rows; row++)
        N(tile_write_of)(WRITE, 1, x + row * columns, dy ? dy + row * columns : NULL, y + row * columns, of);
}

/* stream: lines turned for writing past the caches, or NULL. */
static void N(tile_write)(int write, int wide, const T *x, const T *dy, T *y, size_t rows, const N(columns) *of,
                          const N(columns) *stream, const N(line) *lines, size_t inner) {
    if (wide) {
        for (size_t row = 0; row < rows; row++)
            for (size_t j = 0; j < of->columns; j++) {
                size_t at = row * of->columns + j;
                y[at] = N(entry_wide)(write, (double)x[at], dy ? (double)dy[at] : 0, lines + j / inner);
            }
        return;
    }
#define WRITE_ROWS(WRITE, STREAM) N(tile_write_rows)(WRITE, STREAM, x, dy, y, rows, STREAM ? stream : of)
    EACH_WAY_TO_WRITE(write, stream != NULL, WRITE_ROWS);
#undef WRITE_ROWS
}

/* The sums of a group of rows: `columns` first sums, then as many others, both padded. */
static void N(group_sums)(const N(job) *job, phase now, int wide, size_t first, size_t last, const N(columns) *of,
                          const N(columns) *stream, const N(line) *lines, double *sums) {
    memset(sums, 0, 2 * of->padded * sizeof(double));
    for (size_t row = first; row < last; row += TILE) {
        size_t rows = last - row < TILE ? last - row : TILE, at = row * of->columns;
        const T *dy = job->dy ? job->dy + at : NULL;
        N(tile_sums)(now, job->x + at, dy, rows, of, sums, sums + of->padded);
        if (job->fused)
            N(tile_write)(job->write, wide, job->x + at, dy, job->y + at, rows, of, stream, lines, job->shape.inner);
    }
}

/* Finishes the channels whose phase was `now`; returns how many are open, and says in *next what they need. */
static size_t N(finish_columns)(const N(job) *job, phase now, const double *sums, size_t padded, N(line) *lines,
                                phase *next) {
    size_t open = 0, inner = job->shape.inner;
    for (size_t channel = 0; channel < job->shape.channels; channel++) {
        N(line) *line = lines + channel;
        if (!line->done && memcmp(&line->next, &now, sizeof now) == 0) {
            double sum[2] = {0, 0};
            for (size_t j = channel * inner; j < (channel + 1) * inner; j++) {
                sum[0] += sums[j];
                sum[1] += sums[padded + j];
            }
            N(finish)(job, channel, line, sum);
        }
        if (!line->done && open++ == 0) *next = line->next;
    }
    return open;
}

static int N(any_wide)(const N(line) *lines, size_t channels) {
    int wide = 0;
    for (size_t channel = 0; channel < channels; channel++) wide |= lines[channel].wide;
    return wide;
}

static int N(channels_last)(N(job) *job, double nanoseconds) {
    rn_channel_shape s = job->shape;
    size_t columns = s.channels * s.inner, padded = (columns + LANES - 1) / LANES * LANES;
    size_t groups = s.outer * columns / GROUP_ENTRIES, most = (s.outer + TILE - 1) / TILE, open = 0;
    if (groups > MOST_GROUPS) groups = MOST_GROUPS;
    if (groups > most) groups = most;
    if (groups < 1) groups = 1;
    N(line) *lines = rn_scratch(0, s.channels * sizeof *lines);
    double *sums = rn_scratch(1, groups * 2 * padded * sizeof(double));
    char *room = rn_scratch(2, 2 * N(columns_bytes)(padded));
    if (lines == NULL || sums == NULL || room == NULL) return -1;
    N(columns) of = N(columns_in)(room, columns, padded, 0), turned, *stream = NULL;
    if (job->stream) {
        size_t head = vec_to_alignment(job->y, sizeof(T), LANES);
        turned = N(columns_in)(room + N(columns_bytes)(padded), columns, padded, head);
        stream = &turned;
    }
    phase now = job->first;
    for (size_t channel = 0; channel < s.channels; channel++) {
        N(begin)(job, channel, lines + channel);
        if (!lines[channel].done && open++ == 0) now = lines[channel].next;
    }
    N(spread_lines)(lines, s, &of);
    if (stream) N(spread_lines)(lines, s, stream);
    int wide = N(any_wide)(lines, s.channels);
    int threads = rn_threads(groups, nanoseconds);
    RN_PARALLEL(threads) {
        RN_SHARE(groups, first, last);
        RN_SHARE(2 * padded, first_sum, last_sum);
        size_t row, end;
        while (open) {
            for (size_t group = first; group < last; group++) {
                rn_range(s.outer, groups, group, &row, &end);
                N(group_sums)(job, now, wide, row, end, &of, stream, lines, sums + group * 2 * padded);
            }
            RN_BARRIER;
            for (size_t group = 1; group < groups; group++)
                for (size_t i = first_sum; i < last_sum; i++) sums[i] += sums[group * 2 * padded + i];
            RN_BARRIER;
            if (RN_THREAD == 0) {
                open = N(finish_columns)(job, now, sums, padded, lines, &now);
                N(spread_lines)(lines, s, &of);
                if (stream) N(spread_lines)(lines, s, stream);
                wide = N(any_wide)(lines, s.channels);
            }
            RN_BARRIER;
        }
        for (size_t group = job->y && !job->fused ? last : first; group-- > first;) {
            rn_range(s.outer, groups, group, &row, &end);
            size_t at = row * columns;
            N(tile_write)(job->write, wide, job->x + at, job->dy ? job->dy + at : NULL, job->y + at, end - row, &of,
                          stream, lines, s.inner);
        }
        vec_fence();
    }
    return 0;
}

/* ---- the functions ------------------------------------------------------------------------------------------------- */

/* One ghost batch. */
static int N(run_one)(N(job) *job) {
    rn_channel_shape *s = &job->shape;
    if (s->channels == 1) s->inner *= s->outer, s->outer = 1;
    double nanoseconds = (double)s->outer * (double)s->channels * (double)s->inner * (job->dy ? 0.6 : 0.4);
    if (s->inner < SHORTEST_RUN) return N(channels_last)(job, nanoseconds);
    if (s->inner * sizeof(T) < 1024) job->stream = 0;
    return N(channels_first)(job, nanoseconds);
}

static int N(run_ghost)(const N(job) *all, size_t ghost) {
    N(job) job = *all;
    size_t first = ghost * job.shape.ghost_outer, at = first * job.shape.channels * job.shape.inner;
    job.shape.outer = ghost + 1 == job.shape.ghosts ? job.shape.outer - first : job.shape.ghost_outer;
    job.x += at;
    if (job.dy) job.dy += at;
    if (job.y) job.y += at;
    if (job.channels) job.channels += ghost * job.shape.channels;
    if (job.lines) job.lines += ghost * job.shape.channels;
    if (job.sums) job.sums += 2 * ghost * job.shape.channels;
    return N(run_one)(&job);
}

static int N(run)(N(job) *job) {
    rn_channel_shape s = job->shape;
    double entries = (double)s.outer * (double)s.channels * (double)s.inner;
    job->stream = job->y != NULL && entries * sizeof(T) > (double)rn_cache_bytes() / 2 && job->y != job->x;
    int threads = rn_threads(s.ghosts, entries * 0.4), failed = 0;
    if (s.ghosts < 2 * (size_t)threads) { /* all threads on one ghost batch after the other */
        for (size_t ghost = 0; ghost < s.ghosts; ghost++) failed |= N(run_ghost)(job, ghost);
        return failed;
    }
    rn_shares shares = rn_share_out(s.ghosts, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t ghost = rn_take(&shares, 1, &count); count; ghost = rn_take(&shares, 1, &count))
            if (N(run_ghost)(job, ghost)) failed = -1;
    }
    return failed;
}

static int N(norm)(int kind, const T *x, const T *gain, const T *bias, T *y, rn_channel_shape shape, double eps,
                   double factor, rn_channel *channels) {
    N(job) job = {.kind = kind,
                  .write = FORWARD,
                  .first = {kind == RN_SQUARE_NORM ? SQUARES : MOMENTS,
                            y == NULL && (kind == RN_BATCH_NORM || kind == RN_L1_NORM), GUESSED},
                  .x = x,
                  .gain = gain,
                  .bias = bias,
                  .y = y,
                  .shape = shape,
                  .eps = eps,
                  .factor = factor,
                  .channels = channels};
    return N(run)(&job);
}

static int N(backward)(int kind, const T *x, const T *dy, const T *gain, T *dx, rn_channel_shape shape, double factor,
                       const rn_channel *channels, double *sums) {
    N(job) job = {.kind = kind,
                  .write = kind == RN_L1_NORM                              ? COMBINE_SIGNS
                           : kind == RN_MEAN_NORM || kind == RN_GIVEN_NORM ? SCALE
                                                                           : COMBINE,
                  .fused = kind == RN_GIVEN_NORM,
                  .first = {PRODUCTS, 0, 0},
                  .x = x,
                  .dy = dy,
                  .gain = gain,
                  .y = dx,
                  .shape = shape,
                  .factor = factor,
                  .channels = (rn_channel *)channels,
                  .sums = sums};
    return N(run)(&job);
}

static int N(sums)(const T *x, const T *dy, rn_channel_shape shape, const rn_channel_line *lines, double *sums) {
    N(job) job = {.kind = RN_GIVEN_NORM,
                  .write = COMBINE,
                  .first = {PRODUCTS, 0, 0},
                  .x = x,
                  .dy = dy,
                  .shape = shape,
                  .lines = lines,
                  .sums = sums};
    return N(run)(&job);
}

static int N(apply)(const T *x, T *y, rn_channel_shape shape, const rn_channel_line *lines) {
    N(job) job = {.kind = RN_GIVEN_NORM, .write = FORWARD, .x = x, .y = y, .shape = shape, .lines = lines};
    return N(run)(&job);
}

static int N(combine)(const T *x, const T *dy, T *dx, rn_channel_shape shape, const rn_channel_line *lines,
                      double *sums) {
    N(job) job = {.kind = RN_GIVEN_NORM,
                  .write = COMBINE,
                  .fused = sums != NULL,
                  .first = {PRODUCTS, 0, 0},
                  .x = x,
                  .dy = dy,
                  .y = dx,
                  .shape = shape,
                  .lines = lines,
                  .sums = sums};
    return N(run)(&job);
}

#undef PARTS
#undef CHAIN
#undef PIECE
#undef SHORTEST_RUN
#undef SHORT_RUN
#undef TILE
#undef GROUP_ENTRIES
#undef EACH_KIND_OF_SUMS
#undef EACH_WAY_TO_WRITE
#undef EACH_WAY
#undef MOST_GROUPS
#undef LEAST_SHARE
#undef LEAST_SHARE_WIDE
