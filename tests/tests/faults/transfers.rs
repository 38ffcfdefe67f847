//! Slices that do not belong, and bytes that were corrupted in flight.

use genie_tests::answer::Told;
use genie_tests::raw::{Raw, request, spoil};
use genie_transport::wire::{
    Control, ErrorCode, Flags, Handle, PutBody, PutRequest, PutTarget, Request, SliceHead, Welcome,
};

use crate::scene::{Scene, bytes_spec, get, is, put, refused, resident};

const SLICE: usize = 4096;
/// Two slices and a bit.
const TOTAL: usize = 2 * SLICE + 100;

fn content() -> Vec<u8> {
    (0..TOTAL).map(|i| (i * 7 % 251) as u8).collect()
}

/// A put of [`TOTAL`] bytes that waits for its slices.
fn upload(raw: &mut Raw) -> u64 {
    raw.start(&put(bytes_spec(TOTAL), PutBody::Sliced { slice_bytes: SLICE as u32, announce: false }))
}

fn slice(transfer: u64, offset: usize, total: usize, payload: &[u8]) -> Vec<u8> {
    let head = SliceHead::encode(transfer, offset as u64, total as u64, payload);
    [&head[..], payload].concat()
}

/// All slices of [`content`].
fn slices(transfer: u64) -> Vec<Vec<u8>> {
    let content = content();
    let grid = content.chunks(SLICE).enumerate();
    grid.map(|(i, payload)| slice(transfer, i * SLICE, TOTAL, payload)).collect()
}

fn connected(scene: &Scene) -> (Raw, Raw, Welcome) {
    let (raw, welcome, _) = scene.session();
    let lane = Raw::bulk(scene.server.address(), &welcome);
    (raw, lane, welcome)
}

/// The tensor that a put came to has the bytes that were meant.
#[track_caller]
fn is_whole(raw: &mut Raw, put: u64) {
    match raw.end_of(put) {
        Ok(Told::Tensor { handle, .. }) => assert_eq!(raw.ask(&get(handle)), Ok(Told::Bytes(content()))),
        other => panic!("{other:?}"),
    }
}

/// Slices that lie within what they say is their tensor, but not on the grid of the put: it ends, and nothing else does.
#[test]
fn slice_beyond_its_tensor() {
    let mut scene = Scene::new();
    let (mut raw, mut lane, _) = connected(&scene);
    for (offset, total, bytes) in [
        (3 * SLICE, TOTAL + 2 * SLICE, SLICE),
        (2 * SLICE, TOTAL + 1, 101),
        (0, SLICE, SLICE),
        (1, TOTAL, SLICE),
        (2 * SLICE, TOTAL, 99),
    ] {
        let id = upload(&mut raw);
        lane.send(&slice(id, offset, total, &vec![1; bytes]));
        let words = ["do not belong to it", "put it again"];
        refused(raw.end_of(id), ErrorCode::Corrupt, &words);
    }
    let id = upload(&mut raw);
    slices(id).iter().for_each(|s| lane.send(s));
    is_whole(&mut raw, id);
    scene.is_unharmed();
}

/// Slices that do not even lie within what they say: the lane cannot be trusted any further.
#[test]
fn slice_beyond_what_it_says() {
    let mut scene = Scene::new();
    for (offset, total) in [(TOTAL, TOTAL), (TOTAL - 1, TOTAL), (u64::MAX as usize - 1, TOTAL)] {
        let (mut raw, mut lane, _) = connected(&scene);
        let id = upload(&mut raw);
        lane.send(&slice(id, offset, total, &[1; 100]));
        let error = raw.goodbye();
        assert!(matches!(error.code, ErrorCode::OutOfRange | ErrorCode::Malformed), "{error}");
        assert!(error.message.contains("slice"), "{error}");
        assert!(lane.hear().is_none());
    }
    scene.is_unharmed();
}

#[test]
fn slice_over_the_cap() {
    let mut scene = Scene::new();
    let (mut raw, mut lane, _) = connected(&scene);
    let id = upload(&mut raw);
    let mut bad = slice(id, 0, TOTAL, &[1; 100]);
    spoil(&mut bad, 20, &((4_u32 << 20) + 1).to_le_bytes());
    lane.send(&bad);
    is(&raw.goodbye(), ErrorCode::Malformed, &["payload of 4194305 is over the cap of 4194304"]);
    scene.is_unharmed();
}

#[test]
fn range_beyond_its_tensor() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let handle = resident(&mut raw, &[5; 100]);
    for (offset, length) in [(0, 101), (100, 1), (1 << 60, 1), (99, 2)] {
        for sliced in [None, Some(4096)] {
            let asked = Request::Get { handle, offset, length, sliced };
            refused(raw.ask(&asked), ErrorCode::OutOfRange, &["within a tensor of 100"]);
        }
        let target = PutTarget::Range { handle, offset };
        let (spec, body) = (bytes_spec(length as usize), vec![9; length as usize]);
        let asked = Request::Put(PutRequest { target, spec, body: PutBody::Inline(&body) });
        refused(raw.ask(&asked), ErrorCode::OutOfRange, &["within a tensor of 100"]);
    }
    assert_eq!(raw.ask(&get(handle)), Ok(Told::Bytes(vec![5; 100])));
    scene.is_unharmed();
}

#[test]
fn payload_corrupted_in_flight() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let bytes = content();
    let id = raw.id();
    let good = request(id, &put(bytes_spec(TOTAL), PutBody::Inline(&bytes)));
    for at in [32, 60, 120, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        raw.send(&bad);
        refused(raw.end_of(id), ErrorCode::Corrupt, &["body checksum", "send again"]);
    }
    raw.send(&good);
    is_whole(&mut raw, id);
    scene.is_unharmed();
}

#[test]
fn slice_corrupted_in_flight() {
    let mut scene = Scene::new();
    let (mut raw, mut lane, _) = connected(&scene);
    let id = upload(&mut raw);
    let good = slices(id);
    let mut bad = good[1].clone();
    let last = bad.len() - 1;
    bad[last] ^= 0x40;
    lane.send(&good[0]);
    lane.send(&bad);
    lane.send(&good[2]);
    // It is asked for again, and nobody sees anything before it has come.
    let heard = raw.hear().expect("a word");
    assert_eq!((heard.header.id, heard.header.flags), (id, Flags::default()));
    assert_eq!(
        Control::decode(&heard.header, &heard.meta),
        Ok(Control::SliceAgain { offset: SLICE as u64, late: false })
    );
    lane.send(&good[1]);
    is_whole(&mut raw, id);
    scene.is_unharmed();
}

#[test]
fn slices_corrupted_again_and_again() {
    let mut scene = Scene::new();
    let (mut raw, mut lane, _) = connected(&scene);
    let id = upload(&mut raw);
    let mut bad = slices(id)[0].clone();
    bad[100] ^= 1;
    let mut asked = 0;
    lane.send(&bad);
    loop {
        let heard = raw.hear().expect("a word");
        if heard.header.flags.has(Flags::REPLY) {
            assert!(heard.header.flags.has(Flags::ERROR));
            break;
        }
        asked += 1;
        lane.send(&bad);
    }
    assert!((1..1000).contains(&asked), "it was asked for {asked} times");
    let id = upload(&mut raw);
    slices(id).iter().for_each(|s| lane.send(s));
    is_whole(&mut raw, id);
    scene.is_unharmed();
}

/// A range that is torn away in the middle of its upload has changed nothing.
#[test]
fn half_a_range_is_seen_by_nobody() {
    let mut scene = Scene::new();
    let (mut raw, mut lane, _) = connected(&scene);
    let handle = resident(&mut raw, &[5; TOTAL]);
    let target = PutTarget::Range { handle, offset: 0 };
    let body = PutBody::Sliced { slice_bytes: SLICE as u32, announce: false };
    let id = raw.start(&Request::Put(PutRequest { target, spec: bytes_spec(TOTAL), body }));
    lane.send(&slices(id)[1]);
    assert_eq!(raw.ask(&get(handle)), Ok(Told::Bytes(vec![5; TOTAL])));
    raw.send(&{
        let mut meta = Vec::new();
        let (kind, _) = Control::Cancel.encode(&mut meta);
        genie_tests::raw::frame(kind, id, &meta, &[])
    });
    refused(raw.end_of(id), ErrorCode::Cancelled, &["cancelled"]);
    assert_eq!(raw.ask(&get(handle)), Ok(Told::Bytes(vec![5; TOTAL])));
    scene.is_unharmed();
}

#[test]
fn a_lane_of_nobody() {
    let mut scene = Scene::new();
    let (_raw, welcome, _) = scene.session();
    let wrong =
        [Welcome { lane_key: [0; 16], ..welcome }, Welcome { connection: welcome.connection + 1000, ..welcome }];
    for welcome in wrong {
        let mut lane = Raw::dial(scene.server.address());
        lane.send(&genie_tests::raw::control(&Control::LaneHello(genie_tests::raw::lane_hello(&welcome, 1))));
        is(&lane.goodbye(), ErrorCode::Unauthorized, &["no connection has this number and lane key", "connect again"]);
    }
    scene.is_unharmed();
}

#[test]
fn a_get_of_what_is_no_longer_there() {
    let mut scene = Scene::new();
    let (mut raw, _lane, _) = connected(&scene);
    let gone = Handle { index: 77, generation: 1, epoch: 7 };
    let asked = Request::Get { handle: gone, offset: 0, length: 0, sliced: Some(4096) };
    refused(raw.ask(&asked), ErrorCode::NoSuchHandle, &["this session gave out no handle"]);
    scene.is_unharmed();
}
