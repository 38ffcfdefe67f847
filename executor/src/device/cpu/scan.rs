//! What is carried along an axis, and what is found along one.

use genie_graph::{ArgReduceKind, CumulativeKind, DType};

use super::convert::Flag;
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// A tensor `[outer, length, inner]` that is gone through along the middle.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) outer: usize,
    pub(super) length: usize,
    pub(super) inner: usize,
}

/// Rows beside each other that are gone through at once: as many as a cache line's worth, so that none of it is fetched twice.
const BESIDE: usize = 16;

impl Rows {
    /// Calls `f(number of the first row, its first element, rows beside each other)` for this member's rows.
    fn each(&self, share: Share, mut f: impl FnMut(usize, usize, usize)) {
        let groups = self.inner.div_ceil(BESIDE);
        for group in share.split(self.outer * groups, 1) {
            let (outer, first) = (group / groups, group % groups * BESIDE);
            f(outer * self.inner + first, outer * self.length * self.inner + first, BESIDE.min(self.inner - first));
        }
    }
}

/// `y[i] = kind over x[..=i]` along the middle. f32, i64, i32, u8.
pub(super) struct Scan {
    pub(super) kind: CumulativeKind,
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) rows: Rows,
}

impl Scan {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `dtype` is the type of x and y.
        unsafe {
            match (self.dtype, self.kind) {
                (DType::I64, _) => self.integers(context, share, i64::wrapping_add, i64::wrapping_mul),
                (DType::I32, _) => self.integers(context, share, i32::wrapping_add, i32::wrapping_mul),
                (DType::U8, _) => self.integers(context, share, u8::wrapping_add, u8::wrapping_mul),
                // Wider than the f32 that is asked for, as sums over all elements are.
                (_, CumulativeKind::Sum) => self.carry(context, share, f64::from, |a, x: f32| a + f64::from(x), narrow),
                (_, CumulativeKind::Prod) => {
                    self.carry(context, share, f64::from, |a, x: f32| a * f64::from(x), narrow)
                }
                (_, CumulativeKind::Max) => {
                    self.carry(context, share, |x| x, |a: f32, x: f32| if a >= x || a.is_nan() { a } else { x }, |a| a)
                }
                (_, CumulativeKind::Min) => {
                    self.carry(context, share, |x| x, |a: f32, x: f32| if a <= x || a.is_nan() { a } else { x }, |a| a)
                }
            }
        }
    }

    unsafe fn integers<T: Copy + Ord + Default>(
        &self,
        context: &Context<'_>,
        share: Share,
        add: fn(T, T) -> T,
        multiply: fn(T, T) -> T,
    ) {
        // SAFETY: as the caller's.
        unsafe {
            match self.kind {
                CumulativeKind::Sum => self.carry(context, share, |x: T| x, add, |a| a),
                CumulativeKind::Prod => self.carry(context, share, |x: T| x, multiply, |a| a),
                CumulativeKind::Max => self.carry(context, share, |x: T| x, T::max, |a| a),
                CumulativeKind::Min => self.carry(context, share, |x: T| x, T::min, |a| a),
            }
        }
    }

    unsafe fn carry<T: Copy, A: Copy + Default>(
        &self,
        context: &Context<'_>,
        share: Share,
        start: impl Fn(T) -> A,
        step: impl Fn(A, T) -> A,
        finish: impl Fn(A) -> T,
    ) {
        let (x, y) = (context.get::<T>(self.x), context.get_mut::<T>(self.y));
        self.rows.each(share, |_, first, beside| {
            let mut carried = [A::default(); BESIDE];
            for i in 0..self.rows.length {
                let at = first + i * self.rows.inner;
                for (k, carried) in carried[..beside].iter_mut().enumerate() {
                    // SAFETY: x and y have `outer * length * inner` elements.
                    unsafe {
                        let x = *x.add(at + k);
                        *carried = if i == 0 { start(x) } else { step(*carried, x) };
                        y.add(at + k).write(finish(*carried));
                    }
                }
            }
        });
    }
}

fn narrow(x: f64) -> f32 {
    x as f32
}

/// Index of the first most extreme element along the middle -> i64 `[outer, inner]`. f32, i64, i32, u8, bool.
pub(super) struct Extreme {
    pub(super) kind: ArgReduceKind,
    pub(super) dtype: DType,
    pub(super) x: V,
    pub(super) y: V,
    pub(super) rows: Rows,
}

impl Extreme {
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
                DType::Bool => self.find::<Flag>(context, share),
                _ => self.find::<f32>(context, share),
            }
        }
    }

    unsafe fn find<T: Copy + PartialOrd>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        unsafe {
            match self.kind {
                ArgReduceKind::Max => self.first(context, share, |x: T, best| x > best),
                ArgReduceKind::Min => self.first(context, share, |x: T, best| x < best),
            }
        }
    }

    unsafe fn first<T: Copy + PartialOrd>(&self, context: &Context<'_>, share: Share, better: impl Fn(T, T) -> bool) {
        let (x, y) = (context.get::<T>(self.x), context.get_mut::<i64>(self.y));
        // A number that does not equal itself is NaN, and nothing is better.
        let is_nan = |x: T| x.partial_cmp(&x).is_none();
        self.rows.each(share, |row, first, beside| {
            // SAFETY: x has `outer * length * inner` elements, y `outer * inner`; no axis is empty.
            unsafe {
                let mut best: [T; BESIDE] = std::array::from_fn(|k| *x.add(first + k.min(beside - 1)));
                let mut found = [0_i64; BESIDE];
                for i in 1..self.rows.length {
                    let at = first + i * self.rows.inner;
                    for k in 0..beside {
                        let x = *x.add(at + k);
                        if better(x, best[k]) || (is_nan(x) && !is_nan(best[k])) {
                            (best[k], found[k]) = (x, i as i64);
                        }
                    }
                }
                y.add(row).copy_from_nonoverlapping(found.as_ptr(), beside);
            }
        });
    }
}
