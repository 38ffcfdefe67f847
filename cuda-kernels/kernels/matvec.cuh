// Products of a few rows with a weight that is read once: y[m, n] = epilogue(sum over k of prologue(x)[m, k] * weight[k, n]).
//
// The weight's bytes bound it. So that enough of them are on their way (latency times bandwidth is 32 KiB for each of an H200's
// multiprocessors, more under load), each warp copies its part to shared memory by `cp.async`, `stages` - 1 steps ahead: 48 KiB a
// block for types of 16 bits, with two blocks a multiprocessor. A lane reads only what its own copies brought (quantised weights:
// what its warp's did), so the copies need no barrier; they begin before x is looked at, and go on while a tile's sums are put
// together. x lies in shared memory; for matrix units a byte of it is read for four of the weight's, or fewer.
//
// Blocks (x, y) go over tiles x, x + gridDim.x, ... of the result's columns and take the part y of `chunk` elements of the sums;
// the warps of a block take every eighth step of it. Their sums are added in the order of the warps. Where there are several
// parts, they lie in `partial`, and the block that comes last to a tile adds them in their order. What belongs to which sum does
// not depend on the number of rows, so neither does a row's result.
//
// A policy P says how a tile is made:
//   TILE columns, STEP elements of k a warp and step, STAGE bytes a warp and step, SUMS a lane, LEFT of them after combine;
//   SYNC: lanes read others' copies
//   fetch(p, slot, weight, n, k, lane): this lane's copies;  stage_x(...): x in shared memory;
//   multiply(sums, ...);  combine(sums): before the warps' sums are added;  place(sum, lane, n, m): where a sum belongs
#pragma once

#include "async.cuh"
#include "rows.cuh"

// Bytes in front of x in shared memory, behind the copies: sums of the warps, then the rows' statistics and a flag.
#define SUMS_BYTES (WARPS * WARP * 8 * 4)
#define HEAD_BYTES (SUMS_BYTES + 128)

// Loads of other blocks' sums that are under way at a time: all that there usually are.
#if defined(GENIE_HOST) || __CUDA_ARCH__ >= 800
constexpr int AT_ONCE = 8;
#else
constexpr int AT_ONCE = 4;
#endif

// Where a block is in its work: steps of k, then the gate's, then the next tile.
struct Cursor {
    i64 tile;
    u32 part, step;

    __device__ __forceinline__ void next(u32 parts, u32 steps) {
        if (++step < steps) return;
        step = 0;
        if (++part < parts) return;
        part = 0;
        tile += gridDim.x;
    }
};

// Four packs of 16 bytes to a lane's slots, which are 512 bytes apart. Pack i is `first(i)` elements into the weight, and `valid(i)`
// of its elements are the weight's; the others become zeros.
template <typename W, typename First, typename Valid>
__device__ __forceinline__ void fetch_packs(u8 *slot, const void *weight, bool aligned, u32 lane, First first, Valid valid) {
    const W *from = static_cast<const W *>(weight);
    slot += 16 * lane;
    if (aligned) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 count = u32(max(min(valid(i), i64(WIDE<W>)), i64(0)));
            cp_async_16(slot + 512 * i, from + (count == 0 ? 0 : first(i)), count * sizeof(W));
        }
    } else {
#pragma unroll 1
        for (int i = 0; i < 4; i++) {
            Pack<W, WIDE<W>> pack;
#pragma unroll
            for (int j = 0; j < WIDE<W>; j++) pack.at[j] = j < valid(i) ? from[first(i) + j] : W{};
            store(reinterpret_cast<W *>(slot + 512 * i), pack);
        }
    }
}

// A sum of `SUMS` a lane that this thread puts together: the whole block does, GROUP sums of each lane at a time.
template <typename P> struct Element {
    static constexpr int GROUP = P::LEFT < 8 ? P::LEFT : 8;
    static constexpr int ROUNDS = P::LEFT / GROUP;
    static constexpr int COUNT = GROUP * WARP;
    static_assert(GROUP == 1 || GROUP % 4 == 0, "stored by fours");

    // Sums over the warps, in their order. Only the first COUNT threads get one.
    static __device__ __forceinline__ float total(const float (&sums)[P::SUMS], int round, float *scratch) {
        const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
        float group[GROUP] = {};
        // Registers have no index: each is chosen.
#pragma unroll
        for (int i = 0; i < P::LEFT; i++) group[i % GROUP] = i / GROUP == round ? sums[i] : group[i % GROUP];
        __syncthreads();
        if constexpr (GROUP == 1) {
            scratch[threadIdx.x] = group[0];
        } else {
#pragma unroll
            for (int q = 0; q < GROUP / 4; q++) {
                reinterpret_cast<float4 *>(scratch)[(warp * (GROUP / 4) + q) * WARP + lane] =
                    make_float4(group[4 * q], group[4 * q + 1], group[4 * q + 2], group[4 * q + 3]);
            }
        }
        __syncthreads();
        float sum = 0.0f;
        if (threadIdx.x < COUNT) {
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += scratch[w * COUNT + threadIdx.x];
        }
        return sum;
    }

    // Column within the tile, and row, of this thread's sum. The row is the same in all rounds.
    static __device__ __forceinline__ void place(int round, u32 &n, u32 &m) {
        const u32 e = threadIdx.x;
        if constexpr (GROUP == 1) {
            P::place(0, e, n, m);
        } else {
            P::place(round * GROUP + e / 128 * 4 + e % 4, e % 128 / 4, n, m);
        }
    }
};

template <typename P>
__device__ __forceinline__ void put_result(const MatvecParams &p, i64 tile, int round, float sum, float gate) {
    u32 n, m;
    Element<P>::place(round, n, m);
    const i64 column = tile * P::TILE + n;
    if (column >= p.n) return;
    const i64 index = m * p.n + column;
    if (p.gate && p.gate_bias) gate += float_at(p.gate_bias, column, p.epilogue.bias_type);
    put_float(p.y, index, p.x_type, finish(p.epilogue, sum, index, column, p.x_type, gate));
}

// The sums that this thread puts together, of all rounds.
template <typename P> struct Totals {
    float of[Element<P>::ROUNDS];

    // Registers have no index: each is chosen.
    __device__ __forceinline__ float get(int round) const {
        float value = of[0];
#pragma unroll
        for (int i = 1; i < Element<P>::ROUNDS; i++) value = i == round ? of[i] : value;
        return value;
    }

    __device__ __forceinline__ void add_up(const float (&sums)[P::SUMS], float *scratch) {
#pragma unroll 1
        for (int round = 0; round < Element<P>::ROUNDS; round++) {
            const float total = Element<P>::total(sums, round, scratch);
#pragma unroll
            for (int i = 0; i < Element<P>::ROUNDS; i++) of[i] = i == round ? total : of[i];
        }
    }
};

// Stores a tile's results, or this block's part of their sums. `first` are the sums of the first weight where there are two.
template <typename P>
__device__ __forceinline__ void end_tile(const MatvecParams &p, i64 tile, const Totals<P> &first, const Totals<P> &last,
                                         u32 *flag) {
    typedef Element<P> E;
    const u32 splits = gridDim.y;
    // Rows that are not there take no way through memory.
    u32 n, m;
    E::place(0, n, m);
    const bool mine = threadIdx.x < E::COUNT && m < p.rows;
    const i64 part_size = E::ROUNDS * E::COUNT, tile_size = p.gate ? 2 * part_size : part_size;
    float *partial = p.partial + (tile * splits * tile_size + threadIdx.x);
    // First the sums of this block; then, in the last block alone, those of all blocks.
#pragma unroll 1
    for (u32 turn = 0; turn < 2; turn++) {
        if (turn == 1) {
            // What this block stored must be seen before its arrival is.
            __threadfence();
            __syncthreads();
            // The last one sets the counter back to 0: for the next launch it is as before this one.
            if (threadIdx.x == 0) *flag = atomicInc(p.counters + tile, splits - 1) == splits - 1;
            __syncthreads();
            if (*flag == 0) return;
            __threadfence();
        }
#pragma unroll 1
        for (int round = 0; mine && round < E::ROUNDS; round++) {
            float sum = 0.0f, gate = p.gate ? 0.0f : 1.0f;
            if (turn == 0) {
                sum = p.gate ? first.get(round) : last.get(round);
                if (p.gate) gate = last.get(round);
            } else {
#pragma unroll AT_ONCE
                for (u32 split = 0; split < splits; split++) {
                    const float *from = partial + split * tile_size + round * E::COUNT;
                    sum += __ldcg(from);
                    if (p.gate) gate += __ldcg(from + part_size);
                }
            }
            if (turn == 1 || splits == 1) {
                put_result<P>(p, tile, round, sum, gate);
            } else {
                float *to = partial + blockIdx.y * tile_size + round * E::COUNT;
                __stcg(to, sum);
                if (p.gate) __stcg(to + part_size, gate);
            }
        }
        if (splits == 1) return;
    }
}

template <typename P> __device__ __forceinline__ void matvec(const MatvecParams &p) {
    DYNAMIC_SHARED(shared);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const i64 lo = i64(blockIdx.y) * p.chunk, hi = min(p.k, lo + p.chunk);
    const i64 tiles = (p.n + P::TILE - 1) / P::TILE;
    const u32 parts = p.gate ? 2 : 1, steps = u32((hi - lo + P::STEP * WARPS - 1) / (P::STEP * WARPS));
    unsigned char *slots = shared + warp * p.stages * P::STAGE, *head = shared + WARPS * p.stages * P::STAGE;
    float2 *statistics = reinterpret_cast<float2 *>(head + SUMS_BYTES);
    unsigned char *x = head + HEAD_BYTES;
    const auto k_of = [&](u32 step) { return lo + (i64(step) * WARPS + warp) * P::STEP; };

    float sums[P::SUMS] = {};
    Totals<P> first = {}, last = {};
    Cursor ahead = {i64(blockIdx.x), 0, 0}, now = ahead;
    u32 under_way = 0, slot = 0, free = 0;
    while (now.tile < tiles) {
        const bool full = under_way + 1 == p.stages;
        if (full) {
            if (p.stages == 4) {
                cp_async_wait<2>();
            } else {
                cp_async_wait<0>();
            }
            if constexpr (P::SYNC) __syncwarp();
        }
        // The slot that was read last takes what comes `stages` - 1 steps later.
        const i64 k_ahead = k_of(ahead.step);
        if (ahead.tile < tiles && k_ahead < hi) {
            const void *weight = ahead.part == 0 ? p.weight : p.gate;
            P::fetch(p, slots + free * P::STAGE, weight, ahead.tile * P::TILE, k_ahead, lane);
        }
        cp_async_commit();
        ahead.next(parts, steps);
        free = free + 1 == p.stages ? 0 : free + 1;
        if (!full) {
            if (++under_way + 1 < p.stages) continue;
            P::stage_x(p, lo, hi, statistics, x);
            __syncthreads();
            continue;
        }
        const i64 k = k_of(now.step);
        if (k < hi) P::multiply(p, sums, slots + slot * P::STAGE, x, now.tile * P::TILE, k, lo, hi, lane);
        slot = slot + 1 == p.stages ? 0 : slot + 1;
        const Cursor done = now;
        now.next(parts, steps);
        if (now.step != 0) continue;
        P::combine(sums, lane);
        first = last;
        last.add_up(sums, reinterpret_cast<float *>(head));
#pragma unroll
        for (int i = 0; i < P::SUMS; i++) sums[i] = 0.0f;
        if (now.part == 0) end_tile<P>(p, done.tile, first, last, reinterpret_cast<u32 *>(head + SUMS_BYTES + 64));
    }
}
