//! TCP: tokio for waiting, plain system calls for moving.
//!
//! A lane is one socket. The server's side of a lane is a tokio task that reads until there is nothing, polls a bounded while
//! if traffic is dense, and then parks in the reactor. Replies are written by whichever thread made them.

mod server;
mod socket;
mod splice;

pub use server::{Listener, Refusal, Server};
pub use socket::{Path, TcpSink, connect, connect_to, recv, recv_two, tune};
pub use splice::{Splice, SpliceSink};
