//! A relay between clients and a server, which cuts, holds back, corrupts and counts.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use genie_transport::Uri;
use genie_transport::wire::Kind;

/// See the module. What it does can be changed at any time.
pub struct Proxy {
    /// Where clients connect to.
    pub uri: Uri,
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    server: SocketAddr,
    up: AtomicU64,
    down: AtomicU64,
    /// Bytes, up and down, that may pass before everything is cut, and how many after each cut.
    allowance: AtomicU64,
    each: AtomicU64,
    cuts: AtomicU64,
    /// Bytes that have gone up from which on bulk is held back.
    held_from: AtomicU64,
    flips: AtomicU64,
    flipped: AtomicU64,
    closing: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

/// One direction of a connection.
struct Way {
    from: TcpStream,
    to: TcpStream,
    is_up: bool,
    /// Whether the connection is a bulk lane, as its first frame says.
    bulk: Arc<AtomicBool>,
}

/// Between two looks at whether what was held back may go on.
const LOOK: Duration = Duration::from_millis(2);

impl Proxy {
    /// In front of this server.
    ///
    /// # Panics
    /// If there is no port left.
    pub fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            server,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            allowance: AtomicU64::new(u64::MAX),
            each: AtomicU64::new(u64::MAX),
            cuts: AtomicU64::new(0),
            held_from: AtomicU64::new(u64::MAX),
            flips: AtomicU64::new(0),
            flipped: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let shared = state.clone();
        std::thread::spawn(move || shared.accept(&listener));
        let uri = format!("tcp://{address}").parse().expect("an address");
        Self { uri, address, state }
    }

    /// Bytes that went up to the server, and down to clients.
    pub fn passed(&self) -> (u64, u64) {
        (self.state.up.load(Ordering::Acquire), self.state.down.load(Ordering::Acquire))
    }

    /// Cuts every connection after `first` more bytes, up and down together, and again after each `each` that follow.
    pub fn cut_after(&self, first: u64, each: u64) {
        self.state.each.store(each, Ordering::Release);
        self.state.allowance.store(first, Ordering::Release);
    }

    /// How often that has happened.
    pub fn cuts(&self) -> u64 {
        self.state.cuts.load(Ordering::Acquire)
    }

    /// Cuts every connection now.
    pub fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::AcqRel);
        self.state.cut();
    }

    /// Holds back what goes up on bulk lanes once so many bytes have gone up in all; `u64::MAX`: lets it go on.
    pub fn hold_bulk_from(&self, bytes: u64) {
        self.state.held_from.store(bytes, Ordering::Release);
    }

    /// Flips a bit in so many of the next reads from bulk lanes.
    pub fn flip(&self, count: u64) {
        self.state.flips.store(count, Ordering::Release);
    }

    /// Bits flipped so far.
    pub fn flipped(&self) -> u64 {
        self.state.flipped.load(Ordering::Acquire)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Release);
        self.state.cut();
        // Wakes whoever accepts; that it fails means that nobody does.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn accept(self: Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            let Ok(client) = client else { continue };
            // A client whose server is down is cut off.
            let Ok(server) = TcpStream::connect(self.server) else { continue };
            let bulk = Arc::new(AtomicBool::new(false));
            let clones = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
            let (Ok(client_too), Ok(server_too), Ok(kept_client), Ok(kept_server)) = clones else { continue };
            let nodelay = client.set_nodelay(true).and(server.set_nodelay(true));
            nodelay.expect("sockets take options");
            self.streams().extend([kept_client, kept_server]);
            let up = Way { from: client, to: server_too, is_up: true, bulk: bulk.clone() };
            let down = Way { from: server, to: client_too, is_up: false, bulk };
            for way in [up, down] {
                let state = self.clone();
                std::thread::spawn(move || state.pass(way));
            }
        }
    }

    fn pass(&self, mut way: Way) {
        let mut buf = vec![0; 64 << 10];
        let mut first = true;
        while let Ok(n @ 1..) = way.from.read(&mut buf) {
            let part = &mut buf[..n];
            if std::mem::take(&mut first) && way.is_up {
                way.bulk.store(part.get(3) == Some(&(Kind::LaneHello as u8)), Ordering::Release);
            }
            let bulk = way.bulk.load(Ordering::Acquire);
            while bulk && way.is_up && self.is_holding() {
                std::thread::park_timeout(LOOK);
            }
            let less = |flips: u64| flips.checked_sub(1);
            if bulk && n > 1000 && self.flips.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok() {
                part[n / 2] ^= 4;
                self.flipped.fetch_add(1, Ordering::AcqRel);
            }
            let each = self.each.load(Ordering::Acquire);
            let spend = |left: u64| match left {
                u64::MAX => None,
                left if left <= n as u64 => Some(each),
                left => Some(left - n as u64),
            };
            let left = self.allowance.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend);
            if left.is_ok_and(|left| left <= n as u64) {
                self.cuts.fetch_add(1, Ordering::AcqRel);
                self.cut();
                break;
            }
            if way.to.write_all(part).is_err() {
                break;
            }
            let counter = if way.is_up { &self.up } else { &self.down };
            counter.fetch_add(n as u64, Ordering::AcqRel);
        }
        // One of the two may have been closed already.
        let _ = way.to.shutdown(Shutdown::Both);
        let _ = way.from.shutdown(Shutdown::Both);
    }

    fn is_holding(&self) -> bool {
        self.up.load(Ordering::Acquire) >= self.held_from.load(Ordering::Acquire)
            && !self.closing.load(Ordering::Acquire)
    }

    fn cut(&self) {
        for stream in self.streams().drain(..) {
            // It may have been closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
