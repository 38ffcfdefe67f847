//! The server above its connections.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use genie_cuda_kernels::gpu::JIT_STACK_BYTES;
use genie_transport::connection::{Noted, Peer, Service, Settings};
use genie_transport::wire::Request;

use crate::config::{Config, Mode};
use crate::core::Core;
use crate::scheduler::{run_device, shutting_down, step};
use crate::stats::add;

/// Sessions, residents, programs and devices, behind the requests of any number of connections.
///
/// It reads no clock that matters (callers say what time it is), opens no socket, and in [`Mode::Inline`] has no threads. Calls
/// may come from any thread; those of one connection in order. Whoever drives it calls [`Self::tick`] now and then.
pub struct Executor {
    core: Arc<Core>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No device, or more than handles can name.
    #[error("{0} devices: a server needs 1 to 65535")]
    Devices(usize),
    /// The operating system refused a thread.
    #[error("a device's thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

impl Executor {
    /// A server with these settings. In [`Mode::Threads`] each device's thread starts now.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let count = config.devices.len();
        let Some(devices) = u16::try_from(count).ok().filter(|&n| n > 0) else {
            return Err(StartError::Devices(count));
        };
        let threads = config.mode == Mode::Threads;
        let executor = Self { core: Core::new(config), workers: Mutex::default() };
        for device in (0..devices).filter(|_| threads) {
            let core = executor.core.clone();
            let worker = std::thread::Builder::new().name(format!("device-{device}")).stack_size(JIT_STACK_BYTES);
            let worker = worker.spawn(move || run_device(&core, device))?;
            executor.workers().push(worker);
        }
        Ok(executor)
    }

    /// Ends sessions whose lease has run out, and lets go of uploads that nobody has come back for. To be called about once a
    /// second.
    pub fn tick(&self, now: Instant) {
        self.core.tick(now);
        self.core.drain();
    }

    /// Does one thing that waits for a device (a batch, or a piece of bulk work) on the caller's thread; whether there was any.
    /// For [`Mode::Stepped`].
    pub fn step(&self) -> bool {
        (0..self.core.device_count()).any(|device| step(&self.core, device))
    }

    /// Ends the server: what runs comes to its end, what waits is told that the server is shutting down, and so is every
    /// session. Returns when no thread is left.
    pub fn shutdown(&self) {
        if self.core.close() {
            let workers = std::mem::take(&mut *self.workers());
            for worker in workers {
                // A worker that panicked has nothing more to end.
                let _ = worker.join();
            }
            for session in self.core.registry.all() {
                let peer = session.lock().peer.clone();
                if let Some(peer) = peer {
                    peer.goodbye(shutting_down());
                }
            }
        }
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for Executor {
    fn settings(&self) -> &Settings {
        &self.core.config.settings
    }

    fn request(&self, peer: &Arc<Peer>, id: u64, request: Request<'_>, now: Instant) {
        self.core.request(peer, id, request, now);
        self.core.drain();
    }

    fn cancel(&self, peer: &Arc<Peer>, id: u64, _now: Instant) {
        self.core.cancel(peer, id);
        self.core.drain();
    }

    fn landed(&self, peer: &Arc<Peer>, transfer: u64, _now: Instant) {
        self.core.landed(peer, transfer);
        self.core.drain();
    }

    fn refused(&self, peer: &Arc<Peer>, transfer: u64, _now: Instant) {
        self.core.refused(peer, transfer);
        self.core.drain();
    }

    fn trespassed(&self, peer: &Arc<Peer>, _now: Instant) {
        if let Some(session) = self.core.registry.of(peer) {
            self.core.end_session(&session);
        }
    }

    fn noted(&self, what: Noted) {
        match what {
            Noted::SliceCorrupted => add(&self.core.stats.slices_corrupted, 1),
            Noted::LaneLost => add(&self.core.stats.lanes_lost, 1),
            _ => {}
        }
    }

    fn closed(&self, peer: &Arc<Peer>, now: Instant) {
        self.core.closed(peer, now);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("config", &self.core.config).finish_non_exhaustive()
    }
}
