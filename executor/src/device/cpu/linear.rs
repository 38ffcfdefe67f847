//! Matrix products as steps.

use std::ops::Range;

use genie_graph::{DType, LinearLayout};
use half::{bf16, f16};

use super::axpy::{InOut, PANEL};
use super::dot::OutIn;
use super::lanes::{Element, Factor};
use super::plan::V;
use super::step::Context;
use super::team::Share;

/// Output columns that members take as one: the outputs of a group share no cache line with others', and are whole tiles.
const GRAIN: usize = 16;

/// `count` products of x `[rows, k]` (of type [`Linear::activations`]) with w (`[n, k]` or `[k, n]`) into y f32 `[rows, n]`; with
/// `count` over 1, x, y and (if `w_step` is not 0) w go on to the next matrix each time.
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
    /// What activations are converted to before they are multiplied: f32, but bf16 with rows of bf16, whose products machines
    /// have instructions for, two at a time. It is so on all machines and for any number of rows, so that a prompt that is
    /// replayed gives the bits that decoding gave, and machines differ in the order of sums only.
    pub(super) fn activations(layout: LinearLayout, w_type: DType) -> DType {
        match (layout, w_type) {
            (LinearLayout::OutIn, DType::BF16) => DType::BF16,
            _ => DType::F32,
        }
    }

    /// Bytes of working space that a member needs for a copy of a part of w; 0 where there is no use for one.
    pub(super) fn panel_bytes(layout: LinearLayout, rows: usize) -> usize {
        match layout {
            LinearLayout::InOut if rows > 1 => PANEL * size_of::<f32>(),
            _ => 0,
        }
    }

    pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
        [Some(self.x), Some(self.w), self.bias, self.residual].into_iter().flatten().for_each(read);
        [Some(self.y), self.panel].into_iter().flatten().for_each(write);
    }

    pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's; `w_type` is the type of `w`, and x has the type that goes with it.
        unsafe {
            match (self.layout, self.w_type) {
                (LinearLayout::OutIn, DType::F16) => self.out_in::<f16, f32>(context, share),
                (LinearLayout::OutIn, DType::BF16) => self.out_in::<bf16, bf16>(context, share),
                (LinearLayout::OutIn, _) => self.out_in::<f32, f32>(context, share),
                (LinearLayout::InOut, DType::F16) => self.in_out::<f16>(context, share),
                (LinearLayout::InOut, DType::BF16) => self.in_out::<bf16>(context, share),
                (LinearLayout::InOut, _) => self.in_out::<f32>(context, share),
            }
        }
    }

    unsafe fn out_in<W: Factor<X>, X: 'static>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        self.each(share, |product, range| unsafe {
            context.isa.run(self.operands::<W, X>(context, product, range));
        });
    }

    unsafe fn in_out<W: Element>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        self.each(share, |product, range| unsafe {
            let operands = self.operands::<W, f32>(context, product, range);
            let OutIn { x, w, bias, residual, y, rows, k, n, range } = operands;
            let panel = self.panel(context, share);
            context.isa.run(InOut { x, w, bias, residual, y, rows, k, n, range, panel });
        });
    }

    /// Calls `f` with each product that falls to this member and the outputs of it that do: members share the columns of all
    /// products together.
    fn each(&self, share: Share, f: impl Fn(usize, Range<usize>)) {
        let groups = self.n.div_ceil(GRAIN);
        let mine = share.split(groups * self.count, 1);
        let mut at = mine.start;
        while at < mine.end {
            let (product, group) = (at / groups, at % groups);
            let taken = (groups - group).min(mine.end - at);
            f(product, group * GRAIN..((group + taken) * GRAIN).min(self.n));
            at += taken;
        }
    }

    /// Where the operands of a product lie (how `w` is laid out is the kernel's business).
    ///
    /// # Safety
    /// The values have the sizes that the planner took from the graph, w and x elements of these types.
    unsafe fn operands<W, X>(&self, context: &Context<'_>, product: usize, range: Range<usize>) -> OutIn<W, X> {
        let Self { rows, k, n, .. } = *self;
        // SAFETY: as the caller's; `product` is below `count`.
        unsafe {
            OutIn {
                x: context.get::<X>(self.x).add(product * rows * k),
                w: context.get::<W>(self.w).add(product * self.w_step),
                bias: context.get_or_null(self.bias),
                residual: context.get_or_null(self.residual),
                y: context.get_mut::<f32>(self.y).add(product * rows * n),
                rows,
                k,
                n,
                range,
            }
        }
    }

    /// This member's working space, or null.
    fn panel(&self, context: &Context<'_>, share: Share) -> *mut f32 {
        let bytes = Self::panel_bytes(self.layout, self.rows);
        self.panel.map_or(std::ptr::null_mut(), |panel| {
            // SAFETY: the planner gave each member so many bytes.
            unsafe { context.get_mut::<u8>(panel).add(share.index * bytes).cast() }
        })
    }
}
