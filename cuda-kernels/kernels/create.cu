// Tensors made from nothing: constants, sequences, random numbers, positions.
//
// Bound by memory that is written, but for the normal numbers, which are computed in f64 as every device does.
#include "convert.cuh"
#include "packs.cuh"

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

// Block `counter` of the stream `key` of Philox4x32-10 (Salmon et al., SC 2011), as `genie_graph::random::philox` has it.
__device__ __forceinline__ void philox(u64 key, u64 counter, u32 (&c)[4]) {
    u32 k0 = u32(key), k1 = u32(key >> 32);
    c[0] = u32(counter), c[1] = u32(counter >> 32), c[2] = 0, c[3] = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = u64(0xd2511f53u) * c[0], b = u64(0xcd9e8d57u) * c[2];
        c[0] = u32(b >> 32) ^ c[1] ^ k0, c[1] = u32(b);
        c[2] = u32(a >> 32) ^ c[3] ^ k1, c[3] = u32(a);
        k0 += 0x9e3779b9u, k1 += 0xbb67ae85u;
    }
}

__device__ __forceinline__ float uniform(u32 word) { return float(word >> 8) * (1.0f / 16777216.0f); }

// Box and Muller, in f64. The angle is 2 pi u1 rounded to f64, as other devices have it: sine and cosine of the exact angle, which
// need no long reduction, are turned by what rounding added.
__device__ __forceinline__ void normal(u32 w0, u32 w1, float &first, float &second) {
    const double tau = 6.283185307179586, tau_low = 2.4492935982947064e-16;
    const double u0 = uniform(w0), u1 = uniform(w1);
    const double radius = sqrt(-2.0 * log(1.0 - u0));
    double s, c;
    sincospi(2.0 * u1, &s, &c);
    const double added = -fma(tau, u1, -__dmul_rn(tau, u1)) - tau_low * u1;
    first = float(radius * (c - added * s));
    second = float(radius * (s + added * c));
}

template <typename T, bool NORMAL> __device__ __forceinline__ void random(const RandomParams &p) {
    T *y = static_cast<T *>(p.y);
    const bool aligned = is_aligned(y, sizeof(T) * 4);
    each_pack<4>(p.count, [=, &p](i64 at, i64 valid) {
        u32 words[4];
        philox(p.seed, u64(at) / 4, words);
        float value[4];
        if constexpr (NORMAL) {
            normal(words[0], words[1], value[0], value[1]);
            normal(words[2], words[3], value[2], value[3]);
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) value[j] = uniform(words[j]);
        }
        store_some(y + at, narrow<T>(value), valid, aligned);
    });
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
