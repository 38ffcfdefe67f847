//! RDMA, over soft-RoCE in a guest or over a card: `make test-rdma`.

use std::sync::Arc;
use std::time::Duration;

use genie_tests::proxy::LaneFault;
use genie_tests::rdma::serve;
use genie_tests::serve::{Live, config};
use genie_transport::client::{ConnectOptions, blocking};
use genie_transport::link::rdma::faults::{self, Faults};
use genie_transport::wire::OpenedSession;

use crate::link::{EAGER, Lanes, Link, SLICE};

pub(crate) struct Rdma {
    faults: Arc<Faults>,
    server: Live,
}

impl Link for Rdma {
    type Client = blocking::Session;

    fn start() -> Self {
        let mut config = config(5);
        config.settings.eager_bytes = EAGER as u32;
        config.settings.slice_bytes = SLICE as u32;
        let faults = Arc::<Faults>::default();
        Self { server: serve(config, faults.clone()), faults }
    }

    fn connect(&self, resume: Option<OpenedSession>) -> Self::Client {
        let mut options = ConnectOptions::default();
        options.client.lanes = 2;
        options.client.resume = resume;
        self.session(options)
    }

    fn arrived(&self) -> u64 {
        self.faults.arrived()
    }

    fn cut_after(&self, first: u64, each: u64) {
        self.faults.cut_after(first, each);
    }

    fn cuts(&self) -> u64 {
        self.faults.cuts()
    }

    fn hold_bulk(&self, held: bool) {
        self.faults.hold_bulk(held);
    }

    fn corrupt(&self) {
        self.faults.corrupt(10);
    }

    fn flipped(&self) -> u64 {
        self.faults.flipped()
    }
}

impl Lanes for Rdma {
    fn connect_lanes(&self, lanes: u32) -> Self::Client {
        let mut options = ConnectOptions::default();
        options.client.lanes = lanes;
        options.client.backoff = Duration::from_millis(5);
        self.session(options)
    }

    fn lane_fault_after(&self, bytes: u64, fault: LaneFault) {
        let fault = match fault {
            LaneFault::Cut => faults::LaneFault::Cut,
            LaneFault::Garble => faults::LaneFault::Garble,
            // A device that is not answered sends again, and then breaks the queue pair: none stands still.
            LaneFault::Stand => unreachable!("queue pairs break"),
        };
        self.faults.break_lane_after(bytes, fault);
    }

    fn lane_faults(&self) -> u64 {
        self.faults.lane_faults()
    }

    fn opened_lanes(&self) -> (u64, u64) {
        self.faults.opened()
    }
}

impl Rdma {
    fn session(&self, options: ConnectOptions) -> blocking::Session {
        blocking::Session::connect(&self.server.uri, options).expect("a session")
    }
}
