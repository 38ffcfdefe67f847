// Products of a few rows with a weight that is read once: y[m, n] = epilogue(sum over k of prologue(x)[m, k] * weight[k, n]).
//
// The weight's bytes bound it. So that enough of them are on their way (latency times bandwidth is 32 KiB for each of an H200's
// multiprocessors, more under load), each warp copies its part to shared memory by `cp.async`, `stages` - 1 steps ahead: 48 KiB a
// block for types of 16 bits, with two blocks a multiprocessor, or 112 KiB where there are fewer blocks than multiprocessors. A lane reads only what its own copies brought (quantised weights:
// what its warp's did), so the copies need no barrier; they begin before x is looked at, and go on while a tile's sums are put
// together. x lies in shared memory; for matrix units a byte of it is read for four of the weight's, or fewer. When a block's last copies
// are under way it may ask for a part of a later product's weight, which then comes from the second-level cache.
//
// Blocks (x, y) go over tiles x, x + gridDim.x, ... of the result's columns and take the part y of `chunk` elements of the sums;
// the warps of a block take every eighth step of it. Their sums are added in the order of the warps. Where there are several
// parts, they lie in `partial`, and the block that comes last to a tile adds them in their order. What belongs to which sum does
// not depend on the number of rows, so neither does a row's result.
//
// A policy P says how a tile is made:
//   TILE columns, STEP elements of k a warp and step, STAGE bytes a warp and step, SUMS a lane, LEFT of them after combine;
//   SYNC: lanes read others' copies;  a policy is made of what a lane knows of x from the beginning
//   fetch(p, slot, weight, n, k, lane): this lane's copies, wherever they lie;  stage_x(...): x in shared memory;
//   first(p, n, k, lane), stride(p), along(p): where a lane's first pack of type Weight lies, and how far apart packs and elements of k
//   multiply(p, sums, slot, x, n, k, ...), where k counts from the block's part;  combine(sums): before the warps' sums are added;  place(sum, lane, n, m): where a sum belongs
#pragma once

#include "arrive.cuh"
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
    // Whether there is such a tile.
    bool more;

    // Goes on, and says whether that begins another product.
    __device__ __forceinline__ bool next(u32 parts, u32 steps, i64 tiles) {
        if (++step < steps) return false;
        step = 0;
        if (++part == parts) {
            part = 0;
            tile += gridDim.x;
            more = tile < tiles;
        }
        return true;
    }
};

// Four packs of 16 bytes to a lane's slots, which are 512 bytes apart. Pack i is `first + i * stride` elements into the weight, and
// `valid(i)` of its elements are the weight's; the others become zeros.
template <typename W, typename Valid>
__device__ __forceinline__ void fetch_packs(u8 *slot, const void *weight, bool aligned, u32 lane, i64 first, i64 stride, Valid valid) {
    const W *from = static_cast<const W *>(weight) + first;
    slot += 16 * lane;
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
        if (aligned) {
            const u32 count = u32(max(min(valid(i), i64(WIDE<W>)), i64(0)));
            cp_async_16(slot + 512 * i, count == 0 ? weight : from + i * stride, count * sizeof(W));
        } else {
            Pack<W, WIDE<W>> pack;
#pragma unroll
            for (int j = 0; j < WIDE<W>; j++) pack.at[j] = j < valid(i) ? from[i * stride + j] : W{};
            store(reinterpret_cast<W *>(slot + 512 * i), pack);
        }
    }
}

// The copies of a product's steps, where the weight is plain: most bring four packs that lie in it as a whole. These take few
// instructions, so that few warps keep the memory busy.
template <typename P, bool SYNC = P::SYNC> struct Copies {
    typedef typename P::Weight W;
    const W *from;
    bool whole;

    __device__ __forceinline__ void begin(const MatvecParams &p, const void *weight, i64 n, i64 k, u32 lane) {
        from = static_cast<const W *>(weight) + P::first(p, n, k, lane);
        whole = (p.aligned & ALIGNED_WEIGHT) && n + P::TILE <= p.n;
    }

    __device__ __forceinline__ void fetch(const MatvecParams &p, u8 *slot, u32 lane) const {
        const i64 stride = P::stride(p);
#pragma unroll
        for (int i = 0; i < 4; i++) cp_async_16(slot + 512 * i + 16 * lane, from + i * stride);
    }

    __device__ __forceinline__ void next(const MatvecParams &p) { from += P::along(p) * (P::STEP * WARPS); }
};

// Quantised weights find each copy's place anew.
template <typename P> struct Copies<P, true> {
    static constexpr bool whole = false;

    __device__ __forceinline__ void begin(const MatvecParams &, const void *, i64, i64, u32) {}
    __device__ __forceinline__ void fetch(const MatvecParams &, u8 *, u32) const {}
    __device__ __forceinline__ void next(const MatvecParams &) {}
};

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
    put_float(p.y, index, p.y_type, finish(p.epilogue, sum, index, column, gate));
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
        if (turn == 1 && !is_last(p.counters + tile, splits, flag)) return;
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

// The vectors that a norm needs come from memory, as the weight does, and x waits for them: they are asked for first of all.
__device__ __forceinline__ void prefetch_norm(const MatvecParams &p, i64 lo, i64 hi) {
    const u32 bytes = p.norm_type == TYPE_F32 ? 4 : 2;
    if (p.norm != NORM_NONE) prefetch(p.norm_weight, bytes, lo, hi - lo, threadIdx.x, THREADS);
    if (p.norm_bias) prefetch(p.norm_bias, bytes, lo, hi - lo, threadIdx.x, THREADS);
}

// The same for the biases of a tile, whose results wait for them.
template <typename P> __device__ __forceinline__ void prefetch_bias(const MatvecParams &p, i64 tile) {
    const u32 bytes = p.epilogue.bias_type == TYPE_F32 ? 4 : 2;
    const i64 column = tile * P::TILE, count = min(i64(P::TILE), p.n - column);
    if (p.epilogue.bias) prefetch(p.epilogue.bias, bytes, column, count, threadIdx.x, THREADS);
    if (p.gate_bias) prefetch(p.gate_bias, bytes, column, count, threadIdx.x, THREADS);
}

// Bytes that are asked for at once.
constexpr u32 AHEAD_PIECE = 16 << 10;

// Asks for this block's share of what a later product reads, so that memory has something to do until that one's blocks come. Blocks
// take pieces in turn.
CALLED void prefetch_ahead(const MatvecParams &p) {
    if (threadIdx.x != 0) return;
    const u32 of_row = (p.ahead_bytes + AHEAD_PIECE - 1) / AHEAD_PIECE;
    for (u32 piece = blockIdx.y * gridDim.x + blockIdx.x; piece < p.ahead_rows * of_row; piece += gridDim.x * gridDim.y) {
        const u32 begin = piece % of_row * AHEAD_PIECE;
        prefetch_bulk(p.ahead + i64(piece / of_row) * p.ahead_pitch + begin, min(p.ahead_bytes - begin, AHEAD_PIECE));
    }
}

// Weights that no kernel writes are on their way while the kernel before this one still runs: `matvec` waits for that later.
__device__ __forceinline__ void begin(const MatvecParams &p) {
    if (!(p.aligned & CONSTANT_WEIGHT)) wait_for_previous();
}

template <typename P> __device__ __forceinline__ void matvec(const MatvecParams &p) {
    DYNAMIC_SHARED(shared);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const i64 lo = i64(blockIdx.y) * p.chunk, hi = min(p.k, lo + p.chunk), tiles = (p.n + P::TILE - 1) / P::TILE;
    // Elements of k count from `lo` here: this warp's first, and those from one of its steps to the next.
    const u32 length = u32(hi - lo), begin = warp * P::STEP, apart = P::STEP * WARPS;
    const u32 parts = p.gate ? 2 : 1, steps = max((length + apart - 1) / apart, 1u);
    unsigned char *slots = shared + warp * p.stages * P::STAGE, *head = shared + WARPS * p.stages * P::STAGE;
    float2 *statistics = reinterpret_cast<float2 *>(head + SUMS_BYTES);
    unsigned char *x = head + HEAD_BYTES;

    prefetch_norm(p, lo, hi);
    Cursor ahead = {i64(blockIdx.x), 0, 0, blockIdx.x < tiles}, now = ahead;
    Copies<P> copies;
    // Steps from `k_whole` on are not whole, and from `k_end` on there are none.
    u32 k_ahead, k_whole, k_end, free = 0;
    const auto begin_copies = [&]() {
        copies.begin(p, ahead.part == 0 ? p.weight : p.gate, ahead.tile * P::TILE, lo + begin, lane);
        k_ahead = begin;
        k_end = ahead.more ? length : 0;
        k_whole = ahead.more && copies.whole ? length / P::STEP * P::STEP : 0;
        if (ahead.more) prefetch_bias<P>(p, ahead.tile);
    };
    begin_copies();
    const auto fetch_next = [&]() {
        u8 *const to = slots + free * P::STAGE;
        if (k_ahead < k_whole) {
            copies.fetch(p, to, lane);
        } else if (k_ahead < k_end) {
            P::fetch(p, to, ahead.part == 0 ? p.weight : p.gate, ahead.tile * P::TILE, lo + k_ahead, lane);
        }
        cp_async_commit();
        copies.next(p);
        k_ahead += apart;
        if (ahead.next(parts, steps, tiles)) {
            begin_copies();
            // The block's own copies are all under way. It comes here again, with tiles that are further off.
            if (!ahead.more && ahead.part == 0 && ahead.tile < tiles + gridDim.x && p.ahead_rows > 0) prefetch_ahead(p);
        }
        free = free + 1 == p.stages ? 0 : free + 1;
    };
#pragma unroll 1
    for (u32 stage = 1; stage < p.stages; stage++) fetch_next();
    wait_for_previous();
    P::stage_x(p, lo, hi, statistics, reinterpret_cast<float *>(head), x);
    __syncthreads();

    const P policy(p, lane);
    float sums[P::SUMS] = {};
    Totals<P> first = {}, last = {};
    u32 k = begin, slot = 0;
#pragma unroll 1
    while (now.more) {
        if (p.stages == 8) {
            cp_async_wait<6>();
        } else if (p.stages == 4) {
            cp_async_wait<2>();
        } else {
            cp_async_wait<0>();
        }
        if constexpr (P::SYNC) __syncwarp();
        // The slot that was read last takes what comes `stages` - 1 steps later.
        fetch_next();
        if (k < length) policy.multiply(p, sums, slots + slot * P::STAGE, x, now.tile * P::TILE, k, lo, hi, lane);
        slot = slot + 1 == p.stages ? 0 : slot + 1;
        k += apart;
        const i64 tile = now.tile;
        if (!now.next(parts, steps, tiles)) continue;
        k = begin;
        P::combine(sums, lane);
        first = last;
        last.add_up(sums, reinterpret_cast<float *>(head));
#pragma unroll
        for (int i = 0; i < P::SUMS; i++) sums[i] = 0.0f;
        if (now.part == 0) end_tile<P>(p, tile, first, last, reinterpret_cast<u32 *>(head + SUMS_BYTES + 64));
    }
}
