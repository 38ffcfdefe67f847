//! Pinned memory that tensors pass through on their way to and from a GPU, and the copies that are under way.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use genie_cuda_kernels::Address;
use genie_cuda_kernels::gpu::{Event, Gpu, GpuError, Stream};
use genie_transport::memory::{Region, Ring, SharedBytes, Slab};
use genie_transport::wire::limits;

use super::pool::Pool;
use super::traced::{Timed, Tracer};
use crate::device::{Coming, Copies, DeviceError, Memory, Slices};
use crate::trace::Trace;

/// The largest slabs hold any slice.
pub(super) const SLAB_BYTES: usize = limits::SLICE_BYTES as usize;

/// Sizes of slabs, from the smallest on: small tensors, slices of the size that servers choose unless told otherwise, and any slice.
const SIZES: [usize; 3] = [64 << 10, 256 << 10, SLAB_BYTES];

/// Copies to the GPU that are under way at a time: who sends more waits for the oldest.
const IN_FLIGHT: usize = 32;

/// Memory of clients that the driver is told of: all of it is locked, whether they ever wrote to it or not.
const REGISTERED_BYTES: u64 = 8 << 30;

/// See the module.
#[derive(Debug)]
pub(super) struct Staging {
    gpu: Arc<dyn Gpu>,
    /// One for each of [`SIZES`].
    rings: [Ring; SIZES.len()],
    /// Where their slabs are.
    slabs: Vec<usize>,
    /// Set once somebody wants to know when what was copied.
    tracer: OnceLock<Arc<Tracer>>,
    /// Slabs that were wanted while none was there.
    misses: AtomicU64,
    /// Slices that network cards wrote to the GPU themselves, or were let read there, and those that were copied to it from here.
    written: AtomicU64,
    read: AtomicU64,
    staged: AtomicU64,
    warned: AtomicBool,
    /// Copies to the GPU that may be under way, in the order of the stream.
    sent: Mutex<VecDeque<Copying>>,
    registered: Arc<AtomicU64>,
}

/// A copy to the GPU.
#[derive(Debug)]
struct Copying {
    /// The moment after it.
    done: Arc<Event>,
    /// What it reads.
    _from: Region,
    /// Where its sender looks what went wrong.
    failed: Arc<OnceLock<GpuError>>,
    /// When it began, if somebody wants to know.
    timed: Option<Timed>,
}

/// Copies to one place of the GPU's memory.
#[derive(Debug)]
pub(super) struct Sent {
    /// The moment after the last.
    last: Arc<Event>,
    /// What went wrong with any.
    failed: Arc<OnceLock<GpuError>>,
}

/// Pinned memory of [`SLAB_BYTES`], given back when it is dropped.
struct Pinned {
    gpu: Arc<dyn Gpu>,
    at: NonNull<u8>,
}

// SAFETY: it is an address that this alone gives back; nothing is reached through it here.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// All of it in slabs of this size, which divides it. Each keeps it.
    fn cut(self: &Arc<Self>, size: usize) -> impl Iterator<Item = Slab> {
        (0..SLAB_BYTES / size).map(move |index| {
            // SAFETY: within the memory, as the slabs lie one after another in it.
            let at = unsafe { self.at.add(index * size) };
            // SAFETY: pinned memory is zeroed, and nobody's but the owner's until that is dropped; sizes are whole pages, and this is the
            // only slab over these.
            unsafe { Slab::of_owner(at, size, Box::new(self.clone())) }
        })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it came from this GPU; the slab over it is gone, and copies hold their slabs until they are done.
        unsafe { self.gpu.unpin(self.at) };
    }
}

impl Staging {
    /// Room of so many bytes in slabs, or as many as the system lets be pinned.
    pub(super) fn new(gpu: Arc<dyn Gpu>, bytes: u64) -> Self {
        let wanted = usize::try_from(bytes / SLAB_BYTES as u64).unwrap_or(usize::MAX);
        let mut blocks = Vec::new();
        while blocks.len() < wanted {
            match gpu.pin(SLAB_BYTES) {
                Ok(at) => blocks.push(Arc::new(Pinned { gpu: gpu.clone(), at })),
                Err(error) => {
                    let pinned = blocks.len();
                    // NVIDIA's driver locks pages by itself: as far as is known no limit of the process's (`ulimit -l`) stops it.
                    tracing::warn!(
                        pinned,
                        wanted,
                        %error,
                        "less memory is pinned than wanted: the host or its container is short of memory; --staging asks for less"
                    );
                    break;
                }
            }
        }
        // A sixteenth for small tensors, a quarter for common slices.
        let (small, common) = (blocks.len() / 16, blocks.len() / 4);
        let mut slabs = SIZES.map(|_| Vec::new());
        for (index, block) in blocks.iter().enumerate() {
            let size = usize::from(index >= small) + usize::from(index >= small + common);
            slabs[size].extend(block.cut(SIZES[size]));
        }
        let addresses = slabs.iter().flatten().map(|slab| slab.as_ptr().addr()).collect();
        let mut sizes = SIZES.into_iter();
        let rings = slabs.map(|slabs| Ring::new(slabs, sizes.next().unwrap_or(SLAB_BYTES)));
        Self {
            gpu,
            rings,
            slabs: addresses,
            tracer: OnceLock::new(),
            misses: AtomicU64::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            staged: AtomicU64::new(0),
            warned: AtomicBool::new(false),
            sent: Mutex::default(),
            registered: Arc::default(),
        }
    }

    /// From now on it is written down when what was copied. `false`: it is already, elsewhere.
    pub(super) fn trace(&self, device: u32, trace: &Arc<Trace>) -> bool {
        self.tracer.set(Arc::new(Tracer::new(trace.clone(), device, self.slabs.iter().copied()))).is_ok()
    }

    /// What copies took, if somebody wants to know.
    pub(super) fn copies(&self) -> Option<Copies> {
        let tracer = self.tracer.get()?;
        self.reap(&mut self.sent(), usize::MAX);
        Some(tracer.copies())
    }

    /// A pinned slab, if one is there.
    pub(super) fn take(&self, bytes: usize) -> Option<Slab> {
        let slab = self.free(bytes).or_else(|| {
            // What has arrived makes room.
            self.reap(&mut self.sent(), usize::MAX);
            self.free(bytes)
        });
        match (&slab, self.tracer.get()) {
            (Some(slab), Some(tracer)) => tracer.receives(slab.as_ptr().addr()),
            (None, _) => {
                self.misses.fetch_add(1, Ordering::Relaxed);
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let slabs = self.slabs.len();
                    tracing::warn!(
                        slabs,
                        "all pinned memory is in use: ordinary memory is slower; --staging gives more"
                    );
                }
            }
            _ => {}
        }
        slab
    }

    /// The smallest slab that is there and large enough.
    fn free(&self, bytes: usize) -> Option<Slab> {
        self.rings.iter().find_map(|ring| ring.take(bytes))
    }

    /// How often there was none.
    pub(super) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// A network card has written a slice to the GPU itself, or is let read one.
    pub(super) fn note_direct(&self, written: bool) {
        let counter = if written { &self.written } else { &self.read };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How slices have come to the GPU and from it.
    pub(super) fn slices(&self) -> Slices {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Slices { written: of(&self.written), read: of(&self.read), staged: of(&self.staged) }
    }

    /// Slabs that are in nobody's hands, and all.
    pub(super) fn slabs(&self) -> (usize, usize) {
        self.reap(&mut self.sent(), usize::MAX);
        (self.rings.iter().map(Ring::free).sum(), self.slabs.len())
    }

    /// Puts a copy to the GPU into its stream, and adds it to those of `before`. `from` is kept until it is done.
    ///
    /// # Safety
    /// `to` is live, and nobody else uses it unordered, until `before` is settled.
    pub(super) unsafe fn send(&self, to: Address, from: Region, before: &mut Option<Sent>) -> Result<(), GpuError> {
        self.staged.fetch_add(1, Ordering::Relaxed);
        let failed = before.as_ref().map(|sent| sent.failed.clone()).unwrap_or_default();
        let mut sent = self.sent();
        self.reap(&mut sent, IN_FLIGHT - 1);
        let timed = self.tracer.get().map(|tracer| tracer.sends(&*self.gpu, &from)).transpose()?;
        let done = Arc::new(self.event(timed.is_some())?);
        // SAFETY: `to` as the caller has it; `from` is kept in `sent` until the event after the copy has passed.
        let copied = unsafe { self.gpu.copy_in(Stream::Upload, to, from.as_ptr(), from.len()) };
        let recorded = copied.and_then(|()| self.gpu.record(Stream::Upload, &done));
        sent.push_back(Copying { done: done.clone(), _from: from, failed: failed.clone(), timed });
        recorded?;
        *before = Some(Sent { last: done, failed });
        Ok(())
    }

    fn event(&self, timed: bool) -> Result<Event, GpuError> {
        if timed { self.gpu.timed_event() } else { self.gpu.event() }
    }

    /// Waits until copies are done, and gives back what was read up to then.
    pub(super) fn settle(&self, copies: &Sent) -> Result<(), GpuError> {
        // In the order of one stream: after the last, all are done.
        let past = self.gpu.synchronize(&copies.last);
        self.reap(&mut self.sent(), usize::MAX);
        past.and_then(|()| copies.failed.get().cloned().map_or(Ok(()), Err))
    }

    /// Gives back what copies have read that are done, and waits for the oldest while there are more than `most`.
    fn reap(&self, sent: &mut VecDeque<Copying>, most: usize) {
        while let Some(oldest) = sent.front() {
            let waits = sent.len() > most;
            let done = &oldest.done;
            let past = if waits { self.gpu.synchronize(done).map(|()| true) } else { self.gpu.is_past(done) };
            match past {
                Ok(true) => {
                    if let (Some(tracer), Some(timed)) = (self.tracer.get(), &oldest.timed) {
                        tracer.sent(&*self.gpu, timed, done);
                    }
                }
                Ok(false) => break,
                // A GPU that broke has stopped copying, too.
                Err(error) => _ = oldest.failed.set(error),
            }
            sent.pop_front();
        }
    }

    /// Copies parts of a pool's memory, one after another, to `to`. For [`Pool::with`].
    pub(super) fn fetch(&self, pool: &Arc<Pool>, parts: Vec<Memory>, to: Slab) -> Result<Fetching, DeviceError> {
        let total = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.len()));
        if total != Some(to.len() as u64) {
            return Err(DeviceError::Internal("parts of memory do not fill what they are copied to".to_owned()));
        }
        let traced = self.tracer.get().map(|tracer| {
            let timed = tracer.fetches(&*self.gpu, to.as_ptr().addr(), to.len() as u64)?;
            Ok::<_, GpuError>((tracer.clone(), timed))
        });
        let traced = traced.transpose()?;
        let done = self.event(traced.is_some())?;
        let mut fetching = Fetching { pool: pool.clone(), done, parts, to: Some(to), traced };
        let copied = fetching.begin();
        // Some may be under way even if others could not begin: from here on they are waited for, whatever happens.
        self.gpu.record(Stream::Download, &fetching.done)?;
        copied.map(|()| fetching)
    }

    /// Lets copies reach memory that a client shares without help, from the first time it is used on. Without it they are slower.
    pub(super) fn reach(&self, shared: &SharedBytes) {
        shared.attach(Arc::as_ptr(&self.registered).addr(), || {
            let bytes = shared.memory().len() as u64;
            let fits = |sum: u64| sum.checked_add(bytes).filter(|&sum| sum <= REGISTERED_BYTES);
            self.registered.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).ok()?;
            let at = shared.memory().start();
            let all = self.registered.clone();
            // SAFETY: the mapping outlives what is attached to it.
            match unsafe { self.gpu.register(at, shared.memory().len()) } {
                Ok(()) => Some(Box::new(Registered { gpu: self.gpu.clone(), at, bytes, all })),
                Err(error) => {
                    all.fetch_sub(bytes, Ordering::AcqRel);
                    tracing::debug!(bytes, %error, "a client's memory is not registered: copies of it take a step more");
                    None
                }
            }
        });
    }

    fn sent(&self) -> MutexGuard<'_, VecDeque<Copying>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.reap(&mut self.sent(), 0);
    }
}

/// Bytes on their way from the GPU.
#[derive(Debug)]
pub(super) struct Fetching {
    pool: Arc<Pool>,
    done: Event,
    /// What is copied, kept until it is.
    parts: Vec<Memory>,
    to: Option<Slab>,
    /// When it began, if somebody wants to know.
    traced: Option<(Arc<Tracer>, Timed)>,
}

impl Fetching {
    /// Puts the copies into their stream.
    fn begin(&mut self) -> Result<(), DeviceError> {
        let Some(to) = &mut self.to else { return Ok(()) };
        let mut rest = to.as_mut_ptr();
        for part in &self.parts {
            // Within the slab, whose length is a `usize`.
            let bytes = part.len() as usize;
            // SAFETY: the parts are the pool's and live, and lie one after another within the slab; `self` keeps both, and touches
            // neither, until the event has passed.
            rest = unsafe {
                self.pool.gpu().copy_out(Stream::Download, rest, part.address(), bytes)?;
                rest.add(bytes)
            };
        }
        Ok(())
    }
}

impl Coming for Fetching {
    fn wait(mut self: Box<Self>) -> Result<Region, DeviceError> {
        // Once the GPU has been revived every event has passed, and nothing was copied: the pool knows.
        let waited = self.pool.with(|gpu| Ok(gpu.synchronize(&self.done)?));
        let to = self.to.take().ok_or_else(|| DeviceError::Internal("bytes that were waited for twice".to_owned()));
        waited?;
        let region = to?.freeze();
        Ok(match &self.traced {
            Some((tracer, timed)) => tracer.fetched(&**self.pool.gpu(), timed, &self.done, region),
            None => region,
        })
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if self.to.is_some() {
            // A GPU that broke has stopped copying, too.
            let _ = self.pool.gpu().synchronize(&self.done);
        }
    }
}

/// A client's memory that the driver knows.
struct Registered {
    gpu: Arc<dyn Gpu>,
    at: NonNull<u8>,
    bytes: u64,
    all: Arc<AtomicU64>,
}

// SAFETY: it is an address that this alone gives back; nothing is reached through it here.
unsafe impl Send for Registered {}
// SAFETY: as above.
unsafe impl Sync for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: what is attached to a mapping goes with its last user, and whoever copies from it or to it is one.
        unsafe { self.gpu.unregister(self.at) };
        self.all.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
