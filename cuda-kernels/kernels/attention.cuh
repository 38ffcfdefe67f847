// What the kernels of attention share: their parameters, the cache's blocks, and what each query may see.
//
// The cache of a row of the batch is a list of blocks of 64 tokens, each an allocation `[layers, 2, kv_heads, 64, head_dim]`. How
// many tokens it holds is read from memory, so that a launch can be replayed while the cache grows.
//
// The query heads that share a key/value head go together: of such a group, "query" i is head i % group of token i / group, so that
// keys and values are read once for all of them.
#pragma once

#include "genie.cuh"

constexpr int CACHE_BLOCK = 64;

// Codes of `launch::attention`.
enum Type : u32 { TYPE_F32, TYPE_F16, TYPE_BF16 };

struct AttentionParams {
    const void *q;
    // This step's keys and values, where there is no cache, or where they are not in it yet (`attention_fresh.cuh`).
    const void *k, *v;
    void *y;
    // [batch, max_blocks], null without a cache.
    const u64 *blocks;
    const i32 *lens;
    // With a cache and keys: [batch] or null, the new tokens' positions, else their places in the cache; and [head_dim / 2] or null,
    // by what queries and keys are turned.
    const i32 *positions;
    const float *frequencies;
    // Of chunks of keys: see `attention_split.cuh`.
    float *partials;
    u32 *arrived;
    // In elements, from token to token.
    i64 q_stride, kv_stride;
    // In elements, from a block's start to the layer's keys and values of head 0.
    i64 key_offset, value_offset;
    i32 batch, tokens, kv_heads, group, head_dim, max_blocks;
    u32 causal, q_type, kv_type;
    // Pieces of shared memory that keys and values pass through in turn.
    u32 slots;
    // Places for chunks of a group of queries.
    i32 splits;
    // Whether packs of four elements are aligned.
    u32 wide;
    float scale;
    // Pairs that are turned are neighbours.
    u32 interleaved;
};

// Lengths and tables are read past the L1 cache, which may hold those of an earlier run: a kernel may look at them before it waits for
// the one before it (`attention_decode.cuh`).

// What a row of the batch has: `before` keys from earlier steps, `total` with this step's. A row of negative length is not in use.
struct Span {
    i32 before, total;
};

__device__ __forceinline__ Span span_of(const AttentionParams &p, int row) {
    if (p.blocks == nullptr) return Span{0, p.tokens};
    const i32 before = __ldcg(p.lens + row);
    if (before < 0) return Span{0, 0};
    // No key lies outside the table, whatever the length says.
    return Span{before, i32(min(i64(before) + p.tokens, i64(p.max_blocks) * CACHE_BLOCK))};
}

// How many keys a token of this step sees.
__device__ __forceinline__ i32 seen_by(const AttentionParams &p, Span span, i32 token) {
    return p.causal ? min(span.before + token + 1, span.total) : span.total;
}

// Keys or values of one head, from some key on: `rows` of them, `stride` elements apart. Those from `rows` on are not there.
template <typename T> struct Rows {
    const T *at;
    i64 stride;
    i32 rows;
};

// The address of a row's block, or 0 past its table or without a cache.
__device__ __forceinline__ u64 block_address(const AttentionParams &p, int row, i32 block) {
    return p.blocks != nullptr && block < p.max_blocks ? __ldcg(p.blocks + i64(row) * p.max_blocks + block) : 0;
}

// Keys (`values` false) or values from `key` on, of which the cache's block at `block` holds all that are wanted.
template <typename T>
__device__ __forceinline__ Rows<T> rows_from(const AttentionParams &p, Span span, int row, int head, u64 block, i32 key, bool values) {
    if (p.blocks == nullptr) {
        const T *const all = static_cast<const T *>(values ? p.v : p.k);
        return Rows<T>{all + (i64(row) * p.tokens + key) * p.kv_stride + i64(head) * p.head_dim, p.kv_stride, span.total - key};
    }
    const i64 offset = (values ? p.value_offset : p.key_offset) + (i64(head) * CACHE_BLOCK + key % CACHE_BLOCK) * p.head_dim;
    return Rows<T>{reinterpret_cast<const T *>(block) + offset, p.head_dim, span.total - key};
}

// Elements before query `i` of a group, in q (`stride` apart) or y.
__device__ __forceinline__ i64 query_offset(const AttentionParams &p, int row, int kv_head, i32 i, i64 stride) {
    const i32 token = i / p.group, head = kv_head * p.group + i % p.group;
    return (i64(row) * p.tokens + token) * stride + i64(head) * p.head_dim;
}

__device__ __forceinline__ i64 y_stride(const AttentionParams &p) { return i64(p.kv_heads) * p.group * p.head_dim; }

// 2^x, to about 2 units in the last place; 0 below the normal numbers.
__device__ __forceinline__ float power_of_2(float x) {
#ifdef GENIE_HOST
    const float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// What scores are compared with: their maximum, but not minus infinity, which would make each weight NaN where a later key has a
// score. Of nothing but minus infinity the sum of weights stays 0, and the result is NaN.
__device__ __forceinline__ float reference(float max) { return max == -INFINITY ? 0.0f : max; }
