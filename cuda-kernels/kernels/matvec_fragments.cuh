// How `matvec.cu` and `matvec_quantised.cu` use the fragments of `matrix.cuh`: rows of a are columns of y, columns of b rows of x.
#pragma once

#include "matrix.cuh"
#include "matvec.cuh"

// Threads a block and blocks a multiprocessor: two, and registers for the first of the kernel that comes next, which may begin before
// this one has ended (compute capability 9.0).
#if !defined(GENIE_HOST) && __CUDA_ARCH__ >= 900
#define BOUNDS THREADS, 3
#else
#define BOUNDS THREADS, 2
#endif

// The sum `i` of a fragment d with its rows as columns of y and its columns as rows of x.
__device__ __forceinline__ void place_in_fragment(int i, u32 lane, u32 &n, u32 &m) {
    n = lane / 4 + 8 * (i / 2);
    m = 2 * (lane % 4) + i % 2;
}

// Stores eight values as 16 bytes.
template <typename T> __device__ __forceinline__ void put_eight(T *to, const float (&values)[8]) {
    *reinterpret_cast<uint4 *>(to) = make_uint4(pack_pair<T>(values[0], values[1]), pack_pair<T>(values[2], values[3]),
                                                pack_pair<T>(values[4], values[5]), pack_pair<T>(values[6], values[7]));
}

// sums[at] to sums[at + 3] += a * b.
template <typename T, int SUMS>
__device__ __forceinline__ void mma_at(float (&sums)[SUMS], int at, const u32 (&a)[4], const u32 (&b)[2]) {
    float d[4] = {sums[at], sums[at + 1], sums[at + 2], sums[at + 3]};
    mma<T>(d, a, b);
#pragma unroll
    for (int i = 0; i < 4; i++) sums[at + i] = d[i];
}
