//! The bulk lanes of a connection, as the server counts them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::peer::{Driver, Peer};
use super::service::{Noted, Service};
use crate::wire::{ErrorCode, RemoteError};

/// Numbers of lanes that are over and are remembered.
const REMEMBERED: usize = 256;

/// One lane.
pub(super) struct Seat {
    lane: u32,
    /// Once somebody drives it: who then looks at everything anyway.
    driver: OnceLock<Arc<dyn Driver>>,
    over: AtomicBool,
    idle: AtomicBool,
}

impl Seat {
    /// Whether it was decided that the lane ends.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Notes whether nothing is arriving over the lane.
    pub(super) fn set_idle(&self, idle: bool) {
        self.idle.store(idle, Ordering::Release);
    }

    fn wake(&self) {
        if let Some(driver) = self.driver.get() {
            driver.wake();
        }
    }
}

/// A bulk lane's place in its connection. Dropped, the lane is over, and the client is told what came over it: whatever held the
/// memory of its slices is dropped before.
pub struct LaneSeat {
    peer: Arc<Peer>,
    seat: Arc<Seat>,
    lane: u32,
    /// Slices that came from their first byte to their last. 0 where they do not come in order: all is then sent again.
    came: u64,
}

impl LaneSeat {
    /// For lane `lane`, which nobody drives yet.
    ///
    /// # Errors
    /// The connection has as many as it may, or has ended the lane already.
    pub(super) fn take(peer: Arc<Peer>, lane: u32, most: u32) -> Result<Self, RemoteError> {
        let seat = peer.add_lane(lane, most as usize)?;
        Ok(Self { peer, seat, lane, came: 0 })
    }

    /// Wakes this driver from now on. Once.
    pub fn drive(&self, driver: Arc<dyn Driver>) {
        // A second driver there is not: whoever has the seat names its own.
        let _ = self.seat.driver.set(driver);
    }

    /// Its connection.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Its number.
    pub fn lane(&self) -> u32 {
        self.lane
    }

    /// Whether the lane, or its connection, is to end.
    pub fn is_over(&self) -> bool {
        self.peer.is_closed() || self.seat.is_over()
    }

    /// Notes whether nothing is arriving over the lane.
    pub fn set_idle(&self, idle: bool) {
        self.seat.set_idle(idle);
    }

    pub(super) fn set_came(&mut self, came: u64) {
        self.came = came;
    }

    /// The lane is about to end, and why.
    pub fn ends<S: Service>(&self, service: &S, reason: &str) {
        if !self.peer.is_closed() {
            service.noted(Noted::LaneLost);
            let (peer, lane) = (self.peer.id(), self.lane);
            tracing::info!(peer, lane, reason, "a bulk lane ended: what it lost goes over others");
        }
    }
}

impl Drop for LaneSeat {
    fn drop(&mut self) {
        self.peer.remove_lane(self.lane, self.came);
    }
}

impl std::fmt::Debug for LaneSeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneSeat").field("peer", &self.peer).field("lane", &self.lane).finish_non_exhaustive()
    }
}

/// All lanes of a connection.
#[derive(Default)]
pub(super) struct Seats {
    taken: Vec<Arc<Seat>>,
    gone: VecDeque<u32>,
}

impl Seats {
    pub(super) fn take(&mut self, lane: u32, most: usize) -> Result<Arc<Seat>, RemoteError> {
        if self.gone.contains(&lane) || self.taken.iter().any(|s| s.lane == lane) {
            return Err(RemoteError::new(ErrorCode::Malformed, "the connection has or had a bulk lane of this number"));
        }
        if self.taken.len() >= most {
            return Err(RemoteError::new(ErrorCode::Busy, "the connection has as many bulk lanes as it may"));
        }
        let (over, idle) = (AtomicBool::new(false), AtomicBool::new(true));
        let seat = Arc::new(Seat { lane, driver: OnceLock::new(), over, idle });
        self.taken.push(seat.clone());
        Ok(seat)
    }

    /// A lane is gone.
    pub(super) fn leave(&mut self, lane: u32) {
        self.taken.retain(|s| s.lane != lane);
        self.remember(lane);
    }

    /// A lane is to end. One that has not come yet will not be let in.
    pub(super) fn end(&mut self, lane: u32) {
        match self.taken.iter().find(|s| s.lane == lane) {
            Some(seat) => {
                seat.over.store(true, Ordering::Release);
                seat.wake();
            }
            None => self.remember(lane),
        }
    }

    /// How many lanes lie idle.
    pub(super) fn idle(&self) -> usize {
        self.taken.iter().filter(|s| s.idle.load(Ordering::Acquire)).count()
    }

    pub(super) fn wake(&self) {
        self.taken.iter().for_each(|s| s.wake());
    }

    fn remember(&mut self, lane: u32) {
        if !self.gone.contains(&lane) {
            self.gone.push_back(lane);
        }
        if self.gone.len() > REMEMBERED {
            self.gone.pop_front();
        }
    }
}
