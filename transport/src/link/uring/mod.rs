//! io_uring: `uring://host:port`, the bytes of [`super::tcp`], the bulk lanes moved by completions.
//!
//! Control lanes are plain sockets: a small frame costs two system calls there, and a ring saves none of them. A bulk lane's
//! operations own what the kernel reads and writes until their completion: a [`crate::connection::Loan`] of the slice's own
//! place in its tensor, or the sender's memory. See docs/decisions/0006-io-uring.md for what was measured.
//!
//! The server's lanes share a few threads with a ring each; a client's lane has a ring of its own.

mod accepted;
mod client;
mod crew;
mod lane;
mod ring;
mod stream;
#[cfg(test)]
mod tests;
mod zero_copy;

use std::fmt;
use std::io;
use std::sync::OnceLock;

pub(crate) use accepted::accepted;
pub use client::Dialer;
pub(crate) use crew::Crew;
pub(crate) use stream::{RingStream, accepted_stream};

/// Why io_uring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The kernel has no such system call.
    #[error("this kernel has no io_uring (it came with Linux 5.1): use tcp://, which carries the same bytes")]
    Missing,
    /// An administrator, or a sandbox, has closed it.
    #[error(
        "io_uring is closed to this process: look at `sysctl kernel.io_uring_disabled` (0 opens it) and at the seccomp filter of \
         the container it runs in, or use tcp://, which carries the same bytes"
    )]
    Closed,
    /// The kernel has io_uring, but not all that is needed of it.
    #[error(
        "this kernel's io_uring lacks {0} (Linux 6.1 has all that is needed): use tcp://, which carries the same bytes"
    )]
    Lacks(Need),
    /// A limit of this process: descriptors or memory.
    #[error("io_uring cannot be set up (errno {0}): raise the limit of open files or of memory, or use tcp://")]
    Limit(i32),
}

/// What is needed of io_uring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// Rings whose work is done when their thread asks for it.
    DeferredWork,
    /// The operations on sockets.
    Sockets,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DeferredWork => "deferred task work",
            Self::Sockets => "operations on sockets",
        })
    }
}

impl Unavailable {
    /// What an error of setting up a ring means.
    pub fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing,
            // EPERM: the sysctl or seccomp; EACCES: a security module.
            Some(libc::EPERM | libc::EACCES) => Self::Closed,
            // An old kernel takes the flags for nonsense.
            Some(libc::EINVAL) => Self::Lacks(Need::DeferredWork),
            code => Self::Limit(code.unwrap_or(0)),
        }
    }
}

impl From<Unavailable> for io::Error {
    fn from(reason: Unavailable) -> Self {
        Self::new(io::ErrorKind::Unsupported, reason)
    }
}

/// Whether this process can use io_uring. Asked of the kernel once.
///
/// # Errors
/// Why not.
pub fn available() -> Result<(), Unavailable> {
    static KNOWN: OnceLock<Result<(), Unavailable>> = OnceLock::new();
    *KNOWN.get_or_init(|| ring::probe(ring::set_up))
}
