// Convolutions by matrix units: an implicit product, as `conv_tiled`, of f16 or bf16 by a weight of the same type, with f32 sums.
//
// Bound by the instructions that find the windows' elements, of which each is fetched once for all outputs of a block: the more
// outputs a block has, the fewer fetches a product takes. As in `conv_tiled`, the next step's elements are under way to registers
// while this step's are multiplied.
#include "async.cuh"
#include "conv.cuh"
#include "matrix.cuh"

// Positions of a block, and products of each output and position at a time.
#define POSITIONS 64
#define STEP 32
// Rows of shared memory end in bytes that nobody uses, so that those of eight rows that are loaded together lie in different banks.
#define WEIGHT_PITCH (STEP + 8)
#define WINDOW_PITCH (POSITIONS + 8)
// A warp's outputs and positions.
#define SIDE 32

// A block has twice as many threads as outputs, and a warp for each 32 x 32 results.
template <typename T, u32 OUTPUTS> __device__ __forceinline__ void conv_matrix(const ConvParams &p) {
    constexpr u32 THREADS = 2 * OUTPUTS, WINDOW_LOADS = STEP * POSITIONS / THREADS, WEIGHT_LOADS = STEP * OUTPUTS / THREADS / 8;
    SHARED(u16, weights, 2 * OUTPUTS * WEIGHT_PITCH);
    SHARED(u16, windows, 2 * STEP * WINDOW_PITCH);
    SHARED(Tap, taps, 2 * STEP);
    const u32 group_channels = p.channels / p.groups, group_outputs = p.outputs / p.groups, group = blockIdx.z;
    const u32 depth = group_channels * p.rows * p.columns, positions = p.out_height * p.out_width;
    const u32 first_output = blockIdx.y * OUTPUTS;
    const i64 first_position = i64(blockIdx.x) * POSITIONS, all_positions = p.images * positions;

    // This thread loads a position's elements, and packs of two or more rows of weights.
    const u32 column = threadIdx.x % POSITIONS, row = threadIdx.x / POSITIONS;
    const Window window = window_of(p, first_position + column, group);
    const u16 *image = static_cast<const u16 *>(p.x) + window.start;
    const u32 pack_row = threadIdx.x / (STEP / 8), pack_column = threadIdx.x % (STEP / 8) * 8;
    const u16 *weight = static_cast<const u16 *>(p.weight) + (i64(group) * group_outputs + first_output) * depth;

    u16 loaded_x[WINDOW_LOADS];
    Pack<u16, 8> loaded_w[WEIGHT_LOADS];
    const auto load_step = [&](u32 step) {
#pragma unroll
        for (u32 i = 0; i < WINDOW_LOADS; i++) {
            const Tap tap = taps[step % 2 * STEP + row + i * (THREADS / POSITIONS)];
            const i32 y = window.y + tap.down, x = window.x + tap.across;
            const bool inside = u32(y) < p.height && u32(x) < p.width;
            loaded_x[i] = inside ? __ldg(image + tap.plane + i64(y) * p.width + x) : u16(0);
        }
        const u32 k = step * STEP + pack_column;
#pragma unroll
        for (u32 i = 0; i < WEIGHT_LOADS; i++) {
            const u32 output = pack_row + i * (THREADS / (STEP / 8));
            const u16 *from = weight + i64(output) * depth + k;
            const bool used = first_output + output < group_outputs;
            if (p.weight_packs && used && k < depth) {
                loaded_w[i] = load_constant<u16, 8>(from);
            } else {
#pragma unroll
                for (u32 j = 0; j < 8; j++) loaded_w[i].at[j] = used && k + j < depth ? __ldg(from + j) : u16(0);
            }
        }
    };
    const auto store_step = [&](u32 step) {
#pragma unroll
        for (u32 i = 0; i < WINDOW_LOADS; i++) {
            windows[(step % 2 * STEP + row + i * (THREADS / POSITIONS)) * WINDOW_PITCH + column] = loaded_x[i];
        }
#pragma unroll
        for (u32 i = 0; i < WEIGHT_LOADS; i++) {
            const u32 output = pack_row + i * (THREADS / (STEP / 8));
            store(weights + (step % 2 * OUTPUTS + output) * WEIGHT_PITCH + pack_column, loaded_w[i]);
        }
    };
    const auto make_taps = [&](u32 step) {
        if (threadIdx.x < STEP) taps[step % 2 * STEP + threadIdx.x] = tap_of(p, step * STEP + threadIdx.x, depth);
    };

    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warp_output = warp / 2 * SIDE, warp_position = warp % 2 * SIDE, steps = (depth + STEP - 1) / STEP;
    // Lane 8 m + r addresses row r of matrix m: of weights the lower rows first, of windows the lower elements first.
    const u32 matrix_row = lane % 16, matrix_column = lane / 16 * 8;
    float sums[2][4][4] = {};
    make_taps(0);
    make_taps(1);
    __syncthreads();
    load_step(0);
    store_step(0);
    __syncthreads();
#pragma unroll 1
    for (u32 step = 0; step < steps; step++) {
        if (step + 1 < steps) load_step(step + 1);
        // Read before the last barrier, and not again before the next but one.
        make_taps(step + 2);
        const u16 *of_weights = weights + (step % 2 * OUTPUTS + warp_output + matrix_row) * WEIGHT_PITCH + matrix_column;
        const u16 *of_windows = windows + (step % 2 * STEP + matrix_row) * WINDOW_PITCH + warp_position + matrix_column;
#pragma unroll
        for (u32 k = 0; k < STEP; k += 16) {
            u32 a[2][4], b[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                ldmatrix_x4(a[i], of_weights + i * 16 * WEIGHT_PITCH + k);
                ldmatrix_x4_transposed(b[i], of_windows + k * WINDOW_PITCH + i * 16);
            }
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    const u32 pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    mma<T>(sums[i][j], a[i], pair);
                }
            }
        }
        if (step + 1 < steps) store_step(step + 1);
        __syncthreads();
    }
    const Place first = place_of(first_position, positions);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                const u32 output = first_output + warp_output + i * 16 + e / 2 * 8 + lane / 4;
                const u32 position = warp_position + j * 8 + lane % 4 * 2 + e % 2;
                if (output >= group_outputs || first_position + position >= all_positions) continue;
                finish<T>(p, first, position, positions, group * group_outputs + output, sums[i][j][e]);
            }
        }
    }
}

KERNEL(128, conv_matrix_64_f16, ConvParams) { conv_matrix<f16, 64>(p); }
KERNEL(128, conv_matrix_64_bf16, ConvParams) { conv_matrix<bf16, 64>(p); }
KERNEL(256, conv_matrix_128_f16, ConvParams) { conv_matrix<f16, 128>(p); }
KERNEL(256, conv_matrix_128_bf16, ConvParams) { conv_matrix<bf16, 128>(p); }
