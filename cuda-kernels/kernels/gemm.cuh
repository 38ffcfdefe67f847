// What the products of many rows share: which tile a block has, how elements of b are read whatever their format, how a finished
// tile is stored.
#pragma once

#include "arrive.cuh"
#include "epilogue.cuh"
#include "quantised.cuh"

// Elements of a sum that are in shared memory at a time.
#define DEPTH 32
// Of these, what one thread converts: half a quantised block.
#define PIECE 16

// What `GemmParams::aligned` has a bit for: every row begins at a multiple of 16 bytes, and is whole packs of 16 bytes long.
enum GemmAligned : u32 { ALIGNED_A = 1, ALIGNED_B = 2 };

struct GemmParams {
    const void *a, *b;
    void *c;
    Epilogue epilogue;
    i64 m, n, k;
    // Elements from a matrix to the next of a batch.
    i64 a_stride, b_stride;
    float *partial;
    u32 *counters;
    u32 tiles_m, tiles_n;
    // Steps of DEPTH elements in each part of the sums: blocks (x, y) take part y.
    u32 part_steps;
    u32 c_type, b_format, aligned;
};

// The tile of this block: its first row and column, and its matrix of the batch. Blocks that run together share rows of a and
// columns of b: they go down eight tiles before they go to the next column.
struct Place {
    i64 m, n, matrix;

    template <int TILE_M, int TILE_N> static __device__ __forceinline__ Place of_block(const GemmParams &p) {
        const u32 tiles = p.tiles_m * p.tiles_n, matrix = blockIdx.x / tiles, tile = blockIdx.x % tiles;
        const u32 band = tile / (8 * p.tiles_n), within = tile % (8 * p.tiles_n), height = min(8u, p.tiles_m - 8 * band);
        return {i64(8 * band + within % height) * TILE_M, i64(within / height) * TILE_N, i64(matrix)};
    }
};

// The part of the sums that this block takes: elements of k from `begin` on, in steps of DEPTH.
struct Part {
    i64 begin;
    u32 steps;

    static __device__ __forceinline__ Part of_block(const GemmParams &p) {
        const u32 all = u32((p.k + DEPTH - 1) / DEPTH), first = blockIdx.y * p.part_steps;
        return {i64(first) * DEPTH, min(p.part_steps, all - first)};
    }
};

// Sixteen neighbours of a row as they are stored, and what is in front of their block.
struct Piece {
    u32 words[PIECE];
    u32 scale, least;
};

// `PIECE` elements of row `row`, from `column` on, of a matrix of `rows` by `columns`; zeros outside of it.
__device__ __forceinline__ Piece load_piece(const void *from, u32 format, i64 row, i64 rows, i64 column, i64 columns,
                                            bool aligned) {
    Piece piece = {};
    if (row >= rows || column >= columns) return piece;
    if (format >= Q8_0) {
        const u8 *block = static_cast<const u8 *>(from) + (row * (columns / BLOCK) + column / BLOCK) * block_bytes(format);
        const u32 head = block_head(format), second = format == Q8_0 ? u32(column % BLOCK) : 0;
        const u16 *halves = reinterpret_cast<const u16 *>(block);
        piece.scale = halves[0];
        if (format == Q4_1) piece.least = halves[1];
        halves = reinterpret_cast<const u16 *>(block + head + second);
#pragma unroll
        for (int i = 0; i < 4; i++) piece.words[i] = halves[2 * i] | u32(halves[2 * i + 1]) << 16;
        return piece;
    }
    const i64 at = row * columns + column, valid = columns - column;
    if (aligned) {
        const u32 wide = format == PLAIN_F32 ? 4 : 8;
        const uint4 *packs = reinterpret_cast<const uint4 *>(static_cast<const u8 *>(from) + at * (format == PLAIN_F32 ? 4 : 2));
#pragma unroll
        for (u32 i = 0; i < PIECE / 4; i++) {
            if (i * wide >= min(valid, i64(PIECE))) continue;
            const uint4 pack = packs[i];
            piece.words[4 * i] = pack.x, piece.words[4 * i + 1] = pack.y;
            piece.words[4 * i + 2] = pack.z, piece.words[4 * i + 3] = pack.w;
        }
    } else if (format == PLAIN_F32) {
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            if (i < valid) piece.words[i] = static_cast<const u32 *>(from)[at + i];
        }
    } else {
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            if (i < valid) piece.words[i / 2] |= u32(static_cast<const u16 *>(from)[at + i]) << (16 * (i % 2));
        }
    }
    return piece;
}

// Element `i` of a piece that begins at `column`. `i` is known when this is compiled.
__device__ __forceinline__ float piece_at(const Piece &piece, u32 format, i64 column, int i) {
    if (format == PLAIN_F32) return __uint_as_float(piece.words[i]);
    const u16 half = u16(piece.words[i / 2] >> (16 * (i % 2)));
    if (format == PLAIN_F16) return to_f32(f16{half});
    if (format == PLAIN_BF16) return to_f32(bf16{half});
    const float scale = to_f32(f16{u16(piece.scale)});
    const u32 byte = piece.words[i / 4] >> (8 * (i % 4)) & 0xff;
    if (format == Q8_0) return float(i32(byte ^ 0x80) - 128) * scale;
    const u32 nibble = column % BLOCK == 0 ? byte & 15 : byte >> 4;
    if (format == Q4_0) return float(i32(nibble) - 8) * scale;
    return fmaf(float(nibble), scale, to_f32(f16{u16(piece.least)}));
}

// Finishes and stores a tile whose sums `sums(row, column, four)` gives, four columns at a time, by all threads of the block.
//
// Where there are several parts of the sums, this block's go to `partial`, and the block that comes last to the tile adds those of
// all in their order. `last` is a word of shared memory that may be written once `sums` has been called.
template <int TILE_M, int TILE_N, typename F>
__device__ __forceinline__ void store_tile(const GemmParams &p, const Place &place, void *last, F sums) {
    const i64 c = place.matrix * p.m * p.n;
    const u32 parts = gridDim.y;
    float *partial = p.partial + i64(blockIdx.x) * parts * (TILE_M * TILE_N);
#pragma unroll 1
    for (u32 turn = parts == 1 ? 1 : 0; turn < 2; turn++) {
#pragma unroll 1
        for (u32 i = 4 * threadIdx.x; i < TILE_M * TILE_N; i += 4 * blockDim.x) {
            const u32 row = i / TILE_N, column = i % TILE_N;
            const i64 m = place.m + row, n = place.n + column;
            if (m >= p.m || n >= p.n) continue;
            float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (turn == 0 || parts == 1) {
                four = sums(row, column);
            } else {
#pragma unroll 4
                for (u32 part = 0; part < parts; part++) {
                    const float4 more = __ldcg(reinterpret_cast<const float4 *>(partial + part * (TILE_M * TILE_N) + i));
                    four.x += more.x, four.y += more.y, four.z += more.z, four.w += more.w;
                }
            }
            if (turn == 0) {
                __stcg(reinterpret_cast<float4 *>(partial + blockIdx.y * (TILE_M * TILE_N) + i), four);
                continue;
            }
            float values[4] = {four.x, four.y, four.z, four.w};
            finish_four(p.epilogue, values, c + m * p.n + n, n, p.n - n);
            put_four(p.c, values, c + m * p.n + n, p.n - n, p.c_type);
        }
        if (turn == 1 || !is_last(p.counters + blockIdx.x, parts, static_cast<u32 *>(last))) return;
    }
}
