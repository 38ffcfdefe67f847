//! Requests from bytes: every check there is.

use super::super::argument::Arguments;
use super::super::error::DecodeError;
use super::super::header::{Flags, Header, Kind};
use super::super::types::{ContentHash, Handle, HandleSpan, ResidencyCode, SessionToken, TensorSpec};
use super::super::{layout, limits};
use super::{
    ANNOUNCE, ANY_POSITION, BindEntry, HASHED, PASSED, PutBody, PutRequest, PutTarget, Request, SLICED, Shared,
};

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
                | Kind::Get
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
            Kind::Get => get(meta, payload),
            Kind::Copy => {
                let raw = layout::whole::<layout::Copy>(meta)?;
                layout::zero(&raw.zero, "copy")?;
                Ok(Self::Copy { handle: Handle::from_field(&raw.handle), device: raw.device.get() })
            }
            Kind::Free => by_handle(meta).map(Self::Free),
            Kind::Lookup => lookup(meta, payload),
            Kind::Offer => offer(meta, payload),
            Kind::OfferSet => {
                let raw = layout::whole::<layout::OfferSet>(meta)?;
                layout::zero(&raw.zero, "offer of a set")?;
                Ok(Self::OfferSet { device: raw.device.get(), hash: ContentHash(raw.hash) })
            }
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
                let (raw, more) = layout::take::<layout::Run>(meta)?;
                let (wanted, keep) = outputs(raw, more)?;
                Ok(Self::Run {
                    binding: Handle::from_field(&raw.binding),
                    position: position(raw.position.get()),
                    wanted,
                    keep,
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

pub(in crate::wire) fn slice_bytes(n: u32) -> Result<u32, DecodeError> {
    if n == 0 || !n.is_multiple_of(4096) {
        return Err(DecodeError::Range("a slice size is a positive multiple of 4096"));
    }
    if n > limits::SLICE_BYTES {
        let limit = u64::from(limits::SLICE_BYTES);
        return Err(DecodeError::TooLong { what: "slice size", length: u64::from(n), limit });
    }
    Ok(n)
}

/// The slice size of a transfer of so many bytes.
fn grid(n: u32, total: u64) -> Result<u32, DecodeError> {
    let size = slice_bytes(n)?;
    let slices = total.div_ceil(u64::from(size));
    if slices > limits::SLICES {
        return Err(DecodeError::TooLong { what: "slices of one transfer", length: slices, limit: limits::SLICES });
    }
    Ok(size)
}

fn put<'a>(meta: &'a [u8], payload: &'a [u8]) -> Result<PutRequest<'a>, DecodeError> {
    let (raw, rest) = layout::take::<layout::Put>(meta)?;
    layout::zero(&raw.zero, "put")?;
    layout::zero(&raw.zero2, "put")?;
    layout::zero(&raw.zero3, "put")?;
    if raw.flags & !(SLICED | ANNOUNCE | HASHED | PASSED) != 0 {
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
    let body = if raw.flags & PASSED != 0 {
        if raw.flags & (SLICED | ANNOUNCE) != 0 {
            return Err(DecodeError::Reserved("put flags"));
        }
        PutBody::Passed(shared(payload, spec.bytes())?)
    } else if raw.flags & SLICED != 0 {
        empty(payload, ())?;
        PutBody::Sliced { slice_bytes: grid(raw.slice_bytes.get(), spec.bytes())?, announce: raw.flags & ANNOUNCE != 0 }
    } else if payload.len() as u64 == spec.bytes() {
        PutBody::Inline(payload)
    } else {
        return Err(DecodeError::Range("a put's payload has not the bytes that its shape says"));
    };
    Ok(PutRequest { target, spec, body })
}

/// A place in shared memory with `length` bytes from it on.
fn shared(payload: &[u8], length: u64) -> Result<Shared, DecodeError> {
    let raw = layout::whole::<layout::Shared>(payload)?;
    let (region, offset) = (raw.region.get(), raw.offset.get());
    offset.checked_add(length).ok_or(DecodeError::Overflow("offset and length in shared memory"))?;
    Ok(Shared { region, offset })
}

fn get<'a>(meta: &[u8], payload: &[u8]) -> Result<Request<'a>, DecodeError> {
    let raw = layout::whole::<layout::Get>(meta)?;
    layout::zero(&raw.zero, "get")?;
    let (offset, length) = (raw.offset.get(), raw.length.get());
    offset.checked_add(length).ok_or(DecodeError::Overflow("offset and length"))?;
    if raw.sliced == 2 {
        let into = shared(payload, length)?;
        return Ok(Request::GetInto { handle: Handle::from_field(&raw.handle), offset, length, into });
    }
    empty(payload, ())?;
    let sliced = match raw.sliced {
        0 => None,
        1 => Some(grid(raw.slice_bytes.get(), length)?),
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
    let (weights, rest) = HandleSpan::take_all(rest, raw.spans.get().into(), limits::BOUND)?;
    let arguments = Arguments::decode(raw.arguments.get().into(), rest)?;
    Ok(Request::Bind { program, bound, weights, arguments })
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

/// Which outputs a run is asked for: those that come back, and those that stay. The reply has room for so many.
fn outputs(raw: &layout::Run, more: &[u8]) -> Result<(u64, u64), DecodeError> {
    let (mut wanted, mut keep) = (u64::from(raw.wanted.get()), u64::from(raw.keep.get()));
    if !more.is_empty() {
        let more = layout::whole::<layout::RunMore>(more)?;
        let (more_wanted, more_keep) = (more.wanted.get(), more.keep.get());
        if more_wanted | more_keep == 0 {
            return Err(DecodeError::Range("a run names no output from 32 on, and has a field for them"));
        }
        wanted |= u64::from(more_wanted) << 32;
        keep |= u64::from(more_keep) << 32;
    }
    let (length, limit) = (u64::from(wanted.count_ones() + keep.count_ones()), limits::ARGUMENTS as u64);
    if length > limit {
        return Err(DecodeError::TooLong { what: "outputs of a run", length, limit });
    }
    Ok((wanted, keep))
}
