//! What a program does on a GPU for one set of sizes: work in order, and where each value lies.

use std::ops::Range;

use genie_cuda_kernels::gpu::{Operands, Product};
use genie_cuda_kernels::launch::ahead::Part;
use genie_cuda_kernels::{Address, Launch, LaunchError, View};
use genie_graph::DType;

use crate::device::arena;

/// Index of a value in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct V(pub(super) usize);

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At this offset of the arena.
    Arena(usize),
    /// At this offset of the head: what a run brings, and tokens that it gives.
    Head(usize),
    /// The word of this number of those that steps leave faults in.
    Fault(usize),
    /// The weight of this number.
    Weight(usize),
    /// At this offset of the plan's constants.
    Constant(usize),
}

/// A tensor that a plan computes with.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) dtype: DType,
    pub(super) elements: u64,
    pub(super) place: Place,
}

impl Value {
    /// Bytes that it takes; `lower` has seen to it that they can be counted.
    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.elements.saturating_mul(self.dtype.bytes())).unwrap_or(usize::MAX)
    }
}

/// Something that the compute stream is given.
pub(super) enum Work {
    Launch(Box<Launch>),
    /// A product, by a library or else by kernels of our own.
    Product {
        /// Ways of the library, the best first.
        ways: Vec<Way>,
        /// Where it has none of them.
        otherwise: Vec<Launch>,
    },
}

impl Work {
    pub(super) fn launch(launch: Launch) -> Self {
        Self::Launch(Box::new(launch))
    }
}

/// How a library does a product.
pub(super) struct Way {
    pub(super) product: Product,
    pub(super) operands: Operands,
    /// What is left to be done.
    pub(super) then: Vec<Launch>,
}

/// Makes a step's work once it is known where everything lies.
type Make = Box<dyn Fn(&At<'_>) -> Result<Vec<Work>, LaunchError> + Send + Sync>;

/// One step.
pub(super) struct Step {
    touches: Vec<V>,
    /// What of a weight its product asks for meanwhile, which one behind it reads.
    pub(super) ahead: Option<(V, Part)>,
    make: Make,
}

impl Step {
    /// A step that reads and writes these values and no others.
    pub(super) fn new(
        touches: impl IntoIterator<Item = V>,
        make: impl Fn(&At<'_>) -> Result<Vec<Work>, LaunchError> + Send + Sync + 'static,
    ) -> Self {
        Self { touches: touches.into_iter().collect(), ahead: None, make: Box::new(make) }
    }

    /// Its work, with everything where `at` says.
    ///
    /// # Errors
    /// [`LaunchError`]: a mistake of whoever lowered it.
    pub(super) fn work(&self, at: &At<'_>) -> Result<Vec<Work>, LaunchError> {
        (self.make)(&At { ahead: self.ahead, ..*at })
    }
}

/// Where the parts of a plan lie for a run.
pub(super) struct At<'a> {
    pub(super) values: &'a [Value],
    pub(super) arena: Address,
    pub(super) head: Address,
    pub(super) faults: Address,
    pub(super) constants: Address,
    pub(super) weights: &'a [Address],
    /// Words that are 0 between runs: for blocks that wait for each other.
    pub(super) counters: Address,
    /// Multiprocessors.
    pub(super) sms: u32,
    /// What the step asks for meanwhile ([`Step::ahead`]).
    pub(super) ahead: Option<(V, Part)>,
}

impl At<'_> {
    pub(super) fn view(&self, v: V) -> View {
        let Value { dtype, elements, place } = self.values[v.0];
        let at = match place {
            Place::Arena(offset) => self.arena + offset as u64,
            Place::Head(offset) => self.head + offset as u64,
            Place::Fault(i) => self.faults + 8 * i as u64,
            Place::Constant(offset) => self.constants + offset as u64,
            // There are as many as the plan has.
            Place::Weight(i) => self.weights[i],
        };
        View::new(at, dtype, elements)
    }

    /// Whether it is a weight: no step writes it.
    pub(super) fn is_weight(&self, v: V) -> bool {
        matches!(self.values[v.0].place, Place::Weight(_))
    }
}

/// Bytes of the words that attention counts in; products have theirs behind them.
pub(super) const ATTENTION_COUNTERS: u64 = 256 << 10;

/// Values start at multiples of this: what a GPU reads at once, and any element's alignment.
pub(super) const ALIGN: usize = 256;

/// Values of what a run brings start at multiples of this.
pub(super) const HEAD_ALIGN: usize = 16;

/// Gives each value of the arena a place such that no two that live at once overlap. Values in `until_the_end` live to the end. The
/// bytes of the arena, or `None` where they cannot be counted.
pub(super) fn place(steps: &[Step], values: &mut [Value], until_the_end: &[V]) -> Option<usize> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; values.len()];
    let mut touch = |v: V, at: usize| {
        let life = lives[v.0].get_or_insert(at..at + 1);
        life.start = life.start.min(at);
        life.end = life.end.max(at + 1);
    };
    for (at, step) in steps.iter().enumerate() {
        step.touches.iter().for_each(|&v| touch(v, at));
    }
    until_the_end.iter().for_each(|&v| touch(v, steps.len()));
    let placed: Vec<(usize, Range<usize>)> = lives
        .into_iter()
        .enumerate()
        .filter_map(|(i, life)| life.filter(|_| matches!(values[i].place, Place::Arena(_))).map(|life| (i, life)))
        .collect();
    let sizes: Vec<(usize, Range<usize>)> = placed.iter().map(|(i, life)| (values[*i].bytes(), life.clone())).collect();
    let (offsets, end) = arena::place(&sizes, ALIGN)?;
    placed.iter().zip(offsets).for_each(|((i, _), offset)| values[*i].place = Place::Arena(offset));
    Some(end)
}
