//! The GPUs under test, and buffers on them.

use std::sync::Arc;

use genie_cuda_kernels::gpu::{Gpu, GpuError, HostGpu, HostSettings, Stream};
use genie_cuda_kernels::launch::elementwise::{Unary, unary};
use genie_cuda_kernels::{Address, Launch, View};
use genie_graph::DType;

/// All that the suite runs on.
pub(crate) fn gpus() -> Vec<Arc<dyn Gpu>> {
    let host: Arc<dyn Gpu> = Arc::new(stand_in());
    std::iter::once(host).chain(asked_for()).collect()
}

/// The GPU that `GENIE_TEST_GPU=1` asks for.
#[cfg(feature = "cuda")]
fn asked_for() -> Option<Arc<dyn Gpu>> {
    let asked = std::env::var("GENIE_TEST_GPU").is_ok_and(|value| value == "1");
    let open = || genie_cuda_kernels::gpu::cuda::open(0).expect("GENIE_TEST_GPU=1 asks for a GPU");
    asked.then(|| -> Arc<dyn Gpu> { Arc::new(open()) })
}

#[cfg(not(feature = "cuda"))]
fn asked_for() -> Option<Arc<dyn Gpu>> {
    None
}

/// The one on the CPU.
pub(crate) fn stand_in() -> HostGpu {
    HostGpu::new(HostSettings::default())
}

/// Memory of a GPU.
pub(crate) struct Buffer {
    pub(crate) gpu: Arc<dyn Gpu>,
    pub(crate) at: Address,
    pub(crate) bytes: usize,
}

impl Buffer {
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, bytes: usize) -> Self {
        Self { gpu: gpu.clone(), at: gpu.allocate(bytes as u64).expect("memory"), bytes }
    }

    pub(crate) fn holding(gpu: &Arc<dyn Gpu>, bytes: &[u8]) -> Self {
        let new = Self::new(gpu, bytes.len());
        new.write(bytes);
        new
    }

    pub(crate) fn of_floats(gpu: &Arc<dyn Gpu>, values: &[f32]) -> Self {
        Self::holding(gpu, &bytes_of(values))
    }

    /// Replaces what it holds, after all that was put into the kernels' stream.
    pub(crate) fn write(&self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.bytes);
        // SAFETY: both live on until it is done, which is waited for.
        unsafe { self.gpu.copy_in(Stream::Compute, self.at, bytes.as_ptr(), bytes.len()) }.expect("a copy");
        finish(&*self.gpu, Stream::Compute);
    }

    /// What it holds, after all that was put into the kernels' stream.
    pub(crate) fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        // SAFETY: as above.
        unsafe { self.gpu.copy_out(Stream::Compute, bytes.as_mut_ptr(), self.at, bytes.len()) }.expect("a copy");
        finish(&*self.gpu, Stream::Compute);
        bytes
    }

    pub(crate) fn floats(&self) -> Vec<f32> {
        self.read().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes"))).collect()
    }

    pub(crate) fn view(&self) -> View {
        View::new(self.at, DType::F32, self.bytes as u64 / 4)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: it came from this GPU. Tests wait for what other streams do with it.
        unsafe { self.gpu.free(self.at) };
    }
}

pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Numbers that differ from their neighbours, and from those of other seeds.
pub(crate) fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 + i / 251 + seed * 97) as u8).collect()
}

/// Waits until a stream has come to this point.
pub(crate) fn finish(gpu: &dyn Gpu, stream: Stream) {
    let now = gpu.event().expect("an event");
    gpu.record(stream, &now).expect("recorded");
    gpu.synchronize(&now).expect("nothing went wrong");
}

/// From here on, one stream waits for what is in another now.
pub(crate) fn after(gpu: &dyn Gpu, waits: Stream, first: Stream) {
    let now = gpu.event().expect("an event");
    gpu.record(first, &now).expect("recorded");
    gpu.wait(waits, &now).expect("a wait");
}

/// y = -x.
pub(crate) fn negation(x: &Buffer, y: &Buffer) -> Launch {
    unary(Unary::Neg, x.view(), y.view()).expect("a launch").expect("of some elements")
}

/// Puts [`negation`] into the kernels' stream.
pub(crate) fn negate(x: &Buffer, y: &Buffer) -> Result<(), GpuError> {
    // SAFETY: whoever has the buffers keeps them until the stream is waited for.
    unsafe { x.gpu.launch(Stream::Compute, &negation(x, y)) }
}
