//! Whether a lane's sends are zero-copy: tried, measured, chosen.

use std::time::{Duration, Instant};

/// Slices of a block that is measured as one.
const BLOCK: u32 = 8;
/// Blocks of each kind.
const TURNS: usize = 3;

/// How a lane sends its slices.
///
/// Zero-copy spares the kernel a copy and costs it the pinning of pages and a notification. Which is less depends on the
/// driver, the path and the processor; where the packets are copied after all (the loopback, virtual devices), the kernel says
/// so. A lane's first slices are sent in blocks of both kinds in turns, and the faster kind stays.
#[derive(Debug)]
pub(super) enum ZeroCopy {
    Measuring(Measurement),
    /// For good: zero-copy or not.
    Chosen(bool),
}

#[derive(Debug, Default)]
pub(super) struct Measurement {
    /// Slices of the block that were sent.
    sent: u32,
    began: Option<Instant>,
    /// What the blocks took: by copies, and without.
    took: [Vec<Duration>; 2],
    zero: bool,
}

impl ZeroCopy {
    /// To be measured.
    pub(super) fn measured() -> Self {
        Self::Measuring(Measurement::default())
    }

    /// How the next slice is sent.
    pub(super) fn next(&self) -> bool {
        match self {
            Self::Measuring(m) => m.zero,
            Self::Chosen(zero) => *zero,
        }
    }

    /// A slice went out, and `more` follow: a pause in between would be measured as well.
    pub(super) fn sent(&mut self, more: bool, now: Instant) {
        let Self::Measuring(m) = self else { return };
        match m.began {
            None => m.began = Some(now),
            Some(began) => {
                m.sent += 1;
                if m.sent == BLOCK {
                    m.took[usize::from(m.zero)].push(now - began);
                    (m.zero, m.sent, m.began) = (!m.zero, 0, Some(now));
                }
            }
        }
        if !more {
            (m.sent, m.began) = (0, None);
        }
        if m.took.iter().all(|took| took.len() >= TURNS) {
            let [copied, zero] = m.took.each_mut().map(|took| {
                took.sort_unstable();
                took[took.len() / 2]
            });
            tracing::debug!(?copied, ?zero, "a block of slices by copies, and by zero-copy sends");
            *self = Self::Chosen(zero < copied);
        }
    }

    /// The kernel copied a zero-copy send.
    pub(super) fn was_copied(&mut self) {
        if !matches!(self, Self::Chosen(false)) {
            tracing::debug!("this path copies zero-copy sends: they are not used");
            *self = Self::Chosen(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends slices that take so long each, until it is chosen.
    fn choose(copied: u64, zero: u64) -> bool {
        let mut choice = ZeroCopy::measured();
        let mut now = Instant::now();
        for _ in 0..1000 {
            if let ZeroCopy::Chosen(zero) = choice {
                return zero;
            }
            now += Duration::from_micros(if choice.next() { zero } else { copied });
            choice.sent(true, now);
        }
        panic!("never chosen");
    }

    #[test]
    fn the_faster_stays() {
        assert!(choose(100, 50));
        assert!(!choose(50, 100));
        assert!(!choose(100, 98 + 3));
        assert!(choose(100, 97));
    }

    #[test]
    fn pauses_are_not_measured() {
        let mut choice = ZeroCopy::measured();
        let mut now = Instant::now();
        for i in 0..2000_u32 {
            // Zero-copy is faster, but whenever it is used the sender pauses in between.
            now += Duration::from_micros(if choice.next() { 50 } else { 100 });
            choice.sent(i % 20 != 19, now);
            if i % 20 == 19 {
                now += Duration::from_secs(1);
            }
        }
        assert!(matches!(choice, ZeroCopy::Chosen(true)));
    }

    #[test]
    fn a_path_that_copies_is_not_tried_again() {
        let mut choice = ZeroCopy::measured();
        choice.was_copied();
        assert!(!choice.next());
    }
}
