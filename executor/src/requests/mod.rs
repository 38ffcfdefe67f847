//! What each request does.

mod admin;
mod cache;
mod offer;
mod program;
mod put;
mod tensor;

use std::sync::Arc;
use std::time::Instant;

use genie_transport::connection::Peer;
use genie_transport::wire::{ErrorCode, Kind, PutBody, PutRequest, RemoteError, Reply, Request};

use crate::core::Core;
use crate::error::fail;
use crate::replies::Answer;
use crate::scheduler::shutting_down;
use crate::session::{Admission, Session};
use crate::stats::add;

/// A request that changes something: its answer now, or `None` where it comes later.
type Outcome = Result<Option<Answer>, RemoteError>;

/// Where a request came from.
struct From<'a> {
    peer: &'a Arc<Peer>,
    session: &'a Arc<Session>,
    id: u64,
    now: Instant,
}

impl Core {
    /// Does what a request asks.
    pub(crate) fn request(self: &Arc<Self>, peer: &Arc<Peer>, id: u64, request: Request<'_>, now: Instant) {
        add(&self.stats.requests, 1);
        let kind = kind(&request);
        match request {
            Request::Echo(bytes) => return peer.reply(id, kind, &Reply::Echo(bytes)),
            Request::Devices => return self.list_devices(peer, id),
            Request::Stats => return self.list_counters(peer, id),
            Request::Open { quota, lease_ms } => return self.open(peer, id, quota, lease_ms),
            Request::Resume { token, epoch, unanswered } => {
                return self.resume(peer, (id, now), &token, epoch, unanswered);
            }
            _ => {}
        }
        let (sliced, announce) = sliced_put(&request);
        let refuse = |error| {
            if sliced {
                peer.discard(id);
            }
            peer.give_back(&request);
            peer.reply(id, kind, &Reply::Failed(error));
        };
        if self.is_closing() {
            return refuse(shutting_down());
        }
        let Some(session) = self.registry.of(peer) else {
            return refuse(fail(ErrorCode::NoSession, "open a session first, or resume one"));
        };
        if let Err(error) = self.permit(peer, &request, now) {
            return refuse(error);
        }
        let from = From { peer, session: &session, id, now };
        if !request.changes_state() {
            if let Err(error) = self.read(&from, &request) {
                refuse(error);
            }
            return;
        }
        match session.admit(peer, id, kind, announce) {
            Admission::New => {}
            Admission::Handled => return,
            Admission::Refused => return peer.give_back(&request),
        }
        match self.change(&from, request) {
            Ok(Some(answer)) => session.complete(id, answer),
            Ok(None) => {}
            Err(error) => {
                if sliced {
                    peer.discard(id);
                }
                session.complete(id, Answer::Failed(error));
            }
        }
    }

    fn read(self: &Arc<Self>, from: &From<'_>, request: &Request<'_>) -> Result<(), RemoteError> {
        match request {
            Request::Get { handle, offset, length, sliced } => self.get(from, *handle, *offset, *length, *sliced),
            Request::GetInto { handle, offset, length, into } => self.get_into(from, *handle, *offset, *length, *into),
            Request::LookupHandle(handle) => self.lookup_handle(from, *handle),
            _ => Err(fail(ErrorCode::UnknownKind, "this server does not know the request")),
        }
    }

    fn change(self: &Arc<Self>, from: &From<'_>, request: Request<'_>) -> Outcome {
        match request {
            Request::Close => {
                self.end_session(from.session);
                Ok(Some(Answer::Done))
            }
            Request::Put(put) => self.put(from, &put),
            Request::Copy { handle, device } => self.copy(from, handle, device),
            Request::Free(handle) => {
                let object = from.session.lock().objects.remove(handle)?;
                // Here, outside the lock: it may be the last hold on much memory.
                drop(object);
                Ok(Some(Answer::Done))
            }
            Request::LookupName(name) => self.lookup_name(from, name),
            Request::Offer { device, entries } => self.offer(from, device, &entries),
            Request::OfferSet { device, hash } => self.offer_set(from, device, &hash),
            Request::Define { device, graph } => self.define(from, device, graph),
            Request::DefineKnown { device, hash } => self.define_known(from, device, &hash),
            Request::Bind { program, bound, weights, arguments } => {
                self.bind(from, program, (&bound, &weights), arguments)
            }
            Request::Run { binding, position, wanted, keep, arguments } => {
                self.run(from, binding, position, (wanted, keep), arguments)
            }
            Request::Generate { prefill, decode, position, max_new, prompt, stop, arguments } => {
                let bindings = (from.session.binding(prefill)?, from.session.binding(decode)?);
                let (prefill, decode) = bindings;
                let wish = crate::generate::Wish { prefill, decode, position, max_new, prompt, stop, arguments };
                self.generate(from, &wish)
            }
            Request::CacheCreate { program, input, reserve } => self.cache_create(from, program, input, reserve),
            Request::CacheFork(cache) => self.cache_fork(from, cache),
            Request::CacheTruncate { cache, length } => self.cache_truncate(from, cache, length),
            _ => Err(fail(ErrorCode::UnknownKind, "this server does not know the request")),
        }
    }
}

/// Whether a request is a put in slices, and one that asks which have landed.
fn sliced_put(request: &Request<'_>) -> (bool, bool) {
    match request {
        Request::Put(PutRequest { body: PutBody::Sliced { announce, .. }, .. }) => (true, *announce),
        _ => (false, false),
    }
}

/// The kind that replies to a request carry.
fn kind(request: &Request<'_>) -> Kind {
    match request {
        Request::Open { .. } => Kind::Open,
        Request::Resume { .. } => Kind::Resume,
        Request::Close => Kind::Close,
        Request::Echo(_) => Kind::Echo,
        Request::Put(_) => Kind::Put,
        Request::Get { .. } | Request::GetInto { .. } => Kind::Get,
        Request::Copy { .. } => Kind::Copy,
        Request::Free(_) => Kind::Free,
        Request::LookupName(_) | Request::LookupHandle(_) => Kind::Lookup,
        Request::Offer { .. } => Kind::Offer,
        Request::OfferSet { .. } => Kind::OfferSet,
        Request::Devices => Kind::Devices,
        Request::Stats => Kind::Stats,
        Request::Define { .. } | Request::DefineKnown { .. } => Kind::Define,
        Request::Bind { .. } => Kind::Bind,
        Request::Run { .. } => Kind::Run,
        Request::Generate { .. } => Kind::Generate,
        Request::CacheCreate { .. } => Kind::CacheCreate,
        Request::CacheFork(_) => Kind::CacheFork,
        Request::CacheTruncate { .. } => Kind::CacheTruncate,
    }
}
