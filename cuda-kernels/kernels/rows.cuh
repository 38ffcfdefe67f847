// Rows of x in shared memory, for `matvec.cuh`: on the way there they may be normalised, each by itself.
#pragma once

#include "epilogue.cuh"

#define THREADS 256
#define WARPS (THREADS / WARP)
// Rows of x that one launch takes.
#define ROWS 8

// Codes of `launch::epilogue::Prologue`.
enum Norm : u32 { NORM_NONE, NORM_RMS, NORM_LAYER };

// What `MatvecParams::aligned` has a bit for: packs of elements start at multiples of 16 bytes in every row; and that no kernel
// writes the weights.
enum Aligned : u32 { ALIGNED_X = 1, ALIGNED_NORM = 2, ALIGNED_WEIGHT = 4, CONSTANT_WEIGHT = 8 };

struct MatvecParams {
    const void *x, *weight, *gate;
    void *y;
    float *partial;
    u32 *counters;
    Epilogue epilogue;
    const void *gate_bias, *norm_weight, *norm_bias;
    i64 n, k;
    u32 rows, chunk, x_stride, stages;
    u32 x_type, norm, norm_type, aligned;
    float eps;
    u32 weight_type;
    // `as_type` is what x's elements are rounded to before they are multiplied.
    u32 as_type, y_type;
    // Of a later product's weight, what is to be in the second-level cache when its turn comes: `ahead_rows` rows of `ahead_bytes` bytes
    // each, `ahead_pitch` bytes apart. All are multiples of 16; without rows there is none.
    const u8 *ahead;
    i64 ahead_pitch;
    u32 ahead_rows, ahead_bytes;
};

// Eight elements as they are stored: 16 bytes of each 16-bit type, 32 of f32.
struct Eight {
    uint4 low, high;
};

// Element `index` on, which begins a multiple of 16 bytes.
__device__ __forceinline__ Eight load_eight(const void *from, i64 index, u32 type) {
    const uint4 *at = reinterpret_cast<const uint4 *>(static_cast<const u8 *>(from) + index * (type == TYPE_F32 ? 4 : 2));
    Eight eight = {*at, make_uint4(0, 0, 0, 0)};
    if (type == TYPE_F32) eight.high = at[1];
    return eight;
}

__device__ __forceinline__ void unpack(const Eight &eight, u32 type, float (&to)[8]) {
    const u32 words[8] = {eight.low.x,  eight.low.y,  eight.low.z,  eight.low.w,
                          eight.high.x, eight.high.y, eight.high.z, eight.high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const u16 half = u16(words[i / 2] >> (16 * (i % 2)));
        const float narrow = type == TYPE_F16 ? to_f32(f16{half}) : to_f32(bf16{half});
        to[i] = type == TYPE_F32 ? __uint_as_float(words[i]) : narrow;
    }
}

// A value as an element of the type holds it.
__device__ __forceinline__ float rounded(float x, u32 type) {
    if (type == TYPE_F32) return x;
    return type == TYPE_F16 ? to_f32(from_f32<f16>(x)) : to_f32(from_f32<bf16>(x));
}

// The sums over the block of a number a thread for each row, in every thread: of warps first, then of these in their order. `scratch` holds
// ROWS * WARPS floats, which nobody has read since the last barrier.
__device__ __forceinline__ void sum_rows(float (&sums)[ROWS], u32 rows, float *scratch) {
#pragma unroll
    for (u32 row = 0; row < ROWS; row++) {
        if (row >= rows) break;
        const float sum = warp_sum(sums[row]);
        if (threadIdx.x % WARP == 0) scratch[row * WARPS + threadIdx.x / WARP] = sum;
    }
    __syncthreads();
#pragma unroll
    for (u32 row = 0; row < ROWS; row++) {
        if (row >= rows) break;
        sums[row] = 0.0f;
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp += 4) {
            const Pack<float, 4> four = load<float, 4>(scratch + row * WARPS + warp);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[row] += four.at[i];
        }
    }
}

// Mean and reciprocal deviation of each row, as `norm` has it, by all of the block, since x waits for them: most rows have no more
// than a pack for each thread. A row's sums do not depend on the others, nor on where it lies. The results are there after the next
// barrier. `scratch` holds 2 * ROWS * WARPS floats.
__device__ __forceinline__ void row_statistics(const MatvecParams &p, float2 *statistics, float *scratch) {
    if (p.norm == NORM_NONE) return;
    const u32 type = p.x_type;
    float means[ROWS] = {}, sums[ROWS];
    // The second turn finds the rows in the L1 cache.
#pragma unroll 1
    for (u32 turn = p.norm == NORM_LAYER ? 0 : 1; turn < 2; turn++) {
        const auto add = [&](u32 row, float x) { sums[row] = turn == 0 ? sums[row] + x : fmaf(x - means[row], x - means[row], sums[row]); };
#pragma unroll
        for (u32 row = 0; row < ROWS; row++) sums[row] = 0.0f;
        if (p.aligned & ALIGNED_X) {
#pragma unroll 1
            for (i64 k = 8 * threadIdx.x; k < p.k; k += 8 * THREADS) {
                // Loads of four rows are under way at a time.
#pragma unroll
                for (u32 from = 0; from < ROWS; from += 4) {
                    if (from >= p.rows) break;
                    Eight raw[4];
#pragma unroll
                    for (u32 r = 0; r < 4; r++) raw[r] = load_eight(p.x, min(from + r, p.rows - 1) * p.k + k, type);
#pragma unroll
                    for (u32 r = 0; r < 4; r++) {
                        if (from + r >= p.rows) break;
                        float values[8];
                        unpack(raw[r], type, values);
#pragma unroll
                        for (int i = 0; i < 8; i++) add(from + r, values[i]);
                    }
                }
            }
        } else {
#pragma unroll 1
            for (i64 k = threadIdx.x; k < p.k; k += THREADS) {
#pragma unroll
                for (u32 row = 0; row < ROWS; row++) {
                    if (row < p.rows) add(row, float_at(p.x, row * p.k + k, type));
                }
            }
        }
        sum_rows(sums, p.rows, scratch + turn * ROWS * WARPS);
#pragma unroll
        for (u32 row = 0; row < ROWS; row++) {
            sums[row] /= float(p.k);
            if (turn == 0) means[row] = sums[row];
        }
    }
    // Registers have no index: each is chosen.
    float mean = means[0], variance = sums[0];
#pragma unroll
    for (u32 row = 1; row < ROWS; row++) {
        if (threadIdx.x == row) mean = means[row], variance = sums[row];
    }
    if (threadIdx.x < p.rows) statistics[threadIdx.x] = make_float2(mean, 1.0f / sqrtf(variance + p.eps));
}

__device__ __forceinline__ float normal(float x, float2 row, float scale, float shift) {
    return fmaf((x - row.x) * row.y, scale, shift);
}

// Gives the rows' elements from `lo` to `hi`, normalised and rounded to the type `as`, then zeros up to `chunk`: `put(row, k, element)`
// and `put_eight(row, k, elements)`, where k counts from `lo`. Loads of four rows are under way at a time. Who stores them as
// 16 bits anyway gives TYPE_F32 for `as`.
template <typename Put, typename PutEight>
__device__ __forceinline__ void each_element(const MatvecParams &p, u32 as, i64 lo, i64 hi, const float2 *statistics, Put put,
                                             PutEight put_eight) {
    const u32 type = p.x_type;
    const bool packs = (p.aligned & (ALIGNED_X | ALIGNED_NORM)) == (ALIGNED_X | ALIGNED_NORM);
    const u32 count = u32(hi - lo), packed = packs ? count : 0;
#pragma unroll 1
    for (u32 k = 8 * threadIdx.x; k < packed; k += 8 * THREADS) {
        float scale[8] = {}, shift[8] = {};
        if (p.norm != NORM_NONE) unpack(load_eight(p.norm_weight, lo + k, p.norm_type), p.norm_type, scale);
        if (p.norm_bias) unpack(load_eight(p.norm_bias, lo + k, p.norm_type), p.norm_type, shift);
#pragma unroll 1
        for (u32 from = 0; from < p.rows; from += 4) {
            Eight raw[4];
#pragma unroll
            for (u32 r = 0; r < 4; r++) raw[r] = load_eight(p.x, min(from + r, p.rows - 1) * p.k + lo + k, type);
#pragma unroll
            for (u32 r = 0; r < 4; r++) {
                if (from + r >= p.rows) continue;
                float values[8];
                unpack(raw[r], type, values);
                if (p.norm != NORM_NONE) {
#pragma unroll
                    for (int i = 0; i < 8; i++) values[i] = normal(values[i], statistics[from + r], scale[i], shift[i]);
                }
#pragma unroll
                for (int i = 0; i < 8; i++) values[i] = rounded(values[i], as);
                put_eight(from + r, k, values);
            }
        }
    }
    // What is not aligned, and the zeros.
#pragma unroll 1
    for (u32 row = 0; row < p.rows; row++) {
#pragma unroll 1
        for (u32 k = packed + threadIdx.x; k < p.chunk; k += THREADS) {
            float value = k < count ? float_at(p.x, row * p.k + lo + k, type) : 0.0f;
            if (p.norm != NORM_NONE && k < count) {
                const float shift = p.norm_bias ? float_at(p.norm_bias, lo + k, p.norm_type) : 0.0f;
                value = normal(value, statistics[row], float_at(p.norm_weight, lo + k, p.norm_type), shift);
            }
            put(row, k, rounded(value, as));
        }
    }
}
