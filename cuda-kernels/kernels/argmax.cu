// The index of the largest element along an axis: the first of equals; NaN is never it, and where all are, the index is 0.
#include "convert.cuh"
#include "reduce.cuh"

#define NONE 0xffffffffu

// What a piece of the axis found: a number that is ordered as the elements are, and where. NONE: nothing but NaN.
struct Found {
    u64 key, index;
};

__device__ __forceinline__ u64 key_of(float x) {
    // The zeros are equal.
    const u32 bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ u64 key_of(i64 x) { return u64(x) ^ 0x8000000000000000ull; }

// One piece: straight to y.
__device__ __forceinline__ void store_index(void *y, i64 at, u64 index) { static_cast<i32 *>(y)[at] = index == NONE ? 0 : i32(index); }

template <typename T> struct ArgMax {
    typedef T Input;
    typedef decltype(wide(T{})) Value;
    struct State {
        Value value;
        u32 index;
    };

    static __device__ __forceinline__ State init() { return State{Value(0), NONE}; }
    // A thread meets indices in rising order.
    static __device__ __forceinline__ void take(State &state, T x, u32 index) {
        const Value value = wide(x);
        if (state.index == NONE ? value == value : value > state.value) state = State{value, index};
    }
    static __device__ __forceinline__ State merge(State a, State b) {
        if (b.index == NONE) return a;
        if (a.index == NONE) return b;
        return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
    }
    static __device__ __forceinline__ void store(const ReduceParams &p, i64 at, State state) {
        if (gridDim.y == 1) return store_index(p.y, at, state.index);
        u64 key;
        if constexpr (IsFloat<T>::value) {
            key = key_of(state.value);
        } else {
            key = key_of(i64(state.value));
        }
        static_cast<Found *>(p.y)[at] = Found{key, state.index};
    }
};

struct MergeFound {
    typedef Found Input;
    typedef Found State;

    static __device__ __forceinline__ Found init() { return Found{0, NONE}; }
    static __device__ __forceinline__ Found merge(Found a, Found b) {
        if (b.index == NONE) return a;
        if (a.index == NONE) return b;
        return b.key > a.key || (b.key == a.key && b.index < a.index) ? b : a;
    }
    static __device__ __forceinline__ void take(Found &state, Found x, u32) { state = merge(state, x); }
    static __device__ __forceinline__ void store(const ReduceParams &p, i64 at, Found state) { store_index(p.y, at, state.index); }
};

#define X(T, name)                                                                                                               \
    KERNEL(256, argmax_rows_##name, ReduceParams) { rows_of<ArgMax<T>>(p); }                                                     \
    KERNEL(256, argmax_columns_##name, ReduceParams) { columns_of<ArgMax<T>>(p); }
EACH_FLOAT(X)
EACH_INTEGER(X)
#undef X

KERNEL(256, argmax_merge, ReduceParams) { columns_of<MergeFound>(p); }
