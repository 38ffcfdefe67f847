//! How a client behaves, and what it tells.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::wire::{DecodeError, Effect, ErrorCode, OpenedSession, RemoteError};

/// Why a request has no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused or failed it.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The server could not be reached for as long as the client tries.
    #[error("cannot reach the server: {reason}; is `genie serve` running there? ({effect:?} effect)")]
    Unreachable {
        /// The last attempt's failure.
        reason: String,
        /// Whether the request may have taken effect.
        effect: Effect,
    },
    /// The server restarted, or the session's lease ran out: what it held is gone. A new session is open.
    #[error("the session is gone ({0:?}): upload again what it held")]
    SessionLost(ErrorCode),
    /// The server sent something that is not the protocol.
    #[error("the server does not follow the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// Bytes were corrupted on the way, again and again.
    #[error("bytes were corrupted on the way {0} times: check the network")]
    Corrupt(u32),
    /// A get's bytes have no place here; nothing was asked for.
    #[error("no memory here for the {bytes} bytes of the tensor: get it in ranges")]
    OutOfMemory {
        /// As many as were to come.
        bytes: u64,
    },
    /// The connection was lost, and the request is of a kind that is not sent again.
    #[error("the connection was lost; send the request again")]
    Interrupted,
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Bytes the session may hold; 0: the server's default.
    pub quota: u64,
    /// How long the session outlives its connection, in milliseconds; 0: the server's default. A blocking session says nothing
    /// between calls, and so counts as gone once it was silent for as long as the server allows: this must cover the pauses of
    /// whoever calls it. The default is ten minutes.
    pub lease_ms: u32,
    /// How long to try to reach the server, first and after a loss.
    pub reconnect_for: Duration,
    /// The first pause between attempts; doubles up to a second.
    pub backoff: Duration,
    /// Bulk lanes to use.
    pub lanes: u32,
    /// A session to take up, instead of opening one.
    pub resume: Option<OpenedSession>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            quota: 0,
            lease_ms: 600_000,
            reconnect_for: Duration::from_secs(15),
            backoff: Duration::from_millis(20),
            lanes: 1,
            resume: None,
        }
    }
}

/// Bytes that went over the sockets, headers included.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sent.
    pub up: AtomicU64,
    /// Received.
    pub down: AtomicU64,
}
