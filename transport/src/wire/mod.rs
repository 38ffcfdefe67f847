//! The wire: every byte that a peer may send, and the only code that reads it.
//!
//! A frame is a [`Header`] of 32 bytes, metadata of `meta_len` bytes, and a payload of `payload_len` bytes. All integers are
//! little-endian; reserved bytes are zero. `docs/protocol.md` draws every message; a test holds the two together.
//!
//! [`decode_header`] checks a header, [`Request::decode`], [`Reply::decode`], [`Control::decode`] and [`SliceHead::decode`]
//! check what follows it; what they return has been validated whole: numbers are in range, sums and products do not
//! overflow, enums are known, names are UTF-8. Nothing else in the workspace parses bytes from a peer.

mod argument;
mod control;
mod error;
mod header;
pub mod layout;
mod links;
mod local;
mod one_sided;
mod rdma;
mod reply;
mod request;
mod slice;
#[cfg(test)]
mod tests;
mod types;

pub use argument::{Argument, Arguments, Dims, write_argument, write_resident, write_token_of};
pub use control::{Caps, Control, LaneHello, Mac, Proof, Welcome, token_name};
pub use error::{DecodeError, Effect, ErrorCode, RemoteError};
pub use header::{Flags, HEADER_BYTES, Header, Kind, body_crc, decode_header, encode_header};
pub(crate) use header::{whole_header, why_no_header};
pub use links::{AskLinks, LinkOffer, LinkScheme, Links, UnknownScheme};
pub use local::{LOCAL_BYTES, Local};
pub use one_sided::{Heads, OneSided, PIECES, Piece, Pieces, WINDOWS};
pub use rdma::{Immediate, PRIVATE_BYTES, Private};
pub use reply::{DeviceEntry, Finish, Offered, OpenedSession, Reply, StatEntry};
pub use request::{BindEntry, PutBody, PutRequest, PutTarget, Request, Shared, set_announce, set_id};
pub use slice::{SLICE_FRAME_BYTES, SliceChecker, SliceHead, slice_bytes_for};
pub use types::{ContentHash, Handle, HandleSpan, ResidencyCode, SessionToken, TensorSpec};

/// Version of the protocol that this code speaks.
pub const VERSION: u8 = 1;

/// Limits that hold before anything was negotiated. A peer that passes one is told so and disconnected.
pub mod limits {
    /// Metadata of one frame.
    pub const META_BYTES: u32 = 64 << 10;
    /// Payload of one frame on the control lane.
    pub const CONTROL_PAYLOAD_BYTES: u32 = 4 << 20;
    /// Payload of one slice on a bulk lane.
    pub const SLICE_BYTES: u32 = 4 << 20;
    /// Slices of one transfer: both sides keep notes of each.
    pub const SLICES: u64 = 1 << 18;
    /// Dimensions of a tensor.
    pub const RANK: usize = 8;
    /// Bytes of a name.
    pub const NAME_BYTES: usize = 255;
    /// Bytes of one tensor (2^46: 64 TiB).
    pub const TENSOR_BYTES: u64 = 1 << 46;
    /// Hashes in one offer.
    pub const OFFERED: usize = 1024;
    /// Inline tensors in one run.
    pub const ARGUMENTS: usize = 64;
    /// Residents in one bind.
    pub const BOUND: usize = 4096;
    /// Bytes of a token's name.
    pub const TOKEN_NAME_BYTES: usize = 64;
    /// Stop tokens in one generate.
    pub const STOP_TOKENS: usize = 64;
    /// Links in one answer.
    pub const LINKS: usize = 16;
    /// Times that links may be asked for on one lane.
    pub const LINKS_ASKED: u32 = 16;
    /// Bytes of the path of a socket.
    pub const SOCKET_PATH_BYTES: usize = 107;
}
