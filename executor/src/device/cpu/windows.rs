//! Windows that move over the rows and columns of a plane.

use std::ops::Range;

/// Where windows lie; all pairs are of rows, then columns. The verifier saw to it that nothing of it overflows: the last window
/// ends within the padded plane, whose size fits.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    pub(super) image: [usize; 2],
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    /// Above, and left.
    pub(super) before: [usize; 2],
    pub(super) dilation: [usize; 2],
    /// Windows down and across.
    pub(super) out: [usize; 2],
}

impl Windows {
    /// Elements of a window.
    #[inline(always)]
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Rows or columns from a window's first to its last, both counted.
    #[inline(always)]
    pub(super) fn reach(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Whether the windows are the plane's elements, one each and in order.
    #[inline(always)]
    pub(super) fn are_elements(&self) -> bool {
        self.taps() == 1 && self.stride == [1, 1] && self.before == [0, 0] && self.out == self.image
    }

    /// Where element `element` of window `at` lies along an axis, if not in the padding.
    #[inline(always)]
    pub(super) fn place(&self, axis: usize, at: usize, element: usize) -> Option<usize> {
        let padded = at * self.stride[axis] + element * self.dilation[axis];
        padded.checked_sub(self.before[axis]).filter(|&place| place < self.image[axis])
    }

    /// The part of window `at`, of dilation 1, that lies in the plane along an axis.
    #[inline(always)]
    pub(super) fn inside(&self, axis: usize, at: usize) -> Range<usize> {
        let start = at * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.before[axis]).min(self.image[axis]);
        start.saturating_sub(self.before[axis]).min(end)..end
    }

    /// The windows whose element `element` lies in the plane along an axis.
    #[inline(always)]
    pub(super) fn reaching(&self, axis: usize, element: usize) -> Range<usize> {
        let (stride, shift) = (self.stride[axis], element * self.dilation[axis]);
        let first = self.before[axis].saturating_sub(shift).div_ceil(stride);
        let end = (self.before[axis] + self.image[axis]).saturating_sub(shift).div_ceil(stride).min(self.out[axis]);
        first.min(end)..end
    }
}

#[cfg(test)]
mod tests {
    use genie_graph::random::philox;

    use super::*;

    /// Windows of random sizes, as the verifier lets them pass.
    fn random_windows(seed: u64) -> Windows {
        let pair = |i: u128, most: u32| philox(seed, i).map(|word| (word % most) as usize)[..2].try_into().unwrap();
        let plus = |a: [usize; 2], n: usize| a.map(|v| v + n);
        let (kernel, dilation, before, after): ([usize; 2], [usize; 2], [usize; 2], [usize; 2]) =
            (plus(pair(0, 5), 1), plus(pair(1, 3), 1), pair(2, 6), pair(3, 6));
        let reach = |axis: usize| dilation[axis] * (kernel[axis] - 1) + 1;
        let (more, stride): ([usize; 2], [usize; 2]) = (pair(4, 9), plus(pair(5, 4), 1));
        let image: [usize; 2] = std::array::from_fn(|a| reach(a).saturating_sub(before[a] + after[a]).max(1) + more[a]);
        let out = std::array::from_fn(|a| (image[a] + before[a] + after[a] - reach(a)) / stride[a] + 1);
        Windows { image, kernel, stride, before, dilation, out }
    }

    #[test]
    fn ranges_are_those_of_the_places() {
        for seed in 0..500 {
            let windows = random_windows(seed);
            for axis in 0..2 {
                for element in 0..windows.kernel[axis] {
                    let reaching: Vec<usize> =
                        (0..windows.out[axis]).filter(|&at| windows.place(axis, at, element).is_some()).collect();
                    assert_eq!(windows.reaching(axis, element).collect::<Vec<_>>(), reaching, "{seed}");
                }
                let windows = Windows { dilation: [1, 1], ..windows };
                for at in 0..windows.out[axis] {
                    let places = (0..windows.kernel[axis]).filter_map(|element| windows.place(axis, at, element));
                    assert_eq!(windows.inside(axis, at).collect::<Vec<_>>(), places.collect::<Vec<_>>(), "{seed}");
                }
            }
        }
    }
}
