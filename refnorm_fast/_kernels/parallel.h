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

#endif
