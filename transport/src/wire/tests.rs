//! Properties of every codec: whatever a peer sends, decoding ends in a value or an error; what was encoded comes back.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use genie_graph::DType;

use super::header::RawHeader;
use super::*;

const DTYPES: [DType; 7] = [DType::F32, DType::F16, DType::BF16, DType::I64, DType::I32, DType::U8, DType::Bool];

/// What messages are made of. One of these makes one message of every kind.
#[derive(Clone, Debug)]
struct Parts {
    handles: [Handle; 2],
    long: [u64; 3],
    word: [u32; 3],
    half: u16,
    hash: [u8; 32],
    bytes: Vec<u8>,
    /// As many as `spec` has.
    elements: Vec<u8>,
    name: String,
    text: String,
    spec: TensorSpec,
    specs: Vec<([u8; 32], TensorSpec)>,
    arguments: (u32, Vec<u8>),
    bound: Vec<(u32, Handle)>,
    tokens: Vec<[u8; 4]>,
    stop: Vec<[u8; 4]>,
    slice_bytes: u32,
    yes: [bool; 2],
    code: ErrorCode,
    effect: Effect,
}

fn handle() -> impl Strategy<Value = Handle> {
    (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(index, generation, epoch)| Handle {
        index,
        generation,
        epoch,
    })
}

fn dtype() -> impl Strategy<Value = DType> {
    select(&DTYPES[..])
}

fn spec() -> impl Strategy<Value = TensorSpec> {
    (dtype(), vec(1..6_u64, 0..=8)).prop_map(|(dtype, dims)| TensorSpec::new(dtype, &dims).unwrap())
}

fn arguments() -> impl Strategy<Value = (u32, Vec<u8>)> {
    vec((any::<u16>(), dtype(), vec(1..4_u64, 0..4), any::<bool>(), handle()), 0..5).prop_map(|tensors| {
        let mut out = Vec::new();
        for (index, dtype, dims, inline, handle) in &tensors {
            if *inline {
                let data = vec![*index as u8; (dtype.bytes() * dims.iter().product::<u64>()) as usize];
                write_argument(&mut out, *index, *dtype, dims, &data).unwrap();
            } else {
                write_resident(&mut out, *index, &TensorSpec::new(*dtype, dims).unwrap(), *handle);
            }
        }
        (tensors.len() as u32, out)
    })
}

fn name() -> impl Strategy<Value = String> {
    "\\PC{1,40}".prop_filter("at most 255 bytes", |name| name.len() <= limits::NAME_BYTES)
}

fn parts() -> impl Strategy<Value = Parts> {
    let numbers = ([handle(), handle()], any::<[u64; 3]>(), any::<[u32; 3]>(), any::<u16>(), any::<[u8; 32]>());
    let texts = (vec(any::<u8>(), 0..300), name(), "\\PC{0,40}", spec());
    let lists = (
        vec((any::<[u8; 32]>(), spec()), 0..4),
        arguments(),
        vec((any::<u32>(), handle()), 0..4),
        vec(any::<[u8; 4]>(), 1..6),
        vec(any::<[u8; 4]>(), 0..4),
    );
    let effects = select(&[Effect::None, Effect::Partial, Effect::Unknown][..]);
    let codes = (1..=1024_u32, any::<[bool; 2]>(), select(ErrorCode::ALL), effects);
    (numbers, texts, lists, codes).prop_map(
        |(
            (handles, long, word, half, hash),
            (bytes, name, text, spec),
            (specs, arguments, bound, tokens, stop),
            (pages, yes, code, effect),
        )| Parts {
            handles,
            long,
            word,
            half,
            hash,
            bytes,
            elements: vec![half as u8; spec.bytes() as usize],
            name,
            text,
            spec,
            specs,
            arguments,
            bound,
            tokens,
            stop,
            slice_bytes: pages * 4096,
            yes,
            code,
            effect,
        },
    )
}

impl Parts {
    fn arguments(&self) -> Arguments<'_> {
        Arguments::new(self.arguments.0, &self.arguments.1).unwrap()
    }

    /// Any position but the one that stands for none.
    fn position(&self) -> Option<u32> {
        self.yes[0].then_some(self.word[0].min(u32::MAX - 1))
    }

    fn requests(&self) -> Vec<Request<'_>> {
        let [handle, other] = self.handles;
        let (hash, device) = (ContentHash(self.hash), self.half);
        let bytes = &self.elements;
        let sliced = PutBody::Sliced { slice_bytes: self.slice_bytes, announce: self.yes[1] };
        let put = |target, body| Request::Put(PutRequest { target, spec: self.spec.clone(), body });
        let new = |residency, hash, name| PutTarget::New { device, residency, hash, name };
        let offset = self.long[0];
        vec![
            Request::Open { quota: self.long[0], lease_ms: self.word[0] },
            Request::Resume { token: SessionToken(self.hash), epoch: self.long[0], unanswered: self.long[1] },
            Request::Close,
            Request::Echo(&self.bytes),
            put(new(ResidencyCode::Private, None, None), PutBody::Inline(bytes)),
            put(new(ResidencyCode::Private, self.yes[0].then_some(hash), Some(&self.name)), sliced),
            put(new(ResidencyCode::Weight, Some(hash), None), sliced),
            put(PutTarget::Range { handle, offset }, PutBody::Inline(bytes)),
            put(PutTarget::Range { handle, offset }, sliced),
            put(PutTarget::Cache { handle, length: self.word[1] }, sliced),
            Request::Get { handle, offset: self.long[0] / 2, length: self.long[1] / 2, sliced: None },
            Request::Get { handle, offset: 0, length: 0, sliced: Some(self.slice_bytes) },
            Request::Copy { handle, device },
            Request::Free(handle),
            Request::LookupName(&self.name),
            Request::LookupHandle(handle),
            Request::Offer { device, entries: self.specs.iter().map(|(h, s)| (ContentHash(*h), s.clone())).collect() },
            Request::Devices,
            Request::Stats,
            Request::Define { device, graph: &self.bytes },
            Request::DefineKnown { device, hash },
            Request::Bind {
                program: handle,
                // The epoch does not travel: it is the program's.
                bound: self
                    .bound
                    .iter()
                    .map(|&(input, bound)| BindEntry { input, handle: Handle { epoch: handle.epoch, ..bound } })
                    .collect(),
                arguments: self.arguments(),
            },
            Request::Run {
                binding: handle,
                position: self.position(),
                wanted: self.word[1],
                keep: self.word[2],
                arguments: self.arguments(),
            },
            Request::Generate {
                prefill: handle,
                decode: other,
                position: self.position(),
                max_new: self.word[1],
                prompt: &self.tokens,
                stop: &self.stop,
                arguments: self.arguments(),
            },
            Request::CacheCreate { program: handle, input: self.word[0], reserve: self.word[1] },
            Request::CacheFork(handle),
            Request::CacheTruncate { cache: handle, length: self.word[0] },
        ]
    }

    fn error(&self) -> RemoteError {
        RemoteError { code: self.code, effect: self.effect, message: self.text.clone() }
    }

    /// Replies, each with the kind of a request that it answers.
    fn replies(&self) -> Vec<(Kind, Reply<'_>)> {
        let [handle, other] = self.handles;
        let device = self.half;
        let [a, b, _] = self.long;
        let opened = OpenedSession {
            token: SessionToken(self.hash),
            epoch: a,
            session: b,
            quota: self.long[2],
            lease_ms: self.word[0],
            next_request: b,
        };
        let tensor = Reply::Tensor { handle, device, spec: self.spec.clone() };
        let slices = self.bytes.len() as u32 * 8;
        let generated = |finish| Reply::Generated { device, position: self.word[0], tokens: &self.tokens, finish };
        let offered = vec![Offered::Absent, Offered::Present(handle), Offered::Partial(a), Offered::Present(other)];
        let entry = DeviceEntry {
            index: self.word[0],
            name: &self.name,
            model: &self.text,
            capability: "",
            total_bytes: a,
            free_bytes: b,
        };
        vec![
            (Kind::Run, Reply::Failed(self.error())),
            (Kind::Echo, Reply::Failed(self.error())),
            (Kind::Close, Reply::Done),
            (Kind::Free, Reply::Done),
            (Kind::CacheTruncate, Reply::Done),
            (Kind::Open, Reply::Opened(opened)),
            (Kind::Resume, Reply::Opened(opened)),
            (Kind::Echo, Reply::Echo(&self.bytes)),
            (Kind::Put, tensor.clone()),
            (Kind::Copy, tensor.clone()),
            (Kind::Lookup, tensor.clone()),
            (Kind::CacheCreate, tensor.clone()),
            (Kind::CacheFork, tensor),
            (Kind::Put, Reply::Landed { slice_bytes: self.slice_bytes, slices, bits: &self.bytes }),
            (Kind::Get, Reply::Got(&self.bytes)),
            (Kind::Offer, Reply::Offered(offered)),
            (Kind::Devices, Reply::Devices(vec![entry; 2])),
            (
                Kind::Stats,
                Reply::Stats(vec![StatEntry { name: &self.name, value: a }, StatEntry { name: "b", value: b }]),
            ),
            (Kind::Define, Reply::Program { handle, hash: ContentHash(self.hash) }),
            (Kind::Bind, Reply::Bound(handle)),
            (Kind::Run, Reply::Ran { device, position: self.word[0], outputs: self.arguments() }),
            (Kind::Generate, generated(None)),
            (Kind::Generate, generated(Some(Finish::Length))),
            (Kind::Generate, generated(Some(Finish::Stop))),
        ]
    }

    fn controls(&self) -> Vec<Control> {
        let mut lane_key = [0; 16];
        lane_key.copy_from_slice(&self.hash[..16]);
        let [a, b, c] = self.long;
        let welcome = Welcome {
            caps: Caps(a),
            connection: b,
            lane_key,
            epoch: c,
            credits: self.word[0].max(1),
            eager_bytes: self.slice_bytes,
            slice_bytes: self.slice_bytes,
            keepalive_ms: self.word[1].max(1),
            silence_ms: self.word[2],
        };
        vec![
            Control::Hello(Caps(a)),
            Control::Welcome(welcome),
            Control::LaneHello(LaneHello { connection: a, lane_key, lane: self.word[0] }),
            Control::LaneWelcome(self.word[0]),
            Control::Ping,
            Control::Pong,
            Control::Goodbye(self.error()),
            Control::Cancel,
            Control::SliceAgain(a),
        ]
    }

    /// Every message as a frame's kind, flags, metadata and payload.
    fn frames(&self) -> Vec<(Kind, Flags, Vec<u8>, Vec<u8>)> {
        let requests = self.requests().into_iter().map(|r| {
            let (kind, meta, payload) = encoded(&r);
            (kind, Flags::default(), meta, payload)
        });
        let replies = self.replies().into_iter().map(|(kind, r)| {
            let (flags, meta, payload) = encoded_reply(&r);
            (kind, flags, meta, payload)
        });
        let controls = self.controls().into_iter().map(|c| {
            let mut meta = Vec::new();
            let (kind, flags) = c.encode(&mut meta);
            (kind, flags, meta, Vec::new())
        });
        requests.chain(replies).chain(controls).collect()
    }
}

fn encoded(request: &Request<'_>) -> (Kind, Vec<u8>, Vec<u8>) {
    let (mut meta, mut payload) = (Vec::new(), Vec::new());
    let kind = request.encode(&mut meta, &mut payload);
    let payload = request.payload().map_or(payload, <[u8]>::to_vec);
    (kind, meta, payload)
}

fn encoded_reply(reply: &Reply<'_>) -> (Flags, Vec<u8>, Vec<u8>) {
    let (mut meta, mut payload) = (Vec::new(), Vec::new());
    let flags = reply.encode(&mut meta, &mut payload);
    let payload = reply.payload().map_or(payload, <[u8]>::to_vec);
    (flags, meta, payload)
}

/// The header of a frame, through its bytes.
fn header(kind: Kind, flags: Flags, meta: &[u8], payload: &[u8]) -> Header {
    let crc = body_crc(meta, payload);
    let bytes = encode_header(kind, flags, 9, meta.len() as u32, payload.len() as u32, crc);
    decode_header(&bytes, limits::CONTROL_PAYLOAD_BYTES).unwrap()
}

/// Feeds a body to every decoder. What decodes, encodes again to what decodes to the same.
fn decode_all(kind: Kind, flags: Flags, meta: &[u8], payload: &[u8]) {
    let header = header(kind, flags, meta, payload);
    if let Ok(request) = Request::decode(&header, meta, payload) {
        let (kind, meta, payload) = encoded(&request);
        assert_eq!(kind, header.kind.unwrap());
        let again = self::header(kind, Flags::default(), &meta, &payload);
        assert_eq!(Request::decode(&again, &meta, &payload).as_ref(), Ok(&request));
    }
    if let Ok(reply) = Reply::decode(&header, meta, payload) {
        let (flags, meta, payload) = encoded_reply(&reply);
        // A text that was not UTF-8 has been repaired, and may have grown past the longest.
        if !matches!(reply, Reply::Failed(_)) {
            let again = self::header(kind, flags, &meta, &payload);
            assert_eq!(Reply::decode(&again, &meta, &payload).as_ref(), Ok(&reply));
        }
    }
    let _ = Control::decode(&header, meta);
}

fn flags(bits: u8) -> Flags {
    [Flags::REPLY, Flags::ERROR, Flags::MORE]
        .into_iter()
        .enumerate()
        .filter(|(i, _)| bits & (1 << i) != 0)
        .fold(Flags::default(), |all, (_, flag)| all.and(flag))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_comes_back(parts in parts()) {
        for request in parts.requests() {
            let (kind, meta, payload) = encoded(&request);
            let header = header(kind, Flags::default(), &meta, &payload);
            prop_assert_eq!(Request::decode(&header, &meta, &payload), Ok(request));
        }
    }

    #[test]
    fn every_reply_comes_back(parts in parts()) {
        for (kind, reply) in parts.replies() {
            let (flags, meta, payload) = encoded_reply(&reply);
            let header = header(kind, flags, &meta, &payload);
            prop_assert_eq!(flags.has(Flags::MORE), !reply.is_terminal());
            prop_assert_eq!(Reply::decode(&header, &meta, &payload), Ok(reply));
        }
    }

    #[test]
    fn every_message_of_the_connection_comes_back(parts in parts()) {
        for control in parts.controls() {
            let mut meta = Vec::new();
            let (kind, flags) = control.encode(&mut meta);
            let header = header(kind, flags, &meta, &[]);
            prop_assert!(Control::is(kind));
            prop_assert_eq!(Control::decode(&header, &meta), Ok(control));
        }
    }

    #[test]
    fn every_slice_comes_back(
        payload in vec(any::<u8>(), 1..500), before in 0..1_u64 << 45, after in 0..1_u64 << 40, id: u64, cut: Index,
    ) {
        let total = before + payload.len() as u64 + after;
        let bytes = SliceHead::encode(id, before, total, &payload);
        let (one, two) = payload.split_at(cut.index(payload.len()));
        prop_assert_eq!(bytes, SliceHead::encode_pieces(id, before, total, [one, two].into_iter()));
        let head = SliceHead::decode(&bytes).unwrap();
        prop_assert_eq!((head.transfer, head.offset, head.total, head.len as usize), (id, before, total, payload.len()));
        let mut checker = head.checker();
        checker.update(one);
        checker.update(two);
        prop_assert!(checker.matches());
        let mut wrong = payload.clone();
        wrong[cut.index(payload.len())] ^= 1;
        let mut checker = head.checker();
        checker.update(&wrong);
        prop_assert!(!checker.matches());
    }

    #[test]
    fn arbitrary_headers_never_panic(mut bytes: [u8; HEADER_BYTES], cap: u32, mend: bool) {
        if mend {
            bytes[..3].copy_from_slice(&[b'G', b'N', VERSION]);
            fix_header(&mut bytes);
        }
        if let Ok(header) = decode_header(&bytes, cap) {
            prop_assert!(header.meta_len <= limits::META_BYTES && header.payload_len <= cap);
        }
    }

    #[test]
    fn arbitrary_bodies_never_panic(
        kind in select(Kind::ALL), bits in 0..8_u8, meta in vec(any::<u8>(), 0..200), payload in vec(any::<u8>(), 0..300),
    ) {
        decode_all(kind, flags(bits), &meta, &payload);
    }

    /// Arbitrary bytes seldom get past the first check: these are messages with a few bytes changed.
    #[test]
    fn spoiled_messages_never_panic(
        parts in parts(), changes in vec((any::<Index>(), any::<Index>(), any::<u8>(), 0..5_u8), 1..4), bits in 0..8_u8,
    ) {
        for (kind, own, mut meta, mut payload) in parts.frames() {
            for (part, at, value, what) in &changes {
                let bytes = if part.index(2) == 0 { &mut meta } else { &mut payload };
                let at = at.index(bytes.len() + 1);
                match what {
                    0 => bytes.truncate(at),
                    1 => bytes.insert(at, *value),
                    2 if at < bytes.len() => bytes[at] = *value,
                    3 if at < bytes.len() => bytes[at] = [0, 0xff, 0x80, 1][usize::from(*value) % 4],
                    _ => drop(bytes.drain(at..bytes.len().min(at + 1))),
                }
            }
            decode_all(kind, own, &meta, &payload);
            decode_all(kind, flags(bits), &meta, &payload);
        }
    }

    #[test]
    fn a_flipped_bit_in_a_header_is_noticed(id: u64, meta_len in 0..limits::META_BYTES, bit in 0..HEADER_BYTES * 8) {
        let mut bytes = encode_header(Kind::Run, Flags::default(), id, meta_len, 5, 77);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let refused = decode_header(&bytes, limits::CONTROL_PAYLOAD_BYTES).unwrap_err();
        prop_assert!(matches!(refused, DecodeError::HeaderChecksum { .. } | DecodeError::Magic(_)), "{:?}", refused);
    }

    #[test]
    fn a_flipped_bit_in_a_slice_head_is_noticed(offset in 0..1_u64 << 40, bit in 0..SLICE_FRAME_BYTES * 8) {
        let mut bytes = SliceHead::encode(3, offset, offset + 4096, &[1; 4096]);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(SliceHead::decode(&bytes).is_err());
    }

    #[test]
    fn arbitrary_slice_heads_never_panic(meta: [u8; SLICE_FRAME_BYTES - HEADER_BYTES], len in 0..=limits::SLICE_BYTES) {
        let mut bytes = [0; SLICE_FRAME_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&encode_header(Kind::Slice, Flags::default(), 1, meta.len() as u32, len, 0));
        bytes[HEADER_BYTES..].copy_from_slice(&meta);
        let _ = SliceHead::decode(&bytes);
    }

    #[test]
    fn a_put_is_turned_into_one_that_asks(parts in parts()) {
        for request in parts.requests() {
            let (kind, meta, payload) = encoded(&request);
            let crc = body_crc(&meta, &payload);
            let mut frame =
                encode_header(kind, Flags::default(), 4, meta.len() as u32, payload.len() as u32, crc).to_vec();
            frame.extend_from_slice(&meta);
            frame.extend_from_slice(&payload);
            set_announce(&mut frame);
            let header = decode_header(frame.first_chunk().unwrap(), limits::CONTROL_PAYLOAD_BYTES).unwrap();
            let (meta, payload) = frame[HEADER_BYTES..].split_at(header.meta_len as usize);
            prop_assert_eq!(header.body_crc, body_crc(meta, payload));
            let expected = match request {
                Request::Put(PutRequest { target, spec, body: PutBody::Sliced { slice_bytes, .. } }) => {
                    Request::Put(PutRequest { target, spec, body: PutBody::Sliced { slice_bytes, announce: true } })
                }
                other => other,
            };
            prop_assert_eq!(Request::decode(&header, meta, payload), Ok(expected));
        }
    }
}

/// Gives a header the checksum that fits.
fn fix_header(bytes: &mut [u8; HEADER_BYTES]) {
    let at = std::mem::offset_of!(RawHeader, header_crc);
    let crc = body_crc(&bytes[..at], &[]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
}

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
        let request = Request::Bind { program: handle, bound: Vec::new(), arguments: Arguments::EMPTY };
        let mut meta = encoded(&request).1;
        set(&mut meta, std::mem::offset_of!(layout::Bind, bound), &bound.to_le_bytes());
        set(&mut meta, std::mem::offset_of!(layout::Bind, arguments), &arguments.to_le_bytes());
        refuse(Kind::Bind, &meta, &[])
    };
    assert!(matches!(bind(4097, 0), DecodeError::TooLong { what: "bound residents", .. }));
    assert!(matches!(bind(0, 65), DecodeError::TooLong { what: "argument count", .. }));
    assert_eq!(bind(0, 1), DecodeError::Truncated);

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
    assert_eq!(bad_argument(|a| a[4] = 2), DecodeError::Enum { what: "argument form", value: 2 });
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
