//! Jobs that run together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use genie_transport::wire::{Effect, ErrorCode, RemoteError};

use super::Job;
use super::job::{Said, pass_on};
use crate::buffers::Buffers;
use crate::core::Core;
use crate::device::{DeviceError, Kept, KvCache, Row};
use crate::error::fail;
use crate::replies::Answer;

/// Empty lists whose memory the next batch uses again.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Row<'static>>,
    caches: Vec<Vec<&'static mut KvCache>>,
    kept: Vec<Vec<Kept<'static>>>,
}

/// Runs the jobs as one batch and sees to what becomes of each; `batch` is empty afterwards. What earlier runs left in `said` is sent
/// while the device works; what this one leaves there the caller sends, by the next run or before it waits for anything.
pub(super) fn execute(core: &Arc<Core>, batch: &mut Vec<Job>, rows: &mut Rows, said: &mut Vec<Said>) {
    drop_cancelled(core, batch, said);
    if batch.is_empty() {
        return;
    }
    for job in batch.iter_mut() {
        job.binding.take_residents(&mut job.buffers);
    }
    loop {
        let done = attempt(core, batch, rows, said);
        // Before anything that ends a request: its tokens come first.
        Said::all(said);
        let Err(error) = done else { break };
        // Nobody is to blame for a device that is lost.
        let lost = matches!(error, DeviceError::Lost { .. });
        if batch.len() == 1 || lost {
            let error = RemoteError::from(error);
            let sessions: Vec<_> = batch.iter().filter(|_| lost).map(|job| job.session.clone()).collect();
            batch.drain(..).for_each(|job| finish(core, job, |job| job.fail(core, error.clone())));
            return sessions.iter().for_each(|session| core.end_lost(session, &error));
        }
        // One of them is to blame, and no cache has grown. It runs again alone, so that the others are unharmed: they as a batch,
        // where the error says which it is, and else alone, too.
        match error.row().filter(|&row| row < batch.len()) {
            Some(row) => execute(core, &mut vec![batch.remove(row)], rows, said),
            None => {
                return std::mem::take(batch).into_iter().for_each(|job| execute(core, &mut vec![job], rows, said));
            }
        }
    }
    core.stats.ran(batch.len());
    batch.drain(..).for_each(|job| finish(core, job, |job| job.ran(core, said)));
}

/// Ends jobs whose batch came to a halt by a bug of the server's own.
pub(super) fn give_up(core: &Arc<Core>, batch: &mut Vec<Job>) {
    batch.drain(..).for_each(|job| finish(core, job, |job| job.fail(core, bug())));
}

/// Sees to what becomes of a job. Should that end by a bug, the job's request fails; the device and other sessions go on.
fn finish(core: &Arc<Core>, job: Job, end: impl FnOnce(Job)) {
    let (session, id, binding) = (job.session.clone(), job.id, job.binding.clone());
    if catch_unwind(AssertUnwindSafe(|| end(job))).is_err() {
        session.complete(id, Answer::Failed(bug()));
        pass_on(core, &binding);
    }
}

fn bug() -> RemoteError {
    let mut error = fail(ErrorCode::Internal, "the server failed while it ran this; it is a bug, the log says more");
    error.effect = Effect::Unknown;
    error
}

fn drop_cancelled(core: &Arc<Core>, batch: &mut Vec<Job>, said: &mut Vec<Said>) {
    let mut at = 0;
    while let Some(job) = batch.get(at) {
        if job.session.is_cancelled(job.id) {
            Said::all(said);
            let error = fail(ErrorCode::Cancelled, "the request was cancelled");
            finish(core, batch.remove(at), |job| job.fail(core, error));
        } else {
            at += 1;
        }
    }
}

/// Runs them; where the device's memory is short, again with no more of a prompt than beside others, and once more after something was
/// evicted.
fn attempt(core: &Arc<Core>, batch: &mut [Job], rows: &mut Rows, said: &mut Vec<Said>) -> Result<(), DeviceError> {
    let mut evicted = false;
    loop {
        let short = match run(batch, rows, said) {
            Err(DeviceError::OutOfMemory(short)) => short,
            other => return other,
        };
        if batch.iter_mut().any(|job| job.shorten(core.config.prefill_tokens)) {
            continue;
        }
        let device = batch.first().map_or(0, |job| job.binding.program.device);
        if core.programs.give_back(device) {
            continue;
        }
        if std::mem::replace(&mut evicted, true) || !core.make_room(device, short.wanted) {
            return Err(DeviceError::OutOfMemory(short));
        }
    }
}

fn run(batch: &mut [Job], spare: &mut Rows, said: &mut Vec<Said>) -> Result<(), DeviceError> {
    let Some(first) = batch.first() else { return Ok(()) };
    let (program, weights) = (first.binding.program.clone(), first.binding.weights.clone());
    let tokens = first.sizes.sequence;
    let mut rows = emptied(std::mem::take(&mut spare.rows));
    rows.extend(batch.iter_mut().map(|job| {
        let Job { buffers, kept: spaces, wanted, .. } = job;
        let Buffers { arguments, residents, outputs, kvs, .. } = &mut **buffers;
        let mut caches = emptied(spare.caches.pop().unwrap_or_default());
        caches.extend(kvs.iter_mut());
        let mut kept = emptied(spare.kept.pop().unwrap_or_default());
        kept.extend(spaces.iter_mut().map(|output| output.for_device()));
        Row { arguments, residents, caches, outputs, wanted: *wanted, kept }
    }));
    let started = Instant::now();
    // A kernel's bug must not take the server with it. What the run wrote is given up with the error; caches that it held are
    // only ever grown at its end.
    let result =
        catch_unwind(AssertUnwindSafe(|| program.loaded.run_with(&weights.memory, &mut rows, &mut || Said::all(said))))
            .unwrap_or_else(|_| Err(DeviceError::Internal("the run panicked".to_owned())));
    if result.is_ok() {
        program.pace.note(tokens, started.elapsed());
    }
    for Row { caches, kept, .. } in rows.drain(..) {
        spare.caches.push(emptied(caches));
        spare.kept.push(emptied(kept));
    }
    spare.rows = emptied(rows);
    result
}

/// The list's memory, as a list of things of another lifetime. (Collecting in place is what the standard library does where
/// both have the same layout; where it does not, this is an empty list.)
fn emptied<T, U>(mut list: Vec<T>) -> Vec<U> {
    list.clear();
    list.into_iter().map_while(|_| None).collect()
}
