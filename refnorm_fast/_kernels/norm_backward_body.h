/* Backward passes of norm_body.h, which is included before.
 *
 * With h = (x - centre) * r (layer norm) or x * r, g = dy * gain and r = inv_std, all have the form
 *     dx = r ((g - level) - along h)
 * layer norm:     along = sum(g h) / (length - ddof),   level = mean(g)
 * RMS:            along = mean(g h),                    level = 0
 * compressed RMS: along = sum(g h) / (length + 1),      level = along r sum(x)
 * and dgain = sum(dy h), dbias = sum(dy) over the rows. */

/* A row's numbers of the last step, rounded, and in float64 for rows that need it. */
typedef struct {
    T high, low, scale, level, along;
    double centre, inv_std, wide_level, wide_along;
} N(slopes);

static int N(scale_in_range)(double inv_std) { return WIDE || (inv_std > 1e-36 && inv_std < 1e36); }

static N(slopes) N(slopes_start)(int kind, double centre, double inv_std) {
    double mean = kind == RN_LAYER_NORM ? centre : 0;
    return (N(slopes)){(T)mean, (T)(mean - (double)(T)mean), (T)inv_std, 0, 0, mean, inv_std, 0, 0};
}

/* From the sums of g and g h over the row. */
static void N(slopes_end)(N(slopes) *s, int kind, double centre, double sum, double product, size_t length, size_t ddof) {
    s->wide_along = product / (double)(kind == RN_COMPRESSED_RMS_NORM ? length + 1 : length - ddof);
    s->wide_level = kind == RN_LAYER_NORM ? sum / (double)length
                                          : kind == RN_COMPRESSED_RMS_NORM ? s->wide_along * s->inv_std * centre : 0;
    s->along = (T)s->wide_along, s->level = (T)s->wide_level;
    /* A centred row of one entry is a constant: what g rounds to must not be taken for a slope. */
    if (length == 1 && kind == RN_LAYER_NORM) s->scale = 0 * s->scale;
}

/* Sums of g and g h over `length` entries. A few float32 terms are added before they go into float64. */
#define BACKWARD_CHAIN 8
RN_INLINE void N(backward_sums_body)(const T *x, const T *dy, const T *gain, size_t length, const N(slopes) *s, double *sum,
                                     double *product, int GAIN) {
    vf64 all[2] = {{0}, {0}}, all_products[2] = {{0}, {0}}, piece[2];
    VT high = V(set)(s->high), low = V(set)(s->low), scale = V(set)(s->scale);
    size_t i = 0;
    while (i < length) {
        size_t stop = length - i < 2 * BACKWARD_CHAIN * LANES ? length : i + 2 * BACKWARD_CHAIN * LANES;
        VT sums[2] = {{0}, {0}}, products[2] = {{0}, {0}};
        for (; i + 2 * LANES <= stop; i += 2 * LANES)
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                size_t at = i + (size_t)k * LANES;
                VT g = V(load)(dy + at), h = ((V(load)(x + at) - high) - low) * scale;
                if (GAIN) g *= V(load)(gain + at);
                sums[k] += g;
                products[k] = V(fma)(g, h, products[k]);
            }
        for (; i < stop; i += LANES) {
            size_t left = stop - i < LANES ? stop - i : LANES;
            VT g = V(load_part)(dy + i, left, 0), h = ((V(load_part)(x + i, left, s->high) - high) - low) * scale;
            if (GAIN) g *= V(load_part)(gain + i, left, 0);
            sums[0] += g;
            products[0] = V(fma)(g, h, products[0]);
        }
        N(widen)(sums[0] + sums[1], piece);
        EACH_PART all[part_] += piece[part_];
        N(widen)(products[0] + products[1], piece);
        EACH_PART all_products[part_] += piece[part_];
    }
    *sum = vf64_sum(all[0] + all[1]);
    *product = vf64_sum(all_products[0] + all_products[1]);
}

static void N(backward_sums)(const T *x, const T *dy, const T *gain, size_t length, const N(slopes) *s, double *sum,
                             double *product) {
    if (!N(scale_in_range)(s->inv_std)) {
        *sum = *product = 0;
        for (size_t i = 0; i < length; i++) {
            double g = (double)dy[i] * (gain ? (double)gain[i] : 1);
            *sum += g;
            *product += g * (((double)x[i] - s->centre) * s->inv_std);
        }
    } else if (gain) {
        N(backward_sums_body)(x, dy, gain, length, s, sum, product, 1);
    } else {
        N(backward_sums_body)(x, dy, gain, length, s, sum, product, 0);
    }
}

/* dx of one row, or of one channel's places with its gain as `one_gain`; for scales outside of the range. */
static void N(backward_wide)(const T *x, const T *gain, double one_gain, const T *dy, T *dx, size_t length,
                             const N(slopes) *s, double *dgain, double *dbias) {
    for (size_t i = 0; i < length; i++) {
        double d = (double)dy[i], h = ((double)x[i] - s->centre) * s->inv_std;
        if (dgain) dgain[i] += d * h;
        if (dbias) dbias[i] += d;
        dx[i] = (T)(s->inv_std * (d * (gain ? (double)gain[i] : one_gain) - s->wide_level - h * s->wide_along));
    }
}

RN_INLINE void N(add_wide)(double *to, VT values) {
    vf64 piece[2];
    N(widen)(values, piece);
    EACH_PART vf64_store(to + part_ * VF64, vf64_load(to + part_ * VF64) + piece[part_]);
}

/* dx of ROWS rows of one group and their contribution to dgain and dbias, which stand at the same entry as x. `ahead`,
 * `dy_ahead`: distance to the entries that are fetched for the next rows. */
RN_INLINE void N(backward_apply_body)(const T *x, size_t stride, const T *gain, const T *dy, T *dx, size_t dy_stride,
                                      size_t length, const N(slopes) *s, double *dgain, double *dbias, size_t ahead,
                                      size_t dy_ahead, int ROWS, int GAIN, int STREAM) {
    for (size_t i = 0; i < length; i += LANES) {
        size_t left = length - i < LANES ? length - i : LANES;
        int whole = left == LANES;
        VT unit = {0}, gain_sum = {0}, bias_sum = {0};
        if (GAIN) unit = whole ? V(load)(gain + i) : V(load_part)(gain + i, left, 0);
        for (int row = 0; row < ROWS; row++) {
            const T *from = x + (size_t)row * stride + i, *down = dy + (size_t)row * dy_stride + i;
            T *to = dx + (size_t)row * dy_stride + i;
            __builtin_prefetch(from + ahead);
            __builtin_prefetch(down + dy_ahead);
            VT d = whole ? V(load)(down) : V(load_part)(down, left, 0);
            VT c = whole ? V(load)(from) : V(load_part)(from, left, 0);
            VT h = ((c - V(set)(s[row].high)) - V(set)(s[row].low)) * V(set)(s[row].scale);
            gain_sum = V(fma)(d, h, gain_sum);
            bias_sum += d;
            VT g = GAIN ? d * unit : d;
            VT value = V(fma)(h, V(set)(-s[row].along), g - V(set)(s[row].level)) * V(set)(s[row].scale);
            if (!whole)
                V(store_part)(to, left, value);
            else if (STREAM)
                V(stream)(to, value);
            else
                V(store)(to, value);
        }
        if (!dgain) continue;
        if (whole) {
            N(add_wide)(dgain + i, gain_sum);
            N(add_wide)(dbias + i, bias_sum);
        } else {
            for (size_t k = 0; k < left; k++) dgain[i + k] += (double)gain_sum[k], dbias[i + k] += (double)bias_sum[k];
        }
    }
}

/* Rows that are taken together: their contributions to dgain and dbias are summed before they go into float64. */
#define TOGETHER 4
static void N(backward_apply)(const T *x, size_t stride, const T *gain, const T *dy, T *dx, size_t dy_stride, size_t rows,
                              size_t length, const N(slopes) *s, double *dgain, double *dbias, size_t ahead, size_t dy_ahead,
                              int stream) {
    int inside = 1;
    for (size_t row = 0; row < rows; row++) inside &= N(scale_in_range)(s[row].inv_std);
#define APPLY(ROWS)                                                                                              \
    do {                                                                                                         \
        if (gain && stream)                                                                                      \
            N(backward_apply_body)(x, stride, gain, dy, dx, dy_stride, length, s, dgain, dbias, ahead, dy_ahead, ROWS, 1, 1);     \
        else if (gain)                                                                                           \
            N(backward_apply_body)(x, stride, gain, dy, dx, dy_stride, length, s, dgain, dbias, ahead, dy_ahead, ROWS, 1, 0);     \
        else if (stream)                                                                                         \
            N(backward_apply_body)(x, stride, gain, dy, dx, dy_stride, length, s, dgain, dbias, ahead, dy_ahead, ROWS, 0, 1);     \
        else                                                                                                     \
            N(backward_apply_body)(x, stride, gain, dy, dx, dy_stride, length, s, dgain, dbias, ahead, dy_ahead, ROWS, 0, 0);     \
    } while (0)
    if (rows == TOGETHER && inside) {
        APPLY(TOGETHER);
        return;
    }
    for (size_t row = 0; row < rows; row++, x += stride, dy += dy_stride, dx += dy_stride, s++)
        if (N(scale_in_range)(s->inv_std))
            APPLY(1);
        else
            N(backward_wide)(x, gain, 1, dy, dx, length, s, dgain, dbias);
#undef APPLY
}

/* What a backward pass reads and writes: rows of x `stride` apart, all else contiguous. Row r belongs to group
 * r % units.groups. `sums`: NULL, or `parts` pairs of arrays of groups * channels sums. */
typedef struct {
    int kind;
    const T *x, *dy;
    size_t stride;
    N(units) units;
    T *dx;
    size_t examples, length, ddof;
    const double *centre, *inv_std;
    double *sums;
    size_t parts;
    int stream;
} N(backward_task);

/* Several examples' rows of one group, whose every entry has a gain of its own. */
static void N(backward_rows)(const N(backward_task) *task, size_t group, size_t first, size_t count, int ahead, double *dgain,
                             double *dbias) {
    size_t groups = task->units.groups, length = task->length, row = first * groups + group;
    const T *x = task->x + row * task->stride, *dy = task->dy + row * length;
    const T *gain = task->units.gain ? task->units.gain + group * length : NULL;
    N(slopes) s[TOGETHER];
    for (size_t k = 0; k < count; k++) {
        double sum, product, centre = task->centre[row + k * groups];
        s[k] = N(slopes_start)(task->kind, centre, task->inv_std[row + k * groups]);
        N(backward_sums)(x + k * groups * task->stride, dy + k * groups * length, gain, length, &s[k], &sum, &product);
        N(slopes_end)(&s[k], task->kind, centre, sum, product, length, task->ddof);
    }
    N(backward_apply)(x, groups * task->stride, gain, dy, task->dx + row * length, groups * length, count, length, s, dgain,
                      dbias, ahead ? count * groups * task->stride : 0, ahead ? count * groups * length : 0, task->stream);
}

/* One row of channels with a gain for all their places; dgain and dbias stand at the row's first channel. */
static void N(backward_channels)(const N(backward_task) *task, size_t row, double *dgain, double *dbias) {
    size_t length = task->length, places = task->units.places, channels = task->units.channels;
    const T *x = task->x + row * length, *dy = task->dy + row * length;
    const T *gain = task->units.gain + row % task->units.groups * channels;
    T *dx = task->dx + row * length;
    N(slopes) s = N(slopes_start)(task->kind, task->centre[row], task->inv_std[row]);
    double sum = 0, product = 0;
    for (size_t c = 0; c < channels; c++) {
        double bias_sum, gain_sum;
        N(backward_sums)(x + c * places, dy + c * places, NULL, places, &s, &bias_sum, &gain_sum);
        sum += bias_sum * (double)gain[c];
        product += gain_sum * (double)gain[c];
        dgain[c] += gain_sum;
        dbias[c] += bias_sum;
    }
    N(slopes_end)(&s, task->kind, task->centre[row], sum, product, length, task->ddof);
    int inside = N(scale_in_range)(s.inv_std);
    VT high = V(set)(s.high), low = V(set)(s.low), r = V(set)(s.scale), level = V(set)(s.level), along = V(set)(-s.along);
    for (size_t c = 0; c < channels; c++, x += places, dy += places, dx += places) {
        if (!inside) {
            N(backward_wide)(x, NULL, (double)gain[c], dy, dx, places, &s, NULL, NULL);
            continue;
        }
        VT unit = V(set)(gain[c]);
        size_t i = 0;
#define VALUE(LOAD) \
    V(fma)(((LOAD(x + i) - high) - low) * r, along, LOAD(dy + i) * unit - level) * r
#define LOAD_REST(from) V(load_part)(from, places - i, 0)
        if (task->stream)
            for (; i + LANES <= places; i += LANES) V(stream)(dx + i, VALUE(V(load)));
        else
            for (; i + LANES <= places; i += LANES) V(store)(dx + i, VALUE(V(load)));
        if (i < places) V(store_part)(dx + i, places - i, VALUE(LOAD_REST));
#undef LOAD_REST
#undef VALUE
    }
}

/* Examples are cut into `parts`, which have sums of their own, and groups into `shares`; both depend on the sizes only, and
 * the sums are added up in order: the same for any number of threads. */
static void N(backward_parts)(const N(backward_task) *task, size_t shares) {
    size_t groups = task->units.groups, channels = task->units.channels, all = groups * channels;
    int threads = rn_threads(task->parts * shares, 0.8 * (double)task->examples * (double)groups * (double)task->length);
    RN_PARALLEL(threads) {
        RN_SHARE(task->parts * shares, first_unit, last_unit);
        for (size_t unit = first_unit; unit < last_unit; unit++) {
            size_t part = unit / shares, first, last, first_group, last_group;
            rn_range(task->examples, task->parts, part, &first, &last);
            rn_range(groups, shares, unit % shares, &first_group, &last_group);
            double *dgain = task->sums ? task->sums + 2 * part * all : NULL, *dbias = dgain ? dgain + all : NULL;
            if (dgain) {
                memset(dgain + first_group * channels, 0, (last_group - first_group) * channels * sizeof(double));
                memset(dbias + first_group * channels, 0, (last_group - first_group) * channels * sizeof(double));
            }
            /* Four rows are fetched ahead where they fit into a second-level cache beside the four in work. */
            int near = 2 * TOGETHER * task->length * sizeof(T) <= (size_t)256 << 10;
            size_t step = task->units.places == 1 ? TOGETHER : 1;
            for (size_t example = first; example < last; example += step) {
                size_t count = last - example < step ? last - example : step;
                for (size_t group = first_group; group < last_group; group++) {
                    double *gain_sums = dgain ? dgain + group * channels : NULL;
                    double *bias_sums = dgain ? dbias + group * channels : NULL;
                    if (task->units.places == 1)
                        N(backward_rows)(task, group, example, count, near && example + 2 * step <= last, gain_sums, bias_sums);
                    else
                        N(backward_channels)(task, example * groups + group, gain_sums, bias_sums);
                }
            }
        }
        if (task->stream) vec_fence();
    }
}

/* Rows too long for a cache: first every row's sums, then dx in columns of all rows, whose dgain and dbias need no array.
 * Both in pieces that any thread takes. */
static int N(backward_long)(const N(backward_task) *task, T *dgain, T *dbias) {
    size_t rows = task->examples, length = task->length, pieces = (length + BLOCK - 1) / BLOCK;
    const T *gain = task->units.gain;
    N(slopes) *s = rn_scratch(0, rows * sizeof(N(slopes)) + 2 * rows * pieces * sizeof(double));
    if (s == NULL) return -1;
    double *sum = (double *)(s + rows), *product = sum + rows * pieces;
    for (size_t row = 0; row < rows; row++) s[row] = N(slopes_start)(task->kind, task->centre[row], task->inv_std[row]);
    double work = 0.8 * (double)rows * (double)length;
    int threads = rn_threads(rows * pieces, work);
    rn_shares first_step = rn_share_out(rows * pieces, 1, threads), second_step = rn_share_out(pieces, 1, threads);
    RN_PARALLEL(threads) {
        size_t count;
        for (size_t one = rn_take(&first_step, 1, &count); count; one = rn_take(&first_step, 1, &count)) {
            size_t row = one / pieces, at = one % pieces * BLOCK, size = length - at < BLOCK ? length - at : BLOCK;
            N(backward_sums)(task->x + row * task->stride + at, task->dy + row * length + at, gain ? gain + at : NULL, size,
                             &s[row], &sum[one], &product[one]);
        }
        RN_BARRIER;
        if (RN_THREAD == 0)
            for (size_t row = 0; row < rows; row++) {
                double all = 0, all_products = 0;
                for (size_t one = row * pieces; one < (row + 1) * pieces; one++) all += sum[one], all_products += product[one];
                N(slopes_end)(&s[row], task->kind, task->centre[row], all, all_products, length, task->ddof);
            }
        RN_BARRIER;
        double sums[2 * BLOCK];
        for (size_t one = rn_take(&second_step, 1, &count); count; one = rn_take(&second_step, 1, &count)) {
            size_t at = one * BLOCK, size = length - at < BLOCK ? length - at : BLOCK;
            if (dgain) memset(sums, 0, sizeof sums);
            for (size_t row = 0; row < rows; row += TOGETHER)
                N(backward_apply)(task->x + row * task->stride + at, task->stride, gain ? gain + at : NULL,
                                  task->dy + row * length + at, task->dx + row * length + at, length,
                                  rows - row < TOGETHER ? rows - row : TOGETHER, size, s + row, dgain ? sums : NULL,
                                  dgain ? sums + BLOCK : NULL, 0, 0, task->stream);
            for (size_t i = 0; dgain && i < size; i++) {
                dgain[at + i] = (T)sums[i];
                if (dbias) dbias[at + i] = (T)sums[BLOCK + i];
            }
        }
        if (task->stream) vec_fence();
    }
    return 0;
}

/* Sums of more than these bytes are kept in fewer parts. */
#define MOST_SUMS ((size_t)16 << 20)
static int N(backward_all)(N(backward_task) *task, T *dgain, T *dbias, size_t spread) {
    size_t groups = task->units.groups, all = groups * task->units.channels, places = task->units.places;
    size_t bytes = task->examples * groups * task->length * sizeof(T), run = places == 1 ? task->length : places;
    task->stream = bytes > rn_cache_bytes() / 4 && task->dx != task->dy && run % LANES == 0 &&
                   (uintptr_t)task->dx % REFNORM_VECTOR_BYTES == 0;
    if (groups == 1 && places == 1 && spread == 1 && task->length * (2 * sizeof(T) + 2 * sizeof(double)) > (size_t)1 << 20)
        return N(backward_long)(task, dgain, dbias);
    int summed = dgain || task->units.places > 1;
    /* As many parts as keep threads busy, of enough examples for their sums to be small beside them. */
    size_t enough = summed ? 16 / places : 1, parts = task->examples / (enough < 1 ? 1 : enough);
    size_t most = summed ? MOST_SUMS / (2 * all * sizeof(double)) : 1024, limit = summed ? 64 : 1024;
    if (parts > most) parts = most;
    if (parts > limit) parts = limit;
    if (parts < 1) parts = 1;
    size_t shares = (64 + parts - 1) / parts;
    if (shares > groups) shares = groups;
    task->parts = parts;
    if (summed) {
        task->sums = rn_scratch(1, 2 * parts * all * sizeof(double));
        if (task->sums == NULL) return -1;
    }
    N(backward_parts)(task, shares);
    double *sums = task->sums;
    if (!dgain) return 0;
    int threads = rn_threads(2 * all, 0.2 * (double)(parts - 1) * 2 * (double)all);
    RN_PARALLEL(threads) {
        RN_SHARE(2 * all, first, last);
        for (size_t part = 1; part < parts; part++)
            for (size_t i = first; i < last; i++) sums[i] += sums[2 * part * all + i];
    }
    for (size_t c = 0; c < all / spread; c++) {
        double gain_sum = 0, bias_sum = 0;
        for (size_t i = c * spread; i < (c + 1) * spread; i++) gain_sum += sums[i], bias_sum += sums[all + i];
        dgain[c] = (T)gain_sum;
        if (dbias) dbias[c] = (T)bias_sum;
    }
    return 0;
}

static int N(norm_backward)(int kind, const T *x, size_t stride, const T *gain, const T *dy, T *dx, T *dgain, T *dbias,
                            size_t rows, size_t length, const double *centre, const double *inv_std) {
    N(backward_task) task = {.kind = kind, .x = x, .dy = dy, .stride = stride, .units = {gain, NULL, 1, length, 1},
                             .dx = dx, .examples = rows, .length = length, .centre = centre, .inv_std = inv_std};
    return N(backward_all)(&task, dgain, dbias, 1);
}

static int N(group_norm_backward)(const rn_groups *shape, const T *x, const T *gain, const T *dy, T *dx, T *dgain, T *dbias,
                                  const double *centre, const double *inv_std) {
    size_t length = shape->channels * shape->places;
    N(backward_task) task = {.kind = shape->kind, .x = x, .dy = dy, .stride = length,
                             .units = {gain, NULL, shape->groups, shape->channels, shape->places},
                             .dx = dx, .examples = shape->examples, .length = length, .ddof = shape->ddof,
                             .centre = centre, .inv_std = inv_std};
    size_t spread = gain && shape->places < LANES ? shape->places : 1;
    if (N(spread_units)(&task.units)) return -1;
    if (!gain) task.units.channels = length, task.units.places = 1;
    return N(backward_all)(&task, dgain, dbias, spread);
}

#undef BACKWARD_CHAIN
#undef TOGETHER
#undef MOST_SUMS
#undef BLOCK
#undef SHARED_BLOCKS
#undef PARTS
#undef EACH_PART
#undef GROUP
