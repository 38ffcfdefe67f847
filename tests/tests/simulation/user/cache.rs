//! What a user knows of a KV cache.

use std::collections::BTreeSet;

use genie_transport::wire::Handle;

/// A KV cache whose length counts the runs: the one effect that a repeated request would make visible.
pub(super) struct Cache {
    pub(super) number: u64,
    pub(super) handle: Handle,
    pub(super) binding: Option<Handle>,
    /// Bounds of its length before the runs in flight began.
    pub(super) least: u32,
    pub(super) most: u32,
    /// Since then: runs begun, positions that came back, runs of which nobody knows.
    pub(super) begun: u32,
    pub(super) positions: BTreeSet<u32>,
    pub(super) unknown: u32,
    /// Something that is not a run is under way.
    pub(super) exclusive: bool,
    pub(super) checked: bool,
}

impl Cache {
    pub(super) fn new(number: u64, handle: Handle, least: u32, most: u32) -> Self {
        Self {
            number,
            handle,
            binding: None,
            least,
            most,
            begun: 0,
            positions: BTreeSet::new(),
            unknown: 0,
            exclusive: false,
            checked: false,
        }
    }

    /// Runs of which the end is known.
    pub(super) fn ended(&self) -> u32 {
        self.positions.len() as u32 + self.unknown
    }

    /// With nothing in flight: the length is what it was, and one more for each run that ended well.
    pub(super) fn settle(&mut self) {
        let runs = self.positions.len() as u32;
        self.least += runs;
        self.most += runs + self.unknown;
        self.positions.clear();
        (self.begun, self.unknown) = (0, 0);
    }
}
