//! Load: requests that are kept in flight, or that begin at given times whatever became of the earlier ones.
//!
//! A closed loop waits for the service, so it does not see what a user would have waited while the service stood still. An open
//! loop (`rate`) has a time at which each request is meant to begin, and counts its latency from there: a request that could
//! not begin because earlier ones were late has waited all the same. Nothing is left out that would have been slow.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

use super::{record, times};

/// What is measured: a clock and a service.
pub(super) trait Target {
    /// A request in flight.
    type Ticket;

    /// The time since some beginning.
    fn now(&self) -> Duration;

    /// Begins a request.
    fn start(&mut self) -> Result<Self::Ticket>;

    /// Waits until one of these is done or nearer to it, or until a time.
    fn wait(&mut self, flying: &VecDeque<Flying<Self::Ticket>>, until: Option<Duration>);

    /// Whether [`Self::finish`] would not wait.
    fn is_done(&mut self, ticket: &Self::Ticket) -> bool;

    /// Ends a request; waits for it, if it is not done.
    fn finish(&mut self, ticket: Self::Ticket) -> Result<()>;
}

/// A request in flight, and when it was begun, or meant to be.
#[derive(Debug)]
pub(super) struct Flying<T> {
    pub(super) ticket: T,
    since: Duration,
}

/// When a measurement ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Until {
    /// After so many requests.
    Count(u64),
    /// After so long. What is in flight then is waited for.
    Time(Duration),
}

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plan {
    /// Requests in flight, at the most.
    pub(super) depth: usize,
    /// Requests a second; without it, one begins when one ends.
    pub(super) rate: Option<f64>,
    pub(super) until: Until,
}

/// How requests follow each other for as long as something else lasts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Requests a second.
    pub(super) rate: f64,
    /// Requests in flight, at the most.
    pub(super) depth: usize,
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Requests that were answered.
    pub(super) requests: u64,
    /// Requests that were due and could not even begin. They are among the latencies with the time that they had waited.
    pub(super) unstarted: u64,
    /// From the beginning to the last answer.
    pub(super) took: Duration,
    /// In nanoseconds.
    pub(super) latencies: Histogram<u64>,
}

impl Outcome {
    /// Nothing yet.
    pub(super) fn empty() -> Result<Self> {
        Ok(Self { requests: 0, unstarted: 0, took: Duration::ZERO, latencies: times()? })
    }

    /// Adds what another thread measured at the same time.
    pub(super) fn beside(&mut self, other: &Self) {
        self.took = self.took.max(other.took);
        self.count(other);
    }

    /// Adds what was measured after it.
    pub(super) fn after(&mut self, other: &Self) {
        self.took += other.took;
        self.count(other);
    }

    fn count(&mut self, other: &Self) {
        self.requests += other.requests;
        self.unstarted += other.unstarted;
        self.latencies += &other.latencies;
    }
}

/// How many times longer than planned an overloaded open loop may take before it is cut off.
const PATIENCE: u32 = 2;

/// Runs a plan to its end.
///
/// # Errors
/// The first request's that fails.
pub(super) fn run<T: Target>(target: &mut T, plan: Plan) -> Result<Outcome> {
    match plan.rate {
        None => closed(target, plan),
        Some(rate) => open(target, plan, rate),
    }
}

/// An open loop beside something that began at `since` and is looked at between requests. All requests that are due before it is
/// over are begun and counted, from when they were meant to begin; [`Outcome::took`] is how long that something took.
///
/// # Errors
/// The first request's that fails.
pub(super) fn during<T: Target>(
    target: &mut T,
    pace: Pace,
    since: Duration,
    mut is_over: impl FnMut(&mut T) -> bool,
) -> Result<Outcome> {
    let mut outcome = Outcome::empty()?;
    let mut flying = VecDeque::with_capacity(pace.depth);
    let due = |n: u64| since + Duration::from_secs_f64(n as f64 / pace.rate);
    let (mut now, mut started, mut end) = (target.now(), 0, None);
    loop {
        if end.is_none() && is_over(target) {
            now = target.now();
            outcome.took = now.saturating_sub(since);
            end = Some(now);
        }
        let counts = |n| end.is_none_or(|end| due(n) < end);
        while counts(started) && due(started) <= now && flying.len() < pace.depth {
            flying.push_back(Flying { ticket: target.start()?, since: due(started) });
            started += 1;
            now = target.now();
        }
        if !counts(started) && flying.is_empty() {
            return Ok(outcome);
        }
        let next = (counts(started) && flying.len() < pace.depth).then(|| due(started));
        if next.is_none_or(|next| next > now) {
            target.wait(&flying, next);
            now = harvest(target, &mut flying, &mut outcome)?;
        }
    }
}

/// One after the other, as a caller has it who waits for each: nothing else is between a request and the clock.
fn one_by_one<T: Target>(target: &mut T, until: Until) -> Result<Outcome> {
    let mut outcome = Outcome::empty()?;
    let start = target.now();
    let mut ended = start;
    loop {
        let more = match until {
            Until::Count(count) => outcome.requests < count,
            Until::Time(time) => ended < start + time,
        };
        if !more {
            outcome.took = ended - start;
            return Ok(outcome);
        }
        let began = target.now();
        let ticket = target.start()?;
        target.finish(ticket)?;
        ended = target.now();
        record(&mut outcome.latencies, ended.saturating_sub(began));
        outcome.requests += 1;
    }
}

fn closed<T: Target>(target: &mut T, plan: Plan) -> Result<Outcome> {
    if plan.depth == 1 {
        return one_by_one(target, plan.until);
    }
    let mut outcome = Outcome::empty()?;
    let mut flying = VecDeque::with_capacity(plan.depth);
    let began = target.now();
    let (mut now, mut started) = (began, 0);
    loop {
        let more = |started, now| match plan.until {
            Until::Count(count) => started < count,
            Until::Time(time) => now < began + time,
        };
        while flying.len() < plan.depth && more(started, now) {
            flying.push_back(Flying { ticket: target.start()?, since: now });
            started += 1;
            now = target.now();
        }
        if flying.is_empty() {
            outcome.took = now - began;
            return Ok(outcome);
        }
        target.wait(&flying, None);
        now = harvest(target, &mut flying, &mut outcome)?;
    }
}

fn open<T: Target>(target: &mut T, plan: Plan, rate: f64) -> Result<Outcome> {
    let mut outcome = Outcome::empty()?;
    let mut flying = VecDeque::with_capacity(plan.depth);
    let count = match plan.until {
        Until::Count(count) => count,
        Until::Time(time) => (rate * time.as_secs_f64()).ceil().max(1.0) as u64,
    };
    let began = target.now();
    let due = |n: u64| began + Duration::from_secs_f64(n as f64 / rate);
    let cut = began + (due(count) - began) * PATIENCE;
    let (mut now, mut started) = (began, 0);
    while (started < count && now < cut) || !flying.is_empty() {
        while started < count && due(started) <= now && flying.len() < plan.depth && now < cut {
            flying.push_back(Flying { ticket: target.start()?, since: due(started) });
            started += 1;
            now = target.now();
        }
        let next = (started < count && flying.len() < plan.depth && now < cut).then(|| due(started));
        if next.is_some_and(|next| next <= now) {
            continue;
        }
        target.wait(&flying, next);
        now = harvest(target, &mut flying, &mut outcome)?;
    }
    for n in (started..count).filter(|n| due(*n) < now) {
        record(&mut outcome.latencies, now - due(n));
        outcome.unstarted += 1;
    }
    outcome.took = now - began;
    Ok(outcome)
}

/// Ends what is done, oldest first; the time after that.
fn harvest<T: Target>(
    target: &mut T,
    flying: &mut VecDeque<Flying<T::Ticket>>,
    outcome: &mut Outcome,
) -> Result<Duration> {
    let mut ended = None;
    let mut i = 0;
    while let Some(request) = flying.get(i) {
        if !target.is_done(&request.ticket) {
            i += 1;
            continue;
        }
        if let Some(Flying { ticket, since }) = flying.remove(i) {
            target.finish(ticket)?;
            let now = target.now();
            record(&mut outcome.latencies, now.saturating_sub(since));
            outcome.requests += 1;
            ended = Some(now);
        }
    }
    Ok(ended.unwrap_or_else(|| target.now()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service with a clock of its own: one request at a time, each takes `each`; it stands still from `stall.0` to `stall.1`.
    struct Fake {
        now: Duration,
        each: Duration,
        stall: (Duration, Duration),
        free_at: Duration,
        most_flying: usize,
    }

    const US: Duration = Duration::from_micros(1);
    const MS: Duration = Duration::from_millis(1);

    impl Fake {
        fn new(each: Duration) -> Self {
            Self {
                now: Duration::ZERO,
                each,
                stall: (Duration::MAX, Duration::MAX),
                free_at: Duration::ZERO,
                most_flying: 0,
            }
        }
    }

    impl Target for Fake {
        /// When it will be done.
        type Ticket = Duration;

        fn now(&self) -> Duration {
            self.now
        }

        fn start(&mut self) -> Result<Duration> {
            let mut begins = self.free_at.max(self.now);
            if begins >= self.stall.0 && begins < self.stall.1 {
                begins = self.stall.1;
            }
            self.free_at = begins + self.each;
            Ok(self.free_at)
        }

        fn wait(&mut self, flying: &VecDeque<Flying<Duration>>, until: Option<Duration>) {
            self.most_flying = self.most_flying.max(flying.len());
            let first = flying.iter().map(|f| f.ticket).min();
            let wake = first.into_iter().chain(until).min().expect("there is something to wait for");
            self.now = self.now.max(wake);
        }

        fn is_done(&mut self, ticket: &Duration) -> bool {
            *ticket <= self.now
        }

        fn finish(&mut self, ticket: Duration) -> Result<()> {
            self.now = self.now.max(ticket);
            Ok(())
        }
    }

    fn at(outcome: &Outcome, quantile: f64) -> Duration {
        Duration::from_nanos(outcome.latencies.value_at_quantile(quantile))
    }

    fn near(a: Duration, b: Duration) -> bool {
        a.abs_diff(b) <= b / 500
    }

    #[test]
    fn a_closed_loop_keeps_so_many_in_flight() {
        let mut fake = Fake::new(100 * US);
        let outcome = run(&mut fake, Plan { depth: 4, rate: None, until: Until::Count(100) }).unwrap();
        assert_eq!((outcome.requests, outcome.unstarted, fake.most_flying), (100, 0, 4));
        assert_eq!(outcome.took, 10 * MS);
        assert!(near(at(&outcome, 0.5), 400 * US), "each waits for three others: {:?}", at(&outcome, 0.5));
        let outcome = run(&mut fake, Plan { depth: 1, rate: None, until: Until::Time(MS) }).unwrap();
        assert_eq!((outcome.requests, outcome.took, outcome.latencies.len()), (10, MS, 10));
    }

    #[test]
    fn an_open_loop_keeps_its_times() {
        let mut fake = Fake::new(100 * US);
        let outcome = run(&mut fake, Plan { depth: 8, rate: Some(1000.0), until: Until::Time(100 * MS) }).unwrap();
        assert_eq!((outcome.requests, outcome.unstarted, fake.most_flying), (100, 0, 1));
        assert_eq!(outcome.took, 99 * MS + 100 * US);
        assert!(near(at(&outcome, 1.0), 100 * US));
    }

    /// The service stands still for a tenth of the time. A closed loop sees one slow request in thousands; who would have come
    /// meanwhile, every millisecond, would have waited up to the whole of it.
    #[test]
    fn a_standstill_is_not_omitted() {
        let stall = (200 * MS, 300 * MS);
        let plan = Plan { depth: 1, rate: None, until: Until::Time(1000 * MS) };
        let closed = run(&mut Fake { stall, ..Fake::new(100 * US) }, plan).unwrap();
        assert!(near(at(&closed, 0.999), 100 * US) && near(at(&closed, 1.0), 100 * MS + 100 * US));

        for depth in [1, 1000] {
            let plan = Plan { depth, rate: Some(1000.0), until: Until::Time(1000 * MS) };
            let open = run(&mut Fake { stall, ..Fake::new(100 * US) }, plan).unwrap();
            assert_eq!((open.requests, open.unstarted), (1000, 0));
            // 100 came while it stood still; those waited from 100 ms down to nothing, and each for those before it.
            assert!(near(at(&open, 1.0), 100 * MS + 100 * US), "{:?}", at(&open, 1.0));
            assert!((54 * MS..56 * MS).contains(&at(&open, 0.95)), "{:?}", at(&open, 0.95));
            assert!(near(at(&open, 0.88), 100 * US), "{:?}", at(&open, 0.88));
        }
    }

    #[test]
    fn an_overloaded_open_loop_ends_and_hides_nothing() {
        // Asked for ten times what the service can do.
        let mut fake = Fake::new(MS);
        let outcome = run(&mut fake, Plan { depth: 4, rate: Some(10_000.0), until: Until::Time(100 * MS) }).unwrap();
        assert_eq!(outcome.requests + outcome.unstarted, 1000);
        assert!((200..=205).contains(&outcome.requests), "{}", outcome.requests);
        assert_eq!(outcome.latencies.len(), 1000);
        assert!(at(&outcome, 0.5) > 100 * MS, "{:?}", at(&outcome, 0.5));
    }

    /// What lasts 300 ms stands in the way from 200 ms on, to its end and beyond: those who come last wait longest, and count.
    #[test]
    fn what_waits_for_the_end_of_something_counts() {
        let pace = Pace { rate: 1000.0, depth: 16 };
        let mut fake = Fake { stall: (200 * MS, 310 * MS), ..Fake::new(100 * US) };
        let outcome = during(&mut fake, pace, Duration::ZERO, |fake| fake.now >= 300 * MS).unwrap();
        // Nobody looks while all that may be in flight waits: it is found to be over when the first of them is answered.
        let looked = outcome.took;
        assert!((310 * MS..312 * MS).contains(&looked), "{looked:?}");
        assert!((310..=312).contains(&outcome.requests) && outcome.unstarted == 0, "{outcome:?}");
        assert!(near(at(&outcome, 1.0), 110 * MS + 100 * US), "{:?}", at(&outcome, 1.0));
        assert!(fake.most_flying <= pace.depth);
    }

    /// A caller that is kept for 100 ms before the first request can begin has kept all of those waiting that were due.
    #[test]
    fn what_happens_at_once_keeps_requests_waiting() {
        let mut fake = Fake::new(100 * US);
        fake.now = 100 * MS;
        let pace = Pace { rate: 1000.0, depth: 16 };
        let outcome = during(&mut fake, pace, Duration::ZERO, |_| true).unwrap();
        assert_eq!((outcome.requests, outcome.took), (100, 100 * MS));
        assert!(near(at(&outcome, 1.0), 100 * MS + 100 * US) && at(&outcome, 0.5) > 50 * MS, "{outcome:?}");
    }

    #[test]
    fn parts_add_up() {
        let plan = Plan { depth: 1, rate: None, until: Until::Count(10) };
        let measured = || run(&mut Fake::new(MS), plan).unwrap();
        let mut all = measured();
        all.beside(&measured());
        assert_eq!((all.requests, all.took, all.latencies.len()), (20, 10 * MS, 20));
        all.after(&measured());
        assert_eq!((all.requests, all.took), (30, 20 * MS));
    }
}
