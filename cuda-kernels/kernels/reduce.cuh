// Reductions of x `[outer, length, inner]` along the middle, for anything that can be merged in any order of its parts.
//
// What is reduced is a type M with
//   Input: elements of x;  State: what is known of some of them
//   init();  take(State &, Input, u32 index along the axis);  merge(State, State);  store(params, i64 index in y, State)
//
// Bound by memory: every element is read once, 16 bytes a thread with several loads under way. Blocks along y take pieces of the axis
// and leave a state each, `[pieces, outer, inner]`, which a second launch reduces. Which elements a thread takes depends on length
// and inner alone: neither other rows nor addresses change the order of a sum.
#pragma once

#include "packs.cuh"

struct ReduceParams {
    const void *x;
    void *y;
    i64 outer, length, inner;
    // Elements along the axis that a block takes, a multiple of 16 where there are several pieces.
    i64 piece;
    // Rows: 1 << shift threads a row, no more than a warp or all. Columns: as in `Place`.
    u32 shift, deep;
    float divisor;
    u32 to;
};

#define REDUCE_THREADS 256

// A state of another lane, as a whole number of registers.
template <typename State> __device__ __forceinline__ State state_of(const State &mine, int step) {
    if constexpr (sizeof(State) < 4) {
        return State(__shfl_xor_sync(FULL, u32(mine), step));
    } else {
        struct Words {
            u32 at[sizeof(State) / 4];
        } words;
        static_assert(sizeof(State) % 4 == 0, "whole registers");
        memcpy(&words, &mine, sizeof(State));
#pragma unroll
        for (u32 i = 0; i < sizeof(State) / 4; i++) words.at[i] = __shfl_xor_sync(FULL, words.at[i], step);
        State other;
        memcpy(&other, &words, sizeof(State));
        return other;
    }
}

// Merges the states of `lanes` threads, which are at most a warp or all of the block: each of them has the result.
template <typename M>
__device__ __forceinline__ typename M::State merge_lanes(typename M::State state, u32 lanes, typename M::State *scratch) {
    for (int step = int(lanes < WARP ? lanes : WARP) / 2; step > 0; step /= 2) state = M::merge(state, state_of(state, step));
    if (lanes <= WARP) return state;
    // Those of the last turn have been read.
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = state;
    __syncthreads();
    state = scratch[0];
#pragma unroll
    for (int warp = 1; warp < REDUCE_THREADS / WARP; warp++) state = M::merge(state, scratch[warp]);
    return state;
}

// inner is 1. `scratch` holds a state a warp.
template <typename M> __device__ __forceinline__ void reduce_rows(const ReduceParams &p, typename M::State *scratch) {
    typedef typename M::Input T;
    constexpr int N = WIDE<T>, TURNS = N > 8 ? 2 : 4;
    const u32 lanes = 1u << p.shift, lane = threadIdx.x & (lanes - 1), rows = REDUCE_THREADS >> p.shift;
    const i64 start = i64(blockIdx.y) * p.piece, end = start + p.piece < p.length ? start + p.piece : p.length;
    const bool aligned = is_aligned(p.x, 16) && p.length % N == 0;
    for (i64 first = i64(blockIdx.x) * rows; first < p.outer; first += i64(gridDim.x) * rows) {
        const i64 row = first + (threadIdx.x >> p.shift);
        typename M::State state = M::init();
        if (row < p.outer) {
            const T *x = static_cast<const T *>(p.x) + row * p.length;
            const i64 step = i64(lanes) * N;
            i64 at = start + lane * N;
            for (; at + (TURNS - 1) * step + N <= end; at += TURNS * step) {
                Pack<T, N> pack[TURNS];
#pragma unroll
                for (int j = 0; j < TURNS; j++) pack[j] = load_some<T, N>(x + at + j * step, N, aligned);
#pragma unroll
                for (int j = 0; j < TURNS; j++) {
#pragma unroll
                    for (int i = 0; i < N; i++) M::take(state, pack[j].at[i], u32(at + j * step) + i);
                }
            }
            for (; at < end; at += step) {
                const Pack<T, N> pack = load_some<T, N>(x + at, end - at, aligned);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    if (at + i < end) M::take(state, pack.at[i], u32(at) + i);
                }
            }
        }
        state = merge_lanes<M>(state, lanes, scratch);
        if (row < p.outer && lane == 0) M::store(p, i64(blockIdx.y) * p.outer + row, state);
    }
}

// Where a thread stands in `[outer, length, inner]`. Of a block's threads 1 << shift stand side by side, each with a pack of N columns,
// 1 << deep go along the axis, and the others have tiles of columns of their own.
template <int N> struct Place {
    u32 level, depth;
    // Index of the first column, and how many there are from there on; none where there is no tile.
    i64 outer, column, valid;
    i64 start, end;

    template <typename Params> __device__ __forceinline__ Place(const Params &p) {
        const u32 lanes = 1u << p.shift, tiles = u32((p.inner + lanes * N - 1) / (lanes * N));
        depth = 1u << p.deep;
        level = (threadIdx.x >> p.shift) & (depth - 1);
        const u32 group = threadIdx.x >> (p.shift + p.deep), groups = REDUCE_THREADS >> (p.shift + p.deep);
        const u64 tile = u64(blockIdx.x) * groups + group;
        // Tiles are fewer than 2^32.
        outer = u32(tile) / tiles;
        column = (i64(u32(tile) % tiles) * lanes + (threadIdx.x & (lanes - 1))) * N;
        valid = tile < u64(tiles) * u64(p.outer) ? p.inner - column : 0;
        start = i64(blockIdx.y) * p.piece;
        end = start + p.piece < p.length ? start + p.piece : p.length;
    }
};

// `scratch` holds a state a thread and element of a pack.
template <typename M> __device__ __forceinline__ void reduce_columns(const ReduceParams &p, typename M::State *scratch) {
    typedef typename M::Input T;
    typedef typename M::State State;
    constexpr int N = WIDE<T>, TURNS = N > 4 ? 2 : 4;
    const Place<N> place(p);
    const u32 level = place.level, depth = place.depth;
    const i64 valid = place.valid, column = place.column;
    const bool aligned = is_aligned(p.x, 16) && p.inner % N == 0;
    State state[N];
#pragma unroll
    for (int i = 0; i < N; i++) state[i] = M::init();
    if (valid > 0) {
        const T *x = static_cast<const T *>(p.x) + place.outer * p.length * p.inner + column;
        for (i64 at = place.start + level; at < place.end; at += TURNS * depth) {
            Pack<T, N> pack[TURNS];
#pragma unroll
            for (u32 j = 0; j < TURNS; j++) {
                const i64 k = at + j * depth;
                if (k < place.end) pack[j] = load_some<T, N>(x + k * p.inner, valid, aligned);
            }
#pragma unroll
            for (u32 j = 0; j < TURNS; j++) {
                const i64 k = at + j * depth;
                if (k >= place.end) break;
#pragma unroll
                for (int i = 0; i < N; i++) M::take(state[i], pack[j].at[i], u32(k));
            }
        }
    }
    for (u32 half = depth / 2; half > 0; half /= 2) {
        // The upper half leaves its states to the lower, one bank or pair of banks a thread, each where nobody writes again.
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (level >= half && level < 2 * half) scratch[i * REDUCE_THREADS + threadIdx.x] = state[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (level < half) state[i] = M::merge(state[i], scratch[i * REDUCE_THREADS + threadIdx.x + (half << p.shift)]);
        }
    }
    if (level > 0) return;
    const i64 to = (i64(blockIdx.y) * p.outer + place.outer) * p.inner + column;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i < valid) M::store(p, to + i, state[i]);
    }
}

template <typename M> __device__ __forceinline__ void rows_of(const ReduceParams &p) {
    SHARED(typename M::State, scratch, REDUCE_THREADS / WARP);
    reduce_rows<M>(p, scratch);
}

template <typename M> __device__ __forceinline__ void columns_of(const ReduceParams &p) {
    SHARED(typename M::State, scratch, REDUCE_THREADS * WIDE<typename M::Input>);
    reduce_columns<M>(p, scratch);
}
