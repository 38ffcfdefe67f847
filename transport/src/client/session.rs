//! A session for async programs: a thread of its own moves the bytes, so that it works under any runtime.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc as stream, oneshot};

use super::api;
use super::engine::Engine;
use super::lanes::Lanes;
use super::passing::{News, Passing};
use super::shares::Passed;
use super::{
    BindInputs, Binding, Cache, ClientError, ConnectOptions, DeviceInfo, GenerateOptions, Generated, Input, Outputs,
    Program, PutOptions, RunOptions, Tensor,
};
use crate::connection::{Client, RequestId};
use crate::link::wait::Alarm;
use crate::memory::{Landing, Region, Slab, copy_counted};
use crate::uri::Uri;
use crate::wire::{
    Arguments, Caps, ContentHash, DecodeError, Handle, Offered, PutBody, Reply, Request, TensorSpec, limits,
    slice_bytes_for,
};

/// A session on a server; clones share it. Dropping the last one leaves the session to its lease; [`Self::close`] ends it.
#[derive(Clone)]
pub struct Session {
    door: Arc<Door>,
    eager_bytes: u64,
    slice_bytes: u32,
    passing: Arc<Passing>,
    news: Arc<News>,
}

/// How often a get that was interrupted is begun again.
const SECOND_CHANCES: u32 = 16;

/// Where commands go in.
struct Door {
    commands: mpsc::Sender<Command>,
    alarm: Arc<Alarm>,
}

type Start = Box<dyn FnOnce(&mut Client) -> RequestId + Send>;
type Deliver = Box<dyn FnMut(Option<Result<Reply<'_>, ClientError>>) -> Flow + Send>;

enum Command {
    Request(Start, Deliver),
    Stop,
}

/// Whether a request wants more replies.
#[derive(PartialEq, Eq)]
enum Flow {
    More,
    Last,
    /// Its user is gone.
    Unwanted,
}

/// Tokens of a generate, as they come. Dropping it cancels the rest.
pub struct Stream {
    replies: stream::UnboundedReceiver<Result<Generated, ClientError>>,
}

impl Stream {
    /// The next tokens; `None` after the end.
    pub async fn next(&mut self) -> Option<Result<Generated, ClientError>> {
        self.replies.recv().await
    }
}

impl Session {
    /// Connects and opens a session (or takes up `options.client.resume`).
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] after `options.client.reconnect_for`, or what the server refused.
    pub async fn connect(uri: &Uri, options: ConnectOptions) -> Result<Self, ClientError> {
        let io = |e: std::io::Error| ClientError::Unreachable {
            reason: format!("this process cannot start a connection: {e}"),
            effect: crate::wire::Effect::None,
        };
        let (commands, inbox) = mpsc::channel();
        let alarm = Arc::new(Alarm::new().map_err(io)?);
        let heard = alarm.clone();
        let (tell, ready) = oneshot::channel();
        let uri = uri.clone();
        let (news, staging) = (Arc::new(News::default()), options.staging);
        let told = news.clone();
        std::thread::Builder::new()
            .name("genie-session".into())
            .spawn(move || {
                let client = Client::new(options.client, Instant::now());
                let mut engine = Engine::new(Lanes::new(uri, options.tls, client), options.spin);
                engine.wait(|c| c.is_ready() || c.dead().is_some());
                let shares = engine.lanes.shares().clone();
                report(&mut engine, &told);
                let client = engine.client();
                let state = match client.dead() {
                    Some(error) => Err(error.clone()),
                    None => {
                        let (eager, slice) =
                            (client.welcome().map_or(0, |w| u64::from(w.eager_bytes)), client.slice_plan().bytes);
                        Ok((eager, slice, shares))
                    }
                };
                let go_on = state.is_ok();
                // A user who stopped waiting for the connection wants no session.
                if tell.send(state).is_ok() && go_on {
                    drive(&mut engine, &inbox, &heard, &told);
                }
            })
            .map_err(io)?;
        let (eager_bytes, slice_bytes, shares) = ready.await.map_err(|_| ClientError::Interrupted)??;
        let passing = Arc::new(Passing::new(shares, news.clone(), staging));
        Ok(Self { door: Arc::new(Door { commands, alarm }), eager_bytes, slice_bytes, passing, news })
    }

    /// Sends bytes there and back.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn echo(&self, bytes: Bytes) -> Result<Vec<u8>, ClientError> {
        let start = move |c: &mut Client| c.start(&Request::Echo(&bytes), Some(bytes.clone()), None).0;
        self.call(start, |reply| api::got(&reply).map(<[u8]>::to_vec)).await
    }

    /// The server's devices.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn devices(&self) -> Result<Vec<DeviceInfo>, ClientError> {
        self.call(|c| c.start(&Request::Devices, None, None).0, |reply| api::devices(&reply)).await
    }

    /// The server's counters.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn stats(&self) -> Result<Vec<(String, u64)>, ClientError> {
        self.call(|c| c.start(&Request::Stats, None, None).0, |reply| api::stats(&reply)).await
    }

    /// Memory that the server can read, too, where the link shares memory (`shm://`): a put of it, or of a part, copies nothing.
    /// Over other links it is ordinary memory. While a tensor lies in it, the memory cannot be written again. Takes a while for
    /// much memory: its pages are made present.
    ///
    /// # Errors
    /// [`ClientError::OutOfMemory`].
    pub fn shared(&self, len: usize) -> Result<Slab, ClientError> {
        let full = || ClientError::OutOfMemory { bytes: len as u64 };
        match self.passing.slab(len) {
            None => Slab::try_zeroed(len).ok_or_else(full),
            Some(slab) => {
                let slab = slab.map_err(|_| full())?;
                slab.populate();
                Ok(slab)
            }
        }
    }

    /// Makes a tensor resident. `data` is sent from where it lies.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error nothing changed there.
    pub async fn put(&self, spec: &TensorSpec, data: Bytes, options: PutOptions<'_>) -> Result<Tensor, ClientError> {
        if data.len() as u64 != spec.bytes() {
            return Err(ClientError::Request(DecodeError::Range("the data has not the bytes that its shape says")));
        }
        let (eager, slice_bytes) = (self.eager_bytes, slice_bytes_for(spec.bytes(), self.slice_bytes));
        let spec = spec.clone();
        let private = options.weight.is_none() && options.name.is_none();
        let mut place = if private { self.passing.find(&data) } else { None };
        if place.is_none() && private && spec.bytes() > eager {
            place = self.passing.stage(&data).await;
        }
        if let Some(Passed { place, bytes, uses_forgotten }) = place {
            let device = options.device;
            let start = move |c: &mut Client| {
                let options = PutOptions { device, ..PutOptions::default() };
                let id = c.start(&api::put_new(&spec, options, PutBody::Passed(place)), None, None).0;
                c.passes(id, bytes, uses_forgotten);
                id
            };
            return self.call(start, |reply| api::tensor(&reply)).await;
        }
        let (device, weight, name) = (options.device, options.weight, options.name.map(str::to_owned));
        let start = move |c: &mut Client| {
            let options = PutOptions { device, weight, name: name.as_deref() };
            if spec.bytes() <= eager {
                let request = api::put_new(&spec, options, PutBody::Inline(&data));
                return c.start(&request, Some(data.clone()), None).0;
            }
            let request = api::put_new(&spec, options, PutBody::Sliced { slice_bytes, announce: weight.is_some() });
            c.start_put(&request, vec![data.clone()], slice_bytes)
        };
        self.call(start, |reply| api::tensor(&reply)).await
    }

    /// Reads a tensor.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, tensor: &Tensor) -> Result<Region, ClientError> {
        self.get_range(tensor.handle, 0, tensor.spec.bytes()).await
    }

    /// Reads `length` bytes of a tensor or cache from `offset` on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_range(&self, handle: Handle, offset: u64, length: u64) -> Result<Region, ClientError> {
        if length <= self.eager_bytes {
            let start =
                move |c: &mut Client| c.start(&Request::Get { handle, offset, length, sliced: None }, None, None).0;
            let read = |reply: Reply<'_>| {
                let bytes = api::got(&reply)?;
                let mut slab = Slab::zeroed(bytes.len());
                copy_counted(&mut slab, bytes);
                Ok(slab.freeze())
            };
            return self.call(start, read).await;
        }
        let bytes = usize::try_from(length).map_err(|_| ClientError::Request(DecodeError::Overflow("length")))?;
        for _ in 0..SECOND_CHANCES {
            let Some((slab, into)) = self.passing.target(bytes) else { break };
            let start = move |c: &mut Client| c.start(&Request::GetInto { handle, offset, length, into }, None, None).0;
            match self.call(start, |reply| api::got(&reply).map(|_| ())).await {
                Ok(()) => return Ok(slab.freeze()),
                // The connection was lost. The old one's server side may still write there: not here again.
                Err(ClientError::Interrupted) => drop(slab),
                Err(error) => return Err(error),
            }
        }
        let slice_bytes = slice_bytes_for(length, self.slice_bytes);
        let slab = Slab::try_zeroed(bytes).ok_or(ClientError::OutOfMemory { bytes: length })?;
        let landing = Landing::new(vec![slab], slice_bytes);
        let at = landing.clone();
        let start =
            move |c: &mut Client| c.start_get(&Request::Get { handle, offset, length, sliced: Some(slice_bytes) }, at);
        self.call(start, |reply| api::got(&reply).map(|_| ())).await?;
        landing.finish().and_then(|mut slabs| slabs.pop()).map(Slab::freeze).ok_or(ClientError::Interrupted)
    }

    /// Gives back memory of an earlier get, so that over a link that shares memory (`shm://`) the next of its size needs none.
    pub fn recycle(&self, region: Region) {
        self.passing.recycle(region);
    }

    /// Copies a tensor on the server.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn copy(&self, tensor: &Tensor, device: u16) -> Result<Tensor, ClientError> {
        let handle = tensor.handle;
        self.call(move |c| c.start(&Request::Copy { handle, device }, None, None).0, |reply| api::tensor(&reply)).await
    }

    /// Frees a tensor, cache, program or binding.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn free(&self, handle: Handle) -> Result<(), ClientError> {
        self.call(move |c| c.start(&Request::Free(handle), None, None).0, |reply| api::done(&reply)).await
    }

    /// Finds a tensor by name.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn lookup(&self, name: &str) -> Result<Tensor, ClientError> {
        let name = name.to_owned();
        self.call(move |c| c.start(&Request::LookupName(&name), None, None).0, |reply| api::tensor(&reply)).await
    }

    /// Asks which contents the server has; those become residents of this session.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn offer(&self, device: u16, entries: &[(ContentHash, TensorSpec)]) -> Result<Vec<Offered>, ClientError> {
        let mut all = Vec::with_capacity(entries.len());
        for part in entries.chunks(limits::OFFERED) {
            let (single, (hash, count)) = (part.to_vec(), (ContentHash::of_set(part), part.len()));
            let start = move |c: &mut Client| {
                let request = if count > 1 && api::takes_sets(c.welcome()) {
                    Request::OfferSet { device, hash }
                } else {
                    Request::Offer { device, entries: single }
                };
                c.start(&request, None, None).0
            };
            let read = move |reply: Reply<'_>| match reply {
                Reply::Offered(offered) => Ok(Some(offered)),
                set => api::offered_set(&set, count),
            };
            let offered = match self.call(start, read).await? {
                Some(offered) => offered,
                None => {
                    let entries = part.to_vec();
                    let start = move |c: &mut Client| c.start(&Request::Offer { device, entries }, None, None).0;
                    self.call(start, |reply| api::offered(&reply)).await?
                }
            };
            all.extend(offered);
        }
        Ok(all)
    }

    /// Registers an encoded graph.
    ///
    /// # Errors
    /// [`ClientError`]; the verifier's words if it does not pass.
    pub async fn define(&self, device: u16, graph: Vec<u8>) -> Result<Program, ClientError> {
        let start = move |c: &mut Client| c.start(&Request::Define { device, graph: &graph }, None, None).0;
        self.call(start, |reply| api::program(&reply)).await
    }

    /// Registers a graph by its content hash; `None` if the server has no such graph: then [`Self::define`] it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn define_known(&self, device: u16, hash: ContentHash) -> Result<Option<Program>, ClientError> {
        let start = move |c: &mut Client| c.start(&Request::DefineKnown { device, hash }, None, None).0;
        api::known(self.call(start, |reply| api::program(&reply)).await)
    }

    /// Joins a program with residents, caches and fixed inputs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn bind(&self, program: &Program, inputs: &BindInputs<'_>) -> Result<Binding, ClientError> {
        let mut fixed = Vec::new();
        let count = api::write_inputs(&mut fixed, &inputs.fixed)?;
        // With spans or without: which of the two is sent is known where it is.
        let (by_span, singly) = (api::bind_entries(program, inputs, true)?, api::bind_entries(program, inputs, false)?);
        let program = program.handle;
        Arguments::new(count, &fixed).map_err(ClientError::Request)?;
        let start = move |c: &mut Client| {
            let (bound, weights) = if api::takes_sets(c.welcome()) { by_span } else { singly };
            let arguments = Arguments::new(count, &fixed).unwrap_or(Arguments::EMPTY);
            c.start(&Request::Bind { program, bound, weights, arguments }, None, None).0
        };
        self.call(start, |reply| api::bound(&reply)).await
    }

    /// Makes an empty KV cache that fits an input of a program.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_cache(&self, program: &Program, input: u32, reserve: u32) -> Result<Cache, ClientError> {
        let program = program.handle;
        let start = move |c: &mut Client| c.start(&Request::CacheCreate { program, input, reserve }, None, None).0;
        self.call(start, |reply| api::tensor(&reply).map(|t| Cache(t.handle))).await
    }

    /// A second cache with the same tokens.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn fork_cache(&self, cache: Cache) -> Result<Cache, ClientError> {
        let start = move |c: &mut Client| c.start(&Request::CacheFork(cache.0), None, None).0;
        self.call(start, |reply| api::tensor(&reply).map(|t| Cache(t.handle))).await
    }

    /// Runs a binding once.
    ///
    /// # Errors
    /// [`ClientError`]; on a server error no cache has grown.
    pub async fn run(
        &self,
        binding: Binding,
        inputs: &[Input<'_>],
        options: RunOptions,
    ) -> Result<Outputs, ClientError> {
        self.run_with(binding, inputs, &[], options).await
    }

    /// As [`Self::run`], with tensors of this session for inputs that were not bound and are no weights, by node id: as
    /// [`super::blocking::Session::start_run_with`] says.
    ///
    /// # Errors
    /// As [`Self::run`], and [`ClientError::ServerTooOld`].
    pub async fn run_with(
        &self,
        binding: Binding,
        inputs: &[Input<'_>],
        residents: &[(u16, &Tensor)],
        options: RunOptions,
    ) -> Result<Outputs, ClientError> {
        api::can_run(self.news.caps(), residents, &options)?;
        let mut encoded = Vec::new();
        let count = api::write_run_inputs(&mut encoded, inputs, residents)?;
        api::run_request(binding, options, count, &encoded)?;
        let start = move |c: &mut Client| {
            let arguments = Arguments::new(count, &encoded).unwrap_or(Arguments::EMPTY);
            let RunOptions { position, wanted, keep } = options;
            c.start(&Request::Run { binding: binding.0, position, wanted, keep, arguments }, None, None).0
        };
        self.call(start, |reply| api::outputs(&reply)).await
    }

    /// Makes tokens on the server, streamed.
    ///
    /// # Errors
    /// If an input's bytes do not match its shape.
    pub fn generate(
        &self,
        prefill: Binding,
        decode: Binding,
        prompt: &[i32],
        options: &GenerateOptions<'_>,
    ) -> Result<Stream, ClientError> {
        let mut encoded = Vec::new();
        let count = api::write_inputs(&mut encoded, &options.inputs)?;
        Arguments::new(count, &encoded).map_err(ClientError::Request)?;
        let bytes = |ids: &[i32]| ids.iter().map(|id| id.to_le_bytes()).collect::<Vec<_>>();
        let (prompt, stop) = (bytes(prompt), bytes(&options.stop));
        let (position, max_new) = (options.position, options.max_new);
        let start = move |c: &mut Client| {
            let request = Request::Generate {
                prefill: prefill.0,
                decode: decode.0,
                position,
                max_new,
                prompt: &prompt,
                stop: &stop,
                arguments: Arguments::new(count, &encoded).unwrap_or(Arguments::EMPTY),
            };
            c.start(&request, None, None).0
        };
        let (tell, replies) = stream::unbounded_channel();
        let deliver: Deliver = Box::new(move |answer| {
            if tell.is_closed() {
                return Flow::Unwanted;
            }
            let Some(answer) = answer else { return Flow::More };
            let generated = answer.and_then(|reply| api::generated(&reply));
            let over = generated.as_ref().is_ok_and(|g| g.finish.is_some()) || generated.is_err();
            // A receiver that was dropped in between is noticed above, next time.
            let _ = tell.send(generated);
            if over { Flow::Last } else { Flow::More }
        });
        self.send(Command::Request(Box::new(start), deliver))?;
        Ok(Stream { replies })
    }

    /// Frees everything the session has, and ends the connection. Other clones' calls fail from here on.
    ///
    /// # Errors
    /// [`ClientError`]; the session then ends with its lease.
    pub async fn close(self) -> Result<(), ClientError> {
        let closed = self.call(|c| c.start(&Request::Close, None, None).0, |reply| api::done(&reply)).await;
        self.send(Command::Stop)?;
        closed
    }

    async fn call<T: Send + 'static>(
        &self,
        start: impl FnOnce(&mut Client) -> RequestId + Send + 'static,
        read: impl FnOnce(Reply<'_>) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ClientError> {
        let (tell, answer) = oneshot::channel();
        let mut once = Some((read, tell));
        let deliver: Deliver = Box::new(move |answer| {
            let Some(answer) = answer else {
                let unwanted = once.as_ref().is_none_or(|(_, tell)| tell.is_closed());
                return if unwanted { Flow::Unwanted } else { Flow::More };
            };
            if let Some((read, tell)) = once.take() {
                // A user who stopped waiting has dropped the receiver.
                let _ = tell.send(answer.and_then(read));
            }
            Flow::Last
        });
        self.send(Command::Request(Box::new(start), deliver))?;
        answer.await.map_err(|_| ClientError::Interrupted)?
    }

    fn send(&self, command: Command) -> Result<(), ClientError> {
        self.door.commands.send(command).map_err(|_| ClientError::Interrupted)?;
        self.door.alarm.ring();
        Ok(())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // The sender is dropped after this: the thread looks again when its wait times out, at the latest.
        self.alarm.ring();
    }
}

/// Tells of the connection as it is now.
fn report(engine: &mut Engine, news: &News) {
    let can_share = engine.lanes.can_share();
    let client = engine.client();
    news.tell(client.sessions_lost(), can_share, client.welcome().map_or(Caps::default(), |welcome| welcome.caps));
}

/// The thread of a session: takes commands, moves bytes, delivers answers, until every handle on it is gone.
fn drive(engine: &mut Engine, inbox: &mpsc::Receiver<Command>, alarm: &Alarm, news: &News) {
    let mut waiting: HashMap<RequestId, Deliver> = HashMap::new();
    let mut over = Vec::new();
    loop {
        loop {
            match inbox.try_recv() {
                Ok(Command::Request(start, deliver)) => {
                    let id = start(engine.client());
                    waiting.insert(id, deliver);
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => {
                    engine.client().close();
                    engine.lanes.turn(Instant::now());
                    return;
                }
                Err(mpsc::TryRecvError::Empty) => break,
            }
        }
        let moved = engine.lanes.turn(Instant::now());
        report(engine, news);
        let client = engine.client();
        for (&id, deliver) in &mut waiting {
            let mut flow = Flow::More;
            while flow == Flow::More
                && let Some(answer) = client.answer(id)
            {
                flow = deliver(Some(answer));
            }
            if flow == Flow::More {
                flow = deliver(None);
            }
            if flow != Flow::More {
                over.push(id);
            }
        }
        for id in over.drain(..) {
            client.end(id);
            waiting.remove(&id);
        }
        if !moved {
            engine.park(Some(alarm.interest()), Instant::now());
            alarm.hush();
        }
    }
}
