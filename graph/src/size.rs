//! From symbolic types to numbers: elements and bytes, with checked arithmetic throughout.

use crate::limits::{MAX_DIM, MAX_TENSOR_BYTES};
use crate::types::{DType, Dim, Shape, Symbol, TensorType};

/// The sizes of the symbols in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Sizes {
    /// Value of [`Symbol::Batch`].
    pub batch: u64,
    /// Value of [`Symbol::Sequence`].
    pub sequence: u64,
    /// Value of [`Symbol::Position`].
    pub position: u64,
}

impl Sizes {
    /// The value of a symbol.
    pub const fn of(&self, symbol: Symbol) -> u64 {
        match symbol {
            Symbol::Batch => self.batch,
            Symbol::Sequence => self.sequence,
            Symbol::Position => self.position,
        }
    }

    /// The value of a dimension.
    pub const fn dim(&self, dim: Dim) -> u64 {
        match dim {
            Dim::Fixed(n) => n,
            Dim::Symbol(s) => self.of(s),
        }
    }
}

/// Bytes of a tensor with these dimensions (none: one element), or `None` where they do not fit 64 bits.
///
/// ```
/// use genie_graph::{DType, byte_len};
/// assert_eq!(byte_len(DType::BF16, &[3, 5]), Some(30));
/// assert_eq!(byte_len(DType::F32, &[1 << 40, 1 << 40]), None);
/// ```
pub fn byte_len(dtype: DType, dims: &[u64]) -> Option<u64> {
    product(dims.iter().copied())?.checked_mul(dtype.bytes())
}

/// The product of dimensions; 0 if any is 0, even where the others alone would overflow.
fn product(dims: impl Iterator<Item = u64> + Clone) -> Option<u64> {
    if dims.clone().any(|d| d == 0) {
        return Some(0);
    }
    dims.into_iter().try_fold(1_u64, u64::checked_mul)
}

/// Why no tensor can have a type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TypeError {
    /// Too many dimensions.
    #[error("the type has {rank} dimensions; at most {} are supported", Shape::MAX_RANK)]
    Rank {
        /// How many there are.
        rank: usize,
    },
    /// A fixed dimension of size 0.
    #[error("dimension {axis} of {shape} is 0; a graph's tensors must not be empty")]
    ZeroDim {
        /// Which dimension.
        axis: usize,
        /// The shape.
        shape: Shape,
    },
    /// A fixed dimension over [`MAX_DIM`] (a negative number read as unsigned ends here).
    #[error("dimension {axis} is {size}, over the limit of {MAX_DIM}; was it negative?")]
    DimTooLarge {
        /// Which dimension.
        axis: usize,
        /// Its size.
        size: u64,
    },
    /// More bytes than [`MAX_TENSOR_BYTES`], even with every symbol at 1.
    #[error("a tensor of {dtype} {shape} has more than {MAX_TENSOR_BYTES} bytes; split it")]
    TooLarge {
        /// The element type.
        dtype: DType,
        /// The shape.
        shape: Shape,
    },
}

impl TensorType {
    /// Number of elements, or `None` where it does not fit 64 bits.
    pub fn elements(&self, sizes: &Sizes) -> Option<u64> {
        product(self.shape.0.iter().map(|&d| sizes.dim(d)))
    }

    /// Number of bytes, or `None` where it does not fit 64 bits.
    pub fn bytes(&self, sizes: &Sizes) -> Option<u64> {
        self.elements(sizes)?.checked_mul(self.dtype.bytes())
    }

    /// The dimensions with numbers for symbols, or `None` where such a tensor's bytes do not fit 64 bits.
    pub fn concrete(&self, sizes: &Sizes) -> Option<Vec<u64>> {
        self.bytes(sizes)?;
        Some(self.shape.0.iter().map(|&d| sizes.dim(d)).collect())
    }

    /// Checks rank, every fixed dimension and the size in bytes.
    ///
    /// # Errors
    /// The first of these that is out of bounds.
    pub fn check(&self) -> Result<(), TypeError> {
        let rank = self.shape.rank();
        if rank > Shape::MAX_RANK {
            return Err(TypeError::Rank { rank });
        }
        for (axis, &dim) in self.shape.0.iter().enumerate() {
            match dim {
                Dim::Fixed(0) => return Err(TypeError::ZeroDim { axis, shape: self.shape.clone() }),
                Dim::Fixed(size) if size > MAX_DIM => return Err(TypeError::DimTooLarge { axis, size }),
                _ => {}
            }
        }
        match self.bytes(&Sizes { batch: 1, sequence: 1, position: 1 }) {
            Some(bytes) if bytes <= MAX_TENSOR_BYTES => Ok(()),
            _ => Err(TypeError::TooLarge { dtype: self.dtype, shape: self.shape.clone() }),
        }
    }
}

impl Shape {
    /// The size of a dimension where it is fixed.
    pub(crate) fn fixed_dim(&self, axis: usize) -> Option<u64> {
        match self.0.get(axis) {
            Some(&Dim::Fixed(n)) => Some(n),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const B: Dim = Dim::Symbol(Symbol::Batch);

    #[test]
    fn bytes_are_counted_per_type() {
        let sizes = Sizes { batch: 3, sequence: 7, position: 11 };
        for (dtype, bytes) in [
            (DType::F32, 60),
            (DType::F16, 30),
            (DType::BF16, 30),
            (DType::I64, 120),
            (DType::I32, 60),
            (DType::U8, 15),
            (DType::Bool, 15),
        ] {
            assert_eq!(TensorType::new(dtype, [B, 5.into()]).bytes(&sizes), Some(bytes), "{dtype}");
        }
        let all = TensorType::new(DType::U8, Symbol::ALL.map(Dim::from));
        assert_eq!(all.concrete(&sizes), Some(vec![3, 7, 11]));
        assert_eq!(all.bytes(&sizes), Some(231));
    }

    #[test]
    fn overflow_is_none_and_empty_is_zero() {
        let sizes = Sizes { batch: u64::MAX, sequence: 0, position: 2 };
        assert_eq!(TensorType::new(DType::F32, [B]).elements(&sizes), Some(u64::MAX));
        assert_eq!(TensorType::new(DType::F32, [B]).bytes(&sizes), None);
        assert_eq!(TensorType::new(DType::U8, [B, 2.into()]).concrete(&sizes), None);
        assert_eq!(TensorType::new(DType::F32, [B, 2.into(), Symbol::Sequence.into()]).bytes(&sizes), Some(0));
        assert_eq!(byte_len(DType::I64, &[]), Some(8));
        assert_eq!(byte_len(DType::I64, &[1 << 61]), None);
    }

    #[test]
    fn types_out_of_bounds_are_refused() {
        let check = |dims: &[u64]| TensorType { dtype: DType::F32, shape: Shape::fixed(dims) }.check();
        assert_eq!(check(&[1; 8]), Ok(()));
        assert_eq!(check(&[1; 9]), Err(TypeError::Rank { rank: 9 }));
        assert!(matches!(check(&[2, 0]), Err(TypeError::ZeroDim { axis: 1, .. })));
        assert_eq!(check(&[MAX_DIM]), Ok(()));
        assert_eq!(check(&[-3_i64 as u64]), Err(TypeError::DimTooLarge { axis: 0, size: u64::MAX - 2 }));
        assert!(matches!(check(&[1 << 31, 1 << 30]), Err(TypeError::TooLarge { .. })));
        assert!(matches!(check(&[1 << 40, 1 << 40, 1 << 40]), Err(TypeError::TooLarge { .. })));
    }
}
