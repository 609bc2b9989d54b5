/* Matrix products in bfloat16.
 *
 * Both operands are rounded once and written in the order of the product: the right one in panels of TILE_COLUMNS
 * columns, the left one in rows. Where the CPU multiplies pairs of bfloat16 (vdpbf16ps), two consecutive entries of the depth
 * fill a 32-bit lane; elsewhere rounded entries stay floats and the tiles of the float32 product take them. A tile's sums
 * stay in registers over the whole depth and are rounded as they leave.
 *
 * vdpbf16ps takes subnormal numbers for zeros. Operands that hold one go the way of the floats. */
#include "bf16.h"

#include <stdint.h>

#include "parallel.h"
#include "transpose.h"

#define REAL float
#define TILE_TYPE f32
#define TILE_VEC vf32
#include "tile.h"

#if VEC_AVX512 && defined(__AVX512BF16__)
#define HAVE_PAIRS 1
#else
#define HAVE_PAIRS 0
#endif

enum { COLUMNS = 2 * VF32, ROW_BLOCK = 8 * TILE_ROWS, PANEL_BLOCK = 4, SMALL_ROOM = 1 << 18 };
#define NS_PER_MULTIPLY_ADD (1.0 / ((HAVE_PAIRS ? 12.0 : 6.0) * VF32))
#define NS_PER_ROUNDING 0.4

/* ---- rounding --------------------------------------------------------------------------------------------------------- */

RN_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
RN_INLINE float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
/* The 16 high bits, rounded to nearest with ties to even; NaN stays NaN. */
RN_INLINE uint32_t round_bits(uint32_t bits) {
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded;
}
/* A double as a float rounded to odd: truncated, with the last bit set where something was cut off. Rounding that once more
 * is rounding the double once. */
RN_INLINE uint32_t odd_bits(double x) {
    float near = (float)x;
    uint32_t bits = bits_of(near);
    double back = (double)near;
    uint32_t past = fabs(back) > fabs(x), inexact = back != x && x == x;
    return (bits - past) | inexact;
}
RN_INLINE uint32_t code_at(const void *from, ptrdiff_t index, const int wide) {
    return round_bits(wide ? odd_bits(((const double *)from)[index]) : bits_of(((const float *)from)[index]));
}
RN_INLINE uint32_t is_subnormal(uint32_t code) { return (code & 0x7f80) == 0 && (code & 0x7f) != 0; }

/* Codes of `count` entries `stride` apart; returns whether one is subnormal. */
RN_INLINE uint32_t codes_of(const void *from, ptrdiff_t first, ptrdiff_t stride, size_t count, const int wide, uint16_t *to) {
    uint32_t small = 0;
    if (stride == 1)
        for (size_t i = 0; i < count; i++) {
            uint32_t code = code_at(from, first + (ptrdiff_t)i, wide);
            small |= is_subnormal(code);
            to[i] = (uint16_t)code;
        }
    else
        for (size_t i = 0; i < count; i++) {
            uint32_t code = code_at(from, first + (ptrdiff_t)i * stride, wide);
            small |= is_subnormal(code);
            to[i] = (uint16_t)code;
        }
    return small;
}

/* ---- packing ------------------------------------------------------------------------------------------------------------ */

typedef struct {
    const rn_bf16_call *call;
    char *left;  /* the left operand, of uint16_t for pairs or of float */
    size_t deep; /* depth, even for pairs */
    int pairs;
} packed_call;

enum { STRIP = 64 }; /* entries of a row that are rounded at a time */

#if HAVE_PAIRS
/* The CPU's own rounding takes subnormal numbers for zeros: they are looked for, and end the way of the pairs. */
RN_INLINE __m512i round_pairs(__m512 high, __m512 low, uint32_t *small) {
    *small |= _mm512_fpclass_ps_mask(high, 0x20) | _mm512_fpclass_ps_mask(low, 0x20);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
static uint32_t pack_float_row(const float *from, size_t count, uint16_t *to) {
    uint32_t small = 0;
    for (size_t k = 0; k < count; k += 32) {
        size_t left = count - k < 32 ? count - k : 32;
        __mmask32 mask = left < 32 ? (__mmask32)((1u << left) - 1) : 0xffffffff;
        __m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, from + k);
        __m512 high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), from + k + 16);
        _mm512_mask_storeu_epi16(to + k, mask, round_pairs(high, low, &small));
    }
    return small;
}
/* Two rows of COLUMNS floats into pairs. */
static uint32_t pack_two_rows(const float *first, const float *second, uint16_t *to) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    uint32_t small = 0;
    for (size_t j = 0; j < COLUMNS; j += 16) {
        __m512i both = round_pairs(_mm512_loadu_ps(second + j), _mm512_loadu_ps(first + j), &small);
        _mm512_storeu_si512(to + 2 * j, _mm512_permutexvar_epi16(order, both));
    }
    return small;
}
/* Entries first to last of the depth of a whole panel of floats, as far as they come in whole runs; *done is how far. */
static uint32_t pack_float_panel(const rn_bf16_call *call, size_t n, size_t first, size_t last, uint16_t *panel, size_t *done) {
    const float *from = (const float *)call->b + (ptrdiff_t)n * call->b_column;
    uint32_t small = 0;
    size_t k = first;
    if (call->b_column == 1) {
        for (; k + 2 <= last; k += 2) {
            const float *row = from + (ptrdiff_t)k * call->b_depth;
            small |= pack_two_rows(row, row + call->b_depth, panel + k * COLUMNS);
        }
    } else if (call->b_depth == 1) {
        for (; k + 32 <= last; k += 32)
            for (size_t j = 0; j < COLUMNS; j += 16) {
                uint16_t codes[16][32] __attribute__((aligned(64)));
                for (size_t column = 0; column < 16; column++)
                    small |= pack_float_row(from + (ptrdiff_t)(j + column) * call->b_column + k, 32, codes[column]);
                transpose_words(codes, sizeof codes[0], panel + k * COLUMNS + 2 * j, 2 * COLUMNS * sizeof(uint16_t));
            }
    }
    *done = k;
    return small;
}
#endif

/* A row of the left operand. */
RN_INLINE uint32_t pack_row(const packed_call *packed, size_t row, const int wide) {
    const rn_bf16_call *call = packed->call;
    ptrdiff_t first = (ptrdiff_t)row * call->a_row;
    if (packed->pairs) {
        uint16_t *to = (uint16_t *)(void *)packed->left + row * packed->deep;
        if (call->depth < packed->deep) to[call->depth] = 0;
#if HAVE_PAIRS
        if (!wide && call->a_depth == 1) return pack_float_row((const float *)call->a + first, call->depth, to);
#endif
        return codes_of(call->a, first, call->a_depth, call->depth, wide, to);
    }
    float *to = (float *)(void *)packed->left + row * packed->deep;
    for (size_t k = 0; k < call->depth; k++)
        to[k] = float_of(code_at(call->a, first + (ptrdiff_t)k * call->a_depth, wide) << 16);
    return 0;
}

/* Entries first to last of the depth of the panel of columns from n on, written to `panel`. The first is even, the last
 * too or the end. Rows are read along whichever direction is contiguous. */
RN_INLINE uint32_t pack_panel(const packed_call *packed, size_t n, size_t first, size_t last, void *panel, const int wide) {
    const rn_bf16_call *call = packed->call;
    size_t columns = call->width - n < COLUMNS ? call->width - n : COLUMNS, end = last < call->depth ? last : call->depth;
    uint16_t *pairs = panel, codes[STRIP];
    float *floats = panel;
    uint32_t small = 0;
#if HAVE_PAIRS
    if (packed->pairs && !wide && columns == COLUMNS) small = pack_float_panel(call, n, first, end, pairs, &first);
#endif
    if (first == end && end == last) return small;
    if (packed->pairs)
        memset(pairs + first * COLUMNS, 0, (last - first) * COLUMNS * sizeof *pairs);
    else
        memset(floats + first * COLUMNS, 0, (last - first) * COLUMNS * sizeof *floats);
    int along_columns = call->b_column == 1;
    size_t outer = along_columns ? end - first : columns, inner = along_columns ? columns : end - first;
    for (size_t i = 0; i < outer; i++)
        for (size_t begin = 0; begin < inner; begin += STRIP) {
            size_t count = inner - begin < STRIP ? inner - begin : STRIP;
            size_t k = first + (along_columns ? i : begin), column = along_columns ? begin : i;
            ptrdiff_t at = (ptrdiff_t)(n + column) * call->b_column + (ptrdiff_t)k * call->b_depth;
            small |= codes_of(call->b, at, along_columns ? call->b_column : call->b_depth, count, wide, codes);
            for (size_t j = 0; j < count; j++) {
                if (packed->pairs)
                    pairs[k / 2 * 2 * COLUMNS + 2 * column + k % 2] = codes[j];
                else
                    floats[k * COLUMNS + column] = float_of((uint32_t)codes[j] << 16);
                if (along_columns)
                    column++;
                else
                    k++;
            }
        }
    return small;
}

/* A run of panels, a part of the depth after the other: the rows of b that the panels share are read together. */
static uint32_t pack_panels(const packed_call *packed, size_t first, size_t last, char *to) {
    size_t item = packed->pairs ? sizeof(uint16_t) : sizeof(float), deep = packed->deep;
    uint32_t small = 0;
    for (size_t k = 0; k < deep; k += STRIP)
        for (size_t panel = first; panel < last; panel++) {
            size_t end = deep - k < STRIP ? deep : k + STRIP;
            char *at = to + (panel - first) * COLUMNS * deep * item;
            small |= packed->call->wide ? pack_panel(packed, panel * COLUMNS, k, end, at, 1)
                                        : pack_panel(packed, panel * COLUMNS, k, end, at, 0);
        }
    return small;
}

/* ---- tiles -------------------------------------------------------------------------------------------------------------- */

#if HAVE_PAIRS
RN_INLINE void pair_tile_of(const int rows, const uint16_t *a, size_t deep, const uint16_t *panel, float *sums) {
    __m512 sum[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (size_t k = 0; k < deep; k += 2, panel += 2 * COLUMNS) {
        __m512bh left = (__m512bh)_mm512_loadu_si512(panel), right = (__m512bh)_mm512_loadu_si512(panel + COLUMNS);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            int32_t pair;
            memcpy(&pair, a + (size_t)r * deep + k, sizeof pair);
            __m512bh each = (__m512bh)_mm512_set1_epi32(pair);
            sum[r][0] = _mm512_dpbf16_ps(sum[r][0], each, left);
            sum[r][1] = _mm512_dpbf16_ps(sum[r][1], each, right);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(sums + r * COLUMNS, sum[r][0]);
        _mm512_storeu_ps(sums + r * COLUMNS + 16, sum[r][1]);
    }
}
static __attribute__((noinline)) void pair_tile(int rows, const uint16_t *a, size_t deep, const uint16_t *panel, float *sums) {
    if (rows == TILE_ROWS) {
        pair_tile_of(TILE_ROWS, a, deep, panel, sums);
        return;
    }
    for (; rows >= 4; rows -= 4, a += 4 * deep, sums += 4 * COLUMNS) pair_tile_of(4, a, deep, panel, sums);
    for (; rows > 0; rows--, a += deep, sums += COLUMNS) pair_tile_of(1, a, deep, panel, sums);
}
#endif

RN_INLINE vf32 vf32_to_bf16(vf32 x) {
    vu32 bits = (vu32)x, nearest = bits + 0x7fff + (bits >> 16 & 1);
    return vf32_select((vi32)(x == x), (vf32)(nearest & 0xffff0000u), x);
}

/* Rounds the sums of a tile and writes them. */
RN_INLINE void finish(const rn_bf16_call *call, const float *sums, size_t row, size_t rows, size_t n, const int wide) {
    size_t columns = call->width - n < COLUMNS ? call->width - n : COLUMNS;
    float bias[COLUMNS] = {0};
    for (size_t j = 0; call->bias != NULL && j < columns; j++)
        bias[j] = float_of(code_at(call->bias, (ptrdiff_t)(n + j), wide) << 16);
    for (size_t r = 0; r < rows; r++) {
        float y[COLUMNS];
        for (size_t j = 0; j < COLUMNS; j += VF32) {
            vf32 each = vf32_to_bf16(vf32_load(sums + r * COLUMNS + j));
            /* Two numbers of 8 digits: rounding their sum to 24 digits in between changes nothing. */
            if (call->bias != NULL) each = vf32_to_bf16(each + vf32_load(bias + j));
            vf32_store(y + j, each);
        }
        size_t at = (row + r) * call->width + n;
        if (wide)
            for (size_t j = 0; j < columns; j++) ((double *)call->out)[at + j] = (double)y[j];
        else if (columns == COLUMNS)
            memcpy((float *)call->out + at, y, sizeof y);
        else
            memcpy((float *)call->out + at, y, columns * sizeof(float));
    }
}

/* Rows and panels of the result; `right` is the first of these panels. */
static void block_product(const packed_call *packed, size_t first_row, size_t last_row, size_t first_panel, size_t last_panel,
                          const char *right) {
    const rn_bf16_call *call = packed->call;
    const size_t item = packed->pairs ? sizeof(uint16_t) : sizeof(float), deep = packed->deep;
    float sums[TILE_ROWS * COLUMNS] __attribute__((aligned(64)));
    for (size_t panel = first_panel; panel < last_panel; panel++, right += COLUMNS * deep * item)
        for (size_t row = first_row; row < last_row; row += TILE_ROWS) {
            size_t n = panel * COLUMNS, rows = last_row - row < TILE_ROWS ? last_row - row : TILE_ROWS;
            const void *left = packed->left + row * deep * item;
#if HAVE_PAIRS
            if (packed->pairs)
                pair_tile((int)rows, left, deep, (const void *)right, sums);
            else
#endif
                tile_f32((int)rows, left, deep, (const void *)right, deep, sums, COLUMNS, NULL, 0);
            if (call->wide)
                finish(call, sums, row, rows, n, 1);
            else
                finish(call, sums, row, rows, n, 0);
        }
}

static uint32_t pack_rows(const packed_call *packed) {
    const rn_bf16_call *call = packed->call;
    int threads = rn_threads(call->rows, NS_PER_ROUNDING * (double)call->depth * (double)call->rows);
    uint32_t small = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(call->rows, first, last);
        uint32_t found = 0;
        for (size_t row = first; row < last; row++)
            found |= call->wide ? pack_row(packed, row, 1) : pack_row(packed, row, 0);
        if (found) __atomic_store_n(&small, 1, __ATOMIC_RELAXED);
    }
    return small;
}

/* ---- operands that are packed already ----------------------------------------------------------------------------------- */

static size_t packed_bytes(size_t depth, size_t width) {
    size_t columns = (width + COLUMNS - 1) / COLUMNS * COLUMNS;
    return columns * (HAVE_PAIRS ? (depth + 1) / 2 * 2 * sizeof(uint16_t) : depth * sizeof(float));
}

static int pack(const uint16_t *bits, size_t depth, size_t width, void *packed) {
    const size_t deep = HAVE_PAIRS ? (depth + 1) / 2 * 2 : depth, panels = (width + COLUMNS - 1) / COLUMNS;
    int threads = rn_threads(panels, 1.0 * (double)depth * (double)width), found = 0;
    RN_PARALLEL(threads) {
        RN_SHARE(panels, first, last);
        uint32_t small = 0;
        for (size_t panel = first; panel < last; panel++) {
            uint16_t *pairs = (uint16_t *)packed + panel * COLUMNS * deep;
            float *floats = (float *)packed + panel * COLUMNS * deep;
            for (size_t k = 0; k < deep; k++)
                for (size_t j = 0; j < COLUMNS; j++) {
                    size_t n = panel * COLUMNS + j;
                    uint16_t code = k < depth && n < width ? bits[n * depth + k] : 0;
                    small |= is_subnormal(code);
                    if (HAVE_PAIRS)
                        pairs[k / 2 * 2 * COLUMNS + 2 * j + k % 2] = code;
                    else
                        floats[k * COLUMNS + j] = float_of((uint32_t)code << 16);
                }
        }
        if (small) __atomic_store_n(&found, 1, __ATOMIC_RELAXED);
    }
    return found && HAVE_PAIRS;
}

#if HAVE_PAIRS
/* ---- few rows of floats -------------------------------------------------------------------------------------------------
 *
 * The right operand is read along its rows, eight of them at a time, rounded in registers and used at once. Sums wait in the
 * first cache. */
enum { MOST_STREAMED = 16, STREAM_ROWS = 8 };

/* Columns of long runs, as far as their sums fit the cache. */
RN_INLINE size_t stream_panels_at_once(size_t rows) { return rows <= 4 ? 64 : 16; }

RN_INLINE void stream_step(const int whole, const rn_bf16_call *call, const uint16_t *left, size_t deep, size_t k, size_t pairs,
                           size_t n, float *sums, uint32_t *small) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const float *from = (const float *)call->b + (ptrdiff_t)k * call->b_depth + n;
    __m512bh right[STREAM_ROWS / 2][2];
#pragma GCC unroll 4
    for (size_t pair = 0; pair < STREAM_ROWS / 2; pair++)
#pragma GCC unroll 2
        for (size_t half = 0; half < 2; half++) {
            const float *row = from + (ptrdiff_t)(2 * pair) * call->b_depth + 16 * half;
            const int first = whole || k + 2 * pair < call->depth, second = whole || k + 2 * pair + 1 < call->depth;
            __m512 low = first ? _mm512_loadu_ps(row) : _mm512_setzero_ps();
            __m512 high = second ? _mm512_loadu_ps(row + call->b_depth) : _mm512_setzero_ps();
            right[pair][half] = (__m512bh)_mm512_permutexvar_epi16(order, round_pairs(high, low, small));
        }
    for (size_t row = 0; row < call->rows; row++, left += deep, sums += COLUMNS) {
        __m512 sum[2] = {_mm512_loadu_ps(sums), _mm512_loadu_ps(sums + 16)};
#pragma GCC unroll 4
        for (size_t pair = 0; pair < STREAM_ROWS / 2; pair++) {
            if (!whole && pair >= pairs) break;
            int32_t two;
            memcpy(&two, left + k + 2 * pair, sizeof two);
            const __m512bh each = (__m512bh)_mm512_set1_epi32(two);
            sum[0] = _mm512_dpbf16_ps(sum[0], each, right[pair][0]);
            sum[1] = _mm512_dpbf16_ps(sum[1], each, right[pair][1]);
        }
        _mm512_storeu_ps(sums, sum[0]);
        _mm512_storeu_ps(sums + 16, sum[1]);
    }
}

static __attribute__((noinline)) uint32_t stream_panels(const packed_call *packed, size_t first, size_t count, float *sums) {
    const rn_bf16_call *call = packed->call;
    const uint16_t *left = (const uint16_t *)(const void *)packed->left;
    uint32_t small = 0;
    memset(sums, 0, count * call->rows * COLUMNS * sizeof *sums);
    for (size_t k = 0; k < packed->deep; k += STREAM_ROWS)
        for (size_t panel = 0; panel < count; panel++) {
            float *own = sums + panel * call->rows * COLUMNS;
            size_t n = (first + panel) * COLUMNS, pairs = (packed->deep - k) / 2;
            if (k + STREAM_ROWS <= call->depth)
                stream_step(1, call, left, packed->deep, k, pairs, n, own, &small);
            else
                stream_step(0, call, left, packed->deep, k, pairs, n, own, &small);
        }
    for (size_t panel = 0; panel < count && !small; panel++)
        finish(call, sums + panel * call->rows * COLUMNS, 0, call->rows, (first + panel) * COLUMNS, 0);
    return small;
}

static int streams(const rn_bf16_call *call) {
    return call->packed == NULL && !call->wide && call->rows <= MOST_STREAMED && call->b_column == 1 && call->width % COLUMNS == 0;
}

/* 0; 1: there is a subnormal number, the result is unfinished; -1: no memory. */
static int streamed(const packed_call *packed, int threads) {
    const rn_bf16_call *call = packed->call;
    int small = 0, failed = 0;
    rn_shares shares = rn_share_out(call->width / COLUMNS, 1, threads);
    RN_PARALLEL(threads) {
        const size_t at_once = stream_panels_at_once(call->rows);
        float *sums = rn_scratch(1, at_once * COLUMNS * call->rows * sizeof(float));
        if (sums == NULL) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        for (size_t count, first; sums != NULL && (first = rn_take(&shares, at_once, &count), count > 0);)
            if (stream_panels(packed, first, count, sums)) __atomic_store_n(&small, 1, __ATOMIC_RELAXED);
    }
    return failed ? -1 : small;
}
#endif

/* -1: no memory; 1: pairs do not do, the result is unfinished.
 *
 * If all rows are one block, every panel is used once: it is packed into the thread's scratch and multiplied there. */
static int product(const rn_bf16_call *call, int pairs) {
    const size_t panels = (call->width + COLUMNS - 1) / COLUMNS, item = pairs ? sizeof(uint16_t) : sizeof(float);
    packed_call packed = {.call = call, .deep = pairs ? (call->depth + 1) / 2 * 2 : call->depth, .pairs = pairs};
    const size_t left = (call->rows * packed.deep * item + 63) & ~(size_t)63, each = COLUMNS * packed.deep * item;
    const size_t row_blocks = (call->rows + ROW_BLOCK - 1) / ROW_BLOCK, panel_blocks = (panels + PANEL_BLOCK - 1) / PANEL_BLOCK;
    const int once = row_blocks == 1 && call->packed == NULL;
    size_t bytes = left + (once || call->packed != NULL ? 0 : panels * each) + 64;
    char *room = bytes < SMALL_ROOM ? rn_scratch(0, bytes) : rn_block_alloc(bytes);
    if (room == NULL) return -1;
    packed.left = room;
    const char *right = call->packed != NULL ? call->packed : room + left;
    int small = (int)pack_rows(&packed), failed = 0;
    double rounding = NS_PER_ROUNDING * (double)call->depth * (double)call->width;
    double products = NS_PER_MULTIPLY_ADD * (double)call->rows * (double)call->depth * (double)call->width;
#if HAVE_PAIRS
    if (pairs && streams(call) && !small) {
        int status = streamed(&packed, rn_threads(panels, rounding + products));
        if (bytes >= SMALL_ROOM) rn_block_free(room);
        return status;
    }
#endif
    if (!once && call->packed == NULL) {
        int threads = rn_threads(panel_blocks, rounding);
        rn_shares shares = rn_share_out(panels, 1, threads);
        RN_PARALLEL(threads) {
            for (size_t count, first; first = rn_take(&shares, PANEL_BLOCK, &count), count > 0;)
                if (pack_panels(&packed, first, first + count, room + left + first * each))
                    __atomic_store_n(&small, 1, __ATOMIC_RELAXED);
        }
    }
    if (!(small && pairs)) {
        double reading = call->packed != NULL ? rounding / 8 : 0;
        int threads = rn_threads(row_blocks * panel_blocks, once ? rounding + products : reading + products);
        rn_shares shares = rn_share_out(row_blocks * panel_blocks, 1, threads);
        RN_PARALLEL(threads) {
            char *own = once ? rn_scratch(1, PANEL_BLOCK * each + 64) : NULL;
            if (once && own == NULL) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
            for (size_t count, block; (own != NULL || !once) && (block = rn_take(&shares, 1, &count), count > 0);) {
                size_t row = block / panel_blocks * ROW_BLOCK, panel = block % panel_blocks * PANEL_BLOCK;
                size_t last_row = call->rows - row < ROW_BLOCK ? call->rows : row + ROW_BLOCK;
                size_t last_panel = panels - panel < PANEL_BLOCK ? panels : panel + PANEL_BLOCK;
                if (once && pack_panels(&packed, panel, last_panel, own)) __atomic_store_n(&small, 1, __ATOMIC_RELAXED);
                block_product(&packed, row, last_row, panel, last_panel, once ? own : right + panel * each);
            }
        }
    }
    if (bytes >= SMALL_ROOM) rn_block_free(room);
    return failed ? -1 : small && pairs;
}

static int matmul(const rn_bf16_call *call) {
    if (call->rows == 0 || call->width == 0) return 0;
    if (call->packed != NULL) return product(call, HAVE_PAIRS);
    int status = HAVE_PAIRS ? product(call, 1) : 1;
    return status > 0 ? product(call, 0) : status;
}

RN_TABLE(bf16) = {
    .matmul = matmul,
    .packed_bytes = packed_bytes,
    .pack = pack,
};
