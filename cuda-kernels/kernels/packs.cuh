// Loops over contiguous tensors: 16 bytes a thread and turn where addresses allow it, and the same code for what is left over.
#pragma once

#include "genie.cuh"

// The N elements at `from`, or the first `valid` of them and zeros. `aligned`: the address is a multiple of N * sizeof(T).
template <typename T, int N> __device__ __forceinline__ Pack<T, N> load_some(const T *from, i64 valid, bool aligned) {
    if (aligned && valid >= N) return load<T, N>(from);
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; j++) pack.at[j] = j < valid ? from[j] : T{};
    return pack;
}

template <typename T, int N>
__device__ __forceinline__ void store_some(T *to, const Pack<T, N> &pack, i64 valid, bool aligned) {
    if (aligned && valid >= N) return store(to, pack);
#pragma unroll
    for (int j = 0; j < N; j++) {
        if (j < valid) to[j] = pack.at[j];
    }
}

template <typename T, int N> __device__ __forceinline__ void widen(const Pack<T, N> &pack, float (&to)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = to_f32(pack.at[j]);
}

template <typename T, int N> __device__ __forceinline__ Pack<T, N> narrow(const float (&from)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; j++) pack.at[j] = from_f32<T>(from[j]);
    return pack;
}

// Calls `body(at, valid)` for the packs of N elements of a tensor of `count`: the pack starts at `at` and has `valid` elements, which
// for the last may be fewer than N.
template <int N, typename F> __device__ __forceinline__ void each_pack(i64 count, F body) {
    const i64 step = global_threads() * N;
    for (i64 at = global_thread() * N; at < count; at += step) body(at, count - at);
}

__device__ __forceinline__ bool is_aligned(const void *at, u32 bytes) { return u64(at) % bytes == 0; }
