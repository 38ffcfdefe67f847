//! The sending half of a channel.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

use super::opener::SMALL_WAITS;
use super::record::{ALERT, DATA, Direction, HANDSHAKE, PLAIN, sealed};
use super::stream::{Open, lock};
use crate::link::Stream;

pub(super) struct Sealer {
    direction: Direction,
    /// Sealed up to `end`; sent up to `sent`.
    out: Vec<u8>,
    sent: usize,
    end: usize,
    finished: bool,
    /// Waits in a row with nothing here, none of them after much was sealed.
    waits: u32,
}

/// What is sealed before the lane is asked to take it: a slice, so that the other side is woken once for each; little enough to be in
/// the cache still.
const BATCH: usize = 16 * PLAIN;
/// Memory that is not worth giving back.
const KEPT: usize = 4 << 10;
/// A buffer up to this size is a head of those after it.
const HEAD_ALONE: usize = 256;

impl Sealer {
    pub(super) fn new(direction: Direction) -> Self {
        Self { direction, out: Vec::new(), sent: 0, end: 0, finished: false, waits: 0 }
    }

    /// Seals as much as fits a batch, and sends what the lane takes of it. How many bytes were sealed.
    pub(super) fn send(&mut self, lane: &dyn Stream, open: &Open, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush(lane, open)?;
        if !self.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.direction.is_worn() || open.renew.swap(false, Ordering::AcqRel) {
            self.renew(open)?;
        }
        let all: usize = bufs.iter().map(|b| b.len()).sum();
        let mut parts = Parts { bufs, at: 0 };
        let mut taken = 0;
        while taken < all.min(BATCH) {
            // The head of what is more than a record goes alone: what follows it then ends with a record, and the other side can
            // open all of these where they belong.
            let alone = bufs.first().map_or(0, |first| first.len());
            let length = if taken == 0 && (1..=HEAD_ALONE).contains(&alone) && all - alone >= PLAIN {
                alone
            } else {
                (all - taken).min(PLAIN)
            };
            self.seal(DATA, parts.take(length), length)?;
            taken += length;
        }
        // What is sealed counts as sent: the rest of it goes with the next call.
        self.flush(lane, open)?;
        Ok(taken)
    }

    /// Says that keys change, and changes them.
    fn renew(&mut self, open: &Open) -> io::Result<()> {
        // KeyUpdate, the other side need not change its own.
        self.say(HANDSHAKE, &[24, 0, 0, 1, 0])?;
        self.direction = Direction::new(lock(&open.keys).next_send().map_err(io::Error::other)?)?;
        Ok(())
    }

    /// Says that nothing follows.
    pub(super) fn finish(&mut self, lane: &dyn Stream, open: &Open) -> io::Result<()> {
        self.finished = true;
        self.say(ALERT, &[1, 0])?;
        self.flush(lane, open)
    }

    fn say(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        self.seal(kind, std::iter::once(bytes), bytes.len())
    }

    fn seal<'a>(&mut self, kind: u8, parts: impl Iterator<Item = &'a [u8]>, length: usize) -> io::Result<()> {
        let least = self.end + sealed(length);
        if self.out.len() < least {
            // Small until there is bulk.
            self.out.resize(least.next_power_of_two(), 0);
        }
        self.end += self.direction.seal(kind, parts, length, &mut self.out[self.end..])?;
        if self.end > KEPT {
            self.waits = 0;
        }
        Ok(())
    }

    /// Its lane is about to wait: bulk that went once does not keep its memory for the lane's life.
    pub(super) fn rest(&mut self) {
        if self.is_empty() && self.out.len() > KEPT {
            self.waits += 1;
            if self.waits > SMALL_WAITS {
                self.waits = 0;
                self.out = Vec::new();
            }
        }
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.out.capacity()
    }

    /// Sends what is sealed, as far as the lane takes it.
    pub(super) fn flush(&mut self, lane: &dyn Stream, open: &Open) -> io::Result<()> {
        while !self.is_empty() {
            match lane.send(&[IoSlice::new(&self.out[self.sent..self.end])]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    open.unsent.store(true, Ordering::Release);
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        (self.sent, self.end) = (0, 0);
        open.unsent.store(false, Ordering::Release);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.end
    }
}
/// Buffers, cut where records are.
struct Parts<'a, 'b> {
    bufs: &'a [IoSlice<'b>],
    /// Of the first.
    at: usize,
}

impl<'a> Parts<'a, '_> {
    /// The next `length` bytes.
    fn take(&mut self, mut length: usize) -> impl Iterator<Item = &'a [u8]> {
        std::iter::from_fn(move || {
            while length > 0 {
                let (buf, rest) = self.bufs.split_first()?;
                let n = length.min(buf.len() - self.at);
                let bytes = &buf[self.at..self.at + n];
                self.at += n;
                length -= n;
                if self.at == buf.len() {
                    (self.bufs, self.at) = (rest, 0);
                }
                if n > 0 {
                    return Some(bytes);
                }
            }
            None
        })
    }
}
