//! Reductions and argmax.

use genie_graph::{DType, ReduceKind};

use super::convert::Flag;
use super::plan::V;
use super::step::Context;
use super::strided::Walk;
use super::team::Share;

/// `y[i] = kind over j of x[outer(i) + inner(j)]`: `outer` walks the axes that stay, `inner` those that go. f32, i64, i32, u8, bool.
pub(super) struct Reduce {
    pub(super) kind: ReduceKind,
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) outer: Walk<1>,
    pub(super) inner: Walk<1>,
}

impl Reduce {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of x and y.
        unsafe {
            match self.dtype {
                DType::I64 => self.integers::<i64>(context, share, i64::wrapping_add, i64::wrapping_mul, 0, 1),
                DType::I32 => self.integers::<i32>(context, share, i32::wrapping_add, i32::wrapping_mul, 0, 1),
                DType::U8 => self.integers::<u8>(context, share, u8::wrapping_add, u8::wrapping_mul, 0, 1),
                // The verifier takes the largest and the smallest of these only.
                DType::Bool if self.kind == ReduceKind::Min => self.flags(context, share, true, |a, x| a & x),
                DType::Bool => self.flags(context, share, false, |a, x| a | x),
                _ => self.floats(context, share),
            }
        }
    }

    unsafe fn floats(&self, context: &Context<'_>, share: Share) {
        let count = self.inner.count() as f64;
        // SAFETY: as the caller's.
        unsafe {
            match self.kind {
                // Wider than the f32 that is asked for: long sums need not be cut into pieces to stay exact.
                ReduceKind::Sum => self.fold(context, share, 0.0, |a, x: f32| a + f64::from(x), |a| a as f32),
                ReduceKind::Mean => {
                    self.fold(context, share, 0.0, |a, x: f32| a + f64::from(x), |a| (a / count) as f32)
                }
                ReduceKind::Prod => self.fold(context, share, 1.0, |a, x: f32| a * f64::from(x), |a| a as f32),
                ReduceKind::Max => self.pick(context, share, |x: f32, a| a < x || x.is_nan()),
                ReduceKind::Min => self.pick(context, share, |x: f32, a| a > x || x.is_nan()),
            }
        }
    }

    unsafe fn integers<T: Copy + Ord>(
        &self,
        context: &Context<'_>,
        share: Share,
        add: fn(T, T) -> T,
        multiply: fn(T, T) -> T,
        zero: T,
        one: T,
    ) {
        // SAFETY: as the caller's.
        unsafe {
            match self.kind {
                // The verifier takes means of floats only.
                ReduceKind::Sum | ReduceKind::Mean => self.fold(context, share, zero, add, |a| a),
                ReduceKind::Prod => self.fold(context, share, one, multiply, |a| a),
                ReduceKind::Max => self.pick(context, share, |x: T, a| x > a),
                ReduceKind::Min => self.pick(context, share, |x: T, a| x < a),
            }
        }
    }

    unsafe fn flags(&self, context: &Context<'_>, share: Share, init: bool, f: fn(bool, bool) -> bool) {
        let y = context.get_mut::<bool>(self.y);
        // SAFETY: as the caller's.
        unsafe { self.each(context, share, init, |a, x: Flag| f(a, x.holds()), |i, a| y.add(i).write(a)) }
    }

    /// Keeps the first element, then each that is `better`. A NaN, once kept, is compared with nothing.
    unsafe fn pick<T: Copy + PartialOrd>(&self, context: &Context<'_>, share: Share, better: impl Fn(T, T) -> bool) {
        let keep = |a: Option<T>, x: T| match a {
            Some(a) if a.partial_cmp(&a).is_none() || !better(x, a) => Some(a),
            _ => Some(x),
        };
        let y = context.get_mut::<T>(self.y);
        // SAFETY: as the caller's; no axis is empty, so something was kept.
        unsafe {
            self.each(context, share, None, keep, |i, a| {
                if let Some(a) = a {
                    y.add(i).write(a);
                }
            });
        }
    }

    unsafe fn fold<T: Copy, A: Copy>(
        &self,
        context: &Context<'_>,
        share: Share,
        init: A,
        f: impl Fn(A, T) -> A,
        finish: impl Fn(A) -> T,
    ) {
        let y = context.get_mut::<T>(self.y);
        // SAFETY: as the caller's.
        unsafe { self.each(context, share, init, f, |i, a| y.add(i).write(finish(a))) }
    }

    unsafe fn each<T: Copy, A: Copy>(
        &self,
        context: &Context<'_>,
        share: Share,
        init: A,
        f: impl Fn(A, T) -> A,
        write: impl Fn(usize, A),
    ) {
        let x = context.get::<T>(self.x);
        let reduced = self.inner.count();
        self.outer.runs(share.split(self.outer.count(), 1), |at, count, [from], [step]| {
            for i in 0..count {
                let mut a = init;
                self.inner.runs(0..reduced, |_, count, [offset], [inner_step]| {
                    for j in 0..count {
                        // SAFETY: the walks' offsets lie within x.
                        a = f(a, unsafe { *x.add(from + i * step + offset + j * inner_step) });
                    }
                });
                write(at + i, a);
            }
        });
    }
}

/// Index of the first largest of x `[outer, length, inner]` along the middle -> i32 `[outer, inner]`. f32, i64, i32, u8.
pub(super) struct ArgMax {
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) outer: usize,
    pub(super) length: usize,
    pub(super) inner: usize,
}

impl ArgMax {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of x.
        unsafe {
            match self.dtype {
                DType::I64 => self.find::<i64>(context, share),
                DType::I32 => self.find::<i32>(context, share),
                DType::U8 => self.find::<u8>(context, share),
                _ => self.find::<f32>(context, share),
            }
        }
    }

    unsafe fn find<T: Copy + PartialOrd>(&self, context: &Context<'_>, share: Share) {
        for row in share.split(self.outer * self.inner, 1) {
            // SAFETY: x has `outer * length * inner` elements, y `outer * inner`.
            unsafe {
                let x = context.get::<T>(self.x).add(row / self.inner * self.length * self.inner + row % self.inner);
                let mut best: Option<(usize, T)> = None;
                for i in 0..self.length {
                    let value = *x.add(i * self.inner);
                    // A number that does not equal itself is NaN, and never the largest.
                    let is_number = value.partial_cmp(&value).is_some();
                    if is_number && best.is_none_or(|(_, b)| value > b) {
                        best = Some((i, value));
                    }
                }
                context.get_mut::<i32>(self.y).add(row).write(best.map_or(0, |(i, _)| i as i32));
            }
        }
    }
}
