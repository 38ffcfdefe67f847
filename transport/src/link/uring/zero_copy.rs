//! Whether a lane's sends are zero-copy: tried, measured, chosen, and looked at again.

use std::time::{Duration, Instant};

/// How a lane sends its slices.
///
/// Zero-copy spares the kernel a copy and costs it the pinning of pages and a notification. Which is less depends on the
/// driver, the path and the processor, and on what else these do; where the packets are copied after all (the loopback, virtual
/// devices), the kernel says so.
#[derive(Debug)]
pub(super) enum ZeroCopy {
    /// Whichever is faster.
    Measured(Box<Meter>),
    /// For good: zero-copy or not.
    Chosen(bool),
}

impl ZeroCopy {
    /// To be measured.
    pub(super) fn measured() -> Self {
        Self::Measured(Box::default())
    }

    /// How the next slice is sent.
    pub(super) fn next(&self) -> bool {
        match self {
            Self::Measured(meter) => meter.kind == ZERO,
            Self::Chosen(zero) => *zero,
        }
    }

    /// A slice went out, and `more` follow: a pause in between would be measured as well.
    pub(super) fn sent(&mut self, more: bool, now: Instant) {
        if let Self::Measured(meter) = self {
            meter.sent(more, now);
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

/// Slices of a block that is measured as one.
const BLOCK: u32 = 4;
/// Slices that a block may take, before it is given up: those before a pause are not measured.
const PATIENCE: u32 = 8 * BLOCK;
/// Blocks of the faster kind between two looks at the other, at the least.
const GAP: u32 = 8;
/// What looking at the slower kind may cost, of all the time: a hundredth.
const PRICE: u32 = 100;
/// Blocks of each kind that are remembered.
const KEPT: usize = 7;

/// The kind without a copy; the other is 0.
const ZERO: usize = 1;

/// Measures both kinds, and keeps to the faster.
///
/// The first block is sent by copies, the second without; then the faster kind goes on, and a block of the other is tried now and then:
/// the first few times as soon as all these have not cost more than a block takes, and later when what trials have cost is a hundredth
/// of all the time. So a lane never loses more than that, and those few slices at its beginning, against a lane that had known all
/// along. The medians of the last blocks decide; where a trial is faster than is usual, it is repeated at once.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// The kind in use.
    kind: usize,
    /// The kind that is thought to be faster.
    faster: usize,
    /// What blocks of either kind took lately.
    took: [Recent; 2],
    /// Intervals of the block that were measured, and what they took together.
    measured: u32,
    so_far: Duration,
    /// Slices of the block that were sent.
    sent: u32,
    /// When the slice before went out, if nothing came in between.
    then: Option<Instant>,
    /// Blocks of the faster kind since the last trial.
    since: u32,
    /// Time that trials may cost, and time that they have cost beyond that.
    credit: Duration,
    debt: Duration,
}

impl Meter {
    fn sent(&mut self, more: bool, now: Instant) {
        self.sent += 1;
        if let Some(then) = self.then {
            self.so_far += now.saturating_duration_since(then);
            self.measured += 1;
        }
        self.then = more.then_some(now);
        if self.measured == BLOCK {
            let took = std::mem::take(&mut self.so_far);
            (self.measured, self.sent) = (0, 0);
            self.kind = self.after(took);
        } else if self.sent >= PATIENCE && self.kind != self.faster {
            // A trial that comes to no end has cost something all the same.
            (self.measured, self.sent, self.so_far) = (0, 0, Duration::ZERO);
            (self.kind, self.since) = (self.faster, 0);
        }
    }

    /// A block was measured: the kind of the next.
    fn after(&mut self, took: Duration) -> usize {
        self.took[self.kind].push(took);
        let [Some(copied), Some(zero)] = self.took.each_ref().map(Recent::median) else {
            // The first of one kind is followed by the first of the other.
            return 1 - self.kind;
        };
        let trial = self.kind != self.faster;
        if self.took.iter().all(|took| took.pushed == 1) {
            // What the slower of the two has cost, out of what all the first trials may.
            self.credit = copied.min(zero);
            self.pay(copied.abs_diff(zero));
        } else if trial {
            let usual = [copied, zero][self.faster];
            self.pay(took.saturating_sub(usual));
            self.since = 0;
        } else {
            self.earn(took / PRICE);
            self.since += 1;
        }
        let before = self.faster;
        // What is level stays as it is; and a few slow blocks are no reason, before the other was looked at.
        if trial && [copied, zero][1 - before] < [copied, zero][before] {
            self.faster = 1 - before;
            tracing::debug!(?copied, ?zero, "blocks of slices by copies, and by zero-copy sends: the faster goes on");
        }
        let faster = [copied, zero][self.faster];
        // A kind that had bad luck is not kept waiting for it.
        let other = self.took[1 - self.faster].least();
        let again = trial && self.faster == before && took < faster;
        let gap = if self.took[1 - self.faster].pushed < KEPT { 1 } else { GAP };
        let due = self.since >= gap && self.debt.is_zero() && self.credit >= other.saturating_sub(faster);
        if again || due { 1 - self.faster } else { self.faster }
    }

    fn earn(&mut self, time: Duration) {
        let paid = self.debt.min(time);
        self.debt -= paid;
        self.credit += time - paid;
    }

    fn pay(&mut self, time: Duration) {
        let paid = self.credit.min(time);
        self.credit -= paid;
        self.debt += time - paid;
    }
}

/// The last few blocks of a kind.
#[derive(Debug, Default)]
struct Recent {
    took: [Duration; KEPT],
    pushed: usize,
}

impl Recent {
    fn push(&mut self, took: Duration) {
        self.took[self.pushed % KEPT] = took;
        self.pushed += 1;
    }

    /// The middle one, the faster of two; `None` of none.
    fn median(&self) -> Option<Duration> {
        let mut sorted = self.took;
        let known = &mut sorted[..self.pushed.min(KEPT)];
        known.sort_unstable();
        known.get(known.len().saturating_sub(1) / 2).copied()
    }

    fn least(&self) -> Duration {
        self.took[..self.pushed.min(KEPT)].iter().min().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a lane's slices took, by how many times what they would have taken by the better kind alone. `cost`: microseconds of the
    /// n-th slice, sent without a copy or with one. Every `run` slices the sender has nothing to send for a while.
    fn loss(slices: u32, run: u32, cost: impl Fn(u32, bool) -> u64) -> f64 {
        let mut choice = ZeroCopy::measured();
        let mut now = Instant::now();
        let mut took = 0;
        for n in 0..slices {
            let each = cost(n, choice.next());
            took += each;
            now += Duration::from_micros(each);
            let more = n % run != run - 1;
            choice.sent(more, now);
            if !more {
                now += Duration::from_secs(1);
            }
        }
        let alone = |zero| (0..slices).map(|n| cost(n, zero)).sum::<u64>();
        took as f64 / alone(true).min(alone(false)) as f64
    }

    /// 0 to 1, by the number: the same in every run.
    fn chance(n: u32, zero: bool) -> f64 {
        let mixed = (u64::from(n) * 2 + u64::from(zero) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 40) as f64 / (1_u64 << 24) as f64
    }

    const ANYTHING: u32 = u32::MAX;

    /// The issue's own words: never more than 3 % worse than the better choice. Slices are 256 KiB.
    #[test]
    fn over_a_transfer_it_is_never_3_percent_worse_than_the_better_choice() {
        for (slices, ratios) in [
            (256, &[0.5, 0.67, 0.8, 0.9, 0.97, 1.0, 1.03, 1.1, 1.25, 1.5, 2.0][..]),
            (4096, &[0.1, 0.2, 0.5, 0.8, 0.97, 1.0, 1.03, 1.25, 2.0, 5.0, 10.0]),
            (65_536, &[0.02, 0.5, 0.97, 1.03, 2.0, 50.0]),
        ] {
            for ratio in ratios {
                let loss = loss(slices, ANYTHING, |_, zero| if zero { (1000.0 * ratio) as u64 } else { 1000 });
                assert!(loss <= 1.03, "{slices} slices, zero-copy at {ratio}: {loss}");
            }
        }
    }

    #[test]
    fn noise_does_not_lead_it_astray() {
        for ratio in [0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 2.0] {
            for salt in 0..20 {
                let cost = |n, zero| {
                    let level = if zero { 1000.0 * ratio } else { 1000.0 };
                    // Up to a third slower; one in fifty takes three times as long.
                    let chance = chance(n + salt * 1_000_003, zero);
                    (level * if chance > 0.98 { 3.0 } else { 1.0 + chance / 3.0 }) as u64
                };
                let loss = loss(4096, ANYTHING, cost);
                assert!(loss <= 1.03, "zero-copy at {ratio}, salt {salt}: {loss}");
            }
        }
    }

    #[test]
    fn what_changes_on_the_way_is_noticed() {
        for (first, second) in [(0.5, 2.0), (2.0, 0.5), (0.8, 1.25), (1.25, 0.8)] {
            let cost = |n, zero| match zero {
                true => (1000.0 * if n < 4096 { first } else { second }) as u64,
                false => 1000,
            };
            let alone = (0..8192).map(|n| cost(n, true).min(cost(n, false))).sum::<u64>();
            let mine =
                loss(8192, ANYTHING, cost) * (0..8192).map(|n| cost(n, true)).sum::<u64>().min(8192 * 1000) as f64;
            assert!(mine <= alone as f64 * 1.05, "from {first} to {second}: {}", mine / alone as f64);
        }
    }

    #[test]
    fn pauses_are_not_measured() {
        for run in [2, 3, 4, 20] {
            for ratio in [0.5, 2.0] {
                let loss = loss(8192, run, |_, zero| if zero { (1000.0 * ratio) as u64 } else { 1000 });
                assert!(loss <= 1.03, "runs of {run}, zero-copy at {ratio}: {loss}");
            }
        }
    }

    /// Slices that each have a pause behind them say nothing: a trial ends all the same, and copies are what is left.
    #[test]
    fn what_cannot_be_measured_is_not_tried_for_ever() {
        let mut choice = ZeroCopy::measured();
        let mut now = Instant::now();
        let mut send = |choice: &mut ZeroCopy, more| {
            now += Duration::from_micros(if choice.next() { 1000 } else { 900 });
            choice.sent(more, now);
        };
        while !choice.next() {
            send(&mut choice, true);
        }
        let tried = (0..1000)
            .filter(|_| {
                send(&mut choice, false);
                choice.next()
            })
            .count();
        assert!(tried < PATIENCE as usize, "{tried}");
    }

    #[test]
    fn a_path_that_copies_is_not_tried_again() {
        let mut choice = ZeroCopy::measured();
        choice.was_copied();
        assert!(!choice.next());
        choice.sent(true, Instant::now());
        assert!(!choice.next());
    }
}
