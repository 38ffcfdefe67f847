//! A relay between clients and a server, which cuts, holds back, corrupts and counts.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use genie_transport::Uri;
use genie_transport::wire::{Kind, Local};

use crate::socket::Socket;

/// See the module. What it does can be changed at any time.
pub struct Proxy {
    /// Where clients connect to.
    pub uri: Uri,
    door: Door,
    state: Arc<State>,
}

/// Where clients come in.
#[derive(Clone)]
enum Door {
    Tcp(SocketAddr),
    Unix(String),
}

impl Door {
    fn enter(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(address) => TcpStream::connect(address).map(Socket::Tcp),
            Self::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
        }
    }
}

struct State {
    server: Door,
    encrypted: bool,
    /// The connection that is the control lane, where that cannot be seen; 0: none is.
    control: AtomicU64,
    opened: AtomicU64,
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
    /// Bytes that may pass over bulk lanes before the next one that carries some meets its fault.
    lane_allowance: AtomicU64,
    lane_fault: Mutex<LaneFault>,
    lane_faults: AtomicU64,
    controls: AtomicU64,
    bulks: AtomicU64,
    /// Microseconds that the first bulk lane rests after each read, at the least.
    slow: AtomicU64,
    /// Bytes over each bulk lane, in the order of their opening.
    carried: Mutex<Vec<u64>>,
    closing: AtomicBool,
    streams: Mutex<Vec<Socket>>,
}

/// What can happen to one bulk lane while the others go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneFault {
    /// It is closed, with what is on its way.
    #[default]
    Cut,
    /// It stands still, and nobody is told.
    Stand,
    /// It loses a byte, so that nothing after it makes sense.
    Garble,
}

/// One direction of a connection.
struct Way {
    /// Of its connection, from 1 on.
    id: u64,
    from: Socket,
    to: Socket,
    is_up: bool,
    /// Whether the connection is a bulk lane, as its first frame says; and which of them.
    bulk: Arc<AtomicBool>,
    number: Arc<AtomicU64>,
    /// Whether the other direction has ended.
    gone: Arc<AtomicBool>,
}

/// By how much the first bulk lane is slower than the others together, where it is to be slow.
pub const SLOWER: u64 = 20;

/// Between two looks at whether what was held back may go on.
const LOOK: Duration = Duration::from_millis(2);

impl Proxy {
    /// In front of this server.
    ///
    /// # Panics
    /// If there is no port left.
    pub fn to(server: SocketAddr) -> Self {
        Self::to_tcp(server, false)
    }

    /// In front of a server that encrypts, and for one client at a time: what its connections carry the relay does not see, and takes
    /// each that comes while another of them is its control lane for a bulk lane.
    ///
    /// # Panics
    /// If there is no port left.
    pub fn to_encrypted(server: SocketAddr) -> Self {
        Self::to_tcp(server, true)
    }

    fn to_tcp(server: SocketAddr, encrypted: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::new(Door::Tcp(server), encrypted));
        let shared = state.clone();
        std::thread::spawn(move || {
            shared.accept(|| {
                let socket = listener.accept()?.0;
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            });
        });
        let uri = format!("tcp://{address}").parse().expect("an address");
        Self { uri, door: Door::Tcp(address), state }
    }

    /// In front of a server over shared memory. What goes through the rings it does not see: it relays the sockets, and with them
    /// the bulk lanes.
    ///
    /// # Panics
    /// If the server is not one, or its path with two more letters is taken.
    pub fn to_shm(server: &Uri) -> Self {
        let Uri::Shm { path } = server else { panic!("{server} is not shared memory") };
        let own = format!("{path}-p");
        // An earlier test's, of the same process number.
        let _ = std::fs::remove_file(&own);
        let listener = UnixListener::bind(&own).expect("a path");
        let state = Arc::new(State::new(Door::Unix(path.clone()), false));
        let shared = state.clone();
        std::thread::spawn(move || shared.accept(|| listener.accept().map(|(socket, _)| Socket::Unix(socket))));
        let uri = format!("shm://{own}").parse().expect("an address");
        Self { uri, door: Door::Unix(own), state }
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

    /// After so many more bytes over bulk lanes, up and down together, this happens to the one that carries the next: once.
    pub fn lane_fault_after(&self, bytes: u64, fault: LaneFault) {
        *self.state.lane_fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        self.state.lane_allowance.store(bytes, Ordering::Release);
    }

    /// The bulk lane that is opened first rests so long after each read, from here on; and while others carry something, until they
    /// have carried [`SLOWER`] times as much as it: however busy the machine is, it is slower than they are.
    pub fn slow_first_lane(&self, rest: Duration) {
        self.state.slow.store(rest.as_micros() as u64, Ordering::Release);
    }

    /// Bytes that passed over each bulk lane, up and down, in the order of their opening.
    pub fn carried(&self) -> Vec<u64> {
        self.state.carried().clone()
    }

    /// How often that has happened.
    pub fn lane_faults(&self) -> u64 {
        self.state.lane_faults.load(Ordering::Acquire)
    }

    /// Control lanes and bulk lanes that were opened.
    pub fn lanes(&self) -> (u64, u64) {
        (self.state.controls.load(Ordering::Acquire), self.state.bulks.load(Ordering::Acquire))
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
        let _ = self.door.enter();
        if let Door::Unix(path) = &self.door {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl State {
    fn new(server: Door, encrypted: bool) -> Self {
        Self {
            server,
            encrypted,
            control: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            allowance: AtomicU64::new(u64::MAX),
            each: AtomicU64::new(u64::MAX),
            cuts: AtomicU64::new(0),
            held_from: AtomicU64::new(u64::MAX),
            flips: AtomicU64::new(0),
            flipped: AtomicU64::new(0),
            lane_allowance: AtomicU64::new(u64::MAX),
            lane_fault: Mutex::default(),
            lane_faults: AtomicU64::new(0),
            controls: AtomicU64::new(0),
            bulks: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            carried: Mutex::default(),
            closing: AtomicBool::new(false),
            streams: Mutex::default(),
        }
    }

    fn accept(self: Arc<Self>, mut next: impl FnMut() -> io::Result<Socket>) {
        loop {
            let client = next();
            if self.closing.load(Ordering::Acquire) {
                return;
            }
            let Ok(client) = client else { continue };
            // A client whose server is down is cut off.
            let Ok(server) = self.server.enter() else { continue };
            if let Socket::Tcp(server) = &server {
                server.set_nodelay(true).expect("sockets take options");
            }
            let (bulk, gone) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
            let number = Arc::new(AtomicU64::new(0));
            let clones = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
            let (Ok(client_too), Ok(server_too), Ok(kept_client), Ok(kept_server)) = clones else { continue };
            self.streams().extend([kept_client, kept_server]);
            let id = self.opened.fetch_add(1, Ordering::AcqRel) + 1;
            let up = Way {
                id,
                from: client,
                to: server_too,
                is_up: true,
                bulk: bulk.clone(),
                number: number.clone(),
                gone: gone.clone(),
            };
            let down = Way { id, from: server, to: client_too, is_up: false, bulk, number, gone };
            for way in [up, down] {
                let state = self.clone();
                std::thread::spawn(move || state.pass(way));
            }
        }
    }

    fn pass(&self, mut way: Way) {
        let mut buf = vec![0; 64 << 10];
        let mut first = true;
        while let Ok((n @ 1.., file)) = way.from.receive(&mut buf) {
            let part = &mut buf[..n];
            if std::mem::take(&mut first) && way.is_up {
                let is_bulk = match &way.from {
                    Socket::Tcp(_) if self.encrypted => !self.takes_control(way.id),
                    Socket::Tcp(_) => part.get(3) == Some(&(Kind::LaneHello as u8)),
                    Socket::Unix(_) => part.first_chunk().map(Local::decode) == Some(Ok(Local::Bulk)),
                };
                way.bulk.store(is_bulk, Ordering::Release);
                let number = if is_bulk { &self.bulks } else { &self.controls }.fetch_add(1, Ordering::AcqRel);
                way.number.store(number, Ordering::Release);
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
            let mut part = part;
            if bulk && self.spend_lane(n as u64) {
                let fault = *self.lane_fault.lock().unwrap_or_else(PoisonError::into_inner);
                match fault {
                    LaneFault::Cut => break,
                    LaneFault::Garble => part = &mut part[1..],
                    LaneFault::Stand => {}
                }
                while fault == LaneFault::Stand
                    && !way.gone.load(Ordering::Acquire)
                    && !self.closing.load(Ordering::Acquire)
                {
                    std::thread::park_timeout(LOOK);
                }
            }
            if bulk {
                self.carry(way.number.load(Ordering::Acquire), n as u64);
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
            // Before they go: who sees what comes of them finds them counted.
            let counter = if way.is_up { &self.up } else { &self.down };
            counter.fetch_add(n as u64, Ordering::AcqRel);
            if way.to.send(part, file).is_err() {
                break;
            }
        }
        if way.is_up {
            // Unless it was another.
            let _ = self.control.compare_exchange(way.id, 0, Ordering::AcqRel, Ordering::Acquire);
        }
        way.gone.store(true, Ordering::Release);
        way.to.end();
        way.from.end();
    }

    /// Bytes pass over a bulk lane; the first one rests.
    fn carry(&self, number: u64, bytes: u64) {
        let number = number as usize;
        let mut carried = self.carried();
        if carried.len() <= number {
            carried.resize(number + 1, 0);
        }
        carried[number] += bytes;
        drop(carried);
        let rest = Duration::from_micros(self.slow.load(Ordering::Acquire));
        if number > 0 || rest.is_zero() {
            return;
        }
        let others = || self.carried().iter().skip(1).sum::<u64>();
        let mut before = others();
        let enough = before + bytes * SLOWER;
        loop {
            std::thread::sleep(rest);
            let now = others();
            // Those that stand still may be waiting for it.
            if now >= enough || now == before || self.closing.load(Ordering::Acquire) {
                break;
            }
            before = now;
        }
    }

    fn carried(&self) -> MutexGuard<'_, Vec<u64>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these bytes are what the next lane's fault waits for.
    fn spend_lane(&self, bytes: u64) -> bool {
        let spend = |left: u64| match left {
            u64::MAX => None,
            left if left <= bytes => Some(u64::MAX),
            left => Some(left - bytes),
        };
        let left = self.lane_allowance.fetch_update(Ordering::AcqRel, Ordering::Acquire, spend);
        let now = left.is_ok_and(|left| left <= bytes);
        self.lane_faults.fetch_add(u64::from(now), Ordering::AcqRel);
        now
    }

    fn is_holding(&self) -> bool {
        self.up.load(Ordering::Acquire) >= self.held_from.load(Ordering::Acquire)
            && !self.closing.load(Ordering::Acquire)
    }

    /// Whether this connection is the control lane, where only their order tells.
    fn takes_control(&self, id: u64) -> bool {
        self.control.compare_exchange(0, id, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn cut(&self) {
        self.control.store(0, Ordering::Release);
        for stream in self.streams().drain(..) {
            stream.end();
        }
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
