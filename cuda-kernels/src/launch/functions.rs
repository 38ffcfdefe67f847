//! Functions of one element, in many kinds.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, UnaryKind};

use super::elementwise::{THREADS, blocks};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FunctionParams {
    x: u64,
    y: u64,
    count: u64,
    kind: u32,
    padding: u32,
}

/// y = kind(x), elementwise, of the types that the kind takes and gives; of integers only [`UnaryKind::Sign`] and [`UnaryKind::Not`],
/// for those that round leave them as they are. Floats are computed in f32 or wider. In place is allowed where the types are the same.
///
/// # Errors
/// [`LaunchError`].
pub fn function(kind: UnaryKind, x: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("function");
    let whole = matches!(kind, UnaryKind::Sign | UnaryKind::Not);
    if !(kind.takes(x.dtype) && (x.dtype.is_float() || whole)) {
        return Err(check.wrong_type("x", x.dtype));
    }
    let kernel: &'static Kernel = match x.dtype {
        DType::F32 => &kernel::FUNCTION_F32,
        DType::F16 => &kernel::FUNCTION_F16,
        DType::BF16 => &kernel::FUNCTION_BF16,
        DType::I64 => &kernel::FUNCTION_I64,
        DType::I32 => &kernel::FUNCTION_I32,
        DType::U8 => &kernel::FUNCTION_U8,
        DType::Bool => &kernel::FUNCTION_BOOL,
    };
    if y.dtype != kind.result(x.dtype) {
        return Err(check.wrong_type("y", y.dtype));
    }
    check.tensor("x", x, x.elements)?;
    check.tensor("y", y, x.elements)?;
    if x.elements == 0 {
        return Ok(None);
    }
    let params = FunctionParams { x: x.at, y: y.at, count: x.elements, kind: kind as u32, padding: 0 };
    // Those of many instructions take one element a thread, others more: a grid for the former is large enough for both.
    Ok(Some(Launch::new(kernel, [blocks(x.elements), 1, 1], [THREADS, 1, 1], 0, &params)))
}
