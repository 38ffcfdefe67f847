//! Tensors whose elements lie apart: dimensions joined where that changes nothing, and what kernels need to walk them.

use bytemuck::{Pod, Zeroable};

use crate::view::{Check, LaunchError};

/// Dimensions that a tensor may have.
pub(crate) const MOST_DIMS: usize = 8;

/// The twin of `Dims` in `strided.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Dims {
    size: [u32; MOST_DIMS],
    magic: [u32; MOST_DIMS],
    shift: [u8; MOST_DIMS],
    rank: u32,
    large: u32,
}

impl Dims {
    /// For an index over dimensions of these sizes, the fastest first. All but the last must be under 2^32, which is divided by no
    /// more than they are.
    pub(crate) fn new(check: Check, sizes: &[u64]) -> Result<Self, LaunchError> {
        let rank = sizes.len();
        check.size("the number of dimensions", rank as u64, rank <= MOST_DIMS, "no more than 8")?;
        let count = check.product("the dimensions", sizes)?;
        let mut dims = Self { rank: rank as u32, large: u32::from(count >= 1 << 31), ..Self::zeroed() };
        for (d, &size) in sizes.iter().enumerate().take(rank.saturating_sub(1)) {
            let narrow = u32::try_from(size).unwrap_or_default();
            check.size("a dimension inside others", size, narrow != 0, "under 2^32")?;
            dims.size[d] = narrow;
            // ceil(log2 size), and 2^32 (2^shift - size) / size + 1.
            let shift = 64 - (size - 1).leading_zeros();
            dims.shift[d] = shift as u8;
            dims.magic[d] = ((((1_u64 << shift) - size) << 32) / size + 1) as u32;
        }
        Ok(dims)
    }
}

/// Dimensions with the strides of `N` operands, the fastest first, without those of size 1, and joined where all operands pass two
/// in one stride.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Walk<const N: usize> {
    pub(crate) sizes: Vec<u64>,
    /// `[dimension][operand]`.
    pub(crate) strides: Vec<[u64; N]>,
}

impl<const N: usize> Walk<N> {
    /// Of dimensions with the outermost first, none of them 0. Every operand has a stride for each.
    pub(crate) fn new(sizes: &[u64], strides: [&[u64]; N]) -> Self {
        let mut walk = Self { sizes: Vec::new(), strides: Vec::new() };
        for (i, &size) in sizes.iter().enumerate().rev().filter(|&(_, &size)| size != 1) {
            let step: [u64; N] = std::array::from_fn(|o| strides[o][i]);
            match (walk.sizes.last_mut(), walk.strides.last()) {
                (Some(last), Some(inner)) if (0..N).all(|o| inner[o].checked_mul(*last) == Some(step[o])) => {
                    *last *= size;
                }
                _ => {
                    walk.sizes.push(size);
                    walk.strides.push(step);
                }
            }
        }
        if walk.sizes.is_empty() {
            walk.sizes.push(1);
            walk.strides.push([0; N]);
        }
        walk
    }

    /// The strides of each operand, as kernels take them.
    pub(crate) fn by_operand(&self) -> [[u64; MOST_DIMS]; N] {
        let mut strides = [[0; MOST_DIMS]; N];
        for (d, of_dim) in self.strides.iter().enumerate().take(MOST_DIMS) {
            (0..N).for_each(|o| strides[o][d] = of_dim[o]);
        }
        strides
    }
}

/// Strides of a contiguous tensor. The product of the dimensions is known to be a number.
pub(crate) fn contiguous(dims: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        strides[i - 1] = strides[i] * dims[i];
    }
    strides
}

/// Strides with which a contiguous tensor of dimensions `from` is read as one of `to`, NumPy's way.
pub(crate) fn broadcast(from: &[u64], to: &[u64]) -> Vec<u64> {
    let own = contiguous(from);
    let lead = to.len() - from.len();
    (0..to.len()).map(|i| i.checked_sub(lead).filter(|&k| from[k] != 1).map_or(0, |k| own[k])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `locate` in `strided.cuh`.
    fn divide(dims: &Dims, d: usize, n: u32) -> u32 {
        let high = ((u64::from(dims.magic[d]) * u64::from(n)) >> 32) as u32;
        (high + n) >> dims.shift[d]
    }

    #[test]
    fn division_by_multiplication_is_exact() {
        let numbers =
            [0, 1, 2, 6, 7, 8, 99, 4096, 65_535, 65_537, 1_000_003, (1 << 30) + 1, (1 << 31) - 2, (1 << 31) - 1];
        for size in [1_u64, 2, 3, 5, 7, 10, 64, 127, 641, 4095, 50_257, 1 << 20, (1 << 20) + 1, (1 << 31) - 1, 1 << 31]
        {
            let dims = Dims::new(Check("test"), &[size, 2]).expect("two dimensions");
            for n in numbers.into_iter().chain([size as u32 - 1, (size as u32).min((1 << 31) - 1)]) {
                assert_eq!(divide(&dims, 0, n), n / size as u32, "{n} / {size}");
            }
        }
    }

    #[test]
    fn dimensions_are_joined() {
        let own = contiguous(&[2, 3, 4]);
        assert_eq!(Walk::new(&[2, 3, 4], [&own]), Walk { sizes: vec![24], strides: vec![[1]] });
        let row = broadcast(&[4], &[2, 3, 4]);
        assert_eq!(row, [0, 0, 1]);
        assert_eq!(Walk::new(&[2, 3, 4], [&own, &row]), Walk { sizes: vec![4, 6], strides: vec![[1, 1], [4, 0]] });
        assert_eq!(Walk::new(&[1, 1], [&[9], &[7]].map(|_: &[u64; 1]| &[0_u64, 0][..])).sizes, [1]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Dims::new(Check("test"), &[2; 9]).is_err());
        assert!(Dims::new(Check("test"), &[1 << 32, 2]).is_err());
        assert!(Dims::new(Check("test"), &[2, 1 << 32]).is_ok());
        assert!(Dims::new(Check("test"), &[u64::MAX, 2]).is_err());
    }
}
