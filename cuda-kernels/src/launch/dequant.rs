//! Quantised blocks to floats.

use bytemuck::{Pod, Zeroable};
use genie_graph::{DType, QuantFormat};

use super::elementwise::blocks;
use super::floats;
use crate::kernel::{self, Launch};
use crate::view::{Check, LaunchError, View};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DequantParams {
    blocks: u64,
    y: u64,
    count: u64,
    format: u32,
    aligned: u32,
}

/// The numbers of x, u8, whole blocks at an even address, into y, float: 32 a block, in order, so that rows of whole
/// blocks are rows of y. They are those of the CPU, bit for bit, rounded to y's type.
///
/// # Errors
/// [`LaunchError`].
pub fn dequantize(format: QuantFormat, x: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("dequantize");
    let kernels = [&kernel::DEQUANT_F32, &kernel::DEQUANT_F16, &kernel::DEQUANT_BF16];
    let kernel = floats::pick(check, "y", y, kernels)?;
    if x.dtype != DType::U8 {
        return Err(check.wrong_type("x", x.dtype));
    }
    let count = x.elements / format.block_bytes();
    check.size("x's bytes", x.elements, x.elements.is_multiple_of(format.block_bytes()), "whole blocks")?;
    check.aligned("x", x, 2)?;
    let elements = check.product("blocks * 32", &[count, QuantFormat::BLOCK])?;
    check.tensor("y", y, elements)?;
    if count == 0 {
        return Ok(None);
    }
    let params =
        DequantParams { blocks: x.at, y: y.at, count, format: format as u32, aligned: u32::from(y.is_aligned(16)) };
    let grid = [blocks(elements / floats::wide(y.dtype)), 1, 1];
    Ok(Some(Launch::new(kernel, grid, [256, 1, 1], 0, &params)))
}
