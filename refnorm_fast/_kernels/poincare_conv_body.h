/* The convolution of one pair of types: T the images' entries, R the numbers computed with, V a vector of LANES of them.
 *
 * With v = sqrt(c) share log0(pixel) and s = |v| over a window, the joined patch is tanh(s)/s v and its gap sech(s)^2, so
 * the sinh of a signed distance is
 *     p_k = cosh(b_k) <v, unit_k> sinh(2s)/s - sinh(b_k) cosh(2s).
 * A tile of output rows is computed in four steps:
 *   1. every pixel's factor of its logarithm, and |v|^2;
 *   2. the pixels times their factors, unfolded along the rows: one plane a channel, place across and row of the stride,
 *      where the inputs of neighbouring outputs are neighbours, too;
 *   3. the windows' sums of |v|^2, and from them the two factors of p_k;
 *   4. for two vectors of outputs at a time, the products in registers, then everything that follows them. */

#if LANES == VF64
#define ANY(mask) vi64_any((vi64)(mask))
#else
#define ANY(mask) vi32_any((vi32)(mask))
#endif

RN_INLINE vf64 N(load_wide)(const R *from) {
#if LANES == VF64
    return vf64_load(from);
#else
    return vf64_from_half(vf32h_load(from));
#endif
}
RN_INLINE void N(store_points)(T *to, size_t count, V value) {
#if LANES != VF64
    if (count >= LANES)
        vf32_store(to, value);
    else
        vf32_store_part(to, count, value);
#elif SINGLE
    if (count >= LANES)
        vf32h_store(to, vf64_to_half(value));
    else
        for (size_t i = 0; i < count; i++) to[i] = (T)value[i];
#else
    if (count >= LANES)
        vf64_store(to, value);
    else
        vf64_store_part(to, count, value);
#endif
}
RN_INLINE void N(store_wide)(R *to, vf64 value) {
#if LANES == VF64
    vf64_store(to, value);
#else
    vf32h_store(to, vf64_to_half(value));
#endif
}

/* Scratch of one thread for tiles of up to `tile_rows` output rows. */
typedef struct {
    size_t phases, plane; /* rows of the stride that the window meets, entries of a plane */
    R *planes, *line, *factor, *inner, *of_inner, *of_offset;
    double *square, *across, *window, *radius;
} N(tile);

static size_t N(carve)(N(tile) *tile, const rn_poincare_conv *call, size_t tile_rows, char *base) {
    size_t in_rows = (tile_rows - 1) * call->down + call->rows;
    tile->phases = call->rows < call->down ? call->rows : call->down;
    tile->plane = (tile_rows + (call->rows - 1) / call->down) * call->out_width + 3 * LANES;
    size_t used = 0, in_pixels = in_rows * call->width, pixels = tile_rows * call->out_width;
#define CARVE(name, count)                                  \
    tile->name = (void *)(base + used);                     \
    used += ((count) * sizeof *tile->name + 63) & ~(size_t)63
    CARVE(planes, call->channels * tile->phases * call->columns * tile->plane);
    CARVE(line, call->width + 2 * call->left + call->columns + 2 * LANES);
    CARVE(factor, in_pixels + 2 * LANES);
    CARVE(inner, call->outputs * 2 * LANES);
    CARVE(of_inner, pixels + 2 * LANES);
    CARVE(of_offset, pixels + 2 * LANES);
    CARVE(window, pixels + VF64);
    CARVE(square, in_pixels + VF64);
    CARVE(across, in_rows * call->out_width);
    CARVE(radius, 2 * LANES);
#undef CARVE
    return used;
}

/* Step 1, for `count` pixels of an image from `x` on; returns whether one lies outside the ball. */
static int N(log_factors)(const rn_poincare_conv *call, const T *x, size_t count, N(tile) *tile) {
    double root = sqrt(call->curvature);
    int outside = 0;
    for (size_t p = 0; p < count; p += VF64) {
        vf64 square, gap = PIXELS(gap_lanes)(x + p, call->channels, call->height * call->width, call->curvature, count - p, &square);
        outside |= vi64_any((vi64)(gap <= 0.0));
        vf64 s = vf64_sqrt(call->curvature * square), reach = vf64_arsinh(s / vf64_sqrt(gap));
        vf64 factor = vf64_select((vi64)(s == 0.0), vf64_set(1.0), reach / s) * (call->share * root);
        reach *= call->share;
        vf64_store(tile->square + p, reach * reach);
        N(store_wide)(tile->factor + p, factor);
    }
    return outside;
}

/* line[left + j] = factor[j] x[j]; the margins of the line stay zero. */
RN_INLINE void N(scale_line)(const T *x, const R *factor, size_t width, R *line) {
    size_t j = 0;
    for (; j + LANES <= width; j += LANES)
#if LANES == VF64
        VEC(store)(line + j, PIXELS(load_pixels)(x + j, LANES) * VEC(load)(factor + j));
#else
        VEC(store)(line + j, VEC(load)(x + j) * VEC(load)(factor + j));
#endif
    for (; j < width; j++) line[j] = (R)x[j] * factor[j];
}

/* Entries line[i * across], in whole vectors: what follows the last one is overwritten later or never read. */
RN_INLINE void N(place)(const R *line, size_t across, size_t count, R *to) {
    if (across == 1)
        for (size_t i = 0; i < count; i += LANES) VEC(store)(to + i, VEC(load)(line + i));
    else
        for (size_t i = 0; i < count; i++) to[i] = line[i * across];
}

/* Step 2 for `rows` output rows from `row` on. */
static void N(unfold)(const rn_poincare_conv *call, const T *image, size_t row, size_t rows, size_t first_pixel,
                      N(tile) *tile) {
    size_t area = call->height * call->width, in_rows = (rows - 1) * call->down + call->rows;
    for (size_t k = 0; k < call->channels; k++)
        for (size_t phase = 0; phase < tile->phases; phase++) {
            R *to = tile->planes + (k * tile->phases + phase) * call->columns * tile->plane;
            for (size_t m = phase; m < in_rows; m += call->down, to += call->out_width) {
                size_t padded = row * call->down + m, y = padded - call->top;
                if (padded < call->top || y >= call->height) {
                    for (size_t j = 0; j < call->columns; j++) memset(to + j * tile->plane, 0, call->out_width * sizeof(R));
                    continue;
                }
                N(scale_line)(image + k * area + y * call->width, tile->factor + y * call->width - first_pixel, call->width,
                              tile->line + call->left);
                for (size_t j = 0; j < call->columns; j++)
                    N(place)(tile->line + j, call->across, call->out_width, to + j * tile->plane);
            }
        }
}

/* Sums of |v|^2 along one padded row: over the places of every window that lie within the image. */
static void N(sum_across)(const rn_poincare_conv *call, const double *square, double *sums) {
    for (size_t j = 0; j < call->columns; j++) {
        /* Outputs i with 0 <= i across + j - left < width. */
        size_t from = j >= call->left ? 0 : (call->left - j + call->across - 1) / call->across;
        size_t end = call->width + call->left > j ? (call->width + call->left - j - 1) / call->across + 1 : 0;
        if (end > call->out_width) end = call->out_width;
        const double *of = square + j - call->left; /* wraps before the row, and back with i across */
        if (call->across == 1)
            for (size_t i = from; i < end; i++) sums[i] += of[i];
        else
            for (size_t i = from; i < end; i++) sums[i] += of[i * call->across];
    }
}

/* Step 3: sums along the rows first, then down. */
static void N(stretches)(const rn_poincare_conv *call, size_t row, size_t rows, size_t first_pixel, N(tile) *tile) {
    size_t width = call->out_width, in_rows = (rows - 1) * call->down + call->rows;
    for (size_t m = 0; m < in_rows; m++) {
        size_t padded = row * call->down + m, y = padded - call->top;
        memset(tile->across + m * width, 0, width * sizeof(double));
        if (padded >= call->top && y < call->height)
            N(sum_across)(call, tile->square + y * call->width - first_pixel, tile->across + m * width);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < width; j++) {
            double sum = 0;
            for (size_t i = 0; i < call->rows; i++) sum += tile->across[(r * call->down + i) * width + j];
            tile->window[r * width + j] = sum;
        }
    longest_patch longest = longest_of(call->margin);
    for (size_t q = 0; q < rows * width; q += VF64) {
        vf64 of_inner, of_offset;
        stretch_lanes(vf64_load(tile->window + q), longest, &of_inner, &of_offset);
        N(store_wide)(tile->of_inner + q, of_inner);
        N(store_wide)(tile->of_offset + q, of_offset);
    }
}

/* Products of `outputs` columns of the weight with two vectors of patches, whose entry i lies at planes + places[i]. */
RN_INLINE void N(products_of)(const int outputs, const rn_poincare_conv *call, const R *weight, const size_t *places,
                              size_t depth, const R *planes, R *inner) {
    for (size_t k = 0; k < depth; k += CHAIN) {
        V sum[OUTPUTS_AT_ONCE][2];
        size_t end = depth - k < CHAIN ? depth : k + CHAIN;
#pragma GCC unroll 12
        for (int o = 0; o < outputs; o++) sum[o][0] = sum[o][1] = VEC(set)(0);
        for (size_t i = k; i < end; i++) {
            const R *of = weight + i * call->outputs;
            V left = VEC(load)(planes + places[i]), right = VEC(load)(planes + places[i] + LANES);
#pragma GCC unroll 12
            for (int o = 0; o < outputs; o++) {
                V each = VEC(set)(of[o]);
                sum[o][0] = VEC(fma)(each, left, sum[o][0]);
                sum[o][1] = VEC(fma)(each, right, sum[o][1]);
            }
        }
#pragma GCC unroll 12
        for (int o = 0; o < outputs; o++) {
            R *to = inner + (size_t)o * 2 * LANES;
            VEC(store)(to, k > 0 ? VEC(load)(to) + sum[o][0] : sum[o][0]);
            VEC(store)(to + LANES, k > 0 ? VEC(load)(to + LANES) + sum[o][1] : sum[o][1]);
        }
    }
}
#define PRODUCTS_CASE(n)                                                        \
    case n:                                                                     \
        N(products_of)(n, call, weight, places, depth, planes, inner);          \
        break;
static __attribute__((noinline)) void N(products)(int outputs, const rn_poincare_conv *call, const R *weight,
                                                  const size_t *places, size_t depth, const R *planes, R *inner) {
    switch (outputs) {
        PRODUCTS_CASE(1)
        PRODUCTS_CASE(2)
        PRODUCTS_CASE(3)
        PRODUCTS_CASE(4)
        PRODUCTS_CASE(5)
        PRODUCTS_CASE(6)
#if OUTPUTS_AT_ONCE == 12
        PRODUCTS_CASE(7)
        PRODUCTS_CASE(8)
        PRODUCTS_CASE(9)
        PRODUCTS_CASE(10)
        PRODUCTS_CASE(11)
        PRODUCTS_CASE(12)
#endif
    }
}
#undef PRODUCTS_CASE

/* The common factors of LANES points w, from |w|^2 and the shift of their sinh: of y = w/(sqrt(c)(1 + sqrt(1 + |w|^2))). */
RN_INLINE void N(common_factors)(const rn_poincare_conv *call, const double *square, const R *shift, R *factor,
                                 double *radius) {
    double root = sqrt(call->curvature), edge = 1 - call->margin;
    for (size_t i = 0; i < LANES; i += VF64) {
        vf64 sum = vf64_load(square + i), one = vf64_exp(-N(load_wide)(shift + i)), length = vf64_sqrt(sum);
        vf64 below = one + vf64_sqrt(one * one + sum), scale = 1.0 / (root * below), reach = length / below;
        if (call->margin >= 0) {
            vi64 beyond = (vi64)(reach > edge);
            scale = vf64_select(beyond, edge / (root * length), scale);
            reach = vf64_select(beyond, vf64_set(edge), reach);
        }
        N(store_wide)(factor + i, scale);
        vf64_store(radius + i, reach);
    }
}

/* From products to points, for one vector of outputs; `to` has a stride of `area` between channels. */
static void N(finish)(const rn_poincare_conv *call, R *inner, const R *slope, const R *offset, const R *power,
                      const R *of_inner, const R *of_offset, T *to, size_t area, size_t count, double *radius) {
    V stretch = VEC(load)(of_inner), lift = VEC(load)(of_offset), largest = VEC(set)(0);
    size_t outputs = call->outputs;
    /* First the arguments of sinh with their signs ... */
    for (size_t o = 0; o < outputs; o++) {
        V p = VEC(load)(inner + o * 2 * LANES) * VEC(set)(slope[o]) * stretch - VEC(set)(offset[o]) * lift;
        V t = VEC(set)(power[o]) * VEC(arsinh)(VEC(abs)(p));
        largest = VEC(max)(t, largest); /* skips NaN, which the sum of squares will carry */
        VEC(store)(inner + o * 2 * LANES, VEC(copysign)(t, p));
    }
    V shift = VEC(max)(largest - SINH_REACH, VEC(set)(0)), one = VEC(set)(1), one_square = one;
    if (ANY(shift > 0)) {
        one = VEC(exp)(-shift);
        one_square = VEC(exp)(-2 * shift);
    }
    /* ... then sinh and the sums of its squares ... */
    int all_short = !ANY(largest >= 1);
    vf64 low_sum = {0}, high_sum = {0};
    for (size_t o = 0; o < outputs; o++) {
        V t = VEC(load)(inner + o * 2 * LANES), size = VEC(abs)(t);
        V w = all_short ? VEC(short_sinh)(size) : VEC(scaled_sinh)(size, shift, one, one_square);
        VEC(store)(inner + o * 2 * LANES, VEC(copysign)(w, t));
#if LANES == VF64
        low_sum = vf64_fma(w, w, low_sum);
#else
        vf64 low = vf64_low(w), high = vf64_high(w);
        low_sum = vf64_fma(low, low, low_sum);
        high_sum = vf64_fma(high, high, high_sum);
#endif
    }
    /* ... then the common factor. */
    double square[2 * VF64];
    R shifts[LANES], factor[LANES];
    vf64_store(square, low_sum);
    vf64_store(square + VF64, high_sum);
    VEC(store)(shifts, shift);
    N(common_factors)(call, square, shifts, factor, radius);
    V scale = VEC(load)(factor);
    for (size_t o = 0; o < outputs; o++, to += area) N(store_points)(to, count, VEC(load)(inner + o * 2 * LANES) * scale);
}

/* All four steps for `rows` output rows from `row` on. */
static int N(conv_tile)(const rn_poincare_conv *call, const T *image, const R *weight, const R *slope, const R *offset,
                        const R *power, const size_t *places, size_t row, size_t rows, T *out, N(tile) *tile) {
    size_t width = call->out_width, area = call->out_height * width, pixels = rows * width;
    size_t depth = call->channels * call->rows * call->columns, groups = (call->outputs + OUTPUTS_AT_ONCE - 1) / OUTPUTS_AT_ONCE;
    size_t top = row * call->down, bottom = top + (rows - 1) * call->down + call->rows;
    size_t first = top > call->top ? top - call->top : 0, end = bottom > call->top ? bottom - call->top : 0;
    if (end > call->height) end = call->height;
    int outside = 0;
    if (first < end)
        outside = N(log_factors)(call, image + first * call->width, (end - first) * call->width, tile);
    N(unfold)(call, image, row, rows, first * call->width, tile);
    N(stretches)(call, row, rows, first * call->width, tile);
    for (size_t q = 0; q < pixels; q += 2 * LANES) {
        size_t count = pixels - q;
        for (size_t group = 0; group < groups; group++) {
            size_t from, to;
            rn_range(call->outputs, groups, group, &from, &to);
            N(products)((int)(to - from), call, weight + from, places, depth, tile->planes + q, tile->inner + from * 2 * LANES);
        }
        T *target = out + row * width + q;
        for (size_t v = 0; v < 2 * LANES && v < count; v += LANES)
            N(finish)(call, tile->inner + v, slope, offset, power, tile->of_inner + q + v, tile->of_offset + q + v, target + v,
                      area, count - v, tile->radius + v);
        for (size_t i = 0; i < 2 * LANES && i < count; i++)
            if (tile->radius[i] >= (SINGLE ? 1 - 1e-5 : 1 - 1e-10)) PIXELS(inward)(target + i, call->outputs, area, call->curvature);
    }
    return outside;
}

static int N(conv2d)(const rn_poincare_conv *call, const T *x, const R *weight, const R *slope, const R *offset,
                     const R *power, T *out) {
    size_t depth = call->channels * call->rows * call->columns, area = call->out_height * call->out_width;
    size_t phases = call->rows < call->down ? call->rows : call->down;
    /* A tile's rows by the size of its unfolded input, but enough tiles for all threads. */
    size_t limit = TILE_BYTES / (call->channels * phases * call->columns * call->out_width * sizeof(R) + 1) + 1;
    double cost = (double)(call->images * area) * (double)call->outputs * (0.17 * (double)depth + 50.0) / (double)LANES;
    int threads = rn_threads(call->images * call->out_height, cost);
    size_t tiles = (call->out_height + limit - 1) / limit, wanted = (size_t)threads * 4 / call->images;
    if (threads > 1 && tiles < wanted) tiles = wanted < call->out_height ? wanted : call->out_height;
    size_t tile_rows = (call->out_height + tiles - 1) / tiles;
    tiles = (call->out_height + tile_rows - 1) / tile_rows;

    N(tile) sizes;
    size_t bytes = N(carve)(&sizes, call, tile_rows, NULL);
    size_t *places = rn_scratch(2, depth * sizeof *places);
    if (places == NULL) return RN_POINCARE_MEMORY;
    for (size_t i = 0; i < depth; i++) {
        size_t k = i / (call->rows * call->columns), a = i / call->columns % call->rows, b = i % call->columns;
        places[i] = ((k * phases + a % call->down) * call->columns + b) * sizes.plane + a / call->down * call->out_width;
    }
    int result = 0;
    rn_shares shares = rn_share_out(call->images * tiles, 1, threads);
    RN_PARALLEL(threads) {
        char *base = rn_scratch(1, bytes);
        int mine = base == NULL ? RN_POINCARE_MEMORY : 0;
        if (base != NULL) {
            N(tile) tile;
            N(carve)(&tile, call, tile_rows, base);
            memset(tile.line, 0, (call->width + 2 * call->left + call->columns) * sizeof(R));
            for (size_t count, item; item = rn_take(&shares, 1, &count), count > 0;) {
                size_t image = item / tiles, row = item % tiles * tile_rows;
                size_t rows = call->out_height - row < tile_rows ? call->out_height - row : tile_rows;
                mine |= N(conv_tile)(call, x + image * call->channels * call->height * call->width, weight, slope, offset,
                                     power, places, row, rows, out + image * call->outputs * area, &tile);
            }
        }
        if (mine) __atomic_fetch_or(&result, mine, __ATOMIC_RELAXED);
    }
    return result;
}

#undef T
#undef R
#undef N
#undef PIXELS
#undef VEC
#undef V
#undef LANES
#undef SINH_REACH
#undef SINGLE
#undef ANY
