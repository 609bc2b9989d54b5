/* Sums and products with their rounding errors, of numbers and of vectors. */
#ifndef REFNORM_POINCARE_SUMS_H
#define REFNORM_POINCARE_SUMS_H

#include "vec.h"

/* Keeps the compiler from contracting a product whose rounding error is taken apart. */
#if defined(__x86_64__)
#define OPAQUE(value) __asm__("" : "+x"(value))
#elif defined(__aarch64__)
#define OPAQUE(value) __asm__("" : "+w"(value))
#else
#define OPAQUE(value) ((void)0)
#endif
#if REFNORM_VECTOR_BYTES == 64 && !VEC_AVX512
#define OPAQUE_LANES(value) __asm__("" : "+m"(value))
#else
#define OPAQUE_LANES(value) OPAQUE(value)
#endif

/* As in the reference: below this gap, times length + 4, a doubled-precision sum has lost good bits. */
#define EXACT_GAP 0x1p-48
/* tanh is 1 and sech^2 is 0 in float64 from here on. */
#define SATURATED 400.0

RN_INLINE double two_sum(double a, double b, double *error) {
    double total = a + b;
    OPAQUE(total);
    double seen = total - a;
    *error = (a - (total - seen)) + (b - seen);
    return total;
}
RN_INLINE double two_product(double a, double b, double *error) {
    double product = a * b;
    OPAQUE(product);
#if VEC_HAS_FMA
    *error = __builtin_fma(a, b, -product);
#else
    double as = 0x1.0000002p27 * a, bs = 0x1.0000002p27 * b;
    double ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
    *error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
#endif
    return product;
}
RN_INLINE vf64 two_product_lanes(vf64 a, vf64 b, vf64 *error) {
    vf64 product = a * b;
    OPAQUE_LANES(product);
#if VEC_HAS_FMA
    *error = vf64_fma(a, b, -product);
#else
    vf64 as = 0x1.0000002p27 * a, bs = 0x1.0000002p27 * b;
    vf64 ah = as - (as - a), bh = bs - (bs - b), al = a - ah, bl = b - bh;
    *error = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
#endif
    return product;
}
RN_INLINE vf64 two_sum_lanes(vf64 a, vf64 b, vf64 *error) {
    vf64 total = a + b;
    OPAQUE_LANES(total);
    vf64 seen = total - a;
    *error = (a - (total - seen)) + (b - seen);
    return total;
}

#endif
