//! The CPU device: every op against a reference, caches, batches, errors.

mod cache;
mod case;
mod models;
mod ops;
mod reference;
mod refusals;
mod run;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tiny.rs"]
mod tiny;
