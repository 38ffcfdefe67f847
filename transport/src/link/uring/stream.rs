//! A socket as a stream whose bytes a ring moves: for lanes whose bytes are not slices yet, as those of TLS.
//!
//! Received bytes lie in buffers of the ring's own until they are asked for, and sent ones until the kernel has them: one copy
//! each, of what is encrypted. See docs/decisions/0005-tls-records.md for what it costs.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use io_uring::types::Fixed;

use super::ring::{Back, Ended, Owner, Ring, Ticket};
use crate::link::tcp;
use crate::link::wait::Interest;
use crate::link::{Ready, Stream};

/// Bytes of a buffer.
const BUFFER: usize = 256 << 10;
/// How long the last bytes of a lane that ends may take to go out.
const LAST: Duration = Duration::from_millis(100);

/// A socket, moved by plain calls until it turns out to be a bulk lane's.
pub(crate) struct RingStream {
    // Dropped first: nothing is in flight when the socket is closed.
    pump: OnceLock<Mutex<Pump>>,
    socket: TcpStream,
}

/// The ring of one socket, with its buffers.
struct Pump {
    ring: Ring,
    file: Fixed,
    receiving: Option<Ticket>,
    sending: Option<Ticket>,
    /// Where is received to, while no operation has it; `at..end` is yet to be delivered.
    come: Vec<u8>,
    at: usize,
    end: usize,
    /// A buffer that is not in use.
    spare: Vec<u8>,
    /// Nothing more comes, and why.
    over: Option<End>,
    /// The system's error of a send.
    broken: Option<i32>,
}

#[derive(Clone, Copy)]
enum End {
    Closed,
    Broken(i32),
}

impl RingStream {
    /// A socket that is moved by plain calls for now.
    pub(crate) fn plain(socket: TcpStream) -> Self {
        Self { pump: OnceLock::new(), socket }
    }

    /// A socket that is moved by a ring from here on.
    pub(crate) fn on_ring(socket: TcpStream) -> Self {
        let stream = Self::plain(socket);
        stream.begin_bulk();
        stream
    }

    fn pump(&self) -> Option<MutexGuard<'_, Pump>> {
        Some(self.pump.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A server's lane of a socket that was just accepted.
///
/// # Errors
/// The system's.
pub(crate) fn accepted_stream(socket: TcpStream) -> io::Result<Box<dyn Stream>> {
    Ok(Box::new(RingStream::plain(tcp::accepted(socket)?)))
}

impl Stream for RingStream {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        match self.pump() {
            Some(mut pump) => pump.recv(first, then),
            None => self.socket.recv(first, then),
        }
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.pump() {
            Some(mut pump) => pump.send(bufs),
            None => Stream::send(&self.socket, bufs),
        }
    }

    fn has_unsent(&self) -> bool {
        self.pump().is_some_and(|pump| pump.sending.is_some())
    }

    fn push(&self) -> io::Result<bool> {
        let Some(mut pump) = self.pump() else { return Ok(true) };
        pump.turn()?;
        Ok(pump.sending.is_none())
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        match self.pump() {
            // A ring can be read when anything has ended.
            Some(pump) => Interest { fd: pump.ring.fd(), read: true, write: false },
            None => self.socket.interest(read, write),
        }
    }

    fn arm(&self, read: bool, write: bool) -> bool {
        let Some(mut pump) = self.pump() else { return false };
        // What went wrong is told by the next call.
        if pump.turn().is_err() {
            return true;
        }
        read && pump.has_come() || write && pump.sending.is_none()
    }

    fn ready(&self) -> Ready {
        match self.pump() {
            Some(mut pump) => Ready { read: pump.ring.has_ended(), write: false },
            None => self.socket.ready(),
        }
    }

    fn begin_bulk(&self) {
        if self.pump.get().is_some() {
            return;
        }
        match Pump::new(self.socket.interest(false, false).fd) {
            // Whoever was quicker has one just as good.
            Ok(pump) => drop(self.pump.set(Mutex::new(pump))),
            Err(error) => tracing::warn!(%error, "a lane goes on without a ring"),
        }
    }

    fn finish(&self) {
        if let Some(mut pump) = self.pump()
            && let Err(error) = pump.flush()
        {
            tracing::debug!(%error, "the last bytes of a lane were not sent");
        }
        self.socket.finish();
    }
}

impl Pump {
    fn new(fd: std::os::fd::RawFd) -> io::Result<Self> {
        super::available()?;
        let mut ring = Ring::new(Owner::Anyone, 1)?;
        let file = ring.add_file(fd)?.ok_or(io::ErrorKind::OutOfMemory)?;
        let mut pump = Self {
            ring,
            file,
            receiving: None,
            sending: None,
            come: vec![0; BUFFER],
            at: 0,
            end: 0,
            spare: Vec::new(),
            over: None,
            broken: None,
        };
        // Nothing is received yet: should this one not be used, it has taken nothing from the socket.
        pump.ring.submit()?;
        Ok(pump)
    }

    fn has_come(&self) -> bool {
        self.at < self.end || self.over.is_some()
    }

    /// Takes what has ended, and begins what is to be begun.
    fn turn(&mut self) -> io::Result<()> {
        while let Some(ended) = self.ring.next() {
            self.ended(ended)?;
        }
        if self.receiving.is_none() && self.over.is_none() && self.at == self.end {
            let buf = std::mem::take(&mut self.come);
            (self.at, self.end) = (0, 0);
            self.receiving = Some(self.ring.recv_bytes(self.file, buf)?);
        }
        self.ring.submit()?;
        match self.broken {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Ok(()),
        }
    }

    fn ended(&mut self, ended: Ended) -> io::Result<()> {
        let Back::Bytes(mut bytes) = ended.back else { return Ok(()) };
        // Cancelled: the thread that had asked for it has ended. It is asked for again.
        let again = [-libc::ECANCELED, -libc::EINTR].contains(&ended.result);
        if self.receiving == Some(ended.ticket) {
            self.receiving = None;
            self.come = bytes;
            match ended.result {
                _ if again => {}
                0 => self.over = Some(End::Closed),
                n if n > 0 => self.end = (n as usize).min(self.come.len()),
                code => self.over = Some(End::Broken(code.saturating_neg())),
            }
        } else if self.sending == Some(ended.ticket) {
            self.sending = None;
            match ended.result {
                n if n >= 0 || again => {
                    bytes.drain(..usize::try_from(n).unwrap_or(0).min(bytes.len()));
                    if bytes.is_empty() {
                        self.spare = bytes;
                    } else {
                        self.sending = Some(self.ring.send_bytes(self.file, bytes)?);
                    }
                }
                code => self.broken = Some(code.saturating_neg()),
            }
        }
        Ok(())
    }

    fn recv(&mut self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        if self.at == self.end {
            self.turn()?;
        }
        let mut copied = 0;
        for out in [first, then] {
            let n = out.len().min(self.end - self.at);
            out[..n].copy_from_slice(&self.come[self.at..self.at + n]);
            self.at += n;
            copied += n;
        }
        if copied > 0 {
            if self.at == self.end {
                // The kernel fills it again while these bytes are worked on.
                self.turn()?;
            }
            return Ok(copied);
        }
        match self.over {
            Some(End::Closed) => Ok(0),
            Some(End::Broken(code)) => Err(io::Error::from_raw_os_error(code)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.turn()?;
        if self.sending.is_some() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut out = std::mem::take(&mut self.spare);
        out.clear();
        for buf in bufs {
            let n = buf.len().min(BUFFER - out.len());
            out.extend_from_slice(&buf[..n]);
        }
        let taken = out.len();
        if taken > 0 {
            self.sending = Some(self.ring.send_bytes(self.file, out)?);
            self.ring.submit()?;
        }
        Ok(taken)
    }

    /// Waits a little for what is on its way out.
    fn flush(&mut self) -> io::Result<()> {
        let until = std::time::Instant::now() + LAST;
        loop {
            self.turn()?;
            let left = until.saturating_duration_since(std::time::Instant::now());
            if self.sending.is_none() || left.is_zero() {
                return Ok(());
            }
            self.ring.wait(left)?;
        }
    }
}
