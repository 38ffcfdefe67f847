// Comparisons of two elements of one type, broadcast. The codes of kinds are those of `genie_graph::CompareKind`.
#include "pairs.cuh"

enum Kind : u32 { EQ, NE, LT, LE, GT, GE };

__device__ __forceinline__ float number(float x) { return x; }
__device__ __forceinline__ float number(f16 x) { return to_f32(x); }
__device__ __forceinline__ float number(bf16 x) { return to_f32(x); }
__device__ __forceinline__ i64 number(i64 x) { return x; }
__device__ __forceinline__ i32 number(i32 x) { return x; }
__device__ __forceinline__ u8 number(u8 x) { return x; }
// Any byte but 0 is true.
__device__ __forceinline__ bool number(boolean x) { return x.byte != 0; }

template <typename T> __device__ __forceinline__ void compare(const PairParams &p) {
    each_pair<T, u8>(p, [&](T from_a, T from_b, bool &) {
        const auto a = number(from_a), b = number(from_b);
        switch (p.kind) {
        case EQ: return u8(a == b);
        case NE: return u8(a != b);
        case LT: return u8(a < b);
        case LE: return u8(a <= b);
        case GT: return u8(a > b);
        default: return u8(a >= b);
        }
    });
}

#define X(T, name)                                                                                                               \
    KERNEL(256, compare_##name, PairParams) { compare<T>(p); }
EACH_TYPE(X)
#undef X
