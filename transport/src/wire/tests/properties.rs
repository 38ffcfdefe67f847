//! Properties of every codec: whatever a peer sends, decoding ends in a value or an error; what was encoded comes back.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use genie_graph::DType;

use super::super::*;
use super::{encoded, encoded_reply, fix_header, header};

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
    spans: Vec<HandleSpan>,
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
    vec((any::<u16>(), dtype(), vec(1..4_u64, 0..4), 0..3, handle()), 0..5).prop_map(|tensors| {
        let mut out = Vec::new();
        for (index, dtype, dims, form, handle) in &tensors {
            if *form == 0 {
                let data = vec![*index as u8; (dtype.bytes() * dims.iter().product::<u64>()) as usize];
                write_argument(&mut out, *index, *dtype, dims, &data).unwrap();
            } else if *form == 2 {
                write_token_of(&mut out, *index, handle.epoch.max(1));
            } else {
                write_resident(&mut out, *index, &TensorSpec::new(*dtype, dims).unwrap(), *handle).unwrap();
            }
        }
        (tensors.len() as u32, out)
    })
}

/// Of together at most `OFFERED` handles.
fn spans() -> impl Strategy<Value = Vec<HandleSpan>> {
    vec((any::<u32>(), any::<u32>(), 1..=limits::OFFERED as u32 / 4), 0..=4).prop_map(|spans| {
        let span = |(index, generation, count): (u32, u32, u32)| {
            // The last may have the last slot.
            HandleSpan { index: index.min(u32::MAX - (count - 1)), generation, count }
        };
        spans.into_iter().map(span).collect()
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
        spans(),
        vec(any::<[u8; 4]>(), 1..6),
        vec(any::<[u8; 4]>(), 0..4),
    );
    let effects = select(&[Effect::None, Effect::Partial, Effect::Unknown][..]);
    let codes = (1..=1024_u32, any::<[bool; 2]>(), select(ErrorCode::ALL), effects);
    (numbers, texts, lists, codes).prop_map(
        |(
            (handles, long, word, half, hash),
            (bytes, name, text, spec),
            (specs, arguments, bound, spans, tokens, stop),
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
            spans,
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
            Request::OfferSet { device, hash },
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
                weights: self.spans.clone(),
                arguments: self.arguments(),
            },
            Request::Run {
                binding: handle,
                position: self.position(),
                wanted: self.word[1].into(),
                keep: self.word[2].into(),
                arguments: self.arguments(),
            },
            // Every other output at the most, so that they are no more than a reply may have.
            Request::Run {
                binding: other,
                position: None,
                wanted: self.long[0] & 0x5555_5555_5555_5555,
                keep: self.long[1] & 0xaaaa_aaaa_aaaa_aaaa,
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
            (Kind::OfferSet, Reply::OfferedSet { epoch: a, spans: self.spans.clone() }),
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
            keepalive_ms: self.word[1].clamp(1, u32::MAX - 1),
            silence_ms: self.word[2].max(self.word[1].clamp(1, u32::MAX - 1) + 1),
            proof: Mac(self.hash),
        };
        vec![
            Control::Hello(Caps(a)),
            Control::Welcome(welcome),
            Control::LaneHello(LaneHello {
                connection: a,
                lane: self.word[0],
                attempt: self.word[1],
                proof: Mac(self.hash),
            }),
            Control::LaneWelcome(self.word[0]),
            Control::Ping,
            Control::Pong,
            Control::Goodbye(self.error()),
            Control::Cancel,
            Control::SliceAgain { offset: a, late: b & 1 == 1 },
            Control::LaneEnded { lane: self.word[0], slices: a },
            Control::Late,
            Control::AskLinks(AskLinks { nonce: lane_key, host: lane_key }),
            Control::Links(Links { host: lane_key, server: lane_key, offers: self.offers() }),
            Control::Challenge(self.hash),
            Control::Proof(Proof { nonce: self.hash, proof: Mac(self.hash), name: format!("token-{}", self.word[0]) }),
        ]
    }

    fn offers(&self) -> Vec<LinkOffer> {
        let port = (self.word[0] % 65_535) as u16 + 1;
        let path = Some(format!("/{}", "s".repeat(self.word[1] as usize % 100)));
        let offer = |&scheme: &LinkScheme| match scheme {
            LinkScheme::Shm => LinkOffer { scheme, port: 0, path: path.clone() },
            _ => LinkOffer { scheme, port, path: None },
        };
        LinkScheme::ALL.iter().map(offer).collect()
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
    fn spans_name_the_handles_that_they_were_made_of(
        slots in vec((0..40_u32, 0..2_u32, 1..6_u32), 0..8), epoch: u64, at: u32,
    ) {
        // Runs of slots, near each other or at the end of all slots.
        let at = if at.is_multiple_of(2) { u32::MAX - 45 } else { at / 2 };
        let handle = |index, generation| Handle { index, generation, epoch };
        let handles: Vec<_> =
            slots.iter().flat_map(|&(first, generation, n)| (first..first + n).map(move |i| handle(at + i, generation))).collect();
        let spans = HandleSpan::of(handles.iter().copied());
        prop_assert!(spans.len() <= slots.len());
        let named: Vec<_> = spans.iter().flat_map(|span| span.handles(epoch)).collect();
        prop_assert_eq!(named, handles);
    }

    #[test]
    fn a_sets_hash_is_of_all_its_weights_in_their_order(parts in parts(), at: Index, bit in 0..256_usize) {
        let entries: Vec<_> = parts.specs.iter().map(|(hash, spec)| (ContentHash(*hash), spec.clone())).collect();
        let hash = ContentHash::of_set(&entries);
        // It is over what an offer of them holds, and is no hash of contents.
        let (_, _, payload) = encoded(&Request::Offer { device: parts.half, entries: entries.clone() });
        prop_assert_eq!(hash.0, *blake3::Hasher::new_derive_key("genie set of weights").update(&payload).finalize().as_bytes());
        prop_assert_ne!(hash, ContentHash::of(&payload));
        if !entries.is_empty() {
            let mut other = entries;
            let at = at.index(other.len());
            other[at].0.0[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(ContentHash::of_set(&other), hash);
            other.remove(at);
            prop_assert_ne!(ContentHash::of_set(&other), hash);
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
