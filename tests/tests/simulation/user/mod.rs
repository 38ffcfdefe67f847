//! One client's work, and what it believes about the server.

mod ask;
mod cache;
mod outcome;

use std::sync::Arc;

use genie_executor::Executor;
use genie_tests::answer::{Outcome, Told, own};
use genie_transport::connection::RequestId;
use genie_transport::link::sim::{ClientId, Sim};
use genie_transport::memory::Landing;
use genie_transport::wire::Handle;

use crate::register::{Moment, Register};
use crate::world::Shared;
use cache::Cache;

pub(crate) struct User {
    pub(crate) id: ClientId,
    todo: u32,
    most: usize,
    /// Whether it asks for runs on tokens that are yet to come.
    ahead: bool,
    lost: u64,
    /// The session's connection, as far as the user has noticed: whether there is one, and whether there was.
    ready: bool,
    was_ready: bool,
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

struct Flight {
    request: RequestId,
    what: What,
    began: Moment,
    landing: Option<Arc<Landing>>,
    cancelled: bool,
    tokens: Vec<i32>,
}

/// `on` of a run: on the token of another that was not answered.
#[derive(Clone, Debug)]
enum What {
    Table,
    Define,
    New { tag: u32, bytes: usize, name: Option<usize> },
    Weight { tag: u32, bytes: usize },
    Offer { tag: u32, bytes: usize },
    OfferSet { members: Vec<(u32, usize)> },
    OfferAll { members: Vec<(u32, usize)> },
    Write { tensor: u64, tag: u32 },
    Read { tensor: u64, bytes: usize },
    Copy { tensor: u64 },
    Free { tensor: u64 },
    Lookup { name: usize },
    CreateCache,
    Bind { cache: u64 },
    Run { cache: u64, on: bool },
    Generate { cache: u64, prompt: u32, new: u32 },
    Fork { cache: u64 },
    Truncate { cache: u64, length: u32 },
    Echo { bytes: Vec<u8> },
}

impl User {
    pub(crate) fn new(id: ClientId, todo: u32, most: usize, ahead: bool) -> Self {
        Self {
            id,
            todo,
            most,
            ahead,
            lost: 0,
            ready: false,
            was_ready: false,
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
        self.notice(sim, shared);
        let mut at = 0;
        while at < self.flights.len() {
            match self.listen(at, sim, shared) {
                None => at += 1,
                Some(outcome) => {
                    let flight = self.flights.swap_remove(at);
                    sim.client(self.id).end(flight.request);
                    shared.asked.ended += 1;
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
            shared.asked.sessions_lost += 1;
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
            shared.asked.cancelled += 1;
            let request = flight.request;
            shared.tell(|| format!("user {:?}: cancels {}", self.id, request.0));
            sim.client(self.id).cancel(request);
        }
        if !self.flights.is_empty() && sim.rng().chance(2_000) && !self.winding_up {
            let at = sim.rng().below(self.flights.len() as u64) as usize;
            if self.flights[at].what.can_be_abandoned() {
                let flight = self.flights.swap_remove(at);
                shared.asked.cancelled += 1;
                shared.tell(|| format!("user {:?}: no longer waits for {}", self.id, flight.request.0));
                sim.client(self.id).end(flight.request);
            }
        }
        Ok(self.todo > 0 || !self.flights.is_empty())
    }

    /// Counts connections that were lost and came back with the session.
    fn notice(&mut self, sim: &mut Sim<Executor>, shared: &mut Shared) {
        let ready = sim.client(self.id).is_ready();
        if ready && !self.ready && self.was_ready && sim.client(self.id).sessions_lost() == self.lost {
            shared.asked.resumed += 1;
            shared.asked.repeated += self.flights.len() as u64;
        }
        self.ready = ready;
        self.was_ready |= ready;
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

    fn add_tensor(&mut self, handle: Handle, bytes: usize, tags: Vec<u32>, weight: bool, now: Moment) {
        self.last += 1;
        let value = Register::holding(tags, now);
        self.tensors.push(Tensor { number: self.last, handle, bytes, value, weight, freed: false });
    }

    fn add_cache(&mut self, handle: Handle, least: u32, most: u32) {
        self.last += 1;
        self.caches.push(Cache::new(self.last, handle, least, most));
    }

    fn tensor(&mut self, number: u64) -> Result<&mut Tensor, String> {
        self.tensors.iter_mut().find(|t| t.number == number).ok_or_else(|| "a tensor that is gone".to_owned())
    }

    fn cache(&mut self, number: u64) -> Result<&mut Cache, String> {
        self.caches.iter_mut().find(|c| c.number == number).ok_or_else(|| "a cache that is gone".to_owned())
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
                | Self::OfferSet { .. }
                | Self::OfferAll { .. }
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
