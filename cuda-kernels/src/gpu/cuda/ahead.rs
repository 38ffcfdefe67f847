//! Kernels that are compiled before they are needed: a driver that meets them for the first time takes seconds for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::super::JIT_STACK_BYTES;
use super::Shared;
use crate::kernel::MODULES;

/// What most programs begin with, in this order; the others follow.
const FIRST: [&str; 10] = [
    "gather",
    "binary",
    "norm",
    "matvec",
    "attention_prefill_bf16",
    "attention_decode_bf16",
    "attention_prefill_f16",
    "attention_decode_f16",
    "attention_cache",
    "sample",
];

/// Threads that compile, at the most: whoever serves meanwhile needs some of the processor, too.
const MOST_THREADS: usize = 8;

/// Nothing more is to be compiled ahead.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// Threads that compile now.
static COMPILING: AtomicUsize = AtomicUsize::new(0);

/// Ends compiling ahead, for good. It waits for the modules that are being compiled, some seconds at the most: the driver keeps them for
/// the next start.
pub(super) fn stop_compiling() {
    /// A module takes a second or two; a driver that stands still is not waited for.
    const PATIENCE: Duration = Duration::from_secs(5);
    STOPPED.store(true, Ordering::SeqCst);
    let began = Instant::now();
    while COMPILING.load(Ordering::SeqCst) > 0 && began.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(1));
    }
}

/// A thread that compiles is counted while this lives.
struct Counted;

impl Counted {
    fn new() -> Self {
        COMPILING.fetch_add(1, Ordering::SeqCst);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COMPILING.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Kernels of a GPU that are being compiled ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Modules that are still to be tried.
    pending: AtomicUsize,
    /// Modules that the driver refused.
    refused: AtomicUsize,
}

impl Ahead {
    pub(super) fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }
}

/// Begins to compile all kernels: see [`Gpu::compile_ahead`].
///
/// [`Gpu::compile_ahead`]: super::super::Gpu::compile_ahead
pub(super) fn compile_ahead(shared: &Arc<Shared>) {
    let order: Arc<[usize]> = order().into();
    let (next, started) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    if shared.ahead.pending.compare_exchange(0, order.len(), Ordering::AcqRel, Ordering::Acquire).is_err() {
        return;
    }
    shared.ahead.refused.store(0, Ordering::Relaxed);
    let threads = thread::available_parallelism().map_or(1, |cores| cores.get() / 2).clamp(1, MOST_THREADS);
    let mut begun = 0;
    for _ in 0..threads {
        let (shared, order, next) = (Arc::downgrade(shared), order.clone(), next.clone());
        let counted = Counted::new();
        let compile = move || {
            let _counted = counted;
            while !STOPPED.load(Ordering::SeqCst)
                && let Some(shared) = shared.upgrade()
            {
                let Some(&module) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                compile(&shared, module, started);
            }
        };
        let thread = thread::Builder::new().name("genie-kernels".to_owned()).stack_size(JIT_STACK_BYTES);
        match thread.spawn(compile) {
            Ok(_) => begun += 1,
            Err(error) => tracing::debug!(%error, "no thread for compiling kernels: others do, or launches"),
        }
    }
    if begun == 0 {
        shared.ahead.pending.store(0, Ordering::Release);
    }
}

fn compile(shared: &Shared, module: usize, started: Instant) {
    let (name, device, ahead) = (MODULES[module].name, shared.properties.ordinal, &shared.ahead);
    match shared.with(|live| live.functions.get_all(module)) {
        Ok(()) => tracing::trace!(device, module = name, after = ?started.elapsed(), "kernels are ready"),
        Err(error) => {
            tracing::warn!(device, module = name, %error, "kernels could not be compiled ahead");
            ahead.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
    if ahead.pending.fetch_sub(1, Ordering::AcqRel) == 1 && ahead.refused.load(Ordering::Relaxed) == 0 {
        tracing::info!(device, took = ?started.elapsed(), "all kernels are ready");
    }
}

/// All modules, [`FIRST`] first.
fn order() -> Vec<usize> {
    let mut order: Vec<usize> = (0..MODULES.len()).collect();
    order.sort_by_key(|&module| FIRST.iter().position(|name| *name == MODULES[module].name).unwrap_or(FIRST.len()));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_has_its_turn_and_those_that_are_named_are_there() {
        let order = order();
        let names: Vec<&str> = order.iter().map(|&module| MODULES[module].name).collect();
        assert_eq!(names[..FIRST.len()], FIRST);
        let mut all = order.clone();
        all.sort_unstable();
        assert_eq!(all, (0..MODULES.len()).collect::<Vec<_>>());
    }
}
