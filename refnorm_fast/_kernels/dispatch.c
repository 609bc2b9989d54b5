/* Chooses the instruction set level once and holds the thread limit. Compiled with the baseline's flags. */
#include "dispatch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "families.h"
#ifdef _OPENMP
#include <omp.h>
#endif

/* ---- levels -------------------------------------------------------------------------------------------------- */

#if defined(__aarch64__)
static int cpu_runs_neon(void) { return 1; }
#else
static int cpu_runs_baseline(void) { return 1; }
#endif
#if defined(__x86_64__)
/* __builtin_cpu_supports looks at XGETBV too: AVX-512 counts only where the system saves its registers. */
static int cpu_runs_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2");
}
static int cpu_runs_avx512(void) {
    return cpu_runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
}
static int cpu_runs_avx512vnni(void) {
    return cpu_runs_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

typedef struct {
    const char *name;
    int (*supported)(void);
} level_entry;

#define LEVEL_ENTRY(name) {#name, cpu_runs_##name},
static const level_entry levels[] = {RN_LEVELS(LEVEL_ENTRY)};
enum { LEVEL_COUNT = sizeof levels / sizeof levels[0] };

static int current_level = 0;

int rn_level_count(void) { return LEVEL_COUNT; }
const char *rn_level_name(int level) { return level >= 0 && level < LEVEL_COUNT ? levels[level].name : NULL; }
int rn_level_supported(int level) { return level >= 0 && level < LEVEL_COUNT && levels[level].supported(); }
int rn_level(void) { return current_level; }
int rn_use_level(int level) {
    if (!rn_level_supported(level)) return -1;
    current_level = level;
    return 0;
}

/* ---- families: one array of tables each, indexed by level ---------------------------------------------------- */

#include "family_tables.h"

#define FAMILY_ACCESSOR(family) \
    const rn_##family##_table *rn_##family(void) { return family##_tables[current_level]; }
RN_FAMILIES(FAMILY_ACCESSOR)

static const char *const families[] = {
#define FAMILY_NAME(family) #family,
    RN_FAMILIES(FAMILY_NAME) NULL};

int rn_family_count(void) { return (int)(sizeof families / sizeof families[0]) - 1; }
const char *rn_family_name(int family) {
    return family >= 0 && family < rn_family_count() ? families[family] : NULL;
}

/* ---- threads ------------------------------------------------------------------------------------------------- */

static atomic_int thread_limit = 0;
static atomic_int forked = 0;
static atomic_size_t cache_bytes = 0;

/* An OpenMP pool does not survive fork: a parallel region in the child waits for threads that do not exist. */
static void after_fork_in_child(void) { atomic_store(&forked, 1); }

__attribute__((constructor)) static void initialize(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (int level = LEVEL_COUNT - 1; level >= 0; level--)
        if (levels[level].supported()) {
            current_level = level;
            break;
        }
    pthread_atfork(NULL, NULL, after_fork_in_child);
}

void rn_set_thread_limit(int limit) { atomic_store(&thread_limit, limit > 0 ? limit : 0); }

int rn_thread_limit(void) {
#ifdef _OPENMP
    if (atomic_load_explicit(&forked, memory_order_relaxed)) return 1;
    int limit = atomic_load_explicit(&thread_limit, memory_order_relaxed);
    if (limit == 0) limit = omp_get_max_threads();
    return limit > 0 ? limit : 1;
#else
    return 1;
#endif
}

int rn_has_openmp(void) {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Starting and joining a team takes a few microseconds, so that a thread must bring more than that. */
#define WORTH_A_THREAD_NS 12000.0

int rn_threads(size_t parts, double nanoseconds) {
    if (parts < 2 || nanoseconds < 2 * WORTH_A_THREAD_NS) return 1;
#ifdef _OPENMP
    if (omp_in_parallel()) return 1;
#endif
    size_t threads = (size_t)rn_thread_limit();
    double worth = nanoseconds / WORTH_A_THREAD_NS;
    if (worth < (double)threads) threads = (size_t)worth;
    if (parts < threads) threads = parts;
    return threads < 1 ? 1 : (int)threads;
}

/* Bytes of the largest cache that processor 0 has a share in, as Linux lists them. The C library's answer for AMD
 * processors is the sum of the third-level caches of the whole package, of which a core uses one. */
static long listed_cache_bytes(void) {
    long best = 0;
    for (int index = 0; index < 8; index++) {
        char path[80], unit = 0;
        long size = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        FILE *file = fopen(path, "r");
        if (file == NULL) break;
        int found = fscanf(file, "%ld%c", &size, &unit);
        fclose(file);
        if (found == 2 && unit == 'K') size *= 1024;
        if (found == 2 && unit == 'M') size *= 1024 * 1024;
        if (found >= 1 && size > best) best = size;
    }
    return best;
}

size_t rn_cache_bytes(void) {
    size_t bytes = atomic_load_explicit(&cache_bytes, memory_order_relaxed);
    if (bytes == 0) {
        long best = listed_cache_bytes();
        if (best == 0) {
#ifdef _SC_LEVEL3_CACHE_SIZE
            long level3 = sysconf(_SC_LEVEL3_CACHE_SIZE), level2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
            best = level3 > level2 ? level3 : level2;
#endif
        }
        bytes = best > 0 ? (size_t)best : (size_t)8 << 20;
        atomic_store(&cache_bytes, bytes);
    }
    return bytes;
}
