//! A connection as the server sees it.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::bulk_in::{BulkEvent, Landings};
use super::bulk_out::{BulkOut, Outgoing, Resent, Source, There};
use super::outbox::{Outbox, Sink};
use super::seats::{Seat, Seats};
use super::service::{Noted, Service};
use crate::auth::{Identity, Secret, lane_key};
use crate::memory::{Landing, NoRegion, PeerTarget, Region, Regions};
use crate::wire::{
    Control, ErrorCode, Flags, Kind, PutBody, PutRequest, RemoteError, Reply, Request, Shared, body_crc, encode_header,
};

/// Wakes the driver of one lane, from whatever thread: there is something to send, a landing was registered, or the connection
/// was closed. Must be cheap and must not block.
pub trait Driver: Send + Sync {
    /// See the trait.
    fn wake(&self);
}

/// Replies that may wait for a slow reader, at the most; past this the connection is closed.
const BACKLOG_BYTES: usize = 64 << 20;

/// Unsent replies, and sliced transfers on their way out, at which a connection's requests are no longer read.
const ENOUGH_BACKLOG: usize = 8 << 20;
const ENOUGH_TRANSFERS: usize = 1024;

/// Sliced gets whose bytes are kept, in case a lane loses some, until the client has them.
const KEPT_TRANSFERS: usize = 1024;

/// Late slices that are named for each idle lane.
pub(super) const LATE_A_LANE: usize = 4;

/// Corrupted slices in a row that are asked for again: until a transfer is whole.
const SECOND_CHANCES: u32 = 64;

/// One connection, server side. All methods can be called from any thread; none blocks; after the connection is gone they do
/// nothing.
pub struct Peer {
    id: u64,
    lane_key: Secret,
    identity: Identity,
    attempts: Mutex<Attempts>,
    control: Mutex<ControlOut>,
    driver: Arc<dyn Driver>,
    /// What the client shares, where the link can share any.
    regions: Option<Arc<Regions>>,
    seats: Mutex<Seats>,
    landings: Landings,
    bulk: BulkOut,
    closed: AtomicBool,
    /// Requests that were counted in, by the control lane's thread alone, and those that were answered, by who holds `control`.
    /// Both go round: the difference is in flight.
    begun: AtomicU32,
    ended: AtomicU32,
    /// Bytes that wait on the control lane, as of the last change: written by who holds `control`.
    behind: AtomicUsize,
    chances: AtomicU32,
    /// After how long a lane that holds up a transfer is ended.
    stuck: Duration,
    checked: bool,
    one_sided: bool,
    takes_pages: bool,
    /// The control lane waits for the bulk lanes to send.
    held: AtomicBool,
    /// Changes whenever the client has taken something of what it asked for.
    progress: AtomicU64,
}

/// Which attempts to open a bulk lane were made: all below the last 64, and those of the last 64 whose bits are set.
#[derive(Default)]
struct Attempts {
    /// One more than the highest.
    next: u64,
    /// Bit k: attempt `next - 1 - k`.
    seen: u64,
}

impl Attempts {
    fn is_first(&mut self, attempt: u32) -> bool {
        let attempt = u64::from(attempt);
        if attempt >= self.next {
            let ahead = attempt + 1 - self.next;
            self.seen = u32::try_from(ahead).ok().and_then(|n| self.seen.checked_shl(n)).unwrap_or(0) | 1;
            self.next = attempt + 1;
            return true;
        }
        let back = self.next - 1 - attempt;
        let first = back < 64 && self.seen & (1 << back) == 0;
        if first {
            self.seen |= 1 << back;
        }
        first
    }
}

struct ControlOut {
    outbox: Outbox,
    sink: Box<dyn Sink>,
    meta: Vec<u8>,
    payload: Vec<u8>,
}

impl Peer {
    pub(super) fn new(
        id: u64,
        (lane_key, identity): (Secret, Identity),
        sink: Box<dyn Sink>,
        driver: Arc<dyn Driver>,
        (stuck, checked): (Duration, bool),
    ) -> Arc<Self> {
        let bulk = BulkOut::keeping(KEPT_TRANSFERS);
        bulk.set_checked(checked);
        let (regions, one_sided, takes_pages) = (sink.regions(), sink.is_one_sided(), sink.takes_pages());
        let out = ControlOut { outbox: Outbox::default(), sink, meta: Vec::new(), payload: Vec::new() };
        Arc::new(Self {
            id,
            lane_key,
            identity,
            attempts: Mutex::default(),
            control: Mutex::new(out),
            driver,
            regions,
            seats: Mutex::default(),
            landings: Landings::default(),
            bulk,
            closed: AtomicBool::new(false),
            begun: AtomicU32::new(0),
            ended: AtomicU32::new(0),
            behind: AtomicUsize::new(0),
            chances: AtomicU32::new(SECOND_CHANCES),
            stuck,
            checked,
            one_sided,
            takes_pages,
            held: AtomicBool::new(false),
            progress: AtomicU64::new(0),
        })
    }

    /// A connection without a link, which records what it is told to send: for tests of services.
    pub fn detached() -> (Arc<Self>, Recorder) {
        Self::detached_as(Identity::ANYONE)
    }

    /// As [`Self::detached`]: one that speaks for somebody.
    pub fn detached_as(identity: Identity) -> (Arc<Self>, Recorder) {
        let recorder = Recorder::default();
        let who = (lane_key(None, &[0; 16]), identity);
        let peer = Self::new(0, who, Box::new(recorder.clone()), Arc::new(recorder.clone()), (Duration::MAX, true));
        (peer, recorder)
    }

    /// Who it speaks for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Names it in logs and to its bulk lanes.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Answers a request of kind `kind`.
    pub fn reply(&self, id: u64, kind: Kind, reply: &Reply<'_>) {
        let mut out = self.lock();
        if reply.is_terminal() {
            // Before it is sent: who hears of it may ask again.
            self.ended.store(self.ended.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        }
        if self.is_closed() {
            return;
        }
        let ControlOut { outbox, sink, meta, payload } = &mut *out;
        meta.clear();
        payload.clear();
        let flags = reply.encode(meta, payload);
        let payload = reply.payload().unwrap_or(payload);
        let done = send(outbox, &mut **sink, kind, flags, id, meta, payload);
        let (behind, unsent) = (self.note(outbox), sink.has_unsent());
        drop(out);
        self.sent(done, behind, unsent);
    }

    /// Sends the bytes of these regions, in order, as slices of transfer `id`. The regions are held until they are sent.
    pub fn send_sliced(&self, id: u64, segments: Vec<Region>, slice_bytes: u32) {
        if self.is_closed() {
            return;
        }
        let pieces = segments.into_iter().map(Bytes::from_owner).collect();
        self.bulk.push(Outgoing::new(id, pieces, slice_bytes));
        self.wake_lanes();
    }

    /// As [`Self::send_sliced`], where [`Self::takes_pages`]: the client's sockets are given the pages of the regions instead of copies. They
    /// are those of `memory`, which is lent ([`Region::lend`]) to the client's session, and is spoilt unless the client says in time that
    /// it has them.
    pub fn lend_sliced(&self, id: u64, segments: Vec<Region>, memory: Vec<Region>, slice_bytes: u32) {
        // Made even where the connection is over: what was lent is spoilt with it.
        let outgoing =
            Outgoing::new(id, segments.into_iter().map(Bytes::from_owner).collect(), slice_bytes).by_pages(memory);
        if !self.is_closed() {
            self.bulk.push(outgoing);
            self.wake_lanes();
        }
    }

    /// Sends the bytes of a source as slices of transfer `id`, as it brings them. The source is held until they are sent.
    pub fn send_staged(&self, id: u64, source: Arc<dyn Source>, slice_bytes: u32) {
        if !self.is_closed() {
            self.bulk.push(Outgoing::staged(id, source, slice_bytes));
        }
    }

    /// A source has brought what [`BulkOut::wanted`] asked for.
    pub fn brought(&self, id: u64, source: &Arc<dyn Source>, offset: u64, bytes: Region) {
        self.bulk.brought(id, source, offset, &Bytes::from_owner(bytes));
        self.wake_lanes();
    }

    /// A source has found a slice that was asked for where the client's network card can read it. Only where
    /// [`Self::is_one_sided`] says so.
    pub fn lies_there(&self, id: u64, source: &Arc<dyn Source>, offset: u64, there: There) {
        self.bulk.lies_there(id, source, offset, there);
        self.wake_lanes();
    }

    /// A source cannot bring what was asked for: no further slice of the transfer begins, and the client is told to ask for all of it
    /// again, and so hears why.
    pub fn lost(&self, id: u64, source: &Arc<dyn Source>) {
        if self.bulk.failed(id, source) {
            self.control(id, &Control::Cancel);
        }
    }

    /// Stops sending slices of transfer `id`, and lets go of its bytes: the client has them, or does not want them.
    pub fn cancel_sliced(&self, id: u64) {
        self.bulk.end(id);
    }

    /// Slices of transfer `id` land here from now on.
    pub fn receive(&self, id: u64, landing: Arc<Landing>) {
        self.landings.open(id, landing);
        self.wake_lanes();
    }

    /// Slices of transfer `id` are drained from now on: the put has ended.
    pub fn discard(&self, id: u64) {
        self.landings.end(id);
        self.wake_lanes();
    }

    /// Bytes in memory that the client shares, where they lie.
    ///
    /// # Errors
    /// [`ErrorCode::OutOfRange`]: they are not there. [`ErrorCode::BadArgument`]: this link shares no memory, or not that.
    pub fn passed(&self, place: Shared, length: u64) -> Result<Region, RemoteError> {
        self.regions()?.passed(place.region, place.offset, length).map_err(|e| no_region(&e))
    }

    /// A request is refused before anybody looked at what it passes: its use of shared memory is given back.
    pub fn give_back(&self, request: &Request<'_>) {
        if let Request::Put(PutRequest { body: PutBody::Passed(place), spec, .. }) = request {
            // Should it not be there, there is nothing to give back.
            drop(self.passed(*place, spec.bytes()));
        }
    }

    /// Memory that the client shares, to be filled for it.
    ///
    /// # Errors
    /// As [`Self::passed`].
    pub fn target(&self, place: Shared, length: u64) -> Result<PeerTarget, RemoteError> {
        self.regions()?.target(place.region, place.offset, length).map_err(|e| no_region(&e))
    }

    fn regions(&self) -> Result<&Regions, RemoteError> {
        let message = "this connection shares no memory: send the bytes, or connect by shm://";
        self.regions.as_deref().ok_or_else(|| RemoteError::new(ErrorCode::BadArgument, message))
    }

    /// Ends the connection, and tells the client why.
    pub fn goodbye(&self, error: RemoteError) {
        self.control(0, &Control::Goodbye(error));
        self.close();
    }

    /// Whether it is gone.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sends what waits on the control lane. Whether all of it is gone.
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&self) -> io::Result<bool> {
        let mut out = self.lock();
        let ControlOut { outbox, sink, .. } = &mut *out;
        let waited = outbox.waiting();
        let done = outbox.flush(&mut **sink);
        if outbox.waiting() < waited {
            self.progress.fetch_add(1, Ordering::AcqRel);
        }
        self.note(outbox);
        done
    }

    /// Changes whenever the client has taken something of what it asked for.
    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Acquire)
    }

    /// Bytes that wait on the control lane.
    pub fn backlog(&self) -> usize {
        self.behind.load(Ordering::Acquire)
    }

    /// Notes how many bytes wait, for those who do not hold the outbox.
    fn note(&self, outbox: &Outbox) -> usize {
        let waiting = outbox.waiting();
        // Nearly always none, before and after.
        if self.behind.load(Ordering::Relaxed) != waiting {
            self.behind.store(waiting, Ordering::Release);
        }
        waiting
    }

    /// Whether its client is to read before more of its requests are.
    pub fn is_behind(&self) -> bool {
        let mut many = self.bulk.len() >= ENOUGH_TRANSFERS;
        if many {
            self.held.store(true, Ordering::SeqCst);
            // A bulk lane may have sent the last of them before it could see that.
            many = self.bulk.len() >= ENOUGH_TRANSFERS;
        }
        many || self.backlog() >= ENOUGH_BACKLOG
    }

    /// A bulk lane has sent: if the control lane waited for that, it goes on.
    pub fn moved_on(&self) {
        self.progress.fetch_add(1, Ordering::AcqRel);
        if self.held.load(Ordering::Acquire) && self.bulk.len() < ENOUGH_TRANSFERS {
            self.held.store(false, Ordering::Release);
            self.driver.wake();
        }
    }

    /// Where its transfers land.
    pub fn landings(&self) -> &Landings {
        &self.landings
    }

    /// Its transfers on their way out.
    pub fn bulk(&self) -> &BulkOut {
        &self.bulk
    }

    /// Ends the connection without a word.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.bulk.clear();
        self.driver.wake();
        self.wake_lanes();
    }

    /// A bulk lane joins.
    ///
    /// # Errors
    /// There are `most` already, or there was one of this number.
    pub(super) fn add_lane(&self, lane: u32, most: usize) -> Result<Arc<Seat>, RemoteError> {
        let mut seats = self.seats();
        let seat = seats.take(lane, most)?;
        // Under the same lock: a client that ends the lane at once finds both or neither.
        self.bulk.open_lane(lane);
        Ok(seat)
    }

    /// A bulk lane is gone, and takes no more; so many slices came over it.
    pub(super) fn remove_lane(&self, lane: u32, came: u64) {
        self.bulk.close_lane(lane);
        self.seats().leave(lane);
        self.control(0, &Control::LaneEnded { lane, slices: came });
        self.wake_lanes();
    }

    /// Whether the payloads of slices have checksums.
    pub fn is_checked(&self) -> bool {
        self.checked
    }

    /// Whether slices go as pages: the client is on this host, and reads them from a socket of it.
    pub fn takes_pages(&self) -> bool {
        self.takes_pages
    }

    /// Whether devices move its slices, each into the other's memory.
    pub fn is_one_sided(&self) -> bool {
        self.one_sided
    }

    /// The client has ended a bulk lane; so many slices came to it.
    pub(super) fn lane_ended(&self, lane: u32, came: u64) {
        self.seats().end(lane);
        for transfer in self.bulk.lost_lane(lane, came) {
            self.control(transfer, &Control::Cancel);
        }
        self.wake_lanes();
    }

    /// The client wants a slice (again).
    pub(super) fn slice_again(&self, transfer: u64, offset: u64, late: bool, now: Instant) {
        match self.bulk.again(transfer, offset, late, self.stuck, now) {
            Resent::Queued => {}
            Resent::Stuck(lane) => self.seats().end(lane),
            // It has to ask for all of it.
            Resent::Unknown => self.control(transfer, &Control::Cancel),
        }
        self.wake_lanes();
    }

    /// The client has sent all of a transfer, and waits: names slices that idle lanes could bring.
    pub(super) fn name_late(&self, transfer: u64) {
        let Some(landing) = self.landings.of(transfer) else { return };
        let idle = self.seats().idle();
        for offset in landing.missing(idle * LATE_A_LANE) {
            self.control(transfer, &Control::SliceAgain { offset, late: true });
        }
    }

    fn wake_lanes(&self) {
        self.seats().wake();
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lane_key(&self) -> &Secret {
        &self.lane_key
    }

    /// Takes note of an attempt to open a bulk lane; whether it is the first of its number.
    pub(super) fn is_first_attempt(&self, attempt: u32) -> bool {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).is_first(attempt)
    }

    /// Counts a request in, on the control lane's thread; whether the credits allow it.
    pub(super) fn begin(&self, credits: u32) -> bool {
        let before = self.begun.load(Ordering::Relaxed);
        self.begun.store(before.wrapping_add(1), Ordering::Relaxed);
        before.wrapping_sub(self.ended.load(Ordering::Acquire)) < credits
    }

    /// A bulk lane has something to tell.
    pub fn bulk_event<S: Service>(self: &Arc<Self>, service: &S, event: &BulkEvent, now: Instant) {
        match *event {
            BulkEvent::Complete(transfer) => {
                self.chances.store(SECOND_CHANCES, Ordering::Release);
                self.landings.end(transfer);
                service.landed(self, transfer, now);
            }
            // Its sender asks again until the other lane has ended, one way or the other, or its request has come.
            BulkEvent::Missed { transfer, offset } => {
                self.control(transfer, &Control::SliceAgain { offset, late: false });
            }
            BulkEvent::Corrupt { transfer, offset } => {
                service.noted(Noted::SliceCorrupted);
                if self.second_chance() {
                    tracing::warn!(peer = self.id, transfer, offset, "a slice was corrupted: asking for it again");
                    self.control(transfer, &Control::SliceAgain { offset, late: false });
                } else {
                    self.landings.end(transfer);
                    service.refused(self, transfer, now);
                }
            }
            BulkEvent::OffGrid(transfer) => {
                self.landings.end(transfer);
                service.refused(self, transfer, now);
            }
        }
    }

    /// Counts a corrupted slice; whether it may be sent again.
    fn second_chance(&self) -> bool {
        let less = |n: u32| n.checked_sub(1);
        self.chances.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }

    pub(super) fn control(&self, id: u64, message: &Control) {
        if self.is_closed() {
            return;
        }
        let mut out = self.lock();
        let ControlOut { outbox, sink, meta, .. } = &mut *out;
        meta.clear();
        let (kind, flags) = message.encode(meta);
        let done = send(outbox, &mut **sink, kind, flags, id, meta, &[]);
        let (behind, unsent) = (self.note(outbox), sink.has_unsent());
        drop(out);
        self.sent(done, behind, unsent);
    }

    fn sent(&self, done: io::Result<()>, behind: usize, unsent: bool) {
        if done.is_err() {
            self.close();
        } else if behind > BACKLOG_BYTES {
            tracing::warn!(peer = self.id, behind, "the client does not read its replies: closing");
            self.close();
            let mut out = self.lock();
            out.outbox.clear();
            self.note(&out.outbox);
        } else if behind > 0 || unsent {
            self.driver.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, ControlOut> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("id", &self.id).field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

fn no_region(error: &NoRegion) -> RemoteError {
    let code = match error {
        NoRegion::Outside { .. } => ErrorCode::OutOfRange,
        _ => ErrorCode::BadArgument,
    };
    RemoteError::new(code, error.to_string())
}

/// An error that a peer made before it had credits to be counted: not a reply to a counted request.
pub(super) fn no_credit(credits: u32) -> RemoteError {
    let message = format!("more than {credits} requests in flight: wait for replies before sending more");
    RemoteError::new(ErrorCode::NoCredit, message)
}

fn send(
    outbox: &mut Outbox,
    sink: &mut dyn Sink,
    kind: Kind,
    flags: Flags,
    id: u64,
    meta: &[u8],
    payload: &[u8],
) -> io::Result<()> {
    let crc = body_crc(meta, payload);
    let head = encode_header(kind, flags, id, meta.len() as u32, payload.len() as u32, crc);
    outbox.send(&head, meta, payload, sink)
}

/// What a detached [`Peer`] was told to send.
#[derive(Clone, Default)]
pub struct Recorder {
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// One frame that a detached peer sent.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The checked header.
    pub header: crate::wire::Header,
    /// Metadata.
    pub meta: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Recorder {
    /// The frames since the last call.
    pub fn take(&self) -> Vec<Recorded> {
        let bytes = std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner));
        let mut framer = super::Framer::new(crate::wire::limits::CONTROL_PAYLOAD_BYTES);
        let mut frames = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let space = framer.space();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            framer.filled(n);
            rest = &rest[n..];
            while let Ok(Some(frame)) = framer.next_frame() {
                let (meta, payload) = (frame.meta.to_vec(), frame.payload.to_vec());
                frames.push(Recorded { header: frame.header, meta, payload });
            }
        }
        frames
    }
}

impl Sink for Recorder {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bufs.iter().for_each(|b| bytes.extend_from_slice(b));
        Ok(bufs.iter().map(|b| b.len()).sum())
    }
}

impl Driver for Recorder {
    fn wake(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_counts_once_in_whatever_order() {
        let mut attempts = Attempts::default();
        for (attempt, first) in [
            (1, true),
            (1, false),
            (3, true),
            (2, true),
            (2, false),
            (0, true),
            (0, false),
            (63, true),
            (3, false),
            (70, true),
        ] {
            assert_eq!(attempts.is_first(attempt), first, "{attempt}");
        }
        assert!(!attempts.is_first(6), "too long ago to be told from a replay");
        assert!(attempts.is_first(7) && attempts.is_first(u32::MAX) && !attempts.is_first(u32::MAX));
        assert!(!attempts.is_first(70));
    }
}
