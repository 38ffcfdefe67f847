//! Sets of weights that were offered: whoever brings the same weights next names all of them by one hash.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_transport::wire::{ContentHash, TensorSpec};

/// What each owner may make the server remember: an eighth of all.
const SHARE: u64 = 8;

/// The fewest weights of a set: one is named by its own hash.
const FEWEST: usize = 2;

/// A short list counts as this many bytes: there are never so many that it takes long to look for the oldest.
const LEAST: usize = 4096;

/// The lists behind sets' hashes, whether their weights are here or not: that is looked up when a set is asked for. A list says nothing
/// that whoever knows its hash may not know, and outlives the session that offered it.
///
/// At most so many bytes of them. An owner whose share is full loses its own least recently used; where all together take too much, the
/// owner with the most does: what one offers pushes nobody else's out before that.
#[derive(Debug)]
pub(crate) struct Sets {
    limit: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<ContentHash, Known>,
    /// Bytes of each owner's. Owners that have none are not in it.
    owners: BTreeMap<Arc<str>, u64>,
    taken: u64,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Known {
    entries: Arc<[(ContentHash, TensorSpec)]>,
    owner: Arc<str>,
    bytes: u64,
    used: u64,
}

impl Sets {
    /// Lists that together take at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { limit, inner: Mutex::default() }
    }

    /// Remembers what somebody has offered, if it is a set and their share has room for it.
    pub(crate) fn remember(&self, owner: &str, entries: &[(ContentHash, TensorSpec)]) {
        let (bytes, share) = (cost(entries), self.limit / SHARE);
        if entries.len() < FEWEST || bytes > share {
            return;
        }
        let hash = ContentHash::of_set(entries);
        let mut inner = self.lock();
        inner.clock += 1;
        let used = inner.clock;
        if let Some(known) = inner.known.get_mut(&hash) {
            known.used = used;
            return;
        }
        while inner.held(owner) > share - bytes && inner.forget_oldest_of(owner) {}
        while inner.taken > self.limit - bytes {
            let most = inner.owners.iter().max_by_key(|(_, held)| **held).map(|(owner, _)| owner.clone());
            if !most.is_some_and(|owner| inner.forget_oldest_of(&owner)) {
                break;
            }
        }
        let owner: Arc<str> =
            inner.owners.get_key_value(owner).map_or_else(|| owner.into(), |(owner, _)| owner.clone());
        *inner.owners.entry(owner.clone()).or_default() += bytes;
        inner.taken += bytes;
        inner.known.insert(hash, Known { entries: entries.into(), owner, bytes, used });
    }

    /// What belongs to a set.
    pub(crate) fn find(&self, hash: &ContentHash) -> Option<Arc<[(ContentHash, TensorSpec)]>> {
        let mut inner = self.lock();
        inner.clock += 1;
        let now = inner.clock;
        let known = inner.known.get_mut(hash)?;
        known.used = now;
        Some(known.entries.clone())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> u64 {
        self.lock().known.len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn held(&self, owner: &str) -> u64 {
        self.owners.get(owner).copied().unwrap_or(0)
    }

    /// `false`: the owner has none.
    fn forget_oldest_of(&mut self, owner: &str) -> bool {
        let own = self.known.iter().filter(|(_, known)| *known.owner == *owner);
        let oldest = own.min_by_key(|(_, known)| known.used).map(|(hash, _)| *hash);
        let Some(known) = oldest.and_then(|hash| self.known.remove(&hash)) else { return false };
        self.taken -= known.bytes;
        if let Some(held) = self.owners.get_mut(owner) {
            *held -= known.bytes;
            if *held == 0 {
                self.owners.remove(owner);
            }
        }
        true
    }
}

/// Bytes of memory that a list counts as: those that it takes with its place in the table, or [`LEAST`].
fn cost(entries: &[(ContentHash, TensorSpec)]) -> u64 {
    let dims: usize = entries.iter().map(|(_, spec)| size_of_val(spec.dims())).sum();
    (size_of::<(ContentHash, Known)>() + size_of_val(entries) + dims).max(LEAST) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use genie_graph::DType;

    fn set(first: u8, weights: u8) -> Vec<(ContentHash, TensorSpec)> {
        let spec = TensorSpec::new(DType::U8, &[8]).unwrap();
        (0..weights).map(|i| (ContentHash([first.wrapping_add(i); 32]), spec.clone())).collect()
    }

    fn knows(sets: &Sets, entries: &[(ContentHash, TensorSpec)]) -> bool {
        sets.find(&ContentHash::of_set(entries)).is_some_and(|found| *found == *entries)
    }

    fn is_consistent(sets: &Sets) {
        let inner = sets.lock();
        assert_eq!(inner.taken, inner.known.values().map(|known| known.bytes).sum::<u64>());
        assert_eq!(inner.taken, inner.owners.values().sum::<u64>());
        assert!(inner.taken <= sets.limit && inner.owners.values().all(|&held| held > 0 && held <= sets.limit / SHARE));
    }

    #[test]
    fn a_set_is_what_was_offered_in_its_order() {
        let sets = Sets::new(1 << 20);
        let mut entries = set(1, 3);
        sets.remember("a", &entries);
        sets.remember("b", &entries);
        assert!(knows(&sets, &entries));
        assert_eq!(sets.count(), 1, "it is the same, whoever offers it");
        entries.swap(0, 1);
        assert!(!knows(&sets, &entries));
        sets.remember("a", &entries[..1]);
        sets.remember("a", &[]);
        assert_eq!(sets.count(), 1, "one weight is no set");
    }

    #[test]
    fn who_offers_much_pushes_out_nobody_elses() {
        let limit = 2 * SHARE * cost(&set(0, 4));
        let sets = Sets::new(limit);
        let honest = set(200, 4);
        sets.remember("honest", &honest);
        for first in 0..100 {
            sets.remember("hostile", &set(first, 4));
            is_consistent(&sets);
        }
        assert!(knows(&sets, &honest));
        assert_eq!(sets.count(), 3, "a share has room for two");
        assert!(knows(&sets, &set(98, 4)) && knows(&sets, &set(99, 4)) && !knows(&sets, &set(97, 4)));
        // With all shares full, who has the most makes room.
        for owner in 0..2 * SHARE - 2 {
            sets.remember(&format!("owner {owner}"), &set(120 + owner as u8, 4));
            is_consistent(&sets);
        }
        assert!(knows(&sets, &honest) && knows(&sets, &set(99, 4)) && !knows(&sets, &set(98, 4)));
    }

    #[test]
    fn the_least_recently_used_goes_and_what_is_too_large_is_not_kept() {
        let sets = Sets::new(2 * SHARE * cost(&set(0, 4)));
        sets.remember("a", &set(10, 4));
        sets.remember("a", &set(20, 4));
        assert!(knows(&sets, &set(10, 4)));
        sets.remember("a", &set(30, 4));
        assert!(knows(&sets, &set(10, 4)) && !knows(&sets, &set(20, 4)));
        sets.remember("a", &set(40, 200));
        assert!(!knows(&sets, &set(40, 200)) && knows(&sets, &set(10, 4)));
        is_consistent(&sets);
    }
}
