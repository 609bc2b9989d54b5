/* Lion, AdamP and SGDP, float32 and float64 from one body. */
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

#define T float
#define VT vf32
#define VI vi32
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define WIDE 0
#include "optimizer_body.h"
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

RN_TABLE(optimizer) = {.lion_f32 = lion_f32,
                       .projected_step_f32 = projected_step_f32,
                       .lion_f64 = lion_f64,
                       .projected_step_f64 = projected_step_f64};
