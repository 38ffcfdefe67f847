//! A socket of a relay: TCP, or a Unix socket with the descriptors that are passed over it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// See the module.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// What has come, with the descriptor that came with it. 0 bytes: the end.
    pub(crate) fn receive(&mut self, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let socket = match self {
            Self::Tcp(socket) => return Ok((socket.read(buf)?, None)),
            Self::Unix(socket) => socket,
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got =
            rustix::net::recvmsg(socket.as_fd(), &mut [IoSliceMut::new(buf)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let files = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        Ok((got.bytes, files.flatten().last()))
    }

    /// Passes all of it on.
    pub(crate) fn send(&mut self, mut bytes: &[u8], file: Option<OwnedFd>) -> io::Result<()> {
        if let (Self::Unix(socket), Some(file)) = (&*self, &file) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let files = [file.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
            let n = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
            bytes = &bytes[n..];
        }
        match self {
            Self::Tcp(socket) => socket.write_all(bytes),
            Self::Unix(socket) => socket.write_all(bytes),
        }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(socket) => Self::Tcp(socket.try_clone()?),
            Self::Unix(socket) => Self::Unix(socket.try_clone()?),
        })
    }

    /// Ends it, both ways.
    pub(crate) fn end(&self) {
        // It may have been closed already.
        let _ = match self {
            Self::Tcp(socket) => socket.shutdown(Shutdown::Both),
            Self::Unix(socket) => socket.shutdown(Shutdown::Both),
        };
    }
}
