/* Included by rounding.c once for float and once for double. */

RN_INLINE VT N(load_some)(const T *from, size_t part, T fill) {
    return part >= LANES ? V(load)(from) : V(load_part)(from, part, fill);
}
RN_INLINE void N(put_some)(T *to, size_t part, VT value, int stream) {
    if (part >= LANES)
        V(put)(to, value, stream);
    else
        V(store_part)(to, part, value);
}

/* Whether a result that is written past the caches pays: all that moves exceeds them. */
RN_INLINE int N(streams)(size_t count, size_t arrays, const void *a, const void *b, const void *c) {
    return count * arrays * sizeof(T) > rn_cache_bytes() &&
           (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) & (REFNORM_VECTOR_BYTES - 1)) == 0;
}

/* ---- the rectified sigmoid ---------------------------------------------------------------------------------------- */

/* h, and its slope 3/10 (1 - tanh(v / 2)^2) = 3/10 - (h - 1/2)^2 / (6/5), 0 where h is 0 or 1. */
RN_INLINE VT N(rectified)(VT v, VT *slope) {
    /* max gives its second where v is NaN: h is 0 there, as in the reference. */
    VT near = V(min)(V(max)(v, V(set)((T)-FARTHEST_LOGIT)), V(set)((T)FARTHEST_LOGIT));
    VT ratio = N(bend)(near * near), away = near * ratio, h = V(fma)(near, ratio, V(set)((T)0.5));
    VI inside = (h > 0) & (h < 1);
    *slope = V(select)(inside, V(fma)(away * (T)(-1 / 1.2), away, V(set)((T)0.3)), (VT){0});
    return V(min)(V(max)(h, (VT){0}), V(set)(1));
}

#define EACH_BLOCK(count, nanoseconds, at, own)                                                     \
    int threads = rn_threads((count + BLOCK - 1) / BLOCK, (nanoseconds) * (double)(count));         \
    RN_PARALLEL(threads) {                                                                          \
        RN_SHARE((count + BLOCK - 1) / BLOCK, first, last);                                         \
        for (size_t block = first; block < last; block++) {                                         \
            size_t at = block * BLOCK, own = count - at < BLOCK ? count - at : BLOCK;

#define END_EACH_BLOCK \
        }              \
        vec_fence();   \
    }

static void N(rectify)(const T *v, T *h, T *slope, size_t count) {
    int stream = h != v && N(streams)(count, slope ? 3 : 2, h, slope, NULL);
    EACH_BLOCK(count, 0.1 * sizeof(T), at, own) {
        VT made;
        if (slope)
            for (size_t i = 0; i < own; i += LANES) {
                N(put_some)(h + at + i, own - i, N(rectified)(N(load_some)(v + at + i, own - i, 0), &made), stream);
                N(put_some)(slope + at + i, own - i, made, stream);
            }
        else
            for (size_t i = 0; i < own; i += LANES)
                N(put_some)(h + at + i, own - i, N(rectified)(N(load_some)(v + at + i, own - i, 0), &made), stream);
    }
    END_EACH_BLOCK
}

RN_INLINE VT N(passed)(VT slope, VT dy) { return V(select)(slope == 0, (VT){0}, slope * dy); }

static void N(product)(const T *slope, const T *dy, T *dx, size_t count) {
    int stream = N(streams)(count, 3, dx, NULL, NULL);
    EACH_BLOCK(count, 0.08 * sizeof(T), at, own) {
        for (size_t i = 0; i < own; i += LANES)
            N(put_some)(dx + at + i, own - i,
                        N(passed)(N(load_some)(slope + at + i, own - i, 0), N(load_some)(dy + at + i, own - i, 0)), stream);
    }
    END_EACH_BLOCK
}

static void N(scaled)(const T *x, double factor, T *y, size_t count) {
    int stream = N(streams)(count, 2, y, NULL, NULL);
    VT by = V(set)((T)factor);
    EACH_BLOCK(count, 0.08 * sizeof(T), at, own) {
        for (size_t i = 0; i < own; i += LANES)
            N(put_some)(y + at + i, own - i, by * N(load_some)(x + at + i, own - i, 0), stream);
    }
    END_EACH_BLOCK
}

/* ---- the regulariser ---------------------------------------------------------------------------------------------- */

/* |a|^(exponent - 1), whose product with |a| is the power of the sum. */
RN_INLINE VT N(power_below)(VT size, double exponent) {
    if (exponent == 2) return size;
#if WIDE
    return power_of(size, vf64_set(exponent - 1), 1);
#else
    vf64 below = vf64_set(exponent - 1);
    return vf32_from_vf64(power_of(vf64_low(size), below, 0), power_of(vf64_high(size), below, 0));
#endif
}

/* The sum of 1 - |a|^exponent, a = 2 h - 1, over at most BLOCK entries. */
RN_INLINE double N(regularise_block)(const T *h, T *slope, size_t count, double exponent, int stream) {
    vf64 sum = {0};
    for (size_t i = 0; i < count; i += LANES) {
        VT away = 2 * N(load_some)(h + i, count - i, 1) - 1, size = V(abs)(away); /* 1 adds nothing */
        VT below = N(power_below)(size, exponent);
#if WIDE
        sum += vf64_fma(-size, below, vf64_set(1));
#else
        sum += vf64_fma(-vf64_low(size), vf64_low(below), vf64_set(1)) +
               vf64_fma(-vf64_high(size), vf64_high(below), vf64_set(1));
#endif
        if (slope) {
            /* The sign of 0 is 0, and that of NaN is NaN whatever the exponent. */
            VT signed_below = V(select)(away == 0, (VT){0}, V(copysign)(below, away));
            N(put_some)(slope + i, count - i, V(select)(away != away, away, signed_below), stream);
        }
    }
    return vf64_sum(sum);
}

static int N(regularise)(const T *h, T *slope, size_t count, double exponent, double *sum) {
    size_t blocks = (count + BLOCK - 1) / BLOCK;
    double own_parts[16], *parts = blocks <= 16 ? own_parts : malloc(blocks * sizeof *parts), total = 0;
    if (parts == NULL) return -1;
    int stream = slope != NULL && N(streams)(count, 2, slope, NULL, NULL);
    double nanoseconds = exponent == 2 ? 0.1 * sizeof(T) : 2.0;
    EACH_BLOCK(count, nanoseconds, at, own) {
        parts[block] = N(regularise_block)(h + at, slope ? slope + at : NULL, own, exponent, stream);
    }
    END_EACH_BLOCK
    for (size_t block = 0; block < blocks; block++) total += parts[block];
    *sum = total;
    if (parts != own_parts) free(parts);
    return 0;
}

/* ---- quantized weights -------------------------------------------------------------------------------------------- */

/* Beyond any grid of 16 bits, and small enough for every rounding below to be exact. */
#define OFF_GRID 131072

typedef struct {
    VT lowest, highest;
    int variable;
} N(soft_grid);

/* The clipped code and its slope by v, 0 where the code leaves the grid. */
RN_INLINE VT N(soft_code)(const int variable, const N(soft_grid) *grid, VT u, VT v, VT *slope) {
    VT code;
    u = V(min)(V(max)(u, V(set)(-OFF_GRID)), V(set)(OFF_GRID));
    VT nearest = V(rint_small)(u), below = nearest - V(select)(nearest > u, V(set)(1), (VT){0});
    if (variable == RN_ROUND_SIGMOID) {
        code = below + N(rectified)(v, slope);
    } else if (variable == RN_ROUND_DIRECT) {
        *slope = V(select)((v > 0) & (v < 1), V(set)(1), (VT){0});
        code = below + V(min)(V(set)(1), V(max)((VT){0}, v)); /* NaN passes: it is the second */
    } else {
        *slope = V(select)(V(abs)(v) <= 1, V(set)(1), (VT){0});
        code = V(rint_small)(u + V(min)(V(set)(1), V(max)(V(set)(-1), v)));
    }
    *slope = V(select)((code >= grid->lowest) & (code <= grid->highest), *slope, (VT){0});
    return V(min)(grid->highest, V(max)(grid->lowest, code));
}

/* `count` entries of one row; `scale` is NULL where all have scale `same`. */
RN_INLINE VT N(soft_run)(const int variable, const int gradient, const N(soft_grid) *grid, const T *weight, const T *v,
                         const T *scale, VT same, T *y, T *q, T *slope, size_t count, int stream) {
    VT odd = {0};
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i;
        VT w = N(load_some)(weight + i, part, 0), s = scale ? N(load_some)(scale + i, part, 1) : same, made;
        VT code = N(soft_code)(variable, grid, w / s, N(load_some)(v + i, part, 0), &made);
        odd += w - w; /* 0, and NaN from the first infinity or NaN on */
        N(put_some)(y + i, part, s * code, stream);
        if (gradient) {
            N(put_some)(q + i, part, code, stream);
            N(put_some)(slope + i, part, made, stream);
        }
    }
    return odd;
}

static int N(soft_quantize)(const rn_soft_quantization *call) {
    const T *weight = call->weight, *v = call->v, *scale = call->scale;
    T *y = call->y, *q = call->q, *slope = call->slope;
    size_t rows = call->per_column ? call->rows : 1, columns = call->per_column ? call->columns : call->rows * call->columns;
    size_t blocks = (columns + BLOCK - 1) / BLOCK;
    const N(soft_grid) grid = {V(set)((T)call->lowest), V(set)((T)call->highest), call->variable};
    const int gradient = q != NULL;
    int stream = y != weight && y != v && (rows == 1 || columns * sizeof(T) % REFNORM_VECTOR_BYTES == 0) &&
                 N(streams)(rows * columns, gradient ? 5 : 3, y, q, slope);
    int threads = rn_threads(rows * blocks, 0.3 * sizeof(T) * (double)rows * (double)columns), finite = 1;
    VT same = V(set)(call->per_column ? 1 : *scale);
    RN_PARALLEL(threads) {
        RN_SHARE(rows * blocks, first, last);
        VT odd = {0};
        for (size_t unit = first; unit < last; unit++) {
            size_t i = unit % blocks * BLOCK, at = unit / blocks * columns + i;
            size_t count = columns - i < BLOCK ? columns - i : BLOCK;
            const T *scales = call->per_column ? scale + i : NULL;
#define RUN(VARIABLE, GRADIENT)                                                                              \
    odd += N(soft_run)(VARIABLE, GRADIENT, &grid, weight + at, v + at, scales, same, y + at, GRADIENT ? q + at : NULL, \
                       GRADIENT ? slope + at : NULL, count, stream)
#define BY_GRADIENT(VARIABLE)      \
    do {                           \
        if (gradient)              \
            RUN(VARIABLE, 1);      \
        else                       \
            RUN(VARIABLE, 0);      \
    } while (0)
            if (call->variable == RN_ROUND_SIGMOID)
                BY_GRADIENT(RN_ROUND_SIGMOID);
            else if (call->variable == RN_ROUND_DIRECT)
                BY_GRADIENT(RN_ROUND_DIRECT);
            else
                BY_GRADIENT(RN_ROUND_STE);
#undef BY_GRADIENT
#undef RUN
        }
        T lanes[LANES];
        V(store)(lanes, odd);
        for (size_t i = 0; i < LANES; i++)
            if (lanes[i] != lanes[i]) __atomic_store_n(&finite, 0, __ATOMIC_RELAXED);
        vec_fence();
    }
    return finite;
}

/* dv of one run, and dy q added to the sums of its columns: sums[i] of the run's entry i. */
RN_INLINE void N(soft_back_columns)(const rn_soft_quantization_back *call, size_t at, size_t count, const T *scale,
                                    double *sums, int stream) {
    const T *dy = (const T *)call->dy + at, *q = (const T *)call->q + at, *slope = (const T *)call->slope + at;
    T *dv = (T *)call->dv + at;
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i;
        VT d = N(load_some)(dy + i, part, 0), code = N(load_some)(q + i, part, 0);
        N(put_some)(dv + i, part, N(passed)(N(load_some)(slope + i, part, 0), d * N(load_some)(scale + i, part, 0)), stream);
        /* The sums have room for whole vectors. */
#if WIDE
        vf64_store(sums + i, vf64_fma(d, code, vf64_load(sums + i)));
#else
        vf64_store(sums + i, vf64_fma(vf64_low(d), vf64_low(code), vf64_load(sums + i)));
        vf64_store(sums + i + VF64, vf64_fma(vf64_high(d), vf64_high(code), vf64_load(sums + i + VF64)));
#endif
    }
}

/* As above with one scale for all, at most BLOCK entries; returns the sum. */
RN_INLINE double N(soft_back_block)(const rn_soft_quantization_back *call, size_t at, size_t count, VT scale, int stream) {
    const T *dy = (const T *)call->dy + at, *q = (const T *)call->q + at, *slope = (const T *)call->slope + at;
    T *dv = (T *)call->dv + at;
    vf64 sum = {0};
    for (size_t i = 0; i < count; i += LANES) {
        size_t part = count - i;
        VT d = N(load_some)(dy + i, part, 0), code = N(load_some)(q + i, part, 0);
        N(put_some)(dv + i, part, N(passed)(N(load_some)(slope + i, part, 0), d * scale), stream);
#if WIDE
        sum = vf64_fma(d, code, sum);
#else
        sum = vf64_fma(vf64_low(d), vf64_low(code), vf64_fma(vf64_high(d), vf64_high(code), sum));
#endif
    }
    return vf64_sum(sum);
}

static int N(soft_quantize_back)(const rn_soft_quantization_back *call) {
    size_t rows = call->rows, columns = call->columns, count = rows * columns;
    size_t padded = (columns + VF32 - 1) / VF32 * VF32;
    size_t blocks = call->per_column ? (rows + ROW_BLOCK - 1) / ROW_BLOCK : (count + BLOCK - 1) / BLOCK;
    size_t each = call->per_column ? padded : 1;
    double *parts = calloc((blocks ? blocks : 1) * (each ? each : 1), sizeof *parts); /* an array without rows has sums, 0 */
    if (parts == NULL) return -1;
    const T *scale = call->scale;
    T *dscale = call->dscale;
    int stream = (!call->per_column || columns * sizeof(T) % REFNORM_VECTOR_BYTES == 0) &&
                 N(streams)(count, 4, call->dv, NULL, NULL);
    int threads = rn_threads(blocks, 0.2 * sizeof(T) * (double)count);
    VT same = V(set)(call->per_column ? 1 : *scale);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        for (size_t block = first; block < last; block++) {
            if (!call->per_column) {
                size_t at = block * BLOCK;
                parts[block] = N(soft_back_block)(call, at, count - at < BLOCK ? count - at : BLOCK, same, stream);
                continue;
            }
            size_t row_end = (block + 1) * ROW_BLOCK < rows ? (block + 1) * ROW_BLOCK : rows;
            for (size_t i = 0; i < columns; i += BLOCK / 4) {
                size_t own = columns - i < BLOCK / 4 ? columns - i : BLOCK / 4;
                for (size_t row = block * ROW_BLOCK; row < row_end; row++)
                    N(soft_back_columns)(call, row * columns + i, own, scale + i, parts + block * padded + i, stream);
            }
        }
        vec_fence();
    }
    /* The sums are stored apart from the loops that take them. */
    for (size_t block = 1; block < blocks; block++)
        for (size_t i = 0; i < each; i++) parts[i] += parts[block * each + i];
    for (size_t i = 0; i < (call->per_column ? columns : 1); i++) dscale[i] = (T)parts[i];
    free(parts);
    return 0;
}

#undef EACH_BLOCK
#undef END_EACH_BLOCK
