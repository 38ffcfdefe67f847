// What a kernel's source needs of CUDA, for a C++ compiler and one CPU thread: each thread of a block is a coroutine
// (`src/host/`), which runs until it waits for others at a barrier or in a warp's exchange.
//
// It is made to find mistakes, not to be fast: shared memory is poisoned before each block, threads run in an order that a seed
// picks, asynchronous copies arrive when they are waited for and not before, or in some orders at once, and a barrier that some
// threads never reach is an error of the launch.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __launch_bounds__(...)

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct host_dim3 {
    unsigned x, y, z;
};
static inline float2 make_float2(float x, float y) { return float2{x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return float4{x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return uint2{x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }

// What the coroutine that runs now is: `src/host/block.rs` has the twin and keeps it.
struct HostThread {
    host_dim3 thread, block, block_dim, grid_dim;
    unsigned char *dynamic_shared;
};
extern "C" {
const HostThread *genie_host_thread(void);
void genie_host_block_barrier(void);
// Waits for the lanes of `mask`.
void genie_host_warp_barrier(unsigned mask);
// Leaves 16 bytes for the other lanes of `mask`, waits for theirs, and gives those of all lanes: 32 times 16 bytes, which stay
// until this lane's next exchange but one.
const unsigned char *genie_host_exchange(unsigned mask, const void *value, unsigned bytes);
// The array in shared memory of this place of the source.
void *genie_host_shared(const void *place, unsigned long bytes);
// Asynchronous copies: see `cp_async_16` in `async.cuh`.
void genie_host_copy_async(void *to, const void *from, unsigned bytes, unsigned valid);
void genie_host_copy_commit(void);
void genie_host_copy_wait(unsigned groups);
}

#define threadIdx (genie_host_thread()->thread)
#define blockIdx (genie_host_thread()->block)
#define blockDim (genie_host_thread()->block_dim)
#define gridDim (genie_host_thread()->grid_dim)

#define KERNEL(threads, name, Params)                                                                                            \
    static void name##_kernel(const Params &p);                                                                                  \
    extern "C" void genie_host_##name(const void *params) { name##_kernel(*static_cast<const Params *>(params)); }               \
    static void name##_kernel(const Params &p)

// The address of a static variable names the place; templates have one each. The array lies in the block's shared memory.
#define SHARED(T, name, count)                                                                                                   \
    static const char name##_place = 0;                                                                                          \
    T *const name = static_cast<T *>(genie_host_shared(&name##_place, sizeof(T) * (count)))
#define DYNAMIC_SHARED(name) unsigned char *const name = genie_host_thread()->dynamic_shared

static inline void __syncthreads() { genie_host_block_barrier(); }
// Whether any thread of the block says so.
static inline int __syncthreads_or(int predicate) {
    static const char place = 0;
    int *const any = static_cast<int *>(genie_host_shared(&place, sizeof(int)));
    *any = 0;
    genie_host_block_barrier();
    if (predicate) *any = 1;
    genie_host_block_barrier();
    const int result = *any;
    // Nobody clears it for the next time before all have read it.
    genie_host_block_barrier();
    return result;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) { genie_host_warp_barrier(mask); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

static inline unsigned host_lane() {
    const HostThread *t = genie_host_thread();
    return (t->thread.x + t->block_dim.x * (t->thread.y + t->block_dim.y * t->thread.z)) % 32;
}

template <typename T> static inline T host_from_lane(unsigned mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= 16, "a register or four");
    const unsigned char *all = genie_host_exchange(mask, &value, sizeof(T));
    T result;
    memcpy(&result, all + 16 * (lane % 32), sizeof(T));
    return result;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    const unsigned me = host_lane();
    return host_from_lane(mask, value, me / width * width + unsigned(lane) % width);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned me = host_lane(), from = me ^ unsigned(bits);
    return host_from_lane(mask, value, from / width == me / width ? from : me);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned me = host_lane(), from = me + by;
    return host_from_lane(mask, value, from / width == me / width ? from : me);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    const unsigned me = host_lane();
    return host_from_lane(mask, value, me % width >= by ? me - by : me);
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const unsigned char *all = genie_host_exchange(mask, &predicate, sizeof(predicate));
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; lane++) {
        int theirs = 0;
        if (mask >> lane & 1) memcpy(&theirs, all + 16 * lane, sizeof(theirs));
        votes |= unsigned(theirs != 0) << lane;
    }
    return votes;
}
static inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// One thread of the CPU runs all of them: between two waits everything is atomic.
template <typename T> static inline T atomicAdd(T *at, T value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <typename T> static inline T atomicMax(T *at, T value) {
    const T old = *at;
    if (value > old) *at = value;
    return old;
}
template <typename T> static inline T atomicMin(T *at, T value) {
    const T old = *at;
    if (value < old) *at = value;
    return old;
}
template <typename T> static inline T atomicOr(T *at, T value) {
    const T old = *at;
    *at = old | value;
    return old;
}
template <typename T> static inline T atomicExch(T *at, T value) {
    const T old = *at;
    *at = value;
    return old;
}
template <typename T> static inline T atomicCAS(T *at, T expected, T value) {
    const T old = *at;
    if (old == expected) *at = value;
    return old;
}
static inline unsigned atomicInc(unsigned *at, unsigned most) {
    const unsigned old = *at;
    *at = old >= most ? 0 : old + 1;
    return old;
}

template <typename To, typename From> static inline To host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline float __uint_as_float(unsigned x) { return host_bits<float>(x); }
static inline unsigned __float_as_uint(float x) { return host_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return host_bits<float>(x); }
static inline int __float_as_int(float x) { return host_bits<int>(x); }
static inline double __longlong_as_double(long long x) { return host_bits<double>(x); }
static inline long long __double_as_longlong(double x) { return host_bits<long long>(x); }
template <typename T> static inline T __ldg(const T *from) { return *from; }
template <typename T> static inline T __ldcg(const T *from) { return *from; }
template <typename T> static inline T __ldcs(const T *from) { return *from; }
template <typename T> static inline void __stcg(T *to, T value) { *to = value; }
template <typename T> static inline void __stcs(T *to, T value) { *to = value; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
// The C library has these names for itself.
#define __expf(x) expf(x)
#define __logf(x) logf(x)
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
// Sine and cosine of pi x, exact where they are 0 or 1: turned by whole quarters, which lose no digits.
static inline void sincospi(double x, double *sine, double *cosine) {
    const double quarters = rint(2.0 * x), rest = 3.14159265358979323846 * (x - 0.5 * quarters), s = sin(rest), c = cos(rest);
    switch ((long long)quarters & 3) {
    case 0: *sine = s, *cosine = c; break;
    case 1: *sine = c, *cosine = -s; break;
    case 2: *sine = -s, *cosine = -c; break;
    default: *sine = -c, *cosine = s; break;
    }
}
// The inverse of the error function, by Newton's method on the complement, whose digits last.
static inline float erfinvf(float x) {
    const double a = fabs(double(x));
    if (!(a < 1.0)) return a == 1.0 ? copysignf(INFINITY, x) : NAN;
    double y = 0.0;
    for (int i = 0; i < 100; i++) {
        const double off = a < 0.5 ? erf(y) - a : (1.0 - a) - erfc(y);
        const double step = off / (1.1283791670955126 * exp(-y * y));
        y -= step;
        if (fabs(step) <= 1e-14 * y) break;
    }
    return copysignf(float(y), x);
}
// Bessel's I0, as the mean of e^(x cos t): evenly spaced points find a periodic function's exactly.
static inline float cyl_bessel_i0f(float x) {
    double sum = 0.0;
    for (int i = 0; i < 400; i++) sum += exp(double(x) * cos(i * 3.14159265358979323846 / 200.0));
    return float(sum / 400.0);
}
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
// Bytes 0 to 3 are those of `a`, 4 to 7 those of `b`; each nibble of the selector names one (the sign's copies are not needed here).
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const unsigned long long all = (unsigned long long)(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= unsigned(all >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
    return result;
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return unsigned(((unsigned long long)(high) << 32 | low) >> (by & 31));
}
static inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)(a)*b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)(a)*b >> 64);
}
template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }

static inline float host_f16_to_f32(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, magnitude = uint32_t(bits & 0x7fff) << 13;
    // The exponent's bias is 112 less: one product moves it, of subnormal numbers too. Infinities and NaN keep their fraction.
    const uint32_t finite = __float_as_uint(__uint_as_float(magnitude) * 0x1p112f);
    return __uint_as_float(sign | (magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : finite));
}
static inline uint16_t host_f32_to_f16(float x) {
    const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(0x7fff);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    // Below the smallest normal number, adding 2^-1 rounds to a multiple of 2^-24, which is what subnormal numbers are.
    if (magnitude < 0x38800000) return uint16_t(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000));
    return uint16_t(sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}
