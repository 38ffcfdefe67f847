//! What the server has counted since it started.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters; each only grows.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) requests: AtomicU64,
    pub(crate) sessions_opened: AtomicU64,
    pub(crate) sessions_expired: AtomicU64,
    pub(crate) runs: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) batched_rows: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) evicted_bytes: AtomicU64,
    pub(crate) weights_brought_back: AtomicU64,
    pub(crate) devices_lost: AtomicU64,
    pub(crate) sets_found: AtomicU64,
    pub(crate) uploads: AtomicU64,
    pub(crate) uploads_adopted: AtomicU64,
    pub(crate) slices_corrupted: AtomicU64,
    pub(crate) lanes_lost: AtomicU64,
}

impl Stats {
    /// A batch of so many rows ran.
    pub(crate) fn ran(&self, rows: usize) {
        add(&self.runs, 1);
        add(&self.rows, rows as u64);
        if rows > 1 {
            add(&self.batched_rows, rows as u64);
        }
    }

    /// A generate made a token.
    pub(crate) fn token(&self) {
        add(&self.tokens, 1);
    }
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// A counter's value.
pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
