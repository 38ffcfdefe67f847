//! One piece of memory for all values of a program, which use each other's places.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// Offsets for values of so many bytes that live for so many steps, such that no two that live at once overlap, and the bytes of all
/// together; offsets are multiples of `align`. First fit, in the order in which values come to life. `None` where bytes cannot be
/// counted.
pub(super) fn place(values: &[(usize, Range<usize>)], align: usize) -> Option<(Vec<usize>, usize)> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|&i| values[i].1.start);
    // What is taken, soonest end first.
    let mut taken: BinaryHeap<Reverse<(usize, usize, usize)>> = BinaryHeap::new();
    let mut gaps = Gaps::default();
    let mut offsets = vec![0; values.len()];
    for i in order {
        let (bytes, life) = &values[i];
        while let Some(&Reverse((end, from, to))) = taken.peek()
            && end <= life.start
        {
            taken.pop();
            gaps.give_back(from..to);
        }
        let bytes = bytes.checked_next_multiple_of(align)?;
        let offset = gaps.take(bytes)?;
        offsets[i] = offset;
        taken.push(Reverse((life.end, offset, offset + bytes)));
    }
    isize::try_from(gaps.end).ok()?;
    Some((offsets, gaps.end))
}

/// The free parts of the arena.
#[derive(Default)]
struct Gaps {
    /// In order; none empty, none next to another.
    free: Vec<Range<usize>>,
    /// Bytes of the arena so far.
    end: usize,
}

impl Gaps {
    /// The offset of `bytes` in the first gap that has them; the arena grows where none does.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        if let Some(i) = self.free.iter().position(|gap| gap.len() >= bytes) {
            let gap = &mut self.free[i];
            let offset = gap.start;
            gap.start += bytes;
            if gap.start == gap.end {
                self.free.remove(i);
            }
            return Some(offset);
        }
        let offset = match self.free.last() {
            Some(last) if last.end == self.end => last.start,
            _ => self.end,
        };
        let end = offset.checked_add(bytes)?;
        if offset < self.end {
            self.free.pop();
        }
        self.end = end;
        Some(offset)
    }

    fn give_back(&mut self, mut range: Range<usize>) {
        if range.start == range.end {
            return;
        }
        let i = self.free.partition_point(|gap| gap.end < range.start);
        while let Some(gap) = self.free.get(i)
            && gap.start <= range.end
        {
            range = range.start.min(gap.start)..range.end.max(gap.end);
            self.free.remove(i);
        }
        self.free.insert(i, range);
    }
}
