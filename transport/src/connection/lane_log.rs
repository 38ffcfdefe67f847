//! What a bulk lane was given to carry.

use std::collections::VecDeque;
use std::time::Instant;

/// The slices that were handed to one lane, in order: the other side counts what came over it, and so the two know what was
/// lost with it.
#[derive(Debug)]
pub(super) struct LaneLog {
    pub(super) lane: u32,
    open: bool,
    /// Slices before the first of `handed`: nobody asks for those any more.
    before: u64,
    handed: VecDeque<Handed>,
}

#[derive(Clone, Copy, Debug)]
struct Handed {
    transfer: u64,
    index: u32,
    at: Instant,
}

impl LaneLog {
    pub(super) fn new(lane: u32) -> Self {
        Self { lane, open: true, before: 0, handed: VecDeque::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn close(&mut self) {
        self.open = false;
    }

    pub(super) fn hand(&mut self, transfer: u64, index: u32, at: Instant) {
        self.handed.push_back(Handed { transfer, index, at });
    }

    /// When the lane was given this slice, if it was: the last time.
    pub(super) fn find(&self, transfer: u64, index: u32) -> Option<Instant> {
        self.handed.iter().rev().find(|h| h.transfer == transfer && h.index == index).map(|h| h.at)
    }

    /// Forgets what is in front of the first slice of a transfer that is still kept.
    pub(super) fn trim(&mut self, kept: impl Fn(u64) -> bool) {
        while self.handed.front().is_some_and(|h| !kept(h.transfer)) {
            self.handed.pop_front();
            self.before += 1;
        }
        // A large transfer's memory is not kept for good.
        if self.handed.is_empty() && self.handed.capacity() > 4096 {
            self.handed = VecDeque::new();
        }
    }

    /// What did not come, when the other side counted so many slices.
    pub(super) fn lost(&self, came: u64) -> impl Iterator<Item = (u64, u32)> + '_ {
        let skip = usize::try_from(came.saturating_sub(self.before)).unwrap_or(usize::MAX);
        self.handed.iter().skip(skip).map(|h| (h.transfer, h.index))
    }
}
