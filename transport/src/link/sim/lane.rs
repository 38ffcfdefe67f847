//! One lane: two pipes of bytes that take their time.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::rng::Rng;
use super::{Faults, Network};
use crate::connection::Sink;

/// Virtual time: nanoseconds since a base.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    base: Instant,
    passed: Arc<AtomicU64>,
}

impl Clock {
    pub(super) fn new(base: Instant) -> Self {
        Self { base, passed: Arc::default() }
    }

    pub(super) fn now(&self) -> Instant {
        self.base + Duration::from_nanos(self.passed.load(Ordering::Relaxed))
    }

    /// Time does not go back.
    pub(super) fn advance_to(&self, at: Instant) {
        let passed = u64::try_from(at.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX);
        self.passed.fetch_max(passed, Ordering::Relaxed);
    }
}

/// One end of a lane.
#[derive(Clone)]
pub(super) struct LaneEnd {
    inner: Arc<Mutex<Inner>>,
    /// Which of the two ends, and so which pipe it writes to; it reads from the other.
    side: usize,
}

struct Inner {
    clock: Clock,
    network: Network,
    rng: Rng,
    pipes: [Pipe; 2],
    faults: Arc<Mutex<Faults>>,
    /// Nothing arrives any more.
    stands: bool,
}

/// Bytes on their way in one direction.
#[derive(Default)]
struct Pipe {
    pieces: VecDeque<Piece>,
    waiting: usize,
    sent: u64,
    /// Nothing sent later arrives before this.
    last: Option<Instant>,
    /// After the pieces, from this time on: the lane is closed, or (`true`) was cut.
    end: Option<(Instant, bool)>,
}

struct Piece {
    at: Instant,
    bytes: Vec<u8>,
    read: usize,
}

/// A new lane's two ends.
pub(super) fn lane(clock: &Clock, network: &Network, rng: &mut Rng, faults: &Arc<Mutex<Faults>>) -> (LaneEnd, LaneEnd) {
    let (clock, network, faults) = (clock.clone(), network.clone(), faults.clone());
    let inner = Inner { clock, network, rng: rng.fork(), pipes: Default::default(), faults, stands: false };
    let inner = Arc::new(Mutex::new(inner));
    (LaneEnd { inner: inner.clone(), side: 0 }, LaneEnd { inner, side: 1 })
}

impl LaneEnd {
    /// What has arrived. 0: the other end has closed.
    ///
    /// # Errors
    /// `WouldBlock`, or that the lane was cut.
    pub(super) fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        if inner.stands {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let now = inner.clock.now();
        let pipe = &mut inner.pipes[1 - self.side];
        let mut filled = 0;
        while filled < buf.len()
            && let Some(piece) = pipe.pieces.front_mut().filter(|piece| piece.at <= now)
        {
            let n = (piece.bytes.len() - piece.read).min(buf.len() - filled);
            buf[filled..filled + n].copy_from_slice(&piece.bytes[piece.read..piece.read + n]);
            filled += n;
            piece.read += n;
            if piece.read == piece.bytes.len() {
                pipe.pieces.pop_front();
            }
        }
        pipe.waiting -= filled;
        let end = pipe.end.filter(|(at, _)| pipe.pieces.is_empty() && *at <= now);
        if filled > 0 {
            let at_server = self.side == 1;
            inner.count(|f| *(if at_server { &mut f.arrived } else { &mut f.returned }) += filled as u64);
        }
        match end {
            _ if filled > 0 => Ok(filled),
            Some((_, cut)) => {
                if cut {
                    Err(io::ErrorKind::ConnectionReset.into())
                } else {
                    Ok(0)
                }
            }
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Bytes sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.lock().pipes[self.side].sent
    }

    /// The chance that a receive takes only a part.
    pub(super) fn split(&self) -> u32 {
        self.lock().network.split
    }

    /// Takes note of what was done to the lane.
    pub(super) fn count(&self, fault: impl FnOnce(&mut Faults)) {
        self.lock().count(fault);
    }

    /// When something arrives at this end, or can be sent from it again.
    pub(super) fn arrivals(&self) -> impl Iterator<Item = Instant> + use<> {
        let inner = self.lock();
        let pipe = &inner.pipes[1 - self.side];
        let first = pipe.pieces.front().map(|piece| piece.at);
        first.into_iter().chain(pipe.end.map(|(at, _)| at)).filter(|_| !inner.stands).collect::<Vec<_>>().into_iter()
    }

    /// This end is closed. What was sent arrives, or some of it, as drawn.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        if inner.rng.chance(300_000) {
            inner.cut();
            return;
        }
        let at = inner.arrival(self.side);
        inner.pipes[self.side].end.get_or_insert((at, false));
        // Nobody reads what the other end sends from here on.
        let at = inner.clock.now();
        let other = &mut inner.pipes[1 - self.side];
        other.forget(0);
        other.end = Some((at, false));
    }

    /// From now on nothing arrives at either end, and neither is told.
    pub(super) fn stand(&self) {
        self.lock().stand();
    }

    /// The lane is cut in both directions; each end learns it in its own time.
    pub(super) fn cut(&self) {
        self.lock().cut();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for LaneEnd {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let now = inner.clock.now();
        let whole: usize = bufs.iter().map(|b| b.len()).sum();
        let known = inner.pipes[1 - self.side].end.is_some_and(|(at, _)| at <= now);
        if inner.pipes[self.side].end.is_some() {
            // Until this end has heard of it, what it sends goes nowhere.
            return if known { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(whole) };
        }
        let room = inner.network.window.saturating_sub(inner.pipes[self.side].waiting);
        if room == 0 && whole > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut n = whole.min(room);
        if n > 1 && inner.rng.chance(inner.network.split) {
            n = 1 + inner.rng.below(n as u64) as usize;
            inner.count(|f| f.partial_sends += 1);
        }
        let mut bytes = Vec::with_capacity(n);
        for buf in bufs {
            let take = buf.len().min(n - bytes.len());
            bytes.extend_from_slice(&buf[..take]);
        }
        if n > 0 && inner.rng.chance(inner.network.corrupt) {
            let bit = inner.rng.below(n as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            inner.count(|f| f.flipped_bits += 1);
        }
        let at = inner.arrival(self.side);
        let pipe = &mut inner.pipes[self.side];
        pipe.last = Some(at);
        pipe.waiting += n;
        pipe.sent += n as u64;
        pipe.pieces.push_back(Piece { at, bytes, read: 0 });
        if inner.rng.chance(inner.network.cut) {
            inner.cut();
        } else if inner.rng.chance(inner.network.stand) {
            inner.stand();
        }
        Ok(n)
    }
}

impl Inner {
    /// When what is sent now by this side arrives.
    fn arrival(&mut self, side: usize) -> Instant {
        let (least, most) = self.network.delay;
        let spread = u64::try_from(most.saturating_sub(least).as_nanos()).unwrap_or(u64::MAX);
        let mut delay = least + Duration::from_nanos(self.rng.below(spread));
        if self.rng.chance(self.network.stall) {
            delay *= 100;
            self.count(|f| f.stalls += 1);
        }
        let at = self.clock.now() + delay;
        self.pipes[side].last.map_or(at, |last| at.max(last))
    }

    fn count(&self, fault: impl FnOnce(&mut Faults)) {
        fault(&mut self.faults.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn stand(&mut self) {
        if !std::mem::replace(&mut self.stands, true) {
            self.count(|f| f.stands += 1);
        }
    }

    fn cut(&mut self) {
        self.count(|f| f.cuts += 1);
        for side in 0..2 {
            let waiting = self.pipes[side].waiting;
            let keep = self.rng.below(waiting as u64 + 1) as usize;
            self.count(|f| f.lost_bytes += (waiting - keep) as u64);
            self.pipes[side].forget(keep);
            let at = self.arrival(side);
            self.pipes[side].end = Some((at, true));
        }
    }
}

impl Pipe {
    /// All but the first `keep` bytes on their way are lost.
    fn forget(&mut self, keep: usize) {
        let mut kept = 0;
        for piece in &mut self.pieces {
            let room = keep - kept;
            piece.bytes.truncate(piece.read + room);
            kept += piece.bytes.len() - piece.read;
        }
        self.pieces.retain(|piece| piece.read < piece.bytes.len());
        self.waiting = kept;
    }
}
