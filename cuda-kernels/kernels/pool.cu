// The largest or the mean of each window of a plane.
//
// Bound by memory: windows that overlap find their elements in the first cache. A thread makes an output; where windows are large
// and outputs few, as in a mean over all of a plane, a warp does.
#include "genie.cuh"

struct PoolParams {
    // `[planes, height, width]`.
    const void *x;
    // `[planes, out_height, out_width]`.
    void *y;
    i64 outputs;
    u32 height, width, out_height, out_width;
    u32 rows, columns, stride_y, stride_x, top, left;
    // Whether the result is a mean, and whether padding counts in its divisor.
    u32 average, count_padding;
    // 1, or WARP.
    u32 lanes, padding;
};

template <typename T> __device__ __forceinline__ void pool(const PoolParams &p) {
    const i64 output = global_thread() / p.lanes;
    if (output >= p.outputs) return;
    const u32 positions = p.out_height * p.out_width, place = u32(output % positions);
    const T *plane = static_cast<const T *>(p.x) + output / positions * p.height * p.width;
    // The part of the window that lies inside.
    const i32 y = i32(place / p.out_width * p.stride_y) - i32(p.top), x = i32(place % p.out_width * p.stride_x) - i32(p.left);
    const u32 first_y = max(y, 0), first_x = max(x, 0);
    const u32 rows = min(y + i32(p.rows), i32(p.height)) - first_y, columns = min(x + i32(p.columns), i32(p.width)) - first_x;
    const T *from = plane + i64(first_y) * p.width + first_x;
    float result = p.average ? 0.0f : -INFINITY;
#pragma unroll 4
    for (u32 i = p.lanes == 1 ? 0 : threadIdx.x % WARP; i < rows * columns; i += p.lanes) {
        const float value = to_f32(from[i64(i / columns) * p.width + i % columns]);
        result = p.average ? result + value : max_with_nan(result, value);
    }
    if (p.lanes != 1) result = p.average ? warp_sum(result) : warp_max(result);
    if (p.average) result /= float(p.count_padding ? p.rows * p.columns : rows * columns);
    if (p.lanes == 1 || threadIdx.x % WARP == 0) static_cast<T *>(p.y)[output] = from_f32<T>(result);
}

#define X(T, name)                                                                                                               \
    KERNEL(256, pool_##name, PoolParams) { pool<T>(p); }
EACH_FLOAT(X)
#undef X
