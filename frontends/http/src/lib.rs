//! The HTTP door of a server: a tensor file comes in with the name of an op, and a tensor file goes out.
//!
//! A [`Door`] is a client of the server that it belongs to, like any other: it has a session for each token, with that token's rights
//! and quota, and its graphs run beside everybody's. Tensors go between the two by shared memory. docs/http.md has the requests;
//! what is refused, and how long and how much a request may take, stands there, too.
//!
//! | module | what it holds |
//! |---|---|
//! | [`Door`], `connections`, `io` | sockets: who may be connected, and for how long |
//! | `gate` | who is let in |
//! | `body`, `form` | what a request carries, within limits |
//! | `execute`, `subgraph` | the two requests that run something |
//! | `ops`, `kwargs` | ops by the names that PyTorch has for them |
//! | `sessions`, `programs`, `run` | the server, as the door uses it |
//! | `stats` | what is counted |

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing))]

mod body;
mod connections;
mod door;
mod error;
mod execute;
mod form;
mod gate;
mod io;
mod kwargs;
mod ops;
mod programs;
mod request;
mod routes;
mod run;
mod sessions;
mod stats;
mod subgraph;

pub use door::{Door, DoorError, Settings};
