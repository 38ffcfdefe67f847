//! The session layer against a device that counts instead of computing, and against the CPU device: sessions, residents,
//! uploads, programs, caches, scheduling, and what happens to bad requests. Everything is deterministic: one thread, a clock
//! that the tests turn.

mod batching;
mod caches;
mod client;
mod cpu;
mod fake;
mod faults;
mod graphs;
mod lifetimes;
mod lines;
mod memory;
mod names;
mod once;
mod programs;
mod puts;
mod random;
mod threads;
mod uploads;
