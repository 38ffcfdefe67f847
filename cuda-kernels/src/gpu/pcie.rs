//! How fast bytes come to a GPU and back.

use std::ptr::NonNull;
use std::time::Instant;

use super::{Gpu, GpuError, Stream};
use crate::view::Address;

/// Bytes a second between pinned host memory and a GPU's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// From the host.
    pub to_device: f64,
    /// To the host.
    pub from_device: f64,
}

/// What is copied at once: so much that putting a copy into a stream and waiting for it are nothing beside it.
const BYTES: usize = 64 << 20;
/// Copies of each kind that count, after one that does not. The best is taken: whatever else uses the bus only slows a copy down.
const TURNS: usize = 3;

/// Copies pinned memory to the GPU and back, and takes the time. It takes some tens of milliseconds; what else the GPU does meanwhile
/// counts against it.
///
/// # Errors
/// [`GpuError`].
pub fn measure_pcie(gpu: &dyn Gpu) -> Result<Bandwidth, GpuError> {
    let buffers = Buffers::new(gpu)?;
    let (host, device) = (buffers.host.as_ptr(), buffers.device);
    // SAFETY: both are of as many bytes, and `buffers` waits for what is under way before they go.
    let to_device = best(gpu, Stream::Upload, || unsafe { gpu.copy_in(Stream::Upload, device, host, BYTES) })?;
    // SAFETY: as above, and nobody reads the host's meanwhile.
    let from_device = best(gpu, Stream::Download, || unsafe { gpu.copy_out(Stream::Download, host, device, BYTES) })?;
    Ok(Bandwidth { to_device, from_device })
}

fn best(gpu: &dyn Gpu, stream: Stream, copy: impl Fn() -> Result<(), GpuError>) -> Result<f64, GpuError> {
    let done = gpu.event()?;
    let mut best = 0.0_f64;
    for turn in 0..=TURNS {
        let started = Instant::now();
        copy()?;
        gpu.record(stream, &done)?;
        gpu.synchronize(&done)?;
        let seconds = started.elapsed().as_secs_f64();
        if turn > 0 {
            best = best.max(BYTES as f64 / seconds);
        }
    }
    Ok(best)
}

struct Buffers<'a> {
    gpu: &'a dyn Gpu,
    host: NonNull<u8>,
    device: Address,
}

impl<'a> Buffers<'a> {
    fn new(gpu: &'a dyn Gpu) -> Result<Self, GpuError> {
        let host = gpu.pin(BYTES)?;
        let device = gpu.allocate(BYTES as u64).inspect_err(|_| {
            // SAFETY: it was just pinned, and nobody uses it.
            unsafe { gpu.unpin(host) }
        })?;
        let buffers = Self { gpu, host, device };
        // The memory is there from this moment of the kernels' stream on.
        let there = gpu.event()?;
        gpu.record(Stream::Compute, &there)?;
        gpu.wait(Stream::Upload, &there)?;
        gpu.wait(Stream::Download, &there)?;
        Ok(buffers)
    }

    fn wait(&self, stream: Stream) -> Result<(), GpuError> {
        let now = self.gpu.event()?;
        self.gpu.record(stream, &now)?;
        self.gpu.synchronize(&now)
    }
}

impl Drop for Buffers<'_> {
    fn drop(&mut self) {
        // After an error a copy may be under way. A GPU that cannot even be waited for copies nothing more.
        let _ = self.wait(Stream::Upload);
        let _ = self.wait(Stream::Download);
        // SAFETY: they came from this GPU, and no copy is under way.
        unsafe {
            self.gpu.free(self.device);
            self.gpu.unpin(self.host);
        }
        // Only now it is free again for whoever asks how much there is.
        let _ = self.wait(Stream::Compute);
    }
}
