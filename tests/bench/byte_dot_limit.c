/* The rate of byte dot products (vpdpbusd on 512 bits) that two cores sustain: the limit of the int8 products.
 *
 *     gcc -O2 -fopenmp -mavx512f -mavx512vnni tests/bench/byte_dot_limit.c -o limit && ./limit
 *
 * Sixteen registers that do not depend on each other hide the latency; the best of many short runs is printed. */
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>

#define SIXTEEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define BEGIN(i) __m512i sum##i = _mm512_setzero_si512();
#define STEP(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum##i) : "v"(bytes), "v"(bytes));

enum { STEPS = 400000, RUNS = 300, OPERATIONS = 2 * 64 };

int main(void) {
    const __m512i bytes = _mm512_set1_epi8(1);
    double best = 1e9;
    int threads = 0;
    for (int run = 0; run < RUNS; run++) {
        double begin = 0, end = 0;
#pragma omp parallel num_threads(2)
        {
            SIXTEEN(BEGIN)
#pragma omp barrier
#pragma omp master
            begin = omp_get_wtime();
            for (int step = 0; step < STEPS; step++) {
                SIXTEEN(STEP)
            }
#pragma omp barrier
#pragma omp master
            end = omp_get_wtime(), threads = omp_get_num_threads();
        }
        if (end - begin < best) best = end - begin;
    }
    printf("%.0f Gop/s on %d threads\n", 1e-9 * threads * 16.0 * STEPS * OPERATIONS / best, threads);
    return 0;
}
