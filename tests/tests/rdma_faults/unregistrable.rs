//! Memory that no device registers (a limit on locked memory, files that are mapped): tensors are copied through slabs that are
//! registered, and nothing else changes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::rdma::serve;
use genie_tests::serve::config;
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::link::rdma::faults::UNREGISTRABLE;
use genie_transport::memory::copied_bytes;
use genie_transport::wire::TensorSpec;

const BYTES: usize = (3 << 20) + 5;

#[test]
fn memory_that_cannot_be_registered_is_copied_through_some_that_is() {
    UNREGISTRABLE.store(true, Ordering::Release);
    let server = serve(config(8), Arc::default());
    let mut session = blocking::Session::connect(&server.uri, ConnectOptions::default()).expect("a session");
    let spec = TensorSpec::new(DType::U8, &[BYTES as u64]).expect("a shape");
    let bytes: Bytes = (0..BYTES as u64).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 16) as u8).collect();
    for way in 1..=2 {
        let before = copied_bytes();
        let tensor = session.put(&spec, bytes.clone(), PutOptions::default()).expect("a put");
        let back = session.get(&tensor).expect("a get");
        UNREGISTRABLE.store(false, Ordering::Release);
        assert!(back[..] == bytes[..], "way {way}: bytes differ");
        let copied = copied_bytes() - before;
        // Up and down, at both ends, which are both this process. Without windows a server registers each slice for itself.
        let times = if std::env::var("GENIE_RDMA_WINDOWS").is_ok_and(|windows| windows == "0") { 2 } else { 4 };
        match way {
            1 => assert!(copied >= times * BYTES as u64, "{copied} bytes were copied of {BYTES}"),
            _ => assert_eq!(copied, 0, "what can be registered is not copied"),
        }
    }
    let stats = session.stats().expect("stats");
    let lost = stats.iter().find(|(name, _)| name == "genie_lanes_lost_total").map(|(_, n)| *n);
    assert_eq!(lost, Some(0));
    assert_eq!(session.sessions_lost(), 0);
}
