//! Matrix products as steps.

use std::ops::Range;

use genie_graph::{DType, LinearLayout};
use half::{bf16, f16};

use super::axpy::{InOut, PANEL};
use super::dot::{OutIn, TILE};
use super::lanes::Element;
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Output columns that members take as one: the outputs of a group share no cache line with others', and are whole tiles.
const GRAIN: usize = 16;

/// `count` products of x f32 `[rows, k]` with w (`[n, k]` or `[k, n]`) into y f32 `[rows, n]`; with `count` over 1, x, y and (if
/// `w_step` is not 0) w go on to the next matrix each time.
pub(super) struct Linear {
    pub(super) x: V,
    pub(super) w: V,
    pub(super) w_type: DType,
    pub(super) layout: LinearLayout,
    /// f32 `[n]`.
    pub(super) bias: Option<V>,
    /// f32 like y; added last.
    pub(super) residual: Option<V>,
    pub(super) y: V,
    /// [`Linear::panel_bytes`] for each member.
    pub(super) panel: Option<V>,
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) count: usize,
    pub(super) w_step: usize,
}

impl Linear {
    /// Bytes of working space that a member needs for copies of weights; 0 where there is no use for them.
    pub(super) fn panel_bytes(layout: LinearLayout, w_type: DType, rows: usize, k: usize) -> Option<usize> {
        let elements = match layout {
            _ if rows == 1 => 0,
            LinearLayout::OutIn if w_type == DType::F32 => 0,
            LinearLayout::OutIn => k.checked_mul(TILE)?,
            LinearLayout::InOut => PANEL,
        };
        elements.checked_mul(size_of::<f32>())?.checked_next_multiple_of(64)
    }

    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [Some(self.x), Some(self.w), self.bias, self.residual].into_iter().flatten().for_each(read);
        [Some(self.y), self.panel].into_iter().flatten().for_each(write);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `w_type` is the type of `w`.
        unsafe {
            match self.w_type {
                DType::F16 => self.with_weights::<f16>(context, share),
                DType::BF16 => self.with_weights::<bf16>(context, share),
                _ => self.with_weights::<f32>(context, share),
            }
        }
    }

    unsafe fn with_weights<E: Element>(&self, context: &Context<'_>, share: Share) {
        // Members share the columns of all products together.
        let groups = self.n.div_ceil(GRAIN);
        let mine = share.split(groups * self.count, 1);
        let mut at = mine.start;
        while at < mine.end {
            let (product, group) = (at / groups, at % groups);
            let taken = (groups - group).min(mine.end - at);
            let range = group * GRAIN..((group + taken) * GRAIN).min(self.n);
            // SAFETY: as the caller's; `product` is below `count`.
            unsafe { self.product::<E>(context, share, product, range) };
            at += taken;
        }
    }

    unsafe fn product<E: Element>(&self, context: &Context<'_>, share: Share, product: usize, range: Range<usize>) {
        let Self { rows, k, n, .. } = *self;
        // SAFETY: the values have the sizes that the planner took from the graph, and members' ranges do not overlap.
        unsafe {
            let x = context.get::<f32>(self.x).add(product * rows * k);
            let w = context.get::<E>(self.w).add(product * self.w_step);
            let y = context.get_mut::<f32>(self.y).add(product * rows * n);
            let bias = context.get_or_null::<f32>(self.bias);
            let residual = context.get_or_null::<f32>(self.residual);
            let panel = self.panel.map_or(std::ptr::null_mut(), |panel| {
                let bytes = Self::panel_bytes(self.layout, self.w_type, rows, k).unwrap_or_default();
                context.get_mut::<u8>(panel).add(share.index * bytes).cast::<f32>()
            });
            match self.layout {
                LinearLayout::OutIn => {
                    context.isa.run(OutIn { x, w, bias, residual, y, rows, k, n, range, panel });
                }
                LinearLayout::InOut => {
                    context.isa.run(InOut { x, w, bias, residual, y, rows, k, n, range, panel });
                }
            }
        }
    }
}
