// Products of many rows of f32 by plain f32 arithmetic: the products are not cut to fewer bits. b may be of any format: its
// elements become f32 on their way to shared memory.
//
// Arithmetic bounds it: each thread has 8 x 4 sums, for which it reads 48 bytes of shared memory and multiplies 32 times. Tiles of
// 64 by 64 go through shared memory in steps of 32 elements of k, twice: while one is multiplied, the next is loaded to registers.
#include "gemm.cuh"

#define TILE 64
#define THREADS 128
// Four elements more, so that what is stored down a column goes to different banks.
#define ROW (TILE + 4)

template <bool IN_OUT> __device__ __forceinline__ void gemm_scalar(const GemmParams &p) {
    SHARED(float, left, 2 * DEPTH * ROW);
    SHARED(float, right, 2 * DEPTH * ROW);
    const Place place = Place::of_block<TILE, TILE>(p);
    const u32 across = threadIdx.x % 16, down = threadIdx.x / 16;
    const float *a = static_cast<const float *>(p.a) + place.matrix * p.a_stride;
    const u8 *b = static_cast<const u8 *>(p.b) + place.matrix * p.b_stride * (p.b_format == PLAIN_F32 ? 4 : 2);
    const Part part = Part::of_block(p);
    const u32 steps = part.steps;

    // This thread's pieces: of a, and of b where it lies so, 16 elements of a sum; else 16 columns.
    const u32 row = threadIdx.x / 2, column = threadIdx.x % 2 * PIECE, b_row = threadIdx.x / 4, b_column = threadIdx.x % 4 * PIECE;
    const auto load_a = [&](u32 step) {
        if (step >= steps) return Piece{};
        const i64 k = part.begin + i64(step) * DEPTH;
        return load_piece(a, PLAIN_F32, place.m + row, p.m, k + column, p.k, p.aligned & ALIGNED_A);
    };
    const auto load_b = [&](u32 step) {
        if (step >= steps) return Piece{};
        const i64 k = part.begin + i64(step) * DEPTH;
        const bool aligned = p.aligned & ALIGNED_B;
        return IN_OUT ? load_piece(b, p.b_format, k + b_row, p.k, place.n + b_column, p.n, aligned)
                      : load_piece(b, p.b_format, place.n + row, p.n, k + column, p.k, aligned);
    };
    const auto keep = [&](u32 step, const Piece &of_a, const Piece &of_b) {
        float *to_a = left + step % 2 * (DEPTH * ROW), *to_b = right + step % 2 * (DEPTH * ROW);
#pragma unroll
        for (int i = 0; i < PIECE; i++) to_a[(column + i) * ROW + row] = piece_at(of_a, PLAIN_F32, 0, i);
        if constexpr (IN_OUT) {
#pragma unroll
            for (int i = 0; i < PIECE; i++) to_b[b_row * ROW + b_column + i] = piece_at(of_b, p.b_format, 0, i);
        } else {
#pragma unroll
            for (int i = 0; i < PIECE; i++) to_b[(column + i) * ROW + row] = piece_at(of_b, p.b_format, column, i);
        }
    };

    float sums[8][4] = {};
    if (steps > 0) keep(0, load_a(0), load_b(0));
    __syncthreads();
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        const Piece of_a = load_a(step + 1), of_b = load_b(step + 1);
        const float *from_a = left + step % 2 * (DEPTH * ROW) + 8 * down, *from_b = right + step % 2 * (DEPTH * ROW) + 4 * across;
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            const Pack<float, 4> low = load<float, 4>(from_a + k * ROW), high = load<float, 4>(from_a + k * ROW + 4);
            const Pack<float, 4> columns = load<float, 4>(from_b + k * ROW);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    sums[i][j] = fmaf(low.at[i], columns.at[j], sums[i][j]);
                    sums[4 + i][j] = fmaf(high.at[i], columns.at[j], sums[4 + i][j]);
                }
            }
        }
        keep(step + 1, of_a, of_b);
        __syncthreads();
    }

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const Pack<float, 4> four = {{sums[i][0], sums[i][1], sums[i][2], sums[i][3]}};
        store(left + (8 * down + i) * TILE + 4 * across, four);
    }
    __syncthreads();
    store_tile<TILE, TILE>(p, place, left, [&](u32 m, u32 n) { return *reinterpret_cast<const float4 *>(left + m * TILE + n); });
}

KERNEL(THREADS, gemm_f32_out_in, GemmParams) { gemm_scalar<false>(p); }
KERNEL(THREADS, gemm_f32_in_out, GemmParams) { gemm_scalar<true>(p); }
