//! Host memory that a GPU's copies reach without help.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use genie_cuda_kernels::gpu::Gpu;

use super::pool::Pool;
use crate::device::DeviceError;

/// Host memory that copies reach without help.
#[derive(Debug)]
pub(super) struct Pinned {
    gpu: Arc<dyn Gpu>,
    pub(super) at: NonNull<u8>,
    /// No other has it: an address can be had again.
    pub(super) id: u64,
    len: usize,
}

// SAFETY: it owns its memory alone.
unsafe impl Send for Pinned {}

// SAFETY: shared, it is only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// So many bytes, zeroed.
    pub(super) fn new(pool: &Pool, len: usize) -> Result<Self, DeviceError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let at = pool.with(|gpu| Ok(gpu.pin(len)?))?;
        Ok(Self { gpu: pool.gpu().clone(), at, id: NEXT.fetch_add(1, Ordering::Relaxed), len })
    }

    /// Makes it at least so large. It holds anything.
    pub(super) fn grow(pinned: &mut Option<Self>, pool: &Pool, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 || pinned.as_ref().is_some_and(|pinned| pinned.len >= bytes) {
            return Ok(());
        }
        *pinned = None;
        let len = bytes.checked_next_power_of_two().unwrap_or(bytes).max(4096);
        *pinned = Some(Self::new(pool, len)?);
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `pin` gave so many bytes, zeroed; copies into them are waited for before anybody looks.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and copies out of them are waited for, too.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: it came from `pin`, and every run waits for its copies.
        unsafe { self.gpu.unpin(self.at) };
    }
}
