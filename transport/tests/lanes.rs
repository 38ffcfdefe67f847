//! A server's lanes by themselves: who gets one, for how long, and what the client hears of its end.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use genie_transport::auth::{Channel, lane_key, lane_proof};
use genie_transport::connection::{
    BulkMachine, ControlLane, Directory, Driver, Flushed, Framer, LaneEnd, Peer, Service, Settings, Sink, Step,
};
use genie_transport::memory::Slab;
use genie_transport::wire::{
    AskLinks, Caps, Control, ErrorCode, LaneHello, Request, Welcome, body_crc, encode_header, limits,
};

struct Idle(Settings);

impl Service for Idle {
    fn settings(&self) -> &Settings {
        &self.0
    }

    fn request(&self, _: &Arc<Peer>, _: u64, _: Request<'_>, _: Instant) {}
    fn cancel(&self, _: &Arc<Peer>, _: u64, _: Instant) {}
    fn landed(&self, _: &Arc<Peer>, _: u64, _: Instant) {}
    fn refused(&self, _: &Arc<Peer>, _: u64, _: Instant) {}
    fn closed(&self, _: &Arc<Peer>, _: Instant) {}
}

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Driver for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Takes everything at once, over a channel of TLS if it is bound.
#[derive(Clone, Default)]
struct Taker(Arc<Mutex<Vec<u8>>>, Option<[u8; 32]>);

impl Sink for Taker {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut taken = self.0.lock().unwrap();
        bufs.iter().for_each(|b| taken.extend_from_slice(b));
        Ok(bufs.iter().map(|b| b.len()).sum())
    }

    fn channel(&self) -> Channel {
        Channel { binding: self.1, ..Channel::default() }
    }
}

impl Taker {
    /// What the server has said since the last time.
    fn heard(&self) -> Vec<Control> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let mut framer = Framer::new(limits::CONTROL_PAYLOAD_BYTES);
        let (mut rest, mut heard) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let space = framer.space();
            let n = space.len().min(rest.len());
            space[..n].copy_from_slice(&rest[..n]);
            framer.filled(n);
            rest = &rest[n..];
            while let Some(frame) = framer.next_frame().unwrap() {
                heard.push(Control::decode(&frame.header, frame.meta).unwrap());
            }
        }
        heard
    }
}

struct Place {
    service: Arc<Idle>,
    directory: Arc<Directory>,
    now: Instant,
}

impl Place {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(1);
        change(&mut settings);
        Self { service: Arc::new(Idle(settings)), directory: Arc::default(), now: Instant::now() }
    }

    fn accept(&self) -> (ControlLane<Idle>, Taker, Arc<Bell>) {
        self.accept_over(Taker::default())
    }

    fn accept_over(&self, taker: Taker) -> (ControlLane<Idle>, Taker, Arc<Bell>) {
        let bell = Arc::<Bell>::default();
        let (service, directory) = (self.service.clone(), self.directory.clone());
        let lane = ControlLane::new(service, directory, Box::new(taker.clone()), bell.clone(), self.now).unwrap();
        (lane, taker, bell)
    }

    fn say(&self, lane: &mut ControlLane<Idle>, message: &Control) -> Step {
        let mut meta = Vec::new();
        let (kind, flags) = message.encode(&mut meta);
        let mut bytes = encode_header(kind, flags, 0, meta.len() as u32, 0, body_crc(&meta, &[])).to_vec();
        bytes.extend_from_slice(&meta);
        let space = lane.space();
        space[..bytes.len()].copy_from_slice(&bytes);
        lane.filled(bytes.len(), self.now)
    }

    /// A connection.
    fn greet(&self) -> (ControlLane<Idle>, Taker, Welcome) {
        self.greet_over(Taker::default(), Caps::OURS)
    }

    fn greet_over(&self, taker: Taker, caps: Caps) -> (ControlLane<Idle>, Taker, Welcome) {
        let (mut lane, taker, _) = self.accept_over(taker);
        assert!(matches!(self.say(&mut lane, &Control::Hello(caps)), Step::Continue));
        match taker.heard()[..] {
            [Control::Welcome(welcome)] => (lane, taker, welcome),
            ref other => panic!("{other:?}"),
        }
    }

    /// A bulk lane of that connection, as far as the server's answer.
    fn attach(&self, welcome: &Welcome, lane: u32) -> (Step, Taker) {
        self.attach_over(Taker::default(), welcome, lane)
    }

    fn attach_over(&self, taker: Taker, welcome: &Welcome, lane: u32) -> (Step, Taker) {
        let (mut fresh, taker, _) = self.accept_over(taker);
        let connection = welcome.connection;
        let proof = lane_proof(&lane_key(None, &welcome.lane_key), connection, lane, lane);
        let step = self.say(&mut fresh, &Control::LaneHello(LaneHello { connection, lane, attempt: lane, proof }));
        (step, taker)
    }
}

fn refusal(step: &Step) -> ErrorCode {
    match step {
        Step::End(LaneEnd::Refused(error)) => error.code,
        other => panic!("{other:?}"),
    }
}

/// A lane was welcomed, and then there was no place for it, or no thread: it was closed without a word, and what the client had
/// sent over it was missing for ever.
#[test]
fn a_lane_that_was_welcomed_has_a_place_or_its_end_is_told() {
    let place = Place::new(|settings| settings.max_lanes = 2);
    let (mut control, told, welcome) = place.greet();
    let (first, heard) = place.attach(&welcome, 1);
    let (second, _) = place.attach(&welcome, 2);
    assert!(matches!((&first, &second), (Step::Bulk(_), Step::Bulk(_))));
    assert_eq!(heard.heard(), [Control::LaneWelcome(1)]);
    // Nobody has begun to drive the two; a third is too many all the same, and is not welcomed.
    let (third, heard) = place.attach(&welcome, 3);
    assert_eq!(refusal(&third), ErrorCode::Busy);
    assert!(matches!(heard.heard()[..], [Control::Goodbye(_)]));
    assert_eq!(told.heard(), []);
    // Its driver could not begin.
    drop(first);
    assert_eq!(told.heard(), [Control::LaneEnded { lane: 1, slices: 0 }]);
    // Ended by the client before it came.
    assert!(matches!(place.say(&mut control, &Control::LaneEnded { lane: 4, slices: 0 }), Step::Continue));
    let (late, heard) = place.attach(&welcome, 4);
    assert_eq!(refusal(&late), ErrorCode::Malformed);
    assert!(matches!(heard.heard()[..], [Control::Goodbye(_)]));
}

/// A reader that kept up held a thread of the server's until it had all that it had asked for.
#[test]
fn a_lane_whose_reader_keeps_up_pauses_for_others() {
    let place = Place::new(|_| {});
    let (_control, _, welcome) = place.greet();
    let (Step::Bulk(seat), _) = place.attach(&welcome, 1) else { panic!("no lane") };
    let mut lane = BulkMachine::new(seat, Arc::<Bell>::default(), place.service.settings(), place.now);
    let bytes = Slab::zeroed(64 * 4096).freeze();
    lane.peer().clone().send_sliced(7, vec![bytes], 4096);
    let mut taker = Taker::default();
    let mut turns = 1;
    while lane.flush(&mut taker, place.now).unwrap() == Flushed::Turn {
        turns += 1;
        assert!(lane.overdue(place.now).is_none());
    }
    assert!(turns > 2, "64 slices went in {turns} turns");
    assert_eq!(lane.flush(&mut taker, place.now).unwrap(), Flushed::All);
    assert!(taker.0.lock().unwrap().len() > 64 * 4096);
}

/// A stranger that said something now and then, but not who it is, kept its place for as long as it liked.
#[test]
fn a_stranger_has_one_patience_whatever_it_says() {
    let place = Place::new(|settings| settings.patience = Duration::from_secs(10));
    let (mut lane, taker, _) = place.accept();
    let mut later = Place::new(|_| {});
    later.now = place.now;
    for _ in 0..3 {
        later.now += Duration::from_secs(3);
        let ask = Control::AskLinks(AskLinks { nonce: [1; 16], host: [0; 16] });
        assert!(matches!(later.say(&mut lane, &ask), Step::Continue));
    }
    assert_eq!(lane.deadline(), place.now + Duration::from_secs(10));
    assert_eq!(refusal(&lane.timeout(lane.deadline())), ErrorCode::TimedOut);
    assert!(matches!(taker.heard()[..], [.., Control::Goodbye(_)]));
}

/// Strangers took the places of connections: sixteen thousand silent sockets, and nobody else got in.
#[test]
fn strangers_take_no_place_from_a_connection() {
    let place = Place::new(|settings| (settings.max_connections, settings.max_strangers) = (2, 3));
    let strangers: Vec<_> = (0..3).map(|_| place.accept()).collect();
    let (_first, ..) = place.greet();
    assert!(strangers[0].0.is_displaced() && strangers[0].2.0.load(Ordering::Relaxed) == 1);
    assert!(!strangers[1].0.is_displaced());
    let mut strangers = strangers.into_iter();
    let (mut oldest, heard, _) = strangers.next().unwrap();
    assert!(oldest.deadline() <= place.now);
    assert_eq!(refusal(&oldest.timeout(place.now)), ErrorCode::TimedOut);
    assert!(matches!(heard.heard()[..], [Control::Goodbye(_)]));
    drop(oldest);
    let (_second, _, welcome) = place.greet();
    // All places are taken, by connections: one more is told, and their bulk lanes come all the same.
    let (mut third, told, _) = place.accept();
    assert_eq!(refusal(&place.say(&mut third, &Control::Hello(Caps::OURS))), ErrorCode::Busy);
    assert!(matches!(told.heard()[..], [Control::Goodbye(_)]));
    assert!(matches!(place.attach(&welcome, 1), (Step::Bulk(_), _)));
}

/// A lane that came while too many strangers waited was told what one is told whose connection has lanes enough: its client asked
/// for fewer from then on.
#[test]
fn a_stranger_too_many_is_not_told_that_its_connection_has_lanes_enough() {
    let place = Place::new(|settings| settings.max_strangers = 1);
    let _waiting: Vec<_> = (0..2).map(|_| place.accept()).collect();
    let taker = Taker::default();
    let (service, directory) = (place.service.clone(), place.directory.clone());
    let lane = ControlLane::new(service, directory, Box::new(taker.clone()), Arc::<Bell>::default(), place.now);
    assert!(lane.is_none());
    match &taker.heard()[..] {
        [Control::Goodbye(error)] => assert_eq!(error.code, ErrorCode::TimedOut),
        other => panic!("{other:?}"),
    }
}

/// A lane that is to go was no stranger any more while its last words went out: whoever opened lanes and was refused, again and
/// again, had as many of them open as it liked.
#[test]
fn a_stranger_counts_until_its_lane_is_gone() {
    let place = Place::new(|settings| settings.max_strangers = 1);
    let (mut first, ..) = place.accept();
    let (mut second, ..) = place.accept();
    for lane in [&mut first, &mut second] {
        assert!(matches!(place.say(lane, &Control::Ping), Step::End(_)));
        lane.closed(place.now);
    }
    let one_more = || {
        let (service, directory) = (place.service.clone(), place.directory.clone());
        ControlLane::new(service, directory, Box::new(Taker::default()), Arc::<Bell>::default(), place.now)
    };
    assert!(one_more().is_none(), "two are about to go");
    drop(first);
    assert!(one_more().is_some());
}

/// Over TLS slices have no checksums of their own: a lane in plaintext would carry them unprotected.
#[test]
fn a_connection_over_tls_has_no_lanes_in_plaintext() {
    let place = Place::new(|_| {});
    let sealed = || Taker(Arc::default(), Some([7; 32]));
    let (_control, _, welcome) = place.greet_over(sealed(), Caps::OURS.and(Caps::UNCHECKED));
    assert!(welcome.caps.has(Caps::UNCHECKED));
    let (plain, heard) = place.attach(&welcome, 1);
    assert_eq!(refusal(&plain), ErrorCode::Malformed);
    assert!(matches!(heard.heard()[..], [Control::Goodbye(_)]));
    assert!(matches!(place.attach_over(sealed(), &welcome, 2), (Step::Bulk(_), _)));
    // One in plaintext is not granted to go without, and may have either.
    let (_control, _, welcome) = place.greet_over(Taker::default(), Caps::OURS.and(Caps::UNCHECKED));
    assert!(!welcome.caps.has(Caps::UNCHECKED));
    assert!(matches!(place.attach(&welcome, 1), (Step::Bulk(_), _)));
}
