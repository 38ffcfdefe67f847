//! Ops that treat each element by itself.

use genie_graph::{DType, NodeId};

use super::apply::zip;
use super::lanes::{Kernel, Lanes};
use super::math;
use super::plan::V;
use super::step::{Context, Fault};
use super::strided::Walk;
use super::team::Share;

/// Elements that members take as one.
const GRAIN: usize = 256;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum UnaryKind {
    GeluTanh,
    GeluErf,
    Silu,
    Relu,
    Sigmoid,
    Tanh,
    Abs,
    Neg,
    Exp,
    Log,
    Sqrt,
}

/// `y = kind(x)`, f32 (abs and neg: also i32, i64); with `by`, `y = kind(x) * by`, f32 only. All of `count` elements.
pub(super) struct Unary {
    pub(super) kind: UnaryKind,
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) by: Option<V>,
    pub(super) y: V,
    pub(super) count: usize,
}

impl Unary {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        self.by.into_iter().for_each(read);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.count, GRAIN);
        let n = mine.len();
        if n == 0 {
            return;
        }
        // SAFETY: the values have `count` elements of `dtype`, and x and y do not overlap.
        unsafe {
            match self.dtype {
                DType::I32 => {
                    let x = std::slice::from_raw_parts(context.get::<i32>(self.x).add(mine.start), n);
                    let y = std::slice::from_raw_parts_mut(context.get_mut::<i32>(self.y).add(mine.start), n);
                    match self.kind {
                        UnaryKind::Neg => x.iter().zip(y).for_each(|(x, y)| *y = x.wrapping_neg()),
                        _ => x.iter().zip(y).for_each(|(x, y)| *y = x.wrapping_abs()),
                    }
                }
                DType::I64 => {
                    let x = std::slice::from_raw_parts(context.get::<i64>(self.x).add(mine.start), n);
                    let y = std::slice::from_raw_parts_mut(context.get_mut::<i64>(self.y).add(mine.start), n);
                    match self.kind {
                        UnaryKind::Neg => x.iter().zip(y).for_each(|(x, y)| *y = x.wrapping_neg()),
                        _ => x.iter().zip(y).for_each(|(x, y)| *y = x.wrapping_abs()),
                    }
                }
                _ => context.isa.run(UnaryF32 {
                    kind: self.kind,
                    x: context.get::<f32>(self.x).add(mine.start),
                    by: self.by.map_or(std::ptr::null(), |by| context.get::<f32>(by).add(mine.start)),
                    y: context.get_mut::<f32>(self.y).add(mine.start),
                    count: n,
                }),
            }
        }
    }
}

/// Demands: the pointers (`by` unless null) are valid for `count`, and `y` overlaps none.
struct UnaryF32 {
    kind: UnaryKind,
    x: *const f32,
    by: *const f32,
    y: *mut f32,
    count: usize,
}

impl Kernel for UnaryF32 {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            match self.kind {
                UnaryKind::GeluTanh => self.each(math::gelu_tanh),
                UnaryKind::GeluErf => self.each(math::gelu_erf),
                UnaryKind::Silu => self.each(math::silu),
                // Written so that NaN stays.
                UnaryKind::Relu => self.each(|x| if x < 0.0 { 0.0 } else { x }),
                UnaryKind::Sigmoid => self.each(math::sigmoid),
                UnaryKind::Tanh => self.each(f32::tanh),
                UnaryKind::Abs => self.each(f32::abs),
                UnaryKind::Neg => self.each(|x| -x),
                UnaryKind::Exp => self.each(math::exp),
                UnaryKind::Log => self.each(f32::ln),
                UnaryKind::Sqrt => self.each(f32::sqrt),
            }
        }
    }
}

impl UnaryF32 {
    #[inline(always)]
    unsafe fn each(&self, f: impl Fn(f32) -> f32) {
        // SAFETY: as the struct demands.
        unsafe {
            let x = std::slice::from_raw_parts(self.x, self.count);
            let y = std::slice::from_raw_parts_mut(self.y, self.count);
            if self.by.is_null() {
                x.iter().zip(y).for_each(|(&x, y)| *y = f(x));
            } else {
                let by = std::slice::from_raw_parts(self.by, self.count);
                x.iter().zip(by).zip(y).for_each(|((&x, &by), y)| *y = f(x) * by);
            }
        }
    }
}

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum BinaryKind {
    Add,
    Sub,
    Mul,
    Div,
}

/// `y = a kind b` with broadcasting: `walk` has the dimensions of y and the strides of a and b (0 where one repeats). f32, i64,
/// i32 or u8; y is contiguous.
pub(super) struct Binary {
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

impl Binary {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.a);
        read(self.b);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        let mine = share.split(self.walk.count(), GRAIN);
        // SAFETY: the walk's offsets lie within a and b, and its count is y's; the members' parts do not overlap.
        unsafe {
            match self.dtype {
                DType::I64 => self.integers(
                    context,
                    mine,
                    [i64::wrapping_add, i64::wrapping_sub, i64::wrapping_mul, i64::wrapping_div],
                    0,
                ),
                DType::I32 => self.integers(
                    context,
                    mine,
                    [i32::wrapping_add, i32::wrapping_sub, i32::wrapping_mul, i32::wrapping_div],
                    0,
                ),
                DType::U8 => self.integers(
                    context,
                    mine,
                    [u8::wrapping_add, u8::wrapping_sub, u8::wrapping_mul, u8::wrapping_div],
                    0,
                ),
                _ => {
                    let (a, b, y) =
                        (context.get::<f32>(self.a), context.get::<f32>(self.b), context.get_mut::<f32>(self.y));
                    self.walk.runs(mine, |at, count, [from_a, from_b], [step_a, step_b]| {
                        let kernel = BinaryF32 {
                            kind: self.kind,
                            a: a.add(from_a),
                            b: b.add(from_b),
                            y: y.add(at),
                            step_a,
                            step_b,
                            count,
                        };
                        context.isa.run(kernel);
                    });
                }
            }
        }
    }

    unsafe fn integers<T: Copy + PartialEq>(
        &self,
        context: &Context<'_>,
        mine: std::ops::Range<usize>,
        [add, sub, mul, div]: [fn(T, T) -> T; 4],
        zero: T,
    ) {
        let (a, b, y) = (context.get::<T>(self.a), context.get::<T>(self.b), context.get_mut::<T>(self.y));
        self.walk.runs(mine, |at, count, [from_a, from_b], [step_a, step_b]| {
            for i in 0..count {
                // SAFETY: as the caller's.
                let (a, b) = unsafe { (*a.add(from_a + i * step_a), *b.add(from_b + i * step_b)) };
                let value = match self.kind {
                    BinaryKind::Add => add(a, b),
                    BinaryKind::Sub => sub(a, b),
                    BinaryKind::Mul => mul(a, b),
                    BinaryKind::Div if b == zero => {
                        context.failure.note((at + i) / self.per_row, self.node, Fault::Division);
                        zero
                    }
                    BinaryKind::Div => div(a, b),
                };
                // SAFETY: as the caller's.
                unsafe { y.add(at + i).write(value) };
            }
        });
    }
}

/// Demands: `y` is valid for `count`, `a` and `b` for `count` elements `step_*` apart.
struct BinaryF32 {
    kind: BinaryKind,
    a: *const f32,
    b: *const f32,
    y: *mut f32,
    step_a: usize,
    step_b: usize,
    count: usize,
}

impl Kernel for BinaryF32 {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            match self.kind {
                BinaryKind::Add => self.each(|a, b| a + b),
                BinaryKind::Sub => self.each(|a, b| a - b),
                BinaryKind::Mul => self.each(|a, b| a * b),
                BinaryKind::Div => self.each(|a, b| a / b),
            }
        }
    }
}

impl BinaryF32 {
    #[inline(always)]
    unsafe fn each(&self, f: impl Fn(f32, f32) -> f32) {
        // SAFETY: as the struct demands.
        unsafe { zip((self.a, self.step_a), (self.b, self.step_b), self.y, self.count, f) }
    }
}
