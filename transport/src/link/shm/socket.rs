//! The Unix socket of a lane: who is at its other end, and the messages on it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::link::wait::Interest;
use crate::wire::{LOCAL_BYTES, Local};

/// The user at the other end, as the kernel says.
pub(super) fn peer_user(socket: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// The user that this process runs as.
pub(super) fn own_user() -> u32 {
    // SAFETY: no pointers are passed, and it cannot fail.
    unsafe { libc::geteuid() }
}

/// Whether a process of user `peer` may share memory with one of user `own`: the same user, or root, who may do everything to
/// either.
pub(super) fn may_share(own: u32, peer: u32) -> bool {
    own == peer || peer == 0
}

/// A Unix socket that carries [`Local`] messages and descriptors.
#[derive(Debug)]
pub(super) struct Socket {
    stream: UnixStream,
    inbox: Mutex<Inbox>,
}

/// A message that has begun to arrive.
#[derive(Debug, Default)]
struct Inbox {
    bytes: Vec<u8>,
    file: Option<OwnedFd>,
}

impl Socket {
    /// Nothing on it blocks.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, inbox: Mutex::default() })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn interest(&self, read: bool, write: bool) -> Interest {
        Interest { fd: self.as_raw_fd(), read, write }
    }

    /// Nothing will be sent any more.
    pub(super) fn finish(&self) {
        // A socket that is gone has nothing left to finish.
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// Sends a message, with a descriptor.
    ///
    /// # Errors
    /// `WouldBlock`: the other side has not read what was sent before. Any other: the lane is gone.
    pub(super) fn send(&self, message: Local, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let bytes = message.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let files = file.map(|file| [file]);
        if let Some(files) = &files
            && !ancillary.push(SendAncillaryMessage::ScmRights(files))
        {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match rustix::net::sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut ancillary, flags) {
                // A socket takes so little whole, or not at all.
                Ok(n) if n == LOCAL_BYTES => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next message, with the descriptor that came with it. `None`: the other side has closed.
    ///
    /// # Errors
    /// `WouldBlock`: none is there. Any other: the lane is gone, or cannot be trusted any further.
    pub(super) fn receive(&self) -> io::Result<Option<(Local, Option<OwnedFd>)>> {
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Inbox { bytes, file } = &mut *inbox;
            if let Some(whole) = bytes.first_chunk::<LOCAL_BYTES>() {
                let message = Local::decode(whole).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                bytes.clear();
                return Ok(Some((message, file.take())));
            }
            // No more than this message: what follows on a bulk lane's socket is not a message.
            let mut buf = [0; LOCAL_BYTES];
            let missing = LOCAL_BYTES - bytes.len();
            // Room for more descriptors than there should be: those that come are closed here.
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut bufs = [IoSliceMut::new(&mut buf[..missing])];
            let got = match rustix::net::recvmsg(self.stream.as_fd(), &mut bufs, &mut ancillary, flags) {
                Ok(got) => got.bytes,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    files.for_each(|one| *file = Some(one));
                }
            }
            if got == 0 {
                return Ok(None);
            }
            bytes.extend_from_slice(&buf[..got]);
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Socket, Socket) {
        let (a, b) = UnixStream::pair().unwrap();
        (Socket::new(a).unwrap(), Socket::new(b).unwrap())
    }

    #[test]
    fn root_and_the_same_user_may_share() {
        assert!(may_share(1000, 1000) && may_share(1000, 0) && may_share(0, 0));
        assert!(!may_share(0, 1000) && !may_share(1001, 1000));
    }

    #[test]
    fn messages_come_one_by_one_each_with_its_descriptor() {
        let (a, b) = pair();
        let (mut read, write) = io::pipe().unwrap();
        a.send(Local::Wake, None).unwrap();
        a.send(Local::Share { region: 1, bytes: 2, era: 3 }, Some(write.as_fd())).unwrap();
        a.send(Local::Unshare { region: 1 }, None).unwrap();
        drop(write);
        assert!(matches!(b.receive(), Ok(Some((Local::Wake, None)))));
        let Ok(Some((Local::Share { region: 1, bytes: 2, era: 3 }, Some(file)))) = b.receive() else {
            panic!("no file")
        };
        std::fs::File::from(file).write_all(b"it is the pipe").unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "it is the pipe");
        assert!(matches!(b.receive(), Ok(Some((Local::Unshare { region: 1 }, None)))));
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(matches!(b.receive(), Ok(None)));
    }

    #[test]
    fn a_message_in_pieces_is_put_together_and_nonsense_is_an_error() {
        let (a, b) = pair();
        for piece in Local::Wake.encode().chunks(5) {
            assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
            a.stream().write_all(piece).unwrap();
        }
        assert!(matches!(b.receive(), Ok(Some((Local::Wake, None)))));
        a.stream().write_all(&[9; LOCAL_BYTES]).unwrap();
        assert_eq!(b.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
