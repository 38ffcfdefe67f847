//! How much of the time that copies took, the network was busy, too.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Times at which the network was busy that are remembered for copies that are not done yet: many more than copies can wait for.
const KEPT: usize = 1024;

/// One direction of a device.
#[derive(Debug, Default)]
pub(super) struct Overlap {
    /// What the network is at, by address, and since when.
    open: HashMap<usize, Instant>,
    /// What it was at, from the oldest end on.
    closed: VecDeque<(Instant, Instant)>,
    copied: Duration,
    overlapped: Duration,
}

impl Overlap {
    /// The network begins with the memory at this address.
    pub(super) fn open(&mut self, address: usize, now: Instant) {
        self.open.insert(address, now);
    }

    /// It never began.
    pub(super) fn forget(&mut self, address: usize) {
        self.open.remove(&address);
    }

    /// It is done with it: when it began, if it did.
    pub(super) fn close(&mut self, address: usize, now: Instant) -> Option<Instant> {
        let began = self.open.remove(&address)?;
        if self.closed.len() == KEPT {
            self.closed.pop_front();
        }
        self.closed.push_back((began, now));
        Some(began)
    }

    /// A copy is done. Copies come here in the order that they were made in, and after everything that the network began before their
    /// ends.
    pub(super) fn copied(&mut self, began: Instant, ended: Instant) {
        let open = self.open.values().map(|since| (*since, ended));
        let mut busy: Vec<_> = open.chain(self.closed.iter().copied()).collect();
        busy.sort_unstable();
        let mut reached = began;
        for (from, to) in busy {
            let (from, to) = (from.max(reached), to.min(ended));
            self.overlapped += to.saturating_duration_since(from);
            reached = reached.max(to);
        }
        self.copied += ended.saturating_duration_since(began);
        // The next begins no earlier than this one ended.
        self.closed.retain(|(_, to)| *to > ended);
    }

    /// Time that copies took, and how much of it the network was busy.
    pub(super) const fn times(&self) -> (Duration, Duration) {
        (self.copied, self.overlapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock(Instant);

    impl Clock {
        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }
    }

    fn times(overlap: &Overlap) -> (u128, u128) {
        let (copied, overlapped) = overlap.times();
        (copied.as_millis(), overlapped.as_millis())
    }

    #[test]
    fn what_the_network_does_at_once_counts_once() {
        let (clock, mut overlap) = (Clock(Instant::now()), Overlap::default());
        for (address, from, to) in [(1, 0, 5), (2, 3, 20), (3, 15, 25), (4, 40, 41)] {
            overlap.open(address, clock.at(from));
            assert_eq!(overlap.close(address, clock.at(to)), Some(clock.at(from)));
        }
        // Of 10 to 30, 10 to 25.
        overlap.copied(clock.at(10), clock.at(30));
        assert_eq!(times(&overlap), (20, 15));
        // Of 30 to 50, 40 to 41.
        overlap.copied(clock.at(30), clock.at(50));
        assert_eq!(times(&overlap), (40, 16));
        assert!(overlap.closed.is_empty());
    }

    #[test]
    fn what_goes_on_counts_up_to_the_copys_end() {
        let (clock, mut overlap) = (Clock(Instant::now()), Overlap::default());
        overlap.open(1, clock.at(6));
        overlap.open(2, clock.at(7));
        overlap.forget(2);
        overlap.copied(clock.at(0), clock.at(10));
        assert_eq!(times(&overlap), (10, 4));
        overlap.copied(clock.at(10), clock.at(12));
        assert_eq!(times(&overlap), (12, 6));
        assert_eq!(overlap.close(2, clock.at(12)), None);
    }

    #[test]
    fn what_is_remembered_has_an_end() {
        let (clock, mut overlap) = (Clock(Instant::now()), Overlap::default());
        for i in 0..3 * KEPT {
            overlap.open(i, clock.at(1));
            overlap.close(i, clock.at(2));
        }
        assert_eq!(overlap.closed.len(), KEPT);
    }
}
