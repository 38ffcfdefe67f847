//! A bulk lane: a Unix socket. Its slices are copied once, by the kernel, where pages can be handed over.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use socket2::SockRef;

use super::socket::Socket;
use crate::link::tcp::{recv_two, send};
use crate::link::wait::{self, Interest};
use crate::link::{Ready, Stream};

/// A socket that carries a bulk lane's bytes.
#[derive(Debug)]
pub(super) struct BulkSocket(pub(super) Arc<Socket>);

impl AsRawFd for BulkSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Stream for BulkSocket {
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize> {
        recv_two(self, first, then)
    }

    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        send(&SockRef::from(self.0.stream()), bufs)
    }

    fn interest(&self, read: bool, write: bool) -> Interest {
        self.0.interest(read, write)
    }

    fn ready(&self) -> Ready {
        wait::ready(self.as_raw_fd())
    }

    fn finish(&self) {
        self.0.finish();
    }
}
