//! What the tests that cross crates share: a tiny model, answers that outlive their frames, servers within the process, a client
//! that breaks the protocol, and one that sees whether others are harmed by it.

pub mod answer;
pub mod authority;
pub mod child;
pub mod churn;
pub mod driver;
pub mod graphs;
pub mod here;
pub mod holdings;
pub mod log;
pub mod proxy;
pub mod raw;
#[cfg(feature = "rdma")]
pub mod rdma;
pub mod serve;
mod socket;
pub mod witness;
