//! The steps that plans are made of.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use genie_graph::NodeId;

use super::along::{ScatterAlong, TakeAlong};
use super::attention::{Append, Attend};
use super::binary::Combine;
use super::compare::{Choose, Compare};
use super::conv::Conv2d;
use super::convert::Convert;
use super::elementwise::{Binary, Unary};
use super::fill::Fill;
use super::gather::Gather;
use super::lanes::Isa;
use super::linear::Linear;
use super::norm::{BatchNorm, LayerNorm, RmsNorm, Softmax};
use super::plan::{Place, V, Value};
use super::pool::Pool;
use super::quant::Dequantize;
use super::random::Random;
use super::reduce::{ArgMax, Reduce};
use super::rope::{Rope, RopeTable};
use super::sample::Sample;
use super::scan::{Extreme, Scan};
use super::scatter::Scatter;
use super::sort::Order;
use super::strided::StridedCopy;
use super::team::Share;
use super::unary::Map;
use crate::device::DeviceError;

macro_rules! steps {
    ($($kind:ident),* $(,)?) => {
        /// One step: every member executes it, each for its share.
        pub(super) enum Step {
            $($kind($kind),)*
        }

        impl Step {
            /// Tells which values it reads and which it writes.
            pub(super) fn touches(&self, read: &mut dyn FnMut(V), write: &mut dyn FnMut(V)) {
                match self {
                    $(Self::$kind(step) => step.touches(read, write),)*
                }
            }

            /// Does this member's share.
            ///
            /// # Safety
            /// The places in `context` are those of the step's plan and hold its values; the steps before it that it depends
            /// on are done; and all members execute it with the same context.
            #[inline]
            pub(super) unsafe fn execute(&self, context: &Context<'_>, share: Share) {
                // SAFETY: as the caller's.
                unsafe {
                    match self {
                        $(Self::$kind(step) => step.execute(context, share),)*
                    }
                }
            }
        }

        $(impl From<$kind> for Step {
            fn from(step: $kind) -> Self {
                Self::$kind(step)
            }
        })*
    };
}

steps! {
    Linear, Convert, Unary, Binary, Gather, RmsNorm, LayerNorm, Softmax, RopeTable, Rope, Append, Attend, StridedCopy, Reduce,
    ArgMax, Sample, Dequantize, Conv2d, BatchNorm, Pool, Scatter, Map, Combine, Compare, Choose, Scan, Extreme, Order, TakeAlong,
    ScatterAlong, Random, Fill,
}

/// A cache in a run.
#[derive(Clone, Copy)]
pub(super) struct CacheView {
    /// Index of its first block's address in [`Context::blocks`].
    pub(super) first: usize,
    /// Tokens in it before this step.
    pub(super) len: usize,
}

/// What the steps of one run work on.
pub(super) struct Context<'a> {
    pub(super) isa: Isa,
    pub(super) values: &'a [Value],
    pub(super) arena: *mut u8,
    pub(super) constants: *const u8,
    pub(super) weights: &'a [*const u8],
    /// Where the values lie that a run says it of.
    pub(super) lent: &'a [*mut u8],
    pub(super) blocks: &'a [*mut u8],
    /// `[batch row][cache input]`
    pub(super) caches: &'a [CacheView],
    /// Cache inputs of the program.
    pub(super) cache_inputs: usize,
    pub(super) failure: &'a Failure,
    /// Working space of each member beyond the arena.
    pub(super) members: &'a [Mutex<MemberSpace>],
}

// SAFETY: the pointers are to memory that the run holds for as long as the context lives; which member touches which part of it
// when is the plan's business (shares do not overlap, members meet between dependent steps).
unsafe impl Sync for Context<'_> {}

/// Working space of one member that keeps its allocations between runs.
#[derive(Default)]
pub(super) struct MemberSpace {
    pub(super) candidates: Vec<genie_graph::Candidate>,
}

impl Context<'_> {
    /// The address of a value.
    #[inline]
    pub(super) fn get<T>(&self, v: V) -> *const T {
        match self.values[v.0].place {
            // SAFETY: the planner keeps offsets within arena and constants.
            Place::Arena(offset) => unsafe { self.arena.add(offset) }.cast_const().cast(),
            Place::Lent(i) => self.lent[i].cast_const().cast(),
            // SAFETY: as above.
            Place::Constant(offset) => unsafe { self.constants.add(offset) }.cast(),
            Place::Weight(i) => self.weights[i].cast(),
            Place::Cache(_) => std::ptr::null(),
        }
    }

    /// The address of a value that a step computes, to be written.
    #[inline]
    pub(super) fn get_mut<T>(&self, v: V) -> *mut T {
        match self.values[v.0].place {
            // SAFETY: the planner keeps offsets within the arena.
            Place::Arena(offset) => unsafe { self.arena.add(offset) }.cast(),
            Place::Lent(i) => self.lent[i].cast(),
            _ => std::ptr::null_mut(),
        }
    }

    /// The bytes of a value; none of a cache.
    ///
    /// # Safety
    /// No step writes the value as long as they are used, and what it lies in outlives the context.
    pub(super) unsafe fn bytes(&self, v: V) -> &[u8] {
        let at = self.get::<u8>(v);
        if at.is_null() {
            return &[];
        }
        // SAFETY: so many bytes are there: the planner and the checks of a run saw to it. The rest is the caller's promise.
        unsafe { std::slice::from_raw_parts(at, self.values[v.0].bytes) }
    }

    /// The address of a value, or null for none.
    #[inline]
    pub(super) fn get_or_null<T>(&self, v: Option<V>) -> *const T {
        v.map_or(std::ptr::null(), |v| self.get(v))
    }

    /// The cache that batch row `row` has for the value `v`.
    #[inline]
    pub(super) fn cache(&self, v: V, row: usize) -> Option<CacheView> {
        match self.values[v.0].place {
            Place::Cache(input) => self.caches.get(row * self.cache_inputs + input).copied(),
            _ => None,
        }
    }
}

/// Where a step that finds its data wrong says so; the run goes on (members must meet) and fails at its end.
#[derive(Default)]
pub(super) struct Failure {
    failed: AtomicBool,
    first: Mutex<Option<(usize, NodeId, Fault)>>,
}

/// What a step found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// An index outside its table.
    Index { op: &'static str, index: i64, bound: usize },
    /// A division by zero.
    Division,
}

impl Failure {
    /// Notes a fault in batch row `row`; of several, the one of the earliest row and node is kept.
    #[cold]
    pub(super) fn note(&self, row: usize, node: NodeId, fault: Fault) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none_or(|(r, n, _)| (row, node) < (r, n)) {
            *first = Some((row, node, fault));
        }
        self.failed.store(true, Ordering::Release);
    }

    /// Takes what was noted; `row_of` says which row of the run a batch row belongs to.
    pub(super) fn take(&self, row_of: impl Fn(usize) -> usize) -> Result<(), DeviceError> {
        if !self.failed.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((row, node, fault)) = first else { return Ok(()) };
        let row = row_of(row);
        Err(match fault {
            Fault::Index { op, index, bound } => {
                DeviceError::IndexOutOfRange { row, node, op, index, bound: bound as u64 }
            }
            Fault::Division => DeviceError::DivisionByZero { row, node },
        })
    }
}
