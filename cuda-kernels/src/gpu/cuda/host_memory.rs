//! Host memory that the GPU's copy engines reach without help.
//!
//! Pinned memory is Genie's own, which the driver is told of, and not the driver's: that would go away when a context is reset, while
//! sockets still read into it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Mutex;

use cudarc::driver::sys;

use super::super::GpuError;
use super::live::{Live, lock};
use super::status::During;

const PAGE: usize = 4096;
/// Larger memory begins where large pages do, so that the system can give those.
const LARGE_PAGE: usize = 2 << 20;

/// Ranges of host memory by their address.
#[derive(Debug, Default)]
pub(super) struct HostMemory {
    ranges: HashMap<usize, Range>,
    /// Ours, given back when the driver did not let go of it: somebody else must not get it while the driver takes it for pinned.
    held: Vec<Range>,
    /// It was said that the driver refuses to pin memory.
    warned: bool,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    at: NonNull<u8>,
    bytes: usize,
    /// How it was had, if it is ours.
    layout: Option<Layout>,
    /// The driver knows of it.
    told: bool,
}

// SAFETY: the addresses are only told to the driver and given back to the allocator, which any thread may do.
unsafe impl Send for Range {}

impl HostMemory {
    /// Zeroed, page-aligned memory. It takes the driver long to pin much: the table is not locked meanwhile.
    ///
    /// Where the driver refuses to pin for another reason than memory, the same pages are given as they are: copies of them are legal,
    /// only slower. The driver then stages them: a copy from the GPU is done when its call returns, and one to it has read what it
    /// copies by then, or does so in the order of its stream. Either is within what callers count on, who wait for an event behind the
    /// copy. Where a graph takes no copy of such memory, recording it is refused, and whoever records does without a graph.
    pub(super) fn pin(table: &Mutex<Self>, live: &Live, bytes: usize) -> Result<NonNull<u8>, GpuError> {
        let no_memory = GpuError::OutOfMemory { wanted: bytes as u64 };
        let layout = layout(bytes).ok_or_else(|| no_memory.clone())?;
        // SAFETY: the layout has at least one page.
        let at = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| no_memory.clone())?;
        let mut range = Range { at, bytes: layout.size(), layout: Some(layout), told: false };
        // SAFETY: it was just had, and stays until `give_back`.
        match unsafe { range.tell(live) } {
            Ok(()) => {}
            Err(error @ GpuError::Refused { .. }) => {
                if !std::mem::replace(&mut lock(table).warned, true) {
                    tracing::warn!(%error, "the driver pins no host memory: copies to and from the GPU are slower");
                }
            }
            Err(error) => {
                range.deallocate();
                return Err(if error.is_sticky() { error } else { no_memory });
            }
        }
        lock(table).ranges.insert(at.as_ptr().addr(), range);
        Ok(at)
    }

    /// Tells the driver of memory of somebody else's.
    ///
    /// # Safety
    /// It stays mapped until [`Self::give_back`].
    pub(super) unsafe fn register(
        table: &Mutex<Self>,
        live: &Live,
        at: NonNull<u8>,
        bytes: usize,
    ) -> Result<(), GpuError> {
        let mut range = Range { at, bytes, layout: None, told: false };
        // SAFETY: as the caller has it.
        unsafe { range.tell(live) }?;
        lock(table).ranges.insert(at.as_ptr().addr(), range);
        Ok(())
    }

    /// Ends what [`Self::pin`] or [`Self::register`] began.
    ///
    /// # Safety
    /// No copy of it is under way; of what was pinned, nobody uses it any more. `current` says truly whether a context is.
    pub(super) unsafe fn give_back(table: &Mutex<Self>, at: NonNull<u8>, current: bool) {
        let Some(range) = lock(table).ranges.remove(&at.as_ptr().addr()) else { return };
        // SAFETY: a context is current, and no copy is under way, as the caller has it.
        if !range.told || (current && unsafe { range.forget() }) {
            range.deallocate();
        } else {
            lock(table).held.push(range);
        }
    }

    /// Tells the driver of everything again: it has forgotten it with its context, or holds it for one that is no more.
    pub(super) fn revive(&mut self, live: &Live) {
        for range in self.held.drain(..) {
            // SAFETY: the context is new: no copy is under way.
            unsafe { range.forget() };
            range.deallocate();
        }
        for range in self.ranges.values_mut() {
            let was_told = range.told;
            if was_told {
                // SAFETY: as above.
                unsafe { range.forget() };
            }
            // SAFETY: each stays until `give_back`, which takes it out of the table.
            if let Err(error) = unsafe { range.tell(live) }
                && was_told
            {
                tracing::warn!(%error, bytes = range.bytes, "host memory is not pinned any more: copies of it are slower");
            }
        }
    }
}

impl Range {
    /// # Safety
    /// It stays mapped until it is unregistered.
    unsafe fn tell(&mut self, live: &Live) -> Result<(), GpuError> {
        self.told = false;
        live.make_current()?;
        // SAFETY: the context is current; the rest is as the caller has it.
        let told =
            unsafe { sys::cuMemHostRegister_v2(self.at.as_ptr().cast(), self.bytes, sys::CU_MEMHOSTREGISTER_PORTABLE) };
        // What it knows from before, it does not let go of by itself.
        self.told =
            matches!(told, sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        told.for_bytes("pinning host memory (cuMemHostRegister)", self.bytes as u64)
    }

    /// Whether the driver knows nothing of it any more.
    ///
    /// # Safety
    /// A context is current, and no copy of it is under way.
    unsafe fn forget(&self) -> bool {
        // SAFETY: as the caller has it. What the driver does not know it does not touch.
        let status = unsafe { sys::cuMemHostUnregister(self.at.as_ptr().cast()) };
        matches!(status, sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)
    }

    /// Gives it back to the system, if it is ours.
    fn deallocate(&self) {
        if let Some(layout) = self.layout {
            // SAFETY: it was had with this layout, and is out of the table: its owner gave it back, and nobody finds it again.
            unsafe { dealloc(self.at.as_ptr(), layout) };
        }
    }
}

fn layout(bytes: usize) -> Option<Layout> {
    let bytes = bytes.max(1).checked_next_multiple_of(PAGE)?;
    let align = if bytes >= LARGE_PAGE { LARGE_PAGE } else { PAGE };
    Layout::from_size_align(bytes, align).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_of_whole_pages_and_sizes_that_cannot_be_are_no_panic() {
        let of = |bytes| layout(bytes).map(|layout| (layout.size(), layout.align()));
        assert_eq!(of(0), Some((PAGE, PAGE)));
        assert_eq!(of(PAGE + 1), Some((2 * PAGE, PAGE)));
        assert_eq!(of(64 << 20), Some((64 << 20, LARGE_PAGE)));
        assert_eq!(of(usize::MAX), None);
        assert_eq!(of(isize::MAX as usize), None);
    }
}
