/* Part of norm.c: normalized rows as 8-bit codes. A normalized row exists in a cache only. */

/* VF32 codes from -128 to 127 as bytes. */
RN_INLINE void store_codes(uint8_t *to, vi32 codes) {
#if VEC_AVX512
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)codes));
#elif VEC_AVX2
    __m128i both = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)codes), _mm256_extracti128_si256((__m256i)codes, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(both, both));
#else
    for (int i = 0; i < VF32; i++) to[i] = (uint8_t)codes[i];
#endif
}

/* The last codes of a row, which may be fewer than a vector's. */
RN_INLINE void store_some_codes(uint8_t *to, size_t count, vi32 codes) {
    if (count >= VF32) {
        store_codes(to, codes);
        return;
    }
    uint8_t bytes[VF32];
    store_codes(bytes, codes);
    memcpy(to, bytes, count);
}

/* Largest magnitude of a row that is padded with zeros to whole vectors; NaN or infinity where an entry is. */
static float largest_of(const float *y, size_t length) {
    vf32 top = {0}, wrong = {0}, zero = {0};
    for (size_t i = 0; i < length; i += VF32) {
        vf32 each = vf32_load(y + i);
        top = vf32_max(vf32_abs(each), top);
        wrong = vf32_fma(each, zero, wrong);
    }
    return vf32_largest(top) + vf32_sum(wrong);
}

static void codes_by_largest(const float *y, size_t length, float largest, uint8_t *q) {
    float inverse = largest > 0 ? 127.0f / largest : 0;
    int divide = isinf(inverse); /* 127 / subnormal overflows: then divide first */
    vf32 factor = vf32_set(divide ? 127.0f : inverse), divisor = vf32_set(largest);
    for (size_t i = 0; i < length; i += VF32) {
        vf32 each = vf32_load(y + i);
        if (divide) each = each / divisor;
        /* The bounds change nothing; they keep the product's rounding apart from the sum's in vf32_rint_small. */
        vf32 level = vf32_max(vf32_min(each * factor, vf32_set(127)), vf32_set(-127));
        store_some_codes(q + i, length - i, vi32_from_vf32(vf32_rint_small(level)));
    }
}

static void codes_on_grid(const float *y, size_t length, const rn_code_grid *grid, uint8_t *q) {
    /* Unsigned codes are stored as signed ones 128 below. */
    float below = grid->lowest < 0 ? 0 : 128, first = grid->lowest - grid->zero_point;
    vf32 scale = vf32_set(grid->scale), low = vf32_set(first), high = vf32_set(first + 255);
    vf32 shift = vf32_set(grid->zero_point - below);
    vi32 flip = vi32_set(grid->lowest < 0 ? 0 : 0x80);
    for (size_t i = 0; i < length; i += VF32) {
        /* Clipped first, which leaves the codes as they are: both bounds are whole numbers. */
        vf32 level = vf32_max(vf32_min(vf32_load(y + i) / scale, high), low);
        vi32 code = vi32_from_vf32(vf32_rint_small(level) + shift) ^ flip;
        store_some_codes(q + i, length - i, (vi32)(code << 24) >> 24);
    }
}

static int norm_codes(int kind, const float *x, size_t stride, const float *gain, const float *bias, size_t rows,
                      size_t length, double eps, float *largest, const rn_code_grid *grid, uint8_t *q) {
    int threads = rn_threads(rows, 0.4 * (double)rows * (double)length), failed = 0, wrong = 0;
    size_t padded = (length + VF32 - 1) / VF32 * VF32;
    RN_PARALLEL(threads) {
        RN_SHARE(rows, first, last);
        float *y = rn_scratch(0, padded * sizeof(float));
        if (y == NULL) failed = 1;
        for (size_t i = length; y != NULL && i < padded; i++) y[i] = 0;
        for (size_t row = first; y != NULL && row < last; row++) {
            const float *from = x + row * stride;
            line_f32 line = line_of_f32(kind, row_moments_f32(kind, from, length), length, 0, eps);
            apply_f32(kind, from, gain, bias, y, length, line, row + 1 < last ? stride : 0, 0);
            float most = largest_of(y, length);
            if (!(most < INFINITY)) wrong = 1;
            if (largest) {
                largest[row] = most;
                if (most < INFINITY) codes_by_largest(y, length, most, q + row * length);
            } else {
                codes_on_grid(y, length, grid, q + row * length);
            }
        }
    }
    return failed ? -1 : wrong;
}
