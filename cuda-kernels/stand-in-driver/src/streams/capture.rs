//! Recording what is put into a stream, and what must not be done meanwhile.
//!
//! For unsafe are taken: waiting for a context, a stream or an event, or asking for them; freeing memory at once; making,
//! trimming and destroying pools; loading and unloading modules and functions; registering host memory.

use std::cell::Cell;
use std::ffi::c_int;
use std::thread::{self, ThreadId};

use cudarc::driver::sys::{CUgraph, CUresult, CUstream};

use super::Op;
use crate::state::{Answer, Driver, Id, give, handle, in_context, started, valid};

/// `CU_STREAM_CAPTURE_MODE_GLOBAL`.
const GLOBAL: c_int = 0;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_int = 2;

thread_local! {
    /// What this thread is not to do while others, or itself, record.
    static MODE: Cell<c_int> = const { Cell::new(GLOBAL) };
}

/// What a stream records.
pub(super) struct Recording {
    mode: c_int,
    thread: ThreadId,
    ops: Vec<Op>,
    /// Something was done that cannot be recorded.
    invalid: bool,
}

impl Recording {
    pub(super) fn add(&mut self, op: Op) -> Answer {
        if self.invalid {
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        self.ops.push(op);
        Ok(())
    }
}

/// Refuses a call that the driver calls unsafe, where something is recorded that forbids it to this thread.
pub(crate) fn unsafe_call(driver: &mut Driver) -> Answer {
    let (mode, me) = (MODE.get(), thread::current().id());
    let mut refused = false;
    for recording in driver.streams.all.values_mut().filter_map(|stream| stream.recording.as_mut()) {
        let mine = recording.thread == me && recording.mode != RELAXED;
        let everybodys = mode == GLOBAL && recording.mode == GLOBAL;
        if mode != RELAXED && (mine || everybodys) {
            recording.invalid = true;
            refused = true;
        }
    }
    if refused { Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
}

/// Refuses what cannot be done with a stream that records, whatever the mode.
pub(crate) fn never(driver: &mut Driver, stream: Id) -> Answer {
    invalidate(driver, stream, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
}

/// Refuses to make a recording wait for what is outside of it.
pub(super) fn isolated(driver: &mut Driver, stream: Id) -> Answer {
    invalidate(driver, stream, CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION)
}

fn invalidate(driver: &mut Driver, stream: Id, error: CUresult) -> Answer {
    match driver.streams.all.get_mut(&stream).and_then(|stream| stream.recording.as_mut()) {
        Some(recording) => {
            recording.invalid = true;
            Err(error)
        }
        None => Ok(()),
    }
}

/// # Safety
/// Here, and for every function below: what is written to can be written.
#[unsafe(export_name = "cuThreadExchangeStreamCaptureMode")]
unsafe extern "C" fn exchange(mode: *mut c_int) -> CUresult {
    started("cuThreadExchangeStreamCaptureMode", |_| {
        // SAFETY: as the caller has it.
        let wanted = unsafe { mode.as_mut() }.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        valid((GLOBAL..=RELAXED).contains(wanted))?;
        *wanted = MODE.replace(*wanted);
        Ok(())
    })
}

#[unsafe(export_name = "cuStreamBeginCapture_v2")]
extern "C" fn begin(stream: CUstream, mode: c_int) -> CUresult {
    in_context("cuStreamBeginCapture_v2", |driver, context| {
        valid((GLOBAL..=RELAXED).contains(&mode))?;
        let stream = driver.stream_of(context, stream)?;
        let stream = driver.streams.all.get_mut(&stream).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        if stream.recording.is_some() {
            return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE);
        }
        let thread = thread::current().id();
        stream.recording = Some(Recording { mode, thread, ops: Vec::new(), invalid: false });
        Ok(())
    })
}

/// # Safety
/// As above.
#[unsafe(export_name = "cuStreamEndCapture")]
unsafe extern "C" fn end(stream: CUstream, graph: *mut CUgraph) -> CUresult {
    in_context("cuStreamEndCapture", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        let stream = driver.streams.all.get_mut(&stream).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        let recording = stream.recording.take().ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
        if recording.mode != RELAXED && recording.thread != thread::current().id() {
            stream.recording = Some(recording);
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        }
        if recording.invalid {
            // SAFETY: as the caller has it.
            unsafe { give(graph, std::ptr::null_mut()) }?;
            return Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        }
        let new = driver.new_id();
        driver.graphs.insert(new, recording.ops);
        // SAFETY: as the caller has it.
        unsafe { give(graph, handle(new)) }
    })
}
