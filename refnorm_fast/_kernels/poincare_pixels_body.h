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
        vf64 a = N(load_pixels)(x + k * stride, count), product = product_lanes(a, a, &error);
        high = sum_lanes(high, product, &more);
        low += error + more;
    }
    vf64 scaled = product_lanes(high, vf64_set(curvature), &error);
    gap = sum_lanes(vf64_set(1.0), -scaled, &more);
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

/* ---- midpoint ------------------------------------------------------------------------------------------------------ */

/* A block of up to BLOCK_PIXELS pixels of one image: its entries, and its masses w/gap with the weights' signs, padded with
 * zeros to whole vectors. */
typedef struct {
    const T *x, *weights;
    double *mass;
    size_t count;
} N(block);

typedef struct {
    const rn_poincare_pixels *pixels;
    const T *x, *weights;
    double *mass;
    size_t each, blocks; /* blocks of an image and of all */
} N(point_set);

static N(block) N(block_at)(const N(point_set) *set, size_t index) {
    size_t image = index / set->each, first = index % set->each * BLOCK_PIXELS, area = set->pixels->area;
    size_t padded = (area + VF64 - 1) / VF64 * VF64;
    return (N(block)){set->x + image * set->pixels->channels * area + first,
                      set->weights ? set->weights + image * area + first : NULL, set->mass + image * padded + first,
                      area - first < BLOCK_PIXELS ? area - first : BLOCK_PIXELS};
}

/* Masses of a block, the sums of them and of the weights, and the largest; returns whether a point lies outside. */
static int N(weigh)(const N(point_set) *set, N(block) block, double *sums) {
    const rn_poincare_pixels *pixels = set->pixels;
    vf64 total = {0}, weights = {0}, largest = {0}, square;
    int outside = 0;
    for (size_t p = 0; p < block.count; p += VF64) {
        size_t count = block.count - p;
        vf64 gap = N(gap_lanes)(block.x + p, pixels->channels, pixels->area, pixels->curvature, count, &square);
        vf64 weight = vf64_set(1.0);
        if (block.weights)
            weight = N(load_pixels)(block.weights + p, count);
        else
            for (size_t i = count; i < VF64; i++) weight[i] = 0;
        vf64 mass = weight / gap, size = vf64_abs(mass);
        vf64_store(block.mass + p, mass);
        outside |= vi64_any((vi64)(gap <= 0.0));
        total += size;
        weights += vf64_abs(weight);
        largest = vf64_max(size, largest);
    }
    sums[0] = vf64_sum(total);
    sums[1] = vf64_sum(weights);
    sums[2] = vf64_largest(largest);
    return outside;
}

/* Sums of mass (point - reference), a channel each. A negative weight is a positive one at the opposite point. */
static void N(drift)(const N(point_set) *set, N(block) block, const double *reference, double *sums) {
    for (size_t k = 0; k < set->pixels->channels; k++) {
        const T *x = block.x + k * set->pixels->area;
        vf64 from = vf64_set(reference[k]), sum = {0};
        for (size_t p = 0; p < block.count; p += VF64) {
            vf64 mass = vf64_load(block.mass + p), at = N(load_pixels)(x + p, block.count - p);
            if (block.weights) at = vf64_select((vi64)(mass < 0.0), -at, at);
            sum = vf64_fma(vf64_abs(mass), at - from, sum);
        }
        sums[k] = vf64_sum(sum);
    }
}

/* The sum of mass |point - mean|^2 with mean = reference + drift: differences from the reference are exact where points
 * differ in their last digits only, and the sum of reference and drift need not be rounded. */
static double N(scatter)(const N(point_set) *set, N(block) block, const double *reference, const double *drift) {
    size_t stride = set->pixels->area;
    vf64 sum = {0};
    for (size_t p = 0; p < block.count; p += VF64) {
        vf64 mass = vf64_load(block.mass + p), sign = vf64_copysign(vf64_set(1.0), mass), distance = {0};
        for (size_t k = 0; k < set->pixels->channels; k++) {
            vf64 at = N(load_pixels)(block.x + p + k * stride, block.count - p) * sign;
            vf64 offset = (at - reference[k]) - drift[k];
            distance = vf64_fma(offset, offset, distance);
        }
        sum = vf64_fma(vf64_abs(mass), distance, sum);
    }
    return vf64_sum(sum);
}

/* The sum of the squares of half the distances to a point, sqrt(c) times; masses are 1/gap. */
static double N(half_distances)(const N(point_set) *set, N(block) block, const double *middle, double gap) {
    const rn_poincare_pixels *pixels = set->pixels;
    vf64 sum = {0};
    for (size_t p = 0; p < block.count; p += VF64) {
        vf64 square = N(square_distance)(block.x + p, pixels->channels, pixels->area, block.count - p, middle);
        vf64 half = vf64_arsinh(vf64_sqrt(square * vf64_load(block.mass + p) * (pixels->curvature / gap)));
        sum = vf64_fma(half, half, sum);
    }
    return vf64_sum(sum);
}

/* The point of the largest mass, with the sign of its weight. */
static void N(heaviest)(const N(point_set) *set, const double *sums, double *point) {
    size_t best = 0, at = 0;
    for (size_t i = 1; i < set->blocks; i++)
        if (sums[3 * i + 2] > sums[3 * best + 2]) best = i;
    N(block) block = N(block_at)(set, best);
    while (at + 1 < block.count && fabs(block.mass[at]) != sums[3 * best + 2]) at++;
    for (size_t k = 0; k < set->pixels->channels; k++)
        point[k] = block.mass[at] < 0 ? -(double)block.x[k * set->pixels->area + at] : (double)block.x[k * set->pixels->area + at];
}

/* In the reference's terms: masses a_i, W, S, mean and V, then 2S/E mean with E = 2S - W + sqrt(W^2 + 4cSV). */
static int N(midpoint)(const rn_poincare_pixels *pixels, const T *x, const T *weights, int variance,
                       rn_poincare_midpoint *result) {
    size_t channels = pixels->channels, each = (pixels->area + BLOCK_PIXELS - 1) / BLOCK_PIXELS, blocks = each * pixels->images;
    size_t padded = (pixels->area + VF64 - 1) / VF64 * VF64, width = channels > 3 ? channels : 3;
    size_t bytes = (pixels->images * padded + blocks * width + channels) * sizeof(double);
    double *mass = bytes <= KEPT_BYTES ? rn_scratch(1, bytes) : rn_block_alloc(bytes);
    if (mass == NULL) return RN_POINCARE_MEMORY;
    double *sums = mass + pixels->images * padded, *drift = sums + blocks * width, *middle = result->middle;
    N(point_set) set = {pixels, x, weights, mass, each, blocks};
    int threads = rn_threads(blocks, (double)(pixels->images * pixels->area) * (3.0 + 0.5 * (double)channels)), outside = 0;
#define EACH_BLOCK(...)                                                      \
    RN_PARALLEL(threads) {                                                   \
        RN_SHARE(blocks, first, last);                                       \
        for (size_t i = first; i < last; i++) {                              \
            N(block) block = N(block_at)(&set, i);                           \
            __VA_ARGS__                                                      \
        }                                                                    \
    }
    EACH_BLOCK(if (N(weigh)(&set, block, sums + 3 * i)) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);)
    double total = 0, sum_weights = 0, distances = 0, scatter = 0;
    for (size_t i = 0; i < blocks; i++) {
        total += sums[3 * i];
        sum_weights += sums[3 * i + 1];
    }
    N(heaviest)(&set, sums, middle);
    EACH_BLOCK(N(drift)(&set, block, middle, sums + i * channels);)
    for (size_t k = 0; k < channels; k++) {
        double sum = 0;
        for (size_t i = 0; i < blocks; i++) sum += sums[i * channels + k];
        drift[k] = sum / total;
    }
    EACH_BLOCK(sums[i] = N(scatter)(&set, block, middle, drift);)
    for (size_t i = 0; i < blocks; i++) scatter += sums[i];
    double root = sqrt(sum_weights * sum_weights + 4 * pixels->curvature * total * scatter);
    double denominator = 2 * total - sum_weights + root;
    for (size_t k = 0; k < channels; k++) middle[k] = 2 * total / denominator * (middle[k] + drift[k]);
    result->gap = 2 * root / denominator;
    if (variance) {
        EACH_BLOCK(sums[i] = N(half_distances)(&set, block, middle, result->gap);)
        for (size_t i = 0; i < blocks; i++) distances += sums[i];
        result->variance = 4 / pixels->curvature * distances / (double)(pixels->images * pixels->area);
    }
#undef EACH_BLOCK
    if (bytes > KEPT_BYTES) rn_block_free(mass);
    return outside ? RN_POINCARE_OUTSIDE : 0;
}

/* ---- batch normalization -------------------------------------------------------------------------------------------- */

/* What is the same for all pixels; vectors are arrays of `channels` entries. */
typedef struct {
    const double *middle, *centre, *way; /* m, b and b - m */
    double middle_square, middle_centre, middle_way, centre_square, spread, denominator;
} N(rails);

static N(rails) N(rails_of)(const rn_poincare_pixels *pixels, const rn_poincare_normalization *to, double *way) {
    N(rails) rails = {.middle = to->middle, .centre = to->centre, .way = way};
    double square = 0;
    for (size_t k = 0; k < pixels->channels; k++) {
        double m = to->middle[k], b = to->centre[k];
        way[k] = b - m;
        rails.middle_square += m * m;
        rails.middle_centre += m * b;
        rails.middle_way += m * way[k];
        rails.centre_square += b * b;
        square += way[k] * way[k];
    }
    rails.spread = pixels->curvature * square;
    rails.denominator = to->middle_gap * to->centre_gap + rails.spread;
    return rails;
}

/* Normalizes VF64 pixels. The logarithm of x at m, its transport to b and the exponential map at b stay in the span of
 * w = x - m, m and b, so y = of_way w + of_middle m + of_centre b: three inner products, then one combination.
 *
 *     e = (gap_m w/|w| - c|w| m)/sqrt(D)        unit vector at m,  D = gap_m gap_x + c|w|^2
 *     f = gyr[b, -m] e                          unit vector at b
 *     y = b (+) tanh(t)/sqrt(c) f               t = scale arsinh(sqrt(c)|w|/sqrt(gap_m gap_x)) */
RN_INLINE int N(normalize_lanes)(const rn_poincare_pixels *pixels, const N(rails) *rails, const rn_poincare_normalization *to,
                                 const T *x, size_t count, T *y) {
    double c = pixels->curvature, root = sqrt(c), gap_m = to->middle_gap, gap_b = to->centre_gap;
    size_t stride = pixels->area, channels = pixels->channels;
    vf64 x_square, gap_x = N(gap_lanes)(x, channels, stride, c, count, &x_square);
    vf64 square = {0}, on_way = {0}, on_middle = {0};
    for (size_t k = 0; k < channels; k++) {
        vf64 w = N(load_pixels)(x + k * stride, count) - rails->middle[k];
        square = vf64_fma(w, w, square);
        on_way = vf64_fma(w, vf64_set(rails->way[k]), on_way);
        on_middle = vf64_fma(w, vf64_set(rails->middle[k]), on_middle);
    }
    vf64 length = vf64_sqrt(square), both = gap_m * gap_x, inverse = 1.0 / vf64_sqrt(both + c * square);
    vf64 t = to->scale * vf64_arsinh(root * length / vf64_sqrt(both)), decay;
    t = vf64_select((vi64)(t > SATURATED), vf64_set(SATURATED), t);
    vf64 reach = vf64_tanh(t, &decay), gap_step = 4.0 * decay / ((1.0 + decay) * (1.0 + decay));
    /* e = p w + q m, with its inner products with b - m and m; where x is m, e does not matter. */
    vf64 p = vf64_select((vi64)(length == 0.0), vf64_set(0.0), gap_m * inverse / length), q = -c * length * inverse;
    vf64 e_way = p * on_way + q * rails->middle_way, e_middle = p * on_middle + q * rails->middle_square;
    /* f = e + 2c (along_b b - along_way (b - m)) */
    vf64 along_b = (gap_m * e_way - rails->spread * e_middle) / rails->denominator;
    vf64 along_way = (e_way + gap_b * e_middle) / rails->denominator;
    vf64 f_middle = q + 2 * c * along_way, f_centre = 2 * c * (along_b - along_way);
    vf64 centre_f = p * (on_way + on_middle) + f_middle * rails->middle_centre + f_centre * rails->centre_square;
    vf64 spread = c * rails->centre_square + reach * (2 * root * centre_f + reach);
    vf64 denominator = gap_b * gap_step + spread, of_sum = gap_b / (root * denominator);
    vf64 of_way = of_sum * reach * p, of_middle = of_sum * reach * f_middle;
    vf64 of_centre = of_sum * (root + reach * f_centre) + spread / denominator;
    vf64 radius = vf64_sqrt(spread / denominator), gap_y = gap_b * gap_step / denominator;
    if (to->margin >= 0) {
        vi64 beyond = (vi64)(radius > 1 - to->margin);
        vf64 shrink = vf64_select(beyond, (1 - to->margin) / radius, vf64_set(1.0));
        of_way *= shrink;
        of_middle *= shrink;
        of_centre *= shrink;
        gap_y = vf64_select(beyond, vf64_set(to->margin), gap_y);
    }
    for (size_t k = 0; k < channels; k++) {
        vf64 w = N(load_pixels)(x + k * stride, count) - rails->middle[k];
        vf64 rest = of_middle * rails->middle[k] + of_centre * rails->centre[k];
        N(store_pixels)(y + k * stride, count, vf64_fma(of_way, w, rest));
    }
    vi64 near = (vi64)(gap_y <= SAFE_GAP(channels));
    if (vi64_any(near))
        for (size_t i = 0; i < VF64 && i < count; i++)
            if (near[i]) N(inward)(y + i, channels, stride, c);
    return vi64_any((vi64)(gap_x <= 0.0));
}

static int N(normalize)(const rn_poincare_pixels *pixels, const T *x, const rn_poincare_normalization *to, T *y) {
    size_t area = pixels->area, blocks = (area + BLOCK_PIXELS - 1) / BLOCK_PIXELS;
    double *way = rn_scratch(2, pixels->channels * sizeof *way);
    if (way == NULL) return RN_POINCARE_MEMORY;
    N(rails) rails = N(rails_of)(pixels, to, way);
    int outside = 0;
    int threads = rn_threads(pixels->images * blocks, (double)(pixels->images * area) * (8.0 + 0.6 * (double)pixels->channels));
    RN_PARALLEL(threads) {
        RN_SHARE(pixels->images * blocks, first, last);
        int mine = 0;
        for (size_t i = first; i < last; i++) {
            size_t from = i % blocks * BLOCK_PIXELS, end = area - from < BLOCK_PIXELS ? area : from + BLOCK_PIXELS;
            size_t base = i / blocks * pixels->channels * area;
            for (size_t pixel = from; pixel < end; pixel += VF64)
                mine |= N(normalize_lanes)(pixels, &rails, to, x + base + pixel, end - pixel, y + base + pixel);
        }
        if (mine) __atomic_store_n(&outside, 1, __ATOMIC_RELAXED);
    }
    return outside ? RN_POINCARE_OUTSIDE : 0;
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

static int N(pool_image)(const rn_poincare_conv *call, const T *x, double *factor, T *y) {
    size_t area = call->height * call->width, out_area = call->out_height * call->out_width;
    double root = sqrt(call->curvature), *line = factor + area + VF64, *sums = line + call->width;
    int outside = 0;
    for (size_t p = 0; p < area; p += VF64) {
        vf64 square, gap = N(gap_lanes)(x + p, call->channels, area, call->curvature, area - p, &square);
        vf64 s = vf64_sqrt(call->curvature * square), reach = vf64_arsinh(s / vf64_sqrt(gap));
        vf64_store(factor + p, vf64_select((vi64)(s == 0.0), vf64_set(1.0), reach / s) * root);
        outside |= vi64_any((vi64)(gap <= 0.0));
    }
    for (size_t k = 0; k < call->channels; k++) N(pool_channel)(call, x + k * area, factor, line, sums + k * out_area);
    N(pool_points)(call, sums, y);
    return outside;
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
#undef SAFE_GAP
