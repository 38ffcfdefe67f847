//! A client's lanes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::lane::{Broken, LaneIo, abort};
use super::ring::{Owner, Ring};
use super::zero_copy::ZeroCopy;
use crate::connection::{Client, ClientError, ClientLane, Want};
use crate::link::dial::CONNECT_TIMEOUT;
use crate::link::dial::gone;
use crate::link::tcp::{self, Path, Splice, Spliced};
use crate::link::wait::Interest;
use crate::link::{Bulk, Dial, Stream};
use crate::uri::Uri;

/// Opens sockets whose bulk lanes have rings.
#[derive(Debug)]
pub struct Dialer {
    uri: Uri,
    address: Option<(SocketAddr, Path)>,
}

impl Dialer {
    /// To this address.
    pub fn new(uri: Uri) -> Self {
        Self { uri, address: None }
    }
}

impl Dial for Dialer {
    fn control(&mut self) -> io::Result<Arc<dyn Stream>> {
        super::available()?;
        let (stream, path) = tcp::connect(&self.uri, CONNECT_TIMEOUT)?;
        self.address = Some((stream.peer_addr()?, path));
        Ok(Arc::new(stream))
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let (address, path) = self.address.ok_or(io::ErrorKind::NotConnected)?;
        let stream = tcp::begin_connect(address, path)?;
        // On one host pages are handed over; a ring's sends, zero-copy or not, are copied there. docs/decisions/0006-io-uring.md
        let splice = if path == Path::SameHost { Splice::new() } else { None };
        let zero_copy = if path == Path::SameHost { ZeroCopy::Chosen(false) } else { ZeroCopy::measured() };
        let by_ring = splice.is_none();
        let stream: Box<dyn Stream> = match splice {
            Some(splice) => Box::new(Spliced::new(stream, splice)),
            None => Box::new(stream),
        };
        let mut ring = Ring::new(Owner::Anyone, 1)?;
        let file = ring.add_file(stream.interest(false, false).fd)?.ok_or(io::ErrorKind::OutOfMemory)?;
        let lane = ClientLane::new(client, lane, now);
        Ok(Box::new(RingBulk { ring, io: LaneIo::new(file, zero_copy), lane, by_ring, stream }))
    }
}

/// A bulk lane with a ring of its own.
struct RingBulk {
    // Dropped first: nothing is in flight when the socket is closed.
    ring: Ring,
    io: LaneIo,
    lane: ClientLane,
    /// Whether slices go out by the ring.
    by_ring: bool,
    stream: Box<dyn Stream>,
}

impl RingBulk {
    /// The greeting, and the welcome: plain calls.
    fn greet(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        let mut sink: &dyn Stream = &*self.stream;
        let moved = self.lane.flush(client, &mut sink, now).map_err(|e| gone(&e))?;
        let Want::Read { first, then } = self.lane.want(client, now) else { return Ok(moved) };
        match self.stream.recv(first, then) {
            Ok(n) => self.lane.filled(n, client, now).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(moved),
            Err(e) => Err(gone(&e)),
        }
    }

    fn move_slices(&mut self, client: &mut Client, now: Instant) -> Result<bool, Broken> {
        let Self { ring, io, lane, by_ring, stream } = self;
        let mut moved = false;
        if !*by_ring {
            let mut sink: &dyn Stream = &**stream;
            moved |= lane.flush(client, &mut sink, now)?;
        }
        let mut lending = lane.lending(client);
        while let Some(ended) = ring.next() {
            moved = true;
            io.ended(ended, &mut lending, now)?;
        }
        if *by_ring {
            io.send(ring, &mut lending, now)?;
        }
        io.receive(ring, &mut lending, now)?;
        drop(lending);
        lane.count_zero_copied(io.take_spared());
        ring.submit()?;
        Ok(moved)
    }
}

impl Bulk for RingBulk {
    fn turn(&mut self, client: &mut Client, now: Instant) -> Result<bool, ClientError> {
        if self.stream.has_unsent() {
            self.stream.push().map_err(|e| gone(&e))?;
        }
        self.lane.timeout(client, now)?;
        if !self.lane.is_open() {
            return self.greet(client, now);
        }
        self.move_slices(client, now).map_err(|broken| match broken {
            Broken::Closed => gone(&io::ErrorKind::ConnectionAborted.into()),
            Broken::Io(error) => gone(&error),
            Broken::Nonsense(error) => error.into(),
        })
    }

    fn lane(&self) -> u32 {
        self.lane.lane()
    }

    fn came(&self) -> u64 {
        self.lane.came()
    }

    fn arm(&mut self, client: &Client, out: &mut Vec<Interest>) -> bool {
        let plain = !self.lane.is_open();
        let write = (plain || !self.by_ring) && self.lane.wants_to_send(client) || self.stream.has_unsent();
        if plain || write {
            out.push(self.stream.interest(plain, write));
        }
        out.push(Interest { fd: self.ring.fd(), read: true, write: false });
        self.ring.has_ended()
    }

    fn disarm(&mut self) {
        self.stream.disarm();
    }

    fn deadline(&self, client: &Client) -> Option<Instant> {
        self.lane.deadline(client)
    }
}

impl Drop for RingBulk {
    fn drop(&mut self) {
        if self.io.holds_sent() {
            abort(self.stream.interest(false, false).fd);
        }
    }
}
