//! The GPUs' memory: pools, and what they lend in the order of a stream.

use std::collections::HashSet;
use std::ffi::c_void;

use cudarc::driver::sys::{CUdeviceptr, CUmemPoolProps, CUmemoryPool, CUresult, CUstream};
use genie_cuda_kernels::host::Guarded;

use crate::MISTAKE;
use crate::state::{Answer, Driver, Id, give, handle, id, in_context, valid};
use crate::streams::{Op, capture};

/// What memory holds that nobody wrote: NaN as any float.
pub(crate) const POISON: u8 = 0xFF;
/// What addresses are multiples of.
const ALIGN: u64 = 256;
/// What a pool takes from the GPU at a time.
const CHUNK: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// What stands for a pool where memory is none's.
pub(crate) const PLAIN: Id = 0;

/// A pool.
pub(crate) struct Pool {
    pub(crate) device: usize,
    /// Bytes that it has from the GPU.
    reserved: u64,
    /// Freed memory above this goes back to the GPU when it is waited for.
    threshold: u64,
    /// It goes when nothing is lent.
    destroyed: bool,
    /// Other GPUs that reach its memory.
    pub(crate) open_to: HashSet<usize>,
}

/// An allocation.
pub(crate) struct Block {
    memory: Guarded,
    /// What was asked for.
    bytes: u64,
    pool: Id,
    pub(crate) device: usize,
    /// A stream has come to where it was allocated.
    pub(crate) allocated: bool,
    /// A stream will come to where it is freed.
    pub(crate) freeing: bool,
}

impl Block {
    /// What was had at once is a context's; what a pool lent is the pool's, unless it was being given back.
    pub(crate) fn is_lost_with_its_context(&self) -> bool {
        self.freeing || self.pool == PLAIN
    }

    /// Lets the program touch it, or faults where it does.
    fn protect(&self, open: bool) {
        let (start, end) = (self.memory.address() / PAGE * PAGE, self.memory.address() + self.memory.len() as u64);
        let rights = if open { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_NONE };
        // SAFETY: whole pages of the mapping that the block has alone; it ends where a page does. Only this library touches them, while
        // it does what is in streams, and opens them before.
        let done = unsafe { libc::mprotect(start as *mut c_void, (end - start) as usize, rights) };
        assert_eq!(done, 0, "pages of a mapping can be opened and closed");
    }
}

impl Driver {
    /// Before the GPUs' memory is touched.
    pub(crate) fn open_memory(&mut self) {
        if !std::mem::replace(&mut self.open, true) {
            self.blocks.values().for_each(|block| block.protect(true));
        }
    }

    /// A program has no way to it but copies.
    pub(crate) fn close_memory(&mut self) {
        if std::mem::replace(&mut self.open, false) {
            self.blocks.values().for_each(|block| block.protect(false));
        }
    }

    /// Bytes of a pool that are lent.
    fn used(&self, pool: Id) -> u64 {
        self.blocks.values().filter(|block| block.pool == pool).map(|block| block.memory.len() as u64).sum()
    }

    /// Bytes of a GPU that no pool has.
    pub(crate) fn free_bytes(&self, device: usize) -> u64 {
        let lost = self.devices[device].lost;
        let plain = self.blocks.values().filter(|block| block.device == device && block.pool == PLAIN);
        let plain: u64 = plain.map(|block| block.memory.len() as u64).sum();
        self.settings.gpus[device].bytes.saturating_sub(self.reserved(device) + plain + lost)
    }

    /// Bytes of a GPU that its pools have.
    pub(crate) fn reserved(&self, device: usize) -> u64 {
        self.pools.values().filter(|pool| pool.device == device).map(|pool| pool.reserved).sum()
    }

    /// Lets go of pools that were destroyed and lend nothing.
    pub(crate) fn settle_pools(&mut self) {
        let blocks = &self.blocks;
        self.pools.retain(|id, pool| !pool.destroyed || blocks.values().any(|block| block.pool == *id));
    }

    /// Whether all of this lies in one allocation that nobody is freeing.
    pub(crate) fn on_gpu(&self, at: u64, bytes: usize) -> Answer {
        let block = self.block_at(at).filter(|(base, block)| {
            !block.freeing && at.checked_add(bytes as u64).is_some_and(|end| end <= base + block.bytes)
        });
        valid(block.is_some())
    }

    /// Whether all of this lies in one allocation that is still there.
    fn is_there(&self, at: u64, bytes: usize) -> bool {
        self.block_at(at).is_some_and(|(base, block)| at + bytes as u64 <= base + block.bytes)
    }

    /// Whether a stream that comes to this point may touch all of this: it is there, and the stream comes after its allocation.
    pub(crate) fn can_touch(&self, at: u64, bytes: usize) -> bool {
        let there = self.is_there(at, bytes);
        if there && self.block_at(at).is_some_and(|(_, block)| !block.allocated) {
            eprintln!("{MISTAKE} memory is used in a stream that does not come after its allocation");
            return false;
        }
        there
    }

    /// A stream has come to where this was allocated. It holds what nobody wrote, whatever other streams did to it before.
    pub(crate) fn allocated(&mut self, at: u64) {
        let Some(block) = self.blocks.get_mut(&at) else { return };
        block.allocated = true;
        // SAFETY: the block's memory is there, and open, as whoever does what is in streams has seen to.
        unsafe { (at as *mut u8).write_bytes(POISON, block.bytes as usize) };
    }

    /// Whether memory is this GPU's, and another's copies reach it.
    pub(crate) fn is_open(&self, at: u64, device: usize, to: usize) -> bool {
        let of = self.block_at(at).map(|(_, block)| block).filter(|block| block.device == device);
        of.is_some_and(|block| {
            let pool = self.pools.get(&block.pool);
            block.pool == PLAIN || pool.is_some_and(|pool| device == to || pool.open_to.contains(&to))
        })
    }

    fn block_at(&self, at: u64) -> Option<(u64, &Block)> {
        self.blocks.range(..=at).next_back().map(|(base, block)| (*base, block))
    }

    /// The pool that this lies in.
    pub(crate) fn pool_of(&self, at: u64) -> Option<Id> {
        self.block_at(at).map(|(_, block)| block.pool)
    }

    /// Memory that is no pool's: it is there at once.
    pub(crate) fn allocate_plain(&mut self, context: Id, bytes: usize) -> Answer<u64> {
        let device = self.device_of(context)?;
        valid(bytes > 0)?;
        let no_memory = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let wanted = (bytes as u64).checked_next_multiple_of(ALIGN).ok_or(no_memory)?;
        if wanted > self.free_bytes(device) {
            return Err(no_memory);
        }
        let memory = Guarded::new(wanted as usize, POISON);
        let at = memory.address();
        let block = Block { memory, bytes: bytes as u64, pool: PLAIN, device, allocated: true, freeing: false };
        block.protect(self.open);
        self.blocks.insert(at, block);
        Ok(at)
    }

    /// A stream has come to where this is freed.
    pub(crate) fn freed(&mut self, at: u64) {
        let Some(block) = self.blocks.remove(&at) else { return };
        if !block.allocated {
            eprintln!("{MISTAKE} memory is freed in a stream that does not come after its allocation");
        }
        let used = self.used(block.pool);
        if let Some(pool) = self.pools.get_mut(&block.pool) {
            let kept = used.max(pool.threshold).checked_next_multiple_of(CHUNK).unwrap_or(u64::MAX);
            pool.reserved = pool.reserved.min(kept);
        }
        self.settle_pools();
    }

    fn allocate(&mut self, context: Id, pool: Id, stream: Id, bytes: usize) -> Answer<u64> {
        let device = self.device_of(context)?;
        valid(bytes > 0 && self.pools.get(&pool).is_some_and(|pool| pool.device == device && !pool.destroyed))?;
        let no_memory = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        let wanted = (bytes as u64).checked_next_multiple_of(ALIGN).ok_or(no_memory)?;
        while !self.reserve(pool, device, wanted) {
            // What the same stream is about to free is had in its order, without a wait. Here it has to be done for that.
            if !self.step(stream)? {
                return Err(no_memory);
            }
        }
        // A whole number of `ALIGN`, so that it begins at a multiple, too: it ends at a page's end.
        let memory = Guarded::new(wanted as usize, POISON);
        let at = memory.address();
        let block = Block { memory, bytes: bytes as u64, pool, device, allocated: false, freeing: false };
        block.protect(self.open);
        self.blocks.insert(at, block);
        self.streams.push(stream, Op::Allocate(at));
        Ok(at)
    }

    /// Whether a pool has room for so much more.
    fn reserve(&mut self, pool: Id, device: usize, wanted: u64) -> bool {
        let Some(needed) = self.used(pool).checked_add(wanted).and_then(|sum| sum.checked_next_multiple_of(CHUNK))
        else {
            return false;
        };
        let free = self.free_bytes(device);
        let Some(pool) = self.pools.get_mut(&pool) else { return false };
        if needed > pool.reserved.saturating_add(free) {
            return false;
        }
        pool.reserved = pool.reserved.max(needed);
        true
    }
}

/// # Safety
/// Here, and for every function below: what is written to can be written, and what is read can be read.
#[unsafe(export_name = "cuMemPoolCreate")]
unsafe extern "C" fn pool_create(pool: *mut CUmemoryPool, wanted: *const CUmemPoolProps) -> CUresult {
    use cudarc::driver::sys::{CUmemAllocationHandleType_enum, CUmemAllocationType_enum, CUmemLocationType_enum};

    in_context("cuMemPoolCreate", |driver, _| {
        capture::unsafe_call(driver)?;
        // SAFETY: as the caller has it.
        let wanted = unsafe { wanted.as_ref() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let (device, _) = driver.gpu(wanted.location.id)?;
        valid(
            wanted.allocType == CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED
                && wanted.location.type_ == CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE
                && wanted.handleTypes == CUmemAllocationHandleType_enum::CU_MEM_HANDLE_TYPE_NONE
                && wanted.maxSize == 0
                && wanted.reserved.iter().all(|&byte| byte == 0),
        )?;
        let new = driver.new_id();
        driver.pools.insert(new, Pool { device, reserved: 0, threshold: 0, destroyed: false, open_to: HashSet::new() });
        // SAFETY: as the caller has it.
        unsafe { give(pool, handle(new)) }
    })
}

#[unsafe(export_name = "cuMemPoolDestroy")]
extern "C" fn pool_destroy(pool: CUmemoryPool) -> CUresult {
    in_context("cuMemPoolDestroy", |driver, _| {
        capture::unsafe_call(driver)?;
        live(driver, pool)?.destroyed = true;
        driver.settle_pools();
        Ok(())
    })
}

/// A pool that was not destroyed.
pub(crate) fn live(driver: &mut Driver, pool: CUmemoryPool) -> Answer<&mut Pool> {
    let there = driver.pools.get_mut(&id(pool)).filter(|pool| !pool.destroyed);
    there.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemPoolSetAttribute")]
unsafe extern "C" fn pool_set(pool: CUmemoryPool, attribute: u32, value: *mut c_void) -> CUresult {
    in_context("cuMemPoolSetAttribute", |driver, _| {
        valid(!value.is_null())?;
        let pool = live(driver, pool)?;
        match attribute {
            // How memory is had again: here as if all were allowed.
            // SAFETY: as the caller has it: these are of type int.
            1..=3 => valid(matches!(unsafe { value.cast::<i32>().read() }, 0 | 1)),
            4 => {
                // SAFETY: as above; the threshold is 64 bits wide.
                pool.threshold = unsafe { value.cast::<u64>().read() };
                Ok(())
            }
            _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemPoolGetAttribute")]
unsafe extern "C" fn pool_get(pool: CUmemoryPool, attribute: u32, value: *mut c_void) -> CUresult {
    in_context("cuMemPoolGetAttribute", |driver, _| {
        let used = driver.used(id(pool));
        let pool = live(driver, pool)?;
        let said = match attribute {
            4 => pool.threshold,
            5 => pool.reserved,
            7 => used,
            _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        };
        // SAFETY: as the caller has it: these are 64 bits wide.
        unsafe { give(value.cast::<u64>(), said) }
    })
}

#[unsafe(export_name = "cuMemPoolTrimTo")]
extern "C" fn pool_trim(pool: CUmemoryPool, keep: usize) -> CUresult {
    in_context("cuMemPoolTrimTo", |driver, _| {
        capture::unsafe_call(driver)?;
        let used = driver.used(id(pool)).next_multiple_of(CHUNK);
        let pool = live(driver, pool)?;
        pool.reserved = pool.reserved.min(used.max(keep as u64));
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemAllocFromPoolAsync")]
unsafe extern "C" fn allocate(at: *mut CUdeviceptr, bytes: usize, pool: CUmemoryPool, stream: CUstream) -> CUresult {
    in_context("cuMemAllocFromPoolAsync", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        capture::never(driver, stream)?;
        let new = driver.allocate(context, id(pool), stream, bytes)?;
        // SAFETY: as the caller has it.
        unsafe { give(at, new) }
    })
}

#[unsafe(export_name = "cuMemFreeAsync")]
extern "C" fn free_in_order(at: CUdeviceptr, stream: CUstream) -> CUresult {
    in_context("cuMemFreeAsync", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        capture::never(driver, stream)?;
        begin_free(driver, at)?;
        driver.streams.push(stream, Op::Free(at));
        Ok(())
    })
}

#[unsafe(export_name = "cuMemFree_v2")]
extern "C" fn free(at: CUdeviceptr) -> CUresult {
    in_context("cuMemFree_v2", |driver, context| {
        capture::unsafe_call(driver)?;
        begin_free(driver, at)?;
        driver.finish_all(context)?;
        driver.freed(at);
        Ok(())
    })
}

fn begin_free(driver: &mut Driver, at: u64) -> Answer {
    let block = driver.blocks.get_mut(&at).filter(|block| !block.freeing);
    block.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?.freeing = true;
    Ok(())
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuPointerGetAttribute")]
unsafe extern "C" fn pointer(value: *mut c_void, attribute: u32, at: CUdeviceptr) -> CUresult {
    let mut known = true;
    let status = in_context("cuPointerGetAttribute", |driver, _| {
        let Some((_, block)) = driver.block_at(at).filter(|_| driver.is_there(at, 1)) else {
            // A program may ask whether it is: no mistake.
            known = false;
            return Ok(());
        };
        match attribute {
            // SAFETY: as the caller has it.
            9 => unsafe { give(value.cast::<i32>(), block.device as i32) },
            // SAFETY: as above.
            17 => unsafe { give(value.cast::<CUmemoryPool>(), handle(block.pool)) },
            _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        }
    });
    if known { status } else { CUresult::CUDA_ERROR_INVALID_VALUE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn freed_memory_is_the_pools_up_to_its_threshold() {
        let mut driver = Driver::new(Settings::of_this_process());
        driver.settings.gpus[0].bytes = 64 << 20;
        let (pool, context) = (driver.new_id(), driver.new_id());
        driver.contexts.insert(context, crate::contexts::Context { device: 0, fault: None });
        driver
            .pools
            .insert(pool, Pool { device: 0, reserved: 0, threshold: 0, destroyed: false, open_to: HashSet::new() });
        let stream = driver.streams.insert_for_test(context);
        let free = |driver: &mut Driver, at| {
            driver.streams.push(stream, Op::Free(at));
            driver.finish_all(context).expect("no fault");
        };
        let all = driver.free_bytes(0);
        let at = driver.allocate(context, pool, stream, 5 << 20).expect("memory");
        assert_eq!(driver.free_bytes(0), all - (6 << 20));
        assert!(driver.on_gpu(at, 5 << 20).is_ok() && driver.on_gpu(at + 1, 5 << 20).is_err());
        free(&mut driver, at);
        assert_eq!(driver.free_bytes(0), all);
        driver.pools.get_mut(&pool).expect("it is there").threshold = u64::MAX;
        let at = driver.allocate(context, pool, stream, all as usize).expect("all of it");
        assert_eq!(driver.allocate(context, pool, stream, 1), Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        free(&mut driver, at);
        assert_eq!(driver.free_bytes(0), 0);
    }
}
