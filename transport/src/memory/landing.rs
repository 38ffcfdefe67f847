//! Where the slices of a transfer land.

mod lease;

use self::lease::Under;

pub use self::lease::SliceLease;

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use super::exported::Placed;
use super::slab::Slab;
use crate::wire::SliceHead;

/// Where the slices of a transfer go on to, if not into the slabs of its [`Landing`]: a device's memory.
pub trait Sink: std::fmt::Debug + Send + Sync {
    /// Memory for a slice of so many bytes on its way; `None` if there is none.
    fn stage(&self, bytes: usize) -> Option<Slab>;

    /// Takes a slice that is whole and intact. The same bytes may come again, after a [`Landing::reset`] others: the last count.
    fn take(&self, offset: u64, slice: Slab);

    /// Where a slice lies in the device's memory, for a network card that writes it there.
    fn place(&self, offset: u64, bytes: usize) -> OnDevice;

    /// A network card has written this slice where [`Self::place`] said, and can write there no more. With `checked` its checksum is
    /// taken, and the slice is not taken for whole before that is known.
    fn written(&self, offset: u64, bytes: usize, checked: bool) -> Option<Box<dyn Summing>>;
}

/// Whether network cards write a slice into a device's memory themselves.
#[derive(Debug)]
pub enum OnDevice {
    /// There, piece by piece.
    Here(Vec<Placed>),
    /// Not yet: the device has still to be done with what lay there.
    Later,
    /// Not this one.
    No,
}

/// A device takes the checksum of bytes in its memory. Dropped early, it waits until the device is done with them.
pub trait Summing: Send {
    /// CRC32C of the bytes, once it is known. `None`: the device has failed, and whoever waits for the transfer hears of it.
    fn poll(&mut self) -> Poll<Option<u32>>;
}

/// Memory that a sliced transfer fills: slabs that together hold its bytes, and a state for each slice.
///
/// Slices lie on a grid: slice i starts at `i * slice_bytes`, and only the last may be shorter. A slice may cross from one
/// slab into the next. A slice is written by at most one lease at a time, and read by nobody before [`Landing::finish`]. Whoever
/// claims it last has it: a lease that nobody is writing through at that moment is lost to the new one.
pub struct Landing {
    /// Where each slab's bytes begin, in transfer order.
    segments: Vec<Segment>,
    /// Each slice lands in a slab of its own, and goes on from there.
    sink: Option<Arc<dyn Sink>>,
    total: u64,
    slice_bytes: u32,
    state: Mutex<State>,
}

struct Segment {
    start: u64,
    len: usize,
    at: NonNull<u8>,
}

struct State {
    /// The slabs themselves; `None` once finished.
    slabs: Option<Vec<Slab>>,
    slices: Vec<Slice>,
    /// One bit a slice, least significant first: 1 where it has landed. Who asks what is missing does so often, and a transfer may
    /// have a quarter of a million slices.
    bits: Vec<u8>,
    /// Every slice that is missing is one of these: who asks for one does not pass over all that have come.
    span: Range<usize>,
    landed: u32,
    /// Leases that are out and not lost.
    leased: u32,
    /// Numbers the leases.
    last_lease: u64,
    /// Counts resets: a lease from before one lands nothing.
    round: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Slice {
    Missing,
    /// By the lease with this number; `busy`: which is being written through.
    Leased {
        lease: u64,
        busy: bool,
    },
    Landed,
}

// SAFETY: the pointers lead into slabs that `state` owns for as long as a lease can exist, and leases are disjoint.
unsafe impl Send for Landing {}
// SAFETY: all shared state is behind the mutex; the bytes are reached only through disjoint leases.
unsafe impl Sync for Landing {}

/// Bytes of the map of what has landed that are looked at together.
const BLOCK: usize = 64;

/// What became of asking for a slice.
pub enum Claim {
    /// Write it here.
    Lease(SliceLease),
    /// It has landed already: drain the bytes.
    Duplicate,
    /// Another lane is writing it at this moment, and may yet fail to.
    Busy,
    /// No slice of this transfer has this offset and length.
    OffGrid,
}

impl Landing {
    /// Memory for a transfer of as many bytes as the slabs hold.
    pub fn new(mut slabs: Vec<Slab>, slice_bytes: u32) -> Arc<Self> {
        let mut start = 0;
        let segments = slabs
            .iter_mut()
            .map(|slab| {
                let segment = Segment { start, len: slab.len(), at: slab.start() };
                start += slab.len() as u64;
                segment
            })
            .collect();
        Arc::new(Self::over(slabs, segments, None, start, slice_bytes))
    }

    /// A transfer of `total` bytes whose slices go on to `sink`, one by one as they land.
    pub fn staged(total: u64, slice_bytes: u32, sink: Arc<dyn Sink>) -> Arc<Self> {
        Arc::new(Self::over(Vec::new(), Vec::new(), Some(sink), total, slice_bytes))
    }

    fn over(
        slabs: Vec<Slab>,
        segments: Vec<Segment>,
        sink: Option<Arc<dyn Sink>>,
        total: u64,
        slice_bytes: u32,
    ) -> Self {
        let slice_bytes = slice_bytes.max(1);
        let slices = usize::try_from(total.div_ceil(u64::from(slice_bytes))).unwrap_or(usize::MAX);
        let state = State {
            slabs: Some(slabs),
            slices: vec![Slice::Missing; slices],
            bits: vec![0; slices.div_ceil(8)],
            span: 0..slices,
            landed: 0,
            leased: 0,
            last_lease: 0,
            round: 0,
        };
        Self { segments, sink, total, slice_bytes, state: Mutex::new(state) }
    }

    /// Bytes of the transfer.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of every slice but the last.
    pub fn slice_bytes(&self) -> u32 {
        self.slice_bytes
    }

    /// How many slices.
    pub fn slices(&self) -> u32 {
        self.lock().slices.len() as u32
    }

    /// One bit a slice, least significant first: 1 where it has landed.
    pub fn landed_bits(&self) -> Vec<u8> {
        self.lock().bits.clone()
    }

    /// Bytes that have landed.
    pub fn landed_bytes(&self) -> u64 {
        let state = self.lock();
        let last_landed = state.slices.last() == Some(&Slice::Landed);
        let short = (state.slices.len() as u64 * u64::from(self.slice_bytes)).saturating_sub(self.total);
        u64::from(state.landed) * u64::from(self.slice_bytes) - if last_landed { short } else { 0 }
    }

    /// Whether every slice has landed.
    pub fn is_complete(&self) -> bool {
        let state = self.lock();
        state.landed as usize == state.slices.len()
    }

    /// The first bytes of slices that have not landed: `most` at the most.
    pub fn missing(&self, most: usize) -> Vec<u64> {
        let state = self.lock();
        let mut missing = Vec::with_capacity(most.min(state.slices.len() - state.landed as usize));
        // Most of a large transfer has landed when this is asked, and is passed over a block at a time.
        for (block, bits) in
            state.bits.chunks(BLOCK).enumerate().filter(|(_, bits)| **bits != [u8::MAX; BLOCK][..bits.len()])
        {
            let first = block * BLOCK * 8;
            let last = (first + bits.len() * 8).min(state.slices.len());
            let left = most - missing.len();
            let here = (first..last).filter(|i| bits[(i - first) / 8] & (1 << (i % 8)) == 0).take(left);
            missing.extend(here.map(|i| i as u64 * u64::from(self.slice_bytes)));
            if missing.len() == most {
                break;
            }
        }
        missing
    }

    /// Whether the slice that begins with this byte has landed.
    pub fn has(&self, offset: u64) -> bool {
        let index = usize::try_from(offset / u64::from(self.slice_bytes)).unwrap_or(usize::MAX);
        self.lock().slices.get(index) == Some(&Slice::Landed)
    }

    /// How many slices have landed.
    pub fn landed(&self) -> u32 {
        self.lock().landed
    }

    /// A lease to write the slice that `head` announces.
    pub fn claim(self: &Arc<Self>, head: &SliceHead) -> Claim {
        let size = u64::from(self.slice_bytes);
        let index = head.offset / size;
        let expected = size.min(self.total.saturating_sub(head.offset));
        if head.total != self.total || !head.offset.is_multiple_of(size) || u64::from(head.len) != expected {
            return Claim::OffGrid;
        }
        let mut state = self.lock();
        let open = state.slabs.is_some();
        let number = state.last_lease + 1;
        let Some(slice) = usize::try_from(index).ok().and_then(|i| state.slices.get_mut(i)) else {
            return Claim::OffGrid;
        };
        match *slice {
            Slice::Landed => return Claim::Duplicate,
            _ if !open => return Claim::Duplicate,
            Slice::Leased { busy: true, .. } => return Claim::Busy,
            ref free => {
                let more = u32::from(*free == Slice::Missing);
                *slice = Slice::Leased { lease: number, busy: false };
                state.leased += more;
            }
        }
        state.last_lease = number;
        let round = state.round;
        drop(state);
        let lease = SliceLease {
            landing: self.clone(),
            index: index as usize,
            number,
            head: *head,
            filled: 0,
            round,
            given_back: false,
            under: Under::Landing,
        };
        match lease.staged() {
            Some(lease) => Claim::Lease(lease),
            // It counts as missing, and is asked for again.
            None => Claim::Busy,
        }
    }

    /// A lease to write some slice that is missing, the first from slice `from` on or else from the front; where there is none,
    /// `None`. For links whose receiving side asks for slices: their checksum is announced later. What goes on to a sink has no memory
    /// before [`SliceLease::staged`] or [`SliceLease::lies_there`].
    pub fn claim_missing(self: &Arc<Self>, transfer: u64, from: u32) -> Option<SliceLease> {
        let mut state = self.lock();
        let taken = state.landed as usize + state.leased as usize;
        if taken >= state.slices.len() || state.slabs.is_none() {
            return None;
        }
        let index = state.first_missing(from as usize)?;
        state.last_lease += 1;
        let number = state.last_lease;
        // The device may write as soon as it is told where: nobody else gets the slice before it has done so.
        state.slices[index] = Slice::Leased { lease: number, busy: true };
        state.leased += 1;
        let round = state.round;
        drop(state);
        let offset = index as u64 * u64::from(self.slice_bytes);
        let len = u64::from(self.slice_bytes).min(self.total - offset) as u32;
        let head = SliceHead { transfer, offset, total: self.total, len, crc: 0 };
        let landing = self.clone();
        Some(SliceLease { landing, index, number, head, filled: 0, round, given_back: false, under: Under::Landing })
    }

    /// Every slice is missing again, those too that are being written: what they were part of is asked for anew.
    pub fn reset(&self) {
        let mut state = self.lock();
        state.round = state.round.wrapping_add(1);
        state.landed = 0;
        state.bits.fill(0);
        state.slices.iter_mut().filter(|s| **s == Slice::Landed).for_each(|s| *s = Slice::Missing);
        state.span = 0..state.slices.len();
    }

    /// The slabs, once every slice has landed; `None` before that, and after it was called once. None of them are left where
    /// the slices went on to a sink.
    pub fn finish(&self) -> Option<Vec<Slab>> {
        let mut state = self.lock();
        (state.landed as usize == state.slices.len() && state.leased == 0).then(|| state.slabs.take()).flatten()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of `[from, to)` that lies in the first segment it touches: pointer and length.
    fn piece(&self, from: u64, to: u64) -> Option<(NonNull<u8>, usize)> {
        let i = self.segments.partition_point(|s| s.start <= from).checked_sub(1)?;
        let segment = self.segments.get(i)?;
        let skip = usize::try_from(from - segment.start).ok()?;
        let len = segment.len.checked_sub(skip)?.min(usize::try_from(to - from).ok()?);
        // SAFETY: `skip` is at most the segment's length, so the result stays within (or one past) its allocation.
        Some((unsafe { segment.at.add(skip) }, len))
    }
}

impl std::fmt::Debug for Landing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Landing").field("total", &self.total).field("slice_bytes", &self.slice_bytes).finish()
    }
}

impl State {
    /// The first slice that is missing from `from` on, or else the first of all.
    fn first_missing(&mut self, from: usize) -> Option<usize> {
        let Range { start, end } = self.span;
        let from = from.clamp(start, end.max(start));
        let missing = |range: Range<usize>| {
            let first = range.start;
            let slices = self.slices.get(range)?;
            slices.iter().position(|s| *s == Slice::Missing).map(|i| first + i)
        };
        let (index, span) = match missing(from..end) {
            // What it passed over from the start on is not missing, nor is what it takes.
            Some(index) if from == start => (Some(index), index + 1..end),
            Some(index) => (Some(index), start..end),
            None => match missing(start..from) {
                Some(index) => (Some(index), index + 1..from),
                None => (None, end..end),
            },
        };
        self.span = span;
        index
    }
}

impl Slice {
    fn is_of(self, number: u64) -> bool {
        matches!(self, Self::Leased { lease, .. } if lease == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(offset: u64, total: u64, payload: &[u8]) -> SliceHead {
        SliceHead::decode(&SliceHead::encode(7, offset, total, payload)).unwrap()
    }

    fn fill(lease: &mut SliceLease, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let spare = lease.spare();
            let n = spare.len().min(bytes.len());
            spare[..n].copy_from_slice(&bytes[..n]);
            lease.advance(n);
            bytes = &bytes[n..];
        }
    }

    #[test]
    fn slices_cross_slabs_and_finish_once() {
        let bytes: Vec<u8> = (0..25u8).collect();
        let landing = Landing::new(vec![Slab::zeroed(10), Slab::zeroed(10), Slab::zeroed(5)], 8);
        assert_eq!(landing.slices(), 4);
        for chunk in [2, 0, 3, 1] {
            let at = chunk * 8;
            let payload = &bytes[at..(at + 8).min(25)];
            let Claim::Lease(mut lease) = landing.claim(&head(at as u64, 25, payload)) else { panic!("no lease") };
            assert!(lease.hold());
            assert!(matches!(landing.claim(&head(at as u64, 25, payload)), Claim::Busy));
            fill(&mut lease, payload);
            assert!(lease.is_intact());
            assert!(landing.finish().is_none(), "a lease is out");
            assert_eq!(lease.landed(), chunk == 1);
            assert!(matches!(landing.claim(&head(at as u64, 25, payload)), Claim::Duplicate));
        }
        assert_eq!(landing.landed_bytes(), 25);
        let slabs = landing.finish().unwrap();
        assert_eq!(slabs.iter().flat_map(|s| s.to_vec()).collect::<Vec<_>>(), bytes);
        assert!(landing.finish().is_none());
    }

    #[test]
    fn missing_slices_are_claimed_in_turn() {
        let landing = Landing::new(vec![Slab::zeroed(10), Slab::zeroed(15)], 8);
        let mut leases: Vec<_> =
            [2, 0, 3, 1].iter().map(|&from| landing.claim_missing(7, from).expect("a slice")).collect();
        let offsets: Vec<_> = leases.iter().map(|l| l.head().offset / 8).collect();
        assert_eq!(offsets, [2, 0, 3, 1]);
        assert!(landing.claim_missing(7, 0).is_none());
        let places: Vec<_> = leases[3].places().map(|p| p.1).collect();
        assert_eq!(places, [2, 6], "it crosses from one slab into the next");
        leases.remove(1);
        let again = landing.claim_missing(7, 3).expect("it was given back");
        assert_eq!((again.head().offset, again.head().len), (0, 8));
    }

    /// Whoever asked for the next slice passed over all that had come: the last of 64 GiB took a thousand times the first.
    #[test]
    fn what_has_come_is_not_passed_over_again() {
        let landing = Landing::new(vec![Slab::zeroed(1000)], 1);
        let span = || landing.lock().span.clone();
        // Two lanes, in turn.
        let mut from = [0, 500];
        let mut leases = Vec::new();
        for i in 0..1000 {
            let lease = landing.claim_missing(7, from[i % 2]).expect("a slice");
            from[i % 2] = lease.head().offset as u32 + 1;
            leases.push(lease);
            assert!(span().len() <= 1000 - i / 2, "{:?} after {i}", span());
        }
        assert!(landing.claim_missing(7, 3).is_none());
        // A lane dies, and what it had is missing again.
        leases.retain(|lease| ![700, 30, 301].contains(&lease.head().offset));
        assert_eq!(span().start, 30);
        let mut next = |from| {
            leases.push(landing.claim_missing(7, from)?);
            leases.last().map(|lease| lease.head().offset)
        };
        assert_eq!([next(0), next(650), next(650), next(0)], [Some(30), Some(700), Some(301), None]);
    }

    #[test]
    fn a_lease_dropped_early_leaves_the_slice_missing() {
        let landing = Landing::new(vec![Slab::zeroed(16)], 8);
        let Claim::Lease(lease) = landing.claim(&head(8, 16, &[1; 8])) else { panic!("no lease") };
        drop(lease);
        assert_eq!(landing.landed_bits(), [0]);
        assert!(matches!(landing.claim(&head(8, 16, &[1; 8])), Claim::Lease(_)));
    }

    #[test]
    fn the_few_that_are_missing_among_many_are_found() {
        let landing = Landing::new(vec![Slab::zeroed(3001)], 1);
        let gaps = [0, 511, 512, 1700, 2999, 3000];
        for at in (0..3001).filter(|at| !gaps.contains(at)) {
            let Claim::Lease(mut lease) = landing.claim(&head(at, 3001, &[1])) else { panic!("no lease") };
            fill(&mut lease, &[1]);
            assert!(!lease.landed());
        }
        assert_eq!(landing.missing(100), gaps);
        assert_eq!(landing.missing(4), gaps[..4]);
        assert_eq!(landing.missing(0), []);
        let mut bits = vec![255; 376];
        gaps.iter().for_each(|&at| bits[at as usize / 8] &= !(1 << (at % 8)));
        bits[375] = 0;
        assert_eq!(landing.landed_bits(), bits);
    }

    /// A slice that crawls over one lane comes over another as well: who claimed it last writes it, and nobody else.
    #[test]
    fn a_lease_is_lost_to_a_later_one_unless_it_is_busy() {
        let landing = Landing::new(vec![Slab::zeroed(8)], 8);
        let Claim::Lease(mut slow) = landing.claim(&head(0, 8, &[1; 8])) else { panic!("no lease") };
        slow.spare()[..3].copy_from_slice(&[9; 3]);
        assert!(matches!(landing.claim(&head(0, 8, &[1; 8])), Claim::Busy), "it is being written");
        slow.advance(3);
        let Claim::Lease(mut fast) = landing.claim(&head(0, 8, &[1; 8])) else { panic!("no lease") };
        assert!(!slow.hold() && slow.spare().is_empty() && !slow.is_intact());
        assert!(landing.finish().is_none(), "a lease is out");
        fill(&mut fast, &[1; 8]);
        drop(slow);
        assert!(fast.is_intact());
        assert_eq!((landing.missing(9), landing.has(0)), (vec![0], false));
        assert!(fast.landed());
        assert_eq!((landing.missing(9), landing.has(0)), (vec![], true));
        assert_eq!(landing.finish().unwrap()[0][..], [1; 8]);
    }

    #[test]
    fn a_lease_that_was_lost_lands_nothing() {
        let landing = Landing::new(vec![Slab::zeroed(8)], 8);
        let Claim::Lease(mut first) = landing.claim(&head(0, 8, &[1; 8])) else { panic!("no lease") };
        fill(&mut first, &[1; 8]);
        let Claim::Lease(second) = landing.claim(&head(0, 8, &[1; 8])) else { panic!("no lease") };
        assert!(!first.landed());
        assert!(landing.finish().is_none());
        drop(second);
        assert_eq!(landing.missing(9), [0]);
    }

    #[test]
    fn a_reset_forgets_what_landed_and_what_is_landing() {
        let landing = Landing::new(vec![Slab::zeroed(16)], 8);
        let Claim::Lease(mut first) = landing.claim(&head(0, 16, &[1; 8])) else { panic!("no lease") };
        fill(&mut first, &[1; 8]);
        assert!(!first.landed());
        let Claim::Lease(mut second) = landing.claim(&head(8, 16, &[1; 8])) else { panic!("no lease") };
        fill(&mut second, &[1; 8]);
        landing.reset();
        assert!(!second.landed(), "it belongs to what was asked for before");
        assert_eq!((landing.landed_bits(), landing.landed_bytes()), (vec![0], 0));
        for at in [0, 8] {
            let Claim::Lease(mut lease) = landing.claim(&head(at, 16, &[2; 8])) else { panic!("no lease") };
            fill(&mut lease, &[2; 8]);
            assert_eq!(lease.landed(), at == 8);
        }
        assert_eq!(landing.finish().unwrap()[0][..], [2; 16]);
    }

    #[test]
    fn corruption_and_wrong_places_are_noticed() {
        let landing = Landing::new(vec![Slab::zeroed(16)], 8);
        let Claim::Lease(mut lease) = landing.claim(&head(0, 16, &[1; 8])) else { panic!("no lease") };
        fill(&mut lease, &[1, 1, 1, 9, 1, 1, 1, 1]);
        assert!(!lease.is_intact());
        assert!(matches!(landing.claim(&head(4, 16, &[1; 8])), Claim::OffGrid));
        assert!(matches!(landing.claim(&head(8, 17, &[1; 8])), Claim::OffGrid));
        assert!(matches!(landing.claim(&head(8, 16, &[1; 7])), Claim::OffGrid));
    }
}
