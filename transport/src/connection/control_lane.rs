//! A server's end of a lane, from its first byte: a control lane, or a bulk lane until it has said whose it is.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::framer::Framer;
use super::outbox::Sink;
use super::peer::{Driver, Peer, no_credit};
use super::seats::LaneSeat;
use super::service::{Directory, Service};
use super::strangers::Stranger;
use crate::auth::{Admitted, Channel, Refused, lane_key};
use crate::wire::{
    AskLinks, Caps, Control, DecodeError, ErrorCode, Kind, LaneHello, Proof, RemoteError, Reply, Request, Welcome,
    body_crc, encode_header, limits,
};

/// What the driver does next.
#[derive(Debug)]
pub enum Step {
    /// Go on reading.
    Continue,
    /// From here on this is a bulk lane of a connection, which it has its place in.
    Bulk(LaneSeat),
    /// Send what waits, then close.
    End(LaneEnd),
}

/// Why a lane ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneEnd {
    /// The client said goodbye, or closed.
    Left,
    /// It was told to go, for this reason.
    Refused(RemoteError),
}

/// How often, within the time that a client may be silent, one is looked at that is behind.
const LOOKS: u32 = 3;

/// Frames in a row before others may have a turn.
const FRAMES_A_TURN: usize = 128;

/// The machine. Bytes in by [`Self::space`] and [`Self::filled`]; time by [`Self::deadline`] and [`Self::timeout`].
pub struct ControlLane<S: Service> {
    service: Arc<S>,
    directory: Arc<Directory>,
    framer: Framer,
    state: State,
    accepted: Instant,
    /// What the guard had been told until then.
    judged: u64,
    /// Until it is known who it is.
    stranger: Option<Stranger>,
    heard: Instant,
    /// When the frame that is arriving began to.
    frame_began: Option<Instant>,
    /// Times that links were asked for.
    asked: u32,
    /// Whole frames may wait in the framer until the client has read its replies.
    pending: bool,
    eager_most: u32,
    /// What the client had taken when that was looked at last; and when, while nothing is read: its pings wait unread then.
    taken: u64,
    looked: Option<Instant>,
}

enum State {
    Greeting(Box<dyn Sink>, Arc<dyn Driver>),
    /// It was asked for proof of a token by this nonce.
    Challenged {
        sink: Box<dyn Sink>,
        driver: Arc<dyn Driver>,
        caps: Caps,
        nonce: [u8; 32],
    },
    Open(Arc<Peer>),
    Over,
}

impl<S: Service> ControlLane<S> {
    /// A lane that was just accepted. `None`: the server has more lanes of strangers than it may; close it.
    pub fn new(
        service: Arc<S>,
        directory: Arc<Directory>,
        mut sink: Box<dyn Sink>,
        driver: Arc<dyn Driver>,
        now: Instant,
    ) -> Option<Self> {
        let Some(stranger) = directory.stranger(driver.clone(), service.settings().max_strangers) else {
            let message = "too many lanes wait here that have not said who they are: try again";
            // Not `Busy`: a client would take that for the word on how many lanes its connection may have.
            if sink.is_open() {
                farewell(&mut *sink, &RemoteError::new(ErrorCode::TimedOut, message));
            }
            return None;
        };
        // Greetings have no payload: who has not greeted takes no memory for one.
        let framer = Framer::new(0);
        let state = State::Greeting(sink, driver);
        let judged = service.settings().guard.changes();
        Some(Self {
            service,
            directory,
            framer,
            state,
            accepted: now,
            judged,
            stranger: Some(stranger),
            heard: now,
            frame_began: None,
            asked: 0,
            pending: false,
            eager_most: u32::MAX,
            taken: 0,
            looked: None,
        })
    }

    /// Payloads above this many bytes are better sent in slices over this link: what the client is told is lowered to it.
    pub fn set_eager_most(&mut self, bytes: u32) {
        self.eager_most = bytes.max(1);
    }

    /// Where to read to.
    pub fn space(&mut self) -> &mut [u8] {
        self.framer.space()
    }

    /// The connection, once greeted.
    pub fn peer(&self) -> Option<&Arc<Peer>> {
        match &self.state {
            State::Open(peer) => Some(peer),
            _ => None,
        }
    }

    /// Whether nothing should be read: the client is behind with reading its replies. [`super::Driver::wake`] and a flush tell
    /// when to ask again.
    pub fn is_held(&mut self) -> bool {
        let held = self.peer().is_some_and(|peer| peer.is_behind());
        self.looked = if held { self.looked.or(Some(self.heard)) } else { None };
        if held {
            // What it sent meanwhile is not seen: a frame's time begins anew.
            self.frame_began = None;
        }
        held
    }

    /// Whether frames were received that wait for [`Self::filled`] with no more bytes, once the lane is not held: others may have a
    /// turn before.
    pub fn has_pending(&self) -> bool {
        self.pending
    }

    /// `n` bytes of [`Self::space`] were filled.
    pub fn filled(&mut self, n: usize, now: Instant) -> Step {
        if n > 0 {
            self.heard = now;
        }
        self.framer.filled(n);
        self.pending = false;
        for frames in 0.. {
            // One read may bring thousands of requests, and each may be answered by megabytes.
            match self.peer() {
                Some(peer) if peer.is_closed() => return Step::End(LaneEnd::Left),
                Some(peer) if frames >= FRAMES_A_TURN || peer.is_behind() => {
                    self.pending = true;
                    return Step::Continue;
                }
                _ => {}
            }
            match self.next_frame(now) {
                Ok(Some(Step::Continue)) => {}
                Ok(Some(step)) => return step,
                Ok(None) => break,
                Err(error) => return self.refuse(error),
            }
        }
        self.frame_began = if self.framer.in_frame() { self.frame_began.or(Some(now)) } else { None };
        if self.peer().is_some_and(|p| p.is_closed()) { Step::End(LaneEnd::Left) } else { Step::Continue }
    }

    /// When [`Self::timeout`] should be called.
    pub fn deadline(&self) -> Instant {
        let settings = self.service.settings();
        let silence = match self.state {
            State::Open(_) => match self.looked {
                // Looked at more often: whether it takes what it asked for.
                Some(looked) => (self.heard + settings.silence()).min(looked + settings.silence() / LOOKS),
                None => self.heard + settings.silence(),
            },
            // It has to go at once.
            _ if self.is_displaced() => return self.accepted,
            // However much it says: only the answer to who it is counts.
            _ => self.accepted + settings.patience,
        };
        self.frame_began.map_or(silence, |began| silence.min(began + settings.patience))
    }

    /// The deadline has passed.
    pub fn timeout(&mut self, now: Instant) -> Step {
        if now < self.deadline() {
            return Step::Continue;
        }
        self.look(now);
        if now < self.deadline() {
            return Step::Continue;
        }
        let settings = self.service.settings();
        let (silence, patience) = (settings.silence(), settings.patience);
        let seconds = |d: Duration| d.as_secs_f32();
        if self.is_displaced() {
            let message = "others wait, and this lane has not said for long who it is: try again";
            return self.refuse(RemoteError::new(ErrorCode::TimedOut, message));
        }
        let message = match (&self.state, self.frame_began) {
            (State::Open(_), None) => format!("nothing heard for {} s: send pings", seconds(silence)),
            (State::Open(_), Some(_)) => format!("a frame took longer than {} s to arrive", seconds(patience)),
            _ => format!("no greeting within {} s", seconds(patience)),
        };
        self.refuse(RemoteError::new(ErrorCode::TimedOut, message))
    }

    /// Whether it did not say for long who it is, and has to make room for others: nothing is worth waiting for.
    pub fn is_displaced(&self) -> bool {
        self.stranger.as_ref().is_some_and(Stranger::is_displaced)
    }

    /// A client that is behind with reading is no silent one while it takes what it asked for.
    fn look(&mut self, now: Instant) {
        let Some(progress) = self.peer().map(|peer| peer.progress()) else { return };
        if self.looked.is_some() {
            self.looked = Some(now);
            if std::mem::replace(&mut self.taken, progress) != progress {
                self.heard = now;
            }
        }
    }

    /// The lane is gone: tells the service. Called by drop, too.
    pub fn closed(&mut self, now: Instant) {
        let state = std::mem::replace(&mut self.state, State::Over);
        match state {
            State::Over => {}
            State::Open(peer) => {
                self.directory.remove(peer.id());
                peer.close();
                peer.landings().clear();
                self.service.closed(&peer, now);
                self.directory.leave();
            }
            // A stranger is one until its lane is dropped: its last words may take a while to go out.
            State::Greeting(..) | State::Challenged { .. } => {}
        }
    }

    fn next_frame(&mut self, now: Instant) -> Result<Option<Step>, RemoteError> {
        let Some(frame) = self.framer.next_frame()? else { return Ok(None) };
        self.frame_began = None;
        let id = frame.header.id;
        let State::Open(peer) = &self.state else {
            frame.intact.map_err(DecodeError::from)?;
            let challenged = matches!(self.state, State::Challenged { .. });
            if challenged && frame.header.kind != Ok(Kind::Challenge) {
                return Err(self.skipped(now));
            }
            return match Control::decode(&frame.header, frame.meta)? {
                Control::Hello(caps) => self.greet(caps, now).map(Some),
                Control::LaneHello(hello) => self.attach(&hello, now).map(Some),
                Control::Proof(proof) if challenged => self.check(&proof, now).map(Some),
                Control::AskLinks(ask) => self.links(&ask).map(Some),
                _ => Err(DecodeError::Misplaced(frame.header.kind.map_or_else(|k| k, |k| k as u8)).into()),
            };
        };
        match frame.header.kind {
            Ok(kind) if Control::is(kind) => {
                frame.intact.map_err(DecodeError::from)?;
                match Control::decode(&frame.header, frame.meta)? {
                    Control::Ping => peer.control(id, &Control::Pong),
                    Control::Cancel => self.service.cancel(peer, id, now),
                    Control::Goodbye(_) => return Ok(Some(Step::End(LaneEnd::Left))),
                    Control::SliceAgain { offset, late } => peer.slice_again(id, offset, late, now),
                    Control::LaneEnded { lane, slices } => peer.lane_ended(lane, slices),
                    Control::Late => peer.name_late(id),
                    Control::Pong => {}
                    _ => return Err(DecodeError::Misplaced(kind as u8).into()),
                }
            }
            kind => {
                let settings = self.service.settings();
                let kind = kind.unwrap_or(Kind::Echo);
                let decoded = match frame.intact {
                    Ok(()) => Request::decode(&frame.header, frame.meta, frame.payload),
                    Err(corrupted) => Err(corrupted.into()),
                };
                let within = peer.begin(settings.credits);
                if kind == Kind::Put && (!within || decoded.is_err()) {
                    // Should its slices come, they do not wait for a place.
                    peer.discard(id);
                }
                match decoded {
                    decoded if !within => {
                        if let Ok(request) = &decoded {
                            peer.give_back(request);
                        }
                        peer.reply(id, kind, &Reply::Failed(no_credit(settings.credits)));
                    }
                    Ok(request) => self.service.request(peer, id, request, now),
                    Err(error) => peer.reply(id, kind, &Reply::Failed(error.into())),
                }
            }
        }
        Ok(Some(Step::Continue))
    }

    fn greet(&mut self, caps: Caps, now: Instant) -> Result<Step, RemoteError> {
        let guard = self.service.settings().guard.clone();
        let State::Greeting(mut sink, driver) = std::mem::replace(&mut self.state, State::Over) else {
            return Ok(Step::Continue);
        };
        if !guard.asks_for_tokens() {
            let admitted = guard.unasked(sink.channel());
            return self.admit(caps, sink, driver, admitted);
        }
        let nonce = match guard.nonce() {
            Ok(nonce) => nonce,
            Err(error) => {
                self.state = State::Greeting(sink, driver);
                return Err(error);
            }
        };
        if self.framer.in_frame() {
            // It did not wait to be asked.
            self.state = State::Challenged { sink, driver, caps, nonce };
            return Err(self.skipped(now));
        }
        write(&mut *sink, &Control::Challenge(nonce));
        self.state = State::Challenged { sink, driver, caps, nonce };
        Ok(Step::Continue)
    }

    fn check(&mut self, proof: &Proof, now: Instant) -> Result<Step, RemoteError> {
        let guard = self.service.settings().guard.clone();
        let State::Challenged { sink, nonce, .. } = &self.state else { return Ok(Step::Continue) };
        let admitted = guard.check(nonce, &sink.channel(), proof, now)?;
        let State::Challenged { sink, driver, caps, .. } = std::mem::replace(&mut self.state, State::Over) else {
            return Ok(Step::Continue);
        };
        self.admit(caps, sink, driver, admitted)
    }

    /// Somebody was asked for proof of a token, and sends something else.
    fn skipped(&self, now: Instant) -> RemoteError {
        let channel = match &self.state {
            State::Challenged { sink, .. } => sink.channel(),
            _ => Channel::default(),
        };
        let message = "this server asks for proof of a token before anything else: give the client --token-file FILE";
        self.service.settings().guard.refuse(Refused::NoProof, &channel, "", message, now)
    }

    fn admit(
        &mut self,
        caps: Caps,
        sink: Box<dyn Sink>,
        driver: Arc<dyn Driver>,
        admitted: Admitted,
    ) -> Result<Step, RemoteError> {
        let limit = self.service.settings().max_connections;
        if !self.directory.admit(limit) {
            self.state = State::Greeting(sink, driver);
            let message = format!("the server has its most of {limit} connections: try again later");
            return Err(RemoteError::new(ErrorCode::Busy, message));
        }
        let mut salt = [0; 16];
        if let Err(error) = getrandom::fill(&mut salt) {
            self.directory.leave();
            self.state = State::Greeting(sink, driver);
            return Err(RemoteError::new(ErrorCode::Internal, error.to_string()));
        }
        let key = lane_key(admitted.lane_secret.as_ref(), &salt);
        self.framer.set_payload_cap(limits::CONTROL_PAYLOAD_BYTES);
        let s = self.service.settings();
        // A TLS channel proves each record: checksums would find nothing more on the way.
        let sealed = sink.channel().binding.is_some();
        let ours = if s.unchecked || sealed { Caps::OURS.and(Caps::UNCHECKED) } else { Caps::OURS };
        let caps = ours.common(caps);
        let link = (s.stuck, !caps.has(Caps::UNCHECKED));
        let peer = Peer::new(self.directory.next_id(), (key, admitted.identity), sink, driver, link);
        // A bulk lane may come as soon as the welcome is out.
        self.directory.insert(&peer);
        // Whoever takes a token back does so first, and then ends the connections that it finds: this one was not there yet.
        if s.guard.changes() != self.judged && !s.guard.is_current(peer.identity()) {
            self.directory.remove(peer.id());
            self.directory.leave();
            let message = "what this connection came in by was changed or taken back just now: connect again";
            let error = RemoteError::new(ErrorCode::Unauthorized, message);
            peer.goodbye(error.clone());
            return Err(error);
        }
        peer.control(
            0,
            &Control::Welcome(Welcome {
                caps,
                connection: peer.id(),
                lane_key: salt,
                epoch: s.epoch,
                credits: s.credits,
                eager_bytes: s.eager_bytes.min(self.eager_most),
                slice_bytes: s.slice_bytes,
                keepalive_ms: millis(s.keepalive),
                silence_ms: millis(s.silence()),
                proof: admitted.proof,
            }),
        );
        self.state = State::Open(peer);
        self.stranger = None;
        Ok(Step::Continue)
    }

    fn attach(&mut self, hello: &LaneHello, now: Instant) -> Result<Step, RemoteError> {
        let peer = self.directory.find(hello).ok_or_else(|| {
            let channel = match &self.state {
                State::Greeting(sink, _) => sink.channel(),
                _ => Channel::default(),
            };
            let message =
                "no connection has this number and lane key, or it opened a lane by these words before: connect again";
            self.service.settings().guard.refuse(Refused::Lane, &channel, "", message, now)
        })?;
        let sealed = matches!(&self.state, State::Greeting(sink, _) if sink.channel().binding.is_some());
        if !(sealed || peer.is_checked() || self.service.settings().unchecked) {
            return Err(RemoteError::new(
                ErrorCode::Malformed,
                "a connection over TLS whose slices have no checksums has all of its lanes over TLS",
            ));
        }
        if self.framer.in_frame() {
            return Err(RemoteError::new(
                ErrorCode::Malformed,
                "a bulk lane waits for its welcome before it sends slices",
            ));
        }
        // Before the welcome: whatever comes between that and its first slice, the client hears of the lane's end.
        let seat = LaneSeat::take(peer, hello.lane, self.service.settings().max_lanes)?;
        if let State::Greeting(sink, _) = &mut self.state {
            write(&mut **sink, &Control::LaneWelcome(hello.lane));
        }
        Ok(Step::Bulk(seat))
    }

    /// It may still be this lane that the client chooses.
    fn links(&mut self, ask: &AskLinks) -> Result<Step, RemoteError> {
        self.asked += 1;
        if self.asked > limits::LINKS_ASKED {
            return Err(RemoteError::new(ErrorCode::Busy, "links were asked for too often: send a greeting"));
        }
        let settings = self.service.settings();
        if let State::Greeting(sink, _) = &mut self.state {
            write(&mut **sink, &Control::Links(settings.offers.answer(ask, settings.epoch)));
        }
        Ok(Step::Continue)
    }

    fn refuse(&mut self, error: RemoteError) -> Step {
        match &mut self.state {
            State::Open(peer) => peer.goodbye(error.clone()),
            State::Greeting(sink, _) | State::Challenged { sink, .. } => farewell(&mut **sink, &error),
            State::Over => {}
        }
        Step::End(LaneEnd::Refused(error))
    }
}

impl<S: Service> Drop for ControlLane<S> {
    fn drop(&mut self) {
        let now = self.heard;
        self.closed(now);
    }
}

fn millis(d: Duration) -> u32 {
    u32::try_from(d.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn farewell(sink: &mut dyn Sink, error: &RemoteError) {
    write(sink, &Control::Goodbye(error.clone()));
}

/// Before a connection has an outbox: what a fresh socket does not take at once is not worth keeping.
fn write(sink: &mut dyn Sink, message: &Control) {
    let mut meta = Vec::new();
    let (kind, flags) = message.encode(&mut meta);
    let head = encode_header(kind, flags, 0, meta.len() as u32, 0, body_crc(&meta, &[]));
    let mut sent = 0;
    while sent < head.len() + meta.len() {
        let bufs =
            [IoSlice::new(&head[sent.min(head.len())..]), IoSlice::new(&meta[sent.saturating_sub(head.len())..])];
        match sink.send(&bufs) {
            Ok(n) if n > 0 => sent += n,
            end => {
                tracing::debug!(?end, "a greeting could not be sent");
                return;
            }
        }
    }
}
