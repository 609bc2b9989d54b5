/* Body of quantize.c for one element type: T, its vector VT, its integer vectors VI and VU, LANES lanes, WIDE = 1 for
 * float64. */

#define BLOCK ((size_t)16384)      /* entries whose sums are formed together */
#define CHAIN ((size_t)32 * LANES) /* entries whose sum is formed before it is added to that of others */
#define STEP ((size_t)VF32)        /* entries whose codes are one vi32 */
#define PARTS (VF32 / LANES)       /* vectors that hold them */
#define EACH_PART for (int part_ = 0; part_ < PARTS; part_++)
#define OUTSIDE ((T)(1 << 20))     /* added to the slope of a clipped entry, beyond any other slope */

/* A range of entries split where parameters change: `length` entries from `at` on, whose parameters are those of
 * `channel` or, with one channel an entry, of the channels from there on. */
typedef struct {
    size_t at, length, channel;
    int columns;
} N(piece);

RN_INLINE int N(by_column)(rn_layout layout) { return layout.inner == 1 && layout.channels > 1; }

RN_INLINE N(piece) N(piece_at)(rn_layout layout, size_t at, size_t last) {
    int columns = N(by_column)(layout);
    size_t width = columns ? layout.channels : layout.inner, row = at / width, within = at - row * width;
    size_t left = width - within;
    return (N(piece)){at, left < last - at ? left : last - at, columns ? within : row % layout.channels, columns};
}

RN_INLINE size_t N(total)(rn_layout layout) { return layout.outer * layout.channels * layout.inner; }

/* This thread's entries, cut at cache lines of any code. */
#define SHARE_ENTRIES(total, first, last)              \
    RN_SHARE(((total) + 63) / 64, first, last);        \
    first *= 64;                                       \
    last = last * 64 < (total) ? last * 64 : (total)

RN_INLINE size_t N(to_alignment)(const void *y, size_t item, size_t length) {
    size_t head = (size_t)(-(uintptr_t)y & (REFNORM_VECTOR_BYTES - 1)) / item;
    return head < length ? head : length;
}

/* ---- uniform grids ---------------------------------------------------------------------------------------------
 *
 * Clipping to whole numbers commutes with every rounding, so the quotient is clipped first: it then is small enough for
 * rounding by addition, and an infinite one needs no care. The parameters are integers in T. */
typedef struct {
    VT scale, low, high, offset;
} N(grid);

RN_INLINE N(grid) N(grid_of)(VT scale, VT offset, int lowest, int highest, int MARGIN) {
    return (N(grid)){scale, V(set)((T)(lowest - MARGIN)) - offset, V(set)((T)(highest + MARGIN)) - offset, offset};
}

RN_INLINE VT N(quotient)(VT x, N(grid) grid, VT *not_finite) {
    *not_finite = V(fma)(x, (VT){0}, *not_finite); /* NaN from the first entry on that is not finite */
    VT u = x / grid.scale;
    return V(min)(grid.high, V(max)(grid.low, u)); /* NaN stays */
}

/* +0 for anything that rounds to 0. */
RN_INLINE VT N(whole)(VT u, int ROUNDING) {
    VT r = V(rint_small)(u);
    if (ROUNDING == RN_ROUND_FLOOR) r = V(select)((VI)(r > u), r - 1, r);
    if (ROUNDING == RN_ROUND_AWAY) {
        VT rest = u - r; /* exact; half of one away from 0 where the tie went to 0 */
        r = V(select)((VI)(rest == (T)0.5) & (VI)(u > 0), r + 1, r);
        r = V(select)((VI)(rest == (T)-0.5) & (VI)(u < 0), r - 1, r);
    }
    return r;
}

RN_INLINE vi32 N(codes)(const VT *x, const N(grid) *grid, VT *not_finite, int ROUNDING) {
#if WIDE
    VT code[2];
    for (int k = 0; k < 2; k++) code[k] = N(whole)(N(quotient)(x[k], grid[k], not_finite), ROUNDING) + grid[k].offset;
    return vi32_from_vf32(vf32_from_vf64(code[0], code[1]));
#else
    return vi32_from_vf32(N(whole)(N(quotient)(x[0], grid[0], not_finite), ROUNDING) + grid[0].offset);
#endif
}

/* Grid points, and with SLOPES the derivative by the scale: round(u) - u inside, the end of the grid minus the offset
 * outside, which OUTSIDE marks. */
RN_INLINE VT N(point)(VT x, N(grid) grid, VT *not_finite, VT *slope, int ROUNDING, int SLOPES) {
    VT u = N(quotient)(x, grid, not_finite), r = N(whole)(u, ROUNDING);
    if (SLOPES) { /* the grid has a margin of one beyond its ends, which tells what lies outside */
        VT end = V(min)(grid.high - 1, V(max)(grid.low + 1, r));
        *slope = V(select)((VI)(end == r), r - u, end + OUTSIDE);
        r = end;
    }
    return grid.scale * r;
}

#if !WIDE
/* A division costs as much as all the rest. x times the reciprocal differs from the rounded quotient by less than
 * 2^-22 |x / scale|, so both round to the same integer unless the product is that near to a tie; there, and only there, the
 * quotient itself decides. */
#define SHIFT 0x1.8p23f
typedef struct {
    VT inverse, low, high, most; /* most: distance from an integer up to which the product decides */
} N(product);

/* Whether a product can stand in for the quotient: not for wide grids, where ties are everywhere near. */
RN_INLINE int N(product_of)(T scale, T offset, int lowest, int highest, N(product) *product) {
    T low = (T)lowest - offset, high = (T)highest - offset, largest = -low > high ? -low : high;
    if (!(scale > 0x1p-100f && scale < 0x1p100f && largest < 1024)) return 0;
    int32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    T most = (bits & 0x7fffff) == 0 ? 1 : (T)0.5 - (largest + 1) * 0x1p-22f; /* the reciprocal of a power of 2 is exact */
    *product = (N(product)){V(set)(1 / scale), V(set)(low), V(set)(high), V(set)(most)};
    return 1;
}

/* The clipped product plus a number whose fraction is full: its low bits hold round(x / scale) unless *farthest, a
 * magnitude, exceeds product.most. */
RN_INLINE VT N(shifted_product)(VT x, N(product) product, VT *not_finite, VT *farthest) {
    *not_finite = V(fma)(x, (VT){0}, *not_finite);
    VT u = V(min)(product.high, V(max)(product.low, x * product.inverse)), shifted = u + SHIFT;
#if VEC_AVX512
    __m512 rest = _mm512_reduce_ps((__m512)u, 0); /* u - rint(u) */
    *farthest = (VT)_mm512_range_ps(rest, (__m512)*farthest, 11); /* the larger magnitude, positive */
#else
    *farthest = V(max)(V(abs)(u - (shifted - SHIFT)), *farthest);
#endif
    return shifted;
}

RN_INLINE size_t N(codes_by_products)(const T *x, N(product) product, N(grid) grid, size_t length, uint8_t *y,
                                      VT *wrong, int excess_of_code, int stream) {
    vi32 excess = vi32_set(excess_of_code), to_code = vi32_from_vf32(grid.offset) - excess - (vi32)vf32_set(SHIFT);
    size_t i = 0;
    for (; i + 4 * STEP <= length; i += 4 * STEP) {
        vi32 four[4];
        VT farthest = {0};
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            four[k] = (vi32)N(shifted_product)(V(load)(x + i + k * STEP), product, &wrong[k & 1], &farthest) + to_code;
        if (__builtin_expect(ANY((VI)(farthest > product.most)), 0))
            for (size_t k = 0; k < 4; k++) {
                VT entries = V(load)(x + i + k * STEP);
                four[k] = N(codes)(&entries, &grid, &wrong[0], RN_ROUND_NEAREST) - excess;
            }
        if (stream && ((uintptr_t)(y + i) & (REFNORM_VECTOR_BYTES - 1)) == 0)
            store_bytes_of_four(y + i, four, excess[0], 1);
        else
            store_bytes_of_four(y + i, four, excess[0], 0);
    }
    return i;
}

RN_INLINE size_t N(points_by_products)(const T *x, N(product) product, N(grid) grid, size_t first, size_t length, T *y,
                                       VT *wrong, int stream) {
    size_t i = first;
    for (; i + 4 * LANES <= length; i += 4 * LANES) {
        VT four[4], farthest = {0}, slope;
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            four[k] =
                grid.scale * (N(shifted_product)(V(load)(x + i + k * LANES), product, &wrong[k & 1], &farthest) - SHIFT);
        if (__builtin_expect(ANY((VI)(farthest > product.most)), 0))
            for (size_t k = 0; k < 4; k++)
                four[k] = N(point)(V(load)(x + i + k * LANES), grid, &wrong[0], &slope, RN_ROUND_NEAREST, 0);
        for (size_t k = 0; k < 4; k++) {
            if (stream)
                V(stream)(y + i + k * LANES, four[k]);
            else
                V(store)(y + i + k * LANES, four[k]);
        }
    }
    return i;
}
#endif

/* Codes of `length` entries; `scale` and `offset` have one entry, or with COLUMNS one an entry of x. */
RN_INLINE void N(codes_run)(const T *x, const T *scale, const T *offset, int lowest, int highest, size_t length, void *y,
                            VT *not_finite, int BYTES, int ROUNDING, int COLUMNS, int stream) {
    N(grid) grid[2];
    EACH_PART grid[part_] = N(grid_of)(V(set)(scale[0]), V(set)(offset[0]), lowest, highest, 0);
    VT entries[2];
    VT wrong[2] = {*not_finite, *not_finite};
#define AT(i)                                                                                                        \
    EACH_PART {                                                                                                      \
        size_t at_ = (i) + (size_t)part_ * LANES;                                                                    \
        entries[part_] = V(load)(x + at_);                                                                           \
        if (COLUMNS)                                                                                                 \
            grid[part_] = N(grid_of)(V(load)(scale + at_), V(load)(offset + at_), lowest, highest, 0);               \
    }
    size_t i = 0;
    if (BYTES) {
        uint8_t *to = y;
        vi32 four[4];
        int excess = highest > 127 ? 128 : 0; /* of an unsigned code over a signed one */
#if !WIDE
        N(product) product;
        if (ROUNDING == RN_ROUND_NEAREST && !COLUMNS && N(product_of)(scale[0], offset[0], lowest, highest, &product))
            i = N(codes_by_products)(x, product, grid[0], length, to, wrong, excess, stream);
#endif
        for (; i + 4 * STEP <= length; i += 4 * STEP) {
#pragma GCC unroll 4
            for (size_t k = 0; k < 4; k++) {
                AT(i + k * STEP);
                four[k] = N(codes)(entries, grid, &wrong[k & 1], ROUNDING) - excess;
            }
            if (stream && ((uintptr_t)(to + i) & (REFNORM_VECTOR_BYTES - 1)) == 0)
                store_bytes_of_four(to + i, four, excess, 1);
            else
                store_bytes_of_four(to + i, four, excess, 0);
        }
    }
    for (; i + STEP <= length; i += STEP) {
        AT(i);
        vi32 code = N(codes)(entries, grid, &wrong[0], ROUNDING);
        if (BYTES)
            store_bytes((uint8_t *)y + i, code);
        else
            vi32_store((int32_t *)y + i, code);
    }
    if (i < length) {
        size_t left = length - i;
        int32_t lanes[VF32];
        EACH_PART {
            size_t before = (size_t)part_ * LANES, here = left < before ? 0 : left - before;
            if (here > LANES) here = LANES;
            entries[part_] = V(load_part)(x + i + before, here, 0);
            if (COLUMNS)
                grid[part_] = N(grid_of)(V(load_part)(scale + i + before, here, 1),
                                         V(load_part)(offset + i + before, here, 0), lowest, highest, 0);
        }
        vi32_store(lanes, N(codes)(entries, grid, &wrong[0], ROUNDING));
        for (size_t k = 0; k < left; k++) {
            if (BYTES)
                ((uint8_t *)y)[i + k] = (uint8_t)lanes[k];
            else
                ((int32_t *)y)[i + k] = lanes[k];
        }
    }
#undef AT
    *not_finite = wrong[0] + wrong[1];
}

RN_INLINE void N(points_run)(const T *x, const T *scale, const T *offset, int lowest, int highest, size_t length, T *y,
                             T *slope, VT *not_finite, int SLOPES, int ROUNDING, int COLUMNS, int stream) {
    N(grid) grid = N(grid_of)(V(set)(scale[0]), V(set)(offset[0]), lowest, highest, SLOPES);
    VT wrong[2] = {*not_finite, *not_finite}, value, slopes = {0};
    size_t i = stream ? N(to_alignment)(y, sizeof(T), length) : 0;
#define PART(from, count)                                                                                            \
    do {                                                                                                             \
        if (COLUMNS)                                                                                                 \
            grid = N(grid_of)(V(load_part)(scale + (from), count, 1), V(load_part)(offset + (from), count, 0), lowest, \
                              highest, SLOPES);                                                                      \
        value = N(point)(V(load_part)(x + (from), count, 0), grid, &wrong[0], &slopes, ROUNDING, SLOPES);            \
        V(store_part)(y + (from), count, value);                                                                     \
        if (SLOPES) V(store_part)(slope + (from), count, slopes);                                                    \
    } while (0)
    if (i) PART(0, i);
#define WHOLE(from, k)                                                                                               \
    do {                                                                                                             \
        if (COLUMNS)                                                                                                 \
            grid = N(grid_of)(V(load)(scale + (from)), V(load)(offset + (from)), lowest, highest, SLOPES);           \
        value = N(point)(V(load)(x + (from)), grid, &wrong[k], &slopes, ROUNDING, SLOPES);                           \
        if (stream)                                                                                                  \
            V(stream)(y + (from), value);                                                                            \
        else                                                                                                         \
            V(store)(y + (from), value);                                                                             \
        if (SLOPES) V(store)(slope + (from), slopes);                                                                \
    } while (0)
#if !WIDE
    N(product) product;
    if (ROUNDING == RN_ROUND_NEAREST && !SLOPES && !COLUMNS &&
        N(product_of)(scale[0], offset[0], lowest, highest, &product))
        i = N(points_by_products)(x, product, grid, i, length, y, wrong, stream);
#endif
    for (; i + 2 * LANES <= length; i += 2 * LANES) {
        WHOLE(i, 0);
        WHOLE(i + LANES, 1);
    }
    for (; i + LANES <= length; i += LANES) WHOLE(i, 0);
    if (i < length) PART(i, length - i);
#undef WHOLE
#undef PART
    *not_finite = wrong[0] + wrong[1];
}

static void N(affine_piece)(int target, int rounding, const T *x, const T *scale, const T *offset, int lowest, int highest,
                            N(piece) piece, void *y, T *slope, VT *not_finite, int stream) {
    const T *from = x + piece.at, *s = scale + piece.channel, *z = offset + piece.channel;
    T *slopes = slope ? slope + piece.at : NULL;
#define RUN(ROUNDING, COLUMNS)                                                                                       \
    do {                                                                                                             \
        if (target == RN_TO_BYTES)                                                                                   \
            N(codes_run)(from, s, z, lowest, highest, piece.length, (uint8_t *)y + piece.at, not_finite, 1, ROUNDING, \
                         COLUMNS, stream);                                                                           \
        else if (target == RN_TO_INT32)                                                                              \
            N(codes_run)(from, s, z, lowest, highest, piece.length, (int32_t *)y + piece.at, not_finite, 0, ROUNDING, \
                         COLUMNS, 0);                                                                                \
        else if (target == RN_TO_POINTS)                                                                             \
            N(points_run)(from, s, z, lowest, highest, piece.length, (T *)y + piece.at, NULL, not_finite, 0, ROUNDING, \
                          COLUMNS, stream);                                                                          \
        else                                                                                                         \
            N(points_run)(from, s, z, lowest, highest, piece.length, (T *)y + piece.at, slopes, not_finite, 1,       \
                          ROUNDING, COLUMNS, stream);                                                                \
    } while (0)
    if (rounding == RN_ROUND_NEAREST && piece.columns)
        RUN(RN_ROUND_NEAREST, 1);
    else if (rounding == RN_ROUND_NEAREST)
        RUN(RN_ROUND_NEAREST, 0);
    else if (rounding == RN_ROUND_FLOOR && piece.columns)
        RUN(RN_ROUND_FLOOR, 1);
    else if (rounding == RN_ROUND_FLOOR)
        RUN(RN_ROUND_FLOOR, 0);
    else if (piece.columns)
        RUN(RN_ROUND_AWAY, 1);
    else
        RUN(RN_ROUND_AWAY, 0);
#undef RUN
}

static int N(affine)(int target, int rounding, const T *x, const T *scale, const T *offset, int lowest, int highest,
                     rn_layout layout, void *y, T *slope) {
    size_t total = N(total)(layout), item = target == RN_TO_BYTES ? 1 : target == RN_TO_INT32 ? 4 : sizeof(T);
    int stream = total * (sizeof(T) + item) > rn_cache_bytes() && (const void *)y != (const void *)x;
    int threads = rn_threads(total / 64 + 1, (WIDE ? 0.2 : 0.1) * (double)total), wrong = 0;
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(total, first, last);
        VT not_finite = {0};
        for (size_t at = first; at < last;) {
            N(piece) piece = N(piece_at)(layout, at, last);
            N(affine_piece)(target, rounding, x, scale, offset, lowest, highest, piece, y, slope, &not_finite, stream);
            at += piece.length;
        }
        if (stream) vec_fence();
        if (ANY((VI)(not_finite != not_finite))) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
    }
    return wrong;
}

/* ---- the way back ---------------------------------------------------------------------------------------------- */

RN_INLINE vf64 N(widened_sum)(VT x) {
#if WIDE
    return x;
#else
    return vf64_low(x) + vf64_high(x);
#endif
}

typedef struct {
    vf64 slope, outside;
} N(sums);

RN_INLINE VT N(backward_vector)(VT slope, VT dy, N(sums) *sums, int OUTSIDE_TOO) {
    VI inside = (VI)(slope <= 2);
    sums->slope += N(widened_sum)(dy * V(select)(inside, slope, slope - OUTSIDE));
    if (OUTSIDE_TOO) sums->outside += N(widened_sum)((VT)(~inside & (VI)dy));
    return (VT)(inside & (VI)dy);
}

RN_INLINE void N(backward_run)(const T *slope, const T *dy, T *dx, size_t length, double *sums, int OUTSIDE_TOO) {
    N(sums) all = {{0}, {0}};
    for (size_t i = 0; i < length;) {
        size_t stop = length - i < CHAIN ? length : i + CHAIN;
        N(sums) even = {{0}, {0}}, odd = {{0}, {0}};
        for (; i + 2 * LANES <= stop; i += 2 * LANES) {
            V(store)(dx + i, N(backward_vector)(V(load)(slope + i), V(load)(dy + i), &even, OUTSIDE_TOO));
            V(store)(dx + i + LANES,
                     N(backward_vector)(V(load)(slope + i + LANES), V(load)(dy + i + LANES), &odd, OUTSIDE_TOO));
        }
        for (; i < stop; i += LANES) {
            size_t left = stop - i < LANES ? stop - i : LANES;
            V(store_part)(dx + i, left, N(backward_vector)(V(load_part)(slope + i, left, 0),
                                                           V(load_part)(dy + i, left, 0), &even, OUTSIDE_TOO));
        }
        all.slope += even.slope + odd.slope;
        all.outside += even.outside + odd.outside;
    }
    sums[0] = vf64_sum(all.slope);
    sums[1] = vf64_sum(all.outside);
}

/* One channel an entry: the sums run along the rows of a group. */
static void N(backward_rows)(const T *slope, const T *dy, T *dx, size_t rows, size_t channels, double *slope_sums,
                             double *outside_sums) {
    for (size_t i = 0; i < rows * channels; i += channels)
        for (size_t k = 0; k < channels; k++) {
            T s = slope[i + k], g = dy[i + k];
            int inside = s <= 2;
            dx[i + k] = inside ? g : 0;
            slope_sums[k] += (double)(g * (inside ? s : s - OUTSIDE));
            outside_sums[k] += inside ? 0.0 : (double)g;
        }
}

/* Rows of a group, so that there are at most 64 groups and their sums take little memory. */
RN_INLINE size_t N(groups_of_rows)(rn_layout layout) {
    size_t groups = layout.outer / 16;
    return groups < 1 ? 1 : groups > 64 ? 64 : groups;
}

static int N(backward_columns)(const T *slope, const T *dy, T *dx, rn_layout layout, double *slope_sums,
                               double *outside_sums) {
    size_t channels = layout.channels, groups = N(groups_of_rows)(layout);
    double *sums = rn_scratch(1, 2 * groups * channels * sizeof(double));
    if (sums == NULL) return -1;
    int threads = rn_threads(groups, (WIDE ? 0.7 : 0.25) * (double)N(total)(layout));
    RN_PARALLEL(threads) {
        RN_SHARE(groups, first_group, last_group);
        for (size_t group = first_group; group < last_group; group++) {
            size_t first, last;
            rn_range(layout.outer, groups, group, &first, &last);
            double *own = sums + 2 * group * channels;
            memset(own, 0, 2 * channels * sizeof(double));
            N(backward_rows)(slope + first * channels, dy + first * channels, dx + first * channels, last - first, channels,
                             own, own + channels);
        }
    }
    for (size_t k = 0; k < channels; k++) {
        double slope_sum = 0, outside_sum = 0;
        for (size_t group = 0; group < groups; group++) {
            slope_sum += sums[2 * group * channels + k];
            outside_sum += sums[(2 * group + 1) * channels + k];
        }
        slope_sums[k] = slope_sum;
        if (outside_sums) outside_sums[k] = outside_sum;
    }
    return 0;
}

/* Sums of blocks that depend on the sizes only, added up in order: the same for any number of threads. */
static int N(affine_backward)(const T *slope, const T *dy, T *dx, rn_layout layout, double *slope_sums,
                              double *outside_sums) {
    if (N(by_column)(layout)) return N(backward_columns)(slope, dy, dx, layout, slope_sums, outside_sums);
    size_t segments = layout.outer * layout.channels, blocks = (layout.inner + BLOCK - 1) / BLOCK;
    double *sums = rn_scratch(1, 2 * segments * blocks * sizeof(double));
    if (sums == NULL) return -1;
    int threads = rn_threads(segments * blocks, (WIDE ? 0.35 : 0.14) * (double)N(total)(layout));
    RN_PARALLEL(threads) {
        RN_SHARE(segments * blocks, first, last);
        for (size_t block = first; block < last; block++) {
            size_t within = block % blocks * BLOCK, at = block / blocks * layout.inner + within;
            size_t length = layout.inner - within < BLOCK ? layout.inner - within : BLOCK;
            if (outside_sums)
                N(backward_run)(slope + at, dy + at, dx + at, length, sums + 2 * block, 1);
            else
                N(backward_run)(slope + at, dy + at, dx + at, length, sums + 2 * block, 0);
        }
    }
    for (size_t channel = 0; channel < layout.channels; channel++) {
        double slope_sum = 0, outside_sum = 0;
        for (size_t row = 0; row < layout.outer; row++)
            for (size_t block = 0; block < blocks; block++) {
                const double *two = sums + 2 * ((row * layout.channels + channel) * blocks + block);
                slope_sum += two[0];
                outside_sum += two[1];
            }
        slope_sums[channel] = slope_sum;
        if (outside_sums) outside_sums[channel] = outside_sum;
    }
    return 0;
}

/* ---- codes to points ------------------------------------------------------------------------------------------- */

#if !WIDE
RN_INLINE void N(points_of_bytes)(const void *q, const T *scale, const T *offset, size_t length, T *y, int SIGNED,
                                  int COLUMNS, int stream) {
    VT s = V(set)(scale[0]), z = V(set)(offset[0]);
    size_t i = 0;
    const uint8_t *codes = q;
    for (; i + LANES <= length; i += LANES) {
        if (COLUMNS) s = V(load)(scale + i), z = V(load)(offset + i);
        VT value = s * (load_codes(codes + i, SIGNED) - z);
        if (stream && ((uintptr_t)(y + i) & (REFNORM_VECTOR_BYTES - 1)) == 0)
            V(stream)(y + i, value);
        else
            V(store)(y + i, value);
    }
    for (; i < length; i++) {
        T code = SIGNED ? (T)(int8_t)codes[i] : (T)codes[i];
        y[i] = scale[COLUMNS ? i : 0] * (code - offset[COLUMNS ? i : 0]);
    }
}
#endif

static void N(points_piece)(int type, const void *q, const T *scale, const T *offset, N(piece) piece, T *y, int stream) {
    const T *s = scale + piece.channel, *z = offset + piece.channel;
    T *to = y + piece.at;
    size_t length = piece.length;
/* The difference is exact in float64 and rounded once, as it would be from 64-bit integers. */
#define EACH(C)                                                                                                \
    do {                                                                                                       \
        const C *code = (const C *)q + piece.at;                                                               \
        if (piece.columns)                                                                                     \
            for (size_t i = 0; i < length; i++) to[i] = s[i] * (T)((double)code[i] - (double)z[i]);            \
        else                                                                                                   \
            for (size_t i = 0; i < length; i++) to[i] = s[0] * (T)((double)code[i] - (double)z[0]);            \
    } while (0)
#if WIDE
    (void)stream;
    if (type == RN_INT8)
        EACH(int8_t);
    else if (type == RN_UINT8)
        EACH(uint8_t);
    else
        EACH(int32_t);
#else
    const uint8_t *bytes = (const uint8_t *)q + piece.at;
    if (type == RN_INT32)
        EACH(int32_t);
    else if (type == RN_INT8 && piece.columns)
        N(points_of_bytes)(bytes, s, z, length, to, 1, 1, stream);
    else if (type == RN_INT8)
        N(points_of_bytes)(bytes, s, z, length, to, 1, 0, stream);
    else if (piece.columns)
        N(points_of_bytes)(bytes, s, z, length, to, 0, 1, stream);
    else
        N(points_of_bytes)(bytes, s, z, length, to, 0, 0, stream);
#endif
#undef EACH
}

static void N(affine_points)(int type, const void *q, const T *scale, const T *offset, rn_layout layout, T *y) {
    size_t total = N(total)(layout);
    int stream = total * sizeof(T) > rn_cache_bytes() / 2;
    int threads = rn_threads(total / 64 + 1, (WIDE ? 0.15 : 0.1) * (double)total);
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(total, first, last);
        for (size_t at = first; at < last;) {
            N(piece) piece = N(piece_at)(layout, at, last);
            N(points_piece)(type, q, scale, offset, piece, y, stream);
            at += piece.length;
        }
        if (stream) vec_fence();
    }
}

/* ---- ranges ---------------------------------------------------------------------------------------------------- */

static void N(extremes_of_run)(const T *x, size_t length, T *low, T *high, VT *not_finite) {
    VT least[2] = {{0}, {0}}, most[2] = {{0}, {0}}, wrong[2] = {*not_finite, *not_finite};
    size_t i = 0;
    for (; i + 2 * LANES <= length; i += 2 * LANES)
        for (int k = 0; k < 2; k++) {
            VT value = V(load)(x + i + (size_t)k * LANES);
            wrong[k] = V(fma)(value, (VT){0}, wrong[k]);
            least[k] = V(min)(value, least[k]);
            most[k] = V(max)(value, most[k]);
        }
    for (; i < length; i += LANES) {
        VT value = V(load_part)(x + i, length - i < LANES ? length - i : LANES, 0);
        wrong[0] = V(fma)(value, (VT){0}, wrong[0]);
        least[0] = V(min)(value, least[0]);
        most[0] = V(max)(value, most[0]);
    }
    T least_of_all = -V(largest)(-V(min)(least[0], least[1])), most_of_all = V(largest)(V(max)(most[0], most[1]));
    if (least_of_all < *low) *low = least_of_all;
    if (most_of_all > *high) *high = most_of_all;
    *not_finite = wrong[0] + wrong[1];
}

static void N(extremes_of_columns)(const T *x, size_t length, T *low, T *high, VT *not_finite) {
    size_t i = 0;
    for (; i + LANES <= length; i += LANES) {
        VT value = V(load)(x + i);
        *not_finite = V(fma)(value, (VT){0}, *not_finite);
        V(store)(low + i, V(min)(value, V(load)(low + i)));
        V(store)(high + i, V(max)(value, V(load)(high + i)));
    }
    if (i < length) {
        size_t left = length - i;
        VT value = V(load_part)(x + i, left, 0);
        *not_finite = V(fma)(value, (VT){0}, *not_finite);
        V(store_part)(low + i, left, V(min)(value, V(load_part)(low + i, left, 0)));
        V(store_part)(high + i, left, V(max)(value, V(load_part)(high + i, left, 0)));
    }
}

static int N(extremes)(const T *x, rn_layout layout, T *low, T *high) {
    size_t total = N(total)(layout), channels = layout.channels;
    int threads = rn_threads(total / 64 + 1, (WIDE ? 0.11 : 0.06) * (double)total), wrong = 0;
    T *ends = rn_scratch(1, (size_t)threads * 2 * channels * sizeof(T));
    if (ends == NULL) return -1;
    memset(ends, 0, (size_t)threads * 2 * channels * sizeof(T));
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(total, first, last);
        T *least = ends + (size_t)RN_THREAD * 2 * channels, *most = least + channels;
        VT not_finite = {0};
        for (size_t at = first; at < last;) {
            N(piece) piece = N(piece_at)(layout, at, last);
            if (piece.columns)
                N(extremes_of_columns)(x + at, piece.length, least + piece.channel, most + piece.channel, &not_finite);
            else
                N(extremes_of_run)(x + at, piece.length, least + piece.channel, most + piece.channel, &not_finite);
            at += piece.length;
        }
        if (ANY((VI)(not_finite != not_finite))) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
    }
    memcpy(low, ends, channels * sizeof(T));
    memcpy(high, ends + channels, channels * sizeof(T));
    for (size_t thread = 1; thread < (size_t)threads; thread++) {
        const T *least = ends + thread * 2 * channels, *most = least + channels;
        for (size_t k = 0; k < channels; k++) {
            if (least[k] < low[k]) low[k] = least[k];
            if (most[k] > high[k]) high[k] = most[k];
        }
    }
    return wrong;
}

RN_INLINE double N(sum_of_magnitudes)(const T *x, size_t length, double factor, VT *not_finite) {
    vf64 sum = {0}, scale = vf64_set(factor);
    for (size_t i = 0; i < length;) {
        size_t stop = length - i < CHAIN ? length : i + CHAIN;
        vf64 part[2] = {{0}, {0}};
        for (; i < stop; i += LANES) {
            VT value = length - i < LANES ? V(load_part)(x + i, length - i, 0) : V(load)(x + i);
            *not_finite = V(fma)(value, (VT){0}, *not_finite);
            value = V(abs)(value);
#if WIDE
            part[0] += value * scale;
#else
            part[0] += vf64_low(value) * scale;
            part[1] += vf64_high(value) * scale;
#endif
        }
        sum += part[0] + part[1];
    }
    return vf64_sum(sum);
}

static int N(magnitudes)(const T *x, rn_layout layout, double factor, double *sums) {
    size_t channels = layout.channels, blocks = (layout.inner + BLOCK - 1) / BLOCK, wrong = 0;
    if (N(by_column)(layout)) {
        VT not_finite = {0};
        memset(sums, 0, channels * sizeof(double));
        for (size_t row = 0; row < layout.outer; row++)
            for (size_t k = 0; k < channels; k++) {
                T value = x[row * channels + k];
                not_finite[0] += value * 0;
                sums[k] += (double)(value < 0 ? -value : value) * factor;
            }
        return ANY((VI)(not_finite != not_finite));
    }
    size_t all = layout.outer * channels * blocks;
    double *partial = rn_scratch(1, all * sizeof(double));
    if (partial == NULL) return -1;
    int threads = rn_threads(all, 0.2 * (double)N(total)(layout));
    RN_PARALLEL(threads) {
        RN_SHARE(all, first, last);
        VT not_finite = {0};
        for (size_t block = first; block < last; block++) {
            size_t within = block % blocks * BLOCK;
            size_t length = layout.inner - within < BLOCK ? layout.inner - within : BLOCK;
            partial[block] =
                N(sum_of_magnitudes)(x + block / blocks * layout.inner + within, length, factor, &not_finite);
        }
        if (ANY((VI)(not_finite != not_finite))) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
    }
    for (size_t channel = 0; channel < channels; channel++) {
        sums[channel] = 0;
        for (size_t row = 0; row < layout.outer; row++)
            for (size_t block = 0; block < blocks; block++)
                sums[channel] += partial[(row * channels + channel) * blocks + block];
    }
    return (int)wrong;
}

/* ---- 16-bit formats ----------------------------------------------------------------------------------------------
 *
 * A format keeps the leading bits of T's own pattern: adding half a unit of the last kept bit to the pattern, or a little
 * less before an even digit, carries into the exponent and up to infinity by itself. Below the format's normal numbers the
 * unit is a constant, and adding and taking away a large number rounds to it. */
#define FRACTION (WIDE ? 52 : 23)

typedef struct {
    int cut; /* bits of T that the format lacks */
    T normal, magic, beyond; /* smallest normal number; rounds below it; the first number that is infinity */
} N(format);

RN_INLINE N(format) N(format_of)(int FORMAT) {
    /* magic: 1.5 times 2^FRACTION units of the format's smallest number. */
    if (FORMAT == RN_FLOAT16) return (N(format)){FRACTION - 10, (T)0x1p-14, WIDE ? (T)0x1.8p28 : (T)0x1.8p-1, (T)0x1p16};
#if WIDE
    return (N(format)){FRACTION - 7, 0x1p-126, 0x1.8p-81, 0x1p128};
#else
    return (N(format)){FRACTION - 7, 0, 0, INFINITY}; /* the exponents are T's own */
#endif
}

RN_INLINE VT N(rounded_vector)(VT x, int FORMAT) {
#if !WIDE && VEC_AVX512
    if (FORMAT == RN_FLOAT16)
        return (vf32)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif !WIDE && VEC_AVX2 && defined(__F16C__)
    if (FORMAT == RN_FLOAT16)
        return (vf32)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
    N(format) form = N(format_of)(FORMAT);
    VI bits = (VI)x, one = (VI)(VT){0} + 1;
    VI even = (VI)((VU)bits >> form.cut) & one;
    VI half = (one << (form.cut - 1)) - 1;
    /* Unsigned: the largest patterns, NaN, carry past the sign. */
    VT y = (VT)((VI)((VU)bits + (VU)half + (VU)even) & ~((one << form.cut) - 1));
    if (WIDE || FORMAT == RN_FLOAT16) {
        VT size = V(abs)(x);
        VT small = V(copysign)((size + form.magic) - form.magic, x);
        y = V(select)((VI)(size < form.normal), small, y);
        y = V(select)((VI)(V(abs)(y) >= form.beyond), V(copysign)(V(set)((T)INFINITY), x), y);
    }
    return V(select)((VI)(x != x), x, y);
}

RN_INLINE void N(round_range)(const T *x, T *y, size_t first, size_t last, int FORMAT, int stream) {
    size_t i = first;
    if (stream) {
        size_t head = N(to_alignment)(y + i, sizeof(T), last - i);
        if (head) V(store_part)(y + i, head, N(rounded_vector)(V(load_part)(x + i, head, 0), FORMAT));
        i += head;
        for (; i + LANES <= last; i += LANES) V(stream)(y + i, N(rounded_vector)(V(load)(x + i), FORMAT));
    }
    for (; i + 2 * LANES <= last; i += 2 * LANES) {
        VT low = V(load)(x + i), high = V(load)(x + i + LANES);
        V(store)(y + i, N(rounded_vector)(low, FORMAT));
        V(store)(y + i + LANES, N(rounded_vector)(high, FORMAT));
    }
    for (; i < last; i += LANES) {
        size_t left = last - i < LANES ? last - i : LANES;
        V(store_part)(y + i, left, N(rounded_vector)(V(load_part)(x + i, left, 0), FORMAT));
    }
}

static void N(round)(int format, const T *x, T *y, size_t count) {
    int stream = count * sizeof(T) > rn_cache_bytes() / 2 && x != y;
    int threads = rn_threads(count / 64 + 1, (WIDE ? 0.26 : 0.065) * (double)count);
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(count, first, last);
        if (format == RN_FLOAT16)
            N(round_range)(x, y, first, last, RN_FLOAT16, stream);
        else
            N(round_range)(x, y, first, last, RN_BFLOAT16, stream);
        if (stream) vec_fence();
    }
}

/* In float64, in units of the distance to the next number of the format: floor(units + random). */
RN_INLINE T N(stochastic)(T entry, double random, int digits, int lowest, int highest) {
    double x = (double)entry, size, y;
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)((bits >> 52) & 0x7ff) - 1023;
    if (exponent == 1024) return entry;
    exponent = (exponent < lowest ? lowest : exponent) - (digits - 1);
    int64_t up = (int64_t)(1023 + exponent) << 52, down = (int64_t)(1023 - exponent) << 52;
    double unit, inverse;
    memcpy(&unit, &up, sizeof unit);
    memcpy(&inverse, &down, sizeof inverse);
    y = floor(x * inverse + random) * unit;
    size = fabs(y);
    return (T)copysign(size >= ldexp(1.0, highest + 1) ? (double)INFINITY : size, x);
}

static void N(round_stochastic)(int format, const T *x, const double *random, T *y, size_t count) {
    int digits = format == RN_FLOAT16 ? 11 : format == RN_BFLOAT16 ? 8 : 24;
    int lowest = format == RN_FLOAT16 ? -14 : -126, highest = format == RN_FLOAT16 ? 15 : 127;
    for (size_t i = 0; i < count; i++) y[i] = N(stochastic)(x[i], random[i], digits, lowest, highest);
}

/* ---- levels of a logarithm --------------------------------------------------------------------------------------- */

#define CHUNK ((size_t)64)

/* values[level] for LANES levels; a table of 32 entries lies in two registers. */
RN_INLINE VT N(look_up)(const T *values, const int32_t *level, int SHORT) {
#if !WIDE && VEC_AVX512
    __m512i at = _mm512_loadu_si512(level);
    if (SHORT) return (VT)_mm512_permutex2var_ps(_mm512_loadu_ps(values), at, _mm512_loadu_ps(values + 16));
    return (VT)_mm512_i32gather_ps(at, values, 4);
#elif !WIDE && VEC_AVX2
    (void)SHORT;
    return (VT)_mm256_i32gather_ps(values, _mm256_loadu_si256((const __m256i *)level), 4);
#elif WIDE && VEC_AVX512
    (void)SHORT;
    return (VT)_mm512_i32gather_pd(_mm256_loadu_si256((const __m256i *)level), values, 8);
#else
    (void)SHORT;
    T lanes[LANES];
    for (size_t i = 0; i < LANES; i++) lanes[i] = values[level[i]];
    return V(load)(lanes);
#endif
}

/* By tables. */
static void N(levels_by_tables)(const rn_search *search, const T *a, T divisor, T addend, size_t count, int32_t *level) {
    const T *threshold = search->threshold;
    for (size_t i = 0; i < count; i++) {
        T t = a[i] / divisor + addend;
#if WIDE
        int64_t bits;
#else
        int32_t bits;
#endif
        memcpy(&bits, &t, sizeof bits);
        int64_t bucket = (int64_t)(bits >> search->shift) - search->base, last = search->buckets - 1;
        int64_t at = bucket < 0 ? 0 : bucket > last ? last : bucket;
        level[i] = search->before[at] + (t >= threshold[at]);
    }
}

/* Levels of CHUNK entries. search->start is that of the entries themselves: the divisor is in it. */
RN_INLINE void N(levels_of_chunk)(const rn_search *search, const T *a, T divisor, T addend, int32_t *level, VT *not_finite,
                                  VT *least) {
    VT more = V(set)(addend);
    vf32 nearest = vf32_set(1);
#pragma GCC unroll 2
    for (size_t i = 0; i < CHUNK; i += STEP) {
        VT x[2];
        EACH_PART {
            x[part_] = V(load)(a + i + (size_t)part_ * LANES);
            *not_finite = V(fma)(x[part_], (VT){0}, *not_finite);
            *least = V(min)(x[part_], *least);
            x[part_] += more;
        }
#if WIDE
        /* What float32 rounds to 0 is not 0: the smallest float32 has no level by logarithm either. */
        EACH_PART x[part_] = V(select)((VI)(x[part_] > 0), V(max)(x[part_], V(set)(0x1p-149)), x[part_]);
        vf32 t = vf32_from_vf64(x[0], x[1]);
#else
        vf32 t = x[0];
#endif
        vi32_store(level + i, levels_near(t, search, &nearest));
    }
    if (__builtin_expect(!(vf32_smallest(nearest) > (float)search->margin), 0))
        N(levels_by_tables)(search, a, divisor, addend, CHUNK, level);
}

static void N(levels_of)(const rn_search *search, const T *a, T divisor, T addend, size_t count, int32_t *level,
                         VT *not_finite, VT *least) {
    if (count == CHUNK && search->margin < 0.5) {
        N(levels_of_chunk)(search, a, divisor, addend, level, not_finite, least);
        return;
    }
    for (size_t i = 0; i < count; i += LANES) {
        VT x = V(load_part)(a + i, count - i < LANES ? count - i : LANES, 0);
        *not_finite = V(fma)(x, (VT){0}, *not_finite);
        *least = V(min)(x, *least);
    }
    N(levels_by_tables)(search, a, divisor, addend, count, level);
}

RN_INLINE void N(deliver_levels)(const rn_search *search, const int32_t *level, size_t count, const T *values, T *y,
                                 uint8_t *q, uint8_t *mask) {
    if (count == CHUNK) {
        if (y && search->levels < 32)
            for (size_t i = 0; i < CHUNK; i += LANES) V(store)(y + i, N(look_up)(values, level + i, 1));
        else if (y)
            for (size_t i = 0; i < CHUNK; i += LANES) V(store)(y + i, N(look_up)(values, level + i, 0));
        if (q) {
            vi32 most = vi32_set(search->code_most);
            for (size_t i = 0; i < CHUNK; i += STEP) {
                vi32 code = vi32_load(level + i) * search->code_slope + search->code_start;
                code = vi32_select(code > most, most, code);
                store_bytes(q + i, code & ~(code < 0));
            }
        }
        if (mask)
            for (size_t i = 0; i < CHUNK; i += STEP) store_bytes(mask + i, (vi32_load(level + i) == 0) & 1);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        int code = level[i] * search->code_slope + search->code_start;
        if (y) y[i] = values[level[i]];
        if (q) q[i] = (uint8_t)(code < 0 ? 0 : code > search->code_most ? search->code_most : code);
        if (mask) mask[i] = level[i] == 0;
    }
}

static int N(levels)(rn_search search, const T *a, T divisor, T addend, size_t count, const T *values, T *y, uint8_t *q,
                     uint8_t *mask) {
    int threads = rn_threads(count / 64 + 1, (WIDE ? 0.9 : 0.4) * (double)count), wrong = 0;
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(count, first, last);
        VT not_finite = {0}, least = {0};
        int32_t level[CHUNK];
        for (size_t at = first; at < last; at += CHUNK) {
            size_t length = last - at < CHUNK ? last - at : CHUNK;
            N(levels_of)(&search, a + at, divisor, addend, length, level, &not_finite, &least);
            N(deliver_levels)(&search, level, length, values, y ? y + at : NULL, q ? q + at : NULL,
                              mask ? mask + at : NULL);
        }
        if (ANY((VI)(not_finite != not_finite)) || ANY((VI)(least < 0))) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
    }
    return wrong;
}

/* LANES entries, whose levels are given: their cotangents, and terms of the sum. */
RN_INLINE VT N(levels_back)(VT a, VT addend, VT value, VT dy, VI kept, VI highest, int DENOMINATOR, VT *term) {
    VT below = DENOMINATOR == RN_SLOPE_ONE ? (VT){0} + 1 : DENOMINATOR == RN_SLOPE_ENTRY ? a : a + addend;
    VT slope = (VT)((VI)(value != 0) & (VI)(value / below)), up = (VT)(kept & (VI)dy);
    *term = DENOMINATOR == RN_SLOPE_SEARCHED ? up * (slope - 1) : (VT)(highest & (VI)dy);
    return up * slope;
}

RN_INLINE double N(levels_back_chunk)(const rn_search *search, const int32_t *level, const T *a, T addend, size_t count,
                                      const T *values, int first, int last, const T *dy, T *da, int DENOMINATOR) {
    vf64 sum = {0};
    for (size_t i = 0; i < count; i += LANES) {
        size_t left = count - i < LANES ? count - i : LANES;
        VI kept, highest;
        for (size_t k = 0; k < LANES; k++) {
            kept[k] = level[i + k] >= first && level[i + k] <= last ? -1 : 0;
            highest[k] = level[i + k] == search->levels ? -1 : 0;
        }
        VT value = N(look_up)(values, level + i, 0), term;
        V(store_part)(da + i, left,
                      N(levels_back)(V(load_part)(a + i, left, 1), V(set)(addend), value, V(load_part)(dy + i, left, 0),
                                     kept, highest, DENOMINATOR, &term));
        sum += N(widened_sum)(term);
    }
    return vf64_sum(sum);
}

static int N(levels_backward)(rn_search search, int denominator, const T *a, T divisor, T addend, size_t count,
                              const T *values, int first_kept, int last_kept, const T *dy, T *da, double *sum) {
    size_t blocks = (count + BLOCK - 1) / BLOCK;
    double *partial = rn_scratch(1, blocks * sizeof(double));
    if (partial == NULL) return -1;
    int threads = rn_threads(blocks, 0.8 * (double)count);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        VT not_finite = {0}, least = {0};
        int32_t level[CHUNK] = {0};
        for (size_t block = first; block < last; block++) {
            size_t end = (block + 1) * BLOCK < count ? (block + 1) * BLOCK : count;
            double total = 0;
#define BACK(DENOMINATOR)                                                                                              \
    N(levels_back_chunk)(&search, level, a + at, addend, length, values, first_kept, last_kept, dy + at, da + at, DENOMINATOR)
            for (size_t at = block * BLOCK; at < end; at += CHUNK) {
                size_t length = end - at < CHUNK ? end - at : CHUNK;
                N(levels_of)(&search, a + at, divisor, addend, length, level, &not_finite, &least);
                if (denominator == RN_SLOPE_SEARCHED)
                    total += BACK(RN_SLOPE_SEARCHED);
                else if (denominator == RN_SLOPE_ENTRY)
                    total += BACK(RN_SLOPE_ENTRY);
                else
                    total += BACK(RN_SLOPE_ONE);
            }
#undef BACK
            partial[block] = total;
        }
    }
    *sum = 0;
    for (size_t block = 0; block < blocks; block++) *sum += partial[block];
    return 0;
}

static void N(lookup)(const uint8_t *q, const uint8_t *mask, const T *values, T *y, size_t count) {
    int threads = rn_threads(count / 64 + 1, 0.5 * (double)count);
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(count, first, last);
        if (mask)
            for (size_t i = first; i < last; i++) y[i] = mask[i] ? 0 : values[q[i]];
        else
            for (size_t i = first; i < last; i++) y[i] = values[q[i]];
    }
}

/* ---- codes with a shift for each channel ------------------------------------------------------------------------- */

/* clip(round(x / scale 2^shift)) or, with a random number from 0 to 1, the integer below that much more; all in float64,
 * where numbers below 2^51 are rounded by addition. */
RN_INLINE double N(shift_code)(T x, double scale, double power, double highest, double random, int RANDOM) {
    double u = (double)x / scale * power;
    if (RANDOM) u += random;
    double whole = (u + 0x1.8p52) - 0x1.8p52;
    if (RANDOM) whole = whole > u ? whole - 1 : whole;
    whole = whole > highest ? highest : whole;
    return whole < -highest ? -highest : whole;
}

RN_INLINE void N(shift_run)(const T *x, double scale, const double *powers, const double *random, double highest,
                            size_t length, void *y, int BYTES, int RANDOM, int COLUMNS) {
    int8_t *bytes = y;
    int16_t *words = y;
    for (size_t i = 0; i < length; i++) {
        double code = N(shift_code)(x[i], scale, powers[COLUMNS ? i : 0], highest, RANDOM ? random[i] : 0, RANDOM);
        if (BYTES)
            bytes[i] = (int8_t)(int32_t)code;
        else
            words[i] = (int16_t)(int32_t)code;
    }
}

#if !WIDE
/* Codes to nearest of 8 bits with one power of 2, by products with the reciprocal where those are sure: how many. */
static size_t N(shift_by_products)(const T *x, double scale, double power, int highest, size_t length, int8_t *y) {
    N(product) product;
    if (!N(product_of)((T)(scale / power), 0, -highest, highest, &product)) return 0;
    VT ignored = {0};
    vi32 to_code = -(vi32)vf32_set(SHIFT);
    size_t i = 0;
    for (; i + 4 * LANES <= length; i += 4 * LANES) {
        vi32 four[4];
        VT farthest = {0};
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++)
            four[k] = (vi32)N(shifted_product)(V(load)(x + i + k * LANES), product, &ignored, &farthest) + to_code;
        store_bytes_of_four((uint8_t *)y + i, four, 0, 0);
        if (__builtin_expect(ANY((VI)(farthest > product.most)), 0))
            N(shift_run)(x + i, scale, &power, NULL, (double)highest, 4 * LANES, y + i, 1, 0, 0);
    }
    return i;
}
#endif

static void N(shift_piece)(int bytes, const T *x, double scale, const double *powers, const double *random, double highest,
                           size_t length, void *y, int columns) {
#define RUN(BYTES, RANDOM, COLUMNS) N(shift_run)(x, scale, powers, random, highest, length, y, BYTES, RANDOM, COLUMNS)
    if (bytes && random && columns)
        RUN(1, 1, 1);
    else if (bytes && random)
        RUN(1, 1, 0);
    else if (bytes && columns)
        RUN(1, 0, 1);
    else if (bytes) {
#if !WIDE
        size_t done = N(shift_by_products)(x, scale, powers[0], (int)highest, length, y);
        x += done, length -= done, y = (int8_t *)y + done;
#endif
        RUN(1, 0, 0);
    } else if (random && columns)
        RUN(0, 1, 1);
    else if (random)
        RUN(0, 1, 0);
    else if (columns)
        RUN(0, 0, 1);
    else
        RUN(0, 0, 0);
#undef RUN
}

static void N(shift_codes)(int bytes, const T *x, double scale, const double *powers, const double *random, int highest,
                           rn_layout layout, size_t begin, size_t end, void *y) {
    size_t item = bytes ? 1 : 2;
    int threads = rn_threads((end - begin) / 64 + 1, 0.6 * (double)(end - begin));
    RN_PARALLEL(threads) {
        SHARE_ENTRIES(end - begin, first, last);
        for (size_t at = begin + first; at < begin + last;) {
            N(piece) piece = N(piece_at)(layout, at, begin + last);
            N(shift_piece)(bytes, x + at, scale, powers + piece.channel, random ? random + (at - begin) : NULL,
                           (double)highest, piece.length, (char *)y + at * item, piece.columns);
            at += piece.length;
        }
    }
}

/* ---- sums of codewords ------------------------------------------------------------------------------------------- */

/* A code as an unsigned number: a negative one is too large for any codebook. */
RN_INLINE uint64_t N(code_at)(const void *codes, int bytes, size_t i) {
    if (bytes == 1) return ((const uint8_t *)codes)[i];
    if (bytes == 2) return ((const uint16_t *)codes)[i];
    if (bytes == 4) return ((const uint32_t *)codes)[i];
    return ((const uint64_t *)codes)[i];
}

/* One row; whether all codes are within the codebooks. Codewords are added in the order of their books. */
RN_INLINE int N(codewords_row)(const void *codes, int bytes, const T *books, T scale, size_t first, size_t groups,
                               size_t count, size_t words, size_t width, T *y) {
    VT s = V(set)(scale);
    for (size_t group = 0; group < groups; group++) {
        size_t at = first + group * count;
        for (size_t m = 0; m < count; m++)
            if (N(code_at)(codes, bytes, at + m) >= words) return 0;
        for (size_t i = 0; i < width; i += LANES) {
            size_t left = width - i < LANES ? width - i : LANES;
            VT sum = {0};
            for (size_t m = 0; m < count; m++) {
                const T *word = books + (m * words + N(code_at)(codes, bytes, at + m)) * width + i;
                VT part = left == LANES ? V(load)(word) : V(load_part)(word, left, 0);
                sum = m == 0 ? part : sum + part;
            }
            if (left == LANES)
                V(store)(y + group * width + i, s * sum);
            else
                V(store_part)(y + group * width + i, left, s * sum);
        }
    }
    return 1;
}

static int N(codewords)(const void *codes, int code_bytes, const T *books, const T *scales, size_t rows, size_t groups,
                        size_t count, size_t words, size_t width, T *y) {
    int threads = rn_threads(rows, 1.5 * (double)(rows * groups * count)), wrong = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            T *to = y + row * groups * width;
            size_t at = row * groups * count;
            int right;
#define ROW(BYTES) N(codewords_row)(codes, BYTES, books, scales[row], at, groups, count, words, width, to)
            if (code_bytes == 1)
                right = ROW(1);
            else if (code_bytes == 2)
                right = ROW(2);
            else if (code_bytes == 4)
                right = ROW(4);
            else
                right = ROW(8);
#undef ROW
            if (!right) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
        }
    }
    return wrong;
}

#undef BLOCK
#undef CHAIN
#undef STEP
#undef PARTS
#undef EACH_PART
#undef OUTSIDE
#undef SHARE_ENTRIES
#undef FRACTION
#undef CHUNK
