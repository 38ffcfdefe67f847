// Products of up to 8 rows with weights of the 16-bit type that x has, or is rounded to, by matrix units: the columns of a fragment are
// rows of x, so that 8 rows cost what 1 does. How it goes: `matvec.cuh`.
#include "matvec_fragments.cuh"

template <typename T>
__device__ __forceinline__ void stage_rows(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
    row_statistics(p, statistics, scratch);
    __syncthreads();
    T *to = reinterpret_cast<T *>(x);
    each_element(
        p, TYPE_F32, lo, hi, statistics, [&](u32 row, u32 k, float value) { to[row * p.x_stride + k] = from_f32<T>(value); },
        [&](u32 row, u32 k, const float (&values)[8]) { put_eight(to + row * p.x_stride + k, values); });
}

// Weights `[n, k]`: 32 columns of y by 32 elements of k a step. Lane 4g + t has the elements 8t to 8t + 7 of rows g, g + 8, g + 16,
// g + 24. Which k stand where in a fragment is free, as long as it is so in both: these make two products of 16.
template <typename T> struct OutIn {
    static constexpr int TILE = 32, STEP = 32, STAGE = 2048, SUMS = 8, LEFT = 8;
    static constexpr bool SYNC = false;

    typedef T Weight;
    // Elements of x in front of this lane's.
    u32 before;

    __device__ __forceinline__ OutIn(const MatvecParams &p, u32 lane)
        : before(min(lane / 4, p.rows - 1) * p.x_stride + 8 * (lane % 4)) {}

    static __device__ __forceinline__ i64 first(const MatvecParams &p, i64 n, i64 k, u32 lane) {
        return (n + lane / 4) * p.k + k + 8 * (lane % 4);
    }
    static __device__ __forceinline__ i64 stride(const MatvecParams &p) { return 8 * p.k; }
    static __device__ __forceinline__ i64 along(const MatvecParams &) { return 1; }

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        const i64 row = n + lane / 4, valid = p.k - k - 8 * (lane % 4);
        fetch_packs<T>(slot, weight, p.aligned & ALIGNED_WEIGHT, lane, first(p, n, k, lane), stride(p),
                       [&](int i) { return row + 8 * i < p.n ? valid : 0; });
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
        stage_rows<T>(p, lo, hi, statistics, scratch, x);
    }

    __device__ __forceinline__ void multiply(const MatvecParams &, float (&sums)[SUMS], const u8 *slot, const unsigned char *x, i64,
                                             u32 k, i64, i64, u32 lane) const {
        uint4 w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = *reinterpret_cast<const uint4 *>(slot + 512 * i + 16 * lane);
        const uint4 b = *reinterpret_cast<const uint4 *>(reinterpret_cast<const T *>(x) + before + k);
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

    typedef T Weight;
    // Elements of x in front of this lane's.
    u32 before;

    __device__ __forceinline__ InOut(const MatvecParams &p, u32 lane)
        : before(min(lane / 4, p.rows - 1) * p.x_stride + 4 * (lane % 4)) {}

    static __device__ __forceinline__ i64 first(const MatvecParams &p, i64 n, i64 k, u32 lane) {
        return (k + 4 * (lane % 4)) * p.n + n + 8 * (lane / 4);
    }
    static __device__ __forceinline__ i64 stride(const MatvecParams &p) { return p.n; }
    static __device__ __forceinline__ i64 along(const MatvecParams &p) { return p.n; }

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        const i64 row = k + 4 * (lane % 4), valid = p.n - n - 8 * (lane / 4);
        fetch_packs<T>(slot, weight, p.aligned & ALIGNED_WEIGHT, lane, first(p, n, k, lane), stride(p),
                       [&](int i) { return row + i < p.k ? valid : 0; });
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
        stage_rows<T>(p, lo, hi, statistics, scratch, x);
    }

    __device__ __forceinline__ void multiply(const MatvecParams &, float (&sums)[SUMS], const u8 *slot, const unsigned char *x, i64,
                                             u32 k, i64, i64, u32 lane) const {
        u32 w[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 row = *reinterpret_cast<const uint4 *>(slot + 512 * i + 16 * lane);
            w[i][0] = row.x, w[i][1] = row.y, w[i][2] = row.z, w[i][3] = row.w;
        }
        const uint2 pairs = *reinterpret_cast<const uint2 *>(reinterpret_cast<const T *>(x) + before + k);
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

KERNEL(BOUNDS, matvec_f16_out_in, MatvecParams) { matvec<OutIn<f16>>(p); }
KERNEL(BOUNDS, matvec_f16_in_out, MatvecParams) { matvec<InOut<f16>>(p); }
KERNEL(BOUNDS, matvec_bf16_out_in, MatvecParams) { matvec<OutIn<bf16>>(p); }
KERNEL(BOUNDS, matvec_bf16_in_out, MatvecParams) { matvec<InOut<bf16>>(p); }
