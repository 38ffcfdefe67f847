// Steps of one token a row: its key and value are not in the cache yet. Blocks that have the chunk of its place take them from where
// the step computed them, turned by their position where the model does that, and one of them puts them into the cache: one kernel
// where two would run, the first of them too short to fill a GPU.
//
// What the chunks of a row give has the same bits as after `kv_append`: keys and values go through the same roundings, and lie in
// the same places of the same tiles.
#pragma once

#include "attention_split.cuh"
#include "rotary.cuh"

// Whether the step's keys and values are still to be appended.
__device__ __forceinline__ bool appends(const AttentionParams &p) { return p.blocks != nullptr && p.k != nullptr; }

// What the cache has of a span.
__device__ __forceinline__ Span held(const AttentionParams &p, Span span) {
    return appends(p) ? Span{span.before, min(span.before, span.total)} : span;
}

// Whether the new token's place, `span.before`, is among a chunk's keys. Past the table there is none.
__device__ __forceinline__ bool has_fresh(const AttentionParams &p, const Chunk &chunk) {
    return appends(p) && chunk.number + 1 == chunk.count && chunk.span.before < chunk.span.total;
}

// The new token's key, or value, of a head.
template <typename T> __device__ __forceinline__ const T *fresh_at(const AttentionParams &p, i32 row, i32 kv_head, bool value) {
    return static_cast<const T *>(value ? p.v : p.k) + row * p.kv_stride + i64(kv_head) * p.head_dim;
}

// Where it goes.
template <typename T> __device__ __forceinline__ T *cached_at(const AttentionParams &p, const Chunk &chunk, bool value) {
    const i32 place = chunk.span.before;
    T *const block = reinterpret_cast<T *>(block_address(p, chunk.row, place / CACHE_BLOCK));
    return block + (value ? p.value_offset : p.key_offset) + (i64(chunk.kv_head) * CACHE_BLOCK + place % CACHE_BLOCK) * p.head_dim;
}

// Turns a chunk's queries, and its new key if there is one, in shared memory: `q` has rows `stride` apart, and `round` makes elements
// of results. Barriers before and after are the caller's.
template <typename T, typename Round>
__device__ __forceinline__ void turn_fresh(const AttentionParams &p, const Chunk &chunk, T *q, int stride, T *key, Round round) {
    const float position = float(p.positions != nullptr ? p.positions[chunk.row] : chunk.span.before);
    const i32 half = p.head_dim / 2;
    for (i32 pair = threadIdx.x; pair < half; pair += blockDim.x) {
        const i32 first = p.interleaved ? 2 * pair : pair, second = p.interleaved ? first + 1 : pair + half;
        float sine, cosine;
        sine_and_cosine(position * p.frequencies[pair], sine, cosine);
        const auto turn = [&](T *head) {
            const float2 both = turned(to_f32(head[first]), to_f32(head[second]), sine, cosine);
            head[first] = round(both.x);
            head[second] = round(both.y);
        };
#pragma unroll 1
        for (i32 row = 0; row < chunk.queries; row++) turn(q + row * stride);
        if (key != nullptr) turn(key);
    }
}
