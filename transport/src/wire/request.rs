//! What a client asks.

use zerocopy::IntoBytes;

use super::argument::Arguments;
use super::error::DecodeError;
use super::header::{Flags, HEADER_BYTES, Header, Kind, body_crc, decode_header, encode_header};
use super::types::{ContentHash, Handle, ResidencyCode, SessionToken, TensorSpec};
use super::{layout, limits};

/// A request, borrowed from the frame it came in. Decoding allocates nothing on the path of a decode step.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<'a> {
    /// Opens a session.
    Open {
        /// Bytes the session may hold; 0: the server's default.
        quota: u64,
        /// How long it outlives its connection; 0: the server's default.
        lease_ms: u32,
    },
    /// Takes a session up again.
    Resume {
        /// From when it was opened.
        token: SessionToken,
        /// The server's life that the client knows.
        epoch: u64,
        /// The lowest request id that the client still waits for: older replies need not be kept.
        unanswered: u64,
    },
    /// Ends the session.
    Close,
    /// Sends this back.
    Echo(&'a [u8]),
    /// Makes a tensor resident.
    Put(PutRequest<'a>),
    /// Reads a tensor or a range of bytes of it.
    Get {
        /// Which.
        handle: Handle,
        /// First byte.
        offset: u64,
        /// Bytes; 0: to the end.
        length: u64,
        /// `Some(slice size)`: send it in slices over the bulk lanes; `None`: inline.
        sliced: Option<u32>,
    },
    /// Copies a tensor on the server.
    Copy {
        /// Which.
        handle: Handle,
        /// Where to.
        device: u16,
    },
    /// Frees what a handle names.
    Free(Handle),
    /// Finds a tensor by name.
    LookupName(&'a str),
    /// Describes a tensor or cache by handle.
    LookupHandle(Handle),
    /// Which of these contents does the server have? Those that it has become residents of the session.
    Offer {
        /// Where they are wanted.
        device: u16,
        /// What they are; at most [`limits::OFFERED`].
        entries: Vec<(ContentHash, TensorSpec)>,
    },
    /// Lists the devices.
    Devices,
    /// Reads the server's counters.
    Stats,
    /// Registers an encoded graph.
    Define {
        /// Where it will run.
        device: u16,
        /// Encoded by genie-graph.
        graph: &'a [u8],
    },
    /// Registers a graph that the server has already, from whichever session.
    DefineKnown {
        /// Where it will run.
        device: u16,
        /// The content hash of the graph's encoding.
        hash: ContentHash,
    },
    /// Joins a program with residents and fixed arguments.
    Bind {
        /// Which.
        program: Handle,
        /// Inputs that are residents or caches.
        bound: Vec<BindEntry>,
        /// Inputs fixed for every run.
        arguments: Arguments<'a>,
    },
    /// Runs a binding once.
    Run {
        /// Which.
        binding: Handle,
        /// The length that the cache must have, if it matters.
        position: Option<u32>,
        /// Bit i: output i comes back inline.
        wanted: u32,
        /// Bit i: output i stays as a resident, its handle comes back.
        keep: u32,
        /// Inputs that were not bound.
        arguments: Arguments<'a>,
    },
    /// Runs a prefill and then decode steps on the server.
    Generate {
        /// The binding that takes the prompt.
        prefill: Handle,
        /// The binding that takes one token a step.
        decode: Handle,
        /// The length that the cache must have, if it matters.
        position: Option<u32>,
        /// Tokens to make.
        max_new: u32,
        /// The prompt, i32 little-endian.
        prompt: &'a [[u8; 4]],
        /// Tokens that end it, i32 little-endian.
        stop: &'a [[u8; 4]],
        /// Inputs that were not bound.
        arguments: Arguments<'a>,
    },
    /// Makes an empty KV cache that fits an input of a program.
    CacheCreate {
        /// The program.
        program: Handle,
        /// Node id of the input.
        input: u32,
        /// Tokens to reserve memory for.
        reserve: u32,
    },
    /// A second cache with the same tokens, sharing memory until one of the two changes.
    CacheFork(Handle),
    /// Forgets the tokens from `length` on.
    CacheTruncate {
        /// Which.
        cache: Handle,
        /// Tokens that stay.
        length: u32,
    },
}

/// A put.
#[derive(Clone, Debug, PartialEq)]
pub struct PutRequest<'a> {
    /// What becomes of the bytes.
    pub target: PutTarget<'a>,
    /// Type, dimensions and bytes of what is sent.
    pub spec: TensorSpec,
    /// How the bytes come.
    pub body: PutBody<'a>,
}

/// What becomes of a put's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutTarget<'a> {
    /// A new resident.
    New {
        /// Where.
        device: u16,
        /// Whether it may be shared.
        residency: ResidencyCode,
        /// What it hashes to; needed for a weight.
        hash: Option<ContentHash>,
        /// A name that replaces whatever had it.
        name: Option<&'a str>,
    },
    /// The bytes of a private resident from `offset` on; it changes all at once, when the last slice has landed.
    Range {
        /// Which.
        handle: Handle,
        /// First byte.
        offset: u64,
    },
    /// The contents of a KV cache, as whole blocks.
    Cache {
        /// Which.
        handle: Handle,
        /// Tokens that they hold.
        length: u32,
    },
}

/// How a put's bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutBody<'a> {
    /// In this frame.
    Inline(&'a [u8]),
    /// In slices over the bulk lanes, as a transfer with the request's id.
    Sliced {
        /// Bytes of each slice but the last.
        slice_bytes: u32,
        /// The client wants to hear which slices landed earlier before it sends any.
        announce: bool,
    },
}

/// One resident of a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindEntry {
    /// Node id of the graph's input.
    pub input: u32,
    /// The resident or cache. Its epoch does not travel: it must be the program's.
    pub handle: Handle,
}

const SLICED: u8 = 1;
const ANNOUNCE: u8 = 2;
const HASHED: u8 = 4;
/// "Any position": a cache never gets this long.
const ANY_POSITION: u32 = u32::MAX;

impl<'a> Request<'a> {
    /// Checks a request whole. The caller has checked the header and the body's checksum.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; the connection can go on.
    pub fn decode(header: &Header, meta: &'a [u8], payload: &'a [u8]) -> Result<Self, DecodeError> {
        let kind = header.kind.map_err(DecodeError::Kind)?;
        if header.flags != Flags::default() {
            return Err(DecodeError::Reserved("flags of a request"));
        }
        let takes_payload = matches!(
            kind,
            Kind::Echo
                | Kind::Put
                | Kind::Lookup
                | Kind::Offer
                | Kind::Define
                | Kind::Bind
                | Kind::Run
                | Kind::Generate
        );
        if !takes_payload && !payload.is_empty() {
            return Err(DecodeError::Trailing(payload.len()));
        }
        match kind {
            Kind::Open => {
                let raw = layout::whole::<layout::Open>(meta)?;
                layout::zero(&raw.zero, "open")?;
                Ok(Self::Open { quota: raw.quota.get(), lease_ms: raw.lease_ms.get() })
            }
            Kind::Resume => {
                let raw = layout::whole::<layout::Resume>(meta)?;
                Ok(Self::Resume {
                    token: SessionToken(raw.token),
                    epoch: raw.epoch.get(),
                    unanswered: raw.unanswered.get(),
                })
            }
            Kind::Close => empty(meta, Self::Close),
            Kind::Echo => empty(meta, Self::Echo(payload)),
            Kind::Put => put(meta, payload).map(Self::Put),
            Kind::Get => get(meta),
            Kind::Copy => {
                let raw = layout::whole::<layout::Copy>(meta)?;
                layout::zero(&raw.zero, "copy")?;
                Ok(Self::Copy { handle: Handle::from_field(&raw.handle), device: raw.device.get() })
            }
            Kind::Free => by_handle(meta).map(Self::Free),
            Kind::Lookup => lookup(meta, payload),
            Kind::Offer => offer(meta, payload),
            Kind::Devices => empty(meta, Self::Devices),
            Kind::Stats => empty(meta, Self::Stats),
            Kind::Define => {
                let raw = layout::whole::<layout::Define>(meta)?;
                layout::zero(&raw.zero, "define")?;
                let device = raw.device.get();
                match raw.form {
                    0 => Ok(Self::Define { device, graph: payload }),
                    1 => match payload.try_into() {
                        Ok(hash) => Ok(Self::DefineKnown { device, hash: ContentHash(hash) }),
                        Err(_) => Err(DecodeError::Range("a content hash has 32 bytes")),
                    },
                    other => Err(DecodeError::Enum { what: "form of a define", value: u32::from(other) }),
                }
            }
            Kind::Bind => bind(meta, payload),
            Kind::Run => {
                let raw = layout::whole::<layout::Run>(meta)?;
                Ok(Self::Run {
                    binding: Handle::from_field(&raw.binding),
                    position: position(raw.position.get()),
                    wanted: raw.wanted.get(),
                    keep: raw.keep.get(),
                    arguments: Arguments::decode(raw.arguments.get(), payload)?,
                })
            }
            Kind::Generate => generate(meta, payload),
            Kind::CacheCreate => {
                let raw = layout::whole::<layout::CacheCreate>(meta)?;
                let (input, reserve) = (raw.input.get(), raw.reserve.get());
                Ok(Self::CacheCreate { program: Handle::from_field(&raw.program), input, reserve })
            }
            Kind::CacheFork => by_handle(meta).map(Self::CacheFork),
            Kind::CacheTruncate => {
                let raw = layout::whole::<layout::CacheTruncate>(meta)?;
                layout::zero(&raw.zero, "cache truncate")?;
                Ok(Self::CacheTruncate { cache: Handle::from_field(&raw.cache), length: raw.length.get() })
            }
            Kind::Hello
            | Kind::LaneHello
            | Kind::Ping
            | Kind::Goodbye
            | Kind::Cancel
            | Kind::Slice
            | Kind::SliceAgain => Err(DecodeError::Misplaced(kind as u8)),
        }
    }

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
            Self::Bind { program, bound, arguments } => {
                let raw = layout::Bind {
                    program: program.to_field(),
                    bound: (bound.len() as u32).into(),
                    arguments: (arguments.len() as u32).into(),
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
                payload.extend_from_slice(arguments.bytes());
                Kind::Bind
            }
            Self::Run { binding, position, wanted, keep, arguments } => {
                let raw = layout::Run {
                    binding: binding.to_field(),
                    position: position.unwrap_or(ANY_POSITION).into(),
                    wanted: (*wanted).into(),
                    keep: (*keep).into(),
                    arguments: (arguments.len() as u32).into(),
                };
                meta.extend_from_slice(raw.as_bytes());
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

    /// The payload, where it is sent as it lies in the caller's memory.
    pub fn payload(&self) -> Option<&'a [u8]> {
        match self {
            Self::Echo(bytes) | Self::Define { graph: bytes, .. } => Some(bytes),
            Self::Put(PutRequest { body: PutBody::Inline(bytes), .. }) => Some(bytes),
            Self::LookupName(name) => Some(name.as_bytes()),
            Self::Run { arguments, .. } => Some(arguments.bytes()),
            _ => None,
        }
    }

    /// Whether doing it twice would differ from doing it once: its reply is kept until the client has it.
    pub fn changes_state(&self) -> bool {
        !matches!(
            self,
            Self::Open { .. }
                | Self::Resume { .. }
                | Self::Echo(_)
                | Self::Get { .. }
                | Self::LookupName(_)
                | Self::LookupHandle(_)
                | Self::Devices
                | Self::Stats
        )
    }
}

impl PutRequest<'_> {
    fn encode(&self, meta: &mut Vec<u8>) {
        let none = Handle { index: 0, generation: 0, epoch: 0 };
        let (mut flags, slice_bytes) = match self.body {
            PutBody::Inline(_) => (0, 0),
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

fn empty<T>(meta: &[u8], value: T) -> Result<T, DecodeError> {
    if meta.is_empty() { Ok(value) } else { Err(DecodeError::Trailing(meta.len())) }
}

fn by_handle(meta: &[u8]) -> Result<Handle, DecodeError> {
    layout::whole::<layout::ByHandle>(meta).map(|raw| Handle::from_field(&raw.handle))
}

fn position(raw: u32) -> Option<u32> {
    (raw != ANY_POSITION).then_some(raw)
}

fn name(bytes: &[u8]) -> Result<&str, DecodeError> {
    if bytes.len() > limits::NAME_BYTES {
        let limit = limits::NAME_BYTES as u64;
        return Err(DecodeError::TooLong { what: "name", length: bytes.len() as u64, limit });
    }
    let name = std::str::from_utf8(bytes).map_err(|_| DecodeError::Name)?;
    if name.is_empty() { Err(DecodeError::Name) } else { Ok(name) }
}

pub(super) fn slice_bytes(n: u32) -> Result<u32, DecodeError> {
    if n == 0 || !n.is_multiple_of(4096) {
        return Err(DecodeError::Range("a slice size is a positive multiple of 4096"));
    }
    if n > limits::SLICE_BYTES {
        let limit = u64::from(limits::SLICE_BYTES);
        return Err(DecodeError::TooLong { what: "slice size", length: u64::from(n), limit });
    }
    Ok(n)
}

fn put<'a>(meta: &'a [u8], payload: &'a [u8]) -> Result<PutRequest<'a>, DecodeError> {
    let (raw, rest) = layout::take::<layout::Put>(meta)?;
    layout::zero(&raw.zero, "put")?;
    layout::zero(&raw.zero2, "put")?;
    layout::zero(&raw.zero3, "put")?;
    if raw.flags & !(SLICED | ANNOUNCE | HASHED) != 0 {
        return Err(DecodeError::Reserved("put flags"));
    }
    let (spec, rest) = TensorSpec::take(rest)?;
    let named = usize::from(raw.name_len.get());
    if rest.len() != named {
        return Err(if rest.len() < named {
            DecodeError::Truncated
        } else {
            DecodeError::Trailing(rest.len() - named)
        });
    }
    let target = match raw.target {
        0 => PutTarget::New {
            device: raw.device.get(),
            residency: match raw.residency {
                0 => ResidencyCode::Private,
                1 => ResidencyCode::Weight,
                other => return Err(DecodeError::Enum { what: "residency", value: u32::from(other) }),
            },
            hash: (raw.flags & HASHED != 0).then_some(ContentHash(raw.hash)),
            name: if named == 0 { None } else { Some(name(rest)?) },
        },
        1 => PutTarget::Range { handle: Handle::from_field(&raw.handle), offset: raw.offset.get() },
        2 => {
            let length = u32::try_from(raw.offset.get()).map_err(|_| DecodeError::Range("a cache is not that long"))?;
            PutTarget::Cache { handle: Handle::from_field(&raw.handle), length }
        }
        other => return Err(DecodeError::Enum { what: "put target", value: u32::from(other) }),
    };
    if let PutTarget::New { residency: ResidencyCode::Weight, hash: None, .. } = target {
        return Err(DecodeError::Range("a weight needs its content hash"));
    }
    let body = if raw.flags & SLICED != 0 {
        empty(payload, ())?;
        PutBody::Sliced { slice_bytes: slice_bytes(raw.slice_bytes.get())?, announce: raw.flags & ANNOUNCE != 0 }
    } else if payload.len() as u64 == spec.bytes() {
        PutBody::Inline(payload)
    } else {
        return Err(DecodeError::Range("a put's payload has not the bytes that its shape says"));
    };
    Ok(PutRequest { target, spec, body })
}

fn get(meta: &[u8]) -> Result<Request<'_>, DecodeError> {
    let raw = layout::whole::<layout::Get>(meta)?;
    layout::zero(&raw.zero, "get")?;
    let (offset, length) = (raw.offset.get(), raw.length.get());
    offset.checked_add(length).ok_or(DecodeError::Overflow("offset and length"))?;
    let sliced = match raw.sliced {
        0 => None,
        1 => Some(slice_bytes(raw.slice_bytes.get())?),
        other => return Err(DecodeError::Enum { what: "sliced", value: u32::from(other) }),
    };
    Ok(Request::Get { handle: Handle::from_field(&raw.handle), offset, length, sliced })
}

fn lookup<'a>(meta: &[u8], payload: &'a [u8]) -> Result<Request<'a>, DecodeError> {
    let raw = layout::whole::<layout::Lookup>(meta)?;
    layout::zero(&raw.zero, "lookup")?;
    match raw.form {
        0 => Ok(Request::LookupName(name(payload)?)),
        1 => empty(payload, Request::LookupHandle(Handle::from_field(&raw.handle))),
        other => Err(DecodeError::Enum { what: "lookup form", value: u32::from(other) }),
    }
}

fn offer<'a>(meta: &[u8], payload: &[u8]) -> Result<Request<'a>, DecodeError> {
    let raw = layout::whole::<layout::Offer>(meta)?;
    layout::zero(&raw.zero, "offer")?;
    let count = counted("offered contents", raw.count.get(), limits::OFFERED)?;
    let mut rest = payload;
    // 40 bytes is the least that an entry takes: the capacity is bounded by what was sent.
    let mut entries = Vec::with_capacity(count.min(payload.len() / 40));
    for _ in 0..count {
        let (hash, after) = rest.split_first_chunk::<32>().ok_or(DecodeError::Truncated)?;
        let (spec, after) = TensorSpec::take(after)?;
        entries.push((ContentHash(*hash), spec));
        rest = after;
    }
    empty(rest, Request::Offer { device: raw.device.get(), entries })
}

fn bind<'a>(meta: &[u8], payload: &'a [u8]) -> Result<Request<'a>, DecodeError> {
    let raw = layout::whole::<layout::Bind>(meta)?;
    let program = Handle::from_field(&raw.program);
    let count = counted("bound residents", raw.bound.get(), limits::BOUND)?;
    let mut rest = payload;
    let mut bound = Vec::with_capacity(count.min(payload.len() / size_of::<layout::BindField>()));
    for _ in 0..count {
        let (entry, after) = layout::take::<layout::BindField>(rest)?;
        let handle = Handle { index: entry.index.get(), generation: entry.generation.get(), epoch: program.epoch };
        bound.push(BindEntry { input: entry.input.get(), handle });
        rest = after;
    }
    let arguments = Arguments::decode(raw.arguments.get(), rest)?;
    Ok(Request::Bind { program, bound, arguments })
}

fn generate<'a>(meta: &[u8], payload: &'a [u8]) -> Result<Request<'a>, DecodeError> {
    let raw = layout::whole::<layout::Generate>(meta)?;
    layout::zero(&raw.zero, "generate")?;
    let prompt = raw.prompt.get() as usize;
    let stop = counted("stop tokens", raw.stop.get(), limits::STOP_TOKENS)?;
    if prompt == 0 {
        return Err(DecodeError::Range("generate needs at least one prompt token"));
    }
    let ids = prompt.checked_add(stop).and_then(|n| n.checked_mul(4)).ok_or(DecodeError::Overflow("token count"))?;
    let (ids, rest) = payload.split_at_checked(ids).ok_or(DecodeError::Truncated)?;
    let (prompt, stop) = ids.as_chunks::<4>().0.split_at_checked(prompt).ok_or(DecodeError::Truncated)?;
    Ok(Request::Generate {
        prefill: Handle::from_field(&raw.prefill),
        decode: Handle::from_field(&raw.decode),
        position: position(raw.position.get()),
        max_new: raw.max_new.get(),
        prompt,
        stop,
        arguments: Arguments::decode(raw.arguments.get(), rest)?,
    })
}

fn counted(what: &'static str, count: u32, limit: usize) -> Result<usize, DecodeError> {
    let count = count as usize;
    if count > limit {
        return Err(DecodeError::TooLong { what, length: count as u64, limit: limit as u64 });
    }
    Ok(count)
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
