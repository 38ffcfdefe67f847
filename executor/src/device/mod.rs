//! What a device must do, whatever it is made of.

pub mod cpu;
pub mod cuda;

mod arena;
mod error;
mod inputs;
mod kv;
mod memory;
mod rows;
mod run;
pub mod select;

use std::sync::Arc;
use std::time::Duration;

use genie_graph::{DType, Sizes, VerifiedGraph};

pub use error::DeviceError;
pub use kv::{Allocator, KvCache, KvSpec};
pub use memory::{Buffer, Coming, Memory, Space, Sum};

use crate::trace::Trace;

/// What a device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number among devices of its kind: 3 of `cuda:3`, whatever its place on its server.
    pub index: u32,
    /// `cpu:0`, `cuda:3`.
    pub name: String,
    /// What the hardware calls itself.
    pub model: String,
    /// Bytes of memory that tensors may take.
    pub total_bytes: u64,
    /// Of these, bytes not taken.
    pub free_bytes: u64,
    /// Instruction set or compute capability: `avx512f`, `9.0`.
    pub capability: String,
}

/// What is known of a GPU beyond [`DeviceInfo`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// `GPU-...`, as management tools print it.
    pub uuid: String,
    /// Percent of the last moments in which a kernel ran; `None` where nobody tells.
    pub utilisation: Option<u32>,
    /// Bytes a second that copies from the host's pinned memory, and to it, were measured with; `None` where they were not.
    pub pcie: Option<(u64, u64)>,
    /// Modules of kernels that are still being compiled ahead of their use.
    pub uncompiled: usize,
    /// What copies of slices took; `None` where nobody [traces](Device::trace) them.
    pub copies: Option<Copies>,
    /// How slices have come to it and from it.
    pub slices: Slices,
}

/// Slices by their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slices {
    /// Written into its memory by a network card.
    pub written: u64,
    /// Read there by one.
    pub read: u64,
    /// Copied to it from the host's memory.
    pub staged: u64,
}

/// For each direction, how long all copies of slices took together, and for how much of that time the network filled or emptied other
/// slabs of the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// From the host.
    pub to_device: (Duration, Duration),
    /// To the host.
    pub from_device: (Duration, Duration),
}

/// A tensor in host memory that goes into a run or comes out of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostTensor {
    /// Element type; `None` only in an output that was never filled.
    pub dtype: Option<DType>,
    /// Concrete dimensions.
    pub dims: Vec<u64>,
    /// Little-endian, row-major.
    pub data: Vec<u8>,
}

/// One session's part of a run. Rows of one batch share program, weights and sequence length.
///
/// Sizes come from the arguments: the batch dimension of a row's arguments is how many sequences the row holds (1 if no
/// argument has one; with caches it must be 1), and the sequence dimension how many tokens. Where the program's batch rows do
/// not depend on each other, the rows run as one batch; else one after another. A row gets the same bits either way.
pub struct Row<'a> {
    /// Values of the inputs that are neither weights nor caches nor positions, in graph order.
    pub arguments: &'a [HostTensor],
    /// The memory of those arguments that are residents, in the same order; beyond its end none is. Of such an argument the tensor in
    /// `arguments` has type and dimensions, and no bytes. A device reads its own memory where it is; what a peer can write it copies
    /// before it checks anything there.
    pub residents: &'a [Option<Memory>],
    /// The caches, in graph order.
    pub caches: Vec<&'a mut KvCache>,
    /// Where the results go, one per graph output; their buffers are reused. Filled only where `wanted` has the bit.
    pub outputs: &'a mut Vec<HostTensor>,
    /// Bit i: output i is wanted. Outputs from 64 on are always filled.
    pub wanted: u64,
    /// Outputs that stay, wanted or not: they do not pass through the host where their memory is the device's own.
    pub kept: Vec<Kept<'a>>,
}

/// Memory for an output that stays.
pub struct Kept<'a> {
    /// Its index among the graph's outputs.
    pub output: usize,
    /// As many bytes as the output has. After a run that failed they are anything.
    pub space: &'a mut Space,
}

impl<'a> Row<'a> {
    /// A row without caches, whose arguments all are in the host's memory, and of whose outputs none stays.
    pub fn new(arguments: &'a [HostTensor], outputs: &'a mut Vec<HostTensor>, wanted: u64) -> Self {
        Self { arguments, residents: &[], caches: Vec::new(), outputs, wanted, kept: Vec::new() }
    }
}

/// A device: memory, and programs that run in it.
pub trait Device: Send + Sync + 'static {
    /// What it offers now.
    fn info(&self) -> DeviceInfo;

    /// What else is known of it if it is a GPU. Unlike [`Self::info`] this may ask the driver.
    fn gpu(&self) -> Option<GpuInfo> {
        None
    }

    /// Begins what the first request would wait for otherwise, and returns.
    fn warm_up(&self) {}

    /// Memory for a resident. It may hold old bytes: whoever hands it to a session fills all of it first.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`]; nothing changed.
    fn allocate(&self, bytes: u64) -> Result<Space, DeviceError>;

    /// As [`Self::allocate`], for a session (by its number) whose sockets may have been lent such memory ([`genie_transport::memory::Region::lend`]).
    ///
    /// # Errors
    /// As [`Self::allocate`].
    fn allocate_for_session(&self, bytes: u64, session: u64) -> Result<Space, DeviceError> {
        let _ = session;
        self.allocate(bytes)
    }

    /// A session is over: nobody may have again what was lent to it.
    fn forget_session(&self, session: u64) {
        let _ = session;
    }

    /// As [`Self::allocate`], for bytes that a network card is to write there itself, where it can: host memory is any.
    ///
    /// # Errors
    /// As [`Self::allocate`].
    fn allocate_reachable(&self, bytes: u64) -> Result<Space, DeviceError> {
        self.allocate_for_upload(bytes)
    }

    /// As [`Self::allocate`], for bytes that come from the host: where the device orders things, these need not wait for what it computes
    /// now.
    ///
    /// # Errors
    /// As [`Self::allocate`].
    fn allocate_for_upload(&self, bytes: u64) -> Result<Space, DeviceError> {
        self.allocate(bytes)
    }

    /// Whether its programs read host memory as it is, whoever made it: [`Memory::Host`] can be their weight.
    fn reads_host_memory(&self) -> bool;

    /// How often memory that copies to and from it are quick from was wanted, and there was none to spare.
    fn staging_misses(&self) -> u64 {
        0
    }

    /// From now on writes down when tensors were on the network and when they were copied. Whether it does: a device that copies nothing
    /// does not, nor does one that writes down elsewhere.
    fn trace(&self, _to: &Arc<Trace>) -> bool {
        false
    }

    /// An empty cache in this device's memory.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] if not even one block of it could ever fit.
    fn cache(&self, spec: KvSpec) -> Result<KvCache, DeviceError>;

    /// Plans a program. Memory for each set of sizes is planned when it first runs, then kept.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] names the op that the device lacks.
    fn load(&self, graph: Arc<VerifiedGraph>) -> Result<Arc<dyn Loaded>, DeviceError>;

    /// Why everything in its memory is lost, if it is: until [`Self::revive`] has worked, it does nothing. Host memory stays.
    fn loss(&self) -> Option<String> {
        None
    }

    /// Begins anew after a loss: its memory is empty. What somebody still has from before is of no use, and costs nothing any more.
    ///
    /// # Errors
    /// [`DeviceError`] if the device cannot be used; it can be tried again.
    fn revive(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// A program planned for a device.
pub trait Loaded: Send + Sync {
    /// Runs the rows as one batch. `weights` in graph order. Each row's caches grow by the sequence length; on an error no
    /// cache has grown. Calls on one device take turns.
    ///
    /// # Errors
    /// [`DeviceError`]; whatever a row asked, other rows' memory is unharmed. Where one row is to blame, the error names it.
    fn run(&self, weights: &[Memory], rows: &mut [Row<'_>]) -> Result<(), DeviceError>;

    /// As [`Self::run`], and calls `meanwhile` where this thread has nothing to do but wait: once the device has the work, or before
    /// where the work is this thread's. After an error it may not have been called; where rows run one after another it is for each.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_with(
        &self,
        weights: &[Memory],
        rows: &mut [Row<'_>],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), DeviceError> {
        meanwhile();
        self.run(weights, rows)
    }

    /// Whether a run of a single row without caches, of these sizes, takes the caller's thread no longer than handing it to another
    /// one would. Asked before each run that could be the caller's.
    fn is_brief(&self, _sizes: &Sizes) -> bool {
        false
    }

    /// Bytes of the device's memory that it keeps between runs, as far as they are counted; `None`: it keeps nothing there.
    fn kept_bytes(&self) -> Option<u64> {
        None
    }
}
