// The product of a tile by matrix units: c = epilogue(a * b), for a of f16 or bf16.
//
// A block's 128 x 128 sums are four warps' 64 x 64: of each step of 16 elements of k, a warp reads 4 KiB of shared memory for 32
// products of 16 x 8 x 16. That is 128 cycles of shared memory and as many of an H200's matrix units for the block's four warps;
// smaller warps' tiles would wait for shared memory. Tiles of both factors go through it in STAGES steps of 32 elements, copied by
// `cp.async` three steps ahead. b of another type is converted by the threads: loaded before a step's products, stored after them.
// Packs of 16 bytes are permuted within rows so that `ldmatrix` reads without bank conflicts: eight rows of a column of packs lie
// in eight different groups of banks.
#pragma once

#include "async.cuh"
#include "gemm.cuh"
#include "matrix.cuh"

#define STAGES 4

#if !defined(GENIE_HOST) && __CUDA_ARCH__ < 800
// Copies pass through registers there: the products take turns.
constexpr int UNROLLED = 1;

// Without a matrix unit for it the product is long: it is here once.
__device__ __noinline__ float4 long_product(float4 d, uint4 a, uint2 b) {
    float sums[4] = {d.x, d.y, d.z, d.w};
    const u32 left[4] = {a.x, a.y, a.z, a.w}, right[2] = {b.x, b.y};
    mma<bf16>(sums, left, right);
    return make_float4(sums[0], sums[1], sums[2], sums[3]);
}
#else
constexpr int UNROLLED = DEPTH / 16;
#endif

template <typename T> __device__ __forceinline__ void multiply(float (&d)[4], const u32 (&a)[4], u32 first, u32 second) {
#if !defined(GENIE_HOST) && __CUDA_ARCH__ < 800
    if constexpr (std::is_same<T, bf16>::value) {
        const float4 sums =
            long_product(make_float4(d[0], d[1], d[2], d[3]), make_uint4(a[0], a[1], a[2], a[3]), make_uint2(first, second));
        d[0] = sums.x, d[1] = sums.y, d[2] = sums.z, d[3] = sums.w;
        return;
    }
#endif
    const u32 b[2] = {first, second};
    mma<T>(d, a, b);
}

// Where pack `pack` of row `row` lies: rows of 64 bytes, of which two fill the banks.
__device__ __forceinline__ u32 narrow_pack(u32 row, u32 pack) { return 64 * row + 16 * (pack ^ (row / 2 % 4)); }

// The same for rows of `BYTES`, 128 or more.
template <u32 BYTES> __device__ __forceinline__ u32 wide_pack(u32 row, u32 pack) { return BYTES * row + 16 * (pack ^ (row % 8)); }

// A pack of a row-major matrix to shared memory; zeros outside of the matrix.
template <typename T>
__device__ __forceinline__ void copy_pack(u8 *to, const T *from, i64 row, i64 rows, i64 column, i64 columns, bool aligned) {
    const i64 valid = row < rows ? max(min(columns - column, i64(8)), i64(0)) : 0;
    if (aligned) {
        cp_async_16(to, from + (valid == 0 ? 0 : row * columns + column), u32(valid) * 2);
    } else {
        Pack<T, 8> pack;
#pragma unroll
        for (int i = 0; i < 8; i++) pack.at[i] = i < valid ? from[row * columns + column + i] : T{};
        store(reinterpret_cast<T *>(to), pack);
    }
}

// WARPS_M by WARPS_N warps make a tile.
template <typename T, bool IN_OUT, int TILE_M, int TILE_N, int WARPS_M, int WARPS_N, bool CONVERT>
__device__ __forceinline__ void gemm(const GemmParams &p) {
    constexpr int THREADS = WARPS_M * WARPS_N * WARP, STAGE_A = TILE_M * DEPTH * 2, STAGE_B = TILE_N * DEPTH * 2;
    constexpr int FRAGMENTS_M = TILE_M / WARPS_M / 16, FRAGMENTS_N = TILE_N / WARPS_N / 8;
    static_assert(FRAGMENTS_N % 2 == 0, "loaded by twos");
    static_assert(!CONVERT || THREADS * PIECE == TILE_N * DEPTH, "a piece a thread");
    static_assert(TILE_M * TILE_N * 4 <= STAGES * (STAGE_A + STAGE_B), "the sums take the place of the stages");
    DYNAMIC_SHARED(shared);
    const Place place = Place::of_block<TILE_M, TILE_N>(p);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
    const T *a = static_cast<const T *>(p.a) + place.matrix * p.a_stride;
    const u8 *b = static_cast<const u8 *>(p.b) + place.matrix * p.b_stride * (p.b_format == PLAIN_F32 ? 4 : 2);
    const Part part = Part::of_block(p);
    const u32 steps = part.steps;

    const auto fetch = [&](u32 step) {
        if (step < steps) {
            const i64 k = part.begin + i64(step) * DEPTH;
            u8 *to_a = shared + step % STAGES * (STAGE_A + STAGE_B), *to_b = to_a + STAGE_A;
            for (u32 i = threadIdx.x; i < TILE_M * 4; i += THREADS) {
                copy_pack(to_a + narrow_pack(i / 4, i % 4), a, place.m + i / 4, p.m, k + i % 4 * 8, p.k, p.aligned & ALIGNED_A);
            }
            if constexpr (!CONVERT) {
                const T *from = reinterpret_cast<const T *>(b);
                for (u32 i = threadIdx.x; i < TILE_N * 4; i += THREADS) {
                    if constexpr (IN_OUT) {
                        const u32 row = i / (TILE_N / 8), pack = i % (TILE_N / 8);
                        copy_pack(to_b + wide_pack<TILE_N * 2>(row, pack), from, k + row, p.k, place.n + pack * 8, p.n,
                                  p.aligned & ALIGNED_B);
                    } else {
                        copy_pack(to_b + narrow_pack(i / 4, i % 4), from, place.n + i / 4, p.n, k + i % 4 * 8, p.k,
                                  p.aligned & ALIGNED_B);
                    }
                }
            }
        }
        cp_async_commit();
    };
    // This thread's piece of b: row and column of its tile.
    const u32 pieces = (IN_OUT ? TILE_N : DEPTH) / PIECE, row = threadIdx.x / pieces, column = threadIdx.x % pieces * PIECE;
    const auto load_b = [&](u32 step) {
        const i64 k = part.begin + i64(step) * DEPTH;
        const bool aligned = p.aligned & ALIGNED_B;
        if (step >= steps) return Piece{};
        return IN_OUT ? load_piece(b, p.b_format, k + row, p.k, place.n + column, p.n, aligned)
                      : load_piece(b, p.b_format, place.n + row, p.n, k + column, p.k, aligned);
    };
    const auto store_b = [&](u32 step, const Piece &piece) {
        u8 *to = shared + step % STAGES * (STAGE_A + STAGE_B) + STAGE_A;
        u32 pairs[PIECE / 2];
#pragma unroll
        for (int i = 0; i < PIECE / 2; i++) {
            pairs[i] = pack_pair<T>(piece_at(piece, p.b_format, column, 2 * i), piece_at(piece, p.b_format, column, 2 * i + 1));
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const u32 pack = column / 8 + i;
            *reinterpret_cast<uint4 *>(to + (IN_OUT ? wide_pack<TILE_N * 2>(row, pack) : narrow_pack(row, pack))) =
                make_uint4(pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]);
        }
    };

#pragma unroll 1
    for (u32 step = 0; step < STAGES - 1; step++) {
        fetch(step);
        if constexpr (CONVERT) store_b(step, load_b(step));
    }
    float sums[FRAGMENTS_M][FRAGMENTS_N][4] = {};
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        cp_async_wait<STAGES - 2>();
        // All have read the stage that is filled next.
        __syncthreads();
        fetch(step + STAGES - 1);
        Piece piece;
        if constexpr (CONVERT) piece = load_b(step + STAGES - 1);
        const u8 *tile_a = shared + step % STAGES * (STAGE_A + STAGE_B), *tile_b = tile_a + STAGE_A;
#pragma unroll UNROLLED
        for (u32 k = 0; k < DEPTH / 16; k++) {
            u32 left[FRAGMENTS_M][4], right[FRAGMENTS_N / 2][4];
            // Lanes 0 to 7 give the rows of the first matrix of 8 x 8, and so on.
#pragma unroll
            for (int i = 0; i < FRAGMENTS_M; i++) {
                const u32 m = (warp_m * FRAGMENTS_M + i) * 16 + lane % 16;
                ldmatrix_x4(left[i], tile_a + narrow_pack(m, 2 * k + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < FRAGMENTS_N / 2; j++) {
                const u32 n = (warp_n * FRAGMENTS_N + 2 * j) * 8 + lane / 16 * 8, second = lane / 8 % 2;
                if constexpr (IN_OUT) {
                    ldmatrix_x4_transposed(right[j], tile_b + wide_pack<TILE_N * 2>(16 * k + 8 * second + lane % 8, n / 8));
                } else {
                    ldmatrix_x4(right[j], tile_b + narrow_pack(n + lane % 8, 2 * k + second));
                }
            }
#pragma unroll
            for (int i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
                for (int j = 0; j < FRAGMENTS_N; j++) {
                    multiply<T>(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
        if constexpr (CONVERT) store_b(step + STAGES - 1, piece);
    }

    // The sums go through shared memory, so that rows are stored by neighbours. Columns are permuted by eights: the fragments'
    // rows lie in different banks.
    cp_async_wait<0>();
    __syncthreads();
    float *tile = reinterpret_cast<float *>(shared);
    const auto at = [](u32 m, u32 n) { return m * TILE_N + (n ^ (m % 4 * 8)); };
#pragma unroll
    for (int i = 0; i < FRAGMENTS_M; i++) {
#pragma unroll
        for (int j = 0; j < FRAGMENTS_N; j++) {
            const u32 m = (warp_m * FRAGMENTS_M + i) * 16 + lane / 4, n = (warp_n * FRAGMENTS_N + j) * 8 + lane % 4 * 2;
            *reinterpret_cast<float2 *>(tile + at(m, n)) = make_float2(sums[i][j][0], sums[i][j][1]);
            *reinterpret_cast<float2 *>(tile + at(m + 8, n)) = make_float2(sums[i][j][2], sums[i][j][3]);
        }
    }
    __syncthreads();
    store_tile<TILE_M, TILE_N>(p, place, shared, [&](u32 m, u32 n) { return *reinterpret_cast<const float4 *>(tile + at(m, n)); });
}
