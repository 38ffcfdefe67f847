// Elementwise functions of one tensor, and of one with a gate, a bias or a residual.
//
// Bound by memory: every element is read and written once, 16 bytes a thread and turn in a grid-stride loop. 2048 threads a
// multiprocessor with 16 bytes under way each are 32 KB, more than bandwidth times latency asks for.
#include "functions.cuh"
#include "packs.cuh"

struct UnaryParams {
    const void *x;
    void *y;
    i64 count;
    u32 function, padding;
};

template <typename T, typename F> __device__ __forceinline__ void each(const UnaryParams &p, F function) {
    const T *x = static_cast<const T *>(p.x);
    T *y = static_cast<T *>(p.y);
    const bool aligned = is_aligned(x, 16) && is_aligned(y, 16);
    each_pack<WIDE<T>>(p.count, [=](i64 at, i64 valid) {
        Pack<T, WIDE<T>> pack = load_some<T, WIDE<T>>(x + at, valid, aligned);
#pragma unroll
        for (int j = 0; j < WIDE<T>; j++) pack.at[j] = function(pack.at[j]);
        store_some(y + at, pack, valid, aligned);
    });
}

template <typename T, u32 FUNCTION> __device__ __forceinline__ void unary_as(const UnaryParams &p) {
    each<T>(p, [](T x) { return from_f32<T>(function_of<T, FUNCTION>(to_f32(x))); });
}

template <typename T> __device__ __forceinline__ void unary(const UnaryParams &p) {
    switch (p.function) {
    case RELU: return unary_as<T, RELU>(p);
    case SILU: return unary_as<T, SILU>(p);
    case GELU: return unary_as<T, GELU>(p);
    case GELU_TANH: return unary_as<T, GELU_TANH>(p);
    case SIGMOID: return unary_as<T, SIGMOID>(p);
    case TANH: return unary_as<T, TANH>(p);
    case EXP: return unary_as<T, EXP>(p);
    case LOG: return unary_as<T, LOG>(p);
    case SQRT: return unary_as<T, SQRT>(p);
    case ABS: return unary_as<T, ABS>(p);
    case NEG: return unary_as<T, NEG>(p);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, unary_##name, UnaryParams) { unary<T>(p); }
EACH_FLOAT(X)
#undef X

// Overflow wraps: it is computed without a sign.
template <typename T, typename Unsigned> __device__ __forceinline__ void unary_integer(const UnaryParams &p) {
    const bool is_abs = p.function == ABS;
    each<T>(p, [is_abs](T x) { return is_abs && x >= 0 ? x : T(Unsigned(0) - Unsigned(x)); });
}

KERNEL(256, unary_i64, UnaryParams) { unary_integer<i64, u64>(p); }
KERNEL(256, unary_i32, UnaryParams) { unary_integer<i32, u32>(p); }
