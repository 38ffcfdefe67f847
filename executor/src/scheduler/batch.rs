//! Jobs that run together.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use genie_transport::wire::{ErrorCode, RemoteError};

use super::Job;
use crate::core::Core;
use crate::device::{DeviceError, Row};
use crate::error::fail;

/// Runs the jobs as one batch and sees to what becomes of each; `batch` is empty afterwards.
pub(super) fn execute(core: &Arc<Core>, batch: &mut Vec<Job>) {
    drop_cancelled(core, batch);
    if batch.is_empty() {
        return;
    }
    for job in batch.iter_mut() {
        let binding = job.binding.clone();
        binding.read_residents(&mut job.buffers);
    }
    match attempt(core, batch) {
        Ok(()) => {
            core.stats.ran(batch.len());
            batch.drain(..).for_each(|job| job.ran(core));
        }
        // One of them is to blame, and no cache has grown: each runs again alone, and the others are unharmed.
        Err(_) if batch.len() > 1 => {
            for job in std::mem::take(batch) {
                execute(core, &mut vec![job]);
            }
        }
        Err(error) => batch.drain(..).for_each(|job| job.fail(core, error.clone())),
    }
}

fn drop_cancelled(core: &Arc<Core>, batch: &mut Vec<Job>) {
    let mut at = 0;
    while let Some(job) = batch.get(at) {
        if job.session.is_cancelled(job.id) {
            batch.remove(at).fail(core, fail(ErrorCode::Cancelled, "the request was cancelled"));
        } else {
            at += 1;
        }
    }
}

/// Runs them; where the device's memory is short, once more after something was evicted.
fn attempt(core: &Arc<Core>, batch: &mut [Job]) -> Result<(), RemoteError> {
    match run(batch) {
        Err(DeviceError::OutOfMemory(short)) => {
            let device = batch.first().map_or(0, |job| job.binding.program.device);
            if !core.make_room(device, short.wanted) {
                return Err(DeviceError::OutOfMemory(short).into());
            }
            run(batch).map_err(RemoteError::from)
        }
        other => other.map_err(RemoteError::from),
    }
}

fn run(batch: &mut [Job]) -> Result<(), DeviceError> {
    let Some(first) = batch.first() else { return Ok(()) };
    let (program, weights) = (first.binding.program.clone(), first.binding.weights.clone());
    let mut rows: Vec<Row<'_>> = batch
        .iter_mut()
        .map(|job| {
            let wanted = job.outputs_needed();
            let buffers = &mut job.buffers;
            Row {
                arguments: &buffers.arguments,
                caches: buffers.kvs.iter_mut().collect(),
                outputs: &mut buffers.outputs,
                wanted,
            }
        })
        .collect();
    // A kernel's bug must not take the server with it. What the run wrote is given up with the error; caches that it held are
    // only ever grown at its end.
    catch_unwind(AssertUnwindSafe(|| program.loaded.run(&weights.regions, &mut rows)))
        .unwrap_or_else(|_| Err(DeviceError::Internal("the run panicked".to_owned())))
}
