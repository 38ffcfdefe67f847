//! A client that asks and does not read: what its answers take at the server is bounded.
//!
//! Once, one read's worth of requests was answered whatever had piled up: 64 KiB of small gets of a 4 MiB tensor, and nobody
//! reading, took gigabytes before the connection was closed.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use genie_transport::connection::{ControlLane, Directory, Driver, Peer, Service, Settings, Sink, Step};
use genie_transport::wire::{Caps, Control, Flags, Handle, Kind, Reply, Request, body_crc, encode_header};

static TENSOR: [u8; 1 << 20] = [7; 1 << 20];

struct Generous {
    settings: Settings,
    answered: AtomicU64,
}

impl Service for Generous {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn request(&self, peer: &Arc<Peer>, id: u64, request: Request<'_>, _now: Instant) {
        assert!(matches!(request, Request::Get { .. }));
        self.answered.fetch_add(1, Ordering::Relaxed);
        peer.reply(id, Kind::Get, &Reply::Got(&TENSOR));
    }

    fn cancel(&self, _: &Arc<Peer>, _: u64, _: Instant) {}
    fn landed(&self, _: &Arc<Peer>, _: u64, _: Instant) {}
    fn refused(&self, _: &Arc<Peer>, _: u64, _: Instant) {}
    fn closed(&self, _: &Arc<Peer>, _: Instant) {}
}

/// A window that takes so many bytes.
#[derive(Clone)]
struct Window(Arc<Mutex<usize>>);

impl Sink for Window {
    fn send(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut left = self.0.lock().unwrap();
        let n = bufs.iter().map(|b| b.len()).sum::<usize>().min(*left);
        *left -= n;
        if n == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
    }
}

struct Nobody;

impl Driver for Nobody {
    fn wake(&self) {}
}

fn frame(id: u64, kind: Kind, flags: Flags, meta: &[u8]) -> Vec<u8> {
    let mut frame = encode_header(kind, flags, id, meta.len() as u32, 0, body_crc(meta, &[])).to_vec();
    frame.extend_from_slice(meta);
    frame
}

#[test]
fn answers_that_nobody_reads_are_bounded() {
    let service = Arc::new(Generous { settings: Settings::new(1), answered: AtomicU64::new(0) });
    let window = Window(Arc::new(Mutex::new(1000)));
    let directory = Arc::<Directory>::default();
    let now = Instant::now();
    let sink = Box::new(window.clone());
    let mut lane = ControlLane::new(service.clone(), directory, sink, Arc::new(Nobody), now).unwrap();

    let mut meta = Vec::new();
    let (kind, flags) = Control::Hello(Caps::OURS).encode(&mut meta);
    let mut bytes = frame(0, kind, flags, &meta);
    let asked = 500;
    for id in 1..=asked {
        let mut meta = Vec::new();
        let handle = Handle { index: 0, generation: 1, epoch: 1 };
        let request = Request::Get { handle, offset: 0, length: TENSOR.len() as u64, sliced: None };
        let kind = request.encode(&mut meta, &mut Vec::new());
        bytes.extend(frame(id, kind, Flags::default(), &meta));
    }
    let mut rest = &bytes[..];
    let mut most = 0;
    let mut turns = 0;
    while service.answered.load(Ordering::Relaxed) < asked {
        if !lane.is_held() {
            let n = if lane.has_pending() {
                0
            } else {
                let space = lane.space();
                let n = space.len().min(rest.len());
                space[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                n
            };
            assert!(matches!(lane.filled(n, now), Step::Continue));
        }
        let peer = lane.peer().unwrap().clone();
        most = most.max(peer.backlog());
        // The client reads a little.
        *window.0.lock().unwrap() += 3 << 20;
        peer.flush().unwrap();
        turns += 1;
        assert!(turns < 1000, "it goes on when the client reads");
    }
    assert!(most < 12 << 20, "{most} bytes waited");
}
