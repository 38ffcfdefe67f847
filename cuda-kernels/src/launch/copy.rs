//! Copies between tensors whose elements lie apart.

use bytemuck::{Pod, Zeroable};

use super::elementwise::{THREADS, blocks};
use super::strided::{Dims, MOST_DIMS, Walk, contiguous};
use crate::kernel::{self, Kernel, Launch};
use crate::view::{Check, LaunchError, View};

/// Elements of a tensor: the first at `start`, others by strides. All counted in elements.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// The whole tensor.
    pub view: View,
    /// Where the first element is.
    pub start: u64,
    /// From one index to the next, by dimension, the outermost first.
    pub strides: &'a [u64],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CopyParams {
    x: u64,
    y: u64,
    count: u64,
    strides: [[u64; MOST_DIMS]; 2],
    dims: Dims,
    columns: u32,
    rows: u32,
}

/// Copies the elements that x and y have at each index of `dims` (the outermost first, no more than 8), of one type: transposes,
/// slices, pieces of a concatenation, broadcasts (strides of 0 in x). No two indices may be the same element of y, and x and y
/// may not overlap: neither is checked.
///
/// # Errors
/// [`LaunchError`].
pub fn copy(dims: &[u64], x: Strided<'_>, y: Strided<'_>) -> Result<Option<Launch>, LaunchError> {
    let check = Check("copy");
    check.same_type("y", y.view, x.view)?;
    check.size("the number of dimensions", dims.len() as u64, dims.len() <= MOST_DIMS, "no more than 8")?;
    let count = check.product("the copy", dims)?;
    for (what, side) in [("x", x), ("y", y)] {
        let strides = side.strides.len() as u64;
        check.size("the number of strides", strides, side.strides.len() == dims.len(), "that of the dimensions")?;
        check.aligned(what, side.view, side.view.dtype.bytes())?;
        if count != 0 {
            let last = dims
                .iter()
                .zip(side.strides)
                .try_fold(side.start, |last, (size, stride)| last.checked_add((size - 1).checked_mul(*stride)?));
            let last = last.unwrap_or(u64::MAX);
            check.size("the last element", last, last < side.view.elements, "within the tensor")?;
        }
    }
    if count == 0 {
        return Ok(None);
    }
    let bytes = x.view.dtype.bytes();
    let walk = Walk::new(dims, [x.strides, y.strides]);
    let from = x.view.at + x.start * bytes;
    let to = y.view.at + y.start * bytes;
    moved(check, walk, bytes, from, to)
}

/// y, of these dimensions (the outermost first, no more than 8) as x, has x's elements in the opposite order along the dimensions that
/// are `flipped`. Both are contiguous, of one type, and may not overlap, which is not checked.
///
/// # Errors
/// [`LaunchError`].
pub fn flip(dims: &[u64], flipped: &[bool], x: View, y: View) -> Result<Option<Launch>, LaunchError> {
    let check = Check("flip");
    check.same_type("y", y, x)?;
    check.size("the number of dimensions", dims.len() as u64, dims.len() <= MOST_DIMS, "no more than 8")?;
    check.size("the number of choices", flipped.len() as u64, flipped.len() == dims.len(), "that of the dimensions")?;
    let count = check.product("x", dims)?;
    check.tensor("x", x, count)?;
    check.tensor("y", y, count)?;
    if count == 0 {
        return Ok(None);
    }
    let own = contiguous(dims);
    let (mut start, mut strides) = (0, own.clone());
    for (axis, stride) in strides.iter_mut().enumerate().filter(|&(axis, _)| flipped[axis] && dims[axis] > 1) {
        start += (dims[axis] - 1) * *stride;
        // Kernels count with signs.
        *stride = stride.wrapping_neg();
    }
    let bytes = x.dtype.bytes();
    moved(check, Walk::new(dims, [&strides, &own]), bytes, x.at + start * bytes, y.at)
}

fn moved(check: Check, walk: Walk<2>, bytes: u64, from: u64, to: u64) -> Result<Option<Launch>, LaunchError> {
    match tiled(check, &walk, bytes, from, to)? {
        Some(launch) => Ok(Some(launch)),
        None => apart(check, walk, bytes, from, to).map(Some),
    }
}

/// In the largest elements that addresses, strides and the innermost dimension allow.
fn apart(check: Check, mut walk: Walk<2>, mut bytes: u64, from: u64, to: u64) -> Result<Launch, LaunchError> {
    if walk.strides[0] == [1, 1] {
        let even = |walk: &Walk<2>| {
            walk.sizes[0].is_multiple_of(2) && walk.strides[1..].iter().flatten().all(|stride| stride.is_multiple_of(2))
        };
        while bytes < 16 && (from | to).is_multiple_of(2 * bytes) && even(&walk) {
            bytes *= 2;
            walk.sizes[0] /= 2;
            // One that goes backwards is negative.
            let halve = |stride: &mut u64| *stride = (stride.cast_signed() / 2).cast_unsigned();
            walk.strides[1..].iter_mut().flatten().for_each(halve);
        }
    }
    let kernel: &'static Kernel = match bytes {
        1 => &kernel::COPY_1,
        2 => &kernel::COPY_2,
        4 => &kernel::COPY_4,
        8 => &kernel::COPY_8,
        _ => &kernel::COPY_16,
    };
    let count = walk.sizes.iter().product::<u64>();
    let params = CopyParams {
        x: from,
        y: to,
        count,
        strides: walk.by_operand(),
        dims: Dims::new(check, &walk.sizes)?,
        columns: 0,
        rows: 0,
    };
    Ok(Launch::new(kernel, [blocks(count.div_ceil(4)), 1, 1], [THREADS, 1, 1], 0, &params))
}

/// Elements of a dimension from which on tiles are worth it.
const TILE_FROM: u64 = 16;

/// Through tiles in shared memory, where neighbours in y are apart in x, and others are neighbours there.
fn tiled(check: Check, walk: &Walk<2>, bytes: u64, from: u64, to: u64) -> Result<Option<Launch>, LaunchError> {
    let neighbours = |operand: usize| {
        let suits = |d: &usize| {
            let size = walk.sizes[*d];
            walk.strides[*d][operand] == 1 && (TILE_FROM..1 << 32).contains(&size)
        };
        (0..walk.sizes.len()).find(suits)
    };
    let (Some(in_x), Some(in_y)) = (neighbours(0), neighbours(1)) else { return Ok(None) };
    if in_x == in_y {
        return Ok(None);
    }
    let (kernel, side): (&'static Kernel, u64) = match bytes {
        1 => (&kernel::COPY_TILES_1, 64),
        2 => (&kernel::COPY_TILES_2, 64),
        4 => (&kernel::COPY_TILES_4, 32),
        _ => (&kernel::COPY_TILES_8, 32),
    };
    // Tiles along y's neighbours, along x's, then the other dimensions as they are.
    let others = (0..walk.sizes.len()).filter(|&d| d != in_x && d != in_y);
    let tiles = Walk::<2> {
        sizes: [in_y, in_x]
            .map(|d| walk.sizes[d].div_ceil(side))
            .into_iter()
            .chain(others.clone().map(|d| walk.sizes[d]))
            .collect(),
        strides: [in_y, in_x]
            .map(|d| walk.strides[d].map(|stride| stride.wrapping_mul(side)))
            .into_iter()
            .chain(others.map(|d| walk.strides[d]))
            .collect(),
    };
    let count = check.product("the tiles", &tiles.sizes)?;
    if count >= 1 << 31 {
        return Ok(None);
    }
    let params = CopyParams {
        x: from,
        y: to,
        count,
        strides: tiles.by_operand(),
        dims: Dims::new(check, &tiles.sizes)?,
        columns: walk.sizes[in_y] as u32,
        rows: walk.sizes[in_x] as u32,
    };
    let grid = count.min(1 << 16) as u32;
    Ok(Some(Launch::new(kernel, [grid, 1, 1], [32, 8, 1], 0, &params)))
}
