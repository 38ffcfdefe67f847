//! The sessions, by what finds them: a token, or the connection that speaks for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use genie_transport::connection::Peer;
use genie_transport::wire::{ErrorCode, RemoteError, SessionToken};

use crate::config::Config;
use crate::error::{fail, internal};
use crate::session::{Session, State};

/// See the module.
pub(crate) struct Registry {
    /// By a hash of the token: how long a look-up takes says nothing about the tokens that there are.
    by_token: Mutex<HashMap<[u8; 32], Arc<Session>>>,
    /// By the connection's address, which no other has while this one is kept.
    by_peer: RwLock<HashMap<usize, Attached>>,
    most: usize,
    seed: Option<u64>,
    drawn: AtomicU64,
}

/// A connection that speaks for a session.
struct Attached {
    session: Arc<Session>,
    /// Kept, so that no other gets its address.
    _peer: Arc<Peer>,
}

impl Registry {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            by_token: Mutex::default(),
            by_peer: RwLock::default(),
            most: config.max_sessions,
            seed: config.token_seed,
            drawn: AtomicU64::new(0),
        }
    }

    /// The session that a connection speaks for.
    pub(crate) fn of(&self, peer: &Arc<Peer>) -> Option<Arc<Session>> {
        let by_peer = self.by_peer.read().unwrap_or_else(PoisonError::into_inner);
        by_peer.get(&address(peer)).map(|attached| attached.session.clone())
    }

    /// Adds a session, and gives its token.
    pub(crate) fn add(&self, session: Arc<Session>) -> Result<SessionToken, RemoteError> {
        let token = self.draw()?;
        let mut by_token = self.tokens();
        if let Some(most) = session.owner.rights().sessions
            && by_token.values().filter(|other| other.owner.is_same(&session.owner)).count() >= most
        {
            let message =
                format!("this token has {most} sessions, its limit: close one, or wait for one's lease to end");
            return Err(fail(ErrorCode::Forbidden, message));
        }
        if by_token.len() >= self.most {
            let message = format!("the server has {} sessions, its limit: try again later", self.most);
            return Err(fail(ErrorCode::Busy, message));
        }
        by_token.insert(digest(&token), session);
        Ok(token)
    }

    /// The session with this token.
    pub(crate) fn find(&self, token: &SessionToken) -> Option<Arc<Session>> {
        self.tokens().get(&digest(token)).cloned()
    }

    /// From now on `peer` speaks for the session; gives the connection that did so before.
    pub(crate) fn attach(&self, session: &Arc<Session>, peer: &Arc<Peer>) -> Option<Arc<Peer>> {
        let before = {
            let mut state = session.lock();
            state.detached = None;
            if state.peer.as_ref().is_none_or(|before| !Arc::ptr_eq(before, peer)) {
                // It has to ask for each of them again first.
                state.pending.iter_mut().for_each(|pending| pending.heard = false);
            }
            state.peer.replace(peer.clone()).filter(|before| !Arc::ptr_eq(before, peer))
        };
        let mut by_peer = self.by_peer.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = &before {
            by_peer.remove(&address(before));
        }
        by_peer.insert(address(peer), Attached { session: session.clone(), _peer: peer.clone() });
        before
    }

    /// A connection is gone; gives the session that it spoke for, whose lease begins.
    pub(crate) fn detach(&self, peer: &Arc<Peer>, now: Instant) -> Option<Arc<Session>> {
        let Attached { session, .. } =
            self.by_peer.write().unwrap_or_else(PoisonError::into_inner).remove(&address(peer))?;
        let mut state = session.lock();
        if state.peer.as_ref().is_some_and(|p| Arc::ptr_eq(p, peer)) {
            state.peer = None;
            state.detached = Some(now);
        }
        drop(state);
        Some(session)
    }

    /// Takes a session out.
    pub(crate) fn remove(&self, session: &Arc<Session>) {
        self.tokens().retain(|_, s| !Arc::ptr_eq(s, session));
        let mut by_peer = self.by_peer.write().unwrap_or_else(PoisonError::into_inner);
        by_peer.retain(|_, attached| !Arc::ptr_eq(&attached.session, session));
    }

    /// Takes out the sessions whose lease has run out.
    pub(crate) fn expire(&self, now: Instant) -> Vec<Arc<Session>> {
        let is_over = |session: &Arc<Session>| {
            let mut state = session.lock();
            // Said under the lock: a client that comes back in this very moment either finds the session alive, and it stays so,
            // or is told that it has ended.
            state.ended |= state.detached.is_some_and(|since| now.saturating_duration_since(since) >= session.lease);
            state.ended
        };
        let mut over = Vec::new();
        self.tokens().retain(|_, session| {
            let keep = !is_over(session);
            if !keep {
                over.push(session.clone());
            }
            keep
        });
        over
    }

    /// Ends the session that nobody has spoken for the longest, of those that hold nothing and have nothing to do, so that
    /// another can be opened in its place. The caller frees what little it has.
    pub(crate) fn give_up_idle(&self) -> Option<Arc<Session>> {
        let idle_since = |state: &State| {
            let idle = !state.ended && state.objects.len() == 0 && state.pending.is_empty();
            state.detached.filter(|_| idle)
        };
        let tokens = self.tokens();
        let idle = tokens.values().filter_map(|session| Some((idle_since(&session.lock())?, session)));
        let session = idle.min_by_key(|(since, _)| *since)?.1.clone();
        drop(tokens);
        let mut state = session.lock();
        // It may have been taken up again just now.
        let ends = idle_since(&state).is_some();
        state.ended |= ends;
        drop(state);
        ends.then_some(session)
    }

    /// Every session.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.tokens().values().cloned().collect()
    }

    fn draw(&self) -> Result<SessionToken, RemoteError> {
        let mut token = [0; 32];
        match self.seed {
            Some(seed) => {
                let mut hasher = blake3::Hasher::new();
                hasher.update(&seed.to_le_bytes());
                hasher.update(&self.drawn.fetch_add(1, Ordering::Relaxed).to_le_bytes());
                token = *hasher.finalize().as_bytes();
            }
            None => getrandom::fill(&mut token).map_err(|e| internal("no session token could be drawn", &e))?,
        }
        Ok(SessionToken(token))
    }

    fn tokens(&self) -> MutexGuard<'_, HashMap<[u8; 32], Arc<Session>>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(peer: &Arc<Peer>) -> usize {
    Arc::as_ptr(peer).addr()
}

fn digest(token: &SessionToken) -> [u8; 32] {
    *blake3::hash(&token.0).as_bytes()
}
