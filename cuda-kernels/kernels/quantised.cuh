// Blocks of 32 quantised weights as GGUF has them, little-endian, one after another without padding:
//   Q8_0, 34 bytes: scale (f16), 32 signed bytes; a weight is byte * scale
//   Q4_0, 18 bytes: scale, 16 bytes; the low nibbles are weights 0 to 15, the high ones 16 to 31: (nibble - 8) * scale
//   Q4_1, 20 bytes: scale, minimum (f16), 16 bytes as in Q4_0: nibble * scale + minimum
#pragma once

#include "genie.cuh"

#define BLOCK 32

// Codes of `launch::weight::Format`.
enum Format : u32 { PLAIN_F32, PLAIN_F16, PLAIN_BF16, Q8_0, Q4_0, Q4_1 };

__host__ __device__ constexpr int block_bytes(u32 format) { return format == Q8_0 ? 34 : format == Q4_0 ? 18 : 20; }

// Bytes in front of a block's quants.
__host__ __device__ constexpr int block_head(u32 format) { return format == Q4_1 ? 4 : 2; }

__device__ __forceinline__ float half_at(const u8 *at) { return to_f32(f16{*reinterpret_cast<const u16 *>(at)}); }

// x + y of two bf16 each, where the sums are bf16.
__device__ __forceinline__ u32 add_pairs_bf16(u32 x, u32 y) {
#if defined(GENIE_HOST) || __CUDA_ARCH__ < 800
    const float low = __uint_as_float(x << 16) + __uint_as_float(y << 16);
    const float high = __uint_as_float(x & 0xffff0000) + __uint_as_float(y & 0xffff0000);
    return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000);
#else
    u32 sum;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(0x3f803f80), "r"(y));
    return sum;
#endif
}

// The whole numbers of a format's quants as bf16, which has 8 bits and so holds each exactly. 0x4300 is 128, and the seven bits
// under its exponent count ones.

// Two signed bytes, in the low bytes of two halves. What is over 127 has 128 taken off twice: 0xc300 is -128, 0xc380 is -256.
__device__ __forceinline__ u32 bytes_to_bf16(u32 pair) {
    return add_pairs_bf16((pair & 0x007f007f) | 0x43004300, (pair & 0x00800080) | 0xc300c300);
}

// Two nibbles, in the low nibbles of two halves. 0xc308 is -136.
template <u32 FORMAT> __device__ __forceinline__ u32 nibbles_to_bf16(u32 pair) {
    return add_pairs_bf16((pair & 0x000f000f) | 0x43004300, FORMAT == Q4_0 ? 0xc308c308 : 0xc300c300);
}

// Bytes 0 and 1, or 2 and 3, of a word in the low bytes of two halves.
__device__ __forceinline__ u32 spread_low(u32 word) { return __byte_perm(word, 0, 0x4140); }
__device__ __forceinline__ u32 spread_high(u32 word) { return __byte_perm(word, 0, 0x4342); }
