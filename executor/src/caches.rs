//! KV caches: used by one run at a time, in the order in which requests came.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use genie_graph::Op;
use genie_transport::connection::Peer;
use genie_transport::wire::{ErrorCode, RemoteError, TensorSpec};

use crate::account::Charge;
use crate::core::Core;
use crate::device::{KvCache, KvSpec};
use crate::error::fail;
use crate::scheduler::Job;

/// A cache of one session.
pub(crate) struct Cache {
    /// Caches are taken in the order of their numbers, so that two runs never wait for each other.
    pub(crate) number: u64,
    pub(crate) device: u16,
    pub(crate) spec: KvSpec,
    /// The cache itself; `None` while a run has it.
    held: Mutex<Held>,
    line: Mutex<Line>,
}

struct Held {
    kv: Option<KvCache>,
    charge: Charge,
    /// The token that the last run gave, with its request.
    token: Option<(u64, [u8; 4])>,
}

#[derive(Default)]
struct Line {
    busy: bool,
    waiting: VecDeque<Turn>,
}

/// What waits for its turn with a cache.
pub(crate) enum Turn {
    /// A run, which keeps the cache until it calls [`Cache::leave`].
    Job(Job),
    /// Something short that happens on the spot.
    Quick(Quick),
    /// The same, for a request that changes nothing: it is given up with the connection that it came over.
    Read(Arc<Peer>, Quick),
}

/// See [`Turn::Quick`].
pub(crate) type Quick = Box<dyn FnOnce(&Arc<Core>, &Arc<Cache>) + Send>;

impl Cache {
    pub(crate) fn new(number: u64, device: u16, kv: KvCache, charge: Charge) -> Arc<Self> {
        let spec = kv.spec();
        let held = Mutex::new(Held { kv: Some(kv), charge, token: None });
        Arc::new(Self { number, device, spec, held, line: Mutex::default() })
    }

    /// Does something short when it is its turn: now, on this thread, or when it comes up in line.
    pub(crate) fn enter(self: &Arc<Self>, core: &Arc<Core>, turn: Turn) {
        if let Some(turn) = self.line_up(turn) {
            let mut free = Vec::new();
            self.serve(core, turn, &mut free);
            serve_lines(core, free);
        }
    }

    /// Takes a place in line; gives the turn back where it is its turn right away.
    pub(crate) fn line_up(&self, turn: Turn) -> Option<Turn> {
        let mut line = self.line();
        if !std::mem::replace(&mut line.busy, true) {
            return Some(turn);
        }
        // A live connection has no more of them than credits; those of dead ones would add up for as long as a run goes on.
        if matches!(turn, Turn::Read(..)) {
            line.waiting.retain(|turn| !turn.is_given_up());
        }
        line.waiting.push_back(turn);
        None
    }

    /// The run that had the cache is done with it: the next in line is served.
    pub(crate) fn leave(self: &Arc<Self>, core: &Arc<Core>) {
        let mut free = Vec::new();
        self.serve_next(core, &mut free);
        serve_lines(core, free);
    }

    /// The next in line has its turn.
    fn serve_next(self: &Arc<Self>, core: &Arc<Core>, free: &mut Vec<Arc<Self>>) {
        let mut line = self.line();
        match line.waiting.pop_front() {
            Some(turn) => {
                drop(line);
                self.serve(core, turn, free);
            }
            None => line.busy = false,
        }
    }

    /// Serves who is in turn. Caches that are free again afterwards, this one or others that a run had, come into `free`.
    fn serve(self: &Arc<Self>, core: &Arc<Core>, turn: Turn, free: &mut Vec<Arc<Self>>) {
        match turn {
            Turn::Quick(quick) => {
                quick(core, self);
                free.push(self.clone());
            }
            Turn::Read(peer, quick) => {
                if !peer.is_closed() {
                    quick(core, self);
                }
                free.push(self.clone());
            }
            Turn::Job(job) => {
                if let Err(ended) = job.proceed(core) {
                    free.extend(ended.caches.iter().cloned());
                }
            }
        }
    }

    /// Works on the cache; only for who is in turn.
    ///
    /// # Errors
    /// The work's, or [`ErrorCode::Internal`] if a run has the cache: then the caller was not in turn.
    pub(crate) fn with<T>(
        &self,
        work: impl FnOnce(&mut KvCache, &mut Charge) -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        let mut held = self.held();
        let Held { kv, charge, .. } = &mut *held;
        let kv = kv.as_mut().ok_or_else(|| fail(ErrorCode::Internal, "the cache is in use by a run"))?;
        work(kv, charge)
    }

    /// Takes the cache for a run.
    pub(crate) fn take(&self) -> Option<KvCache> {
        self.held().kv.take()
    }

    /// Gives it back after the run. The run has charged what it grew by.
    pub(crate) fn put_back(&self, kv: KvCache) {
        self.held().kv = Some(kv);
    }

    /// Takes note of the token that a run gave, for the next that names its request.
    pub(crate) fn gave(&self, request: u64, token: Option<[u8; 4]>) {
        self.held().token = token.map(|token| (request, token));
    }

    /// The token that this request gave, if that was the last run.
    pub(crate) fn token_of(&self, request: u64) -> Option<[u8; 4]> {
        self.held().token.filter(|(of, _)| *of == request).map(|(_, token)| token)
    }

    /// Charges what it would take to append `tokens` to it. The session pays for every block that a cache has, shared with a
    /// fork or not: so a fork that starts to differ costs nothing that was not paid for.
    pub(crate) fn charge_for(&self, kv: &KvCache, tokens: u64) -> Result<(), RemoteError> {
        let bytes = blocks_bytes(&self.spec, kv.len().saturating_add(tokens)).max(kv.bytes());
        Ok(self.held().charge.resize(bytes)?)
    }

    /// Charges what it has.
    pub(crate) fn settle(&self, kv: &KvCache) {
        // Shrinking cannot fail, and no cache has more than was charged before it grew.
        let _ = self.held().charge.resize(kv.bytes());
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Whether nobody waits for it any more.
    fn is_given_up(&self) -> bool {
        matches!(self, Self::Read(peer, _) if peer.is_closed())
    }
}

/// Goes on with the lines of caches that are free again. Who is served may end at once and free caches in turn, as often as
/// there are requests in line: so it is a loop over a list, and not a recursion.
pub(crate) fn serve_lines(core: &Arc<Core>, mut free: Vec<Arc<Cache>>) {
    while let Some(cache) = free.pop() {
        cache.serve_next(core, &mut free);
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("number", &self.number).field("spec", &self.spec).finish_non_exhaustive()
    }
}

/// Bytes of the blocks that hold this many tokens.
pub(crate) fn blocks_bytes(spec: &KvSpec, tokens: u64) -> u64 {
    let block = spec.block_bytes().map_or(u64::MAX, |n| n as u64);
    tokens.div_ceil(Op::KV_BLOCK).saturating_mul(block)
}

/// A cache of `length` tokens as a tensor: whole blocks, and one at least, since no tensor is empty.
pub(crate) fn tensor_spec(spec: &KvSpec, length: u64) -> Result<TensorSpec, RemoteError> {
    let blocks = length.div_ceil(Op::KV_BLOCK).max(1);
    let dims = [blocks, spec.layers, 2, spec.kv_heads, Op::KV_BLOCK, spec.head_dim];
    TensorSpec::new(spec.dtype, &dims).map_err(RemoteError::from)
}
