//! What a server is told when it starts.

use std::sync::Arc;
use std::time::Duration;

use genie_transport::connection::Settings;

use crate::device::Device;
use crate::device::cpu::host_memory;

/// Where device work happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// On a thread of its own for each device: requests never wait for it.
    #[default]
    Threads,
    /// Within the call that brought the work, to its end: everything is deterministic, nothing is concurrent.
    Inline,
    /// Only when [`crate::Executor::step`] is called: tests decide what is queued together.
    Stepped,
}

/// Settings of an [`crate::Executor`].
#[derive(Clone)]
pub struct Config {
    /// The devices; a device's index is its place here.
    pub devices: Vec<Arc<dyn Device>>,
    /// Where device work happens.
    pub mode: Mode,
    /// What connections are told; its epoch is that of all handles.
    pub settings: Settings,
    /// Bytes that a session may hold if it does not say.
    pub default_quota: u64,
    /// The most that it may ask for.
    pub max_quota: u64,
    /// How long a session outlives its connection if it does not say.
    pub default_lease: Duration,
    /// The most that it may ask for.
    pub max_lease: Duration,
    /// Sessions at a time.
    pub max_sessions: usize,
    /// Handles of one session at a time.
    pub max_handles: usize,
    /// Programs that the server holds at a time.
    pub max_programs: usize,
    /// Bytes of all named tensors.
    pub names_quota: u64,
    /// Bytes of the host's memory, pinned where a device offers that, that hold weights which devices with memory of their own had no
    /// room for; 0: such weights are gone when they are evicted.
    pub evicted_bytes: u64,
    /// Bytes of lists of weights that were offered, so that the next client can name them all by one hash; an eighth for each owner. 0:
    /// every client names them one by one.
    pub sets_bytes: u64,
    /// Bytes of replies that one session's window keeps (the last reply is kept whatever its size).
    pub window_bytes: usize,
    /// Bytes of replies that all windows together keep: past it, each keeps no more than its even share (and its last reply).
    pub replies_bytes: u64,
    /// Decode steps of different sessions that run as one batch, at the most.
    pub max_batch: usize,
    /// Prompt tokens that one prefill run takes at the most while others decode: a longer prompt is run in pieces, with decode steps
    /// of others between them.
    pub prefill_tokens: usize,
    /// The same where nobody else decodes: as many as take a tenth of a second, and no more than this. So how a prompt is cut depends
    /// on time, and with it, on a GPU, the last bits of what it comes to.
    pub prefill_tokens_alone: usize,
    /// Tokens are drawn from this seed instead of the system's generator: for tests that must be repeatable, never for a
    /// server that strangers can reach.
    pub token_seed: Option<u64>,
}

impl Config {
    /// The defaults, for these devices in this life of the server.
    pub fn new(devices: Vec<Arc<dyn Device>>, epoch: u64) -> Self {
        let memory = devices.iter().map(|d| d.info().total_bytes).fold(0, u64::saturating_add);
        Self {
            devices,
            mode: Mode::default(),
            settings: Settings::new(epoch),
            default_quota: memory,
            max_quota: memory,
            default_lease: Duration::from_secs(60),
            max_lease: Duration::from_secs(3600),
            max_sessions: 16_384,
            max_handles: 1 << 18,
            max_programs: 1024,
            names_quota: memory,
            evicted_bytes: host_memory() / 4,
            sets_bytes: 16 << 20,
            window_bytes: 32 << 20,
            replies_bytes: 1 << 30,
            max_batch: 16,
            prefill_tokens: 512,
            prefill_tokens_alone: 2048,
            token_seed: None,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("devices", &self.devices.len())
            .field("mode", &self.mode)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
