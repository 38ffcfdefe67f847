//! The client's end: lanes to a path.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket as RawSocket, Type};

use super::bulk::BulkSocket;
use super::control::ControlStream;
use super::socket::{Socket, may_share, own_user, peer_user};
use crate::connection::Client;
use crate::link::dial::CONNECT_TIMEOUT;
use crate::link::tcp::{Splice, Spliced};
use crate::link::wait::Waiter;
use crate::link::{Bulk, Dial, Stream, StreamBulk};
use crate::wire::Local;

/// Opens lanes over a path.
#[derive(Debug)]
pub struct Dialer {
    path: PathBuf,
}

impl Dialer {
    /// To this path.
    pub fn new(path: &str) -> Self {
        Self { path: path.into() }
    }
}

impl Dial for Dialer {
    fn control(&mut self) -> io::Result<Arc<dyn Stream>> {
        Ok(Arc::new(control(&self.path, CONNECT_TIMEOUT)?))
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let socket = BulkSocket(Arc::new(bulk(&self.path, CONNECT_TIMEOUT)?));
        let stream: Box<dyn Stream> = match Splice::new() {
            Some(splice) => Box::new(Spliced::new(socket, splice)),
            None => Box::new(socket),
        };
        Ok(Box::new(StreamBulk::greet(stream, client, lane, now)))
    }
}

/// Opens a control lane.
pub(super) fn control(path: &Path, timeout: Duration) -> io::Result<ControlStream> {
    let until = Instant::now() + timeout;
    let socket = Arc::new(connect(path, until)?);
    match socket.send(Local::Control, None) {
        // A server that refuses does not wait for it, and may be gone: why, lies there to be read.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        said => said?,
    }
    let mut waiter = Waiter::default();
    loop {
        match socket.receive() {
            Ok(Some((Local::Rings { bytes }, Some(memory)))) => {
                return ControlStream::client(socket, memory, bytes).map_err(io::Error::other);
            }
            Ok(Some((Local::Refused { server, client }, None))) => {
                let message = format!(
                    "the server runs as user {server} and shares memory with that user and root alone, not with user {client}: \
                     use tcp://"
                );
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            Ok(Some((Local::Version { spoken }, None))) => {
                let message = format!(
                    "the server lays shared memory out in another way (version {spoken}): update the older side, or use tcp://"
                );
                return Err(io::Error::new(io::ErrorKind::Unsupported, message));
            }
            // A server of the first version says nothing to a client of another.
            Ok(None) => {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server took the lane and ended it"));
            }
            Ok(Some(_)) => return Err(io::Error::new(io::ErrorKind::InvalidData, "no server of Genie listens there")),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                waiter.wait(std::iter::once(socket.interest(true, false)), left);
            }
            Err(e) => return Err(e),
        }
    }
}

/// Opens a bulk lane.
fn bulk(path: &Path, timeout: Duration) -> io::Result<Socket> {
    let socket = connect(path, Instant::now() + timeout)?;
    socket.send(Local::Bulk, None)?;
    Ok(socket)
}

fn connect(path: &Path, until: Instant) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    // A server that does not accept must not hold its clients up for ever.
    socket.set_nonblocking(true)?;
    while let Err(error) = socket.connect(&address) {
        if error.kind() != io::ErrorKind::WouldBlock || Instant::now() >= until {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let stream = std::os::fd::OwnedFd::from(socket).into();
    // Whoever made the file could read and change all that is shared.
    let (own, server) = (own_user(), peer_user(&stream)?);
    if !may_share(own, server) {
        let message = format!(
            "the server at {} runs as user {server}, not as user {own} or root: it is not given this process's memory",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Socket::new(stream)
}
