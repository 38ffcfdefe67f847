//! A session whose calls do their I/O on the caller's thread.

mod generating;
mod offers;
mod programs;
mod residents;

pub use self::offers::PendingOffer;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::api::{self, Range};
use super::engine::Engine;
use super::lanes::Lanes;
use super::shares::Passed;
use super::staging::{JOINED, RECYCLED, Staging};
use super::{Bell, Cache, ClientError, ConnectOptions, DeviceInfo, PutOptions, Tensor};
use crate::connection::{Client, Counters, LanePlan, RequestId, SlicePlan};
use crate::memory::{Landing, Region, SharedBytes, Slab, copy_counted};
use crate::uri::Uri;
use crate::wire::{
    DecodeError, Handle, OpenedSession, PutBody, PutRequest, PutTarget, Reply, Request, TensorSpec, Welcome,
    slice_bytes_for,
};

/// A session on a server. One owner; requests can still be in flight together: [`Self::start_put`], [`Self::start_run`].
///
/// Nothing is sent or answered between calls, keepalives neither: a server takes a connection that has been silent for three of
/// its keepalives (30 s by default) for dead. The next call connects again and goes on, as long as the session's lease
/// (`options.client.lease_ms`) has not run out; after it, the call ends in [`ClientError::SessionLost`]. Use
/// [`super::Session`], whose thread answers at any time, where a session may be idle for longer.
pub struct Session {
    engine: Engine,
    scratch: Vec<u8>,
    /// Slabs of earlier gets, to be filled again.
    slabs: Vec<Slab>,
    staging: Staging,
    /// Sessions lost when the staging memory was looked at last.
    staged_for: u64,
}

/// A request in flight. Pass it to the matching `finish_` call; dropped, its answer is kept until the session ends.
#[derive(Debug)]
#[must_use]
pub struct Pending {
    id: RequestId,
    /// Where a sliced get lands.
    landing: Option<Arc<Landing>>,
    /// Where a get over shared memory goes.
    into: Option<Into>,
    /// Where a get goes whose answer has the bytes in it.
    small: Option<Slab>,
}

/// A get whose bytes the server writes to this side's memory.
#[derive(Debug)]
struct Into {
    slab: Slab,
    range: Range,
}

/// How often a get that was interrupted is begun again.
const SECOND_CHANCES: u32 = 16;

impl Session {
    /// Connects and opens a session (or takes up `options.client.resume`).
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] after `options.client.reconnect_for`, or what the server refused.
    pub fn connect(uri: &Uri, options: ConnectOptions) -> Result<Self, ClientError> {
        let client = Client::new(options.client, Instant::now());
        let mut engine = Engine::new(Lanes::new(uri.clone(), options.tls, client), options.spin);
        engine.wait(|c| c.is_ready() || c.dead().is_some());
        match engine.client().dead() {
            Some(error) => Err(error.clone()),
            None => {
                let staging = Staging::new(options.staging);
                Ok(Self { engine, scratch: Vec::new(), slabs: Vec::new(), staging, staged_for: 0 })
            }
        }
    }

    /// The session as it would be resumed.
    pub fn opened(&mut self) -> Option<OpenedSession> {
        self.engine.client().session().copied()
    }

    /// How often the session's state was lost (server restarts, leases that ran out).
    pub fn sessions_lost(&mut self) -> u64 {
        self.engine.client().sessions_lost()
    }

    /// Bytes sent and received so far, headers included.
    pub fn traffic(&mut self) -> (u64, u64) {
        let counters = self.engine.client().counters();
        (counters.up.load(Ordering::Relaxed), counters.down.load(Ordering::Relaxed))
    }

    /// The counters behind [`Self::traffic`], for whoever watches a long transfer from another thread.
    pub fn counters(&mut self) -> Arc<Counters> {
        self.engine.client().counters().clone()
    }

    /// Payloads up to this many bytes travel inline.
    pub fn eager_bytes(&mut self) -> u64 {
        self.engine.client().welcome().map_or(0, |w| u64::from(w.eager_bytes))
    }

    /// How many bulk lanes it uses, and why.
    pub fn lane_plan(&mut self) -> LanePlan {
        self.engine.client().lane_plan()
    }

    /// How large slices it asks for, and why.
    pub fn slice_plan(&mut self) -> SlicePlan {
        self.engine.client().slice_plan()
    }

    /// What the server said when the connection began; `None` while there is none.
    pub fn welcome(&mut self) -> Option<Welcome> {
        self.engine.client().welcome().copied()
    }

    /// For a transfer of `total` bytes.
    fn slice_bytes(&mut self, total: u64) -> u32 {
        slice_bytes_for(total, self.slice_plan().bytes)
    }

    // ---- small things

    /// Sends bytes there and back; what came back is in `into`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn echo(&mut self, bytes: &[u8], into: &mut Vec<u8>) -> Result<(), ClientError> {
        let pending = self.start_echo(bytes);
        self.finish_echo(pending, into)
    }

    /// Begins to send bytes there and back.
    pub fn start_echo(&mut self, bytes: &[u8]) -> Pending {
        self.start(&Request::Echo(bytes), None)
    }

    /// Waits for an echo; what came back is in `into`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_echo(&mut self, pending: Pending, into: &mut Vec<u8>) -> Result<(), ClientError> {
        self.finish(pending.id, |reply| {
            into.clear();
            into.extend_from_slice(api::got(reply)?);
            Ok(())
        })
    }

    /// Whether a request is answered: its `finish_` call will not wait. Moves nothing; [`Self::wait_any`] does.
    pub fn is_done(&mut self, pending: &Pending) -> bool {
        self.engine.client().has_answer(pending.id)
    }

    /// Moves bytes until one of these requests is answered, or until a time has come. Whether one is answered.
    pub fn wait_any<'a>(&mut self, pending: impl Iterator<Item = &'a Pending> + Clone, until: Option<Instant>) -> bool {
        self.engine.wait_until(until, |client| pending.clone().any(|p| client.has_answer(p.id)))
    }

    /// The same, which `bell` ends, too, from another thread. Whether a request is answered, or the bell was rung.
    pub fn wait_any_or<'a>(
        &mut self,
        pending: impl Iterator<Item = &'a Pending> + Clone,
        until: Option<Instant>,
        bell: &Bell,
    ) -> bool {
        let answered = |client: &mut Client| pending.clone().any(|p| client.has_answer(p.id));
        self.engine.wait_until_or(until, Some(bell), |client| bell.is_rung() || answered(client))
    }

    /// The time of an empty round trip.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ping(&mut self) -> Result<Duration, ClientError> {
        let began = Instant::now();
        self.call(&Request::Echo(&[]), |reply| api::got(reply).map(|_| ()))?;
        Ok(began.elapsed())
    }

    /// The server's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn devices(&mut self) -> Result<Vec<DeviceInfo>, ClientError> {
        let pending = self.start_devices();
        self.finish_devices(pending)
    }

    /// Begins to ask for the server's devices.
    pub fn start_devices(&mut self) -> Pending {
        self.start(&Request::Devices, None)
    }

    /// Waits for the server's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_devices(&mut self, pending: Pending) -> Result<Vec<DeviceInfo>, ClientError> {
        self.finish(pending.id, api::devices)
    }

    /// The server's counters.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&mut self) -> Result<Vec<(String, u64)>, ClientError> {
        let pending = self.start_stats();
        self.finish_stats(pending)
    }

    /// Begins to ask for the server's counters.
    pub fn start_stats(&mut self) -> Pending {
        self.start(&Request::Stats, None)
    }

    /// Waits for the server's counters.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_stats(&mut self, pending: Pending) -> Result<Vec<(String, u64)>, ClientError> {
        self.finish(pending.id, api::stats)
    }

    // ---- tensors

    /// Memory that the server can read and write, too, where the link shares memory (`shm://`): a put of it, or of a part, copies
    /// nothing. Over other links it is ordinary memory. While a tensor lies in it, the memory cannot be written again.
    ///
    /// # Errors
    /// [`ClientError::OutOfMemory`], or the server is gone.
    pub fn shared(&mut self, len: usize) -> Result<Slab, ClientError> {
        let slab = self.slab(len)?;
        if slab.populate() {
            // The server has mapped it when it answers.
            self.ping()?;
        }
        Ok(slab)
    }

    fn slab(&mut self, len: usize) -> Result<Slab, ClientError> {
        let full = || ClientError::OutOfMemory { bytes: len as u64 };
        if !self.engine.lanes.can_share() {
            return Slab::try_zeroed(len).ok_or_else(full);
        }
        let bytes = Arc::new(SharedBytes::new(len).map_err(|_| full())?);
        self.engine.lanes.shares().add(bytes.clone());
        self.engine.lanes.tell_shares(Instant::now());
        Ok(Slab::shared(bytes))
    }

    /// Where the bytes of a put lie in memory that the server shares, or were copied to.
    fn place(&mut self, data: &Bytes, options: &PutOptions<'_>) -> Option<Passed> {
        // What others see, or what is checked, is the server's own.
        if options.weight.is_some() || options.name.is_some() || !self.engine.lanes.can_share() {
            return None;
        }
        if let Some(passed) = self.engine.lanes.shares().pass(data) {
            return Some(passed);
        }
        if data.len() as u64 <= self.eager_bytes() {
            return None;
        }
        let lost = self.sessions_lost();
        if std::mem::replace(&mut self.staged_for, lost) != lost {
            self.staging.clear();
        }
        let shares = self.engine.lanes.shares().clone();
        let passed = self.staging.copy(data, &shares)?;
        self.engine.lanes.tell_shares(Instant::now());
        Some(passed)
    }

    /// Makes a tensor resident, and waits for it. `data` is sent from where it lies.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error nothing changed there.
    pub fn put(&mut self, spec: &TensorSpec, data: Bytes, options: PutOptions<'_>) -> Result<Tensor, ClientError> {
        let pending = self.start_put(spec, data, options)?;
        self.finish_put(pending)
    }

    /// Begins to make a tensor resident.
    ///
    /// # Errors
    /// If `data` has not the bytes that `spec` says.
    pub fn start_put(
        &mut self,
        spec: &TensorSpec,
        data: Bytes,
        options: PutOptions<'_>,
    ) -> Result<Pending, ClientError> {
        if data.len() as u64 != spec.bytes() {
            return Err(ClientError::Request(DecodeError::Range("the data has not the bytes that its shape says")));
        }
        if let Some(Passed { place, bytes, uses_forgotten }) = self.place(&data, &options) {
            let pending = self.start(&api::put_new(spec, options, PutBody::Passed(place)), None);
            self.engine.client().passes(pending.id, bytes, uses_forgotten);
            return Ok(pending);
        }
        if spec.bytes() <= self.eager_bytes() {
            let request = api::put_new(spec, options, PutBody::Inline(&data));
            return Ok(self.start(&request, Some(data.clone())));
        }
        let slice_bytes = self.slice_bytes(spec.bytes());
        // A weight may be there in part, from an upload that was cut: ask before sending.
        let announce = options.weight.is_some();
        let request = api::put_new(spec, options, PutBody::Sliced { slice_bytes, announce });
        Ok(self.start_sliced(&request, data, slice_bytes))
    }

    /// Waits for a put.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error nothing changed there.
    pub fn finish_put(&mut self, pending: Pending) -> Result<Tensor, ClientError> {
        self.finish(pending.id, api::tensor)
    }

    /// Replaces bytes of a private tensor from `offset` on, all at once.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error nothing changed there.
    pub fn put_range(&mut self, tensor: &Tensor, offset: u64, data: Bytes) -> Result<Tensor, ClientError> {
        let pending = self.start_put_range(tensor, offset, data)?;
        self.finish_put(pending)
    }

    /// Begins to replace bytes of a private tensor; [`Self::finish_put`] waits for it.
    ///
    /// # Errors
    /// If there are none, or more than a tensor can have.
    pub fn start_put_range(&mut self, tensor: &Tensor, offset: u64, data: Bytes) -> Result<Pending, ClientError> {
        let target = PutTarget::Range { handle: tensor.handle, offset };
        let spec = TensorSpec::new(genie_graph::DType::U8, &[data.len() as u64]).map_err(ClientError::Request)?;
        self.start_put_into(target, spec, data)
    }

    /// Replaces the contents of a cache: `length` tokens in whole blocks, `spec` as [`Self::describe`] has it for a cache of so
    /// many.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error nothing changed there.
    pub fn put_cache(
        &mut self,
        cache: Cache,
        length: u32,
        spec: &TensorSpec,
        data: Bytes,
    ) -> Result<Tensor, ClientError> {
        let target = PutTarget::Cache { handle: cache.0, length };
        let pending = self.start_put_into(target, spec.clone(), data)?;
        self.finish_put(pending)
    }

    fn start_put_into(&mut self, target: PutTarget<'_>, spec: TensorSpec, data: Bytes) -> Result<Pending, ClientError> {
        if data.len() as u64 != spec.bytes() {
            return Err(ClientError::Request(DecodeError::Range("the data has not the bytes that its shape says")));
        }
        Ok(if spec.bytes() <= self.eager_bytes() {
            let request = Request::Put(PutRequest { target, spec, body: PutBody::Inline(&data) });
            self.start(&request, Some(data.clone()))
        } else {
            let slice_bytes = self.slice_bytes(spec.bytes());
            let body = PutBody::Sliced { slice_bytes, announce: false };
            self.start_sliced(&Request::Put(PutRequest { target, spec, body }), data, slice_bytes)
        })
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get(&mut self, tensor: &Tensor) -> Result<Region, ClientError> {
        self.get_range(tensor.handle, 0, tensor.spec.bytes())
    }

    /// Reads `length` bytes of a tensor or cache from `offset` on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get_range(&mut self, handle: Handle, offset: u64, length: u64) -> Result<Region, ClientError> {
        let pending = self.start_get(handle, offset, length)?;
        self.finish_get(pending)
    }

    /// Begins to read.
    ///
    /// # Errors
    /// If so many bytes do not fit this machine.
    pub fn start_get(&mut self, handle: Handle, offset: u64, length: u64) -> Result<Pending, ClientError> {
        if length <= self.eager_bytes() {
            return Ok(self.start(&Request::Get { handle, offset, length, sliced: None }, None));
        }
        let bytes = usize::try_from(length).map_err(|_| ClientError::Request(DecodeError::Overflow("length")))?;
        let slab = match self.slabs.iter().position(|s| s.len() == bytes) {
            Some(i) => self.slabs.swap_remove(i),
            None if self.staging.is_off() => {
                Slab::try_zeroed(bytes).ok_or(ClientError::OutOfMemory { bytes: length })?
            }
            None => self.slab(bytes)?,
        };
        Ok(self.start_get_to(slab, Range { handle, offset, length }))
    }

    /// Begins to read as many bytes as `slab` has, to there if the link lets it: what [`Self::finish_get`] gives is this slab, unless
    /// bytes that are passed through shared memory lie where the server wrote them.
    ///
    /// # Errors
    /// [`ClientError::OutOfMemory`] of shared memory.
    pub fn start_get_into(&mut self, handle: Handle, offset: u64, slab: Slab) -> Result<Pending, ClientError> {
        let length = slab.len() as u64;
        if length <= self.eager_bytes() {
            let mut pending = self.start(&Request::Get { handle, offset, length, sliced: None }, None);
            pending.small = Some(slab);
            return Ok(pending);
        }
        let elsewhere = self.engine.lanes.can_share() && !self.staging.is_off();
        if elsewhere && self.engine.lanes.shares().find(&slab).is_none() {
            return self.start_get(handle, offset, length);
        }
        Ok(self.start_get_to(slab, Range { handle, offset, length }))
    }

    fn start_get_to(&mut self, slab: Slab, range: Range) -> Pending {
        let Range { handle, offset, length } = range;
        if self.engine.lanes.can_share()
            && let Some(into) = self.engine.lanes.shares().find(&slab)
        {
            let mut pending = self.start(&Request::GetInto { handle, offset, length, into }, None);
            pending.into = Some(Into { slab, range });
            return pending;
        }
        let slice_bytes = self.slice_bytes(length);
        let landing = Landing::new(vec![slab], slice_bytes);
        let request = Request::Get { handle, offset, length, sliced: Some(slice_bytes) };
        let id = self.engine.client().start_get(&request, landing.clone());
        Pending { id, landing: Some(landing), into: None, small: None }
    }

    /// Waits for a get.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn finish_get(&mut self, mut pending: Pending) -> Result<Region, ClientError> {
        for chance in 0..=SECOND_CHANCES {
            let Some(Into { slab, range }) = pending.into.take() else { break };
            match self.finish(pending.id, |reply| api::got(reply).map(|_| ())) {
                Ok(()) => return Ok(slab.freeze()),
                // The connection was lost. The old one's server side may still write there: not here again.
                Err(ClientError::Interrupted) if chance < SECOND_CHANCES => {
                    drop(slab);
                    pending = self.start_get(range.handle, range.offset, range.length)?;
                }
                Err(error) => return Err(error),
            }
        }
        let inline = self.finish(pending.id, |reply| {
            let bytes = api::got(reply)?;
            let given = pending.small.take().filter(|slab| slab.len() == bytes.len());
            let mut slab = given.unwrap_or_else(|| Slab::zeroed(bytes.len()));
            copy_counted(&mut slab, bytes);
            Ok(slab.freeze())
        })?;
        match pending.landing {
            Some(landing) => {
                landing.finish().and_then(|mut slabs| slabs.pop()).map(Slab::freeze).ok_or(ClientError::Interrupted)
            }
            None => Ok(inline),
        }
    }

    /// Gives back memory of an earlier get, so that the next of its size needs none. What is small enough for a reply itself is not
    /// kept, and what was given back longest ago makes room.
    pub fn recycle(&mut self, region: Region) {
        let eager = self.eager_bytes();
        if let Ok(slab) = region.try_thaw()
            && slab.len() as u64 > eager
        {
            if self.slabs.len() == RECYCLED {
                self.slabs.remove(0);
            }
            slab.join(JOINED);
            self.slabs.push(slab);
        }
    }

    /// Frees everything the session has, and ends the connection.
    ///
    /// # Errors
    /// [`ClientError`]; the session then ends with its lease.
    pub fn close(mut self) -> Result<(), ClientError> {
        let closed = self.call(&Request::Close, api::done);
        self.engine.client().close();
        self.engine.lanes.turn(Instant::now());
        closed
    }

    // ---- inside

    fn start(&mut self, request: &Request<'_>, payload: Option<Bytes>) -> Pending {
        let (client, control) = self.engine.lanes.split();
        let (id, sent) = match control {
            Some(mut sink) => client.start(request, payload, Some(&mut sink)),
            None => client.start(request, payload, None),
        };
        if let Err(error) = sent {
            self.engine.lanes.broken(&error, Instant::now());
        }
        Pending { id, landing: None, into: None, small: None }
    }

    fn start_sliced(&mut self, request: &Request<'_>, data: Bytes, slice_bytes: u32) -> Pending {
        let id = self.engine.client().start_put(request, vec![data], slice_bytes);
        self.engine.lanes.turn(Instant::now());
        Pending { id, landing: None, into: None, small: None }
    }

    fn call<T>(
        &mut self,
        request: &Request<'_>,
        read: impl FnOnce(&Reply<'_>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let pending = self.start(request, None);
        self.finish(pending.id, read)
    }

    fn finish<T>(
        &mut self,
        id: RequestId,
        read: impl FnOnce(&Reply<'_>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.engine.wait(|c| c.has_answer(id));
        let client = self.engine.client();
        // Looked at where it lies: what is moved has to be in the cache first, and was written just now.
        let answer = match &client.answer(id) {
            Some(Ok(reply)) => read(reply),
            Some(Err(error)) => Err(error.clone()),
            None => Err(ClientError::Interrupted),
        };
        client.end(id);
        answer
    }
}
