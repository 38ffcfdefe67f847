//! Every kernel against a plain f64 reference: random and odd sizes, every type, NaN and infinities, nothing at all, outputs poisoned
//! before, threads in several orders. On the CPU, through `host`; with feature `cuda` and `GENIE_TEST_GPU=1`, on a GPU.
#![cfg(feature = "host")]

mod argmax;
mod attention;
mod attention_cache;
mod attention_new;
mod batch_norm;
mod binary;
mod cast;
mod checksum;
mod conv;
mod copy;
mod create;
mod dequant;
mod elementwise;
mod functions;
mod gather;
mod gemm;
mod host;
mod matvec;
mod mixed;
mod norm;
mod pairs;
mod pool;
mod product;
mod reduce;
mod rope;
mod sample;
mod softmax;
mod support;
mod take;
