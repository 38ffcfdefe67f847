//! Checksums of bytes in a GPU's memory, which the GPU takes itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use genie_cuda_kernels::gpu::{Event, Gpu, GpuError, Stream};
use genie_cuda_kernels::launch::checksum::{Crc32c, crc32c, remainders_of};
use genie_cuda_kernels::{Address, View};
use genie_graph::DType;
use genie_transport::wire::limits;

use super::pinned::Pinned;
use super::pool::Pool;
use crate::device::{DeviceError, Sum};

/// Remainders of the largest slice.
const MOST: usize = remainders_of(limits::SLICE_BYTES as u64) as usize;

/// Where results come to lie, kept for the next.
#[derive(Debug, Default)]
pub(super) struct Sums(Mutex<Vec<Slot>>);

/// Memory for one result, on both sides.
#[derive(Debug)]
struct Slot {
    gpu: Arc<dyn Gpu>,
    at: Address,
    host: Pinned,
}

impl Slot {
    fn new(pool: &Pool) -> Result<Self, DeviceError> {
        let host = Pinned::new(pool, MOST * 4)?;
        pool.with(|gpu| {
            let slot = Self { gpu: pool.gpu().clone(), at: gpu.allocate(MOST as u64 * 4)?, host };
            // It is had in the order of another stream than it is used in.
            let born = gpu.event()?;
            gpu.record(Stream::Compute, &born)?;
            gpu.wait(Stream::Upload, &born)?;
            Ok(slot)
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: it came from this GPU, and whoever had it waited until it was not used any more.
        unsafe { self.gpu.free(self.at) };
    }
}

/// A checksum on its way. Dropped early, it waits for the GPU.
pub(super) struct GpuSum {
    pool: Arc<Pool>,
    slot: Option<Slot>,
    done: Event,
    /// It has passed.
    known: bool,
    bytes: u64,
}

impl GpuSum {
    /// Begins to take that of `bytes` bytes, a slice's at the most.
    ///
    /// # Safety
    /// They are live until it is known, or this was dropped.
    pub(super) unsafe fn begin(pool: &Arc<Pool>, at: Address, bytes: u64) -> Result<Self, DeviceError> {
        let tiles = remainders_of(bytes);
        if tiles as usize > MOST {
            return Err(DeviceError::Internal("a checksum of more than a slice was asked for".to_owned()));
        }
        let spare = pool.sums.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot = spare.map_or_else(|| Slot::new(pool), Ok)?;
        let results = View::new(slot.at, DType::I32, tiles);
        let launch = crc32c(View::new(at, DType::U8, bytes), results).map_err(GpuError::from)?;
        let done = pool.with(|gpu| Ok(gpu.event()?))?;
        let sum = Self { pool: pool.clone(), slot: Some(slot), done, known: false, bytes };
        pool.with(|gpu| {
            // Not the compute stream: a step that is under way there would come first.
            if let (Some(launch), Some(slot)) = (&launch, &sum.slot) {
                // SAFETY: the bytes are as the caller has them; the slot is this one's until the event has passed.
                unsafe {
                    gpu.launch(Stream::Upload, launch)?;
                    gpu.copy_out(Stream::Upload, slot.host.at.as_ptr(), slot.at, tiles as usize * 4)?;
                }
            }
            Ok(gpu.record(Stream::Upload, &sum.done)?)
        })?;
        Ok(sum)
    }
}

impl Sum for GpuSum {
    fn poll(&mut self) -> Result<Poll<u32>, DeviceError> {
        if !self.pool.with(|gpu| Ok(gpu.is_past(&self.done)?))? {
            return Ok(Poll::Pending);
        }
        self.known = true;
        Ok(Poll::Ready(self.value()))
    }

    fn wait(&mut self) -> Result<u32, DeviceError> {
        self.pool.with(|gpu| Ok(gpu.synchronize(&self.done)?))?;
        self.known = true;
        Ok(self.value())
    }
}

impl GpuSum {
    /// From the remainders, which are here.
    fn value(&self) -> u32 {
        let mut crc = Crc32c::new();
        if let Some(slot) = &self.slot {
            let bytes = &slot.host.bytes()[..remainders_of(self.bytes) as usize * 4];
            let remainders: Vec<_> = bytes.as_chunks().0.iter().map(|four| u32::from_le_bytes(*four)).collect();
            crc.add(self.bytes, &remainders);
        }
        crc.value()
    }
}

impl Drop for GpuSum {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let gpu = self.pool.gpu();
        // Recorded anew: before it was recorded once, something may have been put into the stream already.
        let wait = || gpu.record(Stream::Upload, &self.done).and_then(|()| gpu.synchronize(&self.done));
        // A GPU that broke has stopped writing, and its slot goes.
        if self.known || wait().is_ok() {
            self.pool.sums.0.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        }
    }
}
