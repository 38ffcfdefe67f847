//! Replies that outlive the frames they came in.

use genie_transport::connection::ClientError;
use genie_transport::wire::{Argument, ContentHash, Finish, Handle, Offered, OpenedSession, Reply, TensorSpec};

/// A reply, owned.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are those of `Reply`, which says what they are")]
pub enum Told {
    Done,
    Opened(OpenedSession),
    Tensor {
        handle: Handle,
        device: u16,
        spec: TensorSpec,
    },
    Landed {
        slice_bytes: u32,
        slices: u32,
        bits: Vec<u8>,
    },
    /// An echo, or a get.
    Bytes(Vec<u8>),
    Offered(Vec<Offered>),
    OfferedSet(Vec<Handle>),
    Devices(Vec<String>),
    Stats(Vec<(String, u64)>),
    Program(Handle, ContentHash),
    Bound(Handle),
    Ran {
        position: u32,
        outputs: Vec<Vec<u8>>,
    },
    Generated {
        position: u32,
        tokens: Vec<i32>,
        finish: Option<Finish>,
    },
}

/// What a request came to.
pub type Outcome = Result<Told, ClientError>;

/// Makes a reply one's own.
pub fn own(reply: Reply<'_>) -> Outcome {
    Ok(match reply {
        Reply::Failed(error) => return Err(error.into()),
        Reply::Done => Told::Done,
        Reply::Opened(opened) => Told::Opened(opened),
        Reply::Tensor { handle, device, spec } => Told::Tensor { handle, device, spec },
        Reply::Landed { slice_bytes, slices, bits } => Told::Landed { slice_bytes, slices, bits: bits.to_vec() },
        Reply::Echo(bytes) | Reply::Got(bytes) => Told::Bytes(bytes.to_vec()),
        Reply::Offered(entries) => Told::Offered(entries),
        Reply::OfferedSet { epoch, spans } => {
            Told::OfferedSet(spans.iter().flat_map(|span| span.handles(epoch)).collect())
        }
        Reply::Devices(entries) => Told::Devices(entries.iter().map(|d| d.name.to_owned()).collect()),
        Reply::Stats(entries) => Told::Stats(entries.iter().map(|s| (s.name.to_owned(), s.value)).collect()),
        Reply::Program { handle, hash } => Told::Program(handle, hash),
        Reply::Bound(handle) => Told::Bound(handle),
        Reply::Ran { position, outputs, .. } => {
            let data = |argument: Argument<'_>| match argument {
                Argument::Inline { data, .. } => data.to_vec(),
                Argument::Resident { .. } | Argument::TokenOf { .. } => Vec::new(),
            };
            Told::Ran { position, outputs: outputs.iter().map(data).collect() }
        }
        Reply::Generated { position, tokens, finish, .. } => {
            Told::Generated { position, tokens: tokens.iter().map(|t| i32::from_le_bytes(*t)).collect(), finish }
        }
    })
}
