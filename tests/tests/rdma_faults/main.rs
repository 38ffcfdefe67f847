//! What only RDMA can suffer. Each test has the process to itself (`--test-threads=1`), in which it turns faults on: `make test-rdma`.
#![cfg(feature = "rdma")]

mod gpu;
mod refused;
mod revoked;
mod unregistrable;
