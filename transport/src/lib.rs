//! Genie's transport: the wire format, the connection state machine, memory, the links and the client's sessions.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic))]

pub mod auth;
pub mod client;
pub mod connection;
pub mod link;
pub mod memory;
mod polling;
mod uri;
pub mod wire;

pub use uri::{Uri, UriError};
