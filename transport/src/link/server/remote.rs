//! The task of a bulk lane whose slices devices move.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::{Lane, TURN};
use crate::connection::{Peer, Service};
use crate::link::RemoteBulk;
use crate::wire::{ErrorCode, RemoteError};

impl<S: Service> Lane<S> {
    pub(super) async fn remote(
        &mut self,
        peer: &Arc<Peer>,
        mut remote: Box<dyn RemoteBulk>,
        wake: &Notify,
    ) -> io::Result<()> {
        let patience = self.service.settings().patience;
        let mut events = Vec::new();
        let mut pace = self.pace();
        let mut turn = 0;
        loop {
            if peer.is_closed() {
                return Ok(());
            }
            let now = Instant::now();
            let moved = remote.turn(peer, &mut events, now).inspect_err(|error| {
                // Broken by the peer's own doing, or by its network: who can still hear is told.
                let code = match error.kind() {
                    io::ErrorKind::TimedOut => ErrorCode::TimedOut,
                    io::ErrorKind::InvalidData => ErrorCode::Malformed,
                    io::ErrorKind::OutOfMemory => ErrorCode::OutOfMemory,
                    _ => return,
                };
                peer.goodbye(RemoteError::new(code, error.to_string()));
            })?;
            for event in events.drain(..) {
                peer.bulk_event(&*self.service, &event, now);
            }
            if moved {
                pace.arrived(now);
                turn += 1;
                if turn % TURN == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            if pace.poll_on() {
                self.stream.unwatch();
                continue;
            }
            self.stream.wait(true, false, wake, remote.deadline().unwrap_or(now + patience)).await?;
        }
    }
}
