//! Element type conversion.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::elementwise::{THREADS, blocks};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CastParams {
    x: u64,
    y: u64,
    count: u64,
    to: u32,
    padding: u32,
}

/// y = x in y's type, any of any. Float to integer truncates and saturates, and NaN becomes 0; integers wrap into smaller ones; to
/// bool: 1 where x is not 0; from bool: 1 where the byte is not 0. In place is allowed where both types have the same size.
///
/// # Errors
/// [`LaunchError`].
pub fn cast(x: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("cast");
    check.tensor("x", x, x.elements)?;
    check.tensor("y", y, x.elements)?;
    if x.elements == 0 {
        return Ok(None);
    }
    let kernel: &'static Kernel = match x.dtype {
        DType::F32 => &kernel::CAST_F32,
        DType::F16 => &kernel::CAST_F16,
        DType::BF16 => &kernel::CAST_BF16,
        DType::I64 => &kernel::CAST_I64,
        DType::I32 => &kernel::CAST_I32,
        DType::U8 => &kernel::CAST_U8,
        DType::Bool => &kernel::CAST_BOOL,
    };
    let params = CastParams { x: x.at, y: y.at, count: x.elements, to: y.dtype as u32, padding: 0 };
    let per_thread = (16 / x.dtype.bytes().max(y.dtype.bytes())).max(4);
    Ok(Some(Launch::new(kernel, [blocks(x.elements.div_ceil(per_thread)), 1, 1], [THREADS, 1, 1], 0, &params)))
}
