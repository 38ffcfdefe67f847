// What the kernels of convolutions share: sizes, and what follows the sum.
#pragma once

#include "floats.cuh"

struct ConvParams {
    // `[images, channels, height, width]`.
    const void *x;
    // `[outputs, channels / groups, rows, columns]`.
    const void *weight;
    // `[outputs]`, or null.
    const void *bias;
    // `[images, outputs, out_height, out_width]`.
    void *y;
    i64 images;
    u32 channels, height, width;
    u32 outputs, out_height, out_width;
    // Of the window.
    u32 rows, columns;
    u32 stride_y, stride_x, top, left, dilation_y, dilation_x;
    u32 groups, weight_type, bias_type, activation;
    // Of `conv_planes`: outputs that a block makes of a plane, down and across, and planes.
    u32 tile_height, tile_width, tile_planes;
    // Of `conv_matrix`: whether rows of the weight are whole packs.
    u32 weight_packs;
};

// Codes of `launch::elementwise::Unary`, of which these follow a layer; any other is none.
enum Activation : u32 { RELU, SILU, GELU, GELU_TANH, SIGMOID, TANH };

// Called, not inlined: it follows many elements in each kernel.
CALLED float curved(u32 activation, float x) {
    switch (activation) {
    case SILU: return x / (1.0f + expf(-x));
    case GELU: return 0.5f * x * erfcf(-0.70710678f * x);
    // x (1 + tanh u) / 2 = x / (1 + e^-2u), which loses no digits where tanh is near -1.
    case GELU_TANH: return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
    case SIGMOID: return 1.0f / (1.0f + expf(-x));
    default: return tanhf(x);
    }
}

__device__ __forceinline__ float activated(u32 activation, float x) {
    if (activation > TANH) return x;
    if (activation == RELU) return x < 0.0f ? 0.0f : x;
    return curved(activation, x);
}

__device__ __forceinline__ float bias_of(const ConvParams &p, u32 output) {
    return p.bias == nullptr ? 0.0f : load_float(p.bias, p.bias_type, output);
}

// An element of a window: where its channel starts, and its distance from the window's corner.
struct Tap {
    i64 plane;
    i32 down, across;
};

// Past any image, twice of it, too: taps there are zeros. Launches keep images below half of it.
#define OUTSIDE (1 << 29)

__device__ __forceinline__ Tap tap_of(const ConvParams &p, u32 k, u32 depth) {
    if (k >= depth) return Tap{0, OUTSIDE, OUTSIDE};
    const u32 window = p.rows * p.columns, channel = k / window, at = k % window;
    return Tap{i64(channel) * p.height * p.width, i32(at / p.columns * p.dilation_y), i32(at % p.columns * p.dilation_x)};
}

// The window of a position: its corner in the image, and where the first channel of its group starts in x.
struct Window {
    i32 y, x;
    i64 start;
};

// Positions are those of all images. One past the last has its window outside.
__device__ __forceinline__ Window window_of(const ConvParams &p, i64 position, u32 group) {
    const u32 positions = p.out_height * p.out_width, place = u32(position % positions);
    const i64 image = position / positions, channel = image * p.channels + i64(group) * (p.channels / p.groups);
    const i32 y = image < p.images ? i32(place / p.out_width * p.stride_y) - i32(p.top) : OUTSIDE;
    return Window{y, i32(place % p.out_width * p.stride_x) - i32(p.left), channel * p.height * p.width};
}

// Of positions of all images, where the first of a block lies: its image, and its place there.
struct Place {
    i64 image;
    u32 place;
};

__device__ __forceinline__ Place place_of(i64 position, u32 positions) {
    return Place{position / positions, u32(position % positions)};
}

// Stores the sum of an output at the position `offset` behind the block's first.
template <typename T>
__device__ __forceinline__ void finish(const ConvParams &p, const Place &first, u32 offset, u32 positions, u32 output, float sum) {
    const u32 at = first.place + offset;
    T *plane = static_cast<T *>(p.y) + ((first.image + at / positions) * p.outputs + output) * positions;
    plane[at % positions] = from_f32<T>(activated(p.activation, sum + bias_of(p, output)));
}
