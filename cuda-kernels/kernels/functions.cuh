// Functions of one float, as the CPU device has them, and loops that apply something to packs of elements.
#pragma once

#include "genie.cuh"

// Codes of `launch::elementwise::Unary`. NONE is x itself.
enum Function : u32 { RELU, SILU, GELU, GELU_TANH, SIGMOID, TANH, EXP, LOG, SQRT, ABS, NEG, NONE };

// x Phi(x) = x erfc(-x / sqrt 2) / 2, which keeps its digits where Phi is near 0. The argument of erfc is rounded, and for x < 0 its
// slope there is steep: what rounding took from it is put back by the derivative. Results of 2 bytes do not need that.
template <bool EXACT> __device__ __forceinline__ float gelu(float x) {
    const float high = 0.70710678f, low = 1.2101617e-8f;
    const float z = -x * high;
    float tail = erfcf(z);
    if (EXACT && x < 0.0f) {
        const float lost = fmaf(-x, high, -z) - x * low;
        tail = fmaf(-1.1283792f * expf(-z * z), lost, tail);
    }
    return 0.5f * x * tail;
}

template <typename T, u32 FUNCTION> __device__ __forceinline__ float function_of(float x) {
    // Written so that NaN stays.
    if constexpr (FUNCTION == RELU) return x < 0.0f ? 0.0f : x;
    if constexpr (FUNCTION == SILU) return x / (1.0f + expf(-x));
    if constexpr (FUNCTION == GELU) return gelu<sizeof(T) == 4>(x);
    // x (1 + tanh u) / 2 = x / (1 + e^-2u), which loses no digits where tanh is near -1.
    if constexpr (FUNCTION == GELU_TANH) return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
    if constexpr (FUNCTION == SIGMOID) return 1.0f / (1.0f + expf(-x));
    if constexpr (FUNCTION == TANH) return tanhf(x);
    if constexpr (FUNCTION == EXP) return expf(x);
    if constexpr (FUNCTION == LOG) return logf(x);
    if constexpr (FUNCTION == SQRT) return sqrtf(x);
    if constexpr (FUNCTION == ABS) return fabsf(x);
    if constexpr (FUNCTION == NEG) return -x;
    return x;
}

// Applies a function whose code is in `code` to N values of a tensor of T.
template <typename T, u32 FUNCTION, int N> __device__ __forceinline__ void each_of(float (&x)[N]) {
#pragma unroll
    for (int j = 0; j < N; j++) x[j] = function_of<T, FUNCTION>(x[j]);
}

// The functions that follow a layer: RELU to TANH, and NONE.
template <typename T, int N> __device__ __forceinline__ void activate(u32 code, float (&x)[N]) {
    switch (code) {
    case RELU: return each_of<T, RELU>(x);
    case SILU: return each_of<T, SILU>(x);
    case GELU: return each_of<T, GELU>(x);
    case GELU_TANH: return each_of<T, GELU_TANH>(x);
    case SIGMOID: return each_of<T, SIGMOID>(x);
    case TANH: return each_of<T, TANH>(x);
    default: return;
    }
}
