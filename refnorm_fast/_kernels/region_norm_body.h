/* Region norm for one element type; included by channel_norm.c after evonorm_body.h. Channels first.
 *
 * A thread takes a channel of a ghost batch: the sums of both regions side by side, where a select keeps each entry, NaN
 * included, out of the other region; then the output. What fits a core's cache is read from memory once. */

typedef struct {
    const T *x, *dy, *mask, *gain, *bias;
    T *y; /* or dx */
    rn_channel_shape shape;
    const double *counts, *eps;
    rn_channel *found;
    double *sums;
} N(region_norm);

/* One channel of a ghost batch: its runs, and the masks beside them. */
typedef struct {
    const T *x, *dy, *mask;
    T *y;
    size_t rows, stride, length;
} N(region_runs);

static N(region_runs) N(region_runs_of)(const N(region_norm) *job, size_t ghost, size_t channel) {
    rn_channel_shape s = job->shape;
    size_t first = ghost * s.ghost_outer, at = (first * s.channels + channel) * s.inner;
    size_t rows = ghost + 1 == s.ghosts ? s.outer - first : s.ghost_outer;
    return (N(region_runs)){job->x + at, job->dy ? job->dy + at : NULL, job->mask + first * s.inner,
                            job->y + at, rows, s.channels * s.inner, s.inner};
}

/* Sums of both regions: of d and d^2, or of dy and dy d, with d = x - mean. The lanes behind the end have d = 0. */
RN_INLINE void N(region_sums_of)(const int OF_PRODUCTS, N(region_runs) r, const N(line) *lines, double *sums) {
    VT high[2], low[2], chain[4], zero = V(set)(0);
    vf64 total[4][2];
    memset(total, 0, sizeof total);
    for (int k = 0; k < 2; k++) high[k] = V(set)((T)lines[k].high), low[k] = V(set)((T)lines[k].low);
    for (size_t row = 0; row < r.rows; row++) {
        const T *x = r.x + row * r.stride, *dy = OF_PRODUCTS ? r.dy + row * r.stride : NULL, *mask = r.mask + row * r.length;
        for (size_t i = 0; i < r.length;) {
            for (int k = 0; k < 4; k++) chain[k] = zero;
            for (int link = 0; link < EVONORM_CHAIN && i < r.length; link++, i += LANES) {
                size_t count = r.length - i < LANES ? r.length - i : LANES;
                VT entry = N(load_some)(x + i, count), inside = N(load_some)(mask + i, count);
                VT up = OF_PRODUCTS ? N(load_some)(dy + i, count) : zero;
                VT here = V(select)(inside != 0, (entry - high[0]) - low[0], zero);
                VT there = V(select)(inside != 0, zero, (entry - high[1]) - low[1]);
                if (count < LANES) {
                    T lanes[LANES] = {0};
                    V(store_part)(lanes, count, there);
                    there = V(load)(lanes);
                }
                VT first = OF_PRODUCTS ? V(select)(inside != 0, up, zero) : here;
                VT second = OF_PRODUCTS ? V(select)(inside != 0, zero, up) : there;
                chain[0] += first;
                chain[1] = V(fma)(first, here, chain[1]);
                chain[2] += second;
                chain[3] = V(fma)(second, there, chain[3]);
            }
            for (int k = 0; k < 4; k++) N(add_wide)(chain[k], total[k]);
        }
    }
    for (int k = 0; k < 4; k++) sums[k] = vf64_sum(total[k][0] + total[k][1]);
}

/* The same in float64, entry by entry. */
static void N(region_sums_wide)(int of_products, N(region_runs) r, const N(line) *lines, double *sums) {
    for (int k = 0; k < 4; k++) sums[k] = 0;
    for (size_t row = 0; row < r.rows; row++)
        for (size_t i = 0; i < r.length; i++) {
            int k = r.mask[row * r.length + i] != 0 ? 0 : 1;
            double d = ((double)r.x[row * r.stride + i] - lines[k].high) - lines[k].low;
            double factor = of_products ? (double)r.dy[row * r.stride + i] : d;
            sums[2 * k] += factor;
            sums[2 * k + 1] += factor * d;
        }
}

static void N(region_sums)(int of_products, N(region_runs) r, const N(line) *lines, double *sums) {
    if (lines[0].wide || lines[1].wide)
        N(region_sums_wide)(of_products, r, lines, sums);
    else if (of_products)
        N(region_sums_of)(1, r, lines, sums);
    else
        N(region_sums_of)(0, r, lines, sums);
}

RN_INLINE void N(region_write_of)(const int WRITE, N(region_runs) r, const N(line) *lines) {
    VT high[2], low[2], level[2], scale[2], slope[2], value[2], zero = V(set)(0);
    for (int k = 0; k < 2; k++) {
        high[k] = V(set)((T)lines[k].high), low[k] = V(set)((T)lines[k].low), level[k] = V(set)((T)lines[k].level);
        scale[k] = V(set)((T)lines[k].scale), slope[k] = V(set)((T)lines[k].slope);
    }
    for (size_t row = 0; row < r.rows; row++)
        for (size_t i = 0; i < r.length; i += LANES) {
            size_t at = row * r.stride + i, count = r.length - i < LANES ? r.length - i : LANES;
            VT x = N(load_some)(r.x + at, count), inside = N(load_some)(r.mask + row * r.length + i, count);
            VT dy = WRITE == FORWARD ? zero : N(load_some)(r.dy + at, count);
            for (int k = 0; k < 2; k++)
                value[k] = N(entry)(WRITE, x, dy, high[k], low[k], level[k], scale[k], slope[k]);
            N(store_some)(r.y + at, count, V(select)(inside != 0, value[0], value[1]));
        }
}

static void N(region_write)(int write, N(region_runs) r, const N(line) *lines) {
    if (lines[0].wide || lines[1].wide)
        for (size_t row = 0; row < r.rows; row++)
            for (size_t i = 0; i < r.length; i++) {
                size_t at = row * r.stride + i;
                const N(line) *line = lines + (r.mask[row * r.length + i] != 0 ? 0 : 1);
                r.y[at] = N(entry_wide)(write, (double)r.x[at], r.dy ? (double)r.dy[at] : 0, line);
            }
    else if (write == FORWARD)
        N(region_write_of)(FORWARD, r, lines);
    else
        N(region_write_of)(COMBINE, r, lines);
}

/* Two sweeps: the mean, and the squares about it, in which the rest of the mean shows. */
static void N(region_moments)(N(region_runs) r, const double *counts, const double *eps, rn_channel *found) {
    double sums[4];
    for (int wide = 0; wide < 2; wide++) {
        N(line) lines[2] = {{.wide = wide}, {.wide = wide}};
        N(region_sums)(0, r, lines, sums);
        for (int k = 0; k < 2; k++)
            if (counts[k] > 0) N(set_mean)(lines + k, wide ? sums[2 * k] / counts[k] : (double)(T)(sums[2 * k] / counts[k]), 0);
        N(region_sums)(0, r, lines, sums);
        int final = 1;
        for (int k = 0; k < 2; k++) {
            double size = counts[k] > 0 ? counts[k] : 1, rest = sums[2 * k] / size, squares = sums[2 * k + 1];
            double var = (squares - rest * sums[2 * k]) / size;
            if (var < 0) var = 0;
            found[k] = (rn_channel){lines[k].high, lines[k].low + rest, var, 0, 1 / sqrt(var + eps[k])};
            int lost = squares <= 1e-28 * size && eps[k] >= 1e-18; /* what was lost would not show beside eps */
            if (counts[k] > 0 && !lost && !(squares > 1e-28 * size && squares < 1e36)) final = 0;
        }
        if (WIDE || final) return;
    }
}

static void N(region_channel)(const N(region_norm) *job, size_t ghost, size_t channel) {
    N(region_runs) r = N(region_runs_of)(job, ghost, channel);
    rn_channel *found = job->found + 2 * (ghost * job->shape.channels + channel);
    const double *counts = job->counts + 2 * ghost;
    N(region_moments)(r, counts, job->eps + 2 * ghost, found);
    N(line) lines[2] = {{.high = 0}, {.high = 0}};
    for (size_t k = 0; k < 2; k++) {
        size_t at = k * job->shape.channels + channel;
        N(set_mean)(lines + k, found[k].mean, found[k].low);
        lines[k].scale = (job->gain ? 1 + (double)job->gain[at] : 1) * found[k].inverse;
        lines[k].level = job->bias ? (double)job->bias[at] : 0;
        lines[k].wide = counts[k] > 0 && (N(outside)(lines[k].scale, 1e-36, 1e36) || N(outside)(found[k].mean, 0, 1e37));
    }
    N(region_write)(FORWARD, r, lines);
}

static void N(region_backward_channel)(const N(region_norm) *job, size_t ghost, size_t channel) {
    N(region_runs) r = N(region_runs_of)(job, ghost, channel);
    size_t at = 2 * (ghost * job->shape.channels + channel);
    const rn_channel *found = job->found + at;
    const double *counts = job->counts + 2 * ghost;
    double *sums = job->sums + 2 * at;
    N(line) lines[2] = {{.high = 0}, {.high = 0}};
    for (int k = 0; k < 2; k++) {
        N(set_mean)(lines + k, found[k].mean, found[k].low);
        lines[k].wide = counts[k] > 0 && (N(outside)(found[k].inverse, 1e-12, 1e12) || N(outside)(found[k].mean, 0, 1e37));
    }
    N(region_sums)(1, r, lines, sums);
    /* Batch norm's pullback on each region, with means over that region. */
    for (size_t k = 0; k < 2; k++) {
        double gain = job->gain ? 1 + (double)job->gain[k * job->shape.channels + channel] : 1, inverse = found[k].inverse;
        double size = counts[k] > 0 ? counts[k] : 1;
        lines[k].scale = gain * inverse;
        lines[k].level = sums[2 * k] / size;
        lines[k].slope = -lines[k].scale * inverse * inverse * sums[2 * k + 1] / size;
        lines[k].wide |= counts[k] > 0 && (N(outside)(lines[k].scale, 1e-36, 1e36) || N(outside)(lines[k].slope, 0, 1e36));
    }
    N(region_write)(COMBINE, r, lines);
}

static void N(region_run)(const N(region_norm) *job, double nanoseconds) {
    rn_channel_shape s = job->shape;
    size_t total = s.ghosts * s.channels;
    int threads = rn_threads(total, nanoseconds * (double)s.outer * (double)s.channels * (double)s.inner);
    rn_shares shares = rn_share_out(total, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t i = rn_take(&shares, 1, &count); count; i = rn_take(&shares, 1, &count)) {
            if (job->dy)
                N(region_backward_channel)(job, i / s.channels, i % s.channels);
            else
                N(region_channel)(job, i / s.channels, i % s.channels);
        }
    }
}

static void N(region_forward)(const T *x, const T *mask, const T *gain, const T *bias, T *y, rn_channel_shape shape,
                              const double *counts, const double *eps, rn_channel *found) {
    N(region_norm) job = {x, NULL, mask, gain, bias, y, shape, counts, eps, found, NULL};
    N(region_run)(&job, 0.6);
}

static void N(region_backward)(const T *x, const T *mask, const T *dy, const T *gain, T *dx, rn_channel_shape shape,
                               const double *counts, const rn_channel *found, double *sums) {
    N(region_norm) job = {x, dy, mask, gain, NULL, dx, shape, counts, NULL, (rn_channel *)found, sums};
    N(region_run)(&job, 0.8);
}
