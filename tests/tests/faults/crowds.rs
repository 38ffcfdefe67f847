//! Connections that say nothing, and connections that say it slowly.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use genie_tests::answer::Told;
use genie_tests::raw::{Raw, control, request};
use genie_transport::wire::{Caps, Control, ErrorCode, PutBody, Request, SliceHead};
use socket2::{Domain, Socket, Type};

use crate::scene::{Scene, bytes_spec, is, put};

const CROWD: usize = 10_000;
/// Connections from one address.
const FROM_ONE: usize = 2_500;

/// Where the crowd goes: its process is this program again, so that server and crowd do not share one limit of descriptors.
const SERVER: &str = "GENIE_CROWD_AT";

#[test]
fn ten_thousand_connections_that_send_nothing() {
    // The server's ends, and what tests beside this one have open.
    let limit = rlimit::increase_nofile_limit(u64::MAX).expect("the limit of descriptors can be read");
    let most = usize::try_from(limit.saturating_sub(1500)).unwrap_or(CROWD).min(CROWD);
    if most < CROWD {
        println!("this machine allows {limit} descriptors: only {most} connections of {CROWD} are tried");
    }
    let patience = Duration::from_secs(4);
    let mut scene = Scene::with(|config| config.settings.patience = patience);
    let mut crowd = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "crowds::the_crowd", "--ignored", "--nocapture"])
        .env(SERVER, format!("{} {most}", scene.server.address()))
        .stdout(Stdio::piped())
        .spawn()
        .expect("the crowd comes");
    let mut lines = BufReader::new(crowd.stdout.take().expect("its output")).lines();
    let mut said = |what: &str, scene: &mut Scene| -> usize {
        loop {
            // Others are served meanwhile, those too that come now.
            scene.is_unharmed();
            let line = lines.next().expect("the crowd says more").expect("it can be read");
            if let Some(count) = line.strip_prefix(what) {
                return count.trim().parse().expect("a number");
            }
        }
    };
    assert_eq!(said("connected ", &mut scene), most);
    scene.is_unharmed();
    // Each is told why it has to go.
    assert_eq!(said("sent away ", &mut scene), most);
    assert!(crowd.wait().expect("the crowd ends").success());
    scene.is_unharmed();
}

/// The process of [`ten_thousand_connections_that_send_nothing`].
#[test]
#[ignore = "only as a part of the test before it"]
fn the_crowd() {
    let Ok(words) = std::env::var(SERVER) else { return };
    let (server, count) = words.split_once(' ').expect("an address and a number");
    let (server, count): (SocketAddr, usize) = (server.parse().expect("an address"), count.parse().expect("a number"));
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit of descriptors");
    let connect = |i: usize| -> TcpStream {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let from = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2 + (i / FROM_ONE) as u8), 0));
        socket.bind(&from.into()).expect("an address of this machine");
        socket.connect(&server.into()).expect("the server takes it");
        socket.into()
    };
    let crowd: Vec<TcpStream> = (0..count).map(connect).collect();
    println!("connected {}", crowd.len());
    std::io::stdout().flush().expect("it is read");
    let mut away = 0;
    for stream in crowd {
        // Its time is over, or it had to make room for those that came after it, or there was none for it while they went.
        let why = Raw::over(stream).goodbye();
        assert_eq!(why.code, ErrorCode::TimedOut, "{why}");
        assert!(
            ["no greeting within 4 s", "has not said for long who it is", "too many lanes wait here"]
                .iter()
                .any(|w| why.message.contains(w)),
            "{why}"
        );
        away += 1;
    }
    println!("sent away {away}");
}

/// Strangers that were refused lingered for a second, so that they could read why, and nobody counted them: whoever came, said
/// something wrong and came again had as many sockets of the server as it liked.
#[test]
fn strangers_that_are_refused_count_until_they_are_gone() {
    const STRANGERS: usize = 16;
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit of descriptors");
    let mut scene = Scene::with(|config| config.settings.max_strangers = STRANGERS);
    // The witness's lanes: as many as its first answer was slow.
    let own = sockets_of(scene.server.address().port());
    let mut crowd = Vec::new();
    let mut most = 0;
    for i in 0..1000 {
        let stranger = Raw::dial(scene.server.address());
        // Every other says something wrong; none of them goes by itself.
        if i % 2 == 0 {
            // The server may have closed it already: there are too many.
            let _ = stranger.socket().write_all(&[0xff; 48]);
        }
        crowd.push(stranger);
        if i % 4 == 0 {
            // The table is read bit by bit, while some go that were counted and those come that waited: none of them lingers.
            let looks = (0..3).map(|_| sockets_of(scene.server.address().port()));
            most = most.max(looks.min().unwrap_or_default());
        }
    }
    // As many again may be about to go; one is being turned away, and each of the server's two threads may be closing one.
    assert!(most <= own + 2 * STRANGERS + 3, "{most} sockets, {own} before");
    scene.is_unharmed();
}

/// Sockets of this machine's processes at this port, but for those that listen.
fn sockets_of(port: u16) -> usize {
    const LISTENS: &str = "0A";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table of sockets");
    let at = format!(":{port:04X}");
    let of_a_process = |line: &&str| {
        let mut words = line.split_whitespace();
        let (local, state, inode) = (words.nth(1), words.nth(1), words.nth(5));
        local.is_some_and(|l| l.ends_with(&at))
            && state.is_some_and(|s| s != LISTENS)
            && inode.is_some_and(|i| i != "0")
    };
    table.lines().filter(of_a_process).count()
}

/// Between two bytes of a slow client.
const PAUSE: Duration = Duration::from_millis(20);

/// Pauses after which a server has had enough, or never will: a minute.
const PAUSES: u32 = 3000;

/// Says these bytes one by one, and never the last, until the server has enough of it; whether it had. However late it looks, it does not
/// find them whole.
fn dribble(raw: &mut Raw, bytes: &[u8]) -> bool {
    raw.socket().set_nonblocking(true).expect("it can be asked");
    let mut peeked = [0];
    let mut said = bytes[..bytes.len() - 1].iter();
    let closed = (0..PAUSES).any(|_| {
        if let Some(byte) = said.next() {
            raw.send(&[*byte]);
        }
        std::thread::sleep(PAUSE);
        // Something has come, or the end.
        !matches!(raw.socket().peek(&mut peeked), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
    });
    raw.socket().set_nonblocking(false).expect("it can be asked");
    closed
}

#[test]
fn one_byte_at_a_time_before_the_greeting() {
    let mut scene = Scene::with(|config| config.settings.patience = Duration::from_millis(300));
    let mut raw = Raw::dial(scene.server.address());
    assert!(dribble(&mut raw, &control(&Control::Hello(Caps::OURS))), "it waits for ever");
    is(&raw.goodbye(), ErrorCode::TimedOut, &["no greeting within 0.3 s"]);
    scene.is_unharmed();
}

#[test]
fn one_byte_at_a_time_in_a_request() {
    let mut scene = Scene::with(|config| config.settings.patience = Duration::from_millis(300));
    let (mut raw, ..) = scene.session();
    assert!(dribble(&mut raw, &request(2, &Request::Echo(&[7; 4000]))));
    is(&raw.goodbye(), ErrorCode::TimedOut, &["a frame took longer than 0.3 s to arrive"]);
    scene.is_unharmed();
}

#[test]
fn one_byte_at_a_time_in_a_slice() {
    let mut scene = Scene::with(|config| config.settings.patience = Duration::from_millis(100));
    let (mut raw, welcome, _) = scene.session();
    let mut lane = Raw::bulk(scene.server.address(), &welcome);
    let id = raw.start(&put(bytes_spec(8192), PutBody::Sliced { slice_bytes: 4096, announce: false }));
    let payload = [1; 4096];
    let slice = [&SliceHead::encode(id, 0, 8192, &payload)[..], &payload].concat();
    assert!(dribble(&mut lane, &slice));
    // The lane ends, and nothing else does: what was cut off comes over another.
    assert_eq!(raw.hear_control(), Some(Control::LaneEnded { lane: 1, slices: 0 }));
    assert!(lane.hear().is_none());
    let mut lane = Raw::bulk_lane(scene.server.address(), &welcome, 2);
    for offset in [0, 4096] {
        lane.send(&[&SliceHead::encode(id, offset, 8192, &payload)[..], &payload].concat());
    }
    assert!(matches!(raw.end_of(id), Ok(Told::Tensor { .. })));
    scene.is_unharmed();
}
