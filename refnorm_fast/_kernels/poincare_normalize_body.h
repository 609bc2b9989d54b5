/* Batch normalization of points of one dtype, and its pullback: included by poincare_image.c after poincare_midpoint_body.h.
 * The formulas are those of poincare_passage.h. */

/* Inner products of VF64 pixels with m and b; with `g` also those of their cotangents. */
RN_INLINE products N(pixel_products)(const rails *on, const T *x, const T *g, size_t channels, size_t stride, size_t count) {
    products of = {.w_w = {0}};
    for (size_t k = 0; k < channels; k++) {
        vf64 w = N(load_pixels)(x + k * stride, count) - on->middle[k];
        of.w_w = vf64_fma(w, w, of.w_w);
        of.w_way = vf64_fma(w, vf64_set(on->way[k]), of.w_way);
        of.w_m = vf64_fma(w, vf64_set(on->middle[k]), of.w_m);
        if (g == NULL) continue;
        vf64 u = N(load_pixels)(g + k * stride, count);
        of.g_w = vf64_fma(u, w, of.g_w);
        of.g_m = vf64_fma(u, vf64_set(on->middle[k]), of.g_m);
        of.g_b = vf64_fma(u, vf64_set(on->centre[k]), of.g_b);
    }
    of.w_b = of.w_way + of.w_m;
    return of;
}

RN_INLINE int N(normalize_lanes)(const rails *on, const T *x, size_t channels, size_t stride, size_t count, T *y) {
    vf64 square, gap_x = N(gap_lanes)(x, channels, stride, on->curvature, count, &square);
    products of = N(pixel_products)(on, x, NULL, channels, stride, count);
    passage a = passage_of(on, gap_x, of.w_w, of.w_way, of.w_m);
    vf64 of_way = a.of_way * a.shrink, of_middle = a.of_middle * a.shrink, of_centre = a.of_centre * a.shrink;
    for (size_t k = 0; k < channels; k++) {
        vf64 w = N(load_pixels)(x + k * stride, count) - on->middle[k];
        vf64 rest = of_middle * on->middle[k] + of_centre * on->centre[k];
        N(store_pixels)(y + k * stride, count, vf64_fma(of_way, w, rest));
    }
    vf64 gap_y = on->centre_gap * a.gap_step / a.denominator;
    gap_y = vf64_select((vi64)(a.shrink < 1.0), vf64_set(on->margin), gap_y);
    vi64 near = (vi64)(gap_y <= SAFE_GAP(channels));
    if (vi64_any(near))
        for (size_t i = 0; i < VF64 && i < count; i++)
            if (near[i]) N(inward)(y + i, channels, stride, on->curvature);
    return vi64_any((vi64)(gap_x <= 0.0));
}

/* The rails of a call, whose vector b - m is in the calling thread's scratch; 1 if there is no memory. */
static int N(lay_rails)(const rn_poincare_pixels *pixels, const rn_poincare_normalization *to, rails *on) {
    double *way = rn_scratch(2, pixels->channels * sizeof *way);
    if (way != NULL) *on = rails_of(pixels, to, way);
    return way == NULL;
}

static int N(normalize)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to, T *y) {
    size_t area = pixels->area, blocks = (area + BLOCK_PIXELS - 1) / BLOCK_PIXELS;
    rails on;
    if (N(lay_rails)(pixels, to, &on)) return RN_POINCARE_MEMORY;
    int outside = 0;
    int threads = rn_threads(pixels->images * blocks, (double)(pixels->images * area) * (8.0 + 0.6 * (double)pixels->channels));
    RN_PARALLEL(threads) {
        RN_SHARE(pixels->images * blocks, first, last);
        int mine = 0;
        for (size_t i = first; i < last; i++) {
            size_t from = i % blocks * BLOCK_PIXELS, end = area - from < BLOCK_PIXELS ? area : from + BLOCK_PIXELS;
            size_t base = i / blocks * pixels->channels * area;
            for (size_t pixel = from; pixel < end; pixel += VF64)
                mine |= N(normalize_lanes)(&on, x + base + pixel, pixels->channels, area, end - pixel, y + base + pixel);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside ? RN_POINCARE_OUTSIDE : 0;
}

/* ---- pullback ------------------------------------------------------------------------------------------------------ */

static void N(coefficients)(const rails *on, const T *x, const T *g, size_t channels, size_t stride, size_t count,
                            double *room, size_t room_stride, double *totals) {
    vf64 sums[TOTALS] = {{0}};
    for (size_t p = 0; p < count; p += VF64) {
        vf64 square, gap_x = N(gap_lanes)(x + p, channels, stride, on->curvature, count - p, &square);
        products of = N(pixel_products)(on, x + p, g ? g + p : NULL, channels, stride, count - p);
        passage a = passage_of(on, gap_x, of.w_w, of.w_way, of.w_m);
        pulled to = pull_back(&a, on, &of, 0);
        vf64 here = vf64_set(1.0);
        for (size_t i = count - p; i < VF64; i++) here[i] = 0;
        vf64 each[COEFFICIENTS] = {to.m.g, to.m.w, to.b.g, to.b.w, a.distance * a.p};
        for (int i = 0; i < COEFFICIENTS; i++) vf64_store(room + (size_t)i * room_stride + p, each[i]);
        vf64 more[TOTALS] = {to.m.m, to.m.b, to.b.m, to.b.b, a.distance * a.q, to.of_scale};
        for (int i = 0; i < TOTALS; i++) sums[i] += vf64_select((vi64)(here == 0.0), (vf64){0}, more[i]);
    }
    for (int i = 0; i < TOTALS; i++) totals[i] = vf64_sum(sums[i]);
}

/* sums[3 k ..]: a channel's share in the cotangents of m and of b and in the sum of A e. */
static void N(channel_sums)(const rails *on, const T *x, const T *g, size_t channels, size_t stride, size_t count,
                            const double *room, size_t room_stride, double *sums) {
    for (size_t k = 0; k < channels; k++) {
        vf64 middle = {0}, centre = {0}, distance = {0};
        for (size_t p = 0; p < count; p += VF64) {
            vf64 w = N(load_pixels)(x + k * stride + p, count - p) - on->middle[k], u = {0};
            if (g != NULL) u = N(load_pixels)(g + k * stride + p, count - p);
            for (size_t i = count - p; i < VF64; i++) w[i] = 0;
            middle = vf64_fma(vf64_load(room + p), u, vf64_fma(vf64_load(room + room_stride + p), w, middle));
            centre = vf64_fma(vf64_load(room + 2 * room_stride + p), u, vf64_fma(vf64_load(room + 3 * room_stride + p), w, centre));
            distance = vf64_fma(vf64_load(room + 4 * room_stride + p), w, distance);
        }
        sums[3 * k] = vf64_sum(middle);
        sums[3 * k + 1] = vf64_sum(centre);
        sums[3 * k + 2] = vf64_sum(distance);
    }
}

/* results: cotangents of m and b and the sum of A e, a vector each, then the scale's cotangent. g may be NULL: zeros. */
static int N(normalize_sums)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to, const T *g,
                             double *results) {
    size_t area = pixels->area, each = (area + BLOCK_PIXELS - 1) / BLOCK_PIXELS, blocks = each * pixels->images;
    size_t channels = pixels->channels, size = 3 * channels + TOTALS, room_stride = BLOCK_PIXELS + VF64;
    /* So many groups of blocks, whatever the number of threads: their sums are added up one after the other. */
    size_t groups = blocks < 64 ? blocks : 64;
    double *parts = rn_block_alloc((groups + 1) * size * sizeof *parts), *totals = parts + groups * size;
    rails on;
    if (parts == NULL || N(lay_rails)(pixels, to, &on)) {
        rn_block_free(parts);
        return RN_POINCARE_MEMORY;
    }
    int failed = 0, threads = rn_threads(groups, (double)(pixels->images * area) * (25.0 + 1.5 * (double)channels));
    memset(parts, 0, groups * size * sizeof *parts);
    RN_PARALLEL(threads) {
        RN_SHARE(groups, first, last);
        double *room = rn_scratch(0, (COEFFICIENTS * room_stride + size) * sizeof *room);
        if (room == NULL) __atomic_store_n(&failed, RN_POINCARE_MEMORY, __ATOMIC_RELAXED);
        for (size_t group = first; group < last && room != NULL; group++) {
            double *mine = room + COEFFICIENTS * room_stride, *sum = parts + group * size;
            size_t block, end;
            rn_range(blocks, groups, group, &block, &end);
            for (; block < end; block++) {
                size_t from = block % each * BLOCK_PIXELS, count = area - from < BLOCK_PIXELS ? area - from : BLOCK_PIXELS;
                size_t base = block / each * channels * area + from;
                const T *up = g ? g + base : NULL;
                N(coefficients)(&on, x + base, up, channels, area, count, room, room_stride, mine + 3 * channels);
                N(channel_sums)(&on, x + base, up, channels, area, count, room, room_stride, mine);
                for (size_t i = 0; i < size; i++) sum[i] += mine[i];
            }
        }
    }
    memset(totals, 0, size * sizeof *totals);
    for (size_t group = 0; group < groups; group++)
        for (size_t i = 0; i < size; i++) totals[i] += parts[group * size + i];
    const double *scalars = totals + 3 * channels;
    for (size_t k = 0; k < channels; k++) {
        double m = on.middle[k], b = on.centre[k];
        results[k] = totals[3 * k] + scalars[0] * m + scalars[1] * b;
        results[channels + k] = totals[3 * k + 1] + scalars[2] * m + scalars[3] * b;
        results[2 * channels + k] = totals[3 * k + 2] + scalars[4] * m;
    }
    results[3 * channels] = scalars[5];
    rn_block_free(parts);
    return failed;
}

/* dx of VF64 pixels; `pull` is the midpoint's share in it, or NULL. Adds <dx, x> and <g, y> to *products_x and *products_y. */
RN_INLINE void N(normalize_back_lanes)(const rails *on, const midpoint_pull *pull, double by_distance, const T *x, const T *g,
                                       size_t channels, size_t stride, size_t count, T *dx, vf64 *products_x, vf64 *products_y) {
    vf64 square, gap_x = N(gap_lanes)(x, channels, stride, on->curvature, count, &square), along = {0}, distance = {0};
    products of = N(pixel_products)(on, x, g, channels, stride, count);
    passage a = passage_of(on, gap_x, of.w_w, of.w_way, of.w_m);
    pulled to = pull_back(&a, on, &of, by_distance);
    point_pull mass = {.of_g = {0}};
    if (pull != NULL) {
        for (size_t k = 0; k < channels; k++) {
            vf64 offset = (N(load_pixels)(x + k * stride, count) - pull->heaviest[k]) - pull->drift[k];
            along = vf64_fma(offset, vf64_set(pull->g[k]), along);
            distance = vf64_fma(offset, offset, distance);
        }
        mass = point_pull_of(pull, vf64_set(1.0), gap_x, along, distance);
    }
    vf64 total = {0};
    for (size_t k = 0; k < channels; k++) {
        vf64 point = N(load_pixels)(x + k * stride, count), w = point - on->middle[k];
        vf64 result = to.x.w * w + to.x.m * on->middle[k] + to.x.b * on->centre[k];
        if (g != NULL) result = vf64_fma(to.x.g, N(load_pixels)(g + k * stride, count), result);
        if (pull != NULL)
            result += mass.of_g * (pull->g[k] - pull->bend * ((point - pull->heaviest[k]) - pull->drift[k])) + mass.of_point * point;
        N(store_pixels)(dx + k * stride, count, result);
        total = vf64_fma(result, point, total);
    }
    for (size_t i = count; i < VF64; i++) total[i] = to.along[i] = 0;
    *products_x += total;
    *products_y += to.along;
}

/* pull: the midpoint's cotangent, in training, or NULL; by_distance as in pull_back(). results: <dx, x> and <g, y>. */
static int N(normalize_back)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to, const T *g,
                             const rn_poincare_midpoint *of, const double *dmiddle, double by_distance, T *dx, double *results) {
    size_t area = pixels->area, each = (area + BLOCK_PIXELS - 1) / BLOCK_PIXELS, blocks = each * pixels->images;
    double *parts = rn_block_alloc(2 * blocks * sizeof *parts);
    rails on;
    if (parts == NULL || N(lay_rails)(pixels, to, &on)) {
        rn_block_free(parts);
        return RN_POINCARE_MEMORY;
    }
    midpoint_pull pull = {0};
    if (of != NULL) pull = midpoint_pull_of(of, dmiddle, pixels->channels, pixels->curvature);
    int threads = rn_threads(blocks, (double)(pixels->images * area) * (25.0 + 2.0 * (double)pixels->channels));
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        for (size_t i = first; i < last; i++) {
            size_t from = i % each * BLOCK_PIXELS, end = area - from < BLOCK_PIXELS ? area : from + BLOCK_PIXELS;
            size_t base = i / each * pixels->channels * area;
            vf64 products_x = {0}, products_y = {0};
            for (size_t pixel = from; pixel < end; pixel += VF64)
                N(normalize_back_lanes)(&on, of ? &pull : NULL, by_distance, x + base + pixel, g ? g + base + pixel : NULL, pixels->channels,
                                        area, end - pixel, dx + base + pixel, &products_x, &products_y);
            parts[2 * i] = vf64_sum(products_x);
            parts[2 * i + 1] = vf64_sum(products_y);
        }
    }
    results[0] = results[1] = 0;
    for (size_t i = 0; i < blocks; i++) {
        results[0] += parts[2 * i];
        results[1] += parts[2 * i + 1];
    }
    rn_block_free(parts);
    return 0;
}
#undef RUN_BLOCKS
#undef EACH_BLOCK
#undef MIDPOINT_COST
#undef SAFE_GAP
