//! The CPU device, and the CUDA device over a GPU on the CPU (`GENIE_TEST_GPU=1`: over a real one): every op against a reference,
//! caches, batches, errors.

mod along;
mod cache;
mod case;
#[cfg(target_os = "linux")]
mod driver;
mod goldens;
mod gpu;
mod images;
mod models;
mod narrow;
mod ops;
mod pointwise;
mod quantized;
mod reference;
mod refusals;
mod residents;
mod run;
mod scatter;
mod select;
#[path = "../support/stand_in.rs"]
mod stand_in;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tiny.rs"]
mod tiny;
