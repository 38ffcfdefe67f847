//! The simulated link.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use genie_executor::{Executor, Mode};
use genie_graph::DType;
use genie_tests::answer::{Outcome, Told, own};
use genie_tests::graphs::{Tiny, VOCABULARY, WIDTH, relu, tiny};
use genie_tests::proxy::LaneFault;
use genie_tests::serve::config;
use genie_transport::client::{ClientError, Tensor};
use genie_transport::connection::{ClientOptions, RequestId};
use genie_transport::link::sim::{ClientId, Network, Sim};
use genie_transport::memory::{Landing, Slab};
use genie_transport::wire::{
    Arguments, BindEntry, ContentHash, ErrorCode, Handle, HandleSpan, Offered, OpenedSession, PutBody, PutRequest,
    PutTarget, RemoteError, Request, ResidencyCode, TensorSpec, write_resident,
};

use crate::link::{Client, EAGER, Lanes, Link, SLICE};

/// All of virtual time that a request may take.
const LONGEST: Duration = Duration::from_secs(600);

pub(crate) struct Simulated {
    world: Rc<World>,
}

struct World {
    sim: RefCell<Sim<Executor>>,
    /// Bytes that have moved at which all clients are cut, and how many more each time after that.
    cut_at: Cell<(u64, u64)>,
    cuts: Cell<u64>,
    /// Bytes that have moved at which a bulk lane meets its fault.
    lane_fault_at: Cell<(u64, LaneFault)>,
    lane_faults: Cell<u64>,
    clients: RefCell<Vec<ClientId>>,
}

pub(crate) struct SimClient {
    world: Rc<World>,
    id: ClientId,
}

impl Link for Simulated {
    type Client = SimClient;

    fn start() -> Self {
        let mut config = config(3);
        config.mode = Mode::Stepped;
        config.token_seed = Some(3);
        config.settings.eager_bytes = EAGER as u32;
        config.settings.slice_bytes = SLICE as u32;
        let service = Arc::new(Executor::new(config).expect("a server"));
        // Slow enough that bulk takes long: a window's worth for each way there and back.
        let network = Network { window: 8 << 10, split: 100_000, ..Network::calm() };
        let sim = RefCell::new(Sim::new(5, Instant::now(), network, service));
        Self {
            world: Rc::new(World {
                sim,
                cut_at: Cell::new((u64::MAX, u64::MAX)),
                cuts: Cell::default(),
                lane_fault_at: Cell::new((u64::MAX, LaneFault::Cut)),
                lane_faults: Cell::default(),
                clients: RefCell::default(),
            }),
        }
    }

    fn connect(&self, resume: Option<OpenedSession>) -> Self::Client {
        let options = ClientOptions { lanes: 2, resume, ..ClientOptions::default() };
        let id = self.world.sim.borrow_mut().connect(options);
        self.world.clients.borrow_mut().push(id);
        self.world.until(|sim| sim.client(id).is_ready().then_some(()));
        SimClient { world: self.world.clone(), id }
    }

    fn arrived(&self) -> u64 {
        self.world.sim.borrow().faults().arrived
    }

    fn cut_after(&self, first: u64, each: u64) {
        self.world.cut_at.set((self.world.moved().saturating_add(first), each));
    }

    fn cuts(&self) -> u64 {
        self.world.cuts.get()
    }

    fn hold_bulk(&self, _held: bool) {
        // It is slow as it is.
    }

    fn corrupt(&self) {
        let network = Network { window: 32 << 10, corrupt: 20_000, ..Network::calm() };
        self.world.sim.borrow_mut().set_network(network);
    }

    fn flipped(&self) -> u64 {
        self.world.sim.borrow().faults().flipped_bits
    }
}

impl Lanes for Simulated {
    fn connect_lanes(&self, lanes: u32) -> Self::Client {
        let options = ClientOptions { lanes, ..ClientOptions::default() };
        let id = self.world.sim.borrow_mut().connect(options);
        self.world.clients.borrow_mut().push(id);
        self.world.until(|sim| sim.client(id).is_ready().then_some(()));
        SimClient { world: self.world.clone(), id }
    }

    fn lane_fault_after(&self, bytes: u64, fault: LaneFault) {
        self.world.lane_fault_at.set((self.world.moved().saturating_add(bytes), fault));
    }

    fn lane_faults(&self) -> u64 {
        self.world.lane_faults.get()
    }

    fn opened_lanes(&self) -> (u64, u64) {
        let faults = self.world.sim.borrow().faults();
        (faults.connections, faults.lanes_reopened)
    }
}

impl World {
    fn moved(&self) -> u64 {
        let faults = self.sim.borrow().faults();
        faults.arrived + faults.returned
    }

    /// Lets time pass until there is something.
    fn until<T>(&self, mut ready: impl FnMut(&mut Sim<Executor>) -> Option<T>) -> T {
        let began = self.sim.borrow().now();
        loop {
            let mut sim = self.sim.borrow_mut();
            if let Some(value) = ready(&mut sim) {
                return value;
            }
            let now = sim.now();
            assert!(now - began < LONGEST, "it waits for what never comes");
            // The device does a thing at a time, so that something can come between two.
            let busy = sim.service().is_some_and(|service| service.step());
            sim.step(now + if busy { Duration::from_micros(5) } else { Duration::from_secs(1) });
            if let Some(service) = sim.service() {
                service.tick(sim.now());
            }
            drop(sim);
            let (at, each) = self.cut_at.get();
            if at <= self.moved() {
                self.cut_at.set((self.moved().saturating_add(each), each));
                self.cuts.set(self.cuts.get() + 1);
                self.clients.borrow().iter().for_each(|id| self.sim.borrow_mut().cut(*id));
            }
            let (at, fault) = self.lane_fault_at.get();
            if at <= self.moved()
                && let Some(&client) = self.clients.borrow().last()
                // Bytes that lose their place are for sockets: here every garbled head is as good as a cut.
                && self.sim.borrow_mut().break_lane(client, fault != LaneFault::Stand)
            {
                self.lane_fault_at.set((u64::MAX, fault));
                self.lane_faults.set(self.lane_faults.get() + 1);
            }
        }
    }
}

impl SimClient {
    fn ask(&self, request: &Request<'_>) -> Outcome {
        let id = self.world.sim.borrow_mut().start(self.id, request, None);
        self.end(id)
    }

    /// The answer to a request; of several, the next.
    fn next(&self, request: RequestId) -> Outcome {
        self.world.until(|sim| sim.client(self.id).answer(request).map(|answer| answer.and_then(own)))
    }

    fn end(&self, request: RequestId) -> Outcome {
        let outcome = self.next(request);
        self.world.sim.borrow_mut().client(self.id).end(request);
        outcome
    }

    fn start(&self, target: PutTarget<'_>, spec: &TensorSpec, data: Bytes) -> RequestId {
        let mut sim = self.world.sim.borrow_mut();
        if data.len() <= EAGER {
            let request = Request::Put(PutRequest { target, spec: spec.clone(), body: PutBody::Inline(&data) });
            return sim.start(self.id, &request, Some(data.clone()));
        }
        let body = PutBody::Sliced { slice_bytes: SLICE as u32, announce: false };
        let request = Request::Put(PutRequest { target, spec: spec.clone(), body });
        sim.client(self.id).start_put(&request, vec![data], SLICE as u32)
    }
}

impl Drop for SimClient {
    /// As a process ends: its sockets are closed.
    fn drop(&mut self) {
        self.world.sim.borrow_mut().client(self.id).close();
    }
}

/// An answer of another kind than was asked for.
fn other<T>(told: &Told) -> Result<T, ClientError> {
    Err(RemoteError::new(ErrorCode::Internal, format!("{told:?}")).into())
}

fn tensor(outcome: Outcome) -> Result<Tensor, ClientError> {
    match outcome? {
        Told::Tensor { handle, device, spec } => Ok(Tensor { handle, device, spec }),
        told => other(&told),
    }
}

impl Client for SimClient {
    type Ticket = (RequestId, Option<Arc<Landing>>);

    fn opened(&mut self) -> OpenedSession {
        *self.world.sim.borrow_mut().client(self.id).session().expect("a session")
    }

    fn echo(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ClientError> {
        match self.ask(&Request::Echo(bytes))? {
            Told::Bytes(back) => Ok(back),
            told => other(&told),
        }
    }

    fn start_put(&mut self, spec: &TensorSpec, data: Bytes) -> Self::Ticket {
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
        (self.start(target, spec, data), None)
    }

    fn finish_put(&mut self, (request, _): Self::Ticket) -> Result<Tensor, ClientError> {
        tensor(self.end(request))
    }

    fn put_range(&mut self, of: &Tensor, offset: u64, data: Bytes) -> Result<Tensor, ClientError> {
        let spec = TensorSpec::new(DType::U8, &[data.len() as u64])?;
        let request = self.start(PutTarget::Range { handle: of.handle, offset }, &spec, data);
        tensor(self.end(request))
    }

    fn start_get(&mut self, handle: Handle, offset: u64, length: u64) -> Self::Ticket {
        let mut sim = self.world.sim.borrow_mut();
        if length <= EAGER as u64 {
            return (sim.start(self.id, &Request::Get { handle, offset, length, sliced: None }, None), None);
        }
        let landing = Landing::new(vec![Slab::zeroed(length as usize)], SLICE as u32);
        let request = Request::Get { handle, offset, length, sliced: Some(SLICE as u32) };
        (sim.client(self.id).start_get(&request, landing.clone()), Some(landing))
    }

    fn finish_get(&mut self, (request, landing): Self::Ticket) -> Result<Vec<u8>, ClientError> {
        match (self.end(request)?, landing) {
            (Told::Bytes(_), Some(landing)) => {
                Ok(landing.finish().expect("it has landed").iter().flat_map(|slab| slab.to_vec()).collect())
            }
            (Told::Bytes(bytes), None) => Ok(bytes),
            (told, _) => other(&told),
        }
    }

    fn put_weight(&mut self, spec: &TensorSpec, data: Bytes) -> Result<Tensor, ClientError> {
        let hash = Some(ContentHash::of(&data));
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Weight, hash, name: None };
        let request = self.start(target, spec, data);
        tensor(self.end(request))
    }

    fn offer(&mut self, entries: &[(ContentHash, TensorSpec)]) -> Result<Vec<Offered>, ClientError> {
        match self.ask(&Request::OfferSet { device: 0, hash: ContentHash::of_set(entries) })? {
            Told::OfferedSet(handles) if handles.is_empty() => {}
            Told::OfferedSet(handles) => return Ok(handles.into_iter().map(Offered::Present).collect()),
            told => return other(&told),
        }
        match self.ask(&Request::Offer { device: 0, entries: entries.to_vec() })? {
            Told::Offered(offered) => Ok(offered),
            told => other(&told),
        }
    }

    fn free(&mut self, handle: Handle) -> Result<(), ClientError> {
        self.ask(&Request::Free(handle)).map(|_| ())
    }

    fn stats(&mut self) -> Result<Vec<(String, u64)>, ClientError> {
        match self.ask(&Request::Stats)? {
            Told::Stats(stats) => Ok(stats),
            told => other(&told),
        }
    }

    fn generate(&mut self, max_new: u32, wanted: usize) -> (usize, Result<(), ClientError>) {
        let (_, binding) = self.bound();
        let prompt = [1_i32, 2, 3].map(i32::to_le_bytes);
        let generate = Request::Generate {
            prefill: binding,
            decode: binding,
            position: None,
            max_new,
            prompt: &prompt,
            stop: &[],
            arguments: Arguments::EMPTY,
        };
        let request = self.world.sim.borrow_mut().start(self.id, &generate, None);
        let (mut came, mut cancelled) = (0, false);
        let end = loop {
            match self.next(request) {
                Ok(Told::Generated { tokens, finish, .. }) => {
                    came += tokens.len();
                    if finish.is_some() {
                        break Ok(());
                    }
                    if came >= wanted && !cancelled {
                        cancelled = true;
                        self.world.sim.borrow_mut().client(self.id).cancel(request);
                    }
                }
                Ok(told) => break other(&told),
                Err(error) => break Err(error),
            }
        };
        self.world.sim.borrow_mut().client(self.id).end(request);
        (came, end)
    }

    fn steps(&mut self, count: u32, ahead: usize) -> Result<Vec<i32>, ClientError> {
        let (model, binding) = self.bound();
        let (mut asked, mut tokens) = (VecDeque::<RequestId>::new(), vec![1]);
        for position in 0..count {
            let bytes = match asked.back() {
                Some(before) => model.token_of(before.0),
                None => model.run_arguments(&tokens[tokens.len() - 1..]),
            };
            let arguments = Arguments::new(1, &bytes)?;
            let run = Request::Run { binding, position: Some(position), wanted: 1, keep: 0, arguments };
            asked.push_back(self.world.sim.borrow_mut().start(self.id, &run, None));
            let over = if position + 1 == count { asked.len() } else { asked.len().saturating_sub(ahead) };
            for request in asked.drain(..over) {
                let ran = self.next(request);
                self.world.sim.borrow_mut().client(self.id).end(request);
                match ran? {
                    Told::Ran { outputs, .. } => {
                        tokens.push(i32::from_le_bytes(outputs[0][..].try_into().expect("a token")));
                    }
                    told => return other(&told),
                }
            }
        }
        Ok(tokens.split_off(1))
    }

    fn relu(&mut self, tensors: &[Tensor]) -> Result<Vec<Vec<u8>>, ClientError> {
        let graph = relu().expect("the program is valid").encode();
        let program = match self.ask(&Request::Define { device: 0, graph: &graph })? {
            Told::Program(program, _) => program,
            told => return other(&told),
        };
        let (bound, weights, arguments) = (Vec::new(), Vec::new(), Arguments::EMPTY);
        let binding = match self.ask(&Request::Bind { program, bound, weights, arguments })? {
            Told::Bound(binding) => binding,
            told => return other(&told),
        };
        let mut asked = Vec::new();
        for tensor in tensors {
            let mut bytes = Vec::new();
            write_resident(&mut bytes, 0, &tensor.spec, tensor.handle)?;
            let arguments = Arguments::new(1, &bytes)?;
            let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments };
            asked.push(self.world.sim.borrow_mut().start(self.id, &run, None));
        }
        let ended: Vec<_> = asked.into_iter().map(|request| self.end(request)).collect();
        let output = |ran| match ran {
            Told::Ran { mut outputs, .. } if outputs.len() == 1 => Ok(outputs.remove(0)),
            told => other(&told),
        };
        ended.into_iter().map(|ran| ran.and_then(output)).collect()
    }
}

impl SimClient {
    /// The tiny model, bound to a new cache.
    fn bound(&mut self) -> (Tiny, Handle) {
        let model = tiny().expect("the model is valid");
        let spec = TensorSpec::new(DType::F32, &[VOCABULARY, WIDTH]).expect("the table's shape");
        let table = self.put(&spec, Tiny::table_bytes().into()).expect("the table");
        let graph = model.graph.encode();
        let Ok(Told::Program(program, _)) = self.ask(&Request::Define { device: 0, graph: &graph }) else {
            panic!("no program")
        };
        let create = Request::CacheCreate { program, input: model.cache, reserve: 0 };
        let cache = tensor(self.ask(&create)).expect("a cache");
        let bound = vec![BindEntry { input: model.cache, handle: cache.handle }];
        let weights = HandleSpan::of([table.handle]);
        let (count, fixed) = model.greedy();
        let arguments = Arguments::new(count, &fixed).expect("the fixed inputs");
        let Ok(Told::Bound(binding)) = self.ask(&Request::Bind { program, bound, weights, arguments }) else {
            panic!("no binding")
        };
        (model, binding)
    }
}
