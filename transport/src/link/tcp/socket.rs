//! Sockets: how they are set up, and the two calls that move bytes.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::Lender;
use crate::auth::Channel;
use crate::link::wait::{self, Interest};
use crate::link::{Ready, Stream};
use crate::uri::Uri;

/// What lies between two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Both ends are one machine.
    SameHost,
    /// Connecting took less than 2 ms.
    Lan,
    /// Anything else.
    Wan,
}

/// A handshake faster than this stays within a data centre.
const LAN_RTT: Duration = Duration::from_millis(2);

impl Path {
    fn of(local: SocketAddr, peer: SocketAddr, handshake: Duration) -> Self {
        if peer.ip().is_loopback() || local.ip() == peer.ip() {
            Self::SameHost
        } else if handshake < LAN_RTT {
            Self::Lan
        } else {
            Self::Wan
        }
    }

    /// The congestion controls to try, best first; after them the system's default.
    ///
    /// bbr paces even where there is no queue to spare: over loopback it costs more than half of the throughput. On a LAN a
    /// loss-based control fills the path as well; far away the administrator's choice stands.
    fn wishes(self) -> &'static [&'static str] {
        match self {
            Self::SameHost => &["reno", "cubic"],
            Self::Lan => &["cubic", "reno"],
            Self::Wan => &[],
        }
    }
}

/// Opens a lane: connected, tuned, non-blocking; and what lies between. A name's addresses are tried in turn, within one
/// timeout.
///
/// # Errors
/// The last address's, if none can be reached.
pub fn connect(uri: &Uri, timeout: Duration) -> io::Result<(TcpStream, Path)> {
    let (host, port) = match uri {
        Uri::Tcp { host, port } | Uri::Tls { host, port } => (host, port),
        #[cfg(all(feature = "uring", target_os = "linux"))]
        Uri::Uring { host, port } | Uri::UringTls { host, port } => (host, port),
        other => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{other} is no address of a TCP server")));
        }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    let until = Instant::now() + timeout;
    for address in (host.as_str(), *port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        match connect_to(address, left) {
            Ok(connected) => return Ok(connected),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Opens a lane to one address: as [`connect`].
///
/// # Errors
/// The system's.
pub fn connect_to(address: SocketAddr, timeout: Duration) -> io::Result<(TcpStream, Path)> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    let began = Instant::now();
    socket.connect_timeout(&address.into(), timeout)?;
    let handshake = began.elapsed();
    let stream = TcpStream::from(socket);
    let path = Path::of(stream.local_addr()?, stream.peer_addr()?, handshake);
    tune(&SockRef::from(&stream), path)?;
    stream.set_nonblocking(true)?;
    Ok((stream, path))
}

/// A lane whose peer has acknowledged nothing for so long is gone: three of the default keepalives.
const UNANSWERED: Duration = Duration::from_secs(30);

/// Begins to open another lane to an address that has one: non-blocking, and what is sent before it is connected `WouldBlock`.
///
/// # Errors
/// The system's.
pub fn begin_connect(address: SocketAddr, path: Path) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    tune(&SockRef::from(&socket), path)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(socket.into()),
    }
}

/// Bytes that wait to be sent in the socket of a lane that is far away: two of its slices.
const FAR_UNSENT: u32 = 128 << 10;

/// Sets what every lane needs. A congestion control that is not allowed here leaves the default.
///
/// # Errors
/// The system's.
pub fn tune(socket: &SockRef<'_>, path: Path) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    // A lane says nothing of itself while its connection's other lanes live: the kernel finds the one whose path is gone. The
    // connection's own silence, which a server may set shorter, is found by its pings.
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    let keepalive = TcpKeepalive::new().with_time(UNANSWERED / 3).with_interval(UNANSWERED / 6);
    socket.set_tcp_keepalive(&keepalive)?;
    if path == Path::Wan {
        // What waits here is bound to this lane: with a little of it, a faster lane takes the next slices.
        socket.set_tcp_notsent_lowat(FAR_UNSENT)?;
    }
    let chosen = path.wishes().iter().find(|name| set_congestion(socket, name));
    tracing::debug!(?path, chosen = chosen.copied().unwrap_or("the system's default"), "congestion control");
    Ok(())
}

fn set_congestion(socket: &SockRef<'_>, name: &str) -> bool {
    socket.set_tcp_congestion(name.as_bytes()).is_ok()
}

pub(crate) fn path_of(stream: &TcpStream) -> Path {
    match (stream.local_addr(), stream.peer_addr()) {
        // An accepting side has not seen the handshake's time: it takes whoever is not on this host to be near.
        (Ok(local), Ok(peer)) => Path::of(local, peer, Duration::ZERO),
        _ => Path::Lan,
    }
}

/// Makes a lane of a socket that was just accepted.
///
/// # Errors
/// The system's.
pub fn accepted(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(true)?;
    tune(&SockRef::from(&stream), path_of(&stream))?;
    Ok(stream)
}

/// A server's lane of a socket that was just accepted.
///
/// # Errors
/// The system's.
pub fn served(stream: TcpStream) -> io::Result<Arc<dyn Stream>> {
    let stream = accepted(stream)?;
    if path_of(&stream) != Path::SameHost {
        return Ok(Arc::new(stream));
    }
    // See docs/decisions/0003-pages-by-reference.md.
    Ok(match Lender::new(stream) {
        Ok(lender) => Arc::new(lender),
        Err(stream) => Arc::new(stream),
    })
}

impl Stream for TcpStream {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        recv_two(self, first, then)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(&SockRef::from(self), bufs)
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        Interest { fd: self.as_raw_fd(), read, write }
    }

    fn channel(&self) -> Channel {
        Channel { from: self.peer_addr().ok().map(|peer| peer.to_string().into()), ..Channel::default() }
    }

    fn ready(&self) -> Ready {
        wait::ready(self.as_raw_fd())
    }

    fn socket(&self) -> Option<SockRef<'_>> {
        Some(SockRef::from(self))
    }

    fn finish(&self) {
        // A socket that is gone has nothing left to finish.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

/// A frame up to this size is put together before it is sent: walking a list of buffers costs the kernel more.
const SMALL: usize = 512;

/// Sends without waiting, and without a signal where the other side is gone.
///
/// # Errors
/// `WouldBlock`: nothing fits now. Any other: the socket is gone.
pub(in crate::link) fn send(socket: &SockRef<'_>, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let whole: usize = bufs.iter().map(|b| b.len()).sum();
    let mut together = [0; SMALL];
    if whole <= SMALL {
        let mut at = 0;
        for buf in bufs {
            together[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
    }
    loop {
        let sent = if whole <= SMALL {
            socket.send_with_flags(&together[..whole], flags)
        } else {
            socket.send_vectored_with_flags(bufs, flags)
        };
        match sent {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Reads what is there, without waiting. 0: the other side has closed.
///
/// # Errors
/// `WouldBlock`: nothing is there.
pub fn recv(socket: &impl AsRawFd, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel writes at most `buf.len()` bytes
        // to `buf`, which is borrowed mutably.
        let n = unsafe { libc::recv(socket.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}

/// Reads what is there into one buffer and then the other, without waiting. 0: the other side has closed.
///
/// # Errors
/// `WouldBlock`: nothing is there.
pub fn recv_two(socket: &impl AsRawFd, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
    if then.is_empty() {
        return recv(socket, first);
    }
    loop {
        let mut bufs = [IoSliceMut::new(first), IoSliceMut::new(then)];
        // SAFETY: an all-zero msghdr is a valid one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // `IoSliceMut` is documented to have the layout of `iovec`.
        message.msg_iov = bufs.as_mut_ptr().cast();
        message.msg_iovlen = bufs.len();
        // SAFETY: the descriptor is open for as long as `socket` is borrowed; `message` points to two buffers that are borrowed
        // mutably for the call.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        match usize::try_from(n) {
            Ok(n) => return Ok(n),
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
        }
    }
}
