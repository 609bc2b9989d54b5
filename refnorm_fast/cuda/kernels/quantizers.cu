/* The affine quantizer, int8 codes by the largest magnitude, and exact products of int8 matrices.
 *
 * `flag` becomes 1 where an argument is not what the function allows; every thread that writes it writes the same. */

#define HIGHEST 127

INLINE bool is_finite(real x) { return x - x == 0; }

/* A parameter of entry i: all entries share one of `inner` in a row, `count` of them before they begin again. */
INLINE index_t shared_by(index_t i, index_t inner, index_t count) { return count == 1 ? 0 : i / inner % count; }

INLINE real round_to(real u, int rounding) { /* 0 nearest, ties to even; 1 down; 2 nearest, ties away from 0 */
    if (rounding == 0) return rint(u);
    if (rounding == 1) return floor(u);
    /* floor(|u| + 1/2) is wrong for the largest number below 1/2, whose sum with 1/2 rounds to 1. */
    real whole = trunc(u);
    return fabs(u - whole) >= (real) 0.5 ? whole + (u < 0 ? (real) -1 : (real) 1) : whole;
}

/* clip(round(x / scale) + zero_point, lowest, highest), as one byte or four. */
KERNEL quantize_affine(const real *x, const real *scale, index_t scale_inner, index_t scales, const int *zero_point,
                       index_t zero_inner, index_t zeros, void *codes, int wide, int *flag, double lowest, double highest,
                       int rounding, index_t count) {
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x) {
        real value = x[i];
        if (!is_finite(value)) {
            *flag = 1;
            continue;
        }
        real code = round_to(value / scale[shared_by(i, scale_inner, scales)], rounding)
                    + (real) zero_point[shared_by(i, zero_inner, zeros)];
        code = code < (real) lowest ? (real) lowest : code > (real) highest ? (real) highest : code;
        if (wide)
            static_cast<int *>(codes)[i] = (int) code;
        else
            static_cast<unsigned char *>(codes)[i] = (unsigned char) (int) code;
    }
}

/* scale (q - zero_point) */
KERNEL dequantize_affine(const index_t *q, const real *scale, index_t scale_inner, index_t scales, const index_t *zero_point,
                         index_t zero_inner, index_t zeros, real *x, index_t count) {
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x)
        x[i] = scale[shared_by(i, scale_inner, scales)] * (real) (q[i] - zero_point[shared_by(i, zero_inner, zeros)]);
}

/* round(127 x / absmax) */
INLINE signed char code_of(real x, real absmax, real inverse) {
    if (absmax == 0) return 0;
    /* 127 / absmax overflows for a tiny absmax, whose quotient x / absmax is still exact enough. */
    real scaled = is_finite(inverse) ? x * inverse : x / absmax * HIGHEST;
    return (signed char) (int) rint(scaled);
}

INLINE real larger_magnitude(real absmax, real x, int *flag) {
    if (!is_finite(x)) *flag = 1;
    real size = fabs(x);
    return size > absmax ? size : absmax;
}

/* One constant a row, and the codes under it. */
KERNEL absmax_rows(const real *x, signed char *codes, real *absmax, int *flag, index_t rows, index_t length, int cached) {
    DYNAMIC_SHARED(shared);
    for (index_t r = FIRST_ROW; r < rows; r += NEXT_ROW) {
        Row row = row_of(x, r, length, shared, cached);
        real largest = 0;
        for (index_t i = threadIdx.x; i < length; i += blockDim.x) largest = larger_magnitude(largest, row.first(i), flag);
        largest = team_reduce<Maximum>(largest);
        real inverse = HIGHEST / largest;
        if (*flag == 0) /* codes of NaN are not wanted by anybody */
            for (index_t i = threadIdx.x; i < length; i += blockDim.x) codes[r * length + i] = code_of(row.again(i), largest, inverse);
        if (threadIdx.x == 0) absmax[r] = largest;
    }
}

/* One constant for all: the largest magnitude that each block sees, the largest of these, the codes. */
KERNEL absmax_parts(const real *x, real *parts, int *flag, index_t count) {
    real largest = 0;
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x)
        largest = larger_magnitude(largest, x[i], flag);
    largest = team_reduce<Maximum>(largest);
    if (threadIdx.x == 0) parts[blockIdx.x] = largest;
}

KERNEL absmax_total(const real *parts, real *absmax, index_t count) {
    real largest = 0;
    for (index_t i = threadIdx.x; i < count; i += blockDim.x) largest = parts[i] > largest ? parts[i] : largest;
    largest = team_reduce<Maximum>(largest);
    if (threadIdx.x == 0) absmax[0] = largest;
}

KERNEL absmax_codes(const real *x, const real *absmax, signed char *codes, const int *flag, index_t count) {
    real largest = absmax[0], inverse = HIGHEST / largest;
    if (*flag) return;
    for (index_t i = (index_t) blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (index_t) gridDim.x * blockDim.x)
        codes[i] = code_of(x[i], largest, inverse);
}

/* ---- int8 products: a (T, K) times the transpose of b (N, K), 32 x 32 results a block of 16 x 16 threads ---- */

#define TILE 32
#define SIDE 16
#define WORDS 16 /* four codes each: what is loaded at a time of a row */

INLINE int word_of(const signed char *matrix, index_t row, index_t rows, index_t from, index_t depth, int *flag) {
    if (row >= rows || from >= depth) return 0;
    const signed char *codes = matrix + row * depth + from;
    int word = 0;
    if (depth % 4 == 0) {
        word = *reinterpret_cast<const int *>(codes);
    } else {
        for (int byte = 0; byte < 4 && from + byte < depth; byte++) word |= (codes[byte] & 0xff) << (8 * byte);
    }
    for (int byte = 0; byte < 4; byte++)
        if (((unsigned) word >> (8 * byte) & 0xff) == 0x80) *flag = 1; /* -128 is no code */
    return word;
}

INLINE void int8_tile(const signed char *a, const signed char *b, int *flag, index_t rows, index_t columns, index_t depth,
                      int (*sums)[TILE / SIDE]) {
    __shared__ int left[TILE][WORDS + 1], right[TILE][WORDS + 1];
    index_t row = (index_t) blockIdx.x * TILE, column = (index_t) blockIdx.y * TILE;
    for (index_t from = 0; from < depth; from += 4 * WORDS) {
        for (int r = threadIdx.y; r < TILE; r += SIDE) {
            left[r][threadIdx.x] = word_of(a, row + r, rows, from + 4 * threadIdx.x, depth, flag);
            right[r][threadIdx.x] = word_of(b, column + r, columns, from + 4 * threadIdx.x, depth, flag);
        }
        __syncthreads();
        for (int word = 0; word < WORDS; word++)
            for (int i = 0; i < TILE / SIDE; i++)
                for (int j = 0; j < TILE / SIDE; j++)
                    sums[i][j] = __dp4a(left[threadIdx.y + SIDE * i][word], right[threadIdx.x + SIDE * j][word], sums[i][j]);
        __syncthreads();
    }
}

KERNEL int8_product(const signed char *a, const signed char *b, int *product, int *flag, index_t rows, index_t columns,
                    index_t depth) {
    int sums[TILE / SIDE][TILE / SIDE] = {};
    int8_tile(a, b, flag, rows, columns, depth, sums);
    for (int i = 0; i < TILE / SIDE; i++)
        for (int j = 0; j < TILE / SIDE; j++) {
            index_t row = (index_t) blockIdx.x * TILE + threadIdx.y + SIDE * i;
            index_t column = (index_t) blockIdx.y * TILE + threadIdx.x + SIDE * j;
            if (row < rows && column < columns) product[row * columns + column] = sums[i][j];
        }
}

/* sums / 127^2 times a constant a row and one a column, one after the other: the product of two constants could overflow. */
KERNEL int8_product_scaled(const signed char *a, const signed char *b, const real *of_row, const real *of_column, real *product,
                           int *flag, index_t rows, index_t columns, index_t depth) {
    int sums[TILE / SIDE][TILE / SIDE] = {};
    int8_tile(a, b, flag, rows, columns, depth, sums);
    for (int i = 0; i < TILE / SIDE; i++)
        for (int j = 0; j < TILE / SIDE; j++) {
            index_t row = (index_t) blockIdx.x * TILE + threadIdx.y + SIDE * i;
            index_t column = (index_t) blockIdx.y * TILE + threadIdx.x + SIDE * j;
            if (row < rows && column < columns)
                product[row * columns + column] =
                    (real) (sums[i][j] / (double) (HIGHEST * HIGHEST) * (double) of_row[row] * (double) of_column[column]);
        }
}
