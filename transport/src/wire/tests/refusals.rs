//! Each way for a message to be wrong has its own error.

use genie_graph::DType;

use super::super::*;
use super::{encoded, encoded_reply, fix_header, header};

fn bad_header(change: impl FnOnce(&mut [u8; HEADER_BYTES])) -> DecodeError {
    let mut bytes = encode_header(Kind::Echo, Flags::default(), 1, 0, 0, 0);
    change(&mut bytes);
    fix_header(&mut bytes);
    decode_header(&bytes, limits::CONTROL_PAYLOAD_BYTES).unwrap_err()
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn headers_are_refused_for_the_right_reason() {
    assert_eq!(bad_header(|h| h[0] = b'X'), DecodeError::Magic(u16::from_le_bytes(*b"XN")));
    assert_eq!(bad_header(|h| h[2] = 9), DecodeError::Version(9));
    assert_eq!(bad_header(|h| h[4] = 8), DecodeError::Reserved("header"));
    assert_eq!(bad_header(|h| h[5] = 0x80), DecodeError::Reserved("header"));
    assert_eq!(bad_header(|h| h[6] = 1), DecodeError::Reserved("header"));
    let overflow = bad_header(|h| {
        set(h, 16, &u32::MAX.to_le_bytes());
        set(h, 20, &1_u32.to_le_bytes());
    });
    assert_eq!(overflow, DecodeError::Overflow("metadata and payload length"));
    let meta = bad_header(|h| set(h, 16, &(limits::META_BYTES + 1).to_le_bytes()));
    assert!(matches!(meta, DecodeError::TooLong { what: "metadata", length: 65537, limit: 65536 }));
    let payload = bad_header(|h| set(h, 20, &(limits::CONTROL_PAYLOAD_BYTES + 1).to_le_bytes()));
    assert!(matches!(payload, DecodeError::TooLong { what: "payload", .. }));
    let mut unknown = encode_header(Kind::Echo, Flags::default(), 1, 0, 0, 0);
    unknown[3] = 0xee;
    fix_header(&mut unknown);
    assert_eq!(decode_header(&unknown, 0).unwrap().kind, Err(0xee), "unknown kinds can be skipped");
}

fn refuse(kind: Kind, meta: &[u8], payload: &[u8]) -> DecodeError {
    Request::decode(&header(kind, Flags::default(), meta, payload), meta, payload).unwrap_err()
}

/// A valid sliced put of `f32 [2, 3]` named "n", changed.
fn bad_put(change: impl FnOnce(&mut Vec<u8>)) -> DecodeError {
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: Some("n") };
    let body = PutBody::Sliced { slice_bytes: 4096, announce: false };
    let spec = TensorSpec::new(DType::F32, &[2, 3]).unwrap();
    let (kind, mut meta, _) = encoded(&Request::Put(PutRequest { target, spec, body }));
    change(&mut meta);
    refuse(kind, &meta, &[])
}

/// Where a put's spec begins, and its first dimension.
const SPEC: usize = size_of::<layout::Put>();
const DIM: usize = SPEC + size_of::<layout::SpecField>();

#[test]
fn puts_are_refused_for_the_right_reason() {
    use std::mem::offset_of;
    let put = |at, value: &[u8]| bad_put(|m| set(m, at, value));
    assert_eq!(put(offset_of!(layout::Put, zero), &[1]), DecodeError::Reserved("put"));
    assert_eq!(put(offset_of!(layout::Put, zero2), &[0, 0, 1]), DecodeError::Reserved("put"));
    assert_eq!(put(offset_of!(layout::Put, zero3), &[1]), DecodeError::Reserved("put"));
    assert_eq!(put(offset_of!(layout::Put, flags), &[0x81]), DecodeError::Reserved("put flags"));
    assert_eq!(put(offset_of!(layout::Put, target), &[3]), DecodeError::Enum { what: "put target", value: 3 });
    assert_eq!(put(offset_of!(layout::Put, residency), &[2]), DecodeError::Enum { what: "residency", value: 2 });
    assert_eq!(put(offset_of!(layout::Put, residency), &[1]), DecodeError::Range("a weight needs its content hash"));
    let slices = offset_of!(layout::Put, slice_bytes);
    for bad in [0_u32, 1, 4095, 4097] {
        assert!(matches!(put(slices, &bad.to_le_bytes()), DecodeError::Range(_)), "{bad}");
    }
    let over = limits::SLICE_BYTES + 4096;
    assert!(matches!(put(slices, &over.to_le_bytes()), DecodeError::TooLong { what: "slice size", .. }));
    let many = put(DIM, &(1_u64 << 30).to_le_bytes());
    assert_eq!(
        many,
        DecodeError::TooLong { what: "slices of one transfer", length: 3 << 20, limit: limits::SLICES },
        "3 * 2^30 floats of 4 bytes in slices of 4096"
    );
    assert_eq!(put(SPEC, &[200]), DecodeError::Enum { what: "dtype", value: 200 });
    assert_eq!(put(SPEC + 1, &[9]), DecodeError::Rank(9));
    assert_eq!(put(SPEC + 2, &[1]), DecodeError::Reserved("tensor spec"));
    assert_eq!(put(DIM, &0_u64.to_le_bytes()), DecodeError::Dimension(0));
    assert_eq!(put(DIM, &(-5_i64).to_le_bytes()), DecodeError::Dimension(-5));
    assert_eq!(put(DIM, &(i64::MAX as u64).to_le_bytes()), DecodeError::Overflow("element count"));
    assert!(matches!(put(DIM, &(1_u64 << 45).to_le_bytes()), DecodeError::TooLong { what: "tensor", .. }));
    assert_eq!(bad_put(|m| *m.last_mut().unwrap() = 0xff), DecodeError::Name);
    assert_eq!(bad_put(|m| m.push(b'x')), DecodeError::Trailing(1));
    assert_eq!(bad_put(|m| m.truncate(m.len() - 1)), DecodeError::Truncated);
    let cache = bad_put(|m| {
        m[offset_of!(layout::Put, target)] = 2;
        set(m, offset_of!(layout::Put, offset), &(1_u64 << 32).to_le_bytes());
    });
    assert_eq!(cache, DecodeError::Range("a cache is not that long"));
}

#[test]
fn an_inline_put_has_the_bytes_of_its_shape() {
    let target = PutTarget::New { device: 0, residency: ResidencyCode::Private, hash: None, name: None };
    let spec = TensorSpec::new(DType::F32, &[2, 3]).unwrap();
    let (kind, meta, _) = encoded(&Request::Put(PutRequest { target, spec, body: PutBody::Inline(&[0; 24]) }));
    assert!(matches!(refuse(kind, &meta, &[0; 23]), DecodeError::Range(_)));
    assert!(matches!(refuse(kind, &meta, &[0; 25]), DecodeError::Range(_)));
}

#[test]
fn names_have_a_length_and_are_utf8() {
    let (kind, meta, _) = encoded(&Request::LookupName("x"));
    assert_eq!(refuse(kind, &meta, b""), DecodeError::Name);
    assert_eq!(refuse(kind, &meta, b"\xc3\x28"), DecodeError::Name);
    assert!(matches!(
        refuse(kind, &meta, &[b'a'; 256]),
        DecodeError::TooLong { what: "name", length: 256, limit: 255 }
    ));
}

#[test]
fn ranges_and_counts_are_refused_for_the_right_reason() {
    let handle = Handle { index: 1, generation: 1, epoch: 1 };
    let (kind, meta, _) = encoded(&Request::Get { handle, offset: u64::MAX, length: 1, sliced: None });
    assert_eq!(refuse(kind, &meta, &[]), DecodeError::Overflow("offset and length"));

    let offer = |count: u32| {
        let mut meta = encoded(&Request::Offer { device: 0, entries: Vec::new() }).1;
        set(&mut meta, std::mem::offset_of!(layout::Offer, count), &count.to_le_bytes());
        refuse(Kind::Offer, &meta, &[])
    };
    assert_eq!(offer(1), DecodeError::Truncated);
    assert!(matches!(offer(u32::MAX), DecodeError::TooLong { what: "offered contents", .. }));

    let bind = |bound: u32, arguments: u32| {
        let request =
            Request::Bind { program: handle, bound: Vec::new(), weights: Vec::new(), arguments: Arguments::EMPTY };
        let mut meta = encoded(&request).1;
        set(&mut meta, std::mem::offset_of!(layout::Bind, bound), &bound.to_le_bytes());
        set(&mut meta, std::mem::offset_of!(layout::Bind, arguments), &arguments.to_le_bytes());
        refuse(Kind::Bind, &meta, &[])
    };
    assert!(matches!(bind(4097, 0), DecodeError::TooLong { what: "bound residents", .. }));
    assert!(matches!(bind(0, 65), DecodeError::TooLong { what: "argument count", .. }));
    assert_eq!(bind(0, 1), DecodeError::Truncated);

    let span = |count: u32, field: layout::SpanField, rest: &[u8]| {
        let request =
            Request::Bind { program: handle, bound: Vec::new(), weights: Vec::new(), arguments: Arguments::EMPTY };
        let mut meta = encoded(&request).1;
        set(&mut meta, std::mem::offset_of!(layout::Bind, spans), &(count as u16).to_le_bytes());
        let payload = [zerocopy::IntoBytes::as_bytes(&field), rest].concat();
        let of_a_bind = refuse(Kind::Bind, &meta, &payload);
        let mut meta = encoded_reply(&Reply::OfferedSet { epoch: 1, spans: Vec::new() }).1;
        set(&mut meta, std::mem::offset_of!(layout::OfferedSet, spans), &count.to_le_bytes());
        let head = header(Kind::OfferSet, Flags::REPLY, &meta, &payload);
        Reply::decode(&head, &meta, &payload).unwrap_err();
        of_a_bind
    };
    let field =
        |index: u32, count: u32| layout::SpanField { index: index.into(), generation: 1.into(), count: count.into() };
    assert!(matches!(span(1, field(0, 0), &[]), DecodeError::Range(_)), "an empty span");
    assert_eq!(span(1, field(u32::MAX, 2), &[]), DecodeError::Overflow("span of handles"));
    assert_eq!(span(1, field(5, u32::MAX), &[]), DecodeError::Overflow("span of handles"));
    assert!(matches!(span(1, field(0, u32::MAX), &[]), DecodeError::TooLong { what: "spans of handles", .. }));
    assert!(matches!(span(1, field(0, 4097), &[]), DecodeError::TooLong { length: 4097, limit: 4096, .. }));
    let twice = span(2, field(0, 4000), zerocopy::IntoBytes::as_bytes(&field(0, 97)));
    assert!(matches!(twice, DecodeError::TooLong { length: 4097, .. }), "together too many");
    assert_eq!(span(2, field(0, 1), &[0; 11]), DecodeError::Truncated);
    assert_eq!(span(0xffff, field(0, 1), &[]), DecodeError::Truncated);
    assert_eq!(span(1, field(0, 1), b"x"), DecodeError::Trailing(1));

    let generate = |prompt: u32, stop: u32| {
        let (prompt_ids, stop_ids): (&[[u8; 4]], &[[u8; 4]]) = (&[[0; 4]], &[]);
        let arguments = Arguments::EMPTY;
        let request = Request::Generate {
            prefill: handle,
            decode: handle,
            position: None,
            max_new: 1,
            prompt: prompt_ids,
            stop: stop_ids,
            arguments,
        };
        let (kind, mut meta, payload) = encoded(&request);
        set(&mut meta, std::mem::offset_of!(layout::Generate, prompt), &prompt.to_le_bytes());
        set(&mut meta, std::mem::offset_of!(layout::Generate, stop), &stop.to_le_bytes());
        refuse(kind, &meta, &payload)
    };
    assert!(matches!(generate(0, 0), DecodeError::Range(_)));
    assert!(matches!(generate(1, 65), DecodeError::TooLong { what: "stop tokens", .. }));
    assert_eq!(generate(2, 0), DecodeError::Truncated);
    assert_eq!(generate(u32::MAX, 64), DecodeError::Truncated);
}

#[test]
fn tokens_of_other_requests_are_refused_for_the_right_reason() {
    let bad = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write_token_of(&mut bytes, 3, 7);
        change(&mut bytes);
        Arguments::new(1, &bytes).unwrap_err()
    };
    let one = "the token of another request is one i32";
    assert_eq!(bad(&|a| a[2] = DType::I64.code()), DecodeError::Range(one));
    assert_eq!(bad(&|a| a[2] = DType::F32.code()), DecodeError::Range(one));
    assert_eq!(bad(&|a| set(a, 8, &[2, 0, 0, 0])), DecodeError::Range(one));
    assert_eq!(bad(&|a| set(a, 12, &[0, 0, 0, 0x40])), DecodeError::Range(one));
    assert_eq!(bad(&|a| set(a, 16, &[0; 8])), DecodeError::Range("the token of a request without an id"));
    assert_eq!(bad(&|a| a.truncate(23)), DecodeError::Truncated);
    assert_eq!(bad(&|a| a.push(0)), DecodeError::Trailing(1));
    let mut bytes = Vec::new();
    write_token_of(&mut bytes, 3, u64::MAX);
    let Some(Argument::TokenOf { index: 3, dims, request: u64::MAX }) =
        Arguments::new(1, &bytes).unwrap().iter().next()
    else {
        panic!("it is another argument")
    };
    assert_eq!(dims.as_slice(), [1, 1]);
}

#[test]
fn residents_are_refused_for_the_right_reason() {
    let (spec, handle) =
        (TensorSpec::new(DType::F16, &[2, 5]).unwrap(), Handle { index: 1, generation: 2, epoch: u64::MAX });
    let bad = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write_resident(&mut bytes, 3, &spec, handle).unwrap();
        change(&mut bytes);
        Arguments::new(1, &bytes).unwrap_err()
    };
    let mut bytes = Vec::new();
    write_resident(&mut bytes, 3, &spec, handle).unwrap();
    let Some(Argument::Resident { index: 3, dtype: DType::F16, dims, handle: same }) =
        Arguments::new(1, &bytes).unwrap().iter().next()
    else {
        panic!("it is another argument")
    };
    assert_eq!((dims.as_slice(), same), (&[2, 5][..], handle));
    assert_eq!(bad(&|a| a[2] = 99), DecodeError::Enum { what: "dtype", value: 99 });
    assert_eq!(bad(&|a| a[3] = 9), DecodeError::Rank(9));
    assert_eq!(bad(&|a| set(a, 8, &[0; 4])), DecodeError::Dimension(0));
    assert_eq!(bad(&|a| set(a, 12, &[0, 0, 0, 0x80])), DecodeError::Dimension(i64::from(i32::MIN)));
    let overflow = bad(&|a| {
        a[3] = 3;
        a.splice(8..16, [0xff, 0xff, 0xff, 0x7f].repeat(3));
    });
    assert_eq!(overflow, DecodeError::Overflow("element count"));
    assert_eq!(bad(&|a| a.truncate(31)), DecodeError::Truncated);
    assert_eq!(bad(&|a| a.push(0)), DecodeError::Trailing(1));
    // What cannot be told is not written.
    let mut out = Vec::new();
    let long = TensorSpec::new(DType::U8, &[1 << 31]).unwrap();
    assert_eq!(write_resident(&mut out, 0, &long, handle), Err(DecodeError::Dimension(1 << 31)));
    assert!(out.is_empty());
}

#[test]
fn outputs_of_runs_are_refused_for_the_right_reason() {
    let binding = Handle { index: 1, generation: 1, epoch: 1 };
    let run = |wanted, keep| Request::Run { binding, position: None, wanted, keep, arguments: Arguments::EMPTY };
    let meta = |wanted, keep| encoded(&run(wanted, keep)).1;
    assert_eq!((meta(u32::MAX.into(), u32::MAX.into()).len(), meta(1 << 32, 0).len()), (32, 40));
    for (wanted, keep) in [(u64::MAX, 0), (0, u64::MAX), (u32::MAX.into(), u32::MAX.into()), (1 << 63, 1 << 32)] {
        let meta = meta(wanted, keep);
        let header = header(Kind::Run, Flags::default(), &meta, &[]);
        assert_eq!(Request::decode(&header, &meta, &[]), Ok(run(wanted, keep)));
    }
    let many = DecodeError::TooLong { what: "outputs of a run", length: 65, limit: 64 };
    assert_eq!(refuse(Kind::Run, &meta(u64::MAX, 1), &[]), many);
    assert_eq!(refuse(Kind::Run, &meta(1 << 40, u64::MAX), &[]), many);
    let more = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut meta = meta(0, 1 << 63);
        change(&mut meta);
        refuse(Kind::Run, &meta, &[])
    };
    assert!(matches!(more(&|m| m[39] = 0), DecodeError::Range(_)), "of two ways to say it one is right");
    assert_eq!(more(&|m| m.truncate(39)), DecodeError::Truncated);
    assert_eq!(more(&|m| m.push(0)), DecodeError::Trailing(1));
}

fn bad_argument(change: impl FnOnce(&mut Vec<u8>)) -> DecodeError {
    let mut bytes = Vec::new();
    write_argument(&mut bytes, 3, DType::F32, &[2], &[0; 8]).unwrap();
    change(&mut bytes);
    Arguments::new(1, &bytes).unwrap_err()
}

#[test]
fn inline_tensors_are_refused_for_the_right_reason() {
    assert_eq!(bad_argument(|a| a[2] = 99), DecodeError::Enum { what: "dtype", value: 99 });
    assert_eq!(bad_argument(|a| a[3] = 9), DecodeError::Rank(9));
    assert_eq!(bad_argument(|a| a[4] = 3), DecodeError::Enum { what: "argument form", value: 3 });
    assert_eq!(bad_argument(|a| a[5] = 1), DecodeError::Reserved("argument"));
    assert_eq!(bad_argument(|a| set(a, 8, &[0; 4])), DecodeError::Dimension(0));
    assert_eq!(bad_argument(|a| set(a, 8, &[0xff; 4])), DecodeError::Dimension(-1));
    assert_eq!(bad_argument(|a| set(a, 8, &[3, 0, 0, 0])), DecodeError::Truncated);
    assert_eq!(bad_argument(|a| set(a, 8, &[1, 0, 0, 0])), DecodeError::Trailing(4));
    let overflow = bad_argument(|a| {
        a[3] = 3;
        a.splice(8..12, [0xff, 0xff, 0xff, 0x7f].repeat(3));
    });
    assert_eq!(overflow, DecodeError::Overflow("element count"));
    let mut out = Vec::new();
    assert!(write_argument(&mut out, 0, DType::F32, &[2], &[0; 7]).is_err());
    assert!(write_argument(&mut out, 0, DType::F32, &[1; 9], &[0; 4]).is_err());
    assert!(write_argument(&mut out, 0, DType::F32, &[0], &[]).is_err());
    assert!(out.is_empty(), "what was refused has not been appended");
}

#[test]
fn slices_are_refused_for_the_right_reason() {
    let refuse =
        |offset, total, payload: &[u8]| SliceHead::decode(&SliceHead::encode(1, offset, total, payload)).unwrap_err();
    let outside = DecodeError::Range("a slice lies outside its tensor");
    assert_eq!(refuse(0, 3, &[0; 4]), outside);
    assert_eq!(refuse(4, 4, &[0; 1]), outside);
    assert_eq!(refuse(0, 4, &[]), outside);
    assert_eq!(refuse(0, limits::TENSOR_BYTES + 1, &[0]), outside);
    assert_eq!(refuse(u64::MAX, u64::MAX, &[0; 4]), DecodeError::Overflow("slice offset and length"));
    let mut other = SliceHead::encode(1, 0, 4, &[0; 4]);
    other[3] = Kind::Put as u8;
    fix_header(other.first_chunk_mut().unwrap());
    assert_eq!(SliceHead::decode(&other), Err(DecodeError::Misplaced(Kind::Put as u8)));
}

#[test]
fn offers_are_refused_for_the_right_reason() {
    let (kind, meta, _) = encoded(&Request::Offer { device: 0, entries: Vec::new() });
    let mut reserved = meta;
    set(&mut reserved, std::mem::offset_of!(layout::Offer, zero), &[1]);
    assert_eq!(refuse(kind, &reserved, &[]), DecodeError::Reserved("offer"));
    let (kind, meta, _) = encoded(&Request::OfferSet { device: 0, hash: ContentHash([7; 32]) });
    assert_eq!(refuse(kind, &meta, b"x"), DecodeError::Trailing(1));
    assert_eq!(refuse(kind, &meta[..39], &[]), DecodeError::Truncated);
    let mut reserved = meta;
    set(&mut reserved, std::mem::offset_of!(layout::OfferSet, zero), &[0, 1]);
    assert_eq!(refuse(kind, &reserved, &[]), DecodeError::Reserved("offer of a set"));
}

#[test]
fn requests_do_not_carry_what_they_do_not_have() {
    assert_eq!(refuse(Kind::Devices, &[], b"x"), DecodeError::Trailing(1));
    assert_eq!(refuse(Kind::Devices, b"x", &[]), DecodeError::Trailing(1));
    assert_eq!(refuse(Kind::Free, &[0; 15], &[]), DecodeError::Truncated);
    assert_eq!(refuse(Kind::Free, &[0; 17], &[]), DecodeError::Trailing(1));
    assert_eq!(refuse(Kind::Slice, &[], &[]), DecodeError::Misplaced(Kind::Slice as u8));
    let flagged = header(Kind::Close, Flags::MORE, &[], &[]);
    assert_eq!(Request::decode(&flagged, &[], &[]), Err(DecodeError::Reserved("flags of a request")));
}

#[test]
fn replies_are_refused_for_the_right_reason() {
    let refuse = |kind, flags: Flags, meta: &[u8], payload: &[u8]| {
        Reply::decode(&header(kind, flags, meta, payload), meta, payload).unwrap_err()
    };
    let more = Flags::REPLY.and(Flags::MORE);
    assert_eq!(refuse(Kind::Run, Flags::default(), &[], &[]), DecodeError::Misplaced(Kind::Run as u8));
    assert_eq!(refuse(Kind::Run, more, &[], &[]), DecodeError::Reserved("flags of a reply"));
    assert!(matches!(refuse(Kind::Put, more, &[0, 16, 0, 0, 9, 0, 0, 0], &[0]), DecodeError::Range(_)));
    let failed = Flags::REPLY.and(Flags::ERROR);
    assert_eq!(
        refuse(Kind::Run, failed, &[200, 0, 0, 0, 0, 0, 0, 0], &[]),
        DecodeError::Enum { what: "error code", value: 200 }
    );
    assert_eq!(
        refuse(Kind::Run, failed, &[1, 0, 3, 0, 0, 0, 0, 0], &[]),
        DecodeError::Enum { what: "effect", value: 3 }
    );
    assert_eq!(refuse(Kind::Run, failed, &[1, 0, 0, 0, 5, 0, 0, 0], &[]), DecodeError::Truncated);
    assert_eq!(refuse(Kind::Devices, Flags::REPLY, &[1, 0, 0, 0, 0, 0, 0, 0], &[]), DecodeError::Truncated);
    // A server cannot make a client take more handles than it offered weights.
    let spans = vec![HandleSpan { index: 0, generation: 1, count: 1025 }];
    let (flags, meta, payload) = encoded_reply(&Reply::OfferedSet { epoch: 1, spans });
    assert!(matches!(refuse(Kind::OfferSet, flags, &meta, &payload), DecodeError::TooLong { limit: 1024, .. }));
    let mut reserved = meta;
    set(&mut reserved, std::mem::offset_of!(layout::OfferedSet, zero), &[1]);
    assert_eq!(refuse(Kind::OfferSet, flags, &reserved, &[]), DecodeError::Reserved("offered set"));
}

#[test]
fn a_long_message_is_cut_where_a_character_ends() {
    let error = RemoteError::new(ErrorCode::Busy, "ä".repeat(4000));
    let reply = Reply::Failed(error);
    let (flags, meta, payload) = encoded_reply(&reply);
    let header = header(Kind::Run, flags, &meta, &payload);
    match Reply::decode(&header, &meta, &payload) {
        Ok(Reply::Failed(error)) => assert_eq!(error.message, "ä".repeat(2048)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hello_of_another_version_is_told_so() {
    let mut meta = Vec::new();
    let (kind, flags) = Control::Hello(Caps::OURS).encode(&mut meta);
    set(&mut meta, 8, &[2, 3]);
    assert_eq!(Control::decode(&header(kind, flags, &meta, &[]), &meta), Err(DecodeError::Version(3)));
    set(&mut meta, 8, &[1, 3]);
    assert_eq!(Control::decode(&header(kind, flags, &meta, &[]), &meta), Ok(Control::Hello(Caps::OURS)));
    set(&mut meta, 10, &[1]);
    assert_eq!(Control::decode(&header(kind, flags, &meta, &[]), &meta), Err(DecodeError::Reserved("hello")));
}
