//! A fixed number of slabs that go round.

use std::sync::Arc;

use super::pool::Shelf;
use super::slab::Slab;

/// Slabs of one size that were made once, and come back when they are dropped: memory that is dear to make, as pinned memory is.
///
/// When the ring itself is dropped, what is out is freed as it is dropped.
pub struct Ring {
    shelf: Arc<Shelf>,
    slab_bytes: usize,
    slabs: usize,
}

impl Ring {
    /// A ring of those of the slabs that have `slab_bytes` bytes.
    pub fn new(slabs: Vec<Slab>, slab_bytes: usize) -> Self {
        let fit: Vec<_> = slabs.into_iter().filter(|slab| slab.len() == slab_bytes).collect();
        let (count, shelf) = (fit.len(), Shelf::empty(u64::MAX));
        fit.into_iter().for_each(|slab| slab.shelve(&shelf));
        Self { shelf, slab_bytes, slabs: count }
    }

    /// A slab of `len` bytes, holding whatever its last user left. `None`: all are out, or they are smaller.
    pub fn take(&self, len: usize) -> Option<Slab> {
        let block = if len <= self.slab_bytes { self.shelf.kept(self.slab_bytes) } else { None };
        block.map(|block| Slab::from_block(block, len))
    }

    /// How many slabs there are, out or not.
    pub fn slabs(&self) -> usize {
        self.slabs
    }

    /// Bytes of each.
    pub fn slab_bytes(&self) -> usize {
        self.slab_bytes
    }

    /// How many are not out.
    pub fn free(&self) -> usize {
        usize::try_from(self.shelf.kept_bytes()).unwrap_or(usize::MAX) / self.slab_bytes.max(1)
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("free", &self.free()).field("slabs", &self.slabs).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::memory::slab::ALIGN;

    #[test]
    fn slabs_go_round_and_are_given_back_to_their_owner_with_the_ring() {
        static GIVEN_BACK: AtomicUsize = AtomicUsize::new(0);
        struct Owner(Slab);
        impl Drop for Owner {
            fn drop(&mut self) {
                assert_eq!(self.0.len(), ALIGN);
                GIVEN_BACK.fetch_add(1, Ordering::Relaxed);
            }
        }
        let slab = || {
            let mut memory = Slab::zeroed(ALIGN);
            let at = NonNull::new(memory.as_mut_ptr()).unwrap();
            // SAFETY: the owner keeps the bytes in place, and nobody uses them but through the slab.
            unsafe { Slab::of_owner(at, ALIGN, Box::new(Owner(memory))) }
        };
        let ring = Ring::new(vec![slab(), slab()], ALIGN);
        assert!(ring.take(ALIGN + 1).is_none());
        let (mut one, other) = (ring.take(100).unwrap(), ring.take(ALIGN).unwrap());
        assert_eq!((one.len(), ring.free()), (100, 0));
        assert!(ring.take(1).is_none());
        one.fill(7);
        let at = one.as_ptr();
        // What is read by somebody is out.
        let region = one.freeze();
        let part = region.slice(5..10).unwrap();
        drop(region);
        assert_eq!((ring.free(), &part[..]), (0, &[7; 5][..]));
        drop(part);
        assert_eq!((ring.free(), ring.take(1).map(|slab| slab.as_ptr())), (1, Some(at)));
        assert_eq!(GIVEN_BACK.load(Ordering::Relaxed), 0);
        drop(ring);
        assert_eq!(GIVEN_BACK.load(Ordering::Relaxed), 1);
        drop(other);
        assert_eq!(GIVEN_BACK.load(Ordering::Relaxed), 2);
    }
}
