//! A control lane's task.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Lane, TURN};
use crate::connection::{ControlLane, LaneEnd, Peer, Service, Step};

/// How long a client may take to read why its connection ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl<S: Service> Lane<S> {
    pub(super) async fn control(&mut self, lane: &mut ControlLane<S>, wake: &Notify) -> io::Result<Step> {
        let mut pace = self.pace();
        let mut turn = 0;
        loop {
            let held = lane.is_held();
            let got = match (held, lane.has_pending()) {
                (true, _) => Err(io::ErrorKind::WouldBlock.into()),
                (false, true) => Ok(None),
                (false, false) => self.stream.io().recv(lane.space(), &mut []).map(Some),
            };
            match got {
                Ok(Some(0)) => return Ok(Step::End(LaneEnd::Left)),
                Ok(n) => {
                    let now = Instant::now();
                    pace.arrived(now);
                    let mut step = lane.filled(n.unwrap_or(0), now);
                    turn += 1;
                    if turn % TURN == 0 {
                        // A lane that never falls idle is held to its times, and gets rid of its replies, all the same.
                        if let (Step::Continue, true) = (&step, now >= lane.deadline()) {
                            step = lane.timeout(now);
                        }
                        if let Some(peer) = lane.peer() {
                            peer.flush()?;
                        }
                        tokio::task::yield_now().await;
                    }
                    match step {
                        Step::Continue => {}
                        Step::Bulk(..) => return Ok(step),
                        Step::End(_) => {
                            self.drain_out(lane).await;
                            return Ok(step);
                        }
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let closed = lane.peer().is_some_and(|p| p.is_closed());
                    if closed {
                        self.drain_out(lane).await;
                        return Ok(Step::End(LaneEnd::Left));
                    }
                    if pace.poll_on() {
                        self.stream.unwatch();
                        continue;
                    }
                    self.park(lane, wake, held).await?;
                    if Instant::now() >= lane.deadline()
                        && let step @ (Step::End(_) | Step::Bulk(..)) = lane.timeout(Instant::now())
                    {
                        self.drain_out(lane).await;
                        return Ok(step);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits until there may be something to read, something to write, or a deadline to keep.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "a shared reference to a lane is not Send, and the future must be"
    )]
    async fn park(&mut self, lane: &mut ControlLane<S>, wake: &Notify, held: bool) -> io::Result<()> {
        let writing = match lane.peer() {
            Some(peer) if peer.backlog() > 0 => !peer.flush()?,
            _ => false,
        };
        let unsent = self.stream.io().has_unsent() && !self.stream.io().push()?;
        let deadline = lane.deadline();
        self.stream.wait(!held, writing || unsent, wake, deadline).await
    }

    /// The connection ends, and what it held is let go of; then the last words go out, if the client takes them soon.
    async fn drain_out(&mut self, lane: &mut ControlLane<S>) {
        let peer: Option<Arc<Peer>> = lane.peer().cloned();
        lane.closed(Instant::now());
        let until = Instant::now() + LAST_WORDS;
        let never = Notify::new();
        let io = self.stream.io().clone();
        loop {
            let all = peer.as_ref().is_none_or(|peer| peer.flush().unwrap_or(true)) && io.push().unwrap_or(true);
            if all || Instant::now() >= until || self.stream.wait(false, true, &never, until).await.is_err() {
                break;
            }
        }
        io.finish();
        // Closing a socket with unread bytes resets it, and what was said last is lost with it: they are read away.
        let mut away = vec![0; 16 << 10];
        while Instant::now() < until {
            match io.recv(&mut away, &mut []) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.stream.wait(true, false, &never, until).await.is_err() {
                        return;
                    }
                }
                Ok(1..) => {}
                _ => return,
            }
        }
    }
}
