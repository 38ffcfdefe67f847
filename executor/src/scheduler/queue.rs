//! The queue of one device.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::Job;
use crate::core::Core;

/// Decode batches that may go first while a prefill waits: one for so many of its tokens, ...
const TOKENS_PER_PASS: u64 = 32;
/// ... and no more than this. A short prompt costs the others little, and once it has run its steps join theirs; a long one
/// holds them up for long.
const PREFILL_PATIENCE: u64 = 16;
/// Runs that may go first while bulk work waits.
const BULK_PATIENCE: u32 = 32;

/// Which runs go first. In this order, and bulk work after them; but nothing waits for ever: after so many others it is its
/// turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// One token a step: somebody reads along.
    Decode,
    /// Everything else that runs.
    Prefill,
}

/// Bulk work: copies, which nobody waits for token by token.
pub(crate) type Task = Box<dyn FnOnce(&Arc<Core>) + Send>;

/// See the module.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
    /// Counts what comes, for who polls without the lock.
    news: AtomicU64,
}

#[derive(Default)]
struct State {
    decode: Fair,
    prefill: Fair,
    bulk: VecDeque<Task>,
    /// How often others went first since a prefill, or bulk work, was served.
    prefill_passed: u32,
    bulk_passed: u32,
    /// When the last decode step was served.
    decoded: Option<Instant>,
    /// Threads that are to be woken.
    parked: u32,
    /// The device's own thread is at work.
    busy: bool,
    /// Somebody else has the device for a moment.
    lent: bool,
    /// Nothing is accepted any more.
    closed: bool,
}

/// Runs of one class. Sessions take turns, however many runs each of them has: a session's n-th waiting run stands beside the
/// n-th of every other, and the runs of one session keep their order.
///
/// It is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) where every run counts the same: a run's tag is one more
/// than that of its session's run before it that still waits, and at least one more than that of the run that was served last.
#[derive(Default)]
struct Fair {
    /// By their tags.
    jobs: VecDeque<(u64, Job)>,
    /// The tag that was served last.
    now: u64,
}

impl Fair {
    fn push(&mut self, job: Job) {
        let tag = self.now + 1;
        let tag = job.share().map_or(tag, |share| share.enter(tag));
        let at = self.jobs.partition_point(|(other, _)| *other <= tag);
        self.jobs.insert(at, (tag, job));
    }

    fn pop(&mut self) -> Option<Job> {
        self.remove(0)
    }

    fn remove(&mut self, at: usize) -> Option<Job> {
        let (tag, job) = self.jobs.remove(at)?;
        if at == 0 {
            self.now = tag;
        }
        if let Some(share) = job.share() {
            share.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Some(job)
    }
}

/// What one session has in one [`Fair`] queue; guarded by the queue's lock.
#[derive(Debug, Default)]
pub(crate) struct Share {
    waiting: AtomicU64,
    /// The tag of its last run.
    last: AtomicU64,
}

impl Share {
    /// The tag of another run, `least` or more. Runs that were served with others' leave no debt.
    fn enter(&self, least: u64) -> u64 {
        let tag = match self.waiting.fetch_add(1, Ordering::Relaxed) {
            0 => least,
            _ => least.max(self.last.load(Ordering::Relaxed) + 1),
        };
        self.last.store(tag, Ordering::Relaxed);
        tag
    }
}

/// What the device does next.
pub(crate) enum Next {
    /// The jobs that were put into the caller's list.
    Batch,
    /// Bulk work.
    Task(Task),
    /// Nothing, for now.
    Idle,
    /// Nothing, ever again.
    Closed,
}

impl Queue {
    /// Adds a run; gives it back if the queue is closed.
    pub(crate) fn push(&self, job: Job) -> Option<Job> {
        let mut state = self.lock();
        if state.closed {
            return Some(job);
        }
        match job.class() {
            Class::Decode => state.decode.push(job),
            Class::Prefill => state.prefill.push(job),
        }
        self.tell(state);
        None
    }

    /// Adds bulk work; gives it back if the queue is closed.
    pub(crate) fn push_task(&self, task: Task) -> Result<(), Task> {
        let mut state = self.lock();
        if state.closed {
            return Err(task);
        }
        state.bulk.push_back(task);
        self.tell(state);
        Ok(())
    }

    /// Takes what is next. A decode step brings along all others that can run with it, up to `most`.
    pub(crate) fn take(&self, batch: &mut Vec<Job>, most: usize) -> Next {
        let mut state = self.lock();
        state.take(batch, most)
    }

    /// As [`Self::take`], but waits until there is something: polls for so long, then parks.
    pub(crate) fn wait(&self, batch: &mut Vec<Job>, most: usize, poll: Duration) -> Next {
        let mut until = (poll > Duration::ZERO).then(|| Instant::now() + poll);
        let mut state = self.lock();
        loop {
            match state.take(batch, most) {
                Next::Idle if state.closed => return Next::Closed,
                Next::Idle => {}
                next => return next,
            }
            state = match until.take() {
                Some(until) => self.poll(state, until),
                None => self.park(state, None),
            };
        }
    }

    /// Lends the device to the caller, if nothing runs on it and nothing waits for it. What comes meanwhile waits.
    pub(crate) fn lend(&self) -> Option<Lent<'_>> {
        // Who has it decides just now what is next.
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if state.closed || state.busy || state.lent || !state.is_empty() {
            return None;
        }
        state.lent = true;
        Some(Lent(self))
    }

    /// Polls for news until then.
    fn poll<'a>(&'a self, state: MutexGuard<'a, State>, until: Instant) -> MutexGuard<'a, State> {
        let known = self.news.load(Ordering::Acquire);
        drop(state);
        while self.news.load(Ordering::Acquire) == known && Instant::now() < until {
            (0..16).for_each(|_| std::hint::spin_loop());
        }
        self.lock()
    }

    /// Sleeps until something comes, or for so long.
    fn park<'a>(&'a self, mut state: MutexGuard<'a, State>, time: Option<Duration>) -> MutexGuard<'a, State> {
        state.parked += 1;
        let mut state = match time {
            Some(time) => self.ready.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
            None => self.ready.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
        state.parked -= 1;
        state
    }

    /// Something has come: whoever polls sees it; to wake somebody is a call of the system, made where somebody sleeps.
    fn tell(&self, state: MutexGuard<'_, State>) {
        self.news.fetch_add(1, Ordering::Release);
        let asleep = state.parked > 0;
        drop(state);
        if asleep {
            self.ready.notify_one();
        }
    }

    /// Waits until `deadline` for more decode steps that can run with `batch`, up to `most` in all.
    pub(crate) fn gather(&self, batch: &mut Vec<Job>, most: usize, deadline: Instant) {
        let mut state = self.lock();
        loop {
            state.join(batch, most);
            let left = deadline.saturating_duration_since(Instant::now());
            if batch.len() >= most || left == Duration::ZERO || state.closed {
                return;
            }
            state = self.park(state, Some(left));
        }
    }

    /// Whether a decode step waits, or was served no longer ago than this.
    pub(crate) fn decoded_within(&self, time: Duration) -> bool {
        let state = self.lock();
        !state.decode.jobs.is_empty() || state.decoded.is_some_and(|at| at.elapsed() <= time)
    }

    /// Takes out every run that waits. Bulk work stays: it answers its requests itself.
    pub(crate) fn drain(&self) -> Vec<Job> {
        let mut state = self.lock();
        let State { decode, prefill, .. } = &mut *state;
        let mut jobs = Vec::new();
        for class in [decode, prefill] {
            jobs.extend(std::iter::from_fn(|| class.pop()));
        }
        jobs
    }

    /// Accepts nothing from here on, and gives what was waiting.
    pub(crate) fn close(&self) -> (Vec<Job>, Vec<Task>) {
        let mut state = self.lock();
        state.closed = true;
        let State { decode, prefill, bulk, .. } = &mut *state;
        let jobs = decode.jobs.drain(..).chain(prefill.jobs.drain(..)).map(|(_, job)| job).collect();
        let tasks = bulk.drain(..).collect();
        self.news.fetch_add(1, Ordering::Release);
        drop(state);
        self.ready.notify_all();
        (jobs, tasks)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The device is the holder's to use.
pub(crate) struct Lent<'a>(&'a Queue);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.lent = false;
        // Whoever was woken for what came meanwhile found the device lent, and sleeps again.
        if state.is_empty() {
            return;
        }
        self.0.tell(state);
    }
}

impl State {
    fn is_empty(&self) -> bool {
        self.decode.jobs.is_empty() && self.prefill.jobs.is_empty() && self.bulk.is_empty()
    }

    fn take(&mut self, batch: &mut Vec<Job>, most: usize) -> Next {
        let next = if self.lent { Next::Idle } else { self.choose(batch, most) };
        self.busy = matches!(next, Next::Batch | Next::Task(_));
        next
    }

    fn choose(&mut self, batch: &mut Vec<Job>, most: usize) -> Next {
        let prefill_is_due = self.prefill.jobs.front().is_some_and(|(_, job)| {
            let patience = (job.sizes.sequence / TOKENS_PER_PASS).clamp(1, PREFILL_PATIENCE);
            u64::from(self.prefill_passed) >= patience
        });
        let bulk_is_due = !self.bulk.is_empty() && self.bulk_passed >= BULK_PATIENCE;
        if bulk_is_due && let Some(task) = self.bulk.pop_front() {
            self.bulk_passed = 0;
            return Next::Task(task);
        }
        if !prefill_is_due && let Some(job) = self.decode.pop() {
            self.passed(true);
            self.decoded = Some(Instant::now());
            batch.push(job);
            self.join(batch, most);
            return Next::Batch;
        }
        if let Some(job) = self.prefill.pop() {
            self.prefill_passed = 0;
            self.passed(false);
            batch.push(job);
            return Next::Batch;
        }
        match self.bulk.pop_front() {
            Some(task) => {
                self.bulk_passed = 0;
                Next::Task(task)
            }
            None => Next::Idle,
        }
    }

    fn passed(&mut self, prefill: bool) {
        if prefill && !self.prefill.jobs.is_empty() {
            self.prefill_passed += 1;
        }
        if !self.bulk.is_empty() {
            self.bulk_passed += 1;
        }
    }

    /// Moves waiting decode steps that can run with the first of `batch` into it, in their order.
    fn join(&mut self, batch: &mut Vec<Job>, most: usize) {
        let mut at = 0;
        while batch.len() < most && at < self.decode.jobs.len() {
            let joins = batch.first().is_some_and(|first| first.runs_with(&self.decode.jobs[at].1));
            match joins.then(|| self.decode.remove(at)).flatten() {
                Some(job) => batch.push(job),
                None => at += 1,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// What a thread that waits gets, once `then` was done.
    fn waiting(poll: Duration, then: impl FnOnce(&Queue)) -> Next {
        let queue = Queue::default();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait(&mut Vec::new(), 1, poll));
            then(&queue);
            waiter.join().unwrap()
        })
    }

    fn parked(queue: &Queue) -> bool {
        queue.lock().parked > 0
    }

    #[test]
    fn who_polls_and_who_parks_hear_of_work_and_of_the_end() {
        for poll in [Duration::ZERO, LONG] {
            let come = |queue: &Queue| {
                while poll == Duration::ZERO && !parked(queue) {
                    std::thread::yield_now();
                }
                assert!(queue.push_task(Box::new(|_| ())).is_ok());
            };
            let began = Instant::now();
            assert!(matches!(waiting(poll, come), Next::Task(_)));
            assert!(matches!(waiting(poll, |queue| drop(queue.close())), Next::Closed));
            // Who is not told looks again at the end of its poll.
            assert!(began.elapsed() < LONG / 2);
        }
    }

    #[test]
    fn a_device_is_lent_while_nothing_waits_and_what_comes_waits_for_it() {
        let queue = Queue::default();
        let mut batch = Vec::new();
        let lent = queue.lend();
        assert!(lent.is_some() && queue.lend().is_none(), "one at a time");
        assert!(queue.push_task(Box::new(|_| ())).is_ok());
        assert!(matches!(queue.take(&mut batch, 1), Next::Idle), "it is lent");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait(&mut Vec::new(), 1, Duration::ZERO));
            while !parked(&queue) {
                std::thread::yield_now();
            }
            drop(lent);
            assert!(matches!(waiter.join().unwrap(), Next::Task(_)), "who sleeps is woken for what came meanwhile");
        });
        assert!(queue.lend().is_none(), "its own thread is at work");
        assert!(matches!(queue.take(&mut batch, 1), Next::Idle));
        assert!(queue.push_task(Box::new(|_| ())).is_ok());
        assert!(queue.lend().is_none(), "something waits");
        queue.close();
        assert!(queue.lend().is_none(), "nothing is accepted any more");
    }

    #[test]
    fn who_polls_in_vain_parks() {
        let then = |queue: &Queue| {
            while !parked(queue) {
                std::thread::yield_now();
            }
            queue.close();
        };
        assert!(matches!(waiting(Duration::from_micros(200), then), Next::Closed));
    }
}
