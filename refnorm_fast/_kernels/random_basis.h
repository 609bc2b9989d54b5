/* Random arrays of Philox 4x64 with 10 rounds, made in registers and used there: sums of them and products with them. */
#ifndef REFNORM_RANDOM_BASIS_H
#define REFNORM_RANDOM_BASIS_H

#include <stdint.h>

#include "dispatch.h"

/* Arrays of `size` entries. Array i is made from the counters i ceil(size / 4) + 1, ..., each of which gives four words; an
 * entry is scale (2^-23 t - 1), t the top 24 bits of its word, rounded to float32. */
typedef struct {
    uint64_t key[2];
    size_t size;
    float scale;
} rn_basis_recipe;

typedef struct {
    /* Arrays start to stop - 1, one after the other. */
    void (*bases)(const rn_basis_recipe *recipe, size_t start, size_t stop, float *to);
    /* to = sum of coefficients[i] array i, in float64. */
    void (*combine_f32)(const rn_basis_recipe *recipe, const float *coefficients, size_t count, float *to);
    void (*combine_f64)(const rn_basis_recipe *recipe, const double *coefficients, size_t count, double *to);
    /* to[i] = sum of the entries of x times those of array i, in float64. */
    void (*project_f32)(const rn_basis_recipe *recipe, const float *x, size_t count, float *to);
    void (*project_f64)(const rn_basis_recipe *recipe, const double *x, size_t count, double *to);
} rn_random_basis_table;

RN_EXPORT const rn_random_basis_table *rn_random_basis(void);

#endif
