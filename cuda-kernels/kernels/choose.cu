// y = condition ? a : b, of elements of any type, contiguous or one that is meant everywhere.
//
// Bound by memory. As in `pairs.cuh`, a thread takes four elements that are as far apart as the grid is wide.
#include "genie.cuh"

struct ChooseParams {
    const u8 *condition;
    const void *a, *b;
    void *y;
    i64 count;
    // From one element to the next: 1, or 0 where there is one.
    u32 condition_step, a_step, b_step, padding;
};

template <typename T> __device__ __forceinline__ void choose(const ChooseParams &p) {
    constexpr int N = 4;
    const T *a = static_cast<const T *>(p.a), *b = static_cast<const T *>(p.b);
    const i64 step = global_threads();
    for (i64 first = global_thread(); first < p.count; first += N * step) {
        T chosen[N];
#pragma unroll
        for (int j = 0; j < N; j++) {
            const i64 at = first + j * step;
            if (at >= p.count) continue;
            // Any byte but 0 is true. What is not chosen is not read.
            chosen[j] = p.condition[at * p.condition_step] != 0 ? a[at * p.a_step] : b[at * p.b_step];
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            const i64 at = first + j * step;
            if (at < p.count) static_cast<T *>(p.y)[at] = chosen[j];
        }
    }
}

#define X(T, bytes)                                                                                                              \
    KERNEL(256, choose_##bytes, ChooseParams) { choose<T>(p); }
X(u8, 1) X(u16, 2) X(u32, 4) X(u64, 8)
#undef X
