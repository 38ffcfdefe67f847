//! The 32 bytes in front of every frame.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::DecodeError;
use super::{VERSION, limits};
use crate::memory::{crc32c, crc32c_words};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 32;

/// "GN", little-endian.
const MAGIC: u16 = u16::from_le_bytes(*b"GN");

/// A header as it lies on the wire.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: U16,
    pub(super) version: u8,
    pub(super) kind: u8,
    pub(super) flags: U16,
    pub(super) reserved: U16,
    pub(super) id: U64,
    pub(super) meta_len: U32,
    pub(super) payload_len: U32,
    pub(super) body_crc: U32,
    pub(super) header_crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// What a frame is. Replies carry the kind of their request, with [`Flags::REPLY`] set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $code),+ }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            pub(super) fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// First frame of a control lane.
    Hello = 0x01,
    /// First frame of a bulk lane.
    LaneHello = 0x02,
    /// Keepalive; the reply has the same id.
    Ping = 0x03,
    /// Last frame of a connection, with the reason.
    Goodbye = 0x04,
    /// The request with this id is no longer wanted.
    Cancel = 0x05,
    /// A piece of a tensor; bulk lanes only.
    Slice = 0x06,
    /// A slice arrived corrupted, or is late: send it again.
    SliceAgain = 0x07,
    /// A bulk lane is over, and how many slices came whole over it.
    LaneEnded = 0x08,
    /// Which slices are late? Each is answered by a `SliceAgain`.
    Late = 0x09,
    /// The server asks for proof of a token; the reply is the proof.
    Challenge = 0x0a,
    /// Which links does the server offer? Before a greeting only.
    Links = 0x0f,
    /// Opens a session.
    Open = 0x10,
    /// Takes a session up again by its token.
    Resume = 0x11,
    /// Ends a session and frees what it has.
    Close = 0x12,
    /// Sends its payload back.
    Echo = 0x20,
    /// Makes a tensor resident; payload inline or in slices.
    Put = 0x21,
    /// Reads a tensor or a range of it.
    Get = 0x22,
    /// Copies a tensor on the server.
    Copy = 0x23,
    /// Frees what a handle names.
    Free = 0x24,
    /// Finds a tensor by name.
    Lookup = 0x25,
    /// Asks which contents the server has already.
    Offer = 0x26,
    /// Lists the devices.
    Devices = 0x27,
    /// Reads the server's counters.
    Stats = 0x28,
    /// Asks for a set of contents by its hash.
    OfferSet = 0x29,
    /// Registers a graph.
    Define = 0x30,
    /// Joins a program with residents.
    Bind = 0x31,
    /// Runs a binding once.
    Run = 0x32,
    /// Runs a binding step after step, feeding tokens back.
    Generate = 0x33,
    /// Makes an empty KV cache.
    CacheCreate = 0x34,
    /// Shares a KV cache, copy on write.
    CacheFork = 0x35,
    /// Shortens a KV cache.
    CacheTruncate = 0x36,
    /// Where the heads of written slices go; RDMA bulk lanes only, as all below.
    Heads = 0x40,
    /// A slice may be written.
    Grant = 0x41,
    /// A slice that was granted is not wanted any more.
    Recall = 0x42,
    /// A slice may be read.
    Readable = 0x43,
    /// A slice that was granted, or could be read, will not be touched again.
    Release = 0x44,
}

/// Those that a header may have.
const FLAGS: u16 = 0b111;

/// Bits of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flags(u16);

impl Flags {
    /// Answers the frame with the same id.
    pub const REPLY: Self = Self(1);
    /// The reply is an error.
    pub const ERROR: Self = Self(2);
    /// More replies with this id follow.
    pub const MORE: Self = Self(4);

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A checked header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What the frame is; `Err` holds a code that this version does not know (the frame can be skipped).
    pub kind: Result<Kind, u8>,
    /// Bits.
    pub flags: Flags,
    /// Request or transfer; 0 where there is none.
    pub id: u64,
    /// Bytes of metadata.
    pub meta_len: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// CRC32C of metadata and payload.
    pub body_crc: u32,
}

impl Header {
    /// Bytes after the header.
    pub fn body_len(&self) -> usize {
        // Both are below 2^23 once decoded.
        self.meta_len as usize + self.payload_len as usize
    }
}

/// Checks a header.
///
/// # Errors
/// Every [`DecodeError`] here means that the byte stream cannot be trusted any further: the connection ends.
pub fn decode_header(bytes: &[u8; HEADER_BYTES], payload_cap: u32) -> Result<Header, DecodeError> {
    whole_header(bytes, payload_cap).ok_or_else(|| why_no_header(bytes, payload_cap))
}

/// The same, and nothing about what is wrong: a header that comes back beside what an error takes is moved, just after it was
/// written, by loads that wait for all of its fields' stores.
#[inline]
pub(crate) fn whole_header(bytes: &[u8; HEADER_BYTES], payload_cap: u32) -> Option<Header> {
    let raw = RawHeader::ref_from_bytes(bytes).ok()?;
    let (meta_len, payload_len) = (raw.meta_len.get(), raw.payload_len.get());
    let whole = raw.magic.get() == MAGIC
        && raw.header_crc.get() == crc(&bytes[..HEADER_BYTES - 4])
        && raw.version == VERSION
        && raw.reserved.get() == 0
        && raw.flags.get() & !FLAGS == 0
        && meta_len <= limits::META_BYTES
        && payload_len <= payload_cap
        && meta_len.checked_add(payload_len).is_some();
    whole.then(|| Header {
        kind: Kind::from_code(raw.kind).ok_or(raw.kind),
        flags: Flags(raw.flags.get()),
        id: raw.id.get(),
        meta_len,
        payload_len,
        body_crc: raw.body_crc.get(),
    })
}

/// Why a header is none.
#[cold]
pub(crate) fn why_no_header(bytes: &[u8; HEADER_BYTES], payload_cap: u32) -> DecodeError {
    let Ok(raw) = RawHeader::ref_from_bytes(bytes) else { return DecodeError::Truncated };
    let (found, expected) = (raw.header_crc.get(), crc(&bytes[..HEADER_BYTES - 4]));
    let (meta_len, payload_len) = (raw.meta_len.get(), raw.payload_len.get());
    if raw.magic.get() != MAGIC {
        DecodeError::Magic(raw.magic.get())
    } else if found != expected {
        DecodeError::HeaderChecksum { found, expected }
    } else if raw.version != VERSION {
        DecodeError::Version(raw.version)
    } else if raw.reserved.get() != 0 || raw.flags.get() & !FLAGS != 0 {
        DecodeError::Reserved("header")
    } else if meta_len.checked_add(payload_len).is_none() {
        DecodeError::Overflow("metadata and payload length")
    } else if meta_len > limits::META_BYTES {
        DecodeError::TooLong { what: "metadata", length: meta_len.into(), limit: limits::META_BYTES.into() }
    } else {
        DecodeError::TooLong { what: "payload", length: payload_len.into(), limit: payload_cap.into() }
    }
}

/// The bytes of a header.
pub fn encode_header(
    kind: Kind,
    flags: Flags,
    id: u64,
    meta_len: u32,
    payload_len: u32,
    body_crc: u32,
) -> [u8; HEADER_BYTES] {
    // Word by word, as it is summed and copied: a processor that reads eight bytes which were just written as five fields waits for
    // all of them to arrive in the cache.
    let first = u64::from(MAGIC) | u64::from(VERSION) << 16 | u64::from(kind as u8) << 24 | u64::from(flags.0) << 32;
    let lengths = u64::from(meta_len) | u64::from(payload_len) << 32;
    let words = [first, id, lengths];
    let header_crc = crc32c_words(words, body_crc);
    let last = u64::from(body_crc) | u64::from(header_crc) << 32;
    let [first, id, lengths] = words.map(U64::new);
    zerocopy::transmute!([first, id, lengths, U64::new(last)])
}

/// CRC32C of metadata followed by payload.
pub fn body_crc(meta: &[u8], payload: &[u8]) -> u32 {
    crc32c(meta, payload)
}

fn crc(bytes: &[u8]) -> u32 {
    crc32c(bytes, &[])
}
