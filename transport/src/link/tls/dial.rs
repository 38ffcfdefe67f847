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
    address: Option<(SocketAddr, tcp::Path)>,
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
        let (stream, path) = tcp::connect(&self.uri, CONNECT_TIMEOUT)?;
        self.address = Some((stream.peer_addr()?, path));
        Ok(Arc::new(self.channel(Box::new(stream))?))
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let (address, path) = self.address.ok_or(io::ErrorKind::NotConnected)?;
        let stream = tcp::begin_connect(address, path)?;
        let stream: Box<dyn Stream> = match self.uri {
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Uri::UringTls { .. } => Box::new(uring::RingStream::on_ring(stream)),
            _ => Box::new(stream),
        };
        let mut channel = self.channel(stream)?;
        if path == tcp::Path::SameHost {
            channel.by_pages();
        }
        Ok(Box::new(StreamBulk::greet(Box::new(channel), client, lane, now)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::generate_simple_self_signed;
    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::connection::ClientOptions;

    /// A server that did not take the next lane at once held up the session's only thread, and with it every small request.
    #[test]
    fn a_lane_that_cannot_be_opened_yet_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, generate_simple_self_signed(vec!["localhost".into()]).unwrap().cert.pem()).unwrap();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        // One connection waits to be accepted, and no more are answered.
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let uri: Uri = format!("tcps://{address}").parse().unwrap();
        let mut dialer = Dialer::new(uri, "127.0.0.1".into(), Some(TlsClient::load(&ca, None).unwrap()));
        let _control = dialer.control().unwrap();
        // The first counts once its last segment has come, which need not be now: until then others get in, and stay.
        let mut others = Vec::new();
        while let Ok(other) = tcp::connect_to(address, Duration::from_millis(100)) {
            others.push(other);
            assert!(others.len() < 10, "the queue is full");
        }
        let now = Instant::now();
        let client = Client::new(ClientOptions::default(), now);
        let mut lane = dialer.bulk(&client, 1, now).expect("it is being opened");
        let mut waits = Vec::new();
        assert!(!lane.arm(&client, &mut waits));
    }
}
