//! What the driver's status codes mean.

use std::ffi::{CStr, c_char};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};

use super::super::GpuError;

/// Names what was being done, where the driver says no.
pub(super) trait During<T> {
    /// The error, if it is one.
    fn during(self, during: &'static str) -> Result<T, GpuError>;

    /// As [`Self::during`], for what needs this many bytes.
    fn for_bytes(self, during: &'static str, wanted: u64) -> Result<T, GpuError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, during: &'static str) -> Result<T, GpuError> {
        self.for_bytes(during, 0)
    }

    fn for_bytes(self, during: &'static str, wanted: u64) -> Result<T, GpuError> {
        self.map_err(|DriverError(code)| match meaning(code) {
            Meaning::Memory => GpuError::OutOfMemory { wanted },
            Meaning::Fault => GpuError::Fault { during, reason: explain(code) },
            Meaning::Refusal => GpuError::Refused { during, reason: explain(code) },
        })
    }
}

impl During<()> for CUresult {
    fn during(self, during: &'static str) -> Result<(), GpuError> {
        self.result().during(during)
    }

    fn for_bytes(self, during: &'static str, wanted: u64) -> Result<(), GpuError> {
        self.result().for_bytes(during, wanted)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// There is not enough of it.
    Memory,
    /// The context is lost: every later call gets the same.
    Fault,
    /// This call was not done; others go on.
    Refusal,
}

fn meaning(code: CUresult) -> Meaning {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Meaning::Memory,
        CUresult::CUDA_ERROR_ECC_UNCORRECTABLE
        | CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | CUresult::CUDA_ERROR_CONTAINED
        | CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_TIMEOUT
        | CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | CUresult::CUDA_ERROR_ASSERT
        | CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | CUresult::CUDA_ERROR_INVALID_PC
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_TENSOR_MEMORY_LEAK
        | CUresult::CUDA_ERROR_MPS_CLIENT_TERMINATED
        | CUresult::CUDA_ERROR_EXTERNAL_DEVICE
        | CUresult::CUDA_ERROR_UNKNOWN => Meaning::Fault,
        _ => Meaning::Refusal,
    }
}

/// The code's name and what the driver says about it. Codes come from a driver that is loaded, so asking it is allowed.
pub(super) fn explain(code: CUresult) -> String {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the driver is loaded: `code` came from it. It writes one pointer.
    let known = unsafe { sys::cuGetErrorString(code, &mut text) }.result().is_ok() && !text.is_null();
    if !known {
        return format!("{code:?}");
    }
    // SAFETY: the driver's texts are constants that end with a zero.
    let text = unsafe { CStr::from_ptr(text) };
    format!("{code:?}: {}", text.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::{CUresult, Meaning, meaning};

    #[test]
    fn faults_are_those_that_end_a_context() {
        assert_eq!(meaning(CUresult::CUDA_ERROR_OUT_OF_MEMORY), Meaning::Memory);
        for code in [
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_ASSERT,
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
        ] {
            assert_eq!(meaning(code), Meaning::Fault, "{code:?}");
        }
        for code in [
            CUresult::CUDA_ERROR_INVALID_VALUE,
            CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
            CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
        ] {
            assert_eq!(meaning(code), Meaning::Refusal, "{code:?}");
        }
    }
}
