//! What a bulk lane was given to carry.

use std::collections::BTreeMap;
use std::time::Instant;

/// The slices that were handed to one lane, numbered in order: the other side counts what came over it, and so the two know what
/// was lost with it. Kept by transfer, since that is how they are asked for and forgotten: a small frame of the other side's asks,
/// and must not cost as much as all that the lane carried.
#[derive(Debug)]
pub(super) struct LaneLog {
    pub(super) lane: u32,
    open: bool,
    /// Slices that were handed to it so far.
    count: u64,
    /// In order: what is lost goes out again in the same one, each time.
    handed: BTreeMap<u64, BTreeMap<u32, Handed>>,
}

/// A slice's last time on the lane.
#[derive(Clone, Copy, Debug)]
struct Handed {
    number: u64,
    at: Instant,
}

impl LaneLog {
    pub(super) fn new(lane: u32) -> Self {
        Self { lane, open: true, count: 0, handed: BTreeMap::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn close(&mut self) {
        self.open = false;
    }

    pub(super) fn hand(&mut self, transfer: u64, index: u32, at: Instant) {
        let number = self.count;
        self.count += 1;
        self.handed.entry(transfer).or_default().insert(index, Handed { number, at });
    }

    /// When the lane was given this slice, if it was: the last time.
    pub(super) fn find(&self, transfer: u64, index: u32) -> Option<Instant> {
        Some(self.handed.get(&transfer)?.get(&index)?.at)
    }

    /// Nobody asks for this transfer any more.
    pub(super) fn forget(&mut self, transfer: u64) {
        self.handed.remove(&transfer);
    }

    /// What did not come, when the other side counted so many slices: by transfer, none without a slice.
    pub(super) fn lost(&self, came: u64) -> impl Iterator<Item = (u64, impl Iterator<Item = u32> + '_)> + '_ {
        self.handed.iter().filter_map(move |(&transfer, slices)| {
            let lost = slices.iter().filter(move |(_, handed)| handed.number >= came).map(|(&index, _)| index);
            let mut lost = lost.peekable();
            lost.peek().is_some().then_some((transfer, lost))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_is_not_lost_and_what_went_twice_counts_by_its_last_time() {
        let now = Instant::now();
        let mut log = LaneLog::new(1);
        for (transfer, index) in [(7, 0), (8, 0), (7, 1), (7, 0), (8, 1)] {
            log.hand(transfer, index, now);
        }
        let lost = |log: &LaneLog, came| {
            let mut lost: Vec<_> = log.lost(came).flat_map(|(t, slices)| slices.map(move |i| (t, i))).collect();
            lost.sort_unstable();
            lost
        };
        assert_eq!(lost(&log, 0), [(7, 0), (7, 1), (8, 0), (8, 1)]);
        assert_eq!(lost(&log, 2), [(7, 0), (7, 1), (8, 1)]);
        assert_eq!(lost(&log, 4), [(8, 1)]);
        assert_eq!(lost(&log, u64::MAX), []);
        log.forget(7);
        assert_eq!((log.find(7, 0), log.find(8, 1)), (None, Some(now)));
        assert_eq!(lost(&log, 2), [(8, 1)], "slices of transfers that are over are counted");
    }
}
