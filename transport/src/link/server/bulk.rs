//! A bulk lane's task.

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Lane;
use crate::connection::{BulkMachine, Flushed, Service, Want};
use crate::link::StreamSink;

/// How long a lane that is never idle goes on before other tasks get a turn: a few slices. The thread that runs it may be the one that
/// would hear of other lanes' bytes, and no other thread listens meanwhile: small requests beside a put waited for as long as this.
const TURN: Duration = Duration::from_micros(150);

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
        let mut others = Instant::now() + TURN;
        loop {
            if lane.is_over() {
                return Ok("it was taken out".into());
            }
            let now = Instant::now();
            lane.poll(&*self.service, now);
            let mut moved = false;
            if let Want::Read { first, then } = lane.want() {
                match io.recv(first, then) {
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
                    others = Instant::now() + TURN;
                }
                continue;
            }
            let held = lane.is_held();
            if !held && all_sent && pace.poll_on() {
                self.stream.unwatch();
                continue;
            }
            self.stream.wait(!held, !all_sent, wake, lane.deadline(now)).await?;
        }
    }
}
