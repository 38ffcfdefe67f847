//! The real program: servers and clients in processes of their own.

mod benches;
#[cfg(target_os = "linux")]
mod c_library;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod driver;
mod gpus;
mod http;
mod killed;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod libraries;
mod limits;
mod measuring;
mod model;
#[cfg(all(feature = "uring", target_os = "linux"))]
mod no_uring;
mod refusals;
mod relay;
mod restart;
mod serving;
mod support;
mod transport;
