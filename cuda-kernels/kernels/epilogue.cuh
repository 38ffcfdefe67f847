// What is done to a sum of products before it is stored: y = activation(sum + bias) * factor + residual, in f32, rounded once.
#pragma once

#include "genie.cuh"

// Codes of float types that are known when a kernel runs: those of `genie_graph::DType`.
enum FloatType : u32 { TYPE_F32, TYPE_F16, TYPE_BF16 };

__device__ __forceinline__ float float_at(const void *from, i64 index, u32 type) {
    if (type == TYPE_F32) return static_cast<const float *>(from)[index];
    if (type == TYPE_F16) return to_f32(static_cast<const f16 *>(from)[index]);
    return to_f32(static_cast<const bf16 *>(from)[index]);
}

__device__ __forceinline__ void put_float(void *to, i64 index, u32 type, float value) {
    if (type == TYPE_F32) {
        static_cast<float *>(to)[index] = value;
    } else if (type == TYPE_F16) {
        static_cast<f16 *>(to)[index] = from_f32<f16>(value);
    } else {
        static_cast<bf16 *>(to)[index] = from_f32<bf16>(value);
    }
}

// Codes of `launch::epilogue::Activation`.
enum Activation : u32 { ACT_NONE, ACT_RELU, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_SIGMOID, ACT_TANH };

__device__ __forceinline__ float activate(u32 activation, float x) {
    switch (activation) {
    case ACT_RELU: return max_with_nan(x, 0.0f);
    case ACT_SILU: return x / (1.0f + expf(-x));
    case ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case ACT_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case ACT_SIGMOID: return 1.0f / (1.0f + expf(-x));
    case ACT_TANH: return tanhf(x);
    default: return x;
    }
}

// Addresses that are 0 stand for what is not there. `factor` and `residual` have the shape of the result, `bias` an element a column;
// each is of a type of its own.
struct Epilogue {
    const void *bias, *factor, *residual;
    u32 activation, bias_type, factor_type, residual_type;
};

// A float as it lies in memory; 0 where there is nothing.
__device__ __forceinline__ u32 bits_at(const void *from, i64 index, u32 type) {
    if (from == nullptr) return 0;
    return type == TYPE_F32 ? static_cast<const u32 *>(from)[index] : static_cast<const u16 *>(from)[index];
}

__device__ __forceinline__ float float_of(u32 bits, u32 type) {
    if (type == TYPE_F32) return __uint_as_float(bits);
    return type == TYPE_F16 ? to_f32(f16{u16(bits)}) : to_f32(bf16{u16(bits)});
}

// `index` is that of the element in the result, `column` that in its row. `times` is one more factor. All loads are under way before
// one of them is waited for.
__device__ __forceinline__ float finish(const Epilogue &e, float sum, i64 index, i64 column, float times = 1.0f) {
    const u32 bias = bits_at(e.bias, column, e.bias_type), factor = bits_at(e.factor, index, e.factor_type);
    const u32 residual = bits_at(e.residual, index, e.residual_type);
    if (e.bias) sum += float_of(bias, e.bias_type);
    sum = activate(e.activation, sum) * times;
    if (e.factor) sum *= float_of(factor, e.factor_type);
    if (e.residual) sum += float_of(residual, e.residual_type);
    return sum;
}

// As `finish`, for four neighbours, of which the first `count` are there.
__device__ __forceinline__ void finish_four(const Epilogue &e, float (&sums)[4], i64 index, i64 column, i64 count) {
    const auto each = [&](const void *from, i64 at, u32 of_type, auto &&then) {
        if (!from) return;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i < count) then(sums[i], float_at(from, at + i, of_type));
        }
    };
    each(e.bias, column, e.bias_type, [](float &sum, float x) { sum += x; });
    if (e.activation != ACT_NONE) {
#pragma unroll 1
        for (int turn = 0; turn < 4; turn++) {
            // The sums go round, so that the function is here once.
            const float first = activate(e.activation, sums[0]);
            sums[0] = sums[1], sums[1] = sums[2], sums[2] = sums[3], sums[3] = first;
        }
    }
    each(e.factor, index, e.factor_type, [](float &sum, float x) { sum *= x; });
    each(e.residual, index, e.residual_type, [](float &sum, float x) { sum += x; });
}

// Stores the first `count` of four neighbours: by one store where they are all there and lie well.
__device__ __forceinline__ void put_four(void *to, const float (&values)[4], i64 index, i64 count, u32 type) {
    const u64 at = u64(to) + index * (type == TYPE_F32 ? 4 : 2);
    if (count >= 4 && type == TYPE_F32 && at % 16 == 0) {
        *reinterpret_cast<float4 *>(at) = make_float4(values[0], values[1], values[2], values[3]);
        return;
    }
    u16 narrow[4];
#pragma unroll
    for (int i = 0; i < 4; i++) narrow[i] = type == TYPE_F16 ? from_f32<f16>(values[i]).bits : from_f32<bf16>(values[i]).bits;
    if (count >= 4 && type != TYPE_F32 && at % 8 == 0) {
        *reinterpret_cast<uint2 *>(at) = make_uint2(narrow[0] | u32(narrow[1]) << 16, narrow[2] | u32(narrow[3]) << 16);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i >= count) continue;
        if (type == TYPE_F32) {
            static_cast<float *>(to)[index + i] = values[i];
        } else {
            static_cast<u16 *>(to)[index + i] = narrow[i];
        }
    }
}
