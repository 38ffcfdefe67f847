//! A GPU as Genie uses one: memory, streams, events, launches, graphs, products.
//!
//! [`Gpu`] has two implementations: the CUDA driver's (feature `cuda`), and one on this CPU (feature `host`), which runs the same
//! kernels as late as it may and in an order that a seed picks, so that what depends on luck between streams shows in tests.

#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
#[cfg(feature = "host")]
mod host;
#[cfg(feature = "cuda")]
pub mod inventory;
mod overlap;
mod pcie;
mod product;
#[cfg(feature = "cuda")]
mod trial;

use std::any::Any;
use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::time::Duration;

pub use error::GpuError;
#[cfg(feature = "host")]
pub use host::{HostExports, HostGpu, HostProducts, HostSettings};
pub use overlap::try_overlap;
pub use pcie::{Bandwidth, measure_pcie};
pub use product::{Operands, Product, WeightLayout};

use crate::kernel::Launch;
use crate::view::Address;

/// Bytes of stack that a thread needs which may be the first to use a kernel: the driver's compiler, which makes it for the GPU, recurses.
pub const JIT_STACK_BYTES: usize = 16 << 20;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Its number among those that this process sees.
    pub ordinal: u32,
    /// What it calls itself.
    pub name: String,
    /// `GPU-...`, as management tools print it.
    pub uuid: String,
    /// Compute capability: 90 for 9.0.
    pub capability: u32,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub shared_bytes: u32,
    /// Bytes of its memory.
    pub total_bytes: u64,
    /// `0000:3b:00.0`; empty where it has none.
    pub bus: String,
    /// Version of the driver's interface: 13000 for 13.0.
    pub driver: u32,
}

/// The queues of a GPU. What is put into one happens in order; between two, only events order things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    /// Kernels. Memory is allocated and freed in its order, too.
    Compute = 0,
    /// Copies from the host.
    Upload = 1,
    /// Copies to the host.
    Download = 2,
}

impl Stream {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Compute, Self::Upload, Self::Download];
}

/// A moment in a stream. Made by [`Gpu::event`] or [`Gpu::timed_event`]; means nothing to another GPU.
#[derive(Debug)]
pub struct Event {
    pub(crate) id: u64,
    /// Whether it is remembered when it passed.
    pub(crate) timed: bool,
    pub(crate) gpu: Box<dyn DropEvent>,
}

/// Gives an event back.
pub(crate) trait DropEvent: Send + Sync + Debug {
    /// The event is not used any more.
    fn drop_event(&self, id: u64);
}

impl Drop for Event {
    fn drop(&mut self) {
        self.gpu.drop_event(self.id);
    }
}

/// What was put into a stream once, ready to be put there again as one thing. Made by [`Gpu::capture`].
#[derive(Debug)]
pub struct Graph {
    pub(crate) id: u64,
    pub(crate) gpu: Box<dyn DropEvent>,
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.drop_event(self.id);
    }
}

/// What memory that network cards are told of comes in: no page of host or GPU is larger.
pub const EXPORT_UNIT: u64 = 2 << 20;

/// Free and all bytes of a GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not taken by anybody.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// A GPU.
///
/// Calls may come from any thread. Whatever is put into a stream is done later; `unsafe` ones say what must stay as it is until
/// then. An error that [`GpuError::is_sticky`] says yes to has ended everything on the GPU: only [`Gpu::revive`] helps.
pub trait Gpu: Any + Send + Sync + Debug {
    /// What it is.
    fn properties(&self) -> &Properties;

    /// Begins to make all kernels ready, on threads of its own, and returns. A launch that needs one earlier waits for that one alone, or
    /// makes it ready itself; what cannot be made ready is told to who launches it. The GPU may be dropped meanwhile.
    fn compile_ahead(&self);

    /// Modules of kernels that [`Self::compile_ahead`] has yet to make ready, or to give up.
    fn uncompiled(&self) -> usize;

    /// Its memory now.
    ///
    /// # Errors
    /// [`GpuError`].
    fn memory(&self) -> Result<Memory, GpuError>;

    /// Memory of the GPU, from [`Stream::Compute`]'s next turn on: as [`Self::allocate_in`].
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate(&self, bytes: u64) -> Result<Address, GpuError> {
        self.allocate_in(Stream::Compute, bytes)
    }

    /// Memory of the GPU, from this stream's next turn on; other streams wait for that before they use it. It holds anything. The driver
    /// aligns it to 256; the stand-in to 16, so that it can end where touching faults.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    fn allocate_in(&self, stream: Stream, bytes: u64) -> Result<Address, GpuError>;

    /// Gives memory back, once [`Stream::Compute`] has come to this point.
    ///
    /// # Safety
    /// It came from [`Self::allocate`] or [`Self::allocate_in`], and what other streams do with it, having it among that, is done, or
    /// [`Stream::Compute`] waits for it.
    unsafe fn free(&self, at: Address);

    /// Memory of the GPU that network cards can be told of: a multiple of [`EXPORT_UNIT`] bytes that hold anything. It is there at once, in
    /// no stream's order, and takes long to have and to give back.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`]; [`GpuError::Refused`] where network cards never reach this GPU's memory.
    fn allocate_exportable(&self, bytes: u64) -> Result<Address, GpuError>;

    /// Gives such memory back. Waits for the GPU.
    ///
    /// # Safety
    /// It came from [`Self::allocate_exportable`], and nothing uses it any more: neither network cards nor what is in streams.
    unsafe fn free_exportable(&self, at: Address);

    /// A dmabuf descriptor for all of some memory from [`Self::allocate_exportable`]. It keeps the memory's pages, and not its address.
    ///
    /// # Errors
    /// [`GpuError::Refused`]: the driver makes none. By its address the memory may be registered all the same.
    fn export(&self, at: Address, bytes: u64) -> Result<OwnedFd, GpuError>;

    /// What network cards have written and told the host of is seen by all that is put into streams after this.
    ///
    /// # Errors
    /// [`GpuError`].
    fn settle_network_writes(&self) -> Result<(), GpuError>;

    /// Host memory that copies reach without help: zeroed, page-aligned. Where the driver refuses that for another reason than memory,
    /// it is memory as any other, of which copies are slower, and a warning says so.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`] where the system has none, or pins no more.
    fn pin(&self, bytes: usize) -> Result<NonNull<u8>, GpuError>;

    /// Gives host memory back.
    ///
    /// # Safety
    /// It came from [`Self::pin`], and nothing uses it any more.
    unsafe fn unpin(&self, at: NonNull<u8>);

    /// Lets copies reach host memory of somebody else's without help.
    ///
    /// # Safety
    /// The memory stays mapped until [`Self::unregister`].
    ///
    /// # Errors
    /// [`GpuError`]; copies work all the same, though slower.
    unsafe fn register(&self, at: NonNull<u8>, bytes: usize) -> Result<(), GpuError>;

    /// Ends [`Self::register`].
    ///
    /// # Safety
    /// No copy of it is under way.
    unsafe fn unregister(&self, at: NonNull<u8>);

    /// Copies host memory to the GPU's.
    ///
    /// # Safety
    /// Both are live, and `from` stays as it is, until the copy is done.
    ///
    /// # Errors
    /// [`GpuError`].
    unsafe fn copy_in(&self, stream: Stream, to: Address, from: *const u8, bytes: usize) -> Result<(), GpuError>;

    /// Copies the GPU's memory to the host's.
    ///
    /// # Safety
    /// Both are live, and nobody uses `to`, until the copy is done.
    ///
    /// # Errors
    /// [`GpuError`].
    unsafe fn copy_out(&self, stream: Stream, to: *mut u8, from: Address, bytes: usize) -> Result<(), GpuError>;

    /// Copies within the GPU's memory; the two do not overlap.
    ///
    /// # Safety
    /// Both are live until the copy is done.
    ///
    /// # Errors
    /// [`GpuError`].
    unsafe fn copy(&self, stream: Stream, to: Address, from: Address, bytes: u64) -> Result<(), GpuError>;

    /// Whether [`Self::copy_to_peer`] gets to another GPU's memory. The first to ask sets that up where it can be.
    fn reaches(&self, peer: &(dyn Gpu + 'static)) -> bool;

    /// Copies this GPU's memory to that of another which it [reaches](Self::reaches), without the host between them. Streams of the
    /// other know nothing of it.
    ///
    /// # Safety
    /// Both are live until the copy is done, and nobody uses `to` meanwhile: what the other GPU's streams do with it is done.
    ///
    /// # Errors
    /// [`GpuError`]; [`GpuError::Refused`] where the other is not reached, or has failed.
    unsafe fn copy_to_peer(
        &self,
        stream: Stream,
        peer: &(dyn Gpu + 'static),
        to: Address,
        from: Address,
        bytes: u64,
    ) -> Result<(), GpuError>;

    /// Makes every byte `byte`.
    ///
    /// # Safety
    /// The memory is live until that is done.
    ///
    /// # Errors
    /// [`GpuError`].
    unsafe fn fill(&self, stream: Stream, to: Address, byte: u8, bytes: u64) -> Result<(), GpuError>;

    /// Runs a kernel.
    ///
    /// # Safety
    /// The views that the launch was made from are live until it is done, and what it writes nobody else uses unordered.
    ///
    /// # Errors
    /// [`GpuError`]. A fault of the kernel shows later, wherever its stream is waited for.
    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError>;

    /// As [`Self::launch`], of a kernel that the caller puts right behind another kernel of this crate's: where the GPU can, its blocks
    /// come while that one still runs, and wait there for its results. What they do before they wait touches nothing but weights that
    /// were said to be constant ([`crate::launch::weight::Weight::constant`]) or are asked for ahead ([`crate::launch::ahead::Ahead`]), and
    /// what a cache held before the new token of an attention ([`crate::launch::attention::New`]), with its lengths and tables.
    ///
    /// # Safety
    /// As [`Self::launch`]; and what the caller put into the stream last is a kernel, by `launch` or this, so that what comes before
    /// that one is done when this one's blocks come.
    ///
    /// # Errors
    /// [`GpuError`], as of [`Self::launch`].
    unsafe fn launch_behind(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError>;

    /// A product by a library of matrix products; `false` where there is none, or it has no way for this one: nothing was done.
    ///
    /// # Safety
    /// As [`Self::launch`].
    ///
    /// # Errors
    /// [`GpuError`]; [`GpuError::Refused`] where [`Product::check`] says no.
    unsafe fn multiply(&self, product: &Product, operands: &Operands) -> Result<bool, GpuError>;

    /// A new event, which counts as passed until it is recorded.
    ///
    /// # Errors
    /// [`GpuError`].
    fn event(&self) -> Result<Event, GpuError>;

    /// As [`Self::event`], for [`Self::elapsed`]: to record it costs more.
    ///
    /// # Errors
    /// [`GpuError`].
    fn timed_event(&self) -> Result<Event, GpuError>;

    /// How long after `from` the moment `to` was, by the GPU's clock, which counts in half microseconds at best, and more coarsely
    /// the further the two are apart. `None`: `to` was first, or one of them has not passed, was not recorded since a revival, or is
    /// not timed.
    ///
    /// # Errors
    /// What went wrong on the GPU up to then.
    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<Duration>, GpuError>;

    /// From now on the event is this moment of the stream.
    ///
    /// # Errors
    /// [`GpuError`].
    fn record(&self, stream: Stream, event: &Event) -> Result<(), GpuError>;

    /// The stream goes on only when the event has passed.
    ///
    /// # Errors
    /// [`GpuError`].
    fn wait(&self, stream: Stream, event: &Event) -> Result<(), GpuError>;

    /// Whether the event has passed.
    ///
    /// # Errors
    /// What went wrong on the GPU up to then.
    fn is_past(&self, event: &Event) -> Result<bool, GpuError>;

    /// Waits on this thread until the event has passed.
    ///
    /// # Errors
    /// What went wrong on the GPU up to then.
    fn synchronize(&self, event: &Event) -> Result<(), GpuError>;

    /// Records what `work` puts into [`Stream::Compute`] on this thread, which is not done now. `work` neither allocates nor frees
    /// memory and waits for nothing; other threads go on as ever.
    ///
    /// # Errors
    /// `work`'s, or [`GpuError`].
    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Graph, GpuError>;

    /// Puts all of a graph into [`Stream::Compute`].
    ///
    /// # Safety
    /// As for each thing that was recorded.
    ///
    /// # Errors
    /// [`GpuError`].
    unsafe fn replay(&self, graph: &Graph) -> Result<(), GpuError>;

    /// After a sticky error: gives up everything on the GPU, whoever has it, and begins anew. Addresses and graphs from before mean
    /// nothing any more, events count as passed; giving them back does nothing. Pinned and registered host memory stays.
    ///
    /// # Errors
    /// [`GpuError`] if the GPU cannot be used again.
    fn revive(&self) -> Result<(), GpuError>;
}
