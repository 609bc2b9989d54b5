/* EvoNorm for one element type; included by channel_norm.c after channel_norm_body.h. Channels first.
 *
 * B0: a thread takes a channel: the moments of every example's places, from which those of the channel follow, then the
 * output. S0: a thread takes an example's group of channels, which lies in one piece. What fits a core's cache is read
 * from memory once. */

RN_INLINE VT N(load_some)(const T *from, size_t count) {
    return count == LANES ? V(load)(from) : V(load_part)(from, count, 0);
}
RN_INLINE void N(store_some)(T *to, size_t count, VT value) {
    if (count == LANES)
        V(store)(to, value);
    else
        V(store_part)(to, count, value);
}

/* Mean and variance of consecutive entries. */
static void N(moments_of)(const T *x, size_t length, double eps, rn_channel *found) {
    N(job) job = {.kind = RN_BATCH_NORM, .x = x, .shape = {1, 1, length, 1, 0}, .eps = eps, .channels = found};
    N(whole_channel)(&job, N(cut_of)(job.shape), 0);
}

/* ---- B0: y = gain x / max(std, slope x + instance std) + bias ------------------------------------------------------ */

typedef struct {
    const T *x, *dy, *gain, *bias, *slope;
    T *y; /* or dx */
    rn_channel_shape shape;
    double eps;
    int training;
    rn_channel *channels, *instances;
    double *sums;
} N(evonorm);

static void N(b0_statistics)(const N(evonorm) *job, size_t channel) {
    rn_channel_shape s = job->shape;
    rn_channel *of = job->instances + channel * s.outer, *all = job->channels + channel;
    double mean = 0, within = 0, between = 0, examples = (double)s.outer;
    for (size_t n = 0; n < s.outer; n++) {
        N(moments_of)(job->x + (n * s.channels + channel) * s.inner, s.inner, job->eps, of + n);
        mean += of[n].mean + of[n].low;
        within += of[n].spread;
    }
    if (!job->training) return;
    mean /= examples;
    for (size_t n = 0; n < s.outer; n++) {
        double apart = (of[n].mean - mean) + of[n].low;
        between += apart * apart;
    }
    double var = (within + between) / examples;
    *all = (rn_channel){mean, 0, var, 0, 1 / sqrt(var + job->eps)};
}

typedef struct {
    VT gain, bias, slope, std, instance;
} N(b0_line);

static N(b0_line) N(b0_line_of)(const N(evonorm) *job, size_t channel, size_t n) {
    const rn_channel *instance = job->instances + channel * job->shape.outer + n;
    return (N(b0_line)){V(set)(job->gain[channel]), V(set)(job->bias ? job->bias[channel] : 0),
                        V(set)(job->slope[channel]), V(set)((T)sqrt(job->channels[channel].spread + job->eps)),
                        V(set)((T)sqrt(instance->spread + job->eps))};
}

static void N(b0_channel)(const N(evonorm) *job, size_t channel) {
    rn_channel_shape s = job->shape;
    N(b0_statistics)(job, channel);
    for (size_t n = s.outer; n-- > 0;) {
        size_t at = (n * s.channels + channel) * s.inner;
        N(b0_line) line = N(b0_line_of)(job, channel, n);
        for (size_t i = 0; i < s.inner; i += LANES) {
            size_t count = s.inner - i < LANES ? s.inner - i : LANES;
            VT x = N(load_some)(job->x + at + i, count), other = V(fma)(line.slope, x, line.instance);
            VT normal = x / V(select)(line.std >= other, line.std, other);
            N(store_some)(job->y + at + i, count, V(fma)(line.gain, normal, line.bias));
        }
    }
}

/* Of one entry: the normalized entry, the cotangent of x by it, and of the divisor by whichever it was. */
typedef struct {
    VT normal, through, by_batch, by_other;
} N(b0_terms);

RN_INLINE N(b0_terms) N(b0_terms_of)(VT x, VT dy, const N(b0_line) *line) {
    VT other = V(fma)(line->slope, x, line->instance), zero = V(set)(0);
    VT inverse = V(set)(1) / V(select)(line->std >= other, line->std, other);
    N(b0_terms) terms = {.normal = x * inverse, .through = dy * line->gain * inverse};
    VT divisor = -terms.through * terms.normal;
    terms.by_batch = V(select)(line->std >= other, divisor, zero);
    terms.by_other = V(select)(line->std >= other, zero, divisor);
    return terms;
}

/* Sums over one example's places, in chains of EVONORM_CHAIN terms. */
static void N(b0_sums)(const T *x, const T *dy, size_t length, const N(b0_line) *line, double *sums) {
    vf64 total[B0_SUMS][2];
    VT chain[B0_SUMS];
    memset(total, 0, sizeof total);
    for (size_t i = 0; i < length;) {
        for (int k = 0; k < B0_SUMS; k++) chain[k] = V(set)(0);
        for (int link = 0; link < EVONORM_CHAIN && i < length; link++, i += LANES) {
            size_t count = length - i < LANES ? length - i : LANES;
            VT entry = N(load_some)(x + i, count), up = N(load_some)(dy + i, count);
            N(b0_terms) terms = N(b0_terms_of)(entry, up, line);
            chain[0] = V(fma)(up, terms.normal, chain[0]);
            chain[1] += up;
            chain[2] = V(fma)(terms.by_other, entry, chain[2]);
            chain[3] += terms.by_batch;
            chain[4] += terms.by_other;
        }
        for (int k = 0; k < B0_SUMS; k++) N(add_wide)(chain[k], total[k]);
    }
    for (int k = 0; k < B0_SUMS; k++) sums[k] = vf64_sum(total[k][0] + total[k][1]);
}

static void N(b0_backward_channel)(const N(evonorm) *job, size_t channel, double *by_instance) {
    rn_channel_shape s = job->shape;
    const rn_channel *all = job->channels + channel, *of = job->instances + channel * s.outer;
    double total[B0_SUMS] = {0}, places = (double)s.inner;
    for (size_t n = 0; n < s.outer; n++) {
        size_t at = (n * s.channels + channel) * s.inner;
        N(b0_line) line = N(b0_line_of)(job, channel, n);
        double sums[B0_SUMS];
        N(b0_sums)(job->x + at, job->dy + at, s.inner, &line, sums);
        for (int k = 0; k < B0_SUMS; k++) total[k] += sums[k];
        by_instance[n] = sums[4];
    }
    for (int k = 0; k < 3; k++) job->sums[3 * channel + (size_t)k] = total[k];
    /* d std / d x = (x - mean) / (count std) */
    double batch_slope = job->training ? total[3] / (sqrt(all->spread + job->eps) * (double)s.outer * places) : 0;
    for (size_t n = s.outer; n-- > 0;) {
        size_t at = (n * s.channels + channel) * s.inner;
        N(b0_line) line = N(b0_line_of)(job, channel, n);
        double instance_slope = by_instance[n] / (sqrt(of[n].spread + job->eps) * places);
        double mean = (of[n].mean - (double)(T)of[n].mean) + of[n].low, high = (double)(T)of[n].mean;
        /* Both deviations pull about their own means: one slope about the instance's, and a constant. */
        VT slope = V(set)((T)(instance_slope + batch_slope)), centre = V(set)((T)high), rest = V(set)((T)mean);
        VT level = V(set)((T)(batch_slope * ((of[n].mean - all->mean) + of[n].low)));
        for (size_t i = 0; i < s.inner; i += LANES) {
            size_t count = s.inner - i < LANES ? s.inner - i : LANES;
            VT x = N(load_some)(job->x + at + i, count);
            N(b0_terms) terms = N(b0_terms_of)(x, N(load_some)(job->dy + at + i, count), &line);
            VT dx = V(fma)(line.slope, terms.by_other, terms.through);
            if (instance_slope != 0 || batch_slope != 0) dx += V(fma)((x - centre) - rest, slope, level);
            N(store_some)(job->y + at + i, count, dx);
        }
    }
}

static double N(evonorm_nanoseconds)(const N(evonorm) *job) {
    rn_channel_shape s = job->shape;
    return 1.0 * (double)s.outer * (double)s.channels * (double)s.inner;
}

static int N(evonorm_b0)(const T *x, const T *gain, const T *bias, const T *slope, T *y, rn_channel_shape shape,
                         double eps, int training, rn_channel *channels, rn_channel *instances) {
    N(evonorm) job = {x, NULL, gain, bias, slope, y, shape, eps, training, channels, instances, NULL};
    int threads = rn_threads(shape.channels, N(evonorm_nanoseconds)(&job));
    rn_shares shares = rn_share_out(shape.channels, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t channel = rn_take(&shares, 1, &count); count; channel = rn_take(&shares, 1, &count))
            N(b0_channel)(&job, channel);
    }
    return 0;
}

static int N(evonorm_b0_backward)(const T *x, const T *dy, const T *gain, const T *slope, T *dx, rn_channel_shape shape,
                                  double eps, int training, const rn_channel *channels, const rn_channel *instances,
                                  double *sums) {
    N(evonorm) job = {x,   dy,       gain,                   NULL,                    slope, dx, shape,
                      eps, training, (rn_channel *)channels, (rn_channel *)instances, sums};
    int threads = rn_threads(shape.channels, 2 * N(evonorm_nanoseconds)(&job)), failed = 0;
    rn_shares shares = rn_share_out(shape.channels, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        double *by_instance = rn_scratch(3, shape.outer * sizeof(double));
        if (by_instance == NULL) failed = -1;
        for (size_t channel = rn_take(&shares, 1, &count); count && by_instance; channel = rn_take(&shares, 1, &count))
            N(b0_backward_channel)(&job, channel, by_instance);
    }
    return failed;
}

/* ---- S0: y = gain x sigmoid(slope x) / group std + bias ------------------------------------------------------------ */

/* sigmoid(slope x), and 1 - sigmoid with its own digits: e / (1 + e), where the bound keeps e = exp(-slope x) finite. */
RN_INLINE VT N(gate)(VT x, VT slope, VT *rest) {
    VT e = V(exp)(V(min)(V(set)(WIDE ? 700 : 88), -(slope * x))); /* NaN stays: it is the second argument */
    VT gate = V(set)(1) / (V(set)(1) + e);
    *rest = e * gate;
    return gate;
}

static void N(s0_group)(const N(evonorm) *job, size_t n, size_t group, size_t groups) {
    rn_channel_shape s = job->shape;
    size_t members = s.channels / groups, first = group * members;
    size_t at = (n * s.channels + first) * s.inner;
    rn_channel *found = job->instances + n * groups + group;
    N(moments_of)(job->x + at, members * s.inner, job->eps, found);
    for (size_t channel = first; channel < first + members; channel++, at += s.inner) {
        VT scale = V(set)((T)((double)job->gain[channel] * found->inverse)), bias = V(set)(job->bias[channel]);
        VT slope = V(set)(job->slope[channel]);
        for (size_t i = 0; i < s.inner; i += LANES) {
            size_t count = s.inner - i < LANES ? s.inner - i : LANES;
            VT x = N(load_some)(job->x + at + i, count), rest;
            N(store_some)(job->y + at + i, count, V(fma)(x * N(gate)(x, slope, &rest), scale, bias));
        }
    }
}

/* Sums over the places of one channel: dy x gate, dy, dy x^2 gate (1 - gate). */
static void N(s0_sums)(const T *x, const T *dy, size_t length, T slope_of, double *sums) {
    vf64 total[3][2];
    VT chain[3], slope = V(set)(slope_of), rest;
    memset(total, 0, sizeof total);
    for (size_t i = 0; i < length;) {
        for (int k = 0; k < 3; k++) chain[k] = V(set)(0);
        for (int link = 0; link < EVONORM_CHAIN && i < length; link++, i += LANES) {
            size_t count = length - i < LANES ? length - i : LANES;
            VT entry = N(load_some)(x + i, count), up = N(load_some)(dy + i, count);
            VT swish = entry * N(gate)(entry, slope, &rest) * up;
            chain[0] += swish;
            chain[1] += up;
            chain[2] = V(fma)(swish * entry, rest, chain[2]);
        }
        for (int k = 0; k < 3; k++) N(add_wide)(chain[k], total[k]);
    }
    for (int k = 0; k < 3; k++) sums[k] = vf64_sum(total[k][0] + total[k][1]);
}

/* Adds to the sums of the group's channels. */
static void N(s0_backward_group)(const N(evonorm) *job, size_t n, size_t group, size_t groups, double *sums) {
    rn_channel_shape s = job->shape;
    size_t members = s.channels / groups, first = group * members, start = (n * s.channels + first) * s.inner;
    const rn_channel *found = job->instances + n * groups + group;
    double inverse = found->inverse, along = 0;
    for (size_t k = 0; k < members; k++) {
        size_t channel = first + k, at = start + k * s.inner;
        double part[3], gain = (double)job->gain[channel];
        N(s0_sums)(job->x + at, job->dy + at, s.inner, job->slope[channel], part);
        along += gain * part[0];
        sums[3 * channel] += part[0] * inverse;
        sums[3 * channel + 1] += part[1];
        sums[3 * channel + 2] += part[2] * gain * inverse;
    }
    /* d std / d x = (x - mean) / (count std); the cotangent of std is -along / std^2 */
    double slope_of = -along * inverse * inverse * inverse / ((double)members * (double)s.inner);
    double high = (double)(T)found->mean;
    VT pull = V(set)((T)slope_of), centre = V(set)((T)high), low = V(set)((T)((found->mean - high) + found->low));
    for (size_t k = 0; k < members; k++) {
        size_t channel = first + k, at = start + k * s.inner;
        VT scale = V(set)((T)((double)job->gain[channel] * inverse)), slope = V(set)(job->slope[channel]);
        for (size_t i = 0; i < s.inner; i += LANES) {
            size_t count = s.inner - i < LANES ? s.inner - i : LANES;
            VT x = N(load_some)(job->x + at + i, count), dy = N(load_some)(job->dy + at + i, count);
            VT rest, gate = N(gate)(x, slope, &rest), steep = V(fma)(slope * x * gate, rest, gate);
            N(store_some)(job->y + at + i, count, V(fma)((x - centre) - low, pull, dy * scale * steep));
        }
    }
}

static int N(evonorm_s0)(const T *x, const T *gain, const T *bias, const T *slope, T *y, rn_channel_shape shape,
                         size_t groups, double eps, rn_channel *found) {
    N(evonorm) job = {x, NULL, gain, bias, slope, y, shape, eps, 1, NULL, found, NULL};
    size_t total = shape.outer * groups;
    int threads = rn_threads(total, N(evonorm_nanoseconds)(&job));
    rn_shares shares = rn_share_out(total, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t i = rn_take(&shares, 1, &count); count; i = rn_take(&shares, 1, &count))
            N(s0_group)(&job, i / groups, i % groups, groups);
    }
    return 0;
}

/* The sums over the examples are formed in blocks of examples that depend on their number only, then added in order. */
static int N(evonorm_s0_backward)(const T *x, const T *dy, const T *gain, const T *slope, T *dx, rn_channel_shape shape,
                                  size_t groups, double eps, const rn_channel *found, double *sums) {
    N(evonorm) job = {x, dy, gain, NULL, slope, dx, shape, eps, 1, NULL, (rn_channel *)found, NULL};
    size_t blocks = shape.outer < 32 ? shape.outer : 32, width = 3 * shape.channels;
    double *parts = rn_scratch(1, blocks * width * sizeof(double));
    if (parts == NULL) return -1;
    memset(parts, 0, blocks * width * sizeof(double));
    int threads = rn_threads(blocks * groups, 2 * N(evonorm_nanoseconds)(&job));
    rn_shares shares = rn_share_out(blocks * groups, 1, threads);
    RN_PARALLEL(threads) {
        size_t count, first, last;
        for (size_t i = rn_take(&shares, 1, &count); count; i = rn_take(&shares, 1, &count)) {
            rn_range(shape.outer, blocks, i / groups, &first, &last);
            for (size_t n = first; n < last; n++)
                N(s0_backward_group)(&job, n, i % groups, groups, parts + i / groups * width);
        }
    }
    memset(sums, 0, width * sizeof(double));
    for (size_t block = 0; block < blocks; block++)
        for (size_t k = 0; k < width; k++) sums[k] += parts[block * width + k];
    return 0;
}
