//! Copies from one GPU to another, where the machine lets them reach each other's memory and the pool is open to them.

use std::ffi::c_int;

use cudarc::driver::sys::{CUcontext, CUdevice, CUdeviceptr, CUmemAccessDesc, CUmemoryPool, CUresult, CUstream};

use crate::memory::live;
use crate::state::{Answer, Driver, Id, give, id, in_context, started, valid};
use crate::streams::Op;

impl Driver {
    fn reach_each_other(&self, one: CUdevice, other: CUdevice) -> Answer<bool> {
        let (one, other) = (self.gpu(one)?.0, self.gpu(other)?.0);
        Ok(self.settings.peers && one != other)
    }

    /// The GPU of a context in which calls are answered.
    fn working(&self, context: CUcontext) -> Answer<usize> {
        let context = self.contexts.get(&id(context)).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        context.fault.map_or(Ok(context.device), Err)
    }
}

/// # Safety
/// Here, and for every function below: what is written to can be written, and what is read can be read.
#[unsafe(export_name = "cuDeviceCanAccessPeer")]
unsafe extern "C" fn can_access(can: *mut c_int, device: CUdevice, peer: CUdevice) -> CUresult {
    started("cuDeviceCanAccessPeer", |driver| {
        let reach = driver.reach_each_other(device, peer)?;
        // SAFETY: as the caller has it.
        unsafe { give(can, c_int::from(reach)) }
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemPoolSetAccess")]
unsafe extern "C" fn set_access(pool: CUmemoryPool, wanted: *const CUmemAccessDesc, count: usize) -> CUresult {
    use cudarc::driver::sys::{CUmemAccess_flags_enum as Flags, CUmemLocationType_enum as Location};

    in_context("cuMemPoolSetAccess", |driver, _| {
        valid(count > 0 && !wanted.is_null())?;
        for i in 0..count {
            // SAFETY: as the caller has it: there are so many.
            let CUmemAccessDesc { location, flags } = unsafe { wanted.add(i).read() };
            valid(location.type_ == Location::CU_MEM_LOCATION_TYPE_DEVICE)?;
            let (device, _) = driver.gpu(location.id)?;
            let own = live(driver, pool)?.device;
            let reach = driver.reach_each_other(own as CUdevice, location.id)?;
            // A GPU has its own pools, and keeps them.
            valid(if device == own { flags == Flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE } else { reach })?;
            let open = &mut live(driver, pool)?.open_to;
            if flags == Flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE {
                open.insert(device);
            } else {
                open.remove(&device);
            }
        }
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemcpyPeerAsync")]
unsafe extern "C" fn copy(
    to: CUdeviceptr,
    to_context: CUcontext,
    from: CUdeviceptr,
    from_context: CUcontext,
    bytes: usize,
    stream: CUstream,
) -> CUresult {
    in_context("cuMemcpyPeerAsync", |driver, context: Id| {
        let stream = driver.stream_of(context, stream)?;
        let here = driver.device_of(context)?;
        for (at, of) in [(to, to_context), (from, from_context)] {
            let device = driver.working(of)?;
            driver.on_gpu(at, bytes)?;
            valid(driver.is_open(at, device, here))?;
        }
        driver.put(stream, Op::Copy { to, from, bytes, on_gpu: [true, true] })
    })
}
