/* Linear layers on packed 4-bit weights.
 *
 * Few rows are bound by the weights: each output is a dot product along its row of codes as it stands in memory, which is
 * read once. A group's 16 possible weights are a table in a register, so that a shift and a permutation turn a vector of
 * 32-bit words, eight codes each, into floats; elsewhere than on AVX-512 the code is put into the low bits of 2^23. The
 * inputs are laid out once in the order in which codes come out of the words. Four outputs and up to four rows go
 * together. More rows go by panels (int4_body.h). Inputs that are rounded to 8 bits meet the codes in dot products of bytes. */
#include "int4.h"

#include "parallel.h"
#include "transpose.h"

static size_t int4_groups(const rn_int4_weight *weight) { return (weight->depth + weight->group - 1) / weight->group; }
/* Code of input k less the zero point, in a row of codes. */
static int int4_offset(const uint8_t *codes, const uint8_t *zero, size_t k, size_t group) {
    return (codes[k / 2] >> (k % 2 * 4) & 15) - zero[k / group];
}

#if VEC_AVX512
/* 16 outputs of WORD_BLOCK inputs, rows of codes `bytes` apart, into a panel of 32 floats an input. The rows' cache lines
 * are read whole and once. */
enum { WORD_BLOCK = 128 };
static void unpack_block(const uint8_t *codes, size_t bytes, const float *scale, const uint8_t *zero, size_t groups,
                         size_t k, size_t group, float *panel) {
    const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i words[16];
    __m512 offset = numbers, step = numbers;
    transpose_words(codes, bytes, words, sizeof words[0]);
    size_t known = 0; /* inputs from k on whose group's constants are loaded */
    for (size_t word = 0; word < 16; word++) {
        if (8 * word >= known) {
            size_t g = (k + 8 * word) / group;
            float offsets[16], steps[16];
            for (size_t lane = 0; lane < 16; lane++) {
                offsets[lane] = (float)zero[lane * groups + g];
                steps[lane] = scale[lane * groups + g];
            }
            offset = _mm512_loadu_ps(offsets);
            step = _mm512_loadu_ps(steps);
            known = (g + 1) * group - k;
        }
        __m512i all = words[word];
#pragma GCC unroll 8
        for (int nibble = 0; nibble < 8; nibble++) {
            __m512 code = _mm512_permutexvar_ps(_mm512_srli_epi32(all, 4 * nibble), numbers);
            _mm512_storeu_ps(panel + (8 * word + (size_t)nibble) * 32, _mm512_mul_ps(_mm512_sub_ps(code, offset), step));
        }
    }
}

/* Whole runs of 128 inputs from k on, an even number; returns the first input that is left. */
static size_t dequantize_run(const uint8_t *codes, size_t k, size_t stop, const float *table, float *row) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i shift = _mm512_slli_epi32(_mm512_and_si512(lanes, _mm512_set1_epi32(7)), 2);
    const __m512i second = _mm512_srli_epi32(lanes, 3); /* 0 in the first eight lanes, 1 in the others */
    const __m512 weights = _mm512_loadu_ps(table);
    for (; k + 128 <= stop; k += 128) {
        __m512i all = _mm512_loadu_si512(codes + k / 2);
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) {
            __m512i words = _mm512_permutexvar_epi32(_mm512_add_epi32(second, _mm512_set1_epi32(2 * v)), all);
            _mm512_storeu_ps(row + k + 16 * v, _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shift), weights));
        }
    }
    return k;
}
#endif

#define REAL float
#define TILE_TYPE f32
#define TILE_VEC vf32
#define TILE_WORD uint32_t
#define TILE_WORDS vu32
#define TILE_MAGIC 0x4b000000u /* 2^23, whose low bits count units */
#define TILE_MAGIC_VALUE 0x1p23f
#define TILE_RINT rintf
#include "tile.h"
#include "int4_body.h"
#undef REAL
#undef TILE_TYPE
#undef TILE_VEC
#undef TILE_WORD
#undef TILE_WORDS
#undef TILE_MAGIC
#undef TILE_MAGIC_VALUE
#undef TILE_RINT

#define REAL double
#define TILE_TYPE f64
#define TILE_VEC vf64
#define TILE_WORD uint64_t
#define TILE_WORDS vu64
#define TILE_MAGIC 0x4330000000000000ull /* 2^52 */
#define TILE_MAGIC_VALUE 0x1p52
#define TILE_RINT rint
#include "tile.h"
#include "int4_body.h"

/* ---- few rows ------------------------------------------------------------------------------------------------------
 *
 * A block of codes fills a vector of words: LARGE codes, or, where groups are smaller, SMALL of them, repeated across the
 * vector and shifted by another number of bits in each copy. */
enum { LARGE = 8 * VF32, SMALL = 32, OUTPUTS = 4, MOST_FEW = 12 };
#if VEC_AVX512
enum { TOGETHER = 4 };
#else
enum { TOGETHER = 2 };
#endif
#if VEC_AVX512 && defined(__AVX512VNNI__)
#define HAVE_DOT 1
#else
#define HAVE_DOT 0
#endif
#define NS_PER_CODE_BYTE 0.03

typedef struct {
    const rn_int4_weight *weight;
    const float *x, *bias; /* x: (rows, blocks, entries of a block) in the order of the words */
    float *out;
    size_t rows, bytes, groups, blocks;
} few_call;

/* Place within its block of what lane `lane` of vector `vector` gets. */
RN_INLINE size_t place(const int small, size_t vector, size_t lane) {
    return small ? 8 * (lane % 4) + vector * (VF32 / 4) + lane / 4 : 8 * lane + vector;
}

static void order_row(const int small, const float *x, size_t depth, size_t blocks, float *to) {
    const size_t block = small ? SMALL : LARGE, whole = depth / block;
    for (size_t b = 0; b < blocks; b++, x += block, to += block)
        for (size_t v = 0; v < block / VF32; v++)
            for (size_t lane = 0; lane < VF32; lane++) {
                size_t at = place(small, v, lane);
                to[v * VF32 + lane] = b < whole || b * block + at < depth ? x[at] : 0;
            }
}

RN_INLINE vu32 block_words(const int small, const uint8_t *from, size_t bytes) {
    const size_t all = small ? SMALL / 2 : LARGE / 2;
    uint8_t part[LARGE / 2] = {0};
    if (bytes < all) {
        memcpy(part, from, bytes);
        from = part;
    }
    if (!small) return (vu32)vi32_load_bytes(from);
#if VEC_AVX512
    return (vu32)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)from));
#elif VEC_AVX2
    return (vu32)_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)from));
#else
    return (vu32)vi32_load_bytes(from);
#endif
}

/* What turns a group's codes into weights. */
typedef struct {
#if VEC_AVX512
    __m512 table;
#else
    vf32 offset, step;
#endif
} group_grid;

RN_INLINE group_grid grid_of(float scale, uint8_t zero) {
#if VEC_AVX512
    const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 offsets = _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(zero)));
    return (group_grid){_mm512_mul_ps(offsets, _mm512_set1_ps(scale))};
#else
    return (group_grid){vf32_set(0x1p23f + (float)zero), vf32_set(scale)};
#endif
}
RN_INLINE vf32 weights_of(vu32 codes, group_grid grid) { /* codes: in the low four bits of each lane */
#if VEC_AVX512
    return (vf32)_mm512_permutexvar_ps((__m512i)codes, grid.table);
#else
    return ((vf32)((codes & 15) | 0x4b000000u) - grid.offset) * grid.step;
#endif
}

RN_INLINE void few_tile(const int small, const int rows, const int outputs, const few_call *call, size_t row, size_t n) {
    const size_t block = small ? SMALL : LARGE, vectors = block / VF32, each = block / 2;
    const size_t row_length = call->blocks * block;
    const float *scale = (const float *)call->weight->scale + n * call->groups;
    const uint8_t *zero = call->weight->zero + n * call->groups, *codes = call->weight->codes + n * call->bytes;
    const float *x = call->x + row * row_length;
    size_t span = call->groups > 1 ? call->weight->group / block : call->blocks;
    vf32 sum[TOGETHER][OUTPUTS];
    vu32 shift; /* of the copies of a small block */
    for (int lane = 0; lane < VF32; lane++) shift[lane] = small ? 4u * (uint32_t)(lane / 4) : 0;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < outputs; j++) sum[r][j] = vf32_set(0);
    for (size_t g = 0, b = 0; g < call->groups; g++) {
        group_grid grid[OUTPUTS];
        size_t stop = span < call->blocks - b ? b + span : call->blocks;
#pragma GCC unroll 4
        for (int j = 0; j < outputs; j++)
            grid[j] = grid_of(scale[(size_t)j * call->groups + g], zero[(size_t)j * call->groups + g]);
        for (; b < stop; b++) {
            vu32 words[OUTPUTS];
#pragma GCC unroll 4
            for (int j = 0; j < outputs; j++) {
                const uint8_t *from = codes + (size_t)j * call->bytes + b * each;
                words[j] = block_words(small, from, call->bytes - b * each);
                /* The next outputs' codes: rows of codes are too short for the processor to find the pattern by itself. */
                if (row == 0) __builtin_prefetch(from + OUTPUTS * call->bytes);
                if (small) words[j] >>= shift;
            }
#pragma GCC unroll 8
            for (size_t v = 0; v < vectors; v++) {
                vf32 w[OUTPUTS];
#pragma GCC unroll 4
                for (int j = 0; j < outputs; j++) {
                    w[j] = weights_of(words[j], grid[j]);
                    words[j] >>= small ? VF32 : 4;
                }
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) {
                    vf32 entry = vf32_load(x + (size_t)r * row_length + b * block + v * VF32);
#pragma GCC unroll 4
                    for (int j = 0; j < outputs; j++) sum[r][j] = vf32_fma(entry, w[j], sum[r][j]);
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < outputs; j++)
            call->out[(row + (size_t)r) * call->weight->width + n + (size_t)j] =
                vf32_sum(sum[r][j]) + (call->bias != NULL ? call->bias[n + (size_t)j] : 0);
}

static __attribute__((noinline)) void few_outputs(const int small, const few_call *call, size_t first, size_t last) {
    for (size_t n = first; n < last;) {
        int whole = last - n >= OUTPUTS;
        for (size_t row = 0; row < call->rows;) {
            int together = call->rows - row >= TOGETHER && whole;
#define FEW_TILE(is_small)                                                              \
    if (together)                                                                       \
        few_tile(is_small, TOGETHER, OUTPUTS, call, row, n);                            \
    else if (whole)                                                                     \
        few_tile(is_small, 1, OUTPUTS, call, row, n);                                   \
    else                                                                                \
        few_tile(is_small, 1, 1, call, row, n);
            if (small) {
                FEW_TILE(1)
            } else {
                FEW_TILE(0)
            }
#undef FEW_TILE
            row += together ? TOGETHER : 1;
        }
        n += whole ? OUTPUTS : 1;
    }
}

static int few_rows(const int small, const rn_int4_weight *weight, const float *x, size_t rows, const float *bias,
                    float *out) {
    const size_t block = small ? SMALL : LARGE, depth = weight->depth;
    few_call call = {.weight = weight, .bias = bias, .out = out, .rows = rows, .bytes = (depth + 1) / 2,
                     .groups = int4_groups(weight), .blocks = (depth + block - 1) / block};
    float *ordered = rn_scratch(1, rows * call.blocks * block * sizeof(float));
    if (ordered == NULL) return -1;
    for (size_t row = 0; row < rows; row++)
        order_row(small, x + row * depth, depth, call.blocks, ordered + row * call.blocks * block);
    call.x = ordered;
    size_t parts = (weight->width + OUTPUTS - 1) / OUTPUTS;
    double cost = NS_PER_CODE_BYTE * ((double)rows / TOGETHER + 1) * (double)call.bytes * (double)weight->width;
    int threads = rn_threads(parts, cost);
    rn_shares shares = rn_share_out(weight->width, OUTPUTS, threads);
    RN_PARALLEL(threads) {
        for (size_t count, first; first = rn_take(&shares, 16 * OUTPUTS, &count), count > 0;) {
            if (small)
                few_outputs(1, &call, first, first + count);
            else
                few_outputs(0, &call, first, first + count);
        }
    }
    return 0;
}

#if HAVE_DOT
/* ---- few rows, by integer dot products ---------------------------------------------------------------------------------
 *
 * Blocks of 128 inputs of a row are written as integers of 24 bits times a step, the integers as three signed bytes, their
 * digits in base 256. Codes are unsigned bytes: three dot-product instructions do 64 products, where float multiply-adds
 * take four and eight more to make floats of the codes. The integer sums are exact; an input is off by at most 2^-24 of the
 * largest of its block. A lane sums eight products: 8 * 15 * 2^23 < 2^30. */
enum { DIGIT_BLOCK = 128, DIGITS = 3 };
#define DIGIT_TOP 8355700.0f /* three digits reach 127 * (65536 + 256 + 1) */
#define DIGIT_LEAST 0x1p-100f /* blocks of smaller inputs are left to the floats */

typedef struct {
    int8_t digit[DIGITS][2][DIGIT_BLOCK / 2]; /* of even and of odd inputs */
    float sum[16];                            /* of the integers of a lane's eight inputs */
} digit_block;

typedef struct {
    const rn_int4_weight *weight;
    const digit_block *x;    /* (rows, blocks) */
    const float *step, *bias; /* step: (rows, blocks) */
    float *out;
    size_t rows, bytes, groups, blocks;
} digit_call;

/* 0 where the block does not suit: it holds NaN, infinity, or is tiny. */
static int to_digits(const float *x, size_t count, digit_block *to, float *step) {
    __m512 entry[8], largest = _mm512_setzero_ps(), bad = largest;
    for (size_t i = 0; i < 8; i++) {
        size_t left = count > 16 * i ? count - 16 * i : 0;
        entry[i] = _mm512_maskz_loadu_ps(left < 16 ? (__mmask16)((1u << left) - 1) : (__mmask16)0xffff, x + 16 * i);
        largest = _mm512_max_ps(largest, _mm512_abs_ps(entry[i]));
        bad = _mm512_fmadd_ps(entry[i], _mm512_setzero_ps(), bad);
    }
    float top = _mm512_reduce_max_ps(largest);
    if (_mm512_cmp_ps_mask(bad, bad, _CMP_UNORD_Q) != 0 || (top > 0 && top < DIGIT_LEAST)) return 0;
    *step = top / DIGIT_TOP;
    const __m512 inverse = _mm512_set1_ps(top > 0 ? DIGIT_TOP / top : 0);
    const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
    int32_t whole[DIGIT_BLOCK];
    for (size_t i = 0; i < 8; i += 2) {
        __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(entry[i], inverse));
        __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(entry[i + 1], inverse));
        _mm512_storeu_si512(whole + 16 * i, first);
        _mm512_storeu_si512(whole + 16 * i + 16, second);
        for (size_t odd = 0; odd < 2; odd++) {
            __m512i rest = _mm512_permutex2var_epi32(first, odd ? odds : evens, second);
            for (int digit = DIGITS - 1; digit >= 0; digit--) {
                _mm_storeu_si128((__m128i *)(void *)(to->digit[digit][odd] + 8 * i), _mm512_cvtepi32_epi8(rest));
                /* Rounded to the nearest multiple of 256, ties up: what is left of it is the digits above. */
                rest = _mm512_srai_epi32(_mm512_add_epi32(rest, _mm512_set1_epi32(128)), 8);
            }
        }
    }
    for (size_t lane = 0; lane < 16; lane++) {
        int32_t sum = 0;
        for (size_t i = 0; i < 8; i++) sum += whole[8 * lane + i];
        to->sum[lane] = (float)sum;
    }
    return 1;
}

/* Scales and zero points of the lanes of a block: of one group, or of the next `count` groups, each for as many lanes. */
RN_INLINE void lane_grids(const int small, const float *scale, const uint8_t *zero, size_t count, __m512i place,
                          __m512 *scales, __m512 *zeros) {
    if (small) {
        __mmask16 mask = (__mmask16)((1u << count) - 1);
        __m512i codes = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, zero));
        *scales = _mm512_permutexvar_ps(place, _mm512_maskz_loadu_ps(mask, scale));
        *zeros = _mm512_permutexvar_ps(place, _mm512_cvtepi32_ps(codes));
    } else {
        *scales = _mm512_set1_ps(*scale);
        *zeros = _mm512_set1_ps((float)*zero);
    }
}

RN_INLINE void digit_tile(const int small, const int rows, const int outputs, const digit_call *call, size_t row, size_t n) {
    const size_t groups = call->groups, group = call->weight->group, bytes = call->bytes;
    const float *scale = (const float *)call->weight->scale + n * groups;
    const uint8_t *zero = call->weight->zero + n * groups, *codes = call->weight->codes + n * bytes;
    const __m512i low = _mm512_set1_epi8(15), lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    /* Groups in a block, or blocks in a group; each is a power of two in the first case. */
    const size_t parts = small ? DIGIT_BLOCK / group : 1, span = groups > 1 && !small ? group / DIGIT_BLOCK : call->blocks;
    const __m512i place = _mm512_srl_epi32(lanes, _mm_cvtsi32_si128(small ? __builtin_ctzl(group / 8) : 0));
    size_t g = 0, within = 0;
    __m512 total[TOGETHER][OUTPUTS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < outputs; j++) total[r][j] = _mm512_setzero_ps();
    for (size_t b = 0; b < call->blocks; b++) {
        size_t left = bytes - b * DIGIT_BLOCK / 2;
        __mmask64 mask = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
        __m512i even[OUTPUTS], odd[OUTPUTS];
        __m512 scales[OUTPUTS], zeros[OUTPUTS];
#pragma GCC unroll 4
        for (int j = 0; j < outputs; j++) {
            const uint8_t *from = codes + (size_t)j * bytes + b * DIGIT_BLOCK / 2;
            __m512i all = _mm512_maskz_loadu_epi8(mask, from);
            /* The next outputs' codes: rows of codes are too short for the processor to find the pattern by itself. */
            if (row == 0) _mm_prefetch((const char *)(from + OUTPUTS * bytes), _MM_HINT_T0);
            even[j] = _mm512_and_si512(all, low);
            odd[j] = _mm512_and_si512(_mm512_srli_epi16(all, 4), low);
            lane_grids(small, scale + (size_t)j * groups + g, zero + (size_t)j * groups + g, groups - g < parts ? groups - g : parts,
                       place, &scales[j], &zeros[j]);
        }
        within += !small;
        if (small || within == span) {
            g += parts;
            within = 0;
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const digit_block *x = call->x + (row + (size_t)r) * call->blocks + b;
            __m512 step = _mm512_set1_ps(call->step[(row + (size_t)r) * call->blocks + b]), sum = _mm512_loadu_ps(x->sum);
#pragma GCC unroll 4
            for (int j = 0; j < outputs; j++) {
                __m512i whole = _mm512_setzero_si512();
#pragma GCC unroll 3
                for (int digit = 0; digit < DIGITS; digit++) {
                    __m512i dot = _mm512_dpbusd_epi32(digit ? _mm512_slli_epi32(whole, 8) : whole, even[j],
                                                      _mm512_loadu_si512(x->digit[digit][0]));
                    whole = _mm512_dpbusd_epi32(dot, odd[j], _mm512_loadu_si512(x->digit[digit][1]));
                }
                __m512 centred = _mm512_fnmadd_ps(zeros[j], sum, _mm512_cvtepi32_ps(whole));
                total[r][j] = _mm512_fmadd_ps(centred, _mm512_mul_ps(scales[j], step), total[r][j]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < outputs; j++)
            call->out[(row + (size_t)r) * call->weight->width + n + (size_t)j] =
                vf32_sum((vf32)total[r][j]) + (call->bias != NULL ? call->bias[n + (size_t)j] : 0);
}

RN_INLINE void digit_outputs(const int small, const digit_call *call, size_t first, size_t last) {
    for (size_t n = first; n < last;) {
        int whole = last - n >= OUTPUTS;
        for (size_t row = 0; row < call->rows;) {
            size_t left = call->rows - row, together = !whole || left < 2 ? 1 : left < 4 ? 2 : 4;
            if (!whole)
                digit_tile(small, 1, 1, call, row, n);
            else if (together == 1)
                digit_tile(small, 1, OUTPUTS, call, row, n);
            else if (together == 2)
                digit_tile(small, 2, OUTPUTS, call, row, n);
            else
                digit_tile(small, 4, OUTPUTS, call, row, n);
            row += together;
        }
        n += whole ? OUTPUTS : 1;
    }
}
static __attribute__((noinline)) void digit_outputs_of_blocks(const digit_call *call, size_t first, size_t last) {
    digit_outputs(0, call, first, last);
}
static __attribute__((noinline)) void digit_outputs_of_parts(const digit_call *call, size_t first, size_t last) {
    digit_outputs(1, call, first, last);
}

/* 1: done; 0: the inputs do not suit; -1: no memory. */
static int by_digits(const rn_int4_weight *weight, const float *x, size_t rows, const float *bias, float *out) {
    const size_t depth = weight->depth, group = weight->group;
    const int small = group < depth && group % DIGIT_BLOCK != 0;
    if (small && (group % 8 != 0 || DIGIT_BLOCK % group != 0)) return 0;
    digit_call call = {.weight = weight, .bias = bias, .out = out, .rows = rows, .bytes = (depth + 1) / 2,
                       .groups = int4_groups(weight), .blocks = (depth + DIGIT_BLOCK - 1) / DIGIT_BLOCK};
    digit_block *blocks = rn_scratch(1, rows * call.blocks * (sizeof(digit_block) + sizeof(float)));
    if (blocks == NULL) return -1;
    float *steps = (float *)(void *)(blocks + rows * call.blocks);
    for (size_t row = 0; row < rows; row++)
        for (size_t b = 0; b < call.blocks; b++) {
            size_t k = b * DIGIT_BLOCK, count = depth - k < DIGIT_BLOCK ? depth - k : DIGIT_BLOCK, at = row * call.blocks + b;
            if (!to_digits(x + row * depth + k, count, blocks + at, steps + at)) return 0;
        }
    call.x = blocks;
    call.step = steps;
    int threads = rn_threads((weight->width + OUTPUTS - 1) / OUTPUTS,
                             NS_PER_CODE_BYTE * ((double)rows + 1) / 2 * (double)call.bytes * (double)weight->width);
    rn_shares shares = rn_share_out(weight->width, OUTPUTS, threads);
    RN_PARALLEL(threads) {
        for (size_t count, first; first = rn_take(&shares, 16 * OUTPUTS, &count), count > 0;) {
            if (small)
                digit_outputs_of_parts(&call, first, first + count);
            else
                digit_outputs_of_blocks(&call, first, first + count);
        }
    }
    return 1;
}
#endif

#if HAVE_DOT
/* ---- inputs in 8 bits ---------------------------------------------------------------------------------------------------
 *
 *     y[t, n] = bias[n] + sum_g step[t, g] scale[n, g] (sum_k a[t, k] q[n, k] - zero[n, g] sum_k a[t, k])
 *
 * Codes q are unsigned bytes, the inputs' codes a signed ones. Of 128 inputs the 64 even ones come first, then the odd ones:
 * the low halves of four bytes of codes are four even inputs, the high halves four odd ones. A panel is 32 outputs, two
 * vectors of words of eight codes. A packed weight has these words in the order of the products. */
enum { BYTE_BLOCK = 128, BYTE_ROWS = 8, BYTE_COLUMNS = 32, BYTES_AT_ONCE = 512, BYTE_ROW_BLOCK = 256 };
enum { PANEL_BLOCK_BYTES = BYTE_BLOCK / 2 * BYTE_COLUMNS };
#define NS_PER_BYTE_PRODUCT 0.004

typedef struct {
    float scale[BYTE_COLUMNS];
    uint8_t zero[BYTE_COLUMNS];
} byte_grid;

typedef struct {
    const rn_int4_weight *weight;
    const uint8_t *words;   /* NULL, or of packed codes: (panels, blocks, halves, 16, 64) */
    const byte_grid *grids; /* and (panels, groups) */
    const float *bias;
    float *out;
    size_t rows, bytes, groups, blocks, unit, units;
    int8_t *code; /* (rows, blocks, 2, 64) */
    float *step;  /* (rows, groups) */
    float *sum;   /* (rows, units): of the codes of a group, or of a block where that is shorter */
} byte_call;

static int suits_bytes(const rn_int4_weight *weight) {
    const size_t group = weight->group;
    return group >= weight->depth || group % BYTE_BLOCK == 0 || (group % 8 == 0 && BYTE_BLOCK % group == 0);
}

/* A row's codes, steps and sums; 2 if it holds NaN or infinity, 1 if a group is so small that its step may be subnormal. */
static int to_bytes(const byte_call *call, const float *x, size_t row) {
    const size_t depth = call->weight->depth, group = call->weight->group;
    int8_t *code = call->code + row * call->blocks * BYTE_BLOCK;
    float part[BYTE_BLOCK], *step = call->step + row * call->groups, *sum = call->sum + row * call->units;
    memset(code, 0, call->blocks * BYTE_BLOCK);
    for (size_t u = 0; u < call->units; u++) sum[u] = 0;
    for (size_t g = 0, k = 0; k < depth; g++) {
        size_t stop = group < depth - k ? k + group : depth;
        float largest = largest_of_f32(x + k, stop - k);
        if (!(largest - largest == 0)) return 2;
        if (largest > 0 && largest < DIGIT_LEAST) return 1;
        step[g] = largest / 127;
        while (k < stop) { /* to the end of the group or of the block; a multiple of 8 but for the last */
            size_t within = k % BYTE_BLOCK, count = BYTE_BLOCK - within < stop - k ? BYTE_BLOCK - within : stop - k;
            int8_t *even = code + k - within + within / 2, *odd = even + BYTE_BLOCK / 2;
            int32_t all = 0;
            codes_of_f32(x + k, count, largest, part);
            if (count % 2) part[count] = 0;
            for (size_t i = 0; i < (count + 1) / 2; i++) {
                int32_t first = (int32_t)part[2 * i], second = (int32_t)part[2 * i + 1];
                even[i] = (int8_t)first;
                odd[i] = (int8_t)second;
                all += first + second;
            }
            sum[k / call->unit] += (float)all;
            k += count;
        }
    }
    return 0;
}

/* Words of 16 outputs from n on of the block of 128 inputs that begins at byte `at` of a row of codes. */
RN_INLINE void transposed_words(const rn_int4_weight *weight, size_t n, size_t at, void *words) {
    const size_t bytes = (weight->depth + 1) / 2, left = bytes - at;
    if (n + 16 <= weight->width && left >= 64) {
        transpose_words(weight->codes + n * bytes + at, bytes, words, 64);
        return;
    }
    uint8_t rows[16][64] = {{0}};
    for (size_t j = 0; j < 16 && n + j < weight->width; j++)
        memcpy(rows[j], weight->codes + (n + j) * bytes + at, left < 64 ? left : 64);
    transpose_words(rows, 64, words, 64);
}

static void panel_grids(const rn_int4_weight *weight, size_t n, byte_grid *grids) {
    const size_t groups = int4_groups(weight);
    for (size_t j = 0; j < BYTE_COLUMNS; j++)
        for (size_t g = 0; g < groups; g++) {
            const int there = n + j < weight->width;
            grids[g].scale[j] = there ? ((const float *)weight->scale)[(n + j) * groups + g] : 0;
            grids[g].zero[j] = there ? weight->zero[(n + j) * groups + g] : 0;
        }
}

static size_t panels_of(const rn_int4_weight *weight) { return (weight->width + BYTE_COLUMNS - 1) / BYTE_COLUMNS; }
static size_t blocks_of(const rn_int4_weight *weight) { return (weight->depth + BYTE_BLOCK - 1) / BYTE_BLOCK; }

static size_t packed_bytes(const rn_int4_weight *weight) {
    if (!suits_bytes(weight)) return 0;
    return panels_of(weight) * (blocks_of(weight) * PANEL_BLOCK_BYTES + int4_groups(weight) * sizeof(byte_grid));
}

static void pack(const rn_int4_weight *weight, void *packed) {
    const size_t panels = panels_of(weight), blocks = blocks_of(weight), groups = int4_groups(weight);
    uint8_t *words = packed;
    byte_grid *grids = (byte_grid *)(void *)(words + panels * blocks * PANEL_BLOCK_BYTES);
    for (size_t panel = 0; panel < panels; panel++) {
        panel_grids(weight, panel * BYTE_COLUMNS, grids + panel * groups);
        for (size_t block = 0; block < blocks; block++)
            for (size_t half = 0; half < 2; half++, words += PANEL_BLOCK_BYTES / 2)
                transposed_words(weight, panel * BYTE_COLUMNS + 16 * half, block * BYTE_BLOCK / 2, words);
    }
}

/* Inputs k to k + BYTES_AT_ONCE of a panel as bytes: for each 8 inputs four vectors, the even ones of 16 outputs and of the
 * others, then the odd ones. */
static void byte_panel(const byte_call *call, size_t panel, size_t k, size_t count, uint8_t *to) {
    const __m512i low = _mm512_set1_epi8(15);
    for (size_t i = 0; i < count; i += BYTE_BLOCK)
        for (size_t half = 0; half < 2; half++) {
            uint8_t own[PANEL_BLOCK_BYTES / 2] __attribute__((aligned(64)));
            const uint8_t *words = own;
            if (call->words != NULL)
                words = call->words + (2 * (panel * call->blocks + (k + i) / BYTE_BLOCK) + half) * (PANEL_BLOCK_BYTES / 2);
            else
                transposed_words(call->weight, panel * BYTE_COLUMNS + 16 * half, (k + i) / 2, own);
            for (size_t word = 0; word < 16; word++) {
                uint8_t *at = to + (i / 8 + word) * 4 * 64 + half * 64;
                __m512i codes = _mm512_loadu_si512(words + 64 * word);
                _mm512_storeu_si512(at, _mm512_and_si512(codes, low));
                _mm512_storeu_si512(at + 128, _mm512_and_si512(_mm512_srli_epi16(codes, 4), low));
            }
        }
}

RN_INLINE __m512i broadcast_four(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return _mm512_set1_epi32(four);
}

/* sums[row, half] += step scale (dot - zero sum): of one group, of 128 inputs at most, an exact integer below 2^24. */
RN_INLINE __m512 add_group(const byte_call *call, size_t row, size_t u, size_t g, const byte_grid *grid, size_t half, __m512i dot,
                           __m512 sum) {
    const __m512 zero = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)(grid->zero + 16 * half))));
    const __m512 all = _mm512_set1_ps(call->sum[row * call->units + u]), step = _mm512_set1_ps(call->step[row * call->groups + g]);
    const __m512 centred = _mm512_fnmadd_ps(zero, all, _mm512_cvtepi32_ps(dot));
    return _mm512_fmadd_ps(centred, _mm512_mul_ps(_mm512_loadu_ps(grid->scale + 16 * half), step), sum);
}

/* ---- more rows: panels of bytes ---- */

RN_INLINE void byte_panel_tile(const int rows, const byte_call *call, size_t row, size_t k, size_t count, const uint8_t *panel,
                               const byte_grid *grids, float *sums) {
    const size_t group = call->weight->group, length = call->blocks * BYTE_BLOCK;
    const int8_t *code = call->code + row * length;
    for (size_t i = 0; i < count;) {
        const size_t u = (k + i) / call->unit, g = call->groups > 1 ? (k + i) / group : 0;
        size_t stop = (u + 1) * call->unit - k < count ? (u + 1) * call->unit - k : count;
        __m512i dot[BYTE_ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) dot[r][0] = dot[r][1] = _mm512_setzero_si512();
        for (; i < stop; i += 8) {
            const uint8_t *from = panel + i * 32;
            const size_t at = (k + i) / BYTE_BLOCK * BYTE_BLOCK + i % BYTE_BLOCK / 2;
#pragma GCC unroll 2
            for (size_t odd = 0; odd < 2; odd++) {
                __m512i left = _mm512_loadu_si512(from + 128 * odd), right = _mm512_loadu_si512(from + 128 * odd + 64);
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    __m512i each = broadcast_four(code + (size_t)r * length + at + odd * (BYTE_BLOCK / 2));
                    dot[r][0] = _mm512_dpbusd_epi32(dot[r][0], left, each);
                    dot[r][1] = _mm512_dpbusd_epi32(dot[r][1], right, each);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (size_t half = 0; half < 2; half++) {
                float *sum = sums + (size_t)r * BYTE_COLUMNS + 16 * half;
                _mm512_storeu_ps(sum, add_group(call, row + (size_t)r, u, g, grids + g, half, dot[r][half], _mm512_loadu_ps(sum)));
            }
    }
}
static __attribute__((noinline)) void byte_panel_rows(const byte_call *call, size_t row, size_t rows, size_t k, size_t count,
                                                      const uint8_t *panel, const byte_grid *grids, float *sums) {
    for (; rows >= BYTE_ROWS; rows -= BYTE_ROWS, row += BYTE_ROWS, sums += BYTE_ROWS * BYTE_COLUMNS)
        byte_panel_tile(BYTE_ROWS, call, row, k, count, panel, grids, sums);
    for (; rows >= 4; rows -= 4, row += 4, sums += 4 * BYTE_COLUMNS)
        byte_panel_tile(4, call, row, k, count, panel, grids, sums);
    for (; rows > 0; rows--, row++, sums += BYTE_COLUMNS) byte_panel_tile(1, call, row, k, count, panel, grids, sums);
}

static void write_sums(const byte_call *call, size_t row, size_t rows, size_t n, const float *sums) {
    const size_t width = call->weight->width, columns = width - n < BYTE_COLUMNS ? width - n : BYTE_COLUMNS;
    for (size_t r = 0; r < rows; r++)
        for (size_t j = 0; j < columns; j++)
            call->out[(row + r) * width + n + j] = sums[r * BYTE_COLUMNS + j] + (call->bias != NULL ? call->bias[n + j] : 0);
}

static void outputs_by_bytes(const byte_call *call, size_t panel, const byte_grid *grids, uint8_t *room, float *sums) {
    const size_t depth = call->weight->depth;
    for (size_t row = 0; row < call->rows; row += BYTE_ROW_BLOCK) {
        size_t rows = call->rows - row < BYTE_ROW_BLOCK ? call->rows - row : BYTE_ROW_BLOCK;
        memset(sums, 0, rows * BYTE_COLUMNS * sizeof *sums);
        for (size_t k = 0; k < depth; k += BYTES_AT_ONCE) {
            size_t count = depth - k < BYTES_AT_ONCE ? depth - k : BYTES_AT_ONCE;
            byte_panel(call, panel, k, count, room);
            byte_panel_rows(call, row, rows, k, count, room, grids, sums);
        }
        write_sums(call, row, rows, panel * BYTE_COLUMNS, sums);
    }
}

/* ---- few rows: packed words, unpacked in registers ---- */

/* Enough independent chains of dot products for any number of rows: even and odd inputs, even and odd words. */
RN_INLINE void word_tile(const int rows, const int chains, const byte_call *call, size_t row, const uint8_t *words,
                         const byte_grid *grids, float *out) {
    const __m512i low = _mm512_set1_epi8(15);
    const size_t length = call->blocks * BYTE_BLOCK, parts = BYTE_BLOCK / call->unit, unit_words = call->unit / 8;
    const size_t blocks_each = call->groups > 1 && parts == 1 ? call->weight->group / BYTE_BLOCK : call->blocks;
    const int8_t *code = call->code + row * length;
    __m512 sums[4][2];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (size_t u = 0, block = 0; block < call->blocks; block++, words += PANEL_BLOCK_BYTES, code += BYTE_BLOCK)
        for (size_t part = 0; part < parts && u < call->units; part++, u++) {
            const size_t g = parts > 1 ? u : block / blocks_each;
            __m512i dot[4][2][4];
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++)
#pragma GCC unroll 4
                    for (int chain = 0; chain < chains; chain++) dot[r][half][chain] = _mm512_setzero_si512();
            const uint8_t *from = words + part * unit_words * 64;
            const int8_t *a = code + part * unit_words * 4;
            if (unit_words == 1) {
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
                    __m512i codes = _mm512_loadu_si512(from + half * (PANEL_BLOCK_BYTES / 2));
                    __m512i even = _mm512_and_si512(codes, low), odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
#pragma GCC unroll 4
                    for (int r = 0; r < rows; r++) {
                        const int8_t *each = a + (size_t)r * length;
                        dot[r][half][0] = _mm512_dpbusd_epi32(dot[r][half][0], even, broadcast_four(each));
                        dot[r][half][0] = _mm512_dpbusd_epi32(dot[r][half][0], odd, broadcast_four(each + BYTE_BLOCK / 2));
                    }
                }
            }
            for (size_t word = 0; word + 2 <= unit_words; word += 2, from += 128, a += 8)
#pragma GCC unroll 2
                for (int second = 0; second < 2; second++)
#pragma GCC unroll 2
                    for (int half = 0; half < 2; half++) {
                        __m512i codes = _mm512_loadu_si512(from + 64 * second + half * (PANEL_BLOCK_BYTES / 2));
                        __m512i even = _mm512_and_si512(codes, low), odd = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
#pragma GCC unroll 4
                        for (int r = 0; r < rows; r++) {
                            const int8_t *each = a + (size_t)r * length + 4 * second;
                            __m512i *first = &dot[r][half][chains == 4 ? 2 * second : 0], *other = first + (chains > 1);
                            *first = _mm512_dpbusd_epi32(*first, even, broadcast_four(each));
                            *other = _mm512_dpbusd_epi32(*other, odd, broadcast_four(each + BYTE_BLOCK / 2));
                        }
                    }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
                    __m512i *all = dot[r][half];
                    if (chains == 4) all[0] = _mm512_add_epi32(all[0], all[2]), all[1] = _mm512_add_epi32(all[1], all[3]);
                    if (chains > 1) all[0] = _mm512_add_epi32(all[0], all[1]);
                    sums[r][half] = add_group(call, row + (size_t)r, u, g, grids + g, (size_t)half, all[0], sums[r][half]);
                }
        }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_ps(out + r * BYTE_COLUMNS, sums[r][0]);
        _mm512_storeu_ps(out + r * BYTE_COLUMNS + 16, sums[r][1]);
    }
}
static __attribute__((noinline)) void outputs_by_words(const byte_call *call, size_t panel, const byte_grid *grids) {
    const uint8_t *words = call->words + panel * call->blocks * PANEL_BLOCK_BYTES;
    float sums[4 * BYTE_COLUMNS];
    for (size_t row = 0; row < call->rows;) {
        size_t left = call->rows - row, rows = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        if (rows == 4)
            word_tile(4, 1, call, row, words, grids, sums);
        else if (rows == 2)
            word_tile(2, 2, call, row, words, grids, sums);
        else
            word_tile(1, 4, call, row, words, grids, sums);
        write_sums(call, row, rows, panel * BYTE_COLUMNS, sums);
        row += rows;
    }
}

static int byte_products(const byte_call *call) {
    const size_t panels = panels_of(call->weight), rows = call->rows < BYTE_ROW_BLOCK ? call->rows : BYTE_ROW_BLOCK;
    const int by_words = call->words != NULL && call->rows <= BYTE_ROWS;
    double products = NS_PER_BYTE_PRODUCT * (double)call->rows * (double)call->weight->depth * (double)call->weight->width;
    double reading = NS_PER_CODE_BYTE / 2 * (double)call->bytes * (double)call->weight->width;
    int threads = rn_threads(panels, products + reading), failed = 0;
    rn_shares shares = rn_share_out(panels, 1, threads);
    RN_PARALLEL(threads) {
        const size_t panel_room = BYTES_AT_ONCE * BYTE_COLUMNS, sums = rows * BYTE_COLUMNS * sizeof(float);
        uint8_t *room = rn_scratch(0, panel_room + sums + call->groups * sizeof(byte_grid));
        if (room == NULL) {
            __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
        } else {
            byte_grid *own = (byte_grid *)(void *)(room + panel_room + sums);
            for (size_t count, panel; panel = rn_take(&shares, 1, &count), count > 0;) {
                const byte_grid *grids = call->words != NULL ? call->grids + panel * call->groups : own;
                if (call->words == NULL) panel_grids(call->weight, panel * BYTE_COLUMNS, own);
                if (by_words)
                    outputs_by_words(call, panel, grids);
                else
                    outputs_by_bytes(call, panel, grids, room, (float *)(void *)(room + panel_room));
            }
        }
    }
    return failed ? -1 : 0;
}

static int linear_bytes(const rn_int4_weight *weight, const void *packed, const float *x, size_t rows, const float *bias, float *out) {
    const size_t depth = weight->depth;
    if (rows == 0 || weight->width == 0) return 0;
    if (!suits_bytes(weight)) return 1;
    byte_call call = {.weight = weight, .words = packed, .bias = bias, .out = out, .rows = rows, .bytes = (depth + 1) / 2,
                      .groups = int4_groups(weight), .blocks = blocks_of(weight)};
    if (packed != NULL)
        call.grids = (const byte_grid *)(const void *)(call.words + panels_of(weight) * call.blocks * PANEL_BLOCK_BYTES);
    const int small = weight->group < depth && weight->group % BYTE_BLOCK != 0;
    call.unit = small ? weight->group : BYTE_BLOCK;
    call.units = small ? call.groups : call.blocks;
    const size_t codes = rows * call.blocks * BYTE_BLOCK, floats = rows * (call.groups + call.units);
    char *room = rn_scratch(1, codes + floats * sizeof(float));
    if (room == NULL) return -1;
    call.code = (int8_t *)room;
    call.step = (float *)(void *)(room + codes);
    call.sum = call.step + rows * call.groups;
    int bad = 0, threads = rn_threads(rows, 0.5 * (double)rows * (double)depth);
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        int found = 0;
        for (size_t row = first; row < last; row++) found |= to_bytes(&call, x + row * depth, row);
        if (found) __atomic_fetch_or(&bad, found, __ATOMIC_RELAXED);
    }
    return bad & 2 ? 2 : bad ? 1 : byte_products(&call);
}
#else
static size_t packed_bytes(const rn_int4_weight *weight) {
    (void)weight;
    return 0;
}
static void pack(const rn_int4_weight *weight, void *packed) { (void)weight, (void)packed; }
static int linear_bytes(const rn_int4_weight *weight, const void *packed, const float *x, size_t rows, const float *bias, float *out) {
    (void)weight, (void)packed, (void)x, (void)rows, (void)bias, (void)out;
    return 1;
}
#endif

static int linear_f32(const rn_int4_weight *weight, const float *x, size_t rows, const float *bias, float *out) {
    if (rows == 0 || weight->width == 0) return 0;
    if (rows <= MOST_FEW) {
#if HAVE_DOT
        int status = by_digits(weight, x, rows, bias, out);
        if (status != 0) return status < 0 ? -1 : 0;
#endif
        if (weight->group % LARGE == 0 || weight->group >= weight->depth) return few_rows(0, weight, x, rows, bias, out);
        if (weight->group % SMALL == 0) return few_rows(1, weight, x, rows, bias, out);
    }
    return by_panels_f32(weight, x, rows, bias, out);
}

RN_TABLE(int4) = {
    .linear_f32 = linear_f32,
    .linear_f64 = by_panels_f64,
    .dequantize_f32 = dequantize_f32,
    .dequantize_f64 = dequantize_f64,
    .in_8_bits_f32 = in_8_bits_f32,
    .in_8_bits_f64 = in_8_bits_f64,
    .packed_bytes = packed_bytes,
    .pack = pack,
    .linear_bytes = linear_bytes,
};
