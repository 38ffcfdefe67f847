// Attention of few queries over long caches: the keys of a row are split into chunks, each a block's work, so that one row fills a
// GPU (Flash-Decoding, Dao et al. 2023). The last to arrive of a row's chunks adds them up, in their order.
//
// Where chunks begin depends on the row's own length alone: a row gives the same bits in any batch and with any table. Threads of
// the grid take chunks in turn, so that a table with room for more than there is costs nothing.
#pragma once

#include "attention.cuh"

constexpr i32 MOST_CHUNKS = 64;
// A chunk of fewer blocks would end before its loads have hidden each other's latency.
constexpr i32 LEAST_BLOCKS = 2;

__device__ __forceinline__ i32 blocks_of(Span span) { return (span.total + CACHE_BLOCK - 1) / CACHE_BLOCK; }
__device__ __forceinline__ i32 chunk_blocks(i32 blocks) { return max(LEAST_BLOCKS, (blocks + MOST_CHUNKS - 1) / MOST_CHUNKS); }
__device__ __forceinline__ i32 chunks_of(Span span) {
    const i32 blocks = blocks_of(span);
    return (blocks + chunk_blocks(blocks) - 1) / chunk_blocks(blocks);
}

// Counts the chunks of the rows before each, [batch + 1]. There is a barrier at its end.
__device__ __forceinline__ void count_chunks(const AttentionParams &p, i32 *before) {
    if (threadIdx.x < WARP) {
        const int lane = threadIdx.x;
        i32 sum = 0;
        for (i32 first = 0; first < p.batch; first += WARP) {
            i32 count = first + lane < p.batch ? chunks_of(span_of(p, first + lane)) : 0;
#pragma unroll
            for (int step = 1; step < WARP; step *= 2) {
                const i32 other = __shfl_up_sync(FULL, count, step);
                if (lane >= step) count += other;
            }
            if (first + lane < p.batch) before[first + lane + 1] = sum + count;
            sum += __shfl_sync(FULL, count, WARP - 1);
        }
        if (lane == 0) before[0] = 0;
    }
    __syncthreads();
}

// A chunk's work: `queries` queries of a group from `first` on, over blocks `begin` to `end`.
struct Chunk {
    Span span;
    i32 row, kv_head, first, queries;
    i32 number, count, begin, end;
    // Which of the groups of queries that add up their chunks.
    i64 set;
};

template <int ROWS> __device__ __forceinline__ i32 query_groups(const AttentionParams &p) { return (p.tokens * p.group + ROWS - 1) / ROWS; }

// Chunk `item` of all. Those of the same keys follow each other.
template <int ROWS> __device__ __forceinline__ Chunk chunk_of(const AttentionParams &p, const i32 *before, i32 item) {
    const i32 groups = query_groups<ROWS>(p), all = item / groups / p.kv_heads;
    i32 row = 0, past = p.batch;
    while (past - row > 1) {
        const i32 middle = (row + past) / 2;
        if (before[middle] <= all) {
            row = middle;
        } else {
            past = middle;
        }
    }
    Chunk chunk;
    chunk.span = span_of(p, row);
    chunk.row = row;
    chunk.kv_head = item / groups % p.kv_heads;
    chunk.first = item % groups * ROWS;
    chunk.queries = min(ROWS, p.tokens * p.group - chunk.first);
    chunk.number = all - before[row];
    chunk.count = before[row + 1] - before[row];
    const i32 blocks = blocks_of(chunk.span), each = chunk_blocks(blocks);
    chunk.begin = chunk.number * each;
    chunk.end = min(chunk.begin + each, blocks);
    chunk.set = (i64(row) * p.kv_heads + chunk.kv_head) * groups + chunk.first / ROWS;
    return chunk;
}

// Ends a chunk: `value(row, d)` gives four sums of weighted values, of whose weights the largest score and the sum are
// `maxima[row]` and `totals[row]`; `power` makes a weight of a difference of scores; `store(row, d, float4)` takes results.
// `scratch`, which `value` may read from, holds 3 * MOST_CHUNKS * ROWS floats. All threads come here after a barrier.
template <int ROWS, int DIM, typename Power, typename Value, typename Store>
__device__ __forceinline__ void finish_chunk(const AttentionParams &p, const Chunk &chunk, const float *maxima, const float *totals,
                                             float *scratch, Power power, Value value, Store store) {
    constexpr int PACKS = DIM / 4, FLOATS = ROWS * (DIM + 2);
    const int threads = blockDim.x;
    if (chunk.count == 1) {
        for (int i = threadIdx.x; i < chunk.queries * PACKS; i += threads) {
            const int row = i / PACKS, d = i % PACKS * 4;
            const float4 sums = value(row, d);
            const float factor = 1.0f / totals[row];
            if (d < p.head_dim) store(row, d, make_float4(sums.x * factor, sums.y * factor, sums.z * factor, sums.w * factor));
        }
        return;
    }
    float *const all = p.partials + chunk.set * p.splits * FLOATS, *const mine = all + chunk.number * FLOATS;
    for (int i = threadIdx.x; i < chunk.queries * PACKS; i += threads) {
        *reinterpret_cast<float4 *>(mine + 4 * i) = value(i / PACKS, i % PACKS * 4);
    }
    if (int(threadIdx.x) < chunk.queries) {
        mine[ROWS * DIM + threadIdx.x] = maxima[threadIdx.x];
        mine[ROWS * DIM + ROWS + threadIdx.x] = totals[threadIdx.x];
    }
    SHARED(u32, is_last, 1);
    __threadfence();
    __syncthreads();
    // It wraps: the next launch finds zero again.
    if (threadIdx.x == 0) is_last[0] = atomicInc(p.arrived + chunk.set, u32(chunk.count) - 1) == u32(chunk.count) - 1;
    __syncthreads();
    if (!is_last[0]) return;
    __threadfence();
    float *const max = scratch, *const sum = scratch + MOST_CHUNKS * ROWS, *const factor = sum + MOST_CHUNKS * ROWS;
    for (int i = threadIdx.x; i < chunk.count * ROWS; i += threads) {
        const float *const from = all + i64(i / ROWS) * FLOATS + ROWS * DIM + i % ROWS;
        const bool there = i % ROWS < chunk.queries;
        max[i] = there ? __ldcg(from) : 0.0f;
        sum[i] = there ? __ldcg(from + ROWS) : 0.0f;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < chunk.count * ROWS; i += threads) {
        float most = -INFINITY;
        for (int c = 0; c < chunk.count; c++) most = fmaxf(most, max[c * ROWS + i % ROWS]);
        factor[i] = power(max[i] - reference(most));
    }
    __syncthreads();
    for (int i = threadIdx.x; i < chunk.queries * PACKS; i += threads) {
        const int row = i / PACKS, d = i % PACKS * 4;
        if (d >= p.head_dim) continue;
        float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float total = 0.0f;
        // Loads of eight chunks are under way at a time.
#pragma unroll 8
        for (int c = 0; c < chunk.count; c++) {
            const float4 part = __ldcg(reinterpret_cast<const float4 *>(all + i64(c) * FLOATS + 4 * i));
            const float f = factor[c * ROWS + row];
            total += sum[c * ROWS + row] * f;
            sums.x += part.x * f, sums.y += part.y * f, sums.z += part.z * f, sums.w += part.w * f;
        }
        const float f = 1.0f / total;
        store(row, d, make_float4(sums.x * f, sums.y * f, sums.z * f, sums.w * f));
    }
}
