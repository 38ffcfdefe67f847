//! One bulk lane on a ring: what it receives, what it sends, and its operations in flight.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use io_uring::types::Fixed;

use super::ring::{Back, Ended, Ring, Ticket};
use super::zero_copy::ZeroCopy;
use crate::connection::Lending;
use crate::link::tcp::Splice;
use crate::wire::DecodeError;

/// A bulk lane's socket in a ring. Its owner passes what has ended on this file to [`Self::ended`], and then calls
/// [`Self::receive`] and [`Self::send`]; always with the same lane.
pub(super) struct LaneIo {
    file: Fixed,
    payload: Option<Ticket>,
    head: Option<Ticket>,
    sending: Option<Ticket>,
    /// Whether that is a zero-copy send.
    sending_zero: bool,
    /// Zero-copy sends whose memory the kernel still reads.
    held: Vec<Ticket>,
    zero_copy: ZeroCopy,
    /// What slices go through whose pages are sent.
    pages: Option<Pages>,
    /// Awaits room in the socket for what is in that pipe.
    room: Option<Ticket>,
    /// Zero-copy sends that the kernel has not copied after all, since they were asked for last.
    spared: u64,
    /// Whether the payload's operation was asked to end.
    recalled: bool,
    /// Nothing is begun any more.
    ending: bool,
}

/// A socket, and a pipe into it. On one host a ring's sends are copied, zero-copy or not: docs/decisions/0006-io-uring.md.
struct Pages {
    /// Whoever has the lane keeps it open.
    socket: Descriptor,
    /// Made when it is first needed.
    pipe: Option<Splice>,
}

struct Descriptor(RawFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// Slices whose pages are sent before other lanes of the ring have their turn.
const SLICES_A_TURN: usize = 16;

/// Why a lane ends.
#[derive(Debug)]
pub(super) enum Broken {
    /// The other side has closed it.
    Closed,
    /// The system's error.
    Io(io::Error),
    /// What came is no slice.
    Nonsense(DecodeError),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the other side closed it"),
            Self::Io(error) => error.fmt(f),
            Self::Nonsense(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl LaneIo {
    pub(super) fn new(file: Fixed, zero_copy: ZeroCopy) -> Self {
        let (payload, head, sending) = (None, None, None);
        Self {
            file,
            payload,
            head,
            sending,
            sending_zero: false,
            held: Vec::new(),
            zero_copy,
            pages: None,
            room: None,
            spared: 0,
            recalled: false,
            ending: false,
        }
    }

    /// As it is, but slices that may go by their pages go so. `socket` is the lane's, open for as long as this is used.
    pub(super) fn by_pages(mut self, socket: RawFd) -> Self {
        self.pages = Some(Pages { socket: Descriptor(socket), pipe: None });
        self
    }

    pub(super) fn file(&self) -> Fixed {
        self.file
    }

    /// Begins to receive what is to be received.
    pub(super) fn receive(&mut self, ring: &mut Ring, lane: &mut dyn Lending, now: Instant) -> Result<(), Broken> {
        loop {
            lane.poll(now);
            if self.ending {
                return Ok(());
            }
            if let (Some(ticket), false) = (self.payload, self.recalled)
                && lane.is_recalled()
            {
                self.recalled = true;
                ring.cancel(ticket)?;
            }
            let Some(mut loan) = lane.lend() else { return Ok(()) };
            if !loan.is_announced() {
                self.head = Some(ring.recv(self.file, loan, false)?);
                return Ok(());
            }
            if loan.space().is_empty() {
                // Another lane took the slice over just now: it is drained instead.
                lane.give_back(loan, 0, now).map_err(Broken::Nonsense)?;
                continue;
            }
            // The next head is received behind a slice's last bytes without the kernel being asked once more.
            let next = if loan.is_last() { lane.lend_head() } else { None };
            self.payload = Some(ring.recv(self.file, loan, next.is_some())?);
            if let Some(next) = next {
                self.head = Some(ring.recv(self.file, next, false)?);
            }
            return Ok(());
        }
    }

    /// Begins to send what is to be sent.
    pub(super) fn send(&mut self, ring: &mut Ring, lane: &mut dyn Lending, now: Instant) -> Result<(), Broken> {
        if self.sending.is_some() || self.room.is_some() || self.ending {
            return Ok(());
        }
        for _ in 0..SLICES_A_TURN {
            if let Some(Pages { socket, pipe: Some(pipe) }) = &mut self.pages
                && !pipe.drain(socket)?
            {
                break;
            }
            let Some(slice) = lane.lend_slice(now) else { return Ok(()) };
            if slice.is_by_pages()
                && let Some(Pages { pipe: pipe @ None, .. }) = &mut self.pages
            {
                *pipe = Splice::new();
                // Where there is none now, it is not looked for with every slice.
                self.pages = self.pages.take().filter(|pages| pages.pipe.is_some());
            }
            let pages = self.pages.as_mut().filter(|_| slice.is_by_pages());
            let Some(Pages { socket, pipe: Some(pipe) }) = pages else {
                self.sending_zero = self.zero_copy.next();
                self.sending = Some(ring.send(self.file, slice, self.sending_zero)?);
                return Ok(());
            };
            let mut parts = [IoSlice::new(&[]); 4];
            let used = slice.parts(&mut parts);
            let sent = pipe.send(socket, &parts[..used]);
            lane.give_slice(slice, *sent.as_ref().unwrap_or(&0), now);
            match sent {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
                _ => {}
            }
        }
        // There may be room at once: others have had their turn then.
        self.room = Some(ring.await_room(self.file)?);
        Ok(())
    }

    /// Passes on what an operation on this file gives back.
    pub(super) fn ended(&mut self, ended: Ended, lane: &mut dyn Lending, now: Instant) -> Result<(), Broken> {
        let Ended { ticket, result, back, .. } = ended;
        let got = match result {
            // Cancelled: here, or because the thread that had asked for it has ended. What follows asks again.
            _ if result == -libc::ECANCELED || result == -libc::EINTR => Ok(None),
            0.. => Ok(Some(result as usize)),
            _ => Err(io::Error::from_raw_os_error(result.saturating_neg())),
        };
        let is_held = matches!(back, Back::SendHeld(_));
        match back {
            Back::Recv(loan) => {
                if self.payload == Some(ticket) {
                    (self.payload, self.recalled) = (None, false);
                } else {
                    self.head = None;
                }
                let n = got.as_ref().map_or(0, |n| n.unwrap_or(0));
                // Given back in any case: the memory is free again, and what was in it is known to be missing.
                lane.give_back(loan, n, now).map_err(Broken::Nonsense)?;
                match got? {
                    Some(0) => Err(Broken::Closed),
                    _ => Ok(()),
                }
            }
            Back::Send(slice) | Back::SendHeld(slice) => {
                self.sending = None;
                if is_held {
                    self.held.push(ticket);
                }
                let n = got.as_ref().map_or(0, |n| n.unwrap_or(0));
                lane.give_slice(slice, n, now);
                if self.sending_zero && is_refused(result) {
                    // The slice goes once more, by a copy.
                    self.zero_copy.was_copied();
                    return Ok(());
                }
                self.zero_copy.sent(lane.has_more(), now);
                got?;
                Ok(())
            }
            Back::Released { copied } => {
                self.held.retain(|&t| t != ticket);
                if copied {
                    self.zero_copy.was_copied();
                } else {
                    self.spared += 1;
                }
                Ok(())
            }
            Back::Nothing => {
                self.room = self.room.filter(|&room| room != ticket);
                Ok(())
            }
            // A lane of slices asks for none.
            Back::Bytes(_) => Ok(()),
        }
    }

    /// Ends what is in flight; nothing is begun any more. The memory is back when [`Self::is_quiet`].
    pub(super) fn end(&mut self, ring: &mut Ring) -> io::Result<()> {
        self.ending = true;
        for ticket in [self.payload, self.head, self.sending, self.room].into_iter().flatten() {
            ring.cancel(ticket)?;
        }
        Ok(())
    }

    /// Whether the kernel may read memory of zero-copy sends until the other side has it all.
    pub(super) fn holds_sent(&self) -> bool {
        !self.held.is_empty() || (self.sending.is_some() && self.sending_zero)
    }

    /// How many sends went without a copy in the kernel, since this was asked last.
    pub(super) fn take_spared(&mut self) -> u64 {
        std::mem::take(&mut self.spared)
    }

    /// Whether nothing is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        let none = [self.payload, self.head, self.sending, self.room].iter().all(Option::is_none);
        none && self.held.is_empty()
    }
}

/// Whether a send failed because it was zero-copy: its pages count as locked memory, and there may be no more of that.
fn is_refused(result: i32) -> bool {
    matches!(result.saturating_neg(), libc::ENOMEM | libc::ENOBUFS | libc::EOPNOTSUPP)
}

/// Throws away what a socket has not sent: the kernel lets go of the memory that zero-copy sends would read.
pub(super) fn abort(fd: RawFd) {
    // SAFETY: an all-zero sockaddr is a valid one, of the unspecified family.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address is read, and as long as is said. A descriptor that is no socket is refused.
    unsafe { libc::connect(fd, &raw const nowhere, size_of::<libc::sockaddr>() as libc::socklen_t) };
}
