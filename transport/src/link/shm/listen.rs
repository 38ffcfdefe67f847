//! The server's end: a Unix socket in the file system, and lanes that have just been accepted.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket as RawSocket, Type};

use super::bulk::BulkSocket;
use super::control::ControlStream;
use super::socket::{Socket, may_share, own_user, peer_user};
use crate::auth::{Channel, Guard, Refused};
use crate::link::wait::{self, Interest};
use crate::link::{Ready, Stream};
use crate::memory::Regions;
use crate::wire::{DecodeError, Local};

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

/// Makes a lane of a socket that was just accepted. `None`: a process of another user, which was told so; the guard has counted it.
///
/// # Errors
/// The system's.
pub fn accepted(stream: UnixStream, guard: &Guard) -> io::Result<Option<Arc<dyn Stream>>> {
    let (own, peer) = (own_user(), peer_user(&stream)?);
    let socket = Socket::new(stream)?;
    if !may_share(own, peer) {
        let channel = Channel { from: Some(Arc::from(format!("user {peer}"))), ..Channel::default() };
        let message = "a client of another user: shared memory is for this server's user, and root";
        guard.refuse(Refused::User, &channel, "", message, Instant::now());
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
        let first = self.socket.receive().inspect_err(|error| {
            if is_of_another_version(error) {
                // If the client does not hear it, it hears the end.
                let _ = self.socket.send(Local::OUR_VERSION, None);
            }
        });
        let kind = match first? {
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

/// Whether a lane began by a version that this side does not speak.
fn is_of_another_version(error: &io::Error) -> bool {
    let decode = error.get_ref().and_then(|inner| inner.downcast_ref::<DecodeError>());
    matches!(decode, Some(DecodeError::Version(_)))
}

/// A page, the least that is shared: what is larger is passed sooner than it is copied through the rings (docs/decisions/0012).
const EAGER: u32 = 4 << 10;

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

    fn eager_bytes(&self) -> u32 {
        EAGER
    }

    fn regions(&self) -> Option<Arc<Regions>> {
        self.lane.get().and_then(|kind| kind.stream().regions())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Duration;

    use super::*;
    use crate::link::shm::dial;
    use crate::wire::LOCAL_BYTES;

    /// Rings of records and rings of bytes look alike: two ends of unlike versions would wait for each other for ever.
    #[test]
    fn a_client_of_another_version_is_told() {
        let (mut client, server) = UnixStream::pair().unwrap();
        let server = accepted(server, &Guard::open()).unwrap().unwrap();
        let mut first = Local::Control.encode();
        first[8] -= 1;
        client.write_all(&first).unwrap();
        assert_eq!(server.recv(&mut [0; 64], &mut []).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(server);
        let mut answer = [0; LOCAL_BYTES];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(Local::decode(&answer), Ok(Local::OUR_VERSION));
        assert_eq!(client.read(&mut answer).unwrap(), 0, "and that is all");
    }

    #[test]
    fn a_server_of_another_version_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, _bound) = bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            listener.set_nonblocking(false).unwrap();
            let (mut lane, _) = listener.accept().unwrap();
            lane.read_exact(&mut [0; LOCAL_BYTES]).unwrap();
            lane.write_all(&Local::Version { spoken: 77 }.encode()).unwrap();
        });
        let error = dial::control(&path, Duration::from_secs(20)).unwrap_err();
        server.join().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("version 77"), "{error}");
    }
}
