//! Recording what a thread puts into [`super::Stream::Compute`], as a graph.
//!
//! A thread that records has a stream of its own for it: the driver's capture takes in whatever is put into a stream, and other
//! threads put things into the usual one meanwhile.

use std::cell::Cell;
use std::ptr::null_mut;

use cudarc::driver::sys;

use super::super::GpuError;
use super::live::{GraphHandle, Live};
use super::status::During;

thread_local! {
    /// The [`Live`] and the stream that this thread records into.
    static RECORDING: Cell<Option<(u64, sys::CUstream)>> = const { Cell::new(None) };
}

/// The stream that this thread records into on this [`Live`].
pub(super) fn of_this_thread(live: u64) -> Option<sys::CUstream> {
    RECORDING.get().filter(|(id, _)| *id == live).map(|(_, stream)| stream)
}

/// A recording of this thread's under way. [`Recording::finish`] or [`Recording::discard`] ends it; it is only dropped where its context
/// is no more.
pub(super) struct Recording {
    live: u64,
    stream: sys::CUstream,
}

impl Recording {
    /// Begins one.
    pub(super) fn begin(live: &Live) -> Result<Self, GpuError> {
        if RECORDING.get().is_some() {
            let reason = "this thread records already".to_owned();
            return Err(GpuError::Refused { during: "recording a graph", reason });
        }
        let mut stream = null_mut();
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; a stream is written.
        unsafe { sys::cuStreamCreate(&mut stream, flags) }.during("making a stream to record into")?;
        // Of this thread, calls that a recording cannot hold are refused; of others, nothing.
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is live, and nobody else has it.
        let begun = unsafe { sys::cuStreamBeginCapture_v2(stream, mode) }.during("recording a graph");
        if let Err(error) = begun {
            // SAFETY: as above.
            let _ = unsafe { sys::cuStreamDestroy_v2(stream) };
            return Err(error);
        }
        RECORDING.set(Some((live.id, stream)));
        Ok(Self { live: live.id, stream })
    }

    /// Ends it, and makes what was recorded ready to be replayed. Also in a context that broke: the thread must not go on recording.
    pub(super) fn finish(self, live: &Live) -> Result<GraphHandle, GpuError> {
        let graph = self.end(live)?;
        let mut ready = null_mut();
        // SAFETY: the graph was just recorded, and nobody else has it.
        let made = unsafe { sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0) }.during("making a graph ready");
        // SAFETY: as above. What was made ready keeps nothing of it.
        let _ = unsafe { sys::cuGraphDestroy(graph) };
        made.map(|()| GraphHandle(ready))
    }

    /// Ends it, and forgets what was recorded.
    pub(super) fn discard(self, live: &Live) {
        if let Ok(graph) = self.end(live) {
            // SAFETY: it was just recorded, and nobody else has it.
            let _ = unsafe { sys::cuGraphDestroy(graph) };
        }
    }

    fn end(self, live: &Live) -> Result<sys::CUgraph, GpuError> {
        if self.live != live.id {
            let reason = "the GPU was revived meanwhile".to_owned();
            return Err(GpuError::Refused { during: "recording a graph", reason });
        }
        // What was recorded may have used another GPU meanwhile.
        live.make_current()?;
        let mut graph = null_mut();
        // SAFETY: the stream is live: it ends with its context, which is still the same.
        let ended = unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) }.during("recording a graph");
        // SAFETY: as above; nobody else has it, and it records no more.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.stream) };
        ended.map(|()| graph)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.set(None);
    }
}

/// While it lives, this thread may make calls that the driver forbids to one that records: for what has nothing to do with the
/// recording, as compiling a kernel that is recorded for the first time.
pub(super) struct Unrestricted(sys::CUstreamCaptureMode);

impl Unrestricted {
    pub(super) fn new() -> Self {
        Self(exchange(sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED))
    }
}

impl Drop for Unrestricted {
    fn drop(&mut self) {
        exchange(self.0);
    }
}

fn exchange(mut mode: sys::CUstreamCaptureMode) -> sys::CUstreamCaptureMode {
    // SAFETY: the driver is loaded: there is a `Live`. It replaces one mode by another, both of which are in the enumeration.
    let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) };
    mode
}
