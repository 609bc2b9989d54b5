/* Register tiles of a matrix product, for the type REAL. Included once a type, by gemm.c and attention.c.
 *
 * A tile is TILE_ROWS x TILE_COLUMNS outputs, held in registers while the depth runs: two vectors of a panel of
 * the right operand are loaded and TILE_ROWS entries of the left operand are broadcast for each step, so that
 * 2 * TILE_ROWS multiply-adds share 2 + TILE_ROWS loads. The right operand is packed: panel after panel of
 * TILE_COLUMNS columns, each stored depth-major (TILE_COLUMNS consecutive entries a step), zero padded.
 *
 * Every output is summed in the same order, whatever the tile's height: results do not depend on how rows are shared
 * out. */
#if !defined(TILE_ROWS)
#if defined(__AVX512F__) || REFNORM_VECTOR_BYTES == 64 || defined(__aarch64__)
#define TILE_ROWS 12 /* 24 accumulators of 32 registers */
#else
#define TILE_ROWS 6 /* 12 accumulators of 16 registers */
#endif
#endif

#define TILE_PASTE2(a, b) a##_##b
#define TILE_PASTE(a, b) TILE_PASTE2(a, b)
#define TILE(name) TILE_PASTE(name, TILE_TYPE) /* TILE(tile) is tile_f32 or tile_f64 */
#define TILE_VECTOR(name) TILE_PASTE(TILE_VEC, name)

/* c[row, :] = start + a[row, :] @ right for `rows` rows and `vectors` vectors of columns; rows of the right operand are
 * right_stride entries apart. start is c itself (`add`), or `start` (one entry a column), or zero (NULL).
 *
 * Chains of TILE_CHAIN terms begin at zero and are then added to c: rounding errors are those of short sums, smaller
 * by the root of depth / TILE_CHAIN than in one long chain. */
#define TILE_CHAIN 96
#define TILE_VECTORS 4 /* at most, in a row of a tile */
RN_INLINE void TILE(tile_of)(const int rows, const int vectors, const REAL *a, size_t a_stride, const REAL *right,
                             ptrdiff_t right_stride, size_t depth, REAL *c, size_t c_stride, const REAL *start, int add) {
    const size_t lanes = sizeof(TILE_VEC) / sizeof(REAL);
    for (size_t k = 0; k < depth || k == 0; k += TILE_CHAIN) {
        TILE_VEC sum[TILE_ROWS][TILE_VECTORS], part[TILE_VECTORS];
#pragma GCC unroll 12
        for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[row][v] = TILE_VECTOR(set)(0);
        size_t end = depth - k < TILE_CHAIN ? depth : k + TILE_CHAIN;
        for (size_t i = k; i < end; i++) {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) part[v] = TILE_VECTOR(load)(right + (size_t)v * lanes);
            right += right_stride;
#pragma GCC unroll 12
            for (int row = 0; row < rows; row++) {
                TILE_VEC each = TILE_VECTOR(set)(a[(size_t)row * a_stride + i]);
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++) sum[row][v] = TILE_VECTOR(fma)(each, part[v], sum[row][v]);
            }
        }
        if (k > 0 || add) {
#pragma GCC unroll 12
            for (int row = 0; row < rows; row++) {
                REAL *target = c + (size_t)row * c_stride;
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++, target += lanes)
                    TILE_VECTOR(store)(target, TILE_VECTOR(load)(target) + sum[row][v]);
            }
        } else {
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                part[v] = start != NULL ? TILE_VECTOR(load)(start + (size_t)v * lanes) : TILE_VECTOR(set)(0);
#pragma GCC unroll 12
            for (int row = 0; row < rows; row++)
#pragma GCC unroll 4
                for (int v = 0; v < vectors; v++)
                    TILE_VECTOR(store)(c + (size_t)row * c_stride + (size_t)v * lanes, part[v] + sum[row][v]);
        }
    }
}

/* Two vectors of columns, from a right operand that need not be packed. */
#define TILE_CASE(n)                                                                                  \
    case n:                                                                                           \
        TILE(tile_of)(n, 2, a, a_stride, right, right_stride, depth, c, c_stride, start, add);        \
        break;
static __attribute__((noinline)) void TILE(tile_at)(int rows, const REAL *a, size_t a_stride, const REAL *right,
                                                    ptrdiff_t right_stride, size_t depth, REAL *c, size_t c_stride,
                                                    const REAL *start, int add) {
    switch (rows) {
        TILE_CASE(1)
        TILE_CASE(2)
        TILE_CASE(3)
        TILE_CASE(4)
        TILE_CASE(5)
        TILE_CASE(6)
#if TILE_ROWS == 12
        TILE_CASE(7)
        TILE_CASE(8)
        TILE_CASE(9)
        TILE_CASE(10)
        TILE_CASE(11)
        TILE_CASE(12)
#endif
    }
}
#undef TILE_CASE
/* The same from a packed panel. */
RN_INLINE void TILE(tile)(int rows, const REAL *a, size_t a_stride, const REAL *panel, size_t depth, REAL *c,
                          size_t c_stride, const REAL *start, int add) {
    TILE(tile_at)(rows, a, a_stride, panel, 2 * (ptrdiff_t)(sizeof(TILE_VEC) / sizeof(REAL)), depth, c, c_stride, start, add);
}
