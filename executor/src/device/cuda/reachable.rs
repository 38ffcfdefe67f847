//! Memory of a GPU that network cards are told of, for tensors that they write there themselves.
//!
//! To have such memory, and to tell a network card of it, takes as long as many slices do. So it is had in large stretches, each of which
//! every connection registers once, and tensors get parts of them. A part that is given back is another's at once: who writes it waits
//! until the GPU has done what was put into its compute stream before, as [`Buffer::is_ready`](crate::device::Buffer) says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_cuda_kernels::Address;
use genie_cuda_kernels::gpu::{EXPORT_UNIT, Gpu, GpuError, Stream};
use genie_transport::memory::{Exported, Placed};

/// Bytes of a stretch, unless a tensor is larger, or the GPU's memory is small.
const STRETCH: u64 = 64 << 20;

/// The least that is worth a part of a stretch: one that stays keeps all of it.
const LEAST: u64 = 64 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct Reachable {
    gpu: Arc<dyn Gpu>,
    stretch: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stretches: Vec<Arc<Stretch>>,
    /// The GPU has said that network cards never reach it.
    refused: bool,
}

#[derive(Debug)]
struct Stretch {
    at: Address,
    exported: Arc<Exported>,
    free: Mutex<Free>,
}

/// A tensor's part of a stretch, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Block {
    of: Arc<Reachable>,
    stretch: Arc<Stretch>,
    offset: u64,
    bytes: u64,
}

/// Memory of the GPU, given back to it when nobody knows it any more.
struct Owned {
    gpu: Arc<dyn Gpu>,
    at: Address,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // What is in the compute stream may use it still; a GPU that broke uses nothing.
        let past = self.gpu.event().and_then(|past| {
            self.gpu.record(Stream::Compute, &past)?;
            self.gpu.synchronize(&past)
        });
        if let Err(error) = past {
            tracing::debug!(%error, "memory of a GPU that failed is given back");
        }
        // SAFETY: it came from this GPU; its blocks are gone, each after the copies to and from it, and kernels are done; registrations
        // of it are gone, since they go before this does.
        unsafe { self.gpu.free_exportable(self.at) };
    }
}

impl Reachable {
    /// Of a GPU whose tensors take at most so many bytes.
    pub(super) fn new(gpu: Arc<dyn Gpu>, limit: u64) -> Arc<Self> {
        let stretch = STRETCH.min(limit / 8 / EXPORT_UNIT * EXPORT_UNIT).max(EXPORT_UNIT);
        Arc::new(Self { gpu, stretch, state: Mutex::default() })
    }

    /// Memory for so many bytes. `None`: the GPU has none of the kind, or no more, or they are few.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<Option<Block>, GpuError> {
        if bytes < LEAST {
            return Ok(None);
        }
        let mut state = self.lock();
        if let Some(block) = state.stretches.iter().find_map(|stretch| self.part(stretch, bytes)) {
            return Ok(Some(block));
        }
        let Some(least) = bytes.max(1).checked_next_multiple_of(EXPORT_UNIT).filter(|_| !state.refused) else {
            return Ok(None);
        };
        let had = match self.have(least.max(self.stretch)) {
            Err(GpuError::OutOfMemory { .. }) if least < self.stretch => self.have(least),
            other => other,
        };
        match had {
            Ok(stretch) => {
                let block = self.part(&stretch, bytes);
                state.stretches.push(stretch);
                Ok(block)
            }
            Err(error) if error.is_sticky() => Err(error),
            Err(GpuError::OutOfMemory { .. }) => Ok(None),
            Err(error) => {
                state.refused = true;
                tracing::warn!(%error, "network cards do not reach this GPU: tensors go through slabs of the host");
                Ok(None)
            }
        }
    }

    /// Gives the GPU back what no tensor has. Whether there was anything.
    pub(super) fn trim(&self) -> bool {
        let mut state = self.lock();
        let all = std::mem::take(&mut state.stretches);
        let (free, used): (Vec<_>, Vec<_>) = all.into_iter().partition(|stretch| stretch.free().is_whole());
        state.stretches = used;
        drop(state);
        !free.is_empty()
    }

    fn have(&self, bytes: u64) -> Result<Arc<Stretch>, GpuError> {
        let at = self.gpu.allocate_exportable(bytes)?;
        let dmabuf = self.gpu.export(at, bytes).map_err(|error| error.to_string());
        let owned = Owned { gpu: self.gpu.clone(), at };
        // It was allocated, so that it fits.
        let len = bytes as usize;
        // SAFETY: the memory is the GPU's until `owned` gives it back, and nobody here ever has a reference to any of it.
        let exported = unsafe { Exported::new(at, len, dmabuf, Box::new(owned)) };
        Ok(Arc::new(Stretch { at, exported, free: Mutex::new(Free::new(bytes)) }))
    }

    fn part(self: &Arc<Self>, stretch: &Arc<Stretch>, bytes: u64) -> Option<Block> {
        let offset = stretch.free().take(bytes)?;
        Some(Block { of: self.clone(), stretch: stretch.clone(), offset, bytes })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stretch {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// Where it begins.
    pub(super) fn at(&self) -> Address {
        self.stretch.at + self.offset
    }

    /// The first `bytes` of it, as network cards know them.
    pub(super) fn placed(&self, bytes: u64) -> Option<Placed> {
        let (offset, bytes) = (usize::try_from(self.offset).ok()?, usize::try_from(bytes).ok()?);
        Placed::new(&self.stretch.exported, offset, bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        self.stretch.free().give_back(self.offset, self.bytes);
        let is_free = |stretch: &Arc<Stretch>| stretch.free().is_whole();
        if is_free(&self.stretch) {
            // One is kept, if it is none of a large tensor's own.
            let large = self.stretch.exported.len() as u64 > self.of.stretch;
            if large || state.stretches.iter().filter(|stretch| is_free(stretch)).count() > 1 {
                state.stretches.retain(|stretch| !Arc::ptr_eq(stretch, &self.stretch));
            }
        }
    }
}

/// What of a stretch is nobody's: where each piece begins, and its bytes. No two touch.
#[derive(Debug)]
struct Free {
    pieces: BTreeMap<u64, u64>,
    all: u64,
}

impl Free {
    fn new(all: u64) -> Self {
        Self { pieces: BTreeMap::from([(0, all)]), all }
    }

    /// The first piece that is large enough.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let (&at, &has) = self.pieces.iter().find(|(_, has)| **has >= bytes)?;
        self.pieces.remove(&at);
        if has > bytes {
            self.pieces.insert(at + bytes, has - bytes);
        }
        Some(at)
    }

    fn give_back(&mut self, at: u64, bytes: u64) {
        let (mut at, mut bytes) = (at, bytes);
        if let Some((&before, &has)) = self.pieces.range(..at).next_back()
            && before + has == at
        {
            self.pieces.remove(&before);
            (at, bytes) = (before, has + bytes);
        }
        if let Some(has) = self.pieces.remove(&(at + bytes)) {
            bytes += has;
        }
        self.pieces.insert(at, bytes);
    }

    fn is_whole(&self) -> bool {
        self.pieces.get(&0) == Some(&self.all)
    }
}

#[cfg(test)]
mod tests {
    use genie_cuda_kernels::gpu::{HostExports, HostGpu, HostSettings};

    use super::*;

    fn gpu(mib: u64) -> (HostGpu, Arc<Reachable>) {
        let gpu = HostGpu::new(HostSettings { total_bytes: mib << 20, ..HostSettings::default() });
        let reachable = Reachable::new(Arc::new(gpu.clone()), mib << 20);
        (gpu, reachable)
    }

    #[test]
    fn parts_do_not_overlap_and_come_together_again() {
        let mut free = Free::new(100);
        let parts: Vec<_> = [10, 20, 30, 40].iter().map(|&n| free.take(n)).collect();
        assert_eq!(parts, [Some(0), Some(10), Some(30), Some(60)]);
        assert_eq!(free.take(1), None);
        free.give_back(10, 20);
        free.give_back(60, 40);
        assert_eq!((free.take(41), free.take(15), free.take(15)), (None, Some(10), Some(60)));
        for (at, bytes) in [(10, 15), (0, 10), (60, 15), (30, 30)] {
            assert!(!free.is_whole());
            free.give_back(at, bytes);
        }
        assert!(free.is_whole() && free.pieces.len() == 1);
    }

    #[test]
    fn tensors_share_a_stretch_and_one_is_kept() {
        let (gpu, reachable) = gpu(256);
        let blocks: Vec<_> = (0..3).map(|_| reachable.take(8 << 20).unwrap().unwrap()).collect();
        assert_eq!(gpu.exportable(), 32 << 20);
        let placed = blocks[1].placed(1000).unwrap();
        assert_eq!((placed.address(), placed.len()), (blocks[1].at(), 1000));
        let large = reachable.take(50 << 20).unwrap().unwrap();
        assert_eq!(gpu.exportable(), 82 << 20);
        drop(large);
        assert_eq!(gpu.exportable(), 32 << 20, "a large one is not kept");
        drop((blocks, placed));
        assert_eq!(gpu.exportable(), 32 << 20);
        assert!(reachable.trim() && !reachable.trim());
        assert_eq!((gpu.exportable(), gpu.used()), (0, 0));
    }

    #[test]
    fn what_does_not_fit_is_had_small_or_not_at_all() {
        let (gpu, reachable) = gpu(256);
        let taken = Gpu::allocate(&gpu, 250 << 20).unwrap();
        let block = reachable.take(1 << 20).unwrap().unwrap();
        assert_eq!(gpu.exportable(), 2 << 20);
        assert!(reachable.take(20 << 20).unwrap().is_none());
        assert!(reachable.take(LEAST - 512).unwrap().is_none(), "not worth it");
        drop(block);
        // SAFETY: nobody uses it.
        unsafe { Gpu::free(&gpu, taken) };
        gpu.set_exports(HostExports::None);
        assert!(reachable.take(20 << 20).unwrap().is_none(), "refused");
        gpu.set_exports(HostExports::Address);
        assert!(reachable.take(20 << 20).unwrap().is_none(), "and not asked again");
    }
}
