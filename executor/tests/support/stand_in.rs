//! A CUDA device for tests.

use std::sync::{Arc, OnceLock};

use genie_cuda_kernels::gpu::cuda::{self, CudaGpu};
use genie_cuda_kernels::gpu::{HostGpu, HostSettings};
use genie_executor::device::cuda::CudaDevice;

/// The CUDA device over a GPU that is this CPU; over a real one where `GENIE_TEST_GPU=1` asks for it, and then a machine without one
/// fails.
pub(crate) fn gpu() -> CudaDevice {
    const BYTES: u64 = 1 << 30;
    // Every case has a device of its own, and pinning takes a GPU's driver long: little is pinned for each.
    const STAGING_BYTES: u64 = 4 << 20;
    if let Some(gpu) = real_gpu() {
        return CudaDevice::with_staging(0, Arc::new(gpu.clone()), Some(BYTES), STAGING_BYTES).expect("a device");
    }
    let settings = HostSettings { total_bytes: BYTES, seed: 2, ..HostSettings::default() };
    CudaDevice::with_staging(0, Arc::new(HostGpu::new(settings)), None, STAGING_BYTES).expect("a device")
}

/// Stays open as long as the process: tests make many devices, and opening a GPU takes longer than most of them.
fn real_gpu() -> Option<&'static CudaGpu> {
    static GPU: OnceLock<Option<CudaGpu>> = OnceLock::new();
    let open = || {
        let asked = std::env::var("GENIE_TEST_GPU").is_ok_and(|value| value == "1");
        asked.then(|| cuda::open(0).expect("GENIE_TEST_GPU=1 asks for a GPU"))
    };
    GPU.get_or_init(open).as_ref()
}
