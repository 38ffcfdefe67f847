//! Memory that is had at once, and told to network cards.

use std::ffi::{c_int, c_uint, c_ulonglong, c_void};

use cudarc::driver::sys::{CUdeviceptr, CUresult};

use crate::memory::PLAIN;
use crate::state::{give, in_context, valid};
use crate::streams::capture;

/// Pages of the host.
const PAGE: u64 = 4096;

/// # Safety
/// Here, and for every function below: what is written to can be written.
#[unsafe(export_name = "cuMemAlloc_v2")]
unsafe extern "C" fn allocate(at: *mut CUdeviceptr, bytes: usize) -> CUresult {
    in_context("cuMemAlloc_v2", |driver, context| {
        capture::unsafe_call(driver)?;
        let new = driver.allocate_plain(context, bytes)?;
        // SAFETY: as the caller has it.
        unsafe { give(at, new) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemGetHandleForAddressRange")]
unsafe extern "C" fn export(
    handle: *mut c_void,
    at: CUdeviceptr,
    bytes: usize,
    kind: c_uint,
    flags: c_ulonglong,
) -> CUresult {
    in_context("cuMemGetHandleForAddressRange", |driver, _| {
        if !driver.settings.dmabuf {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        // A dmabuf descriptor, and nothing special about it.
        valid(kind == 1 && flags == 0)?;
        valid(bytes > 0 && at.is_multiple_of(PAGE) && (bytes as u64).is_multiple_of(PAGE))?;
        driver.on_gpu(at, bytes)?;
        valid(driver.pool_of(at) == Some(PLAIN))?;
        // SAFETY: the name is a string, and the flag one that the call has.
        let fd = unsafe { libc::memfd_create(c"stand-in dmabuf".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(CUresult::CUDA_ERROR_OPERATING_SYSTEM);
        }
        // SAFETY: as the caller has it: what is wanted is an int.
        unsafe { give(handle.cast::<c_int>(), fd) }
    })
}

#[unsafe(export_name = "cuFlushGPUDirectRDMAWrites")]
extern "C" fn flush(target: c_uint, scope: c_uint) -> CUresult {
    in_context("cuFlushGPUDirectRDMAWrites", |driver, _| {
        capture::unsafe_call(driver)?;
        valid(target == 0 && matches!(scope, 100 | 200))
    })
}
