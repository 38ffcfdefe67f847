//! The CPU as a device.
//!
//! A program is lowered, for each set of sizes that it runs with, to a list of steps over one arena whose layout is planned
//! ahead (`plan`); a step in steady state allocates nothing. A device's threads run the whole list together (`team`). Kernels
//! are written over vectors of any width (`lanes`) and give the same bits whatever the batch and the number of threads.

mod along;
mod apply;
mod attention;
mod axpy;
mod binary;
mod compare;
mod constants;
mod conv;
mod convert;
mod depthwise;
mod dot;
mod elementwise;
mod fill;
mod fusions;
mod gather;
mod lanes;
mod linear;
mod lower;
mod math;
mod norm;
mod packed;
mod panels;
mod plan;
mod pool;
mod program;
mod quant;
mod random;
mod reduce;
mod rope;
mod sample;
mod scan;
mod scatter;
mod sort;
mod special;
mod step;
mod strided;
mod system;
mod team;
mod unary;
mod windows;

use std::sync::{Arc, Mutex};

use genie_graph::VerifiedGraph;
use genie_transport::memory::{OutOfMemory, Pool, Slab};

use self::program::{Program, Workspace};
use self::team::Team;
use super::{Device, DeviceError, DeviceInfo, KvCache, KvSpec, Loaded, Space};

pub use self::lanes::Isa;
pub(crate) use self::system::host_memory;

/// Threads of this machine and memory, taken as one device.
///
/// ```
/// use genie_executor::device::{Device, cpu::CpuDevice};
/// let device = CpuDevice::new(0, 2, 1 << 30)?;
/// assert_eq!(device.info().name, "cpu:0");
/// assert_eq!(device.info().total_bytes, 1 << 30);
/// # Ok::<(), genie_executor::device::DeviceError>(())
/// ```
pub struct CpuDevice {
    inner: Arc<Inner>,
}

/// What a device shares with its programs.
struct Inner {
    index: u32,
    model: String,
    isa: Isa,
    pool: Pool,
    team: Team,
    /// Held by whoever runs.
    workspace: Mutex<Workspace>,
}

/// What does not fit usize is over any limit too.
fn capacity(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

impl CpuDevice {
    /// A device of `threads` threads (at least one), the caller's of each run among them, whose tensors take at most
    /// `memory_limit_bytes`.
    ///
    /// # Errors
    /// [`DeviceError::Threads`] if the system refuses a thread.
    pub fn new(index: u32, threads: usize, memory_limit_bytes: u64) -> Result<Self, DeviceError> {
        Self::with_isa(index, threads, memory_limit_bytes, Isa::detect())
    }

    /// As [`CpuDevice::new`], with a narrower instruction set than the machine has; a wider one is not taken.
    ///
    /// # Errors
    /// As [`CpuDevice::new`].
    pub fn with_isa(index: u32, threads: usize, memory_limit_bytes: u64, isa: Isa) -> Result<Self, DeviceError> {
        let team = Team::new(threads.max(1), &format!("cpu:{index}"))?;
        let mut workspace = Workspace::default();
        workspace.members.resize_with(team.members(), Mutex::default);
        let inner = Inner {
            index,
            model: system::model(),
            isa: isa.min(Isa::detect()),
            pool: Pool::new(memory_limit_bytes),
            team,
            workspace: Mutex::new(workspace),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Threads that a run uses.
    pub fn threads(&self) -> usize {
        self.inner.team.members()
    }

    /// Takes memory of the pool; where there is none, once more without what the last run worked in.
    fn take(&self, from: impl Fn(&Pool) -> Result<Slab, OutOfMemory>) -> Result<Space, DeviceError> {
        let pool = &self.inner.pool;
        let taken = from(pool).or_else(|full| match self.inner.workspace.try_lock() {
            // Nobody runs: it can go.
            Ok(mut space) => {
                space.release();
                from(pool)
            }
            Err(_) => Err(full),
        })?;
        Ok(Space::Host(taken))
    }
}

impl Device for CpuDevice {
    fn info(&self) -> DeviceInfo {
        let Inner { index, model, isa, pool, .. } = &*self.inner;
        DeviceInfo {
            index: *index,
            name: format!("cpu:{index}"),
            model: model.clone(),
            total_bytes: pool.limit(),
            free_bytes: pool.limit().saturating_sub(pool.used()),
            capability: isa.name().to_owned(),
        }
    }

    fn reads_host_memory(&self) -> bool {
        true
    }

    fn allocate(&self, bytes: u64) -> Result<Space, DeviceError> {
        self.take(|pool| pool.take(capacity(bytes)))
    }

    fn allocate_for_session(&self, bytes: u64, session: u64) -> Result<Space, DeviceError> {
        self.take(|pool| pool.take_for(capacity(bytes), session))
    }

    fn forget_session(&self, session: u64) {
        self.inner.pool.forget(session);
    }

    fn cache(&self, spec: KvSpec) -> Result<KvCache, DeviceError> {
        KvCache::new(spec, Arc::new(self.inner.pool.clone()))
    }

    fn load(&self, graph: Arc<VerifiedGraph>) -> Result<Arc<dyn Loaded>, DeviceError> {
        Ok(Arc::new(Program::new(Arc::clone(&self.inner), graph)?))
    }
}

/// So many devices (at least one) that share threads and bytes of tensors, each with at least one thread; `None`: what the machine
/// has.
///
/// # Errors
/// [`DeviceError::Threads`] if the system refuses a thread.
pub(super) fn devices(
    count: u32,
    threads: Option<usize>,
    memory_bytes: Option<u64>,
) -> Result<Vec<Arc<dyn Device>>, DeviceError> {
    let count = count.max(1);
    let cores = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let memory = memory_bytes.unwrap_or_else(system::memory_for_tensors) / u64::from(count);
    let devices = count as usize;
    (0..count)
        .map(|index| {
            let i = index as usize;
            let threads = cores * (i + 1) / devices - cores * i / devices;
            Ok(Arc::new(CpuDevice::new(index, threads, memory)?) as Arc<dyn Device>)
        })
        .collect()
}
