//! What drives a device: a thread of its own, or whoever calls [`step`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::batch::execute;
use super::queue::Next;
use super::{Class, Job};
use crate::core::Core;

/// The longest that a decode step waits for others to join it.
const LINGER: Duration = Duration::from_micros(500);
/// ... and no more than this part of what the last batch took.
const LINGER_SHARE: u32 = 8;

/// Serves one device until its queue is closed.
pub(crate) fn run_device(core: &Arc<Core>, device: u16) {
    let mut batch = Vec::with_capacity(core.config.max_batch);
    let mut company = Company::default();
    loop {
        match core.queue(device).wait(&mut batch, core.config.max_batch) {
            Next::Batch => {
                let decodes = batch.first().is_some_and(|job| job.class() == Class::Decode);
                if decodes {
                    company.gather(core, device, &mut batch);
                }
                let started = Instant::now();
                execute(core, &mut batch);
                if decodes {
                    company.took = started.elapsed();
                }
            }
            Next::Task(task) => task(core),
            Next::Idle => {}
            Next::Closed => return,
        }
    }
}

/// Does one thing that waits for the device: runs one batch, or one piece of bulk work. Whether there was any.
pub(crate) fn step(core: &Arc<Core>, device: u16) -> bool {
    let mut batch = Vec::new();
    match core.queue(device).take(&mut batch, core.config.max_batch) {
        Next::Batch => execute(core, &mut batch),
        Next::Task(task) => task(core),
        Next::Idle | Next::Closed => return false,
    }
    true
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
}

impl Company {
    fn gather(&mut self, core: &Core, device: u16, batch: &mut Vec<Job>) {
        let newcomers = self.before.iter().filter(|number| !self.last.contains(number)).count();
        let expected = (self.last.len() + newcomers).min(core.config.max_batch);
        if batch.len() < expected {
            let linger = LINGER.min(self.took / LINGER_SHARE);
            core.queue(device).gather(batch, expected, Instant::now() + linger);
        }
        std::mem::swap(&mut self.before, &mut self.last);
        self.last.clear();
        self.last.extend(batch.iter().filter_map(|job| job.binding.caches.first()).map(|cache| cache.number));
    }
}
