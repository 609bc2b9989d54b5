/* Rows of one dtype: T the entries, N(name) the names, SINGLE whether T is float. Included twice by ball.c. */

#define UNIT_OF_ROW(x) N(length_of)((x), NULL, 0, length)

/* ---- maps along rays ----------------------------------------------------------------------------------------- */

/* What a map x -> scale(|x|) x does to cotangents: dx = across (g - <g,e> e) + along <g,e> e with e = x/|x|, and
 * <g,e> bend for the curvature, <g,e> of_factor for the number that scales. */
typedef struct {
    double size[BLOCK], s[BLOCK], gap[BLOCK], reach[BLOCK], factor[BLOCK];
    double across[BLOCK], along[BLOCK], bend[BLOCK], of_factor[BLOCK];
} N(ray);

static int N(measure_rays)(int op, const T *x, const double *factors, size_t factor_step, size_t rows, size_t length,
                           double curvature, N(ray) * r) {
    double root = sqrt(curvature), square;
    int outside = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        r->size[i] = i < rows ? UNIT_OF_ROW(x + i * length) : 0;
        r->s[i] = root * r->size[i];
        r->gap[i] = 1;
        r->factor[i] = 1;
        if (i < rows && (op == RN_RAY_LOG0 || op == RN_RAY_SCALE))
            r->gap[i] = N(gap_of)(x + i * length, length, curvature, &square);
        if (i < rows && op == RN_RAY_SCALE) r->factor[i] = factors[i * factor_step];
        r->reach[i] = op == RN_RAY_EXP0 ? r->s[i] : r->s[i] / sqrt(r->gap[i]);
        outside |= r->gap[i] <= 0;
    }
    if (op == RN_RAY_EXP0) tanh_block(r->reach, !SINGLE);
    if (op == RN_RAY_LOG0 || op == RN_RAY_SCALE) arsinh_block(r->reach, !SINGLE);
    return outside;
}

static void N(exp0_slopes)(N(ray) * r, double curvature, double margin) {
    BLOCK_LANES {
        vf64 s = AT(r->s), reach = AT(r->reach), ratio = ratio_lanes(reach, s, vf64_set(1.0)), slope = sech_square_lanes(s);
        SET(r->across, ratio);
        SET(r->along, slope);
        SET(r->bend, AT(r->size) * tanh_bend_lanes(s, ratio, slope) / (2 * curvature));
    }
    for (int i = 0; i < BLOCK && margin >= 0; i++) {
        if (!(r->reach[i] > 1 - margin)) continue;
        r->across[i] = (1 - margin) / r->s[i];
        r->along[i] = 0;
        r->bend[i] = -(1 - margin) / (2 * curvature * sqrt(curvature));
    }
}
static void N(log0_slopes)(N(ray) * r, double curvature) {
    BLOCK_LANES {
        vf64 s = AT(r->s), gap = AT(r->gap), ratio = ratio_lanes(AT(r->reach), s, vf64_set(1.0));
        SET(r->across, ratio);
        SET(r->along, 1.0 / gap);
        SET(r->bend, AT(r->size) * artanh_bend_lanes(s, gap, ratio) / (2 * curvature));
    }
}
static void N(project_slopes)(N(ray) * r, double curvature, double margin) {
    for (int i = 0; i < BLOCK; i++) {
        int moved = r->s[i] > 1 - margin;
        r->across[i] = moved ? (1 - margin) / r->s[i] : 1;
        r->along[i] = moved ? 0 : 1;
        r->bend[i] = moved ? -(1 - margin) / (2 * curvature * sqrt(curvature)) : 0;
    }
}
/* tanh(factor artanh(s)) in `travelled`, then the slopes of a scaling by `factor`. */
static void N(scale_slopes)(N(ray) * r, double curvature) {
    double root = sqrt(curvature), travelled[BLOCK];
    BLOCK_LANES SET(travelled, vf64_abs(AT(r->factor)) * AT(r->reach));
    tanh_block(travelled, !SINGLE);
    BLOCK_LANES {
        vf64 s = AT(r->s), gap = AT(r->gap), factor = AT(r->factor), reach = AT(r->reach), end = AT(travelled);
        vf64 way = vf64_abs(factor) * reach, slope = sech_square_lanes(way);
        vf64 signed_end = vf64_copysign(end, factor);
        vf64 ratio = ratio_lanes(end, way, vf64_set(1.0));
        vf64 near = factor * (tanh_bend_lanes(way, ratio, slope) / gap
                              + ratio * artanh_bend_lanes(s, gap, ratio_lanes(reach, s, vf64_set(1.0))));
        vf64 far = factor * slope / gap - ratio_lanes(signed_end, s, vf64_set(0.0));
        SET(r->across, ratio_lanes(signed_end, s, factor));
        SET(r->along, factor * slope / gap);
        SET(r->bend, AT(r->size) * vf64_select((vi64)(s < DIRECT_BEND), near, far) / (2 * curvature));
        SET(r->of_factor, slope * reach / root);
    }
}

/* dx of one row; the result is <g,e>. */
static double N(pull_ray)(const T *x, const T *g, T *dx, size_t length, double size, double across, double along) {
    unit by = unit_of(size);
    vf64 sum = {0};
    EACH_PAIR(x, g, a, u, { sum = vf64_fma(u, heading_lanes(a, by), sum); });
    double radial = vf64_sum(sum);
    if (across == 1 && along == 1)
        memmove(dx, g, length * sizeof(T));
    else
        EACH_PAIR(x, g, a, u, {
            vf64 e = heading_lanes(a, by);
            vf64 rest = vf64_fma(e, vf64_set(-radial), u);
            PUT(dx, vf64_fma(rest, vf64_set(across), e * (along * radial)));
        });
    return radial;
}

static void N(ray_back)(int op, const T *x, const T *g, T *dx, const double *factors, size_t factor_step,
                        double *factor_terms, double *terms, size_t rows, size_t length, double curvature, double margin) {
    int threads = rn_threads(rows, (double)rows * (60.0 + 0.8 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row += BLOCK) {
            size_t count = last - row < BLOCK ? last - row : BLOCK;
            N(ray) r;
            N(measure_rays)(op, x + row * length, factors + row * factor_step, factor_step, count, length, curvature, &r);
            if (op == RN_RAY_EXP0)
                N(exp0_slopes)(&r, curvature, margin);
            else if (op == RN_RAY_LOG0)
                N(log0_slopes)(&r, curvature);
            else if (op == RN_RAY_PROJECT)
                N(project_slopes)(&r, curvature, margin);
            else
                N(scale_slopes)(&r, curvature);
            for (size_t i = 0; i < count; i++) {
                size_t at = (row + i) * length;
                double radial = N(pull_ray)(x + at, g + at, dx + at, length, r.size[i], r.across[i], r.along[i]);
                terms[row + i] = radial * r.bend[i];
                if (op == RN_RAY_SCALE) factor_terms[row + i] = radial * r.of_factor[i];
            }
        }
    }
}

static int N(scale)(const T *x, const double *factors, size_t factor_step, T *z, size_t rows, size_t length,
                    double curvature) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (60.0 + 0.4 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row += BLOCK) {
            size_t count = last - row < BLOCK ? last - row : BLOCK;
            N(ray) r;
            mine |= N(measure_rays)(RN_RAY_SCALE, x + row * length, factors + row * factor_step, factor_step, count, length,
                                    curvature, &r);
            BLOCK_LANES SET(r.reach, vf64_abs(AT(r.factor)) * AT(r.reach));
            tanh_block(r.reach, !SINGLE);
            for (size_t i = 0; i < count; i++) {
                double stretch = r.s[i] == 0 ? r.factor[i] : copysign(r.reach[i], r.factor[i]) / r.s[i];
                const T *from = x + (row + i) * length;
                T *to = z + (row + i) * length;
                EACH(from, a, { PUT(to, a * stretch); });
                if (!(r.reach[i] < 1 - 1e-4)) N(inside)(to, length, curvature);
            }
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

/* ---- the conformal factor 2/gap ------------------------------------------------------------------------------ */

static int N(factor)(const T *x, size_t x_stride, T *z, T *kept, size_t rows, size_t length, double curvature) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (10.0 + 0.4 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row++) {
            double square, gap = N(gap_of)(x + row * x_stride, length, curvature, &square);
            z[row] = (T)(2 / gap);
            mine |= gap <= 0;
            N(keep_rows)(kept ? kept + row * length : NULL, x + row * x_stride, x_stride, 1, length);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

static void N(factor_back)(const T *x, const T *g, T *dx, double *terms, size_t rows, size_t length, double curvature) {
    int threads = rn_threads(rows, (double)rows * (10.0 + 0.6 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const T *from = x + row * length;
            T *to = dx + row * length;
            double square, factor = 2 / N(gap_of)(from, length, curvature, &square);
            double pace = (double)g[row] * factor * factor;
            EACH(from, a, { PUT(to, a * (curvature * pace)); });
            terms[row] = pace * square / 2;
        }
    }
}

/* ---- addition ------------------------------------------------------------------------------------------------ */

/* z = (gap_x w + S x)/D with w = x + y: all of the cotangent follows from <g,w> and <g,x>. */
static double N(add_back_row)(const T *x, const T *y, const T *g, T *dx, T *dy, size_t length, double curvature) {
    double xx, yy, gap_x = N(gap_of)(x, length, curvature, &xx), gap_y = N(gap_of)(y, length, curvature, &yy);
    vf64 of_total = {0}, of_x = {0}, square = {0};
    EACH_THREE(x, y, g, a, b, u, {
        vf64 total = a + b;
        square = vf64_fma(total, total, square);
        of_total = vf64_fma(u, total, of_total);
        of_x = vf64_fma(u, a, of_x);
    });
    double g_total = vf64_sum(of_total), g_x = vf64_sum(of_x), total_square = vf64_sum(square);
    double spread = curvature * total_square, denominator = gap_x * gap_y + spread;
    double g_z = (gap_x * g_total + spread * g_x) / denominator, k = (g_total - gap_y * g_x) / denominator;
    double grow_x = (gap_x + spread) / denominator, grow_y = gap_x / denominator, bend = 2 * curvature * k;
    double z_of_total = gap_x / denominator, z_of_x = spread / denominator, turn = 2 * curvature * g_z;
    EACH_THREE(x, y, g, a, b, u, {
        vf64 total = a + b;
        vf64 z = vf64_fma(total, vf64_set(z_of_total), a * z_of_x);
        PUT(dx, vf64_fma(u, vf64_set(grow_x), z * -bend));
        /* The bracket is the rotation gyr[y, x] of g. */
        PUT(dy, (u - vf64_fma(total, vf64_set(bend), b * -turn)) * grow_y);
    });
    return (gap_x * g_z * yy - k * total_square) / denominator;
}

/* ---- the geodesic between two points ------------------------------------------------------------------------- */

/* With w = y - x, S = c|w|^2, D = gap_x gap_y + S: half lengths arsinh(p) with p = sqrt(c)|w|/sqrt(gap_x gap_y), and
 * the direction at x is (gap_x w/|w| - sqrt(S) sqrt(c) x)/sqrt(D). */
typedef struct {
    double gap_x[BLOCK], gap_y[BLOCK], square_x[BLOCK], square_y[BLOCK], size[BLOCK], p[BLOCK], half[BLOCK];
    double denominator[BLOCK], excess[BLOCK];
} N(ways);

static void N(measure_ways)(const T *x, const T *y, size_t rows, size_t length, double curvature, N(ways) * w) {
    double root = sqrt(curvature);
    memset(w, 0, sizeof *w);
    for (size_t i = 0; i < rows; i++) {
        const T *from = x + i * length, *to = y + i * length;
        w->gap_x[i] = N(gap_of)(from, length, curvature, &w->square_x[i]);
        w->gap_y[i] = N(gap_of)(to, length, curvature, &w->square_y[i]);
        w->size[i] = N(length_of)(to, from, -1.0, length);
        double both = w->gap_x[i] * w->gap_y[i];
        w->p[i] = w->half[i] = root * w->size[i] / sqrt(both);
        w->denominator[i] = both + curvature * w->size[i] * w->size[i];
    }
    arsinh_block(w->half, !SINGLE);
    BLOCK_LANES SET(w->excess, tanh_excess_lanes(AT(w->half), AT(w->p)));
}

static void N(dist_back_block)(int squared, const T *x, const T *y, const T *g, T *dx, T *dy, double *terms, size_t rows,
                               size_t length, double curvature) {
    double root = sqrt(curvature);
    N(ways) w;
    N(measure_ways)(x, y, rows, length, curvature, &w);
    for (size_t i = 0; i < rows; i++) {
        const T *from = x + i * length, *to = y + i * length;
        T *dfrom = dx + i * length, *dto = dy + i * length;
        /* First variation: moving an end away along the geodesic lengthens it at the rate of the conformal factor. */
        double rate = (double)g[i] * (squared ? 4 / root * w.half[i] : 1);
        double scale = sqrt(w.denominator[i]);
        double straight = w.size[i] > 0 ? 2 * rate / scale : w.size[i] * rate;
        double of_x = straight * curvature * w.size[i] / w.gap_x[i], of_y = straight * curvature * w.size[i] / w.gap_y[i];
        unit by = unit_of(w.size[i]);
        EACH_PAIR(from, to, a, b, {
            vf64 e = heading_lanes(b - a, by) * straight;
            PUT(dfrom, vf64_fma(a, vf64_set(of_x), -e));
            PUT(dto, vf64_fma(b, vf64_set(of_y), e));
        });
        double growth = curvature * (w.square_x[i] / w.gap_x[i] + w.square_y[i] / w.gap_y[i]);
        double tanh_half = w.p[i] / sqrt(1 + w.p[i] * w.p[i]);
        terms[i] = rate / (curvature * root) * (w.excess[i] + tanh_half * growth);
    }
}
static void N(dist_back)(int squared, const T *x, const T *y, const T *g, T *dx, T *dy, double *terms, size_t rows,
                         size_t length, double curvature) {
    int threads = rn_threads(rows, (double)rows * (50.0 + 1.5 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row += BLOCK) {
            size_t at = row * length;
            N(dist_back_block)(squared, x + at, y + at, g + row, dx + at, dy + at, terms + row,
                               last - row < BLOCK ? last - row : BLOCK, length, curvature);
        }
    }
}

/* v = gap_x A/sqrt(c) e: its length's part follows from the first variation, its direction's from the part of g across. */
static double N(log_back_row)(const T *x, const T *y, const T *g, T *dx, T *dy, size_t length, double curvature,
                              const N(ways) * w, size_t i) {
    double root = sqrt(curvature), gap_x = w->gap_x[i], gap_y = w->gap_y[i], size = w->size[i], half = w->half[i];
    double spread = curvature * size * size, scale = sqrt(w->denominator[i]), p = w->p[i];
    /* e = straight h - back x at x and -straight_y h - back y at y, with h = w/|w| */
    double straight = size == 0 ? 0 : gap_x / scale, straight_y = size == 0 ? 0 : gap_y / scale;
    double back = curvature * size / scale;
    unit by = unit_of(size);
    vf64 sum = {0}, along = {0};
    EACH_THREE(x, y, g, a, b, u, {
        vf64 h = heading_lanes(b - a, by);
        sum = vf64_fma(u, vf64_fma(h, vf64_set(straight), a * -back), sum);
        along = vf64_fma(b - a, a + b, along);
    });
    double radial = vf64_sum(sum), outward = vf64_sum(along);
    vf64 of_x = {0}, of_heading = {0};
    EACH_THREE(x, y, g, a, b, u, {
        vf64 h = heading_lanes(b - a, by), e = vf64_fma(h, vf64_set(straight), a * -back);
        vf64 across = vf64_fma(e, vf64_set(-radial), u);
        of_x = vf64_fma(across, a, of_x);
        of_heading = vf64_fma(across, h, of_heading);
    });
    double across_x = vf64_sum(of_x), across_heading = vf64_sum(of_heading);
    double bend = root * size / gap_x, tilt = bend < 1 ? root * bend * across_x : across_heading;
    double pace = gap_x * (p > 0 ? half / p : 1) / sqrt(gap_x * gap_y * w->denominator[i]);
    double of_e = 2 * root * half * across_x - radial, to_origin = -2 * root * half * radial;
    double of_across = -pace * (gap_x + spread), turn = gap_x * pace, ratio = gap_x / gap_y * radial;
    EACH_THREE(x, y, g, a, b, u, {
        vf64 h = heading_lanes(b - a, by), e = vf64_fma(h, vf64_set(straight), a * -back);
        vf64 across = vf64_fma(e, vf64_set(-radial), u);
        vf64 reverse = vf64_fma(h, vf64_set(-straight_y), b * -back);
        PUT(dx, vf64_fma(across, vf64_set(of_across), vf64_fma(e, vf64_set(of_e), a * to_origin)));
        PUT(dy, vf64_fma(vf64_fma(h, vf64_set(-2 * across_heading), across), vf64_set(turn), reverse * -ratio));
    });
    if (!(root * size < gap_x)) outward = (gap_x - gap_y) / curvature;
    double of_length = w->excess[i] * (2 - gap_x) / (2 * curvature) + p / sqrt(1 + p * p) * outward / (2 * gap_y);
    return (radial * of_length - gap_x * half / scale * tilt / curvature) / root;
}

/* ---- the exponential map ------------------------------------------------------------------------------------- */

/* t = sqrt(c)|v|/gap_x, tanh(t), e^-2t, sech(t)^2 - tanh(t)/t. */
typedef struct {
    double gap[BLOCK], square[BLOCK], size[BLOCK], t[BLOCK], reach[BLOCK], decay[BLOCK], bend[BLOCK];
} N(starts);

static void N(measure_starts)(const T *x, const T *v, size_t rows, size_t length, double curvature, N(starts) * s) {
    memset(s, 0, sizeof *s);
    for (size_t i = 0; i < rows; i++) {
        s->gap[i] = N(gap_of)(x + i * length, length, curvature, &s->square[i]);
        s->size[i] = UNIT_OF_ROW(v + i * length);
        double t = sqrt(curvature) * s->size[i] / s->gap[i];
        s->t[i] = s->reach[i] = s->decay[i] = t > SATURATED ? SATURATED : t;
    }
    tanh_block(s->reach, !SINGLE);
    decay_block(s->decay, !SINGLE);
    BLOCK_LANES {
        vf64 t = AT(s->t), decay = AT(s->decay), slope = 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
        SET(s->bend, tanh_bend_lanes(t, ratio_lanes(AT(s->reach), t, vf64_set(1.0)), slope));
    }
}

static double N(exp_back_row)(const T *x, const T *v, const T *g, T *dx, T *dv, size_t length, double curvature,
                              double margin, const N(starts) * s, size_t i) {
    double root = sqrt(curvature), gap_x = s->gap[i], reach = s->reach[i], decay = s->decay[i], size = s->size[i];
    double radius = root * sqrt(s->square[i]), gap_b = 4 * decay / ((1 + decay) * (1 + decay));
    unit by = unit_of(size);
    vf64 sum = {0};
    EACH_PAIR(x, v, a, b, { sum = vf64_fma(a, heading_lanes(b, by), sum); });
    /* sqrt(c) (x + step) = sqrt(c) x + along e + more e, as in the map itself: without losing the boundary */
    int diving = vf64_sum(sum) < 0 && radius >= OUTER;
    double beyond = fmin(radius, reach) < OUTER ? reach - radius : gap_x / (1 + radius) - 2 * decay / (1 + decay);
    double along = diving ? radius : reach, more = diving ? beyond : 0;
#define ARRIVAL(a, e) (vf64_fma((e), vf64_set(along), (a) * root) + (e) * more)
    sum = (vf64){0};
    EACH_PAIR(x, v, a, b, {
        vf64 total = vf64_fma(heading_lanes(b, by), vf64_set(along), a * root);
        sum = vf64_fma(total, total, sum);
    });
    double spread = vf64_sum(sum);
    if (diving) spread = beyond * beyond + reach * spread / radius;
    double denominator = gap_x * gap_b + spread, of_total = gap_x / (root * denominator), of_x = spread / denominator;
    /* A projection leaves the part of g across the result. */
    double radius_z = sqrt(spread / denominator), shrink = 1, radial_z = 0;
    if (margin >= 0 && radius_z > 1 - margin) {
        double to_unit = root / radius_z;
        sum = (vf64){0};
        EACH_THREE(x, v, g, a, b, u, {
            vf64 e = heading_lanes(b, by);
            vf64 total = ARRIVAL(a, e);
            sum = vf64_fma(u, vf64_fma(total, vf64_set(of_total), a * of_x) * to_unit, sum);
        });
        radial_z = vf64_sum(sum);
        shrink = (1 - margin) / radius_z;
    }
    double of_z = shrink == 1 ? 0 : radial_z * root / radius_z;
    double terms = shrink == 1 ? 0 : -(1 - margin) / (2 * curvature * root) * radial_z;
#define SHRUNK(u, z) (shrink == 1 ? (u) : ((u) - (z) * of_z) * shrink)
    vf64 with_total = {0}, with_x = {0};
    EACH_THREE(x, v, g, a, b, u, {
        vf64 e = heading_lanes(b, by);
        vf64 total = ARRIVAL(a, e), z = vf64_fma(total, vf64_set(of_total), a * of_x), up = SHRUNK(u, z);
        with_total = vf64_fma(up, total, with_total);
        with_x = vf64_fma(up, a, with_x);
    });
    double g_total = vf64_sum(with_total) / root, g_x = vf64_sum(with_x);
    double g_z = (gap_x * g_total + spread * g_x) / denominator, k = (g_total - gap_b * g_x) / denominator;
    double grow = gap_x / denominator, of_step = 2 * curvature * g_z * reach / root, of_way = 2 * curvature * k / root;
#define STEP(up, total, e) (((up) - vf64_fma((total), vf64_set(of_way), (e) * -of_step)) * grow)
    sum = (vf64){0};
    EACH_THREE(x, v, g, a, b, u, {
        vf64 e = heading_lanes(b, by);
        vf64 total = ARRIVAL(a, e), z = vf64_fma(total, vf64_set(of_total), a * of_x), up = SHRUNK(u, z);
        sum = vf64_fma(STEP(up, total, e), e, sum);
    });
    /* Across v the step turns, along v it grows. */
    double radial = vf64_sum(sum), turning = size > 0 ? reach / (root * size) : 1 / gap_x;
    double growing = gap_b / gap_x * radial, growth = radial * s->t[i] * gap_b / (root * gap_x);
    double of_up = (gap_x + spread) / denominator, to_z = -2 * curvature * k, to_x = 2 * curvature * growth;
    EACH_THREE(x, v, g, a, b, u, {
        vf64 e = heading_lanes(b, by);
        vf64 total = ARRIVAL(a, e), z = vf64_fma(total, vf64_set(of_total), a * of_x), up = SHRUNK(u, z);
        vf64 step = STEP(up, total, e);
        PUT(dx, vf64_fma(up, vf64_set(of_up), vf64_fma(z, vf64_set(to_z), a * to_x)));
        PUT(dv, vf64_fma(vf64_fma(e, vf64_set(-radial), step), vf64_set(turning), e * growing));
    });
#undef ARRIVAL
#undef SHRUNK
#undef STEP
    terms += (gap_x * g_z * (reach * reach / curvature) - k * spread / curvature) / denominator;
    return terms + growth * s->square[i] + radial * s->t[i] * s->bend[i] / (2 * curvature * root);
}

static void N(pair_back_block)(int op, const T *x, const T *y, const T *g, T *dx, T *dy, double *terms, size_t rows,
                               size_t length, double curvature, double margin) {
    union {
        N(ways) ways;
        N(starts) starts;
    } scalars;
    if (op == RN_PAIR_LOGMAP) N(measure_ways)(x, y, rows, length, curvature, &scalars.ways);
    if (op == RN_PAIR_EXPMAP) N(measure_starts)(x, y, rows, length, curvature, &scalars.starts);
    for (size_t i = 0; i < rows; i++) {
        size_t at = i * length;
        if (op == RN_PAIR_ADD)
            terms[i] = N(add_back_row)(x + at, y + at, g + at, dx + at, dy + at, length, curvature);
        else if (op == RN_PAIR_LOGMAP)
            terms[i] = N(log_back_row)(x + at, y + at, g + at, dx + at, dy + at, length, curvature, &scalars.ways, i);
        else
            terms[i] = N(exp_back_row)(x + at, y + at, g + at, dx + at, dy + at, length, curvature, margin,
                                       &scalars.starts, i);
    }
}
static void N(pair_back)(int op, const T *x, const T *y, const T *g, T *dx, T *dy, double *terms, size_t rows,
                         size_t length, double curvature, double margin) {
    int threads = rn_threads(rows, (double)rows * (80.0 + 2.0 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row += BLOCK) {
            size_t at = row * length;
            N(pair_back_block)(op, x + at, y + at, g + at, dx + at, dy + at, terms + row,
                               last - row < BLOCK ? last - row : BLOCK, length, curvature, margin);
        }
    }
}

/* ---- rotations: gyration and transport ----------------------------------------------------------------------- */

/* gyr[u, v] w = w + 2c (P u - K s) with s = u + v, P = (gap_v <w,s> + S <w,v>)/D, K = (<w,s> - gap_u <w,v>)/D. */
static int N(turn_row)(int carry, const T *u, const T *v, const T *w, T *z, size_t length, double curvature) {
    double uu, vv, gap_u = N(gap_of)(u, length, curvature, &uu), gap_v = N(gap_of)(v, length, curvature, &vv);
    double sign = carry ? -1 : 1;
    vf64 square = {0}, of_total = {0}, of_v = {0};
    EACH_THREE(u, v, w, a, b, d, {
        b *= sign;
        vf64 total = a + b;
        square = vf64_fma(total, total, square);
        of_total = vf64_fma(d, total, of_total);
        of_v = vf64_fma(d, b, of_v);
    });
    double w_total = vf64_sum(of_total), w_v = vf64_sum(of_v), spread = curvature * vf64_sum(square);
    double denominator = gap_u * gap_v + spread, shrink = carry ? gap_u / gap_v : 1;
    double along_u = 2 * curvature * (gap_v * w_total + spread * w_v) / denominator;
    double along_total = 2 * curvature * (w_total - gap_u * w_v) / denominator;
    EACH_THREE(u, v, w, a, b, d, {
        vf64 total = a + sign * b;
        PUT(z, (d + vf64_fma(a, vf64_set(along_u), total * -along_total)) * shrink);
    });
    return gap_u <= 0 || gap_v <= 0;
}
static int N(turn)(int carry, const T *u, const T *v, const T *w, T *z, size_t rows, size_t length, double curvature) {
    int outside = 0;
    int threads = rn_threads(rows, (double)rows * (40.0 + 1.5 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int mine = 0;
        for (size_t row = first; row < last; row++) {
            size_t at = row * length;
            mine |= N(turn_row)(carry, u + at, v + at, w + at, z + at, length, curvature);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside;
}

/* <g, gyr w> = <g,w> + 2c E with E = P <g,u> - K <g,s>; every bar is the derivative of E by the named number. With `carry`,
 * v stands for -v and gap_u/gap_v multiplies everything. */
static double N(turn_back_row)(int carry, const T *u, const T *v, const T *w, const T *g, T *du, T *dv, T *dw,
                               size_t length, double curvature) {
    double uu, vv, gap_u = N(gap_of)(u, length, curvature, &uu), gap_v = N(gap_of)(v, length, curvature, &vv);
    double sign = carry ? -1 : 1, shrink = carry ? gap_u / gap_v : 1;
    vf64 square = {0}, wt = {0}, wv = {0}, gt = {0}, gu = {0}, gw = {0};
    EACH_THREE(u, v, w, a, b, d, {
        vf64 up = GET(g) * shrink;
        b *= sign;
        vf64 total = a + b;
        square = vf64_fma(total, total, square);
        wt = vf64_fma(d, total, wt);
        wv = vf64_fma(d, b, wv);
        gt = vf64_fma(up, total, gt);
        gu = vf64_fma(up, a, gu);
        gw = vf64_fma(up, d, gw);
    });
    double total_square = vf64_sum(square), w_total = vf64_sum(wt), w_v = vf64_sum(wv), g_total = vf64_sum(gt);
    double g_u = vf64_sum(gu), spread = curvature * total_square, denominator = gap_u * gap_v + spread;
    double along_u = (gap_v * w_total + spread * w_v) / denominator, along_total = (w_total - gap_u * w_v) / denominator;
    double e = along_u * g_u - along_total * g_total, twice = 2 * curvature;
    double bar_t = g_u / denominator, bar_k = -g_total / denominator, bar_denominator = -e / denominator;
    double bar_gap_u = bar_denominator * gap_v - bar_k * w_v, bar_gap_v = bar_denominator * gap_u + bar_t * w_total;
    double bar_spread = bar_denominator + bar_t * w_v, bar_w_total = bar_k + bar_t * gap_v;
    double bar_w_v = bar_t * spread - bar_k * gap_u;
    double terms = 2 * e + twice * (bar_spread * total_square - bar_gap_u * uu - bar_gap_v * vv);
    /* gap_u/gap_v multiplied the rotated w, whose inner product with g (times the quotient) is <g,w> + 2c E. */
    double turned = carry ? vf64_sum(gw) + twice * e : 0;
    double more_u = turned / gap_u, more_v = -turned / gap_v;
    terms -= more_u * uu + more_v * vv;
    double du_of_u = -twice * (twice * bar_gap_u + more_u), dv_of_v = -twice * (twice * bar_gap_v + more_v);
    /* The inverse of the rotation, gyr[v, u], takes g to the cotangent of w. */
    double back_v = twice * (gap_u * g_total + spread * g_u) / denominator;
    double back_total = twice * (g_total - gap_v * g_u) / denominator;
    EACH_THREE(u, v, w, a, b, d, {
        vf64 up = GET(g) * shrink;
        b *= sign;
        vf64 total = a + b;
        vf64 shared = vf64_fma(d, vf64_set(bar_w_total), vf64_fma(up, vf64_set(-along_total), total * (twice * bar_spread)));
        PUT(du, vf64_fma(vf64_fma(up, vf64_set(along_u), shared), vf64_set(twice), a * du_of_u));
        PUT(dv, sign * vf64_fma(vf64_fma(d, vf64_set(bar_w_v), shared), vf64_set(twice), b * dv_of_v));
        PUT(dw, up + vf64_fma(b, vf64_set(back_v), total * -back_total));
    });
    return terms;
}
static void N(turn_back)(int carry, const T *u, const T *v, const T *w, const T *g, T *du, T *dv, T *dw, double *terms,
                         size_t rows, size_t length, double curvature) {
    int threads = rn_threads(rows, (double)rows * (60.0 + 2.5 * (double)length));
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            size_t at = row * length;
            terms[row] = N(turn_back_row)(carry, u + at, v + at, w + at, g + at, du + at, dv + at, dw + at, length, curvature);
        }
    }
}

#undef UNIT_OF_ROW
