//! The links: what carries the bytes.

pub mod sim;
pub mod tcp;
pub mod wait;
