//! Who runs when: one queue a device, decode before prefill before bulk, decode steps of different sessions in one batch.
//!
//! A [`Job`] first takes its turn with each of its caches, then waits in the device's queue, then runs, perhaps together with
//! others. A generate is one job that comes back to the queue after each step, so that other sessions' steps join it.

mod batch;
mod job;
mod pieces;
mod queue;
mod worker;

pub(crate) use job::{Job, Said, shutting_down};
pub(crate) use pieces::{Pace, piece};
pub(crate) use queue::{Class, Queue, Share, Task};
pub(crate) use worker::{Scratch, run_device, step};
