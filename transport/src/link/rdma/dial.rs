//! A client's queue pairs.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use super::cm::Id;
use super::domains::Membership;
use super::endpoint::Endpoint;
use super::lane::Lane;
use super::options::Options;
use super::pulling::Pulling;
use crate::connection::Client;
use crate::link::dial::CONNECT_TIMEOUT;
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

    fn open(&mut self, address: SocketAddr) -> io::Result<Arc<Lane>> {
        let options = Options::from_env()?;
        let id = Id::resolve(address)?;
        let context = id.context().ok_or_else(|| io::Error::other("the connection manager found no device"))?;
        let membership = match self.membership.take().filter(|m| m.domain.is_on(context)) {
            Some(membership) => membership,
            None => Membership::new(context)?,
        };
        self.membership = Some(membership.clone());
        let until = Instant::now() + CONNECT_TIMEOUT;
        let endpoint = Endpoint::connect(id, &membership.domain, self.key, &options, until)?;
        Ok(Arc::new(Lane::new(endpoint, membership, options)?))
    }
}

impl Dial for Dialer {
    fn control(&mut self) -> io::Result<Arc<dyn Stream>> {
        // Lanes of one connection know each other by it.
        getrandom::fill(&mut self.key).map_err(|e| io::Error::other(e.to_string()))?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (self.host.as_str(), self.port).to_socket_addrs()? {
            match self.open(address) {
                Ok(lane) => {
                    self.address = Some(address);
                    return Ok(lane);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        let address = self.address.ok_or(io::ErrorKind::NotConnected)?;
        Ok(Box::new(Pulling::greet(self.open(address)?, client, lane, now)?))
    }
}
