// Functions of one element beyond those that models need most. The codes of kinds are those of `genie_graph::UnaryKind`.
//
// Bound by memory, or where a function takes many instructions by those; packs of 16 bytes as in `elementwise.cu`.
#include "packs.cuh"

struct FunctionParams {
    const void *x;
    void *y;
    i64 count;
    u32 kind, padding;
};

enum Kind : u32 {
    SIN, COS, TAN, ASIN, ACOS, ATAN, SINH, COSH, ASINH, ACOSH, ATANH, ERF, ERFC, ERFINV, LGAMMA, DIGAMMA,
    EXPM1, LOG1P, LOG2, LOG10, EXP2, RSQRT, RECIPROCAL, I0, FLOOR, CEIL, ROUND, TRUNC, SIGN, NOT, IS_NAN, IS_INF, IS_FINITE
};

// As the CPU device has it, in f64: by the recurrence and the asymptotic series (Abramowitz and Stegun 6.3.5, 6.3.7, 6.3.18).
CALLED float digamma(float of) {
    if (of == 0.0f) return copysignf(INFINITY, -of);
    double x = of, sum = 0.0;
    if (of < 0.0f) {
        const double fraction = x - floor(x);
        if (fraction == 0.0 || isinf(of)) return NAN;
        double s, c;
        sincospi(fraction, &s, &c);
        sum = -3.141592653589793 * c / s;
        x = 1.0 - x;
    }
    if (isinf(of)) return of;
    for (; x < 10.0; x += 1.0) sum -= 1.0 / x;
    const double square = 1.0 / (x * x);
    double tail = 1.0 / 12.0;
    tail = -691.0 / 32760.0 + square * tail;
    tail = 1.0 / 132.0 + square * tail;
    tail = -1.0 / 240.0 + square * tail;
    tail = 1.0 / 252.0 + square * tail;
    tail = -1.0 / 120.0 + square * tail;
    tail = 1.0 / 12.0 + square * tail;
    return float(sum + log(x) - 0.5 / x - square * tail);
}

template <typename T, typename U, typename F> __device__ __forceinline__ void each(const FunctionParams &p, F function) {
    const T *x = static_cast<const T *>(p.x);
    U *y = static_cast<U *>(p.y);
    const bool aligned = is_aligned(x, 16) && is_aligned(y, sizeof(U) * WIDE<T>);
    each_pack<WIDE<T>>(p.count, [=](i64 at, i64 valid) {
        const Pack<T, WIDE<T>> from = load_some<T, WIDE<T>>(x + at, valid, aligned);
        Pack<U, WIDE<T>> to;
#pragma unroll
        for (int j = 0; j < WIDE<T>; j++) to.at[j] = function(from.at[j]);
        store_some(y + at, to, valid, aligned);
    });
}

// Functions of few instructions.
__device__ __forceinline__ float simple(u32 kind, float x) {
    switch (kind) {
    case RSQRT: return 1.0f / sqrtf(x);
    case RECIPROCAL: return 1.0f / x;
    case FLOOR: return floorf(x);
    case CEIL: return ceilf(x);
    case ROUND: return rintf(x);
    case TRUNC: return truncf(x);
    default: return float(x > 0.0f) - float(x < 0.0f);
    }
}

// Functions of many.
__device__ __forceinline__ float involved(u32 kind, float x) {
    switch (kind) {
    case SIN: return sinf(x);
    case COS: return cosf(x);
    case TAN: return tanf(x);
    case ASIN: return asinf(x);
    case ACOS: return acosf(x);
    case ATAN: return atanf(x);
    case SINH: return sinhf(x);
    case COSH: return coshf(x);
    case ASINH: return asinhf(x);
    case ACOSH: return acoshf(x);
    case ATANH: return atanhf(x);
    case ERF: return erff(x);
    case ERFC: return erfcf(x);
    case ERFINV: return erfinvf(x);
    case LGAMMA: return lgammaf(x);
    case DIGAMMA: return digamma(x);
    case EXPM1: return expm1f(x);
    case LOG1P: return log1pf(x);
    case LOG2: return log2f(x);
    case LOG10: return log10f(x);
    case EXP2: return exp2f(x);
    default: return isinf(x) ? fabsf(x) : cyl_bessel_i0f(x);
    }
}

__device__ __forceinline__ bool test(u32 kind, float x) {
    switch (kind) {
    case IS_NAN: return x != x;
    case IS_INF: return fabsf(x) == INFINITY;
    default: return fabsf(x) < INFINITY;
    }
}

template <typename T> __device__ __forceinline__ void function_of(const FunctionParams &p) {
    if (p.kind >= IS_NAN) return each<T, u8>(p, [&](T x) { return u8(test(p.kind, to_f32(x))); });
    if (p.kind >= FLOOR || p.kind == RSQRT || p.kind == RECIPROCAL) {
        return each<T, T>(p, [&](T x) { return from_f32<T>(simple(p.kind, to_f32(x))); });
    }
    // One element a thread and turn: a pack would be as many copies of the functions.
    const T *x = static_cast<const T *>(p.x);
#pragma unroll 1
    for (i64 i = global_thread(); i < p.count; i += global_threads()) {
        static_cast<T *>(p.y)[i] = from_f32<T>(involved(p.kind, to_f32(x[i])));
    }
}

template <typename T> __device__ __forceinline__ void function_of_integers(const FunctionParams &p) {
    each<T, T>(p, [&](T x) { return p.kind == SIGN ? T(T(x > T(0)) - T(is_negative(x))) : T(~x); });
}

#define X(T, name)                                                                                                               \
    KERNEL(256, function_##name, FunctionParams) { function_of<T>(p); }
EACH_FLOAT(X)
#undef X
KERNEL(256, function_i64, FunctionParams) { function_of_integers<i64>(p); }
KERNEL(256, function_i32, FunctionParams) { function_of_integers<i32>(p); }
KERNEL(256, function_u8, FunctionParams) { function_of_integers<u8>(p); }
KERNEL(256, function_bool, FunctionParams) {
    each<u8, u8>(p, [](u8 x) { return u8(x == 0); });
}
