// Attention of many queries, f16.
#include "attention_prefill.cuh"

ATTENTION_PREFILL(f16, f16)
