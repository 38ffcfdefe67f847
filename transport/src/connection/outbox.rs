//! Frames of a control lane on their way out.

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::auth::Channel;
use crate::memory::{Regions, extend_counted};

/// Where bytes leave: a socket, or a simulated one.
pub trait Sink: Send {
    /// Takes as many bytes from the front as it can, and says how many. `WouldBlock`: none now.
    ///
    /// # Errors
    /// Any other error means that the lane is gone.
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize>;

    /// As [`Self::send`], of bytes that stay as they are until the other side has said that it has them: their pages can go instead.
    ///
    /// # Errors
    /// As [`Self::send`].
    fn send_pages(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(bufs)
    }

    /// Whether [`Self::send_pages`] is worth it on this link's bulk lanes.
    fn takes_pages(&self) -> bool {
        false
    }

    /// Whether something that it took waits here still, for a driver that pushes it.
    fn has_unsent(&self) -> bool {
        false
    }

    /// Whether what is sent goes out: a lane in the middle of a handshake of its own has nobody to say it to.
    fn is_open(&self) -> bool {
        true
    }

    /// Memory that the other side shares, where the link can share any.
    fn regions(&self) -> Option<Arc<Regions>> {
        None
    }

    /// Whether devices move the slices of this link, each into the other's memory.
    fn is_one_sided(&self) -> bool {
        false
    }

    /// What the link knows of the lane; asked for once bytes have come over it.
    fn channel(&self) -> Channel {
        Channel::default()
    }
}

/// Bytes that wait until the sink takes them. In steady state a frame goes from the caller's memory to the sink in one call
/// and nothing is kept here.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// Sends a frame, or as much of it as the sink takes; the rest is kept for [`Self::flush`].
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn send(&mut self, head: &[u8], meta: &[u8], payload: &[u8], sink: &mut dyn Sink) -> io::Result<()> {
        let mut taken = 0;
        if self.is_empty() {
            taken = match sink.send(&[IoSlice::new(head), IoSlice::new(meta), IoSlice::new(payload)]) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                other => other?,
            };
        }
        if taken < head.len() + meta.len() + payload.len() {
            self.keep(&[head, meta, payload], taken);
        }
        Ok(())
    }

    /// Keeps a frame for the next [`Self::flush`].
    pub fn push(&mut self, head: &[u8], meta: &[u8], payload: &[u8]) {
        self.keep(&[head, meta, payload], 0);
    }

    /// Sends what waits. Whether all of it is gone.
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&mut self, sink: &mut dyn Sink) -> io::Result<bool> {
        while self.sent < self.waiting.len() {
            match sink.send(&[IoSlice::new(&self.waiting[self.sent..])]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        self.clear();
        Ok(true)
    }

    /// Forgets everything: the lane it was for is gone.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.sent = 0;
        // A burst's memory is not kept for good.
        if self.waiting.capacity() > 1 << 20 {
            self.waiting.shrink_to(64 << 10);
        }
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() - self.sent
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    fn keep(&mut self, parts: &[&[u8]], mut taken: usize) {
        if self.sent > 0 && self.sent * 2 > self.waiting.len() {
            self.waiting.drain(..self.sent);
            self.sent = 0;
        }
        for (i, part) in parts.iter().enumerate() {
            let skip = taken.min(part.len());
            taken -= skip;
            // Head and metadata are the protocol's own; the last part is the payload.
            if i + 1 < parts.len() {
                self.waiting.extend_from_slice(&part[skip..]);
            } else {
                extend_counted(&mut self.waiting, &part[skip..]);
            }
        }
    }
}
