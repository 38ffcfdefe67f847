//! One client's work, and what it believes about the server.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use genie_executor::Executor;
use genie_graph::DType;
use genie_tests::answer::{Outcome, Told, own};
use genie_tests::graphs::{Tiny, VOCABULARY, WIDTH};
use genie_transport::connection::{ClientError, RequestId};
use genie_transport::link::sim::{ClientId, Sim};
use genie_transport::memory::{Landing, Slab};
use genie_transport::wire::{
    Arguments, BindEntry, ContentHash, Effect, ErrorCode, Handle, Offered, PutBody, PutRequest, PutTarget, Request,
    ResidencyCode, TensorSpec,
};

use crate::register::{Moment, Register, tag_of, tagged};
use crate::world::{NAMES, Shared};

const SLICE: u32 = 4096;
/// Contents that any user may put as a weight.
const WEIGHTS: u32 = 3;

pub(crate) struct User {
    pub(crate) id: ClientId,
    todo: u32,
    most: usize,
    lost: u64,
    flights: Vec<Flight>,
    table: Option<Handle>,
    program: Option<Handle>,
    tensors: Vec<Tensor>,
    caches: Vec<Cache>,
    /// Numbers tensors and caches for good, whatever comes and goes.
    last: u64,
    winding_up: bool,
}

struct Tensor {
    number: u64,
    handle: Handle,
    bytes: usize,
    value: Register,
    /// A weight's content.
    weight: bool,
    freed: bool,
}

/// A KV cache whose length counts the runs: the one effect that a repeated request would make visible.
struct Cache {
    number: u64,
    handle: Handle,
    binding: Option<Handle>,
    /// Bounds of its length before the runs in flight began.
    least: u32,
    most: u32,
    /// Since then: runs begun, positions that came back, runs of which nobody knows.
    begun: u32,
    positions: BTreeSet<u32>,
    unknown: u32,
    /// Something that is not a run is under way.
    exclusive: bool,
    checked: bool,
}

struct Flight {
    request: RequestId,
    what: What,
    began: Moment,
    landing: Option<Arc<Landing>>,
    cancelled: bool,
    tokens: Vec<i32>,
}

#[derive(Clone, Debug)]
enum What {
    Table,
    Define,
    New { tag: u32, bytes: usize, name: Option<usize> },
    Weight { tag: u32, bytes: usize },
    Offer { tag: u32, bytes: usize },
    Write { tensor: u64, tag: u32 },
    Read { tensor: u64, bytes: usize },
    Copy { tensor: u64 },
    Free { tensor: u64 },
    Lookup { name: usize },
    CreateCache,
    Bind { cache: u64 },
    Run { cache: u64 },
    Generate { cache: u64, prompt: u32, new: u32 },
    Fork { cache: u64 },
    Truncate { cache: u64, length: u32 },
    Echo { bytes: Vec<u8> },
}

impl User {
    pub(crate) fn new(id: ClientId, todo: u32, most: usize) -> Self {
        Self {
            id,
            todo,
            most,
            lost: 0,
            flights: Vec::new(),
            table: None,
            program: None,
            tensors: Vec::new(),
            caches: Vec::new(),
            last: 0,
            winding_up: false,
        }
    }

    /// From here on every tensor is read once more, and every cache run once more.
    pub(crate) fn wind_up(&mut self) {
        self.winding_up = true;
        self.todo = 0;
    }

    /// What it waits for.
    pub(crate) fn describe(&self) -> Vec<String> {
        self.flights.iter().map(|f| format!("{} {:?}", f.request.0, f.what)).collect()
    }

    /// Takes answers, and asks for more. Whether it has more to do.
    pub(crate) fn turn(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) -> Result<bool, String> {
        if let Some(error) = sim.client(self.id).dead() {
            return Err(format!("user {:?} has given up: {error}", self.id));
        }
        let mut at = 0;
        while at < self.flights.len() {
            match self.listen(at, sim, shared) {
                None => at += 1,
                Some(outcome) => {
                    let flight = self.flights.swap_remove(at);
                    sim.client(self.id).end(flight.request);
                    shared.tell(|| format!("user {:?}: {} {:?}: {outcome:?}", self.id, flight.request.0, flight.what));
                    self.over(&flight, outcome, sim, shared).map_err(|e| {
                        format!("user {:?}, request {} {:?}: {e}", self.id, flight.request.0, flight.what)
                    })?;
                }
            }
        }
        let lost = sim.client(self.id).sessions_lost();
        if lost != self.lost {
            if let Some(flight) = self.flights.first() {
                return Err(format!("the session is lost, but {:?} has not ended", flight.what));
            }
            self.lost = lost;
            (self.table, self.program) = (None, None);
            self.tensors.clear();
            self.caches.clear();
        }
        if self.winding_up {
            self.ask_the_last(sim, shared);
        } else if self.todo > 0 && self.flights.len() < self.most && sim.rng().chance(400_000) {
            self.ask_something(sim, shared);
        }
        if !self.flights.is_empty() && sim.rng().chance(3_000) && !self.winding_up {
            let at = sim.rng().below(self.flights.len() as u64) as usize;
            let flight = &mut self.flights[at];
            flight.cancelled = true;
            let request = flight.request;
            shared.tell(|| format!("user {:?}: cancels {}", self.id, request.0));
            sim.client(self.id).cancel(request);
        }
        if !self.flights.is_empty() && sim.rng().chance(2_000) && !self.winding_up {
            let at = sim.rng().below(self.flights.len() as u64) as usize;
            if self.flights[at].what.can_be_abandoned() {
                let flight = self.flights.swap_remove(at);
                shared.tell(|| format!("user {:?}: no longer waits for {}", self.id, flight.request.0));
                sim.client(self.id).end(flight.request);
            }
        }
        Ok(self.todo > 0 || !self.flights.is_empty())
    }

    /// The end of a request, if it has come.
    fn listen(&mut self, at: usize, sim: &mut Sim<Executor>, shared: &mut Shared) -> Option<Outcome> {
        let flight = &mut self.flights[at];
        loop {
            let outcome = sim.client(self.id).answer(flight.request)?.and_then(own);
            match outcome {
                Ok(Told::Generated { tokens, finish: None, .. }) => {
                    shared.tell(|| format!("{}: {tokens:?}", flight.request.0));
                    flight.tokens.extend(tokens);
                }
                other => return Some(other),
            }
        }
    }

    // ---- asking

    fn ask_something(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
        self.todo -= 1;
        let choice = sim.rng().below(20);
        match choice {
            0..3 => {
                let bytes = size(sim);
                let name = sim.rng().chance(300_000).then(|| sim.rng().below(NAMES as u64) as usize);
                self.put_new(sim, shared, bytes, name);
            }
            3..6 => {
                let Some(tensor) = self.pick_tensor(sim, false) else { return };
                let (number, handle, bytes) = (tensor.number, tensor.handle, tensor.bytes);
                let tag = shared.tag();
                tensor.value.begin(tag, shared.moment());
                let target = PutTarget::Range { handle, offset: 0 };
                self.put(sim, shared, target, tagged(tag, bytes), What::Write { tensor: number, tag });
            }
            6..10 => {
                let Some(tensor) = self.pick_tensor(sim, true) else { return };
                let (number, handle, whole) = (tensor.number, tensor.handle, tensor.bytes);
                let offset = if sim.rng().chance(500_000) { 0 } else { sim.rng().below(whole as u64 / 4) as usize * 4 };
                let bytes = (1 + sim.rng().below((whole - offset) as u64 / 4)) as usize * 4;
                self.read(sim, shared, number, handle, offset, bytes);
            }
            10 => {
                let Some(tensor) = self.pick_tensor(sim, true) else { return };
                let (number, handle) = (tensor.number, tensor.handle);
                self.ask(sim, shared, &Request::Copy { handle, device: 0 }, What::Copy { tensor: number });
            }
            11 => {
                let busy: Vec<u64> = self.flights.iter().filter_map(|f| f.what.tensor()).collect();
                let Some(tensor) = self.pick_tensor(sim, true).filter(|t| !busy.contains(&t.number)) else { return };
                tensor.freed = true;
                let (number, handle) = (tensor.number, tensor.handle);
                self.ask(sim, shared, &Request::Free(handle), What::Free { tensor: number });
            }
            12 => {
                let name = sim.rng().below(NAMES as u64) as usize;
                self.ask(sim, shared, &Request::LookupName(NAME[name]), What::Lookup { name });
            }
            13 => {
                let (tag, bytes) = weight(sim);
                let content = tagged(tag, bytes);
                if sim.rng().chance(500_000) {
                    let entries = vec![(ContentHash::of(&content), spec(bytes))];
                    self.ask(sim, shared, &Request::Offer { device: 0, entries }, What::Offer { tag, bytes });
                } else {
                    self.put_weight(sim, shared, content, What::Weight { tag, bytes });
                }
            }
            14 => {
                let bytes = vec![sim.rng().bits() as u8; sim.rng().below(3000) as usize];
                self.ask(sim, shared, &Request::Echo(&bytes), What::Echo { bytes: bytes.clone() });
            }
            15..17 => self.run_or_prepare(sim, shared),
            _ => self.use_cache(sim, shared),
        }
    }

    /// Whatever brings a cache that can be run nearer, or a run.
    fn run_or_prepare(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
        let has = |flights: &[Flight], wanted: fn(&What) -> bool| flights.iter().any(|f| wanted(&f.what));
        if self.table.is_none() {
            if !has(&self.flights, |w| matches!(w, What::Table)) {
                self.put_table(sim, shared);
            }
        } else if self.program.is_none() {
            if !has(&self.flights, |w| matches!(w, What::Define)) {
                let graph = shared.model.graph.encode();
                self.ask(sim, shared, &Request::Define { device: 0, graph: &graph }, What::Define);
            }
        } else if let Some(program) = self.program
            && self.caches.len() < 3
            && !has(&self.flights, |w| matches!(w, What::CreateCache))
        {
            let request = Request::CacheCreate { program, input: shared.model.cache, reserve: 0 };
            self.ask(sim, shared, &request, What::CreateCache);
        }
    }

    fn use_cache(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
        let at = sim.rng().below(self.caches.len().max(1) as u64) as usize;
        let (Some(program), Some(table), Some(cache)) = (self.program, self.table, self.caches.get_mut(at)) else {
            return self.run_or_prepare(sim, shared);
        };
        let (number, handle) = (cache.number, cache.handle);
        if cache.exclusive {
            return;
        }
        let Some(binding) = cache.binding else {
            cache.exclusive = true;
            let model = &shared.model;
            let bound = [(model.table, table), (model.cache, handle)];
            let bound = bound.map(|(input, handle)| BindEntry { input, handle }).to_vec();
            let (count, bytes) = model.greedy();
            let arguments = Arguments::new(count, &bytes).expect("the fixed inputs");
            return self.ask(sim, shared, &Request::Bind { program, bound, arguments }, What::Bind { cache: number });
        };
        if cache.begun > cache.ended() || sim.rng().chance(600_000) {
            return self.run(sim, shared, number, binding);
        }
        // Alone: what follows is checked against the length.
        cache.settle();
        cache.exclusive = true;
        match sim.rng().below(3) {
            0 => self.ask(sim, shared, &Request::CacheFork(handle), What::Fork { cache: number }),
            1 => {
                let length = sim.rng().below(u64::from(cache.least) + 1) as u32;
                let request = Request::CacheTruncate { cache: handle, length };
                self.ask(sim, shared, &request, What::Truncate { cache: number, length });
            }
            _ => {
                let (prompt, new) = (1 + sim.rng().below(4) as u32, 1 + sim.rng().below(6) as u32);
                let ids: Vec<[u8; 4]> = (0..prompt).map(|t| t.to_le_bytes()).collect();
                let request = Request::Generate {
                    prefill: binding,
                    decode: binding,
                    position: (cache.least == cache.most).then_some(cache.least),
                    max_new: new,
                    prompt: &ids,
                    stop: &[],
                    arguments: Arguments::EMPTY,
                };
                self.ask(sim, shared, &request, What::Generate { cache: number, prompt, new });
            }
        }
    }

    fn run(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, number: u64, binding: Handle) {
        let Some(cache) = self.caches.iter_mut().find(|c| c.number == number) else { return };
        if cache.begun == cache.ended() {
            cache.settle();
        }
        cache.begun += 1;
        let bytes = shared.model.run_arguments(&[(number % VOCABULARY) as i32]);
        let arguments = Arguments::new(1, &bytes).expect("a token");
        let request = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments };
        self.ask(sim, shared, &request, What::Run { cache: number });
    }

    /// One more look at everything.
    fn ask_the_last(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
        if !self.flights.is_empty() || !sim.client(self.id).is_ready() {
            return;
        }
        let tensors: Vec<_> = self.tensors.iter().filter(|t| !t.freed).map(|t| (t.number, t.handle, t.bytes)).collect();
        for (number, handle, bytes) in tensors {
            if let Some(tensor) = self.tensors.iter_mut().find(|t| t.number == number) {
                tensor.freed = true;
            }
            self.read(sim, shared, number, handle, 0, bytes);
        }
        let caches: Vec<_> = self
            .caches
            .iter_mut()
            .filter_map(|c| c.binding.filter(|_| !std::mem::replace(&mut c.checked, true)).map(|b| (c.number, b)))
            .collect();
        caches.into_iter().for_each(|(number, binding)| self.run(sim, shared, number, binding));
    }

    fn put_new(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, bytes: usize, name: Option<usize>) {
        let tag = shared.tag();
        if let Some(name) = name {
            let now = shared.moment();
            shared.names[name].begin(tag, now);
        }
        let content = tagged(tag, bytes);
        let hash = sim.rng().chance(300_000).then(|| ContentHash::of(&content));
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash, name: name.map(|n| NAME[n]) };
        self.put(sim, shared, target, content, What::New { tag, bytes, name });
    }

    fn put_table(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
        let content = Tiny::table_bytes();
        let hash = Some(ContentHash::of(&content));
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Weight, hash, name: None };
        let spec = TensorSpec::new(DType::F32, &[VOCABULARY, WIDTH]).expect("the table's shape");
        let request = Request::Put(PutRequest { target, spec, body: PutBody::Inline(&content) });
        self.ask(sim, shared, &request, What::Table);
    }

    fn put_weight(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, content: Vec<u8>, what: What) {
        let hash = Some(ContentHash::of(&content));
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Weight, hash, name: None };
        self.put(sim, shared, target, content, what);
    }

    /// A put, inline or in slices as drawn.
    fn put(
        &mut self,
        sim: &mut Sim<Executor>,
        shared: &mut Shared,
        target: PutTarget<'_>,
        content: Vec<u8>,
        what: What,
    ) {
        let spec = spec(content.len());
        let content = Bytes::from(content);
        if content.len() <= 8192 && sim.rng().chance(500_000) {
            let request = Request::Put(PutRequest { target, spec, body: PutBody::Inline(&content) });
            let payload = sim.rng().chance(500_000).then(|| content.clone());
            let id = sim.start(self.id, &request, payload);
            return self.flies(id, what, None, shared);
        }
        let body = PutBody::Sliced { slice_bytes: SLICE, announce: sim.rng().chance(500_000) };
        let request = Request::Put(PutRequest { target, spec, body });
        let cut = sim.rng().below(content.len() as u64) as usize;
        let pieces = vec![content.slice(..cut), content.slice(cut..)];
        let id = sim.client(self.id).start_put(&request, pieces, SLICE);
        self.flies(id, what, None, shared);
    }

    fn read(
        &mut self,
        sim: &mut Sim<Executor>,
        shared: &mut Shared,
        tensor: u64,
        handle: Handle,
        offset: usize,
        bytes: usize,
    ) {
        let what = What::Read { tensor, bytes };
        let (offset, length) = (offset as u64, bytes as u64);
        if bytes <= 8192 && sim.rng().chance(500_000) {
            return self.ask(sim, shared, &Request::Get { handle, offset, length, sliced: None }, what);
        }
        let landing = Landing::new(vec![Slab::zeroed(bytes)], SLICE);
        let request = Request::Get { handle, offset, length, sliced: Some(SLICE) };
        let id = sim.client(self.id).start_get(&request, landing.clone());
        self.flies(id, what, Some(landing), shared);
    }

    fn ask(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, request: &Request<'_>, what: What) {
        let id = sim.start(self.id, request, None);
        self.flies(id, what, None, shared);
    }

    fn flies(&mut self, request: RequestId, what: What, landing: Option<Arc<Landing>>, shared: &mut Shared) {
        shared.tell(|| format!("user {:?}: {} {what:?}", self.id, request.0));
        let began = shared.moment();
        self.flights.push(Flight { request, what, began, landing, cancelled: false, tokens: Vec::new() });
    }

    fn pick_tensor(&mut self, sim: &mut Sim<Executor>, weights: bool) -> Option<&mut Tensor> {
        let fits = |t: &&mut Tensor| !t.freed && (weights || !t.weight);
        let count = self.tensors.iter_mut().filter(fits).count();
        let at = sim.rng().below(count as u64) as usize;
        self.tensors.iter_mut().filter(fits).nth(at)
    }

    // ---- what came of it

    fn over(
        &mut self,
        flight: &Flight,
        outcome: Outcome,
        sim: &mut Sim<Executor>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        match outcome {
            Ok(told) => self.succeeded(flight, told, sim, shared),
            Err(error) => self.failed(flight, &error, shared),
        }
    }

    fn succeeded(
        &mut self,
        flight: &Flight,
        told: Told,
        sim: &mut Sim<Executor>,
        shared: &mut Shared,
    ) -> Result<(), String> {
        let now = shared.moment();
        match (&flight.what, told) {
            (What::Table, Told::Tensor { handle, .. }) => self.table = Some(handle),
            (What::Define, Told::Program(handle, _)) => self.program = Some(handle),
            (What::New { tag, bytes, name }, Told::Tensor { handle, .. }) => {
                match name {
                    Some(name) if handle.epoch == shared.epoch => shared.names[*name].applied(*tag, now),
                    // It was applied to a server that is gone.
                    Some(name) => shared.names[*name].void(*tag),
                    None => {}
                }
                self.add_tensor(handle, *bytes, vec![*tag], false, now);
            }
            (What::Weight { tag, bytes }, Told::Tensor { handle, .. }) => {
                self.add_tensor(handle, *bytes, vec![*tag], true, now);
            }
            (What::Offer { tag, bytes }, Told::Offered(offered)) => match offered[..] {
                [Offered::Present(handle)] => self.add_tensor(handle, *bytes, vec![*tag], true, now),
                [Offered::Absent | Offered::Partial(_)] => {
                    self.put_weight(sim, shared, tagged(*tag, *bytes), What::Weight { tag: *tag, bytes: *bytes });
                }
                _ => return Err(format!("one offer, {} answers", offered.len())),
            },
            (What::Write { tensor, tag }, Told::Tensor { .. }) => self.tensor(*tensor)?.value.applied(*tag, now),
            (What::Read { tensor, bytes }, Told::Bytes(inline)) => {
                let landed = flight.landing.as_ref().map(|l| l.finish().ok_or("the landing is not whole"));
                let got = match landed {
                    Some(slabs) => slabs?.iter().flat_map(|s| s.to_vec()).collect(),
                    None => inline,
                };
                if got.len() != *bytes {
                    return Err(format!("{} bytes came, {bytes} were asked for", got.len()));
                }
                let tag = tag_of(&got)?;
                let allowed = self.tensor(*tensor)?.value.allowed(flight.began, now);
                if !allowed.contains(&tag) {
                    return Err(format!("read tag {tag:#x}; it may be one of {allowed:x?}"));
                }
            }
            (What::Copy { tensor }, Told::Tensor { handle, .. }) => {
                let source = self.tensor(*tensor)?;
                let (bytes, weight) = (source.bytes, source.weight);
                let tags = source.value.allowed(flight.began, now);
                self.add_tensor(handle, bytes, tags, weight, now);
            }
            (What::Free { tensor }, Told::Done) => self.tensors.retain(|t| t.number != *tensor),
            (What::Lookup { name }, Told::Tensor { handle, spec, .. }) => {
                let mut tags = shared.names[*name].allowed(flight.began, now);
                if flight.began < shared.lost_names.0 {
                    tags.extend(shared.lost_names.1[*name].any());
                }
                let bytes = spec.bytes() as usize;
                self.add_tensor(handle, bytes, tags, false, now);
            }
            (What::CreateCache, Told::Tensor { handle, .. }) => self.add_cache(handle, 0, 0),
            (What::Bind { cache }, Told::Bound(handle)) => {
                let cache = self.cache(*cache)?;
                cache.binding = Some(handle);
                cache.exclusive = false;
            }
            (What::Run { cache }, Told::Ran { position, outputs }) => {
                let cache = self.cache(*cache)?;
                let most = cache.most + cache.begun;
                if position <= cache.least || position > most {
                    return Err(format!("the cache has {position} tokens; it can have {} to {most}", cache.least + 1));
                }
                if !cache.positions.insert(position) {
                    return Err(format!("two runs made the cache {position} tokens long"));
                }
                let token = outputs.first().and_then(|o| o.first_chunk()).map(|t| i32::from_le_bytes(*t));
                if token.is_none_or(|t| !(0..VOCABULARY as i32).contains(&t)) {
                    return Err(format!("no token came: {outputs:?}"));
                }
            }
            (What::Generate { cache, prompt, new }, Told::Generated { position, tokens, .. }) => {
                let count = flight.tokens.len() + tokens.len();
                let cache = self.cache(*cache)?;
                cache.exclusive = false;
                let grown = prompt + new - 1;
                if count != *new as usize || !(cache.least + grown..=cache.most + grown).contains(&position) {
                    let (least, most) = (cache.least, cache.most);
                    return Err(format!("{count} tokens came, and the cache has {position} after {least} to {most}"));
                }
                (cache.least, cache.most) = (position, position);
            }
            (What::Fork { cache }, Told::Tensor { handle, .. }) => {
                let cache = self.cache(*cache)?;
                cache.exclusive = false;
                let (least, most) = (cache.least, cache.most);
                if self.caches.len() < 4 {
                    self.add_cache(handle, least, most);
                }
            }
            (What::Truncate { cache, length }, Told::Done) => {
                let cache = self.cache(*cache)?;
                cache.exclusive = false;
                (cache.least, cache.most) = (*length, *length);
            }
            (What::Echo { bytes }, Told::Bytes(back)) if *bytes == back => {}
            (_, told) => return Err(format!("the answer is {told:?}")),
        }
        Ok(())
    }

    fn failed(&mut self, flight: &Flight, error: &ClientError, shared: &mut Shared) -> Result<(), String> {
        let (gone, effect) = match error {
            ClientError::SessionLost(_) => (true, Effect::Unknown),
            ClientError::Remote(e) => {
                let expected = match e.code {
                    ErrorCode::Cancelled => flight.cancelled,
                    // Slices or frames were corrupted more often than anybody is patient.
                    ErrorCode::Corrupt => true,
                    ErrorCode::NoSuchName => match flight.what {
                        What::Lookup { name } => !shared.names[name].is_set(flight.began),
                        _ => false,
                    },
                    ErrorCode::StalePosition => false,
                    _ => false,
                };
                if !expected {
                    return Err(format!("failed: {error}"));
                }
                (false, e.effect)
            }
            ClientError::Corrupt(_) => (false, Effect::None),
            _ => return Err(format!("failed: {error}")),
        };
        let nothing = effect == Effect::None;
        match &flight.what {
            What::New { tag, name: Some(name), .. } if nothing => shared.names[*name].void(*tag),
            _ if gone => {}
            What::Write { tensor, tag } if nothing => self.tensor(*tensor)?.value.void(*tag),
            What::Free { tensor } if nothing => self.tensor(*tensor)?.freed = false,
            What::Run { cache } => {
                let cache = self.cache(*cache)?;
                if nothing { cache.begun -= 1 } else { cache.unknown += 1 }
            }
            What::Generate { cache, prompt, new } => {
                let grown = if nothing { 0 } else { prompt + new };
                let cache = self.cache(*cache)?;
                cache.most += grown;
                cache.exclusive = false;
            }
            What::Bind { cache } | What::Fork { cache } | What::Truncate { cache, .. } => {
                if !nothing {
                    return Err(format!("its effect is unknown: {error}"));
                }
                self.cache(*cache)?.exclusive = false;
            }
            _ => {}
        }
        Ok(())
    }

    fn add_tensor(&mut self, handle: Handle, bytes: usize, tags: Vec<u32>, weight: bool, now: Moment) {
        self.last += 1;
        let value = Register::holding(tags, now);
        self.tensors.push(Tensor { number: self.last, handle, bytes, value, weight, freed: false });
    }

    fn add_cache(&mut self, handle: Handle, least: u32, most: u32) {
        self.last += 1;
        self.caches.push(Cache {
            number: self.last,
            handle,
            binding: None,
            least,
            most,
            begun: 0,
            positions: BTreeSet::new(),
            unknown: 0,
            exclusive: false,
            checked: false,
        });
    }

    fn tensor(&mut self, number: u64) -> Result<&mut Tensor, String> {
        self.tensors.iter_mut().find(|t| t.number == number).ok_or_else(|| "a tensor that is gone".to_owned())
    }

    fn cache(&mut self, number: u64) -> Result<&mut Cache, String> {
        self.caches.iter_mut().find(|c| c.number == number).ok_or_else(|| "a cache that is gone".to_owned())
    }
}

impl Cache {
    /// Runs of which the end is known.
    fn ended(&self) -> u32 {
        self.positions.len() as u32 + self.unknown
    }

    /// With nothing in flight: the length is what it was, and one more for each run that ended well.
    fn settle(&mut self) {
        let runs = self.positions.len() as u32;
        self.least += runs;
        self.most += runs + self.unknown;
        self.positions.clear();
        (self.begun, self.unknown) = (0, 0);
    }
}

impl What {
    /// Whether nothing else depends on how it ends.
    fn can_be_abandoned(&self) -> bool {
        let named = matches!(self, Self::New { name: Some(_), .. });
        let alone = matches!(
            self,
            Self::New { .. }
                | Self::Weight { .. }
                | Self::Offer { .. }
                | Self::Write { .. }
                | Self::Read { .. }
                | Self::Copy { .. }
                | Self::Lookup { .. }
                | Self::Echo { .. }
        );
        alone && !named
    }

    fn tensor(&self) -> Option<u64> {
        match self {
            Self::Write { tensor, .. } | Self::Read { tensor, .. } | Self::Copy { tensor } | Self::Free { tensor } => {
                Some(*tensor)
            }
            _ => None,
        }
    }
}

const NAME: [&str; NAMES] = ["first", "second"];

fn size(sim: &mut Sim<Executor>) -> usize {
    let most = 4_u64 << sim.rng().below(13);
    (1 + sim.rng().below(most)) as usize * 4
}

/// One of a few contents, and always the same size for the same content.
fn weight(sim: &mut Sim<Executor>) -> (u32, usize) {
    let which = sim.rng().below(u64::from(WEIGHTS)) as u32;
    (0xffff_0000 + which, 4 * (300 + 9000 * which as usize))
}

fn spec(bytes: usize) -> TensorSpec {
    TensorSpec::new(DType::U8, &[bytes as u64]).expect("a shape")
}
