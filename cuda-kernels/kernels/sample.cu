// Draws the next token of each row of logits.
//
// Two launches. The first finds the largest logit of every chunk of a row, which is all that a greedy row needs. In the second,
// the blocks of a row that draws weigh their chunks: sums by chunk, or where top-k or top-p cut, sums by the first digit of the
// order. The block that comes last knows from these which chunk, or which few tokens, can matter, and ends the row alone: a
// selection by radix over a list in shared memory, or over the row where too many tokens are as likely as each other.
//
// Bound by memory and latency: a greedy row is read once, by all multiprocessors; a row that draws twice, and once more by one
// block, from the second-level cache. Weights are f64, so only tokens that have one are given to it.
#include "sample.cuh"

// Tokens that the list in shared memory holds.
#define MOST_LISTED 2048
// Chunks of a row, at the most.
#define MOST_CHUNKS 64

struct SampleParams {
    // `[rows, width]`.
    const void *logits;
    // Temperature and top-p; top-k and seed: two a row.
    const float *real;
    const i64 *integer;
    // `[rows, steps]`, of which the last counts.
    const i32 *positions;
    i32 *tokens;
    // `ROW_WORDS` a row, which hold anything before the first launch.
    u64 *scratch;
    u32 width, steps;
    // Tokens of a chunk but the last, and chunks of a row.
    u32 chunk, chunks;
};

// A row's part of the scratch, in words of 8 bytes.
#define TICKET 0
#define BEST 1
#define SUMS (BEST + MOST_CHUNKS)
#define WEIGHTS (SUMS + MOST_CHUNKS)
#define COUNTS (WEIGHTS + DIGITS)
#define ROW_WORDS (COUNTS + DIGITS / 2)

template <typename T> __device__ __forceinline__ void best_of_chunk(const SampleParams &p) {
    constexpr int N = WIDE<T>;
    SHARED(u64, best_of_warp, SAMPLE_THREADS / WARP);
    u64 *scratch = p.scratch + i64(blockIdx.y) * ROW_WORDS;
    // The second launch adds to what is behind the sums.
    for (u32 i = blockIdx.x * SAMPLE_THREADS + threadIdx.x; i < ROW_WORDS - WEIGHTS; i += p.chunks * SAMPLE_THREADS) {
        scratch[WEIGHTS + i] = 0;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) scratch[TICKET] = 0;

    const T *row = static_cast<const T *>(p.logits) + i64(blockIdx.y) * p.width;
    const u32 from = blockIdx.x * p.chunk, to = min(from + p.chunk, p.width);
    float best = -INFINITY;
    u32 token = 0;
    const auto look = [&](u32 at, float logit) {
        if (logit > best) {
            best = logit;
            token = at;
        }
    };
    const u32 head = min(to - from, u32((16 - u64(row + from) % 16) % 16 / sizeof(T))), packs = (to - from - head) / N;
    if (threadIdx.x < head) look(from + threadIdx.x, to_f32(row[from + threadIdx.x]));
#pragma unroll 4
    for (u32 i = threadIdx.x; i < packs; i += SAMPLE_THREADS) {
        const u32 at = from + head + i * N;
        const Pack<T, N> pack = load_constant<T, N>(row + at);
#pragma unroll
        for (int j = 0; j < N; j++) look(at + j, to_f32(pack.at[j]));
    }
    const u32 at = from + head + packs * N + threadIdx.x;
    if (at < to) look(at, to_f32(row[at]));

    // 0: there is no number, as no rank is.
    u64 rank = best > -INFINITY ? rank_of(key_of(best), token) : 0;
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) rank = max(rank, __shfl_xor_sync(FULL, rank, step));
    if (threadIdx.x % WARP == 0) best_of_warp[threadIdx.x / WARP] = rank;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < SAMPLE_THREADS / WARP; warp++) rank = max(rank, best_of_warp[warp]);
        scratch[BEST + blockIdx.x] = rank;
    }
}

// The tokens that a pass looks at: those of a list, or those of a row from `from` to `to`.
template <typename T> struct Source {
    const T *row;
    u32 from, to;
    // Null until there is one.
    const u64 *list;
    u32 listed;
    float max, temperature;
    // No smaller logit matters.
    float least;
};

// Calls `visit(token, logit)` for tokens of the row that may matter. Four packs are under way at a time, and their elements are
// tested as they come; those that pass, which are few, are read once more, so that what is done with them need not be there once
// for each element of a pack.
template <typename T, typename F> __device__ __forceinline__ void each_of_row(const Source<T> &source, F visit) {
    constexpr int N = WIDE<T>, AT_ONCE = 4;
    constexpr u32 APART = SAMPLE_THREADS * N;
    const T *row = source.row;
    const u32 count = source.to - source.from;
    const u32 head = min(count, u32((16 - u64(row + source.from) % 16) % 16 / sizeof(T)));
    const u32 packs = (count - head) / N, ends = count - packs * N;
    // The last turn takes what lies before the first whole pack and behind the last.
    for (u32 i = threadIdx.x, more = 1; more; i += AT_ONCE * SAMPLE_THREADS) {
        more = i - threadIdx.x < packs;
        u32 first = source.from + head + i * N, passed = 0;
        if (more) {
            Pack<T, N> pack[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                if (i + k * SAMPLE_THREADS < packs) pack[k] = load_constant<T, N>(row + first + k * APART);
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                if (i + k * SAMPLE_THREADS >= packs) continue;
#pragma unroll
                for (int j = 0; j < N; j++) {
                    const float logit = to_f32(pack[k].at[j]);
                    const bool passes = logit >= source.least && !is_far_below(logit, source.max, source.temperature);
                    passed |= u32(passes) << (k * N + j);
                }
            }
        } else if (threadIdx.x < ends) {
            first = source.from + threadIdx.x + (threadIdx.x < head ? 0 : packs * N);
            passed = to_f32(row[first]) >= source.least;
        }
        while (passed != 0) {
            const u32 bit = __ffs(i32(passed)) - 1, token = first + bit / N * APART + bit % N;
            passed &= passed - 1;
            visit(token, to_f32(row[token]));
        }
    }
}

template <typename T, typename F> __device__ __forceinline__ void each(const Source<T> &source, F visit) {
    if (source.list == nullptr) return each_of_row(source, visit);
    for (u32 i = threadIdx.x; i < source.listed; i += SAMPLE_THREADS) {
        const u64 rank = source.list[i];
        visit(~u32(rank), logit_of(u32(rank >> 32)));
    }
}

// The sum of the weights of the tokens from `floor` on upwards.
template <typename T> __device__ __forceinline__ u64 sum_from(const Source<T> &source, u64 floor, u64 *scratch) {
    u64 sum = 0;
    each(source, [&](u32 token, float logit) {
        u64 weight = 0;
        if (rank_of(key_of(logit), token) >= floor && weigh(logit, source.max, source.temperature, weight)) sum += weight;
    });
    return sum_of_block(sum, scratch);
}

// ceil(top_p * total), within 1 and the total.
__device__ __forceinline__ u64 part_of(float top_p, u64 total) {
    const double wanted = ceil(__dmul_rn(double(top_p), double(total)));
    return wanted >= 1.0 ? min(u64(wanted), total) : 1;
}

// The cuts, in their order, and the draw.
enum Stage : u32 { TOP_K, TOP_P, DRAW, STAGES };

// What a block has in shared memory.
struct Space {
    Bins bins;
    u64 *list;
    u32 *listed;
    Picked *picked;
    u64 *sums;
};

// Ends a row: `total` is the sum of the weights of `candidates` tokens. With `counted`, the bins hold the first digits of their
// ranks; without, nothing is cut, and `source` has the tokens of the chunk in which the draw falls, with `skipped` before it.
template <typename T>
__device__ __forceinline__ u32
finish(Source<T> source, const Setting &setting, bool counted, u64 candidates, u64 total, u64 skipped, u32 width,
       const Space &space) {
    const Bins &bins = space.bins;
    const u32 token_bits = max(1, 32 - __clz(i32(width - 1)));
    u64 floor = 0, result = 0;
#pragma unroll 1
    for (u32 stage = TOP_K; stage < STAGES; stage++) {
        if (stage == TOP_K && !(setting.top_k > 0 && u64(setting.top_k) < candidates)) continue;
        if (stage == TOP_P && !(setting.top_p < 1.0f)) continue;
        if (floor != 0) total = sum_from(source, floor, space.sums);
        u64 wanted = u64(setting.top_k);
        if (stage == TOP_P) wanted = part_of(setting.top_p, total);
        if (stage == DRAW) wanted = __umul64hi(philox_low(setting.seed, setting.position), total) + 1 - skipped;
        // Digits are taken from the top: of ranks, or of tokens backwards. The first `64 - left` bits, or what stands for them,
        // are known.
        u64 prefix = 0;
        u32 left = stage == DRAW ? token_bits : 64, count = ~0u;
        if (counted) {
            counted = false;
            u32 least = 0;
            if (stage != DRAW) {
                const Picked picked = pick(bins, stage == TOP_P, wanted, space.picked, space.sums);
                wanted -= picked.before;
                prefix = least = picked.digit;
                left -= DIGIT_BITS;
                count = picked.count;
            }
            u64 above = 0;
            for (u32 i = threadIdx.x; i < DIGITS; i += SAMPLE_THREADS) above += i >= least ? bins.counts[i] : 0;
            if (sum_of_block(above, space.sums) <= MOST_LISTED) {
                if (least != 0) source.least = logit_of(least << (32 - DIGIT_BITS));
                if (threadIdx.x == 0) *space.listed = 0;
                __syncthreads();
                each_of_row(source, [&](u32 token, float logit) {
                    const u32 key = key_of(logit);
                    if (key >> (32 - DIGIT_BITS) < least) return;
                    if (!(exponent_of(logit, source.max, source.temperature) > LEAST_EXPONENT)) return;
                    space.list[atomicAdd(space.listed, 1u)] = rank_of(key, token);
                });
                __syncthreads();
                source.list = space.list;
                source.listed = *space.listed;
            }
        }
        while (left > 0 && (stage == DRAW || count > 1)) {
            const u32 bits = min(u32(DIGIT_BITS), left);
            clear(bins);
            __syncthreads();
            each(source, [&](u32 token, float logit) {
                const u64 rank = rank_of(key_of(logit), token);
                const u64 value = stage == DRAW ? (1u << token_bits) - 1 - token : rank;
                if (rank < floor || (left < 64 && value >> left != prefix)) return;
                u64 weight = 0;
                if (weigh(logit, source.max, source.temperature, weight)) {
                    add(bins, u32(value >> (left - bits)) & ((1u << bits) - 1), weight);
                }
            });
            __syncthreads();
            const Picked picked = pick(bins, stage != TOP_K, wanted, space.picked, space.sums);
            wanted -= picked.before;
            prefix = prefix << bits | picked.digit;
            left -= bits;
            count = picked.count;
            if (stage == DRAW) {
                // The tokens of these digits lie next to each other.
                const u64 last = (1u << token_bits) - 1 - (prefix << left);
                source.from = max(source.from, u32(last + 1 - (u64(1) << left)));
                source.to = min(source.to, u32(last + 1));
            }
        }
        if (stage == DRAW) {
            result = (1u << token_bits) - 1 - prefix;
        } else {
            // What an earlier cut left out may have the same digits.
            floor = max(floor, prefix << left);
            source.least = logit_of(u32(floor >> 32));
        }
    }
    return u32(result);
}

// The largest rank of a row, in every thread of a warp.
__device__ __forceinline__ u64 best_of_row(const u64 *scratch, u32 chunks) {
    u64 rank = 0;
    for (u32 i = threadIdx.x % WARP; i < chunks; i += WARP) rank = max(rank, scratch[BEST + i]);
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) rank = max(rank, __shfl_xor_sync(FULL, rank, step));
    return rank;
}

template <typename T> __device__ __forceinline__ void draw(const SampleParams &p) {
    SHARED(u32, bins_of, 3 * DIGITS);
    SHARED(u64, list, MOST_LISTED);
    SHARED(u64, sums, SAMPLE_THREADS / WARP);
    SHARED(Picked, picked, 1);
    SHARED(u32, word, 1);
    const i64 row = blockIdx.y;
    u64 *scratch = p.scratch + row * ROW_WORDS;
    const u64 best = best_of_row(scratch, p.chunks);
    const float max_logit = logit_of(u32(best >> 32));
    Setting setting;
    setting.temperature = p.real[2 * row];
    setting.top_p = p.real[2 * row + 1];
    setting.top_k = p.integer[2 * row];
    setting.seed = u64(p.integer[2 * row + 1]);
    setting.position = u64(max(0, p.positions[(row + 1) * p.steps - 1]));
    if (best == 0 || !(setting.temperature > 0.0f) || max_logit == INFINITY || setting.top_k == 1) {
        if (blockIdx.x == 0 && threadIdx.x == 0) p.tokens[row] = best == 0 ? 0 : i32(~u32(best));
        return;
    }
    const Bins bins = {bins_of, bins_of + DIGITS, bins_of + 2 * DIGITS};
    const bool cut = setting.top_k > 0 || setting.top_p < 1.0f;
    Source<T> source = {};
    source.row = static_cast<const T *>(p.logits) + row * p.width;
    source.from = blockIdx.x * p.chunk;
    source.to = min(source.from + p.chunk, p.width);
    source.max = max_logit;
    source.temperature = setting.temperature;
    // The least number that can be drawn.
    source.least = -3.4028234663852886e38f;
    clear(bins);
    __syncthreads();
    u64 sum = 0;
    each_of_row(source, [&](u32, float logit) {
        u64 weight = 0;
        if (!weigh(logit, source.max, source.temperature, weight)) return;
        if (cut) add(bins, key_of(logit) >> (32 - DIGIT_BITS), weight);
        sum += weight;
    });
    sum = sum_of_block(sum, sums);
    u32 *counts = reinterpret_cast<u32 *>(scratch + COUNTS);
    if (cut) {
        for (u32 i = threadIdx.x; i < DIGITS; i += SAMPLE_THREADS) {
            if (bins.counts[i] == 0) continue;
            atomicAdd(counts + i, bins.counts[i]);
            atomicAdd(scratch + WEIGHTS + i, weight_in(bins, i));
        }
    }
    if (threadIdx.x == 0) scratch[SUMS + blockIdx.x] = sum;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *word = atomicAdd(reinterpret_cast<u32 *>(scratch + TICKET), 1u) == p.chunks - 1;
    __syncthreads();
    if (*word == 0) return;
    __threadfence();

    // The last block of its row. What others wrote comes from the second-level cache.
    u64 total = 0, candidates = 0, skipped = 0;
    for (u32 i = 0; i < p.chunks; i++) total += __ldcg(scratch + SUMS + i);
    source.from = 0;
    source.to = p.width;
    if (cut) {
        for (u32 i = threadIdx.x; i < DIGITS; i += SAMPLE_THREADS) {
            const u64 weight = __ldcg(scratch + WEIGHTS + i);
            const u32 count = __ldcg(counts + i);
            bins.counts[i] = count;
            bins.low[i] = u32(weight);
            bins.high[i] = u32(weight >> 32);
            candidates += count;
        }
        candidates = sum_of_block(candidates, sums);
    } else {
        const u64 target = __umul64hi(philox_low(setting.seed, setting.position), total);
        u32 chunk = 0;
        for (u64 in = __ldcg(scratch + SUMS); skipped + in <= target; in = __ldcg(scratch + SUMS + chunk)) {
            skipped += in;
            chunk++;
        }
        source.from = chunk * p.chunk;
        source.to = min(source.from + p.chunk, p.width);
    }
    // The flag above shares its word with the list's length.
    __syncthreads();
    const Space space = {bins, list, word, picked, sums};
    const u32 token = finish(source, setting, cut, candidates, total, skipped, p.width, space);
    if (threadIdx.x == 0) p.tokens[row] = i32(token);
}

// One block a multiprocessor will do: without a word the compiler makes room for two, and spills.
#define DRAW_BOUNDS SAMPLE_THREADS, 1

#define X(T, name)                                                                                                               \
    KERNEL(SAMPLE_THREADS, sample_best_##name, SampleParams) { best_of_chunk<T>(p); }                                            \
    KERNEL(DRAW_BOUNDS, sample_draw_##name, SampleParams) { draw<T>(p); }
EACH_FLOAT(X)
#undef X
