//! Genie's server side: sessions, residents, programs, devices and the scheduler.
//!
//! [`Executor`] is the server without its sockets: it implements [`genie_transport::connection::Service`], so any link (or a
//! test) can bring it requests. A request is checked, charged and queued by the thread that received it; a device's own thread
//! runs it. What a session has is in its handle table; what a client may ask again is in its window of replies.

#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic))]

pub mod device;
pub mod process;
pub mod trace;

mod account;
mod buffers;
mod caches;
mod config;
mod core;
mod error;
mod evicted;
mod executor;
mod generate;
mod handles;
mod hashing;
mod known;
mod names;
mod outage;
mod outflow;
mod programs;
mod registry;
mod replies;
mod requests;
mod residents;
mod rights;
mod scheduler;
mod session;
mod sets;
mod staged;
mod stats;
mod uploads;
mod weights;

pub use config::{Config, Mode};
pub use executor::{Executor, StartError};
