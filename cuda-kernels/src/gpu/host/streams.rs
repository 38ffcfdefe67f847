//! What waits in the streams of a GPU that is this CPU.

use std::collections::VecDeque;

use genie_graph::DType;
use half::{bf16, f16};

use super::super::{Operands, Product, Stream, WeightLayout};
use crate::kernel::Launch;
use crate::view::{Address, View};

/// One thing to do.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Copy { to: Address, from: Address, bytes: usize },
    Fill { to: Address, byte: u8, bytes: usize },
    Launch(Box<Launch>),
    Multiply(Box<(Product, Operands)>),
    Allocate(Address),
    Free(Address),
    Record(u64),
    Wait(u64),
    Replay(u64),
}

/// The streams, by [`Stream`].
#[derive(Debug, Default)]
pub(super) struct Streams {
    waiting: [VecDeque<Op>; Stream::ALL.len()],
}

impl Streams {
    pub(super) fn push(&mut self, stream: Stream, op: Op) {
        self.waiting[stream as usize].push_back(op);
    }

    pub(super) fn pop(&mut self, stream: Stream) -> Option<Op> {
        self.waiting[stream as usize].pop_front()
    }

    pub(super) fn pop_last(&mut self, stream: Stream) -> Option<Op> {
        self.waiting[stream as usize].pop_back()
    }

    pub(super) fn is_empty(&self, stream: Stream) -> bool {
        self.waiting[stream as usize].is_empty()
    }

    /// The stream that has yet to come to this moment.
    pub(super) fn holds(&self, moment: u64) -> Option<Stream> {
        let has = |stream: &Stream| {
            self.waiting[*stream as usize].iter().any(|op| matches!(op, Op::Record(id) if *id == moment))
        };
        Stream::ALL.into_iter().find(has)
    }

    /// The moment that a stream's oldest thing waits for, if it has not passed.
    pub(super) fn blocked_by(&self, stream: Stream) -> Option<u64> {
        match self.waiting[stream as usize].front() {
            Some(Op::Wait(moment)) if self.holds(*moment).is_some() => Some(*moment),
            _ => None,
        }
    }

    /// Whether a graph waits to be replayed.
    pub(super) fn replays(&self, graph: u64) -> bool {
        self.waiting.iter().flatten().any(|op| matches!(op, Op::Replay(id) if *id == graph))
    }
}

/// The product, one element after another.
///
/// # Safety
/// The views are live, and nobody else uses `c`.
pub(super) unsafe fn multiply(product: &Product, operands: &Operands) {
    let Product { layout, m, n, k, batch, a_step, b_step, c_step, gelu, .. } = *product;
    let Operands { a, b, c, added, bias } = *operands;
    let place = |view: View, i: u64| view.at + i * view.dtype.bytes();
    // SAFETY: within the views, whose sizes the product was checked against.
    let get = |view: View, i: u64| unsafe { read(place(view, i) as *const u8, view.dtype) };
    for batch in 0..batch {
        for row in 0..m {
            for column in 0..n {
                let mut sum = 0.0_f32;
                for i in 0..k {
                    let at = match layout {
                        WeightLayout::OutIn => column * k + i,
                        WeightLayout::InOut => i * n + column,
                    };
                    sum += get(a, batch * a_step + row * k + i) * get(b, batch * b_step + at);
                }
                let at = batch * c_step + row * n + column;
                sum += added.map_or(0.0, |added| get(added, at)) + bias.map_or(0.0, |bias| get(bias, column));
                if gelu {
                    let tanh = (0.797_884_6 * (sum + 0.044_715 * sum * sum * sum)).tanh();
                    sum *= 0.5 * (1.0 + tanh);
                }
                // SAFETY: as above.
                unsafe { write(place(c, at) as *mut u8, c.dtype, sum) };
            }
        }
    }
}

/// # Safety
/// An element of `dtype` is there.
unsafe fn read(at: *const u8, dtype: DType) -> f32 {
    // SAFETY: as the caller has it.
    unsafe {
        match dtype {
            DType::F16 => at.cast::<f16>().read_unaligned().to_f32(),
            DType::BF16 => at.cast::<bf16>().read_unaligned().to_f32(),
            _ => at.cast::<f32>().read_unaligned(),
        }
    }
}

/// # Safety
/// An element of `dtype` fits there.
unsafe fn write(at: *mut u8, dtype: DType, value: f32) {
    // SAFETY: as the caller has it.
    unsafe {
        match dtype {
            DType::F16 => at.cast::<f16>().write_unaligned(f16::from_f32(value)),
            DType::BF16 => at.cast::<bf16>().write_unaligned(bf16::from_f32(value)),
            _ => at.cast::<f32>().write_unaligned(value),
        }
    }
}
