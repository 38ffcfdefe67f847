//! A client that is killed while it sends.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Server, genie, good, json};

const SIZE: usize = 96 << 20;
/// What the relay lets through before it holds everything back.
const LET_THROUGH: u64 = 40 << 20;

/// Passes connections on to a server, but only so many bytes of what clients say; what is beyond waits until it is cut.
struct Relay {
    uri: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// What clients have said, and how much of it was let through.
    heard: AtomicU64,
    passed: AtomicU64,
    cut: AtomicBool,
}

impl Relay {
    fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp://{}", listener.local_addr().unwrap());
        let (server, state) = (server.trim_start_matches("tcp://").to_owned(), Arc::<State>::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(&server).unwrap());
                let (up, down) = ((client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client));
                let state = shared.clone();
                std::thread::spawn(move || pass(up.0, up.1, Some(&state)));
                std::thread::spawn(move || pass(down.0, down.1, None));
            }
        });
        Self { uri, state }
    }
}

/// Until one of the two ends.
fn pass(mut from: TcpStream, mut to: TcpStream, limited: Option<&State>) {
    let mut buf = vec![0; 64 << 10];
    while let Ok(n @ 1..) = from.read(&mut buf) {
        if let Some(state) = limited
            && state.heard.fetch_add(n as u64, Ordering::AcqRel) >= LET_THROUGH
        {
            while !state.cut.load(Ordering::Acquire) {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            break;
        }
        if to.write_all(&buf[..n]).is_err() {
            break;
        }
        if let Some(state) = limited {
            state.passed.fetch_add(n as u64, Ordering::AcqRel);
        }
    }
    // The other end may have done so already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

/// Bytes that lie in the kernel between a server and those who talk to it.
fn on_the_way(server: &str) -> u64 {
    let port = server.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let ends = format!(":{port:04X}");
    let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let queued = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // Of one that listens it is how many connections wait.
        let ours = fields[3] != "0A" && (fields[1].ends_with(&ends) || fields[2].ends_with(&ends));
        let (sent, arrived) = fields[4].split_once(':').unwrap();
        if ours { u64::from_str_radix(sent, 16).unwrap() + u64::from_str_radix(arrived, 16).unwrap() } else { 0 }
    };
    sockets.lines().skip(1).map(queued).sum()
}

#[test]
fn an_upload_goes_on_where_a_killed_client_left_it() {
    let server = Server::start();
    let relay = Relay::to(&server.uri);
    let folder = tempfile::tempdir().unwrap();
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    let data: Vec<u8> = (0..SIZE as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    std::fs::write(&sent, &data).unwrap();
    let (sent, got) = (sent.to_str().unwrap(), got.to_str().unwrap());

    let mut client = genie(&["put", &relay.uri, "big", sent]).stderr(Stdio::null()).spawn().unwrap();
    // A server that sees a client end reads nothing more of it: until then it must have read what was let through.
    while relay.state.passed.load(Ordering::Acquire) < LET_THROUGH || on_the_way(&server.uri) > 0 {
        assert_eq!(client.try_wait().unwrap(), None, "the relay holds back what it must have");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    relay.state.cut.store(true, Ordering::Release);

    // By another process, in another session.
    let again = json(&good(&["put", &server.uri, "big", sent, "--json"]));
    let up = again["bytes_up"].as_u64().unwrap();
    assert!(up > 0 && up < SIZE as u64 - LET_THROUGH + (8 << 20), "{up} bytes were sent again");
    good(&["get", &server.uri, "big", got]);
    assert!(std::fs::read(got).unwrap() == data, "what came back is not what was put");

    let third = json(&good(&["put", &server.uri, "other", sent, "--json"]));
    assert!(third["bytes_up"].as_u64().unwrap() < 1000, "the server has these bytes");
}
