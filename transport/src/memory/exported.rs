//! Memory of a device that network cards can be told of.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::{self, Debug, Formatter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A stretch of a device's memory, given back to the device when this is dropped.
///
/// Links register it whole, once for each of their protection domains, and leave the registrations here: they go before the memory does.
pub struct Exported {
    start: u64,
    len: usize,
    dmabuf: Result<OwnedFd, String>,
    /// By protection domain. A refusal counts for as long as the domain lasts: trying takes as long as many slices.
    attached: Mutex<HashMap<u64, Result<Attached, String>>>,
    /// After all that is attached.
    _owner: Box<dyn Any + Send + Sync>,
}

type Attached = Arc<dyn Any + Send + Sync>;

impl Exported {
    /// `len` bytes at `start`, an address as the device, or whoever maps its memory, has it. `dmabuf`: a descriptor that stands for just
    /// these bytes, or why there is none.
    ///
    /// # Safety
    /// The memory is there until `owner` is dropped. No reference to any of it exists.
    pub unsafe fn new(
        start: u64,
        len: usize,
        dmabuf: Result<OwnedFd, String>,
        owner: Box<dyn Any + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Self { start, len, dmabuf, attached: Mutex::default(), _owner: owner })
    }

    /// The address of its first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A descriptor that stands for it, or why there is none.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn dmabuf(&self) -> Result<BorrowedFd<'_>, &str> {
        self.dmabuf.as_ref().map(AsFd::as_fd).map_err(String::as_str)
    }

    /// What was left here for this domain; made by the first who asks, while others wait.
    ///
    /// # Errors
    /// What `make` failed with, now or when it was first asked.
    pub fn attach<T: Any + Send + Sync>(
        &self,
        domain: u64,
        make: impl FnOnce() -> Result<T, String>,
    ) -> Result<Arc<T>, String> {
        let mut attached = self.lock();
        let found = attached.entry(domain).or_insert_with(|| make().map(|made| Arc::new(made) as Attached)).clone()?;
        found.downcast().map_err(|_| "something else is attached there".to_owned())
    }

    /// The domain is gone: what was left for it goes.
    pub fn detach(&self, domain: u64) {
        let gone = self.lock().remove(&domain);
        drop(gone);
    }

    /// Whether some domain could not register it, and none could.
    pub fn is_refused(&self) -> bool {
        let attached = self.lock();
        !attached.is_empty() && attached.values().all(Result::is_err)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Result<Attached, String>>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debug for Exported {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exported").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}

/// A part of such memory.
#[derive(Clone, Debug)]
pub struct Placed {
    memory: Arc<Exported>,
    offset: usize,
    len: usize,
}

impl Placed {
    /// `len` bytes at `offset`. `None`: they do not lie within.
    pub fn new(memory: &Arc<Exported>, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= memory.len).then(|| Self { memory: memory.clone(), offset, len })
    }

    /// What it is a part of.
    pub fn memory(&self) -> &Arc<Exported> {
        &self.memory
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.memory.start + self.offset as u64
    }

    /// Where it begins within the memory.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it. `None`: not all of that lies within.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        (end <= self.len).then(|| Self { memory: self.memory.clone(), offset: self.offset + offset, len })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Says when it goes, in the order of a counter.
    struct Going(Arc<AtomicUsize>, Arc<AtomicUsize>);

    impl Drop for Going {
        fn drop(&mut self) {
            self.1.store(self.0.fetch_add(1, Ordering::AcqRel) + 1, Ordering::Release);
        }
    }

    #[test]
    fn what_is_attached_is_made_once_and_goes_before_the_memory() {
        let (order, owner, first, second) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        let going = |at: &Arc<AtomicUsize>| Going(Arc::clone(&order), at.clone());
        // SAFETY: nobody reaches anything there.
        let memory = unsafe { Exported::new(4096, 100, Err("none".to_owned()), Box::new(going(&owner))) };
        assert!(!memory.is_refused());
        let one = memory.attach(1, || Ok(going(&first))).expect("made");
        let again = memory.attach::<Going>(1, || panic!("it is there")).expect("found");
        assert!(Arc::ptr_eq(&one, &again));
        memory.attach(2, || Ok(going(&second))).expect("made");
        drop((one, again));
        memory.detach(1);
        drop(memory);
        assert_eq!([&first, &second, &owner].map(|at| at.load(Ordering::Acquire)), [1, 2, 3]);
    }

    #[test]
    fn a_refusal_is_remembered_until_some_domain_takes_it() {
        // SAFETY: nobody reaches anything there.
        let memory = unsafe { Exported::new(0, 1, Err("none".to_owned()), Box::new(())) };
        assert_eq!(memory.attach::<u8>(1, || Err("no".to_owned())), Err("no".to_owned()));
        assert_eq!(memory.attach::<u8>(1, || Ok(1)), Err("no".to_owned()), "it is not tried again");
        assert!(memory.is_refused());
        assert_eq!(memory.attach(2, || Ok(2_u8)), Ok(Arc::new(2)));
        assert!(!memory.is_refused());
    }

    #[test]
    fn parts_lie_within() {
        // SAFETY: nobody reaches anything there.
        let memory = unsafe { Exported::new(4096, 100, Err(String::new()), Box::new(())) };
        let part = Placed::new(&memory, 10, 90).expect("it lies within");
        assert!(Placed::new(&memory, 11, 90).is_none() && Placed::new(&memory, usize::MAX, 2).is_none());
        assert_eq!(
            (part.address(), part.part(80, 10).map(|p| (p.address(), p.offset(), p.len()))),
            (4106, Some((4186, 90, 10)))
        );
        assert!(part.part(80, 11).is_none() && part.part(usize::MAX, 2).is_none());
    }
}
