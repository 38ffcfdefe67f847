//! RDMA: queue pairs over InfiniBand, RoCE or soft-RoCE.
//!
//! A lane is one reliable connected queue pair, made by the connection manager (`rdma_cm`), which also chooses device, port and GID
//! by the address. Small frames go by SEND, inline where they fit, into a ring of receive buffers that credits keep from running
//! dry ([`Lane`]): to the drivers above, a stream of bytes. Tensors never pass through that ring. The server gives the client the
//! right to write, or to read, one slice's memory, by a memory window; the client's device moves the bytes; the right is revoked
//! before anybody here looks at them. See `docs/decisions/0010-rdma-rights.md`.
//!
//! Who owns what while it is in flight: an operation's entry holds the lease of the memory, its registration and its window from
//! before it is posted until its completion was polled. Dropping a future or a session frees none of it. A lane that ends goes
//! through error (nothing further of the peer's is accepted), drain (every request has come back), and only then do
//! windows, registrations and leases go, in that order.
//!
//! What RDMA carries is not encrypted.

mod cache;
mod cm;
mod connecting;
mod devices;
mod dial;
mod domains;
mod endpoint;
mod events;
pub mod faults;
mod granting;
mod lane;
mod listen;
mod memory;
mod options;
mod pulling;
mod rights;
mod verbs;

pub use cache::registering;
pub use dial::Dialer;
pub use lane::Lane;
pub use listen::Listener;
pub use memory::{DeviceMemory, Path};
pub use options::Options;
pub use verbs::Facts;
