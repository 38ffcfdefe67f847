//! How long threads that wait for a peer poll before they park, unless they are told.
//!
//! Waking a thread takes tens of microseconds. Where cores are few, polling pays for what is answered at once: a put, a look at a
//! tensor. Where there are cores to spare it is worth a decode step, too, which takes up to four milliseconds on a GPU. On either, whoever
//! usually waits for longer than the bound does not begin to; a server's lane that polls goes on up to four times the bound. But two sides
//! that both park make each other wait, so who waits a little longer than the bound tries now and then: see [`Trials`].

use std::sync::OnceLock;
use std::time::Duration;

/// Cores from which on one that polls is missed by nobody.
const MANY_CORES: usize = 8;
/// There: longer than a decode step.
const STEP: Duration = Duration::from_millis(5);

/// A client, for an answer.
pub(crate) fn client() -> Duration {
    either(Duration::from_micros(100))
}

/// A server's lane, for the next request of dense traffic.
pub(crate) fn server() -> Duration {
    either(Duration::from_micros(100))
}

/// Finds out whether polls would end waits that are a little too long for them: a few in a row are tried, and where most of these bring
/// something, polling pays. Trials that failed make the next one rarer.
pub(crate) struct Trials {
    /// Waits until the next trial, or that are left of this one.
    waits: u32,
    on: bool,
    hits: u32,
    pause: u32,
}

impl Trials {
    /// Waits that a trial lasts, and how many of them must bring something within the bound.
    const LENGTH: u32 = 8;
    const ENOUGH: u32 = 5;
    /// Waits from one trial to the next.
    const PAUSES: std::ops::RangeInclusive<u32> = 24..=1536;
    /// Longer than so many bounds: nothing to try.
    const FAR: u32 = 4;

    pub(crate) fn new() -> Self {
        Self { waits: *Self::PAUSES.start(), on: false, hits: 0, pause: *Self::PAUSES.start() }
    }

    /// Whether the next wait is to be polled for the sake of a trial.
    pub(crate) fn on(&self) -> bool {
        self.on
    }

    /// A wait took so long, and polling lasts for `bound`. Whether a trial has just shown that it pays.
    pub(crate) fn waited(&mut self, took: Duration, bound: Duration) -> bool {
        if !self.on && took >= bound * Self::FAR {
            return false;
        }
        self.hits += u32::from(self.on && took < bound);
        self.waits -= 1;
        if self.waits > 0 {
            return false;
        }
        let over = self.on;
        self.on = !over;
        let pays = over && std::mem::take(&mut self.hits) >= Self::ENOUGH;
        if over {
            self.pause = if pays { *Self::PAUSES.start() } else { (self.pause * 2).min(*Self::PAUSES.end()) };
        }
        self.waits = if self.on { Self::LENGTH } else { self.pause };
        pays
    }
}

fn either(short: Duration) -> Duration {
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    if cores >= MANY_CORES { STEP } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_micros(100);

    /// Waits until a trial begins, or all that are asked for.
    fn until_on(trials: &mut Trials, took: Duration, most: u32) -> u32 {
        (0..most).take_while(|_| !trials.on() && !trials.waited(took, BOUND)).count() as u32
    }

    #[test]
    fn a_trial_that_brings_something_shows_that_polls_pay() {
        let mut trials = Trials::new();
        assert_eq!(until_on(&mut trials, BOUND * 2, 1000), *Trials::PAUSES.start());
        let shown: Vec<bool> = (0..Trials::LENGTH).map(|_| trials.waited(BOUND / 2, BOUND)).collect();
        assert_eq!(shown.iter().position(|&pays| pays), Some(Trials::LENGTH as usize - 1), "at its end");
        assert!(!trials.on());
    }

    #[test]
    fn trials_that_fail_become_rare_and_long_waits_are_not_tried() {
        let mut trials = Trials::new();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            pauses.push(until_on(&mut trials, BOUND * 2, 10_000));
            assert!((0..Trials::LENGTH).all(|_| !trials.waited(BOUND * 2, BOUND)));
        }
        assert!(pauses.is_sorted() && pauses.last() == Some(Trials::PAUSES.end()), "{pauses:?}");
        assert_eq!(until_on(&mut trials, BOUND * Trials::FAR, 10_000), 10_000);
        assert!(!trials.on());
    }
}
