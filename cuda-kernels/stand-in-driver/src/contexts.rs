//! Primary contexts: one a GPU, counted by who retained it.

use std::ffi::c_int;

use cudarc::driver::sys::{CUcontext, CUdevice, CUresult};

use crate::settings::Pools;
use crate::state::{Answer, Driver, Id, give, handle, id, in_context, set_current, started};
use crate::streams::capture;

/// What is kept of a GPU.
#[derive(Default)]
pub(crate) struct Device {
    /// Its primary context, if there is one.
    primary: Option<Id>,
    retained: u32,
    /// The fault that resetting does not help against.
    dead: Option<CUresult>,
    /// Bytes that broken contexts took with them.
    pub(crate) lost: u64,
}

/// A primary context.
pub(crate) struct Context {
    pub(crate) device: usize,
    /// What every call in it gets.
    pub(crate) fault: Option<CUresult>,
}

impl Driver {
    /// A kernel or a copy of this context failed.
    pub(crate) fn broke(&mut self, context: Id, fault: CUresult) {
        let Some(context) = self.contexts.get_mut(&context) else { return };
        context.fault = Some(fault);
        if self.settings.dead {
            self.devices[context.device].dead = Some(fault);
        }
    }

    /// Ends everything of a GPU's primary context.
    fn reset(&mut self, device: usize) {
        let Some(context) = self.devices[device].primary.take() else { return };
        let broken = self.contexts.remove(&context).is_some_and(|context| context.fault.is_some());
        self.streams.forget(context);
        self.events.retain(|_, event| event.context != context);
        self.executables.retain(|_, executable| executable.context != context);
        self.modules.retain(|_, module| module.context != context);
        self.functions.retain(|_, function| function.context != context);
        self.host.retain(|_, range| range.context != context);
        // What waited in a stream to be had or freed is not held up by it any more.
        self.blocks.values_mut().filter(|block| block.device == device).for_each(|block| block.allocated = true);
        let gone = self.settings.pools != Pools::Stay;
        if self.settings.pools == Pools::Lost && broken {
            self.devices[device].lost += self.reserved(device);
        }
        self.blocks.retain(|_, block| block.device != device || !(gone || block.is_lost_with_its_context()));
        if gone {
            self.pools.retain(|_, pool| pool.device != device);
        }
        self.settle_pools();
    }
}

/// # Safety
/// Here, and for every function below: what is written to can be written.
#[unsafe(export_name = "cuDevicePrimaryCtxRetain")]
unsafe extern "C" fn retain(context: *mut CUcontext, device: CUdevice) -> CUresult {
    started("cuDevicePrimaryCtxRetain", |driver| {
        let (index, gpu) = driver.gpu(device)?;
        if gpu.broken {
            return Err(CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE);
        }
        let made = match driver.devices[index].primary {
            Some(there) => there,
            None => {
                let (new, fault) = (driver.new_id(), driver.devices[index].dead);
                driver.contexts.insert(new, Context { device: index, fault });
                new
            }
        };
        driver.devices[index].primary = Some(made);
        driver.devices[index].retained += 1;
        // SAFETY: as the caller has it.
        unsafe { give(context, handle(made)) }
    })
}

#[unsafe(export_name = "cuDevicePrimaryCtxRelease_v2")]
extern "C" fn release(device: CUdevice) -> CUresult {
    started("cuDevicePrimaryCtxRelease_v2", |driver| {
        let (index, _) = driver.gpu(device)?;
        let retained = driver.devices[index].retained;
        driver.devices[index].retained = retained.checked_sub(1).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
        if retained == 1 {
            driver.reset(index);
        }
        Ok(())
    })
}

#[unsafe(export_name = "cuDevicePrimaryCtxReset_v2")]
extern "C" fn reset(device: CUdevice) -> CUresult {
    started("cuDevicePrimaryCtxReset_v2", |driver| {
        let (index, _) = driver.gpu(device)?;
        // Whoever retained it still has to release it.
        driver.reset(index);
        Ok(())
    })
}

#[unsafe(export_name = "cuCtxSetCurrent")]
extern "C" fn make_current(context: CUcontext) -> CUresult {
    started("cuCtxSetCurrent", |driver| {
        let context = id(context);
        if context != 0 && !driver.contexts.contains_key(&context) {
            return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
        }
        set_current(context);
        Ok(())
    })
}

#[unsafe(export_name = "cuCtxSynchronize")]
extern "C" fn synchronize() -> CUresult {
    in_context("cuCtxSynchronize", |driver, context| {
        capture::unsafe_call(driver)?;
        driver.finish_all(context)
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuCtxGetStreamPriorityRange")]
unsafe extern "C" fn priorities(least: *mut c_int, greatest: *mut c_int) -> CUresult {
    in_context("cuCtxGetStreamPriorityRange", |_, _| {
        // Both may be null.
        // SAFETY: as the caller has it.
        let put = |to: *mut c_int, value| if to.is_null() { Ok(()) } else { unsafe { give(to, value) } };
        put(least, 0).and_then(|()| put(greatest, -5))
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuMemGetInfo_v2")]
unsafe extern "C" fn memory(free: *mut usize, total: *mut usize) -> CUresult {
    in_context("cuMemGetInfo_v2", |driver, context| {
        let device = driver.device_of(context)?;
        let (left, all) = (driver.free_bytes(device), driver.settings.gpus[device].bytes);
        let both = |to: *mut usize, bytes: u64| -> Answer {
            // SAFETY: as the caller has it.
            unsafe { give(to, bytes as usize) }
        };
        both(free, left).and_then(|()| both(total, all))
    })
}
