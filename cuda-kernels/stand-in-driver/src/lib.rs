//! A stand-in for NVIDIA's driver, as the library that programs load: `libcuda.so.1`.
//!
//! `genie_cuda_kernels::gpu::cuda` calls the driver, and no machine that runs the tests has one. Everything above it is tested on a
//! stand-in for the whole GPU, which leaves out the calls themselves: their order, their handles, the context of the thread. This
//! library has the driver's functions that Genie calls, and does what they say on the CPU: kernels are those that the sources were
//! compiled to for it, found by their names; memory is this process's; streams are lists of what is to be done.
//!
//! **It proves nothing about NVIDIA's driver.** It knows what that one's documentation says, as its writer read it. What it can show is
//! that a program keeps the rules below. A rule that is broken is an error, as the driver's, and a line on stderr that begins with
//! `stand-in driver: mistake:`.
//!
//! # Rules
//! - Nothing but the version before `cuInit`. A call that works in a context needs one that is current on its thread and was not
//!   destroyed. A thread that had the primary context keeps it when that is released or reset, and gets an error.
//! - Handles are never used twice, and are looked up: one that is gone, or another context's, is an error and not a crash.
//! - A copy or a fill lies within one allocation that is not being freed; its host memory lies within one registered range or outside
//!   of all.
//! - The GPUs' memory is reached by kernels and copies alone: a program that touches it faults.
//! - Work is done when it is waited for, and no earlier than that needs. Fresh memory holds NaN, also when the stream comes to where it
//!   was allocated. An allocation ends at a page that must not be touched.
//! - Memory of a pool is had and given back in the order of a stream, and copied, filled and given back by others that come after its
//!   allocation; a pool's bytes count against the GPU's until it is trimmed.
//! - Of memory that is had at once (`cuMemAlloc`) whole pages can be exported to network cards; of a pool's none can. Other GPUs' copies
//!   get to it in any case.
//! - While a stream records, work put into it is not done. What a recording cannot hold ends it: waiting for its stream, or events from
//!   outside. The thread that records must not make calls that the driver calls unsafe, unless it relaxed its mode. The documentation
//!   has no full list of them; `streams/capture.rs` says which are taken for unsafe here.
//! - Host memory is registered in whole pages once; its registration ends with the context it was made in, and not while a copy of it
//!   is under way.
//! - No call once the process ends.
//! - Grids, blocks and shared memory have the limits of compute capability 7.5, 8.0 or 9.0; static shared memory is counted from the
//!   PTX. PTX must be one of Genie's, for a compute capability that the GPU has.
//! - After a fault every call in the context gives that fault, until the primary context is reset. What pools had then is gone, or
//!   stays: a setting says which, as the documentation does not.
//! - A GPU copies to another where the machine lets it, and into pools that were opened to it.
//! - Only events that were made with timing and recorded tell how far apart they are.
//!
//! Not here: the default stream, events in recordings, memory in recordings. cuBLASLt and NVML have stand-ins of their own beside this
//! one; kernels of the first come through `src/libraries.rs`, and keep the rules above.
//!
//! # Settings
//! Variables of the environment: `src/settings.rs` has the list.

mod contexts;
mod device;
mod errors;
mod exports;
mod host;
mod kernels;
mod libraries;
mod memory;
mod peers;
mod settings;
mod state;
mod streams;

/// How a line about a broken rule begins.
const MISTAKE: &str = "stand-in driver: mistake:";
