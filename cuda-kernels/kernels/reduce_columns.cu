// Reductions along an axis where something lies behind the axis: neighbours are reduced side by side.
#include "fold.cuh"

// Every kind has the same states, in the same shared memory.
template <typename T> __device__ __forceinline__ void columns(const FoldParams &p) {
    typedef typename Fold<T, SUM>::State State;
    SHARED(State, scratch, REDUCE_THREADS * WIDE<T>);
    switch (p.kind) {
    case MAX: return reduce_columns<Fold<T, MAX>>(p.reduce, scratch);
    case MIN: return reduce_columns<Fold<T, MIN>>(p.reduce, scratch);
    case PROD: return reduce_columns<Fold<T, PROD>>(p.reduce, scratch);
    default: return reduce_columns<Fold<T, SUM>>(p.reduce, scratch);
    }
}

#define X(T, name) KERNEL(256, reduce_columns_##name, FoldParams) { columns<T>(p); }
EACH_FLOAT(X)
EACH_INTEGER(X)
#undef X
