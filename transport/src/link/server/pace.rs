//! When a lane polls, and when it parks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::polling::Trials;

/// How dense the traffic of a lane is, and so how long to poll before parking.
pub(super) struct Pace {
    spin: Duration,
    last: Option<Instant>,
    /// Moving average of the time between arrivals, in nanoseconds.
    gap: u64,
    /// Lanes of the server that poll now, and how many may; `polling`: this one is counted.
    all: Arc<AtomicUsize>,
    most: usize,
    polling: bool,
    trials: Trials,
    looks: u32,
}

/// Looks from one look at the clock to the next.
pub(super) const LOOKS: u32 = 16;

/// Where the average of the gaps starts, and its ceiling: traffic that is not dense.
const SPARSE: u64 = 1_000_000_000;

impl Pace {
    pub(super) fn new(spin: Duration, all: Arc<AtomicUsize>, most: usize) -> Self {
        Self { spin, last: None, gap: SPARSE, all, most, polling: false, trials: Trials::new(), looks: 0 }
    }

    pub(super) fn arrived(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let gap = u64::try_from((now - last).as_nanos()).unwrap_or(SPARSE).min(SPARSE);
            // One dense pair is not dense traffic: the average falls by a quarter an arrival.
            self.gap = self.gap - self.gap / 4 + gap / 4;
            let spin = u64::try_from(self.spin.as_nanos()).unwrap_or(SPARSE);
            if self.gap >= spin && self.trials.waited(Duration::from_nanos(gap), self.spin) {
                self.gap = spin / 2;
            }
        }
    }

    /// Whether to look again at once instead of parking; and whether a round of looks is over, after which a thread that looks for
    /// all lets the others look.
    pub(super) fn poll_on(&mut self) -> (bool, bool) {
        self.looks = self.looks.wrapping_add(1);
        // The clock costs a tenth of a look at the socket: it is read now and then.
        let round = self.looks.is_multiple_of(LOOKS);
        let on = self.polls(round.then(Instant::now));
        std::hint::spin_loop();
        (on, round)
    }

    /// The same, for a lane that paces its looks itself; `now`: whenever it has read the clock.
    pub(super) fn polls(&mut self, now: Option<Instant>) -> bool {
        // Worth it where the next arrival is likely before the bound. Whoever polls already goes on for longer: to park costs a
        // registration with the reactor, and traffic at the edge would pay for one with every request.
        let dense = Duration::from_nanos(self.gap) < if self.polling { self.spin * 4 } else { self.spin };
        let late = |now| self.last.is_none_or(|last| now - last >= self.spin);
        if !(dense || self.trials.on()) || now.is_some_and(late) {
            self.stop();
            return false;
        }
        if !self.polling {
            let room = |n: usize| (n < self.most).then_some(n + 1);
            self.polling = self.all.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok();
        }
        self.polling
    }

    /// Nobody polls here until [`Self::polls`] is asked again.
    pub(super) fn stop(&mut self) {
        if std::mem::take(&mut self.polling) {
            self.all.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop();
    }
}
