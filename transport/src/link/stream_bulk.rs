//! A client's bulk lane over a stream.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::wait::Interest;
use super::{Bulk, Stream};
use crate::connection::{BulkIn, BulkLane, Client, ClientError, Framer, Sink, Want};
use crate::wire::{Control, DecodeError, Effect};

/// Lanes are opened within this time, or the connection is given up.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A bulk lane whose slices travel as bytes.
pub struct StreamBulk {
    stream: Box<dyn Stream>,
    state: State,
}

enum State {
    /// Hello is sent, the welcome has not come.
    Opening {
        framer: Framer,
        until: Instant,
    },
    Open(Box<Halves>),
}

struct Halves {
    input: BulkIn,
    output: BulkLane,
}

impl StreamBulk {
    /// A lane over a fresh stream: greets the server as bulk lane `lane`.
    ///
    /// # Errors
    /// The stream's.
    pub fn greet(stream: Box<dyn Stream>, client: &Client, lane: u32, now: Instant) -> io::Result<Self> {
        if let Some(hello) = client.lane_hello(lane) {
            // A fresh stream takes a hello whole.
            let sent = stream.send(&[IoSlice::new(&hello)])?;
            client.counters().up.fetch_add(sent as u64, Ordering::Relaxed);
        }
        // A welcome has no payload.
        let framer = Framer::new(0);
        Ok(Self { stream, state: State::Opening { framer, until: now + GREETING_TIMEOUT } })
    }

    fn welcomed(&mut self, client: &Client, now: Instant) -> Result<bool, ClientError> {
        let State::Opening { framer, until } = &mut self.state else { return Ok(false) };
        // Slices may follow the welcome at once: they are not the framer's to take.
        match self.stream.recv(framer.space_of_frame(), &mut []) {
            Ok(0) => return Err(gone(&io::ErrorKind::ConnectionAborted.into())),
            Ok(n) => {
                client.counters().down.fetch_add(n as u64, Ordering::Relaxed);
                framer.filled(n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && now < *until => return Ok(false),
            Err(e) => return Err(gone(&e)),
        }
        let Some(frame) = framer.next_frame()? else { return Ok(true) };
        frame.intact?;
        match Control::decode(&frame.header, frame.meta)? {
            Control::LaneWelcome(_) => {}
            Control::Goodbye(error) => return Err(error.into()),
            _ => return Err(DecodeError::Range("a bulk lane was not welcomed").into()),
        }
        self.state = State::Open(Box::new(Halves { input: BulkIn::new(false), output: BulkLane::default() }));
        Ok(true)
    }
}

impl Bulk for StreamBulk {
    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        let mut moved = false;
        if self.stream.has_unsent() {
            self.stream.push().map_err(|e| gone(&e))?;
        }
        let State::Open(halves) = &mut self.state else { return self.welcomed(client, now) };
        let Halves { input, output } = &mut **halves;
        if output.is_sending() || !client.bulk().is_empty() {
            let bulk = client.bulk().clone();
            let mut sink = Counting { stream: &*self.stream, sent: 0 };
            let done = output.flush(&bulk, &mut sink);
            moved |= sink.sent > 0;
            client.counters().up.fetch_add(sink.sent, Ordering::Relaxed);
            done.map_err(|e| gone(&e))?;
        }
        while let Some(event) = input.poll(client.landings(), now) {
            client.bulk_event(&event);
        }
        let Want::Read { first, then } = input.want() else { return Ok(moved) };
        match self.stream.recv(first, then) {
            Ok(0) => Err(gone(&io::ErrorKind::ConnectionAborted.into())),
            Ok(n) => {
                client.counters().down.fetch_add(n as u64, Ordering::Relaxed);
                input.filled(n)?;
                while let Some(event) = input.poll(client.landings(), now) {
                    client.bulk_event(&event);
                }
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(moved),
            Err(e) => Err(gone(&e)),
        }
    }

    fn arm(&mut self, client: &Client, out: &mut Vec<Interest>) -> bool {
        let (read, write) = match &self.state {
            State::Opening { .. } => (true, false),
            // A lane that is held can read nothing until a deadline: another lane writes the same slice.
            State::Open(halves) => {
                (halves.input.deadline().is_none(), halves.output.is_sending() || !client.bulk().is_empty())
            }
        };
        let write = write || self.stream.has_unsent();
        out.push(self.stream.interest(read, write));
        self.stream.arm(read, write)
    }

    fn disarm(&mut self) {
        self.stream.disarm();
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Opening { until, .. } => Some(*until),
            State::Open(halves) => halves.input.deadline(),
        }
    }
}

/// Counts what a stream takes.
struct Counting<'a> {
    stream: &'a dyn Stream,
    sent: u64,
}

impl Sink for Counting<'_> {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let n = self.stream.send(bufs)?;
        self.sent += n as u64;
        Ok(n)
    }
}

fn gone(error: &io::Error) -> ClientError {
    ClientError::Unreachable { reason: error.to_string(), effect: Effect::Unknown }
}
