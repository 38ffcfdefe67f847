//! A GPU through NVIDIA's driver.
//!
//! The driver, cuBLASLt and NVML are opened when they are first needed: [`probe`] and [`open`] say so where there is no driver.
//!
//! Two opens of the same GPU in a process are one GPU: both have its primary context, and a revival is of both. While a call uses
//! the context it holds a lock that a revival takes alone, so that no handle is used after the context that it was made in.

mod driver;
mod functions;
mod host_memory;
mod live;
mod pool;
mod products;
mod recording;
mod stale;
mod status;

use std::fmt::{self, Debug, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use cudarc::driver::sys;

pub use self::driver::probe;
use self::host_memory::HostMemory;
use self::live::{Live, lock, new_id};
use self::pool::Pool;
use self::recording::{Recording, Unrestricted};
use self::stale::Stale;
use self::status::During;
use super::{DropEvent, Event, Gpu, GpuError, Graph, Memory, Product, Properties, Stream};
use crate::kernel::Launch;
use crate::view::{Address, View};

/// How long a thread asks again and again whether an event has passed before it sleeps: waking it takes tens of microseconds, which
/// is as long as a small step.
const SPIN: Duration = Duration::from_micros(100);

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
    let shared = Arc::new(Shared {
        properties,
        device,
        live: RwLock::new(Ok(live)),
        stale: Mutex::default(),
        host: Mutex::default(),
    });
    open.push(Arc::downgrade(&shared));
    Ok(CudaGpu { shared })
}

/// See the module.
#[derive(Clone, Debug)]
pub struct CudaGpu {
    shared: Arc<Shared>,
}

struct Shared {
    properties: Properties,
    device: sys::CUdevice,
    /// An error where a revival failed.
    live: RwLock<Result<Live, GpuError>>,
    stale: Mutex<Stale>,
    host: Mutex<HostMemory>,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaGpu").field("properties", &self.properties).finish_non_exhaustive()
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Result<Live, GpuError>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something in the GPU's context, unless that broke. A fault is remembered: whoever comes later gets the same.
    fn with<T>(&self, body: impl FnOnce(&Live) -> Result<T, GpuError>) -> Result<T, GpuError> {
        let live = self.read();
        let live = live.as_ref().map_err(Clone::clone)?;
        live.check()?;
        live.make_current()?;
        body(live).map_err(|error| if error.is_sticky() { live.broken.get_or_init(|| error).clone() } else { error })
    }

    /// Gives something back, also to a context that broke. What the driver says to it changes nothing.
    fn give_back(&self, body: impl FnOnce(&Live)) {
        if let Ok(live) = &*self.read()
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

    fn memory(&self) -> Result<Memory, GpuError> {
        self.shared.with(|live| live.pool()?.memory())
    }

    fn allocate(&self, bytes: u64) -> Result<Address, GpuError> {
        self.shared.with(|live| {
            if recording::of_this_thread(live.id).is_some() {
                let reason =
                    "not while this thread records a graph: the graph would use memory that is gone".to_owned();
                return Err(GpuError::Refused { during: "allocating memory", reason });
            }
            if bytes > self.shared.properties.total_bytes {
                return Err(GpuError::OutOfMemory { wanted: bytes });
            }
            live.pool()?.allocate(bytes)
        })
    }

    unsafe fn free(&self, at: Address) {
        let live = self.shared.read();
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

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>, GpuError> {
        self.shared.with(|live| lock(&self.shared.host).pin(live, bytes))
    }

    unsafe fn unpin(&self, at: NonNull<u8>) {
        // SAFETY: as the caller has it.
        unsafe { self.unregister(at) };
    }

    unsafe fn register(&self, at: NonNull<u8>, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: as the caller has it.
        self.shared.with(|live| unsafe { lock(&self.shared.host).register(live, at, bytes) })
    }

    unsafe fn unregister(&self, at: NonNull<u8>) {
        let live = self.shared.read();
        let current = live.as_ref().is_ok_and(|live| live.make_current().is_ok());
        // SAFETY: as the caller has it.
        unsafe { lock(&self.shared.host).give_back(at, current) };
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
        self.shared.with(|live| {
            let function = live.functions.get(launch.kernel)?;
            let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
            let mut params = [launch.params().as_ptr().cast_mut().cast()];
            let (stream, none) = (live.target(stream), std::ptr::null_mut());
            // SAFETY: the function is loaded and takes one structure, which the driver copies before it returns; its size was checked
            // when the launch was made. The addresses in it are as the caller has them; the stream is live.
            let put = unsafe {
                sys::cuLaunchKernel(function, gx, gy, gz, bx, by, bz, launch.shared, stream, params.as_mut_ptr(), none)
            };
            put.during("launching a kernel")
        })
    }

    unsafe fn multiply(&self, product: &Product, a: View, b: View, c: View) -> Result<bool, GpuError> {
        product.check(a, b, c)?;
        self.shared.with(|live| {
            let mut products = lock(&live.products);
            let Some(products) = &mut *products else { return Ok(false) };
            if product.is_empty() {
                return Ok(true);
            }
            // The library loads kernels of its own when it first needs them.
            let _unrestricted = Unrestricted::new();
            // SAFETY: as the caller has it. Recordings are replayed in this stream, too.
            let put = unsafe { products.multiply(live.target(Stream::Compute), product, [a, b, c]) };
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
        self.shared.with(|_| Ok(Event { id: new_id(), gpu: Box::new(Owner(self.shared.clone())) }))
    }

    fn record(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        self.shared.with(|live| {
            let event = live.event_or_new(event.id)?;
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
            let started = Instant::now();
            while started.elapsed() < SPIN {
                if is_past(event)? {
                    return Ok(());
                }
                std::hint::spin_loop();
            }
            // SAFETY: the event is live: the caller has it.
            unsafe { sys::cuEventSynchronize(event) }.during("waiting for the GPU")
        })
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Graph, GpuError> {
        let recording = self.shared.with(Recording::begin)?;
        // Without the lock: `work` calls back into this GPU. A panic is caught so that the driver hears that nothing more comes.
        let done = catch_unwind(AssertUnwindSafe(work));
        let live = self.shared.read();
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
        let mut slot = self.shared.live.write().unwrap_or_else(PoisonError::into_inner);
        let nothing = GpuError::Fault { during: "reviving the GPU", reason: "it was not finished".to_owned() };
        let before = std::mem::replace(&mut *slot, Err(nothing));
        lock(&self.shared.stale).add(before.iter().filter_map(|live| live.pool().ok()).flat_map(Pool::lent));
        drop(before);
        // This process's primary context on the GPU, not the GPU: other processes notice nothing. A library of this process that
        // holds the context would otherwise keep the broken one.
        // SAFETY: the device is the driver's own, and nothing of the context is in use: `Live` is gone, and the lock is held.
        let reset = unsafe { sys::cuDevicePrimaryCtxReset_v2(self.shared.device) };
        let again = reset.during("resetting the GPU's context").and_then(|()| {
            let live = Live::new(self.shared.device, &self.shared.properties)?;
            lock(&self.shared.host).revive(&live);
            Ok(live)
        });
        *slot = again.map_err(|error| GpuError::Fault { during: "reviving the GPU", reason: error.to_string() });
        slot.as_ref().map(|_| ()).map_err(Clone::clone)
    }
}

fn is_past(event: sys::CUevent) -> Result<bool, GpuError> {
    // SAFETY: the event is live: whoever asks has it.
    match unsafe { sys::cuEventQuery(event) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        status => status.during("waiting for the GPU").map(|()| true),
    }
}
