//! Puts whose bytes come in slices: where they land, who waits for them, and what becomes of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::connection::Peer;
use genie_transport::memory::Landing;
use genie_transport::wire::{ContentHash, ErrorCode, Handle, Kind, RemoteError, Reply, TensorSpec};

use crate::account::Charge;
use crate::caches::Cache;
use crate::device::Space;
use crate::error::fail;
use crate::hashing::{Elsewhere, Hashing};
use crate::replies::Answer;
use crate::residents::Tensor;
use crate::session::Session;
use crate::staged::Staged;

/// A sliced put in progress.
///
/// The upload of a weight is found by its hash: it survives the session that began it, and sessions that put the same content
/// join it, so that each slice is sent once whoever sends it.
pub(crate) struct Upload {
    pub(crate) device: u16,
    pub(crate) target: Target,
    pub(crate) landing: Arc<Landing>,
    /// Where the slices go on to, if that is a device's memory.
    pub(crate) staged: Option<Arc<Staged>>,
    state: Mutex<State>,
}

/// What becomes of the bytes.
pub(crate) enum Target {
    /// A private resident; checked against the hash where one was given.
    Private(Option<ContentHash>),
    /// A weight of the device's store.
    Weight(ContentHash),
    /// A part of a private resident.
    Range { handle: Handle, tensor: Arc<Tensor>, offset: u64 },
    /// The contents of a cache: so many tokens.
    Cache { handle: Handle, cache: Arc<Cache>, length: u32 },
}

impl Target {
    fn hash(&self) -> Option<ContentHash> {
        match self {
            Self::Private(hash) => *hash,
            Self::Weight(hash) => Some(*hash),
            _ => None,
        }
    }
}

/// A request that ends when the upload does.
pub(crate) struct Waiter {
    pub(crate) session: Arc<Session>,
    pub(crate) id: u64,
    pub(crate) spec: TensorSpec,
    pub(crate) name: Option<String>,
    pub(crate) charge: Charge,
}

struct State {
    waiters: Vec<Waiter>,
    /// How many requests have ever waited for it: any of them may have sent any of its bytes.
    joined: usize,
    /// What became of it is known: nobody can join any more.
    closed: bool,
    touched: Instant,
}

impl Upload {
    /// An upload into this memory, all of one kind. What must have a hash is hashed elsewhere.
    pub(crate) fn new(
        (device, target): (u16, Target),
        spaces: Vec<Space>,
        slice_bytes: u32,
        elsewhere: Elsewhere,
        now: Instant,
    ) -> Arc<Self> {
        let state = State { waiters: Vec::new(), joined: 0, closed: false, touched: now };
        let (mut slabs, mut buffers) = (Vec::new(), Vec::new());
        for space in spaces {
            match space {
                Space::Host(slab) => slabs.push(slab),
                Space::Device(buffer) => buffers.push(buffer),
            }
        }
        let staged = (!buffers.is_empty()).then(|| {
            Staged::new(buffers, |bytes| target.hash().and_then(|_| Hashing::new(bytes, slice_bytes, elsewhere)))
        });
        let landing = match &staged {
            Some(staged) => Landing::staged(staged.bytes(), slice_bytes, staged.clone()),
            None => Landing::new(slabs, slice_bytes),
        };
        Arc::new(Self { device, target, landing, staged, state: Mutex::new(state) })
    }

    /// The hash that the bytes must have.
    pub(crate) fn hash(&self) -> Option<ContentHash> {
        self.target.hash()
    }

    /// Adds a request that ends with the upload, unless that has ended already.
    pub(crate) fn wait(&self, waiter: Waiter, now: Instant) -> Result<(), Waiter> {
        let mut state = self.lock();
        if state.closed {
            return Err(waiter);
        }
        state.touched = now;
        state.joined += 1;
        state.waiters.push(waiter);
        Ok(())
    }

    /// Takes a request away again; the upload goes on for the others.
    pub(crate) fn leave(&self, session: &Arc<Session>, id: u64) -> Option<Waiter> {
        let mut state = self.lock();
        let at = state.waiters.iter().position(|w| w.id == id && Arc::ptr_eq(&w.session, session))?;
        Some(state.waiters.swap_remove(at))
    }

    /// Whether any request waits for it.
    pub(crate) fn is_awaited(&self) -> bool {
        !self.lock().waiters.is_empty()
    }

    /// When it was last asked for.
    pub(crate) fn touched(&self) -> Instant {
        self.lock().touched
    }

    /// Whether nobody has asked for it for this long.
    pub(crate) fn is_older_than(&self, age: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.lock().touched) >= age
    }

    /// Whether all its bytes are one request's.
    pub(crate) fn is_of_one(&self) -> bool {
        self.lock().joined <= 1
    }

    /// Who waits for it, as it ends.
    pub(crate) fn close(&self) -> Vec<Waiter> {
        let mut state = self.lock();
        state.closed = true;
        std::mem::take(&mut state.waiters)
    }

    /// Lets a connection send what is missing of it: as transfer `id`, after it was told what landed earlier if it wants to
    /// know.
    pub(crate) fn join(&self, peer: &Arc<Peer>, id: u64, announce: bool) {
        peer.receive(id, self.landing.clone());
        if announce {
            let landing = &self.landing;
            let bits = landing.landed_bits();
            let (slice_bytes, slices) = (landing.slice_bytes(), landing.slices());
            peer.reply(id, Kind::Put, &Reply::Landed { slice_bytes, slices, bits: &bits });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter {
    /// Its request comes to nothing.
    pub(crate) fn fail(self, error: RemoteError) {
        self.no_more_slices();
        let Self { session, id, charge, .. } = self;
        drop(charge);
        session.complete(id, Answer::Failed(error));
    }

    /// What the connection still sends of it is not wanted any more.
    pub(crate) fn no_more_slices(&self) {
        let peer = self.session.lock().peer.clone();
        if let Some(peer) = peer {
            peer.discard(self.id);
        }
    }
}

/// What a put gets whose bytes are not what was promised.
pub(crate) fn mismatch(promised: &ContentHash, found: &ContentHash) -> RemoteError {
    let message = format!("the bytes hash to {found:?}.., but {promised:?}.. was promised: hash and send again");
    fail(ErrorCode::HashMismatch, message)
}
