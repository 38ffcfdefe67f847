//! How a tensor in a GPU's memory reaches the network card.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cm::Id;
use super::domains::Membership;
use super::verbs::{Domain, Facts, access};

/// How long the connection manager may take to say which device it is.
const LONGEST: Duration = Duration::from_secs(5);

/// The way between a network card and device memory.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// The card reads and writes it itself: memory is registered by its dmabuf descriptor (`ibv_reg_dmabuf_mr`).
    Direct,
    /// The same, by its address: `nvidia-peermem` tells the card of it.
    Address,
    /// It is copied through pinned slabs of the host by the GPU's copy engine.
    Staged {
        /// Why there is no other way.
        why: String,
    },
}

/// What an RDMA device can do, as data for `genie explain`.
#[derive(Clone, Debug)]
pub struct DeviceMemory {
    /// The network card.
    pub facts: Facts,
    /// How device memory is reached.
    pub path: Path,
}

impl DeviceMemory {
    /// Looks at the device that leads to this address.
    ///
    /// # Errors
    /// No device leads there.
    pub fn towards(address: SocketAddr) -> io::Result<Self> {
        let membership = membership_towards(address)?;
        Ok(Self { facts: membership.domain.facts().clone(), path: path(&membership.domain) })
    }
}

/// A protection domain on the device that leads there.
pub(super) fn membership_towards(address: SocketAddr) -> io::Result<Arc<Membership>> {
    let id = Id::resolve(address)?;
    let (mut routed, until) = (false, Instant::now() + LONGEST);
    while !id.is_resolved(address, &mut routed)? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        id.wait(left);
    }
    Membership::new(id.context().ok_or_else(|| io::Error::other("the connection manager found no device"))?)
}

/// A driver that has dmabuf looks at the descriptor, and finds that it is none; one that has not says so without looking.
fn path(domain: &Arc<Domain>) -> Path {
    let all = access::LOCAL_WRITE | access::REMOTE_READ | access::REMOTE_WRITE;
    let why = match domain.register_dmabuf(-1, 0, 4096, 0, all) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => return Path::Direct,
        Err(error) => error.to_string(),
        Ok(_) => "it registers what is not there".to_owned(),
    };
    if std::path::Path::new("/sys/module/nvidia_peermem").exists() {
        return Path::Address;
    }
    let device = &domain.facts().device;
    Path::Staged {
        why: format!("{device}'s driver does not register dmabuf memory ({why}), and nvidia-peermem is not loaded"),
    }
}
