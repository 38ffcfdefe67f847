//! How far apart two moments were.

use cudarc::driver::sys::{CUevent, CUresult};

use crate::state::{give, in_context};

/// # Safety
/// What is written to can be written.
#[unsafe(export_name = "cuEventElapsedTime_v2")]
unsafe extern "C" fn elapsed(milliseconds: *mut f32, first: CUevent, last: CUevent) -> CUresult {
    in_context("cuEventElapsedTime_v2", |driver, context| {
        let time = |event| {
            let event = driver.event_of(context, event)?;
            // One without timing, or that was never recorded, has none.
            let moment = event.moment.filter(|_| event.timed).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
            let time = driver.streams.times.get(&moment).copied().flatten();
            time.ok_or(CUresult::CUDA_ERROR_NOT_READY)
        };
        let (first, last) = (time(first)?, time(last)?);
        let forwards = last.saturating_duration_since(first).as_secs_f32();
        let backwards = first.saturating_duration_since(last).as_secs_f32();
        // SAFETY: as the caller has it.
        unsafe { give(milliseconds, (forwards - backwards) * 1e3) }
    })
}
