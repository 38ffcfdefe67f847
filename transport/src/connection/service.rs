//! What a server does with requests, and what its connections have in common.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::links::Offers;
use super::peer::{Driver, Peer};
use super::strangers::{Stranger, Strangers};
use crate::auth::{Guard, lane_proof};
use crate::polling;
use crate::wire::{LaneHello, Request};

/// Keepalives in silence after which either side takes the other for dead.
pub(super) const SILENT_KEEPALIVES: u32 = 3;

/// What a server tells its connections, and the limits it holds them to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server's life; another number after every start.
    pub epoch: u64,
    /// Requests that one connection may have in flight.
    pub credits: u32,
    /// Payloads up to this many bytes travel inline.
    pub eager_bytes: u32,
    /// The slice size that the server prefers: small enough that a slice checksummed a moment ago is still in the cache when
    /// the kernel copies it.
    pub slice_bytes: u32,
    /// Silence after which a client should send a ping. Three of them without a word, and a connection is taken for dead.
    pub keepalive: Duration,
    /// How long a lane may take to say who it is, and any frame for its last byte.
    pub patience: Duration,
    /// Connections at a time; one more is told that the server is busy.
    pub max_connections: usize,
    /// Lanes at a time that have not said who they are. For one more the oldest has to go; no more than as many again are about to.
    pub max_strangers: usize,
    /// How long a bulk lane may hold up a transfer while others lie idle, before it is ended; alone, five times as long.
    pub stuck: Duration,
    /// Whether a client may have its slices without checksums, if it asks. TCP's own sum lets one corrupted segment in 65,536 pass.
    pub unchecked: bool,
    /// Bulk lanes a connection may have.
    pub max_lanes: u32,
    /// Where the server listens, for clients that choose a link.
    pub offers: Arc<Offers>,
    /// How long a lane polls for the next request before it parks, while traffic is dense: 60 us, or 5 ms where there are eight cores
    /// or more; over shared memory four times as long. Zero: not at all.
    pub spin: Duration,
    /// Asks connections who they are.
    pub guard: Arc<Guard>,
}

impl Settings {
    /// The defaults, with this epoch.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            credits: 256,
            eager_bytes: 64 << 10,
            slice_bytes: 256 << 10,
            keepalive: Duration::from_secs(10),
            patience: Duration::from_secs(10),
            max_connections: 16_384,
            max_strangers: 4096,
            stuck: Duration::from_secs(1),
            unchecked: false,
            max_lanes: 16,
            offers: Arc::default(),
            spin: polling::server(),
            guard: Arc::new(Guard::open()),
        }
    }

    /// Silence after which a connection is taken for dead.
    pub fn silence(&self) -> Duration {
        self.keepalive * SILENT_KEEPALIVES
    }
}

/// What a connection met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Noted {
    /// A slice whose checksum is wrong.
    SliceCorrupted,
    /// A bulk lane that broke, stood still or made no sense, while its connection goes on.
    LaneLost,
}

/// A server's side of the protocol above the connection. Calls come from whatever thread received the bytes, in the order
/// of the connection's frames; none may block.
pub trait Service: Send + Sync + 'static {
    /// What connections are told.
    fn settings(&self) -> &Settings;

    /// A whole, checked request. Answer by [`Peer::reply`], now or later, from any thread: once, or several times where the
    /// last reply is the only terminal one.
    fn request(&self, peer: &Arc<Peer>, id: u64, request: Request<'_>, now: Instant);

    /// The client no longer wants the request. It still gets its one terminal reply.
    fn cancel(&self, peer: &Arc<Peer>, id: u64, now: Instant);

    /// Every slice of a transfer that was registered by [`Peer::receive`] has landed intact.
    fn landed(&self, peer: &Arc<Peer>, transfer: u64, now: Instant);

    /// A slice of the transfer arrived that cannot belong to it, or one was corrupted too often.
    fn refused(&self, peer: &Arc<Peer>, transfer: u64, now: Instant);

    /// The client's device reached for memory that it has no right to, and was refused: its session ends, and the connection after
    /// this call.
    fn trespassed(&self, _peer: &Arc<Peer>, _now: Instant) {}

    /// Something was met that is worth counting.
    fn noted(&self, _what: Noted) {}

    /// The connection is gone.
    fn closed(&self, peer: &Arc<Peer>, now: Instant);
}

/// A server's connections, so that bulk lanes find theirs.
#[derive(Debug, Default)]
pub struct Directory {
    peers: Mutex<HashMap<u64, Weak<Peer>>>,
    next: AtomicU64,
    open: AtomicUsize,
    strangers: Arc<Strangers>,
}

impl Directory {
    /// Counts a new connection, unless `limit` are open.
    pub(super) fn admit(&self, limit: usize) -> bool {
        let room = |n: usize| (n < limit).then_some(n + 1);
        self.open.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok()
    }

    /// Counts a lane that has not said who it is. `None`: there are too many.
    pub(super) fn stranger(&self, driver: Arc<dyn Driver>, most: usize) -> Option<Stranger> {
        self.strangers.arrive(driver, most)
    }

    pub(super) fn leave(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn insert(&self, peer: &Arc<Peer>) {
        self.lock().insert(peer.id(), Arc::downgrade(peer));
    }

    pub(super) fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    /// The connection that a bulk lane names, if it proves that it knows the key, and did not say so before.
    pub(super) fn find(&self, hello: &LaneHello) -> Option<Arc<Peer>> {
        let peer = self.lock().get(&hello.connection)?.upgrade()?;
        let expected = lane_proof(peer.lane_key(), hello.connection, hello.lane, hello.attempt);
        (expected == hello.proof && peer.is_first_attempt(hello.attempt)).then_some(peer)
    }

    /// Connections that are open.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<Peer>>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
