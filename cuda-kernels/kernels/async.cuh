// Copies from global to shared memory that pass no register (`cp.async`, compute capability 8.0), and matrices of 8 x 8 that a
// warp loads from shared memory (`ldmatrix`). PTX ISA 9.0, 9.7.9 and 9.7.14.
#pragma once

#include "genie.cuh"

// Copies 16 bytes, of which the first `valid` come from `from` and the others are zero. Both addresses are multiples of 16; `from`
// is not read where `valid` is 0. The bytes are there once a `cp_async_wait` has counted them and a barrier has followed.
__device__ __forceinline__ void cp_async_16(void *to, const void *from, u32 valid = 16) {
#ifdef GENIE_HOST
    genie_host_copy_async(to, from, 16, valid);
#elif __CUDA_ARCH__ >= 800
    const u32 shared = u32(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid) : "memory");
#else
    // Element types here are 2 or 4 bytes wide, and rows end at whole elements: `valid` is even.
    uint4 value = make_uint4(0, 0, 0, 0);
    if (valid == 16) {
        value = *static_cast<const uint4 *>(from);
    } else {
        u32 words[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            words[i] = 4 * i < valid ? static_cast<const u16 *>(from)[2 * i] : 0;
            if (4 * i + 2 < valid) words[i] |= u32(static_cast<const u16 *>(from)[2 * i + 1]) << 16;
        }
        value = make_uint4(words[0], words[1], words[2], words[3]);
    }
    *static_cast<uint4 *>(to) = value;
#endif
}

// Ends a group of copies.
__device__ __forceinline__ void cp_async_commit() {
#ifdef GENIE_HOST
    genie_host_copy_commit();
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until no more than `GROUPS` of this thread's groups are under way.
template <int GROUPS> __device__ __forceinline__ void cp_async_wait() {
#ifdef GENIE_HOST
    genie_host_copy_wait(GROUPS);
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// Asks for `count` elements of `bytes` each, from `index` on, to be brought to the second-level cache, by threads `me` of `threads`.
// Nothing waits for them.
#ifdef GENIE_HOST
static inline void prefetch(const void *, u32, i64, i64, u32, u32) {}
#else
__device__ __forceinline__ void prefetch(const void *from, u32 bytes, i64 index, i64 count, u32 me, u32 threads) {
    constexpr u32 LINE = 128;
    const u8 *begin = static_cast<const u8 *>(from) + index * bytes;
#pragma unroll 1
    for (i64 at = LINE * me; at < count * bytes; at += LINE * threads) asm volatile("prefetch.global.L2 [%0];" ::"l"(begin + at));
}
#endif

// Asks for `bytes` bytes to be brought to the second-level cache, all at once. Address and number are multiples of 16. Nothing waits
// for them, and GPUs older than compute capability 9.0 do nothing.
__device__ __forceinline__ void prefetch_bulk(const void *from, u32 bytes) {
#ifdef GENIE_HOST
    // Nothing, but what is not there faults.
    const auto touch = [&](u32 at) { (void)*reinterpret_cast<const volatile u64 *>(static_cast<const u8 *>(from) + at); };
    for (u32 at = 0; at < bytes; at += 4096) touch(at);
    touch(bytes - 8);
#elif __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"(bytes));
#endif
}

// Four matrices of 8 x 8 elements of 2 bytes: lane 8 * m + r gives the address of row r of matrix m (16 bytes, aligned to 16). Lane l
// gets elements 2 * (l % 4) and the next of row l / 4 of each.
__device__ __forceinline__ void ldmatrix_x4(u32 (&to)[4], const void *row) {
#ifdef GENIE_HOST
    const unsigned char *rows = genie_host_exchange(FULL, &row, sizeof(row));
    const u32 lane = host_lane();
    for (u32 m = 0; m < 4; m++) {
        const unsigned char *address;
        memcpy(&address, rows + 16 * (8 * m + lane / 4), sizeof(address));
        memcpy(&to[m], address + 4 * (lane % 4), 4);
    }
    // Nobody writes the rows before all have read them.
    __syncwarp();
#else
    const u32 shared = u32(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
#endif
}

// As `ldmatrix_x4`, each matrix transposed: lane l gets elements of column l / 4.
__device__ __forceinline__ void ldmatrix_x4_transposed(u32 (&to)[4], const void *row) {
#ifdef GENIE_HOST
    const unsigned char *rows = genie_host_exchange(FULL, &row, sizeof(row));
    const u32 lane = host_lane();
    for (u32 m = 0; m < 4; m++) {
        u16 pair[2];
        for (u32 i = 0; i < 2; i++) {
            const unsigned char *address;
            memcpy(&address, rows + 16 * (8 * m + 2 * (lane % 4) + i), sizeof(address));
            memcpy(&pair[i], address + 2 * (lane / 4), 2);
        }
        memcpy(&to[m], pair, 4);
    }
    __syncwarp();
#else
    const u32 shared = u32(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared)
                 : "memory");
#endif
}
