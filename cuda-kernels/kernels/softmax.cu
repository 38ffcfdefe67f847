// Softmax along an axis.
//
// A row that fits into the registers of a warp or a block is read and written once. Else two launches read x: one finds largest and
// sum in one pass (Milakov and Gimelshein 2018), in pieces where the axis is long, and one writes y.
#include "reduce.cuh"

// The largest of some numbers, NaN left out, and the sum of e^(x - max), which a NaN makes NaN.
struct Stats {
    float max, sum;
};

struct MergeStats {
    typedef Stats Input;
    typedef Stats State;

    static __device__ __forceinline__ Stats init() { return Stats{-INFINITY, 0.0f}; }
    // The difference of equal infinities would be NaN.
    static __device__ __forceinline__ float scale(float x, float max) { return x == max ? 1.0f : expf(x - max); }
    static __device__ __forceinline__ Stats merge(Stats a, Stats b) {
        const float max = a.max > b.max ? a.max : b.max;
        return Stats{max, a.sum * scale(a.max, max) + b.sum * scale(b.max, max)};
    }
    static __device__ __forceinline__ void take(Stats &state, Stats x, u32) { state = merge(state, x); }
    static __device__ __forceinline__ void store(const ReduceParams &p, i64 at, Stats state) { static_cast<Stats *>(p.y)[at] = state; }
};

template <typename T> struct FindStats : MergeStats {
    typedef T Input;

    static __device__ __forceinline__ void take(Stats &state, T element, u32) {
        const float x = to_f32(element);
        const float e = x == state.max ? 1.0f : expf(-fabsf(x - state.max));
        const bool more = x > state.max;
        state.sum = more ? fmaf(state.sum, e, 1.0f) : state.sum + e;
        state.max = more ? x : state.max;
    }
};

// e^(x - max) / sum. Where the largest is infinite there is a NaN in every row, as there is when it is computed element by element.
__device__ __forceinline__ float factor_of(Stats stats) { return fabsf(stats.max) == INFINITY ? NAN : 1.0f / stats.sum; }

// A row in the registers of a warp's lanes or of a block: PACKS packs a thread.
#define PACKS 4

struct Largest {
    typedef float State;
    static __device__ __forceinline__ float merge(float a, float b) { return b > a ? b : a; }
};
struct Total {
    typedef float State;
    static __device__ __forceinline__ float merge(float a, float b) { return a + b; }
};

template <typename T> __device__ __forceinline__ void short_rows(const ReduceParams &p) {
    constexpr int N = WIDE<T>;
    SHARED(float, scratch, REDUCE_THREADS / WARP);
    const u32 lanes = 1u << p.shift, lane = threadIdx.x & (lanes - 1), rows = REDUCE_THREADS >> p.shift;
    const bool aligned = is_aligned(p.x, 16) && is_aligned(p.y, 16) && p.length % N == 0;
    for (i64 first = i64(blockIdx.x) * rows; first < p.outer; first += i64(gridDim.x) * rows) {
        const i64 row = first + (threadIdx.x >> p.shift), end = row < p.outer ? p.length : 0;
        const T *x = static_cast<const T *>(p.x) + row * p.length;
        T *y = static_cast<T *>(p.y) + row * p.length;
        Pack<T, N> pack[PACKS];
#pragma unroll
        for (int j = 0; j < PACKS; j++) {
            const i64 at = (i64(j) * lanes + lane) * N;
            pack[j] = load_some<T, N>(x + at, end - at, aligned);
        }
        float value[PACKS][N], max = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int j = 0; j < PACKS; j++) {
            const i64 at = (i64(j) * lanes + lane) * N;
            widen(pack[j], value[j]);
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (at + i >= end) value[j][i] = -INFINITY;
                max = Largest::merge(max, value[j][i]);
            }
        }
        max = merge_lanes<Largest>(max, lanes, scratch);
#pragma unroll
        for (int j = 0; j < PACKS; j++) {
            const i64 at = (i64(j) * lanes + lane) * N;
            // The same for all threads: a short row leaves packs unused.
            if (i64(j) * lanes * N >= p.length) break;
#pragma unroll
            for (int i = 0; i < N; i++) {
                value[j][i] = expf(value[j][i] - max);
                sum += at + i < end ? value[j][i] : 0.0f;
            }
        }
        const float factor = 1.0f / merge_lanes<Total>(sum, lanes, scratch);
#pragma unroll
        for (int j = 0; j < PACKS; j++) {
            const i64 at = (i64(j) * lanes + lane) * N;
#pragma unroll
            for (int i = 0; i < N; i++) value[j][i] *= factor;
            store_some(y + at, narrow<T>(value[j]), end - at, aligned);
        }
    }
}

struct ApplyParams {
    const void *x;
    void *y;
    const Stats *stats;
    i64 outer, length, inner, piece;
    u32 shift, deep;
};

// inner is 1. Blocks along x take pieces of a row, along y rows.
template <typename T> __device__ __forceinline__ void apply_rows(const ApplyParams &p) {
    constexpr int N = WIDE<T>;
    const bool aligned = is_aligned(p.x, 16) && is_aligned(p.y, 16) && p.length % N == 0;
    for (i64 row = blockIdx.y; row < p.outer; row += gridDim.y) {
        const Stats stats = p.stats[row];
        const float factor = factor_of(stats);
        const T *x = static_cast<const T *>(p.x) + row * p.length;
        T *y = static_cast<T *>(p.y) + row * p.length;
        each_pack<N>(p.length, [=](i64 at, i64 valid) {
            float value[N];
            widen(load_some<T, N>(x + at, valid, aligned), value);
#pragma unroll
            for (int i = 0; i < N; i++) value[i] = expf(value[i] - stats.max) * factor;
            store_some(y + at, narrow<T>(value), valid, aligned);
        });
    }
}

// Blocks along x take tiles of columns, along y pieces of the axis.
template <typename T> __device__ __forceinline__ void apply_columns(const ApplyParams &p) {
    constexpr int N = WIDE<T>;
    const Place<N> place(p);
    const i64 valid = place.valid;
    if (valid <= 0) return;
    const bool aligned = is_aligned(p.x, 16) && is_aligned(p.y, 16) && p.inner % N == 0;
    const i64 offset = place.outer * p.length * p.inner + place.column;
    const T *x = static_cast<const T *>(p.x) + offset;
    T *y = static_cast<T *>(p.y) + offset;
    float max[N], factor[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        Stats stats = {0.0f, 1.0f};
        if (i < valid) stats = p.stats[place.outer * p.inner + place.column + i];
        max[i] = stats.max, factor[i] = factor_of(stats);
    }
    for (i64 k = place.start + place.level; k < place.end; k += place.depth) {
        float value[N];
        widen(load_some<T, N>(x + k * p.inner, valid, aligned), value);
#pragma unroll
        for (int i = 0; i < N; i++) value[i] = expf(value[i] - max[i]) * factor[i];
        store_some(y + k * p.inner, narrow<T>(value), valid, aligned);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, softmax_short_##name, ReduceParams) { short_rows<T>(p); }                                                        \
    KERNEL(256, softmax_stats_rows_##name, ReduceParams) { rows_of<FindStats<T>>(p); }                                           \
    KERNEL(256, softmax_stats_columns_##name, ReduceParams) { columns_of<FindStats<T>>(p); }                                     \
    KERNEL(256, softmax_rows_##name, ApplyParams) { apply_rows<T>(p); }                                                          \
    KERNEL(256, softmax_columns_##name, ApplyParams) { apply_columns<T>(p); }
EACH_FLOAT(X)
#undef X

KERNEL(256, softmax_merge, ReduceParams) { columns_of<MergeStats>(p); }
