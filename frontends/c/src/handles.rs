//! Which pointers are alive.
//!
//! What C holds is a typed pointer, so that its compiler tells kinds apart, but it leads nowhere: it is the number of a slot and how often
//! the slot was used. So a pointer that is passed after it was freed, twice, or as another kind is an error, and no memory is touched. That
//! costs a lock for reading and a count for each object a call names, some tens of nanoseconds beside a request's microseconds.

use std::ptr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::status::{Failure, genie_status};

/// Objects of one kind.
pub(crate) struct Table<T> {
    kind: u64,
    /// What the header calls it.
    name: &'static str,
    slots: RwLock<Slots<T>>,
}

struct Slots<T> {
    all: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<Arc<T>>,
}

/// Bits of the kind: it is never 0, so that no object is NULL.
const KIND_BITS: u32 = 4;

/// Bits of the slot's number.
const INDEX_BITS: u32 = 28;

impl<T> Table<T> {
    /// An empty one; `kind` is another for each, from 1 to 15.
    pub(crate) const fn new(kind: u64, name: &'static str) -> Self {
        Self { kind, name, slots: RwLock::new(Slots { all: Vec::new(), free: Vec::new() }) }
    }

    /// Adds an object: what C calls it by.
    ///
    /// # Errors
    /// There are too many.
    pub(crate) fn add<H>(&self, value: T) -> Result<*mut H, Failure> {
        let mut slots = self.write();
        let index = match slots.free.pop() {
            Some(index) => index,
            None if slots.all.len() < 1 << INDEX_BITS => {
                slots.all.push(Slot { generation: 1, value: None });
                slots.all.len() as u32 - 1
            }
            None => return Err(Failure::new(genie_status::GENIE_ERROR_NO_MEMORY, "too many objects: free some")),
        };
        let slot = &mut slots.all[index as usize];
        slot.value = Some(Arc::new(value));
        let number = u64::from(slot.generation) << (KIND_BITS + INDEX_BITS) | u64::from(index) << KIND_BITS | self.kind;
        Ok(ptr::without_provenance_mut(number as usize))
    }

    /// The object.
    ///
    /// # Errors
    /// NULL, or no object of this kind.
    pub(crate) fn get<H>(&self, handle: *const H) -> Result<Arc<T>, Failure> {
        let (index, generation) = self.read_number(handle)?;
        let slots = self.read();
        let slot = slots.all.get(index as usize).filter(|slot| slot.generation == generation);
        slot.and_then(|slot| slot.value.clone()).ok_or_else(|| self.stale())
    }

    /// The object, which C has no more.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn remove<H>(&self, handle: *const H) -> Result<Arc<T>, Failure> {
        let (index, generation) = self.read_number(handle)?;
        let mut slots = self.write();
        let slot = slots.all.get_mut(index as usize).filter(|slot| slot.generation == generation);
        let (slot, value) = slot.and_then(|slot| slot.value.take().map(|v| (slot, v))).ok_or_else(|| self.stale())?;
        // After four thousand million uses a slot is not used again: its first pointers could come to life.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            slots.free.push(index);
        }
        Ok(value)
    }

    fn read_number<H>(&self, handle: *const H) -> Result<(u32, u32), Failure> {
        if handle.is_null() {
            return Err(Failure::argument(format!("a {} is NULL", self.name)));
        }
        let number = handle.addr() as u64;
        if number & ((1 << KIND_BITS) - 1) != self.kind {
            return Err(Failure::new(genie_status::GENIE_ERROR_HANDLE, format!("a pointer is to no {}", self.name)));
        }
        let index = (number >> KIND_BITS) as u32 & ((1 << INDEX_BITS) - 1);
        Ok((index, (number >> (KIND_BITS + INDEX_BITS)) as u32))
    }

    fn stale(&self) -> Failure {
        let message = format!("a {} was freed before, or never was one: use each until it is freed, once", self.name);
        Failure::new(genie_status::GENIE_ERROR_HANDLE, message)
    }

    fn read(&self) -> RwLockReadGuard<'_, Slots<T>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slots<T>> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing;

    fn status<T>(result: Result<T, Failure>) -> genie_status {
        result.map_or_else(|failure| failure.status, |_| genie_status::GENIE_OK)
    }

    #[test]
    fn what_was_freed_is_known() {
        let (things, others) = (Table::new(1, "thing"), Table::<u8>::new(2, "other"));
        let one: *mut Thing = things.add("one").unwrap();
        assert_eq!(*things.get(one).unwrap(), "one");
        assert_eq!(*things.remove(one).unwrap(), "one");
        let two: *mut Thing = things.add("two").unwrap();
        assert_ne!(one, two, "the slot is the same, the pointer another");
        assert_eq!(status(things.get(one)), genie_status::GENIE_ERROR_HANDLE);
        assert_eq!(status(things.remove(one)), genie_status::GENIE_ERROR_HANDLE);
        assert_eq!(*things.get(two).unwrap(), "two");
        assert_eq!(status(others.get(two)), genie_status::GENIE_ERROR_HANDLE);
        assert_eq!(status(things.get(ptr::null::<Thing>())), genie_status::GENIE_ERROR_ARGUMENT);
        let stack = 7;
        assert_eq!(status(things.get(&raw const stack)), genie_status::GENIE_ERROR_HANDLE);
    }

    #[test]
    fn a_slot_that_was_used_up_is_left() {
        let things = Table::new(1, "thing");
        let first: *mut Thing = things.add(1).unwrap();
        things.write().all[0].generation = u32::MAX;
        assert!(things.get(first).is_err());
        let last = ptr::without_provenance::<Thing>(u64::from(u32::MAX) as usize * (1 << 32) + 1);
        assert_eq!(*things.remove(last).unwrap(), 1);
        let next: *mut Thing = things.add(2).unwrap();
        assert_eq!((*things.get(next).unwrap(), things.read().all.len()), (2, 2));
        assert!(things.get(last).is_err());
    }
}
