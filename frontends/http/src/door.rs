//! The door itself: where it listens, and what all its connections share.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use genie_transport::Uri;
use genie_transport::link::{Access, Exposed};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use genie_transport::auth::Refused;

use crate::body::Budget;
use crate::connections::{Connections, Place};
use crate::gate::Gate;
use crate::io::Paced;
use crate::routes;
use crate::sessions::Sessions;
use crate::stats::Stats;

/// What requests may take.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of one body, and of one result.
    pub body_bytes: u64,
    /// Bytes that all requests together may hold: bodies, results, and what is made of a file to read it.
    pub memory_bytes: u64,
    /// Connections at a time. For one more the oldest goes whose request has not come whole.
    pub connections: usize,
    /// How long a client may take over its headers, and over each 64 KiB of a body or of an answer; and how long a token's session stays
    /// open for its next request.
    pub patience: Duration,
    /// Threads that serve connections.
    pub threads: usize,
}

impl Default for Settings {
    /// Bodies of 1 GiB, 4 GiB together, 1024 connections, 30 seconds, two threads.
    fn default() -> Self {
        Self {
            body_bytes: 1 << 30,
            memory_bytes: 4 << 30,
            connections: 1024,
            patience: Duration::from_secs(30),
            threads: 2,
        }
    }
}

/// Why there is no door.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoorError {
    /// Other machines could reach it, and something is missing for that.
    #[error("the HTTP door: {0}")]
    Exposed(#[from] Exposed),
    /// The system refuses.
    #[error("the HTTP door cannot listen on {address}: {source}; is another server running there?")]
    Io {
        /// The address asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An open door; dropped, it is closed, and what it was doing is given up.
#[derive(Debug)]
pub struct Door {
    url: String,
    /// Its own: a large file that is read here takes no turn from the server's lanes.
    runtime: Option<Runtime>,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) gate: Gate,
    pub(crate) sessions: Sessions,
    pub(crate) connections: Arc<Connections>,
    pub(crate) budget: Arc<Budget>,
    /// Large files are read a few at a time.
    pub(crate) readers: Semaphore,
    pub(crate) stats: Stats,
    pub(crate) started: Instant,
}

/// Between two looks at which sessions are used.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's headers.
const HEADER_BYTES: usize = 32 << 10;
/// Bytes that each connection reads ahead.
const BUFFER_BYTES: usize = 128 << 10;
/// Headers of a request.
const HEADERS: usize = 64;

impl Door {
    /// Listens at `address` (`host:port`; port 0 takes a free one) for whom `access` lets in, and sends what they ask for to the server at
    /// `server`, which asks for the same tokens. With certificates it speaks HTTPS, else HTTP.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn open(address: &str, server: Uri, access: &Access, settings: Settings) -> Result<Self, DoorError> {
        let failed = |source| DoorError::Io { address: address.to_owned(), source };
        let place = std::net::ToSocketAddrs::to_socket_addrs(address).map_err(failed)?.next();
        let place = place.ok_or_else(|| failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")))?;
        let (host, port) = (place.ip().to_string(), place.port());
        let encrypted = access.tls.is_some();
        let as_link = if encrypted { Uri::Tls { host, port } } else { Uri::Tcp { host, port } };
        access.check(&as_link, Some(place.ip()))?;
        // First what may fail: a runtime cannot be dropped by a task of another one.
        let listener = std::net::TcpListener::bind(place).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(settings.threads.max(1))
            .thread_name("genie-http")
            .enable_all()
            .build()
            .map_err(failed)?;
        let entered = runtime.enter();
        let listener = TcpListener::from_std(listener);
        drop(entered);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => {
                runtime.shutdown_background();
                return Err(failed(error));
            }
        };
        let url = format!("{}://{local}", if encrypted { "https" } else { "http" });
        let shared = Arc::new(Shared {
            settings,
            gate: Gate { guard: access.guard.clone(), encrypted, loopback: place.ip().is_loopback() },
            sessions: Sessions::new(server),
            connections: Connections::new(settings.connections),
            budget: Budget::new(settings.memory_bytes),
            readers: Semaphore::new(settings.threads.max(1)),
            stats: Stats::default(),
            started: Instant::now(),
        });
        runtime.spawn(accept(listener, access.clone(), shared.clone()));
        runtime.spawn(async move {
            loop {
                tokio::time::sleep((settings.patience / 4).max(LEAST_PAUSE)).await;
                shared.sessions.close_idle(settings.patience);
            }
        });
        Ok(Self { url, runtime: Some(runtime) })
    }

    /// Where it is: `http://127.0.0.1:8888`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, access: Access, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((socket, from)) => match shared.connections.enter() {
                Some(place) => drop(tokio::spawn(connection(socket, from, place, access.clone(), shared.clone()))),
                None => {
                    tracing::warn!(%from, "the HTTP door works for as many connections as it may have: one more is closed")
                }
            },
            Err(error) => {
                // Out of descriptors: those who wait are served when others leave.
                tracing::warn!(%error, "the HTTP door cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, from: SocketAddr, place: Place, access: Access, shared: Arc<Shared>) {
    let patience = shared.settings.patience;
    // Small answers go at once. A socket that refuses this works without.
    let _ = socket.set_nodelay(true);
    let served = async {
        match &access.tls {
            None => serve(Paced::new(socket, patience), from, &place, &shared).await,
            Some(tls) => match timeout(patience, tokio_rustls::TlsAcceptor::from(tls.config()).accept(socket)).await {
                Ok(Ok(stream)) => serve(Paced::new(stream, patience), from, &place, &shared).await,
                Ok(Err(error)) => {
                    shared.gate.guard.count(Refused::Handshake);
                    tracing::debug!(%from, %error, "no TLS handshake at the HTTP door");
                }
                Err(_) => shared.gate.guard.count(Refused::Handshake),
            },
        }
    };
    tokio::select! {
        () = served => {}
        () = place.connection.asked_to_leave() => tracing::debug!(%from, "a connection at the HTTP door makes room for another"),
    }
}

async fn serve<S>(stream: S, from: SocketAddr, place: &Place, shared: &Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let (shared, connection) = (shared.clone(), place.connection.clone());
        async move { Ok::<_, Infallible>(routes::answer(shared, connection, from, request.map(Body::new)).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.settings.patience)
        .max_header_size(HEADER_BYTES)
        .max_headers(HEADERS)
        .max_buf_size(BUFFER_BYTES)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
    if let Err(error) = served {
        tracing::debug!(%from, %error, "a connection at the HTTP door broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runtime of a door that could not listen was dropped by the task that had opened it, which is a panic.
    #[tokio::test]
    async fn a_place_that_is_taken_is_an_error() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let server = "shm:///nowhere".parse().unwrap();
        let error = Door::open(&address, server, &Access::default(), Settings::default()).unwrap_err();
        assert!(error.to_string().contains("is another server running there?"), "{error}");
    }
}
