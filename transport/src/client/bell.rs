//! Ending another thread's wait.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::link::wait::{Alarm, Interest};

/// Ends a [`super::blocking::Session::wait_any_or`] from another thread, so that several threads can use one blocking session in
/// turns: one waits for all, and whoever wants to ask for something rings.
///
/// Stays rung until [`Self::hush`]: a wait that begins later ends at once.
#[derive(Debug)]
pub struct Bell {
    rung: AtomicBool,
    alarm: Alarm,
}

impl Bell {
    /// A quiet one.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { rung: AtomicBool::new(false), alarm: Alarm::new()? })
    }

    /// Ends the wait.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.alarm.ring();
        }
    }

    /// Makes it quiet again.
    pub fn hush(&self) {
        self.rung.store(false, Ordering::Release);
    }

    pub(super) fn is_rung(&self) -> bool {
        self.rung.load(Ordering::Acquire)
    }

    pub(super) fn interest(&self) -> Interest {
        self.alarm.interest()
    }

    /// A wait has been woken, and looks at [`Self::is_rung`] next. What rings from here on wakes it again.
    pub(super) fn heard(&self) {
        self.alarm.hush();
    }
}
