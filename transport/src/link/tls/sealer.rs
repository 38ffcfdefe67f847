//! The sending half of a channel.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

use super::heartbeat::{self, Heartbeat};
use super::opener::SMALL_WAITS;
use super::record::{ALERT, DATA, Direction, HANDSHAKE, HEARTBEAT, PLAIN, sealed};
use super::ring::Ring;
use super::stream::{Open, lock};
use crate::link::Stream;

pub(super) struct Sealer {
    direction: Direction,
    /// Sealed up to `end`; sent up to `sent`.
    out: Vec<u8>,
    sent: usize,
    end: usize,
    /// Bytes of one record that lie in several buffers, put together.
    gathered: Vec<u8>,
    /// Whether records are handed over as pages where they can be; and the ring for them, once there is bulk.
    by_pages: bool,
    ring: Option<Ring>,
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
/// What is less than this is not handed over: references cost as much as bytes.
const LEAST: usize = 4 * PLAIN;

impl Sealer {
    pub(super) fn new(direction: Direction) -> Self {
        Self {
            direction,
            out: Vec::new(),
            sent: 0,
            end: 0,
            gathered: Vec::new(),
            by_pages: false,
            ring: None,
            finished: false,
            waits: 0,
        }
    }

    /// Both ends are on one host: records are handed over as pages where they can be.
    pub(super) fn by_pages(&mut self) {
        self.by_pages = true;
    }

    /// Seals as much as fits a batch, and sends what the lane takes of it. How many bytes were sealed.
    pub(super) fn send(&mut self, lane: &dyn Stream, open: &Open, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.make_room(lane, open)?;
        if self.finished {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.direction.is_worn() || open.renew.swap(false, Ordering::AcqRel) {
            self.renew(open)?;
            self.make_room(lane, open)?;
        }
        if open.asked.load(Ordering::Acquire) != 0 {
            // Before more of this side's own: the other side may wait for it.
            self.answer(lane, open)?;
            self.make_room(lane, open)?;
        }
        let taken = self.seal_batch(lane, open, bufs)?;
        // What is sealed counts as sent: the rest of it goes with the next call.
        self.flush(lane, open)?;
        Ok(taken)
    }

    /// Sends what is sealed, all of it.
    fn make_room(&mut self, lane: &dyn Stream, open: &Open) -> io::Result<()> {
        self.flush(lane, open)?;
        if self.is_empty() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Seals as much as fits a batch, where it goes from. How many bytes.
    fn seal_batch(&mut self, lane: &dyn Stream, open: &Open, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let all: usize = bufs.iter().map(|b| b.len()).sum();
        // A batch's last record may begin with its last byte, and a head takes a record of its own.
        let most = all.min(BATCH + PLAIN);
        let most = most + (most.div_ceil(PLAIN) + 1) * sealed(0) + sealed(heartbeat::BYTES);
        let by_pages = all >= LEAST && self.has_ring(lane);
        let Self { direction, out, gathered, ring, .. } = self;
        let asks = by_pages && ring.as_ref().is_some_and(|ring| ring.is_due(most));
        let place = match ring {
            Some(ring) if by_pages => place_in(ring, open, most)?,
            _ => room(out, most),
        };
        let mut parts = Parts { bufs, at: 0 };
        let (mut taken, mut end) = (0, 0);
        while taken < all.min(BATCH) {
            // The head of what is more than a record goes alone: what follows it then ends with a record, and the other side can
            // open all of these where they belong.
            let alone = bufs.first().map_or(0, |first| first.len());
            let length = if taken == 0 && (1..=HEAD_ALONE).contains(&alone) && all - alone >= PLAIN {
                alone
            } else {
                (all - taken).min(PLAIN)
            };
            end += direction.seal(DATA, parts.take(length, gathered), &mut place[end..])?;
            taken += length;
        }
        if end > KEPT {
            self.waits = 0;
        }
        let batch = open.batches.load(Ordering::Acquire) + u64::from(by_pages);
        if asks {
            let question = Heartbeat::Request(batch).encode();
            end += direction.seal(HEARTBEAT, &question, &mut place[end..])?;
        }
        match ring {
            Some(ring) if by_pages => {
                open.batches.store(batch, Ordering::Release);
                ring.fill(end, batch, asks);
            }
            _ => self.end = end,
        }
        Ok(taken)
    }

    /// Answers the other side's last question, unless there is something to be sent before; it is then asked to do so again.
    pub(super) fn answer(&mut self, lane: &dyn Stream, open: &Open) -> io::Result<()> {
        self.flush(lane, open)?;
        if !self.is_empty() || self.finished {
            return Ok(());
        }
        match open.asked.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            batch => {
                self.say(HEARTBEAT, &Heartbeat::Response(batch).encode())?;
                self.flush(lane, open)
            }
        }
    }

    /// Whether there is a ring for this lane. Makes it, where there may be one.
    fn has_ring(&mut self, lane: &dyn Stream) -> bool {
        if self.by_pages && self.ring.is_none() {
            self.ring = lane.socket().and_then(|_| Ring::new());
            // Where there is none now, it is not looked for with every slice.
            self.by_pages = self.ring.is_some();
            if !self.by_pages {
                tracing::debug!("records are copied to the socket: there is no ring or no pipe for their pages here");
            }
        }
        self.ring.is_some()
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

    /// Seals a record of this kind, to be sent with what is sent next.
    pub(super) fn say(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        let place = room(&mut self.out, self.end + sealed(bytes.len()));
        self.end += self.direction.seal(kind, bytes, &mut place[self.end..])?;
        Ok(())
    }

    /// Its lane is about to wait: bulk that went once does not keep its memory for the lane's life.
    pub(super) fn rest(&mut self) {
        if self.is_empty() && (self.out.len() > KEPT || self.ring.is_some()) {
            self.waits += 1;
            if self.waits > SMALL_WAITS {
                self.waits = 0;
                (self.out, self.gathered, self.ring) = (Vec::new(), Vec::new(), None);
            }
        }
    }

    /// Bytes of memory that it holds.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.out.capacity() + self.gathered.capacity() + self.ring.as_ref().map_or(0, Ring::bytes)
    }

    /// Sends what is sealed, as far as the lane takes it.
    pub(super) fn flush(&mut self, lane: &dyn Stream, open: &Open) -> io::Result<()> {
        if let Some(ring) = &mut self.ring
            && !ring.is_empty()
        {
            // A ring is made for a socket, which does not go.
            let socket = lane.socket().ok_or(io::ErrorKind::NotConnected)?;
            if !ring.flush(&socket)? {
                open.unsent.store(true, Ordering::Release);
                return Ok(());
            }
        }
        while self.sent < self.end {
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
        self.sent == self.end && self.ring.as_ref().is_none_or(Ring::is_empty)
    }
}

/// The first `bytes` of a buffer that is small until there is bulk.
fn room(out: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    if out.len() < bytes {
        out.resize(bytes.next_power_of_two(), 0);
    }
    &mut out[..bytes]
}

/// A place in the ring, as soon as the receiver has read what was there.
fn place_in<'a>(ring: &'a mut Ring, open: &Open, bytes: usize) -> io::Result<&'a mut [u8]> {
    // Before the look: an answer that comes after it takes this back.
    open.stalled.store(true, Ordering::Release);
    ring.read(open.read.load(Ordering::Acquire));
    let place = ring.place(bytes).ok_or(io::ErrorKind::WouldBlock)?;
    open.stalled.store(false, Ordering::Release);
    Ok(place)
}

/// Buffers, cut where records are.
struct Parts<'a, 'b> {
    bufs: &'a [IoSlice<'b>],
    /// Of the first.
    at: usize,
}

impl<'a> Parts<'a, '_> {
    /// The next `length` bytes: where they lie, or put together in `gathered` where they lie in several buffers.
    fn take<'g>(&mut self, length: usize, gathered: &'g mut Vec<u8>) -> &'g [u8]
    where
        'a: 'g,
    {
        let first = self.run(length);
        if first.len() == length {
            return first;
        }
        gathered.clear();
        gathered.extend_from_slice(first);
        while gathered.len() < length && !self.bufs.is_empty() {
            let next = self.run(length - gathered.len());
            gathered.extend_from_slice(next);
        }
        gathered
    }

    /// Up to `length` bytes that lie together.
    fn run(&mut self, length: usize) -> &'a [u8] {
        while let Some((buf, rest)) = self.bufs.split_first() {
            let n = length.min(buf.len() - self.at);
            let bytes = &buf[self.at..self.at + n];
            self.at += n;
            if self.at == buf.len() {
                (self.bufs, self.at) = (rest, 0);
            }
            if n > 0 || length == 0 {
                return bytes;
            }
        }
        &[]
    }
}
