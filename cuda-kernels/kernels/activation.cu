// What stands between the products of a layer: an activation with a gate, or with a bias before it and a residual behind it.
//
// Bound by memory, as `elementwise.cu`. The bias stays in the caches.
#include "convert.cuh"
#include "functions.cuh"
#include "packs.cuh"

struct GatedParams {
    const void *x, *gate;
    void *y;
    i64 count;
    u32 function, padding;
};

// y = function(x) * gate.
template <typename T> __device__ __forceinline__ void gated(const GatedParams &p) {
    constexpr int N = WIDE<T>;
    const T *x = static_cast<const T *>(p.x), *gate = static_cast<const T *>(p.gate);
    T *y = static_cast<T *>(p.y);
    const bool aligned = is_aligned(x, 16) && is_aligned(gate, 16) && is_aligned(y, 16);
    each_pack<N>(p.count, [=, &p](i64 at, i64 valid) {
        const Pack<T, N> of_x = load_some<T, N>(x + at, valid, aligned), of_gate = load_some<T, N>(gate + at, valid, aligned);
        float value[N], by[N];
        widen(of_x, value);
        widen(of_gate, by);
        activate<T>(p.function, value);
#pragma unroll
        for (int j = 0; j < N; j++) value[j] *= by[j];
        store_some(y + at, narrow<T>(value), valid, aligned);
    });
}

struct BiasActivationParams {
    const void *x, *bias, *residual;
    void *y;
    i64 rows;
    u32 width, packs, function, bias_type;
};

// One element a load: a thread reads its bias once for all of its rows.
template <typename B, int N> __device__ __forceinline__ void load_bias(const void *bias, i64 at, i64 valid, float (&to)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) to[j] = j < valid ? to_f32(static_cast<const B *>(bias)[at + j]) : 0.0f;
}

// y = function(x + bias) + residual, `[rows, width]`; bias and residual may be null. Blocks along x go over a row, along y over rows.
template <typename T> __device__ __forceinline__ void bias_activation(const BiasActivationParams &p) {
    constexpr int N = WIDE<T>;
    const T *x = static_cast<const T *>(p.x), *residual = static_cast<const T *>(p.residual);
    T *y = static_cast<T *>(p.y);
    const bool aligned = p.width % N == 0 && is_aligned(x, 16) && is_aligned(residual, 16) && is_aligned(y, 16);
    const u32 pack = blockIdx.x * blockDim.x + threadIdx.x;
    if (pack >= p.packs) return;
    const i64 valid = i64(p.width) - i64(pack) * N;
    float add[N] = {};
    if (p.bias) {
        switch (p.bias_type) {
        case TYPE_F32: load_bias<float>(p.bias, i64(pack) * N, valid, add); break;
        case TYPE_F16: load_bias<f16>(p.bias, i64(pack) * N, valid, add); break;
        case TYPE_BF16: load_bias<bf16>(p.bias, i64(pack) * N, valid, add); break;
        }
    }
    for (i64 row = i64(blockIdx.y) * blockDim.y + threadIdx.y; row < p.rows; row += i64(gridDim.y) * blockDim.y) {
        const i64 at = row * p.width + i64(pack) * N;
        const Pack<T, N> of_x = load_some<T, N>(x + at, valid, aligned);
        Pack<T, N> of_residual = {};
        if (residual) of_residual = load_some<T, N>(residual + at, valid, aligned);
        float value[N], more[N];
        widen(of_x, value);
#pragma unroll
        for (int j = 0; j < N; j++) value[j] += add[j];
        activate<T>(p.function, value);
        widen(of_residual, more);
        if (residual) {
#pragma unroll
            for (int j = 0; j < N; j++) value[j] += more[j];
        }
        store_some(y + at, narrow<T>(value), valid, aligned);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, gated_##name, GatedParams) { gated<T>(p); }                                                                      \
    KERNEL(256, bias_activation_##name, BiasActivationParams) { bias_activation<T>(p); }
EACH_FLOAT(X)
#undef X
