// Random numbers by a generator without a state: any element can be computed by itself.
#pragma once

#include "packs.cuh"

// Block `counter` of the stream `key` of Philox4x32-10 (Salmon et al., SC 2011), as `genie_graph::random::philox` has it.
// Here `counter` is the sum of `start` and `block`, which 64 bits may not hold.
__device__ __forceinline__ void philox(u64 key, u64 start, u64 block, u32 (&c)[4]) {
    const u64 counter = start + block;
    u32 k0 = u32(key), k1 = u32(key >> 32);
    c[0] = u32(counter), c[1] = u32(counter >> 32), c[2] = counter < start, c[3] = 0;
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

// The first `count` samples of the stream `key` that begins with block `start`.
template <typename T, bool NORMAL> __device__ __forceinline__ void samples(T *y, i64 count, u64 key, u64 start) {
    const bool aligned = is_aligned(y, sizeof(T) * 4);
    each_pack<4>(count, [=](i64 at, i64 valid) {
        u32 words[4];
        philox(key, start, u64(at) / 4, words);
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
