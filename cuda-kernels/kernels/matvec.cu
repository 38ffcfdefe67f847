// Products of up to 8 rows with weights of the same 16-bit type, by matrix units: the columns of a fragment are rows of x, so that
// 8 rows cost what 1 does. How it goes: `matvec.cuh`.
#include "matvec_fragments.cuh"

template <typename T> constexpr u32 TYPE = TYPE_BF16;
template <> constexpr u32 TYPE<f16> = TYPE_F16;

template <typename T>
__device__ __forceinline__ void stage_rows(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, unsigned char *x) {
    row_statistics(p, TYPE<T>, statistics);
    __syncthreads();
    T *to = reinterpret_cast<T *>(x);
    each_element(
        p, TYPE<T>, lo, hi, statistics, [&](u32 row, u32 k, float value) { to[row * p.x_stride + k] = from_f32<T>(value); },
        [&](u32 row, u32 k, const float (&values)[8]) { put_eight(to + row * p.x_stride + k, values); });
}

// Weights `[n, k]`: 32 columns of y by 32 elements of k a step. Lane 4g + t has the elements 8t to 8t + 7 of rows g, g + 8, g + 16,
// g + 24. Which k stand where in a fragment is free, as long as it is so in both: these make two products of 16.
template <typename T> struct OutIn {
    static constexpr int TILE = 32, STEP = 32, STAGE = 2048, SUMS = 8, LEFT = 8;
    static constexpr bool SYNC = false;

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        k += 8 * (lane % 4);
        const auto row = [&](int i) { return n + lane / 4 + 8 * i; };
        fetch_packs<T>(
            slot, weight, p.aligned & ALIGNED_WEIGHT, lane, [&](int i) { return row(i) * p.k + k; },
            [&](int i) { return row(i) < p.n ? p.k - k : 0; });
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, unsigned char *x) {
        stage_rows<T>(p, lo, hi, statistics, x);
    }

    static __device__ __forceinline__ void multiply(const MatvecParams &p, float (&sums)[SUMS], const u8 *slot,
                                                    const unsigned char *x, i64, i64 k, i64 lo, i64, u32 lane) {
        uint4 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = *reinterpret_cast<const uint4 *>(slot + 512 * i + 16 * lane);
        const T *row = reinterpret_cast<const T *>(x) + min(lane / 4, p.rows - 1) * p.x_stride;
        const uint4 b = *reinterpret_cast<const uint4 *>(row + (k - lo) + 8 * (lane % 4));
        const u32 low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 a_low[4] = {w[2 * i].x, w[2 * i + 1].x, w[2 * i].y, w[2 * i + 1].y};
            const u32 a_high[4] = {w[2 * i].z, w[2 * i + 1].z, w[2 * i].w, w[2 * i + 1].w};
            mma_at<T, SUMS>(sums, 4 * i, a_low, low);
            mma_at<T, SUMS>(sums, 4 * i, a_high, high);
        }
    }

    static __device__ __forceinline__ void combine(float (&)[SUMS], u32) {}

    static __device__ __forceinline__ void place(int i, u32 lane, u32 &n, u32 &m) {
        place_in_fragment(i % 4, lane, n, m);
        n += 16 * (i / 4);
    }
};

// Weights `[k, n]`: 64 columns of y by 16 elements of k a step. Lane 4g + t has the columns 8g to 8g + 7 of rows 4t to 4t + 3. Of
// two neighbouring columns the first goes to row g of a fragment, the second to row g + 8.
template <typename T> struct InOut {
    static constexpr int TILE = 64, STEP = 16, STAGE = 2048, SUMS = 16, LEFT = 16;
    static constexpr bool SYNC = false;

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        n += 8 * (lane / 4);
        const auto row = [&](int i) { return k + 4 * (lane % 4) + i; };
        fetch_packs<T>(
            slot, weight, p.aligned & ALIGNED_WEIGHT, lane, [&](int i) { return row(i) * p.n + n; },
            [&](int i) { return row(i) < p.k ? p.n - n : 0; });
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, unsigned char *x) {
        stage_rows<T>(p, lo, hi, statistics, x);
    }

    static __device__ __forceinline__ void multiply(const MatvecParams &p, float (&sums)[SUMS], const u8 *slot,
                                                    const unsigned char *x, i64, i64 k, i64 lo, i64, u32 lane) {
        u32 w[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 row = *reinterpret_cast<const uint4 *>(slot + 512 * i + 16 * lane);
            w[i][0] = row.x, w[i][1] = row.y, w[i][2] = row.z, w[i][3] = row.w;
        }
        const T *row = reinterpret_cast<const T *>(x) + min(lane / 4, p.rows - 1) * p.x_stride;
        const uint2 pairs = *reinterpret_cast<const uint2 *>(row + (k - lo) + 4 * (lane % 4));
        const u32 b[2] = {pairs.x, pairs.y};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 a[4] = {__byte_perm(w[0][i], w[1][i], 0x5410), __byte_perm(w[0][i], w[1][i], 0x7632),
                              __byte_perm(w[2][i], w[3][i], 0x5410), __byte_perm(w[2][i], w[3][i], 0x7632)};
            mma_at<T, SUMS>(sums, 4 * i, a, b);
        }
    }

    static __device__ __forceinline__ void combine(float (&)[SUMS], u32) {}

    static __device__ __forceinline__ void place(int i, u32 lane, u32 &n, u32 &m) {
        n = 8 * (lane / 4) + 2 * (i / 4) + i % 4 / 2;
        m = 2 * (lane % 4) + i % 2;
    }
};

KERNEL(THREADS, matvec_f16_out_in, MatvecParams) { matvec<OutIn<f16>>(p); }
KERNEL(THREADS, matvec_f16_in_out, MatvecParams) { matvec<InOut<f16>>(p); }
KERNEL(THREADS, matvec_bf16_out_in, MatvecParams) { matvec<OutIn<bf16>>(p); }
KERNEL(THREADS, matvec_bf16_in_out, MatvecParams) { matvec<InOut<bf16>>(p); }
