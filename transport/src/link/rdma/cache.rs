//! Registered memory, each allocation once.
//!
//! Registering pins pages and tells the device of them, which takes as long as sending a few slices. So an allocation of Genie's (a
//! slab, a mapped file) is registered whole when any view of it is first sent or received, and stays registered until it is
//! freed. Of other memory no more is known than the bytes at hand: these are registered as they are, and are held while they are.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::faults::UNREGISTRABLE;
use super::verbs::{Domain, Registration, access};
use crate::memory::{Extent, Pool, Slab, extent_of, extents_gone, is_live};

/// Foreign memory that stays registered while nothing of it is on its way: as much as this together.
const HELD: usize = 64 << 20;

/// Pieces that stay registered beyond that while others are on their way: enough that puts in flight find theirs again.
const KEPT: usize = 32;

/// Slabs of the lane's own, for slices that cannot be reached where they lie.
const STAGING: u64 = 256 << 20;

/// After so long it is looked again for room in them.
pub(super) const STARVED: Duration = Duration::from_millis(2);

/// What registers memory: a device, or a test's.
pub(super) trait Registrar {
    /// A registration.
    type Registered;

    /// Registers memory for this side's own requests, and, if `shared`, for windows that the peer is given.
    ///
    /// # Safety
    /// The memory stays in place until the registration is dropped, or is only ever named again once it is another's.
    unsafe fn register(&self, at: *const u8, len: usize, shared: bool) -> io::Result<Self::Registered>;
}

impl Registrar for Arc<Domain> {
    type Registered = Registration;

    unsafe fn register(&self, at: *const u8, len: usize, shared: bool) -> io::Result<Registration> {
        let windows = if self.facts().windows { access::WINDOWS } else { 0 };
        let access = if shared { access::LOCAL_WRITE | windows } else { 0 };
        let began = Instant::now();
        // SAFETY: this function's contract. Without windows the peer reaches nothing of it; who posts a request or binds a
        // window answers for the memory's use meanwhile.
        let registered = unsafe { Domain::register(self, at.cast_mut(), len, access) };
        SPENT.fetch_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        registered
    }
}

/// Nanoseconds.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// How long this process has registered memory with devices so far.
pub fn registering() -> Duration {
    Duration::from_nanos(SPENT.load(Ordering::Relaxed))
}

/// The registrations of one protection domain.
pub(super) struct Cache<R: Registrar = Arc<Domain>> {
    registrar: R,
    state: Mutex<State<R::Registered>>,
    staging: Pool,
}

struct State<T> {
    known: HashMap<u64, (Extent, Result<Arc<T>, io::ErrorKind>)>,
    /// Foreign memory, oldest first.
    foreign: VecDeque<(Bytes, Arc<T>)>,
    /// As far as freed allocations were followed.
    gone: u64,
    /// How often memory was registered.
    registered: u64,
}

impl<R: Registrar> Cache<R> {
    pub(super) fn new(registrar: R) -> Self {
        let state = State { known: HashMap::new(), foreign: VecDeque::new(), gone: 0, registered: 0 };
        Self { registrar, state: Mutex::new(state), staging: Pool::new(STAGING) }
    }

    /// The registration of the allocation that these bytes lie in. `None`: it is none of Genie's, or, if `shared`, may not be
    /// written.
    pub(super) fn of(&self, at: *const u8, len: usize, shared: bool) -> io::Result<Option<Arc<R::Registered>>> {
        if UNREGISTRABLE.load(Ordering::Acquire) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.find(at, len, shared)
    }

    fn find(&self, at: *const u8, len: usize, shared: bool) -> io::Result<Option<Arc<R::Registered>>> {
        let mut state = self.lock();
        state.follow();
        let Some(extent) = extent_of(at, len).filter(|e| e.writable || !shared) else { return Ok(None) };
        match state.known.get(&extent.id) {
            Some((_, Ok(found))) => return Ok(Some(found.clone())),
            Some((_, Err(sort))) => return Err((*sort).into()),
            None => {}
        }
        // SAFETY: the allocation is there, since the caller holds bytes of it. When it is freed, `follow` drops the registration
        // before any later allocation at the same place is looked up; until then it names pages that are nobody's.
        let fresh = unsafe { self.registrar.register(extent.start as *const u8, extent.len, extent.writable) };
        let fresh = fresh.map(Arc::new);
        state.registered += u64::from(fresh.is_ok());
        // What cannot be registered (a file that is mapped, before Linux 6.3) is not tried again with every slice; what can, but not
        // now, is.
        let kept = fresh.as_ref().map(Arc::clone).map_err(io::Error::kind);
        if !kept.as_ref().is_err_and(|&sort| passes(sort)) {
            state.known.insert(extent.id, (extent, kept));
        }
        fresh.map(Some)
    }

    /// The registration for a part of these bytes, to be read by this side's requests.
    pub(super) fn to_send(&self, bytes: &Bytes, part: &Range<usize>) -> io::Result<Arc<R::Registered>> {
        let view = bytes.get(part.clone()).unwrap_or_default();
        if let Some(found) = self.of(view.as_ptr(), view.len(), false)? {
            return Ok(found);
        }
        let mut state = self.lock();
        let holds = |held: &Bytes| {
            let (start, at) = (held.as_ptr() as usize, view.as_ptr() as usize);
            start <= at && at + view.len() <= start + held.len()
        };
        if let Some((_, found)) = state.foreign.iter().rev().find(|(held, _)| holds(held)) {
            return Ok(found.clone());
        }
        // SAFETY: `foreign` holds the bytes for as long as the cache holds the registration; a request that uses it longer holds
        // them, too.
        let fresh = Arc::new(unsafe { self.registrar.register(bytes.as_ptr(), bytes.len(), false) }?);
        state.registered += 1;
        state.foreign.push_back((bytes.clone(), fresh.clone()));
        // Puts that overlap never leave it idle. What is on its way is held by who sends it.
        state.let_go(KEPT);
        Ok(fresh)
    }

    /// Nothing is on its way: foreign memory beyond what may be held is let go, the oldest first.
    pub(super) fn idle(&self) {
        self.lock().let_go(0);
    }

    /// A slab to copy a slice through, and its registration. `None`: not now, since others are on their way through all there are.
    pub(super) fn staging(&self, len: usize) -> io::Result<Option<(Slab, Arc<R::Registered>)>> {
        let Ok(slab) = self.staging.take(len) else {
            // What is larger than all of it would wait for ever.
            return match self.staging.used() {
                0 => Err(io::ErrorKind::OutOfMemory.into()),
                _ => Ok(None),
            };
        };
        let registration = match self.find(slab.as_ptr(), slab.len(), true) {
            // Slabs that are in use are registered, and come back.
            Err(error) if passes(error.kind()) && self.staging.used() > charged(slab.len()) => return Ok(None),
            other => other?,
        };
        let registration = registration.ok_or_else(|| io::Error::other("staging memory without owner"))?;
        Ok(Some((slab, registration)))
    }

    /// How often memory was registered.
    #[cfg(test)]
    pub(super) fn registered(&self) -> u64 {
        self.lock().registered
    }

    fn lock(&self) -> MutexGuard<'_, State<R::Registered>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what failed so may succeed later: no more memory may be locked just now, or the device is busy.
fn passes(sort: io::ErrorKind) -> bool {
    matches!(sort, io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// What the staging pool counts for a slab.
fn charged(len: usize) -> u64 {
    Pool::charge(len as u64).unwrap_or(u64::MAX)
}

impl<T> State<T> {
    /// Lets the oldest foreign memory go, as far as more is held than may be; so many pieces stay in any case.
    fn let_go(&mut self, kept: usize) {
        let mut held: usize = self.foreign.iter().map(|(bytes, _)| bytes.len()).sum();
        while held > HELD && self.foreign.len() > kept {
            let Some((bytes, _)) = self.foreign.pop_front() else { break };
            held -= bytes.len();
        }
    }

    /// Allocations that were freed are deregistered.
    fn follow(&mut self) {
        let gone = extents_gone();
        if gone != self.gone {
            self.gone = gone;
            self.known.retain(|_, (extent, _)| is_live(extent));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    /// Counts its registrations that are alive.
    #[derive(Clone, Default)]
    struct Counting(Arc<AtomicUsize>);

    struct One(Arc<AtomicUsize>);

    impl Drop for One {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    impl Registrar for Counting {
        type Registered = One;

        unsafe fn register(&self, _: *const u8, _: usize, _: bool) -> io::Result<One> {
            self.0.fetch_add(1, Ordering::AcqRel);
            Ok(One(self.0.clone()))
        }
    }

    #[test]
    fn ten_thousand_views_of_one_allocation_register_once() {
        let cache = Cache::new(Counting::default());
        let region = Slab::zeroed(10_000 * 64).freeze();
        for i in 0..10_000 {
            let view = Bytes::from_owner(region.slice(i * 64..(i + 1) * 64).expect("a view"));
            cache.to_send(&view, &(0..64)).expect("registered");
        }
        assert_eq!(cache.registered(), 1);
        // Foreign bytes: as many views of one buffer.
        let foreign = Bytes::from(vec![7_u8; 10_000 * 64]);
        for i in 0..10_000 {
            cache.to_send(&foreign, &(i * 64..(i + 1) * 64)).expect("registered");
        }
        for i in 0..10_000 {
            let view = foreign.slice(i * 64..(i + 1) * 64);
            cache.to_send(&view, &(0..64)).expect("registered");
        }
        assert_eq!(cache.registered(), 2);
    }

    /// The same with a device, which counts for itself what is registered.
    #[test]
    #[ignore = "needs an RDMA device, whose address GENIE_RDMA_ADDRESS tells: make test-rdma"]
    fn a_device_registers_ten_thousand_views_of_one_allocation_once() {
        let address = std::env::var("GENIE_RDMA_ADDRESS").expect("GENIE_RDMA_ADDRESS");
        let address = std::net::SocketAddr::new(address.parse().expect("an address"), 1);
        let membership = super::super::memory::membership_towards(address).expect("a device");
        let registrations = || {
            let said = std::process::Command::new("rdma").args(["resource", "show", "mr"]).output().expect("iproute2");
            // Nobody else in this guest, or on this machine, is to use the device meanwhile. The thread's number stands for the process.
            String::from_utf8_lossy(&said.stdout).lines().filter(|line| line.contains(" pid ")).count()
        };
        assert_eq!(registrations(), 0);
        let region = Slab::zeroed(10_000 * 64).freeze();
        for i in 0..10_000 {
            let view = Bytes::from_owner(region.slice(i * 64..(i + 1) * 64).expect("a view"));
            membership.cache.to_send(&view, &(0..64)).expect("registered");
        }
        assert_eq!((membership.cache.registered(), registrations()), (1, 1));
        // Once it is freed, the next look finds that.
        drop(region);
        let other = Slab::zeroed(4096);
        membership.cache.of(other.as_ptr(), other.len(), true).expect("registered").expect("known");
        assert_eq!((membership.cache.registered(), registrations()), (2, 1));
        drop(membership);
        assert_eq!(registrations(), 0);
    }

    #[test]
    fn full_staging_means_not_now() {
        let cache = Cache::new(Counting::default());
        let half = STAGING as usize / 2;
        let first = cache.staging(half).expect("registered").expect("room");
        let _second = cache.staging(half).expect("registered").expect("room");
        assert!(cache.staging(1).expect("it may come").is_none());
        drop(first);
        assert!(cache.staging(1).expect("registered").is_some());
        assert!(Cache::new(Counting::default()).staging(STAGING as usize + 1).is_err(), "it never fits");
    }

    /// Fails as often as it is told to.
    #[derive(Clone, Default)]
    struct Failing(Counting, Arc<Mutex<VecDeque<io::ErrorKind>>>);

    impl Registrar for Failing {
        type Registered = One;

        unsafe fn register(&self, at: *const u8, len: usize, shared: bool) -> io::Result<One> {
            match self.1.lock().expect("nobody has panicked").pop_front() {
                Some(sort) => Err(sort.into()),
                // SAFETY: it looks at nothing.
                None => unsafe { self.0.register(at, len, shared) },
            }
        }
    }

    fn failing(with: &[io::ErrorKind]) -> Failing {
        Failing(Counting::default(), Arc::new(Mutex::new(with.iter().copied().collect())))
    }

    /// Once, a registration that had failed for want of memory was remembered for as long as its allocation lived: a slab that slices
    /// are staged through goes back into its pool, and so the next slice of its size got the same slab and the same failure, for ever.
    #[test]
    fn what_could_not_be_registered_for_now_is_tried_again() {
        for sort in [io::ErrorKind::OutOfMemory, io::ErrorKind::WouldBlock] {
            let cache = Cache::new(failing(&[sort]));
            let error = cache.staging(4096).err().expect("there is none to wait for");
            assert_eq!(error.kind(), sort);
            assert!(cache.staging(4096).expect("registered now").is_some(), "{sort}");
            let cache = Cache::new(failing(&[sort]));
            let slab = Slab::zeroed(4096);
            assert!(cache.of(slab.as_ptr(), slab.len(), true).is_err());
            assert!(cache.of(slab.as_ptr(), slab.len(), true).expect("registered now").is_some(), "{sort}");
        }
        // What never can be is not asked of the device again.
        let cache = Cache::new(failing(&[io::ErrorKind::InvalidInput]));
        let slab = Slab::zeroed(4096);
        for _ in 0..2 {
            let error = cache.of(slab.as_ptr(), slab.len(), true).err().expect("remembered");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// The same, while slices are on their way through other slabs: there is something to wait for.
    #[test]
    fn staging_that_cannot_grow_means_not_now() {
        let failing = failing(&[]);
        let cache = Cache::new(failing.clone());
        let first = cache.staging(4096).expect("registered").expect("room");
        failing.1.lock().expect("nobody has panicked").push_back(io::ErrorKind::OutOfMemory);
        assert!(cache.staging(4096).expect("it may come").is_none());
        drop(first);
        assert!(cache.staging(4096).expect("registered").is_some());
    }

    #[test]
    fn freed_memory_is_deregistered_and_its_place_registered_anew() {
        let counting = Counting::default();
        let cache = Cache::new(counting.clone());
        for round in 1..=50 {
            let slab = Slab::zeroed(2 << 20);
            cache.of(slab.as_ptr(), slab.len(), true).expect("registered").expect("known");
            assert_eq!(cache.registered(), round);
            assert_eq!(counting.0.load(Ordering::Acquire), 1, "the one before was let go");
        }
    }

    #[test]
    fn foreign_memory_is_held_while_it_is_registered_and_not_for_ever() {
        let counting = Counting::default();
        let cache = Cache::new(counting.clone());
        for _ in 0..5 {
            let foreign = Bytes::from(vec![0_u8; 20 << 20]);
            cache.to_send(&foreign, &(0..1)).expect("registered");
        }
        assert_eq!(counting.0.load(Ordering::Acquire), 5, "held: another's bytes cannot come to lie there");
        cache.idle();
        assert_eq!(counting.0.load(Ordering::Acquire), 3);
    }

    #[test]
    fn what_may_not_be_written_is_not_shared() {
        let cache = Cache::new(Counting::default());
        let foreign = Bytes::from(vec![0_u8; 4096]);
        assert!(cache.of(foreign.as_ptr(), foreign.len(), true).expect("looked up").is_none());
    }
}
