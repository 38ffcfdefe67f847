// Appends a step's keys and values to the cache, and turns keys and queries by their positions on the way (rotary embedding, Su et
// al. 2021). Bound by memory, and so small that it is one launch that counts. Steps of one token do without: see
// `attention_fresh.cuh`.
#include "rotary.cuh"

struct AppendParams {
    // q is turned to q_out, or null.
    const void *q, *k, *v;
    void *q_out;
    const u64 *blocks;
    const i32 *lens;
    // [batch, tokens], or null: a token's place in the cache.
    const i32 *positions;
    // [head_dim / 2], or null: nothing is turned.
    const float *frequencies;
    i64 q_stride, kv_stride;
    i64 key_offset, value_offset;
    i32 tokens, heads, kv_heads, head_dim, max_blocks;
    u32 interleaved, wide, padding;
};

constexpr int CACHE_BLOCK = 64;

// Copies 2 * W elements of a head, from `first` on and from `second` on, of which `there` are there; turned, if `angle` is not null,
// and rounded to T before they become C, as if two kernels had done it.
template <typename T, typename C, int W>
__device__ __forceinline__ void move(const T *from, C *to, i32 first, i32 second, i32 there, const float *frequencies, float position,
                                     bool interleaved) {
    Pack<T, W> low = load<T, W>(from + first), high = low;
    if (there > W) high = load<T, W>(from + second);
    if (frequencies != nullptr) {
#pragma unroll
        for (int i = 0; i < W; i++) {
            // Interleaved, pairs are neighbours: with W elements a pack, half of the pairs lie in each.
            float s, c;
            if (W > 1 && interleaved) {
                Pack<T, W> &pack = i < W / 2 ? low : high;
                const int at = i % (W / 2 > 0 ? W / 2 : 1) * 2;
                sine_and_cosine(position * frequencies[first / 2 + i], s, c);
                const float2 pair = turned(to_f32(pack.at[at]), to_f32(pack.at[at + 1]), s, c);
                pack.at[at] = from_f32<T>(pair.x);
                pack.at[at + 1] = from_f32<T>(pair.y);
            } else {
                sine_and_cosine(position * frequencies[interleaved ? first / 2 : first + i], s, c);
                const float2 pair = turned(to_f32(low.at[i]), to_f32(high.at[i]), s, c);
                low.at[i] = from_f32<T>(pair.x);
                high.at[i] = from_f32<T>(pair.y);
            }
        }
    }
    Pack<C, W> result;
#pragma unroll
    for (int i = 0; i < W; i++) result.at[i] = from_f32<C>(to_f32(low.at[i]));
    store(to + first, result);
    if (there <= W) return;
#pragma unroll
    for (int i = 0; i < W; i++) result.at[i] = from_f32<C>(to_f32(high.at[i]));
    store(to + second, result);
}

// One block along x has a token, its threads along y too the pieces of its heads: those of q, if it is turned, of k, and of v.
template <typename T, typename C, int W> __device__ __forceinline__ void append(const AppendParams &p) {
    const i32 row = blockIdx.x / p.tokens, before = p.lens[row];
    const i64 token = blockIdx.x, at = i64(before) + blockIdx.x % p.tokens;
    // A row of negative length is not in use; nothing is written past the table.
    if (before < 0 || at >= i64(p.max_blocks) * CACHE_BLOCK) return;
    const i32 pieces = (p.head_dim + 2 * W - 1) / (2 * W);
    const i32 turned_heads = p.q_out != nullptr ? p.heads : 0;
    const i32 unit = blockIdx.y * blockDim.x + threadIdx.x, head = unit / pieces, piece = unit % pieces;
    if (head >= turned_heads + 2 * p.kv_heads) return;
    const bool is_value = head >= turned_heads + p.kv_heads, turned = p.frequencies != nullptr && !is_value;
    const float position = !turned ? 0.0f : float(p.positions != nullptr ? p.positions[token] : i32(at));
    const bool apart = turned && !p.interleaved;
    const i32 first = piece * W * (apart ? 1 : 2), second = first + (apart ? p.head_dim / 2 : W);
    const i32 there = apart ? 2 * W : p.head_dim - first;
    const float *const frequencies = turned ? p.frequencies : nullptr;
    if (head < turned_heads) {
        const T *const from = static_cast<const T *>(p.q) + token * p.q_stride + i64(head) * p.head_dim;
        T *const to = static_cast<T *>(p.q_out) + (token * p.heads + head) * p.head_dim;
        move<T, T, W>(from, to, first, second, there, frequencies, position, p.interleaved);
        return;
    }
    const i32 kv_head = head - turned_heads - (is_value ? p.kv_heads : 0);
    const T *const from = static_cast<const T *>(is_value ? p.v : p.k) + token * p.kv_stride + i64(kv_head) * p.head_dim;
    C *const block = reinterpret_cast<C *>(p.blocks[i64(row) * p.max_blocks + at / CACHE_BLOCK]);
    C *const to = block + (is_value ? p.value_offset : p.key_offset) + (i64(kv_head) * CACHE_BLOCK + at % CACHE_BLOCK) * p.head_dim;
    move<T, C, W>(from, to, first, second, there, frequencies, position, p.interleaved);
}

#define APPEND(T, from, C, to)                                                                                                   \
    KERNEL(256, kv_append_##from##_##to, AppendParams) {                                                                         \
        if (p.wide) {                                                                                                            \
            append<T, C, 4>(p);                                                                                                  \
        } else {                                                                                                                 \
            append<T, C, 1>(p);                                                                                                  \
        }                                                                                                                        \
    }
#define X(T, name) APPEND(T, name, float, f32) APPEND(T, name, f16, f16) APPEND(T, name, bf16, bf16)
EACH_FLOAT(X)
#undef X
