//! Rotary position embedding.

use genie_graph::RopeStyle;

use super::lanes::{Kernel, Lanes};
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// The cosines and sines of a step's positions, computed once for all layers: `[tokens, 2, half]`.
pub(super) struct RopeTable {
    /// i32 `[tokens]`.
    pub(super) positions: V,
    /// f32 `[half]`.
    pub(super) frequencies: V,
    pub(super) table: V,
    pub(super) tokens: usize,
    pub(super) half: usize,
}

impl RopeTable {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.positions);
        read(self.frequencies);
        write(self.table);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for token in share.split(self.tokens, 1) {
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                let position = *context.get::<i32>(self.positions).add(token) as f32;
                let frequencies = context.get::<f32>(self.frequencies);
                let cos = context.get_mut::<f32>(self.table).add(token * 2 * self.half);
                for i in 0..self.half {
                    let (s, c) = (position * *frequencies.add(i)).sin_cos();
                    *cos.add(i) = c;
                    *cos.add(self.half + i) = s;
                }
            }
        }
    }
}

/// Turns the pairs of x f32 `[tokens, heads, 2 * half]` by a [`RopeTable`]'s angles.
pub(super) struct Rope {
    pub(super) x: V,
    pub(super) table: V,
    pub(super) y: V,
    pub(super) tokens: usize,
    pub(super) heads: usize,
    pub(super) half: usize,
    pub(super) style: RopeStyle,
}

impl Rope {
    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        read(self.x);
        read(self.table);
        write(self.y);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        for head in share.split(self.tokens * self.heads, 1) {
            // SAFETY: the values have the sizes that the planner took from the graph.
            unsafe {
                context.isa.run(Turn {
                    x: context.get::<f32>(self.x).add(head * 2 * self.half),
                    y: context.get_mut::<f32>(self.y).add(head * 2 * self.half),
                    cos: context.get::<f32>(self.table).add(head / self.heads * 2 * self.half),
                    half: self.half,
                    style: self.style,
                });
            }
        }
    }
}

/// Demands: x, y and cos (with the sines after it) are valid for `2 * half`.
struct Turn {
    x: *const f32,
    y: *mut f32,
    cos: *const f32,
    half: usize,
    style: RopeStyle,
}

impl Kernel for Turn {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) {
        // SAFETY: as the struct demands.
        unsafe {
            match self.style {
                RopeStyle::Half => self.pairs(1, self.half),
                RopeStyle::Interleaved => self.pairs(2, 1),
            }
        }
    }
}

impl Turn {
    /// Pair i is elements `i * step` and `i * step + apart`.
    #[inline(always)]
    unsafe fn pairs(&self, step: usize, apart: usize) {
        let Self { x, y, cos, half, .. } = *self;
        for i in 0..half {
            // SAFETY: as the struct demands.
            unsafe {
                let (a, b) = (*x.add(i * step), *x.add(i * step + apart));
                let (c, s) = (*cos.add(i), *cos.add(half + i));
                *y.add(i * step) = a * c - b * s;
                *y.add(i * step + apart) = b * c + a * s;
            }
        }
    }
}
