//! Messages of the connection itself: handshake, keepalive, cancel, farewell.

use zerocopy::IntoBytes;

use super::error::{DecodeError, RemoteError};
use super::header::{Flags, Header, Kind};
use super::layout;
use super::links::{AskLinks, Links};

/// What a side can do, as bits. Unknown bits are ignored: both sides use the intersection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Caps(pub u64);

impl Caps {
    /// Payloads may travel in slices over bulk lanes.
    pub const BULK_LANES: Self = Self(1);
    /// Slices and bodies carry CRC32C.
    pub const CHECKSUMS: Self = Self(2);
    /// Sessions can be resumed.
    pub const RESUME: Self = Self(4);
    /// `Generate` is served.
    pub const GENERATE: Self = Self(8);
    /// Slices need no checksum of their bytes, as this side asks: only where both do are they sent without.
    pub const UNCHECKED: Self = Self(16);
    /// Weights may be offered as a set, and bound as spans of handles.
    pub const SETS: Self = Self(32);
    /// Runs may name the token that an earlier request gives.
    pub const AHEAD: Self = Self(64);
    /// Runs may name residents as arguments, and outputs from 32 on.
    pub const NAMED: Self = Self(128);
    /// Everything this version has, and does without being asked.
    pub const OURS: Self = Self(0b1110_1111);

    /// Whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These, and those of `other`.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What both sides have.
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Shows that its sender knows a secret, and nothing of the secret. `==` takes as long whether two are the same or not: it is the
/// only comparison, so that no code can tell a guesser by its time at which byte the guess went wrong.
#[derive(Clone, Copy)]
pub struct Mac(pub [u8; 32]);

impl PartialEq for Mac {
    fn eq(&self, other: &Self) -> bool {
        // `blake3::Hash` documents that its comparison is constant-time.
        blake3::Hash::from_bytes(self.0) == blake3::Hash::from_bytes(other.0)
    }
}

impl Eq for Mac {}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mac(..)")
    }
}

/// A client's answer to a challenge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Drawn by the client for this connection.
    pub nonce: [u8; 32],
    /// That the client knows the token, by both nonces.
    pub proof: Mac,
    /// Which token.
    pub name: String,
}

/// What the server tells a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// What both can do.
    pub caps: Caps,
    /// Names the connection to its bulk lanes.
    pub connection: u64,
    /// Where the key comes from that proves that a bulk lane belongs to the connection.
    pub lane_key: [u8; 16],
    /// The server's life: changes when it restarts.
    pub epoch: u64,
    /// Requests that may be in flight.
    pub credits: u32,
    /// Payloads up to this many bytes travel inline.
    pub eager_bytes: u32,
    /// The slice size that the server prefers.
    pub slice_bytes: u32,
    /// How long a side may be silent before it should send a ping.
    pub keepalive_ms: u32,
    /// How long a side may be silent before it is taken for dead.
    pub silence_ms: u32,
    /// That the server knows the token, too; all zero where it asked for none.
    pub proof: Mac,
}

/// The first frame of a bulk lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneHello {
    /// From [`Welcome`].
    pub connection: u64,
    /// Which lane: 1, 2, ...
    pub lane: u32,
    /// Another number with every bulk lane that the connection ever opens: what was said to open one opens no other.
    pub attempt: u32,
    /// That whoever opens it knows the connection's lane key.
    pub proof: Mac,
}

/// A message of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The client's first words: what it can do, which versions it speaks.
    Hello(Caps),
    /// The server's answer.
    Welcome(Welcome),
    /// A bulk lane's first words.
    LaneHello(LaneHello),
    /// The server's answer.
    LaneWelcome(u32),
    /// Are you there?
    Ping,
    /// Yes.
    Pong,
    /// The connection ends, and why.
    Goodbye(RemoteError),
    /// The request with the frame's id is no longer wanted.
    Cancel,
    /// The slice of the frame's transfer is wanted (again).
    SliceAgain {
        /// Its first byte.
        offset: u64,
        /// It has not come, while lanes lie idle; else it came corrupted, or found no place.
        late: bool,
    },
    /// A bulk lane is over for whoever says so: nothing more is taken from it.
    LaneEnded {
        /// As in [`LaneHello`].
        lane: u32,
        /// Slices that came whole over it, corrupted or not: those that were sent after them are missing.
        slices: u64,
    },
    /// Which slices of the frame's transfer are late?
    Late,
    /// Which links does the server offer?
    AskLinks(AskLinks),
    /// These.
    Links(Links),
    /// The server asks for proof of a token; drawn for this connection.
    Challenge([u8; 32]),
    /// The client's answer.
    Proof(Proof),
}

impl Control {
    /// Whether frames of this kind are messages of the connection.
    pub fn is(kind: Kind) -> bool {
        let greeting = matches!(kind, Kind::Hello | Kind::LaneHello | Kind::Ping | Kind::Goodbye);
        greeting
            || matches!(
                kind,
                Kind::Cancel | Kind::SliceAgain | Kind::LaneEnded | Kind::Late | Kind::Links | Kind::Challenge
            )
    }

    /// Checks a frame's metadata. The payload must be empty.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong.
    pub fn decode(header: &Header, meta: &[u8]) -> Result<Self, DecodeError> {
        let kind = header.kind.map_err(DecodeError::Kind)?;
        if header.payload_len != 0 {
            return Err(DecodeError::Trailing(header.payload_len as usize));
        }
        let reply = header.flags == Flags::REPLY;
        if !reply && header.flags != Flags::default() {
            return Err(DecodeError::Reserved("flags"));
        }
        Ok(match (kind, reply) {
            (Kind::Hello, false) => {
                let raw = layout::whole::<layout::Hello>(meta)?;
                layout::zero(&raw.zero, "hello")?;
                if !(raw.min_version..=raw.max_version).contains(&super::VERSION) {
                    return Err(DecodeError::Version(raw.max_version));
                }
                Self::Hello(Caps(raw.caps.get()))
            }
            (Kind::Hello, true) => Self::Welcome(welcome(meta)?),
            (Kind::LaneHello, false) => {
                let raw = layout::whole::<layout::LaneHello>(meta)?;
                Self::LaneHello(LaneHello {
                    connection: raw.connection.get(),
                    lane: raw.lane.get(),
                    attempt: raw.attempt.get(),
                    proof: Mac(raw.proof),
                })
            }
            (Kind::LaneHello, true) => {
                let raw = layout::whole::<layout::LaneWelcome>(meta)?;
                layout::zero(&raw.zero, "lane welcome")?;
                Self::LaneWelcome(raw.lane.get())
            }
            (Kind::Ping, _) if meta.is_empty() => {
                if reply {
                    Self::Pong
                } else {
                    Self::Ping
                }
            }
            (Kind::Goodbye, false) => Self::Goodbye(RemoteError::decode(meta)?),
            (Kind::Cancel, false) if meta.is_empty() => Self::Cancel,
            (Kind::SliceAgain, false) => {
                let raw = layout::whole::<layout::SliceAgain>(meta)?;
                layout::zero(&raw.zero, "slice again")?;
                if raw.late > 1 {
                    return Err(DecodeError::Range("a slice is late or it is not"));
                }
                Self::SliceAgain { offset: raw.offset.get(), late: raw.late == 1 }
            }
            (Kind::LaneEnded, false) => {
                let raw = layout::whole::<layout::LaneEnded>(meta)?;
                layout::zero(&raw.zero, "lane ended")?;
                Self::LaneEnded { lane: raw.lane.get(), slices: raw.slices.get() }
            }
            (Kind::Late, false) if meta.is_empty() => Self::Late,
            (Kind::Links, false) => Self::AskLinks(AskLinks::decode(meta)?),
            (Kind::Links, true) => Self::Links(Links::decode(meta)?),
            (Kind::Challenge, false) => Self::Challenge(layout::whole::<layout::Challenge>(meta)?.nonce),
            (Kind::Challenge, true) => {
                let (raw, name) = layout::take::<layout::Proof>(meta)?;
                layout::zero(&raw.zero, "proof")?;
                if name.len() != usize::from(raw.name_len.get()) {
                    return Err(DecodeError::Truncated);
                }
                Self::Proof(Proof { nonce: raw.nonce, proof: Mac(raw.proof), name: token_name(name)?.to_owned() })
            }
            (kind, _) => return Err(DecodeError::Misplaced(kind as u8)),
        })
    }

    /// Kind and flags of the frame; its metadata is appended to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) -> (Kind, Flags) {
        match self {
            Self::Hello(caps) => {
                let raw = layout::Hello {
                    caps: caps.0.into(),
                    min_version: super::VERSION,
                    max_version: super::VERSION,
                    zero: [0; 6],
                };
                out.extend_from_slice(raw.as_bytes());
                (Kind::Hello, Flags::default())
            }
            Self::Welcome(w) => {
                let raw = layout::Welcome {
                    caps: w.caps.0.into(),
                    connection: w.connection.into(),
                    lane_key: w.lane_key,
                    epoch: w.epoch.into(),
                    credits: w.credits.into(),
                    eager_bytes: w.eager_bytes.into(),
                    slice_bytes: w.slice_bytes.into(),
                    keepalive_ms: w.keepalive_ms.into(),
                    silence_ms: w.silence_ms.into(),
                    zero: 0.into(),
                    proof: w.proof.0,
                };
                out.extend_from_slice(raw.as_bytes());
                (Kind::Hello, Flags::REPLY)
            }
            Self::LaneHello(hello) => {
                let raw = layout::LaneHello {
                    connection: hello.connection.into(),
                    lane: hello.lane.into(),
                    attempt: hello.attempt.into(),
                    proof: hello.proof.0,
                };
                out.extend_from_slice(raw.as_bytes());
                (Kind::LaneHello, Flags::default())
            }
            Self::LaneWelcome(lane) => {
                let raw = layout::LaneWelcome { lane: (*lane).into(), zero: 0.into() };
                out.extend_from_slice(raw.as_bytes());
                (Kind::LaneHello, Flags::REPLY)
            }
            Self::Ping => (Kind::Ping, Flags::default()),
            Self::Pong => (Kind::Ping, Flags::REPLY),
            Self::Goodbye(error) => {
                error.write(out);
                (Kind::Goodbye, Flags::default())
            }
            Self::Cancel => (Kind::Cancel, Flags::default()),
            Self::SliceAgain { offset, late } => {
                let raw = layout::SliceAgain { offset: (*offset).into(), late: u8::from(*late), zero: [0; 7] };
                out.extend_from_slice(raw.as_bytes());
                (Kind::SliceAgain, Flags::default())
            }
            Self::LaneEnded { lane, slices } => {
                let raw = layout::LaneEnded { slices: (*slices).into(), lane: (*lane).into(), zero: 0.into() };
                out.extend_from_slice(raw.as_bytes());
                (Kind::LaneEnded, Flags::default())
            }
            Self::Late => (Kind::Late, Flags::default()),
            Self::AskLinks(ask) => {
                ask.write(out);
                (Kind::Links, Flags::default())
            }
            Self::Links(links) => {
                links.write(out);
                (Kind::Links, Flags::REPLY)
            }
            Self::Challenge(nonce) => {
                out.extend_from_slice(nonce);
                (Kind::Challenge, Flags::default())
            }
            Self::Proof(proof) => {
                let raw = layout::Proof {
                    nonce: proof.nonce,
                    proof: proof.proof.0,
                    name_len: (proof.name.len() as u16).into(),
                    zero: [0; 6],
                };
                out.extend_from_slice(raw.as_bytes());
                out.extend_from_slice(proof.name.as_bytes());
                (Kind::Challenge, Flags::REPLY)
            }
        }
    }
}

/// A token's name: 1 to 64 letters, digits, `-`, `_`, `.` or `@`, so that it can stand in a log and in a file.
///
/// # Errors
/// [`DecodeError::Name`].
pub fn token_name(bytes: &[u8]) -> Result<&str, DecodeError> {
    let fits = |b: &u8| b.is_ascii_alphanumeric() || b"-_.@".contains(b);
    if !(1..=super::limits::TOKEN_NAME_BYTES).contains(&bytes.len()) || !bytes.iter().all(fits) {
        return Err(DecodeError::Name);
    }
    std::str::from_utf8(bytes).map_err(|_| DecodeError::Name)
}

fn welcome(meta: &[u8]) -> Result<Welcome, DecodeError> {
    let raw = layout::whole::<layout::Welcome>(meta)?;
    layout::zero(&raw.zero, "welcome")?;
    let welcome = Welcome {
        caps: Caps(raw.caps.get()),
        connection: raw.connection.get(),
        lane_key: raw.lane_key,
        epoch: raw.epoch.get(),
        credits: raw.credits.get(),
        eager_bytes: raw.eager_bytes.get(),
        slice_bytes: raw.slice_bytes.get(),
        keepalive_ms: raw.keepalive_ms.get(),
        silence_ms: raw.silence_ms.get(),
        proof: Mac(raw.proof),
    };
    super::request::slice_bytes(welcome.slice_bytes)?;
    if !(1..=super::limits::CONTROL_PAYLOAD_BYTES).contains(&welcome.eager_bytes)
        || welcome.credits == 0
        || welcome.keepalive_ms == 0
        || welcome.silence_ms <= welcome.keepalive_ms
    {
        return Err(DecodeError::Range("a welcome offers sizes outside their limits"));
    }
    Ok(welcome)
}
