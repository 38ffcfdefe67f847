//! Reductions along an axis: how threads and blocks share it. What a thread takes depends on the axis and on what lies behind it,
//! never on how many there are before it: a row's result does not change with the rows beside it.

use bytemuck::{Pod, Zeroable};
use genie_graph::DType;

use super::elementwise::THREADS;
use crate::kernel::{Kernel, Launch};
use crate::view::{Check, LaunchError, View};

/// A tensor `[outer, length, inner]` and its middle axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// The product of the dimensions before it.
    pub outer: u64,
    /// Its size.
    pub length: u64,
    /// The product of the dimensions behind it.
    pub inner: u64,
}

impl Axis {
    /// Elements of x, and of a tensor without the axis.
    pub(crate) fn counts(self, check: Check) -> Result<(u64, u64), LaunchError> {
        let fits = (1..1 << 31).contains(&self.length) || self.outer == 0 || self.inner == 0;
        check.size("the axis", self.length, fits, "from 1 to 2^31 - 1")?;
        let kept = check.product("the result", &[self.outer, self.inner])?;
        Ok((check.product("x", &[kept, self.length])?, kept))
    }
}

/// The twin of `ReduceParams` in `reduce.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ReduceParams {
    pub(crate) x: u64,
    pub(crate) y: u64,
    pub(crate) outer: u64,
    pub(crate) length: u64,
    pub(crate) inner: u64,
    pub(crate) piece: u64,
    pub(crate) shift: u32,
    pub(crate) deep: u32,
    pub(crate) divisor: f32,
    pub(crate) to: u32,
}

/// How an axis is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) axis: Axis,
    /// Elements along the axis that a block takes.
    pub(crate) piece: u64,
    /// Pieces of the axis.
    pub(crate) pieces: u64,
    /// 1 << shift threads share a row, or stand side by side.
    pub(crate) shift: u32,
    /// 1 << deep threads go along the axis; for columns.
    pub(crate) deep: u32,
    /// Blocks along x.
    pub(crate) blocks: u32,
}

/// Pieces that an axis is cut into at the most: what a second launch reduces.
const MOST_PIECES: u64 = 1024;
/// Packs of a row that a block takes before the row is cut: eight a thread.
const PACKS_A_PIECE: u64 = 8 * THREADS as u64;
/// Elements along the axis that a thread takes before the axis is cut.
const ROWS_A_THREAD: u64 = 16;

impl Split {
    /// Of an axis of elements of which `wide` are 16 bytes; nothing is empty.
    pub(crate) fn new(check: Check, axis: Axis, wide: u64) -> Result<Self, LaunchError> {
        if axis.inner == 1 { Ok(Self::rows(axis, wide)) } else { Self::columns(check, axis, wide, true) }
    }

    fn rows(axis: Axis, wide: u64) -> Self {
        let packs = axis.length.div_ceil(wide);
        let lanes = if packs <= 256 { packs.next_power_of_two().min(32) } else { u64::from(THREADS) };
        let (piece, pieces) = cut(axis.length, PACKS_A_PIECE * wide);
        let blocks = axis.outer.div_ceil(u64::from(THREADS) / lanes).min(1 << 20) as u32;
        Self { axis, piece, pieces, shift: lanes.trailing_zeros(), deep: 0, blocks }
    }

    fn columns(check: Check, axis: Axis, wide: u64, may_cut: bool) -> Result<Self, LaunchError> {
        let threads = u64::from(THREADS);
        let lanes = axis.inner.div_ceil(wide).min(threads).next_power_of_two();
        let lanes = lanes.min(threads / axis.length.min(8).next_power_of_two());
        // A thread has four elements along the axis, unless there are too few threads; those that are left over take other tiles.
        let depth = (threads / lanes).min(axis.length.div_ceil(4).next_power_of_two());
        let tiles = check.product("the tiles", &[axis.inner.div_ceil(lanes * wide), axis.outer])?;
        check.size("the tiles", tiles, tiles < 1 << 32, "under 2^32")?;
        let blocks = tiles.div_ceil(threads / (lanes * depth));
        check.size("the blocks", blocks, blocks < 1 << 31, "under 2^31")?;
        let (piece, pieces) = if may_cut { cut(axis.length, depth * ROWS_A_THREAD) } else { (axis.length, 1) };
        let [shift, deep] = [lanes, depth].map(u64::trailing_zeros);
        Ok(Self { axis, piece, pieces, shift, deep, blocks: blocks as u32 })
    }

    /// The second launch, over the states `[pieces, outer * inner]` that the first left, of which `wide` are 16 bytes.
    pub(crate) fn merge(&self, check: Check, wide: u64) -> Result<Self, LaunchError> {
        let Axis { outer, inner, .. } = self.axis;
        Self::columns(check, Axis { outer: 1, length: self.pieces, inner: outer * inner }, wide, false)
    }

    /// Whether each row is contiguous.
    pub(crate) fn is_rows(&self) -> bool {
        self.axis.inner == 1
    }

    /// The parameters, with what only some kernels read left 0.
    pub(crate) fn params(&self, x: u64, y: u64) -> ReduceParams {
        let Axis { outer, length, inner } = self.axis;
        ReduceParams {
            x,
            y,
            outer,
            length,
            inner,
            piece: self.piece,
            shift: self.shift,
            deep: self.deep,
            divisor: 0.0,
            to: 0,
        }
    }

    /// A launch with a block for each tile and piece.
    pub(crate) fn launch<P: Pod>(&self, kernel: &'static Kernel, params: &P) -> Launch {
        Launch::new(kernel, [self.blocks, self.pieces as u32, 1], [THREADS, 1, 1], 0, params)
    }
}

/// Pieces of about `piece` elements, multiples of 16, where the axis is at least two of them.
fn cut(length: u64, piece: u64) -> (u64, u64) {
    if length < 2 * piece {
        return (length, 1);
    }
    let piece = piece.max(length.div_ceil(MOST_PIECES)).next_multiple_of(16);
    (piece, length.div_ceil(piece))
}

/// Working space is bytes, aligned to 16, as many as were asked for or more.
pub(crate) fn check_scratch(check: Check, scratch: View, bytes: u64) -> Result<(), LaunchError> {
    if bytes == 0 {
        return Ok(());
    }
    if scratch.dtype != DType::U8 {
        return Err(check.wrong_type("scratch", scratch.dtype));
    }
    if scratch.elements < bytes {
        return Err(LaunchError::Elements { kernel: check.0, what: "scratch", expected: bytes, got: scratch.elements });
    }
    check.aligned("scratch", scratch, 16)
}
