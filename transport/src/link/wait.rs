//! Waiting for several descriptors, and waking who waits.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

use super::Ready;

/// A descriptor to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The descriptor; one that was closed meanwhile ends the wait.
    pub fd: RawFd,
    /// Until it can be read.
    pub read: bool,
    /// Until it can be written.
    pub write: bool,
}

/// What a descriptor is ready for now.
pub fn ready(fd: RawFd) -> Ready {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN | libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one valid entry, and a timeout of 0 returns at once; a closed descriptor is reported, not followed.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    let any = |events| poll.revents & (events | libc::POLLERR | libc::POLLHUP) != 0;
    Ready { read: any(libc::POLLIN), write: any(libc::POLLOUT) }
}

/// Waits until one of several descriptors is ready.
#[derive(Default)]
pub struct Waiter {
    polls: Vec<libc::pollfd>,
}

impl Waiter {
    /// Waits for at most `longest`. Wakes early for signals, too.
    pub fn wait(&mut self, interests: impl Iterator<Item = Interest>, longest: Duration) {
        self.polls.clear();
        self.polls.extend(interests.map(|i| {
            let events = if i.read { libc::POLLIN } else { 0 } | if i.write { libc::POLLOUT } else { 0 };
            libc::pollfd { fd: i.fd, events, revents: 0 }
        }));
        // Rounded up: waking before a deadline would mean turning in vain until it comes.
        let millis = i32::try_from(longest.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: `polls` holds `polls.len()` valid entries, borrowed mutably for the call; a closed descriptor in them is
        // reported, not followed.
        unsafe { libc::poll(self.polls.as_mut_ptr(), self.polls.len() as libc::nfds_t, millis) };
    }
}

/// Wakes a thread in [`Waiter::wait`] from another.
#[derive(Debug)]
pub struct Alarm {
    event: File,
}

impl Alarm {
    /// A new one.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else owns it.
        Ok(Self { event: unsafe { File::from_raw_fd(fd) } })
    }

    /// Wakes the waiter.
    pub fn ring(&self) {
        // A counter that is full wakes the waiter just as well.
        let _ = (&self.event).write(&1u64.to_ne_bytes());
    }

    /// Makes it quiet again.
    pub fn hush(&self) {
        // Nothing to read: it was something else that woke the thread.
        let _ = (&self.event).read(&mut [0; 8]);
    }

    /// What to wait for.
    pub fn interest(&self) -> Interest {
        Interest { fd: self.event.as_raw_fd(), read: true, write: false }
    }
}
