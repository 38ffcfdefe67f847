// Rows that are picked by ids: how threads share them, and ids that are checked.
#pragma once

#include "genie.cuh"

// `lanes` threads (a power of two) share a row, `256 >> shift` rows a block and turn; blocks along y take pieces of a row. `units` is
// how many parts of a row threads take one by one.
struct RowSplit {
    i64 rows;
    u32 units, shift;
};

// Calls `body(row, first, step, leads)` for each row that this thread shares: its units are `first`, `first + step` and so on; `leads`
// for one thread of each row.
template <typename F> __device__ __forceinline__ void each_unit(const RowSplit &split, F body) {
    const u32 lanes = 1u << split.shift, lane = threadIdx.x & (lanes - 1), rows = blockDim.x >> split.shift;
    for (i64 row = i64(blockIdx.x) * rows + (threadIdx.x >> split.shift); row < split.rows; row += i64(gridDim.x) * rows) {
        body(row, blockIdx.y * lanes + lane, gridDim.y * lanes, blockIdx.y == 0 && lane == 0);
    }
}

__device__ __forceinline__ i64 id_at(const void *ids, u32 is_wide, i64 at) {
    return is_wide ? __ldg(static_cast<const i64 *>(ids) + at) : i64(__ldg(static_cast<const i32 *>(ids) + at));
}

// Copies this thread's units of a row, or zeros where `from` is null, with several loads under way at once.
template <typename T> __device__ __forceinline__ void copy_units(const T *from, T *to, u32 first, u32 step, u32 units) {
    constexpr u32 TURNS = 4;
    for (u64 unit = first; unit < units; unit += u64(TURNS) * step) {
        T value[TURNS] = {};
#pragma unroll
        for (u32 j = 0; j < TURNS; j++) {
            if (from && unit + u64(j) * step < units) value[j] = from[unit + u64(j) * step];
        }
#pragma unroll
        for (u32 j = 0; j < TURNS; j++) {
            if (unit + u64(j) * step < units) to[unit + u64(j) * step] = value[j];
        }
    }
}
