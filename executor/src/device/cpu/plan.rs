//! What a program does for one set of sizes: steps in order, where each value lies, and where members must meet.

use std::ops::Range;

use genie_graph::DType;

use super::step::Step;

/// Index of a value in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct V(pub(super) usize);

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At this offset of the arena.
    Arena(usize),
    /// The weight of this number.
    Weight(usize),
    /// At this offset of the plan's constants.
    Constant(usize),
    /// The caches given as this input, one a row: no tensor, but something that steps read and write.
    Cache(usize),
}

/// A tensor that a plan computes with.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) dtype: DType,
    pub(super) bytes: usize,
    pub(super) place: Place,
}

/// A step with what the planner knows of it.
pub(super) struct Planned {
    pub(super) step: Step,
    /// Whether members must meet before it: it reads what a step since the last meeting wrote, or writes what one read.
    pub(super) meet: bool,
    reads: Vec<V>,
    writes: Vec<V>,
}

/// A program for one set of sizes.
pub(super) struct Plan {
    pub(super) steps: Vec<Planned>,
    pub(super) values: Vec<Value>,
    pub(super) arena_bytes: usize,
}

/// Values start at multiples of this: a cache line, and any element's or vector's alignment.
const ALIGN: usize = 64;

impl Plan {
    /// Gives each arena value a place such that no two that live at once overlap, and decides where members meet. Values in
    /// `inputs` live from the start, those in `outputs` to the end.
    pub(super) fn new(steps: Vec<Step>, mut values: Vec<Value>, inputs: &[V], outputs: &[V]) -> Option<Self> {
        let mut steps: Vec<Planned> = steps
            .into_iter()
            .map(|step| {
                let (mut reads, mut writes) = (Vec::new(), Vec::new());
                step.touches(&mut |v| reads.push(v), &mut |v| writes.push(v));
                Planned { step, meet: false, reads, writes }
            })
            .collect();
        let lives = lives(&steps, values.len(), inputs, outputs);
        let arena_bytes = place(&mut values, &lives)?;
        decide_meetings(&mut steps, &values);
        Some(Self { steps, values, arena_bytes })
    }
}

/// For each value the steps from the first to the last that touch it.
fn lives(steps: &[Planned], values: usize, inputs: &[V], outputs: &[V]) -> Vec<Option<Range<usize>>> {
    let mut lives: Vec<Option<Range<usize>>> = vec![None; values];
    let mut touch = |v: V, at: usize| {
        let life = lives[v.0].get_or_insert(at..at + 1);
        life.start = life.start.min(at);
        life.end = life.end.max(at + 1);
    };
    inputs.iter().for_each(|&v| touch(v, 0));
    for (at, step) in steps.iter().enumerate() {
        step.reads.iter().chain(&step.writes).for_each(|&v| touch(v, at));
    }
    outputs.iter().for_each(|&v| touch(v, steps.len()));
    lives
}

/// First fit, in the order in which values come to life. Returns the arena's bytes, or `None` where they cannot be counted.
fn place(values: &mut [Value], lives: &[Option<Range<usize>>]) -> Option<usize> {
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| lives[i].is_some()).collect();
    order.retain(|&i| matches!(values[i].place, Place::Arena(_)));
    order.sort_by_key(|&i| lives[i].as_ref().map_or(0, |l| l.start));
    // Live values, by offset.
    let mut live: Vec<(Range<usize>, usize)> = Vec::new();
    let mut total = 0;
    for i in order {
        let life = lives[i].clone()?;
        live.retain(|&(_, end)| end > life.start);
        let bytes = values[i].bytes.checked_next_multiple_of(ALIGN)?;
        let mut offset = 0_usize;
        let mut at = live.len();
        for (k, (taken, _)) in live.iter().enumerate() {
            if taken.start >= offset && taken.start - offset >= bytes {
                at = k;
                break;
            }
            offset = taken.end;
        }
        let end = offset.checked_add(bytes)?;
        live.insert(at, (offset..end, life.end));
        values[i].place = Place::Arena(offset);
        total = total.max(end);
    }
    isize::try_from(total).ok()?;
    Some(total)
}

fn decide_meetings(steps: &mut [Planned], values: &[Value]) {
    // What has been read and written since members last met.
    let (mut read, mut written): (Vec<V>, Vec<V>) = (Vec::new(), Vec::new());
    let clash = |a: &[V], b: &[V]| a.iter().any(|&a| b.iter().any(|&b| overlap(&values[a.0], &values[b.0])));
    for step in steps {
        step.meet = clash(&step.reads, &written) || clash(&step.writes, &written) || clash(&step.writes, &read);
        if step.meet {
            read.clear();
            written.clear();
        }
        read.extend(&step.reads);
        written.extend(&step.writes);
    }
}

fn overlap(a: &Value, b: &Value) -> bool {
    match (a.place, b.place) {
        (Place::Arena(x), Place::Arena(y)) => x < y + b.bytes && y < x + a.bytes,
        (Place::Cache(x), Place::Cache(y)) => x == y,
        _ => false,
    }
}
