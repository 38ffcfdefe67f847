//! Requests to bytes.

use zerocopy::IntoBytes;

use super::super::header::{HEADER_BYTES, Kind, body_crc, decode_header, encode_header};
use super::super::types::{Handle, HandleSpan, ResidencyCode};
use super::super::{layout, limits};
use super::{ANNOUNCE, ANY_POSITION, HASHED, PASSED, PutBody, PutRequest, PutTarget, Request, SLICED, Shared};

impl Request<'_> {
    /// The kind of the frame. Metadata is appended to `meta`; the payload is `self.payload()` if that is `Some`, else what
    /// was appended to `payload`.
    pub fn encode(&self, meta: &mut Vec<u8>, payload: &mut Vec<u8>) -> Kind {
        match self {
            Self::Open { quota, lease_ms } => {
                let raw = layout::Open { quota: (*quota).into(), lease_ms: (*lease_ms).into(), zero: 0.into() };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Open
            }
            Self::Resume { token, epoch, unanswered } => {
                let raw = layout::Resume { token: token.0, epoch: (*epoch).into(), unanswered: (*unanswered).into() };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Resume
            }
            Self::Close => Kind::Close,
            Self::Echo(_) => Kind::Echo,
            Self::Put(put) => {
                put.encode(meta);
                if let PutBody::Passed(shared) = &put.body {
                    payload.extend_from_slice(shared.to_field().as_bytes());
                }
                Kind::Put
            }
            Self::Get { handle, offset, length, sliced } => {
                let raw = layout::Get {
                    handle: handle.to_field(),
                    offset: (*offset).into(),
                    length: (*length).into(),
                    slice_bytes: sliced.unwrap_or(0).into(),
                    sliced: u8::from(sliced.is_some()),
                    zero: [0; 3],
                };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Get
            }
            Self::GetInto { handle, offset, length, into } => {
                let raw = layout::Get {
                    handle: handle.to_field(),
                    offset: (*offset).into(),
                    length: (*length).into(),
                    slice_bytes: 0.into(),
                    sliced: 2,
                    zero: [0; 3],
                };
                meta.extend_from_slice(raw.as_bytes());
                payload.extend_from_slice(into.to_field().as_bytes());
                Kind::Get
            }
            Self::Copy { handle, device } => {
                let raw = layout::Copy { handle: handle.to_field(), device: (*device).into(), zero: [0; 6] };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Copy
            }
            Self::Free(handle) => {
                meta.extend_from_slice(handle.to_field().as_bytes());
                Kind::Free
            }
            Self::LookupName(_) => {
                let none = Handle { index: 0, generation: 0, epoch: 0 };
                let raw = layout::Lookup { handle: none.to_field(), form: 0, zero: [0; 7] };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Lookup
            }
            Self::LookupHandle(handle) => {
                let raw = layout::Lookup { handle: handle.to_field(), form: 1, zero: [0; 7] };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Lookup
            }
            Self::Offer { device, entries } => {
                let raw =
                    layout::Offer { device: (*device).into(), zero: 0.into(), count: (entries.len() as u32).into() };
                meta.extend_from_slice(raw.as_bytes());
                for (hash, spec) in entries {
                    payload.extend_from_slice(&hash.0);
                    spec.write(payload);
                }
                Kind::Offer
            }
            Self::OfferSet { device, hash } => {
                let raw = layout::OfferSet { device: (*device).into(), zero: [0; 6], hash: hash.0 };
                meta.extend_from_slice(raw.as_bytes());
                Kind::OfferSet
            }
            Self::Devices => Kind::Devices,
            Self::Stats => Kind::Stats,
            Self::Define { device, .. } => {
                let raw = layout::Define { device: (*device).into(), form: 0, zero: [0; 5] };
                meta.extend_from_slice(raw.as_bytes());
                Kind::Define
            }
            Self::DefineKnown { device, hash } => {
                let raw = layout::Define { device: (*device).into(), form: 1, zero: [0; 5] };
                meta.extend_from_slice(raw.as_bytes());
                payload.extend_from_slice(&hash.0);
                Kind::Define
            }
            Self::Bind { program, bound, weights, arguments } => {
                // Both counts have limits far below 2^16.
                let raw = layout::Bind {
                    program: program.to_field(),
                    bound: (bound.len() as u32).into(),
                    arguments: (arguments.len() as u16).into(),
                    spans: (weights.len() as u16).into(),
                };
                meta.extend_from_slice(raw.as_bytes());
                for entry in bound {
                    let Handle { index, generation, .. } = entry.handle;
                    let raw = layout::BindField {
                        index: index.into(),
                        generation: generation.into(),
                        input: entry.input.into(),
                    };
                    payload.extend_from_slice(raw.as_bytes());
                }
                HandleSpan::write_all(weights, payload);
                payload.extend_from_slice(arguments.bytes());
                Kind::Bind
            }
            Self::Run { binding, position, wanted, keep, arguments } => {
                let raw = layout::Run {
                    binding: binding.to_field(),
                    position: position.unwrap_or(ANY_POSITION).into(),
                    wanted: (*wanted as u32).into(),
                    keep: (*keep as u32).into(),
                    arguments: (arguments.len() as u32).into(),
                };
                meta.extend_from_slice(raw.as_bytes());
                let more = [wanted, keep].map(|outputs| (*outputs >> 32) as u32);
                if more != [0, 0] {
                    let [wanted, keep] = more;
                    meta.extend_from_slice(layout::RunMore { wanted: wanted.into(), keep: keep.into() }.as_bytes());
                }
                Kind::Run
            }
            Self::Generate { prefill, decode, position, max_new, prompt, stop, arguments } => {
                let raw = layout::Generate {
                    prefill: prefill.to_field(),
                    decode: decode.to_field(),
                    position: position.unwrap_or(ANY_POSITION).into(),
                    max_new: (*max_new).into(),
                    prompt: (prompt.len() as u32).into(),
                    stop: (stop.len() as u32).into(),
                    arguments: (arguments.len() as u32).into(),
                    zero: 0.into(),
                };
                meta.extend_from_slice(raw.as_bytes());
                payload.extend_from_slice(prompt.as_flattened());
                payload.extend_from_slice(stop.as_flattened());
                payload.extend_from_slice(arguments.bytes());
                Kind::Generate
            }
            Self::CacheCreate { program, input, reserve } => {
                let raw = layout::CacheCreate {
                    program: program.to_field(),
                    input: (*input).into(),
                    reserve: (*reserve).into(),
                };
                meta.extend_from_slice(raw.as_bytes());
                Kind::CacheCreate
            }
            Self::CacheFork(handle) => {
                meta.extend_from_slice(handle.to_field().as_bytes());
                Kind::CacheFork
            }
            Self::CacheTruncate { cache, length } => {
                let raw = layout::CacheTruncate { cache: cache.to_field(), length: (*length).into(), zero: 0.into() };
                meta.extend_from_slice(raw.as_bytes());
                Kind::CacheTruncate
            }
        }
    }
}

impl Shared {
    fn to_field(self) -> layout::Shared {
        layout::Shared { region: self.region.into(), offset: self.offset.into() }
    }
}

impl PutRequest<'_> {
    fn encode(&self, meta: &mut Vec<u8>) {
        let none = Handle { index: 0, generation: 0, epoch: 0 };
        let (mut flags, slice_bytes) = match self.body {
            PutBody::Inline(_) => (0, 0),
            PutBody::Passed(_) => (PASSED, 0),
            PutBody::Sliced { slice_bytes, announce } => (SLICED | if announce { ANNOUNCE } else { 0 }, slice_bytes),
        };
        let (target, handle, offset) = match self.target {
            PutTarget::New { .. } => (0, none, 0),
            PutTarget::Range { handle, offset } => (1, handle, offset),
            PutTarget::Cache { handle, length } => (2, handle, u64::from(length)),
        };
        let (device, residency, hash, name) = match self.target {
            PutTarget::New { device, residency, hash, name } => (device, residency, hash, name),
            _ => (0, ResidencyCode::Private, None, None),
        };
        if hash.is_some() {
            flags |= HASHED;
        }
        let raw = layout::Put {
            target,
            residency: residency as u8,
            flags,
            zero: 0,
            device: device.into(),
            name_len: (name.map_or(0, str::len) as u16).into(),
            slice_bytes: slice_bytes.into(),
            zero2: 0.into(),
            offset: offset.into(),
            handle: handle.to_field(),
            hash: hash.map_or([0; 32], |h| h.0),
            zero3: 0.into(),
        };
        meta.extend_from_slice(raw.as_bytes());
        self.spec.write(meta);
        meta.extend_from_slice(name.unwrap_or_default().as_bytes());
    }
}

/// Gives an encoded frame another id.
pub fn set_id(frame: &mut [u8], id: u64) {
    let Some(head) = frame.first_chunk_mut::<HEADER_BYTES>() else { return };
    let Ok(header) = decode_header(head, limits::CONTROL_PAYLOAD_BYTES) else { return };
    if let Ok(kind) = header.kind {
        *head = encode_header(kind, header.flags, id, header.meta_len, header.payload_len, header.body_crc);
    }
}

/// Turns an encoded sliced put into one that asks which slices have landed already: what a client sends after a reconnect.
pub fn set_announce(frame: &mut [u8]) {
    let Some((head, body)) = frame.split_first_chunk_mut::<HEADER_BYTES>() else { return };
    let Ok(header) = decode_header(head, limits::CONTROL_PAYLOAD_BYTES) else { return };
    let at = std::mem::offset_of!(layout::Put, flags);
    if header.kind == Ok(Kind::Put) && body.len() > at && body[at] & SLICED != 0 {
        body[at] |= ANNOUNCE;
        let (meta, payload) = body.split_at(header.meta_len as usize);
        let crc = body_crc(meta, payload);
        *head = encode_header(Kind::Put, header.flags, header.id, header.meta_len, header.payload_len, crc);
    }
}
