// Attention of many queries on matrix units (FlashAttention-2, Dao 2023): a block has 16 * M queries a warp, and all keys that
// these see pass through shared memory once, a tile of KEYS at a time.
//
// It is bound by the matrix units: 4 * queries * keys * head_dim operations a head. Each warp has 32 queries (head_dim up to 128),
// so that a fragment of keys is used twice and shared memory keeps up. Keys and values of later tiles are on their way meanwhile,
// in a ring of `slots` pieces of shared memory, with one barrier for each.
#pragma once

#include "attention_tile.cuh"

template <typename T, int DIM, int M, int KEYS> __device__ __forceinline__ void attention_prefill(const AttentionParams &p) {
    static_assert(CACHE_BLOCK % KEYS == 0, "a tile lies in one block");
    constexpr int STRIDE = TILE_STRIDE<DIM>, SLOT = KEYS * STRIDE;
    DYNAMIC_SHARED(memory);
    const int threads = blockDim.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const i32 rows = threads / WARP * 16 * M;
    T *const q = reinterpret_cast<T *>(memory), *const ring = q + rows * STRIDE;

    const int row = blockIdx.z, kv_head = blockIdx.y;
    const Span span = span_of(p, row);
    if (span.total <= 0) return;
    // The last queries see most keys: they begin first.
    const i32 first = i32(gridDim.x - 1 - blockIdx.x) * rows, queries = p.tokens * p.group;
    const i32 last = min(first + rows, queries) - 1;
    const i32 tiles = (seen_by(p, span, last / p.group) + KEYS - 1) / KEYS;
    const i32 all_see = seen_by(p, span, first / p.group);

    // Step 2 * i takes the keys of tile i, the next one its values. The address of the next block is looked up well before.
    u64 block = block_address(p, row, 0);
    u32 filled = 0;
    const auto fill = [&](i32 step) {
        if (step < 2 * tiles) {
            const i32 key = step / 2 * KEYS;
            const Rows<T> from = rows_from<T>(p, span, row, kv_head, block, key, step % 2 == 1);
            copy_tile<T, DIM, KEYS>(ring + filled * SLOT, from, p.head_dim, threadIdx.x, threads);
            if (step % 2 == 1 && (key + KEYS) % CACHE_BLOCK == 0) block = block_address(p, row, (key + KEYS) / CACHE_BLOCK);
        }
        cp_async_commit();
        filled = filled + 1 == p.slots ? 0 : filled + 1;
    };
#pragma unroll 2
    for (int i = threadIdx.x; i < rows * (DIM / 8); i += threads) {
        const int r = i / (DIM / 8), d = i % (DIM / 8) * 8;
        const bool there = first + r < queries && d < p.head_dim;
        const T *const from = static_cast<const T *>(p.q) + (there ? query_offset(p, row, kv_head, first + r, p.q_stride) + d : 0);
        cp_async_16(q + r * STRIDE + d, from, there ? 16 : 0);
    }

    WarpTile<T, DIM, M, KEYS> tile;
    tile.clear();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const i32 query = min(first + warp * 16 * M + 16 * m + 8 * h + lane / 4, queries - 1);
            tile.seen[m][h] = seen_by(p, span, query / p.group);
        }
    }
    const i32 sees_most = seen_by(p, span, min(first + (warp + 1) * 16 * M - 1, queries - 1) / p.group);
    const i32 sees_least = seen_by(p, span, min(first + warp * 16 * M, queries - 1) / p.group);

    u32 slot = 0;
    const i32 ahead = i32(p.slots) - 1;
#pragma unroll 1
    for (i32 step = -ahead; step < 2 * tiles; step++) {
        if (step >= 0) {
            wait_for_slot(p.slots);
            // All are done with what the step before took, which makes room.
            __syncthreads();
        }
        fill(step + ahead);
        if (step < 0) continue;
        T *const at = ring + slot * SLOT;
        slot = slot + 1 == p.slots ? 0 : slot + 1;
        const i32 key = step / 2 * KEYS;
        const bool sees = key < sees_most;
        if (step % 2 == 0) {
            if (sees) tile.weigh(q + warp * 16 * M * STRIDE, at, key, key + KEYS > sees_least, p.scale);
            continue;
        }
        if (key + KEYS > all_see && all_see < span.total && __syncthreads_or(tile.has_strange(at, threadIdx.x, threads))) {
            if (sees) tile.add_strange(at, key);
            __syncthreads();
            tile.remove_strange(at, threadIdx.x, threads);
            __syncthreads();
        }
        if (sees) tile.add(at);
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float factor = 1.0f / tile.total(m, h);
            const i32 query = first + warp * 16 * M + 16 * m + 8 * h + lane / 4;
            if (query >= queries) continue;
            T *const y = static_cast<T *>(p.y) + query_offset(p, row, kv_head, query, y_stride(p)) + 2 * (lane % 4);
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                if (8 * n >= p.head_dim) continue;
                *reinterpret_cast<u32 *>(y + 8 * n) = pack_pair<T>(tile.acc[m][n][2 * h] * factor, tile.acc[m][n][2 * h + 1] * factor);
            }
        }
    }
}

// Compute capability 7.5 needs more registers for a product, and would spill with more keys at a time.
#if !defined(GENIE_HOST) && __CUDA_ARCH__ < 800
constexpr int PREFILL_KEYS = 32;
#else
constexpr int PREFILL_KEYS = 64;
#endif

#define ATTENTION_PREFILL(T, name)                                                                                               \
    KERNEL(128, attention_prefill_##name##_32, AttentionParams) { attention_prefill<T, 32, 2, PREFILL_KEYS>(p); }                          \
    KERNEL(128, attention_prefill_##name##_64, AttentionParams) { attention_prefill<T, 64, 2, PREFILL_KEYS>(p); }                          \
    KERNEL(128, attention_prefill_##name##_96, AttentionParams) { attention_prefill<T, 96, 2, PREFILL_KEYS>(p); }                          \
    KERNEL(128, attention_prefill_##name##_128, AttentionParams) { attention_prefill<T, 128, 2, PREFILL_KEYS>(p); }                        \
    KERNEL(128, attention_prefill_##name##_256, AttentionParams) { attention_prefill<T, 256, 1, 32>(p); }
