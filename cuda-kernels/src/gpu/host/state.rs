//! What a GPU that is this CPU has, and how it does what waits in its streams.

use std::collections::HashMap;
use std::thread::{self, ThreadId};
use std::time::Instant;

use super::super::{Event, GpuError, Stream};
use super::streams::{self, Op, Streams};
use super::{HostExports, HostProducts, HostSettings, POISON};
use crate::host::Guarded;
use crate::view::Address;

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: HostSettings,
    pub(super) streams: Streams,
    pub(super) allocated: HashMap<Address, Guarded>,
    /// What was allocated before a revival and is still to be given back: kept, so that no address means two things.
    pub(super) stale: HashMap<Address, Guarded>,
    /// What network cards may be told of.
    pub(super) exportable: HashMap<Address, Guarded>,
    pub(super) exports: HostExports,
    /// How often network cards' writes were settled.
    pub(super) settled: u64,
    pub(super) used: u64,
    pub(super) host_bytes: u64,
    pub(super) pinned: HashMap<usize, Guarded>,
    pub(super) next: u64,
    pub(super) graphs: HashMap<u64, Vec<Op>>,
    /// What threads that capture have put into [`Stream::Compute`].
    pub(super) recordings: HashMap<ThreadId, Vec<Op>>,
    /// The moment that each event is.
    pub(super) moments: HashMap<u64, u64>,
    /// When the moments of timed events passed, if they have.
    pub(super) times: HashMap<u64, Option<Instant>>,
    /// What [`super::HostGpu::fail`] left for the next wait.
    pub(super) planted: Option<GpuError>,
    /// The sticky error that everything gets.
    pub(super) broken: Option<GpuError>,
    /// Revivals that are still to fail.
    pub(super) dead: u32,
    pub(super) calls: u64,
    pub(super) copies_in: u64,
    pub(super) launches: u64,
    pub(super) behind: u64,
    pub(super) hasty: bool,
    pub(super) replays: u64,
    pub(super) products: HostProducts,
    pub(super) multiplied: u64,
    pub(super) peers: bool,
}

impl State {
    pub(super) fn check(&self) -> Result<(), GpuError> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    pub(super) fn put(&mut self, stream: Stream, op: Op) {
        match self.recordings.get_mut(&thread::current().id()) {
            Some(recording) if stream == Stream::Compute => recording.push(op),
            _ => self.streams.push(stream, op),
        }
    }

    /// What was put into a stream last, which nobody waits for yet.
    pub(super) fn take_last(&mut self, stream: Stream) -> Option<Op> {
        match self.recordings.get_mut(&thread::current().id()) {
            Some(recording) if stream == Stream::Compute => recording.pop(),
            _ => self.streams.pop_last(stream),
        }
    }

    /// The stream that has yet to come to the event.
    pub(super) fn holds(&self, event: &Event) -> Option<Stream> {
        self.streams.holds(*self.moments.get(&event.id)?)
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does the oldest thing of a stream, and first what it waits for.
    pub(super) fn step(&mut self, stream: Stream) -> Result<(), GpuError> {
        if let Some(moment) = self.streams.blocked_by(stream) {
            return self.reach(moment);
        }
        let Some(op) = self.streams.pop(stream) else { return Ok(()) };
        let done = self.planted.take().map_or(Ok(()), Err).and_then(|()| self.perform(op));
        if let Err(error) = &done
            && error.is_sticky()
        {
            self.broken = Some(error.clone());
        }
        done
    }

    /// Does all that comes before a moment.
    pub(super) fn reach(&mut self, moment: u64) -> Result<(), GpuError> {
        while let Some(stream) = self.streams.holds(moment) {
            self.step(stream)?;
        }
        Ok(())
    }

    pub(super) fn perform(&mut self, op: Op) -> Result<(), GpuError> {
        match op {
            // SAFETY: whoever put the copy into the stream said that both stay live until it is done, which is now.
            Op::Copy { to, from, bytes } => unsafe {
                std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes)
            },
            // SAFETY: as above.
            Op::Fill { to, byte, bytes } => unsafe { (to as *mut u8).write_bytes(byte, bytes) },
            Op::Launch(launch) => {
                self.launches += 1;
                let seed = self.settings.seed;
                // SAFETY: whoever launched it said that its views are live until it is done.
                let ran = unsafe { crate::host::run(&launch, seed) };
                ran.map_err(|e| GpuError::Fault { during: "a kernel", reason: e.to_string() })?;
            }
            Op::Multiply(both) => {
                self.multiplied += 1;
                // SAFETY: as for a launch.
                unsafe { streams::multiply(&both.0, &both.1) }
            }
            Op::Allocate(at) => {
                let freed = || GpuError::Fault { during: "allocating", reason: "it was freed before that".to_owned() };
                let memory = self.allocated.get(&at).ok_or_else(freed)?;
                // SAFETY: the memory is there, and nobody's before this moment.
                unsafe { (at as *mut u8).write_bytes(POISON, memory.len()) };
            }
            Op::Free(at) => {
                if let Some(memory) = self.allocated.remove(&at) {
                    self.used -= memory.len() as u64;
                }
            }
            Op::Record(moment) => {
                if let Some(time) = self.times.get_mut(&moment) {
                    *time = Some(Instant::now());
                }
            }
            Op::Wait(_) => {}
            Op::Replay(graph) => {
                self.replays += 1;
                // Whoever drops a graph before it was done has not waited for it.
                let gone = || GpuError::Fault { during: "a replay", reason: "its graph is gone".to_owned() };
                for op in self.graphs.get(&graph).cloned().ok_or_else(gone)? {
                    self.perform(op)?;
                }
            }
        }
        Ok(())
    }
}
