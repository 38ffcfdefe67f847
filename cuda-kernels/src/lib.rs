//! Genie's CUDA kernels.
//!
//! `kernels/` has the sources, one concept a file; `ptx/` what `tools/build-kernels` made of them, for three compute capabilities.
//! [`launch`] has a function for each kernel family that checks shapes, types and alignment and gives a [`Launch`], which is data:
//! whatever runs kernels issues it. With feature `host` the same sources are compiled for this CPU (`host/cuda_on_host.h`), so
//! that each kernel is tested on machines without a GPU. [`gpu`] is what kernels run on; its tests, and those of the kernels, run on a
//! GPU, too, with features `cuda` and `host` and `GENIE_TEST_GPU=1`.

pub mod gpu;
#[cfg(feature = "host")]
pub mod host;
pub mod launch;

mod kernel;
mod view;

pub use kernel::{KERNELS, Kernel, Launch, MODULES, Module};
pub use view::{Address, LaunchError, View};
