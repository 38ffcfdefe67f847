// Two tensors, broadcast the way NumPy does, and what is made of each pair of elements.
//
// Bound by memory. A thread takes a pair a turn, so that a warp's addresses lie side by side: 2048 threads a multiprocessor with two
// loads of 4 bytes under way each are 16 KB, half of what bandwidth times latency asks for.
#pragma once

#include "strided.cuh"

struct PairParams {
    const void *a, *b;
    void *y;
    u64 *fault;
    i64 count;
    // Of a, then of b.
    i64 strides[2][MOST_DIMS];
    Dims dims;
    u32 kind, padding;
};

// y = function(a, b, fault). Of the elements that set `fault` the first is told. The function chooses by kind itself: the way to the
// operands is more code than most kinds, and all of a warp choose the same.
template <typename T, typename U, typename F> __device__ __forceinline__ void each_pair(const PairParams &p, F function) {
#pragma unroll 1
    for (i64 at = global_thread(); at < p.count; at += global_threads()) {
        i64 offset[2] = {0, 0};
        locate(p.dims, p.strides, u64(at), offset);
        bool fault = false;
        static_cast<U *>(p.y)[at] =
            function(static_cast<const T *>(p.a)[offset[0]], static_cast<const T *>(p.b)[offset[1]], fault);
        if (fault) atomicMin(p.fault, u64(at));
    }
}
