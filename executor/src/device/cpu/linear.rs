//! Matrix products as steps.

use std::ops::Range;

use genie_graph::{DType, LinearLayout, QuantFormat};
use half::{bf16, f16};

use super::axpy::InOut;
use super::dot::{LINE, OutIn, TILE};
use super::lanes::{Element, Factor};
use super::packed::{FEW_ROWS, OutInBlocks};
use super::panels::PANEL;
use super::plan::V;
use super::quant::{Blocks, Narrow};
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
    /// The blocks that w is stored in, where its numbers, of `w_type`, are to be worked out from such. [`LinearLayout::OutIn`] only.
    pub(super) packed: Option<QuantFormat>,
    /// f32 `[n]`.
    pub(super) bias: Option<V>,
    /// f32 like y; added last.
    pub(super) residual: Option<V>,
    pub(super) y: V,
    /// [`Linear::panel_bytes`] for each member, each member's from a multiple of a cache line.
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

    /// Bytes of working space that a member needs for a copy of a part of w; 0 where there is no use for one, `None` where
    /// they cannot be counted.
    pub(super) fn panel_bytes(&self) -> Option<usize> {
        match self.layout {
            LinearLayout::InOut if self.rows > 1 => Some(PANEL * size_of::<f32>()),
            LinearLayout::OutIn if self.packed.is_some() && !self.in_registers() => {
                let bytes = self.k.checked_mul(TILE)?.checked_mul(self.w_type.bytes() as usize)?;
                bytes.checked_next_multiple_of(LINE)
            }
            _ => Some(0),
        }
    }

    /// Whether the numbers of a packed w go into the product without being stored first.
    fn in_registers(&self) -> bool {
        self.rows <= FEW_ROWS && self.w_type == DType::F32
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

    unsafe fn out_in<W: Factor<X> + Narrow, X: 'static>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        self.each(share, |product, range| unsafe {
            match self.packed {
                Some(format) if self.in_registers() => {
                    let product = OutIn { w: std::ptr::null(), ..self.operands::<f32, f32>(context, product, range) };
                    context.isa.run(OutInBlocks { format, blocks: context.get(self.w), product });
                }
                Some(format) => self.unpacking::<W, X>(context, share, format, range),
                None => context.isa.run(self.operands::<W, X>(context, product, range)),
            }
        });
    }

    /// The outputs `range` of a weight in blocks: a tile of its rows is worked out at a time, and then serves all rows of x.
    unsafe fn unpacking<W: Factor<X> + Narrow, X: 'static>(
        &self,
        context: &Context<'_>,
        share: Share,
        format: QuantFormat,
        range: Range<usize>,
    ) {
        let blocks = self.k / QuantFormat::BLOCK as usize;
        let panel = self.panel(context, share).cast::<W>();
        for n in range.clone().step_by(TILE) {
            let taken = TILE.min(range.end - n);
            // SAFETY: as the caller's; w has `blocks` blocks for each of its n rows, and the panel, this member's own, has room
            // for a tile. A pointer that is null stays so, for it is offset only where there is something.
            unsafe {
                let x = context.get::<u8>(self.w).add(n * blocks * format.block_bytes() as usize);
                context.isa.run(Blocks { format, x, y: panel, count: taken * blocks });
                let whole = self.operands::<W, X>(context, 0, 0..taken);
                let at = |p: *const f32| if p.is_null() { p } else { p.add(n) };
                context.isa.run(OutIn {
                    w: panel.cast_const(),
                    bias: at(whole.bias),
                    residual: at(whole.residual),
                    y: whole.y.add(n),
                    streamed: false,
                    ..whole
                });
            }
        }
    }

    unsafe fn in_out<W: Element>(&self, context: &Context<'_>, share: Share) {
        // SAFETY: as the caller's.
        self.each(share, |product, range| unsafe {
            let operands = self.operands::<W, f32>(context, product, range);
            let OutIn { x, w, bias, residual, y, rows, k, n, range, .. } = operands;
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
                streamed: true,
            }
        }
    }

    /// This member's working space, or null.
    fn panel(&self, context: &Context<'_>, share: Share) -> *mut f32 {
        let bytes = self.panel_bytes().unwrap_or_default();
        self.panel.map_or(std::ptr::null_mut(), |panel| {
            // SAFETY: the planner gave each member so many bytes.
            unsafe { context.get_mut::<u8>(panel).add(share.index * bytes).cast() }
        })
    }
}
