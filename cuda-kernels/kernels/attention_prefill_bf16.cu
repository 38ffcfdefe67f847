// Attention of many queries, bf16.
#include "attention_prefill.cuh"

ATTENTION_PREFILL(bf16, bf16)
