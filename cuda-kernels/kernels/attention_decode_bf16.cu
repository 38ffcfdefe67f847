// Attention of few queries over a cache, bf16.
#include "attention_decode.cuh"

ATTENTION_DECODE(bf16, bf16)
