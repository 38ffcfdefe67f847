//! Blocks of numbers that share a scale, as GGUF stores them, to floats.
//!
//! Every number is worked out in f32 with one rounding an operation, on every instruction set alike, so that a weight read from
//! its blocks inside a product gives the bits that it gives when it is stored as floats first.

use std::ops::Range;

use genie_graph::{DType, QuantFormat};
use half::{bf16, f16};

use super::lanes::{Kernel, Lanes, MAX_LANES};
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Numbers in a block.
pub(super) const BLOCK: usize = QuantFormat::BLOCK as usize;

/// Blocks that members take as one.
const GRAIN: usize = 64;

/// `y` = the numbers of the `blocks` blocks of x, as [`genie_graph::Op::Dequantize`] has it.
pub(super) struct Dequantize {
    pub(super) x: V,
    pub(super) format: QuantFormat,
    pub(super) y: V,
    pub(super) to: DType,
    pub(super) blocks: usize,
}

impl Dequantize {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.blocks, GRAIN);
        // SAFETY: as the caller's; `to` is the type of y, which has 32 numbers for each block of x.
        unsafe {
            match self.to {
                DType::F16 => self.blocks::<f16>(context, mine),
                DType::BF16 => self.blocks::<bf16>(context, mine),
                _ => self.blocks::<f32>(context, mine),
            }
        }
    }

    unsafe fn blocks<E: Narrow>(&self, context: &Context<'_>, mine: Range<usize>) {
        // SAFETY: as the caller's.
        unsafe {
            let x = context.get::<u8>(self.x).add(mine.start * self.format.block_bytes() as usize);
            let y = context.get_mut::<E>(self.y).add(mine.start * BLOCK);
            context.isa.run(Blocks { format: self.format, x, y, count: mine.len() });
        }
    }
}

/// A float type that numbers are rounded to.
pub(super) trait Narrow: Copy + 'static {
    /// Stores a vector of numbers.
    ///
    /// # Safety
    /// `p` is valid for writes of N, and the machine has `S`.
    unsafe fn put<S: Lanes>(p: *mut Self, v: S::V);
}

impl Narrow for f32 {
    #[inline(always)]
    unsafe fn put<S: Lanes>(p: *mut Self, v: S::V) {
        // SAFETY: as the caller's.
        unsafe { S::store(p, v) }
    }
}

macro_rules! short {
    ($t:ty) => {
        impl Narrow for $t {
            #[inline(always)]
            unsafe fn put<S: Lanes>(p: *mut Self, v: S::V) {
                let mut wide = [0.0; MAX_LANES];
                // SAFETY: as the caller's; a vector has at most as many lanes as `wide` has room for.
                unsafe {
                    S::store(wide.as_mut_ptr(), v);
                    (0..S::N).for_each(|i| p.add(i).write(Self::from_f32(wide[i])));
                }
            }
        }
    };
}

short!(f16);
short!(bf16);

/// The numbers of `count` blocks of `format` at `x`, to `y`.
///
/// Demands: `x` is valid for so many blocks, `y` for 32 times as many numbers.
pub(super) struct Blocks<E> {
    pub(super) format: QuantFormat,
    pub(super) x: *const u8,
    pub(super) y: *mut E,
    pub(super) count: usize,
}

impl<E: Narrow> Kernel for Blocks<E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            match self.format {
                QuantFormat::Q8_0 => self.numbers::<S, Q8>(),
                QuantFormat::Q4_0 => self.numbers::<S, Q4>(),
                QuantFormat::Q4_1 => self.numbers::<S, Q4Least>(),
            }
        }
    }
}

impl<E: Narrow> Blocks<E> {
    #[inline(always)]
    unsafe fn numbers<S: Lanes, F: Block>(&self) {
        for i in 0..self.count {
            // SAFETY: as the struct demands; vectors divide a block.
            unsafe {
                let (x, y) = (self.x.add(i * F::BYTES), self.y.add(i * BLOCK));
                let scales = F::scales::<S>(x);
                let mut at = 0;
                while at < BLOCK {
                    E::put::<S>(y.add(at), F::vector::<S>(x, at, scales));
                    at += S::N;
                }
            }
        }
    }
}

/// A format, for kernels.
///
/// # Safety
/// Of all functions: `x` is valid for a block, and the machine has `S`.
pub(super) trait Block {
    const BYTES: usize;

    /// The scale, and the least number where the format has one.
    unsafe fn scales<S: Lanes>(x: *const u8) -> [S::V; 2];
    /// The numbers `at..at + N`; `at` is a multiple of N.
    unsafe fn vector<S: Lanes>(x: *const u8, at: usize, scales: [S::V; 2]) -> S::V;
}

/// [`QuantFormat::Q8_0`].
pub(super) struct Q8;

impl Block for Q8 {
    const BYTES: usize = 34;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(x: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller's.
        unsafe { [half_at::<S>(x); 2] }
    }
    #[inline(always)]
    unsafe fn vector<S: Lanes>(x: *const u8, at: usize, [d, _]: [S::V; 2]) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::mul(S::load_i8(x.add(2 + at).cast()), d) }
    }
}

/// [`QuantFormat::Q4_0`].
pub(super) struct Q4;

impl Block for Q4 {
    const BYTES: usize = 18;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(x: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller's.
        unsafe { [half_at::<S>(x); 2] }
    }
    #[inline(always)]
    unsafe fn vector<S: Lanes>(x: *const u8, at: usize, [d, _]: [S::V; 2]) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::mul(S::add(nibbles::<S>(x.add(2), at), S::splat(-8.0)), d) }
    }
}

/// [`QuantFormat::Q4_1`].
pub(super) struct Q4Least;

impl Block for Q4Least {
    const BYTES: usize = 20;

    #[inline(always)]
    unsafe fn scales<S: Lanes>(x: *const u8) -> [S::V; 2] {
        // SAFETY: as the caller's.
        unsafe { [half_at::<S>(x), half_at::<S>(x.add(2))] }
    }
    #[inline(always)]
    unsafe fn vector<S: Lanes>(x: *const u8, at: usize, [d, m]: [S::V; 2]) -> S::V {
        // SAFETY: as the caller's.
        unsafe { S::add(S::mul(nibbles::<S>(x.add(4), at), d), m) }
    }
}

/// Numbers `at..at + N` of 16 bytes: the low nibbles, then the high ones.
#[inline(always)]
unsafe fn nibbles<S: Lanes>(x: *const u8, at: usize) -> S::V {
    const HALF: usize = BLOCK / 2;
    // SAFETY: as the caller's: vectors divide half a block.
    unsafe { if at < HALF { S::load_low(x.add(at)) } else { S::load_high(x.add(at - HALF)) } }
}

#[inline(always)]
unsafe fn half_at<S: Lanes>(x: *const u8) -> S::V {
    // SAFETY: as the caller's; a block has no alignment.
    unsafe { S::splat_f16(f16::from_le_bytes(x.cast::<[u8; 2]>().read_unaligned())) }
}
