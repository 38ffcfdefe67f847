//! Progress of what takes longer than a second, on a terminal only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How long something may take without a word.
const QUIET: Duration = Duration::from_secs(1);

/// A bar that appears after a second.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    began: Instant,
    shown: bool,
}

impl Progress {
    /// Bytes that move or are worked through.
    pub(crate) fn bytes(what: &'static str) -> Self {
        Self::new(what, "{msg:20} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
    }

    /// Steps of something.
    pub(crate) fn steps(what: &'static str, total: u64) -> Self {
        let progress = Self::new(what, "{msg:20} {wide_bar} {pos}/{len} {elapsed} {eta}");
        progress.bar.set_length(total);
        progress
    }

    fn new(what: &'static str, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar, began: Instant::now(), shown: false }
    }

    /// So much is done.
    pub(crate) fn set(&mut self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
        self.show();
    }

    /// Another step is done.
    pub(crate) fn step(&mut self) {
        self.bar.inc(1);
        self.show();
    }

    /// What is being done now.
    pub(crate) fn say(&mut self, what: String) {
        self.bar.set_message(what);
        self.show();
    }

    fn show(&mut self) {
        if !self.shown && self.began.elapsed() >= QUIET {
            self.shown = true;
            // Hides itself where standard error is not a terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

/// How often a watched transfer is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Does `work` while another thread shows how far it is: `moved` of `total`.
pub(crate) fn watched<T>(
    mut progress: Progress,
    total: u64,
    moved: impl Fn() -> u64 + Sync,
    work: impl FnOnce() -> T,
) -> T {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !ended.load(Ordering::Acquire) {
                std::thread::park_timeout(LOOK);
                progress.set(moved().min(total), total);
            }
        });
        let result = work();
        ended.store(true, Ordering::Release);
        watcher.thread().unpark();
        result
    })
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
