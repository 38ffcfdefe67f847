//! What the tests that cross crates share: a tiny model, answers that outlive their frames, servers within the process.

pub mod answer;
pub mod graphs;
pub mod serve;
