//! What a device must do, whatever it is made of.

use std::sync::Arc;

use genie_graph::{DType, VerifiedGraph};
use genie_transport::memory::{Region, Slab};

/// What a device offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Index on its server.
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

/// A tensor in host memory that goes into a run or comes out of it.
#[derive(Clone, Debug, Default)]
pub struct HostTensor {
    /// Wire code order: see [`DType`].
    pub dtype: Option<DType>,
    /// Concrete dimensions.
    pub dims: Vec<u64>,
    /// Little-endian, row-major.
    pub data: Vec<u8>,
}

/// One session's part of a run. Rows of one batch share program, weights and sequence length.
pub struct Row<'a> {
    /// Values of the inputs that are neither weights nor caches nor positions, in graph order.
    pub arguments: &'a [HostTensor],
    /// The caches, in graph order.
    pub caches: Vec<&'a mut KvCache>,
    /// Where the results go, one per graph output; their buffers are reused. Filled only where `wanted` has the bit.
    pub outputs: &'a mut Vec<HostTensor>,
    /// Bit i: output i is wanted.
    pub wanted: u64,
}

/// A device: memory, and programs that run in it.
pub trait Device: Send + Sync + 'static {
    /// What it offers now.
    fn info(&self) -> DeviceInfo;

    /// Memory for a resident.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`]; nothing changed.
    fn allocate(&self, bytes: u64) -> Result<Slab, DeviceError>;

    /// Plans a program. Memory for each set of sizes is planned when it first runs, then kept.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] names the op that the device lacks.
    fn load(&self, graph: Arc<VerifiedGraph>) -> Result<Arc<dyn Loaded>, DeviceError>;
}

/// A program planned for a device.
pub trait Loaded: Send + Sync {
    /// Runs the rows as one batch. `weights` in graph order. Each row's caches grow by the sequence length; on an error no
    /// cache has grown.
    ///
    /// # Errors
    /// [`DeviceError`]; whatever a row asked, other rows' memory is unharmed.
    fn run(&self, weights: &[Region], rows: &mut [Row<'_>]) -> Result<(), DeviceError>;
}
