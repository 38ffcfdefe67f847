// Copies between tensors whose elements lie apart: transposes, slices, pieces that are joined.
//
// Bound by memory: every byte is read and written once. The launch takes the largest elements, up to 16 bytes, that alignment, strides
// and the innermost dimension allow, so that a copy of whole rows moves 16 bytes a thread. Where neighbours in y are no neighbours in
// x, but along another dimension there are some, a tile of both dimensions goes through shared memory, and both sides see whole
// sectors.
#include "strided.cuh"

struct CopyParams {
    const void *x;
    void *y;
    // Elements, or with tiles: tiles.
    i64 count;
    // Of x, then of y.
    i64 strides[2][MOST_DIMS];
    // With tiles, dimension 0 counts tiles along y's neighbours and dimension 1 tiles along x's.
    Dims dims;
    // With tiles: elements along both.
    u32 columns, rows;
};

template <typename T> __device__ __forceinline__ void copy_apart(const CopyParams &p) {
    constexpr int N = 4;
    const i64 step = global_threads();
    for (i64 first = global_thread(); first < p.count; first += N * step) {
        T value[N];
        i64 to[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            const i64 at = first + j * step;
            if (at >= p.count) continue;
            i64 offset[2] = {0, 0};
            locate(p.dims, p.strides, u64(at), offset);
            value[j] = static_cast<const T *>(p.x)[offset[0]];
            to[j] = offset[1];
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (first + j * step < p.count) static_cast<T *>(p.y)[to[j]] = value[j];
        }
    }
}

#define X(T, bytes)                                                                                                              \
    KERNEL(256, copy_##bytes, CopyParams) { copy_apart<T>(p); }
X(u8, 1) X(u16, 2) X(u32, 4) X(uint2, 8) X(uint4, 16)
#undef X

// Elements of T along each side of a tile.
template <typename T> constexpr u32 SIDE = sizeof(T) <= 2 ? 64 : 32;

// 32 x 8 threads. A row of the tile is an odd number of banks long, or of pairs of banks for 8 bytes: a warp that reads down a column
// meets each bank once.
template <typename T> __device__ __forceinline__ void copy_tiles(const CopyParams &p) {
    constexpr u32 LENGTH = SIDE<T> + (sizeof(T) < 4 ? 4 / sizeof(T) : 1);
    SHARED(T, tile, SIDE<T> * LENGTH);
    const i64 *x_strides = p.strides[0], *y_strides = p.strides[1];
    for (i64 at = blockIdx.x; at < p.count; at += gridDim.x) {
        // Dimensions 0 and 1 have strides of one tile each.
        i64 offset[2] = {0, 0};
        locate(p.dims, p.strides, u64(at), offset);
        const u32 tiles = (p.columns + SIDE<T> - 1) / SIDE<T>, down = (p.rows + SIDE<T> - 1) / SIDE<T>;
        const u32 column = u32(at) % tiles * SIDE<T>, row = u32(at) / tiles % down * SIDE<T>;
        const i64 x_step = x_strides[0] / SIDE<T>, y_step = y_strides[1] / SIDE<T>;
        const T *x = static_cast<const T *>(p.x) + offset[0];
        T *y = static_cast<T *>(p.y) + offset[1];
        // Nobody writes the tile before all have read the last one.
        __syncthreads();
#pragma unroll
        for (u32 c = threadIdx.y; c < SIDE<T>; c += 8) {
#pragma unroll
            for (u32 r = threadIdx.x; r < SIDE<T>; r += 32) {
                if (column + c < p.columns && row + r < p.rows) tile[c * LENGTH + r] = x[c * x_step + r];
            }
        }
        __syncthreads();
#pragma unroll
        for (u32 r = threadIdx.y; r < SIDE<T>; r += 8) {
#pragma unroll
            for (u32 c = threadIdx.x; c < SIDE<T>; c += 32) {
                if (column + c < p.columns && row + r < p.rows) y[r * y_step + c] = tile[c * LENGTH + r];
            }
        }
    }
}

#define X(T, bytes)                                                                                                              \
    KERNEL(256, copy_tiles_##bytes, CopyParams) { copy_tiles<T>(p); }
X(u8, 1) X(u16, 2) X(u32, 4) X(u64, 8)
#undef X
