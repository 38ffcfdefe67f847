//! A client's sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{Path, Splice, Spliced, begin_connect, connect};
use crate::connection::Client;
use crate::link::dial::CONNECT_TIMEOUT;
use crate::link::{Bulk, Dial, Stream, StreamBulk};
use crate::uri::Uri;

/// Opens sockets.
#[derive(Debug)]
pub struct Dialer {
    uri: Uri,
    /// Where the control lane went: a name's next address may be another server's.
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
        let (stream, path) = connect(&self.uri, CONNECT_TIMEOUT)?;
        self.address = Some((stream.peer_addr()?, path));
        Ok(Arc::new(stream))
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let (address, path) = self.address.ok_or(io::ErrorKind::NotConnected)?;
        let stream = begin_connect(address, path)?;
        // Where both ends are one machine, pages can be handed over; see docs/decisions/0003-pages-by-reference.md.
        let splice = if path == Path::SameHost { Splice::new() } else { None };
        let stream: Box<dyn Stream> = match splice {
            Some(splice) => Box::new(Spliced::new(stream, splice)),
            None => Box::new(stream),
        };
        Ok(Box::new(StreamBulk::greet(stream, client, lane, now)))
    }
}
