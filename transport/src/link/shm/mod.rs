//! Shared memory, on one host: `shm:///path/to/socket`.
//!
//! A lane begins on a Unix socket. A control lane then goes over two rings in memory that the server makes, seals and passes;
//! the socket stays for waking who sleeps, for memory that the client shares, and as the sign of life: the kernel closes it
//! with its process. A bulk lane stays on its socket. See docs/decisions/0004-shared-memory.md.

mod bulk;
mod control;
mod dial;
mod listen;
mod ring;
mod socket;

pub use control::ControlStream;
pub use dial::Dialer;
pub use listen::{Bound, accepted, bind};
