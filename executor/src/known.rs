//! The programs of a server, and which of them stay when no session has them any more.
//!
//! Whoever comes next finds its graph planned, and on a GPU captured: a client's next process, or the next client of the same model. A
//! program that nobody has is idle. Idle ones go when they have been so for long, when others were asked for since, when the server has as
//! many as it may, and when their device's memory is short.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use genie_transport::wire::{ContentHash, ErrorCode, RemoteError};

use crate::error::fail;
use crate::programs::Program;

/// Idle programs that stay: those that were asked for last.
const KEPT: usize = 32;
/// How long one stays.
const IDLE: Duration = Duration::from_secs(15 * 60);

/// See the module.
pub(crate) struct KnownPrograms {
    /// How many there may be.
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    all: HashMap<(u16, ContentHash), Weak<Program>>,
    /// Least recently asked for first.
    kept: Vec<Kept>,
}

struct Kept {
    program: Arc<Program>,
    /// When it was first seen to be idle.
    since: Option<Instant>,
}

impl Kept {
    /// Nobody else has it. Under the lock that stays so: only who finds it there can have it anew.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.program) == 1
    }
}

impl KnownPrograms {
    /// None, and at most so many.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// The program with this graph on this device, if a session has it or had it lately.
    pub(crate) fn find(&self, device: u16, hash: &ContentHash) -> Option<Arc<Program>> {
        let (found, gone) = {
            let mut state = self.lock();
            let found = state.all.get(&(device, *hash)).and_then(Weak::upgrade)?;
            let gone = state.keep(&found);
            (found, gone)
        };
        drop(gone);
        Some(found)
    }

    /// Lets other sessions find a program; gives the one that is found, should another have been first.
    ///
    /// # Errors
    /// [`ErrorCode::Busy`]: the server has as many as it may, and none of them is idle.
    pub(crate) fn share(&self, program: Arc<Program>) -> Result<Arc<Program>, RemoteError> {
        // Declared first: what goes is dropped when nobody waits for the lock.
        let mut gone = Vec::new();
        let mut state = self.lock();
        let key = (program.device, program.hash());
        if let Some(first) = state.all.get(&key).and_then(Weak::upgrade) {
            gone.extend(state.keep(&first));
            return Ok(first);
        }
        while state.live() >= self.most {
            let Some(oldest) = state.kept.iter().position(Kept::is_idle) else {
                let most = self.most;
                return Err(fail(ErrorCode::Busy, format!("the server holds {most} programs, its limit: free some")));
            };
            gone.push(state.remove(oldest));
        }
        state.all.insert(key, Arc::downgrade(&program));
        gone.extend(state.keep(&program));
        Ok(program)
    }

    /// Lets go of a device's programs: their plans are lost. Sessions that have one go on having it; nobody finds it.
    pub(crate) fn forget(&self, device: u16) {
        let gone: Vec<_> = {
            let mut state = self.lock();
            state.all.retain(|(of, _), _| *of != device);
            state.kept.extract_if(.., |kept| kept.program.device == device).collect()
        };
        drop(gone);
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.lock().live()
    }

    /// Bytes of a device's memory that its idle programs keep, as far as they are counted.
    pub(crate) fn idle_bytes(&self, device: u16) -> u64 {
        let state = self.lock();
        let idle = state.kept.iter().filter(|kept| kept.program.device == device && kept.is_idle());
        idle.filter_map(|kept| kept.program.loaded.kept_bytes()).sum()
    }

    /// Lets go of a device's idle programs that keep anything in its memory; whether there were any.
    pub(crate) fn give_back(&self, device: u16) -> bool {
        let keeps = |kept: &Kept| kept.program.loaded.kept_bytes().is_some();
        let gone: Vec<_> = {
            let mut state = self.lock();
            let goes = |kept: &mut Kept| kept.program.device == device && kept.is_idle() && keeps(kept);
            let gone: Vec<_> = state.kept.extract_if(.., goes).collect();
            state.forget_those(&gone);
            gone
        };
        !gone.is_empty()
    }

    /// Lets go of those that have been idle for long.
    pub(crate) fn tick(&self, now: Instant) {
        let gone: Vec<_> = {
            let mut state = self.lock();
            let goes = |kept: &mut Kept| {
                if !kept.is_idle() {
                    kept.since = None;
                    return false;
                }
                now.saturating_duration_since(*kept.since.get_or_insert(now)) >= IDLE
            };
            let gone: Vec<_> = state.kept.extract_if(.., goes).collect();
            state.forget_those(&gone);
            gone
        };
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many there are, and no others.
    fn live(&mut self) -> usize {
        self.all.retain(|_, program| program.strong_count() > 0);
        self.all.len()
    }

    /// It was asked for: it stays longest. Whoever has to go for it comes back.
    fn keep(&mut self, program: &Arc<Program>) -> Option<Kept> {
        if let Some(at) = self.kept.iter().position(|kept| Arc::ptr_eq(&kept.program, program)) {
            self.kept[at].since = None;
            self.kept[at..].rotate_left(1);
            return None;
        }
        let goes = (self.kept.len() >= KEPT).then(|| self.kept.iter().position(Kept::is_idle).unwrap_or(0));
        // One that a session has lives on with it.
        let gone = goes.map(|at| if self.kept[at].is_idle() { self.remove(at) } else { self.kept.remove(at) });
        self.kept.push(Kept { program: program.clone(), since: None });
        gone
    }

    /// An idle one goes.
    fn remove(&mut self, at: usize) -> Kept {
        let gone = self.kept.remove(at);
        self.forget_those(std::slice::from_ref(&gone));
        gone
    }

    /// Idle ones that are about to go count no more.
    fn forget_those(&mut self, gone: &[Kept]) {
        for Kept { program, .. } in gone {
            self.all.remove(&(program.device, program.hash()));
        }
    }
}
