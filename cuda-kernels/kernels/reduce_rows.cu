// Reductions along an axis where nothing lies behind the axis: each row is contiguous.
#include "fold.cuh"

// Every kind has the same states, in the same shared memory.
template <typename T> __device__ __forceinline__ void rows(const FoldParams &p) {
    typedef typename Fold<T, SUM>::State State;
    SHARED(State, scratch, REDUCE_THREADS / WARP);
    switch (p.kind) {
    case MAX: return reduce_rows<Fold<T, MAX>>(p.reduce, scratch);
    case MIN: return reduce_rows<Fold<T, MIN>>(p.reduce, scratch);
    case PROD: return reduce_rows<Fold<T, PROD>>(p.reduce, scratch);
    default: return reduce_rows<Fold<T, SUM>>(p.reduce, scratch);
    }
}

#define X(T, name) KERNEL(256, reduce_rows_##name, FoldParams) { rows<T>(p); }
EACH_FLOAT(X)
EACH_INTEGER(X)
#undef X
