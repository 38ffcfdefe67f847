// Tensors made from nothing: constants, sequences, random numbers, positions.
//
// Bound by memory that is written, but for the normal numbers, which are computed in f64 as every device does.
#include "convert.cuh"
#include "random.cuh"

struct FillParams {
    void *y;
    i64 bytes;
    // The bytes of one element, again and again.
    u64 pattern;
};

KERNEL(256, fill, FillParams) {
    u8 *y = static_cast<u8 *>(p.y);
    const u64 pattern = p.pattern;
    // Elements do not cross addresses that are multiples of 8: the pattern's phase is the address's.
    const i64 misaligned = i64((16 - u64(y) % 16) % 16);
    const i64 head = misaligned < p.bytes ? misaligned : p.bytes, packs = (p.bytes - head) / 16, tail = head + packs * 16;
    const Pack<u64, 2> pack = {{pattern, pattern}};
    for (i64 i = global_thread(); i < packs; i += global_threads()) store(reinterpret_cast<u64 *>(y + head) + 2 * i, pack);
    const i64 i = global_thread(), at = i < head ? i : tail + i - head;
    if (at < p.bytes) y[at] = u8(pattern >> (8 * ((u64(y) + u64(at)) % 8)));
}

struct ArangeParams {
    void *y;
    i64 count;
    double start, step;
    u32 type, padding;
};

template <typename T> __device__ __forceinline__ void arange_as(const ArangeParams &p) {
    for (i64 i = global_thread(); i < p.count; i += global_threads()) {
        // Not fused: every device rounds twice.
        const double value = __dadd_rn(p.start, __dmul_rn(double(i), p.step));
        if constexpr (IsFloat<T>::value) {
            static_cast<T *>(p.y)[i] = from_f32<T>(float(value));
        } else {
            static_cast<T *>(p.y)[i] = saturate<T>(value);
        }
    }
}

KERNEL(256, arange, ArangeParams) {
    switch (p.type) {
    case TYPE_F32: return arange_as<float>(p);
    case TYPE_F16: return arange_as<f16>(p);
    case TYPE_BF16: return arange_as<bf16>(p);
    case TYPE_I64: return arange_as<i64>(p);
    case TYPE_I32: return arange_as<i32>(p);
    case TYPE_U8: return arange_as<u8>(p);
    }
}

struct RandomParams {
    void *y;
    i64 count;
    u64 seed;
};

template <typename T, bool NORMAL> __device__ __forceinline__ void random(const RandomParams &p) {
    samples<T, NORMAL>(static_cast<T *>(p.y), p.count, p.seed, 0);
}

#define X(T, name)                                                                                                               \
    KERNEL(256, rand_##name, RandomParams) { random<T, false>(p); }                                                              \
    KERNEL(256, randn_##name, RandomParams) { random<T, true>(p); }
EACH_FLOAT(X)
#undef X

struct PositionsParams {
    const void *lens;
    i32 *y;
    i64 count;
    u32 steps, is_wide;
};

// y[b, s] = lens[b] + s.
KERNEL(256, positions, PositionsParams) {
    for (i64 i = global_thread(); i < p.count; i += global_threads()) {
        const i64 row = i / p.steps;
        const u32 len = p.is_wide ? u32(static_cast<const i64 *>(p.lens)[row]) : u32(static_cast<const i32 *>(p.lens)[row]);
        p.y[i] = i32(len + u32(i - row * p.steps));
    }
}
