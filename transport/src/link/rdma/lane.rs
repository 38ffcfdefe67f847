//! A lane as a stream of bytes: frames small enough to be copied into messages.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::domains::Membership;
use super::endpoint::Endpoint;
use super::faults::Faults;
use super::granting::Granting;
use super::options::Options;
use crate::auth::Channel;
use crate::link::wait::Interest;
use crate::link::{Ready, RemoteBulk, Stream};

/// Larger payloads are written and read by the devices: from here on that is cheaper than copying them through messages.
const EAGER: u32 = 16 << 10;

/// Rounds of messages that bring no bytes, taken in one call.
const EMPTY: usize = 8;

/// One end of a lane.
pub struct Lane {
    endpoint: Mutex<Endpoint>,
    /// Readable when something has completed, or the connection has ended.
    poll: OwnedFd,
    membership: Arc<Membership>,
    options: Options,
    faults: Option<Arc<Faults>>,
}

impl Lane {
    pub(super) fn new(endpoint: Endpoint, membership: Arc<Membership>, options: Options) -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let raw = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else owns it.
        let poll = unsafe { OwnedFd::from_raw_fd(raw) };
        for fd in endpoint.fds() {
            let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
            // SAFETY: both descriptors are open, `event` is whole. They are closed with the endpoint, which forgets them here.
            if unsafe { libc::epoll_ctl(poll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self { endpoint: Mutex::new(endpoint), poll, membership, options, faults: None })
    }

    pub(super) fn endpoint(&self) -> MutexGuard<'_, Endpoint> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Whether rights are given by memory windows.
    pub(super) fn has_windows(&self) -> bool {
        self.options.windows && self.membership.domain.facts().windows
    }

    pub(super) fn suffering(mut self, faults: Option<Arc<Faults>>) -> Self {
        self.faults = faults;
        self
    }

    pub(super) fn faults(&self) -> Option<&Faults> {
        self.faults.as_deref()
    }

    /// Bytes have passed, and the lane may be made to break by it.
    pub(super) fn pass(&self, bytes: usize, inward: bool) -> io::Result<()> {
        match self.faults() {
            Some(faults) if faults.pass(bytes, inward) => {
                self.endpoint().give_up();
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            _ => Ok(()),
        }
    }

    fn fd(&self) -> RawFd {
        self.poll.as_raw_fd()
    }
}

impl Stream for Lane {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        let mut endpoint = self.endpoint();
        // Messages without bytes: whoever sends nothing else does not keep this thread.
        for _ in 0..EMPTY {
            let mut n = endpoint.read(first)?;
            if n == first.len() {
                n += endpoint.read(then)?;
            }
            if n > 0 {
                endpoint.settle()?;
                drop(endpoint);
                return self.pass(n, true).map(|()| n);
            }
            if endpoint.is_at_end() {
                return Ok(0);
            }
            if !endpoint.poll()? {
                endpoint.failure()?;
                // Credits that could not be given back when bytes were read.
                endpoint.settle()?;
                break;
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// A look is one at the completions, and takes no longer than a breath.
    fn watch(&self, looks: u32) -> u32 {
        let mut endpoint = self.endpoint();
        // A failure is found by whoever looks next.
        (0..looks).rev().find(|_| endpoint.poll().unwrap_or(true)).unwrap_or(0)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut endpoint = self.endpoint();
        let sent = match endpoint.write(bufs) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                endpoint.poll()?;
                endpoint.failure()?;
                endpoint.write(bufs)?
            }
            other => other?,
        };
        drop(endpoint);
        self.pass(sent, false).map(|()| sent)
    }

    fn interest(&self, _read: bool, _write: bool) -> Interest {
        // Credits come as messages do: whatever is waited for, it can be read.
        Interest { fd: self.fd(), read: true, write: false }
    }

    fn arm(&self, read: bool, write: bool) -> bool {
        // A failure is found by whoever looks next.
        self.endpoint().arm(read, write).unwrap_or(true)
    }

    fn channel(&self) -> Channel {
        Channel { from: self.endpoint().peer().map(|peer| peer.to_string().into()), ..Channel::default() }
    }

    fn end(self: Arc<Self>) {
        // Last words, and the draining of its queues: up to a fifth of a second and more.
        tokio::task::spawn_blocking(move || self.endpoint().shut());
    }

    fn is_over(&self) -> bool {
        self.endpoint().is_broken()
    }

    fn disarm(&self) {
        self.endpoint().disarm();
    }

    fn ready(&self) -> Ready {
        let mut poll = libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: `poll` is one valid entry, and a timeout of 0 returns at once.
        unsafe { libc::poll(&raw mut poll, 1, 0) };
        Ready { read: poll.revents != 0, write: false }
    }

    fn eager_bytes(&self) -> u32 {
        EAGER
    }

    fn is_one_sided(&self) -> bool {
        true
    }

    fn remote(self: Arc<Self>, lane: u32, patience: Duration, now: Instant) -> io::Result<Option<Box<dyn RemoteBulk>>> {
        Ok(Some(Box::new(Granting::new(self, lane, patience, now)?)))
    }

    fn finish(&self) {
        // Where there is no credit for it, the connection's end says so.
        let _ = self.endpoint().end();
    }
}
