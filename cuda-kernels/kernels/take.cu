// Elements by index along an axis. Bound by memory, whose sectors the indices pick.
#include "strided.cuh"

struct TakeParams {
    const void *x, *ids;
    void *y;
    u64 *fault;
    i64 count;
    // Elements along the axis, and of x from one to the next.
    u64 bound;
    i64 stride;
    // Of x along the dimensions of the ids; 0 along the axis.
    i64 strides[1][MOST_DIMS];
    Dims dims;
    u32 is_wide, padding;
};

// An id outside the axis is a fault, and its element 0.
template <typename T> __device__ __forceinline__ void take(const TakeParams &p) {
    for (i64 i = global_thread(); i < p.count; i += global_threads()) {
        const i64 id = p.is_wide ? static_cast<const i64 *>(p.ids)[i] : static_cast<const i32 *>(p.ids)[i];
        i64 offset[1] = {0};
        locate(p.dims, p.strides, u64(i), offset);
        const bool fault = u64(id) >= p.bound;
        static_cast<T *>(p.y)[i] = fault ? T(0) : static_cast<const T *>(p.x)[offset[0] + id * p.stride];
        if (fault) atomicMin(p.fault, u64(i));
    }
}

#define X(T, bytes)                                                                                                              \
    KERNEL(256, take_##bytes, TakeParams) { take<T>(p); }
X(u8, 1) X(u16, 2) X(u32, 4) X(u64, 8)
#undef X
