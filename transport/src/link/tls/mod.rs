//! TLS 1.3 over any lane that carries bytes.
//!
//! The handshake, certificates and keys are rustls's, and so is every rule about them. The records after it are sealed and
//! opened here, with the keys that rustls hands over for this very use (as to a kernel that encrypts): its own
//! record layer copies each byte twice and moves a third of what this one does; see `docs/decisions/0005-tls-records.md`.

mod config;
mod dial;
mod exporter;
mod handshake;
mod heartbeat;
mod opener;
mod record;
mod ring;
mod sealer;
mod stream;

pub use config::{TlsClient, TlsFileError, TlsServer};
pub use dial::Dialer;
pub use stream::TlsStream;

use std::io;

/// The other side's certificate does not convince this one, or the other way round: trying again would not help.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Untrusted(pub String);

impl Untrusted {
    /// Whether an error of a lane is one.
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}
