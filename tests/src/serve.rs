//! A server within the test's process, on threads of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use genie_executor::device::Device;
use genie_executor::device::cpu::CpuDevice;
use genie_executor::{Config, Executor};
use genie_transport::Uri;
use genie_transport::connection::Offers;
use genie_transport::link::{Access, Listener, Server, choose};

/// Settings of a server with one small CPU device.
///
/// # Panics
/// If the device cannot be made.
pub fn config(epoch: u64) -> Config {
    let cpu = CpuDevice::new(0, 1, 256 << 20).expect("a CPU device of 256 MiB");
    let cpu: Arc<dyn Device> = Arc::new(cpu);
    Config::new(vec![cpu], epoch)
}

/// A server that listens on a port of its own. It ends with this value.
pub struct Live {
    /// Where it listens.
    pub uri: Uri,
    executor: Arc<Executor>,
    server: Arc<Server<Executor>>,
    // Dropped last: lanes that are still open end with it.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Live {
    /// Starts it.
    ///
    /// # Panics
    /// If it cannot start: the test cannot go on.
    pub fn start(config: Config) -> Self {
        Self::start_at(config, &"tcp://127.0.0.1:0".parse().expect("an address"))
    }

    /// Starts it at this address.
    ///
    /// # Panics
    /// If it cannot start: the test cannot go on.
    pub fn start_at(config: Config, uri: &Uri) -> Self {
        // RDMA has no loopback: the suite runs on a network of its own.
        Self::start_for(config, uri, &Access::anybody())
    }

    /// Starts it at this address, for whom `access` lets in.
    ///
    /// # Panics
    /// If it cannot start: the test cannot go on.
    pub fn start_for(config: Config, uri: &Uri, access: &Access) -> Self {
        Self::start_on(config, || Listener::bind_with(uri, access).expect("a port"))
    }

    /// Starts it on a listener of this making, which is called within a tokio runtime.
    ///
    /// # Panics
    /// If it cannot start: the test cannot go on.
    pub fn start_on(config: Config, listener: impl FnOnce() -> Listener) -> Self {
        Self::start_as(listener, |_| config)
    }

    /// Starts it at this address, and says of itself, to clients that choose, that it listens there.
    ///
    /// # Panics
    /// If it cannot start: the test cannot go on.
    pub fn start_offering(mut config: Config, uri: &Uri) -> Self {
        let bind = || Listener::bind(uri).expect("a port");
        Self::start_as(bind, |listener| {
            let offers = listener.offers().expect("an address");
            config.settings.offers = Arc::new(Offers { boot: choose::boot_id(), offers });
            config
        })
    }

    fn start_as(listener: impl FnOnce() -> Listener, config: impl FnOnce(&Listener) -> Config) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let within = runtime.enter();
        let listener = listener();
        let uri = listener.uri().expect("an address");
        drop(within);
        let executor = Arc::new(Executor::new(config(&listener)).expect("a server"));
        let server = Arc::new(Server::new(executor.clone()));
        let running = server.clone();
        runtime.spawn(async move { running.run(listener).await });
        let ticking = Arc::downgrade(&executor);
        runtime.spawn(async move {
            while let Some(executor) = ticking.upgrade() {
                executor.tick(Instant::now());
                drop(executor);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { uri, executor, server, runtime: Some(runtime) }
    }

    /// Listens at this address as well.
    ///
    /// # Panics
    /// If it cannot.
    pub fn listen(&self, uri: &Uri) {
        let runtime = self.runtime.as_ref().expect("it runs");
        let within = runtime.enter();
        let listener = Listener::bind(uri).expect("a place to listen");
        drop(within);
        let server = self.server.clone();
        runtime.spawn(async move { server.run(listener).await });
    }

    /// Its address as a socket's.
    ///
    /// # Panics
    /// Never: it listens on an address, not on a name.
    pub fn address(&self) -> SocketAddr {
        let (Uri::Tcp { host, port }
        | Uri::Tls { host, port }
        | Uri::Uring { host, port }
        | Uri::UringTls { host, port }) = &self.uri
        else {
            panic!("no socket: {}", self.uri)
        };
        SocketAddr::new(host.parse().expect("an address"), *port)
    }

    /// The server's own counter of this name.
    pub fn executor(&self) -> &Arc<Executor> {
        &self.executor
    }

    /// Ends it on the spot, as a crash would: nobody is told.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}
