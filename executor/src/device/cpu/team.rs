//! The threads of one device, which run a whole step together.
//!
//! All members walk the same list of ops, each does its share of every op, and they meet at barriers. The caller is a member
//! too, so a device of one thread runs on the caller's. Nothing is allocated and, while work comes densely, no thread sleeps:
//! members spin for a bounded while and then park, and inside a step they spin and then yield, so that a machine with fewer free
//! cores than members goes on.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::device::DeviceError;

/// How long a member without work looks for some before it parks: longer than the gap between the steps of a generation,
/// short enough not to be felt by whoever else wants the core.
const IDLE_SPIN: Duration = Duration::from_micros(50);

/// Polls of a barrier before the member offers its core to others.
const BARRIER_SPINS: u32 = 4096;

/// A member's part in a step.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Which member.
    pub(super) index: usize,
    /// Of how many.
    pub(super) count: usize,
}

impl Share {
    /// This member's part of `total` things, in whole groups of `grain` (the last group may be short).
    #[inline]
    pub(super) fn split(self, total: usize, grain: usize) -> Range<usize> {
        let groups = total.div_ceil(grain);
        let start = groups * self.index / self.count * grain;
        let end = groups * (self.index + 1) / self.count * grain;
        start.min(total)..end.min(total)
    }
}

/// A member inside a step.
pub(super) struct Member<'a> {
    pub(super) share: Share,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// Waits for all members; what each wrote before, all see after. `false`: another member failed, leave.
    #[inline]
    #[must_use]
    pub(super) fn meet(&self) -> bool {
        self.barrier.wait(self.share.count)
    }
}

/// The threads of one device.
pub(super) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a step runs: members can be in one step only.
    turn: std::sync::Mutex<()>,
}

struct Shared {
    members: usize,
    barrier: Barrier,
    /// Counts the steps; workers look for it to change.
    step: Line<AtomicU32>,
    /// Workers still in the step.
    running: Line<AtomicUsize>,
    stop: AtomicBool,
    job: UnsafeCell<Option<Job>>,
}

type Job = *const (dyn Fn(&Member<'_>) + Sync);

// SAFETY: `job` is written by the owner of `Team::turn` alone, before it releases `step`, and read by workers after they
// acquired it; the owner waits for `running` to be 0 before it goes on.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is to something `Sync`.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `members`, the caller of [`Team::run`] among them.
    pub(super) fn new(members: usize, name: &str) -> Result<Self, DeviceError> {
        let shared = Arc::new(Shared {
            members,
            barrier: Barrier::default(),
            step: Line(AtomicU32::new(0)),
            running: Line(AtomicUsize::new(0)),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        });
        let mut team = Self { shared: Arc::clone(&shared), workers: Vec::new(), turn: std::sync::Mutex::new(()) };
        for index in 1..members {
            let shared = Arc::clone(&shared);
            let worker = std::thread::Builder::new().name(format!("{name}/{index}")).spawn(move || shared.work(index));
            let worker = worker.map_err(|e| DeviceError::Threads { threads: members, reason: e.to_string() })?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// How many threads take part.
    pub(super) fn members(&self) -> usize {
        self.shared.members
    }

    /// Runs `job` once on every member and returns when all are done.
    ///
    /// # Errors
    /// [`DeviceError::Internal`] if one panicked.
    pub(super) fn run(&self, job: &(dyn Fn(&Member<'_>) + Sync)) -> Result<(), DeviceError> {
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let shared = &*self.shared;
        shared.barrier.reset();
        if shared.members > 1 {
            // SAFETY: this only forgets the lifetime: no worker uses the pointer after `running` is 0, for which we wait below.
            let job = unsafe {
                std::mem::transmute::<&(dyn Fn(&Member<'_>) + Sync), &'static (dyn Fn(&Member<'_>) + Sync)>(job)
            };
            // SAFETY: we hold the turn, and no worker runs.
            unsafe { *shared.job.get() = Some(job) };
            shared.running.0.store(shared.members - 1, Ordering::Relaxed);
            shared.step.0.fetch_add(1, Ordering::Release);
            for worker in &self.workers {
                worker.thread().unpark();
            }
        }
        shared.take_part((0, shared.members), job);
        let mut spins = 0;
        while shared.running.0.load(Ordering::Acquire) != 0 {
            relax(&mut spins);
        }
        shared.result()
    }

    /// Runs `job` as a team of the caller alone: the others are not woken.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(super) fn run_alone(&self, job: &(dyn Fn(&Member<'_>) + Sync)) -> Result<(), DeviceError> {
        let _turn = self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.shared.barrier.reset();
        self.shared.take_part((0, 1), job);
        self.shared.result()
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its jobs' panics; there is nothing to learn from its end.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn result(&self) -> Result<(), DeviceError> {
        if self.barrier.broken() { Err(DeviceError::Internal("see the log for the panic".into())) } else { Ok(()) }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut since = None;
            let mut polls = 0_u32;
            while self.step.0.load(Ordering::Acquire) == seen {
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                polls = polls.wrapping_add(1);
                if !polls.is_multiple_of(64) {
                    std::hint::spin_loop();
                } else if since.get_or_insert_with(Instant::now).elapsed() > IDLE_SPIN {
                    std::thread::park();
                }
            }
            seen = seen.wrapping_add(1);
            // SAFETY: the step was released after the job was written, and it stays until `running` is 0.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job {
                // SAFETY: as above.
                self.take_part((index, self.members), unsafe { &*job });
            }
            self.running.0.fetch_sub(1, Ordering::Release);
        }
    }

    fn take_part(&self, (index, count): (usize, usize), job: &(dyn Fn(&Member<'_>) + Sync)) {
        let member = Member { share: Share { index, count }, barrier: &self.barrier };
        // Whatever the job left half done is in the run's own memory, which is given up with the run.
        if catch_unwind(AssertUnwindSafe(|| job(&member))).is_err() {
            self.barrier.break_up();
        }
    }
}

/// Where members meet.
#[derive(Default)]
struct Barrier {
    arrived: Line<AtomicUsize>,
    round: Line<AtomicU32>,
    broken: AtomicBool,
}

impl Barrier {
    #[inline]
    fn wait(&self, members: usize) -> bool {
        if members == 1 {
            return true;
        }
        let round = self.round.0.load(Ordering::Acquire);
        if self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == members {
            self.arrived.0.store(0, Ordering::Relaxed);
            self.round.0.store(round.wrapping_add(1), Ordering::Release);
            return !self.broken();
        }
        let mut spins = 0;
        while self.round.0.load(Ordering::Acquire) == round {
            if self.broken() {
                return false;
            }
            relax(&mut spins);
        }
        true
    }

    fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn break_up(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Ready for a new step, whatever the last one left. No member waits.
    fn reset(&self) {
        self.arrived.0.store(0, Ordering::Relaxed);
        self.broken.store(false, Ordering::Release);
    }
}

/// Spins at first, then yields.
#[inline]
fn relax(spins: &mut u32) {
    if *spins < BARRIER_SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// A cache line of its own, so that members polling one value do not slow the others.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_see_what_others_wrote_before_the_barrier() {
        for members in 1..=4 {
            let team = Team::new(members, "test").unwrap();
            let cells: Vec<AtomicUsize> = (0..members).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..50 {
                team.run(&|m| {
                    for round in 1..=20 {
                        cells[m.share.index].store(round, Ordering::Relaxed);
                        assert!(m.meet());
                        assert!(cells.iter().all(|c| c.load(Ordering::Relaxed) == round));
                        assert!(m.meet());
                    }
                })
                .unwrap();
            }
        }
    }

    #[test]
    fn a_panic_ends_the_step_not_the_team() {
        let team = Team::new(3, "test").unwrap();
        let failed = team.run(&|m| {
            assert!(m.share.index != 1, "on purpose");
            let _ = m.meet();
        });
        assert!(matches!(failed, Err(DeviceError::Internal(_))));
        team.run(&|m| assert!(m.meet())).unwrap();
    }

    #[test]
    fn who_runs_alone_meets_nobody() {
        let team = Team::new(3, "test").unwrap();
        let ran = AtomicUsize::new(0);
        let whole = |m: &Member<'_>| {
            assert!(m.meet());
            assert_eq!(m.share.split(10, 4), 0..10);
            ran.fetch_add(1, Ordering::Relaxed);
        };
        team.run_alone(&whole).unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        assert!(team.run_alone(&|_| panic!("on purpose")).is_err());
        team.run_alone(&whole).unwrap();
    }

    #[test]
    fn shares_cover_everything_once() {
        for total in [0, 1, 7, 64, 1000] {
            for grain in [1, 4, 16] {
                for count in 1..=5 {
                    let mut next = 0;
                    for index in 0..count {
                        let part = Share { index, count }.split(total, grain);
                        if !part.is_empty() {
                            assert_eq!(part.start, next);
                            next = part.end;
                        }
                    }
                    assert_eq!(next, total);
                }
            }
        }
    }
}
