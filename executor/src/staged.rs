//! Uploads into a device's memory: slices land in the host's and go on from there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use genie_transport::memory::{OnDevice, Sink, Slab, Summing, crc32c_of_both};
use genie_transport::wire::{ContentHash, PIECES};

use crate::device::{Buffer, DeviceError, Space, Sum};
use crate::hashing::Hashing;

/// Buffers that a sliced transfer fills, one after another.
pub(crate) struct Staged {
    state: Arc<Mutex<State>>,
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
        let state = Arc::new(Mutex::new(State { buffers, failed: None }));
        Arc::new(Self { state, hashing: hashing(bytes), bytes })
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
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// The buffers that `[offset, end)` of the transfer lies in, with where it begins in each, and its bytes there.
    fn parts(&self, offset: u64, end: u64) -> impl Iterator<Item = (&Arc<dyn Buffer>, u64, u64)> {
        let first = self.buffers.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let within = self.buffers.iter().skip(first).take_while(move |(start, _)| *start < end);
        within.map(move |(start, buffer)| {
            let (from, to) = (offset.max(*start), end.min(start + buffer.bytes()));
            (buffer, from - start, to.saturating_sub(from))
        })
    }

    fn fail(&mut self, error: DeviceError) {
        self.failed.get_or_insert(error);
    }
}

/// A part of a slice: its checksum, its bytes, and the buffer, which goes last.
type Part = (Box<dyn Sum>, u64, Arc<dyn Buffer>);

/// The checksum of a slice: those of its parts, one after another.
struct SumOfParts {
    state: Arc<Mutex<State>>,
    parts: VecDeque<Part>,
    so_far: Option<u32>,
    failed: bool,
}

impl SumOfParts {
    fn fail(&mut self, error: DeviceError) {
        self.failed = true;
        lock(&self.state).fail(error);
    }
}

impl Summing for SumOfParts {
    fn poll(&mut self) -> Poll<Option<u32>> {
        while !self.failed
            && let Some((sum, bytes, _)) = self.parts.front_mut()
        {
            match sum.poll() {
                Ok(Poll::Pending) => return Poll::Pending,
                Ok(Poll::Ready(crc)) => {
                    let bytes = *bytes;
                    self.so_far = Some(self.so_far.map_or(crc, |before| crc32c_of_both(before, crc, bytes)));
                    self.parts.pop_front();
                }
                Err(error) => self.fail(error),
            }
        }
        Poll::Ready(self.so_far.filter(|_| !self.failed))
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
        let (mut taken, mut failed) = (0, None);
        for (buffer, from, bytes) in state.parts(offset, end) {
            // Within the slice, whose length is a `usize`.
            let part = slice.slice(taken..taken + bytes as usize);
            taken += bytes as usize;
            if let Some(part) = part
                && let Err(error) = buffer.send(from, part)
            {
                failed = Some(error);
            }
        }
        failed.into_iter().for_each(|error| state.fail(error));
        drop(state);
        if let Some(hashing) = &self.hashing {
            hashing.go_on();
        }
    }

    fn place(&self, offset: u64, bytes: usize) -> OnDevice {
        let state = self.lock();
        // What is hashed as it passes must pass.
        if self.hashing.is_some() || state.failed.is_some() {
            return OnDevice::No;
        }
        let mut places = Vec::new();
        for (buffer, from, bytes) in state.parts(offset, offset + bytes as u64) {
            let placed = buffer.placed().and_then(|all| all.part(from as usize, bytes as usize));
            let Some(placed) = placed.filter(|_| places.len() < PIECES) else { return OnDevice::No };
            match buffer.is_ready() {
                Ok(true) => places.push(placed),
                Ok(false) => return OnDevice::Later,
                // Who copies there hears of it, and tells.
                Err(_) => return OnDevice::No,
            }
        }
        if places.is_empty() { OnDevice::No } else { OnDevice::Here(places) }
    }

    fn written(&self, offset: u64, bytes: usize, checked: bool) -> Option<Box<dyn Summing>> {
        let mut sum = SumOfParts { state: self.state.clone(), parts: VecDeque::new(), so_far: None, failed: false };
        let mut state = self.lock();
        let parts: Vec<_> =
            state.parts(offset, offset + bytes as u64).map(|(buffer, from, n)| (buffer.clone(), from, n)).collect();
        if let Some((first, ..)) = parts.first() {
            first.note_direct(true);
        }
        if !checked {
            return None;
        }
        for (buffer, from, bytes) in parts {
            match buffer.sum(from, bytes) {
                Ok(one) => sum.parts.push_back((one, bytes, buffer)),
                Err(error) => {
                    sum.failed = true;
                    state.fail(error);
                }
            }
        }
        Some(Box::new(sum))
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
