//! What a user asks for.

use std::sync::Arc;

use bytes::Bytes;
use genie_executor::Executor;
use genie_graph::DType;
use genie_tests::graphs::{Tiny, VOCABULARY, WIDTH};
use genie_transport::connection::RequestId;
use genie_transport::link::sim::Sim;
use genie_transport::memory::{Landing, Slab};
use genie_transport::wire::{
    Arguments, BindEntry, ContentHash, Handle, HandleSpan, PutBody, PutRequest, PutTarget, Request, ResidencyCode,
    TensorSpec,
};

use super::{Flight, Tensor, User, What};
use crate::register::tagged;
use crate::world::{NAMES, Shared};

const SLICE: u32 = 4096;
/// Contents that any user may put as a weight.
const WEIGHTS: u32 = 3;
/// As many of them are offered as a set.
const SET: u32 = 2;

impl User {
    pub(super) fn ask_something(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
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
            13 if shared.sets && sim.rng().chance(500_000) => {
                let members: Vec<_> = (0..SET).map(weight_of).collect();
                let hash = ContentHash::of_set(&entries(&members));
                self.ask(sim, shared, &Request::OfferSet { device: 0, hash }, What::OfferSet { members });
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
            let mut bound = vec![BindEntry { input: model.cache, handle }];
            let weights = if shared.sets { HandleSpan::of([table]) } else { Vec::new() };
            if !shared.sets {
                bound.insert(0, BindEntry { input: model.table, handle: table });
            }
            let (count, bytes) = model.greedy();
            let arguments = Arguments::new(count, &bytes).expect("the fixed inputs");
            return self.ask(
                sim,
                shared,
                &Request::Bind { program, bound, weights, arguments },
                What::Bind { cache: number },
            );
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

    /// A run; and perhaps others behind it.
    fn run(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, number: u64, binding: Handle) {
        self.run_once(sim, shared, number, binding);
        while self.ahead && sim.rng().chance(600_000) {
            self.run_once(sim, shared, number, binding);
        }
    }

    fn run_once(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, number: u64, binding: Handle) {
        let Some(cache) = self.caches.iter_mut().find(|c| c.number == number) else { return };
        if cache.begun == cache.ended() {
            cache.settle();
        }
        cache.begun += 1;
        let under_way = |f: &&Flight| matches!(f.what, What::Run { cache, .. } if cache == number);
        let last = self.flights.iter().filter(under_way).map(|f| f.request.0).max();
        let on = last.filter(|_| self.ahead && sim.rng().chance(700_000));
        let bytes = match on {
            Some(request) => shared.model.token_of(request),
            None => shared.model.run_arguments(&[(number % VOCABULARY) as i32]),
        };
        let arguments = Arguments::new(1, &bytes).expect("a token");
        let request = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments };
        self.ask(sim, shared, &request, What::Run { cache: number, on: on.is_some() });
    }

    /// One more look at everything.
    pub(super) fn ask_the_last(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
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

    pub(super) fn put_weight(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, content: Vec<u8>, what: What) {
        let hash = Some(ContentHash::of(&content));
        let target = PutTarget::New { device: 0, residency: ResidencyCode::Weight, hash, name: None };
        self.put(sim, shared, target, content, what);
    }

    /// What is asked where a set is not known: which of its weights there are.
    pub(super) fn offer_all(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared, members: Vec<(u32, usize)>) {
        let entries = entries(&members);
        self.ask(sim, shared, &Request::Offer { device: 0, entries }, What::OfferAll { members });
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
}

const NAME: [&str; NAMES] = ["first", "second"];

fn size(sim: &mut Sim<Executor>) -> usize {
    let most = 4_u64 << sim.rng().below(13);
    (1 + sim.rng().below(most)) as usize * 4
}

/// One of a few contents, and always the same size for the same content.
fn weight(sim: &mut Sim<Executor>) -> (u32, usize) {
    weight_of(sim.rng().below(u64::from(WEIGHTS)) as u32)
}

fn weight_of(which: u32) -> (u32, usize) {
    (0xffff_0000 + which, 4 * (300 + 9000 * which as usize))
}

fn entries(members: &[(u32, usize)]) -> Vec<(ContentHash, TensorSpec)> {
    members.iter().map(|&(tag, bytes)| (ContentHash::of(&tagged(tag, bytes)), spec(bytes))).collect()
}

fn spec(bytes: usize) -> TensorSpec {
    TensorSpec::new(DType::U8, &[bytes as u64]).expect("a shape")
}
