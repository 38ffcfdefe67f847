// Blocks that leave parts of a sum in memory: the one that comes last adds them up.
#pragma once

#include "genie.cuh"

// Orders this thread's reads and writes, and those that a barrier has ordered before or behind them, for all of the GPU. It costs
// less than `__threadfence`, which also puts them into one order with the fences of all other threads.
__device__ __forceinline__ void fence_of_gpu() {
#ifndef GENIE_HOST
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Whether this block is the last of `count` to come to `counter`. All of its threads call it and get the same answer: the last one
// reads what the others stored before they came, by `__ldcg`. It leaves the counter at 0, as the first block found it. `word` lies in
// shared memory, and may be used again after the next barrier.
__device__ __forceinline__ bool is_last(u32 *counter, u32 count, u32 *word) {
    // One thread's fence is enough for all whose stores a barrier has put before it.
    __syncthreads();
    if (threadIdx.x == 0) {
        fence_of_gpu();
        *word = atomicInc(counter, count - 1) == count - 1;
        fence_of_gpu();
    }
    __syncthreads();
    return *word != 0;
}
