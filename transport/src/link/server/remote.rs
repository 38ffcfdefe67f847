//! The task of a bulk lane whose slices devices move.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use super::Lane;
use crate::connection::{LaneSeat, Service};
use crate::link::{LULL, RemoteBulk, Trespass};
use crate::wire::{ErrorCode, RemoteError};

impl<S: Service> Lane<S> {
    pub(super) async fn remote(&mut self, seat: LaneSeat, mut remote: Box<dyn RemoteBulk>, wake: &Notify) {
        let why = match self.remote_turns(&seat, &mut *remote, wake).await {
            Ok(why) => why.to_owned(),
            Err(error) => error.to_string(),
        };
        // The device is done with all memory before the client hears that the lane is over. It takes its time, and other lanes may
        // have this thread alone.
        let _ = tokio::task::spawn_blocking(move || drop(remote)).await;
        seat.ends(&*self.service, &why);
    }

    async fn remote_turns(
        &mut self,
        seat: &LaneSeat,
        remote: &mut dyn RemoteBulk,
        wake: &Notify,
    ) -> io::Result<&'static str> {
        let patience = self.service.settings().patience;
        let peer = seat.peer();
        let mut events = Vec::new();
        let mut pace = self.pace(u32::from(!self.cores_are_short()));
        let mut moving = Moving::new(self.moving.clone());
        let mut others = Instant::now() + self.turns.bulk;
        loop {
            if seat.is_over() {
                return Ok("it was taken out");
            }
            let now = Instant::now();
            let moved = remote.turn(peer, &mut events, now);
            moving.say(remote.is_moving(now));
            // What came before the lane broke counts.
            for event in events.drain(..) {
                peer.bulk_event(&*self.service, &event, now);
            }
            let moved = moved.inspect_err(|error| {
                if Trespass::is(error) {
                    return self.trespassed(peer);
                }
                // Broken by the peer's own doing: it is told.
                let code = match error.kind() {
                    io::ErrorKind::InvalidData => ErrorCode::Malformed,
                    io::ErrorKind::OutOfMemory => ErrorCode::OutOfMemory,
                    _ => return,
                };
                peer.goodbye(RemoteError::new(code, error.to_string()));
            })?;
            if moved {
                pace.arrived(now);
                if now >= others {
                    tokio::task::yield_now().await;
                    others = Instant::now() + self.turns.bulk;
                }
                continue;
            }
            if let (true, round) = pace.poll_on() {
                self.stream.unwatch();
                if round && self.turns.alone {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            let deadline = remote.deadline().unwrap_or(now + patience);
            // One that stands still counts no longer, even if nothing wakes it.
            let deadline = if moving.counted { deadline.min(now + LULL) } else { deadline };
            self.stream.wait(true, false, wake, deadline).await?;
        }
    }
}

/// Counts a lane among those whose slices are being moved.
struct Moving {
    all: Arc<AtomicUsize>,
    counted: bool,
}

impl Moving {
    fn new(all: Arc<AtomicUsize>) -> Self {
        Self { all, counted: false }
    }

    fn say(&mut self, moving: bool) {
        if std::mem::replace(&mut self.counted, moving) != moving {
            if moving {
                self.all.fetch_add(1, Ordering::AcqRel);
            } else {
                self.all.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.say(false);
    }
}
