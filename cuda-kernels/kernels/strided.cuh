// Tensors whose elements lie apart: which element of each operand belongs to an index.
#pragma once

#include "genie.cuh"

#define MOST_DIMS 8

// The dimensions that an index runs over, the fastest first. The last is never divided by.
//
// Division by an invariant, of numbers under 2^31, is a multiplication and a shift (Granlund and Montgomery 1994). `large`: the
// index may be 2^31 or more, and is divided as 64 bits are.
struct Dims {
    u32 size[MOST_DIMS], magic[MOST_DIMS];
    u8 shift[MOST_DIMS];
    u32 rank, large;
};

// Adds index times stride of each dimension to `offset` of each of N operands.
template <int N>
__device__ __forceinline__ void locate(const Dims &dims, const i64 (&strides)[N][MOST_DIMS], u64 index, i64 (&offset)[N]) {
#pragma unroll
    for (u32 d = 0; d < MOST_DIMS; d++) {
        if (d + 1 >= dims.rank) {
#pragma unroll
            for (int o = 0; o < N; o++) offset[o] += i64(index) * strides[o][d];
            return;
        }
        u64 outer;
        if (dims.large) {
            outer = index / dims.size[d];
        } else {
            outer = (__umulhi(u32(index), dims.magic[d]) + u32(index)) >> dims.shift[d];
        }
        const u32 inner = u32(index - outer * dims.size[d]);
#pragma unroll
        for (int o = 0; o < N; o++) offset[o] += i64(inner) * strides[o][d];
        index = outer;
    }
}
