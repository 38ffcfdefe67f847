//! What there is of a GPU between two revivals: its context, and everything that ends with it.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::{result, sys};

use super::super::{Event, GpuError, Properties, Stream};
use super::exports::Exports;
use super::functions::Functions;
use super::leave::Inside;
use super::peers::Peers;
use super::pool::Pool;
use super::products::Products;
use super::recording;
use super::status::During;
use crate::view::Address;

/// The primary context of a GPU and what was made in it.
///
/// Its handles are valid from when they were made until it is dropped: whoever has a `&Live` may use them from any thread, as the
/// driver's functions lock for themselves. Executable graphs alone do not, and so are used with their lock held.
pub(super) struct Live {
    /// No other has it, in this process.
    pub(super) id: u64,
    pub(super) device: sys::CUdevice,
    pub(super) context: sys::CUcontext,
    streams: [sys::CUstream; Stream::ALL.len()],
    pool: Option<Pool>,
    pub(super) functions: Functions,
    pub(super) products: Mutex<Option<Products>>,
    pub(super) events: Mutex<HashMap<u64, EventHandle>>,
    /// Events that nobody has any more, to be recorded anew: each slice of a tensor has one or two.
    spare: Mutex<Vec<EventHandle>>,
    pub(super) graphs: Mutex<HashMap<u64, GraphHandle>>,
    /// What network cards may reach.
    pub(super) exports: Exports,
    /// Which GPUs reach its memory.
    pub(super) peers: Peers,
    /// The fault that ended it.
    pub(super) broken: OnceLock<GpuError>,
}

// SAFETY: the driver's handles belong to the process, not to a thread: every function takes them from any that has made the
// context its own, which `make_current` does before each use.
unsafe impl Send for Live {}
// SAFETY: as above; see the type for those that need a lock.
unsafe impl Sync for Live {}

/// An event of the driver's.
#[derive(Clone, Copy)]
pub(super) struct EventHandle {
    event: sys::CUevent,
    timed: bool,
}

/// Events that are kept for others, at the most: more than are under way at a time.
const SPARE_EVENTS: usize = 1024;

/// An executable graph of the driver's.
pub(super) struct GraphHandle(pub(super) sys::CUgraphExec);

thread_local! {
    /// The [`Live`] whose context is this thread's; 0: none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A number that this process has not used yet.
pub(super) fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks of this module hold is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// Makes a GPU ready.
    pub(super) fn new(device: sys::CUdevice, properties: &Properties) -> Result<Self, GpuError> {
        // SAFETY: the device is the driver's own; `drop` releases it.
        let context = unsafe { result::primary_ctx::retain(device) }.during("making a GPU's context")?;
        // From here on `drop` takes down what has come to be.
        let mut live = Self {
            id: new_id(),
            device,
            context,
            streams: [null_mut(); Stream::ALL.len()],
            pool: None,
            functions: Functions::new(properties),
            products: Mutex::new(None),
            events: Mutex::new(HashMap::new()),
            spare: Mutex::new(Vec::new()),
            graphs: Mutex::new(HashMap::new()),
            exports: Exports::default(),
            peers: Peers::default(),
            broken: OnceLock::new(),
        };
        live.make_current()?;
        live.make_streams()?;
        let pool = Pool::new(device, live.stream(Stream::Compute))?;
        let products = Products::new(live.pool.insert(pool))?;
        *lock(&live.products) = products;
        Ok(live)
    }

    fn make_streams(&mut self) -> Result<(), GpuError> {
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: the context is current; two integers are written.
        unsafe { sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest) }.during("asking for priorities")?;
        for stream in Stream::ALL {
            // Kernels go first: copies that use the multiprocessors must not hold up a step.
            let priority = if stream == Stream::Compute { greatest } else { least };
            let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: the context is current; `drop` destroys the stream.
            unsafe { sys::cuStreamCreateWithPriority(&mut self.streams[stream as usize], flags, priority) }
                .during("making a stream")?;
        }
        Ok(())
    }

    /// Makes the context this thread's, if it is not. Nothing else in the process may set contexts on threads that come here.
    pub(super) fn make_current(&self) -> Result<(), GpuError> {
        if CURRENT.get() == self.id {
            return Ok(());
        }
        // SAFETY: the context is retained until `self` is dropped.
        unsafe { sys::cuCtxSetCurrent(self.context) }.during("making a GPU's context current")?;
        CURRENT.set(self.id);
        Ok(())
    }

    /// The fault that ended it, if one did.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        self.broken.get().cloned().map_or(Ok(()), Err)
    }

    /// The driver's stream.
    pub(super) fn stream(&self, stream: Stream) -> sys::CUstream {
        self.streams[stream as usize]
    }

    /// Where this thread's work for a stream goes: while it is recorded, what is for [`Stream::Compute`] goes into the recording.
    pub(super) fn target(&self, stream: Stream) -> sys::CUstream {
        match recording::of_this_thread(self.id) {
            Some(recording) if stream == Stream::Compute => recording,
            _ => self.stream(stream),
        }
    }

    /// Its memory.
    pub(super) fn pool(&self) -> Result<&Pool, GpuError> {
        let none = || GpuError::Refused { during: "using memory", reason: "there is no memory pool yet".to_owned() };
        self.pool.as_ref().ok_or_else(none)
    }

    /// The driver's event of this number, if it was ever recorded.
    pub(super) fn event(&self, id: u64) -> Option<sys::CUevent> {
        lock(&self.events).get(&id).map(|handle| handle.event)
    }

    /// The driver's event, had from another's or made if there is none. Whoever asks records it next: until then it may be the moment
    /// that it was for whoever had it before.
    pub(super) fn event_or_new(&self, event: &Event) -> Result<sys::CUevent, GpuError> {
        if let Some(event) = self.event(event.id) {
            return Ok(event);
        }
        let new = match self.spare(event.timed) {
            Some(spare) => spare,
            None => make_event(event.timed)?,
        };
        let handle = *lock(&self.events).entry(event.id).or_insert(new);
        if handle.event != new.event {
            // Another thread had one first; nobody has seen this one.
            self.give_up(new);
        }
        Ok(handle.event)
    }

    fn spare(&self, timed: bool) -> Option<EventHandle> {
        let mut spare = lock(&self.spare);
        let last = spare.iter().rposition(|handle| handle.timed == timed)?;
        Some(spare.swap_remove(last))
    }

    /// Nobody has the event any more. What waits for it in streams waits for the moment that it was when they were told to.
    fn give_up(&self, handle: EventHandle) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE_EVENTS {
            spare.push(handle);
            return;
        }
        drop(spare);
        // SAFETY: it is live, and nobody finds it.
        let _ = unsafe { sys::cuEventDestroy_v2(handle.event) };
    }

    /// Keeps a graph until it is forgotten.
    pub(super) fn keep(&self, graph: GraphHandle) -> u64 {
        let id = new_id();
        lock(&self.graphs).insert(id, graph);
        id
    }

    /// Forgets an event or a graph.
    pub(super) fn forget(&self, id: u64) {
        let event = lock(&self.events).remove(&id);
        if let Some(event) = event {
            self.give_up(event);
            return;
        }
        if let Some(graph) = lock(&self.graphs).remove(&id) {
            // SAFETY: it was in the table, so it is live, and now nobody finds it; one that runs is freed when it is done.
            let _ = unsafe { sys::cuGraphExecDestroy(graph.0) };
        }
    }
}

impl Drop for Live {
    // In a context that broke, each of these says so and does nothing: releasing it is what counts. `CURRENT` of other threads keeps
    // this one's number, which no other gets.
    fn drop(&mut self) {
        let Ok(_inside) = Inside::enter() else {
            // The process ends, and all of it with it.
            std::mem::forget(self.pool.take());
            return;
        };
        let _ = self.make_current();
        // SAFETY: nobody else has this `Live`, so nobody uses its handles, each of which is live or null. Kernels that still run keep
        // functions, memory and streams until they are done: hence the wait.
        unsafe {
            let _ = sys::cuCtxSynchronize();
            if let Some(products) = lock(&self.products).take() {
                products.destroy();
            }
            for (_, graph) in lock(&self.graphs).drain() {
                let _ = sys::cuGraphExecDestroy(graph.0);
            }
            let events = lock(&self.events).drain().map(|(_, handle)| handle).collect::<Vec<_>>();
            for handle in events.into_iter().chain(lock(&self.spare).drain(..)) {
                let _ = sys::cuEventDestroy_v2(handle.event);
            }
            self.functions.unload();
            drop(self.pool.take());
            for stream in self.streams.iter().filter(|stream| !stream.is_null()) {
                let _ = sys::cuStreamDestroy_v2(*stream);
            }
            let _ = sys::cuCtxSetCurrent(null_mut());
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
        CURRENT.set(0);
    }
}

/// Makes an event in the current context. None of them wakes a thread: those that wait look at it (see `spin` in `mod.rs`), and without
/// that, and timing, streams wait for events the quickest.
fn make_event(timed: bool) -> Result<EventHandle, GpuError> {
    let flags = if timed { 0 } else { sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32 };
    let mut event = null_mut();
    // SAFETY: a context is current, as whoever has a `Live` to record in sees to; an event is written.
    unsafe { sys::cuEventCreate(&mut event, flags) }.during("making an event")?;
    Ok(EventHandle { event, timed })
}

/// An address on the GPU as the driver's libraries take it.
pub(super) fn pointer(at: Address) -> *mut c_void {
    with_exposed_provenance_mut(at as usize)
}
