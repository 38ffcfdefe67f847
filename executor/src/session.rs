//! A session: what one client has on the server, whatever becomes of its connections.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use genie_transport::auth::Identity;
use genie_transport::connection::Peer;
use genie_transport::wire::{ErrorCode, Finish, Handle, Kind, RemoteError, Reply};

use crate::account::{Account, Charge};
use crate::caches::Cache;
use crate::error::fail;
use crate::handles::HandleTable;
use crate::programs::{Binding, Program};
use crate::replies::{Answer, Seen, Window, forgotten};
use crate::residents::Tensor;
use crate::scheduler::{Class, Share};
use crate::uploads::Upload;

/// See the module.
pub(crate) struct Session {
    /// For logs; no secret.
    pub(crate) number: u64,
    /// Whose it is: nobody else takes it up.
    pub(crate) owner: Identity,
    pub(crate) account: Arc<Account>,
    pub(crate) lease: Duration,
    /// Requests that may be pending.
    most_pending: usize,
    /// What it has in the devices' queues, by device and class.
    shares: Box<[[Share; 2]]>,
    state: Mutex<State>,
}

/// What changes in a session.
pub(crate) struct State {
    /// The connection that speaks for it.
    pub(crate) peer: Option<Arc<Peer>>,
    /// When its last connection went.
    pub(crate) detached: Option<Instant>,
    /// It was closed, or its lease ran out.
    pub(crate) ended: bool,
    pub(crate) objects: HandleTable<Object>,
    pub(crate) window: Window,
    /// Requests that change something and are not answered yet; twice the credits at the most.
    pub(crate) pending: Vec<Pending>,
}

/// What a handle can name.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Tensor(Arc<Tensor>),
    Cache(Arc<Cache>),
    /// With what the session pays for it.
    Program {
        program: Arc<Program>,
        _charge: Arc<Charge>,
    },
    Binding(Arc<Binding>),
}

/// A request in progress.
pub(crate) struct Pending {
    pub(crate) id: u64,
    pub(crate) kind: Kind,
    pub(crate) cancelled: bool,
    /// The connection that the session has now has asked for it. After a reconnect nothing is sent before it has: a client that
    /// is yet to ask would take what comes for the beginning of the answer.
    pub(crate) heard: bool,
    pub(crate) work: Work,
}

/// What a request in progress is at.
pub(crate) enum Work {
    /// Being handled, or in a queue.
    Busy,
    /// Waits for its slices.
    Upload { upload: Arc<Upload> },
    /// Makes tokens: these, so far.
    Generate { device: u16, position: u32, tokens: Vec<[u8; 4]> },
}

/// Whether a request is to be executed.
pub(crate) enum Admission {
    /// Yes: it is pending from here on.
    New,
    /// No: it was answered, or its reply will come.
    Handled,
    /// No: it has been told that there are too many, and nothing of it was looked at.
    Refused,
}

impl Session {
    pub(crate) fn new(
        number: u64,
        owner: Identity,
        quota: u64,
        lease: Duration,
        devices: u16,
        objects: HandleTable<Object>,
        window: Window,
    ) -> Arc<Self> {
        let shares = (0..devices).map(|_| Default::default()).collect();
        let most_pending = window.most();
        let state = State { peer: None, detached: None, ended: false, objects, window, pending: Vec::new() };
        Arc::new(Self {
            number,
            owner,
            account: Account::new(quota),
            lease,
            most_pending,
            shares,
            state: Mutex::new(state),
        })
    }

    /// What it has in the queue of a device's runs of this class.
    pub(crate) fn share(&self, device: u16, class: Class) -> Option<&Share> {
        let [decode, prefill] = self.shares.get(usize::from(device))?;
        Some(match class {
            Class::Decode => decode,
            Class::Prefill => prefill,
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a request that changes something, unless it was seen before: then it is answered as it was, or `peer`
    /// (which the reply goes to from now on) is told how far it has come.
    /// `announce`: a put whose client wants to hear which slices have landed.
    pub(crate) fn admit(&self, peer: &Arc<Peer>, id: u64, kind: Kind, announce: bool) -> Admission {
        let mut state = self.lock();
        let state = &mut *state;
        let heard = state.peer.as_ref().is_some_and(|p| Arc::ptr_eq(p, peer));
        if let Some(pending) = state.pending.iter_mut().find(|p| p.id == id) {
            if pending.kind == kind {
                pending.heard |= heard;
                pending.join(peer, announce);
            } else {
                peer.reply(id, kind, &Reply::Failed(reused(id)));
            }
            return Admission::Handled;
        }
        match state.window.look(id) {
            Seen::New => {}
            Seen::Answered(seen, answer) if seen == kind => {
                if kind == Kind::Put {
                    peer.discard(id);
                }
                answer.show(|reply| peer.reply(id, kind, reply));
                return Admission::Handled;
            }
            Seen::Answered(..) => {
                peer.reply(id, kind, &Reply::Failed(reused(id)));
                return Admission::Handled;
            }
            Seen::Forgotten => {
                if kind == Kind::Put {
                    peer.discard(id);
                }
                peer.reply(id, kind, &Reply::Failed(forgotten(id)));
                return Admission::Handled;
            }
        }
        if state.pending.len() >= self.most_pending {
            if kind == Kind::Put {
                peer.discard(id);
            }
            peer.reply(id, kind, &Reply::Failed(self.no_credit()));
            return Admission::Refused;
        }
        state.window.begin(id);
        state.pending.push(Pending { id, kind, cancelled: false, heard, work: Work::Busy });
        Admission::New
    }

    /// A connection has no more requests in flight than credits; but those of earlier connections are still pending.
    fn no_credit(&self) -> RemoteError {
        let message = format!(
            "{} requests of this session are in progress, some over earlier connections: wait for them, or cancel them",
            self.most_pending
        );
        fail(ErrorCode::NoCredit, message)
    }

    /// Ends a request; the reply goes to the connection that the session has now, if that has asked for it: if not, it is kept
    /// until it does.
    pub(crate) fn complete(&self, id: u64, answer: Answer) {
        self.complete_with(id, |_| answer);
    }

    /// Ends a request with an answer that is made from the session's state, if it is still in progress.
    pub(crate) fn complete_with(&self, id: u64, answer: impl FnOnce(&mut State) -> Answer) {
        let mut state = self.lock();
        let Some(at) = state.pending.iter().position(|p| p.id == id) else { return };
        let Pending { kind, heard, .. } = state.pending.swap_remove(at);
        let answer = answer(&mut state);
        let State { peer, window, .. } = &mut *state;
        let answer = window.end(id, kind, answer);
        if let Some(peer) = peer.as_ref().filter(|_| heard) {
            answer.show(|reply| peer.reply(id, kind, reply));
        }
    }

    /// A token was made; `finish` says whether it is the last (or whether there is none but an end). A client that has heard all
    /// before it gets this token alone; the window keeps them all.
    pub(crate) fn generated(
        &self,
        id: u64,
        device: u16,
        position: u32,
        token: Option<[u8; 4]>,
        finish: Option<Finish>,
    ) {
        let mut state = self.lock();
        let state = &mut *state;
        let Some(at) = state.pending.iter().position(|p| p.id == id) else { return };
        let Pending { work, heard, .. } = &mut state.pending[at];
        let Work::Generate { position: at_position, tokens, .. } = work else { return };
        *at_position = position;
        tokens.extend(token);
        if let Some(peer) = state.peer.as_ref().filter(|_| *heard) {
            peer.reply(id, Kind::Generate, &Reply::Generated { device, position, tokens: token.as_slice(), finish });
        }
        if let Some(finish) = finish
            && let Work::Generate { tokens, .. } = state.pending.swap_remove(at).work
        {
            state.window.end(id, Kind::Generate, Answer::Generated { device, position, tokens, finish });
        }
    }

    /// Whether a request in progress was cancelled, or its session has ended.
    pub(crate) fn is_cancelled(&self, id: u64) -> bool {
        let state = self.lock();
        state.pending.iter().find(|p| p.id == id).is_none_or(|p| p.cancelled)
    }

    /// What this handle names.
    pub(crate) fn object(&self, handle: Handle) -> Result<Object, RemoteError> {
        self.lock().objects.get(handle).cloned()
    }

    pub(crate) fn tensor(&self, handle: Handle) -> Result<Arc<Tensor>, RemoteError> {
        match self.object(handle)? {
            Object::Tensor(tensor) => Ok(tensor),
            other => Err(other.is_not("a tensor")),
        }
    }

    pub(crate) fn cache(&self, handle: Handle) -> Result<Arc<Cache>, RemoteError> {
        match self.object(handle)? {
            Object::Cache(cache) => Ok(cache),
            other => Err(other.is_not("a KV cache")),
        }
    }

    pub(crate) fn program(&self, handle: Handle) -> Result<Arc<Program>, RemoteError> {
        match self.object(handle)? {
            Object::Program { program, .. } => Ok(program),
            other => Err(other.is_not("a program")),
        }
    }

    pub(crate) fn binding(&self, handle: Handle) -> Result<Arc<Binding>, RemoteError> {
        match self.object(handle)? {
            Object::Binding(binding) => Ok(binding),
            other => Err(other.is_not("a binding")),
        }
    }
}

impl State {
    /// How many programs the session keeps on the server, by handles on them or on bindings.
    pub(crate) fn programs(&self) -> usize {
        let program = |object: &Object| match object {
            Object::Program { program, .. } => Some(Arc::as_ptr(program).addr()),
            Object::Binding(binding) => Some(Arc::as_ptr(&binding.program).addr()),
            Object::Tensor(_) | Object::Cache(_) => None,
        };
        self.objects.iter().filter_map(program).collect::<HashSet<_>>().len()
    }

    /// Gives an object a handle, where the session may have one more and lives.
    pub(crate) fn insert(&mut self, object: Object) -> Result<Handle, RemoteError> {
        if self.ended {
            return Err(fail(ErrorCode::SessionGone, "the session has ended"));
        }
        self.objects.has_room()?;
        Ok(self.objects.insert(object))
    }
}

impl Pending {
    /// The upload that it waits for.
    pub(crate) fn upload(&self) -> Option<&Arc<Upload>> {
        match &self.work {
            Work::Upload { upload } => Some(upload),
            _ => None,
        }
    }

    /// The client asks again, over another connection perhaps: says how far the request has come. Its end follows.
    fn join(&self, peer: &Arc<Peer>, announce: bool) {
        match &self.work {
            Work::Busy => {}
            // What it said the first time does not count: it may not have had to ask then.
            Work::Upload { upload } => upload.join(peer, self.id, announce),
            Work::Generate { device, position, tokens } if !tokens.is_empty() => {
                let reply = Reply::Generated { device: *device, position: *position, tokens, finish: None };
                peer.reply(self.id, self.kind, &reply);
            }
            Work::Generate { .. } => {}
        }
    }
}

impl Object {
    /// The device that it lies on.
    pub(crate) fn device(&self) -> u16 {
        match self {
            Self::Tensor(tensor) => tensor.device,
            Self::Cache(cache) => cache.device,
            Self::Program { program, .. } => program.device,
            Self::Binding(binding) => binding.program.device,
        }
    }

    fn is_not(&self, wanted: &str) -> RemoteError {
        let what = match self {
            Self::Tensor(_) => "a tensor",
            Self::Cache(_) => "a KV cache",
            Self::Program { .. } => "a program",
            Self::Binding(_) => "a binding",
        };
        fail(ErrorCode::WrongType, format!("the handle names {what}, but the request needs {wanted}"))
    }
}

fn reused(id: u64) -> RemoteError {
    fail(ErrorCode::Malformed, format!("request id {id} was used before, for a request of another kind"))
}
