//! The links: what carries the bytes.
//!
//! A link is a [`Stream`] for each lane, a way to open lanes ([`Dial`]) and a way to accept them ([`Listener`]). The drivers are
//! the same for all: [`Server`] on one side, the client's sessions on the other.

mod access;
pub mod choose;
pub(crate) mod dial;
mod host;
#[cfg(feature = "rdma")]
pub mod rdma;
mod server;
pub mod shm;
pub mod sim;
mod stream;
mod stream_bulk;
pub mod tcp;
pub mod tls;
#[cfg(all(feature = "uring", target_os = "linux"))]
pub mod uring;
pub mod wait;

pub use access::{Access, Exposed};
pub use dial::{Bulk, Dial, dialer, dialer_with};
pub use host::{BulkHost, BulkSeat};
pub use server::{Listener, Refusal, Server, io_threads};
pub use stream::{LULL, Ready, RemoteBulk, Stream, StreamSink, Trespass};
pub use stream_bulk::StreamBulk;
