//! How a client behaves, and what it tells.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::auth::Token;
use crate::wire::{DecodeError, Effect, ErrorCode, OpenedSession, RemoteError};

/// Why a request has no good answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused or failed it.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The server could not be reached for as long as the client tries.
    #[error("cannot reach the server: {reason}; is `genie serve` running there? ({effect:?} effect)")]
    Unreachable {
        /// The last attempt's failure.
        reason: String,
        /// Whether the request may have taken effect.
        effect: Effect,
    },
    /// The server restarted, or the session's lease ran out: what it held is gone. A new session is open.
    #[error("the session is gone ({0:?}): upload again what it held")]
    SessionLost(ErrorCode),
    /// The server sent something that is not the protocol.
    #[error("the server does not follow the protocol: {0}")]
    Protocol(#[from] DecodeError),
    /// What was asked for cannot be said; nothing was sent.
    #[error("{0}; nothing was sent: what is too large for one request is put first, and named in it as a tensor")]
    Request(#[source] DecodeError),
    /// Bytes were corrupted on the way, again and again.
    #[error("bytes were corrupted on the way {0} times: check the network")]
    Corrupt(u32),
    /// A get's bytes have no place here; nothing was asked for.
    #[error("no memory here for the {bytes} bytes of the tensor: get it in ranges")]
    OutOfMemory {
        /// As many as were to come.
        bytes: u64,
    },
    /// The server asks who the client is, and the client has no token.
    #[error("the server asks for a token: give --token-file FILE, or GENIE_TOKEN_FILE in the environment")]
    TokenWanted,
    /// The server has not shown that it knows the client's token: somebody else may have answered in its place.
    #[error(
        "the server has not proved that it knows the token '{name}': is it the one you mean? (a server without tokens: leave out the token file)"
    )]
    ServerUnproven {
        /// The token's name.
        name: String,
    },
    /// One side's certificate does not convince the other, or the lane is no TLS channel: trying again would not help.
    #[error("{reason}")]
    Untrusted {
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The server is older than what it was to be asked; nothing was sent.
    #[error("the server is too old for {0}")]
    ServerTooOld(&'static str),
    /// The connection was lost, and the request is of a kind that is not sent again.
    #[error("the connection was lost; send the request again")]
    Interrupted,
}

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Bytes the session may hold; 0: the server's default.
    pub quota: u64,
    /// How long the session outlives its connection, in milliseconds; 0: the server's default. A blocking session says nothing
    /// between calls, and so counts as gone once it was silent for as long as the server allows: this must cover the pauses of
    /// whoever calls it. The default is ten minutes.
    pub lease_ms: u32,
    /// How long to try to reach the server, first and after a loss.
    pub reconnect_for: Duration,
    /// The first pause between attempts; doubles up to a second.
    pub backoff: Duration,
    /// Bulk lanes to use; 0: as many as suit what lies between, see [`LanePlan`].
    pub lanes: u32,
    /// How long a bulk lane may hold up a transfer while others lie idle, before it is closed and opened again; one that is alone,
    /// or stands still in the middle of a slice, five times as long.
    pub stuck: Duration,
    /// Asks the server to do without checksums over slices. If it grants that, a bit that flips on the way past TCP's own sum goes
    /// unnoticed, unless the tensor is put by its hash. Over TLS, where every record is authenticated, there are none anyway.
    pub unchecked: bool,
    /// A session to take up, instead of opening one.
    pub resume: Option<OpenedSession>,
    /// Proves who the client is. With one, a server that does not prove that it knows the token, too, is not talked to.
    pub token: Option<Arc<Token>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            quota: 0,
            lease_ms: 600_000,
            reconnect_for: Duration::from_secs(15),
            backoff: Duration::from_millis(20),
            lanes: 0,
            stuck: Duration::from_secs(1),
            unchecked: false,
            resume: None,
            token: None,
        }
    }
}

/// How many bulk lanes a client uses, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanePlan {
    /// As many.
    pub lanes: u32,
    /// In words, for whoever asks.
    pub why: String,
}

/// What a lane's socket buffers hold at the most, as Linux sets them by default: no more than this is on its way over one lane.
const WINDOW_BYTES: u128 = 4 << 20;

/// What a connection should be able to carry, in bytes a second: 10 Gb/s.
const WISHED_RATE: u128 = 1_250_000_000;

/// Within such a round trip one lane carries as much as two.
const NEAR: Duration = Duration::from_millis(1);

/// The most lanes that are chosen unasked.
const MOST_LANES: u128 = 8;

impl LanePlan {
    /// As many lanes as were asked for, or as suit a round trip of this length.
    pub(super) fn new(asked: u32, rtt: Duration) -> Self {
        if asked > 0 {
            return Self { lanes: asked, why: "as asked for".into() };
        }
        let ms = rtt.as_secs_f64() * 1e3;
        if rtt < NEAR {
            let why = format!("an answer took {ms:.2} ms: so near, a second lane only takes cores from the first");
            return Self { lanes: 1, why };
        }
        let on_the_way = WISHED_RATE * rtt.as_nanos() / 1_000_000_000;
        let lanes = on_the_way.div_ceil(WINDOW_BYTES).clamp(2, MOST_LANES) as u32;
        let why = format!(
            "an answer took {ms:.2} ms: at 10 Gb/s {on_the_way} bytes are on their way, a lane holds {WINDOW_BYTES}; at least 2, \
             so that one that breaks does not stop the rest"
        );
        Self { lanes, why }
    }
}

/// How large the slices are that a client asks for, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlicePlan {
    /// Bytes of each but the last, where a transfer has no more of them than it may.
    pub bytes: u32,
    /// In words, for whoever asks.
    pub why: &'static str,
}

/// From such a round trip on there is a network between that is shared by several lanes, and slower than they are. One exchange tells: a
/// busy host now and then takes a millisecond or two for it itself.
const FAR: Duration = Duration::from_millis(5);

/// There.
const FAR_SLICE: u32 = 64 << 10;

impl SlicePlan {
    /// What the server prefers, or less.
    pub(super) fn new(prefers: u32, rtt: Duration) -> Self {
        if rtt < FAR || prefers <= FAR_SLICE {
            let why = "fixed: the server says so, nothing is measured; still in the cache when it is sent, after its checksum";
            return Self { bytes: prefers, why };
        }
        let why = "an answer took 5 ms or more: small enough that lanes which share a slow path end together";
        Self { bytes: FAR_SLICE, why }
    }
}

/// What went over the lanes, and what happened to them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes sent, headers included.
    pub up: AtomicU64,
    /// Bytes received, headers included.
    pub down: AtomicU64,
    /// Bulk lanes that broke, stood still or could not be opened while the connection went on.
    pub lanes_lost: AtomicU64,
    /// Bulk lanes that were opened in their place.
    pub lanes_reopened: AtomicU64,
    /// Slices of gets that came corrupted.
    pub slices_corrupt: AtomicU64,
    /// Slices of puts that the server asked for again, because they came corrupted or found no place.
    pub slices_again: AtomicU64,
    /// Slices that were late, and were asked for over another lane.
    pub slices_late: AtomicU64,
    lanes: Mutex<Vec<Arc<LaneCounts>>>,
}

/// What went over one bulk lane.
#[derive(Debug, Default)]
pub struct LaneCounts {
    /// Its number in its connection: each lane that is opened has the next.
    pub lane: u32,
    /// Bytes sent, heads included.
    pub up: AtomicU64,
    /// Bytes received, heads included.
    pub down: AtomicU64,
    /// Slices sent whole.
    pub slices_up: AtomicU64,
    /// Sends of slices that the kernel has not copied either: the link asked for that, and it did not have to.
    pub zero_copied: AtomicU64,
    /// Slices received whole.
    pub slices_down: AtomicU64,
    /// Whether it is gone.
    pub ended: AtomicBool,
}

/// Lanes whose counts are kept.
const KEPT_COUNTS: usize = 64;

impl Counters {
    /// The lanes of the present connection, the last 64, those that are gone included.
    pub fn lanes(&self) -> Vec<Arc<LaneCounts>> {
        self.locked().clone()
    }

    pub(super) fn forget_lanes(&self) {
        self.locked().clear();
    }

    pub(super) fn lane(&self, lane: u32) -> Arc<LaneCounts> {
        let mut lanes = self.locked();
        if let Some(counts) = lanes.iter().find(|l| l.lane == lane) {
            return counts.clone();
        }
        let counts = Arc::new(LaneCounts { lane, ..LaneCounts::default() });
        lanes.push(counts.clone());
        if lanes.len() > KEPT_COUNTS {
            lanes.remove(0);
        }
        counts
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Arc<LaneCounts>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
