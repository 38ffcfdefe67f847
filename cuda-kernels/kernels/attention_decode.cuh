// Attention of few queries over a cache, on matrix units: for decode steps, where keys and values are used once.
//
// It is bound by memory: head_dim * 4 bytes a token and key/value head. 16 queries, most of them there only where heads share keys
// or several tokens are asked for at once, cost a matrix unit little: a fifth of what the loads take on an H200. Each of the four
// warps has 16 of the 64 keys of a block and copies of its own under way, so that no warp waits for another before the end; with
// three blocks of threads on a multiprocessor, some 190 KB are on their way at a time, where bandwidth times latency needs 30.
//
// Where it appends the step's keys and values itself, it begins to load before the kernel before it has ended (`genie.cuh`): lengths,
// tables, and the tokens that the cache held when the run began. No kernel of a run writes these: what is appended lies behind a row's
// length, in a block that no other row has. Queries and the new keys wait.
#pragma once

#include "attention_fresh.cuh"
#include "attention_tile.cuh"

// The new token's key, then its value, into shared memory: [2, DIM], zeros behind the head.
template <typename T, int DIM> __device__ __forceinline__ void fetch_fresh(const AttentionParams &p, const Chunk &chunk, T *fresh) {
    for (int i = threadIdx.x; i < 2 * DIM / 8; i += blockDim.x) {
        const bool value = i >= DIM / 8;
        const int d = i % (DIM / 8) * 8;
        Pack<T, 8> pack = {};
        if (d < p.head_dim) pack = load<T, 8>(fresh_at<T>(p, chunk.row, chunk.kv_head, value) + d);
        store(fresh + 8 * i, pack);
    }
}

// From there into the cache.
template <typename T, int DIM> __device__ __forceinline__ void append_fresh(const AttentionParams &p, const Chunk &chunk, const T *fresh) {
    for (int i = threadIdx.x; i < 2 * DIM / 8; i += blockDim.x) {
        const bool value = i >= DIM / 8;
        const int d = i % (DIM / 8) * 8;
        if (d < p.head_dim) store(cached_at<T>(p, chunk, value) + d, load<T, 8>(fresh + 8 * i));
    }
}

// Parameters of kernels that wait by themselves where they append.
struct DecodeParams : AttentionParams {};

// Without new keys a kernel of this run has appended them, and what the cache holds is waited for.
__device__ __forceinline__ void begin(const DecodeParams &p) {
    if (!appends(p)) wait_for_previous();
}

template <typename T, int DIM> __device__ __forceinline__ void attention_decode(const DecodeParams &p) {
    constexpr int ROWS = 16, WARPS = 4, KEYS = CACHE_BLOCK / WARPS, STRIDE = TILE_STRIDE<DIM>, SLOT = KEYS * STRIDE;
    typedef WarpTile<T, DIM, 1, KEYS> Tile;
    DYNAMIC_SHARED(memory);
    SHARED(float, maxima, WARPS *ROWS);
    SHARED(float, totals, WARPS *ROWS);
    SHARED(float, row_maxima, ROWS);
    SHARED(float, row_totals, ROWS);
    SHARED(T, fresh, 2 * DIM);
    i32 *const before = reinterpret_cast<i32 *>(memory);
    T *const q = reinterpret_cast<T *>(memory + (p.batch / 4 + 1) * 16);
    // What the warps found goes where their copies were.
    T *const rings = q + ROWS * STRIDE;
    float *const found = reinterpret_cast<float *>(rings);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    T *const ring = rings + warp * i32(p.slots) * SLOT;
    const i32 ahead = i32(p.slots) - 1;

    count_chunks(p, before);
    const i32 items = before[p.batch] * p.kv_heads * query_groups<ROWS>(p);
    for (i32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Chunk chunk = chunk_of<ROWS>(p, before, item);
        const i32 steps = 2 * (chunk.end - chunk.begin);
        const Span in_cache = held(p, chunk.span);
        const bool with_fresh = has_fresh(p, chunk);
        // Lane i has the address of the chunk's block i, then of block 32 + i, ...
        u64 blocks = block_address(p, chunk.row, chunk.begin + lane);
        u32 filled = 0;
        const auto fill = [&](i32 step) {
            if (step < steps) {
                if (step > 0 && step % (2 * WARP) == 0) blocks = block_address(p, chunk.row, chunk.begin + step / 2 + lane);
                const u64 block = __shfl_sync(FULL, blocks, step / 2 % WARP);
                const i32 key = (chunk.begin + step / 2) * CACHE_BLOCK + warp * KEYS;
                const Rows<T> from = rows_from<T>(p, in_cache, chunk.row, chunk.kv_head, block, key, step % 2 == 1);
                copy_tile<T, DIM, KEYS>(ring + filled * SLOT, from, p.head_dim, lane, WARP);
            }
            cp_async_commit();
            filled = filled + 1 == p.slots ? 0 : filled + 1;
        };
        for (i32 step = 0; step < ahead; step++) fill(step);
        wait_for_previous();
        for (int i = threadIdx.x; i < ROWS * DIM / 8; i += WARPS * WARP) {
            const int row = i / (DIM / 8), d = i % (DIM / 8) * 8;
            Pack<T, 8> pack = {};
            if (row < chunk.queries && d < p.head_dim) {
                const i64 at = query_offset(p, chunk.row, chunk.kv_head, chunk.first + row, p.q_stride) + d;
                pack = load<T, 8>(static_cast<const T *>(p.q) + at);
            }
            store(q + row * STRIDE + d, pack);
        }
        if (with_fresh) fetch_fresh<T, DIM>(p, chunk, fresh);
        __syncthreads();
        if (appends(p) && p.frequencies != nullptr) {
            turn_fresh(p, chunk, q, STRIDE, with_fresh ? fresh : nullptr, [](float x) { return from_f32<T>(x); });
            __syncthreads();
        }
        // The groups of queries of a head have the same new key.
        if (with_fresh && chunk.first == 0) append_fresh<T, DIM>(p, chunk, fresh);

        Tile tile;
        tile.clear();
        const i32 last = chunk.first + chunk.queries - 1;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            tile.seen[0][h] = seen_by(p, chunk.span, min(chunk.first + 8 * h + lane / 4, last) / p.group);
        }
        const i32 all_see = seen_by(p, chunk.span, chunk.first / p.group);
        u32 slot = 0;
#pragma unroll 1
        for (i32 step = 0; step < steps; step++) {
            wait_for_slot(p.slots);
            __syncwarp();
            fill(step + ahead);
            T *const at = ring + slot * SLOT;
            slot = slot + 1 == p.slots ? 0 : slot + 1;
            const i32 key = (chunk.begin + step / 2) * CACHE_BLOCK + warp * KEYS;
            if (key >= chunk.span.total) continue;
            const i32 place = chunk.span.before - key;
            if (with_fresh && place >= 0 && place < KEYS) {
                const T *const from = fresh + step % 2 * DIM;
                for (int d = 8 * lane; d < DIM; d += 8 * WARP) store(at + place * STRIDE + d, load<T, 8>(from + d));
                __syncwarp();
            }
            if (step % 2 == 0) {
                tile.weigh(q, at, key, key + KEYS > all_see, p.scale);
                continue;
            }
            if (key + KEYS > all_see && all_see < chunk.span.total && __any_sync(FULL, Tile::has_strange(at, lane, WARP))) {
                tile.add_strange(at, key);
                __syncwarp();
                Tile::remove_strange(at, lane, WARP);
                __syncwarp();
            }
            tile.add(at);
        }
        cp_async_wait<0>();
        __syncthreads();

#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = 8 * h + lane / 4;
            const float total = tile.total(0, h);
            if (lane % 4 == 0) maxima[warp * ROWS + row] = tile.maxima[0][h], totals[warp * ROWS + row] = total;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                const float2 pair = make_float2(tile.acc[0][n][2 * h], tile.acc[0][n][2 * h + 1]);
                *reinterpret_cast<float2 *>(found + (warp * ROWS + row) * DIM + 8 * n + 2 * (lane % 4)) = pair;
            }
        }
        __syncthreads();
        // The warps' sums, relative to the largest score of all: their maxima become factors.
        if (threadIdx.x < ROWS) {
            const int row = threadIdx.x;
            float max = -INFINITY, total = 0.0f;
            for (int w = 0; w < WARPS; w++) max = fmaxf(max, maxima[w * ROWS + row]);
            for (int w = 0; w < WARPS; w++) {
                const float factor = power_of_2(maxima[w * ROWS + row] - reference(max));
                maxima[w * ROWS + row] = factor;
                total += totals[w * ROWS + row] * factor;
            }
            row_maxima[row] = max;
            row_totals[row] = total;
        }
        __syncthreads();
        const auto value = [&](int row, int d) {
            float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float4 part = *reinterpret_cast<const float4 *>(found + (w * ROWS + row) * DIM + d);
                const float f = maxima[w * ROWS + row];
                sums.x += part.x * f, sums.y += part.y * f, sums.z += part.z * f, sums.w += part.w * f;
            }
            return sums;
        };
        const auto store_y = [&](int row, int d, float4 y) {
            const i64 at = query_offset(p, chunk.row, chunk.kv_head, chunk.first + row, y_stride(p)) + d;
            const Pack<T, 4> pack = {{from_f32<T>(y.x), from_f32<T>(y.y), from_f32<T>(y.z), from_f32<T>(y.w)}};
            store(static_cast<T *>(p.y) + at, pack);
        };
        finish_chunk<ROWS, DIM>(p, chunk, row_maxima, row_totals, found, power_of_2, value, store_y);
        __syncthreads();
    }
    // Blocks without work, too: that this kernel has ended says that those before it have.
    wait_for_previous();
}

// Threads a block and blocks a multiprocessor: without the latter the compiler spills a register or two where it need not.
#define FOUR_BLOCKS 128, 4
#define THREE_BLOCKS 128, 3
#define TWO_BLOCKS 128, 2

#define ATTENTION_DECODE(T, name)                                                                                                \
    KERNEL(FOUR_BLOCKS, attention_decode_##name##_32, DecodeParams) { attention_decode<T, 32>(p); }                              \
    KERNEL(THREE_BLOCKS, attention_decode_##name##_64, DecodeParams) { attention_decode<T, 64>(p); }                             \
    KERNEL(THREE_BLOCKS, attention_decode_##name##_96, DecodeParams) { attention_decode<T, 96>(p); }                             \
    KERNEL(THREE_BLOCKS, attention_decode_##name##_128, DecodeParams) { attention_decode<T, 128>(p); }                           \
    KERNEL(TWO_BLOCKS, attention_decode_##name##_256, DecodeParams) { attention_decode<T, 256>(p); }
