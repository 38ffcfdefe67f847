//! Shared memory, with a relay of its sockets between that can cut, hold back and corrupt.

use std::time::Duration;

use bytes::Bytes;
use genie_graph::DType;
use genie_tests::proxy::{LaneFault, Proxy};
use genie_tests::serve::{Live, config};
use genie_transport::client::{ConnectOptions, PutOptions, blocking};
use genie_transport::wire::{OpenedSession, TensorSpec};

use crate::link::{EAGER, Lanes, Link, Relayed, SLICE};

/// All tensors in slices.
pub(crate) struct InSlices(Between);

/// Large tensors by reference.
pub(crate) struct ByReference(Between);

struct Between {
    proxy: Proxy,
    _server: Live,
}

impl Between {
    fn start() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut config = config(3);
        config.settings.eager_bytes = EAGER as u32;
        config.settings.slice_bytes = SLICE as u32;
        config.settings.stuck = Duration::from_millis(100);
        let name = format!("genie-conforms-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let uri = format!("shm://{}", std::env::temp_dir().join(name).display());
        let server = Live::start_at(config, &uri.parse().expect("an address"));
        Self { proxy: Proxy::to_shm(&server.uri), _server: server }
    }

    fn connect(&self, resume: Option<OpenedSession>, staging: u64, lanes: u32) -> blocking::Session {
        let mut options = ConnectOptions { staging, ..ConnectOptions::default() };
        options.client.lanes = lanes;
        options.client.stuck = Duration::from_millis(100);
        options.client.resume = resume;
        blocking::Session::connect(&self.proxy.uri, options).expect("a session")
    }
}

macro_rules! relayed {
    ($name:ident, $staging:expr) => {
        impl Link for $name {
            type Client = blocking::Session;

            fn start() -> Self {
                Self(Between::start())
            }

            fn connect(&self, resume: Option<OpenedSession>) -> Self::Client {
                self.0.connect(resume, $staging, 2)
            }

            fn arrived(&self) -> u64 {
                self.0.proxy.passed().0
            }

            fn cut_after(&self, first: u64, each: u64) {
                self.0.proxy.cut_after(first, each);
            }

            fn cuts(&self) -> u64 {
                self.0.proxy.cuts()
            }

            fn hold_bulk(&self, held: bool) {
                self.0.proxy.hold_bulk_from(if held { 0 } else { u64::MAX });
            }

            fn corrupt(&self) {
                self.0.proxy.flip(10);
            }

            fn flipped(&self) -> u64 {
                self.0.proxy.flipped()
            }
        }
    };
}

impl Lanes for InSlices {
    fn connect_lanes(&self, lanes: u32) -> Self::Client {
        self.0.connect(None, 0, lanes)
    }

    fn lane_fault_after(&self, bytes: u64, fault: LaneFault) {
        self.0.proxy.lane_fault_after(bytes, fault);
    }

    fn lane_faults(&self) -> u64 {
        self.0.proxy.lane_faults()
    }

    fn opened_lanes(&self) -> (u64, u64) {
        self.0.proxy.lanes()
    }
}

impl Relayed for InSlices {
    fn relay(&self) -> &Proxy {
        &self.0.proxy
    }
}

relayed!(InSlices, 0);
relayed!(ByReference, 1 << 30);

/// A tensor that is passed lies in memory that both sides have: the server reads it there, and writes there what is asked for. The
/// connection is cut at moments that lie all over that; each transfer is carried over it, and is whole, and the memory comes back.
pub(crate) fn what_is_passed_while_it_is_cut_is_whole() {
    let _among = crate::suite::among_others();
    const BYTES: usize = (3 << 20) + 5;
    const ROUNDS: u64 = 60;
    let link = ByReference::start();
    let mut client = link.connect(None);
    let spec = TensorSpec::new(DType::U8, &[BYTES as u64]).expect("a shape");
    let content = |seed: u64| -> Bytes {
        let mix = |i: u64| (i ^ (seed << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        (0..BYTES as u64).map(|i| mix(i) as u8).collect()
    };
    let before = link.0.proxy.passed().0;
    for round in 0..ROUNDS {
        // From the moment that it is asked for until long after it is done.
        let moment = || std::thread::sleep(Duration::from_micros((round / 2) * 61));
        let sent = content(round);
        let put = client.start_put(&spec, sent.clone(), PutOptions::default()).expect("the bytes fit the shape");
        if round % 2 == 0 {
            moment();
            link.0.proxy.cut();
        }
        let tensor = client.finish_put(put).expect("it is carried over the cut");
        let get = client.start_get(tensor.handle, 0, BYTES as u64).expect("there is memory");
        if round % 2 == 1 {
            moment();
            link.0.proxy.cut();
        }
        let got = client.finish_get(get).expect("it is carried over the cut");
        assert!(got[..] == sent[..], "round {round}: bytes differ");
        client.recycle(got);
        client.free(tensor.handle).expect("it was there");
    }
    assert_eq!(client.sessions_lost(), 0);
    assert!(link.0.proxy.lanes().0 > ROUNDS, "the connection outlived its cuts");
    // Nothing went over a bulk lane: it was passed.
    let up = link.0.proxy.passed().0 - before;
    assert!(up < BYTES as u64, "{up} bytes were sent");
}
