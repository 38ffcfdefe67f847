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
use crate::device::{Coming, DeviceError, Memory};

/// A slab of the ring holds any slice.
pub(super) const SLAB_BYTES: usize = limits::SLICE_BYTES as usize;

/// What a ring has where nobody says otherwise: 25 GB/s, which is what PCIe and the fastest networks move, for more than the 2 ms
/// that a lane, a checksum and a copy have a slab between them.
pub(super) const STAGING_BYTES: u64 = 64 << 20;

/// Copies to the GPU that are under way at a time: who sends more waits for the oldest.
const IN_FLIGHT: usize = 32;

/// Memory of clients that the driver is told of: all of it is locked, whether they ever wrote to it or not.
const REGISTERED_BYTES: u64 = 8 << 30;

/// See the module.
#[derive(Debug)]
pub(super) struct Staging {
    gpu: Arc<dyn Gpu>,
    ring: Ring,
    /// Slabs that were wanted while none was there.
    misses: AtomicU64,
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
}

/// Copies to one place of the GPU's memory.
#[derive(Debug)]
pub(super) struct Sent {
    /// The moment after the last.
    last: Arc<Event>,
    /// What went wrong with any.
    failed: Arc<OnceLock<GpuError>>,
}

/// Pinned memory, given back when it is dropped.
struct Pinned {
    gpu: Arc<dyn Gpu>,
    at: NonNull<u8>,
}

// SAFETY: it is an address that this alone gives back; nothing is reached through it here.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it came from this GPU; the slab over it is gone, and copies hold their slabs until they are done.
        unsafe { self.gpu.unpin(self.at) };
    }
}

impl Staging {
    /// Room of as many slabs as `bytes` make, or as many as the system lets be pinned.
    pub(super) fn new(gpu: Arc<dyn Gpu>, bytes: u64) -> Self {
        let wanted = usize::try_from(bytes / SLAB_BYTES as u64).unwrap_or(usize::MAX);
        let mut slabs = Vec::new();
        while slabs.len() < wanted {
            match gpu.pin(SLAB_BYTES) {
                Ok(at) => {
                    let owner = Box::new(Pinned { gpu: gpu.clone(), at });
                    // SAFETY: pinned memory is zeroed, page-aligned, and nobody's but the owner's until that is dropped.
                    slabs.push(unsafe { Slab::of_owner(at, SLAB_BYTES, owner) });
                }
                Err(error) => {
                    let pinned = slabs.len();
                    tracing::warn!(pinned, wanted, %error, "less memory is pinned than wanted: raise `ulimit -l`");
                    break;
                }
            }
        }
        Self {
            gpu,
            ring: Ring::new(slabs, SLAB_BYTES),
            misses: AtomicU64::new(0),
            warned: AtomicBool::new(false),
            sent: Mutex::default(),
            registered: Arc::default(),
        }
    }

    /// A pinned slab, if one is there.
    pub(super) fn take(&self, bytes: usize) -> Option<Slab> {
        let slab = self.ring.take(bytes).or_else(|| {
            // What has arrived makes room.
            self.reap(&mut self.sent(), usize::MAX);
            self.ring.take(bytes)
        });
        if slab.is_none() {
            self.misses.fetch_add(1, Ordering::Relaxed);
            if !self.warned.swap(true, Ordering::Relaxed) {
                let slabs = self.ring.slabs();
                tracing::warn!(slabs, "all pinned memory is in use: ordinary memory is slower; give the device more");
            }
        }
        slab
    }

    /// How often there was none.
    pub(super) fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Slabs that are in nobody's hands, and all.
    pub(super) fn slabs(&self) -> (usize, usize) {
        self.reap(&mut self.sent(), usize::MAX);
        (self.ring.free(), self.ring.slabs())
    }

    /// Puts a copy to the GPU into its stream, and adds it to those of `before`. `from` is kept until it is done.
    ///
    /// # Safety
    /// `to` is live, and nobody else uses it unordered, until `before` is settled.
    pub(super) unsafe fn send(&self, to: Address, from: Region, before: &mut Option<Sent>) -> Result<(), GpuError> {
        let failed = before.as_ref().map(|sent| sent.failed.clone()).unwrap_or_default();
        let mut sent = self.sent();
        self.reap(&mut sent, IN_FLIGHT - 1);
        let done = Arc::new(self.gpu.event()?);
        // SAFETY: `to` as the caller has it; `from` is kept in `sent` until the event after the copy has passed.
        let copied = unsafe { self.gpu.copy_in(Stream::Upload, to, from.as_ptr(), from.len()) };
        let recorded = copied.and_then(|()| self.gpu.record(Stream::Upload, &done));
        sent.push_back(Copying { done: done.clone(), _from: from, failed: failed.clone() });
        recorded?;
        *before = Some(Sent { last: done, failed });
        Ok(())
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
                Ok(true) => {}
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
        let done = self.gpu.event()?;
        let mut fetching = Fetching { pool: pool.clone(), done, parts, to: Some(to) };
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
    fn wait(mut self: Box<Self>) -> Result<Slab, DeviceError> {
        // Once the GPU has been revived every event has passed, and nothing was copied: the pool knows.
        let waited = self.pool.with(|gpu| Ok(gpu.synchronize(&self.done)?));
        let to = self.to.take().ok_or_else(|| DeviceError::Internal("bytes that were waited for twice".to_owned()));
        waited?;
        to
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
