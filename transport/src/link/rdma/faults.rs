//! What can go wrong on the way, made to happen: for tests of the link and of what is above it.
//!
//! Between two queue pairs there is no place for a relay that cuts, holds back and corrupts, as there is between two sockets. So a
//! listener can be given these, and its lanes then do it to themselves. Without them nothing of this takes place.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Faults of all lanes of one listener.
#[derive(Debug)]
pub struct Faults {
    arrived: AtomicU64,
    passed: AtomicU64,
    cut: Mutex<Cut>,
    cuts: AtomicU64,
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

impl Default for Faults {
    fn default() -> Self {
        Self {
            arrived: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            cut: Mutex::new(Cut { at: u64::MAX, each: u64::MAX }),
            cuts: AtomicU64::new(0),
            held: AtomicBool::new(false),
            one_in: AtomicU64::new(0),
            slices: AtomicU64::new(0),
            flipped: AtomicU64::new(0),
        }
    }
}

impl Faults {
    /// Bytes that came to the listener's side.
    pub fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::Acquire)
    }

    /// Breaks a lane, and with it its connection, after about `first` more bytes, and again after each `each`.
    pub fn cut_after(&self, first: u64, each: u64) {
        let at = self.passed.load(Ordering::Acquire).saturating_add(first);
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Cut { at, each };
    }

    /// How often that has happened.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
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
        let mut cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        let now = passed >= cut.at;
        if now {
            cut.at = passed.saturating_add(cut.each);
            self.cuts.fetch_add(1, Ordering::AcqRel);
        }
        now
    }

    /// Whether this slice is to be corrupted.
    pub(super) fn flips(&self) -> bool {
        let one_in = self.one_in.load(Ordering::Acquire);
        let flips = one_in != 0 && self.slices.fetch_add(1, Ordering::AcqRel) % one_in == one_in - 1;
        self.flipped.fetch_add(u64::from(flips), Ordering::AcqRel);
        flips
    }
}

/// A client of this process that writes once more where it has written, after its right to was revoked.
pub static WRITE_AGAIN: AtomicBool = AtomicBool::new(false);

/// Requests of this process that a peer's device refused, since there was no right to what they named.
pub fn refused() -> u64 {
    REFUSED.load(Ordering::Acquire)
}

pub(super) static REFUSED: AtomicU64 = AtomicU64::new(0);
