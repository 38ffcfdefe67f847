//! How long things took, by a GPU's clock.

use std::time::Duration;

use cudarc::driver::sys;

use super::super::{Event, GpuError};
use super::live::Live;
use super::status::During;

/// From one moment to another, where both have passed and are timed, and they are in this order.
pub(super) fn elapsed(live: &Live, from: &Event, to: &Event) -> Result<Option<Duration>, GpuError> {
    if !(from.timed && to.timed) {
        return Ok(None);
    }
    let (Some(from), Some(to)) = (live.event(from.id), live.event(to.id)) else { return Ok(None) };
    let mut milliseconds = 0.0_f32;
    // SAFETY: both events are live, were made with timing, and recorded: whoever asks has them, and they are in the table from when
    // they are first recorded; a number is written.
    match unsafe { sys::cuEventElapsedTime_v2(&mut milliseconds, from, to) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(None),
        status => {
            status.during("asking how long something took")?;
            Ok(Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).ok())
        }
    }
}
