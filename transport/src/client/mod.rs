//! Sessions for frontends.
//!
//! [`blocking::Session`] needs no runtime: its calls move bytes on the caller's thread, and poll a bounded while before they
//! park. [`Session`] is for async programs: a thread owns the connection, and any number of clones share it. Both reconnect by
//! themselves and take their session up again; both keep every payload in the caller's memory until the socket has it.

mod api;
mod bell;
pub mod blocking;
mod engine;
mod lanes;
mod passing;
mod session;
mod shares;
mod staging;

pub use crate::connection::ClientError;
pub use api::{
    BindInputs, Binding, Cache, ConnectOptions, DeviceInfo, GenerateOptions, Generated, Input, Outputs, Program,
    PutOptions, RunOptions, Tensor, Value,
};
pub use bell::Bell;
pub use session::{Session, Stream};
