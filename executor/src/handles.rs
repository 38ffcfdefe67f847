//! Handles: a slot, how often the slot was reused, and the server's life.

use genie_transport::wire::{ErrorCode, Handle, RemoteError};

use crate::error::fail;

/// The objects of one session by handle. Freed slots are reused under a new generation, so that an old handle never reaches a
/// new object.
#[derive(Debug)]
pub(crate) struct HandleTable<T> {
    epoch: u64,
    /// The generation of a slot that was never used.
    first: u32,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: usize,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    object: Option<T>,
}

impl<T> HandleTable<T> {
    /// A table of at most `limit` objects, of the session with this number. Where generations begin depends on the session: a
    /// handle of another one, or of one that has ended, does not fit by chance what has the same slot here.
    pub(crate) fn new(epoch: u64, session: u64, limit: usize) -> Self {
        let hash = blake3::hash(&session.to_le_bytes());
        let start = hash.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let first = 1 + (start & 0x3fff_ffff);
        Self { epoch, first, slots: Vec::new(), free: Vec::new(), limit }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another object fits.
    pub(crate) fn has_room(&self) -> Result<(), RemoteError> {
        self.has_room_for(1)
    }

    /// Whether so many more objects fit.
    pub(crate) fn has_room_for(&self, more: usize) -> Result<(), RemoteError> {
        if more <= self.limit.saturating_sub(self.len()) {
            return Ok(());
        }
        Err(fail(ErrorCode::Busy, format!("the session has {} handles, its limit: free some", self.limit)))
    }

    /// Gives the object a handle; the caller has asked [`Self::has_room`].
    pub(crate) fn insert(&mut self, object: T) -> Handle {
        if let Some(index) = self.free.pop() {
            // A slot on the free list exists and is empty.
            let slot = &mut self.slots[index as usize];
            slot.object = Some(object);
            return Handle { index, generation: slot.generation, epoch: self.epoch };
        }
        // The limit is far below 2^32.
        let index = self.slots.len() as u32;
        self.slots.push(Slot { generation: self.first, object: Some(object) });
        Handle { index, generation: self.first, epoch: self.epoch }
    }

    /// The object with this handle.
    pub(crate) fn get(&self, handle: Handle) -> Result<&T, RemoteError> {
        let slot = self.slot(handle)?;
        self.slots[slot].object.as_ref().ok_or_else(|| stale(handle))
    }

    /// Takes the object out; its handle is stale from here on.
    pub(crate) fn remove(&mut self, handle: Handle) -> Result<T, RemoteError> {
        let index = self.slot(handle)?;
        let slot = &mut self.slots[index];
        let object = slot.object.take().ok_or_else(|| stale(handle))?;
        // A slot whose generations are used up is retired rather than wrapped: an old handle must never fit again.
        match slot.generation.checked_add(1) {
            Some(next) => {
                slot.generation = next;
                self.free.push(handle.index);
            }
            None => slot.generation = u32::MAX,
        }
        Ok(object)
    }

    /// Every object.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.object.as_ref())
    }

    /// Every object, as the session ends.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.object).collect()
    }

    fn slot(&self, handle: Handle) -> Result<usize, RemoteError> {
        if handle.epoch != self.epoch {
            return Err(fail(
                ErrorCode::EpochGone,
                format!(
                    "the handle is from the server's life {}, this is {}: open a new session",
                    handle.epoch, self.epoch
                ),
            ));
        }
        let index = handle.index as usize;
        match self.slots.get(index) {
            Some(slot) if slot.generation == handle.generation => Ok(index),
            Some(slot) if (self.first..slot.generation).contains(&handle.generation) => Err(stale(handle)),
            _ => Err(fail(
                ErrorCode::NoSuchHandle,
                format!("this session gave out no handle {}.{}", handle.index, handle.generation),
            )),
        }
    }
}

fn stale(handle: Handle) -> RemoteError {
    let Handle { index, generation, .. } = handle;
    let message =
        format!("what handle {index}.{generation} named was freed: put it again, or use a handle that is live");
    fail(ErrorCode::StaleHandle, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_handle_never_reaches_a_new_object() {
        let mut table = HandleTable::new(7, 1, 2);
        let a = table.insert("a");
        let b = table.insert("b");
        assert_eq!(table.has_room().unwrap_err().code, ErrorCode::Busy);
        assert_eq!(table.remove(a).unwrap(), "a");
        assert_eq!(table.get(a).unwrap_err().code, ErrorCode::StaleHandle);
        let c = table.insert("c");
        assert_eq!((c.index, c.generation), (a.index, a.generation + 1));
        assert_eq!(table.get(a).unwrap_err().code, ErrorCode::StaleHandle);
        assert_eq!(table.remove(a).unwrap_err().code, ErrorCode::StaleHandle);
        assert_eq!((*table.get(b).unwrap(), *table.get(c).unwrap()), ("b", "c"));
    }

    #[test]
    fn forged_handles_are_refused() {
        let mut table = HandleTable::new(7, 1, 8);
        let a = table.insert(());
        for (handle, code) in [
            (Handle { epoch: 8, ..a }, ErrorCode::EpochGone),
            (Handle { index: 1, ..a }, ErrorCode::NoSuchHandle),
            (Handle { index: u32::MAX, ..a }, ErrorCode::NoSuchHandle),
            (Handle { generation: a.generation + 1, ..a }, ErrorCode::NoSuchHandle),
            (Handle { generation: a.generation - 1, ..a }, ErrorCode::NoSuchHandle),
            (Handle { generation: 1, ..a }, ErrorCode::NoSuchHandle),
            (Handle { generation: 0, ..a }, ErrorCode::NoSuchHandle),
        ] {
            assert_eq!(table.get(handle).unwrap_err().code, code, "{handle:?}");
        }
    }
}
