//! Weights: named by content, shared by every session, uploaded once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_transport::memory::{Pool, Region};
use genie_transport::wire::ContentHash;

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
    region: Region,
    used: u64,
}

impl Present {
    /// Whether no session, binding or send has it.
    fn is_idle(&self) -> bool {
        self.region.holders() == 1
    }
}

/// What a store has of a content.
pub(crate) enum Found {
    Present(Region),
    Partial(Arc<Upload>),
    Absent,
}

impl WeightStore {
    /// What there is of `bytes` bytes with this hash.
    pub(crate) fn find(&self, hash: &ContentHash, bytes: u64) -> Found {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        match inner.present.get_mut(hash) {
            Some(present) if present.region.len() as u64 == bytes => {
                present.used = now;
                return Found::Present(present.region.clone());
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
    pub(crate) fn insert(&self, hash: ContentHash, region: Region) -> Region {
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        inner.partial.remove(&hash);
        inner.present.entry(hash).or_insert(Present { region, used }).region.clone()
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

    /// Bytes of device memory that [`Self::evict`] could free.
    pub(crate) fn evictable_bytes(&self) -> u64 {
        let inner = self.lock();
        let idle = inner.present.values().filter(|p| p.is_idle()).map(|p| p.region.len() as u64);
        let orphaned = inner.partial.values().filter(|u| !u.is_awaited()).map(|u| u.landing.total());
        idle.chain(orphaned).filter_map(Pool::charge).sum()
    }

    /// Frees the least useful thing that nobody holds: first an abandoned upload, then the least recently used weight.
    pub(crate) fn evict(&self) -> bool {
        let mut inner = self.lock();
        let orphan = inner.partial.iter().filter(|(_, u)| !u.is_awaited()).map(|(hash, _)| *hash).min();
        if let Some(hash) = orphan {
            inner.partial.remove(&hash);
            return true;
        }
        let idle = inner.present.iter().filter(|(_, p)| p.is_idle()).min_by_key(|(_, p)| p.used).map(|(hash, _)| *hash);
        idle.is_some_and(|hash| inner.present.remove(&hash).is_some())
    }

    /// How many weights there are, and their bytes.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.present.len() as u64, inner.present.values().map(|p| p.region.len() as u64).sum())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
