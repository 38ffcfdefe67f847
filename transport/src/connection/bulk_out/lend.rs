//! Sending by operations that own what they send.

use std::io::IoSlice;
use std::time::Instant;

use super::{BulkLane, BulkOut, Sending};

/// A slice on its way out, owned by the operation that sends it: it holds the payload's memory until it is given back or dropped.
#[derive(Debug)]
pub struct OutSlice {
    sending: Sending,
}

impl OutSlice {
    /// The bytes that are left to send: the head first, which lies in the slice itself, then the payload, which does not. How
    /// many of `out` were filled.
    pub fn parts<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let Sending { head, pieces, sent, .. } = &self.sending;
        let head = head.as_ref().map_or(&[][..], |h| &h[..]);
        let (mut start, mut used) = (0, 0);
        for part in std::iter::once(head).chain(pieces.as_slice().iter().map(|p| &p[..])) {
            let skip = sent.saturating_sub(start).min(part.len());
            if skip < part.len() && used < out.len() {
                out[used] = IoSlice::new(&part[skip..]);
                used += 1;
            }
            start += part.len();
        }
        used
    }

    /// Whether its payload's pages may be sent in place of the bytes: the peer says when it has read them.
    pub fn is_by_pages(&self) -> bool {
        self.sending.by_pages
    }

    /// Bytes left to send.
    pub fn left(&self) -> usize {
        self.sending.whole() - self.sending.sent
    }

    /// `n` more bytes went out.
    pub fn advance(&mut self, n: usize) {
        self.sending.sent = (self.sending.sent + n).min(self.sending.whole());
    }

    /// Another hold on the same slice: for memory that is still read after the operation has ended.
    pub fn hold(&self) -> Self {
        Self { sending: self.sending.clone() }
    }
}

impl BulkLane {
    /// The next slice to send, its checksum made. `None`: one is lent already, or nothing waits.
    pub fn lend(&mut self, out: &BulkOut, now: Instant) -> Option<OutSlice> {
        if self.lent {
            return None;
        }
        let mut sending = self.current.take().or_else(|| out.next(self.lane, now))?;
        sending.head();
        self.lent = true;
        Some(OutSlice { sending })
    }

    /// The operation has ended, and sent `n` more bytes of the slice.
    pub fn give_back(&mut self, mut slice: OutSlice, n: usize) {
        let n = n.min(slice.left());
        slice.advance(n);
        self.sent += n as u64;
        self.lent = false;
        if slice.left() > 0 {
            self.current = Some(slice.sending);
        } else {
            self.slices += 1;
        }
    }
}
