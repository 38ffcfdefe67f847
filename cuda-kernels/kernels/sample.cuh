// What a draw needs beside its kernels: the order of tokens, their weights, and a selection by radix. The rules are those of
// `graph/src/sample.rs`, whose results these are bit for bit.
#pragma once

#include "genie.cuh"

// Threads of every block here.
#define SAMPLE_THREADS 512
// Digits of a selection, and what they are counted in.
#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)

// A number whose order is that of logits; both zeros are one. NaN has none.
__device__ __forceinline__ u32 key_of(float logit) {
    const u32 bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// A token's place in the order by logit, largest first, then by id: greater is earlier. No two tokens have the same.
__device__ __forceinline__ u64 rank_of(u32 key, u32 token) { return u64(key) << 32 | u32(~token); }

// The settings of a row.
struct Setting {
    float temperature, top_p;
    i64 top_k;
    u64 seed, position;
};

// (logit - max) / temperature, each step rounded: it never grows where the logit does not.
__device__ __forceinline__ double exponent_of(float logit, float max, float temperature) {
    return __ddiv_rn(__dadd_rn(double(logit), -double(max)), double(temperature));
}

// Tokens at or below this have no weight, so they need not be looked at.
#define LEAST_EXPONENT (-23.0)

// Whether a token's exponent is surely too small, by f32 alone. It is wrong by parts in 2^23, and 24 is past 23 by more.
__device__ __forceinline__ bool is_far_below(float logit, float max, float temperature) {
    return max - logit > temperature * 24.0f;
}

// floor(2^32 e^x) for -23 < x <= 0.
__device__ __forceinline__ u64 weight_of(double x) {
    const i64 n = i64(__dadd_rn(__dmul_rn(x, 1.4426950408889634), -0.5));
    const double r = __dadd_rn(__dadd_rn(x, -__dmul_rn(double(n), __longlong_as_double(0x3FE62E42FEE00000LL))),
                               -__dmul_rn(double(n), __longlong_as_double(0x3DEA39EF35793C76LL)));
    // 1 / k!, each the f64 quotient.
    constexpr double INVERSE[14] = {1.0,         1.0,          1.0 / 2,       1.0 / 6,        1.0 / 24,
                                    1.0 / 120,   1.0 / 720,    1.0 / 5040,    1.0 / 40320,    1.0 / 362880,
                                    1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800};
    double sum = 0.0;
#pragma unroll
    for (int k = 13; k >= 0; k--) sum = __dadd_rn(__dmul_rn(sum, r), INVERSE[k]);
    const double e = __dmul_rn(sum, __longlong_as_double((1023 + n) << 52));
    return u64(__dmul_rn(e, 4294967296.0));
}

// A token's weight, or false if it cannot matter.
__device__ __forceinline__ bool weigh(float logit, float max, float temperature, u64 &weight) {
    // NaN and -inf fail the first comparison.
    if (!(logit > -INFINITY) || is_far_below(logit, max, temperature)) return false;
    const double x = exponent_of(logit, max, temperature);
    if (!(x > LEAST_EXPONENT)) return false;
    weight = weight_of(x);
    return true;
}

// Words 0 (low) and 1 (high) of Philox4x32-10 with counter `position` (Salmon et al. 2011).
__device__ __forceinline__ u64 philox_low(u64 seed, u64 position) {
    u32 k0 = u32(seed), k1 = u32(seed >> 32), c0 = u32(position), c1 = u32(position >> 32), c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 a = u64(0xD2511F53u) * c0, b = u64(0xCD9E8D57u) * c2;
        c0 = u32(b >> 32) ^ c1 ^ k0;
        c1 = u32(b);
        c2 = u32(a >> 32) ^ c3 ^ k1;
        c3 = u32(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return u64(c1) << 32 | c0;
}

// How many tokens have a digit, and the sum of their weights, in two words: shared memory adds no numbers of 64 bits.
struct Bins {
    u32 *counts, *low, *high;
};

__device__ __forceinline__ void clear(const Bins &bins) {
    for (u32 i = threadIdx.x; i < DIGITS; i += SAMPLE_THREADS) bins.counts[i] = bins.low[i] = bins.high[i] = 0;
}

__device__ __forceinline__ void add(const Bins &bins, u32 digit, u64 weight) {
    atomicAdd(bins.counts + digit, 1u);
    const u32 low = u32(weight), before = atomicAdd(bins.low + digit, low);
    const u32 carried = u32(weight >> 32) + (before + low < before);
    if (carried != 0) atomicAdd(bins.high + digit, carried);
}

__device__ __forceinline__ u64 weight_in(const Bins &bins, u32 digit) { return u64(bins.high[digit]) << 32 | bins.low[digit]; }

__device__ __forceinline__ u64 warp_sum_u64(u64 x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

// The sum over the block, in every thread. It begins with a barrier, so that `scratch` (a number a warp) may be used again and
// again.
__device__ __forceinline__ u64 sum_of_block(u64 x, u64 *scratch) {
    x = warp_sum_u64(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    u64 sum = 0;
#pragma unroll
    for (int warp = 0; warp < SAMPLE_THREADS / WARP; warp++) sum += scratch[warp];
    return sum;
}

// The sum over the threads before this one.
__device__ __forceinline__ u64 sum_before(u64 x, u64 *scratch) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u64 sum = x;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u64 other = __shfl_up_sync(FULL, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    u64 before = sum - x;
    for (u32 i = 0; i < warp; i++) before += scratch[i];
    return before;
}

// Where a selection ended.
struct Picked {
    u32 digit;
    // Tokens with it.
    u32 count;
    // What the digits before it sum to.
    u64 before;
};

// The greatest digit from which on upwards the bins sum to `wanted`, by weight or by number. All bins sum to at least that. Ends
// with a barrier.
__device__ __forceinline__ Picked pick(const Bins &bins, bool by_weight, u64 wanted, Picked *shared, u64 *scratch) {
    constexpr u32 EACH = DIGITS / SAMPLE_THREADS;
    u64 in[EACH], sum = 0;
    const u32 first = DIGITS - 1 - threadIdx.x * EACH;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        in[i] = by_weight ? weight_in(bins, first - i) : u64(bins.counts[first - i]);
        sum += in[i];
    }
    u64 before = sum_before(sum, scratch);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        if (before < wanted && wanted <= before + in[i]) *shared = Picked{first - i, bins.counts[first - i], before};
        before += in[i];
    }
    __syncthreads();
    const Picked picked = *shared;
    __syncthreads();
    return picked;
}
