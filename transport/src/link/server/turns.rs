//! Threads for lanes, and for how long one lane has a thread before the others.

use std::time::Duration;

use tokio::runtime::Handle;

/// How long a lane that is never idle goes on before other tasks get a turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns {
    pub(super) control: Duration,
    pub(super) bulk: Duration,
    /// Nobody hears of other lanes' bytes while one has the thread.
    pub(super) alone: bool,
}

/// To give a turn wakes another of the runtime's threads, to look for work: that costs as much as forty small requests.
const AMONG_THREADS: Turns =
    Turns { control: Duration::from_micros(400), bulk: Duration::from_micros(150), alone: false };

/// Nobody is woken, and nobody else would hear of what others wait for: small requests beside a put wait for as long as this.
const ON_ONE_THREAD: Turns =
    Turns { control: Duration::from_micros(100), bulk: Duration::from_micros(50), alone: true };

impl Turns {
    /// For the runtime that this is called within.
    pub(super) fn here() -> Self {
        if Handle::current().metrics().num_workers() > 1 { AMONG_THREADS } else { ON_ONE_THREAD }
    }
}

/// Threads that a server's runtime best has for its lanes: one core is left to what else must run, the device's threads or a client on
/// the same host. Where all cores are taken, a thread that wakes for a small request waits for the scheduler's next tick.
pub fn io_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).max(1)
}
