// From one element type to another, as `Op::Cast` has it.
#pragma once

#include "genie.cuh"

// What lies outside of an integer's range becomes its nearest end, NaN 0; the fraction is cut off.
template <typename To, typename Float> __device__ __forceinline__ To saturate(Float x) {
    if constexpr (sizeof(To) == 8) {
        if (x >= Float(9223372036854775808.0)) return To(0x7fffffffffffffffll);
        if (x < Float(-9223372036854775808.0)) return To(-0x7fffffffffffffffll - 1);
    } else if constexpr (sizeof(To) == 4) {
        if (x >= Float(2147483648.0)) return To(0x7fffffff);
        if (x <= Float(-2147483648.0)) return To(-0x7fffffff - 1);
    } else {
        if (x >= Float(255.0)) return To(255);
        if (x <= Float(0.0)) return To(0);
    }
    return x == x ? To(x) : To(0);
}

// The type on the way: floats go through f32, integers wrap, a bool is 0 or 1 whatever its byte is.
template <typename T> struct IsFloat {
    static constexpr bool value = false;
};
template <> struct IsFloat<float> {
    static constexpr bool value = true;
};
template <> struct IsFloat<f16> {
    static constexpr bool value = true;
};
template <> struct IsFloat<bf16> {
    static constexpr bool value = true;
};

template <typename T> __device__ __forceinline__ auto wide(T x) {
    if constexpr (IsFloat<T>::value) {
        return to_f32(x);
    } else {
        return x;
    }
}
__device__ __forceinline__ u8 wide(boolean x) { return x.byte != 0; }

template <typename To> struct Converted {
    template <typename Wide> static __device__ __forceinline__ To of(Wide x) {
        if constexpr (IsFloat<To>::value) {
            return from_f32<To>(float(x));
        } else if constexpr (IsFloat<Wide>::value) {
            return saturate<To>(x);
        } else {
            return To(x);
        }
    }
};
template <> struct Converted<boolean> {
    template <typename Wide> static __device__ __forceinline__ boolean of(Wide x) { return boolean{u8(x != Wide(0))}; }
};

template <typename To, typename From> __device__ __forceinline__ To convert(From x) { return Converted<To>::of(wide(x)); }

// Codes of element types: those of `DType`.
enum Type : u32 { TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_I64, TYPE_I32, TYPE_U8, TYPE_BOOL };
