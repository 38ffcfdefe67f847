//! Where a server listens for queue pairs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cm::{Id, Knock};
use super::domains::Domains;
use super::endpoint::Endpoint;
use super::faults::Faults;
use super::lane::Lane;
use super::options::Options;
use crate::link::Stream;

/// A bound address.
pub struct Listener {
    // Forgotten by the reactor before the descriptor is closed.
    events: AsyncFd<Descriptor>,
    id: Id,
    address: SocketAddr,
    domains: Domains,
    options: Options,
    faults: Option<Arc<Faults>>,
}

/// The event channel's; the id owns it.
struct Descriptor(RawFd);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl Listener {
    /// Listens on an address of an RDMA device. Call within a tokio runtime.
    ///
    /// # Errors
    /// No device, none with this address, or the system's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let options = Options::from_env()?;
        let id = Id::listen(address)?;
        // SAFETY: the id is dropped after this (the fields' order), and with it the descriptor.
        let events = unsafe { AsyncFd::register_with_interest(Descriptor(id.fd()), Interest::READABLE) }?;
        let address = SocketAddr::new(address.ip(), id.port());
        Ok(Self { events, id, address, domains: Domains::default(), options, faults: None })
    }

    /// Lanes of this listener suffer these, for a test.
    #[must_use]
    pub fn suffering(mut self, faults: Arc<Faults>) -> Self {
        self.faults = Some(faults);
        self
    }

    /// Where it listens, with the port that the system chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn take(&self, knock: Knock) -> io::Result<Lane> {
        let context = knock.id.context().ok_or_else(|| io::Error::other("a client without a device"))?;
        let membership = self.domains.of(knock.said.domain, context)?;
        if let Some(faults) = &self.faults {
            faults.accepts(knock.said.domain);
        }
        let endpoint = Endpoint::accept(knock, &membership.domain, &self.options)?;
        Lane::new(endpoint, membership, self.options)
    }

    /// The next lane.
    ///
    /// # Errors
    /// A client that could not be connected; others may fare better.
    pub async fn accept(&mut self) -> io::Result<Arc<dyn Stream>> {
        loop {
            let mut ready = self.events.readable().await?;
            match self.id.knock() {
                Ok(None) => ready.clear_ready(),
                Ok(Some(knock)) => match self.take(knock) {
                    Ok(lane) => return Ok(Arc::new(lane.suffering(self.faults.clone()))),
                    Err(error) if is_ours(&error) => return Err(error),
                    Err(error) => tracing::info!(%error, "a client was not connected"),
                },
                Err(error) => {
                    // One client's fault: the listener goes on.
                    tracing::info!(%error, "a client was not connected");
                }
            }
        }
    }
}

/// Whether it is this machine that has no more of something: whoever knocks next fares no better.
fn is_ours(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE))
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish_non_exhaustive()
    }
}
