//! A client's bulk lane over a stream.

use std::io;
use std::time::Instant;

use super::dial::gone;
use super::wait::Interest;
use super::{Bulk, Stream};
use crate::connection::{Client, ClientError, ClientLane, Want};

/// A bulk lane whose slices travel as bytes.
pub struct StreamBulk {
    stream: Box<dyn Stream>,
    lane: ClientLane,
}

impl StreamBulk {
    /// A lane over a fresh stream: greets the server as bulk lane `lane`.
    pub fn greet(stream: Box<dyn Stream>, client: &Client, lane: u32, now: Instant) -> Self {
        Self { stream, lane: ClientLane::new(client, lane, now) }
    }
}

impl Bulk for StreamBulk {
    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        if self.stream.has_unsent() {
            self.stream.push().map_err(|e| gone(&e))?;
        }
        self.lane.timeout(client, now)?;
        let mut sink: &dyn Stream = &*self.stream;
        let moved = self.lane.flush(client, &mut sink, now).map_err(|e| gone(&e))?;
        let Want::Read { first, then } = self.lane.want(client, now) else { return Ok(moved) };
        match self.stream.recv(first, then) {
            Ok(n) => {
                self.lane.filled(n, client, now)?;
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.lane.idle();
                Ok(moved)
            }
            Err(e) => Err(gone(&e)),
        }
    }

    fn lane(&self) -> u32 {
        self.lane.lane()
    }

    fn came(&self) -> u64 {
        self.lane.came()
    }

    fn arm(&mut self, client: &Client, out: &mut Vec<Interest>) -> bool {
        let read = !self.lane.is_held();
        let write = self.lane.wants_to_send(client) || self.stream.has_unsent();
        out.push(self.stream.interest(read, write));
        self.stream.arm(read, write)
    }

    fn disarm(&mut self) {
        self.stream.disarm();
    }

    fn deadline(&self, client: &Client) -> Option<Instant> {
        self.lane.deadline(client)
    }
}
