//! Bad input and faults, each against a live server: what the client is told, that the process lives, and that another
//! session, opened before, goes on unharmed.

mod crowds;
mod graphs;
mod handles;
mod limits;
mod scene;
mod slow;
mod transfers;
mod wire;
