//! What a client asks.

mod decode;
mod encode;

pub(super) use self::decode::slice_bytes;
pub use self::encode::{set_announce, set_id};

use super::argument::Arguments;
use super::types::{ContentHash, Handle, HandleSpan, ResidencyCode, SessionToken, TensorSpec};

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
    /// Reads a range of bytes of a tensor into memory that the client shares. A client that asks again, after a reconnect, asks
    /// for other memory: the first answer may still be on its way to this.
    GetInto {
        /// Which.
        handle: Handle,
        /// First byte.
        offset: u64,
        /// Bytes; 0: to the end.
        length: u64,
        /// Where to.
        into: Shared,
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
        /// What they are; at most [`crate::wire::limits::OFFERED`].
        entries: Vec<(ContentHash, TensorSpec)>,
    },
    /// Does the server have all contents of a set that somebody has offered it before, one by one? If so, they become residents of the
    /// session.
    OfferSet {
        /// Where they are wanted.
        device: u16,
        /// [`ContentHash::of_set`].
        hash: ContentHash,
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
        /// All weights of the program, in the order of their node ids; or none, and they are among `bound`. Their epoch does not travel:
        /// it is the program's.
        weights: Vec<HandleSpan>,
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
        wanted: u64,
        /// Bit i: output i stays as a resident, its handle comes back. With those of `wanted` at most
        /// [`super::limits::ARGUMENTS`] bits.
        keep: u64,
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
    /// They are there: in memory that the client shares. It does not change them until the server says that it may.
    Passed(Shared),
}

/// A place in memory that the client shares over this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The number that the client gave the memory.
    pub region: u64,
    /// First byte.
    pub offset: u64,
}

/// One resident of a bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindEntry {
    /// Node id of the graph's input.
    pub input: u32,
    /// The resident or cache. Its epoch does not travel: it must be the program's.
    pub handle: Handle,
}

// Flags of a put.
const SLICED: u8 = 1;
const ANNOUNCE: u8 = 2;
const HASHED: u8 = 4;
const PASSED: u8 = 8;
/// "Any position": a cache never gets this long.
const ANY_POSITION: u32 = u32::MAX;

impl<'a> Request<'a> {
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
                | Self::GetInto { .. }
                | Self::LookupHandle(_)
                | Self::Devices
                | Self::Stats
        )
    }
}
