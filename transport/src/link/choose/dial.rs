//! A client's lanes to `genie://`.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::find::find;
use crate::connection::Client;
use crate::link::tls::TlsClient;
use crate::link::{Bulk, Dial, Stream};
use crate::wire::LinkScheme;

/// Chooses anew for every connection: a server that comes back may offer other links.
pub(in crate::link) struct Dialer {
    host: String,
    port: u16,
    forced: Option<LinkScheme>,
    tls: Option<TlsClient>,
    chosen: Option<Box<dyn Dial>>,
}

impl Dialer {
    pub(in crate::link) fn new(host: String, port: u16, forced: Option<LinkScheme>, tls: Option<TlsClient>) -> Self {
        Self { host, port, forced, tls, chosen: None }
    }
}

impl Dial for Dialer {
    fn control(&mut self) -> io::Result<Arc<dyn Stream>> {
        let found = find(&self.host, self.port, self.forced, self.tls.as_ref())?;
        self.chosen = Some(found.dial);
        Ok(found.stream)
    }

    fn bulk(&mut self, client: &Client, lane: u32, now: Instant) -> io::Result<Box<dyn Bulk>> {
        self.chosen.as_mut().ok_or(io::ErrorKind::NotConnected)?.bulk(client, lane, now)
    }
}
