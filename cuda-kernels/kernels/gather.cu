// Rows of a table by ids, as they are or converted; and rows of a table replaced by ids.
//
// Bound by memory, in pieces of a row. Threads share a row so that its bytes are read side by side, 16 a thread where alignment
// allows, up to four loads under way each; several small rows share a block, and a large row is shared by several blocks.
#include "convert.cuh"
#include "packs.cuh"
#include "picked_rows.cuh"

struct GatherParams {
    const void *table, *ids;
    void *y;
    u64 *fault;
    // Rows of the table.
    i64 bound;
    RowSplit split;
    // Elements of a row, where they are converted; the type that they become.
    u32 width, to, is_wide, padding;
};

// An id that is no row of the table is noted, and its row becomes zeros.
__device__ __forceinline__ bool is_row(const GatherParams &p, i64 id, i64 at, bool leads) {
    if (id >= 0 && id < p.bound) return true;
    if (leads) atomicMin(p.fault, u64(at));
    return false;
}

// T is the largest unit that alignment allows.
template <typename T> __device__ __forceinline__ void gather(const GatherParams &p) {
    each_unit(p.split, [&p](i64 row, u32 first, u32 step, bool leads) {
        const u32 units = p.split.units;
        const i64 id = id_at(p.ids, p.is_wide, row);
        const T *from = is_row(p, id, row, leads) ? static_cast<const T *>(p.table) + id * units : nullptr;
        copy_units(from, static_cast<T *>(p.y) + row * units, first, step, units);
    });
}

#define EACH_UNIT(X) X(u8, 1) X(u16, 2) X(u32, 4) X(uint2, 8) X(uint4, 16)
#define X(T, bytes)                                                                                                              \
    KERNEL(256, gather_##bytes, GatherParams) { gather<T>(p); }
EACH_UNIT(X)
#undef X

// In units of 4 elements.
template <typename From, typename To> __device__ __forceinline__ void embedding_to(const GatherParams &p) {
    constexpr int N = 4;
    const From *table = static_cast<const From *>(p.table);
    To *y = static_cast<To *>(p.y);
    const bool aligned = p.width % N == 0 && is_aligned(table, sizeof(From) * N) && is_aligned(y, sizeof(To) * N);
    each_unit(p.split, [=, &p](i64 row, u32 first, u32 step, bool leads) {
        const i64 id = id_at(p.ids, p.is_wide, row);
        const bool found = is_row(p, id, row, leads);
        for (u64 unit = first; unit < p.split.units; unit += step) {
            const i64 at = i64(unit) * N, valid = i64(p.width) - at;
            Pack<From, N> pack = {};
            if (found) pack = load_some<From, N>(table + id * p.width + at, valid, aligned);
            Pack<To, N> converted;
#pragma unroll
            for (int j = 0; j < N; j++) converted.at[j] = convert<To>(pack.at[j]);
            store_some(y + row * p.width + at, converted, valid, aligned);
        }
    });
}

template <typename From> __device__ __forceinline__ void embedding(const GatherParams &p) {
    switch (p.to) {
    case TYPE_F32: return embedding_to<From, float>(p);
    case TYPE_F16: return embedding_to<From, f16>(p);
    case TYPE_BF16: return embedding_to<From, bf16>(p);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, embedding_##name, GatherParams) { embedding<T>(p); }
EACH_FLOAT(X)
#undef X

struct ScatterMarkParams {
    const void *ids;
    // By row of the table: 1 + the last update of it, or 0.
    u32 *owners;
    u64 *fault;
    i64 count, bound;
    u32 is_wide, padding;
};

// The last of equal ids is the largest: whatever the order in which threads come, the same one stays.
KERNEL(256, scatter_mark, ScatterMarkParams) {
    for (i64 i = global_thread(); i < p.count; i += global_threads()) {
        const i64 id = id_at(p.ids, p.is_wide, i);
        if (id >= 0 && id < p.bound) {
            atomicMax(p.owners + id, u32(i) + 1);
        } else {
            atomicMin(p.fault, u64(i));
        }
    }
}

struct ScatterParams {
    const void *x, *updates;
    const u32 *owners;
    void *y;
    RowSplit split;
};

// Each row of y, from its update or from x. Where y is x, rows without an update are not touched.
template <typename T> __device__ __forceinline__ void scatter(const ScatterParams &p) {
    each_unit(p.split, [&p](i64 row, u32 first, u32 step, bool) {
        const u32 units = p.split.units, owner = __ldg(p.owners + row);
        if (owner == 0 && p.x == p.y) return;
        const T *x = static_cast<const T *>(p.x) + row * units;
        const T *update = static_cast<const T *>(p.updates) + (i64(owner) - 1) * units;
        copy_units(owner == 0 ? x : update, static_cast<T *>(p.y) + row * units, first, step, units);
    });
}

#define X(T, bytes)                                                                                                              \
    KERNEL(256, scatter_##bytes, ScatterParams) { scatter<T>(p); }
EACH_UNIT(X)
#undef X
