//! Uploads into a device's memory: slices land in the host's and go on from there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_transport::memory::{Sink, Slab};
use genie_transport::wire::ContentHash;

use crate::device::{Buffer, DeviceError, Space};
use crate::hashing::Hashing;

/// Buffers that a sliced transfer fills, one after another.
pub(crate) struct Staged {
    state: Mutex<State>,
    /// Of the slices as they pass, if somebody asks.
    hashing: Option<Arc<Hashing>>,
    bytes: u64,
}

#[derive(Debug)]
struct State {
    /// With where each begins in the transfer.
    buffers: Vec<(u64, Arc<dyn Buffer>)>,
    /// The first thing that went wrong.
    failed: Option<DeviceError>,
}

impl Staged {
    /// A transfer of as many bytes as the buffers hold, and what is to hash them on the way.
    pub(crate) fn new(buffers: Vec<Arc<dyn Buffer>>, hashing: impl FnOnce(u64) -> Option<Arc<Hashing>>) -> Arc<Self> {
        let mut bytes = 0;
        let buffers = buffers
            .into_iter()
            .map(|buffer| {
                let start = bytes;
                bytes += buffer.bytes();
                (start, buffer)
            })
            .collect();
        Arc::new(Self { state: Mutex::new(State { buffers, failed: None }), hashing: hashing(bytes), bytes })
    }

    /// Bytes of the transfer.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The buffers, once everything that was taken is there, and what it hashes to where that is known.
    pub(crate) fn settle(&self) -> Result<(Vec<Space>, Option<ContentHash>), DeviceError> {
        let hash = self.hashing.as_ref().and_then(|hashing| hashing.finish());
        let (buffers, failed) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.buffers), state.failed.take())
        };
        failed.map_or(Ok(()), Err)?;
        let settled = |(_, buffer): (u64, Arc<dyn Buffer>)| {
            buffer.settle()?;
            Ok(Space::Device(buffer))
        };
        let spaces: Result<_, DeviceError> = buffers.into_iter().map(settled).collect();
        Ok((spaces?, hash))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Staged {
    fn stage(&self, bytes: usize) -> Option<Slab> {
        let first = self.lock().buffers.first().map(|(_, buffer)| buffer.clone());
        first.and_then(|buffer| buffer.stage(bytes)).or_else(|| Slab::try_zeroed(bytes))
    }

    fn take(&self, offset: u64, slice: Slab) {
        let slice = slice.freeze();
        // The copies are put in line under the lock: `settle` comes after all of them.
        let mut state = self.lock();
        let end = offset + slice.len() as u64;
        if let Some(hashing) = &self.hashing {
            hashing.take(offset, slice.clone());
        }
        let first = state.buffers.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let mut failed = None;
        for (start, buffer) in state.buffers.iter().skip(first).take_while(|(start, _)| *start < end) {
            let (from, to) = (offset.max(*start), end.min(start + buffer.bytes()));
            // Within the slice, whose length is a `usize`.
            let part = slice.slice((from - offset) as usize..(to - offset) as usize);
            if let Some(part) = part
                && let Err(error) = buffer.send(from - start, part)
            {
                failed = Some(error);
            }
        }
        if state.failed.is_none() {
            state.failed = failed;
        }
        drop(state);
        if let Some(hashing) = &self.hashing {
            hashing.go_on();
        }
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
