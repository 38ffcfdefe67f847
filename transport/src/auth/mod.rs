//! Who a connection speaks for, and what it may do.
//!
//! A client proves that it has a token, and the server that it has the same one, by MACs over nonces that both draw for the
//! connection ([`Exchange`]); the token itself never crosses the wire, and what was heard of one connection opens no other. Where
//! the lane is a TLS channel its exporter value goes into the MACs: a proof made for one channel is worth nothing on another.
//!
//! [`Guard`] is the server's side: it holds the [`Tokens`], checks proofs, counts and logs what it refuses.

mod exchange;
mod guard;
mod identity;
mod secret;
mod tokens;

pub use exchange::{Channel, Exchange};
pub use exchange::{lane_key, lane_proof};
pub(crate) use guard::Admitted;
pub use guard::{Guard, Judge, Refused, Trust};
pub use identity::{Identity, Rights};
pub use secret::Secret;
pub use tokens::{Token, TokenFileError, Tokens};
