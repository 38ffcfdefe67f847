//! What went wrong once in the client's machine, told without a network.

use super::*;
use crate::connection::Want;
use crate::connection::requests::RequestId;
use crate::memory::Landing;
use crate::wire::{Flags, Kind, PutBody, PutRequest, Request, SessionToken};

/// A server's words: the machine under test reads them as bytes.
fn said(kind: Kind, flags: Flags, id: u64, meta: &[u8]) -> Vec<u8> {
    let mut frame = encode_header(kind, flags, id, meta.len() as u32, 0, body_crc(meta, &[])).to_vec();
    frame.extend_from_slice(meta);
    frame
}

fn control(message: &Control) -> Vec<u8> {
    let mut meta = Vec::new();
    let (kind, flags) = message.encode(&mut meta);
    said(kind, flags, 0, &meta)
}

fn hear(client: &mut Client, mut bytes: &[u8], now: Instant) -> Result<(), ClientError> {
    while !bytes.is_empty() {
        let space = client.space();
        let n = space.len().min(bytes.len());
        space[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        client.filled(n, now)?;
    }
    Ok(())
}

/// What the client says next: kinds and ids.
fn words(client: &mut Client) -> Vec<(Kind, u64)> {
    #[derive(Default)]
    struct Taker(Vec<u8>);
    impl Sink for Taker {
        fn send(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
            bufs.iter().for_each(|b| self.0.extend_from_slice(b));
            Ok(bufs.iter().map(|b| b.len()).sum())
        }
    }
    let mut taker = Taker::default();
    client.flush(&mut taker).unwrap();
    let mut framer = Framer::new(limits::CONTROL_PAYLOAD_BYTES);
    let mut words = Vec::new();
    let mut rest = &taker.0[..];
    while !rest.is_empty() {
        let space = framer.space();
        let n = space.len().min(rest.len());
        space[..n].copy_from_slice(&rest[..n]);
        framer.filled(n);
        rest = &rest[n..];
        while let Some(frame) = framer.next_frame().unwrap() {
            words.push((frame.header.kind.unwrap(), frame.header.id));
        }
    }
    words
}

/// Greets, and answers the open or resume.
fn connect(client: &mut Client, now: Instant) {
    assert!(client.wants_connection(now));
    client.connected(now);
    welcome(client, now);
    open(client, now);
}

fn welcome(client: &mut Client, now: Instant) {
    let welcome = Welcome {
        caps: Caps::OURS,
        connection: 1,
        lane_key: [0; 16],
        epoch: 7,
        credits: 8,
        eager_bytes: 4096,
        slice_bytes: 4096,
        keepalive_ms: 1000,
        silence_ms: 5000,
        proof: Mac([0; 32]),
    };
    hear(client, &control(&Control::Welcome(welcome)), now).unwrap();
}

fn open(client: &mut Client, now: Instant) {
    let (kind, id) = *words(client).last().unwrap();
    let opened = OpenedSession {
        session: 1,
        token: SessionToken([1; 32]),
        epoch: 7,
        quota: 1 << 20,
        lease_ms: 1000,
        next_request: 1,
    };
    let mut meta = Vec::new();
    let flags = Reply::Opened(opened).encode(&mut meta, &mut Vec::new());
    hear(client, &said(kind, flags, id, &meta), now).unwrap();
    assert!(client.is_ready());
}

fn client(now: Instant) -> Client {
    Client::new(ClientOptions { reconnect_for: Duration::from_secs(1), ..ClientOptions::default() }, now)
}

/// A request of a client that had given up waited for ever: only those that were there at that moment were failed.
#[test]
fn a_request_after_the_end_fails_at_once() {
    let now = Instant::now();
    let mut client = client(now);
    client.lost("nobody there", now);
    client.lost("nobody there", now + Duration::from_secs(2));
    assert!(client.dead().is_some());
    let (id, _) = client.start(&Request::Devices, None, None);
    assert!(client.has_answer(id));
    assert!(matches!(client.answer(id), Some(Err(ClientError::Unreachable { .. }))));
}

/// What was never sent has had no effect, and says so.
#[test]
fn what_was_never_sent_has_no_effect() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let (sent, _) = client.start(&Request::Devices, None, None);
    client.lost("the server fell over", now);
    let (unsent, _) = client.start(&Request::Devices, None, None);
    now += Duration::from_secs(5);
    client.lost("nobody there", now);
    let effect = |client: &mut Client, id| match client.answer(id) {
        Some(Err(ClientError::Unreachable { effect, .. })) => effect,
        other => panic!("{other:?}"),
    };
    assert_eq!(effect(&mut client, sent), Effect::Unknown);
    assert_eq!(effect(&mut client, unsent), Effect::None);
}

/// A run with more inline bytes than a frame may have was sent all the same; the server ended the connection, the client sent it
/// again, and so on for ever, and every other request of the session with it.
#[test]
fn what_no_frame_may_hold_is_not_sent() {
    let now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let graph = vec![0; limits::CONTROL_PAYLOAD_BYTES as usize + 1];
    let (id, _) = client.start(&Request::Define { device: 0, graph: &graph }, None, None);
    assert!(matches!(client.answer(id), Some(Err(ClientError::Request(DecodeError::TooLong { .. })))));
    client.end(id);
    assert_eq!(words(&mut client), [], "nothing of it went out");
    let (id, _) = client.start(&Request::Devices, None, None);
    assert_eq!(words(&mut client), [(Kind::Devices, id.0)], "and the connection goes on");
}

/// A server that ends every connection right after it was opened was tried for ever: being opened restarted the clock.
#[test]
fn a_connection_that_answers_nothing_does_not_restart_the_clock() {
    let mut now = Instant::now();
    let mut client = client(now);
    let (id, _) = client.start(&Request::Devices, None, None);
    for _ in 0..1000 {
        connect(&mut client, now);
        client.lost("ended", now);
        if client.dead().is_some() {
            break;
        }
        now = client.deadline().unwrap();
    }
    assert!(matches!(client.answer(id), Some(Err(ClientError::Unreachable { .. }))));
}

/// The clock had run out while nobody asked for anything: the first request of a session that had been idle for long failed as soon as
/// its connection turned out to be gone, and no other was tried.
#[test]
fn who_asks_late_is_waited_for_as_well() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    now += Duration::from_secs(60);
    let (id, _) = client.start(&Request::Devices, None, None);
    // That it looked late is noticed, and a second look asked for.
    let mut look = || {
        now += Duration::from_secs(1);
        client.timeout(now).err()
    };
    let silent = (0..10).find_map(|_| look()).expect("nothing was heard for a minute");
    client.lost(&silent.to_string(), now);
    assert!(client.dead().is_none() && !client.has_answer(id));
    // And no more than once for what it asked: of these connections none answers it.
    for _ in 0..1000 {
        now = client.deadline().unwrap();
        connect(&mut client, now);
        client.lost("ended", now);
        if client.dead().is_some() {
            break;
        }
    }
    assert!(matches!(client.answer(id), Some(Err(ClientError::Unreachable { .. }))));
}

/// Two processes with one token took the session from each other for ever, and what they had sent was renumbered on the way.
#[test]
fn a_session_that_was_taken_over_is_not_taken_back() {
    let now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let (id, _) = client.start(&Request::Devices, None, None);
    let gone = RemoteError::new(ErrorCode::SessionGone, "taken up elsewhere");
    let error = hear(&mut client, &control(&Control::Goodbye(gone.clone())), now).unwrap_err();
    client.lost(&error.to_string(), now);
    assert!(!client.wants_connection(now + Duration::from_secs(10)));
    assert_eq!(client.answer(id).unwrap().unwrap_err(), ClientError::Remote(gone));
}

/// A request that was given up while the connection was down went on at the server until its session ended, with its memory.
#[test]
fn what_was_given_up_is_cancelled_when_the_session_is_taken_up_again() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let (before, _) = client.start(&Request::Devices, None, None);
    let (during, _) = client.start(&Request::Devices, None, None);
    words(&mut client);
    client.end(before);
    client.lost("cut", now);
    client.end(during);
    now = client.deadline().unwrap();
    connect(&mut client, now);
    let mut cancelled = words(&mut client);
    cancelled.sort_unstable_by_key(|w| w.1);
    assert_eq!(cancelled, [(Kind::Cancel, before.0), (Kind::Cancel, during.0)]);
}

/// A request whose frame came corrupted is new to the server when it is sent again. When enough later ones had ended by then, the
/// server took it for one whose reply it had let go, and nobody knew whether it had taken effect.
#[test]
fn what_came_corrupted_is_through_before_anything_new_is_sent() {
    let now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let free = Request::Free(crate::wire::Handle { index: 1, generation: 1, epoch: 7 });
    let (first, _) = client.start(&free, None, None);
    let (second, _) = client.start(&free, None, None);
    assert_eq!(words(&mut client), [(Kind::Free, first.0), (Kind::Free, second.0)]);
    let answer = |id: RequestId, reply: &Reply<'_>| {
        let mut meta = Vec::new();
        let flags = reply.encode(&mut meta, &mut Vec::new());
        said(Kind::Free, flags, id.0, &meta)
    };
    let corrupt = Reply::Failed(RemoteError::new(ErrorCode::Corrupt, "corrupted on the way"));
    hear(&mut client, &answer(first, &corrupt), now).unwrap();
    let (third, _) = client.start(&free, None, None);
    assert_eq!(words(&mut client), [(Kind::Free, first.0)], "again, under its own id, and nothing after it");
    hear(&mut client, &answer(second, &Reply::Done), now).unwrap();
    assert_eq!(words(&mut client), []);
    hear(&mut client, &answer(first, &Reply::Done), now).unwrap();
    assert_eq!(words(&mut client), [(Kind::Free, third.0)]);
}

/// An upload over a connection that broke every few megabytes was given up though each connection brought it further: only
/// a request's end counted as a sign that the server does its work.
#[test]
fn a_part_of_an_answer_restarts_the_clock() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let spec = crate::wire::TensorSpec::new(genie_graph::DType::U8, &[8192]).unwrap();
    let target = crate::wire::PutTarget::New {
        device: 0,
        residency: crate::wire::ResidencyCode::Private,
        hash: None,
        name: None,
    };
    let body = PutBody::Sliced { slice_bytes: 4096, announce: true };
    let put = Request::Put(PutRequest { target, spec, body });
    let id = client.start_put(&put, vec![Bytes::from(vec![1; 8192])], 4096);
    for _ in 0..20 {
        let mut meta = Vec::new();
        let landed = Reply::Landed { slice_bytes: 4096, slices: 2, bits: &[0] };
        let flags = landed.encode(&mut meta, &mut Vec::new());
        let mut frame = encode_header(Kind::Put, flags, id.0, meta.len() as u32, 1, body_crc(&meta, &[0])).to_vec();
        frame.extend_from_slice(&meta);
        frame.push(0);
        hear(&mut client, &frame, now).unwrap();
        client.lost("cut", now);
        now += Duration::from_millis(500);
        connect(&mut client, now);
    }
    assert!(!client.has_answer(id));
}

/// A server whose machine was gone was waited for for six keepalives, or for as long as it had said.
#[test]
fn a_silent_server_is_given_up_after_three_keepalives() {
    let began = Instant::now();
    let mut client = client(began);
    // Its welcome says a second, and five of silence.
    connect(&mut client, began);
    let mut now = began;
    let mut pings = 0;
    let gone = loop {
        now = client.deadline().expect("it is connected").max(now);
        if let Err(error) = client.timeout(now) {
            break error;
        }
        pings += words(&mut client).iter().filter(|word| word.0 == Kind::Ping).count();
        assert!(pings < 10, "it pings for ever");
    };
    assert_eq!((now - began, pings), (Duration::from_secs(3), 2));
    assert!(gone.to_string().contains("silent for 3 s"), "{gone}");
    // A word, and it is not.
    let mut client = Client::new(ClientOptions::default(), began);
    connect(&mut client, began);
    hear(&mut client, &control(&Control::Pong), began + Duration::from_secs(2)).unwrap();
    client.timeout(began + Duration::from_secs(4)).unwrap();
}

fn get(client: &mut Client, bytes: usize) -> RequestId {
    let handle = crate::wire::Handle { index: 1, generation: 1, epoch: 7 };
    let get = Request::Get { handle, offset: 0, length: bytes as u64, sliced: Some(4096) };
    client.start_get(&get, Landing::new(vec![crate::memory::Slab::zeroed(bytes)], 4096))
}

/// A server that owes a client more than a thousand tensors reads nothing before it has sent some, pings included: the client took
/// it for dead in the middle of its answers, and asked for all of them again, for ever.
#[test]
fn a_server_that_is_heard_over_its_bulk_lanes_is_alive() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    for _ in 0..10 {
        now += Duration::from_secs(2);
        client.lane_heard(now);
        client.timeout(now).unwrap();
    }
    now += Duration::from_secs(3);
    client.timeout(now).unwrap();
    client.timeout(now).unwrap_err();
}

/// A client that had stood still for longer than a server may be silent, since its machine slept or had no core for it, gave up the
/// server whose words lay in its socket: it looked at the clock before it read.
#[test]
fn who_stood_still_reads_before_it_judges() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    for _ in 0..3 {
        now += Duration::from_secs(60);
        client.timeout(now).unwrap();
        assert!(client.deadline().unwrap() <= now, "it looks again at once");
        hear(&mut client, &control(&Control::Pong), now).unwrap();
        client.timeout(now).unwrap();
    }
    // Nothing has come, this time.
    now += Duration::from_secs(60);
    client.timeout(now).unwrap();
    assert!(client.deadline().unwrap() <= now);
    client.timeout(now).unwrap_err();
}

/// Lanes that were lost counted although others carried slices: transfers were given up that went well.
#[test]
fn lanes_that_are_lost_do_not_end_what_goes_well_over_others() {
    let mut now = Instant::now();
    let options = ClientOptions { lanes: 4, ..ClientOptions::default() };
    let mut client = Client::new(options, now);
    connect(&mut client, now);
    let id = get(&mut client, 8192);
    let first = client.next_lane(now).unwrap();
    client.lane_opened(first);
    let lose = |client: &mut Client, now: &mut Instant| {
        *now += Duration::from_secs(2);
        let lane = client.next_lane(*now).expect("a lane is wanted");
        client.lane_over(lane, 0, "lost", *now);
        client.lane_heard(*now);
        hear(client, &control(&Control::Pong), *now).unwrap();
        client.timeout(*now).unwrap();
    };
    for _ in 0..100 {
        client.lane_carries();
        lose(&mut client, &mut now);
        assert!(!client.has_answer(id));
    }
    for _ in 0..100 {
        lose(&mut client, &mut now);
    }
    assert!(matches!(client.answer(id), Some(Err(ClientError::Unreachable { .. }))), "none carries anything");
}

/// The server counted a lane that was about to go: the one in its place was refused, and the connection never again had as many as
/// it may.
#[test]
fn lanes_that_were_refused_are_asked_for_again() {
    let mut now = Instant::now();
    let options = ClientOptions { lanes: 4, ..ClientOptions::default() };
    let mut client = Client::new(options, now);
    connect(&mut client, now);
    let _ = get(&mut client, 8192);
    let mut lanes: Vec<_> = std::iter::from_fn(|| client.next_lane(now)).collect();
    assert_eq!(lanes.len(), 4);
    for refused in lanes.drain(2..) {
        client.lane_refused(refused, now);
        client.lane_over(refused, 0, "refused", now);
    }
    lanes.into_iter().for_each(|lane| client.lane_opened(lane));
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let due = now + Duration::from_secs(seconds);
        assert_eq!(client.next_lane(due - Duration::from_millis(1)), None, "after {seconds} s");
        now = due;
        let lane = client.next_lane(now).expect("one more is asked for");
        assert_eq!(client.next_lane(now), None, "one at a time");
        client.lane_refused(lane, now);
        client.lane_over(lane, 0, "refused", now);
    }
    now += Duration::from_secs(60);
    let third = client.next_lane(now).unwrap();
    client.lane_opened(third);
    assert!(client.next_lane(now).is_some(), "there is room after all");
    assert_eq!(client.next_lane(now), None, "four are there");
}

/// Lanes that the server did not take counted as lanes that bring nothing: asked for again and again while nothing moved, they ended the
/// next transfer as it began.
#[test]
fn lanes_that_are_refused_end_no_transfer() {
    let mut now = Instant::now();
    let options = ClientOptions { lanes: 4, ..ClientOptions::default() };
    let mut client = Client::new(options, now);
    connect(&mut client, now);
    let id = get(&mut client, 8192);
    let first = client.next_lane(now).unwrap();
    client.lane_opened(first);
    for _ in 0..100 {
        now += Duration::from_secs(60);
        let lane = client.next_lane(now).expect("a lane is wanted");
        client.lane_refused(lane, now);
        client.lane_over(lane, 0, "refused", now);
        client.lane_heard(now);
        hear(&mut client, &control(&Control::Pong), now).unwrap();
        client.timeout(now).unwrap();
        assert!(!client.has_answer(id));
    }
    client.end(id);
    now += Duration::from_secs(60);
    assert_eq!(client.next_lane(now), None, "nobody has a use for another");
}

/// The handshake and the proof of who is who were taken for the way to the server: two lanes where one does better.
#[test]
fn a_long_greeting_is_no_long_way() {
    let mut now = Instant::now();
    let mut client = client(now);
    assert!(client.wants_connection(now));
    client.connected(now);
    now += Duration::from_millis(30);
    welcome(&mut client, now);
    now += Duration::from_micros(300);
    open(&mut client, now);
    let _ = get(&mut client, 8192);
    assert_eq!((client.lane_plan().lanes, client.wants_lanes()), (1, 1));
    client.lost("cut", now);
    now = client.deadline().unwrap();
    client.connected(now);
    welcome(&mut client, now);
    open(&mut client, now + Duration::from_millis(30));
    assert!(client.wants_lanes() > 1);
}

/// Seven lanes that shared 100 Mb/s had two or three slices of 4 MiB each: those with three were alone for a third of the time.
#[test]
fn slices_are_smaller_where_lanes_share_a_slow_path() {
    let plan = |prefers, ms| SlicePlan::new(prefers, Duration::from_millis(ms)).bytes;
    assert_eq!([plan(256 << 10, 0), plan(256 << 10, 2), plan(256 << 10, 20)], [256 << 10, 256 << 10, 64 << 10]);
    assert_eq!(plan(16 << 10, 20), 16 << 10, "the server prefers smaller ones yet");
}

/// "For ever" was added to a moment, which no clock can say: the session's thread panicked.
#[test]
fn patience_without_end_is_no_panic() {
    let now = Instant::now();
    let (stuck, backoff) = (Duration::MAX, Duration::MAX);
    let mut client = Client::new(ClientOptions { stuck, backoff, ..ClientOptions::default() }, now);
    connect(&mut client, now);
    let _ = get(&mut client, 8192);
    let number = client.next_lane(now).unwrap();
    let mut lane = crate::connection::ClientLane::new(&client, number, now);
    let Want::Read { first, .. } = lane.want(&mut client, now) else { panic!("it reads") };
    let welcome = control(&Control::LaneWelcome(number));
    let head = first.len();
    first.copy_from_slice(&welcome[..head]);
    lane.filled(head, &mut client, now).unwrap();
    let Want::Read { first, .. } = lane.want(&mut client, now) else { panic!("it reads") };
    first.copy_from_slice(&welcome[head..]);
    lane.filled(welcome.len() - head, &mut client, now).unwrap();
    assert!(lane.is_open());
    // Half a slice's head comes, and no more.
    let Want::Read { first, .. } = lane.want(&mut client, now) else { panic!("it reads") };
    assert!(first.len() > 4);
    lane.filled(4, &mut client, now).unwrap();
    let later = now + Duration::from_secs(1);
    hear(&mut client, &control(&Control::Pong), later).unwrap();
    lane.timeout(&client, later).unwrap();
    let later = later + Duration::from_secs(1);
    hear(&mut client, &control(&Control::Pong), later).unwrap();
    lane.timeout(&client, later).unwrap();
    assert!(lane.deadline(&client).is_some_and(|at| at > later + Duration::from_secs(1_000_000)));
    client.lane_over(number, 0, "gone", later);
    client.lost("gone", later);
}

/// A put of shared memory went down with its connection, and nobody wanted it any more: the use that was taken for it stayed, and
/// the memory could never be written again.
#[test]
fn a_use_that_the_server_never_saw_is_given_back() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let bytes = Arc::new(SharedBytes::new(4096).unwrap());
    let start = |client: &mut Client| {
        let spec = crate::wire::TensorSpec::new(genie_graph::DType::U8, &[64]).unwrap();
        let residency = crate::wire::ResidencyCode::Private;
        let target = crate::wire::PutTarget::New { device: 0, residency, hash: None, name: None };
        let body = PutBody::Passed(crate::wire::Shared { region: 1, offset: 0 });
        let (id, _) = client.start(&Request::Put(PutRequest { target, spec, body }), None, None);
        bytes.take_use();
        client.passes(id, bytes.clone(), client.uses_forgotten());
        id
    };
    // One that is awaited when the connection goes, one that waits to be sent again, one that was never sent.
    let (first, second) = (start(&mut client), start(&mut client));
    words(&mut client);
    client.end(first);
    client.lost("cut", now);
    client.end(second);
    let third = start(&mut client);
    client.end(third);
    bytes.give_use_back();
    assert!(bytes.is_used(), "the server may have seen one");
    bytes.take_use();
    now = client.deadline().unwrap();
    // The server has seen none: its next request is the first.
    connect(&mut client, now);
    assert!(!bytes.is_used());
    // What it has answered, it has given back itself.
    let fourth = start(&mut client);
    let mut meta = Vec::new();
    let flags = Reply::Failed(RemoteError::new(ErrorCode::OutOfMemory, "full")).encode(&mut meta, &mut Vec::new());
    hear(&mut client, &said(Kind::Put, flags, fourth.0, &meta), now).unwrap();
    client.end(fourth);
    assert!(bytes.is_used(), "by whoever gives it back");
}

/// The use of shared memory that was taken for a put leaked when the put ended before the server heard of it.
#[test]
fn a_put_that_ends_unsent_gives_its_memory_back() {
    let now = Instant::now();
    let bytes = Arc::new(SharedBytes::new(4096).unwrap());
    let put = |client: &mut Client| {
        bytes.take_use();
        let (id, _) = client.start(&Request::Devices, None, None);
        client.passes(id, bytes.clone(), client.uses_forgotten());
        id
    };
    let mut client = client(now);
    let unsent = put(&mut client);
    client.end(unsent);
    assert!(!bytes.is_used());
    connect(&mut client, now);
    let sent = put(&mut client);
    client.end(sent);
    assert!(bytes.is_used(), "the server has heard of it, and gives it back");
}

/// A server was killed and none came after it, or let the session go while its client was away: what had been passed and not answered
/// stayed used, and its memory could never be written again.
#[test]
fn uses_are_forgotten_with_the_session_and_with_the_server() {
    let mut now = Instant::now();
    let mut client = client(now);
    connect(&mut client, now);
    let bytes = Arc::new(SharedBytes::new(4096).unwrap());
    let pass = |client: &mut Client| {
        bytes.take_use();
        let (id, _) = client.start(&Request::Devices, None, None);
        client.passes(id, bytes.clone(), client.uses_forgotten());
        id
    };
    let (ended, waiting) = (pass(&mut client), pass(&mut client));
    words(&mut client);
    client.end(ended);
    client.lost("cut", now);
    now = client.deadline().unwrap();
    client.connected(now);
    welcome(&mut client, now);
    let (kind, id) = *words(&mut client).last().unwrap();
    let mut meta = Vec::new();
    let gone = RemoteError::new(ErrorCode::SessionGone, "its lease has run out");
    let flags = Reply::Failed(gone).encode(&mut meta, &mut Vec::new());
    hear(&mut client, &said(kind, flags, id, &meta), now).unwrap();
    assert_eq!(client.uses_forgotten(), 1);
    // As whoever shares the memory does.
    bytes.forget_uses();
    open(&mut client, now);
    client.end(waiting);
    let third = pass(&mut client);
    words(&mut client);
    assert!(bytes.is_used(), "nothing of before was given back from it");
    client.lost("cut", now);
    client.lost("nobody there", now + Duration::from_secs(2));
    assert!(client.dead().is_some());
    assert_eq!(client.uses_forgotten(), 2);
    bytes.forget_uses();
    client.end(third);
    assert!(!bytes.is_used());
}
