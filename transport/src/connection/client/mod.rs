//! A client's end: requests that live until they are answered, across connections.

mod asking;
mod bulk;
mod flow;
mod greeting;
mod incoming;
mod lane_book;
mod options;
#[cfg(test)]
mod tests;

use self::lane_book::LaneBook;
pub use self::options::{ClientError, ClientOptions, Counters, LaneCounts, LanePlan, SlicePlan};

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::bulk_in::Landings;
use super::bulk_out::BulkOut;
use super::framer::Framer;
use super::outbox::{Outbox, Sink};
use super::requests::Requests;
use super::service::SILENT_KEEPALIVES;
use crate::auth::{Channel, Secret};
use crate::memory::SharedBytes;
use crate::wire::{
    Caps, Control, DecodeError, Effect, ErrorCode, Mac, OpenedSession, RemoteError, Reply, Welcome, body_crc,
    encode_header, limits,
};

/// A reply, or why there is none.
pub type Answer<'a> = Result<Reply<'a>, ClientError>;

/// The most that a connection may take to be greeted.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// The machine. One owner; the owner's driver keeps it connected.
///
/// The driver: while [`Self::wants_connection`], opens a control lane and calls [`Self::connected`] or [`Self::lost`]; moves
/// bytes by [`Self::space`], [`Self::filled`] and [`Self::flush`]; opens a bulk lane whenever [`Self::next_lane`] names one, drives it
/// by a [`super::ClientLane`], says [`Self::lane_heard`] when something came over it, and [`Self::lane_over`] when it breaks or
/// [`Self::is_lane_over`]; calls [`Self::timeout`] at [`Self::deadline`], and reads what has come before it does so again.
pub struct Client {
    options: ClientOptions,
    state: State,
    /// Boxed, and away while its frames are handled.
    framer: Option<Box<Framer>>,
    outbox: Outbox,
    requests: Requests,
    in_flight: u32,
    welcome: Option<Welcome>,
    session: Option<OpenedSession>,
    landings: Arc<Landings>,
    bulk: Arc<BulkOut>,
    bulk_used: bool,
    /// Requests that move something over the bulk lanes, and when they are looked at next.
    bulk_live: u32,
    bulk_look: Instant,
    lanes: LaneBook,
    /// How long the answer took to the question for a session.
    rtt: Duration,
    lane_count: u32,
    /// Requests that were given up before they were answered: each has its credit until its terminal reply comes.
    abandoned: Vec<Abandoned>,
    /// Until a session is open: when to give up, and the pause after the next failure.
    retry: (Instant, Duration),
    counters: Arc<Counters>,
    /// A request came corrupted and is sent again; what was never sent waits for its end.
    mending: bool,
    /// Whether this connection has answered a request, or its keepalive.
    progressed: bool,
    /// Whether this connection was asked for something when it owed nothing.
    asked: bool,
    /// Requests of earlier connections that nobody waits for any more and whose end was not heard: the server is told to
    /// cancel them when the session is taken up again.
    orphans: Vec<(u64, Option<Arc<SharedBytes>>)>,
    /// See [`Self::uses_forgotten`].
    uses_forgotten: u64,
    /// When the lane that is being greeted came up.
    connected: Instant,
    heard: Instant,
    /// When something came over a bulk lane: a server that holds requests back until what it owes has been taken answers no ping,
    /// and is not gone.
    lanes_heard: Instant,
    /// The last word before a silence that was found to be too long.
    silent_since: Option<Instant>,
    said: Instant,
    /// When the session was asked for: the answer tells how far the server is.
    opening: Instant,
    sessions_lost: u64,
    /// Whether the link proves what comes over it.
    sealed: bool,
    /// What the link knows of the control lane.
    channel: Channel,
    /// A challenge was answered: what the server has to prove in turn, and what the lane key comes from.
    proving: Option<(Mac, Secret)>,
    lane_key: Option<Secret>,
    /// Bulk lanes that the connection has tried to open.
    attempts: AtomicU32,
}

/// A request that nobody waits for, and its answer is yet to come.
struct Abandoned {
    wire: u64,
    /// A put's payload, whose pages a link may have passed on by reference.
    _pieces: Vec<Bytes>,
    used: Option<Arc<SharedBytes>>,
}

#[derive(Debug)]
enum State {
    /// No connection; when the next attempt is due.
    Down {
        next: Instant,
    },
    /// The control lane is up, hello is sent.
    Greeting,
    /// The open or resume request with this id is under way.
    Opening(u64),
    Ready,
    /// Given up, or closed.
    Dead(ClientError),
}

impl Client {
    /// A client that wants to be connected.
    pub fn new(options: ClientOptions, now: Instant) -> Self {
        Self {
            session: options.resume,
            state: State::Down { next: now },
            framer: None,
            outbox: Outbox::default(),
            requests: Requests::default(),
            in_flight: 0,
            welcome: None,
            landings: Arc::default(),
            bulk: Arc::default(),
            bulk_used: false,
            bulk_live: 0,
            bulk_look: now,
            lanes: LaneBook::default(),
            rtt: Duration::ZERO,
            lane_count: 1,
            abandoned: Vec::new(),
            retry: (after(now, options.reconnect_for), options.backoff),
            counters: Arc::default(),
            mending: false,
            progressed: false,
            asked: false,
            orphans: Vec::new(),
            uses_forgotten: 0,
            connected: now,
            heard: now,
            lanes_heard: now,
            silent_since: None,
            said: now,
            opening: now,
            sessions_lost: 0,
            sealed: false,
            channel: Channel::default(),
            proving: None,
            lane_key: None,
            attempts: AtomicU32::new(0),
            options,
        }
    }

    // ---- what the driver asks and tells

    /// Whether a control lane should be opened now.
    pub fn wants_connection(&self, now: Instant) -> bool {
        matches!(self.state, State::Down { next } if next <= now)
    }

    /// Before [`Self::connected`]: whether all that comes over the lanes of this link is proven to be what the server sent. Its slices
    /// then go without checksums, if the server sees it the same way.
    pub fn set_sealed(&mut self, sealed: bool) {
        self.sealed = sealed;
    }

    /// A control lane is up.
    pub fn connected(&mut self, now: Instant) {
        self.framer().reset();
        self.outbox.clear();
        self.in_flight = 0;
        (self.connected, self.heard, self.lanes_heard, self.said) = (now, now, now, now);
        (self.progressed, self.asked) = (false, false);
        (self.channel, self.proving, self.lane_key) = (Channel::default(), None, None);
        self.attempts = AtomicU32::new(0);
        self.state = State::Greeting;
        self.lanes = LaneBook::default();
        self.counters.forget_lanes();
        let caps = if self.options.unchecked || self.sealed { Caps::OURS.and(Caps::UNCHECKED) } else { Caps::OURS };
        self.push_control(0, &Control::Hello(caps));
    }

    /// Whether the server has not welcomed the connection yet: before each [`Self::filled`], [`Self::set_channel`] is due.
    pub fn is_greeting(&self) -> bool {
        matches!(self.state, State::Greeting)
    }

    /// What the link knows of the control lane, now that bytes have come over it.
    pub fn set_channel(&mut self, channel: Channel) {
        self.channel = channel;
    }

    /// Nothing will come of trying again: the client gives up, for this reason.
    pub fn refused(&mut self, error: ClientError) {
        self.die(error);
    }

    /// The control lane is gone, or could not be opened. The driver has dropped the connection's bulk lanes, so that nothing
    /// more of it can land.
    pub fn lost(&mut self, reason: &str, now: Instant) {
        match &self.state {
            State::Dead(_) => return,
            // A fresh start of the clock, also for what this connection was the first to be asked: it may have been opened long
            // ago, and nobody had a reason to look whether it was still there. A connection that answered nothing is none: a
            // server that takes every connection only to end it would never be given up.
            State::Ready if self.progressed || self.asked => {
                self.retry = (self.give_up(now), self.options.backoff);
            }
            _ => {}
        }
        let (give_up, pause) = self.retry;
        if !matches!(self.state, State::Down { .. }) {
            tracing::warn!(reason, "the connection was lost: trying to take the session up again");
            self.interrupt();
        }
        if now >= give_up {
            return self.give_all_up(reason);
        }
        self.retry.1 = pause.saturating_mul(2).min(Duration::from_secs(1));
        self.state = State::Down { next: after(now, pause).min(give_up) };
    }

    /// Where received bytes of the control lane go.
    pub fn space(&mut self) -> &mut [u8] {
        self.framer().space()
    }

    fn framer(&mut self) -> &mut Framer {
        self.framer.get_or_insert_with(|| Box::new(Framer::new(limits::CONTROL_PAYLOAD_BYTES)))
    }

    /// `n` bytes of [`Self::space`] were filled.
    ///
    /// # Errors
    /// The connection must be closed and [`Self::lost`] called.
    pub fn filled(&mut self, n: usize, now: Instant) -> Result<(), ClientError> {
        self.counters.down.fetch_add(n as u64, Ordering::Relaxed);
        self.heard = now;
        self.framer().filled(n);
        let Some(mut framer) = self.framer.take() else { return Ok(()) };
        let handled = self.frames(&mut framer);
        self.framer = Some(framer);
        handled
    }

    fn frames(&mut self, framer: &mut Framer) -> Result<(), ClientError> {
        while let Some(frame) = framer.next_frame()? {
            frame.intact.map_err(DecodeError::from)?;
            self.frame(&frame.header, frame.meta, frame.payload)?;
        }
        Ok(())
    }

    /// Sends what waits on the control lane. Whether all of it is gone.
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&mut self, sink: &mut dyn Sink) -> io::Result<bool> {
        let before = self.outbox.waiting();
        let done = self.outbox.flush(sink);
        self.counters.up.fetch_add((before - self.outbox.waiting()) as u64, Ordering::Relaxed);
        done
    }

    /// Whether bytes wait for [`Self::flush`].
    pub fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Where transfers land; for the lanes' [`super::BulkIn`].
    pub fn landings(&self) -> &Arc<Landings> {
        &self.landings
    }

    /// Transfers on their way out; for the lanes' [`super::BulkLane`].
    pub fn bulk(&self) -> &Arc<BulkOut> {
        &self.bulk
    }

    /// Bytes over the sockets. The driver adds the bulk lanes'.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// When [`Self::timeout`] should be called next.
    pub fn deadline(&self) -> Option<Instant> {
        match (&self.state, &self.welcome) {
            (State::Dead(_), _) => None,
            (State::Down { next }, _) => Some(*next),
            (State::Ready, Some(w)) => {
                let (keepalive, silence) = patience_with(w);
                let silence = (self.said + keepalive).min(self.last_heard() + silence);
                Some(self.bulk_deadline().map_or(silence, |at| at.min(silence)))
            }
            _ => Some(self.connected + self.greeting_time()),
        }
    }

    /// Something came over a bulk lane: the server is there.
    pub fn lane_heard(&mut self, now: Instant) {
        self.lanes_heard = now;
    }

    /// When anything came, over whichever lane.
    fn last_heard(&self) -> Instant {
        self.heard.max(self.lanes_heard)
    }

    /// When a server that has not been reached since `from` is given up.
    fn give_up(&self, from: Instant) -> Instant {
        after(from, self.options.reconnect_for)
    }

    /// How long one connection may take to be greeted and to open its session; another may fare better.
    fn greeting_time(&self) -> Duration {
        self.options.reconnect_for.min(GREETING_TIMEOUT)
    }

    /// Time has passed: keepalive, or a silent server, which is given up if nothing of it is there to be read until the next call.
    ///
    /// # Errors
    /// The connection must be closed and [`Self::lost`] called.
    pub fn timeout(&mut self, now: Instant) -> Result<(), ClientError> {
        let silent = |seconds: Duration| ClientError::Unreachable {
            reason: format!("the server was silent for {} s", seconds.as_secs_f32()),
            effect: Effect::Unknown,
        };
        match (&self.state, &self.welcome) {
            (State::Ready, Some(w)) => {
                let (keepalive, silence) = patience_with(w);
                let heard = self.last_heard();
                if heard + silence <= now {
                    // It may be this side that stood still, and words may have come meanwhile: they are read before the next look,
                    // which is due at once.
                    if self.silent_since.replace(heard) == Some(heard) {
                        return Err(silent(silence));
                    }
                    return Ok(());
                }
                if self.said + keepalive <= now {
                    self.said = now;
                    self.push_control(0, &Control::Ping);
                }
                self.look_at_bulk(now);
            }
            // From the connection's begin: a server that sends byte after byte and never a welcome is silent, too.
            (State::Greeting | State::Opening(_), _) if self.connected + self.greeting_time() <= now => {
                return Err(silent(self.greeting_time()));
            }
            _ => {}
        }
        Ok(())
    }

    // ---- what the user asks

    /// Whether a session is open and requests flow.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Why the client has given up, if it has.
    pub fn dead(&self) -> Option<&ClientError> {
        match &self.state {
            State::Dead(error) => Some(error),
            _ => None,
        }
    }

    /// The session, once open.
    pub fn session(&self) -> Option<&OpenedSession> {
        self.session.as_ref()
    }

    /// What the server said first.
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// How often a session's state was lost: changes when everything must be set up again.
    pub fn sessions_lost(&self) -> u64 {
        self.sessions_lost
    }

    /// Ends the connection for good.
    pub fn close(&mut self) {
        self.push_control(0, &Control::Goodbye(RemoteError::new(ErrorCode::Cancelled, "the client closed")));
        self.state = State::Dead(ClientError::Interrupted);
    }

    // ---- inside

    /// The server cannot be reached: whether a request may have taken effect depends on whether it was ever sent.
    fn give_all_up(&mut self, reason: &str) {
        let unreachable = |effect| ClientError::Unreachable { reason: reason.into(), effect };
        self.requests.fail_where(|slot| !slot.ever_sent, &unreachable(Effect::None));
        self.forget_uses();
        self.die(unreachable(Effect::Unknown));
    }

    fn forget_uses(&mut self) {
        self.uses_forgotten += 1;
        self.requests.forget_uses();
        self.orphans.clear();
        self.abandoned.iter_mut().for_each(|abandoned| abandoned.used = None);
    }

    fn die(&mut self, error: ClientError) {
        self.bulk.clear();
        self.requests.fail_all(&error);
        self.state = State::Dead(error);
    }

    fn push_control(&mut self, id: u64, message: &Control) {
        let mut meta = Vec::new();
        let (kind, flags) = message.encode(&mut meta);
        let head = encode_header(kind, flags, id, meta.len() as u32, 0, body_crc(&meta, &[]));
        self.outbox.push(&head, &meta, &[]);
    }
}

/// A duration may be "for ever", which no clock can say.
pub(super) fn after(from: Instant, wait: Duration) -> Instant {
    const AGES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    from + wait.min(AGES)
}

/// When a server that says nothing is pinged, and when it is taken for dead: what it asked for, and never more than the usual
/// count of keepalives.
fn patience_with(welcome: &Welcome) -> (Duration, Duration) {
    let millis = |ms: u32| Duration::from_millis(u64::from(ms));
    let keepalive = millis(welcome.keepalive_ms);
    (keepalive, millis(welcome.silence_ms).min(keepalive * SILENT_KEEPALIVES))
}
