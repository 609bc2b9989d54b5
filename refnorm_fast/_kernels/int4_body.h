/* Layers on 4-bit weights for the type REAL, by panels; included by int4.c after tile.h.
 *
 * The weights of a few panels and of DEPTH_BLOCK inputs are unpacked to floats in the order that the tiles read, and all
 * rows pass over them: unpacking is shared by the rows, and what was unpacked stays in the second-level cache. */

/* `count` inputs from k on (a multiple of 8) of the outputs from n on, as a panel: TILE_COLUMNS entries an input, zeros
 * where there is no output. */
static void TILE(unpack)(const rn_int4_weight *weight, size_t n, size_t k, size_t count, REAL *panel) {
    enum { LANES = sizeof(TILE_VEC) / sizeof(REAL), COLUMNS = 2 * LANES };
    const size_t bytes = (weight->depth + 1) / 2, groups = int4_groups(weight), group = weight->group;
    const REAL *scale = (const REAL *)weight->scale + n * groups;
    const uint8_t *zero = weight->zero + n * groups, *codes = weight->codes + n * bytes;
    size_t columns = weight->width - n < COLUMNS ? weight->width - n : COLUMNS, i = 0;
#if VEC_AVX512
    if (sizeof(REAL) == 4 && columns == COLUMNS && group % 8 == 0)
        for (; i + WORD_BLOCK <= count; i += WORD_BLOCK)
            for (size_t j = 0; j < COLUMNS; j += LANES)
                unpack_block(codes + j * bytes + (k + i) / 2, bytes, (const float *)scale + j * groups, zero + j * groups,
                             groups, k + i, group, (float *)panel + i * COLUMNS + j);
#endif
    /* Eight inputs of an output are a word of 32 bits, LANES outputs a vector of words. */
    for (; columns == COLUMNS && (group % 8 == 0 || group >= weight->depth) && i + 8 <= count; i += 8)
        for (size_t j = 0; j < COLUMNS; j += LANES) {
            REAL offsets[LANES], steps[LANES];
            TILE_WORD words[LANES];
            for (size_t lane = 0; lane < LANES; lane++) {
                uint32_t word;
                memcpy(&word, codes + (j + lane) * bytes + (k + i) / 2, 4);
                words[lane] = word;
                size_t at = (j + lane) * groups + (k + i) / group;
                offsets[lane] = TILE_MAGIC_VALUE + (REAL)zero[at];
                steps[lane] = scale[at];
            }
            TILE_WORDS all;
            memcpy(&all, words, sizeof all);
            TILE_VEC offset = TILE_VECTOR(load)(offsets), step = TILE_VECTOR(load)(steps);
#pragma GCC unroll 8
            for (int nibble = 0; nibble < 8; nibble++)
                TILE_VECTOR(store)(panel + (i + (size_t)nibble) * COLUMNS + j,
                                   ((TILE_VEC)(((all >> (4 * nibble)) & 15) | TILE_MAGIC) - offset) * step);
        }
    for (; i < count; i++)
        for (size_t j = 0; j < COLUMNS; j++)
            panel[i * COLUMNS + j] =
                j < columns ? (REAL)int4_offset(codes + j * bytes, zero + j * groups, k + i, group) * scale[j * groups + (k + i) / group] : 0;
}

/* out[:, n : n + COLUMNS] (+)= x @ panel for `rows` rows and `count` inputs. */
static void TILE(panel_product)(const rn_int4_weight *weight, const REAL *x, size_t rows, const REAL *panel, size_t count,
                                const REAL *bias, size_t n, REAL *out, int add) {
    enum { COLUMNS = 2 * sizeof(TILE_VEC) / sizeof(REAL) };
    size_t width = weight->width, columns = width - n < COLUMNS ? width - n : COLUMNS;
    if (columns == COLUMNS) {
        TILE(tile)((int)rows, x, weight->depth, panel, count, out + n, width, bias ? bias + n : NULL, add);
        return;
    }
    REAL edge[TILE_ROWS * COLUMNS] __attribute__((aligned(64))), start[COLUMNS] = {0};
    if (bias != NULL) memcpy(start, bias + n, columns * sizeof(REAL));
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < COLUMNS; j++) edge[row * COLUMNS + j] = add && j < columns ? out[row * width + n + j] : 0;
    TILE(tile)((int)rows, x, weight->depth, panel, count, edge, COLUMNS, start, add);
    for (size_t row = 0; row < rows; row++) memcpy(out + row * width + n, edge + row * COLUMNS, columns * sizeof(REAL));
}

static int TILE(by_panels)(const rn_int4_weight *weight, const REAL *x, size_t rows, const REAL *bias, REAL *out) {
    enum { COLUMNS = 2 * sizeof(TILE_VEC) / sizeof(REAL), DEPTH_BLOCK = 256, AT_ONCE = 4 };
    const size_t depth = weight->depth, width = weight->width, panels = (width + COLUMNS - 1) / COLUMNS;
    if (rows == 0 || width == 0) return 0;
    double lanes = COLUMNS / 2;
    int threads = rn_threads(panels, ((double)rows / 6 + 1) / lanes * (double)depth * (double)width), failed = 0;
    rn_shares shares = rn_share_out(panels, 1, threads);
    RN_PARALLEL(threads) {
        REAL *room = rn_scratch(0, AT_ONCE * DEPTH_BLOCK * COLUMNS * sizeof(REAL));
        if (room == NULL) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        for (size_t count, first; room != NULL && (first = rn_take(&shares, AT_ONCE, &count), count > 0);)
            for (size_t k = 0; k < depth; k += DEPTH_BLOCK) {
                size_t deep = depth - k < DEPTH_BLOCK ? depth - k : DEPTH_BLOCK;
                for (size_t i = 0; i < count; i++)
                    TILE(unpack)(weight, (first + i) * COLUMNS, k, deep, room + i * DEPTH_BLOCK * COLUMNS);
                for (size_t row = 0; row < rows; row += TILE_ROWS)
                    for (size_t i = 0; i < count; i++)
                        TILE(panel_product)(weight, x + row * depth + k, rows - row < TILE_ROWS ? rows - row : TILE_ROWS,
                                            room + i * DEPTH_BLOCK * COLUMNS, deep, bias, (first + i) * COLUMNS,
                                            out + row * width, k > 0);
            }
    }
    return failed ? -1 : 0;
}

static void TILE(dequantize)(const rn_int4_weight *weight, size_t first, size_t last, REAL *to) {
    const size_t depth = weight->depth, bytes = (depth + 1) / 2, groups = int4_groups(weight), group = weight->group;
    int threads = rn_threads(last - first, 0.5 * (double)(last - first) * (double)depth);
    RN_PARALLEL(threads) {
        RN_SHARE(last - first, begin, end);
        for (size_t n = first + begin; n < first + end; n++) {
            const REAL *scale = (const REAL *)weight->scale + n * groups;
            const uint8_t *zero = weight->zero + n * groups, *codes = weight->codes + n * bytes;
            REAL *row = to + (n - first) * depth;
            for (size_t g = 0, k = 0; g < groups; g++) {
                REAL table[16];
                for (int code = 0; code < 16; code++) table[code] = (REAL)(code - zero[g]) * scale[g];
                size_t stop = group < depth - k ? k + group : depth;
#if VEC_AVX512
                if (sizeof(REAL) == 4 && k % 2 == 0) k = dequantize_run(codes, k, stop, (const float *)table, (float *)row);
#endif
                for (; k < stop; k++) row[k] = table[codes[k / 2] >> (k % 2 * 4) & 15];
            }
        }
    }
}

/* Largest magnitude of `count` numbers, by their patterns, which are in the order of the magnitudes; NaN or infinity where
 * there is one. */
RN_INLINE REAL TILE(largest_of)(const REAL *x, size_t count) {
    const TILE_WORD magnitude = (TILE_WORD)-1 >> 1;
    TILE_WORD top = 0;
    for (size_t i = 0; i < count; i++) {
        TILE_WORD bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= magnitude;
        top = bits > top ? bits : top;
    }
    REAL largest;
    memcpy(&largest, &top, sizeof largest);
    return largest;
}

/* rint(127 x / largest), both operations rounded. */
RN_INLINE void TILE(codes_of)(const REAL *x, size_t count, REAL largest, REAL *codes) {
    REAL inverse = largest > 0 ? 127 / largest : 0;
    if (inverse - inverse == 0)
        for (size_t i = 0; i < count; i++) codes[i] = TILE_RINT(x[i] * inverse);
    else /* 127 / largest overflows */
        for (size_t i = 0; i < count; i++) codes[i] = TILE_RINT(x[i] / largest * 127);
}

static int TILE(in_8_bits)(const REAL *x, size_t rows, size_t depth, size_t group, REAL *to) {
    int threads = rn_threads(rows, (double)rows * (double)depth), failed = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++)
            for (size_t k = 0; k < depth; k += group) {
                size_t count = depth - k < group ? depth - k : group, at = row * depth + k;
                REAL largest = TILE(largest_of)(x + at, count), step = largest / 127;
                if (!(largest - largest == 0)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
                TILE(codes_of)(x + at, count, largest, to + at);
                if (largest < 1) /* its 127th part may be subnormal */
                    for (size_t i = 0; i < count; i++) to[at + i] = to[at + i] * largest / 127;
                else
                    for (size_t i = 0; i < count; i++) to[at + i] *= step;
            }
    }
    return failed;
}
