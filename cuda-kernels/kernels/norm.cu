// Root mean square norm and layer norm of rows, with an addition before them.
//
// Bound by memory: a row is read once, kept in registers, and written once; with an addition one more tensor is read and one
// more written. A thread has 16 bytes a pack under way and a multiprocessor 32 KiB or more of them, which is what its share of the
// bandwidth times the latency of memory asks for. The variance is a second pass over the registers: a difference of squares
// would lose the digits of a small one.
#include "floats.cuh"

struct NormParams {
    const void *x;
    // Null, or added to x; the sums go to `sum`.
    const void *residual;
    const void *weight;
    // Null, or added at the end.
    const void *bias;
    void *sum;
    void *y;
    i64 rows;
    u32 width;
    float eps;
    u32 weight_type, bias_type;
    // Whether the mean is taken away.
    u32 centred;
    u32 y_type;
};

// x + residual as its type holds it, which is what a norm after a separate addition would read.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> read_pack(const NormParams &p, i64 at) {
    Pack<T, N> pack = load<T, N>(static_cast<const T *>(p.x) + at);
    if (p.residual != nullptr) {
        const Pack<T, N> other = load<T, N>(static_cast<const T *>(p.residual) + at);
#pragma unroll
        for (int j = 0; j < N; j++) pack.at[j] = from_f32<T>(to_f32(pack.at[j]) + to_f32(other.at[j]));
        store(static_cast<T *>(p.sum) + at, pack);
    }
    return pack;
}

template <typename T, int N>
__device__ __forceinline__ void
write_pack(const NormParams &p, i64 row, u32 column, const Pack<T, N> &pack, float mean, float factor) {
    float weight[N], bias[N] = {};
    load_floats(weight, p.weight, p.weight_type, column);
    if (p.bias != nullptr) load_floats(bias, p.bias, p.bias_type, column);
    float result[N];
#pragma unroll
    for (int j = 0; j < N; j++) result[j] = (to_f32(pack.at[j]) - mean) * factor * weight[j] + bias[j];
    store_floats(p.y, p.y_type, row * p.width + column, result);
}

// Threads that share a row: a warp or a block.
struct Warp {
    static __device__ __forceinline__ float sum(float x, float *) { return warp_sum(x); }
    static __device__ __forceinline__ u32 rank() { return threadIdx.x % WARP; }
    static __device__ __forceinline__ u32 size() { return WARP; }
};
struct Block {
    static __device__ __forceinline__ float sum(float x, float *scratch) { return block_sum(x, scratch); }
    static __device__ __forceinline__ u32 rank() { return threadIdx.x; }
    static __device__ __forceinline__ u32 size() { return blockDim.x; }
};

// A row of no more than PACKS packs a thread, in registers. Rows and vectors are aligned to packs.
template <typename T, typename Group, int PACKS>
__device__ __forceinline__ void norm_in_registers(const NormParams &p, i64 row, float *scratch) {
    constexpr int N = WIDE<T>;
    const u32 packs = p.width / N;
    Pack<T, N> held[PACKS];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const u32 pack = Group::rank() + i * Group::size();
        if (pack < packs) held[i] = read_pack<T, N>(p, row * p.width + pack * N);
    }
    float mean = 0.0f;
    if (p.centred) {
#pragma unroll
        for (int i = 0; i < PACKS; i++) {
            if (Group::rank() + i * Group::size() < packs) {
#pragma unroll
                for (int j = 0; j < N; j++) sum += to_f32(held[i].at[j]);
            }
        }
        mean = Group::sum(sum, scratch) / float(p.width);
    }
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        if (Group::rank() + i * Group::size() < packs) {
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float x = to_f32(held[i].at[j]) - mean;
                squares += x * x;
            }
        }
    }
    const float factor = 1.0f / sqrtf(Group::sum(squares, scratch + WARP) / float(p.width) + p.eps);
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        const u32 pack = Group::rank() + i * Group::size();
        if (pack < packs) write_pack<T, N>(p, row, pack * N, held[i], mean, factor);
    }
}

// A row of any width at any address, which each pass reads again, from caches as far as it fits in them. A thread reads in later
// passes only what it read in the first: it may have overwritten it.
template <typename T, int N> __device__ __forceinline__ void norm_in_memory(const NormParams &p, float *scratch) {
    const i64 row = blockIdx.x;
    const T *read = static_cast<const T *>(p.residual != nullptr ? p.sum : p.x) + row * p.width;
    const u32 step = blockDim.x * N;
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x * N; i < p.width; i += step) {
        const Pack<T, N> pack = read_pack<T, N>(p, row * p.width + i);
#pragma unroll
        for (int j = 0; j < N; j++) sum += to_f32(pack.at[j]);
    }
    const float mean = p.centred ? block_sum(sum, scratch) / float(p.width) : 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x * N; i < p.width; i += step) {
        const Pack<T, N> pack = load<T, N>(read + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float x = to_f32(pack.at[j]) - mean;
            squares += x * x;
        }
    }
    const float factor = 1.0f / sqrtf(block_sum(squares, scratch + WARP) / float(p.width) + p.eps);
    for (u32 i = threadIdx.x * N; i < p.width; i += step) write_pack<T, N>(p, row, i, load<T, N>(read + i), mean, factor);
}

template <typename T> __device__ __forceinline__ void norm_by_warps(const NormParams &p) {
    const i64 row = global_thread() / WARP;
    if (row < p.rows) norm_in_registers<T, Warp, 4>(p, row, nullptr);
}

template <typename T> __device__ __forceinline__ void norm_by_blocks(const NormParams &p) {
    SHARED(float, scratch, 2 * WARP);
    norm_in_registers<T, Block, 4>(p, blockIdx.x, scratch);
}

template <typename T, int N> __device__ __forceinline__ void norm_by_passes(const NormParams &p) {
    SHARED(float, scratch, 2 * WARP);
    norm_in_memory<T, N>(p, scratch);
}

#define X(T, name)                                                                                                               \
    KERNEL(256, norm_warps_##name, NormParams) { norm_by_warps<T>(p); }                                                          \
    KERNEL(512, norm_blocks_##name, NormParams) { norm_by_blocks<T>(p); }                                                        \
    KERNEL(512, norm_wide_##name, NormParams) { norm_by_passes<T, WIDE<T>>(p); }                                                 \
    KERNEL(512, norm_any_##name, NormParams) { norm_by_passes<T, 1>(p); }
EACH_FLOAT(X)
#undef X
