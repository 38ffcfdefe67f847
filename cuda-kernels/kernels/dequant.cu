// ggml's blocks of 32 quantised numbers to floats.
//
// Bound by memory, mostly by what is written: a thread writes 16 bytes, and so neighbours write next to each other. Blocks are 34,
// 18 or 20 bytes long, so nothing in them is aligned to more than 2: they are read by twos, which neighbours find in the first
// cache.
#include "genie.cuh"

struct DequantParams {
    const u16 *blocks;
    void *y;
    i64 count;
    u32 format;
    u32 aligned;
};

// Codes of `launch::dequant::Format`.
enum Format : u32 { Q8_0, Q4_0, Q4_1 };

// Bytes of a block.
template <u32 FORMAT> constexpr int BLOCK_BYTES = FORMAT == Q8_0 ? 34 : FORMAT == Q4_0 ? 18 : 20;

template <typename T, u32 FORMAT> __device__ __forceinline__ void dequant_as(const DequantParams &p) {
    constexpr int N = WIDE<T>, PARTS = 32 / N;
    for (i64 i = global_thread(); i < p.count * PARTS; i += global_threads()) {
        const u16 *block = p.blocks + i / PARTS * (BLOCK_BYTES<FORMAT> / 2);
        // The part's first element.
        const u32 first = u32(i % PARTS) * N;
        const float scale = to_f32(f16{__ldg(block)});
        Pack<T, N> result;
        if constexpr (FORMAT == Q8_0) {
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                const u16 pair = __ldg(block + 1 + (first + j) / 2);
                result.at[j] = from_f32<T>(__fmul_rn(float(int8_t(pair & 0xff)), scale));
                result.at[j + 1] = from_f32<T>(__fmul_rn(float(int8_t(pair >> 8)), scale));
            }
        } else {
            const float least = FORMAT == Q4_1 ? to_f32(f16{__ldg(block + 1)}) : 0.0f;
            // The numbers 16 to 31 are the upper halves of the bytes.
            const u32 shift = first / 16 * 4;
            const u16 *bytes = block + (FORMAT == Q4_1 ? 2 : 1) + first % 16 / 2;
            // Product and sum are rounded one after the other, as the CPU does it.
            const auto number = [=](u32 nibble) {
                if constexpr (FORMAT == Q4_0) return __fmul_rn(float(int(nibble) - 8), scale);
                return __fadd_rn(__fmul_rn(float(nibble), scale), least);
            };
#pragma unroll
            for (int j = 0; j < N; j += 2) {
                const u32 pair = u32(__ldg(bytes + j / 2)) >> shift;
                result.at[j] = from_f32<T>(number(pair & 15));
                result.at[j + 1] = from_f32<T>(number(pair >> 8 & 15));
            }
        }
        T *to = static_cast<T *>(p.y) + i / PARTS * 32 + first;
        if (p.aligned) {
            store(to, result);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) to[j] = result.at[j];
        }
    }
}

template <typename T> __device__ __forceinline__ void dequant(const DequantParams &p) {
    switch (p.format) {
    case Q8_0: return dequant_as<T, Q8_0>(p);
    case Q4_0: return dequant_as<T, Q4_0>(p);
    case Q4_1: return dequant_as<T, Q4_1>(p);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, dequant_##name, DequantParams) { dequant<T>(p); }
EACH_FLOAT(X)
#undef X
