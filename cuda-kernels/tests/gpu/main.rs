//! What every [`Gpu`](genie_cuda_kernels::gpu::Gpu) promises: on the CPU stand-in always, and on a GPU, too, where feature `cuda` is on and
//! `GENIE_TEST_GPU=1` asks for it (then a machine without one fails).
#![cfg(feature = "host")]

mod copies;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod driver;
mod exports;
mod graphs;
mod memory;
mod order;
mod overlap;
mod products;
mod revival;
mod support;
