/* Pixels of one dtype: T the entries, N(name) the names, SINGLE whether T is float. Arithmetic is in float64, VF64
 * neighbouring pixels at a time; entries of a pixel lie `stride` apart. Included twice by poincare_image.c. */

/* VF64 pixels, or the first `count`, zeros in the other lanes. */
RN_INLINE vf64 N(load_pixels)(const T *from, size_t count) {
    if (count >= VF64)
#if SINGLE
        return vf64_from_half(vf32h_load(from));
#else
        return vf64_load(from);
#endif
    vf64 lanes = {0};
    for (size_t i = 0; i < count; i++) lanes[i] = (double)from[i];
    return lanes;
}
RN_INLINE void N(store_pixels)(T *to, size_t count, vf64 value) {
    if (count >= VF64)
#if SINGLE
        vf32h_store(to, vf64_to_half(value));
#else
        vf64_store(to, value);
#endif
    else
        for (size_t i = 0; i < count; i++) to[i] = (T)value[i];
}

/* 1 - c |x|^2 of one pixel by the row kernels' exact sums. */
static __attribute__((noinline)) double N(exact_gap)(const T *pixel, size_t channels, size_t stride, double curvature) {
    double gap;
    T *point = rn_scratch(3, channels * sizeof *point);
    if (point == NULL) return NAN;
    for (size_t k = 0; k < channels; k++) point[k] = pixel[k * stride];
    rn_poincare()->N(gaps)(point, channels, &gap, 1, channels, curvature);
    return gap;
}

/* 1 - c|x|^2 and |x|^2 of VF64 pixels (or of the first `count`). */
RN_INLINE vf64 N(gap_lanes)(const T *x, size_t channels, size_t stride, double curvature, size_t count, vf64 *square) {
    vf64 high = {0}, gap;
#if SINGLE
    for (size_t k = 0; k < channels; k++) {
        vf64 a = N(load_pixels)(x + k * stride, count);
        high = vf64_fma(a, a, high);
    }
    gap = 1.0 - curvature * high;
    vi64 near = (vi64)(gap <= (double)(channels + 8) * 0x1p-20);
#else
    vf64 low = {0}, error, more;
    for (size_t k = 0; k < channels; k++) {
        vf64 a = N(load_pixels)(x + k * stride, count), product = two_product_lanes(a, a, &error);
        high = two_sum_lanes(high, product, &more);
        low += error + more;
    }
    vf64 scaled = two_product_lanes(high, vf64_set(curvature), &error);
    gap = two_sum_lanes(vf64_set(1.0), -scaled, &more);
    gap += more - (error + curvature * low);
    vi64 near = (vi64)(gap < (double)(channels + 4) * EXACT_GAP);
#endif
    *square = high;
    if (vi64_any(near))
        for (size_t i = 0; i < VF64 && i < count; i++)
            if (near[i]) gap[i] = N(exact_gap)(x + i, channels, stride, curvature);
    return gap;
}

/* Rounds one pixel towards the interior until it lies inside. */
static __attribute__((noinline)) void N(inward)(T *pixel, size_t channels, size_t stride, double curvature) {
    T *point = rn_scratch(3, channels * sizeof *point);
    if (point == NULL) return;
    for (size_t k = 0; k < channels; k++) point[k] = pixel[k * stride];
    rn_poincare()->N(unary)(RN_PROJECT, point, channels, point, NULL, 1, channels, curvature, -1.0);
    for (size_t k = 0; k < channels; k++) pixel[k * stride] = point[k];
}
/* A gap from which rounding to T cannot lead onto the boundary. */
#define SAFE_GAP(length) ((double)((length) + 8) * (SINGLE ? 0x1p-20 : 0x1p-46))

RN_INLINE vf64 N(square_distance)(const T *x, size_t channels, size_t stride, size_t count, const double *from) {
    vf64 sum = {0};
    for (size_t k = 0; k < channels; k++) {
        vf64 w = N(load_pixels)(x + k * stride, count) - from[k];
        sum = vf64_fma(w, w, sum);
    }
    return sum;
}

/* ---- ReLU and the residual sum -------------------------------------------------------------------------------------- */

/* exp0(max(log0(x), 0)): tanh(|x+|/|x| artanh(sqrt(c)|x|))/sqrt(c) in the direction of x+. */
RN_INLINE int N(relu_lanes)(const rn_poincare_pixels *pixels, const T *x, double margin, size_t count, T *y) {
    double c = pixels->curvature, root = sqrt(c);
    size_t stride = pixels->area, channels = pixels->channels;
    vf64 square, positive = {0}, decay, gap_x = N(gap_lanes)(x, channels, stride, c, count, &square);
    for (size_t k = 0; k < channels; k++) {
        vf64 part = vf64_max(vf64_set(0.0), N(load_pixels)(x + k * stride, count)); /* NaN passes: it is the second */
        positive = vf64_fma(part, part, positive);
    }
    vf64 s = vf64_sqrt(c * square), length = vf64_sqrt(positive);
    vf64 reach = vf64_tanh(root * length / s * vf64_arsinh(s / vf64_sqrt(gap_x)), &decay);
    vf64 gap_y = 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
    if (margin >= 0) {
        vi64 beyond = (vi64)(reach > 1 - margin);
        reach = vf64_select(beyond, vf64_set(1 - margin), reach);
        gap_y = vf64_select(beyond, vf64_set(margin), gap_y);
    }
    /* Where the square underflows the map is the identity on x+. */
    vf64 scale = vf64_select((vi64)(length == 0.0), vf64_set(1.0), reach / (root * length));
    for (size_t k = 0; k < channels; k++) {
        vf64 part = vf64_max(vf64_set(0.0), N(load_pixels)(x + k * stride, count));
        N(store_pixels)(y + k * stride, count, part * scale);
    }
    vi64 near = (vi64)(gap_y <= SAFE_GAP(channels));
    if (vi64_any(near))
        for (size_t i = 0; i < VF64 && i < count; i++)
            if (near[i]) N(inward)(y + i, channels, stride, c);
    return vi64_any((vi64)(gap_x <= 0.0));
}

/* x (+) y = (gap_x w + S x)/D with w = x + y, S = c|w|^2, D = gap_x gap_y + S. */
RN_INLINE int N(add_lanes)(const rn_poincare_pixels *pixels, const T *x, const T *y, size_t count, T *z) {
    double c = pixels->curvature;
    size_t stride = pixels->area, channels = pixels->channels;
    vf64 square, gap_x = N(gap_lanes)(x, channels, stride, c, count, &square);
    vf64 gap_y = N(gap_lanes)(y, channels, stride, c, count, &square);
    square = (vf64){0};
    for (size_t k = 0; k < channels; k++) {
        vf64 w = N(load_pixels)(x + k * stride, count) + N(load_pixels)(y + k * stride, count);
        square = vf64_fma(w, w, square);
    }
    vf64 both = gap_x * gap_y, denominator = both + c * square;
    vf64 of_sum = gap_x / denominator, of_x = c * square / denominator;
    for (size_t k = 0; k < channels; k++) {
        vf64 a = N(load_pixels)(x + k * stride, count), b = N(load_pixels)(y + k * stride, count);
        N(store_pixels)(z + k * stride, count, vf64_fma(a + b, of_sum, a * of_x));
    }
    vi64 near = (vi64)(both / denominator <= SAFE_GAP(channels));
    if (vi64_any(near))
        for (size_t i = 0; i < VF64 && i < count; i++)
            if (near[i]) N(inward)(z + i, channels, stride, c);
    return vi64_any((vi64)(gap_x <= 0.0) | (vi64)(gap_y <= 0.0));
}

/* relu of x, or x (+) y where y is given. */
static int N(point_wise)(const rn_poincare_pixels *pixels, const T *x, const T *y, double margin, T *z) {
    size_t area = pixels->area, blocks = (area + BLOCK_PIXELS - 1) / BLOCK_PIXELS;
    int outside = 0;
    int threads = rn_threads(pixels->images * blocks, (double)(pixels->images * area) * (5.0 + 0.4 * (double)pixels->channels));
    RN_PARALLEL(threads) {
        RN_SHARE(pixels->images * blocks, first, last);
        int mine = 0;
        for (size_t i = first; i < last; i++) {
            size_t from = i % blocks * BLOCK_PIXELS, end = area - from < BLOCK_PIXELS ? area : from + BLOCK_PIXELS;
            size_t base = i / blocks * pixels->channels * area;
            for (size_t at = base + from; at < base + end; at += VF64) {
                size_t count = base + end - at;
                mine |= y ? N(add_lanes)(pixels, x + at, y + at, count, z + at)
                          : N(relu_lanes)(pixels, x + at, margin, count, z + at);
            }
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside ? RN_POINCARE_OUTSIDE : 0;
}

/* ---- average pooling ----------------------------------------------------------------------------------------------- */

/* Sums of sqrt(c) log0 over the windows of one channel; `line` holds a row of the image. */
static void N(pool_channel)(const rn_poincare_conv *call, const T *x, const double *factor, double *line, double *sums) {
    for (size_t r = 0; r < call->out_height; r++, sums += call->out_width) {
        memset(sums, 0, call->out_width * sizeof *sums);
        for (size_t i = 0; i < call->rows; i++) {
            size_t from = (r * call->down + i) * call->width;
            for (size_t j = 0; j < call->width; j++) line[j] = (double)x[from + j] * factor[from + j];
            for (size_t o = 0; o < call->out_width; o++) {
                double sum = 0;
                for (size_t j = 0; j < call->columns; j++) sum += line[o * call->across + j];
                sums[o] += sum;
            }
        }
    }
}

/* exp0 of the windows' means, from their sums over `channels` planes of `area` entries. */
static void N(pool_points)(const rn_poincare_conv *call, const double *sums, T *y) {
    size_t area = call->out_height * call->out_width;
    double root = sqrt(call->curvature), share = 1.0 / (double)(call->rows * call->columns);
    for (size_t p = 0; p < area; p += VF64) {
        size_t count = area - p;
        vf64 square = {0}, decay;
        for (size_t k = 0; k < call->channels; k++) {
            vf64 v = vf64_load(sums + k * area + p) * share;
            square = vf64_fma(v, v, square);
        }
        vf64 s = vf64_sqrt(square), reach = vf64_tanh(s, &decay), gap = 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
        if (call->margin >= 0) {
            vi64 beyond = (vi64)(reach > 1 - call->margin);
            reach = vf64_select(beyond, vf64_set(1 - call->margin), reach);
            gap = vf64_select(beyond, vf64_set(call->margin), gap);
        }
        vf64 scale = vf64_select((vi64)(s == 0.0), vf64_set(1.0), reach / s) * (share / root);
        for (size_t k = 0; k < call->channels; k++)
            N(store_pixels)(y + k * area + p, count, vf64_load(sums + k * area + p) * scale);
        vi64 near = (vi64)(gap <= SAFE_GAP(call->channels));
        if (vi64_any(near))
            for (size_t i = 0; i < VF64 && i < count; i++)
                if (near[i]) N(inward)(y + p + i, call->channels, area, call->curvature);
    }
}

/* Factors of the pixels' logarithms and the windows' sums of sqrt(c) log0; returns whether a pixel lies outside. */
static int N(pool_sums)(const rn_poincare_conv *call, const T *x, double *factor, double *line, double *sums) {
    size_t area = call->height * call->width, out_area = call->out_height * call->out_width;
    double root = sqrt(call->curvature);
    int outside = 0;
    for (size_t p = 0; p < area; p += VF64) {
        vf64 square, gap = N(gap_lanes)(x + p, call->channels, area, call->curvature, area - p, &square);
        vf64 s = vf64_sqrt(call->curvature * square), reach = vf64_arsinh(s / vf64_sqrt(gap));
        vf64_store(factor + p, vf64_select((vi64)(s == 0.0), vf64_set(1.0), reach / s) * root);
        outside |= vi64_any((vi64)(gap <= 0.0));
    }
    for (size_t k = 0; k < call->channels; k++) N(pool_channel)(call, x + k * area, factor, line, sums + k * out_area);
    return outside;
}

static int N(pool_image)(const rn_poincare_conv *call, const T *x, double *factor, T *y) {
    double *line = factor + call->height * call->width + VF64, *sums = line + call->width;
    int outside = N(pool_sums)(call, x, factor, line, sums);
    N(pool_points)(call, sums, y);
    return outside;
}

/* Cotangents of the windows' sums in place of the sums; returns <dy, y>. */
static double N(pool_points_back)(const rn_poincare_conv *call, const T *dy, double *sums) {
    size_t area = call->out_height * call->out_width, channels = call->channels;
    double root = sqrt(call->curvature), share = 1.0 / (double)(call->rows * call->columns), edge = 1 - call->margin;
    vf64 total = {0};
    for (size_t p = 0; p < area; p += VF64) {
        size_t count = area - p;
        vf64 square = {0}, product = {0}, decay;
        for (size_t k = 0; k < channels; k++) {
            vf64 v = load_sums(sums + k * area + p, count) * share;
            square = vf64_fma(v, v, square);
            product = vf64_fma(v, N(load_pixels)(dy + k * area + p, count), product);
        }
        /* y = tanh(s)/s v/sqrt(c): across v that is the derivative, along it sech^2, and nothing where it is projected. */
        vf64 s = vf64_sqrt(square), reach = vf64_tanh(s, &decay), along = 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
        if (call->margin >= 0) {
            vi64 beyond = (vi64)(reach > edge);
            reach = vf64_select(beyond, vf64_set(edge), reach);
            along = vf64_select(beyond, vf64_set(0.0), along);
        }
        vi64 zero = (vi64)(s == 0.0);
        vf64 across = vf64_select(zero, vf64_set(1.0), reach / s);
        vf64 turn = vf64_select(zero, vf64_set(0.0), (along - across) / square * product);
        total += across * product / root;
        for (size_t k = 0; k < channels; k++) {
            vf64 v = load_sums(sums + k * area + p, count) * share, g = N(load_pixels)(dy + k * area + p, count);
            store_sums(sums + k * area + p, count, (across * g + turn * v) * (share / root));
        }
    }
    return vf64_sum(total);
}

/* grad += every window's cotangent at its pixels, for one channel. */
static void N(unpool_channel)(const rn_poincare_conv *call, const double *sums, double *grad) {
    for (size_t r = 0; r < call->out_height; r++)
        for (size_t i = 0; i < call->rows; i++) {
            double *to = grad + (r * call->down + i) * call->width;
            for (size_t o = 0; o < call->out_width; o++)
                for (size_t j = 0; j < call->columns; j++) to[o * call->across + j] += sums[r * call->out_width + o];
        }
}

/* sums: <dx, x> and <dy, y>. */
static void N(pool_image_back)(const rn_poincare_conv *call, const T *x, const T *dy, double *factor, T *dx, double *results) {
    size_t area = call->height * call->width, out_area = call->out_height * call->out_width;
    double root = sqrt(call->curvature), *line = factor + area + VF64, *sums = line + call->width;
    double *grad = sums + call->channels * out_area;
    N(pool_sums)(call, x, factor, line, sums);
    results[1] += N(pool_points_back)(call, dy, sums);
    memset(grad, 0, call->channels * area * sizeof *grad);
    for (size_t k = 0; k < call->channels; k++) N(unpool_channel)(call, sums + k * out_area, grad + k * area);
    vf64 total = {0};
    for (size_t p = 0; p < area; p += VF64) {
        size_t count = area - p;
        vf64 square, gap = N(gap_lanes)(x + p, call->channels, area, call->curvature, count, &square), product = {0}, of_x;
        for (size_t k = 0; k < call->channels; k++)
            product = vf64_fma(N(load_pixels)(x + k * area + p, count), load_sums(grad + k * area + p, count), product);
        vf64 of_grad = log_back_lanes(square, gap, call->curvature, product, &of_x);
        for (size_t k = 0; k < call->channels; k++) {
            vf64 a = N(load_pixels)(x + k * area + p, count);
            vf64 result = root * (of_grad * load_sums(grad + k * area + p, count) + of_x * a);
            N(store_pixels)(dx + k * area + p, count, result);
            total = vf64_fma(result, a, total);
        }
    }
    results[0] += vf64_sum(total);
}

/* results: <dx, x> and <dy, y> of every image. */
static int N(avg_pool2d_back)(const rn_poincare_conv *call, const T *x, const T *dy, T *dx, double *results) {
    size_t area = call->height * call->width, out_area = call->out_height * call->out_width;
    size_t bytes = (area + call->width + call->channels * (area + out_area) + 2 * VF64) * sizeof(double);
    double work = (double)(2 * area + out_area * call->rows * call->columns) * (double)call->channels;
    int threads = rn_threads(call->images, 2 * (double)call->images * work), failed = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(call->images, first, last);
        double *room = rn_scratch(1, bytes);
        if (room == NULL) __atomic_store_n(&failed, RN_POINCARE_MEMORY, __ATOMIC_RELAXED);
        for (size_t i = first; i < last && room != NULL; i++)
            N(pool_image_back)(call, x + i * call->channels * area, dy + i * call->channels * out_area, room,
                               dx + i * call->channels * area, results + 2 * i);
    }
    return failed;
}

static int N(avg_pool2d)(const rn_poincare_conv *call, const T *x, T *y) {
    size_t area = call->height * call->width, out_area = call->out_height * call->out_width;
    size_t bytes = (area + call->width + call->channels * out_area + 2 * VF64) * sizeof(double);
    double work = (double)(area + out_area * call->rows * call->columns) * (double)call->channels;
    int threads = rn_threads(call->images, (double)call->images * work), result = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(call->images, first, last);
        double *room = rn_scratch(1, bytes);
        int mine = room == NULL ? RN_POINCARE_MEMORY : 0;
        for (size_t i = first; i < last && room != NULL; i++)
            mine |= N(pool_image)(call, x + i * call->channels * area, room, y + i * call->channels * out_area);
        if (mine) __atomic_fetch_or(&result, mine, __ATOMIC_RELAXED);
    }
    return result;
}
