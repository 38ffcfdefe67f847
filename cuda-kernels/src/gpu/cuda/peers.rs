//! Copies from one GPU of this process to another.
//!
//! Which GPU reaches the memory of a pool is a matter of the pool, not of contexts: what the driver calls peer access to a context
//! says nothing of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys;

use super::super::{GpuError, Stream};
use super::Shared;
use super::live::{Live, lock};
use super::status::During;
use crate::view::Address;

/// The GPUs that were asked after, and whether they reach this one's memory.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<HashMap<sys::CUdevice, bool>>);

/// Why a copy to another GPU was not begun.
pub(super) fn refused(reason: &str) -> GpuError {
    GpuError::Refused { during: "a copy to another GPU", reason: reason.to_owned() }
}

/// Whether one GPU's copies get to the other's memory; from the first time on they may, if the machine lets them.
pub(super) fn reaches(from: &Arc<Shared>, to: &Arc<Shared>) -> bool {
    let asked = both(from, to, |ours, theirs| {
        let mut known = lock(&theirs.peers.0);
        if let Some(reached) = known.get(&ours.device) {
            return Ok(*reached);
        }
        let let_in = let_in(ours, theirs);
        if let Err(error) = &let_in {
            tracing::debug!(%error, "copies between two GPUs go through the host");
        }
        let reached = let_in.unwrap_or(false);
        known.insert(ours.device, reached);
        Ok(reached)
    });
    asked.unwrap_or(false)
}

fn let_in(ours: &Live, theirs: &Live) -> Result<bool, GpuError> {
    let mut can = 0;
    // SAFETY: both devices are the driver's own; an integer is written.
    unsafe { sys::cuDeviceCanAccessPeer(&mut can, ours.device, theirs.device) }
        .during("asking whether two GPUs reach each other")?;
    if can == 0 {
        return Ok(false);
    }
    theirs.pool()?.let_in(ours.device)?;
    Ok(true)
}

/// Puts a copy into a stream of `from`.
///
/// # Safety
/// Both addresses are live until the copy is done, and nobody uses `at` meanwhile.
pub(super) unsafe fn copy(
    from: &Arc<Shared>,
    to: &Arc<Shared>,
    stream: Stream,
    at: Address,
    source: Address,
    bytes: u64,
) -> Result<(), GpuError> {
    if !reaches(from, to) {
        return Err(refused("it is not reached"));
    }
    both(from, to, |ours, theirs| {
        if bytes == 0 {
            return Ok(());
        }
        let (mine, other) = (ours.context, theirs.context);
        // SAFETY: the addresses are as the caller has them; contexts and stream are live while `both` runs this.
        unsafe { sys::cuMemcpyPeerAsync(at, other, source, mine, bytes as usize, ours.target(stream)) }
            .during("a copy to another GPU")
    })
}

/// Uses two GPUs at once, with the context of the first current. What fails is the first's; it is refused where the other has failed.
fn both<T>(
    from: &Arc<Shared>,
    to: &Arc<Shared>,
    body: impl FnOnce(&Live, &Live) -> Result<T, GpuError>,
) -> Result<T, GpuError> {
    if Arc::ptr_eq(from, to) {
        return Err(refused("it is the same"));
    }
    // Always in the order of their numbers: two who copy in opposite ways, and two revivals, never wait for each other in a circle.
    let first = (to.properties.ordinal < from.properties.ordinal).then(|| to.read()).transpose()?;
    from.with(|ours| {
        let second;
        let theirs = match &first {
            Some(held) => held,
            None => {
                second = to.read()?;
                &second
            }
        };
        // Its fault must not be taken for this one's.
        let theirs =
            theirs.as_ref().ok().filter(|live| live.check().is_ok()).ok_or_else(|| refused("it has failed"))?;
        body(ours, theirs)
    })
}
