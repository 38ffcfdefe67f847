// Sum, difference, product and quotient of two tensors, broadcast the way NumPy does.
//
// Bound by memory: two reads and a write an element. Where the innermost dimension of y is whole packs of 16 bytes, and each operand
// either runs with it or repeats one element along it, a thread takes a pack: that covers equal shapes, scalars, rows and channels.
// Else it takes four elements that are as far apart as the grid is wide, so that a warp's addresses lie side by side.
#include "packs.cuh"
#include "strided.cuh"

struct BinaryParams {
    const void *a, *b;
    void *y;
    u64 *fault;
    i64 count;
    // Of a, then of b. Where a thread takes packs, dimension 0 counts packs.
    i64 strides[2][MOST_DIMS];
    Dims dims;
    u32 kind, mode;
};

enum Kind : u32 { ADD, SUB, MUL, DIV };
// How operands are read: in packs; a or b repeats along the pack.
enum Mode : u32 { PACKED = 1, SPLAT_A = 2, SPLAT_B = 4 };

// One bit a faulty element: a quotient by zero, which is 0.
template <typename T, int N, typename F>
__device__ __forceinline__ u32 each_of(const Pack<T, N> &a, const Pack<T, N> &b, Pack<T, N> &y, F function) {
    u32 faults = 0;
#pragma unroll
    for (int j = 0; j < N; j++) {
        bool fault = false;
        y.at[j] = function(a.at[j], b.at[j], fault);
        faults |= u32(fault) << j;
    }
    return faults;
}

template <typename T, int N>
__device__ __forceinline__ u32 combine(u32 kind, const Pack<T, N> &a, const Pack<T, N> &b, Pack<T, N> &y) {
    const auto floats = [&](auto function) {
        return each_of(a, b, y, [=](T a, T b, bool &) { return from_f32<T>(function(to_f32(a), to_f32(b))); });
    };
    switch (kind) {
    case ADD: return floats([](float a, float b) { return a + b; });
    case SUB: return floats([](float a, float b) { return a - b; });
    case MUL: return floats([](float a, float b) { return a * b; });
    default: return floats([](float a, float b) { return a / b; });
    }
}

// Integers wrap: what may overflow is computed without a sign.
template <typename T, typename Unsigned, int N>
__device__ __forceinline__ u32 combine_integers(u32 kind, const Pack<T, N> &a, const Pack<T, N> &b, Pack<T, N> &y) {
    switch (kind) {
    case ADD: return each_of(a, b, y, [](T a, T b, bool &) { return T(Unsigned(a) + Unsigned(b)); });
    case SUB: return each_of(a, b, y, [](T a, T b, bool &) { return T(Unsigned(a) - Unsigned(b)); });
    case MUL: return each_of(a, b, y, [](T a, T b, bool &) { return T(Unsigned(a) * Unsigned(b)); });
    default:
        return each_of(a, b, y, [](T a, T b, bool &fault) {
            fault = b == 0;
            if (fault) return T(0);
            // The least number has no negative.
            return T(-1) < T(0) && b == T(-1) ? T(Unsigned(0) - Unsigned(a)) : T(a / b);
        });
    }
}
template <int N>
__device__ __forceinline__ u32 combine(u32 kind, const Pack<i64, N> &a, const Pack<i64, N> &b, Pack<i64, N> &y) {
    return combine_integers<i64, u64>(kind, a, b, y);
}
template <int N>
__device__ __forceinline__ u32 combine(u32 kind, const Pack<i32, N> &a, const Pack<i32, N> &b, Pack<i32, N> &y) {
    return combine_integers<i32, u32>(kind, a, b, y);
}
template <int N> __device__ __forceinline__ u32 combine(u32 kind, const Pack<u8, N> &a, const Pack<u8, N> &b, Pack<u8, N> &y) {
    return combine_integers<u8, u8>(kind, a, b, y);
}

template <typename T, int N> __device__ __forceinline__ Pack<T, N> load_or_splat(const T *from, i64 valid, bool splat) {
    if (!splat) return load_some<T, N>(from, valid, true);
    Pack<T, N> pack;
    const T value = *from;
#pragma unroll
    for (int j = 0; j < N; j++) pack.at[j] = value;
    return pack;
}

template <typename T> __device__ __forceinline__ void binary_packed(const BinaryParams &p) {
    constexpr int N = WIDE<T>;
    each_pack<N>(p.count, [&](i64 at, i64 valid) {
        i64 offset[2] = {0, 0};
        locate(p.dims, p.strides, u64(at) / N, offset);
        const Pack<T, N> a = load_or_splat<T, N>(static_cast<const T *>(p.a) + offset[0], valid, p.mode & SPLAT_A);
        const Pack<T, N> b = load_or_splat<T, N>(static_cast<const T *>(p.b) + offset[1], valid, p.mode & SPLAT_B);
        Pack<T, N> y;
        u32 faults = combine(p.kind, a, b, y);
        if (valid < N) faults &= (1u << valid) - 1;
        store_some(static_cast<T *>(p.y) + at, y, valid, true);
        if (faults) atomicMin(p.fault, u64(at) + u64(__ffs(int(faults)) - 1));
    });
}

template <typename T> __device__ __forceinline__ void binary_apart(const BinaryParams &p) {
    constexpr int N = 4;
    const i64 step = global_threads();
    for (i64 first = global_thread(); first < p.count; first += N * step) {
        Pack<T, N> a, b, y;
        u32 there = 0;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const i64 at = first + j * step;
            a.at[j] = b.at[j] = T{};
            if (at >= p.count) continue;
            there |= 1u << j;
            i64 offset[2] = {0, 0};
            locate(p.dims, p.strides, u64(at), offset);
            a.at[j] = static_cast<const T *>(p.a)[offset[0]];
            b.at[j] = static_cast<const T *>(p.b)[offset[1]];
        }
        const u32 faults = combine(p.kind, a, b, y) & there;
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (there >> j & 1) static_cast<T *>(p.y)[first + j * step] = y.at[j];
        }
        if (faults) atomicMin(p.fault, u64(first + (__ffs(int(faults)) - 1) * step));
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, binary_##name, BinaryParams) { p.mode & PACKED ? binary_packed<T>(p) : binary_apart<T>(p); }
EACH_FLOAT(X)
EACH_INTEGER(X)
#undef X
