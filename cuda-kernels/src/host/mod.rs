//! Kernels on this CPU: each thread of a block is a coroutine that runs until it waits for others. It finds mistakes; it is slow.
//!
//! Blocks run one after another on the caller's thread, in an order that a seed picks, and within a block the warps and threads do,
//! too: a warp goes as far as it gets before the next one does anything. Asynchronous copies arrive when they are waited for, and in
//! every fourth order at once.
//! Shared memory is poisoned before each block. A barrier or an exchange that some threads never reach is an error.
//! Blocks run one after another on the caller's thread, in an order that a seed picks, and within a block the threads do, too.
//! An address that is not aligned ends the process, as it ends a GPU's context. Shared memory is poisoned before each block. A barrier or an exchange that some threads never reach is an error.

mod alignment;
mod block;
mod memory;
#[cfg(test)]
mod selftest;
mod shuffle;

use crate::kernel::Launch;

pub use memory::Guarded;

/// Why a launch failed on the CPU. The memory that it wrote holds anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Some threads wait for others that ended, or that wait for something else.
    #[error("`{kernel}`, block {block:?}: threads wait for each other for ever: {waiting}")]
    Stuck {
        /// The kernel.
        kernel: &'static str,
        /// Its block.
        block: [u32; 3],
        /// Who waits for whom.
        waiting: String,
    },
    /// More than a block may have.
    #[error("`{kernel}`: a block of {threads} threads and {shared} bytes of shared memory is more than a GPU takes")]
    TooLarge {
        /// The kernel.
        kernel: &'static str,
        /// Threads a block.
        threads: u64,
        /// Bytes of shared memory.
        shared: u64,
    },
}

/// Threads that a block may have.
const MOST_THREADS: u64 = 1024;
/// Bytes of shared memory that a block may have, where there is most of it (compute capability 9.0).
const MOST_SHARED: u64 = 227 << 10;

/// Runs a launch to its end. `seed` picks the order of blocks and threads: a result that depends on it is a race.
///
/// # Errors
/// [`HostError`].
///
/// # Safety
/// The addresses in the launch's parameters are those of live memory of this process, as large as the views that the launch was
/// made from, that nobody else uses until this returns.
pub unsafe fn run(launch: &Launch, seed: u64) -> Result<(), HostError> {
    let threads: u64 = launch.block.iter().map(|&n| u64::from(n)).product();
    let shared = u64::from(launch.shared);
    if threads == 0 || threads > MOST_THREADS || shared > MOST_SHARED {
        return Err(HostError::TooLarge { kernel: launch.kernel.name, threads, shared });
    }
    let [x, y, z] = launch.grid.map(u64::from);
    for at in shuffle::order(x * y * z, seed) {
        let block = [at % x, at / x % y, at / (x * y)].map(|n| n as u32);
        // SAFETY: as the caller has it.
        unsafe { block::run(launch, block, seed ^ at) }?;
    }
    Ok(())
}
