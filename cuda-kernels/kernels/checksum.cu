// CRC32C (Castagnoli) of bytes, as one remainder a tile: `src/launch/checksum.rs` puts the tiles together.
//
// A checksum that begins with 0 is the sum of its words, each times a power of x, and leading zeros change nothing: so the bytes are
// taken as if zeros were in front of them, up to whole tiles. A thread takes every 256th word of its tile, so that neighbours read next
// to each other; what it has is multiplied by x^(32 * 256) before each word, which four tables do, byte by byte. The threads' sums are
// put together as a tree.
#include "genie.cuh"

#define THREADS 256
#define LEVELS 8
#define TILE_WORDS 16384
// The polynomial, its bits reversed: x^32.
#define POLYNOMIAL 0x82f63b78u

struct Crc32cParams {
    const u8 *at;
    u32 *remainders;
    i64 bytes;
    // x^(32 * 2^i).
    u32 powers[LEVELS + 1];
    u32 padding;
};

// The product of two remainders; the highest bit is x^0.
__device__ __forceinline__ u32 times(u32 a, u32 b) {
    u32 product = 0;
    for (int i = 31; i >= 0; i--) {
        product ^= b & (0u - (a >> i & 1u));
        b = b >> 1 ^ (POLYNOMIAL & (0u - (b & 1u)));
    }
    return product;
}

KERNEL(THREADS, crc32c, Crc32cParams) {
    SHARED(u32, tables, 4 * 256);
    SHARED(u32, sums, THREADS);
    const u32 thread = threadIdx.x;
    const u32 stride = p.powers[LEVELS];
#pragma unroll
    for (u32 i = 0; i < 4; i++) tables[i * 256 + thread] = times(thread << (8 * i), stride);
    __syncthreads();

    // Where the zeros in front begin: nothing is read there.
    const i64 first = p.bytes - i64(gridDim.x) * TILE_WORDS * 4 + i64(blockIdx.x) * TILE_WORDS * 4;
    const bool aligned = (reinterpret_cast<u64>(p.at) + u64(p.bytes)) % 4 == 0;
    u32 sum = 0;
    const auto take = [&](u32 word) {
        sum = tables[sum & 255] ^ tables[256 + (sum >> 8 & 255)] ^ tables[512 + (sum >> 16 & 255)] ^
              tables[768 + (sum >> 24)] ^ word;
    };
    if (first >= 0 && aligned) {
        const u32 *words = reinterpret_cast<const u32 *>(p.at + first) + thread;
#pragma unroll 8
        for (u32 i = 0; i < TILE_WORDS / THREADS; i++) take(words[i * THREADS]);
    } else {
#pragma unroll 1
        for (u32 i = 0; i < TILE_WORDS / THREADS; i++) {
            const i64 at = first + i64(i * THREADS + thread) * 4;
            u32 word = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (at + j >= 0) word |= u32(p.at[at + j]) << (8 * j);
            }
            take(word);
        }
    }

    sums[thread] = sum;
    __syncthreads();
#pragma unroll 1
    for (u32 level = 0; level < LEVELS; level++) {
        const u32 right = thread + (1u << level);
        if (thread % (2u << level) == 0) sums[thread] = times(sums[thread], p.powers[level]) ^ sums[right];
        __syncthreads();
    }
    if (thread == 0) p.remainders[blockIdx.x] = times(sums[0], POLYNOMIAL);
}
