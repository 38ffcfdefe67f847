//! The server's lanes: one task each, whatever the link.

mod bulk;
mod control;
mod listen;
mod pace;
mod remote;
mod turns;
mod watched;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;

pub use self::listen::{Listener, Refusal};
use self::pace::Pace;
use self::turns::Turns;
pub use self::turns::io_threads;
use self::watched::Watched;
use super::host::{BulkHost, Waiting};
use super::{Stream, StreamSink, Trespass};
use crate::auth::Refused;
use crate::connection::{BulkMachine, ControlLane, Directory, Driver, LaneEnd, Peer, Service, Step};

/// Serves a [`Service`] over any number of links.
pub struct Server<S: Service> {
    service: Arc<S>,
    directory: Arc<Directory>,
    /// Lanes that poll right now: never as many as there are cores.
    polling: Arc<AtomicUsize>,
    /// Lanes whose slices devices are moving right now.
    moving: Arc<AtomicUsize>,
    cores: usize,
}

impl<S: Service> Server<S> {
    /// A server of this service.
    pub fn new(service: Arc<S>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { service, directory: Arc::default(), polling: Arc::default(), moving: Arc::default(), cores }
    }

    /// The open connections.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    /// Accepts connections until the future is dropped. The lanes go on until their clients leave. May run for several
    /// listeners at once.
    pub async fn run(&self, mut listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(stream) => self.serve(stream),
                Err(error) => {
                    // Out of descriptors: those who wait are served when others leave.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Serves a lane that was accepted. Call within a tokio runtime.
    pub fn serve(&self, stream: Arc<dyn Stream>) {
        // At once: a lane that is one too many does not wait for a task of its own to find that out.
        let wake = Arc::new(Notify::new());
        let sink = Box::new(StreamSink(stream.clone()));
        let (service, directory) = (self.service.clone(), self.directory.clone());
        let Some(mut control) = ControlLane::new(service, directory, sink, wake.clone(), Instant::now()) else {
            return stream.end();
        };
        control.set_eager_most(stream.eager_bytes());
        let lane = Lane {
            service: self.service.clone(),
            polling: self.polling.clone(),
            moving: self.moving.clone(),
            // On one core a poll only takes time from the client; and those that share a thread wait for each other.
            most_polling: (self.cores / 2).min(Handle::current().metrics().num_workers()),
            turns: Turns::here(),
            stream: Watched::new(stream.clone()),
        };
        tokio::spawn(async move {
            match lane.run(control, wake).await {
                Ok(LaneEnd::Refused(error)) => tracing::info!(%error, "a connection was ended"),
                Ok(LaneEnd::Left) => {}
                Err(error) => tracing::debug!(%error, "a connection broke"),
            }
            stream.end();
        });
    }
}

/// A lane's task.
struct Lane<S: Service> {
    service: Arc<S>,
    polling: Arc<AtomicUsize>,
    moving: Arc<AtomicUsize>,
    most_polling: usize,
    turns: Turns,
    stream: Watched,
}

impl Driver for Notify {
    fn wake(&self) {
        self.notify_one();
    }
}

impl<S: Service> Lane<S> {
    async fn run(mut self, mut control: ControlLane<S>, wake: Arc<Notify>) -> std::io::Result<LaneEnd> {
        match self.control(&mut control, &wake).await {
            Ok(Step::Bulk(place)) => {
                // It counts as part of its connection from here on.
                drop(control);
                let wake = Arc::new(Notify::new());
                let (settings, now) = (self.service.settings(), Instant::now());
                let patience = settings.patience * 3;
                if let Some(remote) = self.stream.io().clone().remote(place.lane(), patience, now)? {
                    place.drive(wake.clone());
                    self.remote(place, remote, &wake).await;
                    return Ok(LaneEnd::Left);
                }
                if let Some(seat) = self.stream.io().host().map(BulkHost::seat).transpose()?.flatten() {
                    let driver = seat.driver();
                    let lane = BulkMachine::new(place, driver.clone(), settings, now);
                    let ended = seat.serve(self.stream.io().clone(), lane.served(self.service.clone()));
                    // Should this task be dropped, the lane ends.
                    let _waiting = Waiting(driver);
                    // A host that is gone has ended its lanes.
                    let _ = ended.await;
                    return Ok(LaneEnd::Left);
                }
                self.stream.unwatch();
                self.stream.io().begin_bulk();
                let mut lane = BulkMachine::new(place, wake.clone(), settings, now);
                let why = self.bulk(&mut lane, &wake).await;
                lane.end(&*self.service, &why, Instant::now());
                Ok(LaneEnd::Left)
            }
            Ok(Step::End(end)) => {
                control.closed(Instant::now());
                Ok(end)
            }
            Ok(Step::Continue) => Ok(LaneEnd::Left),
            Err(error) => {
                if let Some(peer) = control.peer().filter(|_| Trespass::is(&error)) {
                    self.trespassed(peer);
                }
                control.closed(Instant::now());
                Err(error)
            }
        }
    }

    /// The client's device was refused memory: its session ends, and its connection.
    fn trespassed(&self, peer: &Arc<Peer>) {
        let (service, now) = (&self.service, Instant::now());
        service.trespassed(peer, now);
        let (channel, name) = (self.stream.io().channel(), peer.identity().name());
        let told = service.settings().guard.refuse(Refused::Memory, &channel, name, &Trespass.to_string(), now);
        peer.goodbye(told);
    }

    /// Whether there are so few cores that who polls may take one from what moves the bytes: of soft-RoCE that is the kernel, for both
    /// ends. Puts of 64 KiB there, on two cores: 23 to 30 MiB/s where the server polled, 39 where it slept.
    fn cores_are_short(&self) -> bool {
        self.most_polling < 2
    }

    /// `patience`: how many times longer than usual it polls.
    fn pace(&self, patience: u32) -> Pace {
        Pace::new(self.service.settings().spin * patience, self.polling.clone(), self.most_polling)
    }
}
