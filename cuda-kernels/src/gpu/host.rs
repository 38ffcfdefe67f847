//! A GPU on this CPU, for tests.
//!
//! What is put into a stream is done when somebody waits for it, and no earlier than that needs: an order that was forgotten between
//! two streams, or a buffer that was given back too early, shows as wrong bytes.

mod state;
mod streams;

use std::any::Any;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use self::state::State;
use self::streams::{Op, Streams};
use super::{DropEvent, EXPORT_UNIT, Event, Gpu, GpuError, Graph, Memory, Operands, Product, Properties, Stream};
use crate::host::Guarded;
use crate::kernel::Launch;
use crate::view::Address;

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

/// What the library of matrix products of a [`HostGpu`] can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostProducts {
    /// There is none.
    None,
    /// Products, but nothing besides.
    Bare,
    /// All that [`Product`] asks for.
    All,
}

/// How network cards reach the memory of a [`HostGpu`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostExports {
    /// Never.
    None,
    /// By its address: it is the host's.
    Address,
    /// By its address, and by a descriptor that no network card takes.
    Descriptor,
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
            exportable: HashMap::new(),
            exports: HostExports::Address,
            settled: 0,
            used: 0,
            host_bytes: 0,
            pinned: HashMap::new(),
            next: 1,
            graphs: HashMap::new(),
            recordings: HashMap::new(),
            moments: HashMap::new(),
            times: HashMap::new(),
            planted: None,
            broken: None,
            dead: 0,
            calls: 0,
            copies_in: 0,
            launches: 0,
            behind: 0,
            hasty: false,
            replays: 0,
            products: HostProducts::All,
            multiplied: 0,
            peers: true,
        };
        Self { properties, state: Arc::new(Mutex::new(state)) }
    }

    /// The next thing that is waited for ends with this error.
    pub fn fail(&self, error: GpuError) {
        self.state().planted = Some(error);
    }

    /// Bytes that were to be copied from the host's memory, and to it.
    pub fn host_bytes(&self) -> u64 {
        self.state().host_bytes
    }

    /// The next so many revivals fail.
    pub fn fail_revivals(&self, times: u32) {
        self.state().dead = times;
    }

    /// What its library of matrix products can do.
    pub fn set_products(&self, products: HostProducts) {
        self.state().products = products;
    }

    /// Products that the library did, replays of graphs included.
    pub fn products(&self) -> u64 {
        self.state().multiplied
    }

    /// Whether others of its kind are reached.
    pub fn set_peers(&self, reached: bool) {
        self.state().peers = reached;
    }

    /// How network cards reach its memory from now on.
    pub fn set_exports(&self, exports: HostExports) {
        self.state().exports = exports;
    }

    /// How often writes of network cards were settled.
    pub fn settled(&self) -> u64 {
        self.state().settled
    }

    /// Bytes of memory that network cards may be told of.
    pub fn exportable(&self) -> u64 {
        self.state().exportable.values().map(|memory| memory.len() as u64).sum()
    }

    /// Bytes of memory that are taken.
    pub fn used(&self) -> u64 {
        self.state().used
    }

    /// Copies from the host that were put into streams.
    pub fn copies_in(&self) -> u64 {
        self.state().copies_in
    }

    /// Calls that would be the driver's: of all that is put into streams or recordings, and what is made, given back and waited for.
    /// Asking again and again whether something is done is one.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Kernels that ran, replays of graphs included.
    pub fn launches(&self) -> u64 {
        self.state().launches
    }

    /// Kernels that were put right behind others, into streams or recordings.
    pub fn launches_behind(&self) -> u64 {
        self.state().behind
    }

    /// Whether kernels that are put right behind others run before them: as on a GPU where they overlap and do not wait.
    pub fn set_hasty(&self, hasty: bool) {
        self.state().hasty = hasty;
    }

    /// Graphs that were replayed.
    pub fn replays(&self) -> u64 {
        self.state().replays
    }

    /// The state, for a call that would be the driver's.
    fn call(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        state.calls += 1;
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, stream: Stream, op: Op) -> Result<(), GpuError> {
        let mut state = self.call();
        state.check()?;
        state.put(stream, op);
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
        state.calls += 1;
        if state.streams.replays(id) {
            return;
        }
        state.graphs.remove(&id);
        if let Some(moment) = state.moments.remove(&id) {
            state.times.remove(&moment);
        }
    }
}

impl Gpu for HostGpu {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    // They were compiled with this crate.
    fn compile_ahead(&self) {}

    fn uncompiled(&self) -> usize {
        0
    }

    fn memory(&self) -> Result<Memory, GpuError> {
        let state = self.state();
        state.check()?;
        let total = state.settings.total_bytes;
        Ok(Memory { free: total - state.used, total })
    }

    fn allocate_in(&self, stream: Stream, bytes: u64) -> Result<Address, GpuError> {
        let mut state = self.call();
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
        state.streams.push(stream, Op::Allocate(at));
        state.allocated.insert(at, memory);
        Ok(at)
    }

    unsafe fn free(&self, at: Address) {
        let mut state = self.call();
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

    fn allocate_exportable(&self, bytes: u64) -> Result<Address, GpuError> {
        const DURING: &str = "opening memory to network cards";
        let mut state = self.state();
        state.check()?;
        if state.exports == HostExports::None {
            return Err(refused(DURING, "it was told to refuse"));
        }
        if bytes == 0 || !bytes.is_multiple_of(EXPORT_UNIT) {
            return Err(refused(DURING, "no multiple of the unit"));
        }
        if state.used.saturating_add(bytes) > state.settings.total_bytes {
            return Err(GpuError::OutOfMemory { wanted: bytes });
        }
        let memory = Guarded::new(bytes as usize, POISON);
        let at = memory.address();
        state.used += bytes;
        state.exportable.insert(at, memory);
        Ok(at)
    }

    unsafe fn free_exportable(&self, at: Address) {
        let mut state = self.state();
        if state.stale.remove(&at).is_none()
            && let Some(memory) = state.exportable.remove(&at)
        {
            state.used -= memory.len() as u64;
        }
    }

    fn export(&self, at: Address, bytes: u64) -> Result<OwnedFd, GpuError> {
        const DURING: &str = "exporting memory";
        let state = self.state();
        state.check()?;
        let whole = state.exportable.get(&at).is_some_and(|memory| memory.len() as u64 == bytes);
        if !whole || state.exports != HostExports::Descriptor {
            return Err(refused(DURING, "there is no descriptor for it"));
        }
        File::open("/dev/null").map(OwnedFd::from).map_err(|error| refused(DURING, &error.to_string()))
    }

    fn settle_network_writes(&self) -> Result<(), GpuError> {
        let mut state = self.state();
        state.check()?;
        state.settled += 1;
        Ok(())
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
        self.state().host_bytes += bytes as u64;
        self.state().copies_in += 1;
        self.put(stream, Op::Copy { to, from: from as u64, bytes })
    }

    unsafe fn copy_out(&self, stream: Stream, to: *mut u8, from: Address, bytes: usize) -> Result<(), GpuError> {
        self.state().host_bytes += bytes as u64;
        self.put(stream, Op::Copy { to: to as u64, from, bytes })
    }

    unsafe fn copy(&self, stream: Stream, to: Address, from: Address, bytes: u64) -> Result<(), GpuError> {
        self.put(stream, Op::Copy { to, from, bytes: bytes as usize })
    }

    fn reaches(&self, peer: &(dyn Gpu + 'static)) -> bool {
        let peer = (peer as &dyn Any).downcast_ref::<Self>();
        peer.is_some_and(|peer| !Arc::ptr_eq(&self.state, &peer.state) && peer.state().peers) && self.state().peers
    }

    unsafe fn copy_to_peer(
        &self,
        stream: Stream,
        peer: &(dyn Gpu + 'static),
        to: Address,
        from: Address,
        bytes: u64,
    ) -> Result<(), GpuError> {
        const DURING: &str = "a copy to another GPU";
        if !self.reaches(peer) {
            return Err(refused(DURING, "it is not reached"));
        }
        if let Some(peer) = (peer as &dyn Any).downcast_ref::<Self>() {
            peer.state().check().map_err(|_| refused(DURING, "it has failed"))?;
        }
        self.put(stream, Op::Copy { to, from, bytes: bytes as usize })
    }

    unsafe fn fill(&self, stream: Stream, to: Address, byte: u8, bytes: u64) -> Result<(), GpuError> {
        self.put(stream, Op::Fill { to, byte, bytes: bytes as usize })
    }

    unsafe fn launch(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError> {
        self.put(stream, Op::Launch(Box::new(*launch)))
    }

    unsafe fn launch_behind(&self, stream: Stream, launch: &Launch) -> Result<(), GpuError> {
        let mut state = self.call();
        state.check()?;
        state.behind += 1;
        let before = if state.hasty { state.take_last(stream) } else { None };
        state.put(stream, Op::Launch(Box::new(*launch)));
        if let Some(before) = before {
            state.put(stream, before);
        }
        Ok(())
    }

    unsafe fn multiply(&self, product: &Product, operands: &Operands) -> Result<bool, GpuError> {
        product.check(operands)?;
        let bare = !product.gelu && operands.added.is_none() && operands.bias.is_none();
        let can = match self.state().products {
            HostProducts::None => false,
            HostProducts::Bare => bare,
            HostProducts::All => true,
        };
        if can {
            self.put(Stream::Compute, Op::Multiply(Box::new((*product, *operands))))?;
        }
        Ok(can)
    }

    fn event(&self) -> Result<Event, GpuError> {
        let mut state = self.call();
        state.check()?;
        Ok(Event { id: state.id(), timed: false, gpu: Box::new(Owner(self.state.clone())) })
    }

    fn timed_event(&self) -> Result<Event, GpuError> {
        let mut event = self.event()?;
        event.timed = true;
        Ok(event)
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<Duration>, GpuError> {
        let state = self.state();
        state.check()?;
        let time = |event: &Event| *state.times.get(state.moments.get(&event.id)?)?;
        Ok(time(to).zip(time(from)).and_then(|(to, from)| to.checked_duration_since(from)))
    }

    fn record(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        let mut state = self.call();
        state.check()?;
        let moment = state.id();
        if let Some(before) = state.moments.insert(event.id, moment) {
            state.times.remove(&before);
        }
        if event.timed {
            state.times.insert(moment, None);
        }
        state.streams.push(stream, Op::Record(moment));
        Ok(())
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<(), GpuError> {
        let mut state = self.call();
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
        let mut state = self.call();
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
        // Network cards may go on writing there: what they know of stays until it is given back.
        state.stale.extend(state.exportable.drain());
        state.used = 0;
        state.graphs.clear();
        state.times.clear();
        state.recordings.clear();
        state.broken = None;
        Ok(())
    }
}

fn refused(during: &'static str, reason: &str) -> GpuError {
    GpuError::Refused { during, reason: reason.to_owned() }
}
