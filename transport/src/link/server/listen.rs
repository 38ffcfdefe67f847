//! Where a server listens.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use socket2::{Domain, Protocol, Socket, Type};

use crate::auth::Guard;
#[cfg(feature = "rdma")]
use crate::link::rdma;
use crate::link::tls::TlsStream;
#[cfg(all(feature = "uring", target_os = "linux"))]
use crate::link::uring;
use crate::link::{Access, Exposed, Stream, shm, tcp};
use crate::uri::Uri;
use crate::wire::{LinkOffer, LinkScheme};

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Other machines could reach it, and something is missing for that.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// It names no link.
    #[error(
        "cannot listen on {0}: genie:// is what clients write; listen on tcp:// and on the links that they may choose"
    )]
    NotALink(Uri),
    /// This machine has no io_uring.
    #[cfg(all(feature = "uring", target_os = "linux"))]
    #[error(transparent)]
    Uring(#[from] uring::Unavailable),
    /// The system refuses.
    #[error("cannot listen on {uri}: {source}; is another server running there?")]
    Io {
        /// The address asked for.
        uri: Uri,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(tokio::net::TcpListener),
    Tls(tokio::net::TcpListener, Access),
    #[cfg(feature = "rdma")]
    Rdma(rdma::Listener),
    Shm(tokio::net::UnixListener, shm::Bound, Arc<Guard>),
    #[cfg(all(feature = "uring", target_os = "linux"))]
    Uring(tokio::net::TcpListener, Arc<uring::Crew>),
    #[cfg(all(feature = "uring", target_os = "linux"))]
    UringTls(tokio::net::TcpListener, Access),
}

impl Listener {
    /// Binds, for this machine alone. Call within a tokio runtime.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn bind(uri: &Uri) -> Result<Self, Refusal> {
        Self::bind_with(uri, &Access::default())
    }

    /// Binds, for whom `access` lets in. Call within a tokio runtime.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn bind_with(uri: &Uri, access: &Access) -> Result<Self, Refusal> {
        let kind = match uri {
            Uri::Tcp { host, port } => Kind::Tcp(bind_tcp(uri, host, *port, access)?),
            Uri::Tls { host, port } => Kind::Tls(bind_tcp(uri, host, *port, access)?, access.clone()),
            #[cfg(feature = "rdma")]
            Uri::Rdma { host, port } => Kind::Rdma(bind_rdma(uri, host, *port, access)?),
            Uri::Shm { path } => {
                let bind = || {
                    let (listener, bound) = shm::bind(path.as_ref())?;
                    Ok(Kind::Shm(tokio::net::UnixListener::from_std(listener)?, bound, access.guard.clone()))
                };
                bind().map_err(|source| Refusal::Io { uri: uri.clone(), source })?
            }
            Uri::Genie { .. } => return Err(Refusal::NotALink(uri.clone())),
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Uri::Uring { host, port } => {
                uring::available()?;
                Kind::Uring(bind_tcp(uri, host, *port, access)?, uring::Crew::new())
            }
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Uri::UringTls { host, port } => {
                uring::available()?;
                Kind::UringTls(bind_tcp(uri, host, *port, access)?, access.clone())
            }
        };
        Ok(Self { kind })
    }

    /// Where it listens, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system's.
    pub fn uri(&self) -> io::Result<Uri> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let address = listener.local_addr()?;
                Ok(Uri::Tcp { host: address.ip().to_string(), port: address.port() })
            }
            Kind::Tls(listener, _) => {
                let address = listener.local_addr()?;
                Ok(Uri::Tls { host: address.ip().to_string(), port: address.port() })
            }
            #[cfg(feature = "rdma")]
            Kind::Rdma(listener) => {
                let address = listener.address();
                Ok(Uri::Rdma { host: address.ip().to_string(), port: address.port() })
            }
            Kind::Shm(_, bound, _) => Ok(Uri::Shm { path: bound.path().display().to_string() }),
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Kind::Uring(listener, _) => {
                let address = listener.local_addr()?;
                Ok(Uri::Uring { host: address.ip().to_string(), port: address.port() })
            }
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Kind::UringTls(listener, _) => {
                let address = listener.local_addr()?;
                Ok(Uri::UringTls { host: address.ip().to_string(), port: address.port() })
            }
        }
    }

    /// As clients that choose a link are told of it.
    ///
    /// # Errors
    /// The system's.
    pub fn offers(&self) -> io::Result<Vec<LinkOffer>> {
        let at = |scheme, port| LinkOffer { scheme, port, path: None };
        Ok(match self.uri()? {
            // The same bytes: whoever has no io_uring is served as well.
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Uri::Uring { port, .. } => vec![at(LinkScheme::Uring, port), at(LinkScheme::Tcp, port)],
            Uri::Tcp { port, .. } => vec![at(LinkScheme::Tcp, port)],
            Uri::Tls { port, .. } => vec![at(LinkScheme::Tcps, port)],
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Uri::UringTls { port, .. } => vec![at(LinkScheme::Urings, port), at(LinkScheme::Tcps, port)],
            #[cfg(feature = "rdma")]
            Uri::Rdma { port, .. } => vec![at(LinkScheme::Rdma, port)],
            Uri::Shm { path } => vec![LinkOffer { scheme: LinkScheme::Shm, port: 0, path: Some(path) }],
            Uri::Genie { .. } => Vec::new(),
        })
    }

    /// The next lane.
    pub(super) async fn accept(&mut self) -> io::Result<Arc<dyn Stream>> {
        match &mut self.kind {
            Kind::Tcp(listener) => tcp::served(listener.accept().await?.0.into_std()?),
            Kind::Tls(listener, access) => {
                let (stream, from) = listener.accept().await?;
                let stream = tcp::accepted(stream.into_std()?)?;
                let same_host = tcp::path_of(&stream) == tcp::Path::SameHost;
                let mut channel = encrypted(Box::new(stream), from, access)?;
                if same_host {
                    channel.by_pages();
                }
                Ok(Arc::new(channel))
            }
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Kind::UringTls(listener, access) => {
                let (stream, from) = listener.accept().await?;
                Ok(Arc::new(encrypted(uring::accepted_stream(stream.into_std()?)?, from, access)?))
            }
            #[cfg(feature = "rdma")]
            Kind::Rdma(listener) => listener.accept().await,
            Kind::Shm(listener, _, guard) => loop {
                let stream = listener.accept().await?.0.into_std()?;
                if let Some(stream) = shm::accepted(stream, guard)? {
                    return Ok(stream);
                }
            },
            #[cfg(all(feature = "uring", target_os = "linux"))]
            Kind::Uring(listener, crew) => uring::accepted(listener.accept().await?.0.into_std()?, crew),
        }
    }
}

#[cfg(feature = "rdma")]
impl From<rdma::Listener> for Listener {
    fn from(listener: rdma::Listener) -> Self {
        Self { kind: Kind::Rdma(listener) }
    }
}

fn encrypted(stream: Box<dyn Stream>, from: SocketAddr, access: &Access) -> io::Result<TlsStream> {
    // `Access::check` lets none be bound without certificates.
    let tls = access.tls.as_ref().ok_or(io::ErrorKind::Unsupported)?;
    TlsStream::server(stream, tls, access.guard.clone(), Some(Arc::from(from.to_string())))
}

/// An address of an RDMA device is never a loopback one.
#[cfg(feature = "rdma")]
fn bind_rdma(uri: &Uri, host: &str, port: u16, access: &Access) -> Result<rdma::Listener, Refusal> {
    let failed = |source| Refusal::Io { uri: uri.clone(), source };
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = (host, port).to_socket_addrs().map_err(failed)?;
    let address = addresses.next().ok_or_else(|| failed(none()))?;
    access.check(uri, Some(address.ip()))?;
    let listener = rdma::Listener::bind(address).map_err(failed)?;
    if !address.ip().is_loopback() {
        tracing::warn!(%uri, "RDMA payloads are not encrypted: whoever is on that network can read along; tcps:// encrypts");
    }
    Ok(listener)
}

fn bind_tcp(uri: &Uri, host: &str, port: u16, access: &Access) -> Result<tokio::net::TcpListener, Refusal> {
    let failed = |source| Refusal::Io { uri: uri.clone(), source };
    let none = || io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut addresses = (host, port).to_socket_addrs().map_err(failed)?;
    let address = addresses.next().ok_or_else(|| failed(none()))?;
    access.check(uri, Some(address.ip()))?;
    let bind = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        // A burst of thousands of clients is queued rather than refused; the kernel caps it by net.core.somaxconn.
        socket.listen(16_384)?;
        tokio::net::TcpListener::from_std(socket.into())
    };
    bind().map_err(failed)
}
