//! Which allocation an address lies in: what a device needs to know to register each allocation once, however many views of it
//! are sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A live allocation of Genie's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Names it; no other allocation of the process ever has the same.
    pub id: u64,
    /// Its first byte.
    pub start: usize,
    /// Its bytes.
    pub len: usize,
    /// Whether it is memory that may be written: a file that is mapped is not.
    pub writable: bool,
}

static TABLE: Mutex<BTreeMap<usize, Extent>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(1);
static GONE: AtomicU64 = AtomicU64::new(0);

/// An allocation has come to life. `None`: it is empty.
pub(super) fn add(start: *const u8, len: usize, writable: bool) {
    if len == 0 {
        return;
    }
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    lock().insert(start as usize, Extent { id, start: start as usize, len, writable });
}

/// It is about to be freed.
pub(super) fn remove(start: *const u8) {
    if lock().remove(&(start as usize)).is_some() {
        GONE.fetch_add(1, Ordering::Release);
    }
}

/// The allocation that all of these bytes lie in.
pub fn extent_of(start: *const u8, len: usize) -> Option<Extent> {
    let table = lock();
    let (_, &extent) = table.range(..=start as usize).next_back()?;
    let end = (start as usize).checked_add(len)?;
    (end <= extent.start.checked_add(extent.len)?).then_some(extent)
}

/// Whether this allocation is still there.
pub fn is_live(extent: &Extent) -> bool {
    lock().get(&extent.start).is_some_and(|e| e.id == extent.id)
}

/// Counts the allocations that are gone: whoever remembers some looks again when it has changed.
pub fn extents_gone() -> u64 {
    GONE.load(Ordering::Acquire)
}

fn lock() -> MutexGuard<'static, BTreeMap<usize, Extent>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Slab;

    #[test]
    fn views_lie_in_their_allocation_until_it_is_gone() {
        let slab = Slab::zeroed(10_000);
        let start = slab.as_ptr();
        let whole = extent_of(start, 10_000).expect("a live allocation");
        assert_eq!(whole.start, start as usize);
        let region = slab.freeze();
        let view = region.slice(5000..6000).expect("a part");
        assert_eq!(extent_of(view.as_ptr(), view.len()), Some(whole));
        assert!(extent_of(view.as_ptr(), 1 << 30).is_none(), "longer than the allocation");
        drop(region);
        assert!(is_live(&whole), "the view holds it");
        drop(view);
        assert!(!is_live(&whole));
    }

    #[test]
    fn a_mapped_file_is_known_and_not_writable() {
        let file = std::env::temp_dir().join(format!("genie-extent-{}", std::process::id()));
        std::fs::write(&file, [7_u8; 5000]).expect("a file");
        let region = crate::memory::map_file(&file).expect("mapped");
        std::fs::remove_file(&file).expect("removed");
        let extent = extent_of(region.as_ptr(), region.len()).expect("known");
        assert!(!extent.writable);
        drop(region);
        assert!(!is_live(&extent));
    }
}
