//! A peer that is there no more and does not say so: a process that is stopped answers no pings, and its sockets stay open.

use std::time::{Duration, Instant};

use genie_graph::DType;
use genie_tests::child::{patience, signal};
use genie_tests::churn::{Churn, content};
use genie_tests::log::Log;
use genie_transport::Uri;
use genie_transport::client::{ClientError, PutOptions, blocking};
use genie_transport::wire::{Effect, TensorSpec};

use crate::place::Place;
use crate::roles::{MOST, options, server, victim};

const KEEPALIVE: Duration = Duration::from_millis(400);
/// Three keepalives, and time to notice and to tell, on a machine that is busy with other things. Three of the usual length are 30 s.
const FOUND: Duration = Duration::from_secs(20);

/// What one attempt to come back may take, which was begun in time.
const ATTEMPT: Duration = Duration::from_secs(20);

/// The client's requests end, with an error that says what was wrong; once the server goes on, so does the client.
pub(crate) fn a_server_that_stops(scheme: &str) {
    let place = Place::of(scheme);
    let (server, uri) = server(&place, &place.listen, 1, Some(KEEPALIVE));
    let uri: Uri = uri.parse().expect("an address");
    let mut options = options(&place.certificates);
    options.client.lease_ms = 60_000;
    let mut patient = options.clone();
    patient.client.reconnect_for = Duration::from_secs(20);
    let mut session = blocking::Session::connect(&uri, patient).expect("a session");
    let mut churn = Churn::new(1, MOST);
    churn.burst(&mut session).expect("the server is there");
    options.client.reconnect_for = KEEPALIVE;
    for bytes in [100_u64, 8 << 20] {
        // A greeting has no more time than that either, and may take longer.
        let connect = || blocking::Session::connect(&uri, options.clone());
        let mut session = patience(Duration::from_secs(60), |_| connect().ok()).expect("a session");
        let spec = TensorSpec::new(DType::U8, &[bytes]).expect("a shape");
        let data = content(bytes, bytes as usize);
        let alive = Instant::now();
        session.ping().expect("the server is there");
        server.signal("-STOP");
        let began = Instant::now();
        let (end, logged) = Log::of(|| session.put(&spec, data, PutOptions::default()));
        let took = began.elapsed();
        server.signal("-CONT");
        match end {
            Err(ClientError::Unreachable { reason, effect: Effect::Unknown }) => {
                println!("{bytes} bytes: {reason}, after {took:?}");
            }
            other => panic!("the server was stopped, and yet: {other:?}"),
        }
        let found = logged.iter().find(|(_, line)| line.contains("the connection was lost"));
        let (found, line) = found.unwrap_or_else(|| panic!("that the connection was lost is not logged: {logged:?}"));
        // Never sooner than the server may be silent: it was heard after this.
        let silent = found.duration_since(alive);
        assert!(silent >= KEEPALIVE * 3, "the server was given up after {silent:?}");
        let found = found.duration_since(began);
        println!("{bytes} bytes: found after {found:?}: {line}");
        assert!(found <= FOUND, "the client took the server for alive for {found:?}");
        // Then it is tried to come back, and given up.
        assert!(took <= found + options.client.reconnect_for + ATTEMPT, "given up only after {took:?}");
    }
    // A pause shorter than that is none, and a longer one costs no more than the way there.
    for pause in [KEEPALIVE, KEEPALIVE * 4] {
        let pid = server.pid();
        let stopped = std::thread::spawn(move || {
            signal(pid, "-STOP");
            std::thread::sleep(pause);
            signal(pid, "-CONT");
        });
        while !stopped.is_finished() {
            churn.burst(&mut session).expect("its requests are carried over the pause");
        }
        stopped.join().expect("the server went on");
        churn.burst(&mut session).expect("its requests are carried over the pause");
        assert_eq!(session.sessions_lost(), 0, "a pause of {pause:?}");
    }
}

/// The server lets go of a client that stops, and of all that it held for it.
pub(crate) fn a_client_that_stops(scheme: &str) {
    let place = Place::of(scheme);
    let (_server, uri) = server(&place, &place.listen, 1, Some(KEEPALIVE));
    let mut client = victim(&place, &uri, 3);
    client.hear("ready", Duration::from_secs(10));
    // It answers nothing between its calls, which are far apart until the client has started and stopped: taken for dead, it finds its
    // session as it was.
    let mut options = options(&place.certificates);
    options.client.lease_ms = 60_000;
    let mut watch = blocking::Session::connect(&uri.parse().expect("an address"), options).expect("a session");
    let mut sessions = || {
        let stats = watch.stats().expect("the server answers");
        stats.iter().find(|(name, _)| name == "genie_sessions").map(|(_, count)| *count)
    };
    assert_eq!(sessions(), Some(2));
    client.signal("-STOP");
    let found = patience(FOUND, |_| (sessions() == Some(1)).then_some(()));
    client.signal("-CONT");
    assert!(found.is_some(), "three keepalives and the lease are over, and the session is still there");
}
