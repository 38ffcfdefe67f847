//! The client's side of a bulk lane: writes slices where the server grants it, reads them where it offers them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdma_sys::ibv_sge;

use super::cache::{Cache, STARVED};
use super::connecting::Connecting;
use super::faults::WRITE_AGAIN;
use super::lane::Lane;
use super::verbs::Registration;
use crate::connection::{BulkEvent, Client, ClientError, Framer, LaneCounts, Outbox, Place, Taken};
use crate::link::wait::Interest;
use crate::link::{Bulk, Stream};
use crate::memory::{Claim, Slab, SliceLease, copy_counted};
use crate::wire::{
    Control, DecodeError, Effect, ErrorCode, Flags, Heads, OneSided, Piece, Pieces, SLICE_FRAME_BYTES, SliceHead,
    body_crc, encode_header,
};

/// Lanes are opened within this time, or the connection is given up.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a slice may wait for another lane that is writing the same one.
const TURN: Duration = Duration::from_millis(50);

/// Pieces of this side's memory in one request.
const GATHERED: usize = 8;

pub(super) struct Pulling {
    /// The lane's, in its connection.
    number: u32,
    state: State,
}

enum State {
    Connecting(Box<Connecting>),
    /// Hello is sent, the welcome has not come.
    Opening {
        lane: Arc<Lane>,
        framer: Framer,
        until: Instant,
    },
    // Dropped by `Pulling` in this order, after the queue pair went down.
    Open(Arc<Lane>, Box<Work>),
}

struct Work {
    counts: Arc<LaneCounts>,
    framer: Framer,
    heads: Option<Heads>,
    out: Outbox,
    /// Rights to write that wait for their transfer: its request has not been told to begin yet, or is over.
    grants: Vec<Grant>,
    /// Slices that can be read, and wait for their place.
    readable: Vec<Readable>,
    /// Operations in flight, in the order in which they complete: what their memory needs to stay.
    flight: VecDeque<(u64, Flight)>,
    last: u64,
    /// There was no room to copy a slice through: when to look again, should it be another lane that makes some.
    starved: Option<Instant>,
    /// The last right that was used, for [`WRITE_AGAIN`].
    used: Option<Piece>,
}

#[derive(Clone, Copy)]
struct Grant {
    transfer: u64,
    offset: u64,
    total: u64,
    len: u32,
    window: u8,
    pieces: Pieces,
}

#[derive(Clone, Copy)]
struct Readable {
    head: SliceHead,
    window: u8,
    pieces: Pieces,
    until: Option<Instant>,
}

enum Flight {
    Writing { _registrations: Vec<Arc<Registration>>, _staged: Option<Slab>, _slice: Option<Taken> },
    Reading { lease: SliceLease, staged: Option<Slab>, window: u8, _registrations: Vec<Arc<Registration>> },
}

/// This side's memory of one slice: its pieces, what registers them, and the slab that it is copied through, if it is.
struct Reached {
    list: Vec<ibv_sge>,
    registrations: Vec<Arc<Registration>>,
    staged: Option<Slab>,
}

impl Reached {
    /// Memory where it lies: all of it, or nothing.
    fn there(pieces: impl Iterator<Item = io::Result<(*const u8, usize, Arc<Registration>)>>) -> io::Result<Self> {
        let (mut list, mut registrations) = (Vec::with_capacity(1), Vec::with_capacity(1));
        for piece in pieces {
            let (at, len, registration) = piece?;
            list.push(ibv_sge { addr: at as u64, length: len as u32, lkey: registration.local() });
            registrations.push(registration);
        }
        Ok(Self { list, registrations, staged: None })
    }

    /// A slab in its place. `None`: not now.
    fn staged(cache: &Cache, len: usize, why: &io::Error) -> io::Result<Option<Self>> {
        tracing::debug!(%why, "a slice is copied, since its memory cannot be registered");
        let Some((slab, registration)) = cache.staging(len)? else { return Ok(None) };
        let list = vec![ibv_sge { addr: slab.as_ptr() as u64, length: len as u32, lkey: registration.local() }];
        Ok(Some(Self { list, registrations: vec![registration], staged: Some(slab) }))
    }
}

impl Pulling {
    /// Bulk lane `number`, over what is on its way to the server.
    pub(super) fn new(connecting: Connecting, number: u32) -> Self {
        Self { number, state: State::Connecting(Box::new(connecting)) }
    }

    /// Greets the server, once there is a connection.
    fn greet(&mut self, client: &Client, now: Instant) -> io::Result<bool> {
        let State::Connecting(connecting) = &mut self.state else { return Ok(false) };
        let Some(lane) = connecting.turn(now)? else { return Ok(false) };
        if let Some(hello) = client.lane_hello(self.number) {
            let sent = lane.send(&[IoSlice::new(&hello)])?;
            client.counters().up.fetch_add(sent as u64, Ordering::Relaxed);
        }
        let until = now + GREETING_TIMEOUT;
        self.state = State::Opening { lane: Arc::new(lane), framer: Framer::new(0), until };
        Ok(true)
    }

    fn lane_of(&self) -> Option<&Arc<Lane>> {
        match &self.state {
            State::Connecting(_) => None,
            State::Opening { lane, .. } | State::Open(lane, _) => Some(lane),
        }
    }

    fn welcomed(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        let State::Opening { lane, framer, until } = &mut self.state else { return Ok(false) };
        // More frames may follow at once: they are not this framer's to take.
        match lane.recv(framer.space_of_frame(), &mut []) {
            Ok(0) => return Err(gone(&io::ErrorKind::ConnectionAborted.into())),
            Ok(n) => {
                client.counters().down.fetch_add(n as u64, Ordering::Relaxed);
                framer.filled(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && now < *until => return Ok(false),
            Err(e) => return Err(gone(&e)),
        }
        let Some(frame) = framer.next_frame()? else { return Ok(true) };
        frame.intact.map_err(DecodeError::from)?;
        match Control::decode(&frame.header, frame.meta)? {
            Control::LaneWelcome(number) if number == self.number => {}
            Control::Goodbye(error) => {
                if error.code == ErrorCode::Busy {
                    client.lane_refused(self.number, now);
                }
                return Err(error.into());
            }
            _ => return Err(DecodeError::Range("a bulk lane was not welcomed").into()),
        }
        client.lane_opened(self.number);
        let (lane, work) = (lane.clone(), Work::new(client.lane_counts(self.number)));
        self.state = State::Open(lane, Box::new(work));
        Ok(true)
    }
}

impl Bulk for Pulling {
    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        match &mut self.state {
            State::Connecting(_) => self.greet(client, now).map_err(|e| gone(&e)),
            State::Opening { .. } => self.welcomed(client, now),
            State::Open(lane, work) => {
                let moved = work.turn(lane, client, now)?;
                client.lane_idles(self.number, work.flight.is_empty() && work.readable.is_empty());
                Ok(moved)
            }
        }
    }

    fn lane(&self) -> u32 {
        self.number
    }

    /// Slices land in any order: what a lane loses is all sent again, and what had landed is passed over.
    fn came(&self) -> u64 {
        0
    }

    fn arm(&mut self, _client: &Client, out: &mut Vec<Interest>) -> bool {
        if let State::Connecting(connecting) = &self.state {
            out.extend(connecting.interest());
        }
        let Some(lane) = self.lane_of() else { return false };
        out.push(lane.interest(true, false));
        lane.arm(true, false)
    }

    fn disarm(&mut self) {
        if let Some(lane) = self.lane_of() {
            lane.disarm();
        }
    }

    fn deadline(&self, _client: &Client) -> Option<Instant> {
        match &self.state {
            State::Connecting(connecting) => Some(connecting.until()),
            State::Opening { until, .. } => Some(*until),
            State::Open(_, work) => {
                let turns = work.readable.iter().filter_map(|r| r.until).min();
                work.starved.into_iter().chain(turns).min()
            }
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        // The device is done with all memory before `flight` gives it back.
        if let Some(lane) = self.lane_of() {
            lane.endpoint().shut();
        }
    }
}

impl Work {
    fn new(counts: Arc<LaneCounts>) -> Self {
        Self {
            counts,
            framer: Framer::new(0),
            heads: None,
            out: Outbox::default(),
            grants: Vec::new(),
            readable: Vec::new(),
            flight: VecDeque::new(),
            last: 0,
            starved: None,
            used: None,
        }
    }

    fn turn(&mut self, lane: &Lane, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        lane.endpoint().poll().map_err(|e| gone(&e))?;
        let mut moved = self.completed(lane, client);
        self.write_again(lane).map_err(|e| gone(&e))?;
        moved |= self.hear(lane, client)?;
        self.starved = None;
        moved |= self.write(lane, client, now)?;
        moved |= self.read(lane, client, now)?;
        let mut sink: &dyn Stream = lane;
        let waiting = self.out.waiting();
        self.out.flush(&mut sink).map_err(|e| gone(&e))?;
        client.counters().up.fetch_add((waiting - self.out.waiting()) as u64, Ordering::Relaxed);
        lane.endpoint().failure().map_err(|e| gone(&e))?;
        if self.flight.is_empty() && client.bulk().is_empty() {
            lane.membership().cache.idle();
        }
        Ok(moved)
    }

    /// What the server says in frames.
    fn hear(&mut self, lane: &Lane, client: &Client) -> Result<bool, ClientError> {
        let mut any = false;
        loop {
            match lane.recv(self.framer.space(), &mut []) {
                Ok(0) => return Err(gone(&io::ErrorKind::ConnectionAborted.into())),
                Ok(n) => {
                    client.counters().down.fetch_add(n as u64, Ordering::Relaxed);
                    self.framer.filled(n);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(e) => return Err(gone(&e)),
            }
            any = true;
            let mut framer = std::mem::replace(&mut self.framer, Framer::new(0));
            let heard = self.frames(&mut framer);
            self.framer = framer;
            heard?;
        }
    }

    fn frames(&mut self, framer: &mut Framer) -> Result<(), ClientError> {
        while let Some(frame) = framer.next_frame()? {
            frame.intact.map_err(DecodeError::from)?;
            match OneSided::decode(&frame.header, frame.meta)? {
                OneSided::Heads(heads) if self.heads.is_none() => self.heads = Some(heads),
                OneSided::Grant { transfer, offset, total, len, window, pieces } => {
                    let heads = self.heads.ok_or(DecodeError::Range("a grant before there are windows"))?;
                    let twice = self.grants.iter().any(|g| g.window == window);
                    if u32::from(window) >= heads.count || twice {
                        return Err(DecodeError::Range("a grant of a window that there is not").into());
                    }
                    self.grants.push(Grant { transfer, offset, total, len, window, pieces });
                }
                OneSided::Recall(window) => {
                    // What was written already ends by its immediate.
                    if let Some(at) = self.grants.iter().position(|g| g.window == window) {
                        self.grants.remove(at);
                        self.say(&OneSided::Release { window, read: false });
                    }
                }
                OneSided::Readable { head, window, pieces } => {
                    let twice = self.readable.iter().any(|r| r.window == window);
                    if twice || self.readable.len() >= crate::wire::WINDOWS as usize {
                        return Err(DecodeError::Range("a slice is offered in a window that is taken").into());
                    }
                    self.readable.push(Readable { head, window, pieces, until: None });
                }
                _ => return Err(DecodeError::Range("a message that only a client sends").into()),
            }
        }
        Ok(())
    }

    /// Writes every slice that is granted, and whose transfer is on its way out.
    fn write(&mut self, lane: &Lane, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        let mut any = false;
        let mut at = 0;
        while at < self.grants.len() {
            let (ready, room) = {
                let endpoint = lane.endpoint();
                (endpoint.has_credit(), endpoint.room())
            };
            if !ready || room < 64 {
                break;
            }
            let grant = self.grants[at];
            let Some(slice) = client.bulk().slice(grant.transfer, grant.offset, grant.len, grant.total) else {
                if client.bulk().has(grant.transfer) {
                    return Err(DecodeError::Range("a grant that does not fit its put").into());
                }
                at += 1;
                continue;
            };
            if !self.write_one(lane, &grant, slice).map_err(|e| gone(&e))? {
                self.starved = Some(now + STARVED);
                break;
            }
            self.grants.remove(at);
            self.counts.up.fetch_add(u64::from(grant.len) + SLICE_FRAME_BYTES as u64, Ordering::Relaxed);
            self.counts.slices_up.fetch_add(1, Ordering::Relaxed);
            client.counters().up.fetch_add(u64::from(grant.len) + SLICE_FRAME_BYTES as u64, Ordering::Relaxed);
            client.lane_carries();
            any = true;
        }
        Ok(any)
    }

    /// Whether it is on its way. Otherwise there is no room to copy it through: what is under way makes some.
    fn write_one(&mut self, lane: &Lane, grant: &Grant, slice: Taken) -> io::Result<bool> {
        let Some(heads) = self.heads else { return Ok(true) };
        let cache = &lane.membership().cache;
        let head = slice.head();
        let there = Reached::there(slice.pieces.iter().map(|(bytes, part)| {
            let view = bytes.get(part.clone()).unwrap_or_default();
            cache.to_send(bytes, part).map(|registration| (view.as_ptr(), view.len(), registration))
        }));
        let reached = match there {
            Ok(reached) => Some(reached),
            // Memory that cannot be locked, or no more of it.
            Err(why) => Reached::staged(cache, grant.len as usize, &why)?,
        };
        let Some(Reached { list, registrations, mut staged }) = reached else { return Ok(false) };
        if let Some(slab) = &mut staged {
            let mut filled = 0;
            for view in slice.bytes() {
                copy_counted(&mut slab[filled..filled + view.len()], view);
                filled += view.len();
            }
        }
        let mut endpoint = lane.endpoint();
        let token = self.last;
        self.last += 1;
        let held = Flight::Writing {
            _registrations: registrations,
            _slice: staged.is_none().then_some(slice),
            _staged: staged,
        };
        self.used = grant.pieces.as_slice().first().copied();
        // Before anything is posted: what is posted finds its memory held, come what may.
        self.flight.push_back((token, held));
        for (piece, list) in matched(&list, grant.pieces.as_slice()) {
            // SAFETY: `flight` holds the slice's bytes and their registrations until `token` is done; nobody writes them.
            unsafe { endpoint.post_write(&list, (piece.address, piece.rkey)) }?;
        }
        let place = heads.address + u64::from(grant.window) * 64;
        endpoint.post_head(&head, (place, heads.rkey), grant.window, token)?;
        Ok(true)
    }

    /// Reads every slice that is offered, as soon as it has a place.
    fn read(&mut self, lane: &Lane, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        let mut any = false;
        let mut at = 0;
        while at < self.readable.len() {
            if lane.endpoint().room() < 64 {
                break;
            }
            let head = self.readable[at].head;
            let SliceHead { transfer, offset, .. } = head;
            let claim = match client.landings().find(transfer) {
                Place::Here(landing) => landing.claim(&head),
                // All of this side's transfers are known to it.
                Place::Ended | Place::Unknown => Claim::Duplicate,
            };
            match claim {
                Claim::Lease(lease) => {
                    let Readable { window, pieces, .. } = self.readable[at];
                    if !self.read_one(lane, lease, window, &pieces).map_err(|e| gone(&e))? {
                        self.starved = Some(now + STARVED);
                        break;
                    }
                    self.readable.remove(at);
                    client.counters().down.fetch_add(u64::from(head.len), Ordering::Relaxed);
                    any = true;
                    continue;
                }
                Claim::Busy if *self.readable[at].until.get_or_insert(now + TURN) > now => {
                    at += 1;
                    continue;
                }
                Claim::Busy => client.bulk_event(&BulkEvent::Missed { transfer, offset }),
                Claim::OffGrid => client.bulk_event(&BulkEvent::OffGrid(transfer)),
                Claim::Duplicate => {}
            }
            let Readable { window, .. } = self.readable.remove(at);
            self.say(&OneSided::Release { window, read: true });
            any = true;
        }
        Ok(any)
    }

    /// As [`Self::write_one`].
    fn read_one(&mut self, lane: &Lane, mut lease: SliceLease, window: u8, pieces: &Pieces) -> io::Result<bool> {
        let cache = &lane.membership().cache;
        let there = Reached::there(lease.places().map(|(at, len)| {
            let found = cache.of(at.as_ptr(), len, true)?;
            let found = found.ok_or_else(|| io::Error::other("memory to land in without owner"))?;
            Ok((at.as_ptr().cast_const(), len, found))
        }));
        let reached = match there {
            Ok(reached) => Some(reached),
            Err(why) => Reached::staged(cache, lease.left(), &why)?,
        };
        let Some(Reached { list, registrations, staged }) = reached else { return Ok(false) };
        let mut endpoint = lane.endpoint();
        let token = self.last;
        self.last += 1;
        self.flight.push_back((token, Flight::Reading { lease, staged, window, _registrations: registrations }));
        let requests = matched(&list, pieces.as_slice());
        let last = requests.len();
        for (i, (piece, list)) in requests.into_iter().enumerate() {
            let token = (i + 1 == last).then_some(token);
            // SAFETY: `flight` holds the lease, whose memory is nobody else's, or the slab, and the registration until `token` is done.
            unsafe { endpoint.post_read(&list, (piece.address, piece.rkey), token) }?;
        }
        Ok(true)
    }

    /// Operations whose memory the device is done with.
    fn completed(&mut self, lane: &Lane, client: &mut Client) -> bool {
        let mut any = false;
        loop {
            let Some(token) = lane.endpoint().next_done() else { return any };
            while self.flight.front().is_some_and(|&(t, _)| t <= token) {
                any = true;
                if let Some((_, Flight::Reading { mut lease, staged, window, .. })) = self.flight.pop_front() {
                    lease.fill(staged.as_deref());
                    self.counts.down.fetch_add(u64::from(lease.head().len), Ordering::Relaxed);
                    self.counts.slices_down.fetch_add(1, Ordering::Relaxed);
                    client.lane_carries();
                    let SliceHead { transfer, offset, .. } = *lease.head();
                    if client.is_checked() && !lease.is_intact() {
                        client.bulk_event(&BulkEvent::Corrupt { transfer, offset });
                    } else if lease.landed() {
                        client.bulk_event(&BulkEvent::Complete(transfer));
                    }
                    self.say(&OneSided::Release { window, read: true });
                }
            }
        }
    }

    fn write_again(&mut self, lane: &Lane) -> io::Result<()> {
        if !self.flight.is_empty() || !WRITE_AGAIN.load(Ordering::Acquire) {
            return Ok(());
        }
        let Some(piece) = self.used.take() else { return Ok(()) };
        WRITE_AGAIN.store(false, Ordering::Release);
        let cache = &lane.membership().cache;
        let Some((slab, registration)) = cache.staging(1)? else { return Ok(()) };
        let list = [ibv_sge { addr: slab.as_ptr() as u64, length: 1, lkey: registration.local() }];
        let mut endpoint = lane.endpoint();
        let token = self.last;
        self.last += 1;
        let held = Flight::Writing { _registrations: vec![registration], _staged: Some(slab), _slice: None };
        self.flight.push_back((token, held));
        // SAFETY: `flight` holds the byte that is read for as long as the lane lives, and nobody writes it.
        unsafe { endpoint.post_write(&list, (piece.address, piece.rkey)) }
    }

    fn say(&mut self, message: &OneSided) {
        let mut meta = Vec::with_capacity(64);
        let (kind, id) = message.encode(&mut meta);
        let head = encode_header(kind, Flags::default(), id, meta.len() as u32, 0, body_crc(&meta, &[]));
        self.out.push(&head, &meta, &[]);
    }
}

/// Which pieces of this side's memory go with which of the peer's. Both have the same bytes in all.
fn matched(ours: &[ibv_sge], theirs: &[Piece]) -> Vec<(Piece, Vec<ibv_sge>)> {
    let mut out = Vec::with_capacity(theirs.len());
    let mut ours = ours.iter().copied();
    let mut current = ours.next();
    for &piece in theirs {
        let mut rest = piece;
        let mut list = Vec::with_capacity(1);
        while rest.len > 0 {
            let Some(sge) = &mut current else { break };
            if list.len() == GATHERED {
                let done: u32 = list.iter().map(|s: &ibv_sge| s.length).sum();
                out.push((
                    Piece { len: done, address: rest.address - u64::from(done), ..rest },
                    std::mem::take(&mut list),
                ));
            }
            let n = sge.length.min(rest.len);
            list.push(ibv_sge { addr: sge.addr, length: n, lkey: sge.lkey });
            rest.len -= n;
            rest.address += u64::from(n);
            sge.addr += u64::from(n);
            sge.length -= n;
            if sge.length == 0 {
                current = ours.next();
            }
        }
        let done: u32 = list.iter().map(|s| s.length).sum();
        if done > 0 {
            out.push((Piece { len: done, address: rest.address - u64::from(done), ..rest }, list));
        }
    }
    out
}

fn gone(error: &io::Error) -> ClientError {
    ClientError::Unreachable { reason: error.to_string(), effect: Effect::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_both_sides_are_cut_to_fit() {
        let sge = |addr, length| ibv_sge { addr, length, lkey: 1 };
        let piece = |address, len| Piece { address, rkey: 9, len };
        let shape = |ours: &[ibv_sge], theirs: &[Piece]| {
            let cut = matched(ours, theirs);
            cut.iter()
                .map(|(p, list)| (p.address, p.len, list.iter().map(|s| (s.addr, s.length)).collect::<Vec<_>>()))
                .collect::<Vec<_>>()
        };
        assert_eq!(shape(&[sge(100, 10)], &[piece(0, 10)]), [(0, 10, vec![(100, 10)])]);
        assert_eq!(
            shape(&[sge(100, 4), sge(200, 6)], &[piece(0, 7), piece(50, 3)]),
            [(0, 7, vec![(100, 4), (200, 3)]), (50, 3, vec![(203, 3)])]
        );
        // More than one request gathers.
        let many: Vec<_> = (0..20).map(|i| sge(i * 100, 1)).collect();
        let cut = shape(&many, &[piece(7, 20)]);
        assert_eq!(cut.iter().map(|c| (c.0, c.1)).collect::<Vec<_>>(), [(7, 8), (15, 8), (23, 4)]);
    }
}
