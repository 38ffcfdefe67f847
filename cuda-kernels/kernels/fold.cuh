// Sum, mean, largest, smallest and product along an axis. Floats are summed in f32.
#pragma once

#include "convert.cuh"
#include "reduce.cuh"

// Codes of `ReduceKind`; a mean is a sum that is divided.
enum Kind : u32 { SUM, MEAN, MAX, MIN, PROD };

// Arithmetic of integers has no sign: it wraps.
template <typename A> struct Unsigned {
    typedef A type;
};
template <> struct Unsigned<i64> {
    typedef u64 type;
};
template <> struct Unsigned<i32> {
    typedef u32 type;
};
template <> struct Unsigned<u8> {
    typedef u32 type;
};

template <typename A> struct Range;
template <> struct Range<float> {
    static __device__ __forceinline__ float least() { return -INFINITY; }
    static __device__ __forceinline__ float most() { return INFINITY; }
};
template <> struct Range<i64> {
    static __device__ __forceinline__ i64 least() { return -0x7fffffffffffffffll - 1; }
    static __device__ __forceinline__ i64 most() { return 0x7fffffffffffffffll; }
};
template <> struct Range<i32> {
    static __device__ __forceinline__ i32 least() { return -0x7fffffff - 1; }
    static __device__ __forceinline__ i32 most() { return 0x7fffffff; }
};
template <> struct Range<u8> {
    static __device__ __forceinline__ u8 least() { return 0; }
    static __device__ __forceinline__ u8 most() { return 255; }
};

template <typename T, u32 KIND> struct Fold {
    typedef T Input;
    typedef decltype(wide(T{})) State;
    typedef typename Unsigned<State>::type U;

    static __device__ __forceinline__ State init() {
        if constexpr (KIND == MAX) return Range<State>::least();
        if constexpr (KIND == MIN) return Range<State>::most();
        return State(KIND == PROD);
    }
    static __device__ __forceinline__ State merge(State a, State b) {
        if constexpr (KIND == SUM) return State(U(a) + U(b));
        if constexpr (KIND == PROD) return State(U(a) * U(b));
        // A NaN stays.
        if constexpr (KIND == MAX) return a > b || a != a ? a : b;
        if constexpr (KIND == MIN) return a < b || a != a ? a : b;
    }
    static __device__ __forceinline__ void take(State &state, T x, u32) { state = merge(state, wide(x)); }
    static __device__ __forceinline__ void store(const ReduceParams &p, i64 at, State state) {
        if constexpr (IsFloat<T>::value) {
            const float value = p.divisor == 0.0f ? state : state / p.divisor;
            switch (p.to) {
            case TYPE_F32: static_cast<float *>(p.y)[at] = value; return;
            case TYPE_F16: static_cast<f16 *>(p.y)[at] = from_f32<f16>(value); return;
            case TYPE_BF16: static_cast<bf16 *>(p.y)[at] = from_f32<bf16>(value); return;
            }
        } else {
            static_cast<T *>(p.y)[at] = state;
        }
    }
};

struct FoldParams {
    ReduceParams reduce;
    u32 kind, padding;
};
