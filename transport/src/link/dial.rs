//! How a client opens lanes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[cfg(feature = "rdma")]
use super::rdma;
use super::tls::{TlsClient, Untrusted};
#[cfg(all(feature = "uring", target_os = "linux"))]
use super::uring;
use super::wait::Interest;
use super::{Stream, choose, shm, tcp};
use crate::connection::{Client, ClientError};
use crate::uri::Uri;
use crate::wire::Effect;

/// How long one attempt to open a lane may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens the lanes of one connection after another.
pub trait Dial: Send {
    /// Opens a control lane: a new connection.
    ///
    /// # Errors
    /// Why the server cannot be reached.
    fn control(&mut self) -> io::Result<Arc<dyn Stream>>;

    /// Opens bulk lane `lane` of the connection that the last [`Self::control`] opened, to the same server. Does not wait until it is
    /// open: small requests go on meanwhile.
    ///
    /// # Errors
    /// Why it cannot be opened.
    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>>;
}

/// A client's bulk lane.
pub trait Bulk: Send {
    /// Moves what can be moved without waiting. Whether anything was.
    ///
    /// # Errors
    /// The lane is gone, or cannot be trusted any further: it is dropped, and what it lost goes over others.
    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError>;

    /// Its number.
    fn lane(&self) -> u32;

    /// Slices that came over it from their first byte to their last.
    fn came(&self) -> u64;

    /// The driver is about to wait: adds what for. Whether there is no need to.
    fn arm(&mut self, client: &Client, out: &mut Vec<Interest>) -> bool;

    /// The driver has waited.
    fn disarm(&mut self);

    /// When to turn even if nothing is ready.
    fn deadline(&self, client: &Client) -> Option<Instant>;
}

/// A lane is gone, or cannot be trusted.
pub(crate) fn gone(error: &io::Error) -> ClientError {
    match Untrusted::of(error) {
        Some(untrusted) => ClientError::Untrusted { reason: untrusted.to_string() },
        None => ClientError::Unreachable { reason: error.to_string(), effect: Effect::Unknown },
    }
}

/// What opens lanes to this address, if they need no certificates.
pub fn dialer(uri: &Uri) -> Box<dyn Dial> {
    dialer_with(uri, None)
}

/// What opens lanes to this address. `tls`: whom to trust, for `tcps://`; `genie://` encrypts what leaves the host then.
pub fn dialer_with(uri: &Uri, tls: Option<TlsClient>) -> Box<dyn Dial> {
    match uri {
        Uri::Genie { host, port, link } => Box::new(choose::Dialer::new(host.clone(), *port, *link, tls)),
        Uri::Tls { host, .. } => Box::new(super::tls::Dialer::new(uri.clone(), host.clone(), tls)),
        Uri::Tcp { .. } => Box::new(tcp::Dialer::new(uri.clone())),
        #[cfg(feature = "rdma")]
        Uri::Rdma { host, port } => Box::new(rdma::Dialer::new(host.clone(), *port)),
        Uri::Shm { path } => Box::new(shm::Dialer::new(path)),
        #[cfg(all(feature = "uring", target_os = "linux"))]
        Uri::Uring { .. } => Box::new(uring::Dialer::new(uri.clone())),
        #[cfg(all(feature = "uring", target_os = "linux"))]
        Uri::UringTls { host, .. } => Box::new(super::tls::Dialer::new(uri.clone(), host.clone(), tls)),
    }
}
