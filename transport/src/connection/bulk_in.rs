//! A bulk lane's receiving half: slices straight into the memory they are for.

mod lend;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use lend::Loan;

use crate::memory::{Claim, Landing, SliceLease};
use crate::wire::{DecodeError, SLICE_FRAME_BYTES, SliceHead};

/// How long a slice may wait for the request that says where it belongs, before it is drained.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a slice may wait for another lane that is writing the same one: after a reconnect, the old connection's.
const TURN: Duration = Duration::from_millis(50);

/// Ended transfers whose late slices are drained at once.
const REMEMBERED: usize = 1024;

/// Where the transfers of a connection land. Shared by its lanes.
#[derive(Debug, Default)]
pub struct Landings {
    places: Mutex<Places>,
    /// Counts what was opened and ended.
    changes: AtomicU64,
}

#[derive(Debug, Default)]
struct Places {
    open: HashMap<u64, Arc<Landing>>,
    ended: VecDeque<u64>,
}

/// What is known of a transfer.
#[derive(Debug)]
pub enum Place {
    /// Its slices land here.
    Here(Arc<Landing>),
    /// Its slices are not wanted any more.
    Ended,
    /// Nothing: it may come to be known.
    Unknown,
}

impl Landings {
    /// Slices of this transfer go here from now on.
    pub fn open(&self, transfer: u64, landing: Arc<Landing>) {
        let mut places = self.lock();
        places.ended.retain(|&t| t != transfer);
        places.open.insert(transfer, landing);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Slices of this transfer are drained from now on.
    pub fn end(&self, transfer: u64) {
        let mut places = self.lock();
        places.open.remove(&transfer);
        if !places.ended.contains(&transfer) {
            places.ended.push_back(transfer);
        }
        if places.ended.len() > REMEMBERED {
            places.ended.pop_front();
        }
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Every transfer is forgotten.
    pub fn clear(&self) {
        *self.lock() = Places::default();
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Where slices of this transfer go, if anywhere.
    pub fn of(&self, transfer: u64) -> Option<Arc<Landing>> {
        self.lock().open.get(&transfer).cloned()
    }

    /// Changes whenever a transfer is opened or ended.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Every transfer that lands somewhere now, for links whose receiving side asks for slices.
    pub fn list(&self, out: &mut Vec<(u64, Arc<Landing>)>) {
        out.clear();
        out.extend(self.lock().open.iter().map(|(&id, landing)| (id, landing.clone())));
        // In the order in which they were asked for.
        out.sort_unstable_by_key(|(id, _)| *id);
    }

    /// Where slices of this transfer go.
    pub fn find(&self, transfer: u64) -> Place {
        let places = self.lock();
        match places.open.get(&transfer) {
            Some(landing) => Place::Here(landing.clone()),
            None if places.ended.contains(&transfer) => Place::Ended,
            None => Place::Unknown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a driver should read next.
#[derive(Debug)]
pub enum Want<'a> {
    /// Into `first`, then into `then`: with one call the rest of a slice and the head of the next are had.
    Read {
        /// Never empty.
        first: &'a mut [u8],
        /// May be empty.
        then: &'a mut [u8],
    },
    /// Nothing, until the transfer's landing is registered or [`BulkIn::deadline`] has passed.
    Hold,
}

/// What a lane has to tell.
#[derive(Debug, PartialEq, Eq)]
pub enum BulkEvent {
    /// The last missing slice of this transfer has landed.
    Complete(u64),
    /// A slice was corrupted on the way, and is missing still.
    Corrupt {
        /// Of this transfer.
        transfer: u64,
        /// Its first byte.
        offset: u64,
    },
    /// A slice was drained because another lane was writing the same one, which has not landed it yet, or because its request
    /// has not come for long: it may be missing still.
    Missed {
        /// Of this transfer.
        transfer: u64,
        /// Its first byte.
        offset: u64,
    },
    /// A slice that does not fit its transfer's grid: drained.
    OffGrid(u64),
}

/// Receives slices. Call `poll` until it gives nothing after every `filled`, and again when a landing was registered. If nothing
/// was read into what `want` offered, call `idle`: until then no other lane can take the slice over.
#[derive(Debug)]
pub struct BulkIn {
    head: [u8; SLICE_FRAME_BYTES],
    have: usize,
    state: State,
    events: VecDeque<BulkEvent>,
    /// Where drained bytes go.
    drain: Vec<u8>,
    /// When unknown transfers are drained at once: the receiver knows all of its own.
    patient: bool,
    /// Whether payloads have checksums.
    checked: bool,
    begun: u64,
    finished: u64,
    /// Whether an operation owns the next head's memory, and that memory while none does.
    head_lent: bool,
    next_head: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Head,
    /// A whole head, and the place is not known yet.
    Placing(SliceHead, Option<Instant>),
    Payload(SliceLease),
    /// Bytes to drain; of a slice that another lane took over: which.
    Drain(usize, Option<(Arc<Landing>, SliceHead)>),
    /// An operation owns the payload's memory (of this transfer), or a drain's.
    Lent(Option<u64>),
}

impl BulkIn {
    /// A lane that waits for a transfer's landing to be registered (`patient`, a server) or drains unknown ones at once.
    pub fn new(patient: bool) -> Self {
        Self {
            head: [0; SLICE_FRAME_BYTES],
            have: 0,
            state: State::Head,
            events: VecDeque::new(),
            drain: Vec::new(),
            patient,
            checked: true,
            begun: 0,
            finished: 0,
            head_lent: false,
            next_head: Vec::new(),
        }
    }

    /// Whether the payloads have checksums: they do unless the two sides said otherwise.
    #[must_use]
    pub fn checked(mut self, checked: bool) -> Self {
        self.checked = checked;
        self
    }

    /// What to read next.
    pub fn want(&mut self) -> Want<'_> {
        let Self { head, have, state, drain, .. } = self;
        if let State::Payload(lease) = state
            && !lease.hold()
        {
            *state = State::lost(lease);
        }
        match state {
            State::Head => Want::Read { first: &mut head[*have..], then: &mut [] },
            State::Placing(..) | State::Lent(_) => Want::Hold,
            State::Payload(lease) => {
                let left = lease.left();
                let first = lease.spare();
                let then = if first.len() == left { &mut head[..] } else { &mut [] };
                Want::Read { first, then }
            }
            State::Drain(left, _) => {
                drain.resize(64 << 10, 0);
                let n = (*left).min(drain.len());
                Want::Read { first: &mut drain[..n], then: &mut [] }
            }
        }
    }

    /// Nothing was read into what [`Self::want`] offered.
    pub fn idle(&mut self) {
        if let State::Payload(lease) = &mut self.state {
            lease.rest();
        }
    }

    /// `n` bytes of what [`Self::want`] offered were filled.
    ///
    /// # Errors
    /// The lane cannot be trusted any further.
    pub fn filled(&mut self, n: usize) -> Result<(), DecodeError> {
        match &self.state {
            State::Head => {
                self.begun += u64::from(self.have == 0 && n > 0);
                self.have += n;
            }
            State::Placing(..) | State::Lent(_) => {}
            State::Payload(_) => {
                let over = self.payload_filled(n);
                self.have += over;
                self.begun += u64::from(over > 0);
            }
            State::Drain(..) => self.drained(n),
        }
        self.take_head()
    }

    /// `n` bytes came from a payload's first one on; how many are not its own.
    fn payload_filled(&mut self, n: usize) -> usize {
        let State::Payload(lease) = &mut self.state else { return 0 };
        let here = n.min(lease.left());
        lease.advance(here);
        if lease.left() == 0 {
            self.end_slice();
        }
        n - here
    }

    fn drained(&mut self, n: usize) {
        let State::Drain(left, lost) = &mut self.state else { return };
        *left -= n.min(*left);
        if *left == 0 {
            if let Some((landing, head)) = lost
                && !landing.has(head.offset)
            {
                self.events.push_back(BulkEvent::Missed { transfer: head.transfer, offset: head.offset });
            }
            self.state = State::Head;
            self.drain = Vec::new();
            self.finished += 1;
        }
    }

    /// A head that is whole says what comes.
    fn take_head(&mut self) -> Result<(), DecodeError> {
        if matches!(self.state, State::Head) && self.have == SLICE_FRAME_BYTES {
            self.have = 0;
            self.state = State::Placing(SliceHead::decode(&self.head)?, None);
        }
        Ok(())
    }

    /// Finds places for what waits, and tells what happened.
    pub fn poll(&mut self, landings: &Landings, now: Instant) -> Option<BulkEvent> {
        if let State::Placing(head, until) = &mut self.state {
            let head = *head;
            let drain = State::Drain(head.len as usize, None);
            match landings.find(head.transfer) {
                Place::Here(landing) => match landing.claim(&head) {
                    Claim::Lease(lease) => self.state = State::Payload(lease),
                    Claim::Duplicate => self.state = drain,
                    Claim::Busy => {
                        if *until.get_or_insert(now + TURN) <= now {
                            self.state = drain;
                            let SliceHead { transfer, offset, .. } = head;
                            self.events.push_back(BulkEvent::Missed { transfer, offset });
                        }
                    }
                    Claim::OffGrid => {
                        self.events.push_back(BulkEvent::OffGrid(head.transfer));
                        self.state = drain;
                    }
                },
                Place::Ended => self.state = drain,
                Place::Unknown if !self.patient => self.state = drain,
                Place::Unknown => {
                    if *until.get_or_insert(now + PATIENCE) <= now {
                        self.state = drain;
                        let SliceHead { transfer, offset, .. } = head;
                        self.events.push_back(BulkEvent::Missed { transfer, offset });
                    }
                }
            }
        }
        if let State::Payload(lease) = &self.state
            && matches!(landings.find(lease.head().transfer), Place::Ended)
        {
            // Nobody wants it any more: others may have the place, and the memory is not held for a slow sender.
            self.state = State::Drain(lease.left(), None);
        }
        self.events.pop_front()
    }

    /// Counts the slices that have begun to arrive.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Counts the slices that came from their first byte to their last, whatever became of them.
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// When a slice that waits for its landing is given up.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Placing(_, until) => until,
            _ => None,
        }
    }

    /// Whether a slice has begun to arrive and is not whole.
    pub fn in_slice(&self) -> bool {
        !matches!(self.state, State::Head) || self.have > 0
    }

    fn end_slice(&mut self) {
        let State::Payload(mut lease) = std::mem::replace(&mut self.state, State::Head) else { return };
        self.finished += 1;
        let SliceHead { transfer, offset, .. } = *lease.head();
        if !lease.hold() {
            if !lease.landing().has(offset) {
                self.events.push_back(BulkEvent::Missed { transfer, offset });
            }
        } else if self.checked && !lease.is_intact() {
            self.events.push_back(BulkEvent::Corrupt { transfer, offset });
        } else if lease.landed() {
            self.events.push_back(BulkEvent::Complete(transfer));
        }
    }
}

impl State {
    /// Another lane has taken the slice over.
    fn lost(lease: &SliceLease) -> Self {
        Self::Drain(lease.left(), Some((lease.landing().clone(), *lease.head())))
    }
}
