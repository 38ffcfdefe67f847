//! What can go wrong on the way, made to happen: for tests of the link and of what is above it.
//!
//! Between two queue pairs there is no place for a relay that cuts, holds back and corrupts, as there is between two sockets. So a
//! listener can be given these, and its lanes then do it to themselves. Without them nothing of this takes place.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Faults of all lanes of one listener.
#[derive(Debug, Default)]
pub struct Faults {
    /// The domains of its clients, and lanes in all of them.
    domains: Mutex<HashSet<[u8; 16]>>,
    accepted: AtomicU64,
    arrived: AtomicU64,
    passed: AtomicU64,
    cut: Mutex<Cut>,
    cuts: AtomicU64,
    /// What happens to the next bulk lane.
    lane: Mutex<LaneCut>,
    lane_faults: AtomicU64,
    held: AtomicBool,
    /// One slice in so many is corrupted; 0: none.
    one_in: AtomicU64,
    slices: AtomicU64,
    flipped: AtomicU64,
}

#[derive(Debug)]
struct Cut {
    /// When so many bytes have passed.
    at: u64,
    each: u64,
}

impl Default for Cut {
    fn default() -> Self {
        Self { at: u64::MAX, each: u64::MAX }
    }
}

/// Once, after so many bytes of slices more, if any.
#[derive(Debug, Default)]
struct LaneCut {
    left: Option<u64>,
    fault: LaneFault,
}

/// What can happen to one bulk lane while the others go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LaneFault {
    /// Its queue pair breaks, with what is on its way.
    #[default]
    Cut,
    /// What it says to the client makes no sense any more.
    Garble,
}

impl Faults {
    /// Bytes that came to the listener's side.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// Breaks a lane, and with it its connection, after about `first` more bytes, and again after each `each`.
    pub fn cut_after(&self, first: u64, each: u64) {
        let at = self.passed.load(Ordering::Acquire).saturating_add(first);
        *locked(&self.cut) = Cut { at, each };
    }

    /// How often that has happened.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// After about so many more bytes of slices, up and down together, this happens to the bulk lane that they go over: once.
    pub fn break_lane_after(&self, bytes: u64, fault: LaneFault) {
        *locked(&self.lane) = LaneCut { left: Some(bytes), fault };
    }

    /// How often that has happened.
    pub fn lane_faults(&self) -> u64 {
        self.lane_faults.load(Ordering::Acquire)
    }

    /// Connections, and bulk lanes, that were opened so far.
    pub fn opened(&self) -> (u64, u64) {
        let connections = locked(&self.domains).len() as u64;
        (connections, self.accepted.load(Ordering::Acquire).saturating_sub(connections))
    }

    /// No slice is granted or offered, or they are again.
    pub fn hold_bulk(&self, held: bool) {
        self.held.store(held, Ordering::Release);
    }

    /// From here on one slice in so many is corrupted.
    pub fn corrupt(&self, one_in: u64) {
        self.one_in.store(one_in, Ordering::Release);
    }

    /// How many were.
    pub fn flipped(&self) -> u64 {
        self.flipped.load(Ordering::Acquire)
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Acquire)
    }

    /// Bytes have passed. Whether the lane is to break.
    pub(super) fn pass(&self, bytes: usize, inward: bool) -> bool {
        let bytes = bytes as u64;
        if inward {
            self.arrived.fetch_add(bytes, Ordering::AcqRel);
        }
        let passed = self.passed.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let mut cut = locked(&self.cut);
        let now = passed >= cut.at;
        if now {
            cut.at = passed.saturating_add(cut.each);
            self.cuts.fetch_add(1, Ordering::AcqRel);
        }
        now
    }

    /// A lane of this domain was accepted.
    pub(super) fn accepts(&self, domain: [u8; 16]) {
        locked(&self.domains).insert(domain);
        self.accepted.fetch_add(1, Ordering::AcqRel);
    }

    /// A slice has passed over a bulk lane: what happens to the lane.
    pub(super) fn pass_slice(&self, bytes: usize) -> Option<LaneFault> {
        let mut lane = locked(&self.lane);
        let left = lane.left?;
        lane.left = left.checked_sub(bytes as u64).filter(|&left| left > 0);
        if lane.left.is_some() {
            return None;
        }
        self.lane_faults.fetch_add(1, Ordering::AcqRel);
        Some(lane.fault)
    }

    /// Whether this slice is to be corrupted.
    pub(super) fn flips(&self) -> bool {
        let one_in = self.one_in.load(Ordering::Acquire);
        let flips = one_in != 0 && self.slices.fetch_add(1, Ordering::AcqRel) % one_in == one_in - 1;
        self.flipped.fetch_add(u64::from(flips), Ordering::AcqRel);
        flips
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client of this process that writes once more where it has written, after its right to was revoked.
pub static WRITE_AGAIN: AtomicBool = AtomicBool::new(false);

/// No memory of this process can be registered any more, but for what slices are copied through.
pub static UNREGISTRABLE: AtomicBool = AtomicBool::new(false);

/// Requests of this process that a peer's device refused, since there was no right to what they named.
pub fn refused() -> u64 {
    REFUSED.load(Ordering::Acquire)
}

pub(super) static REFUSED: AtomicU64 = AtomicU64::new(0);
