//! The client's side of a bulk lane: writes slices where the server grants it, reads them where it offers them.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rdma_sys::ibv_sge;

use super::faults::WRITE_AGAIN;
use super::lane::Lane;
use super::verbs::Registration;
use crate::connection::{BulkEvent, Client, ClientError, Framer, Outbox, Place, Taken};
use crate::link::wait::Interest;
use crate::link::{Bulk, Stream};
use crate::memory::{Claim, Slab, SliceLease, copy_counted};
use crate::wire::{
    Control, DecodeError, Effect, Flags, Heads, OneSided, Piece, Pieces, SLICE_FRAME_BYTES, SliceHead, body_crc,
    encode_header,
};

/// Lanes are opened within this time, or the connection is given up.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a slice may wait for another lane that is writing the same one.
const TURN: Duration = Duration::from_millis(50);

/// Pieces of this side's memory in one request.
const GATHERED: usize = 8;

pub(super) struct Pulling {
    lane: Arc<Lane>,
    /// The lane's, in its connection.
    number: u32,
    state: State,
}

enum State {
    /// Hello is sent, the welcome has not come.
    Opening {
        framer: Framer,
        until: Instant,
    },
    Open(Box<Work>),
}

struct Work {
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

struct Readable {
    head: SliceHead,
    window: u8,
    pieces: Pieces,
    until: Option<Instant>,
}

enum Flight {
    Writing { _registrations: Vec<Arc<Registration>>, _staged: Option<Slab>, _slice: Option<Taken> },
    Reading { lease: SliceLease, window: u8, _registrations: Vec<Arc<Registration>> },
}

impl Pulling {
    /// Greets the server as bulk lane `lane`.
    pub(super) fn greet(stream: Arc<Lane>, client: &Client, lane: u32, now: Instant) -> io::Result<Self> {
        if let Some(hello) = client.lane_hello(lane) {
            let sent = stream.send(&[IoSlice::new(&hello)])?;
            client.counters().up.fetch_add(sent as u64, Ordering::Relaxed);
        }
        Ok(Self {
            lane: stream,
            number: lane,
            state: State::Opening { framer: Framer::new(0), until: now + GREETING_TIMEOUT },
        })
    }

    fn welcomed(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        let State::Opening { framer, until } = &mut self.state else { return Ok(false) };
        // More frames may follow at once: they are not this framer's to take.
        match self.lane.recv(framer.space_of_frame(), &mut []) {
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
            Control::LaneWelcome(_) => {}
            Control::Goodbye(error) => return Err(error.into()),
            _ => return Err(DecodeError::Range("a bulk lane was not welcomed").into()),
        }
        client.lane_opened(self.number);
        self.state = State::Open(Box::new(Work::new()));
        Ok(true)
    }
}

impl Bulk for Pulling {
    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        match &mut self.state {
            State::Opening { .. } => self.welcomed(client, now),
            State::Open(work) => {
                let moved = work.turn(&self.lane, client, now)?;
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
        out.push(self.lane.interest(true, false));
        self.lane.arm(true, false)
    }

    fn disarm(&mut self) {
        self.lane.disarm();
    }

    fn deadline(&self, _client: &Client) -> Option<Instant> {
        match &self.state {
            State::Opening { until, .. } => Some(*until),
            State::Open(work) => work.readable.iter().filter_map(|r| r.until).min(),
        }
    }
}

impl Drop for Pulling {
    fn drop(&mut self) {
        // The device is done with all memory before `flight` gives it back.
        self.lane.endpoint().shut();
    }
}

impl Work {
    fn new() -> Self {
        Self {
            framer: Framer::new(0),
            heads: None,
            out: Outbox::default(),
            grants: Vec::new(),
            readable: Vec::new(),
            flight: VecDeque::new(),
            last: 0,
            used: None,
        }
    }

    fn turn(&mut self, lane: &Lane, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        lane.endpoint().poll().map_err(|e| gone(&e))?;
        let mut moved = self.completed(lane, client);
        self.write_again(lane).map_err(|e| gone(&e))?;
        moved |= self.hear(lane, client)?;
        moved |= self.write(lane, client)?;
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
    fn write(&mut self, lane: &Lane, client: &Client) -> Result<bool, ClientError> {
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
            self.grants.remove(at);
            self.write_one(lane, &grant, slice).map_err(|e| gone(&e))?;
            client.counters().up.fetch_add(u64::from(grant.len) + SLICE_FRAME_BYTES as u64, Ordering::Relaxed);
            any = true;
        }
        Ok(any)
    }

    fn write_one(&mut self, lane: &Lane, grant: &Grant, slice: Taken) -> io::Result<()> {
        let Some(heads) = self.heads else { return Ok(()) };
        let cache = &lane.membership().cache;
        let head = slice.head();
        let mut list = Vec::with_capacity(slice.pieces.len());
        let mut registrations = Vec::with_capacity(slice.pieces.len());
        let mut staged = None;
        for (bytes, part) in &slice.pieces {
            match cache.to_send(bytes, part) {
                Ok(registration) => {
                    let view = bytes.get(part.clone()).unwrap_or_default();
                    list.push(ibv_sge {
                        addr: view.as_ptr() as u64,
                        length: view.len() as u32,
                        lkey: registration.local(),
                    });
                    registrations.push(registration);
                }
                Err(error) => {
                    // Memory that cannot be locked, or no more of it: the slice goes through memory that is.
                    tracing::debug!(%error, "a slice is copied, since its memory cannot be registered");
                    let mut slab = cache.staging(grant.len as usize)?;
                    let mut filled = 0;
                    for view in slice.bytes() {
                        copy_counted(&mut slab[filled..filled + view.len()], view);
                        filled += view.len();
                    }
                    let registration = cache
                        .of(slab.as_ptr(), slab.len(), true)?
                        .ok_or_else(|| io::Error::other("staging memory without owner"))?;
                    list = vec![ibv_sge { addr: slab.as_ptr() as u64, length: grant.len, lkey: registration.local() }];
                    registrations = vec![registration];
                    staged = Some(slab);
                    break;
                }
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
        endpoint.post_head(&head, (place, heads.rkey), grant.window, token)
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
                    let Readable { window, pieces, .. } = self.readable.remove(at);
                    client.counters().down.fetch_add(u64::from(head.len), Ordering::Relaxed);
                    self.read_one(lane, lease, window, &pieces).map_err(|e| gone(&e))?;
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

    fn read_one(&mut self, lane: &Lane, mut lease: SliceLease, window: u8, pieces: &Pieces) -> io::Result<()> {
        let cache = &lane.membership().cache;
        let mut list = Vec::with_capacity(1);
        let mut registrations = Vec::with_capacity(1);
        for (at, len) in lease.places() {
            let registration =
                cache.of(at.as_ptr(), len, true)?.ok_or_else(|| io::Error::other("memory to land in without owner"))?;
            list.push(ibv_sge { addr: at.as_ptr() as u64, length: len as u32, lkey: registration.local() });
            registrations.push(registration);
        }
        let mut endpoint = lane.endpoint();
        let token = self.last;
        self.last += 1;
        self.flight.push_back((token, Flight::Reading { lease, window, _registrations: registrations }));
        let requests = matched(&list, pieces.as_slice());
        let last = requests.len();
        for (i, (piece, list)) in requests.into_iter().enumerate() {
            let token = (i + 1 == last).then_some(token);
            // SAFETY: `flight` holds the lease, whose memory is nobody else's, and its registration until `token` is done.
            unsafe { endpoint.post_read(&list, (piece.address, piece.rkey), token) }?;
        }
        Ok(())
    }

    /// Operations whose memory the device is done with.
    fn completed(&mut self, lane: &Lane, client: &mut Client) -> bool {
        let mut any = false;
        loop {
            let Some(token) = lane.endpoint().next_done() else { return any };
            while self.flight.front().is_some_and(|&(t, _)| t <= token) {
                any = true;
                if let Some((_, Flight::Reading { mut lease, window, .. })) = self.flight.pop_front() {
                    lease.advance(lease.left());
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
        let slab = cache.staging(1)?;
        let registration =
            cache.of(slab.as_ptr(), 1, true)?.ok_or_else(|| io::Error::other("staging memory without owner"))?;
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
