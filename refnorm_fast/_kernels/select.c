/* Selection of the largest entries, float32 and float64 from one body. */
#include "select.h"

#include <math.h>

#include "parallel.h"
#include "softmax.h"
#include "transpose.h"
#include "vec_math.h"

/* One bit a lane of a mask. */
RN_INLINE uint32_t vi32_bits(vi32 mask) {
#if VEC_AVX512
    return (uint32_t)_mm512_movepi32_mask((__m512i)mask);
#elif VEC_AVX2
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#elif VEC_SSE
    return (uint32_t)_mm_movemask_ps((__m128)mask);
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < VF32; lane++) bits |= (uint32_t)(mask[lane] & 1) << lane;
    return bits;
#endif
}
RN_INLINE uint32_t vi64_bits(vi64 mask) {
#if VEC_AVX512
    return (uint32_t)_mm512_movepi64_mask((__m512i)mask);
#elif VEC_AVX2
    return (uint32_t)_mm256_movemask_pd((__m256d)mask);
#elif VEC_SSE
    return (uint32_t)_mm_movemask_pd((__m128d)mask);
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < VF64; lane++) bits |= (uint32_t)(mask[lane] & 1) << lane;
    return bits;
#endif
}

/* Rows whose selected entries stand side by side, entry after entry, so that the softmax runs down columns; few where each row is
 * work enough for a thread. The arrays kept for the backward are in this order. */
static size_t chunk_rows(size_t length) { return length > 2048 ? 4 : 64; }
/* Rows of at most this many entries may be scanned once for each of the selected. */
#define SCAN_LENGTH 1024
/* So many may be found by a list that goes down several rows at once. */
#define LIST_LENGTH 8
/* Partial sums of the bias's cotangent: so many whatever the number of threads. */
#define BIAS_PARTS 32

/* ---- boxes ------------------------------------------------------------------------------------------------------ */

/* Corners of boxes side by side, and their areas. */
typedef struct {
    const double *x1, *y1, *x2, *y2, *area;
} boxes;
typedef struct {
    double x1, y1, x2, y2, area;
} box;

static void box_areas(const double *corners, size_t n, double offset, double *area) {
    for (size_t i = 0; i < n; i++)
        area[i] = ((corners[2 * n + i] - corners[i]) + offset) * ((corners[3 * n + i] - corners[n + i]) + offset);
}

#define LANE(from) (lanes == VF64 ? vf64_load(b.from + i) : vf64_load_part(b.from + i, lanes, 0))
/* Areas that one box has in common with those from `i` on. */
RN_INLINE vf64 intersections(box a, boxes b, size_t i, size_t lanes, double offset) {
    vf64 none = vf64_set(0.0);
    vf64 width = (vf64_min(vf64_set(a.x2), LANE(x2)) - vf64_max(vf64_set(a.x1), LANE(x1))) + offset;
    vf64 height = (vf64_min(vf64_set(a.y2), LANE(y2)) - vf64_max(vf64_set(a.y1), LANE(y1))) + offset;
    return vf64_max(width, none) * vf64_max(height, none);
}
/* Those over the unions; 0 where the union has no area. */
RN_INLINE vf64 over_unions(vf64 inter, box a, boxes b, size_t i, size_t lanes) {
    vf64 none = vf64_set(0.0), whole = (a.area + LANE(area)) - inter;
    return vf64_select((vi64)(whole > none), inter / whole, none);
}
#undef LANE
RN_INLINE vf64 overlaps(box a, boxes b, size_t i, size_t lanes, double offset) {
    return over_unions(intersections(a, b, i, lanes, offset), a, b, i, lanes);
}

#define T float
#define VT vf32
#define VI vi32
#define LANES VF32
#define V(name) vf32_##name
#define VM(name) vi32_##name
#define N(name) name##_f32
#include "select_body.h"
#undef T
#undef VT
#undef VI
#undef LANES
#undef V
#undef VM
#undef N

#define T double
#define VT vf64
#define VI vi64
#define LANES VF64
#define V(name) vf64_##name
#define VM(name) vi64_##name
#define N(name) name##_f64
#include "select_body.h"

/* ---- Soft-NMS --------------------------------------------------------------------------------------------------- */

RN_INLINE vf64 decay_of(vf64 iou, const rn_decay *decay) {
    vf64 one = vf64_set(1.0);
    if (decay->method == RN_GAUSSIAN) return vf64_exp(-iou * iou / decay->sigma);
    return vf64_select((vi64)(iou > decay->iou_threshold), decay->method == RN_LINEAR ? one - iou : vf64_set(0.0), one);
}

/* The boxes that are left, in their first order; one that was taken or dropped has score -inf until the next packing. */
typedef struct {
    double *columns[6]; /* x1, y1, x2, y2, area, score */
    int64_t *place, *label;
    size_t count, alive;
} pile;

static void pack_pile(pile *p) {
    const double *score = p->columns[5];
    size_t kept = 0;
    for (size_t i = 0; i < p->count; i++) {
        if (!(score[i] > -INFINITY)) continue;
        for (int column = 0; column < 6; column++) p->columns[column][kept] = p->columns[column][i];
        p->place[kept] = p->place[i];
        p->label[kept++] = p->label[i];
    }
    p->count = p->alive = kept;
}

/* Lowers the scores of all that are left beside `best`, and drops what falls too low. */
static void lower_scores(pile *p, box best, int64_t label, const rn_decay *decay, double threshold, double offset,
                         int prune_overlap) {
    boxes left = {p->columns[0], p->columns[1], p->columns[2], p->columns[3], p->columns[4]};
    double *scores = p->columns[5];
    vi64 wanted = (vi64){0} + label;
    for (size_t i = 0; i < p->count; i += VF64) {
        size_t lanes = p->count - i < VF64 ? p->count - i : VF64;
        const vf64 none = vf64_set(0.0), gone = vf64_set(-INFINITY);
        vf64 inter = intersections(best, left, i, lanes, offset);
        if (!vi64_any((vi64)(inter > none))) continue; /* every factor is 1, and most boxes are apart: no quotient */
        vi64 labels = (vi64)(lanes == VF64 ? vf64_load((const double *)(p->label + i))
                                           : vf64_load_part((const double *)(p->label + i), lanes, 0));
        vf64 iou = vf64_select((vi64)(labels == wanted), over_unions(inter, best, left, i, lanes), none);
        if (!vi64_any((vi64)(iou > none))) continue;
        vf64 score = vf64_load_part(scores + i, lanes, -INFINITY), factor = decay_of(iou, decay);
        vf64 lowered = score * factor, next = vf64_select((vi64)(lowered < threshold), gone, lowered);
        if (prune_overlap) next = vf64_select((vi64)(iou > none), next, lowered);
        if (decay->method == RN_HARD) next = vf64_select((vi64)(factor > none), next, gone); /* also at a threshold of 0 */
        next = vf64_select((vi64)(score > gone), next, gone);
        p->alive -= (size_t)__builtin_popcount(vi64_bits((vi64)(score > gone)));
        p->alive += (size_t)__builtin_popcount(vi64_bits((vi64)(next > gone)));
        vf64_store_part(scores + i, lanes, next);
    }
}

static ptrdiff_t soft_nms(const double *corners, double *scores, const int64_t *labels, size_t n, const rn_decay *decay,
                          double score_threshold, double offset, int prune_overlap, int64_t *order) {
    double *numbers = rn_block_alloc((6 * sizeof(double) + 2 * sizeof(int64_t)) * (n + 1));
    if (numbers == NULL) return -1;
    pile p = {.count = n, .alive = n, .place = (int64_t *)(numbers + 6 * n), .label = (int64_t *)(numbers + 7 * n)};
    for (int column = 0; column < 6; column++) p.columns[column] = numbers + (size_t)column * n;
    memcpy(numbers, corners, 4 * n * sizeof(double));
    box_areas(corners, n, offset, p.columns[4]);
    for (size_t i = 0; i < n; i++) {
        p.columns[5][i] = prune_overlap || scores[i] >= score_threshold ? scores[i] : -INFINITY;
        p.place[i] = (int64_t)i;
        p.label[i] = labels ? labels[i] : 0;
    }
    pack_pile(&p);
    size_t kept = 0;
    while (p.alive > 0) {
        int nan;
        double top = largest_of_f64(p.columns[5], p.count, &nan);
        size_t at = find_f64(p.columns[5], 0, p.count, top); /* of equal scores the first */
        box best = {p.columns[0][at], p.columns[1][at], p.columns[2][at], p.columns[3][at], p.columns[4][at]};
        scores[p.place[at]] = top;
        order[kept++] = p.place[at];
        p.columns[5][at] = -INFINITY;
        p.alive--;
        lower_scores(&p, best, p.label[at], decay, score_threshold, offset, prune_overlap);
        if (p.alive < p.count / 2) pack_pile(&p);
    }
    rn_block_free(numbers);
    return (ptrdiff_t)kept;
}

#define TABLE_ENTRIES(s)                                                                         \
    .topk_softmax_##s = topk_softmax_##s, .topk_softmax_backward_##s = topk_softmax_backward_##s, \
    .box_iou_##s = box_iou_##s

RN_TABLE(select) = {TABLE_ENTRIES(f32), TABLE_ENTRIES(f64), .soft_nms = soft_nms};
