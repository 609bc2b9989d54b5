/* Runs CUDA kernels on one thread of a CPU, for tests: the part of CUDA C++ that refnorm's kernels use.
 *
 * The threads of a block are fibers; blocks run one after another. A fiber runs until it waits at a barrier, and a shuffle is
 * two barriers of its warp. A warp runs as far ahead of the others as it can, and the order of warps and of lanes is the
 * caller's choice (0 ascending, 1 descending), so that a missing barrier shows as a wrong result in one of two runs. A barrier that not all threads reach is an error, dynamic
 * shared memory begins as NaN in each block, and writing past its end is an error. */
#ifndef CUDA_EMULATOR_H
#define CUDA_EMULATOR_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads, blocks)
#define __noinline__ __attribute__((noinline))
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
};
static dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 64 * 1024, MOST_FIBERS = 512, MOST_SHARED = 44 * 1024, GUARD = 64;

#if defined(__x86_64__)
struct Context {
    void *stack_pointer;
};
extern "C" void emulator_switch(void **save, void *load) __attribute__((visibility("hidden")));
asm(".text\n.type emulator_switch, @function\nemulator_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
static void switch_to(Context &from, Context &to) { emulator_switch(&from.stack_pointer, to.stack_pointer); }
static void prepare(Context &context, char *stack, void (*entry)()) {
    void **top = reinterpret_cast<void **>(stack + STACK);
    *--top = nullptr; /* where entry would return to; it never does */
    *--top = reinterpret_cast<void *>(entry);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    context.stack_pointer = top;
}
#else
struct Context {
    ucontext_t state;
};
static void switch_to(Context &from, Context &to) { swapcontext(&from.state, &to.state); }
static void prepare(Context &context, char *stack, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = STACK;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}
#endif

struct Barrier {
    unsigned arrived = 0;
    long generation = 0;
};
struct Warp {
    Barrier barrier;
    alignas(16) char slot[32][16];
};

static Context scheduler, fibers[MOST_FIBERS];
static bool done[MOST_FIBERS];
static Warp warps[MOST_FIBERS / 32];
static Barrier block_barrier;
static unsigned current;
static bool progress;
static void (*run_kernel)(void *);
static void *kernel_arguments;
static char *stacks;
static char *shared_memory;

static void fiber() {
    run_kernel(kernel_arguments);
    done[current] = true;
    progress = true;
    switch_to(fibers[current], scheduler);
}

static void wait(Barrier &barrier, unsigned expected) {
    long mine = barrier.generation;
    if (++barrier.arrived == expected) {
        barrier.arrived = 0;
        barrier.generation++;
        progress = true;
        return;
    }
    while (barrier.generation == mine) switch_to(fibers[current], scheduler);
}

static bool run_block(int order) { /* false: some threads wait at a barrier that others do not reach */
    unsigned count = blockDim.x * blockDim.y * blockDim.z, left = count;
    block_barrier = Barrier();
    for (unsigned warp = 0; warp < count / 32; warp++) warps[warp].barrier = Barrier();
    for (unsigned i = 0; i < count; i++) {
        done[i] = false;
        prepare(fibers[i], stacks + i * STACK, fiber);
    }
    while (left > 0) {
        bool stuck = true;
        for (unsigned turn = 0; turn < count / 32; turn++) {
            unsigned warp = order == 0 ? turn : count / 32 - 1 - turn;
            do {
                progress = false;
                for (unsigned lane = 0; lane < 32; lane++) {
                    current = warp * 32 + (order == 0 ? lane : 31 - lane);
                    if (done[current]) continue;
                    threadIdx = {current % blockDim.x, current / blockDim.x % blockDim.y, current / (blockDim.x * blockDim.y)};
                    switch_to(scheduler, fibers[current]);
                    left -= done[current];
                }
                stuck &= !progress;
            } while (progress);
        }
        if (stuck) return false;
    }
    return true;
}

enum Failure { NONE = 0, BAD_BLOCK = 1, DEADLOCK = 2, SHARED_OVERRUN = 3 };

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*reinterpret_cast<A *>(arguments[I])...);
}

template <class... A>
struct Bound {
    void (*kernel)(A...);
    void **arguments;
    static void run(void *self) {
        Bound *bound = static_cast<Bound *>(self);
        call(bound->kernel, bound->arguments, std::index_sequence_for<A...>());
    }
};

template <class... A>
static int launch(void (*kernel)(A...), const unsigned *grid, const unsigned *block, size_t shared, int count, void **arguments,
                  int order) {
    static std::unique_ptr<char[]> all_stacks(new char[STACK * MOST_FIBERS]);
    std::vector<double> memory((shared + 2 * GUARD) / sizeof(double) + 1);
    Bound<A...> bound{kernel, arguments};
    size_t threads = (size_t) block[0] * block[1] * block[2];
    if (threads == 0 || threads > MOST_FIBERS || threads % 32 != 0 || count != (int) sizeof...(A) || shared > MOST_SHARED ||
        grid[1] > 65535 || grid[2] > 65535 || grid[0] > 0x7fffffffu)
        return BAD_BLOCK;
    stacks = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(all_stacks.get()) + 15) / 16 * 16);
    run_kernel = Bound<A...>::run;
    kernel_arguments = &bound;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    shared_memory = reinterpret_cast<char *>(memory.data());
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                blockIdx = {x, y, z};
                memset(shared_memory, 0xff, shared + GUARD);
                if (!run_block(order)) return DEADLOCK;
                for (size_t i = 0; i < GUARD; i++)
                    if ((unsigned char) shared_memory[shared + i] != 0xff) return SHARED_OVERRUN;
            }
    return NONE;
}

}  // namespace emulator

#define DYNAMIC_SHARED(name) real *name = reinterpret_cast<real *>(emulator::shared_memory)

static inline void __syncthreads() { emulator::wait(emulator::block_barrier, blockDim.x * blockDim.y * blockDim.z); }
static inline void __syncwarp() { emulator::wait(emulator::warps[emulator::current / 32].barrier, 32); }

template <class T>
static inline T __shfl_xor_sync(unsigned, T value, int lanes) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    emulator::Warp &warp = emulator::warps[emulator::current / 32];
    unsigned lane = emulator::current % 32;
    T other;
    memcpy(warp.slot[lane], &value, sizeof(T));
    emulator::wait(warp.barrier, 32);
    memcpy(&other, warp.slot[lane ^ lanes], sizeof(T));
    emulator::wait(warp.barrier, 32);
    return other;
}

static inline int __dp4a(int a, int b, int c) {
    signed char left[4], right[4];
    memcpy(left, &a, 4);
    memcpy(right, &b, 4);
    for (int i = 0; i < 4; i++) c += left[i] * right[i];
    return c;
}

static inline double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}
static inline float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

#endif
