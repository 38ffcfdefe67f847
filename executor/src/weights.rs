//! Weights: named by content, shared by every session, uploaded once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_transport::memory::{Pool, Region};
use genie_transport::wire::ContentHash;

use crate::device::Memory;
use crate::uploads::Upload;

/// The weights of one device, and the uploads of weights that are not whole yet.
#[derive(Default)]
pub(crate) struct WeightStore {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    present: HashMap<ContentHash, Present>,
    partial: HashMap<ContentHash, Arc<Upload>>,
    /// Counts uses: the least recently used goes first.
    clock: u64,
}

struct Present {
    memory: Memory,
    used: u64,
}

impl Present {
    /// Whether no session, binding or send has it.
    fn is_idle(&self) -> bool {
        self.memory.holders() == 1
    }
}

/// What a store has of a content.
pub(crate) enum Found {
    Present(Memory),
    Partial(Arc<Upload>),
    /// Not on the device, but in the host's memory. A store itself never gives this.
    Evicted(Region),
    Absent,
}

impl WeightStore {
    /// What there is of `bytes` bytes with this hash.
    pub(crate) fn find(&self, hash: &ContentHash, bytes: u64) -> Found {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        if inner.present.get(hash).is_some_and(|present| present.memory.is_lost()) {
            // Kept by a request that was under way when the device failed.
            inner.present.remove(hash);
        }
        match inner.present.get_mut(hash) {
            Some(present) if present.memory.len() == bytes => {
                present.used = now;
                return Found::Present(present.memory.clone());
            }
            Some(_) => return Found::Absent,
            None => {}
        }
        match inner.partial.get(hash) {
            Some(upload) if upload.landing.total() == bytes => Found::Partial(upload.clone()),
            _ => Found::Absent,
        }
    }

    /// Keeps a whole, verified content; gives what is kept, should somebody else have been first.
    pub(crate) fn insert(&self, hash: ContentHash, memory: Memory) -> Memory {
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        inner.partial.remove(&hash);
        if inner.present.get(&hash).is_some_and(|present| present.memory.is_lost()) {
            inner.present.remove(&hash);
        }
        inner.present.entry(hash).or_insert(Present { memory, used }).memory.clone()
    }

    /// Lets others find the upload of a content. `false`: there is one already.
    pub(crate) fn announce(&self, hash: ContentHash, upload: &Arc<Upload>) -> bool {
        let mut inner = self.lock();
        if inner.partial.contains_key(&hash) || inner.present.contains_key(&hash) {
            return false;
        }
        inner.partial.insert(hash, upload.clone());
        true
    }

    /// The upload failed, or was given up.
    pub(crate) fn withdraw(&self, hash: &ContentHash, upload: &Arc<Upload>) {
        let mut inner = self.lock();
        if inner.partial.get(hash).is_some_and(|u| Arc::ptr_eq(u, upload)) {
            inner.partial.remove(hash);
        }
    }

    /// Lets go of uploads that nobody waits for and `expired` says so of. How many.
    pub(crate) fn forget_partial(&self, expired: impl Fn(&Upload) -> bool) -> usize {
        let mut inner = self.lock();
        let before = inner.partial.len();
        inner.partial.retain(|_, upload| upload.is_awaited() || !expired(upload));
        before - inner.partial.len()
    }

    /// Bytes of device memory that could be freed.
    pub(crate) fn evictable_bytes(&self) -> u64 {
        let inner = self.lock();
        let idle = inner.present.values().filter(|p| p.is_idle()).map(|p| p.memory.len());
        let orphaned = inner.partial.values().filter(|u| !u.is_awaited()).map(|u| u.landing.total());
        idle.chain(orphaned).filter_map(Pool::charge).sum()
    }

    /// Frees an upload that nobody waits for; the bytes that it had.
    pub(crate) fn evict_upload(&self) -> Option<u64> {
        let mut inner = self.lock();
        let orphan = inner.partial.iter().filter(|(_, u)| !u.is_awaited()).map(|(hash, _)| *hash).min()?;
        let upload = inner.partial.remove(&orphan)?;
        drop(inner);
        Some(upload.landing.total())
    }

    /// The least recently used weight that nobody holds.
    pub(crate) fn oldest_idle(&self) -> Option<(ContentHash, Memory)> {
        let inner = self.lock();
        let idle = inner.present.iter().filter(|(_, p)| p.is_idle()).min_by_key(|(_, p)| p.used);
        idle.map(|(hash, present)| (*hash, present.memory.clone()))
    }

    /// Frees a weight that [`Self::oldest_idle`] gave, if nobody has come to hold it since; the bytes that it had.
    pub(crate) fn release(&self, hash: &ContentHash, memory: Memory) -> Option<u64> {
        let mut inner = self.lock();
        let same = inner.present.get(hash).is_some_and(|present| present.memory.address() == memory.address());
        // Beside the store's there is the caller's.
        let gone = if same && memory.holders() == 2 { inner.present.remove(hash) } else { None };
        drop(inner);
        gone.map(|_| memory.len())
    }

    /// Lets go of everything: it is lost.
    pub(crate) fn clear(&self) {
        let (present, partial) = {
            let mut inner = self.lock();
            (std::mem::take(&mut inner.present), std::mem::take(&mut inner.partial))
        };
        drop((present, partial));
    }

    /// How many weights there are, and their bytes.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.present.len() as u64, inner.present.values().map(|p| p.memory.len()).sum())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
