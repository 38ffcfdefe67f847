// Element type conversion: a kernel for each type that is read, which knows every type that may be written.
//
// Bound by memory: a thread takes 16 bytes of the wider type, or four elements where those are more, so that neither side is touched
// in small pieces.
#include "convert.cuh"
#include "packs.cuh"

struct CastParams {
    const void *x;
    void *y;
    i64 count;
    u32 to, padding;
};

template <typename From, typename To> __device__ __forceinline__ void cast_to(const CastParams &p) {
    constexpr int WIDER = int(sizeof(From) > sizeof(To) ? sizeof(From) : sizeof(To));
    constexpr int N = 16 / WIDER > 4 ? 16 / WIDER : 4;
    const From *x = static_cast<const From *>(p.x);
    To *y = static_cast<To *>(p.y);
    const bool aligned = is_aligned(x, sizeof(From) * N) && is_aligned(y, sizeof(To) * N);
    each_pack<N>(p.count, [=](i64 at, i64 valid) {
        const Pack<From, N> from = load_some<From, N>(x + at, valid, aligned);
        Pack<To, N> to;
#pragma unroll
        for (int j = 0; j < N; j++) to.at[j] = convert<To>(from.at[j]);
        store_some(y + at, to, valid, aligned);
    });
}

template <typename From> __device__ __forceinline__ void cast(const CastParams &p) {
    switch (p.to) {
    case TYPE_F32: return cast_to<From, float>(p);
    case TYPE_F16: return cast_to<From, f16>(p);
    case TYPE_BF16: return cast_to<From, bf16>(p);
    case TYPE_I64: return cast_to<From, i64>(p);
    case TYPE_I32: return cast_to<From, i32>(p);
    case TYPE_U8: return cast_to<From, u8>(p);
    case TYPE_BOOL: return cast_to<From, boolean>(p);
    }
}

#define X(T, name)                                                                                                               \
    KERNEL(256, cast_##name, CastParams) { cast<T>(p); }
EACH_TYPE(X)
#undef X
