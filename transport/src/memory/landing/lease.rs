//! The right to write one slice.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::super::copy::copy_counted;
use super::super::slab::Slab;
use super::{Landing, OnDevice, Slice, Summing};
use crate::wire::SliceHead;

/// The right to write one slice, owned by the operation that reads it from the network. Dropped early, the slice counts as
/// missing again.
///
/// From [`Self::hold`] to the next [`Self::advance`] or [`Self::rest`] nobody else gets the slice.
#[derive(Debug)]
pub struct SliceLease {
    pub(super) landing: Arc<Landing>,
    pub(super) index: usize,
    pub(super) number: u64,
    pub(super) head: SliceHead,
    pub(super) filled: u32,
    pub(super) round: u32,
    /// It landed: there is nothing to undo.
    pub(super) given_back: bool,
    pub(super) under: Under,
}

/// The memory that a slice lands in.
#[derive(Debug)]
pub(super) enum Under {
    /// The landing's, if that has any.
    Landing,
    /// Its own, from which it goes on.
    Stage(Slab),
    /// A device's: nobody here touches a byte of it.
    Device,
}

impl SliceLease {
    /// The lease with the memory that it lands in, where it needs some of its own; `None` if there is none.
    pub fn staged(mut self) -> Option<Self> {
        if let Some(sink) = &self.landing.sink {
            let stage = sink.stage(self.head.len as usize).filter(|slab| slab.len() == self.head.len as usize)?;
            self.under = Under::Stage(stage);
        }
        Some(self)
    }

    /// Where the slice lies in a device's memory, for a network card that writes it there.
    pub fn on_device(&self) -> OnDevice {
        let sink = self.landing.sink.as_ref();
        sink.map_or(OnDevice::No, |sink| sink.place(self.head.offset, self.head.len as usize))
    }

    /// From now on it lands where [`Self::on_device`] said.
    pub fn lies_there(&mut self) {
        self.under = Under::Device;
    }

    /// Whether it lands in a device's memory.
    pub fn is_on_device(&self) -> bool {
        matches!(self.under, Under::Device)
    }

    /// A network card has written it into a device's memory, and can write there no more: its checksum, if that is wanted. Before
    /// [`Self::landed`].
    pub fn written(&mut self, checked: bool) -> Option<Box<dyn Summing>> {
        self.filled = self.head.len;
        let sink = self.landing.sink.as_ref().filter(|_| self.is_on_device())?;
        sink.written(self.head.offset, self.head.len as usize, checked)
    }

    /// The part of `[from, to)` that lies together from its start on: pointer and length.
    fn piece(&self, from: u64, to: u64) -> Option<(NonNull<u8>, usize)> {
        let stage = match &self.under {
            Under::Landing => return self.landing.piece(from, to),
            Under::Stage(stage) => stage,
            Under::Device => return None,
        };
        let skip = usize::try_from(from.checked_sub(self.head.offset)?).ok()?;
        let len = stage.len().checked_sub(skip)?.min(usize::try_from(to.checked_sub(from)?).ok()?);
        // SAFETY: `skip` is at most the slab's length.
        Some((unsafe { stage.start().add(skip) }, len))
    }

    /// What was announced.
    pub fn head(&self) -> &SliceHead {
        &self.head
    }

    /// The slice was written by somebody who says that it has this checksum.
    pub fn announce(&mut self, crc: u32) {
        self.head.crc = crc;
    }

    /// Where all of the slice goes, piece by piece, for a device that writes there. The memory stays in place for as long as the
    /// lease lives, and is nobody else's until [`Self::advance`] tells what the device has written. Nowhere, if another lease has the
    /// slice.
    pub fn places(&mut self) -> impl Iterator<Item = (NonNull<u8>, usize)> + '_ {
        let held = self.hold();
        let (mut from, to) = (self.head.offset, self.head.offset + u64::from(self.head.len));
        std::iter::from_fn(move || {
            let piece = self.piece(from, to).filter(|p| held && p.1 > 0 && from < to)?;
            from += piece.1 as u64;
            Some(piece)
        })
    }

    /// The landing it belongs to.
    pub fn landing(&self) -> &Arc<Landing> {
        &self.landing
    }

    /// Keeps the slice from others while it is written. `false`: another lease has it.
    pub fn hold(&mut self) -> bool {
        self.mark(true)
    }

    /// Nothing is written for now: another lease may have the slice.
    pub fn rest(&mut self) {
        self.mark(false);
    }

    /// Whether this lease still has its slice; if so, notes whether it is being written.
    fn mark(&self, busy: bool) -> bool {
        match self.landing.lock().slices.get_mut(self.index) {
            Some(Slice::Leased { lease, busy: now }) if *lease == self.number => {
                *now = busy;
                true
            }
            _ => false,
        }
    }

    /// The next bytes to fill, contiguous; empty once all are, or if another lease has the slice.
    pub fn spare(&mut self) -> &mut [u8] {
        if !self.hold() {
            return &mut [];
        }
        let from = self.head.offset + u64::from(self.filled);
        let to = self.head.offset + u64::from(self.head.len);
        let Some((at, len)) = self.piece(from, to) else { return &mut [] };
        // SAFETY: the range lies in this lease's slice, which `claim` gives to no other lease while this one is marked busy: until
        // `advance` or `rest`, whose callers have given this borrow back. The slabs live in the landing (which `self` holds) because
        // `finish` waits until no lease is out; nobody else reads or writes them.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), len) }
    }

    /// `n` bytes of [`Self::spare`] were filled.
    pub fn advance(&mut self, n: usize) {
        self.rest();
        self.filled = self.filled.saturating_add(u32::try_from(n).unwrap_or(u32::MAX)).min(self.head.len);
    }

    /// The slice is whole: a device has written it, or it is copied from these bytes. What lacks of them stays to be filled.
    pub fn fill(&mut self, from: Option<&[u8]>) {
        let Some(mut rest) = from else { return self.advance(self.left()) };
        while self.left() > 0 && !rest.is_empty() {
            let spare = self.spare();
            let n = spare.len().min(rest.len());
            if n == 0 {
                break;
            }
            copy_counted(&mut spare[..n], &rest[..n]);
            rest = &rest[n..];
            self.advance(n);
        }
    }

    /// Bytes still to fill.
    pub fn left(&self) -> usize {
        (self.head.len - self.filled) as usize
    }

    /// Whether all bytes are there and have the checksum that was announced. `false`, too, if another lease has the slice.
    pub fn is_intact(&mut self) -> bool {
        if !self.hold() {
            return false;
        }
        let mut check = self.head.checker();
        let (mut from, to) = (self.head.offset, self.head.offset + u64::from(self.head.len));
        while from < to {
            let Some((at, len)) = self.piece(from, to).filter(|p| p.1 > 0) else { return false };
            // SAFETY: as in `spare`; nobody writes while this lease is marked busy but itself, and it is borrowed here.
            check.update(unsafe { std::slice::from_raw_parts(at.as_ptr(), len) });
            from += len as u64;
        }
        self.left() == 0 && check.matches()
    }

    /// The slice is whole. Whether it was the last one missing.
    pub fn landed(mut self) -> bool {
        if let Under::Stage(stage) = std::mem::replace(&mut self.under, Under::Landing) {
            // Marked busy, it is nobody else's until it has landed: what the sink gets last is what counts.
            if !self.hold() {
                return false;
            }
            if let Some(sink) = &self.landing.sink {
                sink.take(self.head.offset, stage);
            }
        }
        let mut state = self.landing.lock();
        if state.round != self.round {
            // Dropped, it counts as missing.
            return false;
        }
        match state.slices.get_mut(self.index) {
            Some(slice @ Slice::Leased { .. }) if slice.is_of(self.number) => *slice = Slice::Landed,
            _ => return false,
        }
        if let Some(bits) = state.bits.get_mut(self.index / 8) {
            *bits |= 1 << (self.index % 8);
        }
        state.landed += 1;
        // In one step with the count: whoever lands the last slice must find no lease out, or nobody would finish.
        state.leased -= 1;
        let all = state.landed as usize == state.slices.len();
        drop(state);
        self.given_back = true;
        all
    }
}

impl Drop for SliceLease {
    fn drop(&mut self) {
        if self.given_back {
            return;
        }
        let mut state = self.landing.lock();
        if let Some(slice) = state.slices.get_mut(self.index)
            && slice.is_of(self.number)
        {
            *slice = Slice::Missing;
            state.leased -= 1;
            let Range { start, end } = state.span;
            state.span =
                if start < end { start.min(self.index)..end.max(self.index + 1) } else { self.index..self.index + 1 };
        }
    }
}
