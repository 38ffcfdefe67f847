// Functions of two elements of one type, broadcast. The codes of kinds are those of `genie_graph::BinaryKind`.
#include "pairs.cuh"

enum Kind : u32 {
    POW, MAXIMUM, MINIMUM, REMAINDER, FMOD, FLOOR_DIVIDE, ATAN2, HYPOT, COPYSIGN, NEXTAFTER, AND, OR, XOR, SHIFT_LEFT, SHIFT_RIGHT
};

__device__ __forceinline__ float remainder_of(float a, float b) {
    const float rest = fmodf(a, b);
    return rest != 0.0f && (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}

// As the CPU device: from what is left, then to the whole number that rounding may have missed.
__device__ __forceinline__ float floor_quotient(float a, float b) {
    if (b == 0.0f) return a / b;
    const float rest = fmodf(a, b);
    float quotient = (a - rest) / b;
    if (rest != 0.0f && (rest < 0.0f) != (b < 0.0f)) quotient -= 1.0f;
    if (quotient == 0.0f) return copysignf(0.0f, a / b);
    const float whole = floorf(quotient);
    return quotient - whole > 0.5f ? whole + 1.0f : whole;
}

// The next number of the type: its bits are those of the next whole number.
__device__ __forceinline__ u32 bits_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ u32 bits_of(f16 x) { return x.bits; }
__device__ __forceinline__ u32 bits_of(bf16 x) { return x.bits; }
__device__ __forceinline__ void set_bits(float &x, u32 bits) { x = __uint_as_float(bits); }
__device__ __forceinline__ void set_bits(f16 &x, u32 bits) { x.bits = u16(bits); }
__device__ __forceinline__ void set_bits(bf16 &x, u32 bits) { x.bits = u16(bits); }

template <typename T> __device__ __forceinline__ T next_after(T a, T b) {
    const float from = to_f32(a), to = to_f32(b);
    if (from != from || to != to) return from_f32<T>(from + to);
    if (from == to) return b;
    constexpr u32 SIGN = 1u << (8 * sizeof(T) - 1);
    T next;
    if (from == 0.0f) {
        set_bits(next, 1u | (bits_of(b) & SIGN));
    } else {
        set_bits(next, bits_of(a) + ((from < to) == (from > 0.0f) ? 1u : u32(-1)));
    }
    return next;
}

__device__ __forceinline__ float combined(u32 kind, float a, float b) {
    switch (kind) {
    case POW: return powf(a, b);
    case MAXIMUM: return max_with_nan(a, b);
    case MINIMUM: return min_with_nan(a, b);
    case REMAINDER: return remainder_of(a, b);
    case FMOD: return fmodf(a, b);
    case FLOOR_DIVIDE: return floor_quotient(a, b);
    case ATAN2: return atan2f(a, b);
    case HYPOT: return hypotf(a, b);
    default: return copysignf(a, b);
    }
}

template <typename T> __device__ __forceinline__ void combine_floats(const PairParams &p) {
    each_pair<T, T>(p, [&](T a, T b, bool &) {
        return p.kind == NEXTAFTER ? next_after(a, b) : from_f32<T>(combined(p.kind, to_f32(a), to_f32(b)));
    });
}

// Overflow wraps: what may is computed without a sign.
template <typename T, typename Unsigned> __device__ __forceinline__ T power(T base, T exponent) {
    if (is_negative(exponent)) {
        if (base == T(1)) return base;
        if (base == T(-1)) return (exponent & T(1)) != T(0) ? base : T(1);
        return T(0);
    }
    Unsigned product = 1, factor = Unsigned(base);
    for (Unsigned left = Unsigned(exponent); left != 0; left >>= 1) {
        if (left & 1) product = Unsigned(product * factor);
        factor = Unsigned(factor * factor);
    }
    return T(product);
}

// What is left of a by b; 0 and a fault where b is 0. The least number by -1 leaves nothing.
template <typename T> __device__ __forceinline__ T rest_of(T a, T b, bool &fault) {
    fault = b == T(0);
    return fault || (T(-1) < T(0) && b == T(-1)) ? T(0) : T(a % b);
}

template <typename T> __device__ __forceinline__ bool is_below(T rest, T b) {
    return rest != T(0) && is_negative(rest) != is_negative(b);
}

template <typename T, typename Unsigned>
__device__ __forceinline__ T combined_integers(u32 kind, T a, T b, bool &fault) {
    constexpr T BITS = T(8 * sizeof(T));
    switch (kind) {
    case POW: return power<T, Unsigned>(a, b);
    case MAXIMUM: return a > b ? a : b;
    case MINIMUM: return a < b ? a : b;
    case REMAINDER: {
        const T rest = rest_of(a, b, fault);
        return is_below(rest, b) ? T(rest + b) : rest;
    }
    case FMOD: return rest_of(a, b, fault);
    case FLOOR_DIVIDE: {
        const T rest = rest_of(a, b, fault);
        if (fault) return T(0);
        if (T(-1) < T(0) && b == T(-1)) return T(Unsigned(0) - Unsigned(a));
        return T(a / b - T(is_below(rest, b)));
    }
    case AND: return T(a & b);
    case OR: return T(a | b);
    case XOR: return T(a ^ b);
    case SHIFT_LEFT: return is_negative(b) || b >= BITS ? T(0) : T(Unsigned(a) << b);
    default:
        if (is_negative(b) || b >= BITS) return is_negative(a) ? T(-1) : T(0);
        return T(a >> b);
    }
}

template <typename T, typename Unsigned> __device__ __forceinline__ void combine_integers(const PairParams &p) {
    each_pair<T, T>(p, [&](T a, T b, bool &fault) { return combined_integers<T, Unsigned>(p.kind, a, b, fault); });
}

#define X(T, name)                                                                                                               \
    KERNEL(256, combine_##name, PairParams) { combine_floats<T>(p); }
EACH_FLOAT(X)
#undef X
KERNEL(256, combine_i64, PairParams) { combine_integers<i64, u64>(p); }
KERNEL(256, combine_i32, PairParams) { combine_integers<i32, u32>(p); }
KERNEL(256, combine_u8, PairParams) { combine_integers<u8, u8>(p); }
// Any byte but 0 is true.
KERNEL(256, combine_bool, PairParams) {
    each_pair<u8, u8>(p, [&](u8 from_a, u8 from_b, bool &) {
        const bool a = from_a != 0, b = from_b != 0;
        switch (p.kind) {
        case AND:
        case MINIMUM: return u8(a && b);
        case OR:
        case MAXIMUM: return u8(a || b);
        default: return u8(a != b);
        }
    });
}
