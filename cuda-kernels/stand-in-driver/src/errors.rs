//! The driver's texts for its codes.

use std::ffi::{CStr, c_char};

use cudarc::driver::sys::CUresult;

/// # Safety
/// `text` can be written.
#[unsafe(export_name = "cuGetErrorString")]
unsafe extern "C" fn error_string(code: u32, text: *mut *const c_char) -> CUresult {
    if text.is_null() {
        return CUresult::CUDA_ERROR_INVALID_VALUE;
    }
    let known = known(code);
    // SAFETY: as the caller has it.
    unsafe { *text = known.map_or(std::ptr::null(), CStr::as_ptr) };
    if known.is_some() { CUresult::CUDA_SUCCESS } else { CUresult::CUDA_ERROR_INVALID_VALUE }
}

/// Those that this library gives.
fn known(code: u32) -> Option<&'static CStr> {
    Some(match code {
        0 => c"no error",
        1 => c"invalid argument",
        2 => c"out of memory",
        3 => c"initialization error",
        46 => c"the GPU is not available",
        4 => c"driver shutting down",
        100 => c"no GPU is there",
        101 => c"invalid device ordinal",
        201 => c"invalid device context",
        209 => c"no kernel image is available",
        218 => c"this PTX cannot be compiled",
        304 => c"OS call failed or operation not supported on this OS",
        400 => c"invalid resource handle",
        401 => c"the operation cannot be done in this state",
        500 => c"named symbol not found",
        600 => c"device not ready",
        700 => c"an illegal memory access was encountered",
        702 => c"the launch timed out",
        709 => c"context is destroyed",
        712 => c"part or all of the memory range is registered already",
        713 => c"the memory range is not registered",
        719 => c"unspecified launch failure",
        801 => c"operation not supported",
        900 => c"operation not permitted when a stream is capturing",
        901 => c"the capture was invalidated by an earlier call",
        905 => c"dependency created on uncaptured work in another stream",
        908 => c"the capture was begun by another thread",
        _ => return None,
    })
}
