//! Waiting: poll a bounded while, then park.

use std::time::{Duration, Instant};

use super::bell::Bell;
use super::lanes::Lanes;
use crate::connection::Client;
use crate::link::wait::{Interest, Waiter};
use crate::polling::Trials;

/// Turns a client's lanes until something is true.
pub(super) struct Engine {
    pub(super) lanes: Lanes,
    spin: Duration,
    /// Moving average of how long answers take, in nanoseconds.
    usual: u64,
    trials: Trials,
    interests: Vec<Interest>,
    waiter: Waiter,
}

/// Looks from one look at the clock to the next.
const LOOKS: u32 = 16;

/// The longest sleep without looking at the clock.
const LONGEST: Duration = Duration::from_secs(1);

/// A sleep may end so much later than asked for.
const SHORTEST: Duration = Duration::from_millis(2);

impl Engine {
    pub(super) fn new(lanes: Lanes, spin: Duration) -> Self {
        // Two processes that poll on one core only take time from each other.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = if cores > 1 { spin } else { Duration::ZERO };
        Self { lanes, spin, usual: 0, trials: Trials::new(), interests: Vec::new(), waiter: Waiter::default() }
    }

    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.lanes.client
    }

    /// Moves bytes until `ready` says so.
    pub(super) fn wait(&mut self, ready: impl FnMut(&mut Client) -> bool) {
        self.wait_until(None, ready);
    }

    /// Moves bytes until `ready` says so, or that time has come. Whether it said so.
    pub(super) fn wait_until(&mut self, until: Option<Instant>, ready: impl FnMut(&mut Client) -> bool) -> bool {
        self.wait_until_or(until, None, ready)
    }

    /// The same; while it sleeps, `also` wakes it.
    pub(super) fn wait_until_or(
        &mut self,
        until: Option<Instant>,
        also: Option<&Bell>,
        mut ready: impl FnMut(&mut Client) -> bool,
    ) -> bool {
        if ready(&mut self.lanes.client) {
            return true;
        }
        let began = Instant::now();
        let mut now = began;
        // Where answers usually take longer than a poll may last, the core is better left to others.
        let short = Duration::from_nanos(self.usual) < self.spin;
        let budget = if short || self.trials.on() { self.spin } else { Duration::ZERO };
        let mut looks = LOOKS;
        loop {
            if self.lanes.turn(now) {
                if ready(&mut self.lanes.client) {
                    break;
                }
                now = Instant::now();
                if until.is_some_and(|until| now >= until) {
                    return false;
                }
                continue;
            }
            if (also.is_some() || self.lanes.client.dead().is_some()) && ready(&mut self.lanes.client) {
                break;
            }
            if !budget.is_zero() {
                looks = self.lanes.watch(looks);
            }
            // The clock costs a tenth of a look at a socket: it is read now and then.
            if budget.is_zero() || looks == 0 {
                looks = LOOKS;
                now = Instant::now();
                let left = until.map_or(LONGEST, |until| until.saturating_duration_since(now));
                if left.is_zero() {
                    return false;
                }
                // Sleeps are rounded up to milliseconds: one that would last longer than is left is no sleep.
                if now - began >= budget && left > SHORTEST {
                    self.park_for(left - SHORTEST, also.map(Bell::interest), now);
                    if let Some(bell) = also {
                        bell.heard();
                    }
                    now = Instant::now();
                }
            }
        }
        // An answer that came before the clock was looked at again took next to no time.
        let took = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX / 8).min(u64::MAX / 8);
        self.usual = self.usual - self.usual / 8 + took / 8;
        if !short && !self.spin.is_zero() && self.trials.waited(Duration::from_nanos(took), self.spin) {
            self.usual = u64::try_from(self.spin.as_nanos() / 2).unwrap_or(u64::MAX / 8);
        }
        true
    }

    /// Sleeps until a socket (or `also`) is ready, or a deadline has come.
    pub(super) fn park(&mut self, also: Option<Interest>, now: Instant) {
        self.park_for(LONGEST, also, now);
    }

    fn park_for(&mut self, longest: Duration, also: Option<Interest>, now: Instant) {
        let wait = self.lanes.deadline().map_or(longest, |d| d.saturating_duration_since(now)).min(longest);
        if !self.lanes.arm(&mut self.interests) {
            self.waiter.wait(self.interests.iter().copied().chain(also), wait);
        }
        self.lanes.disarm();
    }
}
