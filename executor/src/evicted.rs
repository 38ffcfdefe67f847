//! Weights that a device's own memory had no room for, in the host's: they come back without their client.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_transport::memory::Region;
use genie_transport::wire::{ContentHash, RemoteError};

use crate::core::Core;
use crate::device::{DeviceError, Memory};
use crate::stats::add;
use crate::weights::Found;

/// Copies of weights, at most so many bytes of them; the least recently used goes first. They are nobody's: no quota is charged.
///
/// A copy stays when its weight comes back to a device: evicting that once more costs nothing.
#[derive(Debug)]
pub(crate) struct Evicted {
    limit: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    copies: HashMap<ContentHash, Kept>,
    /// Bytes of the copies, and of those that are being made.
    taken: u64,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    region: Region,
    used: u64,
}

impl Evicted {
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, inner: Mutex::default() }
    }

    /// The copy of `bytes` bytes with this hash.
    pub(crate) fn find(&self, hash: &ContentHash, bytes: u64) -> Option<Region> {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        let copy = inner.copies.get_mut(hash).filter(|copy| copy.region.len() as u64 == bytes)?;
        copy.used = now;
        Some(copy.region.clone())
    }

    /// Makes a copy of a weight, if there is none and the limit allows it; others go for it.
    ///
    /// # Errors
    /// The device's, or no host memory: then there is no copy.
    pub(crate) fn keep(&self, hash: ContentHash, memory: &Memory) -> Result<(), DeviceError> {
        let bytes = memory.len();
        if self.find(&hash, bytes).is_some() || !self.reserve(bytes) {
            return Ok(());
        }
        let copied = memory.to_pinned();
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        let before = match copied {
            Ok(region) => inner.copies.insert(hash, Kept { region, used }),
            Err(error) => {
                inner.taken -= bytes;
                return Err(error);
            }
        };
        // Somebody else made one meanwhile.
        inner.taken -= before.map_or(0, |copy| copy.region.len() as u64);
        Ok(())
    }

    /// How many copies there are, and their bytes.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.copies.len() as u64, inner.copies.values().map(|copy| copy.region.len() as u64).sum())
    }

    /// Makes room for so many bytes. Nothing goes where it would not be enough.
    fn reserve(&self, bytes: u64) -> bool {
        let mut inner = self.lock();
        if bytes > self.limit {
            return false;
        }
        while inner.taken > self.limit - bytes {
            let oldest = inner.copies.iter().min_by_key(|(_, copy)| copy.used).map(|(hash, _)| *hash);
            // The rest is being copied by others.
            let Some(copy) = oldest.and_then(|hash| inner.copies.remove(&hash)) else { return false };
            inner.taken -= copy.region.len() as u64;
        }
        inner.taken += bytes;
        true
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// What there is of a weight for a device: there, on its way, or evicted.
    pub(crate) fn find_weight(&self, device: u16, hash: &ContentHash, bytes: u64) -> Found {
        match self.weights(device).find(hash, bytes) {
            Found::Absent => self.evicted.find(hash, bytes).map_or(Found::Absent, Found::Evicted),
            found => found,
        }
    }

    /// Frees the least useful thing of a device's weights that nobody holds; a weight's copy stays in the host's memory where the device
    /// has its own. The bytes that it had.
    pub(crate) fn evict_weight(&self, device: u16) -> Option<u64> {
        let weights = self.weights(device);
        if let Some(bytes) = weights.evict_upload() {
            return Some(bytes);
        }
        // One that somebody takes up meanwhile is not idle any more: it is not found again.
        while let Some((hash, memory)) = weights.oldest_idle() {
            if memory.host().is_none()
                && let Err(error) = self.evicted.keep(hash, &memory)
            {
                tracing::debug!(%error, "a weight is evicted without a copy");
            }
            if let Some(bytes) = weights.release(&hash, memory) {
                return Some(bytes);
            }
        }
        None
    }

    /// Brings an evicted weight back to a device. It takes as long as its bytes take to get there.
    pub(crate) fn bring_weight(
        self: &Arc<Self>,
        device: u16,
        hash: ContentHash,
        copy: Region,
    ) -> Result<Memory, RemoteError> {
        let bytes = copy.len() as u64;
        // One after another: who wants the same weight finds it there.
        let _turn = self.bringing(device);
        if let Found::Present(memory) = self.weights(device).find(&hash, bytes) {
            return Ok(memory);
        }
        let mut space = self.allocate(device, bytes)?;
        space.copy(0, &Memory::Host(copy))?;
        add(&self.stats.weights_brought_back, 1);
        Ok(self.weights(device).insert(hash, space.freeze()))
    }
}
