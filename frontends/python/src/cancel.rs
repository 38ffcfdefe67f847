//! What ends a call from outside: a signal, or whoever waits no more.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;

thread_local! {
    /// What ends the calls that this thread makes now.
    static ASKED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Ends what another thread is doing in [`Self::run`]: only the main thread has signals.
#[pyclass(frozen, module = "genie._native")]
pub(crate) struct Cancel {
    asked: Arc<AtomicBool>,
}

#[pymethods]
impl Cancel {
    #[new]
    fn new() -> Self {
        Self { asked: Arc::default() }
    }

    /// Does something that `set` ends.
    fn run<'py>(&self, work: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let outer = ASKED.replace(Some(self.asked.clone()));
        let done = work.call0();
        ASKED.replace(outer);
        done
    }

    fn set(&self) {
        self.asked.store(true, Ordering::Release);
    }
}

/// Looks for signals, and for whether this thread's call is still wanted.
pub(crate) fn check(py: Python<'_>) -> PyResult<()> {
    py.check_signals()?;
    if ASKED.with_borrow(|asked| asked.as_ref().is_some_and(|asked| asked.load(Ordering::Acquire))) {
        return Err(PyErr::from_value(py.import("asyncio")?.getattr("CancelledError")?.call0()?));
    }
    Ok(())
}
