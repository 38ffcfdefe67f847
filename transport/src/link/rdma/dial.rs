//! A client's queue pairs.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use super::connecting::Connecting;
use super::domains::Membership;
use super::pulling::Pulling;
use crate::connection::Client;
use crate::link::{Bulk, Dial, Stream};

/// Opens queue pairs to one server. They share a protection domain, and what is registered stays registered when a connection is
/// lost and made again.
pub struct Dialer {
    host: String,
    port: u16,
    /// Where the control lane went: a name's next address may be another server's.
    address: Option<SocketAddr>,
    key: [u8; 16],
    membership: Option<Arc<Membership>>,
}

impl Dialer {
    /// To this host and port.
    pub fn new(host: String, port: u16) -> Self {
        Self { host, port, address: None, key: [0; 16], membership: None }
    }

    fn begin(&self, address: SocketAddr, now: Instant) -> io::Result<Connecting> {
        Connecting::new(address, self.key, self.membership.clone(), now)
    }
}

impl Dial for Dialer {
    fn control(&mut self) -> io::Result<Arc<dyn Stream>> {
        // Lanes of one connection know each other by it.
        getrandom::fill(&mut self.key).map_err(|e| io::Error::other(e.to_string()))?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match self.begin(address, Instant::now()).and_then(Connecting::finish) {
                Ok(lane) => {
                    self.address = Some(address);
                    self.membership = Some(lane.membership().clone());
                    return Ok(Arc::new(lane));
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bulk(&mut self, _client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let address = self.address.ok_or(io::ErrorKind::NotConnected)?;
        Ok(Box::new(Pulling::new(self.begin(address, now)?, lane)))
    }
}
