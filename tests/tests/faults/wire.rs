//! Frames that are none, and messages that say what cannot be.

use genie_graph::DType;
use genie_tests::answer::Told;
use genie_tests::raw::{Raw, frame, request, spoil};
use genie_transport::wire::{Arguments, ErrorCode, HEADER_BYTES, Handle, Kind, PutBody, Request, TensorSpec, limits};

use crate::scene::{Scene, bytes_spec, get, is, put, refused, resident};

/// Where a put's spec begins in its frame.
const SPEC: usize = HEADER_BYTES + 80;

/// A header whose bytes from `at` on are these: the stream cannot be trusted any further.
fn bad_header(at: usize, bytes: &[u8], code: ErrorCode, words: &[&str]) {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let mut bad = request(9, &Request::Echo(b"hello"));
    spoil(&mut bad, at, bytes);
    raw.send(&bad);
    is(&raw.goodbye(), code, words);
    scene.is_unharmed();
}

/// A request that is wrong in itself: it ends, and its connection goes on.
fn bad_request(bad: impl FnOnce(u64) -> Vec<u8>, code: ErrorCode, words: &[&str]) {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let id = raw.id();
    raw.send(&bad(id));
    refused(raw.end_of(id), code, words);
    assert_eq!(raw.ask(&Request::Echo(b"on")), Ok(Told::Bytes(b"on".to_vec())));
    scene.is_unharmed();
}

/// A put whose spec has these bytes from `at` on.
fn bad_spec(at: usize, bytes: &[u8], words: &[&str]) {
    let four = TensorSpec::new(DType::U8, &[2, 2]).expect("a shape");
    let bad = |id| {
        let mut bad = request(id, &put(four, PutBody::Inline(&[0; 4])));
        spoil(&mut bad, SPEC + at, bytes);
        bad
    };
    bad_request(bad, ErrorCode::Malformed, words);
}

/// A run with one argument of these dimensions, and no elements.
fn bad_argument(dtype: u8, rank: u8, dims: &[u32], words: &[&str]) {
    let bad = |id| {
        let binding = Handle { index: 0, generation: 1, epoch: 7 };
        let run = Request::Run { binding, position: None, wanted: 1, keep: 0, arguments: Arguments::EMPTY };
        let mut meta = Vec::new();
        run.encode(&mut meta, &mut Vec::new());
        meta[28] = 1;
        let mut payload = vec![0, 0, dtype, rank, 0, 0, 0, 0];
        payload.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        frame(Kind::Run, id, &meta, &payload)
    };
    bad_request(bad, ErrorCode::Malformed, words);
}

#[test]
fn unknown_message_kind() {
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    for kind in [0_u8, 0x7e, 0x7f, 0xff] {
        let id = raw.id();
        let mut bad = request(id, &Request::Echo(b"what?"));
        spoil(&mut bad, 3, &[kind]);
        raw.send(&bad);
        refused(raw.end_of(id), ErrorCode::UnknownKind, &["unknown message kind", "update"]);
    }
    assert_eq!(raw.ask(&Request::Echo(b"on")), Ok(Told::Bytes(b"on".to_vec())));
    scene.is_unharmed();
}

#[test]
fn reserved_bits_in_a_header() {
    let words = ["reserved bits are set in header", "docs/protocol.md"];
    bad_header(4, &[0x08, 0], ErrorCode::Malformed, &words);
    bad_header(4, &[0, 0x80], ErrorCode::Malformed, &words);
    bad_header(6, &[1, 0], ErrorCode::Malformed, &words);
}

#[test]
fn reserved_bits_in_a_message() {
    let words = ["reserved bits are set in get", "docs/protocol.md"];
    let handle = Handle { index: 0, generation: 1, epoch: 7 };
    let bad = |id| {
        let mut bad = request(id, &get(handle));
        spoil(&mut bad, HEADER_BYTES + 39, &[1]);
        bad
    };
    bad_request(bad, ErrorCode::Malformed, &words);
    bad_spec(7, &[0x80], &["reserved bits are set in tensor spec"]);
}

#[test]
fn a_request_that_says_it_is_a_reply() {
    let bad = |id| {
        let mut bad = request(id, &Request::Echo(b"reply"));
        spoil(&mut bad, 4, &[1, 0]);
        bad
    };
    bad_request(bad, ErrorCode::Malformed, &["flags of a request"]);
}

#[test]
fn header_checksum_wrong() {
    let mut scene = Scene::new();
    for at in [0, 2, 3, 8, 16, 20, 24, 28] {
        let (mut raw, ..) = scene.session();
        let mut bad = request(9, &Request::Echo(b"hello"));
        bad[at] ^= 0x10;
        raw.send(&bad);
        let error = raw.goodbye();
        match at {
            0 => is(&error, ErrorCode::Malformed, &["not a Genie frame", "is this a Genie peer?"]),
            _ => is(&error, ErrorCode::Corrupt, &["header checksum", "corrupted on the way", "send again"]),
        }
    }
    scene.is_unharmed();
}

#[test]
fn another_version() {
    bad_header(2, &[9], ErrorCode::Malformed, &["protocol version 9 is not spoken here", "update the older side"]);
}

#[test]
fn length_over_the_cap() {
    let over = |limit: u32| (limit + 1).to_le_bytes();
    bad_header(16, &over(limits::META_BYTES), ErrorCode::Malformed, &["metadata of 65537 is over the cap of 65536"]);
    let words = ["payload of 4194305 is over the cap of 4194304", "docs/protocol.md"];
    bad_header(20, &over(limits::CONTROL_PAYLOAD_BYTES), ErrorCode::Malformed, &words);
}

#[test]
fn length_over_the_cap_before_the_greeting() {
    let mut scene = Scene::new();
    let mut raw = Raw::dial(scene.server.address());
    let mut bad = request(0, &Request::Echo(b"hello"));
    spoil(&mut bad, 20, &(1_u32 << 30).to_le_bytes());
    raw.send(&bad);
    is(&raw.goodbye(), ErrorCode::Malformed, &["payload of 1073741824 is over the cap"]);
    scene.is_unharmed();
}

#[test]
fn length_that_overflows_when_added() {
    bad_header(16, &[0xff; 8], ErrorCode::Malformed, &["metadata and payload length overflows", "docs/protocol.md"]);
    let mut scene = Scene::new();
    let (mut raw, ..) = scene.session();
    let handle = resident(&mut raw, &[1; 64]);
    for (offset, length) in [(u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let asked = Request::Get { handle, offset, length, sliced: None };
        refused(raw.ask(&asked), ErrorCode::Malformed, &["offset and length overflows"]);
    }
    assert_eq!(raw.ask(&get(handle)), Ok(Told::Bytes(vec![1; 64])));
    scene.is_unharmed();
}

#[test]
fn element_count_that_overflows_when_multiplied() {
    let dims = [(1_u64 << 62).to_le_bytes(), (1_u64 << 62).to_le_bytes()].concat();
    bad_spec(8, &dims, &["element count overflows", "docs/protocol.md"]);
    let dims = [(1_u64 << 23).to_le_bytes(), ((1_u64 << 23) + 1).to_le_bytes()].concat();
    bad_spec(8, &dims, &["tensor of", "is over the cap of 70368744177664"]);
    bad_argument(0, 3, &[i32::MAX as u32; 3], &["element count overflows"]);
}

#[test]
fn zero_and_negative_dimensions() {
    bad_spec(8, &[0; 8], &["dimension 0: dimensions are positive"]);
    bad_spec(16, &[0xff; 8], &["dimension -1: dimensions are positive"]);
    bad_spec(8, &i64::MIN.to_le_bytes(), &["dimensions are positive"]);
    bad_argument(0, 2, &[1, 0], &["dimension 0: dimensions are positive"]);
    bad_argument(0, 2, &[u32::MAX, 1], &["dimension -1: dimensions are positive"]);
}

#[test]
fn rank_over_8() {
    bad_spec(1, &[9], &["rank 9 is over 8"]);
    bad_spec(1, &[255], &["rank 255 is over 8"]);
    bad_argument(0, 9, &[1; 9], &["rank 9 is over 8"]);
}

#[test]
fn dtype_out_of_range() {
    bad_spec(0, &[7], &["dtype 7 does not exist"]);
    bad_spec(0, &[255], &["dtype 255 does not exist"]);
    bad_argument(7, 1, &[1], &["dtype 7 does not exist"]);
}

#[test]
fn bytes_missing_and_bytes_too_many() {
    let cut = |id| {
        let mut meta = Vec::new();
        let asked = put(bytes_spec(4), PutBody::Inline(&[0; 4]));
        asked.encode(&mut meta, &mut Vec::new());
        meta.truncate(meta.len() - 1);
        frame(Kind::Put, id, &meta, &[0; 4])
    };
    bad_request(cut, ErrorCode::Malformed, &["metadata ends in the middle of a field"]);
    let long = |id| frame(Kind::Devices, id, &[0], &[]);
    bad_request(long, ErrorCode::Malformed, &["1 bytes after the end of the message"]);
    let short = |id| {
        let mut meta = Vec::new();
        put(bytes_spec(4), PutBody::Inline(&[0; 4])).encode(&mut meta, &mut Vec::new());
        frame(Kind::Put, id, &meta, &[0; 3])
    };
    bad_request(short, ErrorCode::OutOfRange, &["has not the bytes that its shape says"]);
}

#[test]
fn no_genie_at_all() {
    let mut scene = Scene::new();
    for words in [&b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"[..], &[0; 64], &[0xff; 4096]] {
        let mut raw = Raw::dial(scene.server.address());
        raw.send(words);
        is(&raw.goodbye(), ErrorCode::Malformed, &["not a Genie frame", "is this a Genie peer?"]);
    }
    scene.is_unharmed();
}

#[test]
fn a_message_where_it_may_not_stand() {
    let mut scene = Scene::new();
    let mut raw = Raw::dial(scene.server.address());
    raw.send(&request(1, &Request::Devices));
    is(&raw.goodbye(), ErrorCode::Malformed, &["message kind 0x27 is not allowed here"]);
    let (mut raw, _) = Raw::greet(scene.server.address());
    let asked = raw.ask(&put(bytes_spec(1), PutBody::Inline(&[0])));
    refused(asked, ErrorCode::NoSession, &["open a session first"]);
    scene.is_unharmed();
}
