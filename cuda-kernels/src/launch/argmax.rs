//! The index of the largest element along an axis.

use genie_graph::DType;

use super::axis::{Axis, Split, check_scratch};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

const CHECK: Check = Check("argmax");

/// Bytes of what a piece of the axis found: `Found` in `argmax.cu`.
const FOUND: u64 = 16;

/// Bytes of working space that [`argmax`] needs.
///
/// # Errors
/// [`LaunchError`].
pub fn argmax_scratch(dtype: DType, axis: Axis) -> Result<u64, LaunchError> {
    let (count, kept) = axis.counts(CHECK)?;
    if count == 0 {
        return Ok(0);
    }
    match Split::new(CHECK, axis, 16 / dtype.bytes())?.pieces {
        1 => Ok(0),
        pieces => CHECK.product("scratch", &[pieces, kept, FOUND]),
    }
}

/// y, i32 `[outer, inner]`: the index along the axis of the largest element of x `[outer, length, inner]`, any type but bool. The first
/// of equals; a NaN is never the largest, and where all are NaN the index is 0. `scratch`: u8, as many as [`argmax_scratch`] says. The
/// launches run one after another.
///
/// # Errors
/// [`LaunchError`].
pub fn argmax(x: View, axis: Axis, y: View, scratch: View) -> Result<Vec<Launch>, LaunchError> {
    let [rows, columns]: [&'static Kernel; 2] = match x.dtype {
        DType::F32 => [&kernel::ARGMAX_ROWS_F32, &kernel::ARGMAX_COLUMNS_F32],
        DType::F16 => [&kernel::ARGMAX_ROWS_F16, &kernel::ARGMAX_COLUMNS_F16],
        DType::BF16 => [&kernel::ARGMAX_ROWS_BF16, &kernel::ARGMAX_COLUMNS_BF16],
        DType::I64 => [&kernel::ARGMAX_ROWS_I64, &kernel::ARGMAX_COLUMNS_I64],
        DType::I32 => [&kernel::ARGMAX_ROWS_I32, &kernel::ARGMAX_COLUMNS_I32],
        DType::U8 => [&kernel::ARGMAX_ROWS_U8, &kernel::ARGMAX_COLUMNS_U8],
        DType::Bool => return Err(CHECK.wrong_type("x", x.dtype)),
    };
    let (count, kept) = axis.counts(CHECK)?;
    if y.dtype != DType::I32 {
        return Err(CHECK.wrong_type("y", y.dtype));
    }
    CHECK.tensor("x", x, count)?;
    CHECK.tensor("y", y, kept)?;
    check_scratch(CHECK, scratch, argmax_scratch(x.dtype, axis)?)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let split = Split::new(CHECK, axis, 16 / x.dtype.bytes())?;
    let kernel = if split.is_rows() { rows } else { columns };
    if split.pieces == 1 {
        return Ok(vec![split.launch(kernel, &split.params(x.at, y.at))]);
    }
    let merge = split.merge(CHECK, 1)?;
    Ok(vec![
        split.launch(kernel, &split.params(x.at, scratch.at)),
        merge.launch(&kernel::ARGMAX_MERGE, &merge.params(scratch.at, y.at)),
    ])
}
