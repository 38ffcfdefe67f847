//! The session layer against a device that counts instead of computing, against the CPU device, and against the CUDA device: sessions,
//! residents, uploads, programs, caches, scheduling, and what happens to bad requests. Everything is deterministic: one thread, a
//! clock that the tests turn.

mod ahead;
mod batching;
mod caches;
mod client;
mod cpu;
mod cuda;
mod fake;
mod faults;
mod gpu;
mod graphs;
mod lifetimes;
mod lines;
mod memory;
mod named;
mod names;
mod once;
mod programs;
mod puts;
mod random;
mod residents;
mod sets;
mod threads;
mod uploads;
