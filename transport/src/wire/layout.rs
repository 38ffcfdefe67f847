//! The fixed part of every message's metadata, as `#[repr(C)]` structs, and their fields as data for `docs/protocol.md`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::DecodeError;

/// One field of a message: name, offset and size in bytes.
pub type Field = (&'static str, usize, usize);

macro_rules! wire_structs {
    ($($(#[$doc:meta])* struct $name:ident = $bytes:literal { $($field:ident: $ty:ty),* $(,)? })+) => {
        $(
            $(#[$doc])*
            #[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
            #[repr(C)]
            pub(super) struct $name { $(pub(super) $field: $ty),* }

            const _: () = assert!(size_of::<$name>() == $bytes);
        )+

        /// Every fixed part: its name, its size in bytes, its fields.
        pub const MESSAGES: &[(&str, usize, &[Field])] = &[
            ("Header", size_of::<super::header::RawHeader>(), &[
                ("magic", 0, 2), ("version", 2, 1), ("kind", 3, 1), ("flags", 4, 2), ("reserved", 6, 2), ("id", 8, 8),
                ("meta_len", 16, 4), ("payload_len", 20, 4), ("body_crc", 24, 4), ("header_crc", 28, 4),
            ]),
            $((stringify!($name), $bytes, &[
                $((stringify!($field), std::mem::offset_of!($name, $field), size_of::<$ty>())),*
            ])),+
        ];
    };
}

wire_structs! {
    /// First frame of a control lane, from the client.
    struct Hello = 16 { caps: U64, min_version: u8, max_version: u8, zero: [u8; 6] }
    /// The answer to it.
    struct Welcome = 96 {
        caps: U64, connection: U64, lane_key: [u8; 16], epoch: U64, credits: U32, eager_bytes: U32, slice_bytes: U32,
        keepalive_ms: U32, silence_ms: U32, zero: U32, proof: [u8; 32],
    }
    /// First frame of a bulk lane, from the client.
    struct LaneHello = 48 { connection: U64, lane: U32, attempt: U32, proof: [u8; 32] }
    /// The answer to it.
    struct LaneWelcome = 8 { lane: U32, zero: U32 }
    /// The server asks a new connection for proof of a token.
    struct Challenge = 32 { nonce: [u8; 32] }
    /// The answer to it; the token's name follows.
    struct Proof = 72 { nonce: [u8; 32], proof: [u8; 32], name_len: U16, zero: [u8; 6] }
    /// The head of a slice; its payload follows. `head_crc` is CRC32C over `offset` and `total`: they are trusted, and memory is
    /// claimed for the slice, before its payload has come.
    struct Slice = 24 { offset: U64, total: U64, head_crc: U32, zero: U32 }
    /// A slice that must be sent again.
    struct SliceAgain = 16 { offset: U64, late: u8, zero: [u8; 7] }
    /// A bulk lane is over.
    struct LaneEnded = 16 { slices: U64, lane: U32, zero: U32 }
    /// Asks which links a server offers.
    struct AskLinks = 32 { nonce: [u8; 16], host: [u8; 16] }
    /// The answer; `count` links follow.
    struct Links = 40 { host: [u8; 16], server: [u8; 16], count: U32, zero: U32 }
    /// One of them; its path follows.
    struct LinkField = 8 { scheme: u8, zero: u8, port: U16, path_len: U16, zero2: U16 }
    /// An error; the text follows.
    struct Error = 8 { code: U16, effect: u8, zero: u8, length: U32 }
    /// A message on the Unix socket beside shared memory.
    struct Local = 32 { magic: U32, kind: u8, zero: [u8; 3], first: U64, second: U64, third: U64 }
    /// Where bytes lie in memory that the client shares.
    struct Shared = 16 { region: U64, offset: U64 }
    /// Opens a session.
    struct Open = 16 { quota: U64, lease_ms: U32, zero: U32 }
    /// Takes a session up again.
    struct Resume = 48 { token: [u8; 32], epoch: U64, unanswered: U64 }
    /// A session was opened or resumed.
    struct Opened = 72 {
        token: [u8; 32], epoch: U64, session: U64, quota: U64, lease_ms: U32, zero: U32, next_request: U64,
    }
    /// A handle.
    struct HandleField = 16 { index: U32, generation: U32, epoch: U64 }
    /// An element type and its rank; `rank` dimensions of 8 bytes follow.
    struct SpecField = 8 { dtype: u8, rank: u8, zero: [u8; 6] }
    /// Makes a tensor resident; spec and name follow.
    struct Put = 80 {
        target: u8, residency: u8, flags: u8, zero: u8, device: U16, name_len: U16, slice_bytes: U32, zero2: U32,
        offset: U64, handle: HandleField, hash: [u8; 32], zero3: U64,
    }
    /// Which slices have landed: one bit a slice in the payload, least significant first.
    struct Landed = 8 { slice_bytes: U32, slices: U32 }
    /// Reads a tensor.
    struct Get = 40 { handle: HandleField, offset: U64, length: U64, slice_bytes: U32, sliced: u8, zero: [u8; 3] }
    /// Copies a tensor.
    struct Copy = 24 { handle: HandleField, device: U16, zero: [u8; 6] }
    /// Names one object (free, fork, lookup by handle).
    struct ByHandle = 16 { handle: HandleField }
    /// Finds a tensor; form 0: by the name in the payload, form 1: by handle.
    struct Lookup = 24 { handle: HandleField, form: u8, zero: [u8; 7] }
    /// Offers contents; entries in the payload: hash (32), spec.
    struct Offer = 8 { device: U16, zero: U16, count: U32 }
    /// One answer to an offer.
    struct OfferedField = 32 { handle: HandleField, status: u8, zero: [u8; 7], landed: U64 }
    /// Offers a set of contents by its hash.
    struct OfferSet = 40 { device: U16, zero: [u8; 6], hash: [u8; 32] }
    /// The answer to it: `spans` times a `SpanField` in the payload; none: offer them singly.
    struct OfferedSet = 16 { epoch: U64, spans: U32, zero: U32 }
    /// Handles of consecutive slots and one generation.
    struct SpanField = 12 { index: U32, generation: U32, count: U32 }
    /// A tensor that is resident; its spec follows.
    struct Tensor = 24 { handle: HandleField, device: U16, zero: [u8; 6] }
    /// Registers a graph; the payload is (form 0) its encoding, or (form 1) its content hash, 32 bytes.
    struct Define = 8 { device: U16, form: u8, zero: [u8; 5] }
    /// A program that is registered.
    struct Program = 48 { handle: HandleField, hash: [u8; 32] }
    /// Joins a program with residents; entries in the payload, then the spans of its weights, then arguments.
    struct Bind = 24 { program: HandleField, bound: U32, arguments: U16, spans: U16 }
    /// One resident of a bind; its epoch is the program's.
    struct BindField = 12 { index: U32, generation: U32, input: U32 }
    /// Runs a binding; arguments in the payload.
    struct Run = 32 { binding: HandleField, position: U32, wanted: U32, keep: U32, arguments: U32 }
    /// Follows a `Run` that is asked for outputs from 32 on.
    struct RunMore = 8 { wanted: U32, keep: U32 }
    /// One inline tensor: 4-byte dimensions and the elements follow (form 1: a handle instead of elements; form 2: a
    /// `TokenOfField`).
    struct ArgumentField = 8 { index: U16, dtype: u8, rank: u8, form: u8, zero: [u8; 3] }
    /// An earlier request, whose token an argument is.
    struct TokenOfField = 8 { request: U64 }
    /// The result of a run; outputs in the payload.
    struct Ran = 16 { device: U16, zero: U16, position: U32, outputs: U32, zero2: U32 }
    /// Runs step after step; payload: prompt tokens, stop tokens (4 bytes each), arguments.
    struct Generate = 56 {
        prefill: HandleField, decode: HandleField, position: U32, max_new: U32, prompt: U32, stop: U32, arguments: U32,
        zero: U32,
    }
    /// Tokens of a generate, 4 bytes each in the payload.
    struct Generated = 16 { device: U16, finish: u8, zero: u8, position: U32, tokens: U32, zero2: U32 }
    /// Makes a KV cache that fits an input of a program.
    struct CacheCreate = 24 { program: HandleField, input: U32, reserve: U32 }
    /// Shortens a KV cache.
    struct CacheTruncate = 24 { cache: HandleField, length: U32, zero: U32 }
    /// What either side of an RDMA lane says of its queue pair, in the private data of the connection manager.
    struct Private = 28 {
        magic: U16, version: u8, zero: [u8; 1], messages: U16, zero2: [u8; 2], message_bytes: U32, domain: [u8; 16],
    }
    /// Where the heads of written slices go.
    struct Heads = 16 { address: U64, rkey: U32, count: U32 }
    /// A piece of memory that the peer may write or read.
    struct PieceField = 16 { address: U64, rkey: U32, len: U32 }
    /// A slice that may be written; `PieceField`s follow.
    struct Grant = 24 { offset: U64, total: U64, len: U32, window: u8, pieces: u8, zero: [u8; 2] }
    /// A slice that may be read; `PieceField`s follow.
    struct Readable = 32 { offset: U64, total: U64, len: U32, crc: U32, window: u8, pieces: u8, zero: [u8; 6] }
    /// Names a window: in a recall, in a release.
    struct WindowField = 4 { window: u8, way: u8, zero: [u8; 2] }
    /// How many entries follow in the payload (devices, counters, offers).
    struct Count = 8 { count: U32, zero: U32 }
    /// One device; name, model and capability follow as text.
    struct DeviceField = 32 {
        index: U32, name_len: U16, model_len: U16, capability_len: U16, zero: [u8; 6], total: U64, free: U64,
    }
    /// One counter; its name follows.
    struct StatField = 16 { value: U64, name_len: U16, zero: [u8; 6] }
}

/// The fixed part at the front of `bytes`, and what follows it.
pub(super) fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
) -> Result<(&T, &[u8]), DecodeError> {
    T::ref_from_prefix(bytes).map_err(|_| DecodeError::Truncated)
}

/// The fixed part that `bytes` is, whole.
pub(super) fn whole<T: FromBytes + KnownLayout + Immutable + Unaligned>(bytes: &[u8]) -> Result<&T, DecodeError> {
    let (head, rest) = take(bytes)?;
    if rest.is_empty() { Ok(head) } else { Err(DecodeError::Trailing(rest.len())) }
}

/// Reserved bytes must be zero.
pub(super) fn zero(bytes: &impl AsZero, what: &'static str) -> Result<(), DecodeError> {
    if bytes.is_zero() { Ok(()) } else { Err(DecodeError::Reserved(what)) }
}

/// A reserved field.
pub(super) trait AsZero {
    fn is_zero(&self) -> bool;
}

impl AsZero for u8 {
    fn is_zero(&self) -> bool {
        *self == 0
    }
}

impl AsZero for U16 {
    fn is_zero(&self) -> bool {
        self.get() == 0
    }
}

impl AsZero for U32 {
    fn is_zero(&self) -> bool {
        self.get() == 0
    }
}

impl AsZero for U64 {
    fn is_zero(&self) -> bool {
        self.get() == 0
    }
}

impl<const N: usize> AsZero for [u8; N] {
    fn is_zero(&self) -> bool {
        self.iter().all(|&b| b == 0)
    }
}
