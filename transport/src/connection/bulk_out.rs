//! A bulk lane's sending half: slices straight from the memory they lie in.

mod lend;
mod outgoing;
mod source;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use lend::OutSlice;
pub use outgoing::{Outgoing, Taken};
pub use source::{Source, There};

use super::lane_log::LaneLog;
use super::outbox::Sink;
use crate::wire::{SLICE_FRAME_BYTES, SliceHead};

/// One slice on its way out.
#[derive(Clone, Debug)]
struct Sending {
    transfer: u64,
    offset: u64,
    total: u64,
    pieces: Pieces,
    /// Whether its payload gets a checksum.
    checked: bool,
    /// Whether its pages may go in place of its bytes.
    by_pages: bool,
    /// Made when the slice is first offered to a sink: the checksum's pass over the bytes then warms the cache for the
    /// kernel's.
    head: Option<[u8; SLICE_FRAME_BYTES]>,
    sent: usize,
}

/// The pieces of one slice: nearly always one, which then needs no allocation.
#[derive(Clone, Debug)]
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

/// Transfers of a connection on their way out. Its lanes take slices from here, so that a fast lane carries more; what a lane
/// loses comes back here.
///
/// A transfer whose slices have all been handed out is kept until [`Self::end`]: any of them may be asked for again.
#[derive(Debug, Default)]
pub struct BulkOut {
    state: Mutex<State>,
    /// Whether there may be a transfer; changed by who holds `state`. A control lane asks before every request.
    used: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Transfers with slices to hand out.
    waiting: VecDeque<Outgoing>,
    /// Transfers of which every slice was handed out, oldest first.
    sent: BTreeMap<u64, Outgoing>,
    /// How many of those are kept.
    keep: usize,
    /// Transfers that were wholly sent and are not kept, which the lanes remember: should a slice of theirs be lost, the receiver
    /// is told.
    dropped: VecDeque<u64>,
    lanes: Vec<LaneLog>,
    checked: bool,
}

/// From one transfer the lanes take so many bytes before it is another's turn. A tensor of this size goes in one turn, so that the
/// first of several is there, and its memory free again, before the last has begun: slices in turns would have all of them
/// end at once, and the receiver write to all of their memory at a time, which is more than its cache holds.
const TURN_BYTES: u64 = 4 << 20;

/// Transfers that are not kept and are remembered.
const REMEMBERED: usize = 1024;

/// Lanes that take no more, and of which the other side has not said yet what came over them.
const CLOSED_LANES: usize = 64;

impl Default for State {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            sent: BTreeMap::new(),
            keep: usize::MAX,
            dropped: VecDeque::new(),
            lanes: Vec::new(),
            checked: true,
        }
    }
}

/// What became of asking for a slice once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resent {
    /// It goes out again, or is on its way.
    Queued,
    /// This lane was given it so long ago that the lane should be ended; all that it lost then goes out again.
    Stuck(u32),
    /// The transfer is not kept any more.
    Unknown,
}

impl BulkOut {
    /// One that keeps so many transfers that are wholly sent.
    pub fn keeping(keep: usize) -> Self {
        Self { state: Mutex::new(State { keep, ..State::default() }), used: AtomicBool::new(false) }
    }

    /// Whether the payloads of slices get checksums: they do unless the two sides said otherwise.
    pub fn set_checked(&self, checked: bool) {
        self.lock().checked = checked;
    }

    /// Adds a transfer, or begins it anew.
    pub fn push(&self, outgoing: Outgoing) {
        let mut state = self.lock();
        self.used.store(true, Ordering::Release);
        state.forget(outgoing.transfer);
        state.waiting.push_back(outgoing);
        while state.dropped.len() > REMEMBERED
            && let Some(transfer) = state.dropped.pop_front()
        {
            if state.find(transfer).is_none() {
                state.lanes.iter_mut().for_each(|log| log.forget(transfer));
            }
        }
        Self::wake(state);
    }

    /// Forgets a transfer, since its receiver said so: no further slice of it begins.
    pub fn end(&self, transfer: u64) {
        let mut state = self.lock();
        state.find_mut(transfer).for_each(Outgoing::was_read);
        state.forget(transfer);
        // Others may have the room that it had.
        Self::wake(state);
    }

    /// Forgets every transfer and every lane.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.sent.clear();
        state.dropped.clear();
        state.lanes.clear();
    }

    /// Transfers that are not wholly sent.
    pub fn len(&self) -> usize {
        if !self.used.load(Ordering::Acquire) {
            return 0;
        }
        let state = self.lock();
        if state.waiting.is_empty() && state.sent.is_empty() {
            self.used.store(false, Ordering::Release);
        }
        state.waiting.len()
    }

    /// Whether nothing waits to begin.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A slice that the receiver asks for. `None`: no such transfer is on its way out, or not with these bytes.
    pub fn slice(&self, transfer: u64, offset: u64, len: u32, total: u64) -> Option<Taken> {
        let state = self.lock();
        let outgoing = state.find(transfer)?;
        let end = offset.checked_add(u64::from(len))?;
        let fits = outgoing.total == total && end <= total;
        if fits { outgoing.taken(offset, u64::from(len), state.checked) } else { None }
    }

    /// Whether this transfer is on its way out.
    pub fn has(&self, transfer: u64) -> bool {
        self.lock().find(transfer).is_some()
    }

    /// The next slice for this lane to offer; transfers take turns.
    pub fn take(&self, lane: u32, now: Instant) -> Option<Taken> {
        self.next_of(lane, now, Outgoing::hand)
    }

    /// Whether something waits that this lane may carry.
    pub fn has_for(&self, lane: u32) -> bool {
        let state = self.lock();
        let alone = state.is_alone(lane);
        state.is_open(lane) && state.waiting.iter().any(|o| o.has_for(lane, alone))
    }

    /// Whether every slice of the transfer was handed out, and it is kept.
    pub fn is_sent(&self, transfer: u64) -> bool {
        self.lock().sent.contains_key(&transfer)
    }

    /// A slice is asked for again. `late`: it has not come, though other lanes lie idle; a lane that has had it for `stuck` is
    /// no good, one that is alone for five times as long.
    pub fn again(&self, transfer: u64, offset: u64, late: bool, stuck: Duration, now: Instant) -> Resent {
        let mut state = self.lock();
        let Some(index) = state.find(transfer).map(|o| o.index_of(offset)) else { return Resent::Unknown };
        let Some(index) = index.filter(|&i| state.find(transfer).is_some_and(|o| !o.has_waiting(i))) else {
            return Resent::Queued;
        };
        let carried: Vec<_> = state.lanes.iter().filter_map(|log| Some((log, log.find(transfer, index)?))).collect();
        let open: Vec<_> = carried.iter().filter(|(log, _)| log.is_open()).map(|(log, at)| (log.lane, *at)).collect();
        if late {
            if open.len() < carried.len() && open.is_empty() {
                // The other side is about to say what came over its last lane.
                return Resent::Queued;
            }
            for &(lane, at) in &open {
                let patience = if state.is_alone(lane) { stuck.saturating_mul(5) } else { stuck };
                if now.saturating_duration_since(at) >= patience {
                    return Resent::Stuck(lane);
                }
            }
            if open.len() > 1 || open.iter().any(|(lane, _)| state.is_alone(*lane)) {
                return Resent::Queued;
            }
        }
        let not_over = open.last().map(|(lane, _)| *lane);
        state.send_again(transfer, std::iter::once(index), not_over);
        Self::wake(state);
        Resent::Queued
    }

    /// A lane is open: it takes slices from now on.
    pub fn open_lane(&self, lane: u32) {
        self.lock().lanes.push(LaneLog::new(lane));
    }

    /// A lane takes no more. Before the other side has said what came over it ([`Self::lost_lane`]), it is not known what it
    /// lost.
    pub fn close_lane(&self, lane: u32) {
        let mut state = self.lock();
        state.lanes.iter_mut().filter(|log| log.lane == lane).for_each(LaneLog::close);
        // Where the other side never says, its slices go out again once they are asked for.
        if state.lanes.iter().filter(|log| !log.is_open()).count() > CLOSED_LANES
            && let Some(at) = state.lanes.iter().position(|log| !log.is_open())
        {
            state.lanes.remove(at);
        }
    }

    /// The other side has ended a lane, and so many slices came over it: the others go out again. Gives the transfers that it
    /// lost something of, and which are not kept any more.
    pub fn lost_lane(&self, lane: u32, came: u64) -> Vec<u64> {
        let mut state = self.lock();
        let Some(at) = state.lanes.iter().position(|log| log.lane == lane) else { return Vec::new() };
        let log = state.lanes.remove(at);
        let lost = log.lost(came);
        let unknown =
            lost.filter_map(|(transfer, slices)| (!state.send_again(transfer, slices, None)).then_some(transfer));
        let unknown = unknown.collect();
        Self::wake(state);
        unknown
    }

    /// The next slice for this lane; transfers take turns.
    fn next(&self, lane: u32, now: Instant) -> Option<Sending> {
        self.next_of(lane, now, Outgoing::slice)
    }

    fn next_of<T>(&self, lane: u32, now: Instant, make: impl Fn(&mut Outgoing, u32, bool) -> T) -> Option<T> {
        let mut state = self.lock();
        let slice = state.next_of(lane, now, make);
        if slice.is_some() {
            Self::wake(state);
        }
        slice
    }

    /// Tells who has something to bring.
    fn wake(state: MutexGuard<'_, State>) {
        let hungry = state.hungry();
        drop(state);
        hungry.into_iter().for_each(Source::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_of<T>(&mut self, lane: u32, now: Instant, make: impl Fn(&mut Outgoing, u32, bool) -> T) -> Option<T> {
        let alone = self.is_alone(lane);
        let Self { waiting, sent, keep, dropped, lanes, checked } = self;
        let log = lanes.iter_mut().find(|log| log.lane == lane && log.is_open())?;
        for _ in 0..waiting.len() {
            let mut outgoing = waiting.pop_front()?;
            let index = outgoing.next_index(lane, alone);
            let slice = index.map(|index| make(&mut outgoing, index, *checked));
            if let Some(index) = index {
                log.hand(outgoing.transfer, index, now);
                outgoing.turn += outgoing.range(index).1;
            }
            if outgoing.is_sent() {
                sent.insert(outgoing.transfer, outgoing);
                if sent.len() > *keep
                    && let Some((transfer, _)) = sent.pop_first()
                {
                    dropped.push_back(transfer);
                }
            } else if slice.is_some() && outgoing.turn < TURN_BYTES {
                waiting.push_front(outgoing);
            } else {
                outgoing.turn = 0;
                waiting.push_back(outgoing);
            }
            if slice.is_some() {
                return slice;
            }
        }
        None
    }

    fn is_open(&self, lane: u32) -> bool {
        self.lanes.iter().any(|log| log.lane == lane && log.is_open())
    }

    fn is_alone(&self, lane: u32) -> bool {
        !self.lanes.iter().any(|log| log.lane != lane && log.is_open())
    }

    fn find(&self, transfer: u64) -> Option<&Outgoing> {
        self.sent.get(&transfer).or_else(|| self.waiting.iter().find(|o| o.transfer == transfer))
    }

    fn find_mut(&mut self, transfer: u64) -> impl Iterator<Item = &mut Outgoing> {
        let Self { sent, waiting, .. } = self;
        sent.get_mut(&transfer).into_iter().chain(waiting.iter_mut().filter(move |o| o.transfer == transfer))
    }

    fn forget(&mut self, transfer: u64) {
        self.waiting.retain(|o| o.transfer != transfer);
        self.sent.remove(&transfer);
        self.lanes.iter_mut().for_each(|log| log.forget(transfer));
    }

    /// Whether the transfer is kept.
    fn send_again(&mut self, transfer: u64, slices: impl Iterator<Item = u32>, not_over: Option<u32>) -> bool {
        if let Some(outgoing) = self.sent.remove(&transfer) {
            self.waiting.push_back(outgoing);
        }
        let Some(outgoing) = self.waiting.iter_mut().rev().find(|o| o.transfer == transfer) else { return false };
        slices.for_each(|index| outgoing.send_again(index, not_over));
        true
    }
}

/// The sending half of one bulk lane.
#[derive(Debug)]
pub struct BulkLane {
    lane: u32,
    current: Option<Sending>,
    /// Whether an operation owns the slice that is being sent.
    lent: bool,
    /// Counts what the sink took, so that a standstill shows.
    sent: u64,
    slices: u64,
}

impl BulkLane {
    /// Of lane `lane`, which takes slices from when [`BulkOut::open_lane`] was told so.
    pub fn new(lane: u32) -> Self {
        Self { lane, current: None, lent: false, sent: 0, slices: 0 }
    }

    /// Sends slices until nothing is left for this lane (`true`), or the sink is full or `most` slices have ended (`false`).
    ///
    /// # Errors
    /// The sink's, if the lane is gone.
    pub fn flush(&mut self, out: &BulkOut, sink: &mut dyn Sink, most: usize, now: Instant) -> io::Result<bool> {
        for _ in 0..most {
            let Some(slice) = self.current.take().or_else(|| out.next(self.lane, now)) else { return Ok(true) };
            let before = slice.sent;
            let whole = slice.whole() as u64;
            let (slice, full) = slice.send(sink)?;
            self.sent += slice.as_ref().map_or(whole, |s| s.sent as u64) - before as u64;
            self.slices += u64::from(slice.is_none());
            if full {
                self.current = slice;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Bytes that went out, heads included.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Slices that went out whole.
    pub fn slices(&self) -> u64 {
        self.slices
    }

    /// Whether a slice is half sent.
    pub fn is_sending(&self) -> bool {
        self.current.is_some() || self.lent
    }

    /// Whether [`Self::flush`] has something to do.
    pub fn wants_to_send(&self, out: &BulkOut) -> bool {
        self.is_sending() || out.has_for(self.lane)
    }
}

impl Sending {
    fn whole(&self) -> usize {
        SLICE_FRAME_BYTES + self.pieces.as_slice().iter().map(Bytes::len).sum::<usize>()
    }

    fn head(&mut self) -> &[u8; SLICE_FRAME_BYTES] {
        let whole = self.whole();
        let Self { transfer, offset, total, pieces, checked, head, .. } = self;
        head.get_or_insert_with(|| {
            if *checked {
                return SliceHead::encode_pieces(*transfer, *offset, *total, pieces.as_slice().iter().map(|p| &p[..]));
            }
            SliceHead::encode_unchecked(*transfer, *offset, *total, (whole - SLICE_FRAME_BYTES) as u32)
        })
    }

    /// The slice, if some of it is left, and whether the sink is full.
    fn send(mut self, sink: &mut dyn Sink) -> io::Result<(Option<Self>, bool)> {
        let whole = self.whole();
        let head = *self.head();
        let pieces = self.pieces.as_slice();
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
            let sent = if self.by_pages { sink.send_pages(&bufs[..used]) } else { sink.send(&bufs[..used]) };
            match sent {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok((Some(self), true)),
                Err(e) => return Err(e),
            }
        }
        Ok((None, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: u32 = 1;

    fn all(out: &BulkOut, lane: u32, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| out.take(lane, now)).map(|taken| taken.offset).collect()
    }

    /// Once, a lane's end looked through all that waited to be sent again for each slice that it had lost: one frame of a client
    /// that had asked for a large tensor in small slices, and said that none had come, held the connection for minutes.
    #[test]
    fn a_lane_that_lost_a_quarter_of_a_million_slices_ends_at_once() {
        let now = Instant::now();
        let (out, bytes) = (BulkOut::default(), Bytes::from(vec![0; 1 << 18]));
        out.push(Outgoing::new(7, vec![bytes], 1));
        out.open_lane(LANE);
        assert_eq!(all(&out, LANE, now).len(), 1 << 18);
        for index in 0..1 << 18 {
            assert_eq!(out.again(7, index, true, Duration::MAX, now), Resent::Queued);
        }
        assert!(out.lost_lane(LANE, 3).is_empty());
        out.open_lane(2);
        assert_eq!(all(&out, 2, now), (3..1 << 18).collect::<Vec<_>>());
        // Each is asked for once more, and lane 2 may not carry it.
        out.open_lane(3);
        for index in 3..1 << 18 {
            assert_eq!(out.again(7, index, false, Duration::MAX, now), Resent::Queued);
        }
        assert!(!out.has_for(2) && out.has_for(3));
        assert!(out.take(2, now).is_none());
        assert_eq!(all(&out, 3, now).len(), (1 << 18) - 3);
    }

    #[test]
    fn a_slice_that_is_late_goes_over_another_lane_and_never_is_no_time() {
        let now = Instant::now();
        let out = BulkOut::default();
        out.push(Outgoing::new(7, vec![Bytes::from_static(&[0; 8])], 4));
        out.open_lane(LANE);
        assert_eq!(all(&out, LANE, now), [0, 4]);
        out.open_lane(2);
        assert_eq!(out.again(7, 4, true, Duration::MAX, now), Resent::Queued);
        assert_eq!((all(&out, LANE, now), all(&out, 2, now)), (vec![], vec![4]));
        let later = now + Duration::from_secs(2);
        assert_eq!(out.again(7, 0, true, Duration::from_secs(1), later), Resent::Stuck(LANE));
        assert_eq!(out.again(8, 0, true, Duration::from_secs(1), later), Resent::Unknown);
    }

    #[test]
    fn what_is_not_kept_is_named_when_a_lane_loses_it() {
        let now = Instant::now();
        let out = BulkOut::keeping(1);
        out.open_lane(LANE);
        for transfer in [7, 8] {
            out.push(Outgoing::new(transfer, vec![Bytes::from_static(&[0; 4])], 4));
            assert_eq!(all(&out, LANE, now), [0]);
        }
        assert!(!out.has(7) && out.has(8));
        assert_eq!(out.lost_lane(LANE, 0), [7]);
        // A lane's memory of them ends, too.
        out.open_lane(2);
        for transfer in 9..9 + 2 * REMEMBERED as u64 + 100 {
            out.push(Outgoing::new(transfer, vec![Bytes::from_static(&[0; 4])], 4));
            assert!(!all(&out, 2, now).is_empty());
        }
        assert!(out.lost_lane(2, 0).len() <= REMEMBERED + 1);
    }

    #[test]
    fn lanes_that_nobody_accounts_for_are_forgotten() {
        let out = BulkOut::default();
        for lane in 0..1000 {
            out.open_lane(lane);
            out.close_lane(lane);
        }
        assert_eq!(out.lock().lanes.len(), CLOSED_LANES);
    }
}
