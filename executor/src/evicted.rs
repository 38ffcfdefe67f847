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

    /// Makes a copy of a weight of `bytes` bytes, if there is none and the limit allows it; others go for it. `copy` takes long: nobody
    /// else waits for it, nor for memory that is given back.
    ///
    /// # Errors
    /// `copy`'s: then there is no copy.
    pub(crate) fn keep(
        &self,
        hash: ContentHash,
        bytes: u64,
        copy: impl FnOnce() -> Result<Region, DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.find(&hash, bytes).is_some() || !self.reserve(bytes) {
            return Ok(());
        }
        let copied = copy();
        let mut inner = self.lock();
        let region = match copied {
            Ok(region) => region,
            Err(error) => {
                inner.taken -= bytes;
                return Err(error);
            }
        };
        inner.clock += 1;
        let used = inner.clock;
        let before = inner.copies.insert(hash, Kept { region, used });
        // Somebody else made one meanwhile.
        inner.taken -= before.as_ref().map_or(0, |copy| copy.region.len() as u64);
        drop(inner);
        drop(before);
        Ok(())
    }

    /// How many copies there are, and their bytes.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.copies.len() as u64, inner.copies.values().map(|copy| copy.region.len() as u64).sum())
    }

    /// Makes room for so many bytes, as far as others are not making copies at this moment.
    fn reserve(&self, bytes: u64) -> bool {
        if bytes > self.limit {
            return false;
        }
        // Given back once the lock is: that takes long where it was pinned.
        let mut gone = Vec::new();
        let mut inner = self.lock();
        while inner.taken > self.limit - bytes {
            let oldest = inner.copies.iter().min_by_key(|(_, copy)| copy.used).map(|(hash, _)| *hash);
            // The rest is being copied by others.
            let Some(copy) = oldest.and_then(|hash| inner.copies.remove(&hash)) else { return false };
            inner.taken -= copy.region.len() as u64;
            gone.push(copy);
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
                && let Err(error) = self.evicted.keep(hash, memory.len(), || memory.to_pinned())
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

#[cfg(test)]
mod tests {
    use std::sync::Weak;

    use super::*;

    /// Pinned memory, which is slow to be given back.
    struct Slow {
        bytes: Vec<u8>,
        evicted: Weak<Evicted>,
    }

    impl AsRef<[u8]> for Slow {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let free = self.evicted.upgrade().is_none_or(|evicted| evicted.inner.try_lock().is_ok());
            assert!(free, "others would wait for it");
        }
    }

    fn hash(of: u8) -> ContentHash {
        ContentHash::of(&[of])
    }

    fn keep(evicted: &Arc<Evicted>, of: u8, bytes: usize) {
        let copy = || {
            assert!(evicted.inner.try_lock().is_ok(), "others would wait for the copy");
            Ok(Region::from_owner(Slow { bytes: vec![of; bytes], evicted: Arc::downgrade(evicted) }))
        };
        evicted.keep(hash(of), bytes as u64, copy).unwrap();
    }

    #[test]
    fn nobody_waits_for_copies_that_come_or_go() {
        let evicted = Arc::new(Evicted::new(100));
        for of in 0..4 {
            keep(&evicted, of, 30);
        }
        assert_eq!(evicted.totals(), (3, 90));
        assert!(evicted.find(&hash(0), 30).is_none() && evicted.find(&hash(1), 30).is_some());
        // Two go for it: what was looked for last stays.
        keep(&evicted, 9, 60);
        assert_eq!(evicted.totals(), (2, 90));
        assert!(evicted.find(&hash(1), 30).is_some() && evicted.find(&hash(9), 60).is_some());
    }

    #[test]
    fn two_who_copy_the_same_leave_one() {
        let evicted = Arc::new(Evicted::new(100));
        let copy = || {
            keep(&evicted, 1, 40);
            Ok(Region::copy_of(&[1; 40]))
        };
        evicted.keep(hash(1), 40, copy).unwrap();
        assert_eq!(evicted.totals(), (1, 40));
        assert!(evicted.reserve(60), "what went is not counted");
    }

    #[test]
    fn a_copy_that_fails_is_not_counted() {
        let evicted = Evicted::new(100);
        let fails = || Err(DeviceError::NoHostMemory { wanted: 80 });
        assert!(evicted.keep(hash(1), 80, fails).is_err());
        assert!(evicted.reserve(100));
    }

    #[test]
    fn what_is_too_large_lets_nothing_go() {
        let evicted = Arc::new(Evicted::new(100));
        keep(&evicted, 1, 60);
        evicted.keep(hash(2), 101, || panic!("it never fits")).unwrap();
        assert_eq!(evicted.totals(), (1, 60));
    }
}
