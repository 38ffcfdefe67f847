//! The links: what carries the bytes.

pub mod tcp;
pub mod wait;
