// Attention of few queries over a cache, f16.
#include "attention_decode.cuh"

ATTENTION_DECODE(f16, f16)
