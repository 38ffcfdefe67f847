//! Sum, difference, product and quotient with broadcasting.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::elementwise::{THREADS, blocks};
use super::strided::{Dims, MOST_DIMS, Walk, broadcast, contiguous};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Address, Check, LaunchError, View};

/// An operation on two numbers. The codes are those of `binary.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Binary {
    /// a + b.
    Add = 0,
    /// a - b.
    Sub = 1,
    /// a * b.
    Mul = 2,
    /// a / b; of integers truncated, and by zero a fault.
    Div = 3,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BinaryParams {
    a: u64,
    b: u64,
    y: u64,
    fault: u64,
    count: u64,
    strides: [[u64; MOST_DIMS]; 2],
    dims: Dims,
    kind: u32,
    mode: u32,
}

const PACKED: u32 = 1;
const SPLAT: [u32; 2] = [2, 4];

/// y = a kind b, with the dimensions of a and b broadcast NumPy's way to those of y, which is contiguous, up to 8 of them. One type:
/// any but bool. Floats are computed in f32; integers wrap. y may be a or b where that has y's own dimensions.
///
/// `fault` is a u64 in device memory, which an integer's division by zero lowers to the element's index in y; the element is 0. The
/// host sets it to `u64::MAX` before.
///
/// # Errors
/// [`LaunchError`].
pub fn binary(
    kind: Binary,
    a: View,
    a_dims: &[u64],
    b: View,
    b_dims: &[u64],
    y: View,
    fault: Address,
) -> Result<Option<Launch>, LaunchError> {
    let check = Check("binary");
    let kernel: &'static Kernel = match a.dtype {
        DType::F32 => &kernel::BINARY_F32,
        DType::F16 => &kernel::BINARY_F16,
        DType::BF16 => &kernel::BINARY_BF16,
        DType::I64 => &kernel::BINARY_I64,
        DType::I32 => &kernel::BINARY_I32,
        DType::U8 => &kernel::BINARY_U8,
        DType::Bool => return Err(check.wrong_type("a", a.dtype)),
    };
    check.same_type("b", b, a)?;
    check.same_type("y", y, a)?;
    check.fault(fault)?;
    let dims = joint(check, a_dims, b_dims)?;
    let count = check.product("y", &dims)?;
    check.tensor("a", a, check.product("a", a_dims)?)?;
    check.tensor("b", b, check.product("b", b_dims)?)?;
    check.tensor("y", y, count)?;
    if count == 0 {
        return Ok(None);
    }
    let operands = [broadcast(a_dims, &dims), broadcast(b_dims, &dims)];
    let mut walk = Walk::new(&dims, [&operands[0], &operands[1], &contiguous(&dims)].map(Vec::as_slice));
    let wide = 16 / y.dtype.bytes();
    let mode = packed(&walk, [a, b], y, wide);
    if mode != 0 {
        walk.sizes[0] = walk.sizes[0].div_ceil(wide);
        walk.strides[0].iter_mut().for_each(|stride| *stride *= wide);
    }
    let [of_a, of_b, _] = walk.by_operand();
    let params = BinaryParams {
        a: a.at,
        b: b.at,
        y: y.at,
        fault,
        count,
        strides: [of_a, of_b],
        dims: Dims::new(check, &walk.sizes)?,
        kind: kind as u32,
        mode,
    };
    let per_thread = if mode == 0 { 4 } else { wide };
    Ok(Some(Launch::new(kernel, [blocks(count.div_ceil(per_thread)), 1, 1], [THREADS, 1, 1], 0, &params)))
}

/// The dimensions of the result.
pub(super) fn joint(check: Check, a: &[u64], b: &[u64]) -> Result<Vec<u64>, LaunchError> {
    let rank = a.len().max(b.len());
    let size = |dims: &[u64], i: usize| (i + dims.len()).checked_sub(rank).map_or(1, |k| dims[k]);
    (0..rank)
        .map(|i| match (size(a, i), size(b, i)) {
            (x, y) if x == y || y == 1 => Ok(x),
            (1, y) => Ok(y),
            (_, y) => Err(LaunchError::Size {
                kernel: check.0,
                what: "a dimension of b",
                got: y,
                expected: "that of a, or one of them 1",
            }),
        })
        .collect()
}

/// How threads take packs of `wide` elements, or 0 where they cannot: the innermost dimension of y must be whole packs (its end
/// may not be where it is the only one), and each operand runs with it, aligned, or repeats along it.
fn packed(walk: &Walk<3>, operands: [View; 2], y: View, wide: u64) -> u32 {
    let (size, steps) = (walk.sizes[0], walk.strides[0]);
    let whole = walk.sizes.len() == 1 || size.is_multiple_of(wide);
    if !whole || !y.is_aligned(16) {
        return 0;
    }
    let mut mode = PACKED;
    for (o, operand) in operands.iter().enumerate() {
        let aligned = operand.is_aligned(16) && walk.strides[1..].iter().all(|strides| strides[o].is_multiple_of(wide));
        match steps[o] {
            0 => mode |= SPLAT[o],
            1 if aligned => {}
            _ => return 0,
        }
    }
    mode
}
