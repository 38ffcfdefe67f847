//! What the stand-ins for NVIDIA's other libraries ask of this one, which the driver has no functions for: to run code of theirs in a
//! stream, where the GPU's memory can be touched. No program calls these.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstream};

use crate::state::{Answer, Driver, Id, give, in_context, valid};
use crate::streams::{Op, capture};

/// Memory of the GPU that a kernel touches.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Range {
    at: u64,
    bytes: u64,
}

/// A kernel of another library.
pub(crate) struct Foreign {
    run: unsafe extern "C" fn(*const c_void),
    release: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    ranges: Vec<Range>,
}

// SAFETY: whoever made it lets `run` and `release` be called on any thread, one call at a time: the library's lock is held.
unsafe impl Send for Foreign {}
// SAFETY: as above.
unsafe impl Sync for Foreign {}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: nobody runs it any more.
        unsafe { (self.release)(self.data) };
    }
}

impl Driver {
    /// Runs a kernel of another library, unless it is to fault, or touches memory that is gone.
    pub(crate) fn run_foreign(&self, context: Id, kernel: &Foreign) -> Answer {
        let there = |range: &Range| self.can_touch(range.at, range.bytes as usize);
        if self.is_to_fault(context) || !kernel.ranges.iter().all(there) {
            return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        }
        // SAFETY: what it touches is there, and open, as the caller saw to.
        unsafe { (kernel.run)(kernel.data) };
        Ok(())
    }
}

/// Puts a kernel into a stream. `release` is called once, when nothing can run it any more, or at once where it is refused. `loads`: it
/// has to be loaded first, which the driver calls unsafe where something is recorded.
///
/// # Safety
/// There are `count` ranges. `run` touches these and `data` alone, calls no function of this library, nor does `release`, and both may
/// be called on any thread.
#[unsafe(export_name = "genieStandInLaunch")]
unsafe extern "C" fn launch(
    stream: CUstream,
    run: unsafe extern "C" fn(*const c_void),
    release: unsafe extern "C" fn(*mut c_void),
    data: *mut c_void,
    ranges: *const Range,
    count: usize,
    loads: bool,
) -> CUresult {
    // SAFETY: as the caller has it.
    let ranges = unsafe { std::slice::from_raw_parts(ranges, count) }.to_vec();
    let kernel = Foreign { run, release, data, ranges };
    in_context("a library's kernel", |driver, context| {
        if loads {
            capture::unsafe_call(driver)?;
        }
        let (stream, device) = (driver.stream_of(context, stream)?, driver.device_of(context)?);
        for range in &kernel.ranges {
            driver.on_gpu(range.at, range.bytes as usize)?;
            valid(driver.is_open(range.at, device, device))?;
        }
        driver.put(stream, Op::Foreign(Arc::new(kernel)))
    })
}

/// The context of this thread, as a number that no other has.
///
/// # Safety
/// `context` can be written.
#[unsafe(export_name = "genieStandInContext")]
unsafe extern "C" fn context(context: *mut u64) -> CUresult {
    // SAFETY: as the caller has it.
    in_context("a library's context", |_, current| unsafe { give(context, current) })
}
