//! How long threads that wait for a peer poll before they park, unless they are told.
//!
//! Waking a thread takes tens of microseconds. Where cores are few, polling pays for what is answered at once: a put, a look at a
//! tensor. Where there are cores to spare it is worth a decode step, too, which takes up to four milliseconds on a GPU. On either, whoever
//! usually waits for longer than the bound does not begin to; a server's lane that polls goes on up to four times the bound.

use std::sync::OnceLock;
use std::time::Duration;

/// Cores from which on one that polls is missed by nobody.
const MANY_CORES: usize = 8;
/// There: longer than a decode step.
const STEP: Duration = Duration::from_millis(5);

/// A client, for an answer.
pub(crate) fn client() -> Duration {
    either(Duration::from_micros(100))
}

/// A server's lane, for the next request of dense traffic.
pub(crate) fn server() -> Duration {
    either(Duration::from_micros(60))
}

fn either(short: Duration) -> Duration {
    static CORES: OnceLock<usize> = OnceLock::new();
    let cores = *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from));
    if cores >= MANY_CORES { STEP } else { short }
}
