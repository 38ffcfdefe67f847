//! A client that is slow, and alive.

use std::time::Duration;

use genie_graph::DType;
use genie_tests::proxy::Proxy;
use genie_tests::serve::{Live, config};
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::wire::TensorSpec;

/// A server reads no further requests of a client while it has 1,024 transfers on their way to it, and so none of its pings either.
/// It took the client for dead after three keepalives, however much the client was reading all that time.
#[test]
fn a_client_that_is_behind_with_its_gets_is_not_taken_for_dead() {
    const GETS: usize = 2000;
    const BYTES: u64 = 16 << 10;
    let mut config = config(9);
    config.settings.keepalive = Duration::from_millis(300);
    config.settings.credits = GETS as u32 + 10;
    config.settings.eager_bytes = 1024;
    let server = Live::start(config);
    let proxy = Proxy::to(server.address());
    let mut options = ConnectOptions::default();
    options.client.lanes = 1;
    let mut session = blocking::Session::connect(&proxy.uri, options).expect("a session");
    let spec = TensorSpec::new(DType::U8, &[BYTES]).expect("a shape");
    let sent: Vec<u8> = (0..BYTES).map(|i| (i % 251) as u8).collect();
    let tensor = session.put(&spec, sent.clone().into(), PutOptions::default()).expect("a put");
    // Far more than lies in the buffers between them, at some megabytes a second: seconds of reading.
    proxy.slow_first_lane(Duration::from_millis(10));
    let gets: Vec<_> =
        (0..GETS).map(|_| session.start_get(tensor.handle, 0, BYTES).expect("there is memory")).collect();
    for get in gets {
        assert!(session.finish_get(get).expect("a get")[..] == sent[..]);
    }
    assert_eq!(session.sessions_lost(), 0);
    assert_eq!(proxy.lanes().0, 1, "the connection was lost");
}
