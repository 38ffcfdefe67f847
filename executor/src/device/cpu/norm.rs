//! Normalisations over an axis.

use super::dot::dots;
use super::lanes::{Kernel, Lanes};
use super::math;
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Root mean square norm of f32 `[rows, width]`, weight f32 `[width]`.
pub(super) struct RmsNorm {
    pub(super) x: V,
    pub(super) weight: V,
    pub(super) y: V,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) eps: f32,
}

impl RmsNorm {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        read(self.weight);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for row in share.split(self.rows, 1) {
            let at = row * self.width;
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                context.isa.run(RmsRow {
                    x: context.get::<f32>(self.x).add(at),
                    weight: context.get(self.weight),
                    y: context.get_mut::<f32>(self.y).add(at),
                    width: self.width,
                    eps: self.eps,
                });
            }
        }
    }
}

struct RmsRow {
    x: *const f32,
    weight: *const f32,
    y: *mut f32,
    width: usize,
    eps: f32,
}

impl Kernel for RmsRow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: the pointers are valid for `width`.
        unsafe {
            let [[squares]] = dots::<S, f32, f32, 1, 1, false>(self.x, 0, self.x, 0, self.width);
            let factor = 1.0 / (squares / self.width as f32 + self.eps).sqrt();
            for i in 0..self.width {
                *self.y.add(i) = *self.x.add(i) * factor * *self.weight.add(i);
            }
        }
    }
}

/// Layer norm of f32 `[rows, width]`, weight and bias f32 `[width]`.
pub(super) struct LayerNorm {
    pub(super) x: V,
    pub(super) weight: V,
    pub(super) bias: V,
    pub(super) y: V,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) eps: f32,
}

impl LayerNorm {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [self.x, self.weight, self.bias].into_iter().for_each(read);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for row in share.split(self.rows, 1) {
            let at = row * self.width;
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                context.isa.run(LayerRow {
                    x: context.get::<f32>(self.x).add(at),
                    weight: context.get(self.weight),
                    bias: context.get(self.bias),
                    y: context.get_mut::<f32>(self.y).add(at),
                    width: self.width,
                    eps: self.eps,
                });
            }
        }
    }
}

struct LayerRow {
    x: *const f32,
    weight: *const f32,
    bias: *const f32,
    y: *mut f32,
    width: usize,
    eps: f32,
}

impl Kernel for LayerRow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        let Self { x, y, width, .. } = self;
        // SAFETY: the pointers are valid for `width`.
        unsafe {
            let mean = sum::<S>(x, width) / width as f32;
            // In two passes: a difference of squares would lose the digits of a small variance.
            for i in 0..width {
                *y.add(i) = *x.add(i) - mean;
            }
            let [[squares]] = dots::<S, f32, f32, 1, 1, false>(y, 0, y, 0, width);
            let factor = 1.0 / (squares / width as f32 + self.eps).sqrt();
            for i in 0..width {
                *y.add(i) = *y.add(i) * factor * *self.weight.add(i) + *self.bias.add(i);
            }
        }
    }
}

/// # Safety
/// `x` is valid for `count`, and the machine has `S`.
#[inline(always)]
pub(super) unsafe fn sum<S: Lanes>(x: *const f32, count: usize) -> f32 {
    // SAFETY: `i` stays below `count`.
    unsafe {
        let one = S::splat(1.0);
        let mut acc = S::splat(0.0);
        let whole = count - count % S::N;
        let mut i = 0;
        while i < whole {
            acc = S::fma(S::load(x.add(i)), one, acc);
            i += S::N;
        }
        if i < count {
            acc = S::fma(S::load_part(x.add(i), count - i), one, acc);
        }
        S::sum(acc)
    }
}

/// Softmax of f32 `[outer, length, inner]` over the middle.
pub(super) struct Softmax {
    pub(super) x: V,
    pub(super) y: V,
    pub(super) outer: usize,
    pub(super) length: usize,
    pub(super) inner: usize,
}

impl Softmax {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for row in share.split(self.outer * self.inner, 1) {
            let at = row / self.inner * self.length * self.inner + row % self.inner;
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                context.isa.run(SoftmaxRow {
                    x: context.get::<f32>(self.x).add(at),
                    y: context.get_mut::<f32>(self.y).add(at),
                    length: self.length,
                    step: self.inner,
                });
            }
        }
    }
}

struct SoftmaxRow {
    x: *const f32,
    y: *mut f32,
    length: usize,
    step: usize,
}

impl Kernel for SoftmaxRow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: the pointers are valid for `length` elements `step` apart.
        unsafe {
            if self.step == 1 {
                self.row::<S>(1);
            } else {
                self.row::<S>(self.step);
            }
        }
    }
}

impl SoftmaxRow {
    #[inline(always)]
    unsafe fn row<S: Lanes>(&self, step: usize) {
        // SAFETY: as the caller's.
        unsafe {
            let mut max = f32::NEG_INFINITY;
            for i in 0..self.length {
                let x = *self.x.add(i * step);
                max = if x > max { x } else { max };
            }
            for i in 0..self.length {
                *self.y.add(i * step) = math::exp(*self.x.add(i * step) - max);
            }
            let total = if step == 1 {
                sum::<S>(self.y, self.length)
            } else {
                (0..self.length).map(|i| *self.y.add(i * step)).sum()
            };
            let factor = 1.0 / total;
            for i in 0..self.length {
                *self.y.add(i * step) *= factor;
            }
        }
    }
}

/// Batch norm of f32 `[images, channels, inner]` by f32 `[channels]` each.
pub(super) struct BatchNorm {
    pub(super) x: V,
    pub(super) weight: V,
    pub(super) bias: V,
    pub(super) mean: V,
    pub(super) variance: V,
    pub(super) y: V,
    pub(super) images: usize,
    pub(super) channels: usize,
    pub(super) inner: usize,
    pub(super) eps: f32,
}

impl BatchNorm {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [self.x, self.weight, self.bias, self.mean, self.variance].into_iter().for_each(read);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for at in share.split(self.images * self.channels, 1) {
            let channel = at % self.channels;
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                let of = |v: V| *context.get::<f32>(v).add(channel);
                context.isa.run(Shifted {
                    x: context.get::<f32>(self.x).add(at * self.inner),
                    y: context.get_mut::<f32>(self.y).add(at * self.inner),
                    count: self.inner,
                    // The difference first: a mean far from 0 would cancel the digits of what it is folded into.
                    mean: of(self.mean),
                    factor: of(self.weight) / (of(self.variance) + self.eps).sqrt(),
                    bias: of(self.bias),
                });
            }
        }
    }
}

/// `y = (x - mean) * factor + bias`. Demands: x and y are valid for `count`.
struct Shifted {
    x: *const f32,
    y: *mut f32,
    count: usize,
    mean: f32,
    factor: f32,
    bias: f32,
}

impl Kernel for Shifted {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        for i in 0..self.count {
            // SAFETY: as the struct demands.
            unsafe { *self.y.add(i) = (*self.x.add(i) - self.mean) * self.factor + self.bias };
        }
    }
}
