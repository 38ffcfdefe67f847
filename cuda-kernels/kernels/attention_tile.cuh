// A warp's share of attention on matrix units: 16 * M queries against tiles of KEYS keys, with a running maximum and sum
// (FlashAttention-2, Dao 2023).
//
// Rows of shared memory are 16 bytes longer than they need be, an odd number of 16-byte units, so that the eight rows of each
// matrix lie in different banks. Scores are in units of log2(e): weights are powers of 2.
#pragma once

#include "async.cuh"
#include "attention.cuh"
#include "matrix.cuh"

template <int DIM> constexpr int TILE_STRIDE = DIM + 8;

// Starts to copy `ROWS` keys or values to shared memory by threads `me` of `threads`; zeros where there are none.
template <typename T, int DIM, int ROWS>
__device__ __forceinline__ void copy_tile(T *to, const Rows<T> &from, i32 head_dim, int me, int threads) {
    constexpr int PACKS = DIM / 8;
#pragma unroll 4
    for (int i = me; i < ROWS * PACKS; i += threads) {
        const int row = i / PACKS, d = i % PACKS * 8;
        const bool there = row < from.rows && d < head_dim;
        cp_async_16(to + row * TILE_STRIDE<DIM> + d, from.at + (there ? row * from.stride + d : 0), there ? 16 : 0);
    }
}

// Waits until this thread's oldest copy of those that keep `slots` pieces of shared memory filled has arrived.
__device__ __forceinline__ void wait_for_slot(u32 slots) {
    if (slots >= 4) {
        cp_async_wait<2>();
    } else if (slots == 3) {
        cp_async_wait<1>();
    } else {
        cp_async_wait<0>();
    }
}

template <typename T> __device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<T>(d, a, b); }

#if !defined(GENIE_HOST) && __CUDA_ARCH__ < 800
// bf16 has no matrix unit here, and its replacement is long: it is there once.
__device__ __noinline__ float4 multiply_bf16(float4 d, uint4 a, uint2 b) {
    float sums[4] = {d.x, d.y, d.z, d.w};
    mma<bf16>(sums, {a.x, a.y, a.z, a.w}, {b.x, b.y});
    return make_float4(sums[0], sums[1], sums[2], sums[3]);
}
template <> __device__ __forceinline__ void multiply<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const float4 sums =
        multiply_bf16(make_float4(d[0], d[1], d[2], d[3]), make_uint4(a[0], a[1], a[2], a[3]), make_uint2(b[0], b[1]));
    d[0] = sums.x, d[1] = sums.y, d[2] = sums.z, d[3] = sums.w;
}
#endif

template <typename T> constexpr u16 EXPONENT = 0x7f80;
template <> constexpr u16 EXPONENT<f16> = 0x7c00;

template <typename T> __device__ __forceinline__ bool is_finite_bits(u16 bits) { return (bits & EXPONENT<T>) != EXPONENT<T>; }

template <typename T, int DIM, int M, int KEYS> struct WarpTile {
    // Fragments as in `matrix.cuh`. Row 16 * m + 8 * h + lane / 4 has acc[m][..][2 * h] and the next, maxima[m][h], and in `totals`
    // this lane's part of its sum.
    float acc[M][DIM / 8][4];
    float maxima[M][2], totals[M][2];
    // How many keys each row sees.
    i32 seen[M][2];
    u32 weights[M][KEYS / 16][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) acc[m][n][i] = 0.0f;
            }
#pragma unroll
            for (int h = 0; h < 2; h++) maxima[m][h] = -INFINITY, totals[m][h] = 0.0f;
        }
    }

    // Weights of the keys from number `first` on, which lie at `k`, for the queries at `q`.
    __device__ __forceinline__ void weigh(const T *q, const T *k, i32 first, bool masked, float scale) {
        constexpr int STRIDE = TILE_STRIDE<DIM>;
        const int lane = threadIdx.x % WARP;
        // Matrices of a: rows + 0, + 8, + 0, + 8; columns + 0, + 0, + 8, + 8. Of b: columns, that is keys, + 0, + 0, + 8, + 8.
        const T *const my_q = q + (lane % 16) * STRIDE + lane / 16 * 8;
        const T *const my_k = k + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
        float s[M][KEYS / 8][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
        }
#pragma unroll 2
        for (int d = 0; d < DIM; d += 16) {
            u32 a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) ldmatrix_x4(a[m], my_q + 16 * m * STRIDE + d);
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                u32 b[4];
                ldmatrix_x4(b, my_k + 16 * n * STRIDE + d);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    multiply<T>(s[m][2 * n], a[m], {b[0], b[1]});
                    multiply<T>(s[m][2 * n + 1], a[m], {b[2], b[3]});
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][n][i] *= scale;
            }
            if (masked) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (first + 8 * n + 2 * (lane % 4) + i % 2 >= seen[m][i / 2]) s[m][n][i] = -INFINITY;
                    }
                }
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float max = maxima[m][h];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) max = fmaxf(max, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
                max = fmaxf(max, __shfl_xor_sync(FULL, max, 1));
                max = fmaxf(max, __shfl_xor_sync(FULL, max, 2));
                const float base = reference(max), fade = power_of_2(maxima[m][h] - base);
                maxima[m][h] = max;
                float sum = 0.0f;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                    for (int i = 2 * h; i < 2 * h + 2; i++) {
                        s[m][n][i] = power_of_2(s[m][n][i] - base);
                        sum += s[m][n][i];
                    }
                }
                totals[m][h] = totals[m][h] * fade + sum;
#pragma unroll
                for (int n = 0; n < DIM / 8; n++) acc[m][n][2 * h] *= fade, acc[m][n][2 * h + 1] *= fade;
            }
            // Sums as they leave the matrix unit are what it takes as a.
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    weights[m][n][i] = pack_pair<T>(s[m][2 * n + i / 2][i % 2 * 2], s[m][2 * n + i / 2][i % 2 * 2 + 1]);
                }
            }
        }
    }

    // Adds the values at `v`, each times its weight.
    __device__ __forceinline__ void add(const T *v) {
        constexpr int STRIDE = TILE_STRIDE<DIM>;
        const int lane = threadIdx.x % WARP;
        // Matrices: rows, that is keys, + 0, + 8, + 0, + 8; columns + 0, + 0, + 8, + 8.
        const T *const my_v = v + (lane % 16) * STRIDE + lane / 16 * 8;
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
            for (int d = 0; d < DIM; d += 16) {
                u32 b[4];
                ldmatrix_x4_transposed(b, my_v + 16 * n * STRIDE + d);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    multiply<T>(acc[m][d / 8], weights[m][n], {b[0], b[1]});
                    multiply<T>(acc[m][d / 8 + 1], weights[m][n], {b[2], b[3]});
                }
            }
        }
    }

    // Whether any of the values at `v` is infinite or NaN, as far as this thread, `me` of `threads`, looks. A row that does not see
    // such a value gives it the weight zero, which would not hide it.
    static __device__ __forceinline__ bool has_strange(const T *v, int me, int threads) {
        bool strange = false;
#pragma unroll 1
        for (int i = me; i < KEYS * DIM / 2; i += threads) {
            const u32 pair = *reinterpret_cast<const u32 *>(v + i / (DIM / 2) * TILE_STRIDE<DIM> + i % (DIM / 2) * 2);
            strange |= !is_finite_bits<T>(u16(pair)) || !is_finite_bits<T>(u16(pair >> 16));
        }
        return strange;
    }

    // Adds the infinities and NaNs at `v` to the rows that see them.
    __device__ __forceinline__ void add_strange(const T *v, i32 first) {
        const int lane = threadIdx.x % WARP;
#pragma unroll 1
        for (int key = 0; key < KEYS; key++) {
            const T *const row = v + key * TILE_STRIDE<DIM> + 2 * (lane % 4);
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                const u32 pair = *reinterpret_cast<const u32 *>(row + 8 * n);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u16 bits = u16(pair >> (16 * (i % 2)));
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        if (!is_finite_bits<T>(bits) && first + key < seen[m][i / 2]) acc[m][n][i] += to_f32(T{bits});
                    }
                }
            }
        }
    }

    // Makes zeros of them.
    static __device__ __forceinline__ void remove_strange(T *v, int me, int threads) {
#pragma unroll 1
        for (int i = me; i < KEYS * DIM; i += threads) {
            T &value = v[i / DIM * TILE_STRIDE<DIM> + i % DIM];
            if (!is_finite_bits<T>(value.bits)) value.bits = 0;
        }
    }

    // A row's whole sum, in each of its four lanes.
    __device__ __forceinline__ float total(int m, int h) const {
        float sum = totals[m][h];
        sum += __shfl_xor_sync(FULL, sum, 1);
        return sum + __shfl_xor_sync(FULL, sum, 2);
    }
};
