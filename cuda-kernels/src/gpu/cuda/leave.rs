//! The end of a process that has opened GPUs: the driver is taken down by what runs when a process exits, and must not be under a
//! thread that is in it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::GpuError;
use super::ahead::stop_compiling;

/// Threads that are within the driver, or between two of its calls that belong together.
static INSIDE: AtomicUsize = AtomicUsize::new(0);
/// Nobody gets in any more.
static LEAVING: AtomicBool = AtomicBool::new(false);

/// A thread within the driver, while this lives.
pub(super) struct Inside(());

impl Inside {
    /// # Errors
    /// [`GpuError::Refused`] once the process is about to end.
    pub(super) fn enter() -> Result<Self, GpuError> {
        // Counted before it looks: who leaves sets the one before it looks at the other, so that one of both sees the other.
        INSIDE.fetch_add(1, Ordering::SeqCst);
        let inside = Self(());
        if LEAVING.load(Ordering::SeqCst) {
            let reason = "the process is about to end".to_owned();
            return Err(GpuError::Refused { during: "using the GPU", reason });
        }
        Ok(inside)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends all use of GPUs, for good; a process that is about to end calls it. Waits for the modules that are being compiled, some seconds at
/// the most, and up to a second for threads that wait for a GPU. Whether none is left within the driver: where one is, the process must
/// end by [`exit_at_once`], or the driver is taken down under it.
pub fn leave() -> bool {
    /// What waits for longer than that waits for a prompt, or for a GPU that stands still.
    const PATIENCE: Duration = Duration::from_secs(1);
    stop_compiling();
    LEAVING.store(true, Ordering::SeqCst);
    let began = Instant::now();
    while INSIDE.load(Ordering::SeqCst) > 0 {
        if began.elapsed() >= PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Ends the process with this status, and does nothing of what libraries ask for at its end: neither the driver's nor any other's. Whatever
/// is to be written was flushed before.
pub fn exit_at_once(status: u8) -> ! {
    // SAFETY: it ends the process, and touches no memory of it.
    unsafe { libc::_exit(status.into()) }
}
