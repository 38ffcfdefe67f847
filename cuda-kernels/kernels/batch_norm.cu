// Batch norm with the statistics of training: a factor and a term for each channel.
//
// Bound by memory: each element is read and written once, 16 bytes a thread where planes are whole packs. As many threads share a
// plane as it has packs, so that planes of one element keep all of them busy, too.
#include "conv.cuh"

struct BatchNormParams {
    const void *x;
    // Each `[channels]`.
    const void *weight, *bias, *mean, *variance;
    void *y;
    // Images times channels, and elements of each.
    i64 planes, inner;
    u32 channels;
    float eps;
    u32 weight_type, bias_type, mean_type, variance_type;
    u32 activation;
    // Threads of a block that share a plane: a power of two.
    u32 lanes;
    u32 wide, padding;
};

template <typename T, int N>
__device__ __forceinline__ void batch_norm_plane(const BatchNormParams &p, i64 plane, float mean, float factor, float bias) {
    const T *x = static_cast<const T *>(p.x) + plane * p.inner;
    T *y = static_cast<T *>(p.y) + plane * p.inner;
    const i64 step = i64(p.lanes) * gridDim.y * N;
#pragma unroll 2
    for (i64 i = (i64(blockIdx.y) * p.lanes + threadIdx.x % p.lanes) * N; i < p.inner; i += step) {
        Pack<T, N> pack = load<T, N>(x + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            pack.at[j] = from_f32<T>(activated(p.activation, (to_f32(pack.at[j]) - mean) * factor + bias));
        }
        store(y + i, pack);
    }
}

template <typename T> __device__ __forceinline__ void batch_norm(const BatchNormParams &p) {
    const i64 plane = global_thread() / p.lanes;
    if (plane >= p.planes) return;
    const u32 channel = u32(plane % p.channels);
    const float mean = load_float(p.mean, p.mean_type, channel);
    const float root = sqrtf(load_float(p.variance, p.variance_type, channel) + p.eps);
    const float factor = load_float(p.weight, p.weight_type, channel) / root, bias = load_float(p.bias, p.bias_type, channel);
    if (p.wide) {
        batch_norm_plane<T, WIDE<T>>(p, plane, mean, factor, bias);
    } else {
        batch_norm_plane<T, 1>(p, plane, mean, factor, bias);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, batch_norm_##name, BatchNormParams) { batch_norm<T>(p); }
EACH_FLOAT(X)
#undef X
