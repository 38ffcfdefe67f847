//! Functions of two elements, in many kinds.

use genie_graph::{BinaryKind, DType, NodeId};
use half::{bf16, f16};

use super::apply::zip;
use super::convert::Flag;
use super::lanes::{Kernel, Lanes};
use super::plan::V;
use super::step::{Context, Fault};
use super::strided::Walk;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 256;

/// `y = kind(a, b)` with broadcasting: `walk` has the dimensions of y and the strides of a and b. f32, i64, i32, u8 or bool, as the kind
/// takes them; `Nextafter` takes f16 and bf16 as they are. y is contiguous.
pub(super) struct Combine {
    pub(super) kind: BinaryKind,
    pub(super) dtype: DType,
    pub(super) a: V,
    pub(super) b: V,
    pub(super) y: V,
    pub(super) walk: Walk<2>,
    /// Elements of y that a batch row has.
    pub(super) per_row: usize,
    pub(super) node: NodeId,
}

impl Combine {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.a);
        read(self.b);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of all three.
        unsafe {
            match self.dtype {
                DType::I64 => self.elements::<i64>(context, share),
                DType::I32 => self.elements::<i32>(context, share),
                DType::U8 => self.elements::<u8>(context, share),
                DType::Bool => self.elements::<Flag>(context, share),
                DType::F16 => self.elements::<f16>(context, share),
                DType::BF16 => self.elements::<bf16>(context, share),
                DType::F32 => self.elements::<f32>(context, share),
            }
        }
    }

    unsafe fn elements<T: Combined>(&self, context: &Context<'_>, share: Share) {
        let (a, b, y) = (context.get::<T>(self.a), context.get::<T>(self.b), context.get_mut::<T>(self.y));
        let divides = matches!(self.kind, BinaryKind::Remainder | BinaryKind::Fmod | BinaryKind::FloorDivide);
        self.walk.runs(share.split(self.walk.count(), GRAIN), |at, count, [from_a, from_b], [step_a, step_b]| {
            // SAFETY: the walk's offsets lie within a and b, and its count is y's; the members' parts do not overlap.
            unsafe {
                let (a, b) = (a.add(from_a), b.add(from_b));
                if divides && let Some(i) = (0..count).find(|&i| (*b.add(i * step_b)).divides_nothing()) {
                    context.failure.note((at + i) / self.per_row, self.node, Fault::Division);
                }
                let (a, b) = ((a, step_a), (b, step_b));
                context.isa.run(Run { kind: self.kind, a, b, y: y.add(at), count });
            }
        });
    }
}

/// Demands what [`zip`] does.
struct Run<T> {
    kind: BinaryKind,
    a: (*const T, usize),
    b: (*const T, usize),
    y: *mut T,
    count: usize,
}

impl<T: Combined> Kernel for Run<T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe { T::combine(self) }
    }
}

impl<T: Copy> Run<T> {
    #[inline(always)]
    unsafe fn each(&self, f: impl Fn(T, T) -> T) {
        // SAFETY: as the struct demands.
        unsafe { zip(self.a, self.b, self.y, self.count, f) }
    }
}

/// An element type. The verifier sees to it that it has the kinds that it is asked for; those that it lacks leave a.
trait Combined: Copy {
    unsafe fn combine(run: Run<Self>);

    /// Whether it is an integer 0.
    fn divides_nothing(self) -> bool {
        false
    }
}

impl Combined for f32 {
    #[inline(always)]
    unsafe fn combine(run: Run<Self>) {
        // SAFETY: as the caller's.
        unsafe {
            match run.kind {
                BinaryKind::Pow => run.each(Self::powf),
                // Written so that a NaN on either side stays.
                BinaryKind::Maximum => run.each(|a, b| if a > b || a.is_nan() { a } else { b }),
                BinaryKind::Minimum => run.each(|a, b| if a < b || a.is_nan() { a } else { b }),
                BinaryKind::Remainder => run.each(remainder),
                BinaryKind::Fmod => run.each(|a, b| a % b),
                BinaryKind::FloorDivide => run.each(floor_divide),
                BinaryKind::Atan2 => run.each(Self::atan2),
                BinaryKind::Hypot => run.each(hypot),
                BinaryKind::Copysign => run.each(Self::copysign),
                BinaryKind::Nextafter => run.each(nextafter),
                _ => run.each(|a, _| a),
            }
        }
    }
}

fn remainder(a: f32, b: f32) -> f32 {
    let rest = a % b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
}

/// As Python's `//`: from what is left, so that the two agree, then to the whole number that rounding may have missed.
fn floor_divide(a: f32, b: f32) -> f32 {
    if b == 0.0 {
        return a / b;
    }
    let rest = a % b;
    let mut quotient = (a - rest) / b;
    if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return 0.0_f32.copysign(a / b);
    }
    let whole = quotient.floor();
    if quotient - whole > 0.5 { whole + 1.0 } else { whole }
}

/// In f64, where no square overflows.
fn hypot(a: f32, b: f32) -> f32 {
    if a.is_infinite() || b.is_infinite() {
        return f32::INFINITY;
    }
    let (a, b) = (f64::from(a), f64::from(b));
    (a * a + b * b).sqrt() as f32
}

fn nextafter(a: f32, b: f32) -> f32 {
    match beside(a, b) {
        Beside::Is(x) => x,
        Beside::Least => f32::from_bits(1).copysign(b),
        Beside::Further => f32::from_bits(a.to_bits() + 1),
        Beside::Nearer => f32::from_bits(a.to_bits() - 1),
    }
}

/// Where the next number from a towards b is, if it is not plain: the least one on b's side of 0, or one further from 0 or nearer.
enum Beside {
    Is(f32),
    Least,
    Further,
    Nearer,
}

fn beside(a: f32, b: f32) -> Beside {
    if a.is_nan() || b.is_nan() {
        Beside::Is(f32::NAN)
    } else if a == b {
        Beside::Is(b)
    } else if a == 0.0 {
        Beside::Least
    } else if (a < b) == (a > 0.0) {
        Beside::Further
    } else {
        Beside::Nearer
    }
}

macro_rules! halves {
    ($($t:ty)+) => {$(
        /// Of 16 bits only the next number is worked out as such; all else is in f32.
        impl Combined for $t {
            #[inline(always)]
            unsafe fn combine(run: Run<Self>) {
                let next = |a: Self, b: Self| match beside(a.to_f32(), b.to_f32()) {
                    Beside::Is(x) => Self::from_f32(x),
                    Beside::Least => Self::from_bits(1 | b.to_bits() & 0x8000),
                    Beside::Further => Self::from_bits(a.to_bits() + 1),
                    Beside::Nearer => Self::from_bits(a.to_bits() - 1),
                };
                // SAFETY: as the caller's.
                unsafe { run.each(next) }
            }
        }
    )+};
}

halves! { f16 bf16 }

impl Combined for Flag {
    #[inline(always)]
    unsafe fn combine(run: Run<Self>) {
        // SAFETY: as the caller's.
        unsafe {
            match run.kind {
                BinaryKind::BitAnd | BinaryKind::Minimum => run.each(|a, b| Self::of(a.holds() & b.holds())),
                BinaryKind::BitOr | BinaryKind::Maximum => run.each(|a, b| Self::of(a.holds() | b.holds())),
                _ => run.each(|a, b| Self::of(a.holds() ^ b.holds())),
            }
        }
    }
}

macro_rules! integers {
    ($($t:ident)+) => {$(
        impl Combined for $t {
            #[inline(always)]
            fn divides_nothing(self) -> bool {
                self == 0
            }

            #[inline(always)]
            unsafe fn combine(run: Run<Self>) {
                // Where the divisor is 0 the fault was noted.
                let rest = |a: $t, b: $t| if b == 0 { 0 } else { a.wrapping_rem(b) };
                #[allow(unused_comparisons)]
                let differ = |rest: $t, b: $t| rest != 0 && (rest < 0) != (b < 0);
                // SAFETY: as the caller's.
                unsafe {
                    match run.kind {
                        BinaryKind::Pow => run.each(power::$t),
                        BinaryKind::Maximum => run.each(|a, b| a.max(b)),
                        BinaryKind::Minimum => run.each(|a, b| a.min(b)),
                        BinaryKind::Remainder => run.each(|a, b| {
                            let rest = rest(a, b);
                            if differ(rest, b) { rest.wrapping_add(b) } else { rest }
                        }),
                        BinaryKind::Fmod => run.each(rest),
                        BinaryKind::FloorDivide => run.each(|a, b| {
                            let down = differ(rest(a, b), b);
                            let quotient = if b == 0 { 0 } else { a.wrapping_div(b) };
                            if down { quotient.wrapping_sub(1) } else { quotient }
                        }),
                        BinaryKind::BitAnd => run.each(|a, b| a & b),
                        BinaryKind::BitOr => run.each(|a, b| a | b),
                        BinaryKind::BitXor => run.each(|a, b| a ^ b),
                        // As unsigned numbers, negative ones are beyond the bits.
                        BinaryKind::ShiftLeft => run.each(|a, b| match u32::try_from(b) {
                            Ok(b) if b < $t::BITS => a << b,
                            _ => 0,
                        }),
                        BinaryKind::ShiftRight => run.each(|a, b| match u32::try_from(b) {
                            Ok(b) if b < $t::BITS => a >> b,
                            // What is left is the sign.
                            _ => a >> ($t::BITS - 1) >> 1,
                        }),
                        _ => run.each(|a, _| a),
                    }
                }
            }
        }
    )+};
}

integers! { i64 i32 u8 }

/// Integers to the power of integers, by squaring.
mod power {
    macro_rules! power {
        ($($t:ident)+) => {$(
            pub(super) fn $t(base: $t, exponent: $t) -> $t {
                #[allow(unused_comparisons)]
                if exponent < 0 {
                    let even = exponent & 1 == 0;
                    return match base {
                        1 => 1,
                        _ if base == !0 => if even { 1 } else { base },
                        _ => 0,
                    };
                }
                let (mut base, mut exponent, mut product): ($t, $t, $t) = (base, exponent, 1);
                while exponent != 0 {
                    if exponent & 1 == 1 {
                        product = product.wrapping_mul(base);
                    }
                    base = base.wrapping_mul(base);
                    exponent >>= 1;
                }
                product
            }
        )+};
    }

    power! { i64 i32 u8 }
}
