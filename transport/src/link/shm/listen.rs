//! The server's end: a Unix socket in the file system, and lanes that have just been accepted.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use socket2::{Domain, SockAddr, Socket as RawSocket, Type};

use super::bulk::BulkSocket;
use super::control::ControlStream;
use super::socket::{Socket, may_share, own_user, peer_user};
use crate::link::wait::{self, Interest};
use crate::link::{Ready, Stream};
use crate::memory::Regions;
use crate::wire::Local;

/// A bound path. The file goes with this value.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    /// Device and number of the file: another server's is not removed.
    file: (u64, u64),
}

/// Binds `path`, for this user alone. A socket that nobody listens on any more is replaced.
///
/// # Errors
/// `AddrInUse`: somebody listens there, or something else lies there. Any other: the system's.
pub fn bind(path: &Path) -> io::Result<(UnixListener, Bound)> {
    let address = SockAddr::unix(path)?;
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "the path exists and is no socket"));
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(e) => return Err(e),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before it is bound: the file is never anybody else's to open, not even for a moment.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    socket.bind(&address)?;
    let found = path.symlink_metadata()?;
    let bound = Bound { path: path.to_owned(), file: (found.dev(), found.ino()) };
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok((UnixListener::from(std::os::fd::OwnedFd::from(socket)), bound))
}

impl Bound {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let ours = self.path.symlink_metadata().is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays behind");
        }
    }
}

/// Makes a lane of a socket that was just accepted. `None`: a process of another user, which was told so.
///
/// # Errors
/// The system's.
pub fn accepted(stream: UnixStream) -> io::Result<Option<Arc<dyn Stream>>> {
    let (own, peer) = (own_user(), peer_user(&stream)?);
    let socket = Socket::new(stream)?;
    if !may_share(own, peer) {
        tracing::warn!(
            user = peer,
            "a client of another user is refused: shared memory is for this server's user, and root"
        );
        // If the client does not hear it, it hears the end.
        let _ = socket.send(Local::Refused { server: own, client: peer }, None);
        return Ok(None);
    }
    Ok(Some(Arc::new(Accepted { socket: Arc::new(socket), lane: OnceLock::new() })))
}

/// A lane whose first message says what it is.
#[derive(Debug)]
struct Accepted {
    socket: Arc<Socket>,
    lane: OnceLock<Kind>,
}

#[derive(Debug)]
enum Kind {
    Control(ControlStream),
    Bulk(BulkSocket),
}

impl Kind {
    fn stream(&self) -> &dyn Stream {
        match self {
            Self::Control(stream) => stream,
            Self::Bulk(socket) => socket,
        }
    }
}

impl Accepted {
    /// What it is, once it has said so.
    fn stream(&self) -> io::Result<&dyn Stream> {
        if let Some(kind) = self.lane.get() {
            return Ok(kind.stream());
        }
        let kind = match self.socket.receive()? {
            Some((Local::Control, None)) => {
                let (stream, memory) = ControlStream::server(self.socket.clone())?;
                self.socket.send(Local::Rings { bytes: memory.len() as u64 }, memory.fd())?;
                Kind::Control(stream)
            }
            Some((Local::Bulk, None)) => Kind::Bulk(BulkSocket(self.socket.clone())),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a lane begins by saying what it is"));
            }
        };
        Ok(self.lane.get_or_init(|| kind).stream())
    }
}

impl Stream for Accepted {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        match self.lane.get() {
            Some(Kind::Control(stream)) => stream.recv(first, then),
            _ => self.stream()?.recv(first, then),
        }
    }

    fn watch(&self, looks: u32) -> u32 {
        match self.lane.get() {
            Some(kind) => kind.stream().watch(looks),
            None => looks.saturating_sub(1),
        }
    }

    fn patience(&self) -> u32 {
        // Over a megabyte or four that a client copies before it passes them.
        4
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.lane.get() {
            Some(Kind::Control(stream)) => stream.send(bufs),
            _ => self.stream()?.send(bufs),
        }
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        match self.lane.get() {
            Some(kind) => kind.stream().interest(read, write),
            None => self.socket.interest(read, false),
        }
    }

    fn arm(&self, read: bool, write: bool) -> bool {
        self.lane.get().is_some_and(|kind| kind.stream().arm(read, write))
    }

    fn disarm(&self) {
        if let Some(kind) = self.lane.get() {
            kind.stream().disarm();
        }
    }

    fn ready(&self) -> Ready {
        match self.lane.get() {
            Some(kind) => kind.stream().ready(),
            None => wait::ready(self.socket.as_raw_fd()),
        }
    }

    fn finish(&self) {
        self.socket.finish();
    }

    fn regions(&self) -> Option<Arc<Regions>> {
        self.lane.get().and_then(|kind| kind.stream().regions())
    }
}
