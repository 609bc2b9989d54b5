/* Sums of and products with random arrays that are never stored.
 *
 * A vector holds one word of VF64 consecutive counters, so that the ten rounds of the generator run without a shuffle; the
 * entries stay in that order in registers too. An array's entries 4 c to 4 c + 3 are the words of its counter c. */
#include "random_basis.h"

#include <stdlib.h>

#include "parallel.h"
#include "vec.h"

#define WORDS 4
#define ROUNDS 10
/* Vectors of counters at a time: the rounds wait for each other, two chains fill the gaps. */
#define CHAINS 2
#define TILE_COUNTERS (CHAINS * VF64)
#define TILE (WORDS * TILE_COUNTERS)
/* Arrays whose sums of products stay in the first cache. */
#define GROUP 64

#define MULTIPLIER_0 0xD2E7470EE14C6C93ULL
#define MULTIPLIER_1 0xCA5A826395121157ULL
#define WEYL_0 0x9E3779B97F4A7C15ULL
#define WEYL_1 0xBB67AE8584CAA73BULL

RN_INLINE vu64 vu64_set(uint64_t value) { return value - (vu64){0}; }

/* Products of the lower halves of the lanes. */
RN_INLINE vu64 product_of_halves(vu64 a, vu64 b) {
#if VEC_AVX512
    return (vu64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif VEC_AVX2
    return (vu64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif VEC_SSE
    return (vu64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffULL) * (b & 0xffffffffULL);
#endif
}

/* The upper 64 bits of a * multiplier, the lower ones in *low: four products of halves, as by hand. */
RN_INLINE vu64 wide_product(vu64 a, const uint64_t multiplier, vu64 *low) {
    const vu64 half = vu64_set(0xffffffffULL), by_low = vu64_set(multiplier & 0xffffffffULL), by_high = vu64_set(multiplier >> 32);
    vu64 a_high = a >> 32;
    vu64 lowest = product_of_halves(a, by_low);
    vu64 middle = product_of_halves(a_high, by_low) + (lowest >> 32);
    vu64 other = product_of_halves(a, by_high) + (middle & half);
    *low = (other << 32) | (lowest & half);
    return product_of_halves(a_high, by_high) + (middle >> 32) + (other >> 32);
}

typedef struct {
    vu64 word[WORDS][CHAINS];
} tile_words;

/* The words of the counters first, first + 1, ..., the key's rounds given. */
RN_INLINE tile_words words_of(const uint64_t keys[ROUNDS][2], uint64_t first) {
    tile_words x;
    vu64 lane;
    for (size_t i = 0; i < VF64; i++) lane[i] = i;
#pragma GCC unroll 2
    for (int c = 0; c < CHAINS; c++) {
        /* The counter's upper words are 0, and so is half of the first round. */
        vu64 low, high = wide_product(vu64_set(first + (uint64_t)c * VF64) + lane, MULTIPLIER_0, &low);
        x.word[0][c] = vu64_set(keys[0][0]);
        x.word[1][c] = vu64_set(0);
        x.word[2][c] = high ^ vu64_set(keys[0][1]);
        x.word[3][c] = low;
    }
#pragma GCC unroll 10
    for (int round = 1; round < ROUNDS; round++)
#pragma GCC unroll 2
        for (int c = 0; c < CHAINS; c++) {
            vu64 low0, high0 = wide_product(x.word[0][c], MULTIPLIER_0, &low0);
            vu64 low1, high1 = wide_product(x.word[2][c], MULTIPLIER_1, &low1);
            x.word[0][c] = high1 ^ x.word[1][c] ^ vu64_set(keys[round][0]);
            x.word[1][c] = low1;
            x.word[2][c] = high0 ^ x.word[3][c] ^ vu64_set(keys[round][1]);
            x.word[3][c] = low0;
        }
    return x;
}

static void key_rounds(const rn_basis_recipe *recipe, uint64_t keys[ROUNDS][2]) {
    for (uint64_t round = 0; round < ROUNDS; round++) {
        keys[round][0] = recipe->key[0] + round * WEYL_0;
        keys[round][1] = recipe->key[1] + round * WEYL_1;
    }
}

/* Entries of their words: float32 numbers. The product with the scale is exact in float64, and so rounded once. */
RN_INLINE vf32h entries_of(vu64 word, vf64 scale) {
    vf64 top = (vf64)((word >> 40) | 0x4330000000000000ULL) - 0x1p52;
    return vf64_to_half(scale * (top * 0x1p-23 - 1.0));
}

RN_INLINE uint64_t first_counter(const rn_basis_recipe *recipe, size_t index, size_t tile) {
    return (uint64_t)index * ((recipe->size + WORDS - 1) / WORDS) + tile * TILE_COUNTERS + 1;
}

#define TILES(recipe) (((recipe)->size + TILE - 1) / TILE)
#define NANOSECONDS 1.5 /* a word, about */

static void bases(const rn_basis_recipe *recipe, size_t start, size_t stop, float *to) {
    size_t tiles = TILES(recipe), all = tiles * (stop - start), size = recipe->size;
    uint64_t keys[ROUNDS][2];
    key_rounds(recipe, keys);
    int threads = rn_threads(all, NANOSECONDS * TILE * (double)all);
    RN_PARALLEL(threads) {
        RN_SHARE(all, first, last);
        vf64 scale = vf64_set(recipe->scale);
        for (size_t unit = first; unit < last; unit++) {
            size_t array = unit / tiles, tile = unit % tiles, left = size - tile * TILE;
            tile_words x = words_of(keys, first_counter(recipe, start + array, tile));
            float lanes[WORDS][TILE_COUNTERS];
            float *place = to + array * size + tile * TILE;
            for (int word = 0; word < WORDS; word++)
                for (int c = 0; c < CHAINS; c++) vf32h_store(lanes[word] + c * VF64, entries_of(x.word[word][c], scale));
            for (size_t i = 0; i < (left < TILE ? left : TILE); i++) place[i] = lanes[i % WORDS][i / WORDS];
        }
    }
}

#define DEFINE_SUMS(T, suffix)                                                                                          \
    static void combine_##suffix(const rn_basis_recipe *recipe, const T *coefficients, size_t count, T *to) {          \
        size_t tiles = TILES(recipe), size = recipe->size;                                                              \
        uint64_t keys[ROUNDS][2];                                                                                       \
        key_rounds(recipe, keys);                                                                                       \
        int threads = rn_threads(tiles, NANOSECONDS * TILE * (double)tiles * (double)count);                            \
        RN_PARALLEL(threads) {                                                                                          \
            RN_SHARE(tiles, first, last);                                                                               \
            vf64 scale = vf64_set(recipe->scale);                                                                       \
            for (size_t tile = first; tile < last; tile++) {                                                            \
                vf64 sums[WORDS][CHAINS] = {{{0}}};                                                                     \
                for (size_t array = 0; array < count; array++) {                                                        \
                    tile_words x = words_of(keys, first_counter(recipe, array, tile));                                  \
                    vf64 by = vf64_set(coefficients[array]);                                                            \
                    for (int word = 0; word < WORDS; word++)                                                            \
                        for (int c = 0; c < CHAINS; c++)                                                                \
                            sums[word][c] = vf64_fma(by, vf64_from_half(entries_of(x.word[word][c], scale)), sums[word][c]); \
                }                                                                                                       \
                double lanes[WORDS][TILE_COUNTERS];                                                                     \
                for (int word = 0; word < WORDS; word++)                                                                \
                    for (int c = 0; c < CHAINS; c++) vf64_store(lanes[word] + c * VF64, sums[word][c]);                 \
                size_t left = size - tile * TILE;                                                                       \
                for (size_t i = 0; i < (left < TILE ? left : TILE); i++)                                                \
                    to[tile * TILE + i] = (T)lanes[i % WORDS][i / WORDS];                                               \
            }                                                                                                           \
        }                                                                                                               \
    }                                                                                                                   \
    /* Arrays first to last - 1, at most GROUP. */                                                                      \
    static void project_group_##suffix(const rn_basis_recipe *recipe, const uint64_t keys[ROUNDS][2], const T *x,      \
                                       size_t first, size_t last, T *to) {                                              \
        vf64 sums[GROUP] = {{0}}, scale = vf64_set(recipe->scale);                                                      \
        for (size_t tile = 0; tile < TILES(recipe); tile++) {                                                           \
            double lanes[WORDS][TILE_COUNTERS] = {{0}};                                                                 \
            size_t left = recipe->size - tile * TILE;                                                                   \
            for (size_t i = 0; i < (left < TILE ? left : TILE); i++) lanes[i % WORDS][i / WORDS] = x[tile * TILE + i];  \
            for (size_t array = first; array < last; array++) {                                                         \
                tile_words made = words_of(keys, first_counter(recipe, array, tile));                                   \
                vf64 sum = sums[array - first];                                                                         \
                for (int word = 0; word < WORDS; word++)                                                                \
                    for (int c = 0; c < CHAINS; c++)                                                                    \
                        sum = vf64_fma(vf64_load(lanes[word] + c * VF64),                                               \
                                       vf64_from_half(entries_of(made.word[word][c], scale)), sum);                     \
                sums[array - first] = sum;                                                                              \
            }                                                                                                           \
        }                                                                                                               \
        for (size_t array = first; array < last; array++) to[array] = (T)vf64_sum(sums[array - first]);                 \
    }                                                                                                                   \
    static void project_##suffix(const rn_basis_recipe *recipe, const T *x, size_t count, T *to) {                     \
        uint64_t keys[ROUNDS][2];                                                                                       \
        key_rounds(recipe, keys);                                                                                       \
        int threads = rn_threads(count, NANOSECONDS * TILE * (double)TILES(recipe) * (double)count);                    \
        RN_PARALLEL(threads) {                                                                                          \
            RN_SHARE(count, first, last);                                                                               \
            for (size_t at = first; at < last; at += GROUP)                                                             \
                project_group_##suffix(recipe, keys, x, at, last - at < GROUP ? last : at + GROUP, to);                 \
        }                                                                                                               \
    }
DEFINE_SUMS(float, f32)
DEFINE_SUMS(double, f64)

RN_TABLE(random_basis) = {
    .bases = bases,
    .combine_f32 = combine_f32,
    .combine_f64 = combine_f64,
    .project_f32 = project_f32,
    .project_f64 = project_f64,
};
