//! Sum, mean, largest, smallest and product along an axis.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, ReduceKind};

use super::axis::{ReduceParams, Split, check_scratch};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

pub use super::axis::Axis;

/// The twin of `FoldParams` in `fold.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FoldParams {
    reduce: ReduceParams,
    kind: u32,
    padding: u32,
}

const CHECK: Check = Check("reduce");

/// Bytes of working space that [`reduce`] needs.
///
/// # Errors
/// [`LaunchError`].
pub fn reduce_scratch(dtype: DType, axis: Axis) -> Result<u64, LaunchError> {
    let (count, kept) = axis.counts(CHECK)?;
    if count == 0 {
        return Ok(0);
    }
    match Split::new(CHECK, axis, 16 / dtype.bytes())?.pieces {
        1 => Ok(0),
        pieces => CHECK.product("scratch", &[pieces, kept, state(dtype).bytes()]),
    }
}

/// y `[outer, inner]` = kind over the axis of x `[outer, length, inner]`, of one type: any but bool, and for a mean floats. Floats are
/// accumulated in f32 in an order that `length` and `inner` alone decide; sums and products of integers wrap; the largest and the
/// smallest are NaN where any element is. `scratch`: u8, as many as [`reduce_scratch`] says. The launches run one after another.
///
/// # Errors
/// [`LaunchError`].
pub fn reduce(kind: ReduceKind, x: View, axis: Axis, y: View, scratch: View) -> Result<Vec<Launch>, LaunchError> {
    let is_float = x.dtype.is_float();
    if x.dtype == DType::Bool || (kind == ReduceKind::Mean && !is_float) {
        return Err(CHECK.wrong_type("x", x.dtype));
    }
    let (count, kept) = axis.counts(CHECK)?;
    CHECK.same_type("y", y, x)?;
    CHECK.tensor("x", x, count)?;
    CHECK.tensor("y", y, kept)?;
    check_scratch(CHECK, scratch, reduce_scratch(x.dtype, axis)?)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let divisor = if kind == ReduceKind::Mean { axis.length as f32 } else { 0.0 };
    let fold = |split: &Split, dtype: DType, from: u64, to: u64, last: bool| {
        let (to_type, divisor) = if last { (y.dtype, divisor) } else { (state(dtype), 0.0) };
        let reduce = ReduceParams { to: to_type as u32, divisor, ..split.params(from, to) };
        let [rows, columns] = kernels(dtype)?;
        let kernel = if split.is_rows() { rows } else { columns };
        Ok(split.launch(kernel, &FoldParams { reduce, kind: kind as u32, padding: 0 }))
    };
    let split = Split::new(CHECK, axis, 16 / x.dtype.bytes())?;
    if split.pieces == 1 {
        return Ok(vec![fold(&split, x.dtype, x.at, y.at, true)?]);
    }
    let merge = split.merge(CHECK, 16 / state(x.dtype).bytes())?;
    Ok(vec![fold(&split, x.dtype, x.at, scratch.at, false)?, fold(&merge, state(x.dtype), scratch.at, y.at, true)?])
}

/// What is accumulated.
fn state(dtype: DType) -> DType {
    if dtype.is_float() { DType::F32 } else { dtype }
}

/// For rows, and for columns.
fn kernels(dtype: DType) -> Result<[&'static Kernel; 2], LaunchError> {
    Ok(match dtype {
        DType::F32 => [&kernel::REDUCE_ROWS_F32, &kernel::REDUCE_COLUMNS_F32],
        DType::F16 => [&kernel::REDUCE_ROWS_F16, &kernel::REDUCE_COLUMNS_F16],
        DType::BF16 => [&kernel::REDUCE_ROWS_BF16, &kernel::REDUCE_COLUMNS_BF16],
        DType::I64 => [&kernel::REDUCE_ROWS_I64, &kernel::REDUCE_COLUMNS_I64],
        DType::I32 => [&kernel::REDUCE_ROWS_I32, &kernel::REDUCE_COLUMNS_I32],
        DType::U8 => [&kernel::REDUCE_ROWS_U8, &kernel::REDUCE_COLUMNS_U8],
        DType::Bool => return Err(CHECK.wrong_type("x", dtype)),
    })
}
