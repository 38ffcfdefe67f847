//! Shared memory between a client and a server: what only this link has.

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::serve::{Live, config};
use genie_transport::Uri;
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::wire::TensorSpec;

/// A path of its own.
fn uri(name: &str) -> Uri {
    let path = std::env::temp_dir().join(format!("genie-{name}-{}.sock", std::process::id()));
    format!("shm://{}", path.display()).parse().expect("an address")
}

fn spec(bytes: usize) -> TensorSpec {
    TensorSpec::new(DType::U8, &[bytes as u64]).expect("a shape")
}

#[test]
fn an_echo_and_a_tensor_come_back() {
    let server = Live::start_at(config(1), &uri("echo"));
    let mut client = blocking::Session::connect(&server.uri, ConnectOptions::default()).expect("a session");
    let mut back = Vec::new();
    for bytes in [0, 1, 64, 1000, 100_000, 1_000_000] {
        let sent = vec![7; bytes];
        client.echo(&sent, &mut back).expect("an echo");
        assert_eq!(back, sent);
    }
    let sent = Bytes::from((0..3_000_000_u32).map(|i| (i * 7) as u8).collect::<Vec<_>>());
    let tensor = client.put(&spec(sent.len()), sent.clone(), PutOptions::default()).expect("a put");
    assert!(client.get(&tensor).expect("a get")[..] == sent[..]);
}
