//! A GPU through NVIDIA's driver.
//!
//! The driver, cuBLASLt and NVML are opened when they are first needed: [`probe`] and [`open`] say so where there is no driver.
//!
//! Two opens of the same GPU in a process are one GPU: both have its primary context, and a revival is of both. While a call uses
//! the context it holds a lock that a revival takes alone, so that no handle is used after the context that it was made in.

mod ahead;
mod driver;
mod exports;
mod functions;
mod host_memory;
mod leave;
mod live;
mod peers;
mod pool;
mod products;
mod recording;
mod revival;
mod stale;
mod status;
mod timing;

use std::any::Any;
use std::fmt::{self, Debug, Formatter};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use self::ahead::Ahead;
pub use self::driver::probe;
use self::exports::Exports;
use self::host_memory::HostMemory;
use self::leave::Inside;
pub use self::leave::{exit_at_once, leave};
use self::live::{Live, lock, new_id};
pub use self::products::{NoProducts, products_library};
use self::recording::{Recording, Unrestricted};
use self::stale::Stale;
use self::status::During;
use super::overlap::{is_wanted, try_overlap};
use super::{DropEvent, Event, Gpu, GpuError, Graph, Memory, Operands, Product, Properties, Stream};
use crate::kernel::Launch;
use crate::view::Address;

/// How long a thread asks again and again whether an event has passed before it sleeps in between. Waking it takes tens of
/// microseconds, which is as long as a small step, and some percent of a large model's.
fn spin() -> Duration {
    /// Where there are cores to spare: longer than a decode step of any model that fits on a GPU, shorter than a prompt.
    const LONG: Duration = Duration::from_millis(10);
    const SHORT: Duration = Duration::from_micros(100);
    const MANY_CORES: usize = 8;
    static SPIN: OnceLock<Duration> = OnceLock::new();
    let cores = || thread::available_parallelism().map_or(1, usize::from);
    *SPIN.get_or_init(|| if cores() >= MANY_CORES { LONG } else { SHORT })
}

/// How long a thread sleeps between two looks at an event, after [`spin`]. A look takes a microsecond or two, so that a thread that
/// waits costs some percent of a core, and what it waits for is seen a tenth of a millisecond late at the most, beside the milliseconds
/// that it has taken. The driver's own wait would spin where cores are many, and wake by an interrupt where events or the context ask
/// for that: every event would pay for it when it is recorded, those that only streams wait for, too; and how the context waits is
/// anybody's to set, as it is the process's.
const NAP: Duration = Duration::from_micros(50);

/// The oldest compute capability whose kernels can overlap with those before them.
const OVERLAPPING_CAPABILITY: u32 = 90;

/// Opens a GPU by its number among those that CUDA shows.
///
/// # Errors
/// [`GpuError`]: no driver, an old one, no such GPU, an old one, or what the driver says.
pub fn open(ordinal: u32) -> Result<CudaGpu, GpuError> {
    static OPEN: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());
    let driver = driver::driver()?;
    let properties = driver::properties(driver, ordinal)?;
    let device = driver::device(driver, ordinal)?;
    let mut open = lock(&OPEN);
    open.retain(|gpu| gpu.strong_count() > 0);
    let same = open.iter().filter_map(Weak::upgrade).find(|gpu| gpu.properties.ordinal == ordinal);
    if let Some(shared) = same {
        return Ok(CudaGpu { shared });
    }
    let live = Live::new(device, &properties)?;
    let free = live.pool()?.memory()?.free;
    // Kernels that overlap wait for each other only in the PTX of 9.0, which newer GPUs get, too.
    let overlaps = properties.capability >= OVERLAPPING_CAPABILITY && is_wanted();
    let shared = Arc::new(Shared {
        properties,
        device,
        free,
        overlaps: AtomicBool::new(overlaps),
        live: RwLock::new(Ok(live)),
        stale: Mutex::default(),
        host: Mutex::default(),
        ahead: Ahead::default(),
    });
    let gpu = CudaGpu { shared };
    if overlaps {
        gpu.try_overlap()?;
    }
    open.push(Arc::downgrade(&gpu.shared));
    Ok(gpu)
}

/// See the module.
#[derive(Clone, Debug)]
pub struct CudaGpu {
    shared: Arc<Shared>,
}

struct Shared {
    properties: Properties,
    device: sys::CUdevice,
    /// Bytes of its memory that were free when it was opened.
    free: u64,
    /// Whether kernels that are put right behind others overlap with them.
    overlaps: AtomicBool,
    /// An error where a revival failed.
    live: RwLock<Result<Live, GpuError>>,
    stale: Mutex<Stale>,
    host: Mutex<HostMemory>,
    /// Kernels that are compiled before they are needed.
    ahead: Ahead,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaGpu").field("properties", &self.properties).finish_non_exhaustive()
    }
}

impl CudaGpu {
    /// Leaves it at kernels one after another where overlapping ones do not give the same. Nobody else has the GPU yet.
    ///
    /// # Errors
    /// What the driver says if it cannot be used after that, either.
    fn try_overlap(&self) -> Result<(), GpuError> {
        let device = self.shared.properties.ordinal;
        let error = match try_overlap(self) {
            Ok(true) => {
                tracing::debug!(device, "kernels overlap with those before them");
                return Ok(());
            }
            Ok(false) => {
                tracing::warn!(device, "kernels do not overlap on this GPU: they compute something else when they do");
                None
            }
            Err(error) => {
                tracing::warn!(device, %error, "kernels do not overlap on this GPU: trying it failed");
                Some(error)
            }
        };
        self.shared.overlaps.store(false, Ordering::Relaxed);
        if error.is_some_and(|error| error.is_sticky()) { self.revive() } else { Ok(()) }
    }
}

/// A thread's use of the context, which stays while this lives.
struct Use<'a> {
    // Before what is counted: given back first.
    live: RwLockReadGuard<'a, Result<Live, GpuError>>,
    _inside: Inside,
}

impl Deref for Use<'_> {
    type Target = Result<Live, GpuError>;

    fn deref(&self) -> &Result<Live, GpuError> {
        &self.live
    }
}

impl Shared {
    /// # Errors
    /// [`GpuError::Refused`] once the process is about to end: see [`leave`].
    fn read(&self) -> Result<Use<'_>, GpuError> {
        let _inside = Inside::enter()?;
        Ok(Use { live: self.live.read().unwrap_or_else(PoisonError::into_inner), _inside })
    }

    /// Does something in the GPU's context, unless that broke. A fault is remembered: whoever comes later gets the same.
    fn with<T>(&self, body: impl FnOnce(&Live) -> Result<T, GpuError>) -> Result<T, GpuError> {
        let live = self.read()?;
        let live = live.as_ref().map_err(Clone::clone)?;
        live.check()?;
        live.make_current()?;
        body(live).map_err(|error| if error.is_sticky() { live.broken.get_or_init(|| error).clone() } else { error })
    }

    /// Gives something back, also to a context that broke. What the driver says to it changes nothing.
    fn give_back(&self, body: impl FnOnce(&Live)) {
        if let Ok(using) = self.read()
            && let Ok(live) = &*using
            && live.make_current().is_ok()
        {
            body(live);
        }
    }
}

/// Gives ids back to the GPU that they came from.
#[derive(Debug)]
struct Owner(Arc<Shared>);

impl DropEvent for Owner {
    fn drop_event(&self, id: u64) {
        self.0.give_back(|live| live.forget(id));
    }
}

impl Gpu for CudaGpu {
    fn properties(&self) -> &Properties {
        &self.shared.properties
    }

    fn compile_ahead(&self) {
        ahead::compile_ahead(&self.shared);
    }

    fn uncompiled(&self) -> usize {
        self.shared.ahead.pending()
    }

    fn memory(&self) -> Result<Memory, GpuError> {
        self.shared.with(|live| live.pool()?.memory())
    }

    fn allocate_in(&self, stream: Stream, bytes: u64) -> Result<Address, GpuError> {
        self.shared.with(|live| {
            not_recording(live)?;
            if bytes > self.shared.properties.total_bytes {
                return Err(GpuError::OutOfMemory { wanted: bytes });
            }
            live.pool()?.allocate(live.stream(stream), bytes)
        })
    }

    unsafe fn free(&self, at: Address) {
        let Ok(live) = self.shared.read() else { return };
        // Also where a revival failed: the next one that does not may lend the same address again.
        if lock(&self.shared.stale).give_back(at) {
            return;
        }
        if let Ok(live) = &*live
            && live.make_current().is_ok()
            && let Ok(pool) = live.pool()
        {
            // SAFETY: as the caller has it.
            unsafe { pool.free(at) };
        }
    }

    fn allocate_exportable(&self, bytes: u64) -> Result<Address, GpuError> {
        self.shared.with(|live| {
            not_recording(live)?;
            live.exports.allocate(live, bytes)
        })
    }

    unsafe fn free_exportable(&self, at: Address) {
        // A process that is about to end takes it along.
        let Ok(using) = self.shared.read() else { return };
        if lock(&self.shared.stale).give_back(at) {
            return;
        }
        if let Ok(live) = &*using
            && live.make_current().is_ok()
        {
            // SAFETY: as the caller has it.
            unsafe { live.exports.free(at) };
        }
    }

    fn export(&self, at: Address, bytes: u64) -> Result<OwnedFd, GpuError> {
        self.shared.with(|live| Exports::export(live, at, bytes))
    }

    fn settle_network_writes(&self) -> Result<(), GpuError> {
        self.shared.with(|live| live.exports.settle(live))
    }

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>, GpuError> {
        self.shared.with(|live| HostMemory::pin(&self.shared.host, live, bytes))
    }

    unsafe fn unpin(&self, at: NonNull<u8>) {
        // SAFETY: as the caller has it.
        unsafe { self.unregister(at) };
    }

    unsafe fn register(&self, at: NonNull<u8>, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: as the caller has it.
        self.shared.with(|live| unsafe { HostMemory::register(&self.shared.host, live, at, bytes) })
    }

    unsafe fn unregister(&self, at: NonNull<u8>) {
        let Ok(live) = self.shared.read() else { return };
        let current = live.as_ref().is_ok_and(|live| live.make_current().is_ok());
        // SAFETY: as the caller has it.
        unsafe { HostMemory::give_back(&self.shared.host, at, current) };
    }

    unsafe fn copy_in(&self, stream: Stream, to: Address, from: *const u8, bytes: usize) -> Result<(), GpuError> {
        self.shared.with(|live| {
            if bytes == 0 {
                return Ok(());
            }
            // SAFETY: as the caller has it; the stream is live.
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, live.target(stream)) }
                .during("a copy to the GPU")
        })
    }

    unsafe fn copy_out(&self, stream: Stream, to: *mut u8, from: Address, bytes: usize) -> Result<(), GpuError> {
        self.shared.with(|live| {
            if bytes == 0 {
                return Ok(());
            }
            // SAFETY: as the caller has it; the stream is live.
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, live.target(stream)) }
                .during("a copy from the GPU")
        })
    }

    unsafe fn copy(&self, stream: Stream, to: Address, from: Address, bytes: u64) -> Result<(), GpuError> {
        self.shared.with(|live| {
            if bytes == 0 {
                return Ok(());
            }
            // SAFETY: as the caller has it; the stream is live.
            unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes as usize, live.target(stream)) }
                .during("a copy within the GPU")
        })
    }

    fn reaches(&self, peer: &(dyn Gpu + 'static)) -> bool {
        let peer = (peer as &dyn Any).downcast_ref::<Self>();
        peer.is_some_and(|peer| peers::reaches(&self.shared, &peer.shared))
    }

    unsafe fn copy_to_peer(
        &self,
        stream: Stream,
        peer: &(dyn Gpu + 'static),
        to: Address,
        from: Address,
        bytes: u64,
    ) -> Result<(), GpuError> {
        let Some(peer) = (peer as &dyn Any).downcast_ref::<Self>() else {
            return Err(peers::refused("it is not reached"));
        };
        // SAFETY: as the caller has it.
        unsafe { peers::copy(&self.shared, &peer.shared, stream, to, from, bytes) }
    }

    unsafe fn fill(&self, stream: Stream, to: Address, byte: u8, bytes: u64) -> Result<(), GpuError> {
        self.shared.with(|live| {
            if bytes == 0 {
                return Ok(());
            }
            // SAFETY: as the caller has it; the stream is live.
            unsafe { sys::cuMemsetD8Async(to, byte, bytes as usize, live.target(stream)) }.during("filling memory")
        })
    }

    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError> {
        // SAFETY: as the caller has it.
        self.shared.with(|live| unsafe { put(live, stream, launch, false) })
    }

    unsafe fn launch_behind(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError> {
        let overlaps = self.shared.overlaps.load(Ordering::Relaxed);
        // SAFETY: as the caller has it.
        self.shared.with(|live| unsafe { put(live, stream, launch, overlaps) })
    }

    unsafe fn multiply(&self, product: &Product, operands: &Operands) -> Result<bool, GpuError> {
        product.check(operands)?;
        self.shared.with(|live| {
            let mut products = lock(&live.products);
            let Some(products) = &mut *products else { return Ok(false) };
            if product.is_empty() {
                return Ok(true);
            }
            // The library loads kernels of its own when it first needs them.
            let _unrestricted = Unrestricted::new();
            // SAFETY: as the caller has it. Recordings are replayed in this stream, too.
            let put = unsafe { products.multiply(live.target(Stream::Compute), product, operands) };
            put.map_err(|error| {
                // The library does not say what the driver told it.
                // SAFETY: the stream is live.
                match unsafe { sys::cuStreamQuery(live.stream(Stream::Compute)) }.during("a matrix product") {
                    Err(fault) if fault.is_sticky() => fault,
                    _ => error,
                }
            })
        })
    }

    fn event(&self) -> Result<Event, GpuError> {
        // The driver's own is made when it is first recorded: before, there is nothing to wait for.
        self.shared.with(|_| Ok(Event { id: new_id(), timed: false, gpu: Box::new(Owner(self.shared.clone())) }))
    }

    fn timed_event(&self) -> Result<Event, GpuError> {
        let mut event = self.event()?;
        event.timed = true;
        Ok(event)
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<Duration>, GpuError> {
        self.shared.with(|live| timing::elapsed(live, from, to))
    }

    fn record(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        self.shared.with(|live| {
            let event = live.event_or_new(event)?;
            // SAFETY: event and stream are live.
            unsafe { sys::cuEventRecord(event, live.stream(stream)) }.during("recording an event")
        })
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        self.shared.with(|live| {
            let Some(event) = live.event(event.id) else { return Ok(()) };
            // SAFETY: event and stream are live.
            unsafe { sys::cuStreamWaitEvent(live.stream(stream), event, 0) }.during("waiting for an event")
        })
    }

    fn is_past(&self, event: &Event) -> Result<bool, GpuError> {
        self.shared.with(|live| live.event(event.id).map_or(Ok(true), is_past))
    }

    fn synchronize(&self, event: &Event) -> Result<(), GpuError> {
        self.shared.with(|live| {
            let Some(event) = live.event(event.id) else { return Ok(()) };
            let (started, spin) = (Instant::now(), spin());
            while !is_past(event)? {
                if started.elapsed() < spin {
                    // Asking takes a lock of the driver's, which threads that put copies into streams want, too.
                    (0..32).for_each(|_| std::hint::spin_loop());
                } else {
                    thread::sleep(NAP);
                }
            }
            Ok(())
        })
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Graph, GpuError> {
        let recording = self.shared.with(Recording::begin)?;
        // Without the lock: `work` calls back into this GPU. A panic is caught so that the driver hears that nothing more comes.
        let done = catch_unwind(AssertUnwindSafe(work));
        let live = self.shared.read()?;
        let finished = match (&*live, &done) {
            (Ok(live), Ok(Ok(()))) => recording.finish(live).map(|graph| live.keep(graph)),
            (Ok(live), _) => {
                recording.discard(live);
                Err(GpuError::Refused { during: "recording a graph", reason: "nothing was kept".to_owned() })
            }
            (Err(error), _) => Err(error.clone()),
        };
        drop(live);
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        let id = self.shared.with(|_| finished)?;
        Ok(Graph { id, gpu: Box::new(Owner(self.shared.clone())) })
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<(), GpuError> {
        self.shared.with(|live| {
            let refused =
                |reason: &str| Err(GpuError::Refused { during: "replaying a graph", reason: reason.to_owned() });
            if recording::of_this_thread(live.id).is_some() {
                return refused("not into another graph that this thread records");
            }
            // Held over the launch: two threads must not use an executable graph at once.
            let graphs = lock(&live.graphs);
            let Some(ready) = graphs.get(&graph.id) else {
                return refused("it is another GPU's, or from before this one was revived");
            };
            // SAFETY: the graph is live, and its lock held; the rest is as the caller has it.
            unsafe { sys::cuGraphLaunch(ready.0, live.stream(Stream::Compute)) }.during("replaying a graph")
        })
    }

    fn revive(&self) -> Result<(), GpuError> {
        self.shared.revive()?;
        revival::tried(self)
    }
}

/// Puts a kernel into a stream; `early`: its blocks may come as soon as those of the kernel before it have (`griddepcontrol` in
/// `genie.cuh`). Captured, that makes an edge of the graph that says the same.
///
/// # Safety
/// As [`Gpu::launch`], or where `early` is set as [`Gpu::launch_behind`].
unsafe fn put(live: &Live, stream: Stream, launch: &Launch, early: bool) -> Result<(), GpuError> {
    use sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as OVERLAP;

    let function = live.functions.get(launch.kernel)?;
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    value.programmaticStreamSerializationAllowed = 1;
    let mut overlap = sys::CUlaunchAttribute { id: OVERLAP, pad: [0; 4], value };
    let config = sys::CUlaunchConfig {
        gridDimX: launch.grid[0],
        gridDimY: launch.grid[1],
        gridDimZ: launch.grid[2],
        blockDimX: launch.block[0],
        blockDimY: launch.block[1],
        blockDimZ: launch.block[2],
        sharedMemBytes: launch.shared,
        hStream: live.target(stream),
        attrs: &mut overlap,
        numAttrs: early.into(),
    };
    let mut params = [launch.params().as_ptr().cast_mut().cast()];
    // SAFETY: the function is loaded and takes one structure, which the driver copies before it returns; its size was checked when the
    // launch was made. The addresses in it are as the caller has them; the stream is live; there are as many attributes as it says.
    let put = unsafe { sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), std::ptr::null_mut()) };
    put.during("launching a kernel")
}

fn not_recording(live: &Live) -> Result<(), GpuError> {
    if recording::of_this_thread(live.id).is_none() {
        return Ok(());
    }
    let reason = "not while this thread records a graph: the graph would use memory that is gone".to_owned();
    Err(GpuError::Refused { during: "allocating memory", reason })
}

fn is_past(event: sys::CUevent) -> Result<bool, GpuError> {
    // SAFETY: the event is live: whoever asks has it.
    match unsafe { sys::cuEventQuery(event) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        status => status.during("waiting for the GPU").map(|()| true),
    }
}
