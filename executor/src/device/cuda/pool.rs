//! Memory of a GPU, counted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use genie_cuda_kernels::gpu::{Gpu, GpuError, Stream};
use genie_transport::memory::OutOfMemory;

use super::buffer::GpuBuffer;
use super::reachable::Reachable;
use super::staging::Staging;
use super::sums::Sums;
use crate::device::{Allocator, DeviceError, Memory, Space};

/// What a GPU's tensors may take together, between two losses of everything on it.
#[derive(Debug)]
pub(super) struct Pool {
    gpu: Arc<dyn Gpu>,
    pub(super) staging: Arc<Staging>,
    /// What network cards are told of.
    reachable: Arc<Reachable>,
    /// For checksums.
    pub(super) sums: Sums,
    /// No other pool of the device has it.
    pub(super) life: u64,
    limit: u64,
    used: AtomicU64,
    /// Whether what it lent is there. Held for reading by whoever puts something into the GPU's streams, so that no address of before
    /// is used in a context that was made after.
    alive: RwLock<bool>,
    loss: Arc<Loss>,
}

/// Whether everything on a GPU is lost, and why.
#[derive(Debug, Default)]
pub(super) struct Loss {
    is: AtomicBool,
    reason: Mutex<String>,
}

impl Loss {
    /// Why everything on the GPU is lost, if it is.
    pub(super) fn reason(&self) -> Option<String> {
        self.is.load(Ordering::Acquire).then(|| self.text().clone())
    }

    pub(super) fn is_over(&self) {
        self.is.store(false, Ordering::Release);
    }

    fn set(&self, reason: &str) {
        reason.clone_into(&mut self.text());
        self.is.store(true, Ordering::Release);
    }

    fn text(&self) -> MutexGuard<'_, String> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A GPU's allocations start at multiples of this, and take as much at least.
const UNIT: u64 = 512;

impl Pool {
    pub(super) fn new(gpu: Arc<dyn Gpu>, life: u64, limit: u64, loss: Arc<Loss>, staging: Arc<Staging>) -> Arc<Self> {
        let (reachable, sums) = (Reachable::new(gpu.clone(), limit), Sums::default());
        let (used, alive) = (AtomicU64::new(0), RwLock::new(true));
        Arc::new(Self { gpu, staging, reachable, sums, life, limit, used, alive, loss })
    }

    /// Uses the GPU for what lies in this pool's memory. Not within another use: whoever ends the pool waits for all of them.
    ///
    /// # Errors
    /// `work`'s, or [`DeviceError::Lost`] where the pool has ended, or the GPU failed.
    pub(super) fn with<T>(&self, work: impl FnOnce(&dyn Gpu) -> Result<T, DeviceError>) -> Result<T, DeviceError> {
        let _alive = self.alive()?;
        self.noting_loss(work(&*self.gpu))
    }

    /// As [`Self::with`], for what lies in another GPU's memory, too. A loss is this GPU's.
    pub(super) fn with_peer<T>(
        self: &Arc<Self>,
        peer: &Arc<Self>,
        work: impl FnOnce(&dyn Gpu, &(dyn Gpu + 'static)) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        // Always in one order: two who copy in opposite ways, and two who end pools, never wait for each other in a circle.
        let (first, second) = if self.id() < peer.id() { (self, peer) } else { (peer, self) };
        let _alive = (first.alive()?, second.alive()?);
        self.noting_loss(work(&*self.gpu, &*peer.gpu))
    }

    /// Keeps the pool from ending.
    fn alive(&self) -> Result<RwLockReadGuard<'_, bool>, DeviceError> {
        let alive = self.alive.read().unwrap_or_else(PoisonError::into_inner);
        if !*alive {
            return Err(DeviceError::Lost { reason: "it has failed since".to_owned() });
        }
        match self.loss.reason() {
            Some(reason) => Err(DeviceError::Lost { reason }),
            None => Ok(alive),
        }
    }

    fn noting_loss<T>(&self, done: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if let Err(DeviceError::Lost { reason }) = &done {
            self.loss.set(reason);
        }
        done
    }

    /// From here on nothing uses what it lent.
    pub(super) fn end(&self) {
        *self.alive.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// Whether what it lent is lost.
    pub(super) fn is_lost(&self) -> bool {
        !*self.alive.read().unwrap_or_else(PoisonError::into_inner) || self.loss.is.load(Ordering::Acquire)
    }

    /// What its buffers name as their device.
    pub(super) fn id(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Whether this lies in its memory.
    pub(super) fn has(self: &Arc<Self>, memory: &Memory) -> bool {
        matches!(memory, Memory::Device(buffer, _) if buffer.device() == self.id())
    }

    /// Memory that holds anything, for what kernels write.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<GpuBuffer, DeviceError> {
        self.take_in(Stream::Compute, bytes)
    }

    /// Memory that holds anything, for what this stream writes first.
    pub(super) fn take_in(self: &Arc<Self>, stream: Stream, bytes: u64) -> Result<GpuBuffer, DeviceError> {
        let charge = self.charge(bytes)?;
        let taken = self.with(|gpu| {
            let take = || GpuBuffer::new(gpu, self.clone(), stream, bytes, charge);
            let had = match take() {
                // What is kept for network cards may be enough.
                Err(GpuError::OutOfMemory { .. }) if self.reachable.trim() => take(),
                had => had,
            };
            match had {
                // Somebody else on the machine has taken what was free.
                Err(GpuError::OutOfMemory { .. }) => Err(self.refuse(bytes).into()),
                other => Ok(other?),
            }
        });
        taken.inspect_err(|_| self.give_back(charge))
    }

    /// Memory that holds anything, and that network cards can be told of. `None`: there is none of the kind, or no more.
    pub(super) fn take_reachable(self: &Arc<Self>, bytes: u64) -> Result<Option<GpuBuffer>, DeviceError> {
        let charge = self.charge(bytes)?;
        let taken = self.with(|gpu| {
            let block = self.reachable.take(charge)?;
            Ok(block.map(|block| GpuBuffer::within(gpu, self.clone(), block, bytes, charge)).transpose()?)
        });
        if !matches!(taken, Ok(Some(_))) {
            self.give_back(charge);
        }
        taken
    }

    /// Counts so many bytes: those that they take.
    fn charge(&self, bytes: u64) -> Result<u64, OutOfMemory> {
        let charge = bytes.max(1).checked_next_multiple_of(UNIT).ok_or_else(|| self.refuse(bytes))?;
        let reserve = |used: u64| used.checked_add(charge).filter(|&sum| sum <= self.limit);
        let reserved = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve);
        reserved.map(|_| charge).map_err(|_| self.refuse(bytes))
    }

    fn refuse(&self, wanted: u64) -> OutOfMemory {
        OutOfMemory { wanted, used: self.used(), limit: self.limit }
    }

    /// Gives back what [`Self::take`] has counted.
    pub(super) fn give_back(&self, charge: u64) {
        self.used.fetch_sub(charge, Ordering::AcqRel);
    }

    /// The GPU, for what needs no memory of the pool's, or gives some back: the GPU knows addresses of before a revival.
    pub(super) fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }
}

/// What a cache takes its blocks from.
impl Allocator for Arc<Pool> {
    fn take(&self, bytes: usize) -> Result<Space, DeviceError> {
        Ok(Space::Device(Arc::new(Pool::take(self, bytes as u64)?)))
    }

    fn used(&self) -> u64 {
        Pool::used(self)
    }

    fn limit(&self) -> u64 {
        Pool::limit(self)
    }
}
