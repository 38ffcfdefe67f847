//! What a program does for one set of sizes: steps in order, where each value lies, and where members must meet.

use std::ops::Range;

use genie_graph::DType;

use super::step::Step;
use crate::device::arena;

/// Index of a value in its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct V(pub(super) usize);

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At this offset of the arena.
    Arena(usize),
    /// Where each run says, by this number: an argument, or an output.
    Lent(usize),
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

/// A step, and whether members must meet before it: it reads what a step since the last meeting wrote, or writes what one read.
pub(super) struct Planned {
    pub(super) step: Step,
    pub(super) meet: bool,
}

/// A program for one set of sizes.
pub(super) struct Plan {
    pub(super) steps: Vec<Planned>,
    pub(super) values: Vec<Value>,
    pub(super) arena_bytes: usize,
}

/// Values start at multiples of this: a cache line, and any element's or vector's alignment.
pub(super) const ALIGN: usize = 64;

/// Values touched since members last met that are kept track of; they meet when there are more. Without a bound the time to plan
/// a program would grow with the square of its size.
const MOST_TRACKED: usize = 64;

impl Plan {
    /// Gives each arena value a place such that no two that live at once overlap, and decides where members meet. Values in
    /// `inputs` live from the start, those in `outputs` to the end. `None` where bytes cannot be counted.
    pub(super) fn new(steps: Vec<Step>, mut values: Vec<Value>, inputs: &[V], outputs: &[V]) -> Option<Self> {
        let touched: Vec<Touched> = steps.iter().map(Touched::by).collect();
        let lives = lives(&touched, values.len(), inputs, outputs);
        let arena_bytes = place(&mut values, &lives)?;
        let meetings = meetings(&touched, &values);
        let steps = steps.into_iter().zip(meetings).map(|(step, meet)| Planned { step, meet }).collect();
        Some(Self { steps, values, arena_bytes })
    }

    /// Lets each run say where these values lie, those of them that have a place in the arena: their offsets there, by their numbers.
    /// Steps depend on each other as before: wherever else a value lies, nothing else does.
    pub(super) fn lend(&mut self, values: impl IntoIterator<Item = V>) -> Vec<usize> {
        let mut offsets = Vec::new();
        for v in values {
            let place = &mut self.values[v.0].place;
            if let Place::Arena(offset) = *place {
                *place = Place::Lent(offsets.len());
                offsets.push(offset);
            }
        }
        offsets
    }
}

/// The values that a step reads and writes.
#[derive(Default)]
struct Touched {
    reads: Vec<V>,
    writes: Vec<V>,
}

impl Touched {
    fn by(step: &Step) -> Self {
        let mut touched = Self::default();
        step.touches(&mut |v| touched.reads.push(v), &mut |v| touched.writes.push(v));
        touched
    }
}

/// For each value the steps from the first to the last that touch it.
fn lives(steps: &[Touched], values: usize, inputs: &[V], outputs: &[V]) -> Vec<Option<Range<usize>>> {
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

/// Gives values of the arena their places: see [`arena::place`].
fn place(values: &mut [Value], lives: &[Option<Range<usize>>]) -> Option<usize> {
    let is_placed = |(i, life): (usize, &Option<Range<usize>>)| match (values[i].place, life) {
        (Place::Arena(_), Some(life)) => Some((i, life.clone())),
        _ => None,
    };
    let placed: Vec<(usize, Range<usize>)> = lives.iter().enumerate().filter_map(is_placed).collect();
    let sizes: Vec<_> = placed.iter().map(|(i, life)| (values[*i].bytes, life.clone())).collect();
    let (offsets, end) = arena::place(&sizes, ALIGN)?;
    placed.iter().zip(offsets).for_each(|((i, _), offset)| values[*i].place = Place::Arena(offset));
    Some(end)
}

/// For each step, whether members must meet before it.
fn meetings(steps: &[Touched], values: &[Value]) -> Vec<bool> {
    // What has been read and written since members last met.
    let (mut read, mut written): (Vec<V>, Vec<V>) = (Vec::new(), Vec::new());
    let changes = |v: &&V| matches!(values[v.0].place, Place::Arena(_) | Place::Cache(_));
    let clash = |a: &[V], b: &[V]| a.iter().any(|&a| b.iter().any(|&b| overlap(&values[a.0], &values[b.0])));
    let meets = |step: &Touched| {
        let meet = read.len() + written.len() > MOST_TRACKED
            || clash(&step.reads, &written)
            || clash(&step.writes, &written)
            || clash(&step.writes, &read);
        if meet {
            read.clear();
            written.clear();
        }
        read.extend(step.reads.iter().filter(changes));
        written.extend(&step.writes);
        meet
    };
    steps.iter().map(meets).collect()
}

fn overlap(a: &Value, b: &Value) -> bool {
    match (a.place, b.place) {
        (Place::Arena(x), Place::Arena(y)) => x < y + b.bytes && y < x + a.bytes,
        (Place::Cache(x), Place::Cache(y)) => x == y,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use genie_graph::random::philox;

    use super::*;

    /// Values of 1 to 1000 bytes that live from and to anywhere.
    fn random_values(seed: u64, steps: usize) -> (Vec<Value>, Vec<Option<Range<usize>>>) {
        let one = |i: u128| {
            let [bytes, start, length, _] = philox(seed, i).map(|word| word as usize);
            let start = start % steps;
            let value = Value { dtype: DType::U8, bytes: 1 + bytes % 1000, place: Place::Arena(0) };
            (value, Some(start..start + 1 + length % (steps - start)))
        };
        (0..200).map(one).unzip()
    }

    #[test]
    fn values_that_live_at_once_do_not_overlap() {
        for seed in 0..50 {
            let (mut values, lives) = random_values(seed, 40);
            let bytes = place(&mut values, &lives).unwrap();
            let at = |i: usize| match values[i].place {
                Place::Arena(offset) => offset..offset + values[i].bytes,
                _ => panic!("an arena value went elsewhere"),
            };
            for i in 0..values.len() {
                assert!(at(i).end <= bytes && at(i).start.is_multiple_of(ALIGN));
                for k in 0..i {
                    let (a, b) = (lives[i].clone().unwrap(), lives[k].clone().unwrap());
                    let at_once = a.start < b.end && b.start < a.end;
                    assert!(!at_once || at(i).end <= at(k).start || at(k).end <= at(i).start, "{i} and {k}");
                }
            }
            // Never more than all beside each other, never less than what lives at some time.
            let rounded = |i: usize| values[i].bytes.next_multiple_of(ALIGN);
            assert!(bytes <= (0..values.len()).map(rounded).sum());
            let alive = |t: usize| {
                (0..values.len()).filter(|&i| lives[i].clone().unwrap().contains(&t)).map(rounded).sum::<usize>()
            };
            assert!((0..40).map(alive).max().unwrap() <= bytes);
        }
    }

    #[test]
    fn memory_that_nobody_uses_any_more_is_used_again() {
        let value = |bytes| Value { dtype: DType::U8, bytes, place: Place::Arena(0) };
        let mut values = vec![value(100), value(60), value(120), value(190), value(0)];
        let lives = [Some(0..2), Some(0..1), Some(1..2), Some(2..3), None];
        assert_eq!(place(&mut values, &lives), Some(256));
        let offsets = values.iter().map(|v| v.place).collect::<Vec<_>>();
        // The third does not fit in the second's place, but reaches beyond it; the fourth takes all the places from the first.
        assert_eq!(offsets[..4], [0, 128, 128, 0].map(Place::Arena));
        assert_eq!(place(&mut [value(usize::MAX)], &[Some(0..1)]), None);
        assert_eq!(place(&mut [value(usize::MAX / 2), value(usize::MAX / 2)], &[Some(0..1), Some(0..1)]), None);
    }

    #[test]
    fn members_meet_where_steps_depend_on_each_other() {
        let value = |place| Value { dtype: DType::U8, bytes: 64, place };
        let values = [
            value(Place::Arena(0)),
            value(Place::Arena(64)),
            value(Place::Arena(128)),
            // In the place of the first.
            value(Place::Arena(32)),
            value(Place::Weight(0)),
            value(Place::Cache(0)),
        ];
        let met = |steps: &[(&[usize], &[usize])]| {
            let all = |ids: &[usize]| ids.iter().map(|&i| V(i)).collect();
            let steps: Vec<Touched> = steps.iter().map(|(r, w)| Touched { reads: all(r), writes: all(w) }).collect();
            meetings(&steps, &values)
        };
        assert_eq!(met(&[(&[4], &[0]), (&[4], &[1])]), [false, false]);
        assert_eq!(met(&[(&[4], &[0]), (&[0], &[1]), (&[0], &[2])]), [false, true, false]);
        assert_eq!(met(&[(&[0], &[1]), (&[], &[3])]), [false, true], "the first is still read");
        assert_eq!(met(&[(&[], &[0]), (&[], &[3])]), [false, true], "two would write the same place");
        assert_eq!(met(&[(&[0], &[5]), (&[5], &[1])]), [false, true]);
        let many = vec![(&[1_usize][..], &[0_usize; 0][..]); 3 * MOST_TRACKED];
        assert_eq!(met(&many).iter().filter(|&&m| m).count(), 2, "the lists stay short");
    }
}
