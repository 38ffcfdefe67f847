//! Writes down when slabs were filled and emptied by the network, and when they were copied.
//!
//! Events tell when a copy began and ended by the GPU's clock. That is brought to the host's by a moment that both know: an event
//! that was waited for. Clocks run apart, so such a moment is made anew every while.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_cuda_kernels::gpu::{Event, Gpu, GpuError, Stream};
use genie_transport::memory::Region;

use super::overlap::Overlap;
use crate::device::Copies;
use crate::trace::{Span, Trace, What};

/// How long a moment that both clocks know is good for: they differ by some microseconds after this.
const GOOD_FOR: Duration = Duration::from_secs(2);

/// How often it is tried to find such a moment.
const ATTEMPTS: u32 = 3;

/// The tracks of copies; each slab has one of its own behind them.
const COPIES_IN: u32 = 0;
const COPIES_OUT: u32 = 1;
const SLABS: u32 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Tracer {
    trace: Arc<Trace>,
    device: u32,
    /// For the stream of uploads, and of downloads.
    clocks: [Mutex<Option<Arc<Clock>>>; 2],
    state: Mutex<State>,
    slices: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    uploads: Overlap,
    downloads: Overlap,
    /// The tracks of pinned slabs by address. Memory that is not pinned has none: of it only the copies are written down.
    tracks: HashMap<usize, u32>,
}

/// A moment by both clocks.
#[derive(Debug)]
struct Clock {
    on_gpu: Event,
    here: Instant,
}

/// A copy that is under way.
#[derive(Debug)]
pub(super) struct Timed {
    began: Event,
    clock: Arc<Clock>,
    bytes: u64,
    slice: u64,
}

impl Tracer {
    /// For a device, and its slabs by their addresses.
    pub(super) fn new(trace: Arc<Trace>, device: u32, slabs: impl IntoIterator<Item = usize>) -> Self {
        trace.name_device(device, format!("cuda:{device}"));
        trace.name_track(device, COPIES_IN, "copies to the GPU".to_owned());
        trace.name_track(device, COPIES_OUT, "copies from the GPU".to_owned());
        let mut tracks = HashMap::new();
        for (address, number) in slabs.into_iter().zip(0..) {
            trace.name_track(device, SLABS + number, format!("slab {number}"));
            tracks.insert(address, SLABS + number);
        }
        let state = Mutex::new(State { tracks, ..State::default() });
        Self { trace, device, clocks: Default::default(), state, slices: AtomicU64::new(0) }
    }

    /// The network begins to fill the slab at this address.
    pub(super) fn receives(&self, address: usize) {
        self.state().uploads.open(address, Instant::now());
    }

    /// A copy to the GPU is about to be put into its stream. The network is done with what it reads.
    pub(super) fn sends(&self, gpu: &dyn Gpu, from: &Region) -> Result<Timed, GpuError> {
        let (address, bytes, now) = (from.as_ptr().addr(), from.len() as u64, Instant::now());
        let slice = self.slices.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state();
        let track = state.tracks.get(&address).copied();
        // Of a slice for several buffers the first part tells.
        let received = state.uploads.close(address, now).zip(track);
        drop(state);
        if let Some((began, track)) = received {
            let took = now.saturating_duration_since(began);
            self.trace.add(Span { what: What::Receive, device: self.device, track, began, took, bytes, slice });
        }
        self.begin(gpu, Stream::Upload, bytes, slice)
    }

    /// A copy from the GPU to the slab at this address is about to be put into its stream.
    pub(super) fn fetches(&self, gpu: &dyn Gpu, address: usize, bytes: u64) -> Result<Timed, GpuError> {
        self.state().uploads.forget(address);
        self.begin(gpu, Stream::Download, bytes, self.slices.fetch_add(1, Ordering::Relaxed))
    }

    fn begin(&self, gpu: &dyn Gpu, stream: Stream, bytes: u64, slice: u64) -> Result<Timed, GpuError> {
        let clock = self.clock(gpu, stream)?;
        let began = gpu.timed_event()?;
        gpu.record(stream, &began)?;
        Ok(Timed { began, clock, bytes, slice })
    }

    /// A copy to the GPU is done.
    pub(super) fn sent(&self, gpu: &dyn Gpu, copy: &Timed, done: &Event) {
        if let Some((began, ended)) = self.add_copy(gpu, copy, done, (What::CopyIn, COPIES_IN)) {
            self.state().uploads.copied(began, ended);
        }
    }

    /// A copy from the GPU is done: what it filled goes on to the network.
    pub(super) fn fetched(self: &Arc<Self>, gpu: &dyn Gpu, copy: &Timed, done: &Event, region: Region) -> Region {
        if let Some((began, ended)) = self.add_copy(gpu, copy, done, (What::CopyOut, COPIES_OUT)) {
            self.state().downloads.copied(began, ended);
        }
        self.state().downloads.open(region.as_ptr().addr(), Instant::now());
        Region::from_owner(Sending { region, slice: copy.slice, tracer: self.clone() })
    }

    /// When a copy began and ended, by the host's clock, if that is known.
    fn add_copy(
        &self,
        gpu: &dyn Gpu,
        copy: &Timed,
        done: &Event,
        (what, track): (What, u32),
    ) -> Option<(Instant, Instant)> {
        // What is wrong with the GPU is told to those who copy.
        let moment = |event| gpu.elapsed(&copy.clock.on_gpu, event).ok().flatten();
        let (began, ended) = (copy.clock.here + moment(&copy.began)?, copy.clock.here + moment(done)?);
        let took = ended.saturating_duration_since(began);
        self.trace.add(Span { what, device: self.device, track, began, took, bytes: copy.bytes, slice: copy.slice });
        Some((began, ended))
    }

    /// A moment that both clocks know, before what comes into the stream next. It waits for the stream if there is no good one.
    fn clock(&self, gpu: &dyn Gpu, stream: Stream) -> Result<Arc<Clock>, GpuError> {
        let mut clock =
            self.clocks[usize::from(stream == Stream::Download)].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = clock.as_ref().filter(|known| known.here.elapsed() < GOOD_FOR)
            // One from before a revival means nothing any more.
            && gpu.elapsed(&known.on_gpu, &known.on_gpu)?.is_some()
        {
            return Ok(known.clone());
        }
        // The GPU's moment lies between two of the host's. The first try waits for what is in the stream, and of the others the closest
        // counts: this thread may have been put aside in one.
        moment(gpu, stream)?;
        let (mut least, mut closest) = moment(gpu, stream)?;
        for _ in 1..ATTEMPTS {
            let (between, found) = moment(gpu, stream)?;
            if between < least {
                (least, closest) = (between, found);
            }
        }
        let new = Arc::new(closest);
        *clock = Some(new.clone());
        Ok(new)
    }

    /// What copies took until now.
    pub(super) fn copies(&self) -> Copies {
        let state = self.state();
        Copies { to_device: state.uploads.times(), from_device: state.downloads.times() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A moment that both clocks know, and how well: the GPU's lies within this time around the host's. It waits for the stream.
fn moment(gpu: &dyn Gpu, stream: Stream) -> Result<(Duration, Clock), GpuError> {
    let (on_gpu, before) = (gpu.timed_event()?, Instant::now());
    gpu.record(stream, &on_gpu)?;
    gpu.synchronize(&on_gpu)?;
    let between = before.elapsed();
    Ok((between, Clock { on_gpu, here: before + between / 2 }))
}

/// What the network empties, until it lets go of it.
struct Sending {
    region: Region,
    slice: u64,
    tracer: Arc<Tracer>,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.region
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let (address, bytes, now) = (self.region.as_ptr().addr(), self.region.len() as u64, Instant::now());
        let Tracer { trace, device, .. } = &*self.tracer;
        let mut state = self.tracer.state();
        let track = state.tracks.get(&address).copied();
        let sent = state.downloads.close(address, now).zip(track);
        drop(state);
        if let Some((began, track)) = sent {
            let took = now.saturating_duration_since(began);
            trace.add(Span { what: What::Send, device: *device, track, began, took, bytes, slice: self.slice });
        }
    }
}
