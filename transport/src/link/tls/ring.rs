//! Records that are handed over as pages, between two ends on one host.
//!
//! A socket's `send` copies records into pages of the kernel's, which lie in no cache. Handed over ([`Splice`]), the receiver copies
//! them from where they were sealed, as long as that is little memory, used again and again. When a place may be used again, only
//! the receiver can tell: what the system has acknowledged need not have been read. So every few batches end with a request that it
//! answers once it has opened all before it ([`super::heartbeat`]). `docs/decisions/0005-tls-records.md` has what it brings.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;

use socket2::SockRef;

use crate::link::tcp::Splice;
use crate::memory::Slab;

/// Memory for records in a ring, and the pipe that its pages go through.
pub(super) struct Ring {
    /// Never recycled: the pages of a ring that is gone are read to the end.
    memory: Slab,
    pipe: Splice,
    /// What the receiver may not have read, oldest first: where it lies, and the batch's number.
    lent: VecDeque<(Range<usize>, u64)>,
    /// Sealed, and not in the pipe yet.
    waiting: Range<usize>,
    /// Bytes since the receiver was last asked.
    unasked: usize,
}

/// One large page: what is asked for at once, several times.
const BYTES: usize = 2 << 20;

/// The receiver is asked once for so many bytes.
const ASKED: usize = 512 << 10;

/// Batches begin with a page, so that no page has bytes of two.
const PAGE: usize = 4 << 10;

impl Ring {
    /// `None` where pages cannot be handed over.
    pub(super) fn new() -> Option<Self> {
        let (memory, pipe) = (Slab::try_zeroed(BYTES)?, Splice::new()?);
        Some(Self { memory, pipe, lent: VecDeque::new(), waiting: 0..0, unasked: 0 })
    }

    /// Memory for so many bytes of records. `None`: only once the receiver has read more. To be asked for when nothing waits.
    pub(super) fn place(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let at = self.waiting.end.next_multiple_of(PAGE);
        let place = if at + bytes <= BYTES { at..at + bytes } else { 0..bytes };
        let is_lent = self.lent.iter().any(|(lent, _)| lent.start < place.end && place.start < lent.end);
        if is_lent {
            return None;
        }
        self.waiting = place.start..place.start;
        Some(&mut self.memory[place])
    }

    /// Whether a batch of so many bytes is to end with a question.
    pub(super) fn is_due(&self, bytes: usize) -> bool {
        self.unasked + bytes >= ASKED
    }

    /// The first `bytes` of the last place are a batch, which goes now. `asks`: it ends with a question.
    pub(super) fn fill(&mut self, bytes: usize, batch: u64, asks: bool) {
        self.waiting.end = self.waiting.start + bytes;
        self.unasked = if asks { 0 } else { self.unasked + bytes };
        self.lent.push_back((self.waiting.clone(), batch));
    }

    /// The receiver has read this batch, and all before it.
    pub(super) fn read(&mut self, batch: u64) {
        while self.lent.front().is_some_and(|(_, lent)| *lent <= batch) {
            self.lent.pop_front();
        }
    }

    /// Gives the socket what waits. Whether all of it went.
    pub(super) fn flush(&mut self, socket: &SockRef<'_>) -> io::Result<bool> {
        loop {
            if !self.pipe.drain(&**socket)? {
                return Ok(false);
            }
            if self.waiting.is_empty() {
                return Ok(true);
            }
            match self.pipe.load(&IoSlice::new(&self.memory[self.waiting.clone()])) {
                Ok(n) => self.waiting.start += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.pipe.loaded() == 0
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_used_again_once_it_was_read() {
        let mut ring = Ring::new().expect("a pipe");
        let mut batches = 0;
        let mut fill = |ring: &mut Ring, bytes: usize| {
            let place = ring.place(bytes)?.as_ptr() as usize;
            batches += 1;
            let asks = ring.is_due(bytes);
            ring.fill(bytes, batches, asks);
            // As though the socket had taken it.
            ring.waiting.start = ring.waiting.end;
            Some((place, asks))
        };
        let start = ring.memory.as_ptr() as usize;
        let size = 300_000;
        let filled: Vec<_> = std::iter::from_fn(|| fill(&mut ring, size)).collect();
        let asks: Vec<_> = filled.iter().map(|(_, asks)| *asks).collect();
        assert_eq!(asks, [false, true, false, true, false, true], "each second one");
        assert!(filled.iter().all(|(place, _)| place % PAGE == start % PAGE));
        assert!(filled.windows(2).all(|pair| pair[0].0 + size <= pair[1].0), "none lies in another");
        assert_eq!(fill(&mut ring, size), None, "nothing was read");
        ring.read(2);
        assert_eq!(fill(&mut ring, size).map(|(place, _)| place), Some(start));
        assert_eq!(fill(&mut ring, size).map(|(place, _)| place), Some(filled[1].0));
        assert_eq!(fill(&mut ring, size), None, "the third was not read");
        // An answer that comes late says nothing new.
        ring.read(1);
        assert_eq!(fill(&mut ring, size), None);
        ring.read(8);
        assert_eq!(fill(&mut ring, size).map(|(place, _)| place), Some(filled[2].0));
    }
}
