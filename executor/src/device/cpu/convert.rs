//! From one element type to another.

use std::cmp::Ordering;

use genie_graph::DType;
use half::{bf16, f16};

use super::lanes::{Kernel, Lanes};
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 1024;

/// `y = x` in another type: as [`genie_graph::Op::Cast`] has it.
pub(super) struct Convert {
    pub(super) x: V,
    pub(super) from: DType,
    pub(super) y: V,
    pub(super) to: DType,
    pub(super) count: usize,
}

impl Convert {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `from` is the type of x.
        unsafe {
            match self.from {
                DType::F32 if self.to == DType::BF16 => {
                    let mine = share.split(self.count, GRAIN);
                    let (x, y) = (context.get::<f32>(self.x), context.get_mut::<bf16>(self.y));
                    let (x, y) = (x.add(mine.start), y.add(mine.start));
                    context.isa.run(ToBf16 { x, y, count: mine.len() });
                }
                DType::F32 => self.convert::<f32>(context, share),
                DType::F16 => self.convert::<f16>(context, share),
                DType::BF16 => self.convert::<bf16>(context, share),
                DType::I64 => self.convert::<i64>(context, share),
                DType::I32 => self.convert::<i32>(context, share),
                DType::U8 => self.convert::<u8>(context, share),
                DType::Bool => self.convert::<Flag>(context, share),
            }
        }
    }

    unsafe fn convert<A: Scalar>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `to` is the type of y.
        unsafe {
            match self.to {
                DType::F32 => self.convert_to::<A, f32>(context, share),
                DType::F16 => self.convert_to::<A, f16>(context, share),
                DType::BF16 => self.convert_to::<A, bf16>(context, share),
                DType::I64 => self.convert_to::<A, i64>(context, share),
                DType::I32 => self.convert_to::<A, i32>(context, share),
                DType::U8 => self.convert_to::<A, u8>(context, share),
                DType::Bool => self.convert_to::<A, Flag>(context, share),
            }
        }
    }

    unsafe fn convert_to<A: Scalar, B: Scalar>(&self, context: &Context<'_>, share: Share) {
        let (x, y) = (context.get::<A>(self.x), context.get_mut::<B>(self.y));
        for i in share.split(self.count, GRAIN) {
            // SAFETY: x and y have `count` elements of these types.
            unsafe { y.add(i).write(B::from_wide((*x.add(i)).wide())) };
        }
    }
}

/// To the nearest bf16, ties to even; as [`bf16::from_f32`], but in vectors. Demands: x and y are valid for `count`.
struct ToBf16 {
    x: *const f32,
    y: *mut bf16,
    count: usize,
}

impl Kernel for ToBf16 {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        for i in 0..self.count {
            // SAFETY: as the struct demands.
            unsafe {
                let x = *self.x.add(i);
                let bits = x.to_bits();
                let nearest = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
                // A NaN's upper half alone could be infinity.
                let quiet = bits >> 16 | 0x40;
                *self.y.add(i) = bf16::from_bits(if x.is_nan() { quiet } else { nearest } as u16);
            }
        }
    }
}

/// A number on its way between types.
#[derive(Clone, Copy)]
pub(super) enum Wide {
    Float(f32),
    Integer(i64),
}

/// An element type.
pub(super) trait Scalar: Copy {
    fn wide(self) -> Wide;
    fn from_wide(wide: Wide) -> Self;
}

/// A bool as tensors hold it. Bytes from outside may be neither 0 nor 1.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Flag(u8);

impl Flag {
    #[inline(always)]
    pub(super) fn of(holds: bool) -> Self {
        Self(u8::from(holds))
    }

    #[inline(always)]
    pub(super) fn holds(self) -> bool {
        self.0 != 0
    }
}

impl PartialEq for Flag {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.holds() == other.holds()
    }
}

impl PartialOrd for Flag {
    #[inline(always)]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.holds().cmp(&other.holds()))
    }
}

macro_rules! float {
    ($t:ty, $to:expr, $from:expr) => {
        impl Scalar for $t {
            #[inline(always)]
            fn wide(self) -> Wide {
                Wide::Float($to(self))
            }
            #[inline(always)]
            fn from_wide(wide: Wide) -> Self {
                match wide {
                    Wide::Float(x) => $from(x),
                    Wide::Integer(x) => $from(x as f32),
                }
            }
        }
    };
}

macro_rules! integer {
    ($t:ty) => {
        impl Scalar for $t {
            #[inline(always)]
            fn wide(self) -> Wide {
                Wide::Integer(i64::from(self))
            }
            #[inline(always)]
            fn from_wide(wide: Wide) -> Self {
                match wide {
                    // Truncates and saturates; NaN is 0.
                    Wide::Float(x) => x as Self,
                    // Wraps.
                    Wide::Integer(x) => x as Self,
                }
            }
        }
    };
}

float!(f32, |x: f32| x, |x: f32| x);
float!(f16, |x: f16| x.to_f32(), |x: f32| f16::from_f32(x));
float!(bf16, |x: bf16| x.to_f32(), |x: f32| bf16::from_f32(x));
integer!(i64);
integer!(i32);
integer!(u8);

impl Scalar for Flag {
    #[inline(always)]
    fn wide(self) -> Wide {
        Wide::Integer(i64::from(self.holds()))
    }
    #[inline(always)]
    fn from_wide(wide: Wide) -> Self {
        Self(match wide {
            Wide::Float(x) => u8::from(x != 0.0),
            Wide::Integer(x) => u8::from(x != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Isa;
    use super::*;

    #[test]
    fn bf16_is_rounded_as_the_half_crate_does() {
        let mut x: Vec<f32> = (0..0x1_0000_u32)
            .flat_map(|top| [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF].map(|low| top << 16 | low))
            .map(f32::from_bits)
            .collect();
        x.push(f32::NAN);
        for isa in Isa::available() {
            let mut y = vec![bf16::ZERO; x.len()];
            // SAFETY: both have `count` elements, and the machine has the instruction set.
            unsafe { isa.run(ToBf16 { x: x.as_ptr(), y: y.as_mut_ptr(), count: x.len() }) };
            for (x, y) in x.iter().zip(&y) {
                assert_eq!(y.to_bits(), bf16::from_f32(*x).to_bits(), "{x:e} {:#x}", x.to_bits());
            }
        }
    }
}
