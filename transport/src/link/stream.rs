//! What a lane's driver needs of the bytes under it.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::BulkHost;
use super::wait::Interest;
use crate::auth::Channel;
use crate::connection::{BulkEvent, Peer, Sink};
use crate::memory::{Regions, SharedBytes};

/// One end of a lane that carries bytes in order, and never blocks. One thread at a time receives; any thread may send, one at
/// a time.
///
/// How a driver waits: [`Self::arm`]; if that found nothing to do, it waits for [`Self::interest`]; then [`Self::disarm`], and
/// looks again. A wake-up may be in vain, but none is lost.
pub trait Stream: Send + Sync {
    /// Reads what is there into one buffer and then the other. 0: the other side has closed.
    ///
    /// # Errors
    /// `WouldBlock`: nothing is there. Any other: the lane is gone.
    fn recv(&self, first: &mut [u8], then: &mut [u8]) -> io::Result<usize>;

    /// Looks up to `looks` times whether a call of [`Self::recv`] is worth it, a breath apart; how many looks are left. A link
    /// where nothing but that call tells, leaves it to its driver to make one.
    fn watch(&self, looks: u32) -> u32 {
        std::hint::spin_loop();
        looks.saturating_sub(1)
    }

    /// How many times longer than usual its lane polls before it parks, if it carries requests: a park and the wake-up cost every link
    /// the same, and a request over this one so little that they weigh more.
    fn patience(&self) -> u32 {
        1
    }

    /// Takes as many bytes from the front as it can, and says how many.
    ///
    /// # Errors
    /// `WouldBlock`: none now. Any other: the lane is gone.
    fn send(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// As [`Self::send`], of bytes that stay as they are until the other side has said that it has them: their pages can go instead.
    ///
    /// # Errors
    /// As [`Self::send`].
    fn send_pages(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(bufs)
    }

    /// Whether [`Self::send_pages`] is worth it on this link's bulk lanes.
    fn takes_pages(&self) -> bool {
        false
    }

    /// Whether bytes that [`Self::send`] took are still on this side, and wait for [`Self::push`].
    fn has_unsent(&self) -> bool {
        false
    }

    /// Moves on what [`Self::send`] took. Whether all of it went.
    ///
    /// # Errors
    /// The lane is gone.
    fn push(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// What to wait for until something can be received (`read`) or sent (`write`).
    fn interest(&self, read: bool, write: bool) -> Interest;

    /// The driver is about to wait. Whether there is no need to: something can be received or sent already.
    fn arm(&self, read: bool, write: bool) -> bool {
        let _ = (read, write);
        false
    }

    /// The driver has waited.
    fn disarm(&self) {}

    /// What its descriptor is still ready for: a reactor that hears of changes alone is told so.
    fn ready(&self) -> Ready;

    /// Payloads up to this many bytes are better sent inline than in slices: the server's own threshold is lowered to it.
    fn eager_bytes(&self) -> u32 {
        u32::MAX
    }

    /// Whether bulk lanes of this link are [remote](Self::remote) ones.
    fn is_one_sided(&self) -> bool {
        false
    }

    /// The server's side of a bulk lane whose slices are not bytes of this stream; it takes the lane over once that is welcomed.
    /// `lane`: its number. `patience`: how long a slice may take.
    ///
    /// # Errors
    /// The lane cannot be used.
    fn remote(self: Arc<Self>, lane: u32, patience: Duration, now: Instant) -> io::Result<Option<Box<dyn RemoteBulk>>> {
        let _ = (lane, patience, now);
        Ok(None)
    }

    /// Who serves this lane, if it is a bulk lane, in place of its task.
    fn host(&self) -> Option<&dyn BulkHost> {
        None
    }

    /// The lane has turned out to be a bulk lane: it may be moved by other means from here on, and wait on another descriptor. Called
    /// while nobody waits for it.
    fn begin_bulk(&self) {}

    /// What the link knows of the lane besides its bytes. For a lane that makes its own handshake: once bytes have come over it.
    fn channel(&self) -> Channel {
        Channel::default()
    }

    /// The lane's task is over. Where a device has the last word, and takes its time for it, that is waited for elsewhere than on this
    /// thread, which others need. Called within a tokio runtime.
    fn end(self: Arc<Self>) {}

    /// Whether what is sent goes out: a lane in the middle of a handshake of its own has nobody to say it to.
    fn is_open(&self) -> bool {
        true
    }

    /// Whether the other side is gone, where that is known without reading.
    fn is_over(&self) -> bool {
        false
    }

    /// Whether whatever is received over this lane is proven to be what the other side sent, bit by bit: payloads then need no
    /// checksums of their own.
    fn is_sealed(&self) -> bool {
        false
    }

    /// The TCP socket that the lane's bytes go through as they are, where nothing else sends by it.
    fn socket(&self) -> Option<SockRef<'_>> {
        None
    }

    /// Nothing will be sent any more: the other side receives what was, and then the end.
    fn finish(&self);

    /// Memory that the other side shares over this lane, where it can share any.
    fn regions(&self) -> Option<Arc<Regions>> {
        None
    }

    /// Whether this side can share memory with the other.
    fn can_share(&self) -> bool {
        false
    }

    /// Shares memory with the other side, under a number that was never used on this lane. The other side knows it before it
    /// sees any byte that is sent later.
    ///
    /// # Errors
    /// `Unsupported`: this link cannot. `WouldBlock`: not now. Any other: the lane is gone.
    fn share(&self, number: u64, bytes: &SharedBytes) -> io::Result<()> {
        let _ = (number, bytes);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Shares it no more. What the other side still uses, stays as it is.
    ///
    /// # Errors
    /// As [`Self::share`].
    fn unshare(&self, number: u64) -> io::Result<()> {
        let _ = number;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Why a lane is gone: the other side's device asked this side's for memory that it has no right to, and was refused. Whoever speaks
/// there does not keep to the protocol: a server ends the client's session.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the device refused what the other side's asked of it: memory without a right to it, or a right that was revoked"
)]
pub struct Trespass;

impl Trespass {
    /// Whether that is why.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

impl From<Trespass> for io::Error {
    fn from(trespass: Trespass) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, trespass)
    }
}

/// A lane that has moved no slice for so long stands still, whatever it is to move.
pub const LULL: Duration = Duration::from_millis(50);

/// The server's side of a bulk lane whose slices devices move. Waiting is the stream's, as for any lane.
pub trait RemoteBulk: Send {
    /// Moves what can be moved without waiting, and tells what happened to transfers. Whether anything moved.
    ///
    /// # Errors
    /// The lane is gone, or cannot be trusted any further.
    fn turn(&mut self, peer: &Peer, events: &mut Vec<BulkEvent>, now: Instant) -> io::Result<bool>;

    /// Whether slices are on their way: some are to come, and one has moved within [`LULL`].
    fn is_moving(&self, now: Instant) -> bool;

    /// When to turn even if nothing is ready.
    fn deadline(&self) -> Option<Instant>;
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// To be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
}

impl Sink for &dyn Stream {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        (**self).send(bufs)
    }

    fn channel(&self) -> Channel {
        (**self).channel()
    }
}

/// The sending half of a lane; several threads may hold one each, if they take turns.
#[derive(Clone)]
pub struct StreamSink(pub Arc<dyn Stream>);

impl Sink for StreamSink {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send(bufs)
    }

    fn send_pages(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_pages(bufs)
    }

    fn takes_pages(&self) -> bool {
        self.0.takes_pages()
    }

    fn has_unsent(&self) -> bool {
        self.0.has_unsent()
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }

    fn regions(&self) -> Option<Arc<Regions>> {
        self.0.regions()
    }

    fn is_one_sided(&self) -> bool {
        self.0.is_one_sided()
    }

    fn channel(&self) -> Channel {
        self.0.channel()
    }
}
