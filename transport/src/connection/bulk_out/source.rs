//! Transfers whose bytes are brought to the host's memory as lanes take them.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::outgoing::Outgoing;
use super::{BulkOut, State};
use crate::memory::Placed;

/// Bytes that lie where no lane can send them from: a device's memory.
pub trait Source: Debug + Send + Sync {
    /// How many bytes.
    fn bytes(&self) -> u64;

    /// There is something to bring: [`BulkOut::wanted`] tells what. Called on the threads of lanes, without their locks, and more often
    /// than there is need to: must be cheap, and not wait.
    fn wake(self: Arc<Self>);

    /// The other side's network card cannot be let at what was said to lie [there](There): from here on bytes are brought.
    fn unreachable(&self);
}

/// A slice that lies in a device's memory, for the other side's network card to read there.
#[derive(Debug)]
pub struct There {
    /// Piece by piece.
    pub places: Vec<Placed>,
    /// CRC32C of the bytes alone; anything where both sides do without.
    pub crc: u32,
    /// Keeps the memory, and the bytes as they are.
    pub keep: Box<dyn Any + Send + Sync>,
}

/// Bytes of all of a connection's transfers that are brought before lanes have taken them. Enough for the next slices to come from the
/// device while lanes send; not so many that a connection has much of the host's memory.
const AHEAD_BYTES: u64 = 16 << 20;

/// What of a transfer is brought.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) source: Arc<dyn Source>,
    /// Slices that lanes may take.
    pub(super) ready: BTreeMap<u32, Bytes>,
    /// Slices that lie elsewhere, and that lanes of devices may take.
    pub(super) there: BTreeMap<u32, Arc<There>>,
    /// Slices that are being brought.
    coming: BTreeSet<u32>,
    /// The next slice to bring for the first time.
    next: u32,
}

impl Stage {
    pub(super) fn new(source: Arc<dyn Source>) -> Self {
        Self { source, ready: BTreeMap::new(), there: BTreeMap::new(), coming: BTreeSet::new(), next: 0 }
    }

    /// Whether a slice is here, or on its way.
    fn has(&self, index: u32) -> bool {
        self.is_ready(index) || self.coming.contains(&index)
    }

    /// Whether a lane may take a slice.
    pub(super) fn is_ready(&self, index: u32) -> bool {
        self.ready.contains_key(&index) || self.there.contains_key(&index)
    }

    /// The slices that lanes may take.
    pub(super) fn all_ready(&self) -> impl Iterator<Item = &u32> {
        self.ready.keys().chain(self.there.keys())
    }

    fn is_of(&self, source: &Arc<dyn Source>) -> bool {
        Arc::ptr_eq(&self.source, source)
    }
}

impl BulkOut {
    /// The bytes of a transfer to bring next, slices one after another, of which `most` bytes at the most but one slice at least.
    /// Whoever asks brings them, and says so. `None`: enough are here, or the transfer is over.
    pub fn wanted(&self, transfer: u64, source: &Arc<dyn Source>, most: u64) -> Option<Range<u64>> {
        let mut state = self.lock();
        if state.brought_bytes() >= AHEAD_BYTES {
            return None;
        }
        let outgoing = state.waiting.iter_mut().find(|o| o.transfer == transfer)?;
        let first = outgoing.to_bring().filter(|_| outgoing.stage().is_some_and(|stage| stage.is_of(source)))?;
        let (start, mut end) = outgoing.bring(first);
        while let Some(index) = outgoing.to_bring() {
            let (offset, len) = outgoing.range(index);
            if offset != end || offset + len - start > most {
                break;
            }
            (_, end) = outgoing.bring(index);
        }
        Some(start..end)
    }

    /// Bytes that were wanted are here.
    pub fn brought(&self, transfer: u64, source: &Arc<dyn Source>, offset: u64, bytes: &Bytes) {
        let mut state = self.lock();
        let of = |o: &&mut Outgoing| o.transfer == transfer && o.stage().is_some_and(|stage| stage.is_of(source));
        // One that ended meanwhile wants nothing any more.
        if let Some(outgoing) = state.waiting.iter_mut().find(of) {
            outgoing.brought(offset, bytes);
        }
    }

    /// A slice that was wanted can be read where it lies. For connections whose lanes are devices' alone.
    pub fn lies_there(&self, transfer: u64, source: &Arc<dyn Source>, offset: u64, there: There) {
        let mut state = self.lock();
        let of = |o: &&mut Outgoing| o.transfer == transfer && o.stage().is_some_and(|stage| stage.is_of(source));
        let Some(outgoing) = state.waiting.iter_mut().find(of) else { return };
        let Some(index) = outgoing.index_of(offset) else { return };
        if let Some(stage) = outgoing.stage_mut()
            && stage.coming.remove(&index)
        {
            stage.there.insert(index, Arc::new(there));
        }
    }

    /// A slice that was taken cannot be read where it lies: it goes out again, as bytes.
    pub fn unreachable(&self, transfer: u64, offset: u64) {
        let mut state = self.lock();
        let Some((index, source)) = state
            .find(transfer)
            .and_then(|outgoing| Some((outgoing.index_of(offset)?, outgoing.stage()?.source.clone())))
        else {
            return;
        };
        source.unreachable();
        state.send_again(transfer, std::iter::once(index), None);
        Self::wake(state);
    }

    /// Bytes that were wanted cannot be brought: the transfer is forgotten. Whether there was one.
    pub fn failed(&self, transfer: u64, source: &Arc<dyn Source>) -> bool {
        let mut state = self.lock();
        let found = state.find(transfer).is_some_and(|o| o.stage().is_some_and(|stage| stage.is_of(source)));
        if found {
            state.forget(transfer);
            // Others may have the room that it had.
            Self::wake(state);
        }
        found
    }
}

impl State {
    /// Bytes that were brought, or are on their way, and no lane has taken.
    fn brought_bytes(&self) -> u64 {
        self.waiting.iter().map(Outgoing::brought_bytes).sum()
    }

    /// Who has something to bring now, the first in turn.
    pub(super) fn hungry(&self) -> Option<Arc<dyn Source>> {
        let mut staged = self.waiting.iter().filter(|o| o.stage().is_some()).peekable();
        staged.peek()?;
        let outgoing = staged.find(|o| o.to_bring().is_some())?;
        let room = self.brought_bytes() < AHEAD_BYTES;
        outgoing.stage().filter(|_| room).map(|stage| stage.source.clone())
    }
}

impl Outgoing {
    /// The next slice to bring: first those that are asked for again.
    fn to_bring(&self) -> Option<u32> {
        let stage = self.stage()?;
        let again = self.again().find(|index| !stage.has(*index));
        again.or_else(|| (stage.next < self.slices()).then_some(stage.next))
    }

    /// This slice is being brought: where it begins and ends.
    fn bring(&mut self, index: u32) -> (u64, u64) {
        let (offset, len) = self.range(index);
        if let Some(stage) = self.stage_mut() {
            stage.coming.insert(index);
            stage.next = stage.next.max(index + 1);
        }
        (offset, offset + len)
    }

    fn brought(&mut self, offset: u64, bytes: &Bytes) {
        let mut at = 0;
        while at < bytes.len() {
            let Some(index) = self.index_of(offset + at as u64) else { return };
            let end = at + self.range(index).1 as usize;
            let Some(stage) = self.stage_mut().filter(|_| end <= bytes.len()) else { return };
            if stage.coming.remove(&index) {
                stage.ready.insert(index, bytes.slice(at..end));
            }
            at = end;
        }
    }

    fn brought_bytes(&self) -> u64 {
        self.stage().map_or(0, |stage| {
            let slices = stage.ready.len() + stage.there.len() + stage.coming.len();
            slices as u64 * self.range(0).1
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::connection::Resent;

    #[derive(Debug)]
    struct Far {
        bytes: u64,
        woken: AtomicUsize,
        unreachable: AtomicUsize,
    }

    impl Source for Far {
        fn bytes(&self) -> u64 {
            self.bytes
        }

        fn wake(self: Arc<Self>) {
            self.woken.fetch_add(1, Ordering::Relaxed);
        }

        fn unreachable(&self) {
            self.unreachable.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn far(bytes: u64) -> (Arc<Far>, Arc<dyn Source>) {
        let far = Arc::new(Far { bytes, woken: AtomicUsize::new(0), unreachable: AtomicUsize::new(0) });
        (far.clone(), far)
    }

    fn bring(out: &BulkOut, transfer: u64, source: &Arc<dyn Source>, run: Range<u64>) {
        let bytes: Vec<u8> = (run.start..run.end).map(|i| i as u8).collect();
        out.brought(transfer, source, run.start, &bytes.into());
    }

    fn offsets(out: &BulkOut, lane: u32, now: Instant) -> Vec<u64> {
        let all = std::iter::from_fn(|| out.take(lane, now));
        let good = |taken: &crate::connection::Taken| {
            taken.bytes().flatten().enumerate().all(|(i, b)| *b == (taken.offset + i as u64) as u8)
        };
        all.inspect(|taken| assert!(good(taken))).map(|taken| taken.offset).collect()
    }

    #[test]
    fn what_cannot_be_read_where_it_lies_is_brought() {
        let (now, out) = (Instant::now(), BulkOut::default());
        let (far, source) = far(9);
        out.open_lane(1);
        out.push(Outgoing::staged(7, source.clone(), 3));
        assert_eq!(out.wanted(7, &source, 6), Some(0..6));
        let there = || There { places: Vec::new(), crc: 5, keep: Box::new(()) };
        out.lies_there(7, &source, 0, there());
        out.lies_there(7, &source, 3, there());
        let first = out.take(1, now).expect("it is ready");
        assert_eq!((first.offset, first.there.as_ref().map(|there| there.crc)), (0, Some(5)));
        out.unreachable(7, 0);
        assert_eq!(far.unreachable.load(Ordering::Relaxed), 1);
        assert_eq!(out.take(1, now).map(|slice| slice.offset), Some(3), "the others are as they were");
        assert!(out.take(1, now).is_none());
        assert_eq!(out.wanted(7, &source, 3), Some(0..3), "it is asked for again, first");
        bring(&out, 7, &source, 0..3);
        assert_eq!(offsets(&out, 1, now), [0]);
    }

    #[test]
    fn lanes_take_what_was_brought_and_no_more() {
        let (now, out) = (Instant::now(), BulkOut::default());
        let (far, source) = far(10);
        out.open_lane(1);
        out.push(Outgoing::staged(7, source.clone(), 3));
        assert_eq!(far.woken.load(Ordering::Relaxed), 1);
        assert!(!out.has_for(1) && out.take(1, now).is_none(), "nothing is here yet");
        assert_eq!(out.wanted(7, &source, 7), Some(0..6));
        assert_eq!(out.wanted(7, &source, 1), Some(6..9), "one slice at least");
        assert_eq!((out.wanted(7, &source, 7), out.wanted(7, &source, 7)), (Some(9..10), None));
        bring(&out, 7, &source, 0..6);
        bring(&out, 7, &source, 9..10);
        assert!(out.has_for(1));
        assert_eq!(offsets(&out, 1, now), [0, 3], "in order");
        assert!(!out.has_for(1) && !out.is_sent(7));
        bring(&out, 7, &source, 6..9);
        assert_eq!(offsets(&out, 1, now), [6, 9]);
        assert!(out.is_sent(7) && out.wanted(7, &source, 7).is_none());
        // One is asked for again: it is brought again.
        let before = far.woken.load(Ordering::Relaxed);
        assert_eq!(out.again(7, 3, false, Duration::MAX, now), Resent::Queued);
        assert!(far.woken.load(Ordering::Relaxed) > before && !out.has_for(1));
        assert_eq!((out.wanted(7, &source, 7), out.wanted(7, &source, 7)), (Some(3..6), None));
        bring(&out, 7, &source, 3..6);
        assert_eq!(offsets(&out, 1, now), [3]);
    }

    #[test]
    fn a_source_brings_nothing_for_a_transfer_that_is_over() {
        let (now, out) = (Instant::now(), BulkOut::default());
        let ((_, old), (_, new)) = (far(4), far(4));
        out.open_lane(1);
        out.push(Outgoing::staged(7, old.clone(), 4));
        assert_eq!(out.wanted(7, &old, 4), Some(0..4));
        out.push(Outgoing::staged(7, new.clone(), 4));
        bring(&out, 7, &old, 0..4);
        assert!(!out.has_for(1) && out.wanted(7, &old, 4).is_none() && !out.failed(7, &old));
        assert_eq!(out.wanted(7, &new, 4), Some(0..4));
        assert!(out.failed(7, &new) && !out.has(7));
        bring(&out, 7, &new, 0..4);
        assert!(out.take(1, now).is_none());
    }

    #[test]
    fn all_transfers_together_are_a_bounded_way_ahead() {
        let (now, out) = (Instant::now(), BulkOut::default());
        let slice = 4 << 20;
        let sources: Vec<_> = (0..20).map(|_| far(u64::from(slice) * 3)).collect();
        for (transfer, (_, source)) in sources.iter().enumerate() {
            out.push(Outgoing::staged(transfer as u64, source.clone(), slice));
        }
        let mut wanted = Vec::new();
        for (transfer, (_, source)) in sources.iter().enumerate() {
            while let Some(run) = out.wanted(transfer as u64, source, 1) {
                wanted.push((transfer as u64, run));
            }
        }
        assert_eq!(wanted.len() as u64, AHEAD_BYTES / u64::from(slice));
        // What ends makes room for the next in turn.
        let before = sources[1].0.woken.load(Ordering::Relaxed);
        out.end(0);
        assert!(sources[1].0.woken.load(Ordering::Relaxed) > before);
        assert!(out.wanted(1, &sources[1].1, 1).is_some());
        assert!(out.take(1, now).is_none());
    }
}
