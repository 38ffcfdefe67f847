//! A pool of slabs in size classes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::slab::{ALIGN, Block, NextUser, Slab};

/// The pool's limit would be passed; nothing was allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes wanted, but {used} of {limit} are in use: free tensors, or give the server more memory")]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes in use by live slabs.
    pub used: u64,
    /// The most the pool may hand out.
    pub limit: u64,
}

/// Slabs by size class; given-back slabs are handed out again before fresh memory is.
#[derive(Clone)]
pub struct Pool {
    shelf: Arc<Shelf>,
}

pub(super) struct Shelf {
    limit: u64,
    /// Bytes in live slabs.
    used: AtomicU64,
    /// Bytes on the shelf, ready to be handed out.
    kept: AtomicU64,
    free: Mutex<Free>,
}

/// Blocks by their capacity.
type Sizes = HashMap<usize, Vec<Block>>;

/// Blocks that nobody uses.
#[derive(Default)]
struct Free {
    common: Sizes,
    /// Those whose pages were lent to a session's sockets, for as long as there is the session.
    lent: HashMap<u64, Sizes>,
}

impl Pool {
    /// A pool whose live slabs together take at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { shelf: Shelf::empty(limit) }
    }

    /// A slab of `len` bytes, holding whatever its last user left.
    ///
    /// # Errors
    /// [`OutOfMemory`] if the limit would be passed.
    pub fn take(&self, len: usize) -> Result<Slab, OutOfMemory> {
        self.take_from(len, |free, class| free.common.get_mut(&class)?.pop())
    }

    /// As [`Self::take`], for a session that may have lent such memory ([`super::Region::lend`]): it is handed out again before
    /// any other is. The session must be [forgotten](Self::forget) when it ends.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_for(&self, len: usize, session: u64) -> Result<Slab, OutOfMemory> {
        self.take_from(len, |free, class| {
            let own = free.lent.entry(session).or_default().get_mut(&class).and_then(Vec::pop);
            own.or_else(|| free.common.get_mut(&class)?.pop())
        })
    }

    /// The session is over: what it had lent is unmapped, now or when it is given back.
    pub fn forget(&self, session: u64) {
        let blocks = self.shelf.lock().lent.remove(&session);
        // Unmapped after the lock.
        let blocks = blocks.into_iter().flat_map(HashMap::into_values).flatten();
        let bytes: usize = blocks.map(|block| block.capacity).sum();
        self.shelf.kept.fetch_sub(bytes as u64, Ordering::AcqRel);
    }

    fn take_from(&self, len: usize, kept: impl FnOnce(&mut Free, usize) -> Option<Block>) -> Result<Slab, OutOfMemory> {
        let shelf = &self.shelf;
        let class = size_class(len).ok_or_else(|| shelf.refuse(len as u64))?;
        let reserve = |used: u64| used.checked_add(class as u64).filter(|&sum| sum <= shelf.limit);
        shelf.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).map_err(|_| shelf.refuse(len as u64))?;
        let kept = kept(&mut shelf.lock(), class);
        let mut block = match kept {
            Some(block) => {
                shelf.kept.fetch_sub(class as u64, Ordering::AcqRel);
                block
            }
            None => {
                shelf.make_room(class as u64);
                Block::new(class).ok_or_else(|| {
                    shelf.used.fetch_sub(class as u64, Ordering::AcqRel);
                    shelf.refuse(len as u64)
                })?
            }
        };
        block.shelf = Arc::downgrade(shelf);
        Ok(Slab::from_block(block, len))
    }

    /// Bytes in live slabs, rounded up to their size classes.
    pub fn used(&self) -> u64 {
        self.shelf.used.load(Ordering::Acquire)
    }

    /// The most that live slabs may take.
    pub fn limit(&self) -> u64 {
        self.shelf.limit
    }

    /// The bytes that a slab of `len` bytes is charged.
    pub fn charge(len: u64) -> Option<u64> {
        size_class(usize::try_from(len).ok()?).map(|c| c as u64)
    }
}

impl Shelf {
    /// One without blocks, for those that are brought to it.
    pub(super) fn empty(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicU64::new(0), kept: AtomicU64::new(0), free: Mutex::default() })
    }

    /// A block that was made elsewhere is about to be put back here.
    pub(super) fn take_in(&self, capacity: usize) {
        self.used.fetch_add(capacity as u64, Ordering::AcqRel);
    }

    /// A block of this capacity that is here.
    pub(super) fn kept(self: &Arc<Self>, capacity: usize) -> Option<Block> {
        let mut block = self.lock().common.get_mut(&capacity).and_then(Vec::pop)?;
        self.kept.fetch_sub(capacity as u64, Ordering::AcqRel);
        self.used.fetch_add(capacity as u64, Ordering::AcqRel);
        block.shelf = Arc::downgrade(self);
        Some(block)
    }

    /// Bytes that are here.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.kept.load(Ordering::Acquire)
    }

    pub(super) fn put_back(&self, block: Block) {
        let capacity = block.capacity;
        let next = block.next_user();
        let mut free = self.lock();
        let sizes = match next {
            NextUser::Anybody => Some(&mut free.common),
            NextUser::Session(session) => free.lent.get_mut(&session),
            NextUser::Nobody => None,
        };
        let unwanted = match sizes {
            Some(sizes) => {
                self.kept.fetch_add(capacity as u64, Ordering::AcqRel);
                sizes.entry(capacity).or_default().push(block);
                None
            }
            None => Some(block),
        };
        drop(free);
        // Unmapped, if it is, after the lock, and before others may have as much.
        drop(unwanted);
        self.used.fetch_sub(capacity as u64, Ordering::AcqRel);
    }

    /// Frees kept blocks until `wanted` more bytes fit under the limit beside what is live and kept.
    fn make_room(&self, wanted: u64) {
        let mut free = self.lock();
        let Free { common, lent } = &mut *free;
        for blocks in common.values_mut().chain(lent.values_mut().flat_map(HashMap::values_mut)) {
            while self.used.load(Ordering::Acquire).saturating_add(self.kept.load(Ordering::Acquire))
                > self.limit.max(wanted)
            {
                let Some(block) = blocks.pop() else { break };
                self.kept.fetch_sub(block.capacity as u64, Ordering::AcqRel);
            }
        }
    }

    fn refuse(&self, wanted: u64) -> OutOfMemory {
        OutOfMemory { wanted, used: self.used.load(Ordering::Acquire), limit: self.limit }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sizes are rounded up to an eighth of the power of two below them, so that at most 12.5 % is lost and blocks fit again.
fn size_class(len: usize) -> Option<usize> {
    let len = len.max(1);
    let step = (len.checked_next_power_of_two()? / 16).max(ALIGN);
    len.checked_next_multiple_of(step).filter(|&n| isize::try_from(n).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Region;

    #[test]
    fn recycles_and_refuses_over_the_limit() {
        let pool = Pool::new(1 << 20);
        let a = pool.take(512 << 10).unwrap();
        let address = a.as_ptr();
        assert!(pool.take(600 << 10).is_err());
        drop(a);
        assert_eq!(pool.used(), 0);
        assert_eq!(pool.take(512 << 10).unwrap().as_ptr(), address, "the same block comes back");
    }

    /// What a session's sockets may still refer to goes to that session or to the system, never to others.
    #[test]
    fn lent_memory_is_used_again_by_whom_it_was_lent_to_alone() {
        const BYTES: usize = 1 << 20;
        let pool = Pool::new(4 * BYTES as u64);
        let lent = |to: &[u64]| {
            let region = pool.take_for(BYTES, 7).unwrap().freeze();
            assert!(to.iter().all(|&session| region.lend(session)));
            region
        };
        let region = lent(&[7, 7]);
        let at = region.as_ptr();
        assert!(region.clone().try_thaw().is_err() && region.clone().try_thaw_for(8).is_err(), "also held twice");
        let region = region.try_thaw_for(8).unwrap_err().try_thaw().unwrap_err();
        drop(region.try_thaw_for(7).unwrap());
        let kept = || pool.shelf.kept.load(Ordering::Acquire);
        assert_eq!((kept(), pool.used()), (BYTES as u64, 0));
        let others = [pool.take(BYTES).unwrap(), pool.take_for(BYTES, 8).unwrap()];
        assert!(others.iter().all(|slab| slab.as_ptr() != at));
        let again = pool.take_for(BYTES, 7).unwrap();
        assert_eq!(again.as_ptr(), at);
        // It is lent yet.
        drop(again);
        assert_eq!(kept(), BYTES as u64);
        drop(others);
        assert_eq!(kept(), 3 * BYTES as u64);
        // Two sessions', and what nobody said was read: of no use.
        drop(lent(&[7, 8]));
        assert_eq!((kept(), pool.used()), (2 * BYTES as u64, 0));
        let unread = lent(&[7]);
        unread.spoil();
        drop(unread);
        assert_eq!((kept(), pool.used()), (BYTES as u64, 0));
        // Where room is needed they go like others; and with their session.
        let [one, other] = [lent(&[7]), lent(&[7])];
        drop((one, other));
        assert_eq!(kept(), 2 * BYTES as u64);
        assert!(pool.take(4 * BYTES).is_ok());
        let one = lent(&[7]);
        drop(lent(&[7]));
        pool.forget(7);
        pool.forget(8);
        drop(one);
        assert!(pool.shelf.lock().lent.is_empty());
        assert_eq!(pool.used(), 0);
        let small = pool.take(4096).unwrap().freeze();
        assert!(!small.lend(7), "others lie on its pages, or nobody else may map them");
    }

    #[test]
    fn kept_blocks_make_room_for_other_sizes() {
        let pool = Pool::new(1 << 20);
        drop(pool.take(1 << 20).unwrap());
        let small: Vec<_> = (0..4).map(|_| pool.take(200 << 10).unwrap()).collect();
        assert_eq!(small.len(), 4);
        assert!(pool.shelf.kept.load(Ordering::Acquire) + pool.used() <= 1 << 20);
    }

    #[test]
    fn a_frozen_slab_thaws_only_alone() {
        let region = Region::copy_of(b"weights");
        let other = region.clone();
        let region = region.try_thaw().unwrap_err();
        drop(other);
        assert_eq!(&*region.try_thaw().unwrap(), b"weights");
    }
}
