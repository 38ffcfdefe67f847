//! The real program: servers and clients in processes of their own.

mod benches;
mod killed;
mod limits;
mod measuring;
mod model;
mod refusals;
mod relay;
mod restart;
mod serving;
mod support;
