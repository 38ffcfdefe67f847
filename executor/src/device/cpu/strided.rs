//! Walking tensors whose elements lie apart: broadcasts, transposes, slices.

use std::ops::Range;

use super::plan::V;
use super::step::Context;
use super::team::Share;

/// The elements of a tensor in row-major order, and where `N` operands have them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Walk<const N: usize> {
    dims: Vec<usize>,
    /// `[dimension][operand]`, in elements. One that goes backwards is the usize that wraps to it.
    strides: Vec<[usize; N]>,
    start: [usize; N],
}

impl<const N: usize> Walk<N> {
    /// A walk over `dims`; operand o's element lies at `start[o]` plus index times `strides[o]`. Dimensions that all operands
    /// pass in one stride are joined.
    pub(super) fn new(dims: &[usize], strides: [&[usize]; N], start: [usize; N]) -> Self {
        let mut walk = Self { dims: Vec::new(), strides: Vec::new(), start };
        for (i, &dim) in dims.iter().enumerate() {
            if dim == 1 {
                continue;
            }
            let step: [usize; N] = std::array::from_fn(|o| strides[o].get(i).copied().unwrap_or_default());
            match (walk.dims.last_mut(), walk.strides.last_mut()) {
                (Some(last), Some(outer)) if (0..N).all(|o| outer[o] == step[o].wrapping_mul(dim)) => {
                    *last *= dim;
                    *outer = step;
                }
                _ => {
                    walk.dims.push(dim);
                    walk.strides.push(step);
                }
            }
        }
        walk
    }

    /// Elements.
    pub(super) fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Calls `f(at, count, offsets, steps)` for runs along the last dimension that make up the elements of `range`: elements
    /// `at..at + count` of the tensor, of which operand o has the first at `offsets[o]` and the others `steps[o]` apart.
    #[inline]
    pub(super) fn runs(&self, range: Range<usize>, mut f: impl FnMut(usize, usize, [usize; N], [usize; N])) {
        let inner = self.dims.last().copied().unwrap_or(1);
        let steps = self.strides.last().copied().unwrap_or([0; N]);
        let outer = self.dims.len().saturating_sub(1);
        let mut at = range.start;
        while at < range.end {
            let first = at % inner;
            let count = (inner - first).min(range.end - at);
            let mut offsets = self.start;
            let mut index = at / inner;
            for (dim, strides) in self.dims[..outer].iter().zip(&self.strides).rev() {
                let i = index % dim;
                index /= dim;
                (0..N).for_each(|o| offsets[o] = offsets[o].wrapping_add(i.wrapping_mul(strides[o])));
            }
            (0..N).for_each(|o| offsets[o] = offsets[o].wrapping_add(first.wrapping_mul(steps[o])));
            f(at, count, offsets, steps);
            at += count;
        }
    }
}

/// Strides of a contiguous tensor.
pub(super) fn contiguous(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

/// Strides with which a contiguous tensor of dimensions `from` is read as one of `to`, NumPy's way.
pub(super) fn broadcast(from: &[usize], to: &[usize]) -> Vec<usize> {
    let own = contiguous(from);
    let lead = to.len() - from.len();
    (0..to.len())
        .map(|i| match i.checked_sub(lead) {
            Some(k) if from[k] == to[i] && from[k] != 1 => own[k],
            _ => 0,
        })
        .collect()
}

/// Bytes that members take as one.
const GRAIN: usize = 4096;

/// Copies elements: operand 0 of the walk is x, which it may pass backwards, operand 1 is y.
pub(super) struct StridedCopy {
    pub(super) x: V,
    pub(super) y: V,
    pub(super) element_bytes: usize,
    pub(super) walk: Walk<2>,
}

impl StridedCopy {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: the walk's offsets lie within x and y; elements of y are written once each.
        unsafe {
            match self.element_bytes {
                1 => self.copy::<u8>(context, share),
                2 => self.copy::<u16>(context, share),
                4 => self.copy::<u32>(context, share),
                _ => self.copy::<u64>(context, share),
            }
        }
    }

    unsafe fn copy<T: Copy>(&self, context: &Context<'_>, share: Share) {
        let (x, y) = (context.get::<T>(self.x), context.get_mut::<T>(self.y));
        self.walk.runs(
            share.split(self.walk.count(), GRAIN / size_of::<T>()),
            |_, count, [from, to], [step_x, step_y]| {
                // SAFETY: as the caller's.
                unsafe {
                    if step_x == 1 && step_y == 1 {
                        std::ptr::copy_nonoverlapping(x.add(from), y.add(to), count);
                    } else {
                        let at = |i: usize| from.wrapping_add(i.wrapping_mul(step_x));
                        (0..count).for_each(|i| *y.add(to + i * step_y) = *x.add(at(i)));
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_dimensions_are_joined() {
        let strides = contiguous(&[2, 3, 4]);
        let walk = Walk::new(&[2, 3, 4], [&strides, &strides], [0, 0]);
        assert_eq!((walk.dims, walk.strides), (vec![24], vec![[1, 1]]));
        let row = broadcast(&[4], &[2, 3, 4]);
        assert_eq!(row, [0, 0, 1]);
        let walk = Walk::new(&[2, 3, 4], [&strides, &row], [0, 0]);
        assert_eq!((walk.dims, walk.strides), (vec![6, 4], vec![[4, 0], [1, 1]]));
    }

    #[test]
    fn any_range_is_walked_once() {
        // A transpose of [2, 3, 5] to [5, 2, 3].
        let walk = Walk::new(&[5, 2, 3], [&[1, 15, 5]], [0]);
        let offsets = |range: Range<usize>| {
            let mut seen = Vec::new();
            walk.runs(range, |at, count, [from], [step]| (0..count).for_each(|i| seen.push((at + i, from + i * step))));
            seen
        };
        let all = offsets(0..30);
        for (i, &(at, from)) in all.iter().enumerate() {
            let (a, b, c) = (i / 6, i / 3 % 2, i % 3);
            assert_eq!((at, from), (i, b * 15 + c * 5 + a));
        }
        for start in 0..30 {
            for end in start..=30 {
                assert_eq!(offsets(start..end), all[start..end]);
            }
        }
    }
}
