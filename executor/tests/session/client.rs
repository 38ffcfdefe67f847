//! A client without a network.

use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_executor::{Config, Executor, Mode};
use genie_graph::DType;
use genie_transport::auth::{Identity, Token};
use genie_transport::connection::{BulkEvent, BulkIn, Peer, Recorder, Service, Want};
use genie_transport::wire::{
    Argument, Arguments, BindEntry, ContentHash, DeviceEntry, ErrorCode, Finish, Flags, Handle, Kind, Offered,
    OpenedSession, PutBody, PutRequest, PutTarget, RemoteError, Reply, Request, ResidencyCode, SliceHead, TensorSpec,
    write_argument, write_token_of,
};

use crate::fake::{Control, Fake};
use crate::graphs::{self, Lm};

pub(crate) const EPOCH: u64 = 77;
/// Slices as the tests cut them.
pub(crate) const SLICE: u32 = 4096;

/// A server with counting devices, and the time.
pub(crate) struct Server {
    pub(crate) executor: Executor,
    pub(crate) fakes: Vec<Arc<Control>>,
    pub(crate) now: Instant,
}

impl Server {
    pub(crate) fn inline() -> Self {
        Self::with(1, 64 << 20, |_| {})
    }

    pub(crate) fn stepped() -> Self {
        Self::with(1, 64 << 20, |config| config.mode = Mode::Stepped)
    }

    pub(crate) fn with(devices: u32, memory: u64, change: impl FnOnce(&mut Config)) -> Self {
        let (mut list, mut fakes) = (Vec::<Arc<dyn genie_executor::device::Device>>::new(), Vec::new());
        for index in 0..devices {
            let (fake, control) = Fake::new(index, memory);
            list.push(fake);
            fakes.push(control);
        }
        let mut config = Config::new(list, EPOCH);
        config.mode = Mode::Inline;
        config.token_seed = Some(1);
        change(&mut config);
        Self { executor: Executor::new(config).unwrap(), fakes, now: Instant::now() }
    }

    /// A connection without a session.
    pub(crate) fn connect(&self) -> Client<'_> {
        let (peer, recorder) = Peer::detached();
        Client { server: self, peer, recorder, next: 1, opened: None }
    }

    /// A connection that speaks for this token, with a session.
    pub(crate) fn client_of(&self, token: &Arc<Token>) -> Client<'_> {
        let (peer, recorder) = Peer::detached_as(Identity::of_token(token.clone()));
        let mut client = Client { server: self, peer, recorder, next: 1, opened: None };
        client.open(0);
        client
    }

    /// A connection with a session of its own.
    pub(crate) fn client(&self) -> Client<'_> {
        let mut client = self.connect();
        client.open(0);
        client
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.executor.tick(self.now);
    }

    pub(crate) fn run_all(&self) {
        while self.executor.step() {}
    }

    pub(crate) fn runs(&self) -> Vec<(usize, u64)> {
        std::mem::take(&mut *self.fakes[0].runs.lock().unwrap())
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let mut client = self.connect();
        let id = client.ask(Request::Stats);
        match client.answer(id) {
            Ok(Told::Stats(stats)) => stats.into_iter().find(|(n, _)| n == name).unwrap().1,
            other => panic!("{other:?}"),
        }
    }
}

/// A reply, owned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Told {
    Done,
    Opened(OpenedSession),
    Echo(Vec<u8>),
    Tensor(Handle, u16, TensorSpec),
    Landed(u32, Vec<u8>),
    Got(Vec<u8>),
    Offered(Vec<Offered>),
    OfferedSet(Vec<Handle>),
    Devices(Vec<(String, u64)>),
    Stats(Vec<(String, u64)>),
    Program(Handle, ContentHash),
    Bound(Handle),
    Ran { device: u16, position: u32, outputs: Vec<Out> },
    Generated { position: u32, tokens: Vec<i32>, finish: Option<Finish> },
}

/// An output of a run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Out {
    Inline(u16, Vec<u8>),
    Resident(u16, Handle),
}

pub(crate) type Answer = Result<Told, RemoteError>;

/// One connection.
pub(crate) struct Client<'a> {
    pub(crate) server: &'a Server,
    pub(crate) peer: Arc<Peer>,
    pub(crate) recorder: Recorder,
    pub(crate) next: u64,
    pub(crate) opened: Option<OpenedSession>,
}

impl<'a> Client<'a> {
    pub(crate) fn ask(&mut self, request: Request<'_>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.ask_as(id, request);
        id
    }

    pub(crate) fn ask_as(&self, id: u64, request: Request<'_>) {
        self.server.executor.request(&self.peer, id, request, self.server.now);
    }

    /// Every reply since the last call.
    pub(crate) fn heard(&self) -> Vec<(u64, Answer)> {
        let frames = self.recorder.take();
        let told = frames.iter().filter(|f| f.header.flags.has(Flags::REPLY) && f.header.kind != Ok(Kind::Ping));
        told.map(|f| (f.header.id, own(Reply::decode(&f.header, &f.meta, &f.payload).unwrap()))).collect()
    }

    /// The one reply that there must be.
    #[track_caller]
    pub(crate) fn answer(&self, id: u64) -> Answer {
        let heard = self.heard();
        assert_eq!(heard.len(), 1, "{heard:?}");
        assert_eq!(heard[0].0, id);
        heard[0].1.clone()
    }

    #[track_caller]
    pub(crate) fn call(&mut self, request: Request<'_>) -> Answer {
        let id = self.ask(request);
        self.answer(id)
    }

    #[track_caller]
    pub(crate) fn fails(&mut self, request: Request<'_>) -> ErrorCode {
        match self.call(request) {
            Err(error) => error.code,
            Ok(told) => panic!("{told:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn open(&mut self, quota: u64) -> OpenedSession {
        match self.call(Request::Open { quota, lease_ms: 1000 }) {
            Ok(Told::Opened(opened)) => {
                self.opened = Some(opened);
                opened
            }
            other => panic!("{other:?}"),
        }
    }

    /// The connection breaks, and the client comes back over another.
    #[track_caller]
    pub(crate) fn reconnect(&mut self, unanswered: u64) {
        self.break_off();
        let opened = self.opened.unwrap();
        (self.peer, self.recorder) = Peer::detached();
        let resume = Request::Resume { token: opened.token, epoch: opened.epoch, unanswered };
        match self.call(resume) {
            Ok(Told::Opened(again)) => {
                assert_eq!(OpenedSession { next_request: opened.next_request, ..again }, opened);
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn break_off(&self) {
        self.server.executor.closed(&self.peer, self.server.now);
        self.recorder.take();
    }

    #[track_caller]
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Handle {
        tensor(self.call(put_request(private(None, None), bytes)))
    }

    #[track_caller]
    pub(crate) fn put_weight(&mut self, bytes: &[u8]) -> Handle {
        tensor(self.call(put_request(weight(ContentHash::of(bytes)), bytes)))
    }

    #[track_caller]
    pub(crate) fn get(&mut self, handle: Handle) -> Vec<u8> {
        match self.call(Request::Get { handle, offset: 0, length: 0, sliced: None }) {
            Ok(Told::Got(bytes)) => bytes,
            other => panic!("{other:?}"),
        }
    }

    /// Sends these slices of a transfer, as a bulk lane would.
    pub(crate) fn send(&self, transfer: u64, bytes: &[u8], slices: &[usize]) {
        let mut lane = BulkIn::new(false);
        for &slice in slices {
            let at = slice * SLICE as usize;
            let payload = &bytes[at..(at + SLICE as usize).min(bytes.len())];
            let mut frame = SliceHead::encode(transfer, at as u64, bytes.len() as u64, payload).to_vec();
            frame.extend_from_slice(payload);
            self.send_frame(&mut lane, &frame);
        }
    }

    /// Sends a slice frame as it is.
    pub(crate) fn send_frame(&self, lane: &mut BulkIn, frame: &[u8]) {
        let mut rest = frame;
        loop {
            if let Want::Read { first, .. } = lane.want() {
                let n = first.len().min(rest.len());
                first[..n].copy_from_slice(&rest[..n]);
                lane.filled(n).unwrap();
                rest = &rest[n..];
            }
            while let Some(event) = lane.poll(self.peer.landings(), self.server.now) {
                match event {
                    BulkEvent::Complete(transfer) => {
                        self.server.executor.landed(&self.peer, transfer, self.server.now);
                    }
                    BulkEvent::OffGrid(transfer) => {
                        self.server.executor.refused(&self.peer, transfer, self.server.now);
                    }
                    BulkEvent::Corrupt { .. } | BulkEvent::Missed { .. } => {}
                }
            }
            if rest.is_empty() {
                return;
            }
        }
    }

    /// Defines the tiny language model and binds it to a new cache; sampling is greedy.
    #[track_caller]
    pub(crate) fn model(&mut self, phase: genie_graph::Phase) -> Model {
        let table = self.put_weight(&graphs::table_bytes());
        self.model_with(phase, table, None)
    }

    #[track_caller]
    pub(crate) fn model_with(&mut self, phase: genie_graph::Phase, table: Handle, cache: Option<Handle>) -> Model {
        let lm = graphs::lm(phase);
        let program = self.define(&lm.graph.encode());
        let cache =
            cache.unwrap_or_else(|| tensor(self.call(Request::CacheCreate { program, input: lm.cache, reserve: 0 })));
        let binding = self.bind_model(&lm, program, table, cache);
        Model { lm, program, cache, binding, table }
    }

    #[track_caller]
    pub(crate) fn bind_model(&mut self, lm: &Lm, program: Handle, table: Handle, cache: Handle) -> Handle {
        let bound = vec![BindEntry { input: lm.table, handle: table }, BindEntry { input: lm.cache, handle: cache }];
        let mut bytes = Vec::new();
        let real: Vec<u8> = [0_f32, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        write_argument(&mut bytes, lm.real, DType::F32, &[1, 2], &real).unwrap();
        write_argument(&mut bytes, lm.int, DType::I64, &[1, 2], &[0; 16]).unwrap();
        let arguments = Arguments::new(2, &bytes).unwrap();
        match self.call(Request::Bind { program, bound, weights: Vec::new(), arguments }) {
            Ok(Told::Bound(handle)) => handle,
            other => panic!("{other:?}"),
        }
    }

    /// Binds the model's weight and cache alone: tokens and sampling come with each run.
    #[track_caller]
    pub(crate) fn bind_free(&mut self, model: &Model) -> Handle {
        let bound = vec![
            BindEntry { input: model.lm.table, handle: model.table },
            BindEntry { input: model.lm.cache, handle: model.cache },
        ];
        let (program, arguments) = (model.program, Arguments::EMPTY);
        match self.call(Request::Bind { program, bound, weights: Vec::new(), arguments }) {
            Ok(Told::Bound(handle)) => handle,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn define(&mut self, graph: &[u8]) -> Handle {
        match self.call(Request::Define { device: 0, graph }) {
            Ok(Told::Program(handle, _)) => handle,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for a run of the model on these tokens, with its token and nothing else coming back.
    pub(crate) fn ask_run(&mut self, model: &Model, tokens: &[i32], position: Option<u32>) -> u64 {
        let bytes = model.tokens(tokens);
        let arguments = Arguments::new(1, &bytes).unwrap();
        self.ask(Request::Run { binding: model.binding, position, wanted: 1, keep: 0, arguments })
    }

    /// Asks for a run of the model on the token that an earlier run gives.
    pub(crate) fn ask_run_on(&mut self, model: &Model, earlier: u64, position: Option<u32>) -> u64 {
        let bytes = model.token_of(earlier);
        let arguments = Arguments::new(1, &bytes).unwrap();
        self.ask(Request::Run { binding: model.binding, position, wanted: 1, keep: 0, arguments })
    }

    /// The token and the cache's length after a run.
    #[track_caller]
    pub(crate) fn run(&mut self, model: &Model, tokens: &[i32]) -> (i32, u32) {
        let id = self.ask_run(model, tokens, None);
        ran(self.answer(id))
    }

    #[track_caller]
    pub(crate) fn devices(&mut self) -> Vec<(String, u64)> {
        match self.call(Request::Devices) {
            Ok(Told::Devices(devices)) => devices,
            other => panic!("{other:?}"),
        }
    }
}

/// The tiny language model, bound.
pub(crate) struct Model {
    pub(crate) lm: Lm,
    pub(crate) program: Handle,
    pub(crate) cache: Handle,
    pub(crate) binding: Handle,
    pub(crate) table: Handle,
}

impl Model {
    /// The tokens as a run's arguments.
    pub(crate) fn tokens(&self, tokens: &[i32]) -> Vec<u8> {
        let data: Vec<u8> = tokens.iter().flat_map(|t| t.to_le_bytes()).collect();
        let mut bytes = Vec::new();
        write_argument(&mut bytes, self.lm.tokens, DType::I32, &[1, tokens.len() as u64], &data).unwrap();
        bytes
    }
}

impl Model {
    /// The token that a request gives, as a run's arguments.
    pub(crate) fn token_of(&self, request: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_token_of(&mut bytes, self.lm.tokens, request);
        bytes
    }
}

#[track_caller]
pub(crate) fn ran(answer: Answer) -> (i32, u32) {
    match answer {
        Ok(Told::Ran { position, outputs, .. }) => match &outputs[..] {
            [Out::Inline(0, token)] => (i32::from_le_bytes(token[..].try_into().unwrap()), position),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn tensor(answer: Answer) -> Handle {
    match answer {
        Ok(Told::Tensor(handle, ..)) => handle,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
pub(crate) fn code(answer: &Answer) -> ErrorCode {
    match answer {
        Err(error) => error.code,
        Ok(told) => panic!("{told:?}"),
    }
}

pub(crate) fn bytes_spec(n: usize) -> TensorSpec {
    TensorSpec::new(DType::U8, &[n as u64]).unwrap()
}

pub(crate) fn private<'a>(hash: Option<ContentHash>, name: Option<&'a str>) -> PutTarget<'a> {
    PutTarget::New { device: 0, residency: ResidencyCode::Private, hash, name }
}

pub(crate) fn weight(hash: ContentHash) -> PutTarget<'static> {
    PutTarget::New { device: 0, residency: ResidencyCode::Weight, hash: Some(hash), name: None }
}

/// An inline put; tables of the tiny model get their type.
pub(crate) fn put_request<'a>(target: PutTarget<'a>, bytes: &'a [u8]) -> Request<'a> {
    Request::Put(PutRequest { target, spec: spec_of(bytes.len()), body: PutBody::Inline(bytes) })
}

pub(crate) fn sliced_put<'a>(target: PutTarget<'a>, n: usize, announce: bool) -> Request<'a> {
    Request::Put(PutRequest { target, spec: spec_of(n), body: PutBody::Sliced { slice_bytes: SLICE, announce } })
}

/// `n` bytes as a tensor: the model's table where they are as many as it has, else bytes.
pub(crate) fn spec_of(n: usize) -> TensorSpec {
    if n as u64 == graphs::VOCABULARY * graphs::WIDTH * 4 {
        return TensorSpec::new(DType::F32, &[graphs::VOCABULARY, graphs::WIDTH]).unwrap();
    }
    bytes_spec(n)
}

/// Bytes that differ from place to place.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<u8> {
    (0..n as u64).map(|i| ((i ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn own(reply: Reply<'_>) -> Answer {
    Ok(match reply {
        Reply::Failed(error) => return Err(error),
        Reply::Done => Told::Done,
        Reply::Opened(opened) => Told::Opened(opened),
        Reply::Echo(bytes) => Told::Echo(bytes.to_vec()),
        Reply::Tensor { handle, device, spec } => Told::Tensor(handle, device, spec),
        Reply::Landed { slices, bits, .. } => Told::Landed(slices, bits.to_vec()),
        Reply::Got(bytes) => Told::Got(bytes.to_vec()),
        Reply::Offered(offered) => Told::Offered(offered),
        Reply::OfferedSet { epoch, spans } => {
            Told::OfferedSet(spans.iter().flat_map(|span| span.handles(epoch)).collect())
        }
        Reply::Devices(devices) => {
            Told::Devices(devices.iter().map(|d: &DeviceEntry<'_>| (d.name.to_owned(), d.free_bytes)).collect())
        }
        Reply::Stats(stats) => Told::Stats(stats.iter().map(|s| (s.name.to_owned(), s.value)).collect()),
        Reply::Program { handle, hash } => Told::Program(handle, hash),
        Reply::Bound(handle) => Told::Bound(handle),
        Reply::Ran { device, position, outputs } => {
            let own = |argument| match argument {
                Argument::Inline { index, data, .. } => Out::Inline(index, data.to_vec()),
                Argument::Resident { index, handle, .. } => Out::Resident(index, handle),
                Argument::TokenOf { .. } => panic!("no output is another request's"),
            };
            Told::Ran { device, position, outputs: outputs.iter().map(own).collect() }
        }
        Reply::Generated { position, tokens, finish, .. } => {
            let tokens = tokens.iter().map(|t| i32::from_le_bytes(*t)).collect();
            Told::Generated { position, tokens, finish }
        }
    })
}
