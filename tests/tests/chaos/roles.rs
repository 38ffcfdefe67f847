//! The processes.

use std::io::BufRead;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use genie_tests::child::{Role, is_role, say};
use genie_tests::churn::{Churn, doing};
use genie_tests::serve::{Live, config};
use genie_transport::client::{ClientError, ConnectOptions, blocking};
use genie_transport::wire::ErrorCode;

use crate::place::{Place, access, trust};

const LISTEN: &str = "GENIE_CHAOS_LISTEN";
const EPOCH: &str = "GENIE_CHAOS_EPOCH";
const SEED: &str = "GENIE_CHAOS_SEED";
const KEEPALIVE: &str = "GENIE_CHAOS_KEEPALIVE_MS";
const DESCRIPTORS: &str = "GENIE_CHAOS_DESCRIPTORS";
const CERTIFICATES: &str = "GENIE_CHAOS_CERTIFICATES";

/// Payloads up to this many bytes travel inline.
const EAGER: u32 = 4 << 10;
/// Bytes of a slice.
const SLICE: u32 = 16 << 10;
/// Bytes of a tensor, at the most: thirty slices and more.
pub(crate) const MOST: u64 = 500_000;
/// What nobody comes back for is let go of after this time.
pub(crate) const LEASE: Duration = Duration::from_millis(50);

/// A server at this address of a place; and where it listens.
pub(crate) fn server(place: &Place, listen: &str, epoch: u64, keepalive: Option<Duration>) -> (Role, String) {
    server_with(place, listen, epoch, keepalive, 0)
}

/// A server that may have so many descriptors; 0: as many as the system allows.
pub(crate) fn server_with(
    place: &Place,
    listen: &str,
    epoch: u64,
    keepalive: Option<Duration>,
    descriptors: u64,
) -> (Role, String) {
    let descriptors = descriptors.to_string();
    let (epoch, keepalive) = (epoch.to_string(), keepalive.map_or(String::new(), |k| k.as_millis().to_string()));
    let mut role = Role::start(
        "roles::a_server",
        &[
            (LISTEN, listen),
            (EPOCH, &epoch),
            (KEEPALIVE, &keepalive),
            (DESCRIPTORS, &descriptors),
            (CERTIFICATES, &place.certificates),
        ],
    );
    let uri = role.hear("serving", Duration::from_secs(20));
    (role, uri)
}

/// A client that works with a server until it is killed.
pub(crate) fn victim(place: &Place, uri: &str, seed: u64) -> Role {
    client("roles::a_victim", place, uri, seed)
}

/// A client that works with a server until it has seen it fail and come back, as often as it is told to.
pub(crate) fn survivor(place: &Place, uri: &str, seed: u64) -> Role {
    client("roles::a_survivor", place, uri, seed)
}

fn client(role: &'static str, place: &Place, uri: &str, seed: u64) -> Role {
    Role::start(role, &[(LISTEN, uri), (SEED, &seed.to_string()), (CERTIFICATES, &place.certificates)])
}

/// How clients of these tests connect, with the certificates of a place.
pub(crate) fn options(certificates: &str) -> ConnectOptions {
    let mut options = ConnectOptions { tls: trust(certificates), ..ConnectOptions::default() };
    options.client.lanes = 2;
    options.client.lease_ms = LEASE.as_millis() as u32;
    options.client.backoff = Duration::from_millis(5);
    options
}

/// What this process was told to be.
fn told(name: &str) -> String {
    std::env::var(name).expect("whoever starts a role says what it needs")
}

fn told_seed() -> u64 {
    told(SEED).parse().expect("a number")
}

fn told_session() -> blocking::Session {
    let uri = told(LISTEN).parse().expect("an address");
    blocking::Session::connect(&uri, options(&told(CERTIFICATES))).expect("a session")
}

/// What is said to this process, but for questions where it is: those are answered whatever the rest of it does. The end of its
/// input is the end of its starter, and of this process.
fn orders() -> Receiver<String> {
    let (sender, orders) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if line == "where" {
                say(&format!("where: {}", doing()));
            } else if sender.send(line).is_err() {
                break;
            }
        }
        std::process::exit(0);
    });
    orders
}

#[test]
#[ignore = "only as a process of other tests"]
fn a_server() {
    if !is_role() {
        return;
    }
    let mut config = config(told(EPOCH).parse().expect("a number"));
    config.settings.eager_bytes = EAGER;
    config.settings.slice_bytes = SLICE;
    config.default_lease = LEASE;
    if let Ok(ms) = told(KEEPALIVE).parse() {
        config.settings.keepalive = Duration::from_millis(ms);
    }
    let descriptors = told(DESCRIPTORS).parse().expect("a number");
    if descriptors > 0 {
        rlimit::setrlimit(rlimit::Resource::NOFILE, descriptors, descriptors).expect("it is less than before");
    }
    let listen = told(LISTEN).parse().expect("an address");
    let server = Live::start_for(config, &listen, &access(&told(CERTIFICATES)));
    say(&format!("serving {}", server.uri));
    for order in orders() {
        assert_eq!(order, "", "a server is told nothing");
    }
}

#[test]
#[ignore = "only as a process of other tests"]
fn a_victim() {
    if !is_role() {
        return;
    }
    let _orders = orders();
    let mut session = told_session();
    say("ready");
    let mut churn = Churn::new(told_seed(), MOST);
    loop {
        if let Err(error) = churn.burst(&mut session) {
            // One that was stopped for long, and goes on, finds its session gone.
            return is_of_a_restart(&error);
        }
    }
}

#[test]
#[ignore = "only as a process of other tests"]
fn a_survivor() {
    if !is_role() {
        return;
    }
    let orders = orders();
    let mut session = told_session();
    let mut churn = Churn::new(told_seed(), MOST);
    say("ready");
    for order in orders {
        assert_eq!(order, "work");
        say("working");
        let lost = session.sessions_lost();
        let mut failed = 0;
        while session.sessions_lost() == lost {
            if let Err(error) = churn.burst(&mut session) {
                is_of_a_restart(&error);
                failed += 1;
            }
        }
        // The first good one in the new life of the server: it is told of the old one's end at the most once more.
        while let Err(error) = churn.burst(&mut session) {
            is_of_a_restart(&error);
            failed += 1;
            assert!(failed < 20, "it never comes to an end: {error}");
        }
        churn.let_go(&mut session).expect("the server is there");
        assert_eq!(churn.begun, churn.ended, "every request has one end");
        say(&format!("recovered after {failed} failures, {} requests", churn.ended));
    }
}

/// The errors that a server's death may be told by. None of them is about bytes.
fn is_of_a_restart(error: &ClientError) {
    let fine = match error {
        ClientError::SessionLost(_) | ClientError::Interrupted | ClientError::Unreachable { .. } => true,
        ClientError::Remote(remote) => {
            matches!(remote.code, ErrorCode::EpochGone | ErrorCode::SessionGone | ErrorCode::NoSuchHandle)
        }
        _ => false,
    };
    assert!(fine, "{error}");
}
