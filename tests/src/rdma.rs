//! Servers on an RDMA device: in the guest that `tools/soft-roce` boots, or where a machine has one.

use std::net::SocketAddr;
use std::sync::Arc;

use genie_executor::Config;
use genie_transport::link::rdma;
use genie_transport::link::rdma::faults::Faults;

use crate::serve::Live;

/// An address of an RDMA device, with port 0.
///
/// # Panics
/// If `GENIE_RDMA_ADDRESS` does not say which: these tests are for `make test-rdma`.
pub fn address() -> SocketAddr {
    let said = std::env::var("GENIE_RDMA_ADDRESS")
        .expect("GENIE_RDMA_ADDRESS: the address of an RDMA device; see make test-rdma");
    SocketAddr::new(said.parse().expect("an address"), 0)
}

/// A server there, whose lanes suffer these faults.
///
/// # Panics
/// If it cannot start: the test cannot go on.
pub fn serve(config: Config, faults: Arc<Faults>) -> Live {
    Live::start_on(config, || rdma::Listener::bind(address()).expect("an RDMA device").suffering(faults).into())
}
