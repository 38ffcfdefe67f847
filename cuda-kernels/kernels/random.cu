// Random numbers whose stream is data: the key and the first block lie in memory.
#include "random.cuh"

struct KeyedParams {
    void *y;
    i64 count;
    // Key and first block.
    const u64 *key;
};

#define X(T, name)                                                                                                               \
    KERNEL(256, random_uniform_##name, KeyedParams) {                                                                            \
        samples<T, false>(static_cast<T *>(p.y), p.count, p.key[0], p.key[1]);                                                   \
    }                                                                                                                            \
    KERNEL(256, random_normal_##name, KeyedParams) {                                                                             \
        samples<T, true>(static_cast<T *>(p.y), p.count, p.key[0], p.key[1]);                                                    \
    }
EACH_FLOAT(X)
#undef X

// Whole numbers of 63 bits, two a block.
KERNEL(256, random_bits, KeyedParams) {
    i64 *y = static_cast<i64 *>(p.y);
    const bool aligned = is_aligned(y, 16);
    const u64 key = p.key[0], start = p.key[1];
    each_pack<2>(p.count, [=](i64 at, i64 valid) {
        u32 words[4];
        philox(key, start, u64(at) / 2, words);
        Pack<i64, 2> pack;
#pragma unroll
        for (int j = 0; j < 2; j++) pack.at[j] = i64((u64(words[2 * j + 1] & 0x7fffffffu) << 32) | words[2 * j]);
        store_some(y + at, pack, valid, aligned);
    });
}
