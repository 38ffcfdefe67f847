// Convolutions in two dimensions, `[images, channels, height, width]`: f32 products and sums, without a matrix of windows in
// memory.
#include "conv.cuh"

#define THREADS 256
// A block of `conv_tiled` makes TILE outputs of TILE positions, STEP products of each at a time.
#define TILE 64
#define STEP 16
// Columns of weights are spread over the banks when they are stored, and aligned to 16 bytes when they are loaded.
#define WEIGHT_PITCH (TILE + 8)

// A product of matrices whose second has a column a position: its elements are taken from x as they are needed (an implicit
// product, as cuDNN's paper has it: Chetlur et al. 2014). Bound by f32 arithmetic: of each 16 products' operands, 8 come from
// shared memory. The next step's elements are under way to registers while this step's are multiplied.
template <typename T> __device__ __forceinline__ void conv_tiled(const ConvParams &p) {
    SHARED(float, weights, 2 * STEP * WEIGHT_PITCH);
    SHARED(float, windows, 2 * STEP * TILE);
    SHARED(Tap, taps, 2 * STEP);
    constexpr u32 LOADS = STEP * TILE / THREADS;
    const u32 group_channels = p.channels / p.groups, group_outputs = p.outputs / p.groups, group = blockIdx.z;
    const u32 depth = group_channels * p.rows * p.columns, positions = p.out_height * p.out_width;
    const u32 first_output = blockIdx.y * TILE;
    const i64 first_position = i64(blockIdx.x) * TILE, all_positions = p.images * positions;

    // This thread loads a position's elements, and an output's weights.
    const u32 column = threadIdx.x % TILE, row = threadIdx.x / TILE;
    const Window window = window_of(p, first_position + column, group);
    const T *image = static_cast<const T *>(p.x) + window.start;
    const u32 output = first_output + threadIdx.x / 4, part = threadIdx.x % 4;
    const i64 weight_row = (i64(group) * group_outputs + output) * depth;

    float loaded_x[LOADS], loaded_w[LOADS];
    const auto load_step = [&](u32 step) {
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            const Tap tap = taps[step % 2 * STEP + row + i * (THREADS / TILE)];
            const i32 y = window.y + tap.down, x = window.x + tap.across;
            const bool inside = u32(y) < p.height && u32(x) < p.width;
            loaded_x[i] = inside ? to_f32(image[tap.plane + i64(y) * p.width + x]) : 0.0f;
            const u32 k = step * STEP + part + 4 * i;
            const bool used = k < depth && output < group_outputs;
            loaded_w[i] = used ? load_float(p.weight, p.weight_type, weight_row + k) : 0.0f;
        }
    };
    const auto store_step = [&](u32 step) {
        const u32 half = step % 2 * STEP;
#pragma unroll
        for (u32 i = 0; i < LOADS; i++) {
            windows[(half + row + i * (THREADS / TILE)) * TILE + column] = loaded_x[i];
            weights[(half + part + 4 * i) * WEIGHT_PITCH + threadIdx.x / 4] = loaded_w[i];
        }
    };
    const auto make_taps = [&](u32 step) {
        if (threadIdx.x < STEP) taps[step % 2 * STEP + threadIdx.x] = tap_of(p, step * STEP + threadIdx.x, depth);
    };

    const u32 across = threadIdx.x % 16 * 4, down = threadIdx.x / 16 * 4, steps = (depth + STEP - 1) / STEP;
    float sums[4][4] = {};
    make_taps(0);
    make_taps(1);
    __syncthreads();
    load_step(0);
    store_step(0);
    __syncthreads();
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        const u32 half = step % 2 * STEP;
        if (step + 1 < steps) load_step(step + 1);
        // Read before the last barrier, and not again before the next but one.
        make_taps(step + 2);
#pragma unroll
        for (u32 k = 0; k < STEP; k++) {
            const Pack<float, 4> w = load<float, 4>(weights + (half + k) * WEIGHT_PITCH + down);
            const Pack<float, 4> x = load<float, 4>(windows + (half + k) * TILE + across);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(w.at[i], x.at[j], sums[i][j]);
            }
        }
        if (step + 1 < steps) store_step(step + 1);
        __syncthreads();
    }
    const Place first = place_of(first_position, positions);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        if (first_position + across + j >= all_positions) break;
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (first_output + down + i >= group_outputs) break;
            finish<T>(p, first, across + j, positions, group * group_outputs + first_output + down + i, sums[i][j]);
        }
    }
}

// Outputs that a thread of `conv_planes` makes.
#define EACH 4

// For groups of few outputs, depthwise convolutions first of all. Bound by memory: a block brings the part of x that its outputs
// see into shared memory once, with its padding, and each product then is two loads from there. Groups of more channels do so
// channel by channel.
template <typename T> __device__ __forceinline__ void conv_planes(const ConvParams &p) {
    DYNAMIC_SHARED(dynamic);
    const u32 height = (p.tile_height - 1) * p.stride_y + (p.rows - 1) * p.dilation_y + 1;
    const u32 width = (p.tile_width - 1) * p.stride_x + (p.columns - 1) * p.dilation_x + 1;
    const u32 window = p.rows * p.columns, tile = p.tile_height * p.tile_width;
    float *const image = reinterpret_cast<float *>(dynamic), *const weights = image + p.tile_planes * height * width;
    const u32 group_channels = p.channels / p.groups, group_outputs = p.outputs / p.groups;
    const u32 down = (p.out_height + p.tile_height - 1) / p.tile_height;
    const u32 first_y = blockIdx.y % down * p.tile_height, first_x = blockIdx.y / down * p.tile_width;
    const i64 first_plane = i64(blockIdx.x) * p.tile_planes, left = p.images * p.outputs - first_plane;
    const u32 planes = left < p.tile_planes ? u32(left) : p.tile_planes;

    u32 at[EACH], weight_at[EACH];
    float sums[EACH] = {};
#pragma unroll
    for (u32 j = 0; j < EACH; j++) {
        // Those past the last output repeat output 0.
        const u32 i = threadIdx.x + j * THREADS, in = i < planes * tile ? i : 0, plane = in / tile, place = in % tile;
        at[j] = (plane * height + place / p.tile_width * p.stride_y) * width + place % p.tile_width * p.stride_x;
        weight_at[j] = plane * window;
    }
    const i32 corner_y = i32(first_y * p.stride_y) - i32(p.top), corner_x = i32(first_x * p.stride_x) - i32(p.left);
#pragma unroll 1
    for (u32 channel = 0; channel < group_channels; channel++) {
        // A warp brings a row at a time.
        for (u32 i = threadIdx.x / WARP; i < planes * height; i += THREADS / WARP) {
            const i64 plane = first_plane + i / height, n = plane / p.outputs;
            const u32 from_channel = u32(plane % p.outputs) / group_outputs * group_channels + channel;
            const i32 y = corner_y + i32(i % height);
            const T *row = static_cast<const T *>(p.x) + ((n * p.channels + from_channel) * p.height + y) * p.width;
            for (u32 c = threadIdx.x % WARP; c < width; c += WARP) {
                const i32 x = corner_x + i32(c);
                image[i * width + c] = u32(y) < p.height && u32(x) < p.width ? to_f32(row[x]) : 0.0f;
            }
        }
        for (u32 i = threadIdx.x; i < planes * window; i += THREADS) {
            const i64 output = (first_plane + i / window) % p.outputs;
            weights[i] = load_float(p.weight, p.weight_type, (output * group_channels + channel) * window + i % window);
        }
        __syncthreads();
        for (u32 r = 0, w = 0; r < p.rows; r++) {
            const u32 row = r * p.dilation_y * width;
#pragma unroll 4
            for (u32 c = 0; c < p.columns; c++, w++) {
#pragma unroll
                for (u32 j = 0; j < EACH; j++) {
                    sums[j] = fmaf(image[at[j] + row + c * p.dilation_x], weights[weight_at[j] + w], sums[j]);
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 j = 0; j < EACH; j++) {
        const u32 i = threadIdx.x + j * THREADS, place = i % tile;
        const u32 y = first_y + place / p.tile_width, x = first_x + place % p.tile_width;
        if (i >= planes * tile || y >= p.out_height || x >= p.out_width) continue;
        const i64 plane = first_plane + i / tile;
        const float sum = sums[j] + bias_of(p, u32(plane % p.outputs));
        static_cast<T *>(p.y)[(plane * p.out_height + y) * p.out_width + x] = from_f32<T>(activated(p.activation, sum));
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(THREADS, conv_tiled_##name, ConvParams) { conv_tiled<T>(p); }                                                         \
    KERNEL(THREADS, conv_planes_##name, ConvParams) { conv_planes<T>(p); }
EACH_FLOAT(X)
#undef X

struct WindowsParams {
    ConvParams conv;
    void *to;
    // The first position, and how many.
    i64 first, count;
    u32 group, padding;
};

// The matrix of windows: `[images, channels of the group * rows * columns, count]`. Bound by memory, by what is written:
// neighbours write 16 bytes next to each other, and read next to each other where the stride is 1.
template <typename T, int N> __device__ __forceinline__ void windows_of(const WindowsParams &p) {
    const ConvParams &conv = p.conv;
    const u32 group_channels = conv.channels / conv.groups, depth = group_channels * conv.rows * conv.columns;
    const i64 at = global_thread() * N, image = blockIdx.z;
    if (at >= p.count) return;
    const u32 position = u32(p.first + at);
    for (u32 k = blockIdx.y; k < depth; k += gridDim.y) {
        const Tap tap = tap_of(conv, k, depth);
        const T *from = static_cast<const T *>(conv.x) +
                        (image * conv.channels + i64(p.group) * group_channels) * conv.height * conv.width + tap.plane;
        u32 row = position / conv.out_width, column = position % conv.out_width;
        Pack<T, N> pack;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const i32 y = i32(row * conv.stride_y) - i32(conv.top) + tap.down;
            const i32 x = i32(column * conv.stride_x) - i32(conv.left) + tap.across;
            pack.at[j] = u32(y) < conv.height && u32(x) < conv.width ? __ldg(from + i64(y) * conv.width + x) : T(0);
            if (++column == conv.out_width) {
                column = 0;
                row++;
            }
        }
        store(static_cast<T *>(p.to) + (image * depth + k) * p.count + at, pack);
    }
}

KERNEL(THREADS, windows_2, WindowsParams) { windows_of<u16, 1>(p); }
KERNEL(THREADS, windows_4, WindowsParams) { windows_of<u32, 1>(p); }
KERNEL(THREADS, windows_wide_2, WindowsParams) { windows_of<u16, 8>(p); }
KERNEL(THREADS, windows_wide_4, WindowsParams) { windows_of<u32, 4>(p); }
