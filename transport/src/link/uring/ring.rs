//! A ring whose operations own what the kernel reads and writes.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};

use super::{Need, Unavailable};
use crate::connection::{Loan, OutSlice};

/// Who may use a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// One thread, which made it: completions are worked off when it asks for them, and interrupt nothing.
    OneThread,
    /// One thread at a time.
    Anyone,
}

/// An io_uring with fixed files and the memory of its operations.
///
/// Dropped, it cancels what is in flight and waits until the kernel has let go of the memory.
pub(super) struct Ring {
    io: IoUring,
    ops: Vec<Op>,
    free: Vec<u32>,
    /// Operations that the kernel has not ended.
    flying: usize,
    /// Entries that were pushed and not submitted.
    unsubmitted: bool,
    files: Vec<bool>,
}

struct Op {
    /// Told from others that had this place before.
    generation: u32,
    /// Where its file is.
    file: u32,
    held: Held,
}

/// What an operation owns.
enum Held {
    Nothing,
    Recv(Loan),
    Send(Box<Message>),
    /// Memory of the ring's own user: written or read where it lies.
    Bytes(Vec<u8>),
}

/// Names an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// An operation has ended.
pub(super) struct Ended {
    pub(super) ticket: Ticket,
    /// Where its file is.
    pub(super) file: u32,
    /// Bytes, or a negated errno.
    pub(super) result: i32,
    pub(super) back: Back,
}

/// What an operation gives back.
pub(super) enum Back {
    Nothing,
    Recv(Loan),
    Send(OutSlice),
    /// What [`Ring::recv_bytes`] or [`Ring::send_bytes`] was given.
    Bytes(Vec<u8>),
    /// A zero-copy send has ended; the kernel still reads the memory.
    SendHeld(OutSlice),
    /// The kernel has let go of a zero-copy send's memory; whether it had copied it after all.
    Released {
        copied: bool,
    },
}

/// A slice as `sendmsg` takes it. Built in place and not moved while the kernel reads it.
struct Message {
    slice: OutSlice,
    bufs: [libc::iovec; 4],
    head: libc::msghdr,
}

// SAFETY: the pointers in a message lead into its own box and into memory that its slice owns, which may both be used from any
// thread.
unsafe impl Send for Message {}

/// Entries of the submission queue: a ring is entered before it is full.
const ENTRIES: u32 = 64;

/// How long a dropped ring waits for the kernel, before it gives the memory up rather than free it.
const LAST: Duration = Duration::from_secs(10);

/// Makes a ring as [`Ring::new`] does.
pub(super) fn set_up(owner: Owner) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_cqsize(ENTRIES * 4);
    if owner == Owner::OneThread {
        builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
    }
    builder.build(ENTRIES)
}

/// Whether a kernel that answers so can be used.
pub(super) fn probe(set_up: impl Fn(Owner) -> io::Result<IoUring>) -> Result<(), Unavailable> {
    let ring = set_up(Owner::OneThread).map_err(|e| Unavailable::of(&e))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|e| Unavailable::of(&e))?;
    let needed = [
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::SendMsgZc::CODE,
        opcode::AsyncCancel::CODE,
    ];
    let all = needed.iter().all(|&code| probe.is_supported(code)) && ring.params().is_feature_ext_arg();
    if all { Ok(()) } else { Err(Unavailable::Lacks(Need::Sockets)) }
}

impl Ring {
    /// A ring with room for so many files.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn new(owner: Owner, files: u32) -> io::Result<Self> {
        let io = set_up(owner)?;
        io.submitter().register_files_sparse(files)?;
        let files = vec![false; files as usize];
        Ok(Self { io, ops: Vec::new(), free: Vec::new(), flying: 0, unsubmitted: false, files })
    }

    /// Readable when an operation has ended.
    pub(super) fn fd(&self) -> RawFd {
        self.io.as_raw_fd()
    }

    /// Adds a file; `None`: there is no room.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn add_file(&mut self, fd: RawFd) -> io::Result<Option<Fixed>> {
        let Some(at) = self.files.iter().position(|used| !used) else { return Ok(None) };
        self.io.submitter().register_files_update(at as u32, &[fd])?;
        self.files[at] = true;
        Ok(Some(Fixed(at as u32)))
    }

    /// Takes a file out, when no operation on it is in flight.
    pub(super) fn remove_file(&mut self, file: Fixed) {
        if let Err(error) = self.io.submitter().register_files_update(file.0, &[-1]) {
            // Its place is not used again.
            return tracing::warn!(%error, "a socket stays open in its ring");
        }
        if let Some(used) = self.files.get_mut(file.0 as usize) {
            *used = false;
        }
    }

    /// Receives into the loan. If all of it is announced, completes when all of it is there. `then`: another operation follows,
    /// and begins when this one has received all.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn recv(&mut self, file: Fixed, mut loan: Loan, then: bool) -> io::Result<Ticket> {
        // A chain is submitted in one go.
        self.reserve(if then { 2 } else { 1 })?;
        let flags = if loan.is_announced() { libc::MSG_WAITALL } else { 0 };
        let space = loan.space();
        let (at, len) = (space.as_mut_ptr(), u32::try_from(space.len()).unwrap_or(u32::MAX));
        let mut entry = opcode::Recv::new(file, at, len).flags(flags).build();
        if then {
            entry = entry.flags(squeue::Flags::IO_LINK);
        }
        // SAFETY: the kernel writes at most `len` bytes at `at`, which is what the loan lends: memory outside of it that stays in
        // place while it is moved. The loan stays in the operation's slot until the completion.
        unsafe { self.push(entry, file.0, Held::Recv(loan)) }
    }

    /// Receives what is there into the buffer, as far as it is long.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn recv_bytes(&mut self, file: Fixed, mut bytes: Vec<u8>) -> io::Result<Ticket> {
        self.reserve(1)?;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = opcode::Recv::new(file, bytes.as_mut_ptr(), len).build();
        // SAFETY: the kernel writes at most `len` bytes to the buffer's own memory, which stays in place while the vector is
        // moved. It stays in the operation's slot, untouched, until the completion.
        unsafe { self.push(entry, file.0, Held::Bytes(bytes)) }
    }

    /// Sends the buffer; completes when all of it is taken, or the lane breaks.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn send_bytes(&mut self, file: Fixed, bytes: Vec<u8>) -> io::Result<Ticket> {
        self.reserve(1)?;
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = opcode::Send::new(file, bytes.as_ptr(), len).flags(flags).build();
        // SAFETY: the kernel reads at most `len` bytes of the buffer's own memory, which stays in place while the vector is moved.
        // It stays in the operation's slot, untouched, until the completion.
        unsafe { self.push(entry, file.0, Held::Bytes(bytes)) }
    }

    /// Sends the slice; completes when all of it is taken. `zero_copy`: its memory is read until [`Back::Released`].
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn send(&mut self, file: Fixed, slice: OutSlice, zero_copy: bool) -> io::Result<Ticket> {
        self.reserve(1)?;
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let message = Message::new(slice);
        let head = &raw const message.head;
        let entry = if zero_copy {
            opcode::SendMsgZc::new(file, head).flags(flags).ioprio(REPORT_USAGE).build()
        } else {
            opcode::SendMsg::new(file, head).flags(flags).build()
        };
        // SAFETY: the kernel reads the message, which lies in a box, and what it points to: the slice's head in the same box, and
        // its payload, which the slice holds. The box stays in the operation's slot until the completion, or, for a zero-copy
        // send, until the notification that follows it.
        unsafe { self.push(entry, file.0, Held::Send(message)) }
    }

    /// Completes when this file can be read.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn listen(&mut self, bell: Fixed) -> io::Result<Ticket> {
        self.poll(bell, libc::POLLIN)
    }

    /// Completes when something can be sent by this file, or its other side is gone.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn await_room(&mut self, file: Fixed) -> io::Result<Ticket> {
        self.poll(file, libc::POLLOUT)
    }

    fn poll(&mut self, file: Fixed, events: i16) -> io::Result<Ticket> {
        self.reserve(1)?;
        let entry = opcode::PollAdd::new(file, events as u32).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry, file.0, Held::Nothing) }
    }

    /// Asks the kernel to end an operation early. It completes all the same.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn cancel(&mut self, ticket: Ticket) -> io::Result<()> {
        self.reserve(1)?;
        // SAFETY: the entry points to no memory.
        unsafe { self.push(opcode::AsyncCancel::new(ticket.0).build(), u32::MAX, Held::Nothing) }.map(|_| ())
    }

    /// Whether something is to be told, or to be submitted first.
    pub(super) fn has_ended(&mut self) -> bool {
        !self.io.completion().is_empty()
    }

    /// Hands what was asked for to the kernel.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.unsubmitted) {
            entered(self.io.submit())?;
        }
        Ok(())
    }

    /// Hands what was asked for to the kernel, and waits until something has ended.
    ///
    /// # Errors
    /// The ring cannot be entered.
    pub(super) fn wait(&mut self, longest: Duration) -> io::Result<()> {
        self.unsubmitted = false;
        let longest = Timespec::from(longest);
        let args = SubmitArgs::new().timespec(&longest);
        entered(self.io.submitter().submit_with_args(1, &args))
    }

    /// What has ended.
    pub(super) fn next(&mut self) -> Option<Ended> {
        loop {
            let entry = self.io.completion().next()?;
            if let Some(ended) = self.take(&entry) {
                return Some(ended);
            }
        }
    }

    fn take(&mut self, entry: &cqueue::Entry) -> Option<Ended> {
        let ticket = Ticket(entry.user_data());
        let (index, generation) = (ticket.0 as u32, (ticket.0 >> 32) as u32);
        let op = self.ops.get_mut(index as usize).filter(|op| op.generation == generation)?;
        let (result, file) = (entry.result(), op.file);
        let more = cqueue::more(entry.flags());
        if let (Held::Send(message), true) = (&op.held, more) {
            return Some(Ended { ticket, file, result, back: Back::SendHeld(message.slice.hold()) });
        }
        let held = std::mem::replace(&mut op.held, Held::Nothing);
        op.generation = op.generation.wrapping_add(1);
        self.free.push(index);
        self.flying -= 1;
        let back = match held {
            Held::Recv(loan) => Back::Recv(loan),
            Held::Send(_) if cqueue::notif(entry.flags()) => {
                // A notification's result is no number of bytes.
                let copied = result as u32 & ZC_COPIED != 0;
                return Some(Ended { ticket, file, result: 0, back: Back::Released { copied } });
            }
            Held::Send(message) => Back::Send(message.slice),
            Held::Bytes(bytes) => Back::Bytes(bytes),
            Held::Nothing => Back::Nothing,
        };
        Some(Ended { ticket, file, result, back })
    }

    /// Makes room for so many entries.
    fn reserve(&mut self, entries: usize) -> io::Result<()> {
        let queue = self.io.submission();
        if queue.capacity() - queue.len() >= entries {
            return Ok(());
        }
        drop(queue);
        entered(self.io.submit())
    }

    /// # Safety
    /// The memory that the entry points to is owned by `held`, at an address that does not change.
    unsafe fn push(&mut self, entry: squeue::Entry, file: u32, held: Held) -> io::Result<Ticket> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.ops.push(Op { generation: 0, file, held: Held::Nothing });
                (self.ops.len() - 1) as u32
            }
        };
        let op = &mut self.ops[index as usize];
        let ticket = Ticket(u64::from(index) | u64::from(op.generation) << 32);
        let entry = entry.user_data(ticket.0);
        // SAFETY: that the memory lives until the completion is upheld here: it is kept in the slot, and the slot is emptied by
        // the completion alone. That it is the right memory, the caller upholds.
        if unsafe { self.io.submission().push(&entry) }.is_err() {
            self.free.push(index);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        (op.file, op.held) = (file, held);
        self.flying += 1;
        self.unsubmitted = true;
        Ok(ticket)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.flying > 0 {
            // SAFETY: the entry points to no memory.
            let asked = unsafe {
                self.push(opcode::AsyncCancel2::new(CancelBuilder::any().all()).build(), u32::MAX, Held::Nothing)
            };
            if let Err(error) = asked {
                tracing::warn!(%error, "what is in flight in a ring could not be cancelled");
            }
        }
        let until = Instant::now() + LAST;
        while self.flying > 0 && Instant::now() < until {
            if let Err(error) = self.wait(Duration::from_millis(100)) {
                tracing::warn!(%error, "a ring could not be entered");
                break;
            }
            while self.next().is_some() {}
        }
        if self.flying > 0 {
            // Rather lost than written by the kernel when it is somebody else's.
            tracing::error!(operations = self.flying, "the kernel does not let go of memory: it is not used again");
            self.ops.drain(..).for_each(|op| std::mem::forget(op.held));
        }
    }
}

impl Message {
    fn new(slice: OutSlice) -> Box<Self> {
        let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an all-zero msghdr is a valid one.
        let mut message = Box::new(Self { slice, bufs: [none; 4], head: unsafe { std::mem::zeroed() } });
        let Self { slice, bufs, head } = &mut *message;
        let mut parts = [IoSlice::new(&[]); 4];
        let used = slice.parts(&mut parts);
        for (buf, part) in bufs.iter_mut().zip(&parts[..used]) {
            *buf = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        }
        head.msg_iov = bufs.as_mut_ptr();
        head.msg_iovlen = used;
        message
    }
}

/// Asks a zero-copy send to say whether the kernel copied after all.
const REPORT_USAGE: u16 = 1 << 3;
/// It did: in the result of a notification.
const ZC_COPIED: u32 = 1 << 31;

/// Nothing is lost if the kernel had no time, or first wants its completions read.
fn entered(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
        other => other.map(|_| ()),
    }
}
