//! Order along rows.

use genie_graph::DType;

use super::convert::Flag;
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// For each row of x `[rows, length]` the indices that put it in order -> i64. f32, i64, i32, u8, bool. Nothing but y is needed to work
/// in.
pub(super) struct Order {
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) rows: usize,
    pub(super) length: usize,
    pub(super) descending: bool,
}

impl Order {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of x.
        unsafe {
            match self.dtype {
                DType::I64 => self.by_key(context, share, |x: i64| x.cast_unsigned() ^ 1 << 63),
                DType::I32 => self.packed(context, share, |x: i32| x.cast_unsigned() ^ 1 << 31),
                DType::U8 => self.packed(context, share, |x: u8| x.into()),
                DType::Bool => self.packed(context, share, |x: Flag| x.holds().into()),
                _ => self.packed(context, share, float_key),
            }
        }
    }

    /// Keys of 32 bits: key and index in one word, which is sorted as such.
    unsafe fn packed<T: Copy>(&self, context: &Context<'_>, share: Share, key: impl Fn(T) -> u32) {
        const INDEX: u64 = u32::MAX as u64;
        if self.length as u64 > INDEX {
            // SAFETY: as the caller's.
            return unsafe { self.by_key(context, share, |x: T| key(x).into()) };
        }
        let flip = if self.descending { u32::MAX } else { 0 };
        // SAFETY: as the caller's.
        unsafe {
            self.each(context, share, |x, y| {
                for (i, (&x, y)) in (0..).zip(x.iter().zip(&mut *y)) {
                    *y = u64::from(key(x) ^ flip) << 32 | i;
                }
                y.sort_unstable();
                y.iter_mut().for_each(|y| *y &= INDEX);
            });
        }
    }

    /// Any keys: indices, compared by what they stand for.
    unsafe fn by_key<T: Copy>(&self, context: &Context<'_>, share: Share, key: impl Fn(T) -> u64) {
        let flip = if self.descending { u64::MAX } else { 0 };
        // SAFETY: as the caller's.
        unsafe {
            self.each(context, share, |x, y| {
                for (i, y) in (0..).zip(&mut *y) {
                    *y = i;
                }
                y.sort_unstable_by_key(|&i| (key(x[i as usize]) ^ flip, i));
            });
        }
    }

    /// The rows of this member, with indices taken as unsigned.
    unsafe fn each<T: Copy>(&self, context: &Context<'_>, share: Share, mut f: impl FnMut(&[T], &mut [u64])) {
        let (x, y) = (context.get::<T>(self.x), context.get_mut::<u64>(self.y));
        for row in share.split(self.rows, 1) {
            let at = row * self.length;
            // SAFETY: x and y have `rows * length` elements, and rows of y are one member's.
            unsafe {
                f(
                    std::slice::from_raw_parts(x.add(at), self.length),
                    std::slice::from_raw_parts_mut(y.add(at), self.length),
                );
            }
        }
    }
}

/// A word that is ordered as the number is: NaN above everything, whatever its sign; the two zeros equal.
fn float_key(x: f32) -> u32 {
    if x.is_nan() {
        return u32::MAX;
    }
    // Makes 0 of -0.
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}
