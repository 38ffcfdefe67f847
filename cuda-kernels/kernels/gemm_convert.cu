// Products of many rows by matrix units, where b is of another type than a or quantised: its elements are rounded to a's type.
#include "gemm_fragments.cuh"

#define X(T, name)                                                                                                               \
    KERNEL(128, gemm_##name##_out_in_convert, GemmParams) { gemm<T, false, 64, 64, 2, 2, true>(p); }                             \
    KERNEL(128, gemm_##name##_in_out_convert, GemmParams) { gemm<T, true, 64, 64, 2, 2, true>(p); }
X(f16, f16)
X(bf16, bf16)
#undef X
