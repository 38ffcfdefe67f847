// What every kernel starts from: how a kernel is declared, element types, wide loads, sums over a warp and a block.
//
// A kernel takes one structure of parameters, which `src/launch/` has as a `#[repr(C)]` twin: addresses are `u64` there and
// pointers here, and neither has hidden padding. Indices into tensors are 64 bits wide: a tensor may have more than 2^31 elements.
#pragma once

#ifdef GENIE_HOST
#include "cuda_on_host.h"
#else
#include <stdint.h>

// KERNEL(threads, name, Params) { ... } defines an entry point: at most `threads` threads a block, parameters in `p`. Its body begins
// when `begin` has returned.
#define KERNEL(threads, name, Params)                                                                                            \
    __device__ __forceinline__ void name##_body(const Params &p);                                                                \
    extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Params p) {                               \
        let_next_begin();                                                                                                        \
        begin(p);                                                                                                                \
        name##_body(p);                                                                                                          \
    }                                                                                                                            \
    __device__ __forceinline__ void name##_body(const Params &p)

// SHARED(T, name, count): an array in shared memory. It holds nothing yet.
#define SHARED(T, name, count) __shared__ __align__(16) T name[count]

// DYNAMIC_SHARED(name): the bytes of shared memory that the launch asked for, aligned to 16.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

// CALLED: a function of a header that is not inlined. On the device it is not `static`: the names of those are made from where the
// source lies, and what is compiled must be the same wherever that is.
#ifdef GENIE_HOST
#define CALLED static __noinline__
#else
#define CALLED __device__ __noinline__
#endif

typedef long long i64;
typedef unsigned long long u64;
typedef int i32;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define WARP 32
#define FULL 0xffffffffu

// Kernels that follow each other in a stream may overlap (compute capability 9.0, "programmatic dependent launch"; PTX ISA 9.0,
// 9.7.13.13): the next one's blocks come to a multiprocessor as soon as all blocks of this one have, and wait there until this one
// has ended and what it wrote can be seen. Every kernel waits, so that one that has ended says that all before it have. Before it
// waits, a kernel writes nothing to global memory, and reads nothing that any kernel of a run writes.

// Lets the next kernel's blocks come.
__device__ __forceinline__ void let_next_begin() {
#if !defined(GENIE_HOST) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits for the kernels before this one. Every thread that reads or writes global memory does; more than once is allowed.
__device__ __forceinline__ void wait_for_previous() {
#if !defined(GENIE_HOST) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// What a kernel does before its body. Kernels that have something to do before they wait overload it for their parameters.
template <typename Params> __device__ __forceinline__ void begin(const Params &) { wait_for_previous(); }

#if !defined(GENIE_HOST) && __CUDA_ARCH__ >= 900
// A read through the cache of constants promises that nothing writes there while the kernel runs, and may be moved to its very
// beginning. A kernel that begins before the one before it has ended cannot promise that.
#define __ldg(from) (*(from))
#endif

// Element types that C++ has no name for, as bits: arithmetic is done in f32.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float to_f32(float x) { return x; }

__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ __forceinline__ float to_f32(f16 x) {
#ifdef GENIE_HOST
    return host_f16_to_f32(x.bits);
#else
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
#endif
}

// The nearest value of type T, ties to even.
template <typename T> __device__ __forceinline__ T from_f32(float x);

template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }

template <> __device__ __forceinline__ f16 from_f32<f16>(float x) {
#ifdef GENIE_HOST
    return f16{host_f32_to_f16(x)};
#else
    f16 narrow;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#endif
}

template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) {
#if defined(GENIE_HOST) || __CUDA_ARCH__ < 800
    // Half a unit in the last place, or just under it where the last bit is 0, carries into what stays.
    const u32 bits = __float_as_uint(x);
    return bf16{x == x ? u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : u16(0x7fff)};
#else
    bf16 narrow;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
    return narrow;
#endif
}

// N elements that are loaded and stored by one instruction: N * sizeof(T) is 4, 8 or 16, and the address a multiple of it.
template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
    T at[N];
};

// Elements in 16 bytes.
template <typename T> constexpr int WIDE = 16 / int(sizeof(T));

template <typename T, int N> __device__ __forceinline__ Pack<T, N> load(const T *from) {
    return *reinterpret_cast<const Pack<T, N> *>(from);
}

template <typename T, int N> __device__ __forceinline__ void store(T *to, const Pack<T, N> &pack) {
    *reinterpret_cast<Pack<T, N> *>(to) = pack;
}

// As `load`, of data that nothing writes while the kernel runs.
template <typename T, int N> __device__ __forceinline__ Pack<T, N> load_constant(const T *from) {
    static_assert(sizeof(T) * N == 16 || sizeof(T) * N == 8 || sizeof(T) * N == 4, "one load");
    Pack<T, N> pack;
    if constexpr (sizeof(T) * N == 16) {
        *reinterpret_cast<uint4 *>(&pack) = __ldg(reinterpret_cast<const uint4 *>(from));
    } else if constexpr (sizeof(T) * N == 8) {
        *reinterpret_cast<uint2 *>(&pack) = __ldg(reinterpret_cast<const uint2 *>(from));
    } else {
        *reinterpret_cast<u32 *>(&pack) = __ldg(reinterpret_cast<const u32 *>(from));
    }
    return pack;
}

// The global index of this thread, and how many threads the grid has, along x.
__device__ __forceinline__ i64 global_thread() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 global_threads() { return i64(gridDim.x) * blockDim.x; }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL, x, step);
    return x;
}

// NaN if any lane has one: comparisons alone would lose it.
__device__ __forceinline__ float max_with_nan(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float min_with_nan(float a, float b) { return a < b || a != a ? a : b; }

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) x = max_with_nan(x, __shfl_xor_sync(FULL, x, step));
    return x;
}

// The sum over a block of whole warps, in every thread. `scratch` holds a float a warp; it may be used again after the next
// barrier.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    x = warp_sum(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : 0.0f;
    return warp_sum(x);
}

// As `block_sum`: the largest.
__device__ __forceinline__ float block_max(float x, float *scratch) {
    const int warps = blockDim.x / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    x = warp_max(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    x = lane < warps ? scratch[lane] : -INFINITY;
    return warp_max(x);
}

// Whether an integer is below 0, which those without a sign never are.
template <typename T> __device__ __forceinline__ bool is_negative(T x) {
    if constexpr (T(-1) < T(0)) return x < T(0);
    return false;
}

// EACH_FLOAT(X): X(T, name) for each float type; EACH_TYPE(X) for each element type. Bool is a byte of its own kind.
struct boolean {
    u8 byte;
};
#define EACH_FLOAT(X) X(float, f32) X(f16, f16) X(bf16, bf16)
#define EACH_INTEGER(X) X(i64, i64) X(i32, i32) X(u8, u8)
#define EACH_TYPE(X) EACH_FLOAT(X) EACH_INTEGER(X) X(boolean, bool)
