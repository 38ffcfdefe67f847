// Products of up to 8 rows with weights of f32, or of a 16-bit type other than that which x is rounded to, by plain f32 arithmetic: the
// products of f32 are not cut to fewer bits. How it goes: `matvec.cuh`. For each weight there are 8 multiplications whatever the rows,
// which the memory leaves time for: an H200's multiprocessor gets 19 bytes a cycle and multiplies 128 times.
#include "matvec.cuh"

// Elements of the weight: f32, or of either 16-bit type, as `MatvecParams::weight_type` has it.
__device__ __forceinline__ float value_of(float x, u32) { return x; }
__device__ __forceinline__ float value_of(u16 x, u32 type) { return type == TYPE_F16 ? to_f32(f16{x}) : to_f32(bf16{x}); }

// Packs of four rows of the weight, as it is stored, at a column of it: a lane's are from `column` on.
template <typename W>
__device__ __forceinline__ void fetch_rows(u8 *slot, const void *weight, i64 row, i64 rows, i64 column, i64 columns, u32 lane,
                                           bool aligned) {
    fetch_packs<W>(slot, weight, aligned, lane, row * columns + column, columns,
                   [&](int i) { return row + i < rows ? columns - column : 0; });
}

template <typename W> __device__ __forceinline__ void load_slots(float (&w)[4][WIDE<W>], const u8 *slot, u32 lane, u32 type) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const Pack<W, WIDE<W>> pack = load<W, WIDE<W>>(reinterpret_cast<const W *>(slot + 512 * i + 16 * lane));
#pragma unroll
        for (int j = 0; j < WIDE<W>; j++) w[i][j] = value_of(pack.at[j], type);
    }
}

__device__ __forceinline__ void stage_floats(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
    row_statistics(p, statistics, scratch);
    __syncthreads();
    float *to = reinterpret_cast<float *>(x);
    each_element(
        p, p.as_type, lo, hi, statistics, [&](u32 row, u32 k, float value) { to[row * p.x_stride + k] = value; },
        [&](u32 row, u32 k, const float (&values)[8]) {
            float4 *at = reinterpret_cast<float4 *>(to + row * p.x_stride + k);
            at[0] = make_float4(values[0], values[1], values[2], values[3]);
            at[1] = make_float4(values[4], values[5], values[6], values[7]);
        });
}

// Weights `[n, k]`: 4 columns of y by 32 packs of 16 bytes. Each lane has sums over its own elements of k; in the end lane 8 * i + m
// gets the whole sum of column i and row m.
template <typename W> struct OutIn {
    static constexpr int TILE = 4, STEP = WARP * WIDE<W>, STAGE = 2048, SUMS = 32, LEFT = 1;
    static constexpr bool SYNC = false;

    typedef W Weight;

    __device__ __forceinline__ OutIn(const MatvecParams &, u32) {}

    static __device__ __forceinline__ i64 first(const MatvecParams &p, i64 n, i64 k, u32 lane) { return n * p.k + k + i64(lane) * WIDE<W>; }
    static __device__ __forceinline__ i64 stride(const MatvecParams &p) { return p.k; }
    static __device__ __forceinline__ i64 along(const MatvecParams &) { return 1; }

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        fetch_rows<W>(slot, weight, n, p.n, k + i64(lane) * WIDE<W>, p.k, lane, p.aligned & ALIGNED_WEIGHT);
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
        stage_floats(p, lo, hi, statistics, scratch, x);
    }

    static __device__ __forceinline__ void multiply(const MatvecParams &p, float (&sums)[SUMS], const u8 *slot,
                                                    const unsigned char *x, i64, u32 k, i64, i64, u32 lane) {
        float w[4][WIDE<W>];
        load_slots<W>(w, slot, lane, p.weight_type);
        const float *from = reinterpret_cast<const float *>(x) + k + lane * WIDE<W>;
#pragma unroll
        for (u32 m = 0; m < ROWS; m++) {
            const float *row = from + min(m, p.rows - 1) * p.x_stride;
#pragma unroll
            for (int four = 0; four < WIDE<W>; four += 4) {
                const Pack<float, 4> values = load<float, 4>(row + four);
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) sums[ROWS * i + m] = fmaf(w[i][four + j], values.at[j], sums[ROWS * i + m]);
                }
            }
        }
    }

    // In each step a lane gives away the half of its sums that its partner keeps.
    template <int HALF> static __device__ __forceinline__ void exchange(float (&sums)[SUMS], u32 lane) {
        const bool upper = lane & HALF;
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            const float given = upper ? sums[i] : sums[i + HALF], kept = upper ? sums[i + HALF] : sums[i];
            sums[i] = kept + __shfl_xor_sync(FULL, given, HALF);
        }
        if constexpr (HALF > 1) exchange<HALF / 2>(sums, lane);
    }

    static __device__ __forceinline__ void combine(float (&sums)[SUMS], u32 lane) { exchange<SUMS / 2>(sums, lane); }

    static __device__ __forceinline__ void place(int, u32 lane, u32 &n, u32 &m) {
        n = lane / ROWS;
        m = lane % ROWS;
    }
};

// Weights `[k, n]`: 32 packs of 16 bytes of columns of y by 4 elements of k.
template <typename W> struct InOut {
    static constexpr int TILE = WARP * WIDE<W>, STEP = 4, STAGE = 2048, SUMS = ROWS * WIDE<W>, LEFT = SUMS;
    static constexpr bool SYNC = false;

    typedef W Weight;

    __device__ __forceinline__ InOut(const MatvecParams &, u32) {}

    static __device__ __forceinline__ i64 first(const MatvecParams &p, i64 n, i64 k, u32 lane) { return k * p.n + n + i64(lane) * WIDE<W>; }
    static __device__ __forceinline__ i64 stride(const MatvecParams &p) { return p.n; }
    static __device__ __forceinline__ i64 along(const MatvecParams &p) { return p.n; }

    static __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, const void *weight, i64 n, i64 k, u32 lane) {
        fetch_rows<W>(slot, weight, k, p.k, n + i64(lane) * WIDE<W>, p.n, lane, p.aligned & ALIGNED_WEIGHT);
    }

    static __device__ __forceinline__ void stage_x(const MatvecParams &p, i64 lo, i64 hi, float2 *statistics, float *scratch, unsigned char *x) {
        stage_floats(p, lo, hi, statistics, scratch, x);
    }

    static __device__ __forceinline__ void multiply(const MatvecParams &p, float (&sums)[SUMS], const u8 *slot,
                                                    const unsigned char *x, i64, u32 k, i64, i64, u32 lane) {
        float w[4][WIDE<W>];
        load_slots<W>(w, slot, lane, p.weight_type);
        const float *from = reinterpret_cast<const float *>(x) + k;
#pragma unroll
        for (u32 m = 0; m < ROWS; m++) {
            const Pack<float, 4> values = load<float, 4>(from + min(m, p.rows - 1) * p.x_stride);
#pragma unroll
            for (int j = 0; j < WIDE<W>; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) sums[ROWS * j + m] = fmaf(w[i][j], values.at[i], sums[ROWS * j + m]);
            }
        }
    }

    static __device__ __forceinline__ void combine(float (&)[SUMS], u32) {}

    static __device__ __forceinline__ void place(int i, u32 lane, u32 &n, u32 &m) {
        n = lane * WIDE<W> + u32(i) / ROWS;
        m = u32(i) % ROWS;
    }
};

KERNEL(THREADS, matvec_scalar_f32_out_in, MatvecParams) { matvec<OutIn<float>>(p); }
KERNEL(THREADS, matvec_scalar_f32_in_out, MatvecParams) { matvec<InOut<float>>(p); }
KERNEL(THREADS, matvec_scalar_16_out_in, MatvecParams) { matvec<OutIn<u16>>(p); }
KERNEL(THREADS, matvec_scalar_16_in_out, MatvecParams) { matvec<InOut<u16>>(p); }
