//! Float types as kernels know them.

use genie_graph::DType;

use crate::kernel::Kernel;
use crate::view::{Check, LaunchError, View};

/// The code of a float type in `floats.cuh`.
pub(super) fn code(check: Check, what: &'static str, view: View) -> Result<u32, LaunchError> {
    match view.dtype {
        DType::F32 => Ok(0),
        DType::F16 => Ok(1),
        DType::BF16 => Ok(2),
        other => Err(check.wrong_type(what, other)),
    }
}

/// That of three kernels (f32, f16, bf16) which takes elements of this view's type.
pub(super) fn pick(
    check: Check,
    what: &'static str,
    view: View,
    kernels: [&'static Kernel; 3],
) -> Result<&'static Kernel, LaunchError> {
    Ok(kernels[code(check, what, view)? as usize])
}

/// Elements in 16 bytes.
pub(super) const fn wide(dtype: DType) -> u64 {
    16 / dtype.bytes()
}
