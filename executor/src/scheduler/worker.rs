//! What drives a device: a thread of its own, or whoever calls [`step`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Rows, execute, give_up};
use super::job::Said;
use super::queue::{Lent, Next};
use super::{Class, Job};
use crate::core::Core;

/// The longest that a decode step waits for others to join it.
const LINGER: Duration = Duration::from_micros(500);
/// ... and no more than this part of what the last batch took.
const LINGER_SHARE: u32 = 8;

/// How long a device's thread asks for more after a decode step before it sleeps, where there are cores to spare: clients that ask for
/// one step at a time answer within that, and waking the thread takes tens of microseconds.
const POLL: Duration = Duration::from_micros(200);
/// Cores from which on one that polls is missed by nobody.
const MANY_CORES: usize = 8;

/// Serves one device until its queue is closed.
pub(crate) fn run_device(core: &Arc<Core>, device: u16) {
    let Scratch { mut batch, mut rows, mut said } = Scratch::default();
    let mut company = Company::default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut decoded = false;
    loop {
        let queue = core.queue(device);
        let mut work = || {
            let mut next = queue.take(&mut batch, core.config.max_batch);
            if matches!(next, Next::Idle) {
                // Tokens wait for the next run's launch, and for nothing else.
                Said::all(&mut said);
                let poll = if decoded && cores >= MANY_CORES { POLL } else { Duration::ZERO };
                next = queue.wait(&mut batch, core.config.max_batch, poll);
            }
            decoded = false;
            match next {
                Next::Batch => {
                    decoded = batch.first().is_some_and(|job| job.class() == Class::Decode);
                    if decoded {
                        company.gather(core, device, &mut batch, &mut said);
                    }
                    let started = Instant::now();
                    execute(core, &mut batch, &mut rows, &mut said);
                    if decoded {
                        company.took = started.elapsed();
                    }
                }
                Next::Task(task) => {
                    Said::all(&mut said);
                    task(core);
                }
                Next::Idle => {}
                Next::Closed => return false,
            }
            true
        };
        // Without its thread a device would be silent for good, and every request to it with it.
        let done = catch_unwind(AssertUnwindSafe(&mut work));
        core.check_device(device);
        match done {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => {
                tracing::error!(device, "a device's thread ended by a bug: its batch fails, and it goes on");
                Said::all(&mut said);
                give_up(core, &mut batch);
            }
        }
    }
}

/// Runs a job that nothing was waiting before, on the caller's thread. Who has lent the device gets it back at the end.
pub(super) fn run_here(core: &Arc<Core>, lent: Lent<'_>, job: Job) {
    let device = job.binding.program.device;
    let mut scratch = std::mem::take(&mut *core.scratch(device));
    let Scratch { batch, rows, said } = &mut scratch;
    batch.push(job);
    if catch_unwind(AssertUnwindSafe(|| execute(core, batch, rows, said))).is_err() {
        tracing::error!(device, "a run ended by a bug: it fails, and the device goes on");
        give_up(core, batch);
    }
    Said::all(said);
    *core.scratch(device) = scratch;
    drop(lent);
    core.check_device(device);
}

/// Does one thing that waits for the device: runs one batch, or one piece of bulk work. Whether there was any.
pub(crate) fn step(core: &Arc<Core>, device: u16) -> bool {
    let mut scratch = std::mem::take(&mut *core.scratch(device));
    let Scratch { batch, rows, said } = &mut scratch;
    let next = core.queue(device).take(batch, core.config.max_batch);
    let any = !matches!(next, Next::Idle | Next::Closed);
    match next {
        Next::Batch => {
            execute(core, batch, rows, said);
            Said::all(said);
        }
        Next::Task(task) => task(core),
        Next::Idle | Next::Closed => {}
    }
    *core.scratch(device) = scratch;
    core.check_device(device);
    any
}

/// Lists that are empty between batches, and keep their memory.
#[derive(Default)]
pub(crate) struct Scratch {
    batch: Vec<Job>,
    rows: Rows,
    /// Tokens that are still to be sent.
    said: Vec<Said>,
}

/// Who decoded lately.
///
/// Clients that ask for one step at a time answer a batch's replies within microseconds of each other, but the first of them
/// would run alone, and then all others without it. So a batch waits a moment for whoever was in one of the last two.
#[derive(Default)]
struct Company {
    last: Vec<u64>,
    before: Vec<u64>,
    took: Duration,
    /// Batches that do not wait, because waiting brought nobody.
    hurry: u32,
    /// How many those were, the last time.
    hurried: u32,
}

/// The most batches that go without waiting after one that waited in vain.
const HURRY: u32 = 64;

impl Company {
    fn gather(&mut self, core: &Core, device: u16, batch: &mut Vec<Job>, said: &mut Vec<Said>) {
        let newcomers = self.before.iter().filter(|number| !self.last.contains(number)).count();
        let expected = (self.last.len() + newcomers).min(core.config.max_batch);
        if self.hurry > 0 {
            self.hurry -= 1;
        } else if batch.len() < expected {
            Said::all(said);
            let had = batch.len();
            let linger = LINGER.min(self.took / LINGER_SHARE);
            core.queue(device).gather(batch, expected, Instant::now() + linger);
            self.hurried = if batch.len() > had { 0 } else { (2 * self.hurried + 1).min(HURRY) };
            self.hurry = self.hurried;
        }
        std::mem::swap(&mut self.before, &mut self.last);
        self.last.clear();
        self.last.extend(batch.iter().filter_map(|job| job.binding.caches.first()).map(|cache| cache.number));
    }
}
