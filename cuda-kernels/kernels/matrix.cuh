// Products of small matrices by a warp's matrix units (`mma.sync`, PTX ISA 9.0, 9.7.14): d += a * b with a 16 x 16, b 16 x 8, f32
// sums.
//
// Fragments, with g = lane / 4 and t = lane % 4; each u32 holds two elements, the lower first:
//   a[0]: row g, columns 2t, 2t+1;  a[1]: row g + 8, the same;  a[2], a[3]: as a[0], a[1], columns + 8
//   b[0]: rows 2t, 2t+1 of column g;  b[1]: rows + 8
//   d[0], d[1]: row g, columns 2t, 2t+1;  d[2], d[3]: row g + 8
#pragma once

#include "genie.cuh"

#ifdef GENIE_HOST
template <typename T> static inline void host_mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const u32 lane = host_lane();
    float x[2][16], y[2][16];
    const auto widen = [](float *to, const unsigned char *from) {
        u32 pair;
        memcpy(&pair, from, 4);
        to[0] = to_f32(T{u16(pair)});
        to[1] = to_f32(T{u16(pair >> 16)});
    };
    // Of each matrix the four lanes that have the rows, or the column, of this lane's sums.
    const unsigned char *from = genie_host_exchange(FULL, &a, sizeof(a));
    for (u32 i = 0; i < 16; i++) {
        widen(&x[i % 2][i / 8 * 8 + i / 2 % 4 * 2], from + 16 * (lane / 4 * 4 + i / 2 % 4) + 4 * (i / 8 * 2 + i % 2));
    }
    from = genie_host_exchange(FULL, &b, sizeof(b));
    for (u32 i = 0; i < 16; i++) {
        widen(&y[i % 2][i / 8 * 8 + i / 2 % 4 * 2], from + 16 * ((2 * (lane % 4) + i % 2) * 4 + i / 2 % 4) + 4 * (i / 8));
    }
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 16; k++) d[i] += x[i / 2][k] * y[i % 2][k];
    }
}
#endif

// d += a * b for T f16 or bf16. Compute capability 7.5 has f16 alone, and in halves.
template <typename T> __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]);

template <> __device__ __forceinline__ void mma<f16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef GENIE_HOST
    host_mma<f16>(d, a, b);
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int half = 0; half < 2; half++) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
    }
#endif
}

#if defined(GENIE_HOST) || __CUDA_ARCH__ >= 800
template <> __device__ __forceinline__ void mma<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef GENIE_HOST
    host_mma<bf16>(d, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#else
// No matrix unit of 7.5 takes bf16: the products are made one by one, from the other lanes' registers.
template <> __device__ __forceinline__ void mma<bf16>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < 16; k += 2) {
        const int from_a = lane / 4 * 4 + k % 8 / 2;
        const u32 low = __shfl_sync(FULL, a[k / 8 * 2], from_a), high = __shfl_sync(FULL, a[k / 8 * 2 + 1], from_a);
#pragma unroll
        for (int column = 0; column < 2; column++) {
            const u32 pair = __shfl_sync(FULL, b[k / 8], (2 * (lane % 4) + column) * 4 + k % 8 / 2);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float y = to_f32(bf16{u16(pair >> (16 * i))});
                d[column] += to_f32(bf16{u16(low >> (16 * i))}) * y;
                d[2 + column] += to_f32(bf16{u16(high >> (16 * i))}) * y;
            }
        }
    }
}
#endif

// Two floats, rounded to T, as one fragment register.
template <typename T> __device__ __forceinline__ u32 pack_pair(float low, float high) {
    return u32(from_f32<T>(low).bits) | u32(from_f32<T>(high).bits) << 16;
}
