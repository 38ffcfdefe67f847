//! TLS over sockets, with and without io_uring, and a relay between that can cut. What a lane carries it does not see: nothing can
//! be held back or corrupted of bulk alone.

use std::sync::Arc;
use std::time::Duration;

use genie_tests::authority::Authority;
use genie_tests::proxy::Proxy;
use genie_tests::serve::{Live, config};
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::link::Access;
use genie_transport::link::tls::{TlsClient, TlsServer};
use genie_transport::wire::OpenedSession;

use crate::link::{EAGER, Link, SLICE};

/// `SERVER` and `CLIENT`: whether that side is uring.
pub(crate) struct Encrypted<const SERVER: bool, const CLIENT: bool> {
    proxy: Proxy,
    tls: TlsClient,
    _server: Live,
}

fn scheme(uring: bool) -> &'static str {
    if uring { "urings" } else { "tcps" }
}

impl<const SERVER: bool, const CLIENT: bool> Link for Encrypted<SERVER, CLIENT> {
    type Client = blocking::Session;

    fn start() -> Self {
        let mut config = config(3);
        config.settings.eager_bytes = EAGER as u32;
        config.settings.slice_bytes = SLICE as u32;
        config.settings.stuck = Duration::from_millis(100);
        let authority = Authority::new();
        let (cert, key) = authority.sign("127.0.0.1", 30);
        let tls = Some(Arc::new(TlsServer::load(&cert, &key, None).expect("a certificate")));
        let uri = format!("{}://127.0.0.1:0", scheme(SERVER)).parse().expect("an address");
        let server = Live::start_for(config, &uri, &Access { tls, ..Access::anybody() });
        let tls = TlsClient::load(&authority.ca(), None).expect("a CA");
        Self { proxy: Proxy::to(server.address()), tls, _server: server }
    }

    fn connect(&self, resume: Option<OpenedSession>) -> Self::Client {
        let mut options = ConnectOptions { tls: Some(self.tls.clone()), ..ConnectOptions::default() };
        options.client.lanes = 2;
        options.client.resume = resume;
        let uri = self.proxy.uri.to_string().replacen("tcp", scheme(CLIENT), 1);
        blocking::Session::connect(&uri.parse().expect("an address"), options).expect("a session")
    }

    fn arrived(&self) -> u64 {
        self.proxy.passed().0
    }

    fn cut_after(&self, first: u64, each: u64) {
        self.proxy.cut_after(first, each);
    }

    fn cuts(&self) -> u64 {
        self.proxy.cuts()
    }

    fn hold_bulk(&self, _: bool) {
        unreachable!("no test of this link asks for it");
    }

    fn corrupt(&self) {
        unreachable!("no test of this link asks for it");
    }

    fn flipped(&self) -> u64 {
        0
    }
}
