//! Host memory that a GPU's copies reach without help.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use genie_cuda_kernels::gpu::{Gpu, GpuError};
use genie_transport::memory::Slab;

use super::pool::Pool;
use crate::device::DeviceError;

/// Host memory that copies reach without help, or any other where no more can be pinned: copies of that are slower.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) at: NonNull<u8>,
    /// No other has it: an address can be had again.
    pub(super) id: u64,
    len: usize,
    owner: Owner,
}

/// Whose the memory is.
#[derive(Debug)]
enum Owner {
    Gpu(Arc<dyn Gpu>),
    /// Held, and not touched but through the address: copies are under way between its host's looks at it.
    System {
        _slab: Slab,
    },
}

// SAFETY: it owns its memory alone.
unsafe impl Send for Pinned {}

// SAFETY: shared, it is only read.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// So many bytes, zeroed.
    pub(super) fn new(pool: &Pool, len: usize) -> Result<Self, DeviceError> {
        let pinned = pool.with(|gpu| match gpu.pin(len) {
            Err(GpuError::OutOfMemory { .. }) => Ok(None),
            other => Ok(Some(other?)),
        })?;
        match pinned {
            Some(at) => Ok(Self { at, id: new_id(), len, owner: Owner::Gpu(pool.gpu().clone()) }),
            None => Self::unpinned(len),
        }
    }

    fn unpinned(len: usize) -> Result<Self, DeviceError> {
        static WARNED: AtomicBool = AtomicBool::new(false);
        let none = || DeviceError::NoHostMemory { wanted: len as u64 };
        let mut slab = Slab::try_zeroed(len).ok_or_else(none)?;
        let at = NonNull::new(slab.as_mut_ptr()).ok_or_else(none)?;
        if !WARNED.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                bytes = len,
                "no more host memory can be pinned: some copies to and from the GPU are slower"
            );
        }
        Ok(Self { at, id: new_id(), len, owner: Owner::System { _slab: slab } })
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
        // SAFETY: its owner gave so many bytes, zeroed; copies into them are waited for before anybody looks.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and copies out of them are waited for, too.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

fn new_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Owner::Gpu(gpu) = &self.owner {
            // SAFETY: it came from `pin`, and every run waits for its copies.
            unsafe { gpu.unpin(self.at) };
        }
    }
}
