//! Elements by index along an axis.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::elementwise::{THREADS, blocks};
use super::pairs::Operand;
use super::strided::{Dims, MOST_DIMS, Walk, contiguous};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Address, Check, LaunchError, View};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TakeParams {
    x: u64,
    ids: u64,
    y: u64,
    fault: u64,
    count: u64,
    bound: u64,
    stride: u64,
    strides: [[u64; MOST_DIMS]; 1],
    dims: Dims,
    is_wide: u32,
    padding: u32,
}

/// y, of the dimensions of `ids` (i32 or i64), has at each index the element of x that lies there but for `axis`, along which the id
/// says where. y is of x's type (any); x has as many dimensions as the ids, and but for the axis none that is smaller.
///
/// `fault` is a u64 in device memory, which an id outside the axis lowers to its index in `ids`; its element becomes 0. The host sets
/// it to `u64::MAX` before.
///
/// # Errors
/// [`LaunchError`].
pub fn take(
    axis: usize,
    x: Operand<'_>,
    ids: Operand<'_>,
    y: View,
    fault: Address,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("take");
    check.same_type("y", y, x.view)?;
    if !matches!(ids.view.dtype, DType::I32 | DType::I64) {
        return Err(check.wrong_type("ids", ids.view.dtype));
    }
    check.fault(fault)?;
    let rank = x.dims.len();
    check.size("the number of dimensions of ids", ids.dims.len() as u64, ids.dims.len() == rank, "that of x")?;
    check.size("the axis", axis as u64, axis < rank, "one of x")?;
    for (i, (&of_ids, &of_x)) in ids.dims.iter().zip(x.dims).enumerate() {
        check.size("a dimension of ids", of_ids, i == axis || of_ids <= of_x, "at most that of x")?;
    }
    let count = check.product("ids", ids.dims)?;
    check.tensor("x", x.view, check.product("x", x.dims)?)?;
    check.tensor("ids", ids.view, count)?;
    check.tensor("y", y, count)?;
    if count == 0 {
        return Ok(None);
    }
    let mut strides = contiguous(x.dims);
    let stride = std::mem::take(&mut strides[axis]);
    let walk = Walk::new(ids.dims, [&strides]);
    let kernel: &'static Kernel = match y.dtype.bytes() {
        1 => &kernel::TAKE_1,
        2 => &kernel::TAKE_2,
        4 => &kernel::TAKE_4,
        _ => &kernel::TAKE_8,
    };
    let params = TakeParams {
        x: x.view.at,
        ids: ids.view.at,
        y: y.at,
        fault,
        count,
        bound: x.dims[axis],
        stride,
        strides: walk.by_operand(),
        dims: Dims::new(check, &walk.sizes)?,
        is_wide: u32::from(ids.view.dtype == DType::I64),
        padding: 0,
    };
    Ok(Some(Launch::new(kernel, [blocks(count), 1, 1], [THREADS, 1, 1], 0, &params)))
}
