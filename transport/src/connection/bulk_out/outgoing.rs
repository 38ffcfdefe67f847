//! One transfer on its way out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::source::{Source, Stage, There};
use super::{Pieces, Sending};
use crate::memory::Region;
use crate::wire::{SLICE_FRAME_BYTES, SliceHead};

/// A transfer on its way out: bytes in one or more pieces, cut into slices on a uniform grid.
#[derive(Debug)]
pub struct Outgoing {
    pub(super) transfer: u64,
    body: Body,
    pub(super) total: u64,
    slice_bytes: u32,
    slices: u32,
    /// The next slice to send for the first time; none that is skipped.
    next: u32,
    /// Slices that the receiver has; bit i of byte i / 8.
    skip: Vec<u8>,
    /// Slices to send again, beside the ones from `next` on: by the lane that carried them, which carries them again only where
    /// there is no other. A peer may ask for each of a large transfer's slices, and for as many at once as a lane was given:
    /// one slice costs the same however many wait.
    again: BTreeMap<Option<u32>, BTreeSet<u32>>,
    /// Bytes that it has handed out in its turn.
    pub(super) turn: u64,
    /// What its pages lie in, where they may be sent in place of the bytes.
    loan: Option<Loan>,
}

/// Memory whose pages were lent to a client's sockets. Unless the client has said that it has read them, it is spoilt in the end.
#[derive(Debug)]
struct Loan(Vec<Region>);

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.iter().for_each(Region::spoil);
    }
}

/// Where the bytes are.
#[derive(Debug)]
enum Body {
    Here(Vec<Bytes>),
    Elsewhere(Stage),
}

impl Outgoing {
    /// A transfer of all bytes of the pieces.
    pub fn new(transfer: u64, pieces: Vec<Bytes>, slice_bytes: u32) -> Self {
        let total: u64 = pieces.iter().map(|p| p.len() as u64).sum();
        Self::over(transfer, Body::Here(pieces), total, slice_bytes)
    }

    /// Its pages may be sent: they are those of `memory`, which is [lent](Region::lend) to the session that asked for them.
    pub fn by_pages(mut self, memory: Vec<Region>) -> Self {
        self.loan = Some(Loan(memory));
        self
    }

    /// Its receiver has said that it wants no more of it: what it was sent it has read, or it reads what it gets.
    pub(super) fn was_read(&mut self) {
        if let Some(loan) = &mut self.loan {
            loan.0.clear();
        }
    }

    /// A transfer of all bytes of a source, which is told when there is something to bring.
    pub fn staged(transfer: u64, source: Arc<dyn Source>, slice_bytes: u32) -> Self {
        let total = source.bytes();
        Self::over(transfer, Body::Elsewhere(Stage::new(source)), total, slice_bytes)
    }

    fn over(transfer: u64, body: Body, total: u64, slice_bytes: u32) -> Self {
        let slice_bytes = slice_bytes.max(1);
        let slices = u32::try_from(total.div_ceil(u64::from(slice_bytes))).unwrap_or(u32::MAX);
        let (skip, again) = (Vec::new(), BTreeMap::new());
        Self { transfer, body, total, slice_bytes, slices, next: 0, skip, again, turn: 0, loan: None }
    }

    /// Leaves out the slices whose bit is set.
    pub fn skipping(mut self, bits: Vec<u8>) -> Self {
        self.skip = bits;
        self.next_from(0);
        self
    }

    /// A slice's first byte and its bytes.
    pub(super) fn range(&self, index: u32) -> (u64, u64) {
        let offset = u64::from(index) * u64::from(self.slice_bytes);
        (offset, u64::from(self.slice_bytes).min(self.total.saturating_sub(offset)))
    }

    pub(super) fn stage(&self) -> Option<&Stage> {
        match &self.body {
            Body::Here(_) => None,
            Body::Elsewhere(stage) => Some(stage),
        }
    }

    pub(super) fn stage_mut(&mut self) -> Option<&mut Stage> {
        match &mut self.body {
            Body::Here(_) => None,
            Body::Elsewhere(stage) => Some(stage),
        }
    }

    pub(super) fn slices(&self) -> u32 {
        self.slices
    }

    /// The slices that are to be sent again.
    pub(super) fn again(&self) -> impl Iterator<Item = u32> + '_ {
        self.again.values().flatten().copied()
    }

    /// Whether a lane can take the slice now.
    fn is_here(&self, index: u32) -> bool {
        self.stage().is_none_or(|stage| stage.is_ready(index))
    }

    /// The bytes of one slice, wherever it lies.
    pub(super) fn hand(&mut self, index: u32, checked: bool) -> Taken {
        let (offset, len) = self.range(index);
        match &mut self.body {
            Body::Here(pieces) => Self::cut(pieces, (self.transfer, offset, len), self.total, checked),
            Body::Elsewhere(stage) => {
                let there = stage.there.remove(&index);
                // Nobody hands out what is neither here nor there.
                let here = if there.is_some() { None } else { Some(stage.ready.remove(&index).unwrap_or_default()) };
                let pieces = here.into_iter().map(|piece| (piece, 0..len as usize)).collect();
                Taken { transfer: self.transfer, offset, total: self.total, checked, pieces, there }
            }
        }
    }

    /// Some bytes of it, if they are here.
    pub(super) fn taken(&self, offset: u64, len: u64, checked: bool) -> Option<Taken> {
        match &self.body {
            Body::Here(pieces) => Some(Self::cut(pieces, (self.transfer, offset, len), self.total, checked)),
            Body::Elsewhere(_) => None,
        }
    }

    fn cut(all: &[Bytes], (transfer, offset, len): (u64, u64, u64), total: u64, checked: bool) -> Taken {
        let mut start = 0u64;
        let mut pieces = Vec::with_capacity(1);
        for piece in all {
            let end = start + piece.len() as u64;
            let (from, to) = (offset.max(start), (offset + len).min(end));
            if from < to {
                pieces.push((piece.clone(), (from - start) as usize..(to - start) as usize));
            }
            start = end;
        }
        Taken { transfer, offset, total, checked, pieces, there: None }
    }

    fn skips(&self, index: u32) -> bool {
        self.skip.get(index as usize / 8).is_some_and(|b| b & (1 << (index % 8)) != 0)
    }

    fn next_from(&mut self, index: u32) {
        self.next = (index..self.slices).find(|&i| !self.skips(i)).unwrap_or(self.slices);
    }

    /// The slice that begins with this byte.
    pub(super) fn index_of(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset / u64::from(self.slice_bytes)).ok().filter(|&i| i < self.slices)
    }

    /// Whether a slice waits to be sent, for the first time or again.
    pub(super) fn has_waiting(&self, index: u32) -> bool {
        (index >= self.next && !self.skips(index)) || self.again.values().any(|slices| slices.contains(&index))
    }

    /// Whether there is a slice for this lane; if it is the only one, it gets any.
    pub(super) fn has_for(&self, lane: u32, alone: bool) -> bool {
        let mut groups = self.again.iter().filter(|(not_over, _)| alone || **not_over != Some(lane));
        match self.stage() {
            None => self.next < self.slices || groups.next().is_some(),
            Some(stage) => {
                self.is_here(self.next) || groups.any(|(_, slices)| stage.all_ready().any(|i| slices.contains(i)))
            }
        }
    }

    /// Whether every slice was handed out.
    pub(super) fn is_sent(&self) -> bool {
        self.again.is_empty() && self.next >= self.slices
    }

    pub(super) fn next_index(&mut self, lane: u32, alone: bool) -> Option<u32> {
        let mut groups = self.again.iter().filter(|(not_over, _)| alone || **not_over != Some(lane));
        let found = match self.stage() {
            None => groups.next().and_then(|(group, slices)| Some((*group, *slices.first()?))),
            // Few are ready.
            Some(stage) => groups.find_map(|(group, slices)| {
                let index = stage.all_ready().find(|index| slices.contains(index))?;
                Some((*group, *index))
            }),
        };
        if let Some((not_over, index)) = found {
            if let Some(slices) = self.again.get_mut(&not_over) {
                slices.remove(&index);
                if slices.is_empty() {
                    self.again.remove(&not_over);
                }
            }
            return Some(index);
        }
        let index = Some(self.next).filter(|&i| i < self.slices && self.is_here(i))?;
        self.next_from(index + 1);
        Some(index)
    }

    /// A slice is sent once more, if it does not wait already; over another lane than `not_over`, if there is one.
    pub(super) fn send_again(&mut self, index: u32, not_over: Option<u32>) {
        // Begun anew on another grid, it may have fewer slices than before.
        if index < self.slices && !self.has_waiting(index) {
            self.again.entry(not_over).or_default().insert(index);
        }
    }

    pub(super) fn slice(&mut self, index: u32, checked: bool) -> Sending {
        let (offset, len) = self.range(index);
        let mut pieces = Pieces::None;
        match &mut self.body {
            Body::Here(all) => {
                let mut start = 0u64;
                for piece in all {
                    let end = start + piece.len() as u64;
                    let (from, to) = (offset.max(start), (offset + len).min(end));
                    if from < to {
                        pieces.push(piece.slice((from - start) as usize..(to - start) as usize));
                    }
                    start = end;
                }
            }
            // Nobody hands out what is not here; on a connection that has such lanes nothing lies there.
            Body::Elsewhere(stage) => stage.ready.remove(&index).into_iter().for_each(|piece| pieces.push(piece)),
        }
        let (transfer, total, by_pages) = (self.transfer, self.total, self.loan.is_some());
        Sending { transfer, offset, total, pieces, checked, by_pages, head: None, sent: 0 }
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
    /// In place of pieces: where the slice lies in a device's memory.
    pub there: Option<Arc<There>>,
    checked: bool,
}

impl Taken {
    /// The slice's bytes, piece by piece.
    pub fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|(piece, part)| piece.get(part.clone()).unwrap_or_default())
    }

    /// The head in front of it, with a checksum of the bytes where both sides want one.
    pub fn head(&self) -> [u8; SLICE_FRAME_BYTES] {
        if let Some(there) = &self.there {
            let len = there.places.iter().map(|place| place.len() as u32).sum();
            return match self.checked {
                true => SliceHead::encode_summed(self.transfer, self.offset, self.total, len, there.crc),
                false => SliceHead::encode_unchecked(self.transfer, self.offset, self.total, len),
            };
        }
        if !self.checked {
            let len = self.bytes().map(|view| view.len() as u32).sum();
            return SliceHead::encode_unchecked(self.transfer, self.offset, self.total, len);
        }
        SliceHead::encode_pieces(self.transfer, self.offset, self.total, self.bytes())
    }
}
