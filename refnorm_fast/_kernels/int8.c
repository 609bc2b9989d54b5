/* Integer matrix products.
 *
 * The right operand is packed in panels of COLUMNS columns. In a panel, four consecutive entries of the depth of one
 * column fill a 32-bit lane, two vectors of lanes follow each other, so that one step loads two vectors and broadcasts
 * four entries of each row. Three ways to multiply and add a lane's four pairs:
 *
 * WIDE     a unsigned 0..255, w -128..127, exact. vpdpbusd where the CPU has it; else even and odd bytes apart, widened
 *          to 16 bits, through multiply-add of 16-bit pairs.
 * SIGNED   (AVX2) a -128..127, w -127..127, exact: |a| times sign(a) w. A pair's sum is at most 2 * 128 * 127 = 32512,
 *          which 16 bits hold.
 * NARROW   (AVX2, AVX-512BW) a 0..127, w -63..63: two pairs of products, 4 * 127 * 63 = 32004, are summed in 16 bits
 *          before they are widened: 2.3 times the rate of float multiply-adds on Zen 3, against 1.3 for SIGNED. */
#include "int8.h"

#include "epilogue.h"
#include "parallel.h"
#include "transpose.h"

#if VEC_AVX512
#define HAVE_BYTE_PAIRS 1
#define byte_pairs(a, w) ((vi32)_mm512_maddubs_epi16((__m512i)(a), (__m512i)(w)))
#define word_pairs(a, w) ((vi32)_mm512_madd_epi16((__m512i)(a), (__m512i)(w)))
#define word_add(a, b) ((vi32)_mm512_add_epi16((__m512i)(a), (__m512i)(b)))
#elif VEC_AVX2
#define HAVE_BYTE_PAIRS 1
#define byte_pairs(a, w) ((vi32)_mm256_maddubs_epi16((__m256i)(a), (__m256i)(w)))
#define word_pairs(a, w) ((vi32)_mm256_madd_epi16((__m256i)(a), (__m256i)(w)))
#define word_add(a, b) ((vi32)_mm256_add_epi16((__m256i)(a), (__m256i)(b)))
#elif VEC_SSE
#define HAVE_BYTE_PAIRS 0
#define word_pairs(a, w) ((vi32)_mm_madd_epi16((__m128i)(a), (__m128i)(w)))
#else
#define HAVE_BYTE_PAIRS 0
/* Both 16-bit halves of a 32-bit lane, sign extended, multiplied and added. */
RN_INLINE vi32 word_pairs(vi32 a, vi32 w) {
    return ((a << 16) >> 16) * ((w << 16) >> 16) + (a >> 16) * (w >> 16);
}
#endif

#if VEC_AVX512 && defined(__AVX512VNNI__)
#define HAVE_DOT 1
#define dot_bytes(sum, a, w) ((vi32)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(w)))
#else
#define HAVE_DOT 0
#endif

/* The encoder's layers keep 8 bits where that costs nothing, and 7 where 16-bit sums are the fast way. */
#if HAVE_BYTE_PAIRS && !HAVE_DOT
#define ENCODER_WAY NARROW
enum { WEIGHT_TOP = 63, ROW_TOP = 127 };
#else
#define ENCODER_WAY WIDE
enum { WEIGHT_TOP = 127, ROW_TOP = 255 };
#endif
#if VEC_AVX2
#define EXACT_WAY SIGNED
#else
#define EXACT_WAY WIDE
#endif

enum { WIDE, SIGNED, NARROW };
enum {
    LANES = VF32,
    COLUMNS = 2 * VF32,
    STEP = 8, /* the depth is padded to whole steps of the NARROW way */
    GROUP = HAVE_DOT ? 384 : 128, /* narrower where a level has 7 bits */
    ROW_BLOCK = 48,
    PAIRED = 4 * COLUMNS /* bytes of a panel for four entries of depth */
};
#if REFNORM_VECTOR_BYTES == 64 || defined(__aarch64__)
enum { ROWS = 8 };
#else
enum { ROWS = 4 };
#endif
#define NS_PER_PRODUCT (1.0 / (12.0 * VF32))
#define NS_PER_BYTE 0.0125 /* from the third cache */

static size_t padded_width(size_t width) { return (width + COLUMNS - 1) / COLUMNS * COLUMNS; }
static size_t padded_depth(size_t depth) { return (depth + STEP - 1) / STEP * STEP; }
static size_t packed_bytes(size_t depth, size_t width) { return padded_depth(depth) * padded_width(width) + 1; }

RN_INLINE vi32 four_entries(const void *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return vi32_set(four);
}

RN_INLINE vi32 dot_wide(vi32 sum, vi32 a, vi32 w) {
#if HAVE_DOT
    return dot_bytes(sum, a, w);
#else
    /* Bytes 0 and 2 of a lane, then 1 and 3, as 16-bit words: a without sign, w with. */
    typedef int16_t vi16 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
    typedef uint16_t vu16 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
    vi32 w_even = (vi32)(((vi16)w << 8) >> 8), w_odd = (vi32)((vi16)w >> 8);
    vi32 a_even = a & 0x00ff00ff, a_odd = (vi32)((vu16)a >> 8);
    return sum + word_pairs(a_even, w_even) + word_pairs(a_odd, w_odd);
#endif
}

/* sum[row] += a[row, :] @ panel over `depth` entries, a multiple of STEP. */
RN_INLINE void integer_tile(const int way, const int rows, const uint8_t *a, size_t a_stride, const int8_t *panel,
                            size_t depth, vi32 sum[ROWS][2]) {
#if VEC_AVX2
    if (way == SIGNED) {
        /* One lane of four entries at a time: two would need more registers than there are. */
        const vi32 one = vi32_set(0x00010001);
        for (size_t k = 0; k < depth; k += 4, panel += PAIRED) {
            __m256i left = (__m256i)vi32_load((const int32_t *)(const void *)panel);
            __m256i right = (__m256i)vi32_load((const int32_t *)(const void *)(panel + REFNORM_VECTOR_BYTES));
#pragma GCC unroll 8
            for (int row = 0; row < rows; row++) {
                __m256i x = (__m256i)four_entries(a + (size_t)row * a_stride + k), magnitude = _mm256_abs_epi8(x);
                sum[row][0] += word_pairs(byte_pairs(magnitude, _mm256_sign_epi8(left, x)), one);
                sum[row][1] += word_pairs(byte_pairs(magnitude, _mm256_sign_epi8(right, x)), one);
            }
        }
        return;
    }
#endif
    for (size_t k = 0; k < depth; k += STEP, panel += 2 * PAIRED) {
        vi32 w[2][2];
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 2; j++)
                w[i][j] = vi32_load((const int32_t *)(const void *)(panel + i * PAIRED + j * REFNORM_VECTOR_BYTES));
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            const uint8_t *from = a + (size_t)row * a_stride + k;
            vi32 first = four_entries(from), second = four_entries(from + 4);
            for (int j = 0; j < 2; j++) {
                if (way == WIDE) sum[row][j] = dot_wide(dot_wide(sum[row][j], first, w[0][j]), second, w[1][j]);
#if HAVE_BYTE_PAIRS
                if (way == NARROW) {
                    vi32 pairs = word_add(byte_pairs(first, w[0][j]), byte_pairs(second, w[1][j]));
                    sum[row][j] += word_pairs(pairs, vi32_set(0x00010001));
                }
#endif
            }
        }
    }
}

/* ---- exact products ------------------------------------------------------------------------------------------- */

static void pack(const int8_t *q, size_t q_stride, size_t depth, size_t width, int8_t *packed, int32_t *sums) {
    size_t deep = padded_depth(depth), wide = padded_width(width), whole = depth / 4;
    int threads = rn_threads(wide / COLUMNS, 0.3 * (double)deep * (double)wide);
    RN_PARALLEL(threads) {
        RN_SHARE(wide / COLUMNS, first, last);
        for (size_t n = first * COLUMNS; n < last * COLUMNS; n += COLUMNS) {
            int8_t *panel = packed + n * deep;
            size_t columns = n >= width ? 0 : width - n < COLUMNS ? width - n : COLUMNS;
            memset(panel + whole * PAIRED, 0, (deep / 4 - whole) * PAIRED);
            for (size_t j = 0; j < COLUMNS; j++) {
                int32_t sum = 0;
                const int8_t *from = q + (n + j) * q_stride;
                for (size_t k = 0; j < columns && k < depth; k++) sum += from[k];
                for (size_t k = whole * 4; j < columns && k < depth; k++) panel[whole * PAIRED + 4 * j + k % 4] = from[k];
                sums[n + j] = sum;
            }
            /* Four entries of the depth move together. */
            size_t k = 0;
#if VEC_AVX512
            if (columns == COLUMNS)
                for (; k + LANES <= whole; k += LANES)
                    for (size_t j = 0; j < COLUMNS; j += LANES)
                        transpose_words(q + (n + j) * q_stride + 4 * k, q_stride, panel + k * PAIRED + 4 * j, PAIRED);
#endif
            for (; k < whole; k++)
                for (size_t j = 0; j < COLUMNS; j++) {
                    int32_t four = 0;
                    if (j < columns) memcpy(&four, q + (n + j) * q_stride + 4 * k, 4);
                    memcpy(panel + k * PAIRED + 4 * j, &four, 4);
                }
        }
    }
}

#if VEC_SSE || VEC_AVX2 || VEC_AVX512
/* Four entries of the depth, `stride` bytes apart, of 16 columns, side by side: bytes, then pairs of bytes, change places. */
RN_INLINE void interleave_four(const int8_t *q, size_t stride, int8_t *to) {
    __m128i row[4];
    for (size_t i = 0; i < 4; i++) row[i] = _mm_loadu_si128((const __m128i *)(const void *)(q + i * stride));
    __m128i low[2] = {_mm_unpacklo_epi8(row[0], row[1]), _mm_unpacklo_epi8(row[2], row[3])};
    __m128i high[2] = {_mm_unpackhi_epi8(row[0], row[1]), _mm_unpackhi_epi8(row[2], row[3])};
    __m128i *target = (__m128i *)(void *)to;
    _mm_storeu_si128(target, _mm_unpacklo_epi16(low[0], low[1]));
    _mm_storeu_si128(target + 1, _mm_unpackhi_epi16(low[0], low[1]));
    _mm_storeu_si128(target + 2, _mm_unpacklo_epi16(high[0], high[1]));
    _mm_storeu_si128(target + 3, _mm_unpackhi_epi16(high[0], high[1]));
}
#endif

/* Four entries of the depth from `q` on, of `columns` <= COLUMNS columns, as a panel has them; zeros from `rows` on. */
RN_INLINE void pack_four(const int8_t *q, size_t stride, size_t rows, size_t columns, int8_t *to) {
#if VEC_AVX2 || VEC_AVX512
    if (rows == 4 && columns == COLUMNS) {
        for (size_t j = 0; j < COLUMNS; j += 16) interleave_four(q + j, stride, to + 4 * j);
        return;
    }
#endif
    memset(to, 0, PAIRED);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) to[4 * j + i] = q[i * stride + j];
}

static void pack_columns(const int8_t *q, size_t q_stride, size_t depth, size_t width, int8_t *packed, int32_t *sums) {
    size_t deep = padded_depth(depth), wide = padded_width(width);
    int threads = rn_threads(wide / COLUMNS, 0.1 * (double)deep * (double)wide);
    RN_PARALLEL(threads) {
        RN_SHARE(wide / COLUMNS, first, last);
        for (size_t n = first * COLUMNS; n < last * COLUMNS; n += COLUMNS) {
            int8_t *panel = packed + n * deep;
            size_t columns = width - n < COLUMNS ? width - n : COLUMNS;
            vi32 sum[2] = {vi32_set(0), vi32_set(0)};
            for (size_t k = 0; k < deep; k += 4, panel += PAIRED) {
                size_t rows = depth <= k ? 0 : depth - k < 4 ? depth - k : 4;
                pack_four(rows ? q + k * q_stride + n : q, q_stride, rows, columns, panel);
                for (size_t j = 0; j < 2; j++)
                    sum[j] = dot_wide(sum[j], vi32_set(0x01010101), vi32_load_bytes(panel + j * REFNORM_VECTOR_BYTES));
            }
            vi32_store(sums + n, sum[0]);
            vi32_store(sums + n + LANES, sum[1]);
        }
    }
}

/* What becomes of a tile of exact sums. */
typedef struct {
    const int8_t *times; /* NULL, or factors of the left operand's columns */
    int32_t *integers;   /* NULL, or the sums' place */
    void *scaled;      /* NULL, or the place of their products with `power`, then `factor` */
    int doubles;       /* whether those are float64 */
    double power, factor;
    float *out; /* or the dequantized results' */
    size_t stride;
    const float *largest, *scale, *bias;
    const float *large, *weights; /* (rows, count) entries of outlier columns, (count, wide) weights */
    size_t count, wide;
    int activation;
    const float *residual; /* NULL, or rows at `stride`; may be `out` */
} exact_target;

/* A tile of results, rows COLUMNS apart, on its way out: the activation while it is in the nearest cache, then the
 * residual. Each entry of the residual is read before its place is written: it may be the target. */
static __attribute__((noinline)) void finish_tile(float *tile, size_t rows, size_t row, size_t n, size_t columns,
                                                  const exact_target *to) {
    rn_activate_row(to->activation, tile, rows * COLUMNS);
    for (size_t r = 0; r < rows; r++) {
        size_t at = (row + r) * to->stride + n;
        for (size_t i = 0; i < columns; i += LANES) {
            size_t part = columns - i < LANES ? columns - i : LANES;
            vf32 y = vf32_load(tile + r * COLUMNS + i);
            if (to->residual != NULL) y += vf32_load_part(to->residual + at + i, part, 0);
            vf32_store_part(to->out + at + i, part, y);
        }
    }
}

/* A row of a tile, `columns` of it, times the target's factors in float64. */
RN_INLINE void store_scaled(const vi32 *sum, size_t at, size_t columns, const exact_target *to) {
    vf64 power = vf64_set(to->power), factor = vf64_set(to->factor), y[4];
    for (size_t i = 0; i < 4; i++) {
        vf32 integers = (vf32)sum[i / 2];
        y[i] = vf64_from_vi32h((vi32h)(i % 2 ? vf32_high(integers) : vf32_low(integers))) * power * factor;
    }
    if (to->doubles) {
        double *target = (double *)to->scaled + at;
        for (size_t i = 0; i < 4 && i * VF64 < columns; i++)
            vf64_store_part(target + i * VF64, columns - i * VF64 < VF64 ? columns - i * VF64 : VF64, y[i]);
        return;
    }
    float *target = (float *)to->scaled + at;
    for (size_t i = 0; i < 2 && i * LANES < columns; i++)
        vf32_store_part(target + i * LANES, columns - i * LANES < LANES ? columns - i * LANES : LANES,
                        vf32_from_vf64(y[2 * i], y[2 * i + 1]));
}

RN_INLINE void exact_tile(const int way, const int rows, const uint8_t *a, size_t deep, const int8_t *panel,
                          const int32_t *sums, size_t row, size_t n, size_t width, const exact_target *to) {
    /* Rows of the residual are far apart, which no processor foresees; they arrive while the integers are summed. */
    for (int r = 0; r < rows && to->residual != NULL; r++) {
        const float *next = to->residual + (row + (size_t)r) * to->stride + n;
        __builtin_prefetch(next);
        if (width - n > LANES) __builtin_prefetch(next + LANES);
    }
    vi32 sum[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = vi32_set(0);
    integer_tile(way, rows, a, deep, panel, deep, sum);
    if (way == WIDE) {
        /* Fed as a + 128: 128 times the column's sum too much. Wrapping around is harmless, the difference fits. */
        vi32 left = vi32_load(sums + n) * 128, right = vi32_load(sums + n + LANES) * 128;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            sum[r][0] -= left;
            sum[r][1] -= right;
        }
    }
    size_t columns = width - n < COLUMNS ? width - n : COLUMNS;
    if (to->integers != NULL) {
        int32_t edge[ROWS * COLUMNS] __attribute__((aligned(64)));
        int32_t *target = columns == COLUMNS ? to->integers + row * to->stride + n : edge;
        size_t stride = columns == COLUMNS ? to->stride : COLUMNS;
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vi32_store(target + (size_t)r * stride, sum[r][0]);
            vi32_store(target + (size_t)r * stride + LANES, sum[r][1]);
        }
        for (int r = 0; r < rows && columns < COLUMNS; r++)
            memcpy(to->integers + (row + (size_t)r) * to->stride + n, edge + r * COLUMNS, columns * sizeof *edge);
        return;
    }
    if (to->scaled != NULL) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) store_scaled(sum[r], (row + (size_t)r) * to->stride + n, columns, to);
        return;
    }
    float edge[ROWS * COLUMNS] __attribute__((aligned(64)));
    int finish = to->activation != RN_ACTIVATION_NONE || to->residual != NULL;
    int direct = columns == COLUMNS && !finish;
    float *target = direct ? to->out + row * to->stride + n : edge;
    size_t stride = direct ? to->stride : COLUMNS;
    vf32 scale[2] = {vf32_load(to->scale + n), vf32_load(to->scale + n + LANES)};
    vf32 bias[2] = {vf32_set(0), vf32_set(0)};
    if (to->bias != NULL) bias[0] = vf32_load(to->bias + n), bias[1] = vf32_load(to->bias + n + LANES);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 2; j++)
            vf32_store(target + (size_t)r * stride + (size_t)j * LANES,
                       vf32_from_vi32(sum[r][j]) * (scale[j] * to->largest[row + (size_t)r]) *
                               (1.0f / (127.0f * 127.0f)) + bias[j]);
    for (int r = 0; r < rows && to->count > 0; r++) {
        const float *entries = to->large + (row + (size_t)r) * to->count;
        float *y = target + (size_t)r * stride;
        vf32 left = vf32_load(y), right = vf32_load(y + LANES);
        for (size_t i = 0; i < to->count; i++) {
            vf32 entry = vf32_set(entries[i]);
            left = vf32_fma(entry, vf32_load(to->weights + i * to->wide + n), left);
            right = vf32_fma(entry, vf32_load(to->weights + i * to->wide + n + LANES), right);
        }
        vf32_store(y, left);
        vf32_store(y + LANES, right);
    }
    if (finish) {
        finish_tile(edge, (size_t)rows, row, n, columns, to);
        return;
    }
    for (int r = 0; r < rows && columns < COLUMNS; r++)
        memcpy(to->out + (row + (size_t)r) * to->stride + n, edge + r * COLUMNS, columns * sizeof *edge);
}

static __attribute__((noinline)) void exact_rows(const int way, const int8_t *a, size_t a_stride, size_t first,
                                                 size_t last, size_t depth, const int8_t *packed, const int32_t *sums,
                                                 size_t from, size_t to, size_t width, uint8_t *room,
                                                 const exact_target *target) {
    size_t deep = padded_depth(depth);
    for (size_t begin = first; begin < last; begin += ROW_BLOCK) {
        size_t rows = last - begin < ROW_BLOCK ? last - begin : ROW_BLOCK;
        for (size_t r = 0; r < rows; r++) {
            const int8_t *source = a + (begin + r) * a_stride;
            uint8_t *copy = room + r * deep;
            uint8_t shift = way == WIDE ? 0x80 : 0;
            const int8_t *times = target->times;
            if (times == NULL)
                for (size_t k = 0; k < depth; k++) copy[k] = (uint8_t)source[k] ^ shift;
            else
                for (size_t k = 0; k < depth; k++) copy[k] = (uint8_t)((uint8_t)source[k] * (uint8_t)times[k]) ^ shift;
            for (size_t k = depth; k < deep; k++) copy[k] = 0;
        }
        for (size_t n = from; n < to; n += COLUMNS)
            for (size_t r = 0; r < rows; r += ROWS) {
                const uint8_t *strip = room + r * deep;
                const int8_t *panel = packed + n * deep;
                if (rows - r >= ROWS) {
                    if (way == WIDE) exact_tile(WIDE, ROWS, strip, deep, panel, sums, begin + r, n, width, target);
#if VEC_AVX2
                    if (way == SIGNED) exact_tile(SIGNED, ROWS, strip, deep, panel, sums, begin + r, n, width, target);
#endif
                    continue;
                }
                for (size_t one = r; one < rows; one++) {
                    const uint8_t *single = room + one * deep;
                    if (way == WIDE) exact_tile(WIDE, 1, single, deep, panel, sums, begin + one, n, width, target);
#if VEC_AVX2
                    if (way == SIGNED) exact_tile(SIGNED, 1, single, deep, panel, sums, begin + one, n, width, target);
#endif
                }
            }
    }
}

static int exact_product(const int way, const int8_t *a, size_t a_stride, size_t rows, size_t depth,
                         const int8_t *packed, const int32_t *sums, size_t width, const exact_target *target) {
    if (rows == 0 || width == 0) return 0;
    size_t strips = (rows + ROWS - 1) / ROWS, panels = padded_width(width) / COLUMNS;
    double cost = NS_PER_PRODUCT * (double)rows * (double)depth * (double)width;
    int threads = rn_threads(strips > panels ? strips : panels, cost), failed = 0;
    int by_columns = strips < 2 * (size_t)threads;
    RN_PARALLEL(threads) {
        size_t first = 0, last = by_columns ? panels : strips;
        rn_range(last, (size_t)RN_TEAM, (size_t)RN_THREAD, &first, &last);
        uint8_t *room = rn_scratch(0, ROW_BLOCK * padded_depth(depth) + 1);
        if (room == NULL) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        } else if (by_columns) {
            exact_rows(way, a, a_stride, 0, rows, depth, packed, sums, first * COLUMNS,
                       last * COLUMNS < width ? last * COLUMNS : width, width, room, target);
        } else {
            size_t end = last * ROWS < rows ? last * ROWS : rows;
            exact_rows(way, a, a_stride, first * ROWS, end, depth, packed, sums, 0, width, width, room, target);
        }
    }
    return failed ? -1 : 0;
}

static int matmul(const int8_t *a, size_t a_stride, size_t rows, size_t depth, const int8_t *packed,
                  const int32_t *sums, size_t width, int32_t *c, size_t c_stride) {
    exact_target target = {.integers = c, .stride = c_stride};
    return exact_product(EXACT_WAY, a, a_stride, rows, depth, packed, sums, width, &target);
}

static int scaled(int wide, const int8_t *a, const int8_t *times, size_t rows, size_t depth, const int8_t *packed,
                  const int32_t *sums, size_t width, double power, double scale, void *y) {
    exact_target target = {
        .times = times, .scaled = y, .doubles = wide, .power = power, .factor = scale, .stride = width};
    return exact_product(EXACT_WAY, a, depth, rows, depth, packed, sums, width, &target);
}

/* ---- exact products of few rows, without packing ------------------------------------------------------------------
 *
 * Each output is a dot product of two rows as they stand in memory, LANES partial sums each, added up across the vector at
 * the end. q is read once, from memory, which is what the time goes to; packing it would cost more than that. */

typedef int8_t vi8 __attribute__((vector_size(REFNORM_VECTOR_BYTES)));
enum { FEW_ROWS = 4, FEW_COLUMNS = 4 };

RN_INLINE vi8 smaller_bytes(vi8 a, vi8 b) {
#if VEC_AVX512
    return (vi8)_mm512_min_epi8((__m512i)a, (__m512i)b);
#elif VEC_AVX2
    return (vi8)_mm256_min_epi8((__m256i)a, (__m256i)b);
#else
    vi8 less = a < b;
    return (a & less) | (b & ~less);
#endif
}

RN_INLINE int32_t lane_sum(vi32 x) {
#if VEC_AVX512
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += x[lane];
    return sum;
#endif
}

RN_INLINE vi32 bytes_at(const void *from, size_t count) {
    vi32 value = {0};
    memcpy(&value, from, count < sizeof value ? count : sizeof value);
    return value;
}

/* c[r, j] = a[r] . q[j] for `rows` rows of a (unsigned, as a + 128, zero padded) and `columns` rows of q. `low` keeps the
 * smallest bytes of q. */
RN_INLINE void dot_tile(const int rows, const int columns, const uint8_t *a, size_t a_stride, const int8_t *q,
                        size_t q_stride, size_t depth, int32_t *c, size_t c_stride, vi8 *low) {
    const vi32 half = vi32_set((int32_t)0x80808080);
    vi32 sum[FEW_ROWS][FEW_COLUMNS], extra[FEW_COLUMNS];
    vi8 least = *low;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) sum[r][j] = vi32_set(0);
    for (int j = 0; j < columns; j++) extra[j] = vi32_set(0);
    size_t k = 0, whole = depth / REFNORM_VECTOR_BYTES * REFNORM_VECTOR_BYTES;
#define DOT_STEP(LOAD)                                                                            \
    do {                                                                                          \
        vi32 w[FEW_COLUMNS];                                                                      \
        for (int j = 0; j < columns; j++) {                                                       \
            w[j] = LOAD(q + (size_t)j * q_stride + k);                                            \
            least = smaller_bytes((vi8)w[j], least);                                              \
            extra[j] = dot_wide(extra[j], half, w[j]);                                            \
        }                                                                                         \
        for (int r = 0; r < rows; r++) {                                                          \
            vi32 x = vi32_load_bytes(a + (size_t)r * a_stride + k);                               \
            for (int j = 0; j < columns; j++) sum[r][j] = dot_wide(sum[r][j], x, w[j]);           \
        }                                                                                         \
    } while (0)
#define WHOLE_BYTES(from) vi32_load_bytes(from)
#define LAST_BYTES(from) bytes_at(from, depth - k)
    for (; k < whole; k += REFNORM_VECTOR_BYTES) DOT_STEP(WHOLE_BYTES);
    if (k < depth) DOT_STEP(LAST_BYTES);
#undef DOT_STEP
#undef WHOLE_BYTES
#undef LAST_BYTES
    for (int j = 0; j < columns; j++)
        for (int r = 0; r < rows; r++) c[(size_t)r * c_stride + (size_t)j] = lane_sum(sum[r][j] - extra[j]);
    *low = least;
}

static __attribute__((noinline)) void dot_columns(const uint8_t *a, size_t a_stride, size_t rows, const int8_t *q,
                                                  size_t q_stride, size_t depth, size_t first, size_t last,
                                                  int32_t *c, size_t c_stride, vi8 *low) {
    for (size_t n = first; n < last;) {
        size_t columns = last - n >= FEW_COLUMNS ? FEW_COLUMNS : 1, r = 0;
        const int8_t *from = q + n * q_stride;
        if (columns == FEW_COLUMNS) {
            for (; r + FEW_ROWS <= rows; r += FEW_ROWS)
                dot_tile(FEW_ROWS, FEW_COLUMNS, a + r * a_stride, a_stride, from, q_stride, depth, c + r * c_stride + n,
                         c_stride, low);
            for (; r < rows; r++)
                dot_tile(1, FEW_COLUMNS, a + r * a_stride, a_stride, from, q_stride, depth, c + r * c_stride + n,
                         c_stride, low);
        } else {
            for (; r < rows; r++)
                dot_tile(1, 1, a + r * a_stride, a_stride, from, q_stride, depth, c + r * c_stride + n, c_stride, low);
        }
        n += columns;
    }
}

static int matmul_rows(const int8_t *a, size_t rows, size_t depth, const int8_t *q, size_t width, int32_t *c) {
    size_t stride = (depth + REFNORM_VECTOR_BYTES - 1) / REFNORM_VECTOR_BYTES * REFNORM_VECTOR_BYTES;
    uint8_t *room = rn_scratch(0, rows * stride + 1);
    if (room == NULL) return -1;
    for (size_t r = 0; r < rows; r++) {
        for (size_t k = 0; k < depth; k++) room[r * stride + k] = (uint8_t)a[r * depth + k] ^ 0x80;
        memset(room + r * stride + depth, 0, stride - depth);
    }
    double size = (double)depth * (double)width, cost = NS_PER_PRODUCT * (double)rows * size;
    if (cost < NS_PER_BYTE * size) cost = NS_PER_BYTE * size;
    int threads = rn_threads((width + FEW_COLUMNS - 1) / FEW_COLUMNS, cost), wrong = 0;
    RN_PARALLEL(threads) {
        RN_SHARE((width + FEW_COLUMNS - 1) / FEW_COLUMNS, first, last);
        vi8 low = {0};
        size_t end = last * FEW_COLUMNS < width ? last * FEW_COLUMNS : width;
        dot_columns(room, stride, rows, q, depth, depth, first * FEW_COLUMNS, end, c, width, &low);
        for (int i = 0; i < REFNORM_VECTOR_BYTES; i++)
            if (low[i] == -128) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
    }
    return wrong;
}

/* Marks the columns of the entries of one vector that reach the threshold, and returns the vector without them. */
static __attribute__((noinline)) vf32 mark_outliers(vf32 magnitude, vi32 over, size_t count, uint8_t *outlier) {
    int32_t lane[LANES];
    vi32_store(lane, over);
    for (size_t j = 0; j < count; j++)
        if (lane[j]) __atomic_store_n(outlier + j, 1, __ATOMIC_RELAXED);
    return vf32_select(over, vf32_set(0), magnitude);
}

static int row_constants(const float *x, size_t x_stride, size_t rows, size_t depth, float threshold, float *largest,
                         uint8_t *outlier) {
    enum { AT_ONCE = 4 };
    int threads = rn_threads(rows, 0.05 * (double)rows * (double)depth), wrong = 0;
    const vf32 limit = vf32_set(threshold > 0 ? threshold : INFINITY);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        vf32 bad[AT_ONCE] = {{0}};
        for (size_t row = first; row < last; row++) {
            const float *from = x + row * x_stride;
            vf32 best[AT_ONCE] = {{0}};
            size_t k = 0;
            /* One test for several vectors: outliers are rare. */
            for (; k + AT_ONCE * LANES <= depth; k += AT_ONCE * LANES) {
                vf32 each[AT_ONCE];
                vi32 over = vi32_set(0);
#pragma GCC unroll 4
                for (int i = 0; i < AT_ONCE; i++) {
                    each[i] = vf32_abs(vf32_load(from + k + (size_t)i * LANES));
                    bad[i] += each[i] * 0.0f; /* NaN from NaN and from infinity */
                    over |= each[i] >= limit;
                }
                if (threshold > 0 && vi32_any(over)) {
#pragma GCC unroll 4
                    for (int i = 0; i < AT_ONCE; i++)
                        if (vi32_any(each[i] >= limit))
                            each[i] = mark_outliers(each[i], each[i] >= limit, LANES, outlier + k + (size_t)i * LANES);
                }
#pragma GCC unroll 4
                for (int i = 0; i < AT_ONCE; i++) best[i] = vf32_max(each[i], best[i]);
            }
            for (; k < depth; k += LANES) {
                size_t part = depth - k < LANES ? depth - k : LANES;
                vf32 each = vf32_abs(vf32_load_part(from + k, part, 0));
                bad[0] += each * 0.0f;
                if (threshold > 0 && vi32_any(each >= limit)) each = mark_outliers(each, each >= limit, part, outlier + k);
                best[0] = vf32_max(each, best[0]);
            }
            largest[row] = vf32_largest(vf32_max(vf32_max(best[0], best[1]), vf32_max(best[2], best[3])));
        }
        vf32 any = (bad[0] + bad[1]) + (bad[2] + bad[3]);
        if (vi32_any(any != any)) __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
    }
    return wrong;
}

/* A column's codes lie in one lane of every panel, a line or two each, where the weight's own rows are `depth` apart. */
static void outlier_weights(const int8_t *packed, size_t depth, size_t width, const float *scale, const int64_t *columns,
                            size_t count, float *weights) {
    size_t wide = padded_width(width), deep = padded_depth(depth);
    int threads = rn_threads(wide / COLUMNS, 0.5 * (double)count * (double)wide);
    RN_PARALLEL(threads) {
        RN_SHARE(wide / COLUMNS, first, last);
        for (size_t n = first * COLUMNS; n < last * COLUMNS; n += LANES)
            for (size_t i = 0; i < count; i++) {
                size_t k = (size_t)columns[i];
                const int8_t *panel = packed + n / COLUMNS * COLUMNS * deep + n % COLUMNS * 4;
                vi32 four = vi32_load((const int32_t *)(const void *)(panel + k / 4 * PAIRED));
                vf32 code = vf32_from_vi32((four << (24 - 8 * (int)(k % 4))) >> 24);
                vf32_store(weights + i * wide + n, code * (vf32_load(scale + n) / 127.0f));
            }
    }
}

/* Nearest integer, ties to even, for what is already scaled to -127 .. 127. Entries at or above the threshold may be
 * larger, but lie in outlier columns, whose codes are cleared: the bound keeps their conversion defined. */
RN_INLINE int8_t code_of(float scaled) {
    scaled = scaled > 127.0f ? 127.0f : scaled;
    scaled = scaled < -127.0f ? -127.0f : scaled;
    return (int8_t)(int32_t)((scaled + 0x1.8p23f) - 0x1.8p23f);
}

static void quantize(const float *x, size_t x_stride, size_t rows, size_t depth, const float *largest,
                     const uint8_t *outlier, int8_t *q) {
    int threads = rn_threads(rows, 0.3 * (double)rows * (double)depth);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        for (size_t row = first; row < last; row++) {
            const float *from = x + row * x_stride;
            int8_t *to = q + row * depth;
            float inverse = largest[row] > 0 ? 127.0f / largest[row] : 0;
            /* 127 / subnormal overflows: then divide first. */
            int divide = isinf(inverse);
            if (divide)
                for (size_t k = 0; k < depth; k++) to[k] = code_of(from[k] / largest[row] * 127.0f);
            else
                for (size_t k = 0; k < depth; k++) to[k] = code_of(from[k] * inverse);
            for (size_t k = 0; outlier != NULL && k < depth; k++) to[k] = outlier[k] ? 0 : to[k];
        }
    }
}

/* Exchange the bits that `mask` selects in `b` with those `shift` above them in `a`. */
RN_INLINE void exchange(uint64_t *a, uint64_t *b, int shift, uint64_t mask) {
    uint64_t change = ((*a >> shift) ^ *b) & mask;
    *b ^= change;
    *a ^= change << shift;
}

/* Eight words of eight bytes: halves of words change places, then quarters, then bytes. */
static void transpose_bytes(const int8_t *from, size_t rows, size_t columns, int8_t *to) {
    for (size_t i = 0; i < rows; i += 8)
        for (size_t j = 0; j < columns; j += 8) {
            const int8_t *source = from + i * columns + j;
            int8_t *target = to + j * rows + i;
            if (rows - i < 8 || columns - j < 8) {
                for (size_t r = 0; r < 8 && r < rows - i; r++)
                    for (size_t c = 0; c < 8 && c < columns - j; c++) target[c * rows + r] = source[r * columns + c];
                continue;
            }
            uint64_t word[8];
            for (size_t r = 0; r < 8; r++) memcpy(word + r, source + r * columns, 8);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) exchange(word + r, word + r + 4, 32, 0x00000000ffffffffu);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                int first = r / 2 * 4 + r % 2;
                exchange(word + first, word + first + 2, 16, 0x0000ffff0000ffffu);
            }
#pragma GCC unroll 4
            for (int r = 0; r < 8; r += 2) exchange(word + r, word + r + 1, 8, 0x00ff00ff00ff00ffu);
            for (size_t c = 0; c < 8; c++) memcpy(target + c * rows, word + c, 8);
        }
}

static int dequantized(const int8_t *q, const float *largest, size_t rows, size_t depth, const int8_t *packed,
                       const int32_t *sums, const float *scale, const float *bias, size_t width, const float *large,
                       size_t count, const float *weights, int activation, const float *residual, float *out,
                       size_t out_stride) {
    exact_target target = {
        .out = out,
        .stride = out_stride,
        .largest = largest,
        .scale = scale,
        .bias = bias,
        .large = large,
        .weights = weights,
        .count = count,
        .wide = padded_width(width),
        .activation = activation,
        .residual = residual,
    };
    return exact_product(EXACT_WAY, q, depth, rows, depth, packed, sums, width, &target);
}

/* ---- the encoder's layers --------------------------------------------------------------------------------------- */

static size_t group_count(size_t depth) { return depth == 0 ? 1 : (depth + GROUP - 1) / GROUP; }

static void pack_groups(const float *weight, ptrdiff_t depth_stride, ptrdiff_t width_stride, size_t depth,
                        size_t width, int8_t *packed, float *scale, float *offset) {
    size_t deep = padded_depth(depth), wide = padded_width(width);
    memset(packed, 0, deep * wide);
    for (size_t g = 0; g < group_count(depth); g++) {
        size_t first = g * GROUP, last = first + GROUP < depth ? first + GROUP : depth;
        for (size_t n = 0; n < wide; n++) {
            scale[g * wide + n] = offset[g * wide + n] = 0;
            if (n >= width) continue;
            const float *from = weight + (ptrdiff_t)n * width_stride;
            float largest = 0;
            for (size_t k = first; k < last; k++) largest = fmaxf(largest, fabsf(from[(ptrdiff_t)k * depth_stride]));
            if (!(largest > 0)) continue;
            float step = largest / WEIGHT_TOP;
            if (step == 0) continue; /* subnormal: nothing that a sum would show */
            int8_t *panel = packed + n / COLUMNS * COLUMNS * deep + n % COLUMNS * 4;
            int sum = 0;
            for (size_t k = first; k < last; k++) {
                float level = rintf(from[(ptrdiff_t)k * depth_stride] / step);
                int8_t whole = (int8_t)fminf(fmaxf(level, -WEIGHT_TOP), WEIGHT_TOP);
                panel[k / 4 * PAIRED + k % 4] = whole;
                sum += whole;
            }
            scale[g * wide + n] = step;
            offset[g * wide + n] = step * (float)sum;
        }
    }
}

/* An entry beyond the threshold: what its level leaves of it. */
typedef struct {
    uint32_t k;
    float rest;
} outlier_entry;

/* Quantized rows of a block. */
typedef struct {
    uint8_t *levels;           /* (rows, deep) */
    float *scale, *low;        /* (rows, groups) */
    outlier_entry *outliers;   /* of all rows, in order */
    size_t *begin;             /* (rows + 1) */
    size_t deep, groups;
} quantized_rows;

static void store_levels(uint8_t *to, vi32 level, size_t count) {
#if VEC_AVX512
    _mm_mask_storeu_epi8(to, (__mmask16)((1u << count) - 1), _mm512_cvtepi32_epi8((__m512i)level));
#elif VEC_AVX2
    if (count == VF32) {
        __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)level), _mm256_extracti128_si256((__m256i)level, 1));
        _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
        return;
    }
    for (size_t i = 0; i < count; i++) to[i] = (uint8_t)level[i];
#else
    for (size_t i = 0; i < count; i++) to[i] = (uint8_t)level[i];
#endif
}

static void quantize_group(const float *x, size_t count, float threshold, uint32_t k, quantized_rows *rows, size_t row,
                           size_t group) {
    /* NaN and infinity are outliers whatever the threshold: they reach the result through the float product. */
    float bound = threshold > 0 ? threshold : INFINITY;
    vf32 limit = vf32_set(bound);
    vf32 top[2] = {vf32_set(-INFINITY), vf32_set(-INFINITY)}, bottom[2] = {vf32_set(INFINITY), vf32_set(INFINITY)};
    vi32 over = vi32_set(0);
    size_t i = 0;
    for (; i + 2 * VF32 <= count; i += 2 * VF32)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            vf32 each = vf32_load(x + i + j * VF32);
            over |= ~(vf32_abs(each) < limit);
            top[j] = vf32_max(each, top[j]);
            bottom[j] = vf32_min(each, bottom[j]);
        }
    for (; i < count; i += VF32) {
        size_t part = count - i < VF32 ? count - i : VF32;
        vf32 each = vf32_load_part(x + i, part, x[i]);
        over |= ~(vf32_abs(each) < limit);
        top[0] = vf32_max(each, top[0]);
        bottom[0] = vf32_min(each, bottom[0]);
    }
    float high = vf32_largest(vf32_max(top[0], top[1])), low = vf32_smallest(vf32_min(bottom[0], bottom[1]));
    int outliers = vi32_any(over);
    if (outliers) {
        /* The range of the others; an outlier is quantized as the end of the range that is nearer. */
        high = -INFINITY, low = INFINITY;
        for (i = 0; i < count; i++)
            if (fabsf(x[i]) < bound) {
                high = x[i] > high ? x[i] : high;
                low = x[i] < low ? x[i] : low;
            }
        if (high < low) high = low = 0;
    }
    float step = (high - low) / ROW_TOP, inverse = step > 0 ? 1.0f / step : 0;
    if (!(inverse < INFINITY)) inverse = 0; /* a subnormal step, or NaN: the group is its smallest value */
    rows->scale[row * rows->groups + group] = inverse > 0 ? step : 0;
    rows->low[row * rows->groups + group] = low;
    uint8_t *to = rows->levels + row * rows->deep + group * GROUP;
    for (i = 0; i < count; i += VF32) {
        size_t part = count - i < VF32 ? count - i : VF32;
        vf32 each = (part == VF32 ? vf32_load(x + i) : vf32_load_part(x + i, part, low)) - low;
        each = vf32_min(vf32_max(each * inverse, vf32_set(0)), vf32_set((float)ROW_TOP));
        /* The low bits of 1.5 * 2^23 + n hold n. */
        vi32 level = (vi32)(each + 0x1.8p23f) & 0xff;
        store_levels(to + i, level, part);
    }
    if (outliers)
        for (i = 0; i < count; i++)
            if (!(fabsf(x[i]) < bound)) {
                float level = rows->scale[row * rows->groups + group] * (float)to[i] + low;
                rows->outliers[rows->begin[row + 1]++] = (outlier_entry){k + (uint32_t)i, x[i] - level};
            }
}

static int quantize_rows(const float *x, size_t x_stride, size_t count, size_t depth, float threshold,
                         quantized_rows *rows) {
    rows->deep = padded_depth(depth);
    rows->groups = group_count(depth);
    size_t levels = (ROW_BLOCK * rows->deep + 63) & ~(size_t)63, constants = ROW_BLOCK * rows->groups;
    char *room = rn_scratch(2, levels + 2 * constants * sizeof(float) + (ROW_BLOCK + 1) * sizeof(size_t) +
                                   ROW_BLOCK * depth * sizeof(outlier_entry));
    if (room == NULL) return -1;
    rows->levels = (uint8_t *)room;
    rows->begin = (size_t *)(void *)(room + levels);
    rows->scale = (float *)(rows->begin + ROW_BLOCK + 1);
    rows->low = rows->scale + constants;
    rows->outliers = (outlier_entry *)(void *)(rows->low + constants);
    rows->begin[0] = 0;
    for (size_t row = 0; row < count; row++) {
        rows->begin[row + 1] = rows->begin[row];
        for (size_t k = 0; k < depth; k += GROUP)
            quantize_group(x + row * x_stride + k, depth - k < GROUP ? depth - k : GROUP, threshold, (uint32_t)k, rows,
                           row, k / GROUP);
        memset(rows->levels + row * rows->deep + depth, 0, rows->deep - depth);
    }
    return 0;
}

RN_INLINE void layer_tile(const int height, const rn_int8_layer *layer, const quantized_rows *rows, size_t row,
                          size_t n, size_t wide, float *restrict c, size_t c_stride) {
    const size_t deep = rows->deep, groups = rows->groups;
    const uint8_t *restrict a = rows->levels + row * deep;
    const int8_t *restrict panel = layer->packed + n * deep;
    const float *restrict row_scale = rows->scale + row * groups, *restrict row_low = rows->low + row * groups;
    const float *restrict scales = layer->scale + n, *restrict offsets = layer->offset + n;
    vf32 left = vf32_load(layer->bias + n), right = vf32_load(layer->bias + n + LANES);
    for (int r = 0; r < height; r++) {
        vf32_store(c + (size_t)r * c_stride, left);
        vf32_store(c + (size_t)r * c_stride + LANES, right);
    }
    for (size_t g = 0; g < groups; g++) {
        size_t first = g * GROUP, depth = deep - first < GROUP ? deep - first : GROUP;
        vi32 sum[ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < height; r++) sum[r][0] = sum[r][1] = vi32_set(0);
        integer_tile(ENCODER_WAY, height, a + first, deep, panel + first * COLUMNS, depth, sum);
        vf32 scale[2] = {vf32_load(scales), vf32_load(scales + LANES)};
        vf32 offset[2] = {vf32_load(offsets), vf32_load(offsets + LANES)};
        scales += wide;
        offsets += wide;
#pragma GCC unroll 8
        for (int r = 0; r < height; r++) {
            vf32 step = vf32_set(row_scale[(size_t)r * groups + g]), low = vf32_set(row_low[(size_t)r * groups + g]);
            for (int j = 0; j < 2; j++) {
                float *target = c + (size_t)r * c_stride + (size_t)j * LANES;
                vf32 y = vf32_fma(low, offset[j], vf32_load(target));
                vf32_store(target, vf32_fma(vf32_from_vi32(sum[r][j]) * scale[j], step, y));
            }
        }
    }
    for (int r = 0; r < height; r++)
        for (size_t i = rows->begin[row + (size_t)r]; i < rows->begin[row + (size_t)r + 1]; i++) {
            size_t k = rows->outliers[i].k;
            int left = 24 - 8 * (int)(k % 4);
            for (int j = 0; j < 2; j++) {
                vi32 four = vi32_load((const int32_t *)(const void *)(panel + k / 4 * PAIRED + j * REFNORM_VECTOR_BYTES));
                vf32 weight = vf32_from_vi32((four << left) >> 24) *
                              vf32_load(layer->scale + k / GROUP * wide + n + (size_t)j * LANES);
                float *target = c + (size_t)r * c_stride + (size_t)j * LANES;
                vf32_store(target, vf32_fma(vf32_set(rows->outliers[i].rest), weight, vf32_load(target)));
            }
        }
}

static __attribute__((noinline)) void layer_tile_whole(const rn_int8_layer *layer, const quantized_rows *rows,
                                                       size_t row, size_t n, size_t wide, float *c, size_t c_stride) {
    layer_tile(ROWS, layer, rows, row, n, wide, c, c_stride);
}
static __attribute__((noinline)) void layer_tile_one(const rn_int8_layer *layer, const quantized_rows *rows, size_t row,
                                                     size_t n, size_t wide, float *c, size_t c_stride) {
    layer_tile(1, layer, rows, row, n, wide, c, c_stride);
}

/* c = activation(layer(rows)) for `count` quantized rows and the columns from `first` to `last`. */
static void layer_product(const rn_int8_layer *layer, const quantized_rows *rows, size_t count, size_t first,
                          size_t last, int activation, float *c, size_t c_stride) {
    float edge[ROWS * COLUMNS] __attribute__((aligned(64)));
    size_t wide = padded_width(layer->width);
    for (size_t n = first; n < last; n += COLUMNS) {
        size_t columns = last - n < COLUMNS ? last - n : COLUMNS;
        for (size_t row = 0; row < count; row += ROWS) {
            size_t height = count - row < ROWS ? count - row : ROWS;
            float *target = columns == COLUMNS ? c + row * c_stride + n : edge;
            size_t stride = columns == COLUMNS ? c_stride : COLUMNS;
            if (height == ROWS)
                layer_tile_whole(layer, rows, row, n, wide, target, stride);
            else
                for (size_t r = 0; r < height; r++)
                    layer_tile_one(layer, rows, row + r, n, wide, target + r * stride, stride);
            for (size_t r = 0; r < height; r++) {
                if (activation) rn_activate_row(activation, target + r * stride, columns);
                if (columns != COLUMNS) memcpy(c + (row + r) * c_stride + n, target + r * stride, columns * sizeof(float));
            }
        }
    }
}

static void normalise(const rn_int8_call *call, size_t first, size_t rows, float *sums, size_t stride) {
    for (size_t row = 0; row < rows; row++)
        rn_residual_norm_row(sums + row * stride, call->residual + (first + row) * call->residual_stride, call->gain,
                             call->shift, call->eps, call->out + (first + row) * call->out_stride, call->layer->width);
}

static int linear_block(const rn_int8_call *call, size_t row, size_t count) {
    quantized_rows rows;
    const rn_int8_layer *layer = call->layer;
    if (quantize_rows(call->x + row * call->x_stride, call->x_stride, count, layer->depth, call->threshold, &rows) != 0)
        return -1;
    if (call->gain == NULL) {
        layer_product(layer, &rows, count, 0, layer->width, call->activation, call->out + row * call->out_stride,
                      call->out_stride);
        return 0;
    }
    float *sums = rn_scratch(0, ROW_BLOCK * layer->width * sizeof(float));
    if (sums == NULL) return -1;
    layer_product(layer, &rows, count, 0, layer->width, call->activation, sums, layer->width);
    normalise(call, row, count, sums, layer->width);
    return 0;
}

/* Blocks of nearly equal height, at most ROW_BLOCK, a multiple of ROWS but for the last; about as many for each
 * thread. */
static size_t block_height(size_t rows, int threads) {
    size_t share = (rows + (size_t)threads - 1) / (size_t)threads, blocks = (share + ROW_BLOCK - 1) / ROW_BLOCK;
    size_t height = blocks == 0 ? ROWS : (share + blocks - 1) / blocks;
    return (height + ROWS - 1) / ROWS * ROWS;
}

static int linear(const rn_int8_call *call) {
    size_t rows = call->rows, width = call->layer->width;
    if (rows == 0 || width == 0) return 0;
    double cost = NS_PER_PRODUCT * (double)rows * (double)call->layer->depth * (double)width;
    int threads = rn_threads((rows + ROWS - 1) / ROWS, cost), failed = 0;
    size_t height = block_height(rows, threads);
    rn_shares shares = rn_share_out(rows, ROWS, threads);
    RN_PARALLEL(threads) {
        for (size_t count, row; row = rn_take(&shares, height, &count), count > 0;) {
            if (linear_block(call, row, count) != 0) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        }
    }
    return failed ? -1 : 0;
}

static int feed_forward(const rn_int8_call *first_call, const rn_int8_call *second_call) {
    size_t rows = first_call->rows, middle = first_call->layer->width;
    if (rows == 0) return 0;
    double cost = NS_PER_PRODUCT * (double)rows * (double)middle *
                  (double)(first_call->layer->depth + second_call->layer->width);
    int threads = rn_threads((rows + ROWS - 1) / ROWS, cost), failed = 0;
    size_t height = block_height(rows, threads);
    rn_shares shares = rn_share_out(rows, ROWS, threads);
    RN_PARALLEL(threads) {
        float *hidden = rn_scratch(1, ROW_BLOCK * middle * sizeof(float));
        if (hidden == NULL) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        for (size_t count, row; hidden != NULL && (row = rn_take(&shares, height, &count), count > 0);) {
            rn_int8_call one = *first_call, two = *second_call;
            one.out = hidden;
            one.out_stride = two.x_stride = middle;
            two.x = hidden;
            one.x += row * one.x_stride;
            two.out += row * two.out_stride;
            if (two.gain != NULL) two.residual += row * two.residual_stride;
            if (linear_block(&one, 0, count) != 0 || linear_block(&two, 0, count) != 0)
                __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        }
    }
    return failed ? -1 : 0;
}

RN_TABLE(int8) = {
    .padded_width = padded_width,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .pack_columns = pack_columns,
    .scaled = scaled,
    .matmul = matmul,
    .matmul_rows = matmul_rows,
    .row_constants = row_constants,
    .quantize = quantize,
    .outlier_weights = outlier_weights,
    .transpose = transpose_bytes,
    .dequantized = dequantized,
    .group = GROUP,
    .weight_top = WEIGHT_TOP,
    .row_top = ROW_TOP,
    .group_bytes = packed_bytes,
    .pack_groups = pack_groups,
    .linear = linear,
    .feed_forward = feed_forward,
};
