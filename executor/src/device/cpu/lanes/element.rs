//! What weights and activations are made of, and how the two are multiplied.

use half::{bf16, f16};

use super::{Lanes, MAX_LANES};

/// A float type that weights, keys and values come in.
pub(in crate::device::cpu) trait Element: Copy + Default + 'static {
    unsafe fn load<S: Lanes>(p: *const Self) -> S::V;
    /// The first `n < N` elements, and zeros.
    unsafe fn load_part<S: Lanes>(p: *const Self, n: usize) -> S::V;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Lanes>(p: *const Self) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::load_part(p, n) }
    }
}

macro_rules! short_element {
    ($t:ty, $load:ident) => {
        impl Element for $t {
            #[inline(always)]
            unsafe fn load<S: Lanes>(p: *const Self) -> S::V {
                // SAFETY: as the caller's.
                unsafe { S::$load(p) }
            }
            #[inline(always)]
            unsafe fn load_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
                let mut padded = [Self::ZERO; MAX_LANES];
                // SAFETY: `n` elements can be read, and fit: n < N <= MAX_LANES.
                unsafe {
                    std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), n);
                    S::$load(padded.as_ptr())
                }
            }
        }
    };
}

short_element!(f16, load_f16);
short_element!(bf16, load_bf16);

/// A weight's element in products with activations of type `X`: both are read as vectors and multiplied lane by lane, the sums
/// f32.
pub(in crate::device::cpu) trait Factor<X>: Copy + 'static {
    /// Consecutive elements in one lane.
    const IN_LANE: usize;

    /// A vector of `IN_LANE * N` weights.
    unsafe fn weights<S: Lanes>(p: *const Self) -> S::V;
    /// The first `n < IN_LANE * N` of them, and zeros.
    unsafe fn weights_part<S: Lanes>(p: *const Self, n: usize) -> S::V;
    /// A vector of as many activations.
    unsafe fn activations<S: Lanes>(p: *const X) -> S::V;
    /// The first `n < IN_LANE * N` of them, and zeros.
    unsafe fn activations_part<S: Lanes>(p: *const X, n: usize) -> S::V;
    /// Multiplications that it takes to multiply two such vectors.
    fn rounds<S: Lanes>() -> usize;
    /// What of a vector of weights or activations is multiplied in this round.
    unsafe fn operand<S: Lanes>(v: S::V, round: usize) -> S::V;
    /// `sum` with the products of two operands added.
    unsafe fn multiply<S: Lanes>(weights: S::V, activations: S::V, sum: S::V) -> S::V;
}

/// Weights of any type are converted to f32, which is exact, and multiplied with f32.
impl<E: Element> Factor<f32> for E {
    const IN_LANE: usize = 1;

    #[inline(always)]
    unsafe fn weights<S: Lanes>(p: *const Self) -> S::V {
        // SAFETY: as the caller's.
        unsafe { E::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn weights_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
        // SAFETY: as the caller's.
        unsafe { E::load_part::<S>(p, n) }
    }
    #[inline(always)]
    unsafe fn activations<S: Lanes>(p: *const f32) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn activations_part<S: Lanes>(p: *const f32, n: usize) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::load_part(p, n) }
    }
    #[inline(always)]
    fn rounds<S: Lanes>() -> usize {
        1
    }
    #[inline(always)]
    unsafe fn operand<S: Lanes>(v: S::V, _: usize) -> S::V {
        v
    }
    #[inline(always)]
    unsafe fn multiply<S: Lanes>(weights: S::V, activations: S::V, sum: S::V) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::fma(weights, activations, sum) }
    }
}

/// bf16 by bf16, in pairs: a vector's bits are those of twice as many bf16.
impl Factor<Self> for bf16 {
    const IN_LANE: usize = 2;

    #[inline(always)]
    unsafe fn weights<S: Lanes>(p: *const Self) -> S::V {
        // SAFETY: as the caller's: `2 * N` bf16 take the bytes of N f32.
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn weights_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
        let mut padded = [Self::ZERO; 2 * MAX_LANES];
        // SAFETY: `n` elements can be read, and fit: n < 2 N <= 2 MAX_LANES.
        unsafe {
            std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), n);
            S::load(padded.as_ptr().cast())
        }
    }
    #[inline(always)]
    unsafe fn activations<S: Lanes>(p: *const Self) -> S::V {
        // SAFETY: as the caller's.
        unsafe { <Self as Factor<Self>>::weights::<S>(p) }
    }
    #[inline(always)]
    unsafe fn activations_part<S: Lanes>(p: *const Self, n: usize) -> S::V {
        // SAFETY: as the caller's.
        unsafe { <Self as Factor<Self>>::weights_part::<S>(p, n) }
    }
    #[inline(always)]
    fn rounds<S: Lanes>() -> usize {
        S::PAIR_ROUNDS
    }
    #[inline(always)]
    unsafe fn operand<S: Lanes>(v: S::V, round: usize) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::of_pairs(v, round) }
    }
    #[inline(always)]
    unsafe fn multiply<S: Lanes>(weights: S::V, activations: S::V, sum: S::V) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::multiply_pairs(weights, activations, sum) }
    }
}
