//! The width of machines that have none of their own here.

use half::{bf16, f16};

use super::Lanes;

/// Four lanes in an array: what machines without a width of their own get.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Lanes for Scalar {
    type V = [f32; 4];
    const N: usize = 4;
    const COLUMNS: usize = 2;
    const PAIR_ROUNDS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn splat_f16(x: f16) -> Self::V {
        [widen(x); 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller lets us read four; an array of f32 is read unaligned.
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::V {
        // SAFETY: the caller lets us read four.
        unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(widen)
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::V {
        // SAFETY: the caller lets us read four.
        unsafe { p.cast::<[bf16; 4]>().read_unaligned() }.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::V {
        // SAFETY: the caller lets us read four.
        unsafe { p.cast::<[i8; 4]>().read_unaligned() }.map(f32::from)
    }
    #[inline(always)]
    unsafe fn load_low(p: *const u8) -> Self::V {
        // SAFETY: the caller lets us read four.
        unsafe { p.cast::<[u8; 4]>().read_unaligned() }.map(|b| f32::from(b & 15))
    }
    #[inline(always)]
    unsafe fn load_high(p: *const u8) -> Self::V {
        // SAFETY: the caller lets us read four.
        unsafe { p.cast::<[u8; 4]>().read_unaligned() }.map(|b| f32::from(b >> 4))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller lets us write four.
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn of_pairs(v: Self::V, round: usize) -> Self::V {
        v.map(|x| f32::from_bits(if round == 0 { x.to_bits() & 0xFFFF_0000 } else { x.to_bits() << 16 }))
    }
    #[inline(always)]
    unsafe fn multiply_pairs(a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        // SAFETY: as the caller's.
        unsafe { Self::fma(a, b, sum) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        (v[0] + v[2]) + (v[1] + v[3])
    }
    #[inline(always)]
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4] {
        // SAFETY: as the caller's.
        v.map(|v| unsafe { Self::sum(v) })
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        let mut v = [0.0; 4];
        // SAFETY: the caller lets us read n < 4.
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_part(p: *mut f32, v: Self::V, n: usize) {
        // SAFETY: the caller lets us write n < 4.
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

/// To f32, exactly (a signalling NaN becomes quiet or stays), without branches or calls, so that the compiler makes vectors of it.
#[inline(always)]
fn widen(x: f16) -> f32 {
    /// What the exponents' biases differ by: 127 - 15.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let bits = u32::from(x.to_bits());
    // Subnormal f16 are subnormal f32 here, and come out right by the multiplication.
    let magnitude = (f32::from_bits((bits & 0x7FFF) << 13) * REBIAS).to_bits();
    let special = if bits & 0x7C00 == 0x7C00 { 0x7F80_0000 } else { 0 };
    f32::from_bits(magnitude | special | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            assert!(widen(x).to_bits() == x.to_f32().to_bits() || x.is_nan() && widen(x).is_nan(), "{bits:#06x}");
        }
    }
}
