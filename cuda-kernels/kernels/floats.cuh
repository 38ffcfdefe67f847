// Floats of a type that a parameter names: weights and biases, whose type need not be that of the activations. All threads of a
// warp take the same branch.
#pragma once

#include "genie.cuh"

// Codes of `launch::FloatType`.
enum FloatType : u32 { IS_F32, IS_F16, IS_BF16 };

// Element `index`.
__device__ __forceinline__ float load_float(const void *from, u32 type, i64 index) {
    if (type == IS_F32) return __ldg(static_cast<const float *>(from) + index);
    const u16 bits = __ldg(static_cast<const u16 *>(from) + index);
    return type == IS_F16 ? to_f32(f16{bits}) : to_f32(bf16{bits});
}

// Elements `index` to `index + N`. The address of the first of them is aligned to 16 bytes, or to those that N elements take if
// these are fewer. N is 1, 4 or 8.
template <int N> __device__ __forceinline__ void load_floats(float (&to)[N], const void *from, u32 type, i64 index) {
    if constexpr (N == 1) {
        to[0] = load_float(from, type, index);
    } else if (type == IS_F32) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const Pack<float, 4> pack = load_constant<float, 4>(static_cast<const float *>(from) + index + i);
#pragma unroll
            for (int j = 0; j < 4; j++) to[i + j] = pack.at[j];
        }
    } else {
        const Pack<u16, N> pack = load_constant<u16, N>(static_cast<const u16 *>(from) + index);
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = type == IS_F16 ? to_f32(f16{pack.at[j]}) : to_f32(bf16{pack.at[j]});
    }
}

// Stores elements `index` to `index + N`, rounded once. Aligned as `load_floats` has it.
template <int N> __device__ __forceinline__ void store_floats(void *to, u32 type, i64 index, const float (&from)[N]) {
    if (type == IS_F32) {
        constexpr int AT_ONCE = N < 4 ? N : 4;
#pragma unroll
        for (int i = 0; i < N; i += AT_ONCE) {
            Pack<float, AT_ONCE> pack;
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) pack.at[j] = from[i + j];
            store(static_cast<float *>(to) + index + i, pack);
        }
        return;
    }
    Pack<u16, N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack.at[i] = type == IS_F16 ? from_f32<f16>(from[i]).bits : from_f32<bf16>(from[i]).bits;
    store(static_cast<u16 *>(to) + index, pack);
}
