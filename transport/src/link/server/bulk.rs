//! A bulk lane's task.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::{Lane, TURN};
use crate::connection::{BulkIn, BulkLane, Peer, Service, Want};
use crate::link::StreamSink;
use crate::wire::{ErrorCode, RemoteError};

impl<S: Service> Lane<S> {
    pub(super) async fn bulk(&mut self, peer: &Arc<Peer>, wake: &Notify) -> io::Result<()> {
        let io = self.stream.io().clone();
        let mut sink = StreamSink(io.clone());
        let (mut input, mut output) = (BulkIn::new(true), BulkLane::default());
        let settings = self.service.settings();
        let (patience, silence) = (settings.patience, settings.silence());
        // A slice, and what is to be sent, have their time: whoever dribbles holds up others that send the same.
        let (mut slice, mut slice_began) = (0, Instant::now());
        let (mut sent, mut sent_at) = (0, Instant::now());
        let mut pace = self.pace();
        let mut turn = 0;
        loop {
            if peer.is_closed() {
                return Ok(());
            }
            let now = Instant::now();
            while let Some(event) = input.poll(peer.landings(), now) {
                peer.bulk_event(&*self.service, &event, now);
            }
            let mut moved = false;
            let mut held = false;
            match input.want() {
                Want::Hold => held = true,
                Want::Read { first, then } => match io.recv(first, then) {
                    Ok(0) => return Ok(()),
                    Ok(n) => {
                        moved = true;
                        input.filled(n).map_err(|e| {
                            peer.goodbye(e.clone().into());
                            io::Error::new(io::ErrorKind::InvalidData, e)
                        })?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                },
            }
            let sending = output.is_sending() || !peer.bulk().is_empty();
            let all_sent = (!sending || output.flush(peer.bulk(), &mut sink)?) && (!io.has_unsent() || io.push()?);
            if all_sent || output.sent() != sent {
                (sent, sent_at) = (output.sent(), now);
                if sending {
                    peer.moved_on();
                }
            }
            if held || input.begun() != slice {
                (slice, slice_began) = (input.begun(), now);
            }
            turn += 1;
            if moved {
                pace.arrived(now);
                if turn % TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let slow = if input.in_slice() && slice_began + patience * 3 < now {
                Some(("a slice took longer", patience * 3))
            } else if !all_sent && sent_at + silence < now {
                Some(("nothing was read of what was asked for for longer", silence))
            } else {
                None
            };
            if let Some((what, than)) = slow {
                let message = format!("{what} than {} s: look at the network", than.as_secs_f32());
                peer.goodbye(RemoteError::new(ErrorCode::TimedOut, message));
                return Ok(());
            }
            if moved {
                continue;
            }
            if !held && all_sent && pace.poll_on() {
                self.stream.unwatch();
                continue;
            }
            self.stream.wait(!held, !all_sent, wake, input.deadline().unwrap_or(now + patience)).await?;
        }
    }
}
