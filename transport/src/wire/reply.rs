//! What a server answers.

use zerocopy::IntoBytes;

use super::argument::Arguments;
use super::error::{DecodeError, RemoteError};
use super::header::{Flags, Header, Kind};
use super::types::{ContentHash, Handle, HandleSpan, SessionToken, TensorSpec};
use super::{layout, limits};

/// A reply, borrowed from the frame it came in.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<'a> {
    /// It failed.
    Failed(RemoteError),
    /// Done; there is nothing to say (close, free, cache truncate).
    Done,
    /// A session was opened or resumed.
    Opened(OpenedSession),
    /// What was sent.
    Echo(&'a [u8]),
    /// A tensor is resident (put, copy, lookup), or a cache of this shape was made, forked or looked up.
    Tensor {
        /// Its handle.
        handle: Handle,
        /// Its device.
        device: u16,
        /// Its type and shape.
        spec: TensorSpec,
    },
    /// Not yet the end of a put: which slices landed earlier, one bit a slice, least significant first.
    Landed {
        /// Bytes of a slice as the server counts them.
        slice_bytes: u32,
        /// How many slices the transfer has.
        slices: u32,
        /// The bits.
        bits: &'a [u8],
    },
    /// A tensor's bytes, or (empty, sliced) the word that they came over the bulk lanes.
    Got(&'a [u8]),
    /// Answers to an offer, in its order.
    Offered(Vec<Offered>),
    /// The weights of a set, in its order; no spans: not all of them are here, or the set is not known.
    OfferedSet {
        /// Of all of them.
        epoch: u64,
        /// Together at most [`limits::OFFERED`] handles.
        spans: Vec<HandleSpan>,
    },
    /// The devices.
    Devices(Vec<DeviceEntry<'a>>),
    /// The counters.
    Stats(Vec<StatEntry<'a>>),
    /// A program is registered.
    Program {
        /// Its handle.
        handle: Handle,
        /// The graph's content hash.
        hash: ContentHash,
    },
    /// A binding was made.
    Bound(Handle),
    /// A run's outputs.
    Ran {
        /// The device that ran it.
        device: u16,
        /// The cache's length after it.
        position: u32,
        /// The outputs that were wanted or kept.
        outputs: Arguments<'a>,
    },
    /// Tokens of a generate.
    Generated {
        /// The device that ran it.
        device: u16,
        /// The cache's length after the last of them.
        position: u32,
        /// The tokens, i32 little-endian.
        tokens: &'a [[u8; 4]],
        /// `None`: more follow.
        finish: Option<Finish>,
    },
}

/// A session as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedSession {
    /// Resumes it.
    pub token: SessionToken,
    /// The server's life.
    pub epoch: u64,
    /// For logs; no secret.
    pub session: u64,
    /// Bytes it may hold.
    pub quota: u64,
    /// How long it outlives its connection.
    pub lease_ms: u32,
    /// Above every request id that the session has seen: a client that did not make those itself goes on from here.
    pub next_request: u64,
}

/// Why a generate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Finish {
    /// As many tokens as asked for.
    Length = 1,
    /// A stop token (which is the last of the tokens).
    Stop = 2,
}

/// One answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// Not here: put it.
    Absent,
    /// Here, and now a resident of the session.
    Present(Handle),
    /// An upload of it was cut: put it with `announce`, and send what is missing. Bytes that landed.
    Partial(u64),
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceEntry<'a> {
    /// Index.
    pub index: u32,
    /// `cpu:0`.
    pub name: &'a str,
    /// What the hardware calls itself.
    pub model: &'a str,
    /// Instruction set or compute capability.
    pub capability: &'a str,
    /// Bytes that tensors may take.
    pub total_bytes: u64,
    /// Bytes not taken.
    pub free_bytes: u64,
}

/// A counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatEntry<'a> {
    /// As in the metrics.
    pub name: &'a str,
    /// Its value.
    pub value: u64,
}

impl<'a> Reply<'a> {
    /// Checks a reply whole. The caller has checked the header and the body's checksum.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong.
    pub fn decode(header: &Header, meta: &'a [u8], payload: &'a [u8]) -> Result<Self, DecodeError> {
        let kind = header.kind.map_err(DecodeError::Kind)?;
        if !header.flags.has(Flags::REPLY) {
            return Err(DecodeError::Misplaced(kind as u8));
        }
        if header.flags.has(Flags::ERROR) {
            return nothing(payload, Self::Failed(RemoteError::decode(meta)?));
        }
        let more = header.flags.has(Flags::MORE);
        if more && !matches!(kind, Kind::Put | Kind::Generate) {
            return Err(DecodeError::Reserved("flags of a reply"));
        }
        match kind {
            Kind::Close | Kind::Free | Kind::CacheTruncate => nothing(meta, ()).and(nothing(payload, Self::Done)),
            Kind::Open | Kind::Resume => opened(meta).map(Self::Opened),
            Kind::Echo => nothing(meta, Self::Echo(payload)),
            Kind::Put if more => {
                let raw = layout::whole::<layout::Landed>(meta)?;
                let (slices, slice_bytes) = (raw.slices.get(), super::request::slice_bytes(raw.slice_bytes.get())?);
                if payload.len() != slices.div_ceil(8) as usize {
                    return Err(DecodeError::Range("a bitmap has not the bits that it says"));
                }
                Ok(Self::Landed { slice_bytes, slices, bits: payload })
            }
            Kind::Put | Kind::Copy | Kind::Lookup | Kind::CacheCreate | Kind::CacheFork => {
                let (raw, rest) = layout::take::<layout::Tensor>(meta)?;
                layout::zero(&raw.zero, "tensor")?;
                let (spec, rest) = TensorSpec::take(rest)?;
                let device = raw.device.get();
                nothing(rest, Self::Tensor { handle: Handle::from_field(&raw.handle), device, spec })
            }
            Kind::Get => nothing(meta, Self::Got(payload)),
            Kind::Offer => entries(meta, payload, limits::OFFERED, offered).map(Self::Offered),
            Kind::OfferSet => {
                let raw = layout::whole::<layout::OfferedSet>(meta)?;
                layout::zero(&raw.zero, "offered set")?;
                let (spans, rest) = HandleSpan::take_all(payload, raw.spans.get(), limits::OFFERED)?;
                nothing(rest, Self::OfferedSet { epoch: raw.epoch.get(), spans })
            }
            Kind::Devices => entries(meta, payload, 4096, device).map(Self::Devices),
            Kind::Stats => entries(meta, payload, 4096, stat).map(Self::Stats),
            Kind::Define => {
                let raw = layout::whole::<layout::Program>(meta)?;
                Ok(Self::Program { handle: Handle::from_field(&raw.handle), hash: ContentHash(raw.hash) })
            }
            Kind::Bind => Ok(Self::Bound(Handle::from_field(&layout::whole::<layout::ByHandle>(meta)?.handle))),
            Kind::Run => {
                let raw = layout::whole::<layout::Ran>(meta)?;
                layout::zero(&raw.zero, "ran")?;
                layout::zero(&raw.zero2, "ran")?;
                let outputs = Arguments::decode(raw.outputs.get(), payload)?;
                Ok(Self::Ran { device: raw.device.get(), position: raw.position.get(), outputs })
            }
            Kind::Generate => generated(meta, payload, more),
            Kind::Hello | Kind::LaneHello | Kind::Ping | Kind::Goodbye => Err(DecodeError::Misplaced(kind as u8)),
            Kind::Cancel
            | Kind::Slice
            | Kind::SliceAgain
            | Kind::LaneEnded
            | Kind::Late
            | Kind::Links
            | Kind::Heads
            | Kind::Grant
            | Kind::Recall
            | Kind::Readable
            | Kind::Release
            | Kind::Challenge => Err(DecodeError::Misplaced(kind as u8)),
        }
    }

    /// The flags of the frame. Metadata is appended to `meta`; the payload is `self.payload()` if that is `Some`, else what
    /// was appended to `payload`.
    pub fn encode(&self, meta: &mut Vec<u8>, payload: &mut Vec<u8>) -> Flags {
        match self {
            Self::Failed(error) => {
                error.write(meta);
                return Flags::REPLY.and(Flags::ERROR);
            }
            Self::Done | Self::Echo(_) | Self::Got(_) => {}
            Self::Opened(opened) => {
                let raw = layout::Opened {
                    token: opened.token.0,
                    epoch: opened.epoch.into(),
                    session: opened.session.into(),
                    quota: opened.quota.into(),
                    lease_ms: opened.lease_ms.into(),
                    zero: 0.into(),
                    next_request: opened.next_request.into(),
                };
                meta.extend_from_slice(raw.as_bytes());
            }
            Self::Tensor { handle, device, spec } => {
                let raw = layout::Tensor { handle: handle.to_field(), device: (*device).into(), zero: [0; 6] };
                meta.extend_from_slice(raw.as_bytes());
                spec.write(meta);
            }
            Self::Landed { slice_bytes, slices, .. } => {
                let raw = layout::Landed { slice_bytes: (*slice_bytes).into(), slices: (*slices).into() };
                meta.extend_from_slice(raw.as_bytes());
                return Flags::REPLY.and(Flags::MORE);
            }
            Self::Offered(entries) => {
                write_count(meta, entries.len());
                entries.iter().for_each(|entry| write_offered(payload, entry));
            }
            Self::OfferedSet { epoch, spans } => {
                let raw =
                    layout::OfferedSet { epoch: (*epoch).into(), spans: (spans.len() as u32).into(), zero: 0.into() };
                meta.extend_from_slice(raw.as_bytes());
                HandleSpan::write_all(spans, payload);
            }
            Self::Devices(entries) => {
                write_count(meta, entries.len());
                entries.iter().for_each(|entry| write_device(payload, entry));
            }
            Self::Stats(entries) => {
                write_count(meta, entries.len());
                for entry in entries {
                    let name = short(entry.name);
                    let raw = layout::StatField {
                        value: entry.value.into(),
                        name_len: (name.len() as u16).into(),
                        zero: [0; 6],
                    };
                    payload.extend_from_slice(raw.as_bytes());
                    payload.extend_from_slice(name.as_bytes());
                }
            }
            Self::Program { handle, hash } => {
                let raw = layout::Program { handle: handle.to_field(), hash: hash.0 };
                meta.extend_from_slice(raw.as_bytes());
            }
            Self::Bound(handle) => meta.extend_from_slice(handle.to_field().as_bytes()),
            Self::Ran { device, position, outputs } => {
                let raw = layout::Ran {
                    device: (*device).into(),
                    zero: 0.into(),
                    position: (*position).into(),
                    outputs: (outputs.len() as u32).into(),
                    zero2: 0.into(),
                };
                meta.extend_from_slice(raw.as_bytes());
            }
            Self::Generated { device, position, tokens, finish } => {
                let raw = layout::Generated {
                    device: (*device).into(),
                    finish: finish.map_or(0, |f| f as u8),
                    zero: 0,
                    position: (*position).into(),
                    tokens: (tokens.len() as u32).into(),
                    zero2: 0.into(),
                };
                meta.extend_from_slice(raw.as_bytes());
                if finish.is_none() {
                    return Flags::REPLY.and(Flags::MORE);
                }
            }
        }
        Flags::REPLY
    }

    /// The payload, where it is sent as it lies in the caller's memory.
    pub fn payload(&self) -> Option<&'a [u8]> {
        match self {
            Self::Echo(bytes) | Self::Got(bytes) | Self::Landed { bits: bytes, .. } => Some(bytes),
            Self::Ran { outputs, .. } => Some(outputs.bytes()),
            Self::Generated { tokens, .. } => Some(tokens.as_flattened()),
            _ => None,
        }
    }

    /// Whether it is the last reply to its request.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Self::Landed { .. } | Self::Generated { finish: None, .. })
    }
}

fn nothing<T>(bytes: &[u8], value: T) -> Result<T, DecodeError> {
    if bytes.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(bytes.len())) }
}

fn opened(meta: &[u8]) -> Result<OpenedSession, DecodeError> {
    let raw = layout::whole::<layout::Opened>(meta)?;
    layout::zero(&raw.zero, "opened")?;
    Ok(OpenedSession {
        token: SessionToken(raw.token),
        epoch: raw.epoch.get(),
        session: raw.session.get(),
        quota: raw.quota.get(),
        lease_ms: raw.lease_ms.get(),
        next_request: raw.next_request.get(),
    })
}

fn entries<'a, T>(
    meta: &[u8],
    payload: &'a [u8],
    limit: usize,
    take: impl Fn(&'a [u8]) -> Result<(T, &'a [u8]), DecodeError>,
) -> Result<Vec<T>, DecodeError> {
    let raw = layout::whole::<layout::Count>(meta)?;
    layout::zero(&raw.zero, "count")?;
    let count = raw.count.get() as usize;
    if count > limit {
        return Err(DecodeError::TooLong { what: "entries", length: count as u64, limit: limit as u64 });
    }
    let mut rest = payload;
    let mut entries = Vec::with_capacity(count.min(payload.len() / 16));
    for _ in 0..count {
        let (entry, after) = take(rest)?;
        entries.push(entry);
        rest = after;
    }
    nothing(rest, entries)
}

fn offered(bytes: &[u8]) -> Result<(Offered, &[u8]), DecodeError> {
    let (raw, rest) = layout::take::<layout::OfferedField>(bytes)?;
    layout::zero(&raw.zero, "offered")?;
    let entry = match raw.status {
        0 => Offered::Absent,
        1 => Offered::Present(Handle::from_field(&raw.handle)),
        2 => Offered::Partial(raw.landed.get()),
        other => return Err(DecodeError::Enum { what: "offer status", value: u32::from(other) }),
    };
    Ok((entry, rest))
}

fn write_offered(out: &mut Vec<u8>, entry: &Offered) {
    let none = Handle { index: 0, generation: 0, epoch: 0 };
    let (status, handle, landed) = match *entry {
        Offered::Absent => (0, none, 0),
        Offered::Present(handle) => (1, handle, 0),
        Offered::Partial(landed) => (2, none, landed),
    };
    let raw = layout::OfferedField { handle: handle.to_field(), status, zero: [0; 7], landed: landed.into() };
    out.extend_from_slice(raw.as_bytes());
}

fn device(bytes: &[u8]) -> Result<(DeviceEntry<'_>, &[u8]), DecodeError> {
    let (raw, rest) = layout::take::<layout::DeviceField>(bytes)?;
    layout::zero(&raw.zero, "device")?;
    let (name, rest) = text(rest, raw.name_len.get())?;
    let (model, rest) = text(rest, raw.model_len.get())?;
    let (capability, rest) = text(rest, raw.capability_len.get())?;
    let (total_bytes, free_bytes) = (raw.total.get(), raw.free.get());
    Ok((DeviceEntry { index: raw.index.get(), name, model, capability, total_bytes, free_bytes }, rest))
}

fn write_device(out: &mut Vec<u8>, entry: &DeviceEntry<'_>) {
    let (name, model, capability) = (short(entry.name), short(entry.model), short(entry.capability));
    let raw = layout::DeviceField {
        index: entry.index.into(),
        name_len: (name.len() as u16).into(),
        model_len: (model.len() as u16).into(),
        capability_len: (capability.len() as u16).into(),
        zero: [0; 6],
        total: entry.total_bytes.into(),
        free: entry.free_bytes.into(),
    };
    out.extend_from_slice(raw.as_bytes());
    [name, model, capability].iter().for_each(|text| out.extend_from_slice(text.as_bytes()));
}

fn stat(bytes: &[u8]) -> Result<(StatEntry<'_>, &[u8]), DecodeError> {
    let (raw, rest) = layout::take::<layout::StatField>(bytes)?;
    layout::zero(&raw.zero, "counter")?;
    let (name, rest) = text(rest, raw.name_len.get())?;
    Ok((StatEntry { name, value: raw.value.get() }, rest))
}

fn text(bytes: &[u8], len: u16) -> Result<(&str, &[u8]), DecodeError> {
    let (text, rest) = bytes.split_at_checked(usize::from(len)).ok_or(DecodeError::Truncated)?;
    Ok((std::str::from_utf8(text).map_err(|_| DecodeError::Name)?, rest))
}

/// Text that fits a u16 length, cut where a character ends.
fn short(text: &str) -> &str {
    let mut end = text.len().min(1024);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn write_count(out: &mut Vec<u8>, count: usize) {
    out.extend_from_slice(layout::Count { count: (count as u32).into(), zero: 0.into() }.as_bytes());
}

fn generated<'a>(meta: &[u8], payload: &'a [u8], more: bool) -> Result<Reply<'a>, DecodeError> {
    let raw = layout::whole::<layout::Generated>(meta)?;
    layout::zero(&raw.zero, "generated")?;
    layout::zero(&raw.zero2, "generated")?;
    let (tokens, odd) = payload.as_chunks::<4>();
    if tokens.len() != raw.tokens.get() as usize || !odd.is_empty() {
        return Err(DecodeError::Range("the token count does not match the payload"));
    }
    let finish = match (raw.finish, more) {
        (0, true) => None,
        (1, false) => Some(Finish::Length),
        (2, false) => Some(Finish::Stop),
        (other, _) => return Err(DecodeError::Enum { what: "finish", value: u32::from(other) }),
    };
    Ok(Reply::Generated { device: raw.device.get(), position: raw.position.get(), tokens, finish })
}
