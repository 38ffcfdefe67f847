//! Memory that network cards can be told of.
//!
//! What a memory pool lends is not that: neither `cuMemGetHandleForAddressRange` nor `nvidia-peermem` takes stream-ordered memory (the
//! former wants memory of `cuMemAlloc` or of a reserved range), which is why UCX and others copy such memory through buffers of their
//! own. So it comes from `cuMemAlloc`, and is reached by other GPUs only through the host.
//!
//! `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS` is not set: it is for who takes the return of a copy for its end. Here every copy is put into a
//! stream, and waited for by an event.

use std::collections::HashSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, OnceLock};

use cudarc::driver::{result, sys};

use super::super::{EXPORT_UNIT, GpuError};
use super::live::{Live, lock};
use super::status::During;
use crate::view::Address;

use sys::CUdevice_attribute_enum as Attribute;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Exports {
    lent: Mutex<HashSet<Address>>,
    /// Whether what network cards have written is seen by work that is put into streams after it.
    ordered: OnceLock<bool>,
}

fn refused<T>(reason: impl Into<String>) -> Result<T, GpuError> {
    Err(GpuError::Refused { during: "opening memory to network cards", reason: reason.into() })
}

fn get(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32, GpuError> {
    // SAFETY: the device is the driver's own.
    unsafe { result::device::get_attribute(device, attribute) }.during("asking what network cards may do")
}

impl Exports {
    /// What is lent.
    pub(super) fn lent(&self) -> Vec<Address> {
        lock(&self.lent).iter().copied().collect()
    }

    /// Memory of the context that is current.
    pub(super) fn allocate(&self, live: &Live, bytes: u64) -> Result<Address, GpuError> {
        let wanted = usize::try_from(bytes).ok().filter(|_| bytes > 0 && bytes.is_multiple_of(EXPORT_UNIT));
        let Some(wanted) = wanted else { return refused(format!("{bytes} bytes are no multiple of {EXPORT_UNIT}")) };
        if get(live.device, Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED)? == 0
            && get(live.device, Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_SUPPORTED)? == 0
        {
            return refused("the GPU, or its driver, has no GPUDirect RDMA");
        }
        if !self.is_ordered(live)?
            && get(live.device, Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS)?
                & sys::CUflushGPUDirectRDMAWritesOptions_enum::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_OPTION_HOST as i32
                == 0
        {
            return refused("the GPU neither orders what network cards write nor can be told to");
        }
        let mut at = 0;
        // What the pool keeps is left to it: to trim it is to wait for all kernels, on a connection's thread.
        // SAFETY: the context is current; an address is written.
        let status = unsafe { sys::cuMemAlloc_v2(&mut at, wanted) };
        status.for_bytes("allocating memory for network cards", bytes)?;
        lock(&self.lent).insert(at);
        Ok(at)
    }

    /// Gives memory back. An address that is not lent is none of ours.
    ///
    /// # Safety
    /// Nobody uses it any more. The context is current.
    pub(super) unsafe fn free(&self, at: Address) {
        if lock(&self.lent).remove(&at) {
            // SAFETY: it was lent, and nobody else finds it any more. In a context that broke this does nothing, and its memory goes
            // with it.
            let _ = unsafe { sys::cuMemFree_v2(at) };
        }
    }

    /// A dmabuf descriptor for a part of what is lent: whole pages of the host's size, as the driver demands.
    pub(super) fn export(live: &Live, at: Address, bytes: u64) -> Result<OwnedFd, GpuError> {
        if get(live.device, Attribute::CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED)? == 0 {
            return refused("the driver exports no dmabuf (it takes NVIDIA's open kernel modules, and Linux 5.12)");
        }
        let mut fd: RawFd = -1;
        let kind = sys::CUmemRangeHandleType_enum::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD;
        // SAFETY: the context is current; a descriptor is written, which is an int. An address that is none is refused.
        unsafe { sys::cuMemGetHandleForAddressRange((&raw mut fd).cast(), at, bytes as usize, kind, 0) }
            .during("exporting memory")?;
        if fd < 0 {
            return refused("the driver gave no descriptor");
        }
        // SAFETY: the driver has just made it for this caller, who closes it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// What network cards have written, and said so, is seen by all that is put into streams from here on.
    ///
    /// Where the GPU's `GPU_DIRECT_RDMA_WRITES_ORDERING` is `OWNER` or more, that is so without a word; else
    /// `cuFlushGPUDirectRDMAWrites` sees to it (driver API, "Device Management" and "Memory Management" have both).
    pub(super) fn settle(&self, live: &Live) -> Result<(), GpuError> {
        use sys::CUflushGPUDirectRDMAWritesScope_enum as Scope;
        use sys::CUflushGPUDirectRDMAWritesTarget_enum as Target;

        if self.is_ordered(live)? {
            return Ok(());
        }
        let target = Target::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TARGET_CURRENT_CTX;
        // SAFETY: the context is current; no pointer is passed.
        unsafe { sys::cuFlushGPUDirectRDMAWrites(target, Scope::CU_FLUSH_GPU_DIRECT_RDMA_WRITES_TO_OWNER) }
            .during("waiting for what network cards wrote")
    }

    fn is_ordered(&self, live: &Live) -> Result<bool, GpuError> {
        if let Some(ordered) = self.ordered.get() {
            return Ok(*ordered);
        }
        let owner = sys::CUGPUDirectRDMAWritesOrdering_enum::CU_GPU_DIRECT_RDMA_WRITES_ORDERING_OWNER as i32;
        let ordered = get(live.device, Attribute::CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WRITES_ORDERING)? >= owner;
        Ok(*self.ordered.get_or_init(|| ordered))
    }
}
