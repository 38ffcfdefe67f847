//! Whether a GPU that was brought back does what it is told: tried before anybody relies on it.

use genie_graph::DType;

use super::{Gpu, GpuError, Stream};
use crate::launch::elementwise::{Unary, unary};
use crate::view::{Address, View};

/// Numbers that go through it: some blocks' work, and some pages.
const NUMBERS: usize = 64 << 10;
const BYTES: usize = NUMBERS * 4;

/// Sends numbers to the GPU, lets a kernel negate them, and fetches them, each in the stream that is for that. Whether they come as they
/// should.
///
/// # Errors
/// [`GpuError`]: it could not be tried, or the GPU failed.
pub(super) fn try_all(gpu: &dyn Gpu) -> Result<bool, GpuError> {
    let trial = Trial { gpu, device: gpu.allocate_in(Stream::Upload, BYTES as u64)? };
    let sent: Vec<u8> = (0..NUMBERS).flat_map(|i| (i as f32 + 1.0).to_le_bytes()).collect();
    let mut came = vec![0_u8; BYTES];
    let view = View::new(trial.device, DType::F32, NUMBERS as u64);
    let Some(negate) = unary(Unary::Neg, view, view)? else { return Ok(false) };
    let mut tried = || {
        // SAFETY: all of it is there until the download stream has been waited for, below, which comes after the others.
        unsafe {
            gpu.copy_in(Stream::Upload, trial.device, sent.as_ptr(), BYTES)?;
            trial.then(Stream::Upload, Stream::Compute)?;
            gpu.launch(Stream::Compute, &negate)?;
            trial.then(Stream::Compute, Stream::Download)?;
            gpu.copy_out(Stream::Download, came.as_mut_ptr(), trial.device, BYTES)?;
        }
        trial.wait(Stream::Download)
    };
    if let Err(error) = tried() {
        // The GPU may still read and write there.
        std::mem::forget((sent, came));
        return Err(error);
    }
    Ok(came.chunks_exact(4).zip(0..).all(|(four, i)| four == (-(i as f32 + 1.0)).to_le_bytes()))
}

struct Trial<'a> {
    gpu: &'a dyn Gpu,
    device: Address,
}

impl Trial<'_> {
    /// What comes into `next` from now on comes after what is in `first`.
    fn then(&self, first: Stream, next: Stream) -> Result<(), GpuError> {
        let now = self.gpu.event()?;
        self.gpu.record(first, &now)?;
        self.gpu.wait(next, &now)
    }

    fn wait(&self, stream: Stream) -> Result<(), GpuError> {
        let now = self.gpu.event()?;
        self.gpu.record(stream, &now)?;
        self.gpu.synchronize(&now)
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        // After an error nothing may have been ordered.
        let _ = self.then(Stream::Upload, Stream::Compute);
        // SAFETY: it came from this GPU, and the compute stream comes after what others did with it: the download was waited for, or was
        // the last to fail.
        unsafe { self.gpu.free(self.device) };
        // Only now it is free again for whoever asks how much there is.
        let _ = self.wait(Stream::Compute);
    }
}
