//! A network that is not there: lanes in memory, virtual time, and every fault that a seed can draw.
//!
//! A [`Sim`] holds one server and any number of clients, all on the caller's thread. The same seed gives the same run, byte
//! for byte and nanosecond for nanosecond: nothing here reads a clock, starts a thread or draws from another generator.
//!
//! What a [`Network`] does to the lanes is what TCP may do to them, and a little more: bytes arrive late and in other pieces
//! than they were sent in; one lane's overtake another's; connections are refused, and cut with bytes still on the way, which
//! each end learns at another time; and bits flip past the link's own checksums.

mod lane;
mod network;
mod rng;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::connection::{
    BulkMachine, Client, ClientError, ClientLane, ClientOptions, ControlLane, Directory, Driver, RequestId, Service,
    Step, Want,
};
use crate::wire::{Effect, Request};
use lane::{Clock, LaneEnd, lane};
pub use network::{Faults, Network};
pub use rng::Rng;

/// Names a client of a [`Sim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(usize);

/// The simulation.
pub struct Sim<S: Service> {
    clock: Clock,
    rng: Rng,
    network: Network,
    faults: Arc<Mutex<Faults>>,
    service: Option<Arc<S>>,
    directory: Arc<Directory>,
    lanes: Vec<ServerLane<S>>,
    clients: Vec<ClientEnd>,
}

impl<S: Service> Sim<S> {
    /// A server and no clients. Time begins at `base`; how it goes on is up to the simulation.
    pub fn new(seed: u64, base: Instant, network: Network, service: Arc<S>) -> Self {
        Self {
            clock: Clock::new(base),
            rng: Rng::new(seed),
            network,
            faults: Arc::default(),
            service: Some(service),
            directory: Arc::default(),
            lanes: Vec::new(),
            clients: Vec::new(),
        }
    }

    /// What time it is.
    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The generator that everything is drawn from; callers draw from it, too.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Changes what the network does to lanes that are opened from now on.
    pub fn set_network(&mut self, network: Network) {
        self.network = network;
    }

    /// What was done to the lanes so far.
    pub fn faults(&self) -> Faults {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, fault: impl FnOnce(&mut Faults)) {
        count(&self.faults, fault);
    }

    /// The server, unless it is down.
    pub fn service(&self) -> Option<&Arc<S>> {
        self.service.as_ref()
    }

    /// The server's process ends on the spot, and another one (or none) takes its place.
    pub fn replace_server(&mut self, service: Option<Arc<S>>) {
        self.count(|f| f.servers_lost += u64::from(self.service.is_some()));
        self.lanes.drain(..).for_each(|lane| lane.end.cut());
        self.directory = Arc::default();
        self.service = service;
    }

    /// A client that begins to connect.
    pub fn connect(&mut self, options: ClientOptions) -> ClientId {
        let client = Client::new(options, self.now());
        self.clients.push(ClientEnd { client, control: None, bulk: Vec::new() });
        ClientId(self.clients.len() - 1)
    }

    /// A client's machine.
    pub fn client(&mut self, id: ClientId) -> &mut Client {
        &mut self.clients[id.0].client
    }

    /// Cuts all lanes of a client; bytes on the way may be lost.
    pub fn cut(&mut self, id: ClientId) {
        let end = &self.clients[id.0];
        end.control.iter().chain(end.bulk.iter().map(|lane| &lane.end)).for_each(LaneEnd::cut);
    }

    /// Does something to one of a client's bulk lanes, if it has any: cuts it, or lets it stand. Whether it had one.
    pub fn break_lane(&mut self, id: ClientId, cut: bool) -> bool {
        let bulk = &self.clients[id.0].bulk;
        if bulk.is_empty() {
            return false;
        }
        let lane = &bulk[self.rng.below(bulk.len() as u64) as usize].end;
        if cut {
            lane.cut()
        } else {
            lane.stand()
        }
        true
    }

    /// Starts a request; its frame goes out at once or with the next step, as drawn.
    pub fn start(&mut self, id: ClientId, request: &Request<'_>, payload: Option<Bytes>) -> RequestId {
        let at_once = self.rng.chance(500_000);
        let now = self.now();
        let end = &mut self.clients[id.0];
        let Some(control) = end.control.as_mut().filter(|_| at_once) else {
            return end.client.start(request, payload, None).0;
        };
        let (request, sent) = end.client.start(request, payload, Some(control));
        if let Err(error) = sent {
            end.lose(&error.to_string(), now);
        }
        request
    }

    /// Moves every byte that can be moved now, and then lets time pass to the next thing that happens, or to `until` if that
    /// comes first. Whether there was anything.
    pub fn step(&mut self, until: Instant) -> bool {
        let mut moved = false;
        while self.turn() {
            moved = true;
        }
        match self.next_event().filter(|&next| next < until) {
            Some(next) => {
                self.clock.advance_to(next);
                true
            }
            None => {
                self.clock.advance_to(until);
                moved
            }
        }
    }

    /// One round over all ends, beginning at a drawn one.
    fn turn(&mut self) -> bool {
        let now = self.now();
        let mut moved = false;
        let ends = self.lanes.len() + self.clients.len();
        let first = self.rng.below(ends.max(1) as u64) as usize;
        for i in 0..ends {
            let i = (first + i) % ends;
            match i.checked_sub(self.lanes.len()) {
                None => {
                    if let Some(service) = &self.service {
                        moved |= self.lanes[i].turn(service, &mut self.rng, now);
                    }
                }
                Some(client) => moved |= self.turn_client(client, now),
            }
        }
        self.lanes.retain(|lane| !matches!(lane.state, LaneState::Over));
        moved
    }

    fn turn_client(&mut self, client: usize, now: Instant) -> bool {
        let Self { clock, rng, network, faults, service, directory, lanes, clients } = self;
        let end = &mut clients[client];
        let connected = end.control.is_some();
        let mut dial = || -> Option<LaneEnd> {
            let service = service.as_ref()?;
            if rng.chance(network.refuse) {
                count(faults, |f| f.refused += 1);
                return None;
            }
            let (here, there) = lane(clock, network, rng, faults);
            lanes.push(ServerLane::accept(there, service, directory, now));
            Some(here)
        };
        // Lanes are opened first: what moves bytes needs the generator.
        let opened = end.open_lanes(&mut dial, faults, now);
        if end.control.is_some() && !connected {
            count(faults, |f| f.connections += 1);
        }
        match opened.and_then(|opened| Ok(end.turn(rng, faults, now)? || opened)) {
            Ok(moved) => moved,
            Err(error) => {
                end.lose(&error.to_string(), now);
                true
            }
        }
    }

    /// When something happens next, if nobody does anything.
    fn next_event(&self) -> Option<Instant> {
        let now = self.now();
        let soon = now + Duration::from_millis(1);
        let arrivals = self.lanes.iter().flat_map(|lane| lane.end.arrivals());
        let inbound = self.clients.iter().flat_map(ClientEnd::ends).flat_map(LaneEnd::arrivals);
        let deadlines = self.clients.iter().flat_map(ClientEnd::deadlines);
        let timeouts = self.lanes.iter().filter_map(|lane| lane.deadline(now));
        // A deadline that has come and changed nothing is looked at again a little later.
        let later = deadlines.chain(timeouts).map(|at| if at <= now { soon } else { at });
        arrivals.chain(inbound).filter(|&at| at > now).chain(later).min()
    }
}

fn count(faults: &Mutex<Faults>, fault: impl FnOnce(&mut Faults)) {
    fault(&mut faults.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Wakes nobody: every lane is looked at in every turn.
struct Always;

impl Driver for Always {
    fn wake(&self) {}
}

/// The server's end of a lane.
struct ServerLane<S: Service> {
    end: LaneEnd,
    state: LaneState<S>,
}

enum LaneState<S: Service> {
    Control(Box<ControlLane<S>>),
    Bulk(Box<BulkMachine>),
    Over,
}

impl<S: Service> ServerLane<S> {
    fn accept(end: LaneEnd, service: &Arc<S>, directory: &Arc<Directory>, now: Instant) -> Self {
        let (service, directory, sink) = (service.clone(), directory.clone(), Box::new(end.clone()));
        let state = match ControlLane::new(service, directory, sink, Arc::new(Always), now) {
            Some(control) => LaneState::Control(Box::new(control)),
            None => LaneState::Over,
        };
        Self { end, state }
    }

    fn turn(&mut self, service: &Arc<S>, rng: &mut Rng, now: Instant) -> bool {
        let moved = match &mut self.state {
            LaneState::Control(control) => control_turn(control, &self.end, rng, now),
            LaneState::Bulk(lane) => {
                let moved = bulk_turn(lane, &mut self.end, &**service, rng, now);
                match moved {
                    Ok(moved) => return moved,
                    Err(error) => {
                        if let LaneState::Bulk(lane) = std::mem::replace(&mut self.state, LaneState::Over) {
                            lane.end(&**service, &error.to_string(), now);
                        }
                        Err(error)
                    }
                }
            }
            LaneState::Over => return false,
        };
        match moved {
            Ok((moved, None)) => moved,
            Ok((_, Some(Step::Bulk(seat)))) => {
                let lane = BulkMachine::new(seat, Arc::new(Always), service.settings(), now);
                self.state = LaneState::Bulk(Box::new(lane));
                true
            }
            Ok((_, Some(_))) | Err(_) => {
                self.end(now);
                true
            }
        }
    }

    fn end(&mut self, now: Instant) {
        match std::mem::replace(&mut self.state, LaneState::Over) {
            LaneState::Control(mut control) => {
                if let Some(peer) = control.peer() {
                    // Last words; whether they are taken does not matter any more.
                    let _ = peer.flush();
                }
                control.closed(now);
            }
            LaneState::Bulk(_) | LaneState::Over => {}
        }
        self.end.close();
    }

    fn deadline(&self, now: Instant) -> Option<Instant> {
        match &self.state {
            LaneState::Control(control) => Some(control.deadline()),
            LaneState::Bulk(lane) => Some(lane.deadline(now)),
            LaneState::Over => None,
        }
    }
}

fn control_turn<S: Service>(
    control: &mut ControlLane<S>,
    end: &LaneEnd,
    rng: &mut Rng,
    now: Instant,
) -> io::Result<(bool, Option<Step>)> {
    let mut moved = false;
    if let Some(peer) = control.peer() {
        if peer.is_closed() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let before = peer.backlog();
        peer.flush()?;
        moved = peer.backlog() < before;
    }
    if control.is_held() {
        let step = control.timeout(now);
        return Ok((moved, (!matches!(step, Step::Continue)).then_some(step)));
    }
    let received = if control.has_pending() { Ok(None) } else { receive(end, rng, control.space()).map(Some) };
    let step = match received {
        Ok(None) => {
            moved = true;
            control.filled(0, now)
        }
        Ok(Some(0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(Some(n)) => {
            moved = true;
            control.filled(n, now)
        }
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => control.timeout(now),
        Err(e) => return Err(e),
    };
    Ok((moved, (!matches!(step, Step::Continue)).then_some(step)))
}

fn bulk_turn<S: Service>(
    lane: &mut BulkMachine,
    end: &mut LaneEnd,
    service: &S,
    rng: &mut Rng,
    now: Instant,
) -> io::Result<bool> {
    if lane.is_over() {
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it was taken out"));
    }
    lane.poll(service, now);
    let read = read_bulk(lane.want(), end, rng)?;
    let mut moved = match read {
        Read::Nothing => {
            lane.idle();
            false
        }
        Read::Bytes(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Read::Bytes(n) => {
            lane.filled(n).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            lane.poll(service, now);
            true
        }
    };
    let before = end.sent();
    lane.flush(end, now)?;
    moved |= end.sent() > before;
    match lane.overdue(now) {
        Some(why) => Err(io::Error::new(io::ErrorKind::TimedOut, why)),
        None => Ok(moved),
    }
}

enum Read {
    Nothing,
    /// 0: the other side has closed.
    Bytes(usize),
}

/// Reads into what a bulk lane wants: the first buffer, and once that is full the second.
fn read_bulk(want: Want<'_>, end: &LaneEnd, rng: &mut Rng) -> io::Result<Read> {
    let Want::Read { first, then } = want else {
        end.count(|f| f.overtakings += 1);
        return Ok(Read::Nothing);
    };
    let whole = first.len();
    let n = match receive(end, rng, first) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Nothing),
        n => n?,
    };
    // An end that comes after these bytes is seen with the next call.
    let more = if n > 0 && n == whole && !then.is_empty() { receive(end, rng, then).unwrap_or(0) } else { 0 };
    Ok(Read::Bytes(n + more))
}

/// Reads what has arrived, or a part of it. 0: the other side has closed.
fn receive(end: &LaneEnd, rng: &mut Rng, buf: &mut [u8]) -> io::Result<usize> {
    let part = rng.chance(end.split());
    let most = if part { 1 + rng.below(buf.len() as u64) as usize } else { buf.len() };
    let n = end.receive(&mut buf[..most])?;
    if part && n == most {
        end.count(|f| f.partial_receives += 1);
    }
    Ok(n)
}

/// A client with its ends of the lanes.
struct ClientEnd {
    client: Client,
    control: Option<LaneEnd>,
    bulk: Vec<BulkEnd>,
}

/// A client's end of a bulk lane.
struct BulkEnd {
    end: LaneEnd,
    lane: ClientLane,
}

impl ClientEnd {
    /// Opens what the client wants open. Whether anything was.
    fn open_lanes(
        &mut self,
        dial: &mut dyn FnMut() -> Option<LaneEnd>,
        faults: &Mutex<Faults>,
        now: Instant,
    ) -> Result<bool, ClientError> {
        if self.client.dead().is_some() {
            self.close();
            return Ok(false);
        }
        let mut opened = false;
        if self.control.is_none() && self.client.wants_connection(now) {
            self.control = dial();
            match &self.control {
                Some(_) => self.client.connected(now),
                None => return Err(unreachable("connection refused")),
            }
            opened = true;
        }
        while self.control.is_some()
            && let Some(number) = self.client.next_lane(now)
        {
            match dial() {
                Some(end) => {
                    let instead = number > self.client.wants_lanes();
                    count(faults, |f| f.lanes_reopened += u64::from(instead));
                    self.bulk.push(BulkEnd { end, lane: ClientLane::new(&self.client, number, now) });
                }
                None => {
                    count(faults, |f| f.lanes_lost += 1);
                    self.client.lane_over(number, 0, "connection refused", now);
                }
            }
            opened = true;
        }
        Ok(opened)
    }

    fn turn(&mut self, rng: &mut Rng, faults: &Mutex<Faults>, now: Instant) -> Result<bool, ClientError> {
        let Self { client, control, bulk } = self;
        let Some(control) = control else { return Ok(false) };
        let mut moved = false;
        client.timeout(now)?;
        if client.has_output() {
            let before = control.sent();
            client.flush(control).map_err(|e| unreachable(&e.to_string()))?;
            moved = control.sent() > before;
        }
        match receive(control, rng, client.space()) {
            Ok(0) => return Err(unreachable("the server closed the connection")),
            Ok(n) => {
                moved = true;
                client.filled(n, now)?;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(unreachable(&e.to_string())),
        }
        bulk.retain_mut(|lane| {
            let over = match lane.turn(client, rng, now) {
                _ if lane.lane.is_over(client) => "it was taken out".to_owned(),
                Ok(did) => {
                    moved |= did;
                    return true;
                }
                Err(error) => error.to_string(),
            };
            lane.end.close();
            count(faults, |f| f.lanes_lost += 1);
            client.lane_over(lane.lane.lane(), lane.lane.came(), &over, now);
            moved = true;
            false
        });
        Ok(moved)
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let lanes = self.bulk.iter().filter_map(|lane| lane.lane.deadline(&self.client));
        self.client.deadline().into_iter().chain(lanes)
    }

    /// The connection is gone.
    fn lose(&mut self, reason: &str, now: Instant) {
        self.close();
        self.client.lost(reason, now);
    }

    fn close(&mut self) {
        if let Some(mut control) = self.control.take() {
            // Last words, if any; whether they are taken does not matter any more.
            let _ = self.client.flush(&mut control);
            control.close();
        }
        self.bulk.drain(..).for_each(|lane| lane.end.close());
    }

    fn ends(&self) -> impl Iterator<Item = &LaneEnd> {
        self.control.iter().chain(self.bulk.iter().map(|lane| &lane.end))
    }
}

impl BulkEnd {
    fn turn(&mut self, client: &mut Client, rng: &mut Rng, now: Instant) -> Result<bool, ClientError> {
        self.lane.timeout(client, now)?;
        let moved = self.lane.flush(client, &mut self.end, now).map_err(|e| unreachable(&e.to_string()))?;
        let read = read_bulk(self.lane.want(client, now), &self.end, rng).map_err(|e| unreachable(&e.to_string()))?;
        match read {
            Read::Nothing => self.lane.idle(),
            Read::Bytes(n) => self.lane.filled(n, client, now)?,
        }
        Ok(moved || matches!(read, Read::Bytes(_)))
    }
}

fn unreachable(reason: &str) -> ClientError {
    ClientError::Unreachable { reason: reason.into(), effect: Effect::Unknown }
}
