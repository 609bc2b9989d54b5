/* Scratch memory of a thread, and a store of freed large blocks. Compiled with the baseline's flags. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "dispatch.h"

/* ---- scratch ------------------------------------------------------------------------------------------------- */

enum { SLOTS = 4 };
typedef struct {
    void *piece[SLOTS];
    size_t size[SLOTS];
} scratch_pieces;

static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;
static _Thread_local scratch_pieces *scratch_of_thread = NULL;

static void scratch_free(void *pieces) {
    scratch_pieces *all = pieces;
    for (int slot = 0; slot < SLOTS; slot++) free(all->piece[slot]);
    free(all);
}
static void scratch_create_key(void) { pthread_key_create(&scratch_key, scratch_free); }

void *rn_scratch(int slot, size_t bytes) {
    scratch_pieces *all = scratch_of_thread;
    if (all == NULL) {
        pthread_once(&scratch_once, scratch_create_key);
        all = calloc(1, sizeof *all);
        if (all == NULL) return NULL;
        pthread_setspecific(scratch_key, all);
        scratch_of_thread = all;
    }
    if (all->size[slot] < bytes) {
        free(all->piece[slot]);
        /* Rounded up so that rows of slowly growing length do not reallocate each time. */
        size_t size = (bytes + bytes / 4 + 4095) & ~(size_t)4095;
        all->piece[slot] = aligned_alloc(64, size);
        all->size[slot] = all->piece[slot] ? size : 0;
    }
    return all->piece[slot];
}

/* ---- blocks -------------------------------------------------------------------------------------------------- */

/* A block carries its size in the 64 bytes before the address handed out. Freed blocks wait in a small table,
 * oldest first out; what they hold beyond `KEPT_BYTES` goes back to the system. Waiting pages of large blocks are marked
 * MADV_FREE where the system has it: under memory pressure it takes them without asking. The mark interrupts every other
 * core that runs one of the process's threads, tens of microseconds, which a small block would pay at each call. */
enum { HEADER = 64, KEPT_BLOCKS = 8, HUGE = 2 << 20 };
#define KEPT_BYTES ((size_t)512 << 20)
#define MARKED_BYTES ((size_t)32 << 20)

typedef struct {
    size_t mapped;
    void *base;
} block_header;

static pthread_mutex_t blocks_lock = PTHREAD_MUTEX_INITIALIZER;
static block_header kept[KEPT_BLOCKS];
static int kept_count = 0;
static size_t kept_bytes = 0;

static void forget(int index) {
    kept_bytes -= kept[index].mapped;
    for (int i = index; i + 1 < kept_count; i++) kept[i] = kept[i + 1];
    kept_count--;
}

static void *hand_out(void *base, size_t mapped) {
    block_header *header = base;
    header->mapped = mapped;
    header->base = base;
    return (char *)base + HEADER;
}

void *rn_block_alloc(size_t bytes) {
    size_t mapped = (bytes + HEADER + HUGE - 1) & ~(size_t)(HUGE - 1);
    if (mapped < bytes) return NULL;
    pthread_mutex_lock(&blocks_lock);
    int best = -1;
    for (int i = 0; i < kept_count; i++)
        if (kept[i].mapped >= mapped && kept[i].mapped <= mapped + mapped / 4 &&
            (best < 0 || kept[i].mapped <= kept[best].mapped))
            best = i; /* the latest of equal ones: the likeliest to be in cache */
    if (best >= 0) {
        block_header found = kept[best];
        forget(best);
        pthread_mutex_unlock(&blocks_lock);
        return hand_out(found.base, found.mapped);
    }
    pthread_mutex_unlock(&blocks_lock);
    void *base = aligned_alloc(HUGE, mapped);
    if (base == NULL) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(base, mapped, MADV_HUGEPAGE);
#endif
    return hand_out(base, mapped);
}

void rn_block_trim(size_t keep_bytes) {
    pthread_mutex_lock(&blocks_lock);
    while (kept_count > 0 && kept_bytes > keep_bytes) {
        void *base = kept[0].base;
        forget(0);
        free(base);
    }
    pthread_mutex_unlock(&blocks_lock);
}

size_t rn_block_kept(void) { return kept_bytes; }

void rn_block_free(void *block) {
    if (block == NULL) return;
    block_header header = *(block_header *)((char *)block - HEADER);
    if (header.mapped > KEPT_BYTES) {
        free(header.base);
        return;
    }
#ifdef MADV_FREE
    if (header.mapped >= MARKED_BYTES) madvise(header.base, header.mapped, MADV_FREE);
#endif
    pthread_mutex_lock(&blocks_lock);
    while (kept_count == KEPT_BLOCKS || (kept_count > 0 && kept_bytes + header.mapped > KEPT_BYTES)) {
        void *base = kept[0].base;
        forget(0);
        free(base);
    }
    kept[kept_count++] = header;
    kept_bytes += header.mapped;
    pthread_mutex_unlock(&blocks_lock);
}

void *rn_block_realloc(void *block, size_t bytes) {
    if (block == NULL) return rn_block_alloc(bytes);
    size_t held = ((block_header *)((char *)block - HEADER))->mapped - HEADER;
    if (bytes <= held && bytes >= held / 2) return block;
    void *moved = rn_block_alloc(bytes);
    if (moved == NULL) return NULL;
    memcpy(moved, block, bytes < held ? bytes : held);
    rn_block_free(block);
    return moved;
}
