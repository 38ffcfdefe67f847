//! What can be wrong with bytes, and what a server answers.

use zerocopy::IntoBytes;

use super::layout;

/// Why bytes from a peer were refused. Nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not a Genie frame at all.
    #[error("not a Genie frame (first bytes {0:#06x}): is this a Genie peer?")]
    Magic(u16),
    /// A protocol version that this side does not speak.
    #[error("protocol version {0} is not spoken here (this is version {ours}): update the older side", ours = super::VERSION)]
    Version(u8),
    /// The header's own checksum is wrong.
    #[error("header checksum {found:#010x} should be {expected:#010x}: bytes were corrupted on the way")]
    HeaderChecksum {
        /// As sent.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// The body's checksum is wrong.
    #[error("body checksum {found:#010x} should be {expected:#010x}: bytes were corrupted on the way; send again")]
    BodyChecksum {
        /// As sent.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// A reserved bit or byte is set.
    #[error("reserved bits are set in {0}")]
    Reserved(&'static str),
    /// A message kind that this version does not have.
    #[error("unknown message kind {0:#04x}")]
    Kind(u8),
    /// A message where it may not stand.
    #[error("message kind {0:#04x} is not allowed here")]
    Misplaced(u8),
    /// A length over its cap.
    #[error("{what} of {length} is over the cap of {limit}")]
    TooLong {
        /// Which length.
        what: &'static str,
        /// As sent.
        length: u64,
        /// The cap.
        limit: u64,
    },
    /// A sum or product of lengths overflows.
    #[error("{0} overflows")]
    Overflow(&'static str),
    /// The metadata ends too early.
    #[error("metadata ends in the middle of a field")]
    Truncated,
    /// The metadata goes on after the message.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// More than 8 dimensions.
    #[error("rank {0} is over 8")]
    Rank(usize),
    /// A dimension that is zero or negative.
    #[error("dimension {0}: dimensions are positive")]
    Dimension(i64),
    /// A code outside its enum.
    #[error("{what} {value} does not exist")]
    Enum {
        /// Which enum.
        what: &'static str,
        /// As sent.
        value: u32,
    },
    /// A name that is not UTF-8, or empty.
    #[error("a name is empty or not UTF-8")]
    Name,
    /// A range outside its tensor, or otherwise impossible.
    #[error("{0}")]
    Range(&'static str),
}

/// Whether a failed request changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Effect {
    /// Nothing changed.
    None = 0,
    /// It took effect before it failed (a generate that was cut short).
    Partial = 1,
    /// Not known: the connection or the server was lost before the reply.
    Unknown = 2,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// Why a server refused or failed a request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$doc])* $name = $code),+ }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The code with this number.
            pub fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

error_codes! {
    /// The bytes of the request are not a valid message.
    Malformed = 1,
    /// A message kind that the server does not know.
    UnknownKind = 2,
    /// A checksum did not match.
    Corrupt = 3,
    /// More requests in flight than credits.
    NoCredit = 4,
    /// A session must be opened first.
    NoSession = 5,
    /// The token names no session: its lease ran out, or it never was.
    SessionGone = 6,
    /// The server has restarted: every handle of before is gone.
    EpochGone = 7,
    /// The handle names nothing in this session.
    NoSuchHandle = 8,
    /// The handle's object was freed, and its slot reused.
    StaleHandle = 9,
    /// The handle names an object of another type.
    WrongType = 10,
    /// No tensor has this name.
    NoSuchName = 11,
    /// The session's quota does not allow it.
    OverQuota = 12,
    /// The device has no memory left, even after eviction.
    OutOfMemory = 13,
    /// No such device.
    NoSuchDevice = 14,
    /// A range outside its tensor.
    OutOfRange = 15,
    /// The graph did not pass the verifier.
    BadGraph = 16,
    /// The device lacks an op of the graph.
    UnsupportedOp = 17,
    /// An input is missing, too many, or of the wrong type or shape.
    BadArgument = 18,
    /// The cache's length is not what the request expected.
    StalePosition = 19,
    /// The request was cancelled.
    Cancelled = 20,
    /// The server is shutting down.
    ShuttingDown = 21,
    /// The device failed while running.
    DeviceFailed = 22,
    /// The bytes do not hash to what was promised.
    HashMismatch = 23,
    /// The peer was silent, or too slow, for too long.
    TimedOut = 24,
    /// A limit of the server (connections, sessions, programs) is reached.
    Busy = 25,
    /// The request's id is older than the server remembers.
    Forgotten = 26,
    /// A fault of the server's own; its log says more.
    Internal = 27,
    /// Who is asking has not been proven.
    Unauthorized = 28,
    /// Who is asking may not do this.
    Forbidden = 29,
}

/// A failure, as it stands on the wire.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code:?}, {})", match effect { Effect::None => "nothing changed", Effect::Partial => "took effect in part", Effect::Unknown => "effect unknown" })]
pub struct RemoteError {
    /// What kind of failure.
    pub code: ErrorCode,
    /// Whether anything changed.
    pub effect: Effect,
    /// What happened and what to do, in a sentence.
    pub message: String,
}

impl RemoteError {
    /// A failure that changed nothing.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, effect: Effect::None, message: message.into() }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (field, text) = layout::take::<layout::Error>(bytes)?;
        layout::zero(&field.zero, "error")?;
        let code = field.code.get();
        let code =
            ErrorCode::from_code(code).ok_or(DecodeError::Enum { what: "error code", value: u32::from(code) })?;
        let effect = match field.effect {
            0 => Effect::None,
            1 => Effect::Partial,
            2 => Effect::Unknown,
            other => return Err(DecodeError::Enum { what: "effect", value: u32::from(other) }),
        };
        if text.len() != field.length.get() as usize {
            return Err(DecodeError::Truncated);
        }
        Ok(Self { code, effect, message: String::from_utf8_lossy(text).into_owned() })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        // A message is for people: cut rather than refused, and cut where a character ends.
        let mut end = self.message.len().min(4096);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        let field = layout::Error {
            code: (self.code as u16).into(),
            effect: self.effect as u8,
            zero: 0,
            length: (end as u32).into(),
        };
        out.extend_from_slice(field.as_bytes());
        out.extend_from_slice(&self.message.as_bytes()[..end]);
    }
}

impl From<DecodeError> for RemoteError {
    fn from(error: DecodeError) -> Self {
        // What the error's own sentence does not say: what to do.
        let (code, advice) = match error {
            DecodeError::Kind(_) => (ErrorCode::UnknownKind, "; update the older side, or do without it"),
            DecodeError::HeaderChecksum { .. } => (ErrorCode::Corrupt, "; connect and send again"),
            DecodeError::BodyChecksum { .. } => (ErrorCode::Corrupt, ""),
            DecodeError::Range(_) => (ErrorCode::OutOfRange, "; correct the request"),
            DecodeError::Magic(_) | DecodeError::Version(_) => (ErrorCode::Malformed, ""),
            _ => (ErrorCode::Malformed, "; correct the client, docs/protocol.md says how it should be"),
        };
        Self::new(code, format!("{error}{advice}"))
    }
}
