//! The sockets of a client's connection, and one round of moving bytes over them.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::connection::{BulkIn, BulkLane, Client, ClientError, Framer, Sink, Want};
use crate::link::tcp;
use crate::link::wait::Interest;
use crate::uri::Uri;
use crate::wire::{Control, SLICE_FRAME_BYTES};

/// How long one attempt to open a lane may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Lanes are opened within this time, or the connection is given up.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// A client with its sockets. Not tied to any runtime: whoever owns it calls [`Self::turn`] when a socket is ready.
pub(super) struct Lanes {
    pub(super) client: Client,
    uri: Uri,
    control: Option<TcpStream>,
    bulk: Vec<Lane>,
}

struct Lane {
    stream: TcpStream,
    splice: Option<tcp::Splice>,
    state: LaneState,
}

enum LaneState {
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

impl Lanes {
    pub(super) fn new(uri: Uri, client: Client) -> Self {
        Self { client, uri, control: None, bulk: Vec::new() }
    }

    /// Moves what can be moved without waiting. Whether anything was.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        if self.client.dead().is_some() {
            self.drop_sockets();
            return false;
        }
        if self.control.is_none() && self.client.wants_connection(now) {
            match tcp::connect(&self.uri, CONNECT_TIMEOUT) {
                Ok((stream, _)) => {
                    self.control = Some(stream);
                    self.client.connected(now);
                }
                Err(error) => self.client.lost(&format!("{}: {error}", self.uri), Instant::now()),
            }
        }
        if self.control.is_none() {
            return false;
        }
        match self.move_bytes(now) {
            Ok(moved) => moved,
            Err(error) => {
                self.drop_sockets();
                let reason = match &error {
                    // Said once more, it would say so twice.
                    ClientError::Unreachable { reason, .. } => reason.clone(),
                    other => other.to_string(),
                };
                self.client.lost(&reason, now);
                true
            }
        }
    }

    /// The control lane's socket, where frames may go out at once.
    pub(super) fn split(&mut self) -> (&mut Client, Option<&TcpStream>) {
        (&mut self.client, self.control.as_ref())
    }

    /// A send on the control lane failed.
    pub(super) fn broken(&mut self, error: &io::Error, now: Instant) {
        self.drop_sockets();
        self.client.lost(&error.to_string(), now);
    }

    /// What to wait for.
    pub(super) fn interests(&self, out: &mut Vec<Interest>) {
        out.clear();
        if let Some(control) = &self.control {
            out.push(Interest { fd: control.as_raw_fd(), read: true, write: self.client.has_output() });
        }
        for lane in &self.bulk {
            let write = match &lane.state {
                LaneState::Opening { .. } => false,
                LaneState::Open(halves) => {
                    halves.output.is_sending() || !self.client.bulk().is_empty() || lane.has_loaded()
                }
            };
            out.push(Interest { fd: lane.stream.as_raw_fd(), read: !lane.is_held(), write });
        }
    }

    /// When to turn even if no socket is ready.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let lanes = self.bulk.iter().filter_map(|lane| match &lane.state {
            LaneState::Opening { until, .. } => Some(*until),
            LaneState::Open(halves) => halves.input.deadline(),
        });
        self.client.deadline().into_iter().chain(lanes).min()
    }

    fn move_bytes(&mut self, now: Instant) -> Result<bool, ClientError> {
        let mut moved = false;
        self.client.timeout(now)?;
        let Some(control) = &self.control else { return Ok(false) };
        if self.client.has_output() {
            let mut sink: &TcpStream = control;
            self.client.flush(&mut sink).map_err(|e| gone(&e))?;
        }
        match tcp::recv(control, self.client.space()) {
            Ok(0) => return Err(gone(&io::ErrorKind::ConnectionAborted.into())),
            Ok(n) => {
                moved = true;
                self.client.filled(n, now)?;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(gone(&e)),
        }
        while (self.bulk.len() as u32) < self.client.wants_lanes() {
            let lane = self.open_lane(self.bulk.len() as u32 + 1, now)?;
            self.bulk.push(lane);
            moved = true;
        }
        for lane in &mut self.bulk {
            moved |= lane.turn(&mut self.client, now)?;
        }
        Ok(moved)
    }

    fn open_lane(&self, index: u32, now: Instant) -> Result<Lane, ClientError> {
        // To the address that the control lane found: a name's next address may be another server's.
        let address = self.control.as_ref().ok_or_else(|| gone(&io::ErrorKind::NotConnected.into()))?.peer_addr();
        let (stream, path) =
            address.and_then(|address| tcp::connect_to(address, CONNECT_TIMEOUT)).map_err(|e| gone(&e))?;
        // Where both ends are one machine, pages can be handed over; see docs/decisions/0003-pages-by-reference.md.
        let splice = if path == tcp::Path::SameHost { tcp::Splice::new() } else { None };
        if let Some(hello) = self.client.lane_hello(index) {
            let mut sink = &stream;
            // A fresh socket's buffer takes a hello whole.
            let sent = sink.send(&[io::IoSlice::new(&hello)]).map_err(|e| gone(&e))?;
            self.client.counters().up.fetch_add(sent as u64, Ordering::Relaxed);
        }
        // A welcome has no payload.
        let framer = Framer::new(0);
        Ok(Lane { stream, splice, state: LaneState::Opening { framer, until: now + GREETING_TIMEOUT } })
    }

    fn drop_sockets(&mut self) {
        if let Some(control) = self.control.take() {
            // Last words, if any, go out with the socket's own buffer.
            let mut sink: &TcpStream = &control;
            if let Err(error) = self.client.flush(&mut sink) {
                tracing::debug!(%error, "the last words were not sent");
            }
        }
        self.bulk.clear();
    }
}

impl Lane {
    /// Whether nothing can be read until a deadline: another lane writes the same slice.
    fn is_held(&self) -> bool {
        matches!(&self.state, LaneState::Open(halves) if halves.input.deadline().is_some())
    }

    fn has_loaded(&self) -> bool {
        self.splice.as_ref().is_some_and(tcp::Splice::is_loaded)
    }

    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        if let LaneState::Opening { framer, until } = &mut self.state {
            // Slices may follow the welcome at once: they are not the framer's to take.
            match tcp::recv(&self.stream, framer.space_of_frame()) {
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
                _ => return Err(crate::wire::DecodeError::Range("a bulk lane was not welcomed").into()),
            }
            self.state = LaneState::Open(Box::new(Halves { input: BulkIn::new(false), output: BulkLane::default() }));
            return Ok(true);
        }
        let LaneState::Open(halves) = &mut self.state else { return Ok(false) };
        let Halves { input, output } = &mut **halves;
        let mut moved = false;
        if output.is_sending() || !client.bulk().is_empty() {
            let bulk = client.bulk().clone();
            let mut sink = Counting { stream: &self.stream, splice: self.splice.as_mut(), sent: 0 };
            let done = output.flush(&bulk, &mut sink);
            moved |= sink.sent > 0;
            client.counters().up.fetch_add(sink.sent, Ordering::Relaxed);
            done.map_err(|e| gone(&e))?;
        }
        if let Some(splice) = self.splice.as_mut().filter(|s| s.is_loaded()) {
            splice.drain(&self.stream).map_err(|e| gone(&e))?;
        }
        while let Some(event) = input.poll(client.landings(), now) {
            client.bulk_event(&event);
        }
        let Want::Read { first, then } = input.want() else { return Ok(moved) };
        match tcp::recv_two(&self.stream, first, then) {
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
}

struct Counting<'a> {
    stream: &'a TcpStream,
    splice: Option<&'a mut tcp::Splice>,
    sent: u64,
}

impl Sink for Counting<'_> {
    fn send(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let n = match &mut self.splice {
            Some(splice) => tcp::SpliceSink { socket: self.stream, splice, head: SLICE_FRAME_BYTES }.send(bufs)?,
            None => (&mut &*self.stream).send(bufs)?,
        };
        self.sent += n as u64;
        Ok(n)
    }
}

fn gone(error: &io::Error) -> ClientError {
    ClientError::Unreachable { reason: error.to_string(), effect: crate::wire::Effect::Unknown }
}
