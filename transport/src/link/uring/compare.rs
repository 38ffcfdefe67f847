//! Whether a ring moves bulk no slower than plain calls do, on this machine: measured over the loopback, once a process.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};

use super::ring::{Owner, set_up};
use crate::link::tcp;
use crate::link::wait::{Interest, Waiter};

/// What a ring and plain calls move, in GB/s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// By operations on a ring.
    pub ring: f64,
    /// By calls that do not wait, and `poll`.
    pub plain: f64,
}

/// Both ways.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compared {
    /// Received from another thread.
    pub received: Rates,
    /// Sent to it.
    pub sent: Rates,
}

impl Compared {
    /// Whether a lane on a ring is no slower. `same_host`: what a client sends there goes by neither, but page by page.
    pub fn is_no_worse(&self, same_host: bool) -> bool {
        self.received.is_no_worse() && (same_host || self.sent.is_no_worse())
    }
}

impl Rates {
    fn is_no_worse(self) -> bool {
        self.ring >= self.plain * LEVEL
    }
}

impl std::fmt::Display for Compared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { received, sent } = self;
        write!(f, "over the loopback it receives {:.1} GB/s and sends {:.1}, ", received.ring, sent.ring)?;
        write!(f, "plain calls {:.1} and {:.1}", received.plain, sent.plain)
    }
}

/// What is level: two runs of the same differ by as much.
const LEVEL: f64 = 0.97;
/// Bytes of an operation, of a round, and rounds of each way and direction: some 50 ms together.
const SLICE: usize = 256 << 10;
const ROUND: usize = 8 << 20;
const ROUNDS: usize = 3;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was measured, the first time that somebody asked.
///
/// # Errors
/// Why it could not be.
pub fn compared() -> Result<Compared, String> {
    static KNOWN: OnceLock<Result<Compared, String>> = OnceLock::new();
    let measured = || {
        super::available().map_err(|e| e.to_string())?;
        measure().map_err(|e| format!("it could not be measured: {e}"))
    };
    KNOWN.get_or_init(measured).clone()
}

fn measure() -> io::Result<Compared> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (near, _) = tcp::connect_to(listener.local_addr()?, PATIENCE)?;
    let (far, from) = listener.accept()?;
    if from != near.local_addr()? {
        return Err(io::Error::other("somebody else came in between"));
    }
    let far = tcp::accepted(far)?;
    far.set_nonblocking(false)?;
    far.set_read_timeout(Some(PATIENCE))?;
    far.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().spawn_scoped(scope, move || answer(far))?;
        let measured = rounds(near);
        // Its socket is gone with `rounds`: the other end does not go on.
        match other.join() {
            Ok(Ok(())) => measured,
            Ok(Err(error)) => measured.and(Err(error)),
            Err(_) => Err(io::Error::other("the other end's thread has ended")),
        }
    })
}

/// The other end: as many rounds of sending as of receiving, each when it is asked for.
fn answer(mut far: TcpStream) -> io::Result<()> {
    let mut buf = vec![1; SLICE];
    let mut word = [0];
    for _ in 0..=2 * ROUNDS {
        far.read_exact(&mut word)?;
        for _ in 0..ROUND / SLICE {
            far.write_all(&buf)?;
        }
    }
    for _ in 0..=2 * ROUNDS {
        for _ in 0..ROUND / SLICE {
            far.read_exact(&mut buf)?;
        }
        far.write_all(&word)?;
    }
    Ok(())
}

fn rounds(near: TcpStream) -> io::Result<Compared> {
    let mut near = Near { socket: near, ring: set_up(Owner::Anyone)?, buf: vec![2; ROUND], waiter: Waiter::default() };
    let received = near.alternate(|near, by_ring| {
        near.plain(&mut [1], Direction::Send)?;
        near.all(by_ring, Direction::Receive)
    })?;
    let sent = near.alternate(|near, by_ring| {
        near.all(by_ring, Direction::Send)?;
        near.plain(&mut [0], Direction::Receive)
    })?;
    Ok(Compared { received, sent })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Receive,
    Send,
}

struct Near {
    // Dropped first: an operation that did not end has the ring's file, not this one.
    ring: IoUring,
    socket: TcpStream,
    buf: Vec<u8>,
    waiter: Waiter,
}

impl Near {
    /// The best round of each way, in turns, after one that is not counted.
    fn alternate(&mut self, round: impl Fn(&mut Self, bool) -> io::Result<()>) -> io::Result<Rates> {
        round(self, false)?;
        let mut best = [Duration::MAX; 2];
        for _ in 0..ROUNDS {
            for by_ring in [true, false] {
                let began = Instant::now();
                round(self, by_ring)?;
                let best = &mut best[usize::from(by_ring)];
                *best = began.elapsed().min(*best);
            }
        }
        let [plain, ring] = best.map(|best| ROUND as f64 / best.as_secs_f64() / 1e9);
        Ok(Rates { ring, plain })
    }

    fn all(&mut self, by_ring: bool, direction: Direction) -> io::Result<()> {
        let mut buf = std::mem::take(&mut self.buf);
        let mut done = Ok(());
        for slice in buf.chunks_mut(SLICE) {
            done = if by_ring { self.by_ring(slice, direction) } else { self.plain(slice, direction) };
            if done.is_err() {
                break;
            }
        }
        if by_ring && done.is_err() {
            // An operation may be in flight: its memory is lost rather than used again.
            std::mem::forget(buf);
        } else {
            self.buf = buf;
        }
        done
    }

    /// Moves all of it, as a lane of plain calls does.
    fn plain(&mut self, mut slice: &mut [u8], direction: Direction) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while !slice.is_empty() {
            let moved = match direction {
                Direction::Receive => self.socket.read(slice),
                Direction::Send => self.socket.write(slice),
            };
            match moved {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => slice = &mut slice[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    let read = direction == Direction::Receive;
                    let interest = Interest { fd: self.socket.as_raw_fd(), read, write: !read };
                    self.waiter.wait(std::iter::once(interest), left);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Moves all of it, as a lane on a ring does. After an error the operation may still be in flight.
    fn by_ring(&mut self, slice: &mut [u8], direction: Direction) -> io::Result<()> {
        let (fd, len) = (Fd(self.socket.as_raw_fd()), slice.len() as u32);
        let entry: squeue::Entry = match direction {
            Direction::Receive => opcode::Recv::new(fd, slice.as_mut_ptr(), len).flags(libc::MSG_WAITALL).build(),
            Direction::Send => {
                opcode::Send::new(fd, slice.as_ptr(), len).flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL).build()
            }
        };
        // SAFETY: the kernel reads or writes the slice until the completion, which is waited for below: the other end gives up
        // after its own patience and closes, which completes the operation. Should the wait fail all the same, the caller gives the
        // memory up and never uses it again.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::WouldBlock)?;
        loop {
            match self.ring.submit_and_wait(1) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            if let Some(ended) = self.ring.completion().next() {
                return match ended.result() {
                    n if n >= 0 && n as u32 == len => Ok(()),
                    n if n >= 0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_level_is_no_worse() {
        let (level, worse) = (Rates { ring: 0.98, plain: 1.0 }, Rates { ring: 0.9, plain: 1.0 });
        assert!(Compared { received: level, sent: level }.is_no_worse(false));
        assert!(!Compared { received: worse, sent: level }.is_no_worse(true));
        assert!(!Compared { received: level, sent: worse }.is_no_worse(false));
        assert!(Compared { received: level, sent: worse }.is_no_worse(true), "nothing is sent by a ring there");
    }

    #[test]
    fn both_ways_are_measured_once() {
        if let Err(reason) = super::super::available() {
            return eprintln!("not measured: {reason}");
        }
        let measured = measure().unwrap();
        for rates in [measured.received, measured.sent] {
            assert!(rates.ring > 0.0 && rates.plain > 0.0, "{measured:?}");
        }
        assert_eq!(compared(), compared());
        assert!(measured.to_string().contains("GB/s"));
    }
}
