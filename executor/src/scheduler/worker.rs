//! What drives a device: a thread of its own, or whoever calls [`step`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::{Rows, execute, give_up};
use super::queue::Next;
use super::{Class, Job};
use crate::core::Core;

/// The longest that a decode step waits for others to join it.
const LINGER: Duration = Duration::from_micros(500);
/// ... and no more than this part of what the last batch took.
const LINGER_SHARE: u32 = 8;

/// Serves one device until its queue is closed.
pub(crate) fn run_device(core: &Arc<Core>, device: u16) {
    let Scratch { mut batch, mut rows } = Scratch::default();
    let mut company = Company::default();
    loop {
        let mut work = || match core.queue(device).wait(&mut batch, core.config.max_batch) {
            Next::Batch => {
                let decodes = batch.first().is_some_and(|job| job.class() == Class::Decode);
                if decodes {
                    company.gather(core, device, &mut batch);
                }
                let started = Instant::now();
                execute(core, &mut batch, &mut rows);
                if decodes {
                    company.took = started.elapsed();
                }
                true
            }
            Next::Task(task) => {
                task(core);
                true
            }
            Next::Idle => true,
            Next::Closed => false,
        };
        // Without its thread a device would be silent for good, and every request to it with it.
        let done = catch_unwind(AssertUnwindSafe(&mut work));
        core.check_device(device);
        match done {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => {
                tracing::error!(device, "a device's thread ended by a bug: its batch fails, and it goes on");
                give_up(core, &mut batch);
            }
        }
    }
}

/// Does one thing that waits for the device: runs one batch, or one piece of bulk work. Whether there was any.
pub(crate) fn step(core: &Arc<Core>, device: u16) -> bool {
    let mut scratch = std::mem::take(&mut *core.scratch(device));
    let Scratch { batch, rows } = &mut scratch;
    let next = core.queue(device).take(batch, core.config.max_batch);
    let any = !matches!(next, Next::Idle | Next::Closed);
    match next {
        Next::Batch => execute(core, batch, rows),
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
    fn gather(&mut self, core: &Core, device: u16, batch: &mut Vec<Job>) {
        let newcomers = self.before.iter().filter(|number| !self.last.contains(number)).count();
        let expected = (self.last.len() + newcomers).min(core.config.max_batch);
        if self.hurry > 0 {
            self.hurry -= 1;
        } else if batch.len() < expected {
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
