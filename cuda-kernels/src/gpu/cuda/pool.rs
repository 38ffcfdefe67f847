//! A GPU's memory, as the driver's pool has it.
//!
//! A pool and what it lent are the GPU's, not a context's: when a context is reset after a fault they stay, and in the broken
//! context they could not be freed. So they are left to whoever makes the next context on the GPU.

use std::collections::HashSet;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Mutex;

use cudarc::driver::{result, sys};

use super::super::{GpuError, Memory};
use super::live::lock;
use super::status::During;
use crate::view::Address;

/// Memory that is had in the order of any stream, and given back in the order of one.
///
/// What was given back is lent again to another stream when that comes after it: by an event that it waited for, because it is done,
/// or, where there is no other memory, by a wait that the driver puts in. So whoever has memory in a stream need order nothing there
/// against those who had it before.
pub(super) struct Pool {
    device: sys::CUdevice,
    pool: sys::CUmemoryPool,
    /// Where memory is given back.
    stream: sys::CUstream,
    lent: Mutex<HashSet<Address>>,
    /// What is had until the pool goes: our own, of which there is always some, and what could not be freed.
    kept: Mutex<Vec<Address>>,
}

// SAFETY: the driver's handles belong to no thread, and its functions lock for themselves.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

/// A pool that could not be taken down.
struct Left {
    device: sys::CUdevice,
    pool: sys::CUmemoryPool,
    had: Vec<Address>,
}

// SAFETY: as for `Pool`.
unsafe impl Send for Left {}

static LEFT: Mutex<Vec<Left>> = Mutex::new(Vec::new());

impl Pool {
    /// A pool of a GPU whose context is current; memory is given back in the order of a stream that outlives it. What broken contexts left
    /// is freed first.
    pub(super) fn new(device: sys::CUdevice, stream: sys::CUstream) -> Result<Self, GpuError> {
        use sys::CUmemPool_attribute_enum as Attribute;

        lock(&LEFT).retain(|left| left.device != device || !left.free());
        // SAFETY: a C structure for which all zeros is valid: no handle type, no limit, no security attributes.
        let mut wanted: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
        wanted.allocType = sys::CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED;
        wanted.location.type_ = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE;
        wanted.location.id = device;
        let mut pool = null_mut();
        // SAFETY: the properties are valid; a pool is written.
        unsafe { sys::cuMemPoolCreate(&mut pool, &wanted) }.during("making a memory pool")?;
        let new = Self { device, pool, stream, lent: Mutex::default(), kept: Mutex::default() };
        // Memory that was freed stays ours, so that having it again costs no call into the system.
        let mut threshold = u64::MAX;
        new.set(Attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, (&raw mut threshold).cast())?;
        for reuse in [
            Attribute::CU_MEMPOOL_ATTR_REUSE_FOLLOW_EVENT_DEPENDENCIES,
            Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_OPPORTUNISTIC,
            Attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
        ] {
            let mut yes = 1_i32;
            new.set(reuse, (&raw mut yes).cast())?;
        }
        // So that there is something to free, which tells whether the pool is still there: see `Left::free`.
        new.keep(1)?;
        Ok(new)
    }

    fn set(&self, attribute: sys::CUmemPool_attribute, value: *mut c_void) -> Result<(), GpuError> {
        // SAFETY: the pool is live, and `value` is of the attribute's type: u64 for the threshold, int for what may be reused.
        unsafe { sys::cuMemPoolSetAttribute(self.pool, attribute, value) }.during("setting up a memory pool")
    }

    /// Lets another GPU read and write all that is lent, now and from now on.
    pub(super) fn let_in(&self, other: sys::CUdevice) -> Result<(), GpuError> {
        // SAFETY: a C structure for which all zeros is valid.
        let mut wanted: sys::CUmemAccessDesc = unsafe { std::mem::zeroed() };
        wanted.location.type_ = sys::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE;
        wanted.location.id = other;
        wanted.flags = sys::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        // SAFETY: the pool is live, and one description is read.
        unsafe { sys::cuMemPoolSetAccess(self.pool, &wanted, 1) }.during("opening memory to another GPU")
    }

    /// Memory that is lent, from the next turn on of a stream of the same context.
    pub(super) fn allocate(&self, stream: sys::CUstream, bytes: u64) -> Result<Address, GpuError> {
        let at = self.get(stream, bytes)?;
        lock(&self.lent).insert(at);
        Ok(at)
    }

    /// Memory until the pool goes.
    pub(super) fn keep(&self, bytes: u64) -> Result<Address, GpuError> {
        let at = self.get(self.stream, bytes)?;
        lock(&self.kept).push(at);
        Ok(at)
    }

    fn get(&self, stream: sys::CUstream, bytes: u64) -> Result<Address, GpuError> {
        let Ok(wanted) = usize::try_from(bytes.max(1)) else { return Err(GpuError::OutOfMemory { wanted: bytes }) };
        let mut at = 0;
        // SAFETY: pool and stream are live; an address is written.
        let mut get = || unsafe { sys::cuMemAllocFromPoolAsync(&mut at, wanted, self.pool, stream) };
        let mut status = get();
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            // What is being freed, and what the pool has in pieces, may be enough once it is all back.
            self.trim()?;
            status = get();
        }
        status.for_bytes("allocating memory", bytes)?;
        Ok(at)
    }

    /// Waits for what is being freed, and gives what nobody has back to the GPU.
    pub(super) fn trim(&self) -> Result<(), GpuError> {
        // SAFETY: stream and pool are live.
        unsafe { sys::cuStreamSynchronize(self.stream) }.during("waiting for memory")?;
        // SAFETY: as above.
        unsafe { sys::cuMemPoolTrimTo(self.pool, 0) }.during("giving memory back")
    }

    /// Gives memory back, once the stream has come to this point. An address that is not lent is none of ours.
    ///
    /// # Safety
    /// Nobody uses it any more when the stream has come there.
    pub(super) unsafe fn free(&self, at: Address) {
        if !lock(&self.lent).remove(&at) {
            return;
        }
        // SAFETY: it was lent, and nobody else finds it any more; the rest is as the caller has it.
        if unsafe { sys::cuMemFreeAsync(at, self.stream) }.result().is_err() {
            lock(&self.kept).push(at);
        }
    }

    /// What is lent.
    pub(super) fn lent(&self) -> Vec<Address> {
        lock(&self.lent).iter().copied().collect()
    }

    /// What is free on the GPU, the pool's own included.
    pub(super) fn memory(&self) -> Result<Memory, GpuError> {
        use sys::CUmemPool_attribute_enum as Attribute;

        let (free, total) = result::mem_get_info().during("asking for free memory")?;
        let ask = |attribute| {
            let mut bytes = 0_u64;
            // SAFETY: the pool is live, and both attributes that are asked for are u64.
            unsafe { sys::cuMemPoolGetAttribute(self.pool, attribute, (&raw mut bytes).cast()) }
                .during("asking a memory pool")?;
            Ok::<u64, GpuError>(bytes)
        };
        let reserved = ask(Attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = ask(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let (free, total) = (free as u64, total as u64);
        Ok(Memory { free: free.saturating_add(reserved.saturating_sub(used)).min(total), total })
    }
}

impl Drop for Pool {
    // The context is current, and its streams have come to their ends, or it is broken.
    fn drop(&mut self) {
        let mut had = self.lent();
        had.append(&mut lock(&self.kept));
        let left = Left { device: self.device, pool: self.pool, had };
        if !left.free() {
            lock(&LEFT).push(left);
        }
    }
}

impl Left {
    /// Whether nothing is left of it. No stream uses what it had: its context is idle, or no more.
    fn free(&self) -> bool {
        let mut there = false;
        for &at in &self.had {
            match self.has(at) {
                Ok(true) => there = true,
                Ok(false) => continue,
                Err(fault) if fault.is_sticky() => return false,
                Err(_) => continue,
            }
            // SAFETY: the pool has it, as it just said, and nothing uses it.
            let freed = unsafe { sys::cuMemFree_v2(at) }.during("freeing memory");
            if freed.is_err_and(|fault| fault.is_sticky()) {
                return false;
            }
        }
        // Where all of it was gone, so is the pool.
        // SAFETY: it is there, and destroyed once: where this fails it stays.
        !there || unsafe { sys::cuMemPoolDestroy(self.pool) }.result().is_ok()
    }

    /// Whether this is the pool's. A reset may have taken the pool with it, and another GPU's may have been given the address since.
    fn has(&self, at: Address) -> Result<bool, GpuError> {
        let mut pool: sys::CUmemoryPool = null_mut();
        let attribute = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE;
        // SAFETY: a handle is written. An address that is nobody's is refused.
        unsafe { sys::cuPointerGetAttribute((&raw mut pool).cast(), attribute, at) }.during("looking for memory")?;
        Ok(pool == self.pool)
    }
}
