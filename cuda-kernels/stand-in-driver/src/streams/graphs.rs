//! Graphs: what was recorded, and the same made ready.

use std::sync::Arc;

use cudarc::driver::sys::{CUgraph, CUgraphExec, CUresult, CUstream};

use super::Op;
use crate::state::{Id, give, handle, id, in_context};

/// A graph that can be replayed.
pub(crate) struct Executable {
    pub(crate) context: Id,
    ops: Arc<[Op]>,
}

/// # Safety
/// What is written to can be written.
#[unsafe(export_name = "cuGraphInstantiateWithFlags")]
unsafe extern "C" fn instantiate(ready: *mut CUgraphExec, graph: CUgraph, flags: u64) -> CUresult {
    in_context("cuGraphInstantiateWithFlags", |driver, context| {
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        let ops = driver.graphs.get(&id(graph)).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
        let executable = Executable { context, ops: ops.as_slice().into() };
        let new = driver.new_id();
        driver.executables.insert(new, executable);
        // SAFETY: as the caller has it.
        unsafe { give(ready, handle(new)) }
    })
}

#[unsafe(export_name = "cuGraphDestroy")]
extern "C" fn destroy(graph: CUgraph) -> CUresult {
    in_context("cuGraphDestroy", |driver, _| {
        driver.graphs.remove(&id(graph)).map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    })
}

#[unsafe(export_name = "cuGraphExecDestroy")]
extern "C" fn executable_destroy(ready: CUgraphExec) -> CUresult {
    in_context("cuGraphExecDestroy", |driver, _| {
        // What of it waits in streams is done all the same.
        driver.executables.remove(&id(ready)).map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
    })
}

#[unsafe(export_name = "cuGraphLaunch")]
extern "C" fn launch(ready: CUgraphExec, stream: CUstream) -> CUresult {
    in_context("cuGraphLaunch", |driver, context| {
        let stream = driver.stream_of(context, stream)?;
        let executable = driver.executables.get(&id(ready)).filter(|executable| executable.context == context);
        let ops = executable.ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?.ops.clone();
        driver.put(stream, Op::Replay(ops))
    })
}
