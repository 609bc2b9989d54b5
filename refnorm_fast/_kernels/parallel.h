/* Threads of a kernel.
 *
 *     int threads = rn_threads(rows, 0.5 * rows * length);          // estimated nanoseconds on one thread
 *     RN_PARALLEL(threads) {
 *         RN_SHARE(rows, first, last);                              // this thread's rows: first <= row < last
 *         for (size_t row = first; row < last; row++) ...
 *     }
 *
 * A row is computed by one thread, in one order, so that results do not depend on the number of threads. */
#ifndef REFNORM_PARALLEL_H
#define REFNORM_PARALLEL_H

#include <stddef.h>

#include "dispatch.h"
#ifdef _OPENMP
#include <omp.h>
#define RN_THREAD omp_get_thread_num()
#define RN_TEAM omp_get_num_threads()
#define RN_PRAGMA(text) _Pragma(#text)
#define RN_PARALLEL(count) RN_PRAGMA(omp parallel num_threads(count) if ((count) > 1))
#define RN_BARRIER RN_PRAGMA(omp barrier)
#else
#define RN_BARRIER
#define RN_THREAD 0
#define RN_TEAM 1
#define RN_PARALLEL(count)
#endif

/* Part `index` of `total` items split into `parts` nearly equal consecutive ranges. */
RN_INLINE void rn_range(size_t total, size_t parts, size_t index, size_t *first, size_t *last) {
    size_t each = total / parts, extra = total % parts;
    *first = each * index + (index < extra ? index : extra);
    *last = *first + each + (index < extra ? 1 : 0);
}

#define RN_SHARE(total, first, last) \
    size_t first, last;              \
    rn_range((total), (size_t)RN_TEAM, (size_t)RN_THREAD, &first, &last)

/* Work that is handed out in pieces: every thread takes pieces of its own range first, whose data its caches hold, then
 * of the others'. A thread that another program interrupts holds up one piece, not its whole range. */
enum { RN_MOST_SHARES = 64 };
typedef struct {
    size_t next[RN_MOST_SHARES], end[RN_MOST_SHARES];
    size_t parts;
} rn_shares;

/* Ranges of `total` items for `threads`, cut at multiples of `unit`. */
RN_INLINE rn_shares rn_share_out(size_t total, size_t unit, int threads) {
    rn_shares shares = {.parts = threads < RN_MOST_SHARES ? (size_t)threads : RN_MOST_SHARES};
    for (size_t part = 0; part < shares.parts; part++) {
        size_t first, last;
        rn_range((total + unit - 1) / unit, shares.parts, part, &first, &last);
        shares.next[part] = first * unit;
        shares.end[part] = last * unit < total ? last * unit : total;
    }
    return shares;
}

/* First item of the next piece of at most `size`, whose length goes to *count; 0 in *count: nothing is left. */
RN_INLINE size_t rn_take(rn_shares *shares, size_t size, size_t *count) {
    for (size_t i = 0; i < shares->parts; i++) {
        size_t part = ((size_t)RN_THREAD + i) % shares->parts, end = shares->end[part];
        if (__atomic_load_n(&shares->next[part], __ATOMIC_RELAXED) >= end) continue;
        size_t first = __atomic_fetch_add(&shares->next[part], size, __ATOMIC_RELAXED);
        if (first >= end) continue;
        *count = end - first < size ? end - first : size;
        return first;
    }
    return *count = 0;
}

#endif
