//! A GPU as a device.
//!
//! A program is lowered, for each set of sizes that it runs with, to kernels over one arena whose layout is planned ahead
//! (`lower`). What a run is given goes to the GPU in one copy, what it gives comes back in one; a decode step that was seen before
//! is one CUDA graph (`program`). Everything runs over [`genie_cuda_kernels::gpu::Gpu`], so that the same code is tested on
//! machines without a GPU.

mod buffer;
mod lower;
mod overlap;
mod pinned;
mod plan;
mod pool;
mod program;
mod reachable;
mod staging;
mod sums;
mod traced;
mod workspace;

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use genie_cuda_kernels::gpu::{Bandwidth, Gpu, GpuError, Stream, measure_pcie};
use genie_graph::VerifiedGraph;

use self::pool::{Loss, Pool};
use self::program::Program;
use self::staging::{SLAB_BYTES, Staging};
use self::workspace::Workspace;
use super::{Device, DeviceError, DeviceInfo, GpuInfo, KvCache, KvSpec, Loaded, Space};
use crate::trace::Trace;

/// A GPU.
pub struct CudaDevice {
    inner: Arc<Inner>,
}

/// What a device shares with its programs.
struct Inner {
    index: u32,
    gpu: Arc<dyn Gpu>,
    /// Another after each revival.
    pool: RwLock<Arc<Pool>>,
    loss: Arc<Loss>,
    /// Its memory is the host's: it stays when everything on the GPU is lost.
    staging: Arc<Staging>,
    /// If it was measured.
    pcie: Option<Bandwidth>,
    /// Whether products ask for weights of later ones.
    prefetches: bool,
    /// Held by whoever runs, or revives the GPU.
    workspace: Mutex<Workspace>,
}

impl Inner {
    /// The memory as it is now.
    fn pool(&self) -> Arc<Pool> {
        self.pool.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Says 0 where products shall not ask for weights of later ones.
const PREFETCH: &str = "GENIE_CUDA_PREFETCH";

/// Whether they do on a GPU of this compute capability, where the environment says `said`: older ones lack the instruction.
fn prefetches(capability: u32, said: Option<&OsStr>) -> bool {
    const OLDEST: u32 = 90;
    capability >= OLDEST && said.is_none_or(|said| said != "0")
}

/// What of a GPU's free memory is left to the driver, and to libraries that take some of their own.
const LEFT_FREE: u64 = 512 << 20;

impl CudaDevice {
    /// The GPU as the device `cuda:index`, whose tensors take at most `memory_limit_bytes`; `None`: what is free now, less what the
    /// driver needs. It has pinned host memory for 25 GB/s.
    ///
    /// # Errors
    /// [`DeviceError::Gpu`] if the GPU does not answer.
    pub fn new(index: u32, gpu: Arc<dyn Gpu>, memory_limit_bytes: Option<u64>) -> Result<Self, DeviceError> {
        Self::with_staging(index, gpu, memory_limit_bytes, staging_bytes(None))
    }

    /// As [`Self::new`], with so many bytes of pinned host memory for tensors on their way, in slabs that hold a slice.
    ///
    /// # Errors
    /// As [`Self::new`]. Where less memory can be pinned, there is less.
    pub fn with_staging(
        index: u32,
        gpu: Arc<dyn Gpu>,
        memory_limit_bytes: Option<u64>,
        staging_bytes: u64,
    ) -> Result<Self, DeviceError> {
        Self::make(index, gpu, memory_limit_bytes, staging_bytes, None)
    }

    /// As [`Self::new`], after measuring how fast bytes come to the GPU and back: [`Device::gpu`] tells it from then on, and without
    /// `staging_bytes` there is as much pinned host memory as that takes. It takes some tens of milliseconds, in which nothing else
    /// should run.
    ///
    /// # Errors
    /// As [`Self::new`]. A GPU that cannot be measured, and is not broken, is opened all the same.
    pub fn measured(
        index: u32,
        gpu: Arc<dyn Gpu>,
        memory_limit_bytes: Option<u64>,
        staging_bytes: Option<u64>,
    ) -> Result<Self, DeviceError> {
        let measured = measure_pcie(&*gpu);
        if let Err(error) = &measured {
            // One that broke says so when it is asked for its memory; one that lacked some for the measurement is of use.
            tracing::warn!(%error, "the way to cuda:{index} was not measured");
        }
        let pcie = measured.ok();
        let staging_bytes = staging_bytes.unwrap_or_else(|| self::staging_bytes(pcie));
        Self::make(index, gpu, memory_limit_bytes, staging_bytes, pcie)
    }

    fn make(
        index: u32,
        gpu: Arc<dyn Gpu>,
        memory_limit_bytes: Option<u64>,
        staging_bytes: u64,
        pcie: Option<Bandwidth>,
    ) -> Result<Self, DeviceError> {
        let free = gpu.memory()?.free;
        let limit = memory_limit_bytes.unwrap_or(u64::MAX).min(free.saturating_sub(LEFT_FREE.min(free / 8)));
        let loss = Arc::<Loss>::default();
        let staging = Arc::new(Staging::new(gpu.clone(), staging_bytes));
        let pool = RwLock::new(Pool::new(gpu.clone(), 0, limit, loss.clone(), staging.clone()));
        let workspace = Mutex::default();
        let prefetches = prefetches(gpu.properties().capability, std::env::var_os(PREFETCH).as_deref());
        Ok(Self { inner: Arc::new(Inner { index, gpu, pool, loss, staging, pcie, prefetches, workspace }) })
    }

    /// Slabs of pinned host memory that nobody has now, and all of them.
    pub fn staging_slabs(&self) -> (usize, usize) {
        self.inner.staging.slabs()
    }
}

/// Pinned host memory for tensors on their way to and from a GPU and back: what a link can bring at most, which is what goes over PCIe
/// (25 GB/s where that is not known), for as long as a slab is away. A link's own round trips are not part of that: a slab is taken when
/// a slice has begun to arrive.
fn staging_bytes(pcie: Option<Bandwidth>) -> u64 {
    /// Seconds that a lane, a checksum and a copy have a slab between them.
    const AWAY: f64 = 2.5e-3;
    const LEAST: u64 = 32 << 20;
    const MOST: u64 = 1 << 30;
    let rate = pcie.map_or(25e9, |pcie| pcie.to_device.max(pcie.from_device));
    ((rate * AWAY) as u64).clamp(LEAST, MOST).next_multiple_of(SLAB_BYTES as u64)
}

impl CudaDevice {
    fn allocate_in(&self, stream: Stream, bytes: u64) -> Result<Space, DeviceError> {
        let pool = self.inner.pool();
        let taken = pool.take_in(stream, bytes);
        let taken = taken.or_else(|error| match (&error, self.inner.workspace.try_lock()) {
            // Nobody runs: what the last run worked in can go.
            (DeviceError::OutOfMemory(_), Ok(mut space)) => {
                space.release();
                pool.take_in(stream, bytes)
            }
            _ => Err(error),
        })?;
        Ok(Space::Device(Arc::new(taken)))
    }
}

impl Device for CudaDevice {
    fn info(&self) -> DeviceInfo {
        let Inner { index, gpu, .. } = &*self.inner;
        let pool = self.inner.pool();
        let properties = gpu.properties();
        let capability = properties.capability;
        DeviceInfo {
            index: *index,
            name: format!("cuda:{index}"),
            model: properties.name.clone(),
            total_bytes: pool.limit(),
            free_bytes: pool.limit().saturating_sub(pool.used()),
            capability: format!("{}.{}", capability / 10, capability % 10),
        }
    }

    fn gpu(&self) -> Option<GpuInfo> {
        let uuid = &self.inner.gpu.properties().uuid;
        let pcie = self.inner.pcie.map(|b| (b.to_device as u64, b.from_device as u64));
        let (copies, slices) = (self.inner.staging.copies(), self.inner.staging.slices());
        let uncompiled = self.inner.gpu.uncompiled();
        Some(GpuInfo { uuid: uuid.clone(), utilisation: utilisation(uuid), pcie, uncompiled, copies, slices })
    }

    fn warm_up(&self) {
        self.inner.gpu.compile_ahead();
    }

    fn trace(&self, to: &Arc<Trace>) -> bool {
        self.inner.staging.trace(self.inner.index, to)
    }

    fn reads_host_memory(&self) -> bool {
        false
    }

    fn staging_misses(&self) -> u64 {
        self.inner.staging.misses()
    }

    fn allocate(&self, bytes: u64) -> Result<Space, DeviceError> {
        self.allocate_in(Stream::Compute, bytes)
    }

    fn allocate_for_upload(&self, bytes: u64) -> Result<Space, DeviceError> {
        self.allocate_in(Stream::Upload, bytes)
    }

    fn allocate_reachable(&self, bytes: u64) -> Result<Space, DeviceError> {
        match self.inner.pool().take_reachable(bytes)? {
            Some(taken) => Ok(Space::Device(Arc::new(taken))),
            None => self.allocate_for_upload(bytes),
        }
    }

    fn cache(&self, spec: KvSpec) -> Result<KvCache, DeviceError> {
        KvCache::new(spec, Arc::new(self.inner.pool()))
    }

    fn load(&self, graph: Arc<VerifiedGraph>) -> Result<Arc<dyn Loaded>, DeviceError> {
        Ok(Arc::new(Program::new(Arc::clone(&self.inner), graph)?))
    }

    fn loss(&self) -> Option<String> {
        self.inner.loss.reason()
    }

    fn revive(&self) -> Result<(), DeviceError> {
        let inner = &*self.inner;
        // A run that is under way ends first.
        let mut space = inner.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.pool();
        before.end();
        *space = Workspace::default();
        inner.gpu.revive()?;
        let pool =
            Pool::new(inner.gpu.clone(), before.life + 1, before.limit(), inner.loss.clone(), inner.staging.clone());
        *inner.pool.write().unwrap_or_else(PoisonError::into_inner) = pool;
        inner.loss.is_over();
        Ok(())
    }
}

#[cfg(feature = "cuda")]
fn utilisation(uuid: &str) -> Option<u32> {
    genie_cuda_kernels::gpu::inventory::utilisation(uuid)
}

/// Without the driver's libraries there is nobody to ask.
#[cfg(not(feature = "cuda"))]
fn utilisation(_uuid: &str) -> Option<u32> {
    None
}

impl From<GpuError> for DeviceError {
    fn from(error: GpuError) -> Self {
        match error {
            GpuError::Fault { during, reason } => Self::Lost { reason: format!("{during}: {reason}") },
            other => Self::Gpu(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_asked_for_where_the_gpu_can_and_nobody_says_no() {
        let on = |capability, said: Option<&str>| prefetches(capability, said.map(OsStr::new));
        assert_eq!([on(90, None), on(100, Some("1")), on(120, Some(""))], [true; 3]);
        assert_eq!([on(80, None), on(90, Some("0")), on(75, Some("1"))], [false; 3]);
    }

    #[test]
    fn pinned_memory_follows_what_pcie_moves() {
        let of = |to_device: f64, from_device: f64| staging_bytes(Some(Bandwidth { to_device, from_device })) >> 20;
        assert_eq!(staging_bytes(None) >> 20, 60);
        // PCIe 4 and 5 of sixteen lanes; the faster direction counts.
        assert_eq!((of(25e9, 26e9), of(55e9, 52e9)), (64, 132));
        assert_eq!((of(1e9, 1e9), of(5e12, 1.0), of(f64::NAN, f64::NAN)), (32, 1024, 32));
    }
}
