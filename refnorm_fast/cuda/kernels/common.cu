/* What the kernels share. Python puts this text before each of the other files, and compiles the two together at run time,
 * once with REAL float and once with REAL double.
 *
 * Rounding is part of the source: it is compiled without contraction (--fmad=false), and a fused multiply-add is written
 * where one is meant. Sums run in an order that depends on the shape alone, so results are the same in every run.
 *
 * Kernels that work row by row give a row to a team: the threads of a block with one threadIdx.y. A team of one warp shares
 * its block with other teams; a larger one has the block to itself. */

typedef REAL real;
typedef long long index_t;

#define INLINE __device__ __forceinline__
/* No launch has more threads a block: the compiler keeps to the registers that so many can have. */
#define MOST_THREADS 512
#define KERNEL extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
#define WARP 32
#define EVERY_LANE 0xffffffffu

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(name)             \
    extern __shared__ double dynamic_shared_memory[]; \
    real *name = reinterpret_cast<real *>(dynamic_shared_memory)
#endif

INLINE double quiet_nan() { return __longlong_as_double(0x7ff8000000000000LL); }
INLINE double infinity() { return __longlong_as_double(0x7ff0000000000000LL); }

/* ---- numbers that are known to more digits than a real has ---- */

struct Pair { /* high + low, |low| at most about a unit in the last place of high */
    real high, low;
};

INLINE Pair two_sum(real a, real b) { /* a + b exactly, unless it overflows */
    Pair sum;
    sum.high = a + b;
    real b_seen = sum.high - a;
    sum.low = (a - (sum.high - b_seen)) + (b - b_seen);
    return sum;
}

INLINE Pair pair_add(Pair sum, real term) {
    Pair next = two_sum(sum.high, term);
    next.low += sum.low;
    return next;
}

struct AddPairs {
    static __device__ __forceinline__ Pair join(Pair a, Pair b) {
        Pair sum = two_sum(a.high, b.high);
        sum.low += a.low + b.low;
        return sum;
    }
};

struct Add {
    static __device__ __forceinline__ double join(double a, double b) { return a + b; }
};

struct Maximum { /* NaN is the largest number */
    template <class T>
    static __device__ __forceinline__ T join(T a, T b) {
        return a > b || a != a ? a : b;
    }
};

struct Place { /* an entry and where it stands; of equal entries, the first */
    real value;
    index_t at;
};

struct LargestPlace {
    static __device__ __forceinline__ Place join(Place a, Place b) {
        bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        bool a_wins = a_nan || b_nan ? (a_nan && b_nan ? a.at < b.at : a_nan)
                                     : a.value > b.value || (a.value == b.value && a.at < b.at);
        return a_wins ? a : b;
    }
};

/* ---- sums and the like over a team ---- */

INLINE float shuffle(float value, int lanes) { return __shfl_xor_sync(EVERY_LANE, value, lanes); }
INLINE double shuffle(double value, int lanes) { return __shfl_xor_sync(EVERY_LANE, value, lanes); }
INLINE index_t shuffle(index_t value, int lanes) { return __shfl_xor_sync(EVERY_LANE, value, lanes); }
INLINE Pair shuffle(Pair value, int lanes) {
    Pair other;
    other.high = shuffle(value.high, lanes);
    other.low = shuffle(value.low, lanes);
    return other;
}
INLINE Place shuffle(Place value, int lanes) {
    Place other;
    other.value = shuffle(value.value, lanes);
    other.at = shuffle(value.at, lanes);
    return other;
}

template <class How, class T>
INLINE T warp_reduce(T value) {
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) value = How::join(value, shuffle(value, lanes));
    return value;
}

template <class How, class T>
INLINE T team_reduce(T value) { /* the same in every thread of the team */
    __shared__ T of_warp[WARP];
    value = warp_reduce<How>(value);
    if (blockDim.x > WARP) {
        if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = value;
        __syncthreads();
        value = of_warp[0];
        for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) value = How::join(value, of_warp[warp]);
        __syncthreads();
    }
    return value;
}

#define FIRST_ROW ((index_t) blockIdx.x * blockDim.y + threadIdx.y)
#define NEXT_ROW ((index_t) gridDim.x * blockDim.y)

/* ---- a row that is read more than once ---- */

struct Row { /* `cache` holds a copy in shared memory if the row fits. A thread reads back only what it has put there. */
    const real *source;
    real *cache;

    __device__ __forceinline__ real first(index_t i) const {
        real value = source[i];
        if (cache) cache[i] = value;
        return value;
    }
    __device__ __forceinline__ real again(index_t i) const { return cache ? cache[i] : source[i]; }
};

INLINE Row row_of(const real *x, index_t row, index_t length, real *shared, int cached) {
    Row r;
    r.source = x + row * length;
    r.cache = cached ? shared + threadIdx.y * length : 0;
    return r;
}

/* ---- exponentials ---- */

#if REAL_IS_DOUBLE
#define VANISHES (-750.0) /* e^x is 0 from here down */
INLINE real multiply_add(real a, real b, real c) { return fma(a, b, c); }
INLINE real power_of_two(int n) { return __longlong_as_double((long long) (n + 1023) << 52); }
INLINE real nearest_exponent(real x) { return rint(x * 0x1.71547652b82fep+0); }
/* x - n ln2 + low; ln2 in two parts, of which the first times n is exact. */
INLINE real reduced(real x, real n, real low) {
    return fma(n, -0x1.62e42fee00000p-1, x) + fma(n, -0x1.a39ef35793c76p-33, low);
}
/* (e^t - 1 - t) / t^2 for |t| <= ln2 / 2, minimax for the relative error of e^t (0.03 units of 2^-53). */
INLINE real expm1_factor(real t) {
    real t2 = t * t;
    real a = fma(0x1.55555555554f8p-3, t, 0x1.000000000000ap-1);
    real b = fma(0x1.1111111128170p-7, t, 0x1.5555555550754p-5);
    real c = fma(0x1.a01a0128fe193p-13, t, 0x1.6c16c1846fc48p-10);
    real d = fma(0x1.71df271f1c6f5p-19, t, 0x1.a019994464757p-16);
    real e = fma(0x1.ad7e8a5a21d4dp-26, t, 0x1.28ae345df82a0p-22);
    return fma(fma(fma(fma(e, t2, d), t2, c), t2, b), t2, a);
}
#else
#define VANISHES (-110.0f)
INLINE real multiply_add(real a, real b, real c) { return fmaf(a, b, c); }
INLINE real power_of_two(int n) { return __int_as_float((n + 127) << 23); }
INLINE real nearest_exponent(real x) { return rintf(x * 0x1.715476p+0f); }
INLINE real reduced(real x, real n, real low) {
    return fmaf(n, -0x1.62e43p-1f, x) + fmaf(n, 0x1.05c61p-29f, low);
}
INLINE real expm1_factor(real t) { /* 0.05 units of 2^-24 */
    real t2 = t * t;
    real a = fmaf(0x1.555490p-3f, t, 0x1.fffffcp-2f);
    real b = fmaf(0x1.123b02p-7f, t, 0x1.5558f8p-5f);
    return fmaf(fmaf(0x1.6a2256p-10f, t2, b), t2, a);
}
#endif

struct Exponential { /* (high + low) 2^exponent */
    real high, low;
    int exponent;
};

/* e^(x + low) for x <= 0 or NaN and a low that is small against 1. */
INLINE Exponential exponential(real x, real low) {
    Exponential e;
    if (x < VANISHES) {
        e.high = e.low = 0;
        e.exponent = 0;
        return e;
    }
    real n = nearest_exponent(x);
    real t = reduced(x, n, low);
    real less_one = multiply_add(t * t, expm1_factor(t), t);
    e.high = 1 + less_one;
    e.low = less_one - (e.high - 1);
    e.exponent = x == x ? (int) n : 0;
    return e;
}

/* value * 2^exponent for a value near 1 and an exponent <= 1, rounded once where the result is subnormal. */
INLINE real scaled(real value, int exponent) {
    int half = exponent / 2;
    return value * power_of_two(half) * power_of_two(exponent - half);
}

/* e^x for x <= 0 or NaN. */
INLINE real exp_of_negative(real x) {
    Exponential e = exponential(x, 0);
    return scaled(e.high, e.exponent);
}
