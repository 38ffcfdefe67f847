//! TCP: sockets and plain system calls.
//!
//! A lane is one socket. Replies are written by whichever thread made them.

mod dial;
mod socket;
mod splice;

pub use dial::Dialer;
pub use socket::{Path, accepted, begin_connect, connect, connect_to, recv, recv_two, served, tune};
pub(super) use socket::{path_of, send};
#[cfg(all(feature = "uring", target_os = "linux"))]
pub(super) use splice::ignores_sigpipe;
pub use splice::{Lender, Splice, Spliced};
