// Products of many rows by matrix units, both factors of one 16-bit type: tiles of 128 x 128 sums, and of 64 x 64 where those would
// be too few for the GPU.
#include "gemm_fragments.cuh"

#define X(T, name)                                                                                                               \
    KERNEL(128, gemm_##name##_out_in_128, GemmParams) { gemm<T, false, 128, 128, 2, 2, false>(p); }                              \
    KERNEL(128, gemm_##name##_in_out_128, GemmParams) { gemm<T, true, 128, 128, 2, 2, false>(p); }                               \
    KERNEL(128, gemm_##name##_out_in_64, GemmParams) { gemm<T, false, 64, 64, 2, 2, false>(p); }                                 \
    KERNEL(128, gemm_##name##_in_out_64, GemmParams) { gemm<T, true, 64, 64, 2, 2, false>(p); }
X(f16, f16)
X(bf16, bf16)
#undef X
