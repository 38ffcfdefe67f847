//! A GPU's next life after a sticky error.
//!
//! NVIDIA's documentation says of such errors that the process must be ended to go on. Resetting the primary context often helps, and
//! what the process serves besides lives on meanwhile; but nothing promises it. So a GPU counts as brought back only when its memory has
//! come back, and it has computed something: what does not, stays out, and its error says what helps.

use std::sync::PoisonError;
use std::thread;

use cudarc::driver::sys;

use super::super::trial::try_all;
use super::super::{GpuError, JIT_STACK_BYTES};
use super::leave::Inside;
use super::live::{Live, lock};
use super::pool::Pool;
use super::status::During;
use super::{CudaGpu, Shared};

/// Bytes that may be missing after a revival: other programs take some, too. On a small GPU it is an eighth.
const MAY_MISS: u64 = 1 << 30;

impl Shared {
    /// Resets the context, and makes everything anew, unless memory is missing then.
    pub(super) fn revive(&self) -> Result<(), GpuError> {
        let _inside = Inside::enter()?;
        let mut slot = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *slot, Err(fault("it was not finished".to_owned())));
        let lent = before.iter().flat_map(|live| {
            let of_pool = live.pool().map(Pool::lent).unwrap_or_default();
            of_pool.into_iter().chain(live.exports.lent())
        });
        lock(&self.stale).add(lent);
        drop(before);
        // This process's primary context on the GPU, not the GPU: other processes notice nothing. A library of this process that
        // holds the context would otherwise keep the broken one.
        // SAFETY: the device is the driver's own, and nothing of the context is in use: `Live` is gone, and the lock is held.
        let reset = unsafe { sys::cuDevicePrimaryCtxReset_v2(self.device) };
        let again = reset.during("resetting the GPU's context").and_then(|()| {
            let live = Live::new(self.device, &self.properties)?;
            self.check_memory(live.pool()?.memory()?.free)?;
            lock(&self.host).revive(&live);
            Ok(live)
        });
        *slot = again.map_err(|error| fault(format!("{error}; {ANEW}")));
        slot.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Refuses a life in which much less memory is free than when the GPU was opened.
    fn check_memory(&self, free: u64) -> Result<(), GpuError> {
        let missing = self.free.saturating_sub(free);
        if missing <= MAY_MISS.min(self.properties.total_bytes / 8) {
            return Ok(());
        }
        let [before, now] = [self.free, free].map(|bytes| bytes >> 20);
        let reason = format!(
            "{before} MiB were free when the GPU was opened, and {now} MiB are now: the driver has not given back what the failed context \
             had, or other programs have taken it"
        );
        Err(GpuError::Refused { during: "looking for the GPU's memory", reason })
    }
}

/// What helps where nothing else does.
const ANEW: &str = "if it stays so, start the server anew";

/// Tries the GPU. Where it does not do what it is told, it stays out until it is revived again.
pub(super) fn tried(gpu: &CudaGpu) -> Result<(), GpuError> {
    // The compiler may be needed for the kernel, on whatever thread this is.
    let tried = thread::scope(|scope| {
        let thread = thread::Builder::new().name("genie-revival".to_owned()).stack_size(JIT_STACK_BYTES);
        let tried = thread.spawn_scoped(scope, || try_all(gpu)).map(thread::ScopedJoinHandle::join);
        tried.map_err(|error| refused(format!("there is no thread for it: {error}")))
    });
    let wrong = match tried {
        Ok(Ok(Ok(true))) => return Ok(()),
        Ok(Ok(Ok(false))) => "it computes something else than it should".to_owned(),
        Ok(Ok(Err(error))) | Err(error) => error.to_string(),
        Ok(Err(_panic)) => "trying it panicked".to_owned(),
    };
    let error = fault(format!("after its context was reset, it does not do what it is told: {wrong}; {ANEW}"));
    let _inside = Inside::enter()?;
    let mut slot = gpu.shared.live.write().unwrap_or_else(PoisonError::into_inner);
    if let Ok(live) = &*slot {
        // What it lent meanwhile is of no use any more, and comes back to a GPU that knows nothing of it.
        let of_pool = live.pool().map(Pool::lent).unwrap_or_default();
        lock(&gpu.shared.stale).add(of_pool.into_iter().chain(live.exports.lent()));
    }
    *slot = Err(error.clone());
    Err(error)
}

fn fault(reason: String) -> GpuError {
    GpuError::Fault { during: "reviving the GPU", reason }
}

fn refused(reason: String) -> GpuError {
    GpuError::Refused { during: "trying the GPU", reason }
}
