/* Layer norm and its relatives, float32 and float64 from one body. */
#include "norm.h"

#include <math.h>

#include "parallel.h"
#include "vec_math.h"

#define T float
#define VT vf32
#define LANES VF32
#define V(name) vf32_##name
#define N(name) name##_f32
#define WIDE 0
#include "norm_body.h"
#include "norm_backward_body.h"
#include "norm_modulate_body.h"
#undef T
#undef VT
#undef LANES
#undef V
#undef N
#undef WIDE

#define T double
#define VT vf64
#define LANES VF64
#define V(name) vf64_##name
#define N(name) name##_f64
#define WIDE 1
#include "norm_body.h"
#include "norm_backward_body.h"
#include "norm_modulate_body.h"

#include "norm_codes.h"

#define FUNCTIONS(suffix)                                                                  \
    .norm_##suffix = norm_##suffix, .norm_backward_##suffix = norm_backward_##suffix,       \
    .add_norm_##suffix = add_norm_##suffix,                                                 \
    .group_norm_##suffix = group_norm_##suffix, .group_norm_backward_##suffix = group_norm_backward_##suffix,  \
    .modulate_##suffix = modulate_##suffix, .modulate_backward_##suffix = modulate_backward_##suffix,                      \
    .norm_modulate_##suffix = norm_modulate_##suffix

RN_TABLE(norm) = {FUNCTIONS(f32), FUNCTIONS(f64), .norm_codes = norm_codes};
