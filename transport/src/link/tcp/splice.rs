//! Sending pages instead of bytes.
//!
//! A socket's `send` copies the payload into kernel memory. `vmsplice` puts references to the pages into a pipe, and `splice`
//! moves them on into the socket: over loopback the receiver's copy is then the only one. The price: until the receiver has
//! read them, the pages must not change. So this is for memory that its owner holds until the peer has answered the transfer.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::auth::Channel;
use crate::link::wait::Interest;
use crate::link::{Ready, Stream};

/// Bytes that a pipe must hold for this to pay.
const PIPE_BYTES: libc::c_int = 1 << 20;

/// Buffers of less than a page are copied: heads and greetings lie in memory that is used again at once, and a reference costs
/// as much.
const PAGE: usize = 4096;

/// The pipe that a lane's slices go through.
#[derive(Debug)]
pub struct Splice {
    read: OwnedFd,
    write: std::fs::File,
    /// Bytes in the pipe.
    loaded: usize,
}

impl Splice {
    /// A pipe of a megabyte. `None` where the system allows only smaller ones, or no more descriptors, and in a program that a
    /// broken pipe would end: `splice` knows no `MSG_NOSIGNAL`, and a server that goes must not take its clients with it. Rust
    /// and Python programs ignore SIGPIPE; a C program may not.
    pub fn new() -> Option<Self> {
        if !ignores_sigpipe() {
            return None;
        }
        let mut ends = [0; 2];
        // SAFETY: `ends` has room for the two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) } != 0 {
            return None;
        }
        // SAFETY: both descriptors were just made, and nobody else owns them.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: no pointers are passed.
        let size = unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE_BYTES) };
        (size >= PIPE_BYTES).then(|| Self { read, write: write.into(), loaded: 0 })
    }

    /// Bytes that are in the pipe.
    pub(in crate::link) fn loaded(&self) -> usize {
        self.loaded
    }

    /// Moves what is in the pipe on into the socket. Whether all of it went.
    ///
    /// # Errors
    /// The socket's, if it is gone.
    pub(in crate::link) fn drain(&mut self, socket: &impl AsRawFd) -> io::Result<bool> {
        while self.loaded > 0 {
            // SAFETY: both descriptors are open, and the offsets are null, as pipes and sockets demand.
            let n = unsafe {
                libc::splice(
                    self.read.as_raw_fd(),
                    std::ptr::null_mut(),
                    socket.as_raw_fd(),
                    std::ptr::null_mut(),
                    self.loaded,
                    libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK,
                )
            };
            match usize::try_from(n) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.loaded -= n.min(self.loaded),
                Err(_) => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    e => return Err(e),
                },
            }
        }
        Ok(true)
    }

    /// Puts references to the pages of `buf` into the pipe: how many bytes went. They must stay as they are until the peer has read them.
    ///
    /// # Errors
    /// `WouldBlock`: the pipe is full.
    pub(in crate::link) fn load(&mut self, buf: &IoSlice<'_>) -> io::Result<usize> {
        // SAFETY: `IoSlice` has the layout of `iovec`, and the kernel only reads the memory. That the memory stays as it is
        // until the peer has read it is upheld by who makes a `Spliced` (see there), lends it (`Region::lend`), or has a ring of
        // records; were it not, the slice's checksum would not match, or the record not open.
        let n = unsafe {
            libc::vmsplice(self.write.as_raw_fd(), std::ptr::from_ref(buf).cast(), 1, libc::SPLICE_F_NONBLOCK)
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        self.loaded += n;
        Ok(n)
    }

    /// Sends the pages of `bufs`, and copies what is less than a page: how many bytes were taken. Some of them may still be in the pipe.
    ///
    /// # Errors
    /// `WouldBlock`: nothing was taken. Any other: the socket is gone.
    pub(in crate::link) fn send(&mut self, socket: &impl AsRawFd, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.drain(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        for buf in bufs {
            let loaded = if buf.len() < PAGE { self.write(buf) } else { self.load(buf) };
            match loaded {
                Ok(n) => {
                    taken += n;
                    if n < buf.len() {
                        break;
                    }
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => break,
                Err(e) => return Err(e),
            }
        }
        self.drain(socket)?;
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Puts the bytes of `buf` into the pipe: how many went.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = (&self.write).write(buf)?;
        self.loaded += n;
        Ok(n)
    }
}

/// Whether anything can be sent by reference in this process: see [`Splice::new`].
pub(in crate::link) fn ignores_sigpipe() -> bool {
    // SAFETY: an all-zero sigaction is a valid one, and asking for the present one changes nothing.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

/// A lane whose slices go out by reference. Only for frames whose payload is held unchanged until the
/// peer has answered the transfer: [`crate::connection::Client`] holds a put's payload until then.
#[derive(Debug)]
pub struct Spliced<S> {
    socket: S,
    splice: Mutex<Splice>,
}

impl<S> Spliced<S> {
    /// A lane over this socket and this pipe.
    pub fn new(socket: S, splice: Splice) -> Self {
        Self { socket, splice: Mutex::new(splice) }
    }

    fn lock(&self) -> MutexGuard<'_, Splice> {
        self.splice.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Stream + AsRawFd> Stream for Spliced<S> {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(first, then)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.lock().send(&self.socket, bufs)
    }

    fn has_unsent(&self) -> bool {
        self.lock().loaded > 0
    }

    fn push(&self) -> io::Result<bool> {
        self.lock().drain(&self.socket)
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        self.socket.interest(read, write)
    }

    fn ready(&self) -> Ready {
        self.socket.ready()
    }

    fn finish(&self) {
        self.socket.finish();
    }
}

/// A server's lane to a client on its own host: as its socket, but for slices that the sender holds until the client has said that it
/// has them, which go by reference.
#[derive(Debug)]
pub struct Lender<S> {
    socket: S,
    /// It has become a bulk lane.
    bulk: AtomicBool,
    /// Made when pages are first sent: a pipe takes two descriptors, and lanes of those who put need none. `None`: none can be had.
    splice: OnceLock<Option<Mutex<Splice>>>,
}

impl<S> Lender<S> {
    /// A lane over this socket.
    ///
    /// # Errors
    /// The socket: nothing can be sent by reference in this process.
    pub fn new(socket: S) -> Result<Self, S> {
        if !ignores_sigpipe() {
            return Err(socket);
        }
        Ok(Self { socket, bulk: AtomicBool::new(false), splice: OnceLock::new() })
    }

    fn splice(&self) -> Option<MutexGuard<'_, Splice>> {
        self.splice.get()?.as_ref().map(|splice| splice.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Stream + AsRawFd> Stream for Lender<S> {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        self.socket.recv(first, then)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        // What is in the pipe goes first.
        match self.push()? {
            true => self.socket.send(bufs),
            false => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn send_pages(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.bulk.load(Ordering::Acquire) {
            self.splice.get_or_init(|| Splice::new().map(Mutex::new));
        }
        match self.splice() {
            Some(mut splice) => splice.send(&self.socket, bufs),
            None => self.socket.send(bufs),
        }
    }

    fn takes_pages(&self) -> bool {
        true
    }

    fn has_unsent(&self) -> bool {
        self.splice().is_some_and(|splice| splice.loaded > 0)
    }

    fn push(&self) -> io::Result<bool> {
        self.splice().map_or(Ok(true), |mut splice| splice.drain(&self.socket))
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        self.socket.interest(read, write)
    }

    fn ready(&self) -> Ready {
        self.socket.ready()
    }

    fn begin_bulk(&self) {
        self.bulk.store(true, Ordering::Release);
    }

    fn channel(&self) -> Channel {
        self.socket.channel()
    }

    fn finish(&self) {
        self.socket.finish();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::link::tcp::served;
    use crate::memory::Slab;

    fn receive(client: &TcpStream, bytes: usize) -> Vec<u8> {
        let mut got = vec![0; bytes];
        io::Read::read_exact(&mut &*client, &mut got).unwrap();
        got
    }

    /// A server's lane sends pages where it is told that it may, once it is a bulk lane, and bytes everywhere else; in order.
    #[test]
    fn a_served_lane_sends_pages_or_bytes_as_it_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let lane = served(listener.accept().unwrap().0).unwrap();
        assert!(lane.takes_pages());
        // A half each, so that all of it fits the socket and the pipe.
        let mut slab = Slab::zeroed(64 << 10);
        slab.fill(1);
        let half = slab.len() / 2;
        assert_eq!(lane.send_pages(&[IoSlice::new(&slab[..half])]).unwrap(), half);
        slab.fill(2);
        assert!(receive(&client, half).iter().all(|&b| b == 1), "copied: it is no bulk lane yet");
        lane.begin_bulk();
        assert_eq!(lane.send(&[IoSlice::new(&slab[..half])]).unwrap(), half);
        assert_eq!(lane.send_pages(&[IoSlice::new(b"head"), IoSlice::new(&slab[half..])]).unwrap(), 4 + half);
        assert_eq!(lane.send(&[IoSlice::new(b"end")]).unwrap(), 3);
        slab.fill(3);
        let got = receive(&client, 2 * half + 7);
        assert!(got[..half].iter().all(|&b| b == 2), "copied");
        assert_eq!((&got[half..half + 4], &got[2 * half + 4..]), (&b"head"[..], &b"end"[..]));
        assert!(got[half + 4..2 * half + 4].iter().all(|&b| b == 3), "the pages themselves");
        // What the other side does not read waits in the pipe, and is pushed on.
        let big = Slab::zeroed(1 << 20);
        let (mut sent, mut full) = (0, 0);
        // What was acknowledged late makes room once more.
        while full < 20 {
            match lane.send_pages(&[IoSlice::new(&big)]) {
                Ok(n) => (sent, full) = (sent + n, 0),
                Err(_) => {
                    full += 1;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
        assert!(lane.has_unsent() && !lane.push().unwrap());
        assert_eq!(lane.send(&[IoSlice::new(b"later")]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        client.set_nonblocking(true).unwrap();
        let mut some = vec![0; 1 << 20];
        while sent > 0 {
            match io::Read::read(&mut &client, &mut some) {
                Ok(n) => sent -= n,
                Err(_) => {
                    lane.push().unwrap();
                }
            }
        }
        assert!(!lane.has_unsent());
    }
}
