//! A bulk lane's sending half: slices straight from the memory they lie in.

mod lend;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use lend::OutSlice;

use super::lane_log::LaneLog;
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
    again: Vec<Again>,
    /// Bytes that it has handed out in its turn.
    turn: u64,
}

/// From one transfer the lanes take so many bytes before it is another's turn. A tensor of this size goes in one turn, so that the
/// first of several is there, and its memory free again, before the last has begun: slices in turns would have all of them
/// end at once, and the receiver write to all of their memory at a time, which is more than its cache holds.
const TURN_BYTES: u64 = 4 << 20;

/// A slice to send again; not over the lane that carried it, if there is another.
#[derive(Clone, Copy, Debug)]
struct Again {
    index: u32,
    not_over: Option<u32>,
}

impl Outgoing {
    /// A transfer of all bytes of the pieces.
    pub fn new(transfer: u64, pieces: Vec<Bytes>, slice_bytes: u32) -> Self {
        let total = pieces.iter().map(|p| p.len() as u64).sum();
        Self {
            transfer,
            pieces,
            total,
            slice_bytes: slice_bytes.max(1),
            next: 0,
            skip: Vec::new(),
            again: Vec::new(),
            turn: 0,
        }
    }

    /// Leaves out the slices whose bit is set.
    pub fn skipping(mut self, bits: Vec<u8>) -> Self {
        self.skip = bits;
        self
    }

    fn slices(&self) -> u32 {
        u32::try_from(self.total.div_ceil(u64::from(self.slice_bytes))).unwrap_or(u32::MAX)
    }

    /// A slice's first byte and its bytes.
    fn range(&self, index: u32) -> (u64, u64) {
        let offset = u64::from(index) * u64::from(self.slice_bytes);
        (offset, u64::from(self.slice_bytes).min(self.total.saturating_sub(offset)))
    }

    /// The bytes of one slice, wherever it lies.
    fn taken(&self, offset: u64, len: u64, checked: bool) -> Taken {
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
        Taken { transfer: self.transfer, offset, total: self.total, checked, pieces }
    }

    fn skips(&self, index: u32) -> bool {
        self.skip.get(index as usize / 8).is_some_and(|b| b & (1 << (index % 8)) != 0)
    }

    /// The slice that begins with this byte.
    fn index_of(&self, offset: u64) -> Option<u32> {
        u32::try_from(offset / u64::from(self.slice_bytes)).ok().filter(|&i| i < self.slices())
    }

    /// Whether a slice waits to be sent, for the first time or again.
    fn has_waiting(&self, index: u32) -> bool {
        (index >= self.next && !self.skips(index)) || self.again.iter().any(|a| a.index == index)
    }

    /// Whether there is a slice for this lane; if it is the only one, it gets any.
    fn has_for(&self, lane: u32, alone: bool) -> bool {
        self.again.iter().any(|a| alone || a.not_over != Some(lane))
            || (self.next..self.slices()).any(|i| !self.skips(i))
    }

    fn is_sent(&self) -> bool {
        self.again.is_empty() && !(self.next..self.slices()).any(|i| !self.skips(i))
    }

    fn next_index(&mut self, lane: u32, alone: bool) -> Option<u32> {
        if let Some(at) = self.again.iter().rposition(|a| alone || a.not_over != Some(lane)) {
            return Some(self.again.swap_remove(at).index);
        }
        let index = (self.next..self.slices()).find(|&i| !self.skips(i))?;
        self.next = index + 1;
        Some(index)
    }

    fn slice(&self, index: u32, checked: bool) -> Sending {
        let (offset, len) = self.range(index);
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
        Sending { transfer: self.transfer, offset, total: self.total, pieces, checked, head: None, sent: 0 }
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
    checked: bool,
}

impl Taken {
    /// The slice's bytes, piece by piece.
    pub fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().map(|(piece, part)| piece.get(part.clone()).unwrap_or_default())
    }

    /// The head in front of it, with a checksum of the bytes where both sides want one.
    pub fn head(&self) -> [u8; SLICE_FRAME_BYTES] {
        if !self.checked {
            let len = self.bytes().map(|view| view.len() as u32).sum();
            return SliceHead::encode_unchecked(self.transfer, self.offset, self.total, len);
        }
        SliceHead::encode_pieces(self.transfer, self.offset, self.total, self.bytes())
    }
}

/// One slice on its way out.
#[derive(Clone, Debug)]
struct Sending {
    transfer: u64,
    offset: u64,
    total: u64,
    pieces: Pieces,
    /// Whether its payload gets a checksum.
    checked: bool,
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
    lanes: Vec<LaneLog>,
    checked: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), sent: BTreeMap::new(), keep: usize::MAX, lanes: Vec::new(), checked: true }
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
    }

    /// Forgets a transfer: no further slice of it begins.
    pub fn end(&self, transfer: u64) {
        let mut state = self.lock();
        state.forget(transfer);
        let State { waiting, sent, lanes, .. } = &mut *state;
        let kept = |t: u64| sent.contains_key(&t) || waiting.iter().any(|o| o.transfer == t);
        lanes.iter_mut().for_each(|log| log.trim(kept));
    }

    /// Forgets every transfer and every lane.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.sent.clear();
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
        (outgoing.total == total && end <= total).then(|| outgoing.taken(offset, u64::from(len), state.checked))
    }

    /// Whether this transfer is on its way out.
    pub fn has(&self, transfer: u64) -> bool {
        self.lock().find(transfer).is_some()
    }

    /// The next slice for this lane to offer; transfers take turns.
    pub fn take(&self, lane: u32, now: Instant) -> Option<Taken> {
        self.next_of(lane, now, |outgoing, index, checked| {
            let (offset, len) = outgoing.range(index);
            outgoing.taken(offset, len, checked)
        })
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
                let patience = if state.is_alone(lane) { stuck * 5 } else { stuck };
                if at + patience <= now {
                    return Resent::Stuck(lane);
                }
            }
            if open.len() > 1 || open.iter().any(|(lane, _)| state.is_alone(*lane)) {
                return Resent::Queued;
            }
        }
        let not_over = open.last().map(|(lane, _)| *lane);
        state.send_again(transfer, Again { index, not_over });
        Resent::Queued
    }

    /// A lane is open: it takes slices from now on.
    pub fn open_lane(&self, lane: u32) {
        self.lock().lanes.push(LaneLog::new(lane));
    }

    /// A lane takes no more. Before the other side has said what came over it ([`Self::lost_lane`]), it is not known what it
    /// lost.
    pub fn close_lane(&self, lane: u32) {
        self.lock().lanes.iter_mut().filter(|log| log.lane == lane).for_each(LaneLog::close);
    }

    /// The other side has ended a lane, and so many slices came over it: the others go out again. Gives the transfers that it
    /// lost something of, and which are not kept any more.
    pub fn lost_lane(&self, lane: u32, came: u64) -> Vec<u64> {
        let mut state = self.lock();
        let Some(at) = state.lanes.iter().position(|log| log.lane == lane) else { return Vec::new() };
        let log = state.lanes.swap_remove(at);
        let mut unknown = Vec::new();
        for (transfer, index) in log.lost(came) {
            if !state.send_again(transfer, Again { index, not_over: None }) && !unknown.contains(&transfer) {
                unknown.push(transfer);
            }
        }
        unknown
    }

    /// The next slice for this lane; transfers take turns.
    fn next(&self, lane: u32, now: Instant) -> Option<Sending> {
        self.next_of(lane, now, Outgoing::slice)
    }

    fn next_of<T>(&self, lane: u32, now: Instant, make: impl Fn(&Outgoing, u32, bool) -> T) -> Option<T> {
        let mut state = self.lock();
        let alone = state.is_alone(lane);
        let State { waiting, sent, keep, lanes, checked } = &mut *state;
        let log = lanes.iter_mut().find(|log| log.lane == lane && log.is_open())?;
        for _ in 0..waiting.len() {
            let mut outgoing = waiting.pop_front()?;
            let index = outgoing.next_index(lane, alone);
            let slice = index.map(|index| make(&outgoing, index, *checked));
            if let Some(index) = index {
                log.hand(outgoing.transfer, index, now);
                outgoing.turn += outgoing.range(index).1;
            }
            if outgoing.is_sent() {
                sent.insert(outgoing.transfer, outgoing);
                if sent.len() > *keep {
                    sent.pop_first();
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_open(&self, lane: u32) -> bool {
        self.lanes.iter().any(|log| log.lane == lane && log.is_open())
    }

    fn is_alone(&self, lane: u32) -> bool {
        !self.lanes.iter().any(|log| log.lane != lane && log.is_open())
    }

    fn find(&self, transfer: u64) -> Option<&Outgoing> {
        self.sent.get(&transfer).or_else(|| self.waiting.iter().find(|o| o.transfer == transfer))
    }

    fn forget(&mut self, transfer: u64) {
        self.waiting.retain(|o| o.transfer != transfer);
        self.sent.remove(&transfer);
    }

    /// Whether the transfer is kept.
    fn send_again(&mut self, transfer: u64, again: Again) -> bool {
        if let Some(outgoing) = self.sent.remove(&transfer) {
            self.waiting.push_back(outgoing);
        }
        let Some(outgoing) = self.waiting.iter_mut().rev().find(|o| o.transfer == transfer) else { return false };
        // Begun anew on another grid, it may have fewer slices than before.
        if again.index < outgoing.slices() && !outgoing.has_waiting(again.index) {
            outgoing.again.push(again);
        }
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
