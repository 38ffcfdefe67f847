//! A bulk lane's sending half: slices straight from the memory they lie in.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::outbox::Sink;
use crate::wire::{SLICE_FRAME_BYTES, SliceHead};

/// A transfer on its way out: bytes in one or more pieces, cut into slices on a uniform grid.
#[derive(Debug)]
pub struct Outgoing {
    transfer: u64,
    pieces: Vec<Bytes>,
    total: u64,
    slice_bytes: u32,
    next: u32,
    /// Slices that the receiver has; bit i of byte i / 8.
    skip: Vec<u8>,
    /// Slices to send again, beside the ones from `next` on.
    again: Vec<u32>,
}

impl Outgoing {
    /// A transfer of all bytes of the pieces.
    pub fn new(transfer: u64, pieces: Vec<Bytes>, slice_bytes: u32) -> Self {
        let total = pieces.iter().map(|p| p.len() as u64).sum();
        Self { transfer, pieces, total, slice_bytes: slice_bytes.max(1), next: 0, skip: Vec::new(), again: Vec::new() }
    }

    /// Leaves out the slices whose bit is set.
    pub fn skipping(mut self, bits: Vec<u8>) -> Self {
        self.skip = bits;
        self
    }

    /// Only the slice at this offset.
    pub fn only(mut self, offset: u64) -> Self {
        let index = offset / u64::from(self.slice_bytes);
        self.next = self.slices();
        self.again = u32::try_from(index).ok().filter(|&i| i < self.next).into_iter().collect();
        self
    }

    fn slices(&self) -> u32 {
        u32::try_from(self.total.div_ceil(u64::from(self.slice_bytes))).unwrap_or(u32::MAX)
    }

    /// The bytes of one slice, wherever it lies.
    fn taken(&self, offset: u64, len: u64) -> Taken {
        let mut start = 0u64;
        let mut pieces = Vec::with_capacity(1);
        for piece in &self.pieces {
            let end = start + piece.len() as u64;
            let (from, to) = (offset.max(start), (offset + len).min(end));
            if from < to {
                pieces.push((piece.clone(), (from - start) as usize..(to - start) as usize));
            }
            start = end;
        }
        Taken { transfer: self.transfer, offset, total: self.total, pieces }
    }

    fn next_slice(&mut self) -> Option<Sending> {
        let index = match self.again.pop() {
            Some(index) => index,
            None => {
                let skipped = |i: &u32| self.skip.get(*i as usize / 8).is_some_and(|b| b & (1 << (i % 8)) != 0);
                let index = (self.next..self.slices()).find(|i| !skipped(i))?;
                self.next = index + 1;
                index
            }
        };
        let offset = u64::from(index) * u64::from(self.slice_bytes);
        let len = u64::from(self.slice_bytes).min(self.total - offset);
        let mut start = 0u64;
        let mut pieces = Pieces::None;
        for piece in &self.pieces {
            let end = start + piece.len() as u64;
            let (from, to) = (offset.max(start), (offset + len).min(end));
            if from < to {
                pieces.push(piece.slice((from - start) as usize..(to - start) as usize));
            }
            start = end;
        }
        Some(Sending { transfer: self.transfer, offset, total: self.total, pieces, head: None, sent: 0 })
    }
}

/// A slice for a link that takes slices whole: its bytes in their allocations.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Of this transfer.
    pub transfer: u64,
    /// First byte within it.
    pub offset: u64,
    /// Bytes of the whole transfer.
    pub total: u64,
    /// The sender's memory, each with the part of it that belongs to the slice.
    pub pieces: Vec<(Bytes, Range<usize>)>,
}

impl Taken {
    /// The slice's bytes, piece by piece.
    pub fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|(piece, part)| piece.get(part.clone()).unwrap_or_default())
    }

    /// The head in front of it, checksum included.
    pub fn head(&self) -> [u8; SLICE_FRAME_BYTES] {
        SliceHead::encode_pieces(self.transfer, self.offset, self.total, self.bytes())
    }
}

/// One slice on its way out.
#[derive(Debug)]
struct Sending {
    transfer: u64,
    offset: u64,
    total: u64,
    pieces: Pieces,
    /// Made when the slice is first offered to a sink: the checksum's pass over the bytes then warms the cache for the
    /// kernel's.
    head: Option<[u8; SLICE_FRAME_BYTES]>,
    sent: usize,
}

/// The pieces of one slice: nearly always one, which then needs no allocation.
#[derive(Debug)]
enum Pieces {
    None,
    One(Bytes),
    Many(Vec<Bytes>),
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        *self = match std::mem::replace(self, Self::None) {
            Self::None => Self::One(piece),
            Self::One(first) => Self::Many(vec![first, piece]),
            Self::Many(mut all) => {
                all.push(piece);
                Self::Many(all)
            }
        };
    }

    fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::None => &[],
            Self::One(piece) => std::slice::from_ref(piece),
            Self::Many(all) => all,
        }
    }
}

/// Transfers of a connection on their way out. Its lanes take slices from here, so that a fast lane carries more.
#[derive(Debug, Default)]
pub struct BulkOut {
    queue: Mutex<VecDeque<Outgoing>>,
}

impl BulkOut {
    /// Adds a transfer.
    pub fn push(&self, outgoing: Outgoing) {
        self.lock().push_back(outgoing);
    }

    /// Forgets a transfer: no further slice of it begins.
    pub fn cancel(&self, transfer: u64) {
        self.lock().retain(|o| o.transfer != transfer);
    }

    /// Forgets every transfer.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Transfers that are not wholly sent.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing waits to begin.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// A slice that the receiver asks for. `None`: no such transfer is on its way out, or not with these bytes.
    pub fn slice(&self, transfer: u64, offset: u64, len: u32, total: u64) -> Option<Taken> {
        let queue = self.lock();
        let outgoing = queue.iter().find(|o| o.transfer == transfer)?;
        let end = offset.checked_add(u64::from(len))?;
        (outgoing.total == total && end <= total).then(|| outgoing.taken(offset, u64::from(len)))
    }

    /// Whether this transfer is on its way out.
    pub fn has(&self, transfer: u64) -> bool {
        self.lock().iter().any(|o| o.transfer == transfer)
    }

    /// The next slice to offer; transfers take turns.
    pub fn take(&self) -> Option<Taken> {
        let mut queue = self.lock();
        while let Some(mut outgoing) = queue.pop_front() {
            if let Some(slice) = outgoing.next_slice() {
                let len = slice.pieces.as_slice().iter().map(|p| p.len() as u64).sum();
                let taken = outgoing.taken(slice.offset, len);
                queue.push_back(outgoing);
                return Some(taken);
            }
        }
        None
    }

    /// The next slice; transfers take turns.
    fn next(&self) -> Option<Sending> {
        let mut queue = self.lock();
        while let Some(mut outgoing) = queue.pop_front() {
            if let Some(slice) = outgoing.next_slice() {
                queue.push_back(outgoing);
                return Some(slice);
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Outgoing>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending half of one bulk lane.
#[derive(Debug, Default)]
pub struct BulkLane {
    current: Option<Sending>,
    /// Counts what the sink took, so that a standstill shows.
    sent: u64,
}

impl BulkLane {
    /// Sends slices until the sink is full (`false`) or nothing is left (`true`).
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&mut self, out: &BulkOut, sink: &mut dyn Sink) -> io::Result<bool> {
        loop {
            let Some(slice) = self.current.take().or_else(|| out.next()) else { return Ok(true) };
            let before = slice.sent;
            let whole = slice.whole() as u64;
            let (slice, full) = slice.send(sink)?;
            self.sent += slice.as_ref().map_or(whole, |s| s.sent as u64) - before as u64;
            if full {
                self.current = slice;
                return Ok(false);
            }
        }
    }

    /// Bytes that went out, heads included.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether a slice is half sent.
    pub fn is_sending(&self) -> bool {
        self.current.is_some()
    }
}

impl Sending {
    fn whole(&self) -> usize {
        SLICE_FRAME_BYTES + self.pieces.as_slice().iter().map(Bytes::len).sum::<usize>()
    }

    /// The slice, if some of it is left, and whether the sink is full.
    fn send(mut self, sink: &mut dyn Sink) -> io::Result<(Option<Self>, bool)> {
        let whole = self.whole();
        let pieces = self.pieces.as_slice();
        let head = *self.head.get_or_insert_with(|| {
            SliceHead::encode_pieces(self.transfer, self.offset, self.total, pieces.iter().map(|p| &p[..]))
        });
        while self.sent < whole {
            let mut bufs = [IoSlice::new(&[]); 4];
            let mut used = 0;
            let mut start = 0;
            for part in std::iter::once(&head[..]).chain(pieces.iter().map(|p| &p[..])) {
                let skip = self.sent.saturating_sub(start).min(part.len());
                if skip < part.len() && used < bufs.len() {
                    bufs[used] = IoSlice::new(&part[skip..]);
                    used += 1;
                }
                start += part.len();
            }
            match sink.send(&bufs[..used]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok((Some(self), true)),
                Err(e) => return Err(e),
            }
        }
        Ok((None, false))
    }
}
