//! Genie's transport: the wire format, the connection state machine, memory, the links and the client's sessions.

pub mod memory;
pub mod wire;
