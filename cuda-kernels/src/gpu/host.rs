//! A GPU on this CPU, for tests.
//!
//! What is put into a stream is done when somebody waits for it, and no earlier than that needs: an order that was forgotten between
//! two streams, or a buffer that was given back too early, shows as wrong bytes.

mod streams;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use self::streams::{Op, Streams};
use super::{DropEvent, Event, Gpu, GpuError, Graph, Memory, Product, Properties, Stream};
use crate::host::Guarded;
use crate::kernel::Launch;
use crate::view::{Address, View};

/// What a [`HostGpu`] is to be like.
#[derive(Clone, Debug)]
pub struct HostSettings {
    /// Bytes of memory.
    pub total_bytes: u64,
    /// The seed that orders of threads and blocks come from.
    pub seed: u64,
    /// Multiprocessors that it says it has: some launches are cut by them.
    pub multiprocessors: u32,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self { total_bytes: 4 << 30, seed: 0, multiprocessors: 4 }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct HostGpu {
    properties: Properties,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    settings: HostSettings,
    streams: Streams,
    allocated: HashMap<Address, Guarded>,
    /// What was allocated before a revival and is still to be given back: kept, so that no address means two things.
    stale: HashMap<Address, Guarded>,
    used: u64,
    pinned: HashMap<usize, Guarded>,
    next: u64,
    graphs: HashMap<u64, Vec<Op>>,
    /// What threads that capture have put into [`Stream::Compute`].
    recordings: HashMap<ThreadId, Vec<Op>>,
    /// The moment that each event is.
    moments: HashMap<u64, u64>,
    /// What [`HostGpu::fail`] left for the next wait.
    planted: Option<GpuError>,
    /// The sticky error that everything gets.
    broken: Option<GpuError>,
    /// Revivals that are still to fail.
    dead: u32,
    launches: u64,
    replays: u64,
    products: bool,
}

/// What memory holds that nobody wrote.
const POISON: u8 = 0xFF;

impl HostGpu {
    /// A GPU.
    pub fn new(settings: HostSettings) -> Self {
        let properties = Properties {
            ordinal: 0,
            name: "CPU stand-in".to_owned(),
            uuid: "GPU-00000000-0000-0000-0000-000000000000".to_owned(),
            capability: 90,
            multiprocessors: settings.multiprocessors,
            shared_bytes: 227 << 10,
            total_bytes: settings.total_bytes,
            bus: String::new(),
            driver: 13000,
        };
        let state = State {
            settings,
            streams: Streams::default(),
            allocated: HashMap::new(),
            stale: HashMap::new(),
            used: 0,
            pinned: HashMap::new(),
            next: 1,
            graphs: HashMap::new(),
            recordings: HashMap::new(),
            moments: HashMap::new(),
            planted: None,
            broken: None,
            dead: 0,
            launches: 0,
            replays: 0,
            products: true,
        };
        Self { properties, state: Arc::new(Mutex::new(state)) }
    }

    /// The next thing that is waited for ends with this error.
    pub fn fail(&self, error: GpuError) {
        self.state().planted = Some(error);
    }

    /// The next so many revivals fail.
    pub fn fail_revivals(&self, times: u32) {
        self.state().dead = times;
    }

    /// Whether there is a library of matrix products.
    pub fn set_products(&self, there: bool) {
        self.state().products = there;
    }

    /// Bytes of memory that are taken.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Kernels that ran, replays of graphs included.
    pub fn launches(&self) -> u64 {
        self.state().launches
    }

    /// Graphs that were replayed.
    pub fn replays(&self) -> u64 {
        self.state().replays
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, stream: Stream, op: Op) -> Result<(), GpuError> {
        let mut state = self.state();
        state.check()?;
        state.put(stream, op);
        Ok(())
    }
}

impl State {
    fn check(&self) -> Result<(), GpuError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    fn put(&mut self, stream: Stream, op: Op) {
        match self.recordings.get_mut(&thread::current().id()) {
            Some(recording) if stream == Stream::Compute => recording.push(op),
            _ => self.streams.push(stream, op),
        }
    }

    /// The stream that has yet to come to the event.
    fn holds(&self, event: &Event) -> Option<Stream> {
        self.streams.holds(*self.moments.get(&event.id)?)
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does the oldest thing of a stream, and first what it waits for.
    fn step(&mut self, stream: Stream) -> Result<(), GpuError> {
        if let Some(moment) = self.streams.blocked_by(stream) {
            return self.reach(moment);
        }
        let Some(op) = self.streams.pop(stream) else { return Ok(()) };
        let done = self.planted.take().map_or(Ok(()), Err).and_then(|()| self.perform(op));
        if let Err(error) = &done
            && error.is_sticky()
        {
            self.broken = Some(error.clone());
        }
        done
    }

    /// Does all that comes before a moment.
    fn reach(&mut self, moment: u64) -> Result<(), GpuError> {
        while let Some(stream) = self.streams.holds(moment) {
            self.step(stream)?;
        }
        Ok(())
    }

    fn perform(&mut self, op: Op) -> Result<(), GpuError> {
        match op {
            // SAFETY: whoever put the copy into the stream said that both stay live until it is done, which is now.
            Op::Copy { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes)
            },
            // SAFETY: as above.
            Op::Fill { to, byte, bytes } => unsafe { (to as *mut u8).write_bytes(byte, bytes) },
            Op::Launch(launch) => {
                self.launches += 1;
                let seed = self.settings.seed;
                // SAFETY: whoever launched it said that its views are live until it is done.
                let ran = unsafe { crate::host::run(&launch, seed) };
                ran.map_err(|e| GpuError::Fault { during: "a kernel", reason: e.to_string() })?;
            }
            // SAFETY: as for a launch.
            Op::Multiply { product, a, b, c } => unsafe { streams::multiply(&product, a, b, c) },
            Op::Free(at) => {
                if let Some(memory) = self.allocated.remove(&at) {
                    self.used -= memory.len() as u64;
                }
            }
            Op::Record(_) | Op::Wait(_) => {}
            Op::Replay(graph) => {
                self.replays += 1;
                for op in self.graphs.get(&graph).cloned().unwrap_or_default() {
                    self.perform(op)?;
                }
            }
        }
        Ok(())
    }
}

/// Gives ids back to the state they came from.
#[derive(Debug)]
struct Owner(Arc<Mutex<State>>);

impl DropEvent for Owner {
    fn drop_event(&self, id: u64) {
        // A graph may still wait in the stream: what it does was promised to stay possible until it is done.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.streams.replays(id) {
            return;
        }
        state.graphs.remove(&id);
        state.moments.remove(&id);
    }
}

impl Gpu for HostGpu {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory(&self) -> Result<Memory, GpuError> {
        let state = self.state();
        state.check()?;
        let total = state.settings.total_bytes;
        Ok(Memory { free: total - state.used, total })
    }

    fn allocate(&self, bytes: u64) -> Result<Address, GpuError> {
        let mut state = self.state();
        state.check()?;
        // As a driver does: what is to be freed is, before it says no.
        while state.used.saturating_add(bytes) > state.settings.total_bytes && !state.streams.is_empty(Stream::Compute)
        {
            state.step(Stream::Compute)?;
        }
        let wanted =
            usize::try_from(bytes).ok().filter(|_| state.used.saturating_add(bytes) <= state.settings.total_bytes);
        let Some(wanted) = wanted else { return Err(GpuError::OutOfMemory { wanted: bytes }) };
        let memory = Guarded::new(wanted.max(1), POISON);
        let at = memory.address();
        state.used += memory.len() as u64;
        // It is the caller's from this moment of the stream on: whoever writes it unordered loses what was written.
        state.streams.push(Stream::Compute, Op::Fill { to: at, byte: POISON, bytes: memory.len() });
        state.allocated.insert(at, memory);
        Ok(at)
    }

    unsafe fn free(&self, at: Address) {
        let mut state = self.state();
        if state.stale.remove(&at).is_some() {
            return;
        }
        if state.broken.is_some() {
            // Nothing that is in the streams will be done.
            let _ = state.perform(Op::Free(at));
        } else {
            state.put(Stream::Compute, Op::Free(at));
        }
    }

    fn pin(&self, bytes: usize) -> Result<NonNull<u8>, GpuError> {
        let memory = Guarded::new(bytes.next_multiple_of(4096), 0);
        let at = NonNull::new(memory.address() as *mut u8).ok_or(GpuError::OutOfMemory { wanted: bytes as u64 })?;
        self.state().pinned.insert(at.as_ptr() as usize, memory);
        Ok(at)
    }

    unsafe fn unpin(&self, at: NonNull<u8>) {
        self.state().pinned.remove(&(at.as_ptr() as usize));
    }

    unsafe fn register(&self, _at: NonNull<u8>, _bytes: usize) -> Result<(), GpuError> {
        self.state().check()
    }

    unsafe fn unregister(&self, _at: NonNull<u8>) {}

    unsafe fn copy_in(&self, stream: Stream, to: Address, from: *const u8, bytes: usize) -> Result<(), GpuError> {
        self.put(stream, Op::Copy { to, from: from as u64, bytes })
    }

    unsafe fn copy_out(&self, stream: Stream, to: *mut u8, from: Address, bytes: usize) -> Result<(), GpuError> {
        self.put(stream, Op::Copy { to: to as u64, from, bytes })
    }

    unsafe fn copy(&self, stream: Stream, to: Address, from: Address, bytes: u64) -> Result<(), GpuError> {
        self.put(stream, Op::Copy { to, from, bytes: bytes as usize })
    }

    unsafe fn fill(&self, stream: Stream, to: Address, byte: u8, bytes: u64) -> Result<(), GpuError> {
        self.put(stream, Op::Fill { to, byte, bytes: bytes as usize })
    }

    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError> {
        self.put(stream, Op::Launch(Box::new(*launch)))
    }

    unsafe fn multiply(&self, product: &Product, a: View, b: View, c: View) -> Result<bool, GpuError> {
        product.check(a, b, c)?;
        if !self.state().products {
            return Ok(false);
        }
        self.put(Stream::Compute, Op::Multiply { product: *product, a, b, c })?;
        Ok(true)
    }

    fn event(&self) -> Result<Event, GpuError> {
        let mut state = self.state();
        state.check()?;
        Ok(Event { id: state.id(), gpu: Box::new(Owner(self.state.clone())) })
    }

    fn record(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        let mut state = self.state();
        state.check()?;
        let moment = state.id();
        state.moments.insert(event.id, moment);
        state.streams.push(stream, Op::Record(moment));
        Ok(())
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        let mut state = self.state();
        state.check()?;
        if state.holds(event).is_some()
            && let Some(&moment) = state.moments.get(&event.id)
        {
            state.streams.push(stream, Op::Wait(moment));
        }
        Ok(())
    }

    fn is_past(&self, event: &Event) -> Result<bool, GpuError> {
        let mut state = self.state();
        state.check()?;
        // Who asks in a loop gets there; who asks once is told no.
        if let Some(stream) = state.holds(event) {
            state.step(stream)?;
        }
        Ok(state.holds(event).is_none())
    }

    fn synchronize(&self, event: &Event) -> Result<(), GpuError> {
        let mut state = self.state();
        state.check()?;
        let moment = state.moments.get(&event.id).copied();
        moment.map_or(Ok(()), |moment| state.reach(moment))
    }

    fn capture(&self, work: &mut dyn FnMut() -> Result<(), GpuError>) -> Result<Graph, GpuError> {
        let this = thread::current().id();
        let begin = || {
            let mut state = self.state();
            state.check()?;
            if state.recordings.contains_key(&this) {
                return Err(refused("recording a graph", "this thread records already"));
            }
            state.recordings.insert(this, Vec::new());
            Ok(())
        };
        begin()?;
        let done = catch_unwind(AssertUnwindSafe(work));
        let mut state = self.state();
        let recorded = state.recordings.remove(&this);
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        let recorded = recorded.ok_or_else(|| refused("recording a graph", "the GPU was revived meanwhile"))?;
        let id = state.id();
        state.graphs.insert(id, recorded);
        Ok(Graph { id, gpu: Box::new(Owner(self.state.clone())) })
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<(), GpuError> {
        if !self.state().graphs.contains_key(&graph.id) {
            return Err(refused("replaying a graph", "it is another GPU's, or from before this one was revived"));
        }
        self.put(Stream::Compute, Op::Replay(graph.id))
    }

    fn revive(&self) -> Result<(), GpuError> {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(left) = state.dead.checked_sub(1) {
            state.dead = left;
            let error = GpuError::Fault { during: "reviving the GPU", reason: "it was told to fail".to_owned() };
            state.broken = Some(error.clone());
            return Err(error);
        }
        state.streams = Streams::default();
        state.stale.extend(state.allocated.drain());
        state.used = 0;
        state.graphs.clear();
        state.recordings.clear();
        state.broken = None;
        Ok(())
    }
}

fn refused(during: &'static str, reason: &str) -> GpuError {
    GpuError::Refused { during, reason: reason.to_owned() }
}
