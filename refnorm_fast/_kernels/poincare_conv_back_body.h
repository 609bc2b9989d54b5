/* The convolution's pullback, for the types of poincare_conv_body.h, which includes this file.
 *
 * With N_k = <v, w_k> over a window, A = sinh(2s)/s, B = cosh(2s), a_k = 2|w_k| arsinh(p_k) and W_k = sinh(a_k), the cotangent
 * g of y = W/(sqrt(c)(1 + T)) gives da_k, and with turn_k = 2 da_k/sqrt(1 + p_k^2) cosh(b_k) A
 *     dv = sum turn_k w_k + along v,    along = dA/ds dA + dB/ds dB over s,    dw_k = sum turn_k v across w_k, plus its length's.
 * Products are computed anew: that is cheaper than keeping them. Images are shared out in groups that do not depend on the
 * number of threads, so neither do the sums over windows. */

RN_INLINE V N(load_cotangent)(const T *from, size_t count) {
#if LANES != VF64
    return count < LANES ? vf32_load_part(from, count, 0) : vf32_load(from);
#else
    return PIXELS(load_pixels)(from, count);
#endif
}
RN_INLINE vf64 N(load_grad)(const R *from, size_t count) {
    if (count >= VF64) return N(load_wide)(from);
    vf64 lanes = {0};
    for (size_t i = 0; i < count; i++) lanes[i] = (double)from[i];
    return lanes;
}
/* Numbers that belong to lanes: the first `count`, zeros in the others. */
RN_INLINE V N(load_first)(const R *from, size_t count) {
    return count < LANES ? VEC(load_part)(from, count, 0) : VEC(load)(from);
}
#if LANES == VF64
#define MASK(condition) ((vi64)(condition))
#else
#define MASK(condition) ((vi32)(condition))
#endif

typedef struct {
    N(tile) forward;
    R *planes; /* cotangents of the forward's planes */
    R *turn;   /* (outputs, pixels) */
    R *grad;   /* cotangents of v, of one image */
    R *p, *angle, *sums;
    double *along, *along_image;
} N(back_tile);

static size_t N(carve_back)(N(back_tile) *tile, const rn_poincare_conv *call, size_t tile_rows, char *base) {
    size_t used = N(carve)(&tile->forward, call, tile_rows, base), pixels = tile_rows * call->out_width;
    size_t area = call->height * call->width;
#define CARVE(name, count)                                  \
    tile->name = (void *)(base + used);                     \
    used += ((count) * sizeof *tile->name + 63) & ~(size_t)63
    CARVE(planes, call->channels * tile->forward.phases * call->columns * tile->forward.plane);
    CARVE(turn, call->outputs * (pixels + 2 * LANES));
    CARVE(grad, call->channels * area);
    CARVE(p, call->outputs * LANES);
    CARVE(angle, call->outputs * LANES);
    CARVE(sums, call->outputs * 2 * LANES);
    CARVE(along, pixels + 2 * LANES);
    CARVE(along_image, area + VF64);
#undef CARVE
    return used;
}

/* dA/ds over s, and dB/ds over s, from s^2: the derivatives along the patch. */
RN_INLINE void N(along_lanes)(vf64 square, vf64 of_inner, vf64 of_offset, longest_patch longest, vf64 *by_inner, vf64 *by_offset) {
    vf64 s = vf64_sqrt(square);
    /* (2s cosh(2s) - sinh(2s))/s^3, whose series in z = (2s)^2 has positive terms only. */
    vf64 z = 4.0 * square, r = vf64_set(18.0 / 121645100408832000.0);
    r = vf64_fma(r, z, vf64_set(16.0 / 355687428096000.0));
    r = vf64_fma(r, z, vf64_set(14.0 / 1307674368000.0));
    r = vf64_fma(r, z, vf64_set(12.0 / 6227020800.0));
    r = vf64_fma(r, z, vf64_set(10.0 / 39916800.0));
    r = vf64_fma(r, z, vf64_set(8.0 / 362880.0));
    r = vf64_fma(r, z, vf64_set(6.0 / 5040.0));
    r = vf64_fma(r, z, vf64_set(4.0 / 120.0));
    r = vf64_fma(r, z, vf64_set(2.0 / 6.0));
    vi64 small = (vi64)(s < 0.5), beyond = (vi64)(s > longest.length);
    *by_inner = vf64_select(small, 8.0 * r, (2.0 * of_offset - of_inner) / square);
    *by_offset = 2.0 * of_inner;
    *by_inner = vf64_select(beyond, -of_inner / square, *by_inner);
    *by_offset = vf64_select(beyond, vf64_set(0.0), *by_offset);
}

/* What a vector of outputs shares: scaled as in finish(), with one = e^-shift. */
typedef struct {
    V one, one_square, shift, inverse_length, radial, inward, outer, across_top, top;
} N(bundle);

/* The arguments of sinh, then sinh itself, with what the pullback needs of the points; returns <g, y>. */
RN_INLINE double N(bundle_of)(const rn_poincare_conv *call, const N(back_tile) *tile, const R *inner, const R *slope,
                              const R *offset, const R *power, V stretch, V lift, const T *dy, size_t area, size_t count,
                              N(bundle) *to) {
    V largest = VEC(set)(0), w_top = largest, g_top = largest, top = largest;
    size_t outputs = call->outputs;
    for (size_t o = 0; o < outputs; o++) {
        V product = N(load_first)(inner + o * 2 * LANES, count);
        V p = product * VEC(set)(slope[o]) * stretch - VEC(set)(offset[o]) * lift;
        V angle = VEC(arsinh)(VEC(abs)(p));
        VEC(store)(tile->p + o * LANES, p);
        VEC(store)(tile->angle + o * LANES, VEC(copysign)(angle, p));
        largest = VEC(max)(VEC(set)(power[o]) * angle, largest);
    }
    V shift = VEC(max)(largest - SINH_REACH, VEC(set)(0)), one = VEC(exp)(-shift), one_square = VEC(exp)(-2 * shift);
    V best = VEC(set)(-1);
    double square[2 * VF64], inner_product[2 * VF64];
    vf64 low_sum = {0}, high_sum = {0}, low_radial = {0}, high_radial = {0};
    for (size_t o = 0; o < outputs; o++) {
        V t = VEC(set)(power[o]) * VEC(load)(tile->angle + o * LANES), size = VEC(abs)(t), g = N(load_cotangent)(dy + o * area, count);
        V w = VEC(copysign)(VEC(scaled_sinh)(size, shift, one, one_square), t);
        w_top = VEC(select)(MASK(size > best), w, w_top);
        g_top = VEC(select)(MASK(size > best), g, g_top);
        top = VEC(select)(MASK(size > best), VEC(set)((R)o), top);
        best = VEC(max)(size, best);
#if LANES == VF64
        low_sum = vf64_fma(w, w, low_sum);
        low_radial = vf64_fma(w, g, low_radial);
#else
        vf64 low = vf64_low(w), high = vf64_high(w);
        low_sum = vf64_fma(low, low, low_sum);
        high_sum = vf64_fma(high, high, high_sum);
        low_radial = vf64_fma(low, vf64_low(g), low_radial);
        high_radial = vf64_fma(high, vf64_high(g), high_radial);
#endif
    }
    vf64_store(square, low_sum);
    vf64_store(square + VF64, high_sum);
    vf64_store(inner_product, low_radial);
    vf64_store(inner_product + VF64, high_radial);
    R shifts[LANES], inverse[LANES], radial[LANES], inward[LANES], outer[LANES];
    VEC(store)(shifts, shift);
    double root = sqrt(call->curvature), edge = 1 - call->margin;
    vf64 total = {0};
    for (size_t i = 0; i < LANES; i += VF64) {
        vf64 sum = vf64_load(square + i), e = vf64_exp(-N(load_wide)(shifts + i)), length = vf64_sqrt(sum);
        vf64 term = vf64_sqrt(e * e + sum), below = e + term, product = vf64_load(inner_product + i);
        vf64 over = vf64_select((vi64)(length == 0.0), vf64_set(0.0), 1.0 / length);
        vf64 scale = 1.0 / (root * below), shrink = vf64_set(1.0), along = e / term;
        if (call->margin >= 0) {
            vi64 beyond = (vi64)(length / below > edge);
            shrink = vf64_select(beyond, edge * below * over, shrink);
            along = vf64_select(beyond, vf64_set(0.0), along);
        }
        total += product * scale * shrink;
        N(store_wide)(inverse + i, over);
        N(store_wide)(radial + i, product * over);
        N(store_wide)(inward + i, product * over * along);
        N(store_wide)(outer + i, scale * shrink);
    }
    V inverse_length = VEC(load)(inverse), h_top = w_top * inverse_length, across_top = VEC(set)(0);
    for (size_t o = 0; o < outputs; o++) {
        V t = VEC(set)(power[o]) * VEC(load)(tile->angle + o * LANES), g = N(load_cotangent)(dy + o * area, count);
        V h = VEC(copysign)(VEC(scaled_sinh)(VEC(abs)(t), shift, one, one_square), t) * inverse_length;
        across_top = VEC(fma)(h, h * g_top - h_top * g, across_top);
    }
    *to = (N(bundle)){one, one_square, shift, inverse_length, VEC(load)(radial), VEC(load)(inward), VEC(load)(outer),
                      across_top, top};
    return vf64_sum(total);
}

/* turn_k and along for one vector of windows, and the sums for lengths and biases. */
static double N(pull)(const rn_poincare_conv *call, N(back_tile) *tile, const R *inner, const R *slope, const R *offset,
                      const R *power, const R *cosh_bias, size_t q, longest_patch longest, const T *dy, size_t count, size_t pixels) {
    size_t area = call->out_height * call->out_width, outputs = call->outputs, stride = pixels + 2 * LANES;
    V stretch = N(load_first)(tile->forward.of_inner + q, count), lift = N(load_first)(tile->forward.of_offset + q, count);
    N(bundle) all;
    double total = N(bundle_of)(call, tile, inner, slope, offset, power, stretch, lift, dy, area, count, &all);
    V by_inner = VEC(set)(0), by_offset = by_inner;
    for (size_t o = 0; o < outputs; o++) {
        V product = N(load_first)(inner + o * 2 * LANES, count);
        V angle = VEC(load)(tile->angle + o * LANES), p = VEC(load)(tile->p + o * LANES), g = N(load_cotangent)(dy + o * area, count);
        /* sqrt(1 + p^2), where the square would leave the range, too. */
        V root_lanes = VEC(select)(MASK(VEC(abs)(p) > (R)1e18), VEC(abs)(p), VEC(sqrt)(1 + p * p));
        V t = VEC(set)(power[o]) * angle, size = VEC(abs)(t), half = VEC(set)((R)0.5) * VEC(set)(power[o]);
        V sinh = VEC(scaled_sinh)(size, all.shift, all.one, all.one_square);
        V h = VEC(copysign)(sinh, t) * all.inverse_length, cosh = VEC(sqrt)(all.one_square + sinh * sinh);
        /* The part of g across h; the largest entry's is a small difference, and is taken from the others'. */
        V across = VEC(select)(MASK(all.top == (R)o), all.across_top, g - all.radial * h);
        V da = all.outer * cosh * (across + all.inward * h), q_k = 2 * da / root_lanes;
        V by_bias = VEC(set)(cosh_bias[o]), sinh_bias = VEC(set)(offset[o]);
        VEC(store)(tile->turn + o * stride + q, q_k * by_bias * stretch);
        by_inner = VEC(fma)(q_k * by_bias, product, by_inner);
        by_offset -= half * q_k * sinh_bias;
        R *sums = tile->sums + o * 2 * LANES;
        VEC(store)(sums, VEC(load)(sums) + 2 * da * angle);
        VEC(store)(sums + LANES, VEC(load)(sums + LANES) + q_k * (sinh_bias * product * stretch - half * by_bias * lift));
    }
    R parts[2][LANES];
    VEC(store)(parts[0], by_inner);
    VEC(store)(parts[1], by_offset);
    for (size_t i = 0; i < LANES; i += VF64) {
        vf64 slope_inner, slope_offset;
        N(along_lanes)(vf64_load(tile->forward.window + q + i), N(load_wide)(tile->forward.of_inner + q + i),
                       N(load_wide)(tile->forward.of_offset + q + i), longest, &slope_inner, &slope_offset);
        vf64_store(tile->along + q + i, slope_inner * N(load_wide)(parts[0] + i) + slope_offset * N(load_wide)(parts[1] + i));
    }
    return total;
}

/* planes += weight @ turn, entry by entry of the window: the adjoint of the products. */
RN_INLINE void N(spread_of)(const int entries, const rn_poincare_conv *call, const R *weight, const size_t *places,
                            const R *turn, size_t stride, R *planes) {
    V sum[OUTPUTS_AT_ONCE][2];
#pragma GCC unroll 12
    for (int i = 0; i < entries; i++) sum[i][0] = sum[i][1] = VEC(set)(0);
    for (size_t o = 0; o < call->outputs; o++) {
        V left = VEC(load)(turn + o * stride), right = VEC(load)(turn + o * stride + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < entries; i++) {
            V each = VEC(set)(weight[(size_t)i * call->outputs + o]);
            sum[i][0] = VEC(fma)(each, left, sum[i][0]);
            sum[i][1] = VEC(fma)(each, right, sum[i][1]);
        }
    }
    for (int i = 0; i < entries; i++) {
        R *to = planes + places[i];
        VEC(store)(to, VEC(load)(to) + sum[i][0]);
        VEC(store)(to + LANES, VEC(load)(to + LANES) + sum[i][1]);
    }
}

#define SPREAD_CASE(n)                                                   \
    case n:                                                              \
        N(spread_of)(n, call, weight, places, turn, stride, planes);     \
        break;
static __attribute__((noinline)) void N(spread)(int entries, const rn_poincare_conv *call, const R *weight,
                                                const size_t *places, const R *turn, size_t stride, R *planes) {
    switch (entries) {
        SPREAD_CASE(1)
        SPREAD_CASE(2)
        SPREAD_CASE(3)
        SPREAD_CASE(4)
        SPREAD_CASE(5)
        SPREAD_CASE(6)
#if OUTPUTS_AT_ONCE == 12
        SPREAD_CASE(7)
        SPREAD_CASE(8)
        SPREAD_CASE(9)
        SPREAD_CASE(10)
        SPREAD_CASE(11)
        SPREAD_CASE(12)
#endif
    }
}
#undef SPREAD_CASE

/* sums[entry, output] += sum over pixels of patch * turn, for 4 entries and up to 4 outputs. */
RN_INLINE void N(gather_of)(const int entries, const int outputs, const rn_poincare_conv *call, const R *planes,
                            const size_t *places, const R *turn, size_t stride, size_t pixels, double *sums) {
    V sum[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < entries; i++)
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) sum[i][o] = VEC(set)(0);
    for (size_t q = 0; q < pixels; q += LANES) {
        V right[4];
#pragma GCC unroll 4
        for (int o = 0; o < outputs; o++) right[o] = VEC(load)(turn + (size_t)o * stride + q);
#pragma GCC unroll 4
        for (int i = 0; i < entries; i++) {
            const R *from = planes + places[i] + q;
            V left = pixels - q < LANES ? VEC(load_part)(from, pixels - q, 0) : VEC(load)(from);
#pragma GCC unroll 4
            for (int o = 0; o < outputs; o++) sum[i][o] = VEC(fma)(left, right[o], sum[i][o]);
        }
    }
    for (int i = 0; i < entries; i++)
        for (int o = 0; o < outputs; o++) sums[(size_t)i * call->outputs + (size_t)o] += (double)VEC(sum)(sum[i][o]);
}

static __attribute__((noinline)) void N(gather)(const rn_poincare_conv *call, const R *planes, const size_t *places, size_t depth,
                                                const R *turn, size_t stride, size_t pixels, double *sums) {
    for (size_t k = 0; k < depth; k += 4)
        for (size_t o = 0; o < call->outputs; o += 4) {
            size_t entries = depth - k, outputs = call->outputs - o;
            double *to = sums + k * call->outputs + o;
            if (entries >= 4 && outputs >= 4) {
                N(gather_of)(4, 4, call, planes, places + k, turn + o * stride, stride, pixels, to);
                continue;
            }
            for (size_t i = 0; i < 4 && i < entries; i++)
                for (size_t j = 0; j < 4 && j < outputs; j++)
                    N(gather_of)(1, 1, call, planes, places + k + i, turn + (o + j) * stride, stride, pixels,
                                 to + i * call->outputs + j);
        }
}

/* grad += what the planes' rows hold, and the same for the windows' sums `along`: the adjoint of unfold(). */
static void N(fold)(const rn_poincare_conv *call, size_t row, size_t rows, N(back_tile) *tile) {
    size_t area = call->height * call->width, in_rows = (rows - 1) * call->down + call->rows;
    for (size_t j = 0; j < call->columns; j++) {
        size_t from = j >= call->left ? 0 : (call->left - j + call->across - 1) / call->across;
        size_t end = call->width + call->left > j ? (call->width + call->left - j - 1) / call->across + 1 : 0;
        if (end > call->out_width) end = call->out_width;
        for (size_t m = 0; m < in_rows; m++) {
            size_t padded = row * call->down + m, y = padded - call->top, phase = m % call->down;
            if (padded < call->top || y >= call->height || phase >= tile->forward.phases) continue;
            size_t to = y * call->width + j - call->left; /* wraps before the row, and back with i across */
            for (size_t k = 0; k < call->channels; k++) {
                const R *of = tile->planes + ((k * tile->forward.phases + phase) * call->columns + j) * tile->forward.plane +
                              m / call->down * call->out_width;
                R *grad = tile->grad + k * area + to;
                if (call->across == 1)
                    for (size_t i = from; i < end; i++) grad[i] += of[i];
                else
                    for (size_t i = from; i < end; i++) grad[i * call->across] += of[i];
            }
            for (size_t i = 0; i < call->rows && i <= m; i++) {
                if ((m - i) % call->down || (m - i) / call->down >= rows) continue;
                const double *along = tile->along + (m - i) / call->down * call->out_width;
                for (size_t o = from; o < end; o++) tile->along_image[to + o * call->across] += along[o];
            }
        }
    }
}

/* From cotangents of v to those of the pixels, through v = sqrt(c) share log0(x); returns the sum of <dx, x>. */
static double N(pull_log)(const rn_poincare_conv *call, const T *x, const N(back_tile) *tile, T *dx) {
    size_t area = call->height * call->width;
    double c = call->curvature, unit = call->share * sqrt(c);
    vf64 total = {0};
    for (size_t p = 0; p < area; p += VF64) {
        size_t count = area - p;
        vf64 square, gap = PIXELS(gap_lanes)(x + p, call->channels, area, c, count, &square), product = {0}, bend;
        /* The cotangent of v is grad + along v, with v = unit scale x. */
        vf64 along = vf64_load(tile->along_image + p) * unit * log_back_lanes(square, gap, c, product, &bend);
        for (size_t k = 0; k < call->channels; k++) {
            vf64 a = PIXELS(load_pixels)(x + k * area + p, count);
            product = vf64_fma(vf64_fma(a, along, N(load_grad)(tile->grad + k * area + p, count)), a, product);
        }
        vf64 scale = log_back_lanes(square, gap, c, product, &bend);
        vf64 of_x = unit * (scale * along + bend), of_grad = unit * scale;
        for (size_t k = 0; k < call->channels; k++) {
            vf64 a = PIXELS(load_pixels)(x + k * area + p, count);
            vf64 result = vf64_fma(of_grad, N(load_grad)(tile->grad + k * area + p, count), of_x * a);
            PIXELS(store_pixels)(dx + k * area + p, count, result);
            total = vf64_fma(result, a, total);
        }
    }
    return vf64_sum(total);
}

/* sums: of patch * turn (depth, outputs), then of lengths and biases (outputs each), then <dx, x> and <dy, y>. */
static void N(back_image)(const rn_poincare_conv *call, const T *x, const R *weight, const R *slope, const R *offset,
                          const R *power, const R *cosh_bias, const size_t *places, size_t tile_rows, const T *dy, T *dx,
                          N(back_tile) *tile, double *sums) {
    size_t width = call->out_width, depth = call->channels * call->rows * call->columns, area = call->height * call->width;
    size_t planes = call->channels * tile->forward.phases * call->columns * tile->forward.plane;
    double *lengths = sums + depth * call->outputs, *biases = lengths + call->outputs, *products = biases + call->outputs;
    longest_patch longest = longest_of(call->margin);
    memset(tile->grad, 0, call->channels * area * sizeof *tile->grad);
    memset(tile->along_image, 0, (area + VF64) * sizeof(double));
    for (size_t row = 0; row < call->out_height; row += tile_rows) {
        size_t rows = call->out_height - row < tile_rows ? call->out_height - row : tile_rows, pixels = rows * width;
        size_t stride = pixels + 2 * LANES;
        N(prepare)(call, x, row, rows, &tile->forward);
        memset(tile->planes, 0, planes * sizeof *tile->planes);
        memset(tile->sums, 0, call->outputs * 2 * LANES * sizeof *tile->sums);
        for (size_t o = 0; o < call->outputs; o++)
            memset(tile->turn + o * stride + pixels, 0, 2 * LANES * sizeof *tile->turn);
        for (size_t q = 0; q < pixels; q += 2 * LANES) {
            N(all_products)(call, weight, places, depth, tile->forward.planes + q, tile->forward.inner);
            for (size_t v = 0; v < 2 * LANES && q + v < pixels; v += LANES)
                products[1] += N(pull)(call, tile, tile->forward.inner + v, slope, offset, power, cosh_bias, q + v, longest,
                                       dy + row * width + q + v, pixels - q - v, pixels);
            for (size_t k = 0; k < depth; k += OUTPUTS_AT_ONCE)
                N(spread)(depth - k < OUTPUTS_AT_ONCE ? (int)(depth - k) : OUTPUTS_AT_ONCE, call, weight + k * call->outputs,
                          places + k, tile->turn + q, stride, tile->planes + q);
        }
        N(gather)(call, tile->forward.planes, places, depth, tile->turn, stride, pixels, sums);
        N(fold)(call, row, rows, tile);
        for (size_t o = 0; o < call->outputs; o++) {
            lengths[o] += (double)VEC(sum)(VEC(load)(tile->sums + o * 2 * LANES));
            biases[o] += (double)VEC(sum)(VEC(load)(tile->sums + o * 2 * LANES + LANES));
        }
    }
    products[0] += N(pull_log)(call, x, tile, dx);
}

static int N(conv2d_back)(const rn_poincare_conv *call, const T *x, const R *weight, const R *slope, const R *offset,
                          const R *power, const R *cosh_bias, const T *dy, T *dx, double *sums) {
    size_t depth = call->channels * call->rows * call->columns, size = (depth + 2) * call->outputs + 2;
    size_t phases = call->rows < call->down ? call->rows : call->down, groups = call->images < 16 ? call->images : 16;
    size_t limit = TILE_BYTES / (call->channels * phases * call->columns * call->out_width * sizeof(R) + 1) + 1;
    size_t tiles = (call->out_height + limit - 1) / limit, tile_rows = (call->out_height + tiles - 1) / tiles;
    double pixels = (double)(call->images * call->out_height * call->out_width);
    int threads = rn_threads(groups, pixels * (double)call->outputs * (0.5 * (double)depth + 100.0) / (double)LANES), result = 0;
    N(back_tile) sizes;
    size_t bytes = N(carve_back)(&sizes, call, tile_rows, NULL);
    size_t *places = N(places_of)(call, &sizes.forward);
    double *parts = rn_block_alloc(groups * size * sizeof *parts);
    if (places == NULL || parts == NULL) {
        rn_block_free(parts);
        return RN_POINCARE_MEMORY;
    }
    memset(parts, 0, groups * size * sizeof *parts);
    RN_PARALLEL(threads) {
        RN_SHARE(groups, first, last);
        char *base = rn_scratch(1, bytes);
        if (base == NULL)
            __atomic_store_n(&result, RN_POINCARE_MEMORY, __ATOMIC_RELAXED);
        else {
            N(back_tile) tile;
            N(carve_back)(&tile, call, tile_rows, base);
            memset(tile.forward.line, 0, (call->width + 2 * call->left + call->columns) * sizeof(R));
            for (size_t group = first; group < last; group++) {
                size_t image, end;
                rn_range(call->images, groups, group, &image, &end);
                for (; image < end; image++)
                    N(back_image)(call, x + image * call->channels * call->height * call->width, weight, slope, offset, power,
                                  cosh_bias, places, tile_rows,
                                  dy + image * call->outputs * call->out_height * call->out_width,
                                  dx + image * call->channels * call->height * call->width, &tile, parts + group * size);
            }
        }
    }
    for (size_t i = 0; i < size; i++) {
        sums[i] = 0;
        for (size_t group = 0; group < groups; group++) sums[i] += parts[group * size + i];
    }
    rn_block_free(parts);
    return result;
}
#undef MASK
