//! A control lane's task.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Lane;
use super::pace::LOOKS;
use crate::connection::{ControlLane, LaneEnd, Peer, Service, Step};

/// Reads in a row from one look at the clock to the next, in a lane that has no time to look at it otherwise.
const STALE: usize = 8;

/// How long a client may take to read why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bytes that are read away at a time.
const AWAY_BYTES: usize = 4 << 10;

/// Bytes that are read away at the end; who sends more is reset.
const MOST_AWAY: usize = 1 << 20;

impl<S: Service> Lane<S> {
    pub(super) async fn control(&mut self, lane: &mut ControlLane<S>, wake: &Notify) -> io::Result<Step> {
        let mut pace = self.pace(self.stream.io().patience());
        let mut turn: usize = 0;
        // Not read for every request: a lane that polls knows that next to no time has passed since it was.
        let mut now = Instant::now();
        let mut looks = LOOKS;
        let mut others = now + self.turns.control;
        let mut late = false;
        loop {
            let held = lane.is_held();
            if held && self.stream.io().is_over() {
                return Ok(Step::End(LaneEnd::Left));
            }
            let got = match (held, lane.has_pending()) {
                (true, _) => Err(io::ErrorKind::WouldBlock.into()),
                (false, true) => Ok(None),
                (false, false) => self.stream.io().recv(lane.space(), &mut []).map(Some),
            };
            match got {
                Ok(Some(0)) => return Ok(Step::End(LaneEnd::Left)),
                Ok(n) => {
                    late = false;
                    turn += 1;
                    looks = LOOKS;
                    if turn.is_multiple_of(STALE) {
                        now = Instant::now();
                    }
                    pace.arrived(now);
                    let mut step = lane.filled(n.unwrap_or(0), now);
                    if turn.is_multiple_of(STALE) && now >= others {
                        others = now + self.turns.control;
                        // A lane that never falls idle is held to its times, and gets rid of its replies, all the same.
                        if let (Step::Continue, true) = (&step, now >= lane.deadline()) {
                            step = lane.timeout(now);
                        }
                        if let Some(peer) = lane.peer() {
                            peer.flush()?;
                        }
                        tokio::task::yield_now().await;
                    }
                    match step {
                        Step::Continue => {}
                        Step::Bulk(..) => return Ok(step),
                        Step::End(_) => {
                            self.drain_out(lane, wake).await;
                            return Ok(step);
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let closed = lane.peer().is_some_and(|p| p.is_closed());
                    if closed {
                        self.drain_out(lane, wake).await;
                        return Ok(Step::End(LaneEnd::Left));
                    }
                    if std::mem::take(&mut late)
                        && let Some(step) = self.timeout(lane, wake, now).await
                    {
                        return Ok(step);
                    }
                    let clock = (looks == 0).then(Instant::now);
                    if let Some(read) = clock {
                        (now, looks) = (read, LOOKS);
                    }
                    // What is waited for next is most likely the end of what is moving.
                    let rests = self.cores_are_short() && self.moving.load(Ordering::Acquire) > 0;
                    if rests {
                        pace.stop();
                    } else if pace.polls(clock) {
                        self.stream.unwatch();
                        match clock {
                            // Nobody else looks at the other lanes meanwhile.
                            Some(_) if self.turns.alone => tokio::task::yield_now().await,
                            _ => looks = self.stream.io().watch(looks),
                        }
                        continue;
                    }
                    self.park(lane, wake, held).await?;
                    now = Instant::now();
                    late = now >= lane.deadline();
                    // It may be the server that stood still: what has come is read first, where anything is read.
                    if held
                        && std::mem::take(&mut late)
                        && let Some(step) = self.timeout(lane, wake, now).await
                    {
                        return Ok(step);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The lane's deadline has passed: how it ends, if it does.
    async fn timeout(&mut self, lane: &mut ControlLane<S>, wake: &Notify, now: Instant) -> Option<Step> {
        let step = lane.timeout(now);
        if matches!(step, Step::Continue) {
            return None;
        }
        if !lane.is_displaced() {
            self.drain_out(lane, wake).await;
        }
        Some(step)
    }

    /// Waits until there may be something to read, something to write, or a deadline to keep.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "a shared reference to a lane is not Send, and the future must be"
    )]
    async fn park(&mut self, lane: &mut ControlLane<S>, wake: &Notify, held: bool) -> io::Result<()> {
        let writing = match lane.peer() {
            Some(peer) if peer.backlog() > 0 => !peer.flush()?,
            _ => false,
        };
        let unsent = self.stream.io().has_unsent() && !self.stream.io().push()?;
        let deadline = lane.deadline();
        self.stream.wait(!held, writing || unsent, wake, deadline).await
    }

    /// The connection ends, and what it held is let go of; then the last words go out, if the client takes them soon, and nobody
    /// else needs the place of a lane that never said who it is.
    async fn drain_out(&mut self, lane: &mut ControlLane<S>, wake: &Notify) {
        let peer: Option<Arc<Peer>> = lane.peer().cloned();
        lane.closed(Instant::now());
        let until = Instant::now() + LAST_WORDS;
        let io = self.stream.io().clone();
        loop {
            let all = peer.as_ref().is_none_or(|peer| peer.flush().unwrap_or(true)) && io.push().unwrap_or(true);
            let over = all || lane.is_displaced() || Instant::now() >= until;
            if over || self.stream.wait(false, true, wake, until).await.is_err() {
                break;
            }
        }
        io.finish();
        // Closing a socket with unread bytes resets it, and what was said last is lost with it: they are read away. Before any are
        // there, nothing is kept for them: there may be thousands of such lanes.
        let mut away = Vec::new();
        let mut most = MOST_AWAY;
        let mut waits = true;
        while Instant::now() < until && !lane.is_displaced() {
            if std::mem::take(&mut waits) {
                if self.stream.wait(true, false, wake, until).await.is_err() {
                    return;
                }
                continue;
            }
            away.resize(AWAY_BYTES, 0);
            match io.recv(&mut away, &mut []) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    waits = true;
                    away = Vec::new();
                }
                Ok(n @ 1..) if n < most => {
                    most -= n;
                    tokio::task::yield_now().await;
                }
                _ => return,
            }
        }
    }
}
