//! Bulk lanes and their losses: what is sent again, what is asked for again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::bulk_out::Resent;
use super::super::peer::LATE_A_LANE;
use super::super::requests::{Bulk, Quiet};
use super::options::{LaneCounts, LanePlan, SlicePlan};
use super::{Client, ClientError, after};
use crate::auth::lane_proof;
use crate::connection::BulkEvent;
use crate::wire::{Caps, Control, DecodeError, Effect, LaneHello, body_crc, encode_header};

/// Corrupted slices of a get in a row, none landing between them, that are asked for again.
const SLICE_CHANCES: u32 = 64;

/// How often transfers are looked at that are under way: a slow lane's last slices may hold them up.
const LOOK: Duration = Duration::from_millis(20);

/// The longest pause between two questions for what is late.
const LONGEST_QUIET: Duration = Duration::from_secs(1);

impl Client {
    /// How many bulk lanes should be open now.
    pub fn wants_lanes(&self) -> u32 {
        if self.bulk_used && self.is_ready() { self.lane_count } else { 0 }
    }

    /// How many bulk lanes it uses, and why: decided by how long the answer took to the question for a session.
    pub fn lane_plan(&self) -> LanePlan {
        LanePlan::new(self.options.lanes, self.rtt)
    }

    /// How large slices it asks for, and why: decided by the same, and by what the server prefers.
    pub fn slice_plan(&self) -> SlicePlan {
        SlicePlan::new(self.welcome.map_or(1 << 18, |welcome| welcome.slice_bytes), self.rtt)
    }

    /// The number of a bulk lane to open now. Its driver makes a [`crate::connection::ClientLane`], or says
    /// [`Self::lane_over`].
    pub fn next_lane(&mut self, now: Instant) -> Option<u32> {
        // Whether there is room for more is asked when there is a use for them.
        if self.bulk_live == 0 && self.lanes.is_enough() {
            return None;
        }
        let lane = self.lanes.begin(self.wants_lanes(), now)?;
        self.counters.lane(lane);
        Some(lane)
    }

    /// The first frame of bulk lane `lane`. The lane is open once the server has answered with [`Control::LaneWelcome`].
    pub fn lane_hello(&self, lane: u32) -> Option<Vec<u8>> {
        let connection = self.welcome.as_ref()?.connection;
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let proof = lane_proof(self.lane_key.as_ref()?, connection, lane, attempt);
        let hello = LaneHello { connection, lane, attempt, proof };
        let mut meta = Vec::new();
        let (kind, flags) = Control::LaneHello(hello).encode(&mut meta);
        let mut frame = encode_header(kind, flags, 0, meta.len() as u32, 0, body_crc(&meta, &[])).to_vec();
        frame.extend_from_slice(&meta);
        Some(frame)
    }

    /// A bulk lane was welcomed: it carries slices from now on.
    pub fn lane_opened(&mut self, lane: u32) {
        if !self.lanes.is_over(lane) {
            self.bulk.open_lane(lane);
            if self.lanes.opened(lane) {
                self.counters.lanes_reopened.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether a bulk lane is to be dropped, and [`Self::lane_over`] to be called.
    pub fn is_lane_over(&self, lane: u32) -> bool {
        self.lanes.is_over(lane)
    }

    /// A bulk lane is gone, or could not be opened; so many slices came over it from first byte to last. Its driver takes nothing
    /// more from it. What it lost goes over the others, or waits for the next one.
    pub fn lane_over(&mut self, lane: u32, came: u64, reason: &str, now: Instant) {
        let counts = self.counters.lane(lane);
        let none = |slices: &AtomicU64| slices.load(Ordering::Relaxed) == 0;
        let useless = came == 0 && none(&counts.slices_up) && none(&counts.slices_down);
        let was_open = self.lanes.is_open(lane);
        if !self.lanes.gone(lane, useless, self.options.backoff, now) {
            return;
        }
        if was_open {
            tracing::info!(lane, reason, "a bulk lane ended: what it lost goes over others");
        } else {
            tracing::debug!(lane, reason, "a bulk lane was not opened");
        }
        counts.ended.store(true, Ordering::Relaxed);
        self.counters.lanes_lost.fetch_add(1, Ordering::Relaxed);
        self.bulk.close_lane(lane);
        self.push_control(0, &Control::LaneEnded { lane, slices: came });
    }

    /// The server has as many bulk lanes of this connection as it lets it have: it is asked for no more for a while.
    pub(crate) fn lane_refused(&mut self, lane: u32, now: Instant) {
        if self.lanes.refused(lane, now) {
            let lanes = self.lanes.open();
            tracing::info!(
                lanes,
                "the server takes no more bulk lanes of this connection: it is asked again now and then"
            );
        }
    }

    /// A bulk lane carries slices: however many others fail to, transfers go on.
    pub(crate) fn lane_carries(&mut self) {
        self.lanes.is_of_use();
    }

    /// Whether the payloads of slices have checksums.
    pub fn is_checked(&self) -> bool {
        let asked = self.options.unchecked || self.sealed;
        !asked || self.welcome.is_none_or(|w| !w.caps.has(Caps::UNCHECKED))
    }

    /// Notes whether nothing is arriving over a bulk lane.
    pub fn lane_idles(&mut self, lane: u32, idle: bool) {
        self.lanes.set_idle(lane, idle);
    }

    /// What the driver counts of a bulk lane.
    pub(crate) fn lane_counts(&self, lane: u32) -> Arc<LaneCounts> {
        self.counters.lane(lane)
    }

    /// For how long a lane may stand still while the server is heard.
    pub(in crate::connection) fn lane_patience(&self) -> Duration {
        self.options.stuck.saturating_mul(5)
    }

    /// When the server was last heard on the control lane.
    pub(in crate::connection) fn heard(&self) -> Instant {
        self.heard
    }

    /// The server has ended a bulk lane; so many slices came to it.
    pub(super) fn lane_ended_there(&mut self, lane: u32, came: u64) {
        self.lanes.end(lane);
        // Of transfers that are over nobody misses anything.
        self.bulk.lost_lane(lane, came);
    }

    /// The server wants a slice of a put (again).
    pub(super) fn slice_again(&mut self, transfer: u64, offset: u64, late: bool) {
        let counter = if late { &self.counters.slices_late } else { &self.counters.slices_again };
        counter.fetch_add(1, Ordering::Relaxed);
        match self.bulk.again(transfer, offset, late, self.options.stuck, self.heard) {
            Resent::Stuck(lane) => {
                tracing::info!(lane, "a bulk lane holds up a transfer: it is taken out");
                self.lanes.end(lane);
                // Nothing more is handed to it; what it lost is known once the server has ended it, too.
                self.bulk.close_lane(lane);
            }
            Resent::Queued | Resent::Unknown => {}
        }
    }

    /// A bulk lane has something to tell.
    pub fn bulk_event(&mut self, event: &BulkEvent) {
        match *event {
            BulkEvent::Complete(_) => {}
            BulkEvent::Missed { transfer, offset } => {
                self.push_control(transfer, &Control::SliceAgain { offset, late: false });
            }
            BulkEvent::Corrupt { transfer, offset } => {
                self.counters.slices_corrupt.fetch_add(1, Ordering::Relaxed);
                let id = self.requests.of_wire(transfer);
                let Some(slot) = self.requests.get(id) else { return };
                let Bulk::In(landing) = &slot.bulk else { return };
                let landed = landing.landed();
                if slot.chances.1 != landed {
                    slot.chances = (0, landed);
                }
                slot.chances.0 += 1;
                if slot.chances.0 > SLICE_CHANCES {
                    slot.fail(ClientError::Corrupt(SLICE_CHANCES));
                    return;
                }
                self.push_control(transfer, &Control::SliceAgain { offset, late: false });
            }
            BulkEvent::OffGrid(transfer) => {
                let id = self.requests.of_wire(transfer);
                if let Some(slot) = self.requests.get(id) {
                    slot.fail(DecodeError::Range("a slice does not fit the get that it answers").into());
                }
            }
        }
    }

    /// When [`Self::look_at_bulk`] is due.
    pub(super) fn bulk_deadline(&self) -> Option<Instant> {
        if self.bulk_live == 0 || !self.is_ready() {
            return None;
        }
        Some(self.bulk_look).into_iter().chain(self.lanes.due(self.wants_lanes())).min()
    }

    /// Looks whether transfers go on, and asks for what is late.
    pub(super) fn look_at_bulk(&mut self, now: Instant) {
        if self.bulk_live == 0 || now < self.bulk_look || !self.is_ready() {
            return;
        }
        // Nothing is late within the time that a question takes.
        let least = LOOK.max(self.rtt * 4);
        self.bulk_look = now + least;
        let tried = |since: Instant| after(since, self.options.reconnect_for) <= now;
        if self.lanes.none_since().is_some_and(tried) || self.lanes.is_hopeless() {
            return self.fail_bulk();
        }
        let idle = self.lanes.idle();
        for id in self.requests.waiting() {
            let Some(slot) = self.requests.get(id).filter(|slot| slot.sent) else { continue };
            let wire = slot.wire;
            let (seen, missing) = match &slot.bulk {
                Bulk::None => continue,
                Bulk::Out { .. } if self.bulk.is_sent(wire) => (u64::MAX, Vec::new()),
                Bulk::Out { .. } => (0, Vec::new()),
                Bulk::In(landing) => (u64::from(landing.landed()) + 1, landing.missing(idle * LATE_A_LANE)),
            };
            let late = match slot.quiet {
                Some(quiet) if quiet.seen == seen => quiet.until <= now,
                _ => {
                    slot.quiet = Some(Quiet { seen, until: now + least, wait: least });
                    false
                }
            };
            if !late || seen == 0 || (seen != u64::MAX && slot.is_awaited()) {
                continue;
            }
            if let Some(quiet) = &mut slot.quiet {
                quiet.wait = (quiet.wait * 2).min(LONGEST_QUIET.max(least));
                quiet.until = now + quiet.wait;
            }
            if seen == u64::MAX {
                self.push_control(wire, &Control::Late);
            }
            self.counters.slices_late.fetch_add(missing.len() as u64, Ordering::Relaxed);
            for offset in missing {
                self.push_control(wire, &Control::SliceAgain { offset, late: true });
            }
        }
    }

    /// No bulk lane could be opened for as long as the client tries, or none brings anything: what needs one comes to nothing, small requests go on.
    fn fail_bulk(&mut self) {
        self.lanes.forgive();
        let reason = "no bulk lane can be kept open: look at the server, and at what lies between".to_owned();
        for id in self.requests.waiting() {
            let Some(slot) = self.requests.get(id).filter(|slot| !matches!(slot.bulk, Bulk::None)) else { continue };
            let (wire, sent) = (slot.wire, slot.sent);
            let effect = if slot.ever_sent { Effect::Unknown } else { Effect::None };
            slot.fail(ClientError::Unreachable { reason: reason.clone(), effect });
            self.bulk.end(wire);
            self.landings.end(wire);
            if sent {
                self.push_control(wire, &Control::Cancel);
            }
        }
    }
}
