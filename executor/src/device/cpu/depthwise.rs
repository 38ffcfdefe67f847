//! Convolutions of each channel by itself.
//!
//! A band of a channel's rows is copied, zeros around it and every stride-th column together, so that each element of all windows of
//! a row is a contiguous line: then whole vectors of outputs are summed in registers, and no window is at an edge.

use super::lanes::{Kernel, Lanes};
use super::panels::{PANEL, WIDEST};
use super::windows::Windows;

/// Elements of a window whose places are kept.
const MOST_TAPS: usize = 64;

/// Vectors of outputs that share a weight.
const TOGETHER: usize = 4;

/// How a channel is cut into bands that fit [`PANEL`] numbers.
#[derive(Clone, Copy)]
pub(super) struct Bands {
    /// Output rows of a band.
    pub(super) rows: usize,
    /// Numbers of a copied line: one column in `stride`.
    line: usize,
}

impl Bands {
    /// `None` where not even one output row's windows fit, or have too many elements.
    pub(super) fn of(windows: &Windows) -> Option<Self> {
        let stride = windows.stride[1];
        let line = ((windows.out[1] - 1) * stride + windows.reach(1)).div_ceil(stride);
        let copied = (PANEL - WIDEST).checked_div(line.checked_mul(stride)?)?;
        let rows = copied.checked_sub(windows.reach(0))? / windows.stride[0] + 1;
        (windows.taps() <= MOST_TAPS).then_some(Self { rows: rows.min(windows.out[0]), line })
    }
}

/// The output rows `first..first + rows` of one channel. Demands: `x` is valid for a plane, `weight` for a window, `y` for these rows and the
/// caller's own, as are the [`PANEL`] numbers of `panel`; `rows` is at most the bands'.
pub(super) struct Band<'a> {
    pub(super) windows: &'a Windows,
    pub(super) bands: Bands,
    pub(super) x: *const f32,
    pub(super) weight: *const f32,
    pub(super) bias: f32,
    pub(super) y: *mut f32,
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) panel: *mut f32,
}

impl Kernel for Band<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Self { windows, bands: Bands { line, .. }, .. } = self;
        let ([down, stride], across) = (windows.stride, windows.out[1]);
        let mut taps = [0; MOST_TAPS];
        let taps = &mut taps[..windows.taps()];
        for (tap, at) in taps.iter_mut().enumerate() {
            let (row, column) = (tap / windows.kernel[1], tap % windows.kernel[1]);
            let (row, column) = (row * windows.dilation[0], column * windows.dilation[1]);
            *at = (row * stride + column % stride) * line + column / stride;
        }
        // SAFETY: as the struct demands. A vector may be read up to `WIDEST` numbers beyond the last line, for which the bands
        // leave room; what it holds there is not stored.
        unsafe {
            self.copy();
            for row in 0..self.rows {
                let from = self.panel.add(row * down * stride * line).cast_const();
                let y = self.y.add(row * across);
                let mut column = 0;
                while column + TOGETHER * S::N <= across {
                    self.outputs::<S, TOGETHER>(taps, from.add(column), y.add(column), TOGETHER * S::N);
                    column += TOGETHER * S::N;
                }
                while column < across {
                    self.outputs::<S, 1>(taps, from.add(column), y.add(column), (across - column).min(S::N));
                    column += S::N;
                }
            }
        }
    }
}

impl Band<'_> {
    /// `count` outputs, `U` vectors of them or less than one.
    #[inline(always)]
    unsafe fn outputs<S: Lanes, const U: usize>(&self, taps: &[usize], from: *const f32, y: *mut f32, count: usize) {
        // SAFETY: as the caller's.
        unsafe {
            let mut sums = [S::splat(0.0); U];
            for (tap, &at) in taps.iter().enumerate() {
                let weight = S::splat(*self.weight.add(tap));
                for u in 0..U {
                    sums[u] = S::fma(weight, S::load(from.add(at + u * S::N)), sums[u]);
                }
            }
            let bias = S::splat(self.bias);
            for u in 0..U {
                let sum = S::add(sums[u], bias);
                if count < S::N {
                    S::store_part(y, sum, count);
                } else {
                    S::store(y.add(u * S::N), sum);
                }
            }
        }
    }

    /// Copies the rows that the band's windows see: of each, the columns that leave the same remainder by the stride together.
    #[inline(always)]
    unsafe fn copy(&self) {
        let Self { windows, bands: Bands { line, .. }, .. } = *self;
        let ([down, stride], [height, width]) = (windows.stride, windows.image);
        for row in 0..(self.rows - 1) * down + windows.reach(0) {
            let place = (self.first * down + row).checked_sub(windows.before[0]).filter(|&place| place < height);
            for phase in 0..stride {
                // The part of the line that lies in the image.
                let left = windows.before[1];
                let start = left.saturating_sub(phase).div_ceil(stride).min(line);
                let end = (left + width).saturating_sub(phase).div_ceil(stride).clamp(start, line);
                // SAFETY: the bands have room for all lines; between `start` and `end` columns are in the image.
                unsafe {
                    let to = self.panel.add((row * stride + phase) * line);
                    let Some(place) = place.filter(|_| start < end) else {
                        to.write_bytes(0, line);
                        continue;
                    };
                    let from = self.x.add(place * width + start * stride + phase - left);
                    to.write_bytes(0, start);
                    to.add(end).write_bytes(0, line - end);
                    if stride == 1 {
                        std::ptr::copy_nonoverlapping(from, to.add(start), end - start);
                    } else {
                        (0..end - start).for_each(|x| *to.add(start + x) = *from.add(x * stride));
                    }
                }
            }
        }
    }
}
