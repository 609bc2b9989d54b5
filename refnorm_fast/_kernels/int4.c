/* Linear layers on packed 4-bit weights.
 *
 * Few rows are bound by the weights: each output is a dot product along its row of codes as it stands in memory, which is
 * read once. A group's 16 possible weights are a table in a register, so that a shift and a permutation turn a vector of
 * 32-bit words, eight codes each, into floats; elsewhere than on AVX-512 the code is put into the low bits of 2^23. The
 * inputs are laid out once in the order in which codes come out of the words. Four outputs and up to four rows go
 * together. More rows go by panels (int4_body.h). */
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
#include "tile.h"
#include "int4_body.h"
#undef REAL
#undef TILE_TYPE
#undef TILE_VEC
#undef TILE_WORD
#undef TILE_WORDS
#undef TILE_MAGIC
#undef TILE_MAGIC_VALUE

#define REAL double
#define TILE_TYPE f64
#define TILE_VEC vf64
#define TILE_WORD uint64_t
#define TILE_WORDS vu64
#define TILE_MAGIC 0x4330000000000000ull /* 2^52 */
#define TILE_MAGIC_VALUE 0x1p52
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
};
