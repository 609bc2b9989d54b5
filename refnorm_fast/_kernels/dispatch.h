/* Choice of the instruction set level, thread limit, large blocks: what all families share.
 *
 * A family declares its table type and `const rn_FAMILY_table *rn_FAMILY(void)` in FAMILY.h; dispatch.c defines
 * that function. The level is chosen when the library is loaded and changes only through rn_use_level. */
#ifndef REFNORM_DISPATCH_H
#define REFNORM_DISPATCH_H

#include <stddef.h>

#include "names.h"

/* Number of levels that were compiled, their names in ascending order, and whether this CPU can run one. */
RN_EXPORT int rn_level_count(void);
RN_EXPORT const char *rn_level_name(int level);
RN_EXPORT int rn_level_supported(int level);
RN_EXPORT int rn_level(void);
/* Chooses a level; returns 0, or -1 if there is no such level or the CPU lacks it. */
RN_EXPORT int rn_use_level(int level);

/* Names of the families that were built. */
RN_EXPORT int rn_family_count(void);
RN_EXPORT const char *rn_family_name(int family);

/* Limit on threads: 0 means OpenMP's own (OMP_NUM_THREADS, threadpoolctl). */
RN_EXPORT void rn_set_thread_limit(int limit);
RN_EXPORT int rn_thread_limit(void); /* the number in force, at least 1; 1 in a forked child */
RN_EXPORT int rn_has_openmp(void);

/* Threads worth starting for `nanoseconds` of single-threaded work that splits into at most `parts` parts. */
RN_EXPORT int rn_threads(size_t parts, double nanoseconds);

/* Bytes above which an output cannot stay in the last-level cache. */
RN_EXPORT size_t rn_cache_bytes(void);

/* Per-thread scratch of at least `bytes` bytes, 64-byte aligned, kept for the thread's next call.
 * `slot` (0..3) tells simultaneously used pieces apart. NULL if there is no memory. */
RN_EXPORT void *rn_scratch(int slot, size_t bytes);

/* Large blocks: freed ones are kept (up to a limit) and handed out again, which saves the page faults. */
RN_EXPORT void *rn_block_alloc(size_t bytes);
RN_EXPORT void *rn_block_realloc(void *block, size_t bytes);
RN_EXPORT void rn_block_free(void *block);
RN_EXPORT void rn_block_trim(size_t keep_bytes);
RN_EXPORT size_t rn_block_kept(void);

#endif
