//! A queue pair on its way to a server: found, asked for, connected, without waiting for any of it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::cm::Id;
use super::domains::Membership;
use super::endpoint::{Endpoint, Parts};
use super::lane::Lane;
use super::options::Options;
use crate::link::dial::CONNECT_TIMEOUT;
use crate::link::wait::Interest;

/// See the module.
pub(super) struct Connecting {
    address: SocketAddr,
    key: [u8; 16],
    options: Options,
    /// What is there already of the connection that it belongs to.
    membership: Option<Arc<Membership>>,
    // Before the id: a queue pair that nobody answered goes first.
    asked: Option<Parts>,
    id: Option<Id>,
    routed: bool,
    until: Instant,
}

impl Connecting {
    /// To this address, as a lane of the connection that this key names.
    pub(super) fn new(
        address: SocketAddr,
        key: [u8; 16],
        membership: Option<Arc<Membership>>,
        now: Instant,
    ) -> io::Result<Self> {
        let options = Options::from_env()?;
        let id = Some(Id::resolve(address)?);
        let until = now + CONNECT_TIMEOUT;
        Ok(Self { address, key, options, membership, asked: None, id, routed: false, until })
    }

    /// Goes on as far as it can. The lane, once it is there: that is the end of this.
    pub(super) fn turn(&mut self, now: Instant) -> io::Result<Option<Lane>> {
        let id = self.id.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        if self.asked.is_none() && id.is_resolved(self.address, &mut self.routed)? {
            let context = id.context().ok_or_else(|| io::Error::other("the connection manager found no device"))?;
            let membership = match self.membership.take().filter(|m| m.domain.is_on(context)) {
                Some(membership) => membership,
                None => Membership::new(context)?,
            };
            self.asked = Some(Endpoint::ask(id, &membership.domain, self.key, &self.options)?);
            self.membership = Some(membership);
        }
        let theirs = match &self.asked {
            Some(parts) => id.connected(&parts.qp, &self.options)?,
            None => None,
        };
        let Some(theirs) = theirs else {
            return if now < self.until { Ok(None) } else { Err(self.overdue()) };
        };
        let (Some(parts), Some(id), Some(membership)) = (self.asked.take(), self.id.take(), self.membership.take())
        else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        Lane::new(Endpoint::connected(parts, id, &theirs), membership, self.options).map(Some)
    }

    /// Waits for the lane.
    pub(super) fn finish(mut self) -> io::Result<Lane> {
        loop {
            let now = Instant::now();
            if let Some(lane) = self.turn(now)? {
                return Ok(lane);
            }
            if let Some(id) = &self.id {
                id.wait(self.until.saturating_duration_since(now));
            }
        }
    }

    /// What tells that there may be more to do.
    pub(super) fn interest(&self) -> Option<Interest> {
        self.id.as_ref().map(|id| Interest { fd: id.fd(), read: true, write: false })
    }

    /// When it is given up.
    pub(super) fn until(&self) -> Instant {
        self.until
    }

    fn overdue(&self) -> io::Error {
        let message = format!("{} did not answer over RDMA within {} s", self.address, CONNECT_TIMEOUT.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}
