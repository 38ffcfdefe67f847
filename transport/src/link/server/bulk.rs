//! A bulk lane's task.

use std::io;
use std::time::Instant;

use tokio::sync::Notify;

use super::Lane;
use crate::connection::{BulkMachine, Flushed, Service, Want};
use crate::link::StreamSink;

/// Bytes that are read at once, at the most: memory that is touched for the first time is made meanwhile, at a few GB/s, and no other
/// task of this thread has a turn before.
const MOST: usize = 128 << 10;

impl<S: Service> Lane<S> {
    /// Drives the lane until it is over; why it is.
    pub(super) async fn bulk(&mut self, lane: &mut BulkMachine, wake: &Notify) -> String {
        match self.bulk_turns(lane, wake).await {
            Ok(why) => why,
            Err(error) => error.to_string(),
        }
    }

    async fn bulk_turns(&mut self, lane: &mut BulkMachine, wake: &Notify) -> io::Result<String> {
        let io = self.stream.io().clone();
        let mut sink = StreamSink(io.clone());
        let mut pace = self.pace(1);
        let mut others = Instant::now() + self.turns.bulk;
        loop {
            if lane.is_over() {
                return Ok("it was taken out".into());
            }
            let now = Instant::now();
            lane.poll(&*self.service, now);
            let mut moved = false;
            if let Want::Read { first, then } = lane.want() {
                let most_first = first.len().min(MOST);
                // With the end of a slice the head of the next, which has no part in this.
                let most_then = if most_first == first.len() { then.len() } else { 0 };
                match io.recv(&mut first[..most_first], &mut then[..most_then]) {
                    Ok(0) => return Ok("the client closed it".into()),
                    Ok(n) => {
                        moved = true;
                        lane.filled(n).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => lane.idle(),
                    Err(e) => return Err(e),
                }
            }
            let flushed = lane.flush(&mut sink, now)?;
            let all_sent = flushed == Flushed::All && (!io.has_unsent() || io.push()?);
            if let Some(why) = lane.overdue(now) {
                return Ok(why);
            }
            let more = flushed == Flushed::Turn;
            if moved || more {
                pace.arrived(now);
                if now >= others {
                    tokio::task::yield_now().await;
                    others = Instant::now() + self.turns.bulk;
                }
                continue;
            }
            let held = lane.is_held();
            if !held
                && all_sent
                && let (true, round) = pace.poll_on()
            {
                self.stream.unwatch();
                if round && self.turns.alone {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            self.stream.wait(!held, !all_sent, wake, lane.deadline(now)).await?;
        }
    }
}
