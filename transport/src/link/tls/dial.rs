//! A client's TLS lanes over TCP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{TlsClient, TlsFileError, TlsStream};
use crate::connection::Client;
use crate::link::dial::CONNECT_TIMEOUT;
#[cfg(all(feature = "uring", target_os = "linux"))]
use crate::link::uring;
use crate::link::{Bulk, Dial, Stream, StreamBulk, tcp};
use crate::uri::Uri;

/// Opens TLS lanes.
#[derive(Debug)]
pub struct Dialer {
    uri: Uri,
    host: String,
    tls: Option<TlsClient>,
    /// Where the control lane went: a name's next address may be another server's.
    address: Option<SocketAddr>,
}

impl Dialer {
    /// To this address; whose certificate is for `host`.
    pub fn new(uri: Uri, host: String, tls: Option<TlsClient>) -> Self {
        Self { uri, host, tls, address: None }
    }

    fn channel(&self, stream: Box<dyn Stream>) -> io::Result<TlsStream> {
        // Never in plaintext instead.
        let tls =
            self.tls.as_ref().ok_or_else(|| io::Error::other(super::Untrusted(TlsFileError::NoCa.to_string())))?;
        TlsStream::client(stream, tls, &self.host)
    }
}

impl Dial for Dialer {
    fn control(&mut self) -> io::Result<Arc<dyn Stream>> {
        #[cfg(all(feature = "uring", target_os = "linux"))]
        if matches!(self.uri, Uri::UringTls { .. }) {
            uring::available()?;
        }
        let (stream, _) = tcp::connect(&self.uri, CONNECT_TIMEOUT)?;
        self.address = Some(stream.peer_addr()?);
        Ok(Arc::new(self.channel(Box::new(stream))?))
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let address = self.address.ok_or(io::ErrorKind::NotConnected)?;
        let (stream, _) = tcp::connect_to(address, CONNECT_TIMEOUT)?;
        let stream: Box<dyn Stream> = match self.uri {
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Uri::UringTls { .. } => Box::new(uring::RingStream::on_ring(stream)),
            _ => Box::new(stream),
        };
        Ok(Box::new(StreamBulk::greet(Box::new(self.channel(stream)?), client, lane, now)))
    }
}
