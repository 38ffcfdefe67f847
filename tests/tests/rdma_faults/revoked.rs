//! A right that was revoked is worth nothing: a client that uses one is refused by the server's device, loses its session, and harms
//! nobody.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::child::patience;
use genie_tests::log::Log;
use genie_tests::rdma::serve;
use genie_tests::serve::config;
use genie_transport::client::{ClientError, ConnectOptions, PutOptions, blocking};
use genie_transport::link::rdma::faults::{WRITE_AGAIN, refused};
use genie_transport::wire::{ErrorCode, TensorSpec};

const BYTES: usize = 1 << 20;

#[test]
fn a_right_that_was_revoked_is_refused_by_the_device() {
    let log = Log::of_this_process();
    let server = serve(config(7), Arc::default());
    let connect = || blocking::Session::connect(&server.uri, ConnectOptions::default()).expect("a session");
    let (mut hostile, mut other) = (connect(), connect());
    let spec = TensorSpec::new(DType::U8, &[BYTES as u64]).expect("a shape");
    let bytes: Bytes = (0..BYTES as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 16) as u8).collect();
    let theirs = other.put(&spec, bytes.clone(), PutOptions::default()).expect("a put");
    let tensor = hostile.put(&spec, bytes.clone(), PutOptions::default()).expect("a put");
    assert_eq!(refused(), 0);
    // Every slice has landed: every right was revoked. One of them is used once more.
    WRITE_AGAIN.store(true, Ordering::Release);
    let mut back = Vec::new();
    let until = Instant::now() + Duration::from_secs(10);
    while refused() == 0 || hostile.sessions_lost() == 0 {
        match hostile.echo(b"still there", &mut back) {
            Ok(()) => assert_eq!(back, b"still there"),
            Err(error) => assert!(matches!(error, ClientError::SessionLost(ErrorCode::SessionGone)), "{error}"),
        }
        assert!(Instant::now() < until, "refused {}, sessions lost {}", refused(), hostile.sessions_lost());
    }
    assert!(!WRITE_AGAIN.load(Ordering::Acquire), "nothing was written again");
    // What it had is gone with its session.
    assert!(hostile.get(&tensor).is_err());
    // The server lives: what was written by others is what they sent, nobody else noticed, and it was counted.
    assert!(other.get(&theirs).expect("a get")[..] == bytes[..], "a tensor changed after it was whole");
    assert_eq!(other.sessions_lost(), 0);
    let stats = other.stats().expect("stats");
    let counted = stats.iter().find(|(name, _)| name == "genie_refused_memory_total").map(|(_, n)| *n);
    assert_eq!(counted, Some(1));
    let is = |line: &String| line.contains(" WARN ") && line.contains("reason=Memory ") && line.contains("refused: ");
    let logged = patience(Duration::from_secs(10), |_| log.lines().iter().any(|(_, line)| is(line)).then_some(()));
    assert!(logged.is_some(), "the refusal is not logged: {:?}", log.lines());
    hostile.echo(b"again", &mut back).expect("it may begin anew");
    assert_eq!(hostile.sessions_lost(), 1);
}
