/* Midpoints of points of one dtype, and their pullback: included by poincare_image.c after poincare_pixels_body.h.
 *
 * In the reference's terms: masses a_i = w_i/gap_i, their sum S, the weights' W, the mean with the masses and the scatter
 * V = sum a_i |x_i - mean|^2, then 2S/E mean with E = 2S - W + sqrt(W^2 + 4cV). A block of points gives its S, W, mean and V in one
 * pass while it is in the first-level cache; blocks are then put together. Means are kept as the block's heaviest point
 * and the drift from it: near the boundary points differ in their last digits, and their differences are exact. */

/* Points worked on at a time, those of an image that follow each other. Channels lie `stride` entries apart; `readable` of
 * each can be read, `count` are points. Points with negative weights are at the opposite place. */
typedef struct {
    const T *x, *weights;
    size_t stride, count, readable;
} N(block);

typedef struct {
    const rn_poincare_pixels *pixels;
    const T *x, *weights;
    size_t size, each, blocks; /* points of a block, blocks of an image and of all */
} N(point_set);

static N(point_set) N(set_of)(const rn_poincare_pixels *pixels, const T *x, const T *weights) {
    size_t size = BLOCK_PIXELS;
    if (pixels->by_rows) {
        size = ROW_BLOCK_BYTES / sizeof(T) / pixels->channels / 16 * 16;
        size = size < 16 ? 16 : size > BLOCK_PIXELS ? BLOCK_PIXELS : size;
    }
    size_t each = (pixels->area + size - 1) / size;
    return (N(point_set)){pixels, x, weights, size, each, each * pixels->images};
}

/* Columns of a block's own planes, in channel-major order; 16 more than the block, against rows of equal cache sets. */
RN_INLINE size_t N(plane_stride)(const N(point_set) *set) { return set->size + 16; }
/* A thread's scratch for a block: masses and gaps, then planes for points that come and go as rows. */
static size_t N(room_bytes)(const N(point_set) *set) {
    size_t planes = set->pixels->by_rows ? 2 * set->pixels->channels * N(plane_stride)(set) : 0;
    return 2 * (set->size + VF64) * sizeof(double) + planes * sizeof(T);
}
RN_INLINE T *N(planes_in)(const N(point_set) *set, double *room) { return (T *)(room + 2 * (set->size + VF64)); }

/* to[column][row] = from[row][column] */
static void N(transpose)(const T *from, size_t from_stride, size_t rows, size_t columns, T *to, size_t to_stride) {
    size_t done = 0, wide = 0;
#if SINGLE && VEC_AVX512
    done = rows / 16 * 16;
    wide = columns / 16 * 16;
    for (size_t r = 0; r < done; r += 16)
        for (size_t c = 0; c < wide; c += 16)
            transpose_words(from + r * from_stride + c, from_stride * sizeof(T), to + c * to_stride + r, to_stride * sizeof(T));
#endif
    for (size_t r = 0; r < rows; r++)
        for (size_t c = r < done ? wide : 0; c < columns; c++) to[c * to_stride + r] = from[r * from_stride + c];
}

static N(block) N(block_at)(const N(point_set) *set, size_t index, double *room) {
    const rn_poincare_pixels *pixels = set->pixels;
    size_t image = index / set->each, first = index % set->each * set->size, area = pixels->area, channels = pixels->channels;
    size_t count = area - first < set->size ? area - first : set->size, padded = (count + VF64 - 1) / VF64 * VF64;
    if (!pixels->by_rows)
        return (N(block)){set->x + image * channels * area + first, NULL, area, count, count};
    T *planes = N(planes_in)(set, room);
    size_t stride = N(plane_stride)(set);
    N(transpose)(set->x + (image * area + first) * channels, channels, count, channels, planes, stride);
    for (size_t k = 0; k < channels; k++)
        for (size_t p = count; p < padded; p++) planes[k * stride + p] = 0;
    const T *weights = set->weights ? set->weights + image * area + first : NULL;
    for (size_t p = 0; weights != NULL && p < count; p++)
        for (size_t k = 0; k < channels && weights[p] < 0; k++) planes[k * stride + p] = -planes[k * stride + p];
    return (N(block)){planes, weights, stride, count, padded};
}

/* |w| of a block's points from p on: 1 each without weights, 0 past the end. */
RN_INLINE vf64 N(weight_lanes)(const N(block) *block, size_t p) {
    if (block->weights != NULL) return vf64_abs(N(load_pixels)(block->weights + p, block->count - p));
    vf64 weight = vf64_set(1.0);
    for (size_t i = block->count - p; i < VF64; i++) weight[i] = 0;
    return weight;
}

/* Masses of a block and their sums; returns whether a point lies outside. */
static int N(weigh)(const rn_poincare_pixels *pixels, const N(block) *block, double *mass, double *part) {
    vf64 total = {0}, weights = {0}, largest = {0};
    int outside = 0;
    for (size_t p = 0; p < block->count; p += VF64) {
        vf64 square, gap = N(gap_lanes)(block->x + p, pixels->channels, block->stride, pixels->curvature, block->readable - p, &square);
        vf64 weight = N(weight_lanes)(block, p), each = weight / gap;
        outside |= vi64_any((vi64)(gap <= 0.0));
        vf64_store(mass + p, each);
        total += each;
        weights += weight;
        largest = vf64_max(each, largest);
    }
    part[PART_MASS] = vf64_sum(total);
    part[PART_WEIGHTS] = vf64_sum(weights);
    part[PART_LARGEST] = vf64_largest(largest);
    return outside;
}

/* The sum of mass (x - from - drift), or with `squares` of its square, over one channel of a block, in chains side by side. */
RN_INLINE vf64 N(channel_sum)(const N(block) *block, const T *x, const double *mass, double from, double drift, const int squares) {
    vf64 sum[4] = {{0}, {0}, {0}, {0}};
    size_t p = 0;
    for (; p + 4 * VF64 <= block->count; p += 4 * VF64) {
#pragma GCC unroll 4
        for (size_t j = 0; j < 4; j++) {
            vf64 offset = (N(load_pixels)(x + p + j * VF64, VF64) - from) - drift, each = vf64_load(mass + p + j * VF64);
            sum[j] = vf64_fma(squares ? each * offset : each, offset, sum[j]);
        }
    }
    for (; p < block->count; p += VF64) {
        vf64 offset = (N(load_pixels)(x + p, block->readable - p) - from) - drift, each = vf64_load(mass + p);
        sum[0] = vf64_fma(squares ? each * offset : each, offset, sum[0]);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* The mean's drift from the heaviest point, and the scatter about the mean. */
static void N(scatter_of)(const rn_poincare_pixels *pixels, const N(block) *block, const double *mass, double *part) {
    double *heaviest = part + PART_HEAD, *drift = heaviest + pixels->channels, total = part[PART_MASS];
    size_t at = 0;
    while (at + 1 < block->count && mass[at] != part[PART_LARGEST]) at++;
    vf64 scatter = {0};
    for (size_t k = 0; k < pixels->channels; k++) {
        const T *x = block->x + k * block->stride;
        heaviest[k] = (double)x[at];
        drift[k] = total == 0 ? 0 : vf64_sum(N(channel_sum)(block, x, mass, heaviest[k], 0, 0)) / total;
        /* The sum of the two need not be rounded. */
        scatter += N(channel_sum)(block, x, mass, heaviest[k], drift[k], 1);
    }
    part[PART_SCATTER] = vf64_sum(scatter);
}

/* Puts the blocks' parts together. */
static void N(unite)(const N(point_set) *set, const double *parts, rn_poincare_midpoint *to) {
    size_t channels = set->pixels->channels, size = PART_HEAD + 2 * channels, best = 0;
    to->mass = to->weights = to->scatter = 0;
    for (size_t i = 0; i < set->blocks; i++) {
        to->mass += parts[i * size + PART_MASS];
        to->weights += parts[i * size + PART_WEIGHTS];
        to->scatter += parts[i * size + PART_SCATTER];
        if (parts[i * size + PART_LARGEST] > parts[best * size + PART_LARGEST]) best = i;
    }
    memcpy(to->heaviest, parts + best * size + PART_HEAD, channels * sizeof(double));
    memset(to->drift, 0, channels * sizeof(double));
    for (size_t i = 0; i < set->blocks; i++) {
        const double *heaviest = parts + i * size + PART_HEAD, *drift = heaviest + channels;
        double share = parts[i * size + PART_MASS] / to->mass;
        for (size_t k = 0; k < channels; k++) to->drift[k] += share * ((heaviest[k] - to->heaviest[k]) + drift[k]);
    }
    for (size_t i = 0; i < set->blocks && set->blocks > 1; i++) {
        const double *heaviest = parts + i * size + PART_HEAD, *drift = heaviest + channels;
        double square = 0;
        for (size_t k = 0; k < channels; k++) {
            double offset = ((heaviest[k] - to->heaviest[k]) - to->drift[k]) + drift[k];
            square += offset * offset;
        }
        to->scatter += parts[i * size + PART_MASS] * square;
    }
    double root = sqrt(to->weights * to->weights + 4 * set->pixels->curvature * to->mass * to->scatter);
    double denominator = 2 * to->mass - to->weights + root;
    for (size_t k = 0; k < channels; k++) to->middle[k] = 2 * to->mass / denominator * (to->heaviest[k] + to->drift[k]);
    to->gap = 2 * root / denominator;
}

/* The sum of the squares of half the distances to the midpoint, sqrt(c) times. */
static double N(half_distances)(const rn_poincare_pixels *pixels, const N(block) *block, const rn_poincare_midpoint *to) {
    vf64 sum = {0};
    for (size_t p = 0; p < block->count; p += VF64) {
        size_t count = block->readable - p;
        vf64 square, gap = N(gap_lanes)(block->x + p, pixels->channels, block->stride, pixels->curvature, count, &square), way = {0};
        for (size_t k = 0; k < pixels->channels; k++) {
            vf64 offset = N(load_pixels)(block->x + p + k * block->stride, count) - to->middle[k];
            way = vf64_fma(offset, offset, way);
        }
        vf64 half = vf64_arsinh(vf64_sqrt(way / gap * (pixels->curvature / to->gap)));
        half *= N(weight_lanes)(block, p);
        sum = vf64_fma(half, half, sum);
    }
    return vf64_sum(sum);
}

/* Runs the statements for every block, with `i` its number, `room` the thread's scratch and `block` itself. Small sets come by
 * the hundred: a parallel region of one thread would cost as much as their sums. */
#define RUN_BLOCKS(first, last, ...)                             \
    {                                                            \
        double *room = rn_scratch(0, N(room_bytes)(&set));       \
        for (size_t i = first; i < last && room != NULL; i++) {  \
            N(block) block = N(block_at)(&set, i, room);         \
            __VA_ARGS__                                          \
        }                                                        \
        if (room == NULL) __atomic_fetch_or(&failed, RN_POINCARE_MEMORY, __ATOMIC_RELAXED); \
    }
#define EACH_BLOCK(...)                                          \
    if (threads > 1) {                                           \
        RN_PARALLEL(threads) {                                   \
            RN_SHARE(set.blocks, first, last);                   \
            RUN_BLOCKS(first, last, __VA_ARGS__)                 \
        }                                                        \
    } else                                                       \
        RUN_BLOCKS((size_t)0, set.blocks, __VA_ARGS__)

static int N(midpoint_of)(const rn_poincare_pixels *pixels, const T *x, const T *weights, int variance, int threads,
                          rn_poincare_midpoint *to) {
    N(point_set) set = N(set_of)(pixels, x, weights);
    size_t size = PART_HEAD + 2 * pixels->channels, bytes = set.blocks * size * sizeof(double);
    double *parts = bytes <= KEPT_BYTES ? rn_scratch(1, bytes) : rn_block_alloc(bytes);
    int failed = 0;
    if (parts == NULL) return RN_POINCARE_MEMORY;
    EACH_BLOCK({
        if (N(weigh)(pixels, &block, room, parts + i * size)) __atomic_fetch_or(&failed, RN_POINCARE_OUTSIDE, __ATOMIC_RELAXED);
        N(scatter_of)(pixels, &block, room, parts + i * size);
    })
    if (!(failed & RN_POINCARE_MEMORY)) N(unite)(&set, parts, to);
    if (variance && !(failed & RN_POINCARE_MEMORY)) {
        double distances = 0;
        EACH_BLOCK(parts[i] = N(half_distances)(pixels, &block, to);)
        for (size_t i = 0; i < set.blocks; i++) distances += parts[i];
        to->variance = 4 / pixels->curvature * distances / (double)(pixels->images * pixels->area);
    }
    if (bytes > KEPT_BYTES) rn_block_free(parts);
    return failed;
}

#define MIDPOINT_COST(pixels) ((double)((pixels)->images * (pixels)->area) * (3.0 + 0.5 * (double)(pixels)->channels))
static int N(midpoint)(const rn_poincare_pixels *pixels, const T *x, int variance, rn_poincare_midpoint *to) {
    int threads = rn_threads(pixels->images * pixels->area / BLOCK_PIXELS + 1, MIDPOINT_COST(pixels));
    return N(midpoint_of)(pixels, x, NULL, variance, threads, to);
}

/* ---- pullback ------------------------------------------------------------------------------------------------------ */

/* Cotangents of a block's points in `to`, its channels `stride` apart, and of its weights in `dweights` unless that is NULL.
 * Returns the curvature's terms. */
static double N(pull_block)(const rn_poincare_pixels *pixels, const N(block) *block, const midpoint_pull *pull, T *to,
                            size_t stride, T *dweights) {
    size_t channels = pixels->channels;
    vf64 terms = {0};
    for (size_t p = 0; p < block->count; p += VF64) {
        size_t count = block->readable - p;
        vf64 square, gap = N(gap_lanes)(block->x + p, channels, block->stride, pixels->curvature, count, &square);
        vf64 weight = N(weight_lanes)(block, p), along = {0}, distance = {0};
        for (size_t k = 0; k < channels; k++) {
            vf64 offset = (N(load_pixels)(block->x + p + k * block->stride, count) - pull->heaviest[k]) - pull->drift[k];
            along = vf64_fma(offset, vf64_set(pull->g[k]), along);
            distance = vf64_fma(offset, offset, distance);
        }
        point_pull of = point_pull_of(pull, weight, gap, along, distance);
        for (size_t k = 0; k < channels; k++) {
            vf64 a = N(load_pixels)(block->x + p + k * block->stride, count);
            vf64 offset = (a - pull->heaviest[k]) - pull->drift[k];
            N(store_pixels)(to + k * stride + p, count, of.of_g * (pull->g[k] - pull->bend * offset) + of.of_point * a);
        }
        terms += of.by_gap * square;
        vf64 by_weight = of.by_weight;
        for (size_t i = 0; dweights != NULL && i < VF64 && p + i < block->count; i++)
            dweights[p + i] = (T)(block->weights[p + i] < 0 ? -by_weight[i] : by_weight[i]);
    }
    return vf64_sum(terms);
}

/* One set of points that are rows. */
static int N(midpoint_back)(const rn_poincare_pixels *pixels, const T *x, const T *weights, const double *g, int threads,
                            rn_poincare_midpoint *at, T *dx, T *dweights, double *term) {
    int failed = N(midpoint_of)(pixels, x, weights, 0, threads, at);
    if (failed & RN_POINCARE_MEMORY) return RN_POINCARE_MEMORY;
    N(point_set) set = N(set_of)(pixels, x, weights);
    midpoint_pull pull = midpoint_pull_of(at, g, pixels->channels, pixels->curvature);
    double *terms = rn_block_alloc(set.blocks * sizeof *terms);
    if (terms == NULL) return RN_POINCARE_MEMORY;
    failed = 0;
    size_t stride = N(plane_stride)(&set), channels = pixels->channels;
    EACH_BLOCK({
        T *planes = N(planes_in)(&set, room) + channels * stride;
        size_t first = i * set.size;
        terms[i] = N(pull_block)(pixels, &block, &pull, planes, stride, dweights ? dweights + first : NULL);
        for (size_t p = 0; block.weights != NULL && p < block.count; p++)
            for (size_t k = 0; k < channels && block.weights[p] < 0; k++) planes[k * stride + p] = -planes[k * stride + p];
        N(transpose)(planes, stride, channels, block.count, dx + first * channels, channels);
    })
    *term = pull.term;
    for (size_t i = 0; i < set.blocks && !failed; i++) *term += terms[i];
    rn_block_free(terms);
    return failed;
}

/* Many sets, each one image of rows: midpoints and gaps, or with `g` the cotangents. */
typedef struct {
    const rn_poincare_pixels *pixels;
    const T *x, *weights;
    double *middles, *gaps;
    const double *g;
    T *dx, *dweights;
    double *terms;
    int threads; /* within a set */
} N(sets);

static int N(sets_between)(const N(sets) *of, size_t first, size_t last) {
    size_t points = of->pixels->area, channels = of->pixels->channels;
    double *vectors = rn_scratch(2, 3 * channels * sizeof(double));
    int failed = 0;
    if (vectors == NULL) return RN_POINCARE_MEMORY;
    for (size_t i = first; i < last; i++) {
        rn_poincare_midpoint to = {.middle = vectors, .heaviest = vectors + channels, .drift = vectors + 2 * channels};
        const T *x = of->x + i * points * channels, *weights = of->weights ? of->weights + i * points : NULL;
        if (of->g != NULL) {
            failed |= N(midpoint_back)(of->pixels, x, weights, of->g + i * channels, of->threads, &to,
                                       of->dx + i * points * channels, of->dweights ? of->dweights + i * points : NULL,
                                       of->terms + i);
            continue;
        }
        to.middle = of->middles + i * channels;
        failed |= N(midpoint_of)(of->pixels, x, weights, 0, of->threads, &to);
        of->gaps[i] = to.gap;
    }
    return failed;
}

static int N(all_sets)(N(sets) of, size_t sets) {
    double cost = MIDPOINT_COST(of.pixels) * (of.g ? 3 : 1);
    int across = rn_threads(sets, (double)sets * cost), result = 0;
    of.threads = across > 1 ? 1 : rn_threads(of.pixels->area / BLOCK_PIXELS + 1, cost);
    /* Threads of a region within a region, even of one thread, are started anew each time. */
    if (across == 1) return N(sets_between)(&of, 0, sets);
    RN_PARALLEL(across) {
        RN_SHARE(sets, first, last);
        int mine = N(sets_between)(&of, first, last);
        if (mine) __atomic_fetch_or(&result, mine, __ATOMIC_RELAXED);
    }
    return result;
}
static int N(midpoints)(const rn_poincare_pixels *pixels, size_t sets, const T *x, const T *weights, double *middles,
                        double *gaps) {
    return N(all_sets)((N(sets)){.pixels = pixels, .x = x, .weights = weights, .middles = middles, .gaps = gaps}, sets);
}
static int N(midpoints_back)(const rn_poincare_pixels *pixels, size_t sets, const T *x, const T *weights, const double *g,
                             T *dx, T *dweights, double *terms) {
    return N(all_sets)((N(sets)){.pixels = pixels, .x = x, .weights = weights, .g = g, .dx = dx, .dweights = dweights,
                                 .terms = terms}, sets);
}
