//! What is logged, line by line, and when.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use tracing::subscriber::{set_global_default, with_default};
use tracing_subscriber::fmt::MakeWriter;

/// A line, and when it was written.
pub type Line = (Instant, String);

/// What was logged so far.
#[derive(Clone, Debug, Default)]
pub struct Log {
    lines: Arc<Mutex<Vec<Line>>>,
}

impl Log {
    /// Of this work, as far as it is done on the caller's thread; and what comes of it.
    pub fn of<T>(work: impl FnOnce() -> T) -> (T, Vec<Line>) {
        let log = Self::default();
        let done = with_default(log.subscriber(), work);
        (done, log.lines())
    }

    /// Of the whole process, since the first who asked.
    ///
    /// # Panics
    /// If somebody else listens.
    pub fn of_this_process() -> Self {
        static WHOLE: OnceLock<Log> = OnceLock::new();
        let listen = || {
            let log = Self::default();
            set_global_default(log.subscriber()).expect("nobody else listens");
            log
        };
        WHOLE.get_or_init(listen).clone()
    }

    /// So far.
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn subscriber(&self) -> impl tracing::Subscriber + use<> {
        tracing_subscriber::fmt().with_ansi(false).with_writer(self.clone()).finish()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Each line is written as a whole.
impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), text));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
