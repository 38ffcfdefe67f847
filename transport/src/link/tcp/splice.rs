//! Sending pages instead of bytes.
//!
//! A socket's `send` copies the payload into kernel memory. `vmsplice` puts references to the pages into a pipe, and `splice`
//! moves them on into the socket: over loopback the receiver's copy is then the only one. The price: until the receiver has
//! read them, the pages must not change. So this is for memory that its owner holds until the peer has answered the transfer.

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::link::wait::Interest;
use crate::link::{Ready, Stream};

/// Bytes that a pipe must hold for this to pay.
const PIPE_BYTES: libc::c_int = 1 << 20;

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
        // until the peer has read it is upheld by who makes a `Spliced` (see there), or has a ring of records; were it not,
        // the slice's checksum would not match, or the record not open.
        let n = unsafe {
            libc::vmsplice(self.write.as_raw_fd(), std::ptr::from_ref(buf).cast(), 1, libc::SPLICE_F_NONBLOCK)
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        self.loaded += n;
        Ok(n)
    }

    /// Puts the bytes of `buf` into the pipe: how many went.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = (&self.write).write(buf)?;
        self.loaded += n;
        Ok(n)
    }
}

fn ignores_sigpipe() -> bool {
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

/// Buffers of less than a page are copied: heads and greetings lie in memory that is used again at once, and a reference costs
/// as much.
const PAGE: usize = 4096;

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
        let splice = &mut *self.lock();
        if !splice.drain(&self.socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        for buf in bufs {
            let loaded = if buf.len() < PAGE { splice.write(buf) } else { splice.load(buf) };
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
        splice.drain(&self.socket)?;
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
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
