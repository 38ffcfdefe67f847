// Attention in f32 arithmetic: of f32 tensors or caches, of types that differ, and of sizes that matrix units do not take.
//
// A block has ROWS queries of a group and takes 32 keys at a time, or 16: it makes them f32 in shared memory, scores them, makes weights of
// the scores, brings the values to the same place, and adds them up. Nothing is on its way meanwhile but what other blocks of the
// multiprocessor asked for, and there are several. With 32 rows (a prefill) it is bound by shared memory, which gives each thread
// six packs of four for 32 products; with four (a decode step), where keys pass once, by the GPU's memory.
#include "attention_fresh.cuh"

constexpr int ROW_THREADS = 128;

template <typename T> __device__ __forceinline__ float4 wide_four(const T *from) {
    const Pack<T, 4> pack = load<T, 4>(from);
    return make_float4(to_f32(pack.at[0]), to_f32(pack.at[1]), to_f32(pack.at[2]), to_f32(pack.at[3]));
}

template <typename T> __device__ __forceinline__ float4 narrow_four(const T *from, i32 there) {
    float4 x = make_float4(to_f32(from[0]), 0.0f, 0.0f, 0.0f);
    if (there > 1) x.y = to_f32(from[1]);
    if (there > 2) x.z = to_f32(from[2]);
    if (there > 3) x.w = to_f32(from[3]);
    return x;
}

template <typename T> __device__ __forceinline__ void put_four(T *to, float4 x, bool wide, i32 there) {
    const Pack<T, 4> pack = {{from_f32<T>(x.x), from_f32<T>(x.y), from_f32<T>(x.z), from_f32<T>(x.w)}};
    if (wide) {
        store(to, pack);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i < there) to[i] = pack.at[i];
    }
}

__device__ __forceinline__ float as_type(float x, u32 type) {
    return type == TYPE_F32 ? x : type == TYPE_F16 ? to_f32(from_f32<f16>(x)) : to_f32(from_f32<bf16>(x));
}

// The new token's key, then its value: [2, DIM], zeros behind the head.
template <typename T, int DIM> __device__ __forceinline__ void fetch_fresh(const AttentionParams &p, const Chunk &chunk, float *fresh) {
    for (int i = threadIdx.x; i < 2 * DIM; i += ROW_THREADS) {
        const bool value = i >= DIM;
        const int d = i % DIM;
        fresh[i] = d < p.head_dim ? to_f32(fresh_at<T>(p, chunk.row, chunk.kv_head, value)[d]) : 0.0f;
    }
}

// They become what the cache's type holds of them, and go there if this block is the one to do it.
template <typename T, int DIM> __device__ __forceinline__ void append_fresh(const AttentionParams &p, const Chunk &chunk, float *fresh) {
    for (int i = threadIdx.x; i < 2 * DIM; i += ROW_THREADS) {
        const bool value = i >= DIM;
        const int d = i % DIM;
        const T narrow = from_f32<T>(fresh[i]);
        fresh[i] = to_f32(narrow);
        // The groups of queries of a head have the same new key.
        if (chunk.first == 0 && d < p.head_dim) cached_at<T>(p, chunk, value)[d] = narrow;
    }
}

// Turns a chunk's queries, which lie at `q`, and puts its new key and value, where it has them, into the cache and into `fresh`.
template <int STRIDE, int DIM>
__device__ __forceinline__ void prepare_fresh(const AttentionParams &p, const Chunk &chunk, float *q, float *fresh) {
    if (fresh != nullptr) {
        switch (p.q_type) {
        case TYPE_F32: fetch_fresh<float, DIM>(p, chunk, fresh); break;
        case TYPE_F16: fetch_fresh<f16, DIM>(p, chunk, fresh); break;
        default: fetch_fresh<bf16, DIM>(p, chunk, fresh);
        }
    }
    __syncthreads();
    if (p.frequencies != nullptr) {
        turn_fresh(p, chunk, q, STRIDE, fresh, [&](float x) { return as_type(x, p.q_type); });
        __syncthreads();
    }
    if (fresh == nullptr) return;
    switch (p.kv_type) {
    case TYPE_F32: append_fresh<float, DIM>(p, chunk, fresh); break;
    case TYPE_F16: append_fresh<f16, DIM>(p, chunk, fresh); break;
    default: append_fresh<bf16, DIM>(p, chunk, fresh);
    }
    // It is read after the next barrier.
}

template <int ROWS, int DIM> struct RowsTile {
    // With few rows, the four warps share out dimensions of the scores, and keys of the values; with many, rows.
    static constexpr bool FEW = ROWS == 4;
    static constexpr int SHARES = FEW ? 4 : 1, LANES = FEW ? 32 : 16, COLUMNS = DIM / LANES, PACK = COLUMNS < 4 ? COLUMNS : 4;
    // Fewer keys where they are long: what a block needs fits every GPU's shared memory.
    static constexpr int KEYS = !FEW && DIM == 256 ? 16 : 32, SCORED = FEW ? 1 : KEYS / 16;
    // In 16-byte units 4 more than a multiple of 8, or 1: the packs that eight lanes read at a time lie in different banks.
    static constexpr int STRIDE = DIM + (FEW ? 16 : 4), WEIGHTS = KEYS + 1;

    float *q, *keys, *weights, *fades, *maxima, *totals;
    // Of rows 4 * part and the next three; column PACK * (LANES * j + lane) + i is acc[..][PACK * j + i].
    float acc[4][COLUMNS];

    __device__ __forceinline__ explicit RowsTile(unsigned char *memory) {
        q = reinterpret_cast<float *>(memory);
        keys = q + ROWS * STRIDE;
        weights = keys + KEYS * STRIDE;
        fades = weights + ROWS * WEIGHTS;
        maxima = fades + ROWS;
        totals = maxima + ROWS;
    }

    static __device__ __forceinline__ int lane() { return threadIdx.x % LANES; }
    // The first of the thread's rows.
    static __device__ __forceinline__ int row() { return FEW ? 0 : int(threadIdx.x) / LANES * 4; }

    template <typename T>
    __device__ __forceinline__ void fetch_queries(const AttentionParams &p, int batch_row, int kv_head, i32 first, i32 queries) {
#pragma unroll 1
        for (int i = threadIdx.x; i < ROWS * DIM / 4; i += ROW_THREADS) {
            const int r = i / (DIM / 4), d = i % (DIM / 4) * 4;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (r < queries && d < p.head_dim) {
                const T *const from = static_cast<const T *>(p.q) + query_offset(p, batch_row, kv_head, first + r, p.q_stride) + d;
                x = p.wide ? wide_four(from) : narrow_four(from, p.head_dim - d);
            }
            *reinterpret_cast<float4 *>(q + r * STRIDE + d) = x;
        }
    }

    template <typename T> __device__ __forceinline__ void fetch_rows(const AttentionParams &p, const Rows<T> &from) {
        if (p.wide) {
            // As many loads are under way at a time as a thread has turns at head_dim 128.
#pragma unroll(DIM < 128 ? DIM / 16 : 8)
            for (int i = threadIdx.x; i < KEYS * DIM / 4; i += ROW_THREADS) {
                const int key = i / (DIM / 4), d = i % (DIM / 4) * 4;
                float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (key < from.rows && d < p.head_dim) x = wide_four(from.at + key * from.stride + d);
                *reinterpret_cast<float4 *>(keys + key * STRIDE + d) = x;
            }
            return;
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < KEYS * DIM / 4; i += ROW_THREADS) {
            const int key = i / (DIM / 4), d = i % (DIM / 4) * 4;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (key < from.rows && d < p.head_dim) x = narrow_four(from.at + key * from.stride + d, p.head_dim - d);
            *reinterpret_cast<float4 *>(keys + key * STRIDE + d) = x;
        }
    }

    __device__ __forceinline__ void fetch(const AttentionParams &p, Span span, int batch_row, int kv_head, i32 key, bool values) {
        const u64 block = block_address(p, batch_row, key / CACHE_BLOCK);
        switch (p.kv_type) {
        case TYPE_F32: return fetch_rows(p, rows_from<float>(p, span, batch_row, kv_head, block, key, values));
        case TYPE_F16: return fetch_rows(p, rows_from<f16>(p, span, batch_row, kv_head, block, key, values));
        default: return fetch_rows(p, rows_from<bf16>(p, span, batch_row, kv_head, block, key, values));
        }
    }

    // Scores of all rows with the keys, from number `first` on.
    __device__ __forceinline__ void score(float scale, const i32 (&seen)[4], i32 first) {
        float s[4][SCORED] = {};
        const int key = FEW ? int(threadIdx.x) / SHARES : lane(), share = FEW ? threadIdx.x % SHARES : 0;
#pragma unroll 4
        for (int d = 4 * share; d < DIM; d += 4 * SHARES) {
            float4 k[SCORED];
#pragma unroll
            for (int j = 0; j < SCORED; j++) k[j] = *reinterpret_cast<const float4 *>(keys + (key + 16 * j) * STRIDE + d);
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float4 x = *reinterpret_cast<const float4 *>(q + (row() + r) * STRIDE + d);
#pragma unroll
                for (int j = 0; j < SCORED; j++) {
                    s[r][j] = fmaf(x.x, k[j].x, s[r][j]);
                    s[r][j] = fmaf(x.y, k[j].y, s[r][j]);
                    s[r][j] = fmaf(x.z, k[j].z, s[r][j]);
                    s[r][j] = fmaf(x.w, k[j].w, s[r][j]);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int j = 0; j < SCORED; j++) {
                float sum = s[r][j];
                if constexpr (FEW) {
                    sum += __shfl_xor_sync(FULL, sum, 1);
                    sum += __shfl_xor_sync(FULL, sum, 2);
                }
                const float scored = first + key + 16 * j < seen[r] ? sum * scale : -INFINITY;
                if (share == 0) weights[(row() + r) * WEIGHTS + key + 16 * j] = scored;
            }
        }
    }

    // Scores become weights, relative to each row's largest so far.
    __device__ __forceinline__ void weigh() {
        constexpr int EACH = ROW_THREADS / ROWS, MINE = KEYS / EACH;
        const int r = threadIdx.x / EACH, part = threadIdx.x % EACH;
        float *const scores = weights + r * WEIGHTS + part;
        const float before = maxima[r];
        float max = before, sum = 0.0f;
#pragma unroll
        for (int j = 0; j < MINE; j++) max = fmaxf(max, scores[j * EACH]);
#pragma unroll
        for (int step = EACH / 2; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(FULL, max, step));
        const float base = reference(max);
#pragma unroll
        for (int j = 0; j < MINE; j++) {
            scores[j * EACH] = expf(scores[j * EACH] - base);
            sum += scores[j * EACH];
        }
#pragma unroll
        for (int step = EACH / 2; step > 0; step /= 2) sum += __shfl_xor_sync(FULL, sum, step);
        // The shuffles came after all of the row's threads have read its maximum.
        if (part == 0) {
            const float fade = expf(before - base);
            fades[r] = fade;
            maxima[r] = max;
            totals[r] = totals[r] * fade + sum;
        }
    }

    // Adds the values, from number `first` on, to the rows that see them: a weight of zero would not hide infinity.
    __device__ __forceinline__ void add(const i32 (&seen)[4], i32 first) {
        constexpr int MINE = KEYS / SHARES;
        const int begin = FEW ? int(threadIdx.x) / WARP * MINE : 0;
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const float fade = fades[row() + r];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) acc[r][j] *= fade;
        }
#pragma unroll 2
        for (int key = begin; key < begin + MINE; key++) {
            Pack<float, PACK> v[COLUMNS / PACK];
#pragma unroll
            for (int j = 0; j < COLUMNS / PACK; j++) v[j] = load<float, PACK>(keys + key * STRIDE + PACK * (LANES * j + lane()));
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float weight = weights[(row() + r) * WEIGHTS + key];
                if (first + key >= seen[r]) continue;
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) acc[r][j] = fmaf(weight, v[j / PACK].at[j % PACK], acc[r][j]);
            }
        }
    }

    // All of `queries` queries from `query` on over keys `begin` to `end`. `maxima` and `totals` are there after the barrier at its end.
    // `prepare` is called when this thread's part of the queries is in shared memory. With `fresh`, key number `span.before` and its
    // value are there, and not in the cache.
    template <typename Prepare>
    __device__ __forceinline__ void run(const AttentionParams &p, Span span, int batch_row, int kv_head, i32 query, i32 queries,
                                        i32 begin, i32 end, const float *fresh, Prepare prepare) {
        i32 seen[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            seen[r] = seen_by(p, span, min(query + row() + r, query + queries - 1) / p.group);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) acc[r][j] = 0.0f;
        }
        switch (p.q_type) {
        case TYPE_F32: fetch_queries<float>(p, batch_row, kv_head, query, queries); break;
        case TYPE_F16: fetch_queries<f16>(p, batch_row, kv_head, query, queries); break;
        default: fetch_queries<bf16>(p, batch_row, kv_head, query, queries);
        }
        prepare();
        if (threadIdx.x < ROWS) maxima[threadIdx.x] = -INFINITY, totals[threadIdx.x] = 0.0f;
        // First the keys, then the values at the same place: `fetch` is long, and there once.
        bool values = false;
#pragma unroll 1
        for (i32 key = begin; key < end;) {
            fetch(p, held(p, span), batch_row, kv_head, key, values);
            __syncthreads();
            if (fresh != nullptr && span.before >= key && span.before < key + KEYS) {
                for (int d = threadIdx.x; d < DIM; d += ROW_THREADS) {
                    keys[(span.before - key) * STRIDE + d] = fresh[(values ? DIM : 0) + d];
                }
                __syncthreads();
            }
            if (values) {
                add(seen, key);
                key += KEYS;
            } else {
                score(p.scale, seen, key);
            }
            __syncthreads();
            if (!values) weigh();
            values = !values;
        }
    }
};

__device__ __forceinline__ void store_result(const AttentionParams &p, i64 at, float4 y, i32 there) {
    switch (p.q_type) {
    case TYPE_F32: return put_four(static_cast<float *>(p.y) + at, y, p.wide, there);
    case TYPE_F16: return put_four(static_cast<f16 *>(p.y) + at, y, p.wide, there);
    default: return put_four(static_cast<bf16 *>(p.y) + at, y, p.wide, there);
    }
}

template <int DIM> __device__ __forceinline__ void attention_many(const AttentionParams &p) {
    constexpr int ROWS = 32;
    DYNAMIC_SHARED(memory);
    RowsTile<ROWS, DIM> tile(memory);
    const int batch_row = blockIdx.z, kv_head = blockIdx.y;
    const Span span = span_of(p, batch_row);
    if (span.total <= 0) return;
    const i32 first = i32(gridDim.x - 1 - blockIdx.x) * ROWS, queries = min(ROWS, p.tokens * p.group - first);
    tile.run(p, span, batch_row, kv_head, first, queries, 0, seen_by(p, span, (first + queries - 1) / p.group), nullptr, [] {});
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const int row = tile.row() + r;
        if (row >= queries) break;
        const float factor = 1.0f / tile.totals[row];
        const i64 at = query_offset(p, batch_row, kv_head, first + row, y_stride(p));
#pragma unroll
        for (int j = 0; j < tile.COLUMNS; j += 4) {
            const int d = 4 * (j / 4 * tile.LANES + tile.lane());
            const float4 y = make_float4(tile.acc[r][j] * factor, tile.acc[r][j + 1] * factor, tile.acc[r][j + 2] * factor,
                                         tile.acc[r][j + 3] * factor);
            if (d < p.head_dim) store_result(p, at + d, y, p.head_dim - d);
        }
    }
}

template <int DIM> __device__ __forceinline__ void attention_few(const AttentionParams &p) {
    constexpr int ROWS = 4, WARPS = ROW_THREADS / WARP;
    typedef RowsTile<ROWS, DIM> Tile;
    DYNAMIC_SHARED(memory);
    i32 *const before = reinterpret_cast<i32 *>(memory);
    Tile tile(memory + (p.batch / 4 + 1) * 16);
    SHARED(float, fresh, 2 * DIM);
    // What each warp's keys gave, where keys were: [WARPS, ROWS, DIM].
    float *const found = tile.keys;
    count_chunks(p, before);
    const i32 items = before[p.batch] * p.kv_heads * query_groups<ROWS>(p);
    for (i32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Chunk chunk = chunk_of<ROWS>(p, before, item);
        const i32 end = min(chunk.end * CACHE_BLOCK, chunk.span.total);
        const bool with_fresh = has_fresh(p, chunk);
        tile.run(p, chunk.span, chunk.row, chunk.kv_head, chunk.first, chunk.queries, chunk.begin * CACHE_BLOCK, end,
                 with_fresh ? fresh : nullptr, [&] {
                     if (appends(p)) prepare_fresh<Tile::STRIDE, DIM>(p, chunk, tile.q, with_fresh ? fresh : nullptr);
                 });
        float *const mine = found + int(threadIdx.x) / WARP * ROWS * DIM;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int j = 0; j < Tile::COLUMNS / Tile::PACK; j++) {
                Pack<float, Tile::PACK> pack;
#pragma unroll
                for (int i = 0; i < Tile::PACK; i++) pack.at[i] = tile.acc[r][Tile::PACK * j + i];
                store(mine + r * DIM + Tile::PACK * (Tile::LANES * j + tile.lane()), pack);
            }
        }
        __syncthreads();
        const auto value = [&](int row, int d) {
            float4 sums = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                const float4 part = *reinterpret_cast<const float4 *>(found + (w * ROWS + row) * DIM + d);
                sums.x += part.x, sums.y += part.y, sums.z += part.z, sums.w += part.w;
            }
            return sums;
        };
        const auto store_y = [&](int row, int d, float4 y) {
            const i64 at = query_offset(p, chunk.row, chunk.kv_head, chunk.first + row, y_stride(p)) + d;
            store_result(p, at, y, p.head_dim - d);
        };
        finish_chunk<ROWS, DIM>(p, chunk, tile.maxima, tile.totals, found, expf, value, store_y);
        __syncthreads();
    }
}

// Threads a block and blocks a multiprocessor: without the latter the compiler spills a register or two where it need not.
#define THREE_BLOCKS 128, 3
#define TWO_BLOCKS 128, 2

KERNEL(THREE_BLOCKS, attention_many_64, AttentionParams) { attention_many<64>(p); }
KERNEL(THREE_BLOCKS, attention_many_128, AttentionParams) { attention_many<128>(p); }
KERNEL(TWO_BLOCKS, attention_many_256, AttentionParams) { attention_many<256>(p); }
KERNEL(THREE_BLOCKS, attention_few_64, AttentionParams) { attention_few<64>(p); }
KERNEL(THREE_BLOCKS, attention_few_128, AttentionParams) { attention_few<128>(p); }
KERNEL(TWO_BLOCKS, attention_few_256, AttentionParams) { attention_few<256>(p); }
