//! Functions of one element, in many kinds.

use std::ops::{Not, Range};

use genie_graph::{DType, UnaryKind};

use super::apply::map;
use super::convert::Flag;
use super::lanes::{Kernel, Lanes};
use super::plan::V;
use super::special;
use super::step::Context;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 256;

/// `y = kind(x)` of `count` elements: f32, i64, i32, u8 or bool, as the kind takes them; y is bool where the kind says so.
pub(super) struct Map {
    pub(super) kind: UnaryKind,
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) count: usize,
}

impl Map {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.count, GRAIN);
        // SAFETY: the values have `count` elements of `dtype` and of the result's type, and do not overlap.
        unsafe {
            match self.dtype {
                DType::I64 => self.integers::<i64>(context, mine, i64::signum),
                DType::I32 => self.integers::<i32>(context, mine, i32::signum),
                DType::U8 => self.integers::<u8>(context, mine, |x| x.min(1)),
                DType::Bool => {
                    let (x, y) = (context.get::<Flag>(self.x), context.get_mut::<bool>(self.y));
                    map(x.add(mine.start), y.add(mine.start), mine.len(), |x| !x.holds());
                }
                _ => context.isa.run(MapF32 {
                    kind: self.kind,
                    x: context.get::<f32>(self.x).add(mine.start),
                    numbers: context.get_mut::<f32>(self.y).wrapping_add(mine.start),
                    flags: context.get_mut::<bool>(self.y).wrapping_add(mine.start),
                    count: mine.len(),
                }),
            }
        }
    }

    unsafe fn integers<T: Copy + Not<Output = T>>(&self, context: &Context<'_>, mine: Range<usize>, sign: fn(T) -> T) {
        let (x, y) = (context.get::<T>(self.x), context.get_mut::<T>(self.y));
        // SAFETY: as the caller's.
        unsafe {
            let (x, y) = (x.add(mine.start), y.add(mine.start));
            match self.kind {
                UnaryKind::Not => map(x, y, mine.len(), |x: T| !x),
                // Integers are whole already; nothing else takes them.
                _ => map(x, y, mine.len(), sign),
            }
        }
    }
}

/// Demands: `x` is valid for `count`, and so is that of `numbers` and `flags` whose type the kind's result is of; `x` overlaps it not.
struct MapF32 {
    kind: UnaryKind,
    x: *const f32,
    numbers: *mut f32,
    flags: *mut bool,
    count: usize,
}

impl Kernel for MapF32 {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            match self.kind {
                UnaryKind::Sin => self.each(f32::sin),
                UnaryKind::Cos => self.each(f32::cos),
                UnaryKind::Tan => self.each(f32::tan),
                UnaryKind::Asin => self.each(f32::asin),
                UnaryKind::Acos => self.each(f32::acos),
                UnaryKind::Atan => self.each(f32::atan),
                UnaryKind::Sinh => self.each(f32::sinh),
                UnaryKind::Cosh => self.each(f32::cosh),
                UnaryKind::Asinh => self.wide(f64::asinh),
                UnaryKind::Acosh => self.wide(f64::acosh),
                UnaryKind::Atanh => self.wide(f64::atanh),
                UnaryKind::Erf => self.wide(libm::erf),
                UnaryKind::Erfc => self.wide(libm::erfc),
                UnaryKind::Erfinv => self.wide(special::erfinv),
                UnaryKind::Lgamma => self.wide(libm::lgamma),
                UnaryKind::Digamma => self.wide(special::digamma),
                UnaryKind::Expm1 => self.each(f32::exp_m1),
                UnaryKind::Log1p => self.each(f32::ln_1p),
                UnaryKind::Log2 => self.each(f32::log2),
                UnaryKind::Log10 => self.each(f32::log10),
                UnaryKind::Exp2 => self.each(f32::exp2),
                UnaryKind::Rsqrt => self.each(|x| 1.0 / x.sqrt()),
                UnaryKind::Reciprocal => self.each(|x| 1.0 / x),
                UnaryKind::I0 => self.wide(special::i0),
                UnaryKind::Floor => self.each(f32::floor),
                UnaryKind::Ceil => self.each(f32::ceil),
                UnaryKind::Round => self.each(f32::round_ties_even),
                UnaryKind::Trunc => self.each(f32::trunc),
                // The verifier takes `Not` of no float.
                UnaryKind::Sign | UnaryKind::Not => {
                    self.each(|x| f32::from(u8::from(x > 0.0)) - f32::from(u8::from(x < 0.0)));
                }
                UnaryKind::IsNan => map(self.x, self.flags, self.count, f32::is_nan),
                UnaryKind::IsInf => map(self.x, self.flags, self.count, f32::is_infinite),
                UnaryKind::IsFinite => map(self.x, self.flags, self.count, f32::is_finite),
            }
        }
    }
}

impl MapF32 {
    #[inline(always)]
    unsafe fn each(&self, f: impl Fn(f32) -> f32) {
        // SAFETY: as the struct demands.
        unsafe { map(self.x, self.numbers, self.count, f) }
    }

    /// Worked out in f64 and rounded once.
    #[inline(always)]
    unsafe fn wide(&self, f: fn(f64) -> f64) {
        // SAFETY: as the struct demands.
        unsafe { map(self.x, self.numbers, self.count, |x| f(f64::from(x)) as f32) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Isa;
    use super::*;

    /// The function, what it computes, for which numbers.
    type Case = (UnaryKind, fn(f64) -> f64, Vec<f32>);

    /// Numbers between two of one sign, evenly spread over the bits.
    fn between(low: f32, high: f32) -> Vec<f32> {
        let (low, high) = (u64::from(low.to_bits()), u64::from(high.to_bits()));
        (0..=2000).map(|i| f32::from_bits((low + (high - low) * i / 2000) as u32)).collect()
    }

    /// The standard library's functions of f64 are good to far more than an f32's digits.
    #[test]
    fn results_are_within_two_ulps() {
        let both = |low: f32, high: f32| -> Vec<f32> { between(low, high).into_iter().flat_map(|x| [x, -x]).collect() };
        let all = || both(1e-40, 3e38);
        let cases: [Case; 22] = [
            (UnaryKind::Sin, f64::sin, both(1e-40, 1e6)),
            (UnaryKind::Cos, f64::cos, both(1e-40, 1e6)),
            (UnaryKind::Tan, f64::tan, both(1e-40, 1e6)),
            (UnaryKind::Asin, f64::asin, both(1e-40, 1.0)),
            (UnaryKind::Acos, f64::acos, both(1e-40, 1.0)),
            (UnaryKind::Atan, f64::atan, all()),
            (UnaryKind::Sinh, f64::sinh, both(1e-40, 89.0)),
            (UnaryKind::Cosh, f64::cosh, both(1e-40, 89.0)),
            (UnaryKind::Asinh, f64::asinh, all()),
            (UnaryKind::Acosh, f64::acosh, between(1.0, 3e38)),
            (UnaryKind::Atanh, f64::atanh, both(1e-40, 1.0)),
            (UnaryKind::Expm1, f64::exp_m1, both(1e-40, 88.0)),
            (UnaryKind::Log1p, f64::ln_1p, between(1e-40, 3e38)),
            (UnaryKind::Log2, f64::log2, between(1e-40, 3e38)),
            (UnaryKind::Log10, f64::log10, between(1e-40, 3e38)),
            (UnaryKind::Exp2, f64::exp2, both(1e-40, 120.0)),
            (UnaryKind::Rsqrt, |x| 1.0 / x.sqrt(), between(1e-37, 3e38)),
            (UnaryKind::Reciprocal, |x| 1.0 / x, both(1e-37, 1e37)),
            (UnaryKind::Floor, f64::floor, all()),
            (UnaryKind::Ceil, f64::ceil, all()),
            (UnaryKind::Round, f64::round_ties_even, [all(), vec![0.5, 1.5, 2.5, -0.5, -2.5, 8_388_607.5]].concat()),
            (UnaryKind::Trunc, f64::trunc, all()),
        ];
        for isa in Isa::available() {
            for (kind, f, x) in &cases {
                let mut y = vec![0.0_f32; x.len()];
                let numbers = y.as_mut_ptr();
                // SAFETY: both have `count` elements, and the machine has the instruction set.
                unsafe {
                    isa.run(MapF32 { kind: *kind, x: x.as_ptr(), numbers, flags: numbers.cast(), count: x.len() })
                };
                for (&x, &y) in x.iter().zip(&y) {
                    let exact = f(f64::from(x));
                    let ulp = f64::from(exact.abs().max(f64::from(f32::MIN_POSITIVE)) as f32) * f64::from(f32::EPSILON);
                    let near = (f64::from(y) - exact).abs() <= 2.0 * ulp;
                    assert!(near || f64::from(y) == exact, "{kind:?} {x:e}: {y:e}, not {exact:e}");
                }
            }
        }
    }
}
