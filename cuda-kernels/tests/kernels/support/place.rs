//! Where kernels under test run, and where their tensors lie: on the CPU; or, with feature `cuda` and `GENIE_TEST_GPU=1`, on a GPU.

use std::ops::Deref;

use genie_cuda_kernels::{Launch, host};

#[cfg(feature = "cuda")]
use self::device::Device;

/// Memory of a tensor. Touching what is beside it faults on the CPU, and is found after the launch on a GPU.
pub(crate) enum Guarded {
    Host(host::Guarded),
    #[cfg(feature = "cuda")]
    Device(Device),
}

impl Guarded {
    /// `len` bytes, every one `poison`.
    pub(crate) fn new(len: usize, poison: u8) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = device::gpu() {
            return Self::Device(Device::new(gpu, &vec![poison; len]));
        }
        Self::Host(host::Guarded::new(len, poison))
    }

    /// A copy of `bytes`.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = device::gpu() {
            return Self::Device(Device::new(gpu, bytes));
        }
        Self::Host(host::Guarded::copy_of(bytes))
    }

    /// Its address, as kernels take it.
    pub(crate) fn address(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.address(),
            #[cfg(feature = "cuda")]
            Self::Device(memory) => memory.address(),
        }
    }

    /// Replaces every byte.
    pub(crate) fn copy_from_slice(&mut self, bytes: &[u8]) {
        match self {
            Self::Host(memory) => memory.copy_from_slice(bytes),
            #[cfg(feature = "cuda")]
            Self::Device(memory) => memory.write(bytes),
        }
    }

    /// Makes every byte `byte`.
    pub(crate) fn fill(&mut self, byte: u8) {
        self.copy_from_slice(&vec![byte; self.len()]);
    }
}

impl Deref for Guarded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Host(memory) => memory,
            #[cfg(feature = "cuda")]
            Self::Device(memory) => memory.bytes(),
        }
    }
}

/// Runs a launch to its end; `seed` picks the order of threads on the CPU, while a GPU's is as it comes.
///
/// # Safety
/// As for [`host::run`].
pub(crate) unsafe fn run(launch: &Launch, seed: u64) -> Result<(), String> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device::gpu() {
        // SAFETY: as the caller has it.
        return unsafe { device::run(gpu, launch) };
    }
    // SAFETY: as the caller has it.
    unsafe { host::run(launch, seed) }.map_err(|error| error.to_string())
}

#[cfg(feature = "cuda")]
mod device {
    use std::cell::{Cell, OnceCell, RefCell};
    use std::rc::{Rc, Weak};
    use std::sync::OnceLock;

    use genie_cuda_kernels::gpu::cuda::{self, CudaGpu};
    use genie_cuda_kernels::gpu::{Gpu, GpuError, Stream};
    use genie_cuda_kernels::{Address, Launch};

    /// Bytes before and behind a tensor that nobody may write.
    const GUARD: usize = 256;
    const GUARD_BYTE: u8 = 0xC3;

    thread_local! {
        /// The tensors of this thread, which is a test.
        static TENSORS: RefCell<Vec<Weak<Memory>>> = const { RefCell::new(Vec::new()) };
        /// Changes whenever what tensors hold may have.
        static EPOCH: Cell<u64> = const { Cell::new(0) };
    }

    /// The GPU that tests are to run on, if they are.
    pub(super) fn gpu() -> Option<&'static CudaGpu> {
        static GPU: OnceLock<Option<CudaGpu>> = OnceLock::new();
        let open = || {
            let asked = std::env::var("GENIE_TEST_GPU").is_ok_and(|value| value == "1");
            asked.then(|| cuda::open(0).expect("GENIE_TEST_GPU=1 asks for a GPU"))
        };
        GPU.get_or_init(open).as_ref()
    }

    /// A tensor's memory on a GPU.
    pub(crate) struct Device {
        memory: Rc<Memory>,
        seen: OnceCell<Box<Seen>>,
    }

    /// What a tensor held at some time. What is newer comes behind it, so that references to it stay good.
    struct Seen {
        epoch: u64,
        bytes: Vec<u8>,
        newer: OnceCell<Box<Self>>,
    }

    /// The tensor with its guards.
    struct Memory {
        gpu: &'static CudaGpu,
        base: Address,
        len: usize,
    }

    impl Device {
        pub(super) fn new(gpu: &'static CudaGpu, bytes: &[u8]) -> Self {
            let base = gpu.allocate((bytes.len() + 2 * GUARD) as u64).expect("memory of the GPU");
            let memory = Rc::new(Memory { gpu, base, len: bytes.len() });
            memory.write(0, &[&[GUARD_BYTE; GUARD], bytes, &[GUARD_BYTE; GUARD]].concat());
            TENSORS.with_borrow_mut(|tensors| tensors.push(Rc::downgrade(&memory)));
            Self { memory, seen: OnceCell::new() }
        }

        pub(super) fn address(&self) -> Address {
            self.memory.base + GUARD as u64
        }

        pub(super) fn write(&mut self, bytes: &[u8]) {
            assert_eq!(bytes.len(), self.memory.len);
            self.memory.write(GUARD, bytes);
            self.seen.take();
        }

        pub(super) fn bytes(&self) -> &[u8] {
            let now = EPOCH.get();
            let look = || Box::new(Seen::new(now, self.memory.read(GUARD, self.memory.len)));
            let mut seen = self.seen.get_or_init(look);
            while seen.epoch != now {
                seen = seen.newer.get_or_init(look);
            }
            &seen.bytes
        }
    }

    impl Seen {
        fn new(epoch: u64, bytes: Vec<u8>) -> Self {
            Self { epoch, bytes, newer: OnceCell::new() }
        }
    }

    impl Memory {
        fn write(&self, skip: usize, bytes: &[u8]) {
            // SAFETY: within the tensor with its guards; both live on until it is done, which is waited for.
            unsafe { self.gpu.copy_in(Stream::Compute, self.base + skip as u64, bytes.as_ptr(), bytes.len()) }
                .expect("a copy to the GPU");
            finish(self.gpu).expect("a copy to the GPU");
        }

        fn read(&self, skip: usize, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            // SAFETY: as above.
            unsafe { self.gpu.copy_out(Stream::Compute, bytes.as_mut_ptr(), self.base + skip as u64, len) }
                .expect("a copy from the GPU");
            finish(self.gpu).expect("a copy from the GPU");
            bytes
        }

        fn check(&self) -> Result<(), String> {
            for (skip, side) in [(0, "before"), (GUARD + self.len, "behind")] {
                let touched = self.read(skip, GUARD).iter().position(|&byte| byte != GUARD_BYTE);
                if let Some(at) = touched {
                    return Err(format!("a kernel wrote {side} a tensor of {} bytes, at byte {at} there", self.len));
                }
            }
            Ok(())
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            // SAFETY: it came from this GPU, and only this stream uses it.
            unsafe { self.gpu.free(self.base) };
        }
    }

    fn finish(gpu: &CudaGpu) -> Result<(), GpuError> {
        let now = gpu.event()?;
        gpu.record(Stream::Compute, &now)?;
        gpu.synchronize(&now)
    }

    /// Runs a launch, and looks whether it wrote beside a tensor of this test's.
    ///
    /// # Safety
    /// The launch's tensors are live.
    pub(super) unsafe fn run(gpu: &CudaGpu, launch: &Launch) -> Result<(), String> {
        EPOCH.set(EPOCH.get() + 1);
        // SAFETY: as the caller has it; it is waited for.
        let done = unsafe { gpu.launch(Stream::Compute, launch) }.and_then(|()| finish(gpu));
        done.map_err(|error| error.to_string())?;
        TENSORS.with_borrow_mut(|tensors| tensors.retain(|tensor| tensor.strong_count() > 0));
        TENSORS.with_borrow(|tensors| tensors.iter().filter_map(Weak::upgrade).try_for_each(|tensor| tensor.check()))
    }
}
