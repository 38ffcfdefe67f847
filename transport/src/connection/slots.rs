//! Requests by their ids: the newest at hand, the others in a map.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::requests::Slot;

/// Who asks for one thing after the other, as a decode loop does, only ever has the newest: it is found without a hash.
///
/// Boxed: what moves from here to the spare ones and back is a pointer.
#[derive(Debug, Default)]
pub(super) struct Slots {
    newest: Option<(u64, Box<Slot>)>,
    older: HashMap<u64, Box<Slot>, BuildHasherDefault<IdHasher>>,
}

impl Slots {
    /// Adds one with an id that none has.
    pub(super) fn insert(&mut self, id: u64, slot: Box<Slot>) -> &mut Slot {
        if let Some((before, older)) = self.newest.take() {
            self.older.insert(before, older);
        }
        &mut self.newest.insert((id, slot)).1
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Slot> {
        match &mut self.newest {
            Some((newest, slot)) if *newest == id => Some(slot),
            _ => self.older.get_mut(&id).map(|slot| &mut **slot),
        }
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Box<Slot>> {
        match self.newest.take_if(|(newest, _)| *newest == id) {
            Some((_, slot)) => Some(slot),
            None => self.older.remove(&id),
        }
    }

    /// All of them, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Slot)> {
        let newest = self.newest.iter().map(|(id, slot)| (*id, &**slot));
        newest.chain(self.older.iter().map(|(id, slot)| (*id, &**slot)))
    }

    /// All of them, in no order.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        let newest = self.newest.iter_mut().map(|(_, slot)| &mut **slot);
        newest.chain(self.older.values_mut().map(|slot| &mut **slot))
    }
}

/// Hashes the client's own counting ids: no peer chooses them, so nothing is needed against collisions.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&b| self.write_u64(u64::from(b)));
    }

    fn write_u64(&mut self, id: u64) {
        // Fibonacci hashing (Knuth, TAOCP 6.4): neighbours spread over the whole word.
        self.0 = (self.0 ^ id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
