//! Tensors whose elements lie anywhere in a storage.

use bytes::Bytes;
use genie_graph::{DType, Shape, byte_len};

use crate::{Format, ReadError};

/// Dimensions that a tensor may have. PyTorch and NumPy have up to 64, graphs have not.
pub(crate) const MAX_RANK: usize = Shape::MAX_RANK;

/// What may still be allocated: by one file, or by several that come together.
pub struct Allowance<'a> {
    left: u64,
    limit: u64,
    /// Asked before each allocation.
    grant: Option<&'a mut dyn FnMut(u64) -> bool>,
}

impl<'a> Allowance<'a> {
    /// So many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { left: bytes, limit: bytes, grant: None }
    }

    /// So many bytes at the most, of which `grant` is asked for each number before it is allocated; `false`: it has not as much now.
    pub fn granted(bytes: u64, grant: &'a mut dyn FnMut(u64) -> bool) -> Self {
        Self { left: bytes, limit: bytes, grant: Some(grant) }
    }

    /// Takes `bytes` of it, which are then allocated.
    pub(crate) fn take(&mut self, bytes: u64, format: Format) -> Result<(), ReadError> {
        self.work(bytes, format)?;
        let granted = self.grant.as_mut().is_none_or(|grant| grant(bytes));
        if granted { Ok(()) } else { Err(ReadError::NoMemory(format)) }
    }

    /// Takes `bytes` of it, which are looked at, but not allocated.
    fn work(&mut self, bytes: u64, format: Format) -> Result<(), ReadError> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => {
                let wanted = (self.limit - self.left).saturating_add(bytes);
                return Err(ReadError::TooLarge { format, what: "bytes", wanted, limit: self.limit });
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Allowance<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allowance").field("left", &self.left).field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// A view of a storage, in elements.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) format: Format,
    pub(crate) dtype: DType,
    pub(crate) dims: &'a [u64],
    pub(crate) strides: &'a [u64],
    pub(crate) offset: u64,
    /// Elements have their most significant byte first.
    pub(crate) big_endian: bool,
}

impl View<'_> {
    /// The elements, row-major and little-endian: a part of the storage where they lie so, else a copy.
    pub(crate) fn of(&self, storage: &Bytes, allowance: &mut Allowance<'_>) -> Result<Bytes, ReadError> {
        let format = self.format;
        let outside = || ReadError::malformed(format, "a tensor reaches beyond the end of its storage");
        let (size, total) = (self.dtype.bytes(), byte_len(self.dtype, self.dims).ok_or_else(outside)?);
        if total == 0 {
            return Ok(Bytes::new());
        }
        let last = self.last().ok_or_else(outside)?;
        let end = last.checked_add(1).and_then(|n| n.checked_mul(size)).ok_or_else(outside)?;
        if end > storage.len() as u64 {
            return Err(outside());
        }
        let data = if self.is_contiguous() && (!self.big_endian || size == 1) {
            // Both lie within the storage, which lies in memory.
            storage.slice((self.offset * size) as usize..end as usize)
        } else {
            // A view may show an element many times: a few bytes would become terabytes.
            if total > storage.len() as u64 {
                let reason = "it shows elements of a storage several times: call .contiguous() before it is saved";
                return Err(ReadError::malformed(
                    format,
                    format!("a tensor is larger than what is stored of it: {reason}"),
                ));
            }
            allowance.take(total, format)?;
            match size {
                1 => self.gather::<1>(storage, total as usize),
                2 => self.gather::<2>(storage, total as usize),
                4 => self.gather::<4>(storage, total as usize),
                _ => self.gather::<8>(storage, total as usize),
            }
            .ok_or_else(outside)?
        };
        if self.dtype == DType::Bool {
            // To look at them is work, too: a list may name the same large tensor many times.
            allowance.work(total, format)?;
            if data.iter().any(|&byte| byte > 1) {
                return Err(ReadError::malformed(format, "a bool is neither 0 nor 1"));
            }
        }
        Ok(data)
    }

    /// The highest element that it touches.
    fn last(&self) -> Option<u64> {
        self.dims
            .iter()
            .zip(self.strides)
            .try_fold(self.offset, |last, (dim, stride)| last.checked_add(dim.checked_sub(1)?.checked_mul(*stride)?))
    }

    fn is_contiguous(&self) -> bool {
        let mut expected = 1_u64;
        for (&dim, &stride) in self.dims.iter().zip(self.strides).rev() {
            if dim != 1 && stride != expected {
                return false;
            }
            expected = expected.saturating_mul(dim);
        }
        true
    }

    /// Copies element by element. All of them lie within the storage: [`Self::of`] has looked.
    fn gather<const N: usize>(&self, storage: &[u8], total: usize) -> Option<Bytes> {
        let mut out = Vec::with_capacity(total);
        // A dimension of 1 would be turned at each element, and never moves.
        let moving = self.dims.iter().zip(self.strides).filter(|(dim, _)| **dim != 1);
        let (dims, strides): (Vec<u64>, Vec<u64>) = moving.unzip();
        let mut index = vec![0_u64; dims.len()];
        let mut at = self.offset;
        loop {
            let from = at as usize * N;
            let mut element: [u8; N] = *storage.get(from..)?.first_chunk()?;
            if self.big_endian {
                element.reverse();
            }
            out.extend_from_slice(&element);
            // The next index, as an odometer.
            let mut axis = dims.len();
            loop {
                let Some(next) = axis.checked_sub(1) else { return Some(out.into()) };
                axis = next;
                let (dim, stride, i) = (*dims.get(axis)?, *strides.get(axis)?, index.get_mut(axis)?);
                *i += 1;
                if *i < dim {
                    at += stride;
                    break;
                }
                at -= (dim - 1) * stride;
                *i = 0;
            }
        }
    }
}

/// The strides of a contiguous tensor; `column_major`: the first index goes fastest. `None`: they cannot be counted.
pub(crate) fn strides(dims: &[u64], column_major: bool) -> Option<Vec<u64>> {
    let mut strides = vec![1; dims.len()];
    let mut next = 1_u64;
    let mut set = |stride: &mut u64, dim: u64| {
        *stride = next;
        next = next.checked_mul(dim.max(1))?;
        Some(())
    };
    if column_major {
        strides.iter_mut().zip(dims).try_for_each(|(stride, dim)| set(stride, *dim))?;
    } else {
        strides.iter_mut().zip(dims).rev().try_for_each(|(stride, dim)| set(stride, *dim))?;
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(dims: &[u64], strides: &[u64], offset: u64, storage: &'static [u8]) -> Result<Vec<u8>, ReadError> {
        let view = View { format: Format::Pt, dtype: DType::U8, dims, strides, offset, big_endian: false };
        let mut allowance = Allowance::new(4 << 30);
        view.of(&Bytes::from_static(storage), &mut allowance).map(|bytes| bytes.to_vec())
    }

    #[test]
    fn elements_come_in_row_major_order() {
        assert_eq!(view(&[2, 3], &[3, 1], 0, b"abcdef").unwrap(), b"abcdef");
        assert_eq!(view(&[3, 2], &[1, 3], 0, b"abcdef").unwrap(), b"adbecf");
        assert_eq!(view(&[2, 2], &[3, 2], 1, b"abcdefg").unwrap(), b"bdeg");
        assert_eq!(view(&[], &[], 2, b"abc").unwrap(), b"c");
        assert_eq!(view(&[0, 9], &[u64::MAX, 7], u64::MAX, b"").unwrap(), b"");
        assert_eq!(view(&[2, 2], &[0, 1], 0, b"abcd").unwrap(), b"abab");
        assert_eq!(view(&[1, 3, 1, 2, 1], &[9, 1, 9, 3, 9], 0, b"abcdef").unwrap(), b"adbecf");
    }

    #[test]
    fn what_lies_outside_or_overflows_is_refused() {
        for (dims, strides, offset) in [
            (&[2, 3][..], &[3, 1][..], 1),
            (&[7], &[1], 0),
            (&[1], &[1], 6),
            (&[2], &[u64::MAX], 0),
            (&[2], &[1], u64::MAX),
            (&[u64::MAX, u64::MAX], &[0, 0], 0),
            (&[u64::MAX], &[0], 0),
            (&[2, 2], &[1 << 63, 1 << 63], 0),
        ] {
            assert!(matches!(view(dims, strides, offset, b"abcdef"), Err(ReadError::Malformed { .. })), "{dims:?}");
        }
        let large = view(&[100], &[0], 0, b"abcdef").unwrap_err();
        assert!(large.to_string().contains(".contiguous()"), "{large}");
    }

    #[test]
    fn copies_are_bounded_and_parts_are_not_copied() {
        let storage = Bytes::from_static(&[0; 64]);
        let format = Format::Pt;
        let view = |strides| View { format, dtype: DType::U8, dims: &[4, 4], strides, offset: 4, big_endian: false };
        let mut none = Allowance::new(15);
        assert_eq!(view(&[4, 1]).of(&storage, &mut none).unwrap().as_ptr(), storage[4..].as_ptr());
        assert!(matches!(
            view(&[1, 4]).of(&storage, &mut none),
            Err(ReadError::TooLarge { wanted: 16, limit: 15, .. })
        ));
        // What is granted is asked for before it is allocated, and bools are looked at without.
        let mut asked = Vec::new();
        let mut grant = |bytes| {
            asked.push(bytes);
            asked.len() == 1
        };
        let mut granted = Allowance::granted(1000, &mut grant);
        view(&[4, 1]).of(&storage, &mut granted).unwrap();
        View { dtype: DType::Bool, ..view(&[1, 4]) }.of(&storage, &mut granted).unwrap();
        assert_eq!(view(&[1, 4]).of(&storage, &mut granted), Err(ReadError::NoMemory(format)));
        assert_eq!(asked, [16, 16]);
    }

    #[test]
    fn the_other_byte_order_is_turned() {
        let format = Format::Npy;
        let view = View { format, dtype: DType::I32, dims: &[2], strides: &[1], offset: 0, big_endian: true };
        let mut allowance = Allowance::new(0x1000);
        let data = view.of(&Bytes::from_static(&[0, 0, 0, 1, 0, 0, 2, 0]), &mut allowance).unwrap();
        assert_eq!(&data[..], [1, 0, 0, 0, 0, 2, 0, 0]);
    }
}
