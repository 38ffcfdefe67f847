//! Bulk lanes that break while their connection goes on: whatever was under way arrives whole, and once.

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::proxy::LaneFault;
use genie_transport::wire::TensorSpec;

use crate::link::{Client, Lanes, Relayed, SLICE};
use crate::suite::among_others;

/// A dozen slices, the last one short.
const BYTES: usize = 12 * SLICE + 77;

fn content(seed: u64) -> Bytes {
    let mix = |i: u64| (i ^ (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (0..BYTES as u64).map(|i| mix(i) as u8).collect()
}

fn spec() -> TensorSpec {
    TensorSpec::new(DType::U8, &[BYTES as u64]).expect("a shape")
}

/// A lane breaks in each of `rounds` puts and gets, each time at another point.
fn breaks_again_and_again<L: Lanes>(lanes: u32, rounds: u64, fault: LaneFault) {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect_lanes(lanes);
    // The lanes open with the first of these.
    let first = client.put(&spec(), content(0)).expect("a put");
    let connections = link.opened_lanes().0;
    for round in 0..rounds {
        // Every point of a transfer of so many bytes, in a scattered order.
        let point = (round * 7919 * 101) % BYTES as u64;
        let (sent, before) = (content(round), link.lane_faults());
        if round % 2 == 0 {
            link.lane_fault_after(point, fault);
        }
        let tensor = client.put(&spec(), sent.clone()).expect("a put");
        if round % 2 == 1 {
            link.lane_fault_after(point, fault);
        }
        assert!(client.get(&tensor).expect("a get") == sent[..], "round {round}: bytes differ");
        assert_eq!(link.lane_faults(), before + 1, "round {round}: no lane broke");
        client.free(tensor.handle).expect("freed");
    }
    assert!(client.get(&first).expect("a get") == content(0)[..]);
    let (now, opened) = link.opened_lanes();
    assert_eq!(now, connections, "the connection was lost with a lane");
    // All lanes may lie broken at the end, and wait to be opened again.
    assert!(opened + u64::from(lanes) > rounds, "{opened} lanes were opened for {rounds} that broke");
}

pub(crate) fn a_lane_is_cut<L: Lanes>() {
    breaks_again_and_again::<L>(4, 120, LaneFault::Cut);
}

pub(crate) fn a_lane_is_garbled<L: Lanes>() {
    breaks_again_and_again::<L>(4, 60, LaneFault::Garble);
}

/// Nobody is told: its slices are late, while the others have long come.
pub(crate) fn a_lane_stands_still<L: Lanes>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect_lanes(4);
    client.put(&spec(), content(0)).expect("a put");
    let connections = link.opened_lanes().0;
    for round in 0..8 {
        let sent = content(round);
        link.lane_fault_after(round * 90_000, LaneFault::Stand);
        let tensor = client.put(&spec(), sent.clone()).expect("a put");
        assert!(client.get(&tensor).expect("a get") == sent[..], "round {round}: bytes differ");
        assert_eq!(link.lane_faults(), round + 1);
    }
    assert_eq!(link.opened_lanes().0, connections, "the connection was lost with a lane");
}

pub(crate) fn the_only_lane_is_cut<L: Lanes>() {
    breaks_again_and_again::<L>(1, 30, LaneFault::Cut);
}

pub(crate) fn the_only_lane_stands_still<L: Lanes>() {
    breaks_again_and_again::<L>(1, 2, LaneFault::Stand);
}

/// While lanes break and are opened again, small requests are answered, and more than one transfer is under way.
pub(crate) fn small_requests_go_on<L: Lanes>() {
    let _among = among_others();
    let link = L::start();
    let mut client = link.connect_lanes(3);
    let sent: Vec<_> = (0..8).map(content).collect();
    client.put(&spec(), content(9)).expect("a put");
    link.lane_fault_after(2 * BYTES as u64, LaneFault::Cut);
    let puts: Vec<_> = sent.iter().map(|bytes| client.start_put(&spec(), bytes.clone())).collect();
    for i in 0..50_u8 {
        assert_eq!(client.echo(&[i; 32]).expect("an echo"), [i; 32]);
    }
    let tensors: Vec<_> = puts.into_iter().map(|put| client.finish_put(put).expect("a put")).collect();
    link.lane_fault_after(2 * BYTES as u64, LaneFault::Cut);
    let gets: Vec<_> = tensors.iter().map(|t| client.start_get(t.handle, 0, BYTES as u64)).collect();
    for (get, sent) in gets.into_iter().zip(&sent) {
        assert!(client.finish_get(get).expect("a get") == sent[..]);
    }
    assert_eq!(link.lane_faults(), 2);
}

/// Slices go to the lane that takes them: one that is slow carries few, and holds nothing up for as long as an equal share would
/// take it.
pub(crate) fn a_slow_lane_carries_less<L: Relayed>() {
    // Much more than lies in the buffers of a lane.
    const LARGE: usize = 48 << 20;
    let _among = among_others();
    let link = L::start();
    // 64 KiB a rest at the most, and no more than a twentieth of what the others carry.
    link.relay().slow_first_lane(std::time::Duration::from_millis(10));
    let mut client = link.connect_lanes(3);
    let bytes: Bytes = (0..LARGE as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
    let spec = TensorSpec::new(DType::U8, &[LARGE as u64]).expect("a shape");
    let tensor = client.put(&spec, bytes.clone()).expect("a put");
    let up = link.relay().carried();
    assert!(up.len() >= 3, "{up:?}");
    let (slow, all): (u64, u64) = (up[0], up.iter().sum());
    assert!(slow * 5 < all, "the slow lane carried {slow} of {all} bytes: {up:?}");
    assert!(client.get(&tensor).expect("a get") == bytes[..]);
    let both = link.relay().carried();
    let (slow, all) = (both[0] - slow, both.iter().sum::<u64>() - all);
    assert!(slow * 5 < all, "the slow lane carried {slow} of {all} bytes back: {both:?}");
}
