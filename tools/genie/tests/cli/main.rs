//! The real program: servers and clients in processes of their own.

mod killed;
mod measuring;
mod model;
mod restart;
mod serving;
mod support;
