/* Lion, Lion-K, AdamP, SGDP and AdaGrad, float32 and float64 from one body. */
#include "optimizer.h"

#include <math.h>
#include <stdlib.h>

#include "parallel.h"
#include "vec.h"

/* A product that has been rounded: the compiler may not fuse it into the sum around it. Lion takes the sign of a
 * sum, and a fused sum that is almost 0 may have another sign than the two-step one. */
#if VEC_AVX512
#define ROUNDED(product) __asm__("" : "+v"(product))
#elif VEC_AVX2 || VEC_SSE
#define ROUNDED(product) __asm__("" : "+x"(product))
#elif VEC_NEON
#define ROUNDED(product) __asm__("" : "+w"(product))
#else
#define ROUNDED(product) __asm__("" : "+m"(product))
#endif

/* Entries whose sums are taken together; fixed, so that sums do not depend on threads. */
#define BLOCK 4096
enum { WHERE_NONE = 0, WHERE_CHANNEL = 1, WHERE_LAYER = 2, NOT_YET = 3 };

typedef struct {
    double pp, gg, gp, pu;
} row_sums;

static int orthogonal(row_sums s, double eps, size_t columns, double delta) {
    double p = sqrt(s.pp), g = sqrt(s.gg);
    double norms = (p > eps ? p : eps) * (g > eps ? g : eps);
    /* A NaN in p or g reaches <g, p>, and no comparison with it holds. */
    return fabs(s.gp) / (norms == 0 ? 1.0 : norms) < delta / sqrt((double)columns);
}

/* The factor k with which step - k p has no radial part. */
static double radial(row_sums s, double eps) {
    double length = sqrt(s.pp) + eps;
    return length == 0 ? 0.0 : s.pu / (length * length);
}

static row_sums add(row_sums a, row_sums b) {
    return (row_sums){a.pp + b.pp, a.gg + b.gg, a.gp + b.gp, a.pu + b.pu};
}

static size_t blocks_of(size_t entries) { return (entries + BLOCK - 1) / BLOCK; }

static size_t entries_of(const rn_optimizer_array *array) { return array->rows ? array->rows * array->columns : array->columns; }

static size_t all_entries(const rn_optimizer_array *arrays, size_t count) {
    size_t sum = 0;
    for (size_t i = 0; i < count; i++) sum += entries_of(arrays + i);
    return sum;
}

/* Entries begin to end of one array, a whole number of blocks but at the array's end. */
typedef void sweep_function(const rn_optimizer_array *array, size_t begin, size_t end, const void *options);

/* Sweeps over all arrays in one parallel region: threads share the blocks of all of them, so that neither many small
 * arrays nor a few large ones keep a thread waiting. */
static void sweep_all(const rn_optimizer_array *arrays, size_t count, double nanoseconds, sweep_function *sweep,
                      const void *options) {
    size_t blocks = 0;
    for (size_t i = 0; i < count; i++) blocks += blocks_of(entries_of(arrays + i));
    int threads = rn_threads(blocks, nanoseconds);
    RN_PARALLEL(threads) {
        RN_SHARE(blocks, first, last);
        size_t before = 0;
        for (size_t i = 0; i < count && before < last; i++) {
            size_t entries = entries_of(arrays + i), own = blocks_of(entries);
            size_t from = first > before ? first - before : 0, to = last - before < own ? last - before : own;
            if (from < to) sweep(arrays + i, from * BLOCK, to * BLOCK < entries ? to * BLOCK : entries, options);
            before += own;
        }
    }
}

/* Arrays of more entries than this are worth all threads one after the other; smaller ones are handed out whole. */
#define SHARED_ENTRIES ((size_t)1 << 17)

#define T float
#define VT vf32
#define VI vi32
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define WIDE 0
#include "optimizer_body.h"
#include "lion_kappa_body.h"
#undef T
#undef VT
#undef VI
#undef LANES
#undef V
#undef N
#undef WIDE

#define T double
#define VT vf64
#define VI vi64
#define LANES VF64
#define V(name) vf64_##name
#define N(name) name##_f64
#define WIDE 1
#include "optimizer_body.h"
#include "lion_kappa_body.h"

#define FUNCTIONS(suffix)                                                                            \
    .lion_##suffix = lion_##suffix, .lion_kappa_##suffix = lion_kappa_##suffix, .average_##suffix = average_##suffix, \
    .adagrad_##suffix = adagrad_##suffix, .descend_##suffix = descend_##suffix, \
    .squares_##suffix = squares_##suffix, .projected_step_##suffix = projected_steps_##suffix
RN_TABLE(optimizer) = {FUNCTIONS(f32), FUNCTIONS(f64)};
